"""A smooth curve through points: rational quadratic pieces, written so that rounding keeps them monotone.

Gregory and Delbourgo (1982), as in neural spline flows (Durkan et al. 2019, arXiv:1906.04032): on a piece of width h
and height D, with m = D / h, z = (x - left) / h and slopes d0, d1 >= 0 at its ends,

    y = low + D (m z^2 + d0 z (1 - z)) / (m + (d0 + d1 - 2 m) z (1 - z)).

That form divides two terms that both rise and fall, and in float32 some neighbouring floats come out in wrong order.
With a = d0 / m, b = d1 / m and odds u = z / (1 - z) the same number is y = low + D / (1 + 1/R) where

    R = u (u + a) / (1 + b u),   1/R = (1/u) / (a + (1 - ab) / (1/u + b))        where ab <= 1,
                                 1/R = (1/u) / a + (b - 1/a) / (u + a)           where ab >= 1,

and every term of the two right-hand sides moves one way in z.
"""

import torch
from torch import Tensor

from forethought.heads.curve import piece_of

# Added to z and 1 - z: keeps 1/u and its gradient finite, and is lost in any other z.
_LEAST = {torch.float32: 1e-12, torch.float64: 1e-40}


def bend(x: Tensor, knots: Tensor, values: Tensor, slopes: Tensor, *, is_unit: bool = False) -> Tensor:
    """Return the smooth curve through (knots, values) at x, constant outside; exactly values[k] at knots[k].

    Args:
        x: (*), of the knots' dtype.
        knots: (K,) strictly ascending.
        values: (K,) strictly ascending.
        slopes: (K,) at the knots, >= 0.
        is_unit: The knots are 0..K-1.
    """
    inside = torch.clamp(x, knots[0], knots[-1])
    piece = piece_of(inside, knots, is_unit=is_unit)
    chords = values.diff() / knots.diff()
    low, high = values[piece], values[piece + 1]
    z = ((inside - knots[piece]) / knots.diff()[piece]).clamp(0, 1)
    share = _share(z, (slopes[:-1] / chords)[piece], (slopes[1:] / chords)[piece])
    # At a knot the share is 0 to the last bit, and still has its gradient.
    share = torch.where(z <= 0, share - share.detach(), share)
    y = torch.clamp(low + values.diff()[piece] * share, low, high)
    return torch.where(inside >= knots[-1], values[-1], y)


def _share(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return how far up its piece the curve is at z, 0..1, for end slopes a and b in units of the chord's."""
    least = _LEAST[z.dtype]
    u = (z + least) / ((1 - z) + least)
    v = ((1 - z) + least) / (z + least)
    excess = 1 - a * b
    gentle = v / (a + excess.clamp(min=0) / (v + b))
    safe = torch.where(excess < 0, a, torch.ones_like(a))  # a > 0 wherever the steep form is used
    steep = v / safe + (-excess).clamp(min=0) / safe / (u + safe)
    return 1 / (1 + torch.where(excess < 0, steep, gentle))


def unbend(y: Tensor, knots: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Return the x at which `bend` takes the value y, up to rounding; exactly knots[k] at values[k]."""
    inside = torch.clamp(y, values[0], values[-1])
    piece = piece_of(inside, values)
    chords = values.diff() / knots.diff()
    low, high = values[piece], values[piece + 1]
    a, b = (slopes[:-1] / chords)[piece], (slopes[1:] / chords)[piece]
    above = inside > low
    ratio = torch.where(above & (inside < high), (inside - low) / (high - inside), torch.ones_like(inside))
    # The root of u^2 + (a - ratio b) u - ratio = 0 that is positive, without cancellation on either side.
    middle = ratio * b - a
    root = (middle.square() + 4 * ratio).sqrt()
    u = torch.where(middle > 0, (middle + root) / 2, 2 * ratio / (root - middle.clamp(max=0)))
    x = torch.clamp(knots[piece] + knots.diff()[piece] * (u / (1 + u)), knots[piece], knots[piece + 1])
    x = torch.where(above, x, knots[piece])
    return torch.where(inside >= values[-1], knots[-1], x)


def gentle_slopes(knots: Tensor, values: Tensor) -> Tensor:
    """Return slopes (K,) at the knots, by the rule of PCHIP: no piece overshoots, straight data stay straight.

    Fritsch and Butland (1984): inside, a weighted harmonic mean of the neighbouring chords; at the ends a three-point
    difference, held between 0 and three times the end's chord.
    """
    widths, chords = knots.diff(), values.diff() / knots.diff()
    if len(chords) == 1:
        return chords.repeat(2)
    left, right = widths[:-1], widths[1:]
    first, second = left + 2 * right, 2 * left + right
    inner = (first + second) / (first / chords[:-1] + second / chords[1:])
    ends = [_end_slope(widths[[0, 1]], chords[[0, 1]]), _end_slope(widths[[-1, -2]], chords[[-1, -2]])]
    return torch.cat([ends[0][None], inner, ends[1][None]])


def _end_slope(widths: Tensor, chords: Tensor) -> Tensor:
    slope = ((2 * widths[0] + widths[1]) * chords[0] - widths[0] * chords[1]) / widths.sum()
    return torch.clamp(slope, torch.zeros_like(slope), 3 * chords[0])
