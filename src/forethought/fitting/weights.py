"""The weights of heads of one shape, one tensor (H, ...) each, and what one batch makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from forethought.fitting.measures import as_loss, has_own_loss, mean_losses
from forethought.fitting.trainee import Trainee

_REST = 1e-2  # of all tensors together, that counts for each of them
_TOLERANCE = 1e-3  # of a head run with others against the same run alone: far above rounding, far below a mistake


class Body(Protocol):
    """Runs heads of one shape."""

    def outputs(self, tensors: Mapping[str, Tensor], x: Any, *, training: bool) -> Tensor:
        """Run H heads with these tensors, (H, ...) each, on one batch: their outputs, (H, B, ...)."""
        ...

    def losses(self, tensors: Mapping[str, Tensor], x: Any, target: Tensor, weights: Tensor | None) -> Tensor:
        """Give the heads' own losses, (H,)."""
        ...


class Weights:
    """All tensors of some heads, and the best ones so far.

    Args:
        trainees: The heads.
        body: Runs them.
    """

    def __init__(self, trainees: Sequence[Trainee], body: Body) -> None:
        heads = [tensors_of(trainee.head) for trainee in trainees]
        self._body, self._options = body, trainees[0].options
        self.trainable = [name for name, tensor in heads[0].items() if tensor.requires_grad]
        self.tensors = {name: torch.stack([head[name].detach() for head in heads]) for name in heads[0]}
        for name in self.trainable:
            self.tensors[name].requires_grad_()
        self.kept = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self._buffers = [name for name, _ in trainees[0].head.named_buffers()]
        self._has_own_loss = has_own_loss(self._options.loss, trainees[0].head)

    @property
    def params(self) -> list[Tensor]:
        """The tensors that train."""
        return [self.tensors[name] for name in self.trainable]

    def outputs(self, values: Any) -> Tensor:
        """Run the heads, in evaluation mode."""
        return self._body.outputs(self.tensors, values, training=False)

    def differentiate(
        self, values: Any, target: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Sequence[Tensor], dict[str, Tensor]]:
        """Give losses (H,), gradients (H, ...), and what became of the buffers. Nothing is changed."""
        buffers = {name: self.tensors[name].clone() for name in self._buffers}
        tensors = self.tensors | buffers
        if self._has_own_loss:
            losses = self._body.losses(tensors, values, target, weights)
        else:
            outputs = self._body.outputs(tensors, values, training=True)
            losses = mean_losses(self._options.loss or "mse", outputs, target, weights)
        # The heads share nothing that trains: the gradient of the sum is each head's own.
        gradients = torch.autograd.grad(losses.sum(), self.params, allow_unused=True, materialize_grads=True)
        return losses.detach(), gradients, buffers

    def keep(self, positions: Sequence[int]) -> None:
        """Remember the weights of these heads as their best."""
        count = len(next(iter(self.tensors.values())))
        if len(positions) == count:
            kept = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        else:
            kept = {name: tensor.clone() for name, tensor in self.kept.items()}
            for name, tensor in self.tensors.items():
                at = torch.tensor(positions, dtype=torch.int64, device=tensor.device)
                kept[name].index_copy_(0, at, tensor.detach()[at])
        self.kept = kept  # at once: Ctrl-C in the middle must not mix the weights of two epochs

    def put_into(self, trainee: Trainee, position: int) -> None:
        """Put the best weights of a head into it (the first ones if it failed before any), in eval mode."""
        source = self.kept if trainee.best is not None or trainee.failed else self.tensors
        with torch.no_grad():
            for name, tensor in tensors_of(trainee.head).items():
                tensor.copy_(source[name][position])
        trainee.head.eval()

    def choose(self, positions: Sequence[int]) -> None:
        """Go on with some of the heads."""
        for name, tensor in self.tensors.items():
            at = torch.tensor(positions, dtype=torch.int64, device=tensor.device)
            self.tensors[name] = tensor.detach()[at].requires_grad_(tensor.requires_grad)
            self.kept[name] = self.kept[name][at]

    def state(self) -> dict[str, Tensor]:
        """Give all of it."""
        found = {f"weights.{name}": tensor.detach() for name, tensor in self.tensors.items()}
        return found | {f"kept.{name}": tensor for name, tensor in self.kept.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go to what `state` gave."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[f"weights.{name}"])
                self.kept[name] = state[f"kept.{name}"].to(tensor.device).clone()


def tensors_of(head: nn.Module) -> dict[str, Tensor]:
    """Name a head's parameters and buffers."""
    return {**dict(head.named_parameters()), **dict(head.named_buffers())}


def differentiate_alone(trainee: Trainee, values: Any, target: Tensor, weights: Tensor | None) -> list[Tensor]:
    """Give loss and gradients of one head, run by itself in training mode; its buffers are put back."""
    head = trainee.head.train()
    buffers = [(buffer, buffer.clone()) for buffer in head.buffers()]
    loss = as_loss(trainee.options.loss, head)(values, target, weights)
    params = [p for p in head.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for buffer, was in buffers:
            buffer.copy_(was)
    return [loss.detach(), *gradients]


def is_near(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether tensors are equal up to rounding, each as a whole: an entry may be the rest of a large sum."""
    size = sum(float(tensor.double().square().sum()) for tensor in other) ** 0.5
    for a, b in zip(one, other, strict=True):
        a, b = a.double(), b.double()
        if not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
            return torch.equal(a.isfinite(), b.isfinite())
        if float((a - b).norm()) > _TOLERANCE * (float(b.norm()) + _REST * size) + 1e-12:
            return False
    return True
