"""Functions that never step the wrong way from one float to the next, in any batch.

Rounding to nearest is monotone, so a sum, a difference, a product with a number of known sign, a quotient, `floor`,
`clamp` and a look-up by an exact comparison are monotone as they run, and so is what is composed of them. A matrix
product is not made of such steps alone: its order of summation depends on a row's place in the batch, and library
functions such as `exp` promise an error bound, not an order. What a certificate rests on is therefore written with the
functions here: element by element, sums in a fixed order.
"""

import math

import torch
from torch import Tensor

_REACH = {torch.float32: 87.0, torch.float64: 700.0}  # exp and its reciprocal stay normal numbers
_DEGREE = {
    torch.float32: 10,
    torch.float64: 17,
}  # of the Taylor series of 2**f on [0, 1]: below half a unit in the last place


def total(terms: Tensor) -> Tensor:
    """Sum over the last axis by halves, (*, V) -> (*): never lower when a term is higher, whatever the batch."""
    if terms.shape[-1] == 0:
        return terms.new_zeros(terms.shape[:-1])
    while terms.shape[-1] > 1:
        half = terms.shape[-1] // 2
        sums = terms[..., :half] + terms[..., half : 2 * half]
        terms = sums if terms.shape[-1] % 2 == 0 else torch.cat([sums, terms[..., 2 * half :]], -1)
    return terms.squeeze(-1)


def dot(x: Tensor, weights: Tensor) -> Tensor:
    """Return x @ weights.T, (*, V) and (H, V) -> (*, H): in each x monotone as its weight's sign says, in any batch."""
    if weights.shape[0] == 1:
        return total(x * weights[0]).unsqueeze(-1)
    y = x.new_zeros(*x.shape[:-1], weights.shape[0])
    for column, weight in zip(x.unbind(-1), weights.unbind(-1), strict=True):
        y = y + column.unsqueeze(-1) * weight
    return y


def exp(x: Tensor) -> Tensor:
    """Return e**x (*), in float32 or float64; beyond what its reciprocal can hold, x counts as that limit.

    2**n * p(f) with n + f = x / ln 2: p has positive coefficients and p(0) = 1, its value is held to at most 2, and a
    power of two is exact, so each piece rises and ends no higher than the next begins.
    """
    reach, degree = _REACH[x.dtype], _DEGREE[x.dtype]
    scaled = x.clamp(-reach, reach) * math.log2(math.e)
    whole = scaled.floor()
    rest = scaled - whole
    p = torch.full_like(rest, math.log(2) ** degree / math.factorial(degree))
    for k in reversed(range(degree)):
        p = p * rest + math.log(2) ** k / math.factorial(k)
    most = math.ceil(reach * math.log2(math.e)) + 1
    powers = torch.tensor([2.0**n for n in range(-most, most)], dtype=x.dtype, device=x.device)
    # NaN has no place in the table; its own value is put back by the product.
    place = (whole.nan_to_num(0.0) + most).long()
    return p.clamp(max=2.0) * powers[place]


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + e**-x) (*), in float32 or float64, within 2e-7 of it in float32."""
    return 1 / (1 + exp(-x))


def softsign(x: Tensor) -> Tensor:
    """Return x / (1 + |x|) (*), written with one rising term: a quotient of two may fall."""
    # Clamped first, so that neither side divides by 0 and at 0 the gradient is 1.
    return torch.where(x < 0, 1 / (1 - x.clamp(max=0)) - 1, 1 - 1 / (1 + x.clamp(min=0)))
