"""What groups of heads of one shape have in common, however their steps are taken."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor

from forethought.fitting.groups import Sums, Work
from forethought.fitting.measures import scores_of
from forethought.fitting.trainee import Trainee
from forethought.fitting.weights import Body, Weights


class Together(ABC):
    """Heads of one shape that are run as one: their weights, their running sums, and who is still among them.

    Args:
        trainees: The heads.
        body: Runs them.
    """

    def __init__(self, trainees: Sequence[Trainee], body: Body) -> None:
        self.trainees, self._body, self._options = list(trainees), body, trainees[0].options
        self._weights = Weights(trainees, body)
        self._sums = Sums(len(trainees), len(self._options.metrics), trainees[0].device)
        self._work = Work(trainees[0])

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps taken."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Give all tensors that decide how it goes on."""

    @abstractmethod
    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go to a state."""

    @abstractmethod
    def _choose(self, positions: Sequence[int]) -> None:
        """Go on with some of the heads."""

    def add_scores(self, values: Any, target: Tensor, weights: Tensor | None) -> None:
        """Add the metrics of one batch."""
        with timed(self.trainees), self._work.at(training=False):
            outputs = self._weights.outputs(values)
            self._sums.add_scores([scores_of(metric, outputs, target) for metric in self._options.metrics], weights)

    def take_means(self) -> Tensor:
        """Return mean loss and mean scores."""
        return self._sums.take_means()

    def keep(self, positions: Sequence[int]) -> None:
        """Remember the weights of these heads as their best."""
        if positions:
            self._weights.keep(positions)

    def leave(self, positions: Sequence[int]) -> None:
        """Put the best weights of these heads into them, and go on with the others."""
        for at in positions:
            self._weights.put_into(self.trainees[at], at)
        if positions:
            self._choose([at for at in range(len(self.trainees)) if at not in set(positions)])

    def halved(self) -> tuple[Self, Self]:
        """Divide the group into two."""
        middle = len(self.trainees) // 2
        return self._part(range(middle)), self._part(range(middle, len(self.trainees)))

    def _part(self, positions: Sequence[int]) -> Self:
        part = type(self)(self.trainees, self._body)
        part.load(self.state(), self.steps)
        part._choose(positions)
        return part


@contextmanager
def timed(trainees: Sequence[Trainee]) -> Iterator[None]:
    """Count the time of heads that work together, in equal shares; name them in errors."""
    start = time.perf_counter()
    try:
        yield
    except Exception as err:
        others = f" and {len(trainees) - 1} more" if len(trainees) > 1 else ""
        err.add_note(f"(while fitting head {trainees[0].name!r}{others})")
        raise
    finally:
        share = (time.perf_counter() - start) / len(trainees)
        for trainee in trainees:
            trainee.time_s += share
