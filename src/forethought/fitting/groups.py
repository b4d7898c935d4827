"""A group: heads whose steps are one computation. It holds their weights, and the best ones so far."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from forethought.errors import FitError
from forethought.fitting.options import PRECISIONS
from forethought.fitting.randomness import RandomStream
from forethought.fitting.trainee import Trainee


class Group(Protocol):
    """Heads that are trained together, or one alone."""

    trainees: list[Trainee]

    def learn(self, values: Any, target: Tensor, weights: Tensor | None, passed: float) -> None:
        """Take one step; `passed` is the number of epochs done, with the fraction of the current one.

        Raises:
            OutOfMemoryError, RuntimeError: before anything was changed, if memory ran out.
        """

    def add_scores(self, values: Any, target: Tensor, weights: Tensor | None) -> None:
        """Add the metrics of one batch, summed over its rows, to the running sums."""

    def take_means(self) -> Tensor:
        """Return mean loss and mean scores since the last call, (H, 1 + metrics)."""

    def close_pass(self) -> None:
        """Use what was summed up over all rows of an epoch; only optimizers of full batches do."""

    def keep(self, positions: Sequence[int]) -> None:
        """Remember the weights of these heads as their best."""

    def leave(self, positions: Sequence[int]) -> None:
        """Let these heads go: they take no further part. Their best weights are put into them."""

    def halved(self) -> "tuple[Group, Group]":
        """Divide the group into two."""

    def state(self) -> dict[str, Tensor]:
        """Give all tensors that decide how it goes on."""

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go to a state."""

    @property
    def steps(self) -> int:
        """Steps taken."""


class Sums:
    """Running sums of H heads: losses and metrics. They stay on the device: reading them is left to an epoch's end.

    Attributes:
        values: (H, 3 + metrics): losses, what they amount to in rows or weights, what scores amount to, each metric.
    """

    def __init__(self, heads: int, metrics: int, device: torch.device) -> None:
        # float64 so that a sum over millions of rows stays exact enough to rank by; MPS has none.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(heads, 3 + metrics, dtype=dtype, device=device)

    def add_losses(self, losses: Tensor, rows: int, weights: Tensor | None) -> None:
        """Add mean losses (H,) of a batch."""
        losses = losses.detach()
        if weights is None:
            self.values[:, 0].add_(losses, alpha=rows)
            self.values[:, 1] += rows
        else:
            amount = weights.sum(dtype=self.values.dtype)
            self.values[:, 0].add_(losses * amount)
            self.values[:, 1] += amount

    def add_scores(self, scores: Sequence[Tensor], weights: Tensor | None) -> None:
        """Add scores (H, B) of rows, one tensor for each metric."""
        dtype = self.values.dtype
        for at, each in enumerate(scores):
            total = each.sum(-1, dtype=dtype) if weights is None else each.to(dtype) @ weights.to(dtype)
            self.values[:, 3 + at] += total
        self.values[:, 2] += scores[0].shape[-1] if weights is None else weights.sum(dtype=dtype)

    def take_means(self) -> Tensor:
        """Return mean loss and mean scores, (H, 1 + metrics), and begin anew."""
        taken, self.values = self.values, torch.zeros_like(self.values)
        return torch.cat([taken[:, :1] / taken[:, 1:2], taken[:, 3:] / taken[:, 2:3]], 1)

    def choose(self, positions: Sequence[int]) -> None:
        """Go on with some of the heads."""
        self.values = self.values[list(positions)]


class Work:
    """The circumstances in which the heads of a group run: mode, random numbers, precision."""

    def __init__(self, trainee: Trainee) -> None:
        options = trainee.options
        self.random = RandomStream(options.seed, trainee.device)
        self._autocast = PRECISIONS[options.precision]
        self._device = trainee.device.type

    @contextmanager
    def at(self, *, training: bool) -> Iterator[None]:
        """Draw from the group's own random numbers; build a graph only in training."""
        with self.random, torch.set_grad_enabled(training):
            if self._autocast is None:
                yield
            else:
                with torch.autocast(self._device, dtype=self._autocast):
                    yield


def check_loss(name: str, loss: Tensor) -> None:
    """Raise unless a loss is one number."""
    if loss.ndim != 0:
        raise FitError(
            f"Cannot train head {name!r}: expected its loss to be one number, got shape {tuple(loss.shape)}. "
            "Return loss.mean()"
        )
