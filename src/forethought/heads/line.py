"""AnchorCurve: the line of classes, and the monotone curve over it that goes through the anchors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import AS_FUNCTION, MONOTONE, RANGE, Claim
from forethought.heads.curve import interpolate, overhang, piece_of
from forethought.heads.exact import unrounded
from forethought.heads.falsification import Hit, Walk
from forethought.heads.options import check_option
from forethought.heads.proofs import not_at_least, not_rising, steepness
from forethought.heads.rational import bend, gentle_slopes, unbend

_MIN_STEP = 1e-3  # class units between trainable knots: far above float32 rounding at index 5,000
_EVEN = math.log(math.expm1(1 - _MIN_STEP))  # softplus(_EVEN) + _MIN_STEP == 1


class AnchorCurve(nn.Module):
    """A monotone curve A with A(knots) == anchors: (*) -> (*), from class units to the anchors' unit.

    Args:
        anchors: K >= 2 values, ascending or descending.
        knots: "fixed" at 0..K-1, "trainable" (ordered by construction), "centres" (half way between trainable
            thresholds), or "placed" (set by `place`).
        between: "linear" (straight pieces) or "rational" (smooth ones, with slopes by PCHIP's rule; they train
            when the knots are "trainable").
        extrapolate: Outside the end knots: "clamp" or "linear".
        dtype: Of the parameters; the curve runs in float32 or wider.
    """

    places: Tensor | None
    held_thresholds: Tensor | None
    held_slopes: Tensor | None

    def __init__(
        self,
        anchors: Sequence[float] | Tensor,
        *,
        knots: str = "fixed",
        between: str = "linear",
        extrapolate: str = "clamp",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option("knots", knots, ("fixed", "trainable", "centres", "placed"))
        check_option("between", between, ("linear", "rational"))
        check_option("extrapolate", extrapolate, ("clamp", "linear"))
        self.scale = Anchors(anchors, dtype)
        self.knots_are, self.between, self.extrapolate = knots, between, extrapolate
        gaps = len(self.scale) - 1
        self.start: nn.Parameter | None = None
        self.steps: nn.Parameter | None = None
        self.bends: nn.Parameter | None = None
        self.register_buffer("places", None)
        self.register_buffer("held_thresholds", None, persistent=False)
        self.register_buffer("held_slopes", None, persistent=False)
        if knots in ("trainable", "centres"):
            points = gaps if knots == "centres" else gaps + 1
            self.start = nn.Parameter(torch.full((), 0.5 if knots == "centres" else 0.0, dtype=dtype))
            self.steps = nn.Parameter(torch.full((points - 1,), _EVEN, dtype=dtype))
            if between == "rational" and knots == "trainable":
                self.bends = nn.Parameter(torch.zeros(gaps + 1, dtype=dtype))
        if knots == "placed":
            self.places = torch.arange(gaps + 1, dtype=self.scale.values.dtype)

    @property
    def is_unit(self) -> bool:
        """Whether the knots are 0..K-1."""
        return self.knots_are == "fixed"

    @property
    def knots(self) -> Tensor:
        """The knots (K,), strictly ascending, in class units: where on the line A hits each anchor."""
        values = self.scale.values
        if self.places is not None:
            return self.places.to(values.dtype)
        if self.knots_are == "fixed":
            return torch.arange(len(self.scale), dtype=values.dtype, device=values.device)
        return self._centres() if self.knots_are == "centres" else self._points()

    @property
    def thresholds(self) -> Tensor:
        """The places (K-1,) where one class gives way to the next: trained, or half way between knots."""
        if self.held_thresholds is not None:
            return self.held_thresholds
        if self.knots_are == "centres":
            return self._points()
        knots = self.knots
        return (knots[1:] + knots[:-1]) / 2

    def _points(self) -> Tensor:
        """Return the trainable places in order, whatever the parameters are."""
        assert self.start is not None
        assert self.steps is not None
        dtype = self.scale.values.dtype
        start = self.start.to(dtype).reshape(1)
        return torch.cat([start, start + (F.softplus(self.steps.to(dtype)) + _MIN_STEP).cumsum(0)])

    def _centres(self) -> Tensor:
        """Return the middle of each class; an end class reaches as far beyond its middle as to its threshold."""
        points = self._points()
        if len(points) == 1:
            return torch.cat([points - 0.5, points + 0.5])
        widths = points.diff()
        first, last = points[:1] - widths[:1] / 2, points[-1:] + widths[-1:] / 2
        return torch.cat([first, points[:-1] + widths / 2, last])

    def place(self, knots: Tensor) -> None:
        """Set the knots (K,) of a curve whose knots are "placed".

        Raises:
            FitError: not one a class, or not strictly ascending once rounded to the curve's dtype.
        """
        assert self.places is not None
        held = knots.to(self.places)
        against = not_rising("knots", held) if held.shape == self.places.shape else f"shape {tuple(held.shape)}"
        if against is not None:
            raise FitError(
                f"Cannot place knots: expected {len(self.places)} ascending numbers, got {against}. "
                "Centre and scale the scores, or pass dtype=torch.float64"
            )
        self.places.copy_(held)

    def bake(self, dtype: torch.dtype) -> None:
        """Hold what is computed from parameters as numbers: another runtime would compute it with other last bits."""
        with torch.no_grad():
            _, knots, values = self.on_line(torch.zeros((), dtype=dtype))
            thresholds, slopes = self.thresholds, self.slopes(knots, values)
        if self.knots_are != "fixed":
            self.places = self.knots.detach()
        self.register_buffer("held_thresholds", thresholds, persistent=False)
        self.register_buffer("held_slopes", slopes, persistent=False)

    def slopes(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return the slopes (K,) at the knots of a curve with smooth pieces, above 0 but for rounding."""
        if self.held_slopes is not None:
            return self.held_slopes.to(knots.dtype)
        slopes = gentle_slopes(knots, values)
        if self.bends is None:
            return slopes
        return slopes * (F.softplus(self.bends.to(slopes.dtype)) / math.log(2) + _MIN_STEP)

    def forward(self, s: Tensor, rest: Tensor | None = None) -> Tensor:
        """Return y = A(s), the same shape as s, in the anchors' unit. Undone by `inverse`.

        Args:
            s: Class units.
            rest: How far around a knot straight pieces stay at its anchor, a scalar; None: not at all.
        """
        is_linear = self.extrapolate == "linear"
        y = self.straight(s, rest) if is_linear else self._inside(*self.on_line(s), rest)
        return y * self.scale.sign

    def continued(self, s: Tensor) -> Tensor:
        """Return `straight` up to rounding, in fewer operations where pieces are straight: what losses are made of."""
        if self.between != "linear":
            return self.straight(s)
        s, knots, values = self.on_line(s)
        with torch.no_grad():
            piece = piece_of(s.clamp(knots[0], knots[-1]), knots, is_unit=self.is_unit)
        slopes = (values.diff() / knots.diff()).index_select(0, piece)
        return values.index_select(0, piece) + slopes * (s - knots.index_select(0, piece))

    def straight(self, s: Tensor, rest: Tensor | None = None) -> Tensor:
        """Return the curve whose ends go straight on, for ascending anchors: what a loss needs to have a gradient."""
        s, knots, values = self.on_line(s)
        return self._inside(s, knots, values, rest) + overhang(s, knots[[0, -1]], self._end_slopes(knots, values))

    def inverse(self, y: Tensor) -> Tensor:
        """Return the s (same shape as y) at which the curve takes the value y, in class units.

        Values beyond the end anchors give the end knots, or with extrapolate="linear" the place beyond them. Undoes the
        curve up to rounding, exactly at the anchors.
        """
        y = y if isinstance(y, Tensor) else torch.as_tensor(y, dtype=self.scale.values.dtype)
        y, knots, values = self.on_line(y * self.scale.sign)
        if self.between == "rational":
            s = unbend(y, knots, values, self.slopes(knots, values))
        else:
            s = interpolate(y, values, knots)
        if self.extrapolate == "linear":
            s = s + overhang(y, values[[0, -1]], 1 / self._end_slopes(knots, values))
        return s

    def nearest(self, s: Tensor) -> Tensor:
        """Return the index of the class whose knot is nearest to s; half way, the higher one."""
        s, knots, _ = self.on_line(s)
        piece = piece_of(s.clamp(knots[0], knots[-1]), knots, is_unit=self.is_unit)
        return piece + (s - knots[piece] >= knots[piece + 1] - s)

    def on_line(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, knots and values in one dtype: the widest of theirs, never below float32."""
        dtype = torch.promote_types(x.dtype, self.scale.values.dtype)
        return x.to(dtype), self.knots.to(dtype), self.scale.values.to(dtype)

    def _inside(self, s: Tensor, knots: Tensor, values: Tensor, rest: Tensor | None = None) -> Tensor:
        if self.between == "rational":
            return bend(s, knots, values, self.slopes(knots, values), is_unit=self.is_unit)
        return interpolate(s, knots, values, is_unit=self.is_unit, rest=rest)

    def _end_slopes(self, knots: Tensor, values: Tensor) -> Tensor:
        """Return the two slopes with which the ends go on, never quite flat."""
        chords = (values.diff() / knots.diff())[[0, -1]]
        if self.between == "linear":
            return chords
        return torch.maximum(self.slopes(knots, values)[[0, -1]], chords / 100)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self.places
        super()._apply(fn, recurse)
        if before is not None and self.places is not None:
            self.places = unrounded(before, self.places)
        return self

    # ------------------------------------------------------------------------------------------------- certified

    def claims(self, variable: str, dtype: torch.dtype, rest: Tensor | None = None) -> list[Claim]:
        """Return what is proved of the curve as a function of its argument."""
        _, knots, values = self.on_line(torch.zeros((), dtype=dtype))
        against = self._against(knots, values, rest)
        name = str(knots.dtype).removeprefix("torch.")
        way = "rises" if self.scale.sign > 0 else "falls"
        scope = f"every {name} {variable}, infinities included"
        why = "every step of a piece is monotone under rounding, and each piece is held between the anchors at its ends"
        if against is None:
            least, most = steepness(knots, values)
            why += f"; from anchor to anchor its slope is {least:.6g} to {most:.6g} (computed exactly)"
        claims = [
            Claim(
                MONOTONE, variable, f"y never steps back as the {variable} rises: it {way}", scope, against is None,
                against or why,
            )
        ]  # fmt: skip
        if self.extrapolate == "clamp":
            low, high = self.scale.ends
            claims.append(
                Claim(
                    RANGE, variable, f"y stays between {low!r} and {high!r}", scope, against is None,
                    against or "every piece is held between its anchors",
                )
            )  # fmt: skip
        return [*claims, self._anchored(variable, knots, against, rest)]

    def _anchored(self, variable: str, knots: Tensor, against: str | None, rest: Tensor | None) -> Claim:
        with torch.no_grad():
            off = (self(knots, rest).double() - self.scale.given.double()).abs().cpu()
        holds = against is None and bool((off == 0).all())
        bad = (~(off == 0)).nonzero().flatten().tolist()
        violation = f"A(knots[{bad[0]}]) is {off[bad[0]].item()} away from its anchor" if bad else None
        says = f"y is the anchor to the last bit where the {variable} is its knot"
        why = against or "run at each knot, and at a knot a piece gives its end"
        bound = None if off.isnan().any() else off.max().item()
        return Claim(AS_FUNCTION, variable, says, f"{len(knots)} anchors", holds, why, bound, violation)

    def _against(self, knots: Tensor, values: Tensor, rest: Tensor | None) -> str | None:
        """Say which condition of the proof the numbers break, or None."""
        widths = knots.diff() if rest is None else knots.diff() - 2 * rest
        order = (
            not_rising("knots", knots)
            or not_rising("anchors", values)
            or not_at_least("room between knots", widths, torch.finfo(widths.dtype).tiny)
        )
        if order is not None:
            return order
        chords, tiny = values.diff() / widths, torch.finfo(widths.dtype).tiny
        if self.extrapolate == "linear":  # a slope of 0 times a latent of infinity is no number
            flat = not_at_least("slopes of the ends", self._end_slopes(knots, values), tiny)
            if flat is not None:
                return flat
        if self.between == "linear":
            return not_at_least("slopes", chords, 0.0)
        slopes = self.slopes(knots, values)
        return (
            not_at_least("slopes", chords, tiny)
            or not_at_least("slopes at the knots", slopes, 0.0)
            or not_at_least("slopes over the chord before", slopes[1:] / chords, 0.0)
            or not_at_least("slopes over the chord after", slopes[:-1] / chords, 0.0)
        )

    def walk(self, variable: str, dtype: torch.dtype, curve: Callable[[Tensor], Tensor] | None = None) -> Walk:
        """Return the walk along the line for `falsify`, of the head's curve, or of this one."""
        run = curve or self
        knots = self.on_line(torch.zeros((), dtype=dtype))[1].detach()
        middles = (knots[1:] + knots[:-1]) / 2
        far = torch.tensor([-math.inf, math.inf, 0.0, -0.0]).to(knots)
        return Walk(
            variable,
            lambda x: run(x[:, 0]),
            torch.cat([knots, middles, far]).nan_to_num(0.0, math.inf, -math.inf)[:, None],
            torch.tensor([self.scale.sign]),
            within=self.scale.ends if self.extrapolate == "clamp" else None,
        )

    def hit(self, variable: str, dtype: torch.dtype, curve: Callable[[Tensor], Tensor] | None = None) -> Hit:
        """Return the anchors as `falsify` checks them: at the knots, to the last bit."""
        run = curve or self
        _, knots, _ = self.on_line(torch.zeros((), dtype=dtype))
        return Hit(AS_FUNCTION, variable, lambda x: run(x[:, 0]), knots.detach()[:, None], self.scale.given, 0.0)
