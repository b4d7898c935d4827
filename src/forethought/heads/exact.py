"""Buffers that a cast to half precision leaves alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Exact(nn.Module):
    """Tensors by name, as buffers that are never rounded below the dtype they came in, and follow the device."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone(memory_format=torch.contiguous_format))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            setattr(self, name, unrounded(tensor, getattr(self, name)))
        return self


def unrounded(before: Tensor, after: Tensor) -> Tensor:
    """Return a buffer as it is after a cast, or, were it narrower than before, as before it on the new device."""
    is_wide = torch.promote_types(after.dtype, before.dtype) == after.dtype
    return after if is_wide else before.to(after.device)
