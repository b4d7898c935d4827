"""A group of many: heads of one shape, whose steps are one computation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forethought.errors import FitError
from forethought.fitting.optimizers import Adam, Optimizer, Sgd, clip
from forethought.fitting.together import Together, timed
from forethought.fitting.trainee import Trainee
from forethought.fitting.weights import Body, differentiate_alone, is_near


class UnlikeError(Exception):
    """Heads run as one do not give what each gives alone: they are to be run in turn."""


class Stack(Together):
    """Many heads of one shape, with a step for each batch.

    Args:
        trainees: The heads: alike but for their weights, step sizes, decays, and what ends their training.
        body: Runs them.
    """

    def __init__(self, trainees: Sequence[Trainee], body: Body) -> None:
        super().__init__(trainees, body)
        self._optimizer = self._new_optimizer()

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._optimizer.steps

    def learn(self, values: Any, target: Tensor, weights: Tensor | None, passed: float) -> None:
        """Take one step."""
        with timed(self.trainees):
            before = self._work.random.state
            try:
                with self._work.at(training=True):
                    losses, gradients, buffers = self._weights.differentiate(values, target, weights)
            except BaseException:
                self._work.random.state = before  # nothing was drawn, should this be tried again
                raise
            self._weights.tensors |= buffers
            if self._options.clip is not None:
                gradients = clip(gradients, self._options.clip)
            self._optimizer.step(gradients, self._options.lr_share(passed))
            self._sums.add_losses(losses, len(target), weights)

    def prove(self, values: Any, target: Tensor, weights: Tensor | None) -> None:
        """Compare two of the heads, as they are now, with what each gives alone.

        Raises:
            UnlikeError: they differ by more than rounding, or cannot be run as one.
        """
        before = self._work.random.state
        try:
            with self._work.at(training=True):
                losses, gradients, _ = self._weights.differentiate(values, target, weights)
            for at in {0, len(self.trainees) - 1}:
                self._work.random.state = before
                with self._work.at(training=True):
                    alone = differentiate_alone(self.trainees[at], values, target, weights)
                # Loss and gradients have sizes of their own.
                together = [gradient[at] for gradient in gradients]
                if not is_near([losses[at]], alone[:1]) or not is_near(together, alone[1:]):
                    raise UnlikeError(f"heads like {self.trainees[at].name!r} give something else together than alone")
        except FitError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as err:
            if is_out_of_memory(err):
                raise
            raise UnlikeError(f"heads like {self.trainees[0].name!r} cannot be run as one: {err}") from err
        finally:
            self._work.random.state = before

    def close_pass(self) -> None:
        """Every step was taken with its batch."""

    def state(self) -> dict[str, Tensor]:
        """Give weights, best weights, random numbers and what the optimizer remembers."""
        found = self._weights.state() | {f"random.{at}": state for at, state in enumerate(self._work.random.state)}
        found |= {f"optimizer.{at}": tensor for at, tensor in enumerate(self._optimizer.state)}
        return found | {"sums": self._sums.values}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go to a state."""
        self._weights.load(state)
        for at, tensor in enumerate(self._optimizer.state):
            tensor.copy_(state[f"optimizer.{at}"])
        self._optimizer.steps = steps
        self._work.random.state = [state[f"random.{at}"] for at in range(len(self._work.random.state))]
        self._sums.values = state["sums"].to(self._sums.values)

    def _choose(self, positions: Sequence[int]) -> None:
        self._weights.choose(positions)
        self.trainees = [self.trainees[position] for position in positions]
        self._sums.choose(positions)
        if self.trainees:
            before, self._optimizer = self._optimizer, self._new_optimizer()
            self._optimizer.state = [tensor[list(positions)] for tensor in before.state]
            self._optimizer.steps = before.steps

    def _new_optimizer(self) -> Optimizer:
        lrs = [trainee.options.lr for trainee in self.trainees]
        decays = [trainee.options.weight_decay for trainee in self.trainees]
        if self._options.optimizer == "sgd":
            return Sgd(self._weights.params, lrs, decays, self._options.momentum)
        return Adam(self._weights.params, lrs, decays, is_decoupled=self._options.optimizer == "adamw")


def said_of(trainees: Sequence[Trainee], middle: int) -> str:
    """Say that a group was divided for want of memory."""
    return (
        f"memory ran out for {len(trainees)} heads together: {middle} and {len(trainees) - middle} of them are trained "
        "one after the other"
    )


def is_out_of_memory(err: BaseException) -> bool:
    """Whether an error says that memory ran out: of a device, or of this machine."""
    said = str(err)
    return isinstance(err, MemoryError | torch.OutOfMemoryError) or (
        isinstance(err, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)
    )
