"""Heads of one shape run one after the other, with tensors (H, ...) as if they were run as one."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forethought.fitting.measures import own_loss
from forethought.fitting.products import fast_products


class InTurn:
    """Runs any heads.

    Args:
        head: One of them; its forward is run with the parameters of each.
    """

    def __init__(self, head: nn.Module) -> None:
        self._head = head
        self._products = fast_products(head)

    def outputs(self, tensors: Mapping[str, Tensor], x: Any, *, training: bool) -> Tensor:
        """Run H heads with these tensors, (H, ...) each, on one batch: their outputs, (H, B, ...)."""
        return self._run(lambda head: head(x), tensors, training)

    def losses(self, tensors: Mapping[str, Tensor], x: Any, target: Tensor, weights: Tensor | None) -> Tensor:
        """Give the heads' own losses, (H,)."""
        return self._run(lambda head: own_loss(head, x, target, weights), tensors, training=True)

    def _run(self, call: Callable[[Any], Tensor], tensors: Mapping[str, Tensor], training: bool) -> Tensor:
        if self._head.training != training:
            self._head.train(training)
        heads = len(next(iter(tensors.values())))
        made = Called(self._head, call)
        with self._products:
            return torch.stack(
                [functional_call(made, {f"head.{n}": t[at] for n, t in tensors.items()}, ()) for at in range(heads)]
            )


class Called(nn.Module):
    """Calls a head in some way: `functional_call` knows only forward."""

    def __init__(self, head: nn.Module, call: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.head, self._call = head, call

    def forward(self) -> Tensor:
        """Call it."""
        return self._call(self.head)
