"""PartialMonotone: y rises or falls with named raw features, provably, and does what it likes with the others."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from forethought.errors import FitError
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import LATENT, MONOTONE, Claim
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.layers import check_features, dtype_name, dtype_of, robust_loss, without_autocast
from forethought.heads.line import AnchorCurve
from forethought.heads.monotone_net import MonotoneNet

NAMED = "named features"
Signs = Sequence[int] | Mapping[str, int] | Mapping[int, int]


class PartialMonotone(Head):
    """A network monotone in named features, then the curve through the anchors: y = A(latent(features)).

    For features that mean something (a weight in carat, a grade), not for those of a deep network. A named feature
    first goes through a rising broken line of its own and then meets only weights that cannot be negative; others meet
    any. `certify` proves, in floating point and in whatever batch, that y never steps back as a named feature rises (or
    falls) while the others stay. Evaluation sums in a fixed order, which is slower than a matrix product.

    Monotone by sign-constrained weights (Archer and Wang 1993); piecewise linear calibration of each input as in
    lattice networks (Gupta et al. 2016).

    Args:
        in_features: D.
        anchors: Values that the curve goes through, K >= 2; two, the least and the greatest, leave all to the network.
        monotone: The sign of each feature, -1, 0 or 1, as scikit-learn's `monotonic_cst`: a sequence of D, or a mapping
            from positions, or from names.
        names: The D features' names, where `monotone` names them.
        hidden: Sizes of the layers in which features interact; () for a sum of one term a feature.
        keypoints: Pieces of a named feature's broken line.
        free_keypoints: Pieces of a broken line, of any shape, of each other feature; 0: they come in straight. Columns
            of a table gain by it, above all with outliers; deep features do not need it.
        free_units: Units that the other features are made into where they meet the layers; None: hidden[0], but 3 at
            most where there are more than 64 of them, where the product of these would take most of the time.
        between: Pieces of the curve through the anchors: 'linear' or 'rational'.
        extrapolate: Beyond the end anchors: 'clamp' or 'linear'.
        dtype: Of the parameters; sums run in float32 or wider.

    Raises:
        AnchorError: unusable anchors.
        FitError: no monotone feature, an unknown name, or another sign.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> head = PartialMonotone(2, anchors=[0.0, 10.0], monotone={"carat": 1}, names=["carat", "x"]).eval()
        >>> low, high = head(torch.tensor([[0.5, 1.0], [0.7, 1.0]])).tolist()
        >>> low < high
        True
    """

    kind: ClassVar[str] = "partial"
    free: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        monotone: Signs,
        *,
        names: Sequence[str] | None = None,
        hidden: Sequence[int] = (32, 32),
        keypoints: int = 16,
        free_keypoints: int = 0,
        free_units: int | None = None,
        between: str = "linear",
        extrapolate: str = "clamp",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.names = None if names is None else tuple(names)
        self.signs = signs_of(monotone, in_features, self.names)
        if (
            keypoints < 1
            or free_keypoints < 0
            or any(size < 1 for size in (*hidden, 1 if free_units is None else free_units))
        ):
            got = f"keypoints={keypoints}, free_keypoints={free_keypoints}, hidden={tuple(hidden)}, {free_units=}"
            raise FitError(f"Cannot build head: expected sizes from 1 up, got {got}. keypoints=16, free_keypoints=0")
        self.line = AnchorCurve(anchors, between=between, extrapolate=extrapolate, dtype=dtype)
        self.keypoints, self.free_keypoints = keypoints, free_keypoints
        self.net = MonotoneNet(self.signs, hidden, keypoints, free_keypoints, free_units, dtype)

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
        """The anchors (K,) in the order given."""
        return self.scale.given

    def place(self, features: Tensor) -> "PartialMonotone":
        """Fit centres, spreads and the corners of the broken lines to features (N, D), before training; return self."""
        check_features(features, self.in_features)
        if not len(features) or not features.isfinite().all():
            raise FitError("Cannot place head: expected finite features, got none or others. head.place(features)")
        with torch.no_grad():
            self.net.place(features)
        return self

    def latent(self, features: Tensor) -> Tensor:
        """Return where each sample lies on the line of the anchors, 0 at the first, K-1 at the last: (B, D) -> (B,)."""
        check_features(features, self.in_features)
        reach = (len(self.scale) - 1) / 2
        # Falling anchors: the network rises along the line, so that y, not the line, follows the signs. Half: targets
        # seldom fill the range of the anchors, and layers fit best what is as large as their units.
        with without_autocast(features.device):
            s: Tensor = reach + reach / 2 * self.scale.sign * self.net(features)
        return s.to(torch.promote_types(s.dtype, self.scale.values.dtype))

    def curve(self, s: Tensor) -> Tensor:
        """Return y = A(s), the same shape as s, in the anchors' units. Undone by `inverse`."""
        y: Tensor = self.line(s)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        """Return the latent (same shape as y) at which the curve takes the value y."""
        return self.line.inverse(y)

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        return self.curve(self.latent(features))

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the anchor that is nearest to the prediction."""
        return self.line.nearest(self.latent(features))

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the Huber loss of the straight-continued curve against targets (B,), a scalar."""
        y = self.line.continued(self.latent(features))
        return robust_loss(y, targets * self.scale.sign, self.scale, weights)

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the sums and the curve."""
        return torch.promote_types(dtype_of(self.net), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return what is proved of y in the named features, and of the curve in the latent."""
        along = self.line.claims(LATENT, self.runs_in())
        against = self.net.against() or (None if along[0].holds else along[0].why)
        up, down = ([self.name_of(i) for i, sign in enumerate(self.signs) if sign == way] for way in (1, -1))
        says = "y never falls " + " or ".join(
            f"as {', '.join(held)} {way}" for held, way in ((up, "rises"), (down, "falls")) if held
        )
        name = str(self.runs_in()).removeprefix("torch.")
        scope = (
            f"every {name} value of these, infinities included, and any of the others, which stay; in evaluation mode"
        )
        why = "named features meet differences, quotients and products of known sign, rising activations and sums in a "
        why += "fixed order only, each monotone under rounding, and then the curve"
        return [Claim(MONOTONE, NAMED, says, scope, against is None, against or why), *along]

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: the head along its named features, and the curve along its latent."""
        dtype = self.runs_in()
        middle, spread = (self.net.exact.get_buffer(name).to(dtype) for name in ("middle", "spread"))
        drawn = torch.randn(64, self.in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        places = (middle + spread * drawn.to(middle)).nan_to_num(0.0)
        within = self.scale.ends if self.line.extrapolate == "clamp" else None
        signs = torch.tensor([float(sign) for sign in self.signs])
        walk = Walk(NAMED, self, places, signs, within=within)
        return [walk, self.line.walk(LATENT, dtype, self.curve)], [self.line.hit(LATENT, dtype, self.curve)]

    def name_of(self, i: int) -> str:
        """Return the name of feature i."""
        return f"feature {i}" if self.names is None else self.names[i]

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types."""
        return {
            "kind": self.kind,
            "in_features": self.in_features,
            "anchors": self.scale.numbers,
            "monotone": list(self.signs),
            "names": None if self.names is None else list(self.names),
            "hidden": list(self.net.hidden),
            "keypoints": self.keypoints,
            "free_keypoints": self.free_keypoints,
            "free_units": self.net.free_units or None,
            "between": self.line.between,
            "extrapolate": self.line.extrapolate,
            "dtype": dtype_name(self),
        }


def signs_of(monotone: Signs, in_features: int, names: Sequence[str] | None = None) -> tuple[int, ...]:
    """Return the sign of each feature from a sequence or a mapping by name or position.

    Raises:
        FitError: an unknown name, a sign that is none, or nothing monotone.
    """
    if names is not None and (len(names) != in_features or len(set(names)) != len(names)):
        raise FitError(
            f"Cannot name features: expected {in_features} different names, got {len(names)}. Pass names=[...]"
        )
    if isinstance(monotone, Mapping):
        signs = [0] * in_features
        for key, sign in monotone.items():
            place = list(names).index(str(key)) if names is not None and key in names else key
            if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < in_features:
                known = f"names among {list(names)[:8]}" if names is not None else f"positions below {in_features}"
                raise FitError(f"Cannot build head: expected monotone= to hold {known}, got {key!r}. Pass names=[...]")
            signs[place] = sign
    else:
        signs = [int(sign) if sign in (-1, 0, 1) else sign for sign in monotone]
    wrong = [sign for sign in signs if isinstance(sign, bool) or sign not in (-1, 0, 1)]
    if wrong or len(signs) != in_features or not any(signs):
        got = repr(wrong[0]) if wrong else f"{len(signs)} signs" if len(signs) != in_features else "none but 0"
        raise FitError(
            f"Cannot build head: expected {in_features} signs, each -1, 0 or 1 and one at least not 0, got {got}. "
            "Pass monotone={0: 1}"
        )
    return tuple(int(sign) for sign in signs)
