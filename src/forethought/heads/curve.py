"""Curves through points that never step the wrong way, from any float to the next.

Each piece is made of steps that are monotone under rounding (steady.py), whatever its slope was rounded to; clamping a
piece to the values at its two ends orders it with its neighbours. Without that clamp the value just below a knot can
exceed the value at the knot. A straight piece divides by nothing that depends on x, so a compiler that divides
approximately, or fuses a product and a sum, keeps all this.
"""

import torch
from torch import Tensor


def piece_of(x: Tensor, knots: Tensor, *, is_unit: bool = False) -> Tensor:
    """Return the index k in 0..K-2 of the piece [knots[k], knots[k+1]) that holds each x, the ends included.

    Right-sided: x == knots[k] belongs to piece k. Bisection by gathers rather than `searchsorted`, which does
    not export to ONNX, or a (B, K) table of comparisons, which is large for thousands of classes.

    Args:
        x: (*), in [knots[0], knots[-1]], or NaN, which gives some valid piece.
        knots: (K,) ascending, K >= 2.
        is_unit: The knots are 0..K-1: truncate in place of searching, the same answer in 2 operations.
    """
    last = int(knots.shape[0]) - 2
    if is_unit:
        # NaN as a whole number differs from one machine to another.
        return torch.where(x.isnan(), torch.zeros_like(x), x).detach().long().clamp(0, last)
    piece = torch.zeros_like(x, dtype=torch.long)
    step = (1 << last.bit_length()) >> 1
    while step:
        further = (piece + step).clamp(max=last)
        piece = torch.where(x >= knots[further], further, piece)
        step >>= 1
    return piece


def interpolate(
    x: Tensor, knots: Tensor, values: Tensor, *, is_unit: bool = False, rest: Tensor | None = None
) -> Tensor:
    """Return the broken line through (knots, values) at x, constant outside; exactly values[k] at knots[k].

    Args:
        x: (*), of the knots' dtype.
        knots: (K,) strictly ascending.
        values: (K,) ascending.
        is_unit: The knots are 0..K-1.
        rest: A scalar below half of the least step between knots: within it of a knot the value is the knot's own.
    """
    # Clamping first keeps infinities out of the formula, where 0 * inf would be NaN in value or gradient.
    inside = torch.clamp(x, knots[0], knots[-1])
    piece = piece_of(inside, knots, is_unit=is_unit)
    left, width = knots, knots.diff()
    if rest is not None:
        left, width = knots + rest, width - 2 * rest
    low, high = values[piece], values[piece + 1]
    y = torch.clamp(low + (values.diff() / width)[piece] * (inside - left[piece]), low, high)
    # The last piece need not come to its end in floating point, so the last anchor is put in by hand.
    return torch.where(inside >= knots[-1], values[-1], y)


def overhang(x: Tensor, ends: Tensor, slopes: Tensor) -> Tensor:
    """Return what straight lines of the two slopes add outside the two ends, both (2,); 0 inside."""
    return (x - ends[0]).clamp(max=0) * slopes[0] + (x - ends[1]).clamp(min=0) * slopes[1]
