"""AnchorSpline: one latent number per sample, then a monotone curve through the anchors."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError
from forethought.heads.anchors import Anchors
from forethought.heads.curve import interpolate, overhang, piece_of
from forethought.heads.interface import Head
from forethought.heads.latents import ExpectedClass, ScaledLatent
from forethought.heads.layers import build_mlp, check_features, dtype_name, robust_loss
from forethought.heads.options import check_option

_MIN_STEP = 1e-3  # class units between trainable knots: far above float32 rounding at index 5,000


class AnchorSpline(Head):
    """Monotone piecewise linear interpolation between the classes: y = A(s), s = latent(features).

    A(s) = v_k + (v_{k+1} - v_k) * (s - t_k) / (t_{k+1} - t_k) on piece k, clamped to [v_k, v_{k+1}], for
    anchors v and knots t, the places of the pure classes on the latent line. Guaranteed, as a function of the
    latent and in the arithmetic that runs: A never decreases from one float to the next (never increases, for
    descending anchors), and A(t_k) is v_k to the last bit. Not guaranteed: that class k's samples are at t_k.

    Args:
        in_features: D.
        anchors: One value per class, K >= 2, ascending or descending, evenly spaced or not.
        latent: 'linear', 'mlp', 'classifier' (expected class of a K-way classifier, in [0, K-1]), or your own
            module (B, ...) -> (B,) or (B, 1) in class units.
        hidden: Hidden sizes of the 'mlp' or 'classifier' latent; None: (64,) for 'mlp', else none.
        activation: Of the 'classifier' latent: 'softmax' or 'sigmoid'.
        knots: 'fixed' at 0..K-1, or 'trainable' (ordered by construction).
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
        extrapolate: str = "clamp",
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option("knots", knots, ("fixed", "trainable"))
        check_option("extrapolate", extrapolate, ("clamp", "linear"))
        check_option("activation", activation, ("softmax", "sigmoid"))
        self.scale = Anchors(anchors, dtype)
        self.in_features = in_features
        self.extrapolate = extrapolate
        self.latent_kind = latent if isinstance(latent, str) else "custom"
        self.hidden = tuple(hidden) if hidden is not None else ((64,) if latent == "mlp" else ())
        self.activation = activation
        self.dropout = dropout
        self.latent_net = latent if isinstance(latent, nn.Module) else self._build_latent(dtype)
        self.knot_start: nn.Parameter | None = None
        self.knot_steps: nn.Parameter | None = None
        if knots == "trainable":
            even = math.log(math.expm1(1 - _MIN_STEP))  # softplus(even) + _MIN_STEP == 1
            self.knot_start = nn.Parameter(torch.zeros((), dtype=dtype))
            self.knot_steps = nn.Parameter(torch.full((len(self.scale) - 1,), even, dtype=dtype))

    def _build_latent(self, dtype: torch.dtype | None) -> nn.Module:
        check_option("latent", self.latent_kind, ("linear", "mlp", "classifier"))
        classes = len(self.scale)
        if self.latent_kind == "classifier":
            net = build_mlp(self.in_features, self.hidden, classes, dropout=self.dropout, dtype=dtype)
            return ExpectedClass(net, self.activation)
        hidden = self.hidden if self.latent_kind == "mlp" else ()
        net = build_mlp(self.in_features, hidden, 1, dropout=self.dropout, dtype=dtype)
        return ScaledLatent(net, classes)

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    @property
    def knots(self) -> Tensor:
        """The knots (K,), strictly ascending, in class units: where on the latent line A hits each anchor."""
        values = self.scale.values
        if self.knot_start is None or self.knot_steps is None:
            return torch.arange(len(self.scale), dtype=values.dtype, device=values.device)
        start = self.knot_start.to(values.dtype).reshape(1)
        steps = F.softplus(self.knot_steps.to(values.dtype)) + _MIN_STEP
        return torch.cat([start, start + steps.cumsum(0)])

    def latent(self, features: Tensor) -> Tensor:
        """Return where each sample lies on the line of classes: (B, D) -> (B,), in class units."""
        if self.latent_kind != "custom":
            check_features(features, self.in_features)
        s: Tensor = self.latent_net(features)
        s = s.squeeze(-1) if s.ndim == 2 and s.shape[1] == 1 else s
        if s.shape != features.shape[:1]:
            raise FitError(
                f"Cannot read latent: expected one number per sample, shape ({features.shape[0]},), "
                f"got {tuple(s.shape)}. End the module with nn.Linear(..., 1)"
            )
        return s.to(torch.promote_types(s.dtype, self.scale.values.dtype))

    def curve(self, s: Tensor) -> Tensor:
        """Return y = A(s), the same shape as s, in the anchors' units. Undone by `inverse`."""
        s, knots, values = self._on_line(s)
        y = interpolate(s, knots, values, is_unit=self.knot_start is None)
        if self.extrapolate == "linear":
            y = y + overhang(s, knots, values)
        return y * self.scale.sign

    def inverse(self, y: Tensor) -> Tensor:
        """Return the latent (same shape as y) at which the curve takes the value y, in class units.

        Values beyond the end anchors give the end knots, or with extrapolate='linear' the place beyond them.
        Undoes `curve` up to rounding, exactly at the anchors.
        """
        y, knots, values = self._on_line(y * self.scale.sign)
        s = interpolate(y, values, knots)
        return s + overhang(y, values, knots) if self.extrapolate == "linear" else s

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        return self.curve(self.latent(features))

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the class whose anchor is nearest to the prediction."""
        s, knots, _ = self._on_line(self.latent(features))
        piece = piece_of(s.clamp(knots[0], knots[-1]), knots, is_unit=self.knot_start is None)
        return piece + (s - knots[piece] >= knots[piece + 1] - s)

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the Huber loss of the straight-continued curve against targets (B,), a scalar.

        The ends are continued here whatever `extrapolate` says: a clamped sample has no gradient, and a head
        whose samples all start beyond an end would never learn.
        """
        s, knots, values = self._on_line(self.latent(features))
        y = interpolate(s, knots, values, is_unit=self.knot_start is None) + overhang(s, knots, values)
        return robust_loss(y, targets * self.scale.sign, self.scale.gap, len(self.scale))

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types.

        Raises:
            FitError: the latent is a module of your own, which has no description.
        """
        if self.latent_kind == "custom":
            raise FitError(
                "Cannot describe head: expected latent 'linear', 'mlp' or 'classifier', "
                f"got your own {type(self.latent_net).__name__}. Save its weights and rebuild it in code: "
                "head.load_state_dict(torch.load(path, weights_only=True))"
            )
        return {
            "kind": self.kind,
            "in_features": self.in_features,
            "anchors": self.anchors.tolist(),
            "latent": self.latent_kind,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "knots": "fixed" if self.knot_start is None else "trainable",
            "extrapolate": self.extrapolate,
            "dropout": self.dropout,
            "dtype": dtype_name(self),
        }

    def _on_line(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, knots and values in one dtype: the widest of theirs, never below float32."""
        dtype = torch.promote_types(x.dtype, self.scale.values.dtype)
        return x.to(dtype), self.knots.to(dtype), self.scale.values.to(dtype)
