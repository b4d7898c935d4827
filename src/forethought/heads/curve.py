"""Piecewise linear interpolation that is monotone at every neighbouring float.

Subtraction, division by a positive number, multiplication by a non-negative one, addition and clamping are
each monotone under round-to-nearest, so one piece is; clamping a piece to the values at its two ends orders
it with its neighbours. Without that clamp the value just below a knot can exceed the value at the knot. All
this holds as eager PyTorch runs these operations; a compiler that divides approximately voids it.
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
        return x.detach().long().clamp(0, last)
    piece = torch.zeros_like(x, dtype=torch.long)
    step = (1 << last.bit_length()) >> 1
    while step:
        further = (piece + step).clamp(max=last)
        piece = torch.where(x >= knots[further], further, piece)
        step >>= 1
    return piece


def interpolate(x: Tensor, knots: Tensor, values: Tensor, *, is_unit: bool = False) -> Tensor:
    """Return the broken line through (knots, values) at x, constant outside; exactly values[k] at knots[k].

    Args:
        x: (*), of the knots' dtype.
        knots: (K,) strictly ascending.
        values: (K,) ascending.
        is_unit: The knots are 0..K-1.
    """
    # Clamping first keeps infinities out of the formula, where 0 * inf would be NaN in value or gradient.
    inside = torch.clamp(x, knots[0], knots[-1])
    piece = piece_of(inside, knots, is_unit=is_unit)
    left, low, high = knots[piece], values[piece], values[piece + 1]
    share = (inside - left) / (knots[piece + 1] - left)
    y = torch.clamp(low + (high - low) * share, low, high)
    # low + (high - low) * 1 need not be `high` in floating point, so the last anchor is put in by hand.
    return torch.where(inside >= knots[-1], values[-1], y)


def overhang(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Return what the end pieces, continued straight, add to `interpolate` outside the knots; 0 inside."""
    first = (values[1] - values[0]) / (knots[1] - knots[0])
    final = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    return (x - knots[0]).clamp(max=0) * first + (x - knots[-1]).clamp(min=0) * final
