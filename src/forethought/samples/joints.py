"""Samples joined into batches, with what a few of them showed of how they differ in size."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from forethought import nesting
from forethought.errors import UnequalShapesError
from forethought.samples.batch import Batch
from forethought.samples.measuring import Measure, Measured, untold
from forethought.samples.precedents import Guide, Looked
from forethought.samples.reading import Collated
from forethought.samples.search import find_telling, has_one_size
from forethought.samples.unevenness import Part, Unevenness, UnforeseenSizesError, example_apart, example_of

LOOKED = 6  # samples that show whether and how all differ in size


class Joining:
    """Joins samples of one data set, all views of it alike.

    Args:
        collate: What joins samples.
        part: Parts what was joined into inputs and targets.

    Attributes:
        has_looked: Whether samples were looked at; nothing is joined before.
        uneven: How samples differ in size; None if they do not.
        shown: Samples to look at, beside a few others.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], part: Part) -> None:
        self.has_looked = False
        self.uneven: Unevenness | None = None
        self.shown: set[int] = set()
        self._collate = collate
        self._part = part
        self._even: Evenness | None = None
        self._refused: UnequalShapesError | None = None
        self._items: list[Any] = []
        self._as_joined = False  # padding is taken for part of a sample
        self._guide: Guide | None = None
        self._has_one_size = False

    def look(self, items: list[Any]) -> None:
        """See, from a few samples, whether and how all differ in size."""
        self._items = items
        try:
            joined = Collated(self._collate)(items)
        except UnequalShapesError as err:
            joined, self._refused = None, err
        one = joined if joined is not None else Collated(self._collate)(items[:1])
        inputs = _inputs_among(self._part, one)
        telling = find_telling(self._collate, items, joined, inputs)
        self._has_one_size = telling is not None and has_one_size(telling, self._collate, items, joined)
        self._as_joined = self._as_joined and self._has_one_size
        self.uneven = None if telling is None or self._as_joined else Unevenness(telling, inputs)
        if self._guide is not None and not self._as_joined:
            self.uneven = self._guide.choose(Looked(items, joined, self._collate, self._part, inputs), self.uneven)
        self._even = Evenness.of(self._part(one)) if self.uneven is None else None
        self.has_looked = True

    def heed(self, guide: Guide | None) -> None:
        """Have samples taken to differ as is chosen."""
        if guide is not self._guide:
            self._guide, self.has_looked = guide, False

    def leave_precedent(self) -> bool:
        """Take samples to differ as they seem to from now on; say whether they were taken to differ otherwise."""
        follows = self.uneven is not None and self.uneven.follows
        self.heed(None)
        return follows

    def take_as_joined(self) -> bool:
        """Take padding for part of samples from now on, if all batches have one size; say whether they do."""
        if self._as_joined or self.uneven is None or not self._has_one_size:
            return False
        self._as_joined, self.has_looked = True, False
        return True

    def show(self, indices: Iterable[int]) -> None:
        """Have samples looked at that are of unforeseen sizes."""
        if set(indices) <= self.shown:
            raise untold("samples that differ in size in one way, got some that differ in another")
        self.shown |= set(indices)
        self.has_looked = False

    def measure(self) -> Measure | None:
        """Give what tells how large samples are."""
        return None if self.uneven is None else Measure(self.uneven.telling, self._collate)

    def batch(self, items: list[Any]) -> Batch:
        """Join samples.

        Raises:
            UnforeseenSizesError: they differ in another way than those that were looked at.
        """
        joined, measure = Collated(self._collate)(items), self.measure()
        return self.parted(joined, None if measure is None else measure(items, joined))

    def parted(self, joined: Any, measured: Measured | None) -> Batch:
        """Part samples that were joined and measured; errors as of `batch`."""
        if self.uneven is not None and measured is not None:
            return self.uneven.batch(self._part, joined, measured)
        batch = self._part(joined)
        if self._even is not None:
            self._even.check(batch)
        return batch

    def example(self, count: int, batch_size: int) -> Batch:
        """Join the samples that were looked at; where they differ in size, behind two that show a path best.

        Raises:
            UnequalShapesError: they cannot be joined, and are not asked for one at a time.
        """
        if self._refused is not None and batch_size > 1:
            raise self._refused
        if self.uneven is None or (self.uneven.is_padded and not self.uneven.padding.count):
            return self.batch(self._items[:count])  # it may be that targets differ, and nothing else
        if self.uneven.is_padded:
            return example_of(self.batch(self._items))
        return example_apart([self.batch([item]) for item in self._items])


@dataclass(frozen=True)
class Evenness:
    """The shapes that all samples of a data set have, as far as is known."""

    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(batch: Batch) -> "Evenness":
        """Take the shapes of a batch for those of all."""
        return Evenness(tuple(tuple(tensor.shape[1:]) for tensor in batch.tensors))

    def check(self, batch: Batch) -> None:
        """Compare a batch with them."""
        if Evenness.of(batch) != self:
            raise UnforeseenSizesError


def _inputs_among(part: Part, joined: Any) -> list[int]:
    """Number the tensors that the model is given among those of a batch."""
    numbers = {id(tensor): at for at, tensor in enumerate(nesting.tensors(joined))}
    return [numbers[id(tensor)] for tensor in part(joined).tensors if id(tensor) in numbers]
