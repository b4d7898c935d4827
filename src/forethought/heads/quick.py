"""What training runs where evaluation sums in order (steady.py): the same up to rounding, in fewer passes."""

from typing import Any

import torch
from torch import Tensor

_STEADIEST = 64  # spreads from 0 to a middle: beyond, a product of features as they are would lose too many digits
_FEW = 64  # rows, for which a look at all of them saves nothing


def product(
    features: Tensor, weights: Tensor, columns: Tensor, middle: Tensor, spread: Tensor, farthest: float
) -> Tensor:
    """Return weights @ x.T, x the named columns of (features - middle) / spread, held within `farthest`: (W, B).

    Each pass over (B, D), and above all a choice of its columns, takes longer than the product. So what a column is
    divided by goes into its weight, other columns get a weight of 0, and the middle becomes a constant, wherever that
    is the same up to rounding: no value is beyond reach, and no middle so far off that it would swallow the digits.

    Args:
        features: (B, D).
        weights: (W, C).
        columns: (C,), of what is multiplied.
        middle: (D,).
        spread: (D,), above 0.
        farthest: In spreads from the middle.
    """
    wide = weights.new_zeros(len(weights), features.shape[1]).index_copy(1, columns, weights) / spread
    reach = farthest * spread
    if _may_go_straight(features.detach(), columns, middle, spread, reach):
        return torch.addmm(-(wide @ middle).unsqueeze(1), wide, features.T)
    return wide @ (features - middle).clamp_(-reach, reach).T


def _may_go_straight(features: Tensor, columns: Tensor, middle: Tensor, spread: Tensor, reach: Tensor) -> bool:
    """Say whether the product of features as they are is the same up to rounding; not where to ask costs more."""
    if features.device.type != "cpu" or len(features) < _FEW or torch.compiler.is_compiling():
        return False
    low, high = middle - reach, middle + reach
    try:
        if not bool((middle.abs() <= _STEADIEST * spread)[columns].all()):
            return False
        # No number is larger than the norm of all, which takes one pass and seldom comes near the ends.
        norm = torch.linalg.vector_norm(features)
        if bool(((-norm >= low) & (norm <= high)).all()):
            return True
        return bool(((features.amin(0) >= low) & (features.amax(0) <= high)).all())
    except RuntimeError:  # under vmap, each of many has an answer of its own
        return False


class _Softsign(torch.autograd.Function):
    """x / (1 + |x|), whose derivative torch makes of nine passes over a batch where four do."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x / (x.abs() + 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grad / (x.abs() + 1).square()


def softsign(x: Tensor) -> Tensor:
    """Return x / (1 + |x|) (*)."""
    made: Tensor = _Softsign.apply(x)
    return made
