"""AnchorSpline: one latent number per sample, then a monotone curve through the anchors."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forethought.heads.anchors import Anchors
from forethought.heads.certificate import LATENT, Claim
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.latents import (
    ExpectedClass,
    build_latent,
    cannot_describe,
    exceedance_claim,
    exceedance_walk,
    hidden_sizes,
    read_latent,
)
from forethought.heads.layers import dtype_name, dtype_of, robust_loss
from forethought.heads.line import AnchorCurve
from forethought.heads.options import check_option
from forethought.heads.proofs import altered
from forethought.heads.steady import total


class AnchorSpline(Head):
    """Monotone interpolation between the classes: y = A(s), s = latent(features).

    A(s) = v_k + (v_{k+1} - v_k) * (s - t_k) / (t_{k+1} - t_k) on piece k, clamped to [v_k, v_{k+1}], for
    anchors v and knots t, the places of the pure classes on the latent line; between="rational" rounds its corners
    off. `certify` proves, as a function of the latent and in the arithmetic that runs: A never decreases from one
    float to the next (never increases, for descending anchors), and A(t_k) is v_k to the last bit. Not guaranteed:
    that class k's samples are at t_k.

    Args:
        in_features: D.
        anchors: One value per class, K >= 2, ascending or descending, evenly spaced or not.
        latent: 'linear', 'mlp', 'classifier' (expected class of a K-way classifier, in [0, K-1]), or your own
            module (B, ...) -> (B,) or (B, 1) in class units.
        hidden: Hidden sizes of the 'mlp' or 'classifier' latent; None: (64,) for 'mlp', else none.
        activation: Of the 'classifier' latent: 'softmax' or 'sigmoid'.
        knots: 'fixed' at 0..K-1, or 'trainable' (ordered by construction).
        between: 'linear' pieces, or 'rational' quadratic ones: smooth, by PCHIP's slopes, which train if the knots do.
        extrapolate: Outside the end knots: 'clamp' (stay at the end anchor) or 'linear' (continue the end
            piece).
        dropout: Between hidden layers.
        dtype: Of the parameters; the curve runs in float32 or wider, under autocast and after `.half()` too.

    Raises:
        AnchorError: unusable anchors.
        FitError: an unknown option.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> head = AnchorSpline(in_features=4, anchors=[60.0, 62.0, 67.0])
        >>> head.curve(torch.tensor([-3.0, 0.0, 0.5, 1.0, 1.5, 2.0]))
        tensor([60.0000, 60.0000, 61.0000, 62.0000, 64.5000, 67.0000])
        >>> head(torch.zeros(2, 4)).shape
        torch.Size([2])
    """

    kind: ClassVar[str] = "pwl"

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        latent: str | nn.Module = "linear",
        *,
        hidden: Sequence[int] | None = None,
        activation: str = "softmax",
        knots: str = "fixed",
        between: str = "linear",
        extrapolate: str = "clamp",
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option("knots", knots, ("fixed", "trainable"))
        check_option("activation", activation, ("softmax", "sigmoid"))
        self.line = AnchorCurve(anchors, knots=knots, between=between, extrapolate=extrapolate, dtype=dtype)
        self.in_features = in_features
        self.latent_kind = latent if isinstance(latent, str) else "custom"
        self.hidden = hidden_sizes(latent, hidden)
        self.activation = activation
        self.dropout = dropout
        if isinstance(latent, str):
            latent = build_latent(
                latent,
                in_features,
                len(self.scale),
                hidden=self.hidden,
                activation=activation,
                dropout=dropout,
                dtype=dtype,
            )
        self.latent_net: nn.Module = latent

    @property
    def scale(self) -> Anchors:
        """The anchors, ascending."""
        return self.line.scale

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.line.scale.given

    @property
    def knots(self) -> Tensor:
        """The knots (K,), strictly ascending, in class units: where on the latent line A hits each anchor."""
        return self.line.knots

    @property
    def extrapolate(self) -> str:
        """What y does beyond the end anchors: 'clamp' or 'linear'."""
        return self.line.extrapolate

    def latent(self, features: Tensor) -> Tensor:
        """Return where each sample lies on the line of classes: (B, D) -> (B,), in class units."""
        s = read_latent(self.latent_net, features, None if self.latent_kind == "custom" else self.in_features)
        return s.to(torch.promote_types(s.dtype, self.scale.values.dtype))

    def curve(self, s: Tensor) -> Tensor:
        """Return y = A(s), the same shape as s, in the anchors' units. Undone by `inverse`."""
        y: Tensor = self.line(s)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        """Return the latent (same shape as y) at which the curve takes the value y, in class units.

        Values beyond the end anchors give the end knots, or with extrapolate='linear' the place beyond them.
        Undoes `curve` up to rounding, exactly at the anchors.
        """
        return self.line.inverse(y)

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        return self.curve(self.latent(features))

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the class whose anchor is nearest to the prediction."""
        return self.numbered(self.line.nearest(self.latent(features)))

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the Huber loss of the straight-continued curve against targets (B,), a scalar.

        The ends are continued here whatever `extrapolate` says: a clamped sample has no gradient, and a head
        whose samples all start beyond an end would never learn.
        """
        y = self.line.continued(self.latent(features))
        return robust_loss(y, targets * self.scale.sign, self.scale, weights)

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the curve."""
        return torch.promote_types(dtype_of(self.latent_net), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return what is proved of y as a function of the latent, and of a classifier latent's weights."""
        claims = self.line.claims(LATENT, self.runs_in())
        if type(self.latent_net) is ExpectedClass:
            sums = "the latent is a sum of the exceedances in a fixed order, which rises with each"
            along = exceedance_claim(claims[0], len(self.scale), sums)
            against = altered(self.latent_net, ("net",))  # the line may stand on any latent, this claim on this one
            claims.append(along if against is None else along.refuted(against))
        return claims

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: the curve along its latent, and at its knots."""
        walks = [self.line.walk(LATENT, self.runs_in(), self.curve)]
        if type(self.latent_net) is ExpectedClass:
            sign, like = self.scale.sign, self.knots.detach().to(self.runs_in())
            walks.append(exceedance_walk(lambda c: self.curve(total(c)), sign, len(self.scale), like))
        return walks, [self.line.hit(LATENT, self.runs_in(), self.curve)]

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types.

        Raises:
            FitError: the latent is a module of your own, which has no description.
        """
        if self.latent_kind == "custom":
            raise cannot_describe(self.latent_net)
        return {
            "kind": self.kind,
            **self.numbering(),
            "in_features": self.in_features,
            "anchors": self.scale.numbers,
            "latent": self.latent_kind,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "knots": self.line.knots_are,
            "between": self.line.between,
            "extrapolate": self.line.extrapolate,
            "dropout": self.dropout,
            "dtype": dtype_name(self),
        }
