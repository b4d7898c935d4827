"""CircularSpline: values that come round again, such as angles, hues and times of day."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from forethought.errors import AnchorError, FitError
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import AS_FUNCTION, RANGE, Claim
from forethought.heads.curve import interpolate
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.latents import cannot_describe, class_weights
from forethought.heads.layers import (
    build_mlp,
    check_features,
    check_targets,
    dtype_name,
    dtype_of,
    mean_cost,
    run_in_full,
)
from forethought.heads.options import check_option
from forethought.heads.proofs import not_rising

TURN = "turn"  # where on the circle of classes: K class units are once around


class CircularSpline(Head):
    """A point in the plane a sample, its angle on the circle of classes, then the broken line through the anchors.

    The network gives (B, 2); its angle is the latent, 0 at the first class and K once around, where the first anchor
    comes again. y is in [start, start + period). `certify` proves that every anchor is hit to the last bit as a
    function of the latent, and the range. It proves *no* monotonicity: on a circle there is none.

    Args:
        in_features: D.
        anchors: One value per class, K >= 2, ascending or descending, all within one period from `start`.
        period: After how much the values come round: 360.0, 24.0, 2 * math.pi.
        start: The least value.
        latent: 'linear' or 'mlp' (two outputs), or 'classifier' (the mean direction of a K-way classifier's weights).
        hidden: Hidden sizes of 'mlp' or 'classifier'; None: (64,) for 'mlp', else none.
        activation: Of the 'classifier' latent: 'softmax' or 'sigmoid'.
        dropout: Between hidden layers.
        net: Your own module (B, ...) -> (B, 2), or to (B, K) for 'classifier', in place of `hidden`; then `config` is
            refused.
        dtype: Of the parameters; the curve runs in float32 or wider.

    Raises:
        AnchorError: unusable anchors, or some outside one period.
        FitError: an unknown option.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> head = CircularSpline(in_features=4, anchors=[0.0, 90.0, 180.0, 270.0], period=360.0)
        >>> head.curve(torch.tensor([0.0, 0.5, 3.5, 4.0])).tolist()
        [0.0, 45.0, 315.0, 0.0]
    """

    kind: ClassVar[str] = "circular"

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        period: float,
        *,
        start: float = 0.0,
        latent: str = "linear",
        hidden: Sequence[int] | None = None,
        activation: str = "softmax",
        dropout: float = 0.0,
        net: nn.Module | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option("latent", latent, ("linear", "mlp", "classifier"))
        check_option("activation", activation, ("softmax", "sigmoid"))
        self.scale = Anchors(anchors, dtype)
        self.in_features, self.period = in_features, float(period)
        low = min(self.scale.numbers)
        # A start above the first anchor by no more than rounding is that anchor.
        self._start = low if low < start and np.float32(low) == np.float32(start) else float(start)
        _check_period(self.scale, self.period, self.start)
        self.latent_kind, self.activation, self.dropout = latent, activation, dropout
        self.hidden = tuple(hidden) if hidden is not None else ((64,) if latent == "mlp" else ())
        width = len(self.scale) if latent == "classifier" else 2
        sizes = () if latent == "linear" else self.hidden
        self.is_custom = net is not None
        self.net: nn.Module = net or build_mlp(in_features, sizes, width, dropout=dropout, dtype=dtype)

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    @property
    def start(self) -> float:
        """The least value of the period."""
        return self.scale.as_held(self._start)

    def direction(self, features: Tensor) -> Tensor:
        """Return a point in the plane (B, 2) for each sample: its angle is the place on the circle of classes."""
        if not self.is_custom:
            check_features(features, self.in_features)
        out = run_in_full(self.net, features)
        if self.latent_kind == "classifier":
            angles = self._turns(out) * (2 * math.pi / len(self.scale))
            weights = class_weights(out, self.activation)
            out = torch.stack([(weights * angles.cos()).sum(-1), (weights * angles.sin()).sum(-1)], -1)
        return out

    def latent(self, features: Tensor) -> Tensor:
        """Return the place on the circle of classes (B,), from 0 to K."""
        x, y = self.direction(features).unbind(-1)
        turn = torch.atan2(y, x) * (len(self.scale) / (2 * math.pi))
        return torch.where(turn < 0, turn + len(self.scale), turn)

    def curve(self, s: Tensor) -> Tensor:
        """Return y at places s of the circle, from 0 to K, the same shape; beyond them the ends count."""
        dtype = torch.promote_types(s.dtype, self.scale.values.dtype)
        knots, values = self._around(dtype)
        y = interpolate(s.to(dtype), knots, values, is_unit=True) * self.scale.sign
        y = torch.where(y >= self.start + self.period, y - self.period, y)
        y = torch.where(y < self.start, y + self.period, y)
        return y.clamp(*self.bounds(dtype))  # a sum that rounds to the start of the next turn

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """Return the least and the greatest number of a dtype that are in the period."""
        kind = np.float32 if dtype == torch.float32 else np.float64
        low, end = kind(self.start), kind(self.start + self.period)
        low = low if float(low) >= self.start else np.nextafter(low, kind(np.inf))
        end = end if float(end) < self.start + self.period else np.nextafter(end, kind(-np.inf))
        return float(low), float(end)

    def _around(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return knots 0..K and the anchors with the first one again, a period on."""
        values = self.scale.values.to(dtype)
        knots = torch.arange(len(values) + 1, dtype=dtype, device=values.device)
        return knots, torch.cat([values, values[:1] + self.period])

    def inverse(self, y: Tensor) -> Tensor:
        """Return the place on the circle of classes (same shape as y) that has the value y, from 0 to K."""
        y = y if isinstance(y, Tensor) else torch.as_tensor(y, dtype=self.scale.values.dtype)
        dtype = torch.promote_types(y.dtype, self.scale.values.dtype)
        knots, values = self._around(dtype)
        turned = y.to(dtype) * self.scale.sign
        once = values[0] + torch.remainder(turned - values[0], self.period)
        # A value within the anchors is kept as it is: the remainder would round it.
        is_inside = (turned >= values[0]) & (turned <= values[-1])
        return interpolate(torch.where(is_inside, turned, once), values, knots)

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units, from `start` to one period on, from features (B, D)."""
        return self.curve(self.latent(features))

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the nearest class on the circle."""
        return self.numbered((self.latent(features) + 0.5).floor().long() % len(self.scale))

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean squared distance of the points from those of the targets (B,) on the unit circle, a scalar.

        For a linear network a convex problem, and one without a seam: 359 degrees are close to 1.
        """
        given = self.direction(features)
        check_targets(targets, len(given))
        angle = self.inverse(targets) * (2 * math.pi / len(self.scale))
        wanted = torch.stack([angle.cos(), angle.sin()], -1)
        return mean_cost((given - wanted.to(given.dtype)).square().sum(-1), weights)

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return how far values are apart the shorter way round, (B,): `ft.fit` ranks by it unless told otherwise."""
        return self.around(output, target)

    @property
    def around(self) -> "Around":
        """The distance, as a metric that knows the period and nothing of the head."""
        return Around(self.period)

    def _turns(self, like: Tensor) -> Tensor:
        return torch.arange(len(self.scale), dtype=like.dtype, device=like.device)

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the curve."""
        return torch.promote_types(dtype_of(self.net), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return what is proved of y as a function of the place on the circle: no monotonicity."""
        knots, values = self._around(self.runs_in())
        against = not_rising("anchors", values)
        with torch.no_grad():
            off = (self.curve(knots[:-1]).double() - self.anchors.double()).abs()
        holds = against is None and bool((off == 0).all())
        says = "y is the anchor to the last bit where the turn is its class"
        bound = None if off.isnan().any() else off.max().item()
        put_back = "what leaves one period is put back by it, and what rounding still leaves outside is clamped"
        ends = "y stays between {!r} and {!r}".format(*self.bounds(self.runs_in()))
        return [
            Claim(AS_FUNCTION, TURN, says, f"{len(off)} anchors", holds, against or "run at each class", bound),
            Claim(RANGE, TURN, ends, "every turn", against is None, against or put_back),
        ]

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: the range all round, and the anchors."""
        knots, _ = self._around(self.runs_in())
        places = torch.cat([knots, (knots[1:] + knots[:-1]) / 2])[:, None]
        walk = Walk(TURN, lambda x: self.curve(x[:, 0]), places, torch.zeros(1), within=self.bounds(self.runs_in()))
        return [walk], [Hit(AS_FUNCTION, TURN, lambda x: self.curve(x[:, 0]), knots[:-1, None], self.anchors, 0.0)]

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types.

        Raises:
            FitError: the network is a module of your own, which has no description.
        """
        if self.is_custom:
            raise cannot_describe(self.net)
        return {
            "kind": self.kind,
            **self.numbering(),
            "in_features": self.in_features,
            "anchors": self.scale.numbers,
            "period": self.period,
            "start": self._start,
            "latent": self.latent_kind,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "dropout": self.dropout,
            "dtype": dtype_name(self),
        }


@dataclass(frozen=True)
class Around:
    """How far values are apart the shorter way round a period: (*) and (*) to (*).

    Example:
        >>> Around(360.0)(torch.tensor([359.0]), torch.tensor([1.0])).item()
        2.0
    """

    period: float

    @property
    def __name__(self) -> str:
        """What tables call it."""
        return f"distance around {self.period:g}"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distances."""
        apart = torch.remainder(output - target.to(output.dtype), self.period)
        return torch.minimum(apart, self.period - apart)


def _check_period(scale: Anchors, period: float, start: float) -> None:
    if not (math.isfinite(period) and period > 0 and math.isfinite(start)):
        raise FitError(
            f"Cannot build head: expected a finite period > 0 and start, got {period}, {start}. period=360.0"
        )
    low, high = scale.ends
    if low < start or high >= start + period:
        raise AnchorError(
            f"Cannot use anchors: expected them from {start!r} to less than {start + period!r}, one period, got "
            f"{low!r} to {high!r}. Give the first class once only, and start={low!r} for anchors that begin there"
        )
