"""The product of a batch with the weights of one head, or of many at once: `x @ w.T + b`.

On processors with 512-bit vectors, oneDNN multiplies float32 matrices at more than twice the speed of the library that
torch uses by default where that library takes the processor for a smaller one (measured on AMD EPYC: 245 against 107
GFLOP/s on one core; docs/benchmarks.md). It is the same arithmetic in another order of summation. The choice depends on
the processor and the sizes only, never on a clock, so that a training repeats itself.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LEAST_OUTPUTS = 4  # below, a matrix is nearly a vector, and reading it is all the work
_LEAST_WORK = 2**18  # multiplications that are worth the few microseconds of another call
_LEAST_WEIGHTS = 2**13  # of a layer that is worth being watched for: that costs each operation of its head some, too


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply as `torch.nn.functional.linear` does: (B, D) by (K, D) to (B, K), by the fastest exact way."""
    if _is_for_onednn(x, weight, bias):
        product: Tensor = _OneDnn.apply(x, weight, bias)
        return product
    return F.linear(x, weight, bias)


def fast_products(head: nn.Module) -> AbstractContextManager[Any]:
    """Run a head inside, and its Linear layers multiply by `linear`; where none would gain, nothing is watched."""
    is_worth = any(
        isinstance(layer, nn.Linear) and layer.out_features >= _LEAST_OUTPUTS and layer.weight.numel() >= _LEAST_WEIGHTS
        for layer in head.modules()
    )
    # Inside, replays of a split watch every operation themselves.
    return _FastProducts() if is_worth and _is_faster() and not hasattr(type(head), "has_shell") else nullcontext()


class _FastProducts(TorchFunctionMode):
    """Sees products."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one operation."""
        if func is F.linear and not kwargs and len(args) in (2, 3):
            return linear(*args)
        return func(*args, **(kwargs or {}))


def _is_for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or x.ndim != 2 or weight.ndim != 2:
        return False
    outputs = weight.shape[0]
    if outputs < _LEAST_OUTPUTS or len(x) * weight.numel() < _LEAST_WORK or x.shape[1] != weight.shape[1]:
        return False
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or type(x) is not Tensor:
        return False
    return (bias is None or bias.dtype == torch.float32) and _is_faster()


@functools.cache
def _is_faster() -> bool:
    """Say whether oneDNN is there, is worth it on this processor, and multiplies right."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        x, w = torch.arange(96.0).reshape(8, 12) / 7, torch.arange(60.0).reshape(5, 12) / 5
        got = _multiply(x, w, torch.ones(5))
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(got, x @ w.t() + 1, rtol=1e-5)


def _multiply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Multiply by oneDNN: the operation that torch's own compiler emits for a linear layer."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    return product


class _OneDnn(torch.autograd.Function):
    """`x @ w.T + b` and its derivatives, by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        return _multiply(x, w, b)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        gradient = gradients[0]
        is_needed = ctx.needs_input_grad
        return (
            _multiply(gradient, w.t(), None) if is_needed[0] else None,
            _multiply(gradient.t(), x.t(), None) if is_needed[1] else None,
            gradient.sum(0) if is_needed[2] else None,
        )
