"""Any data set as batches of (what the model is given, targets).

A tuple's first element is the model's input and the rest are targets; of a dictionary, the keys that the model's
`forward` names are inputs and the rest are targets, and so are `labels`; `inputs=` overrides.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from forethought.errors import DataError, EmptyDatasetError, RandomDatasetError
from forethought.identifying.account import parts_of, parts_of_columns
from forethought.probing.chance import RandomStatesKept
from forethought.samples.batch import Batch, Parting
from forethought.samples.columns import columns_of, flattened, length_of, rows_of
from forethought.samples.joints import LOOKED, Joining
from forethought.samples.kinds import check_kind
from forethought.samples.precedents import Guide, Precedent
from forethought.samples.reading import Collated, IndexLists, Reader, Stream, load, places_in
from forethought.samples.targets import join_targets
from forethought.samples.unevenness import Unevenness, UnforeseenSizesError
from forethought.samples.watching import Seen
from forethought.shapes.padding import Widths

_MORE_BATCHES = 1.25  # of those that would be needed: the cost of rows that round as they did
_PROBED = 32  # samples read twice: a transform that acts on one sample in ten escapes once in 600 data sets


class Samples:
    """A data set, seen as batches in its own order.

    Args:
        dataset: A map-style or iterable data set, a DataLoader (lends its data set, collate function and workers, not
            its sampler), a tensor or array (N, ...), or a tuple or dictionary of these.
        model: Whose `forward` names the keys that are inputs.
        inputs: Positions or keys of the elements that the model is given.
        collate_fn: Joins samples into a batch; torch's default otherwise.
        batch_size: Samples a batch.
        num_workers: Processes that read.

    Raises:
        EmptyDatasetError: no samples.
        DataError: no element that the model can be given.
    """

    def __init__(
        self,
        dataset: Any,
        model: nn.Module,
        *,
        inputs: Sequence[str | int] | str | int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        self._lent: dict[str, Any] = {}
        if isinstance(dataset, DataLoader):
            if dataset.batch_sampler is None:
                raise DataError(
                    "Cannot read this DataLoader: expected one that makes batches, got batch_size=None, whose items "
                    "are batches already. Pass its data set, or an iterable of single samples."
                )
            collate_fn = collate_fn or dataset.collate_fn
            batch_size = batch_size or dataset.batch_size
            num_workers = dataset.num_workers if num_workers is None else num_workers
            self._lent = {
                "worker_init_fn": dataset.worker_init_fn,
                "multiprocessing_context": dataset.multiprocessing_context if num_workers else None,
            }
            dataset = dataset.dataset
        if batch_size is not None and batch_size < 1:
            raise DataError(f"Cannot read batches of {batch_size}: expected at least 1. ft.extract(..., batch_size=64)")
        dataset, inputs = flattened(dataset, inputs, Parting(model, None).parameters)
        self._columns = columns_of(dataset) if collate_fn in (None, default_collate) else None
        if self._columns is None:
            are_tensors = type(dataset) is tuple and dataset and all(isinstance(t, Tensor) for t in dataset)
            check_kind(dataset := TensorDataset(*dataset) if are_tensors else dataset)
        self._dataset = dataset
        self._parting = Parting(model, inputs)
        self._collate = collate_fn or default_collate
        self._batch_size = batch_size or 64
        self._workers = num_workers or 0
        self._draw: tuple[int, int] | None = None
        self._places: Any = None  # of `draw`, as of `places_in`
        self._probed = Seen()
        self._joining = Joining(self._collate, self._parting.part)
        self._precedent: Precedent | None = None
        self.is_indexed = self._columns is not None or (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))
        if self.is_indexed and len(self) == 0:
            raise EmptyDatasetError(
                "Cannot extract features: expected a data set with samples, got an empty one. Check its path or filter."
            )

    @property
    def batch_size(self) -> int:
        """Samples a batch; the last may hold fewer."""
        return self._batch_size

    def read_by(self, size: int) -> None:
        """Read so many samples a batch from now on."""
        self._batch_size = size

    def __len__(self) -> int:
        return len(self._dataset) if self._columns is None else length_of(self._columns)

    @property
    def name(self) -> str:
        """What kind of data set it is, to people."""
        return type(self._dataset).__name__

    def view(self, view: int, seed: int) -> "Samples":
        """Give the same data set with each sample drawn from (seed, view, its place)."""
        if not self.is_indexed:
            raise DataError(
                f"Cannot draw views of a {self.name}: expected a data set with samples by index, got "
                "an iterable. Give it __getitem__ and __len__, or leave views out."
            )
        drawn = copy.copy(self)
        drawn._draw, drawn._places = (seed, view), places_in(self._dataset)
        return drawn  # what is opened is told by all together: a file may be read for one view and kept for the next

    def account(self) -> dict[str, str] | None:
        """Identify the data set, part by part, without reading a sample; None where it does not show its content."""
        if self._columns is not None:
            inputs, _ = self._parting.of_columns(self._columns)
            return parts_of_columns(inputs, (self._parting.rule, len(self)))
        if not self.is_indexed or self._lent.get("worker_init_fn") is not None:
            return None
        size = None if self._collate is default_collate else self._batch_size
        return parts_of(
            self._dataset, self._collate, (self._parting.inputs, self._parting.parameters, size, self._draw, len(self))
        )

    @property
    def is_in_memory(self) -> bool:
        """Whether it is columns, which need no reading: keys follow from their bytes, targets lie beside them."""
        return self._columns is not None

    def targets(self) -> Any:
        """Give the targets of columns as they are now."""
        assert self._columns is not None
        _, targets = self._parting.of_columns(self._columns)
        return join_targets([rows_of(targets, slice(None))], [len(self)])

    def fetch(self, indices: Sequence[int]) -> Batch:
        """Read these samples here and now, and leave every random state as it was."""
        with RandomStatesKept():
            return self._fetched(indices)

    def fetch_apart(self, indices: Sequence[int]) -> list[Batch]:
        """Read these samples here and now, one by one if they cannot be joined."""
        return [self.fetch(indices)] if self.can_be_joined else [self.fetch([index]) for index in indices]

    @property
    def can_be_joined(self) -> bool:
        """Whether any samples can lie in one batch: not if they differ in size and nothing pads them."""
        uneven = self.unevenness
        return uneven is None or uneven.is_padded

    @property
    def widths(self) -> Widths:
        """What batches are padded to, where samples differ in size."""
        uneven = self.unevenness
        return Widths([]) if uneven is None else uneven.widths

    def _fetched(self, indices: Sequence[int]) -> Batch:
        if self._columns is not None:
            return self._of_columns(np.asarray(indices, np.int64))
        items = self._items(indices)
        while True:
            self.unevenness  # noqa: B018  (known before anything is joined)
            try:
                return self._joining.batch(items)
            except UnforeseenSizesError:
                self._joining.show(indices)

    def _of_columns(self, at: NDArray[np.int64] | slice) -> Batch:
        assert self._columns is not None
        batch = self._parting.part(rows_of(self._columns, at))
        return batch if self._precedent is None else self._precedent.sized(batch)

    def heed(self, guide: Guide | None) -> None:
        """Have samples taken to differ in size as is chosen."""
        self._joining.heed(guide)
        self._precedent = None  # of columns
        if self._columns is not None and guide is not None:
            self._precedent = guide.choose_even(self.fetch(spread(len(self), LOOKED)))

    def leave_precedent(self) -> bool:
        """Take samples to differ as they seem to from now on; say whether they were taken to differ otherwise."""
        is_left, self._precedent = self.is_guided, None
        return self._joining.leave_precedent() or is_left

    @property
    def precedent(self) -> Precedent | None:
        """How samples differ in size, for others to be taken to; None if the model's inputs do not."""
        uneven = self.unevenness
        return self._precedent if uneven is None else Precedent.of(uneven)

    @property
    def is_guided(self) -> bool:
        """Whether samples are taken to differ as others did before, and not as they seem to."""
        uneven = self._joining.uneven
        return self._precedent is not None or (uneven is not None and uneven.follows)

    @property
    def is_taken_for_uneven(self) -> bool:
        """Whether all samples have one size, as far as is known, and lie among others that differ."""
        uneven = self._joining.uneven
        return self._precedent is not None or (uneven is not None and uneven.is_even)

    def _items(self, indices: Sequence[int]) -> list[Any]:
        reader, items = Reader(self._dataset, self._draw, watches=True, places=self._places), list[Any]()
        for index in indices:
            item, seen = reader[int(index)]
            items.append(item)
            self._probed.add(seen)
        return items

    @property
    def unevenness(self) -> Unevenness | None:
        """How samples differ in size, from a few of them; None if they do not, or not in a way that was seen."""
        if not self._joining.has_looked and self._columns is None:
            with RandomStatesKept():
                shown = self._joining.shown
                indices = sorted({*spread(len(self), LOOKED), *shown}) if self.is_indexed else []
                self._joining.look(
                    self._items(indices) if indices else self._first(max(LOOKED, 1 + max(shown, default=0)))
                )
        return self._joining.uneven

    @property
    def shown(self) -> list[int]:
        """Samples of other sizes than most: whoever looks at the data set anew should look at them."""
        return sorted(self._joining.shown)

    def take_as_joined(self) -> bool:
        """Take padding for part of samples from now on, if all batches have one size; say whether they do."""
        return self._joining.take_as_joined()

    def show(self, indices: Sequence[int]) -> None:
        """Have samples looked at, beside a few others."""
        if not set(indices) <= self._joining.shown:
            self._joining.show(indices)

    def _first(self, count: int) -> list[Any]:
        items = list(itertools.islice(iter(self._dataset), count))
        if not items:
            raise EmptyDatasetError(
                "Cannot extract features: expected an iterable that gives samples, got none. "
                "An iterator can be read once only: pass the iterable itself."
            )
        return items

    @property
    def probed(self) -> Seen:
        """What was opened by `fetch`, `some` and `check_repeats`, in this process."""
        return self._probed

    def example(self, count: int) -> Batch:
        """Read a few samples, spread over the data set; of an iterable, the first.

        Where samples differ in size, two come before them that show a model's path best.
        """
        if self._columns is not None:
            few = self.fetch(spread(len(self), count))
            return few if self._precedent is None else self._precedent.example(few)
        self.unevenness  # noqa: B018  (known before anything is joined)
        return self._joining.example(count, self._batch_size)

    def first(self, count: int) -> Iterator[Batch]:
        """Read the first samples of an iterable, in batches."""
        self.unevenness  # noqa: B018  (known before anything is joined)
        items = self._first(count)
        for start in range(0, len(items), self._batch_size):
            yield self._joining.batch(items[start : start + self._batch_size])

    def read(self, indices: np.ndarray | None = None) -> Iterator[tuple[Batch, list[Seen]]]:
        """Read all, or the samples at these indices in their order; give batches and what was opened for each."""
        if self._columns is not None:
            for part in self._batches(indices):
                together = bool((np.diff(part) == 1).all())
                chosen = slice(int(part[0]), int(part[-1]) + 1) if together else part
                yield self._of_columns(chosen), []
        elif self.is_indexed:
            batches = IndexLists(self._batches(indices))
            is_plain = self._draw is None and self._lent.get("worker_init_fn") is not None
            source = self._dataset if is_plain else Reader(self._dataset, self._draw, watches=True, places=self._places)
            yield from self._loaded(source, batches, self._workers, self._lent)
        elif isinstance(self._dataset, IterableDataset):
            yield from self._loaded(self._dataset, self._batch_size, self._workers, self._lent)
        else:  # each worker would read all of a plain iterable
            yield from self._loaded(Stream(self._dataset), self._batch_size, 0, {})

    def as_trained(self, batch_size: int) -> Iterator[Batch]:
        """Read once in a random order, as a training loop without a store does; nothing is watched."""
        if self._columns is not None:
            order = torch.randperm(len(self)).numpy()
            for at in range(0, len(order), batch_size):
                yield self._of_columns(order[at : at + batch_size])
            return
        is_plain = self.is_indexed or isinstance(self._dataset, IterableDataset)
        loader: DataLoader[Any] = DataLoader(
            self._dataset if is_plain else Stream(self._dataset),
            batch_size,
            shuffle=self.is_indexed,
            num_workers=self._workers if is_plain else 0,
            collate_fn=Collated(self._collate),
            **(self._lent if is_plain else {}),
        )
        yield from map(self._parting.part, loader)

    def _batches(self, indices: np.ndarray | None) -> list[np.ndarray]:
        """Part indices into batches: where they ascend, those of a reading of all, to round alike, unless scattered."""
        size = self._batch_size
        if indices is None:
            return [np.arange(at, min(at + size, len(self))) for at in range(0, len(self), size)]
        parts = np.split(indices, np.flatnonzero(np.diff(indices // size)) + 1)
        if len(parts) <= 1 + _MORE_BATCHES * len(indices) / size:
            return parts
        return [indices[at : at + size] for at in range(0, len(indices), size)]

    def _loaded(
        self, source: Any, batches: Any, workers: int, lent: dict[str, Any]
    ) -> Iterator[tuple[Batch, list[Seen]]]:
        self.unevenness  # noqa: B018  (known before anything is joined)
        rows = 0
        for number, (joined, seen, measured) in enumerate(
            load(source, self._collate, batches, workers, lent, self._joining.measure())
        ):
            try:
                batch = self._joining.parted(joined, measured)
            except UnforeseenSizesError:
                self._joining.show(batches[number] if self.is_indexed else range(rows + self._batch_size))
                raise
            rows += batch.rows
            yield batch, seen

    def check_repeats(self) -> dict[int, bytes]:
        """Read some samples twice and compare.

        Returns:
            The keys of the samples read, by index.

        Raises:
            RandomDatasetError: the same index gave different inputs.
        """
        if not self.is_indexed or self._columns is not None:
            return {}
        indices = spread(len(self), _PROBED)
        with RandomStatesKept():  # around both: the second reading must draw other numbers than the first
            shown = None
            while shown != self.shown:  # what a sample is was seen otherwise on the way
                shown = self.shown
                first, second = self._keys_at(indices), self._keys_at(indices)
        for index in indices:
            if first[index] != second[index]:
                raise RandomDatasetError(_changed(index, "got two different inputs", self._draw is not None))
        return first

    def check_probed(self, keys: np.ndarray, indices: Sequence[int] | np.ndarray, probed: dict[int, bytes]) -> None:
        """Compare what is read with what was read before.

        Raises:
            RandomDatasetError: a sample is another than a moment ago.
        """
        for index, key in zip(indices, keys, strict=True) if probed else ():
            if probed.get(int(index), key.tobytes()) != key.tobytes():
                raise RandomDatasetError(
                    _changed(int(index), "got another input than a moment ago", self._draw is not None)
                )

    def _keys_at(self, indices: Sequence[int]) -> dict[int, bytes]:
        return {index: self._fetched([index]).row_keys()[0].tobytes() for index in indices}


def spread(total: int, count: int) -> list[int]:
    """Choose at most `count` of `total` indices, spread evenly, the first and the last among them."""
    count = min(count, total)
    return sorted({round(at * (total - 1) / max(count - 1, 1)) for at in range(count)})


def _changed(index: int, got: str, is_drawn: bool) -> str:
    fix = (
        "Its chance comes from elsewhere than torch, numpy and random: draw it from these."
        if is_drawn
        else "Store seeded draws of it, ft.extract(..., views=8), or use the evaluation transform for the features."
    )
    return (
        f"Cannot store features of this data set: expected sample {index} to be the same each time it is read, {got}. "
        + fix
    )
