"""How far rounding alone may move what a model gives: errors of its size are added, which is Monte Carlo arithmetic.

Kernels add up products in an order of their own, another one for another number of samples. Nobody needs to know the
orders: the model runs with random errors, as large as another order's, in all that such kernels give, and what comes
out moves as far as it moves (D. S. Parker, Monte Carlo Arithmetic, 1997). Neither the samples nor their number changes,
so what depends on these is not mistaken for rounding.
"""

import math
from typing import Any

import torch
from torch import Tensor

from forethought.probing.dispatch import DispatchMode

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear", "mkldnn_linear", "lstm", "gru"}
_PRODUCTS_IN = ("conv", "rnn", "attention", "lstm", "gru", "_fft", "grouped_mm")
_SUMS_IN = ("norm", "softmax", "pool", "upsample", "cumsum", "logsumexp", "embedding_bag", "scatter_add", "index_add")


class Rounding(DispatchMode):
    """Within a `with` block, adds random errors to what kernels of this thread give that add numbers up.

    The error of a sum of n numbers is drawn evenly from half of sqrt(n) units in the last place of a usual result,
    either way: a sum's rounding errors are a random walk (N. J. Higham, Accuracy and Stability of Numerical Algorithms,
    2.8).

    Args:
        seed: Of the errors; no generator of the user's is used.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._chance: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(given.alias_info is not None for given in func._schema.returns):
            return result  # a view, or written in place
        length = _length(func, [tensor for tensor in args if isinstance(tensor, Tensor)])
        if length:
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.numel():
                    self._err(torch.view_as_real(tensor) if tensor.is_complex() else tensor, length)
        return result

    def _err(self, tensor: Tensor, length: float) -> None:
        if not tensor.is_floating_point():
            return
        eps = torch.finfo(tensor.dtype).eps
        errors = self._drawn(tensor)
        if eps > torch.finfo(torch.float32).eps:  # added up in float32, and then rounded
            tensor.mul_((1 + 2 * eps * errors).to(tensor.dtype))
            return
        usual = tensor.double().nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt()
        tensor.add_((errors * (eps * math.sqrt(length) * usual)).to(tensor.dtype))

    def _drawn(self, tensor: Tensor) -> Tensor:
        chance = self._chance.get(tensor.device)
        if chance is None:
            chance = self._chance[tensor.device] = torch.Generator(tensor.device).manual_seed(self._seed)
        return torch.rand(tensor.shape, dtype=torch.float64, device=tensor.device, generator=chance) - 0.5


def _length(func: Any, given: list[Tensor]) -> float:
    """Say how many numbers a kernel adds up for one of what it gives; 0 if it adds up none."""
    name = func._overloadpacket.__name__
    if not given:
        return 0
    if "conv" in name and len(given) > 1:
        weight = given[1]
        return weight.numel() / max(1, min(weight.shape[:2], default=1))
    if name in _PRODUCTS or any(part in name for part in _PRODUCTS_IN):
        return max((tensor.shape[-1] for tensor in given if tensor.ndim), default=1)
    return 1 if torch.Tag.reduction in func.tags or any(part in name for part in _SUMS_IN) else 0
