"""A group of one: any module, any optimizer, stepped as a plain training loop would."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from forethought.fitting.flattening import load_optimizer, optimizer_state
from forethought.fitting.groups import Group, Sums, Work, check_loss
from forethought.fitting.measures import as_loss, per_sample
from forethought.fitting.products import fast_products
from forethought.fitting.trainee import Trainee


class Single:
    """One head, with torch's own optimizer or one of the user's.

    Args:
        trainee: The head.
    """

    def __init__(self, trainee: Trainee) -> None:
        self.trainees = [trainee]
        self.steps = 0
        self._trainee, self._head = trainee, trainee.head
        trainable = [p for p in self._head.parameters() if p.requires_grad]
        self._optimizer = trainee.options.make_optimizer(trainable) if trainable else None
        self._base_lrs = [group["lr"] for group in self._optimizer.param_groups] if self._optimizer else []
        self._products = fast_products(self._head)
        self._loss = as_loss(trainee.options.loss, self._head, self._products)
        self._trainable = trainable
        self._tensors: list[Tensor] = [*trainable, *self._head.buffers()]
        self._kept = [tensor.detach().clone() for tensor in self._tensors]
        self._sums = Sums(1, len(trainee.options.metrics), trainee.device)
        self._work = Work(trainee)

    def learn(self, values: Any, target: Tensor, weights: Tensor | None, passed: float) -> None:
        """Take one step."""
        options = self._trainee.options
        with self._running(training=self._optimizer is not None):
            loss = self._loss(values, target, weights)
            check_loss(self._trainee.name, loss)
            if self._optimizer is not None:
                for parameter in self._trainable:
                    parameter.grad = None
                loss.backward()
                self._set_lr(options.lr_share(passed))
                if options.clip is not None:
                    torch.nn.utils.clip_grad_norm_(self._trainable, options.clip)
                self._optimizer.step()
                self.steps += 1
            self._sums.add_losses(loss[None], len(target), weights)

    def add_scores(self, values: Any, target: Tensor, weights: Tensor | None) -> None:
        """Add the metrics of one batch."""
        with self._running(training=False):
            with self._products:
                output = self._head(values)
            scores = [per_sample(metric, output, target)[None] for metric in self._trainee.options.metrics]
            self._sums.add_scores(scores, weights)

    def take_means(self) -> Tensor:
        """Return mean loss and mean scores."""
        return self._sums.take_means()

    def close_pass(self) -> None:
        """Every step was taken with its batch."""

    def keep(self, positions: Sequence[int]) -> None:
        """Remember the weights as the best."""
        if positions:
            # New copies, swapped in at once: Ctrl-C in the middle must not mix the weights of two epochs.
            self._kept = [tensor.detach().clone() for tensor in self._tensors]

    def leave(self, positions: Sequence[int]) -> None:
        """Put the best weights back (the first ones if the head failed before any), in eval mode."""
        if not positions:
            return
        if self._trainee.best is not None or self._trainee.failed:
            with torch.no_grad():
                for kept, tensor in zip(self._kept, self._tensors, strict=True):
                    tensor.copy_(kept)
        self._head.zero_grad(set_to_none=True)
        self._head.eval()
        self.trainees = []

    def halved(self) -> tuple[Group, Group]:
        """One head has no half."""
        raise AssertionError("a single head cannot be divided")

    def state(self) -> dict[str, Tensor]:
        """Give weights, best weights, random numbers and what the optimizer remembers."""
        found = {f"weights.{at}": tensor.detach() for at, tensor in enumerate(self._tensors)}
        found |= {f"kept.{at}": tensor for at, tensor in enumerate(self._kept)}
        found |= {f"random.{at}": state for at, state in enumerate(self._work.random.state)}
        return found | {"sums": self._sums.values} | optimizer_state(self._optimizer, self._trainee.name)

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go to a state."""
        self.steps = steps
        with torch.no_grad():
            for at, tensor in enumerate(self._tensors):
                tensor.copy_(state[f"weights.{at}"])
                self._kept[at] = state[f"kept.{at}"].to(tensor.device).clone()
        self._work.random.state = [state[f"random.{at}"] for at in range(len(self._work.random.state))]
        self._sums.values = state["sums"].to(self._sums.values)
        load_optimizer(self._optimizer, state)

    @contextmanager
    def _running(self, *, training: bool) -> Iterator[None]:
        """Set the mode, draw from the head's own random numbers, and count the time."""
        start = time.perf_counter()
        if self._head.training != training:
            self._head.train(training)
        try:
            with self._work.at(training=training):
                yield
        except Exception as err:
            err.add_note(f"(while fitting head {self._trainee.name!r})")
            raise
        finally:
            self._trainee.time_s += time.perf_counter() - start

    def _set_lr(self, share: float) -> None:
        assert self._optimizer is not None
        for group, base in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * share
