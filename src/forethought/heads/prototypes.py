"""PrototypeExact: a linear latent that meets each anchor at a chosen feature vector, to the last bit."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import AT_PROTOTYPES, LATENT, Claim
from forethought.heads.exact import Exact
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.layers import as_rows, check_features, dtype_name, robust_loss
from forethought.heads.line import AnchorCurve

_RIDGE = 1e-4  # of the mean variance of what is free: enough to invert
_RANK = 1e-10  # singular values below this share of the largest say that a prototype depends on others
_PLATEAU = 0.01  # class units that y may rest around a knot and still be said to pass through a point
_UNIT = 2.0**-53  # half the distance from 1 to the next float64


class PrototypeExact(Head):
    """A linear latent constrained so that prototype k has the latent k: y = A(w x + b) with A(w mu_k + b) = v_k.

    A prototype is one feature vector a class, such as the class's mean. The K constraints leave D + 1 - K directions
    free, which are trained. The latent is computed in float64, and A rests at its anchor for as far around each knot as
    any order of summation can round (about 1e-10 classes), so that a prototype gets its anchor to the last bit, alone
    or in a batch. `certify` proves that, and A monotone in the latent.

    Args:
        in_features: D.
        anchors: One value per class, K >= 2 and K <= D + 1, ascending or descending.
        prototypes: (K, D) in the order of the classes, held as they are, in float64; None: to be loaded with
            `load_state_dict`.
        extrapolate: Outside the end knots: 'clamp' or 'linear'.
        dtype: Of the parameters.

    Raises:
        AnchorError: unusable anchors.
        FitError: prototypes of another shape, not finite, or one of them depends on the others.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> prototypes = torch.tensor([[0.0, 1.0, 0.3], [0.5, 0.2, 0.1], [2.0, 0.1, 0.7]])
        >>> head = PrototypeExact(in_features=3, anchors=[60.0, 62.0, 67.0], prototypes=prototypes)
        >>> head(prototypes).tolist()
        [60.0, 62.0, 67.0]
    """

    kind: ClassVar[str] = "prototype"

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        prototypes: Tensor | None = None,
        *,
        extrapolate: str = "clamp",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        self.line = AnchorCurve(anchors, extrapolate=extrapolate, dtype=dtype)
        self.in_features = in_features
        classes = len(self.scale)
        if prototypes is None:
            points = torch.zeros(classes, in_features)
            base, basis = torch.zeros(in_features + 1), torch.zeros(classes, in_features + 1)
        else:
            points = _checked(prototypes, classes, in_features).double()
            base, basis = _constraints(points)
        self.exact = Exact(prototypes=points.double(), base=base.double(), basis=basis.double())
        self.direction = nn.Parameter(torch.zeros(in_features + 1, dtype=dtype))

    @property
    def scale(self) -> Anchors:
        """The anchors, ascending."""
        return self.line.scale

    @property
    def extrapolate(self) -> str:
        """What y does beyond the end anchors: 'clamp' or 'linear'."""
        return self.line.extrapolate

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    @property
    def prototypes(self) -> Tensor:
        """The feature vectors (K, D) at which the anchors are met, as they were given, in float64."""
        return self.exact.get_buffer("prototypes")

    def plane(self) -> Tensor:
        """Return the latent's weights and bias (D + 1,), float64: the least ones that meet every constraint, plus what
        is trained, without its part along the constraints.
        """
        basis = self.exact.get_buffer("basis")
        free = self.direction.to(basis.dtype) * ((len(self.scale) - 1) / 2)
        return self.exact.get_buffer("base") + (free - (free @ basis.T) @ basis)

    def follow(self, features: Tensor, places: Tensor) -> None:
        """Train in closed form: bring latents of features (N, D) near to places (N,), class units, as far as is free.

        Least squares in the directions that leave the prototypes' latents alone, with a small penalty.
        """
        exact = [self.exact.get_buffer(name).cpu() for name in ("base", "basis")]
        with torch.no_grad():
            wanted = _least_squares(features.double().cpu(), places.double().cpu(), *exact)
            self.direction.copy_(wanted / ((len(self.scale) - 1) / 2))

    def latent(self, features: Tensor) -> Tensor:
        """Return where each sample lies on the line of classes: (B, D) -> (B,), in class units, float64."""
        check_features(features, self.in_features)
        plane = self.plane()
        return features.to(plane.dtype) @ plane[:-1] + plane[-1]

    def curve(self, s: Tensor) -> Tensor:
        """Return y = A(s), the same shape as s, in the anchors' units."""
        y: Tensor = self.line(s, self.rest().to(torch.promote_types(s.dtype, self.scale.values.dtype)))
        return y.to(self.scale.values.dtype)

    def rest(self) -> Tensor:
        """Return how far around a knot A stays at its anchor, in class units: a scalar.

        Well above how far the latents of prototypes are from their knots as summed here, and what any order may round.
        """
        with torch.no_grad():
            return 4 * self._misses().max() + 16 * self._rounding().max()

    def _misses(self) -> Tensor:
        """Return how far the latent of each prototype, as summed here, is from its knot (K,)."""
        points = self.prototypes
        return (
            (self.latent(points) - torch.arange(len(points), dtype=points.dtype, device=points.device)).detach().abs()
        )

    def _rounding(self) -> Tensor:
        """Return a bound (K,) of the rounding of a latent at each prototype, for any order of summation."""
        plane = self.plane().detach().abs()
        size = self.prototypes.abs() @ plane[:-1] + plane[-1]
        return (self.in_features + 8) * _UNIT * size

    def inverse(self, y: Tensor) -> Tensor:
        """Return the latent (same shape as y) at which the curve takes the value y, in class units."""
        return self.line.inverse(y)

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        return self.curve(self.latent(features))

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the class whose anchor is nearest to the prediction."""
        return self.numbered(self.line.nearest(self.latent(features)))

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the Huber loss of the straight-continued curve against targets (B,), a scalar.

        The latent of the loss is summed in the parameters' dtype, which is twice as fast.
        """
        check_features(features, self.in_features)
        plane = self.plane().to(torch.promote_types(self.direction.dtype, torch.float32))
        s = features.to(plane.dtype) @ plane[:-1] + plane[-1]
        return robust_loss(self.line.continued(s), targets * self.scale.sign, self.scale, weights)

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the latent."""
        return torch.float64

    def claims(self) -> list[Claim]:
        """Return what is proved of the curve, and of y at the prototypes."""
        return [*self.line.claims(LATENT, torch.float64, self.rest()), self._at_prototypes()]

    def _at_prototypes(self) -> Claim:
        """Prove that every order of summation puts each prototype within the rest of its knot."""
        rest = self.rest().item()
        # |any sum - k| <= |this sum - k| + |this sum - exact| + |any sum - exact|
        worst = (self._misses() + 2 * self._rounding()).cpu()
        # Half of the rest makes up for the rounding of the piece beside it.
        bad = (~(worst <= rest / 2)).nonzero().flatten().tolist()
        against = f"prototype {bad[0]} may be {worst[bad[0]].item():.3g} classes from its knot" if bad else None
        if not rest <= _PLATEAU:
            against = against or f"y would rest {rest:.3g} classes around each knot, more than {_PLATEAU:g}"
        with torch.no_grad():
            y = self(self.prototypes)
        missed = (y.double() - self.anchors.double()).abs()
        holds = against is None and bool((missed == 0).all())
        says = "y is the anchor to the last bit at each prototype, in any batch"
        why = (
            f"summed in any order, latents are within {worst.max().item():.3g} of their knots, where y rests {rest:.3g}"
        )
        scope = f"{len(missed)} prototypes of {self.in_features} features"
        bound = None if missed.isnan().any() else missed.max().item()
        return Claim(AT_PROTOTYPES, "features", says, scope, holds, against or why, bound, against)

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: the curve along its latent, at its knots, and the head at its prototypes."""
        walk = self.line.walk(LATENT, torch.float64, self.curve)
        hit = self.line.hit(LATENT, torch.float64, self.curve)
        return [walk], [hit, Hit(AT_PROTOTYPES, "features", self, self.prototypes, self.anchors, 0.0)]

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types; the prototypes come with the state."""
        return {
            "kind": self.kind,
            **self.numbering(),
            "in_features": self.in_features,
            "anchors": self.scale.numbers,
            "extrapolate": self.line.extrapolate,
            "dtype": dtype_name(self),
        }


def class_prototypes(features: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """Return the mean feature vector of each class, (N, D) and (N,) -> (classes, D).

    Args:
        features: (N, D).
        labels: (N,) class indices.
        classes: How many.
        weights: (N,), above 0: what each row counts; None: all the same.

    Raises:
        FitError: a class has no sample.
    """
    features, labels = as_rows(features), as_rows(labels)
    counts = torch.bincount(labels, minlength=classes)
    empty = (counts[:classes] == 0).nonzero().flatten().tolist()
    if empty or len(counts) > classes:
        raise FitError(
            f"Cannot make prototypes: expected samples of each of {classes} classes, got "
            + (f"none of class {empty[0]}. " if empty else f"class {len(counts) - 1}. ")
            + "Leave out the anchors of classes without samples, and number the rest from 0"
        )
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    weights = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()
    sums.index_add_(0, labels, features.double() * weights[:, None])
    amounts = torch.zeros(classes, dtype=torch.float64, device=features.device).index_add_(0, labels, weights)
    return (sums / amounts[:, None]).to(features.dtype)


def _checked(prototypes: Tensor, classes: int, width: int) -> Tensor:
    if prototypes.shape != (classes, width) or not prototypes.isfinite().all():
        got = tuple(prototypes.shape) if prototypes.shape != (classes, width) else "a value that is not finite"
        raise FitError(
            f"Cannot use prototypes: expected {classes} finite feature vectors, ({classes}, {width}), got {got}. "
            "Pass one a class: heads.class_prototypes(features, labels, classes)"
        )
    return prototypes.detach()


def _least_squares(x: Tensor, places: Tensor, base: Tensor, basis: Tensor) -> Tensor:
    """Return what to add to the plane `base` (D + 1,) to come near to places (N,), orthogonal to `basis` (K, D + 1)."""
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    free = rows - (rows @ basis.T) @ basis
    penalty = _RIDGE * free.square().sum() / free.shape[1] + torch.finfo(free.dtype).tiny
    left = places - rows @ base
    if len(free) < free.shape[1]:
        added: Tensor = free.T @ torch.linalg.solve(free @ free.T + penalty * torch.eye(len(free)).to(x), left)
    else:
        added = torch.linalg.solve(free.T @ free + penalty * torch.eye(free.shape[1]).to(x), free.T @ left)
    return added


def _constraints(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least plane (D + 1,) with plane(mu_k) = k, and an orthonormal basis (K, D + 1) of the constraints."""
    classes = len(points)
    rows = torch.cat([points, torch.ones(classes, 1, dtype=points.dtype, device=points.device)], 1)
    # Scaled so that a large feature does not make the 1 of the bias look like rounding.
    u, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    wanted = torch.arange(classes, dtype=points.dtype, device=points.device)
    rank = int((sizes > _RANK * sizes[0]).sum())
    if rank < classes:
        fit = rows @ torch.linalg.lstsq(rows, wanted[:, None], driver="gelsd").solution.squeeze(1)
        raise FitError(
            f"Cannot meet every anchor at its prototype: expected {classes} prototypes none of which is a mean of the "
            f"others, got rank {rank}; a plane comes within {(fit - wanted).abs().max().item():.3g} classes of all. "
            "Merge classes whose prototypes coincide, use more features than classes, or heads.AnchorSpline"
        )
    base = basis.T @ ((u.T @ wanted) / sizes)
    return base, basis
