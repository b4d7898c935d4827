"""How large each sample is, although its batch was padded: told by the samples, never guessed.

    ITEM    the samples before they were joined have their own size, and what was joined holds them entry by entry
    MASK    a tensor of zeros and ones marks the samples' own places
    ALONE   the sample joined with no other has no padding that it would not always have
    BATCH   samples come one at a time, or in batches of one size: there is no padding

Whatever tells, the rest of the batch must be filled with one value. That rows do not depend on it is another question,
which running the model answers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought import nesting
from forethought.errors import UnequalShapesError
from forethought.shapes.padding import Leaf, Number

Collate = Callable[[list[Any]], Any]
Path = tuple[Any, ...]

ITEM, MASK, ALONE, BATCH = "item", "mask", "alone", "batch"


@dataclass(frozen=True)
class Source:
    """What tells one measure of the samples.

    Attributes:
        kind: ITEM, MASK, ALONE or BATCH.
        leaf: The tensor of the batch from which the size of the batch is read; of MASK, the mask.
        axis: Its axis.
        path: Of ITEM: where in a sample the same is found.
        mark: Of MASK: the number that marks a sample's own places.
    """

    kind: str
    leaf: int
    axis: int
    path: Path = ()
    mark: int = 1


@dataclass(frozen=True)
class Telling:
    """How the tensors of a joined batch differ in size, and what tells.

    Attributes:
        leaves: One for each tensor, in their order in the batch.
        sources: One for each measure.
    """

    leaves: tuple[Leaf, ...]
    sources: tuple[Source, ...]

    def sizes_in(self, tensors: Sequence[Tensor]) -> list[int]:
        """Tell the size of a batch by each measure."""
        return [tensors[source.leaf].shape[source.axis] for source in self.sources]


@dataclass
class Measured:
    """The sizes of the samples of a batch.

    Attributes:
        sizes: (B, K): by each measure.
        alone: For measures of samples that were not met before: (measure, size, size of the batch when alone).
    """

    sizes: Tensor
    alone: list[tuple[int, int, int]] = field(default_factory=list)


class Measure:
    """Measures the samples of a batch. It goes to the workers of a DataLoader.

    Args:
        telling: What tells.
        collate: What joins samples.
    """

    def __init__(self, telling: Telling, collate: Collate) -> None:
        self._telling = telling
        self._collate = collate
        self._alone: dict[tuple[int, int], int | None] = {}

    def __call__(self, items: Sequence[Any], joined: Any) -> Measured:
        """Measure samples, given as they were before they were joined, and joined.

        Raises:
            UnequalShapesError: the samples are not found in the batch.
        """
        tensors = nesting.tensors(joined)
        if len(tensors) != len(self._telling.leaves):
            raise untold(f"{len(self._telling.leaves)} tensors in each batch, got {len(tensors)}")
        measured = Measured(torch.zeros((len(items), len(self._telling.sources)), dtype=torch.long))
        for measure, source in enumerate(self._telling.sources):
            leaf = tensors[source.leaf]
            if source.kind == BATCH:
                measured.sizes[:, measure] = leaf.shape[source.axis]
                continue
            for row, item in enumerate(items):
                size = self._size(measure, source, item, leaf[row])
                measured.sizes[row, measure] = self._settled(measure, size, item, measured)
        return measured

    def _size(self, measure: int, source: Source, item: Any, row: Tensor) -> int:
        """Tell how large a sample is by its own account."""
        if source.kind == ALONE:
            size = self._joined_alone(source, item)
            return row.shape[source.axis - 1] if size is None else size
        leaf = self._telling.leaves[source.leaf]
        if source.kind == MASK:
            size = run_of(row, source.mark, leaf.at_end)
            if size is None:
                raise untold("a mask that marks the places of a sample one after the other, got one with gaps")
            return size
        own = tensor_at(item, source.path)
        if own is None or own.ndim != row.ndim:
            raise untold("samples of one form, got another one later")
        shorter = all(a <= b for a, b in zip(own.shape, row.shape, strict=True))
        if shorter and not holds(row, own, leaf.at_end):
            raise untold("batches that hold the samples as they are, got one that holds another")
        return own.shape[source.axis - 1]

    def _settled(self, measure: int, size: int, item: Any, measured: Measured) -> int:
        """Look up the size of a batch of this sample alone; what is cut to it is no larger."""
        source = self._telling.sources[measure]
        if (measure, size) not in self._alone:
            alone = self._joined_alone(source, item)
            self._alone[measure, size] = alone
            if alone is not None:
                measured.alone.append((measure, min(size, alone), alone))
        alone = self._alone[measure, size]
        return size if alone is None else min(size, alone)

    def _joined_alone(self, source: Source, item: Any) -> int | None:
        tensors = nesting.tensors(joined_alone(self._collate, item))
        is_same = len(tensors) == len(self._telling.leaves) and tensors[source.leaf].ndim > source.axis
        return tensors[source.leaf].shape[source.axis] if is_same else None


def joined_alone(collate: Collate, item: Any) -> Any:
    """Join one sample with no other; nothing if that cannot be done."""
    try:
        return collate([item])
    except Exception:  # whatever a collate function of the user's says of one sample
        return None


def one_value(values: Tensor) -> Number | None:
    """Give the value that all are; None if there are several, or none."""
    if not values.numel():
        return None
    first = values[0]
    is_same = bool(((values == first) | ((values != values) & (first != first))).all())
    return first.item() if is_same else None


def run_of(row: Tensor, mark: int, at_end: bool) -> int | None:
    """Count how often a row (T,) holds a mark from its beginning, or its end, on; None if it is anywhere else, too."""
    marked = row == mark
    count = int(marked.sum())
    return count if bool((marked[len(row) - count :] if at_end else marked[:count]).all()) else None


def holds(row: Tensor, own: Tensor, at_end: bool) -> bool:
    """Say whether a row of a batch begins, or ends, with a sample's own tensor."""
    if any(a > b for a, b in zip(own.shape, row.shape, strict=True)) or _kind(own) > _kind(row):
        return False
    pairs = zip(own.shape, row.shape, strict=True)
    part = row[tuple(slice(whole - size, None) if at_end else slice(size) for size, whole in pairs)]
    own = own.to(row.dtype)
    return bool(((part == own) | ((part != part) & (own != own))).all())


def _kind(tensor: Tensor) -> int:
    """Order types by what they can hold: of a sample's numbers, a batch's must not lose what they are."""
    return 0 if tensor.dtype == torch.bool else 1 + tensor.is_floating_point() + 2 * tensor.is_complex()


def leaves_in(item: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """List the tensors, arrays and lists of numbers in a sample, each with the way to it."""
    if isinstance(item, Tensor | np.ndarray) or _are_numbers(item):
        yield path, item
    elif isinstance(item, Mapping):
        for key, part in item.items():
            yield from leaves_in(part, (*path, key))
    elif isinstance(item, list | tuple):
        for at, part in enumerate(item):
            yield from leaves_in(part, (*path, at))
    elif hasattr(item, "__dict__") and not isinstance(item, type):
        for name, part in vars(item).items():
            yield from leaves_in(part, (*path, _Attribute(name)))


@dataclass(frozen=True)
class _Attribute:
    name: str


def _are_numbers(item: Any) -> bool:
    if not isinstance(item, list | tuple):
        return False
    return all(isinstance(part, bool | int | float) for part in item) or (
        all(map(_are_numbers, item)) and len({len(part) for part in item}) == 1
    )


def tensor_at(item: Any, path: Path) -> Tensor | None:
    """Give what lies at a place of a sample as a tensor; None if there is nothing of the kind."""
    try:
        for step in path:
            item = getattr(item, step.name) if isinstance(step, _Attribute) else item[step]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, np.ndarray) and not _are_numbers(item):
        return None
    try:
        return torch.as_tensor(np.asarray(item))
    except TypeError:  # an array of text, say
        return None


def untold(expected: str) -> UnequalShapesError:
    return UnequalShapesError(
        f"Cannot tell samples from padding: expected {expected}. Pad with one value and give the model an attention "
        "mask, or pad or crop all samples to one size in the data set."
    )
