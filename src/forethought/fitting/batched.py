"""Heads of one class, whatever their forward does, run as one by `torch.func.vmap`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from forethought.fitting.inturn import Called
from forethought.fitting.measures import own_loss
from forethought.fitting.products import linear

# Layers that batching makes no slower. Convolutions, attention and recurrent layers are run in turn.
_LAYERS = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip


class Batched:
    """Runs heads of one class.

    Args:
        head: One of them; its forward is run with the parameters of all.
    """

    def __init__(self, head: nn.Module) -> None:
        self._head = head

    def outputs(self, tensors: Mapping[str, Tensor], x: Any, *, training: bool) -> Tensor:
        """Run H heads with these tensors, (H, ...) each, on one batch: their outputs, (H, B, ...)."""
        return self._run(lambda head: head(x), tensors, training)

    def losses(self, tensors: Mapping[str, Tensor], x: Any, target: Tensor, weights: Tensor | None) -> Tensor:
        """Give the heads' own losses, (H,)."""
        return self._run(lambda head: own_loss(head, x, target, weights), tensors, training=True)

    def _run(self, call: Callable[[Any], Tensor], tensors: Mapping[str, Tensor], training: bool) -> Tensor:
        head = self._head
        if head.training != training:
            head.train(training)
        called = Called(head, call)

        def one(own: dict[str, Tensor]) -> Tensor:
            made: Tensor = functional_call(called, own, ())
            return made

        with _SharedProducts():
            made: Tensor = vmap(one, randomness="same")({f"head.{name}": tensor for name, tensor in tensors.items()})
        return made


class _SharedProducts(TorchFunctionMode):
    """Has the product of one batch with the weights of many heads made as one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one operation."""
        if func is F.linear and not kwargs:
            return _Product.apply(*args) if len(args) == 3 else _Product.apply(*args, None)
        return func(*args, **(kwargs or {}))


class _Product(torch.autograd.Function):
    """`torch.nn.functional.linear`, which `vmap` would repeat for each head if the batch is the same for all."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: outside `vmap` this is never reached, and inside its rule makes the product."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """Make one product of a batch that all heads share."""
        at_x, at_w, at_b = (*in_dims, None)[:3]
        heads = info.batch_size
        if at_w is None:
            weight = weight.expand(heads, *weight.shape)
        if bias is not None and at_b is None:
            bias = bias.expand(heads, *bias.shape)
        if at_x is None and x.ndim == 2:
            _, outputs, width = weight.shape
            flat = None if bias is None else bias.reshape(-1)
            return linear(x, weight.reshape(heads * outputs, width), flat).view(len(x), heads, outputs), 1
        x = x.expand(heads, *x.shape) if at_x is None else x.movedim(at_x, 0)
        rows = x.reshape(heads, -1, x.shape[-1])
        out = torch.bmm(rows, weight.transpose(1, 2))
        out = out if bias is None else out + bias.unsqueeze(1)
        return out.view(*x.shape[:-1], weight.shape[1]), 0


def is_batchable(head: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Say whether `vmap` may run heads like this: all their parameters are in layers that it makes no slower.

    Args:
        head: The head.
        kinds: Classes whose own parameters are known to do no harm.
    """
    return all(
        isinstance(module, (*_LAYERS, *kinds)) or not list(module.parameters(recurse=False))
        for module in head.modules()
    )
