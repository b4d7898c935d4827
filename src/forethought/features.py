"""`Features`: the frontier's values for a data set, one row a sample, fed at memory speed.

Rows are read straight from the mapped segments of the store. What a batch holds is what the head was given live: the
same shapes, types and memory order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from forethought import nesting
from forethought.dataset import Samples
from forethought.errors import DataError, StoreError
from forethought.forms import FrontierTensor
from forethought.halves import Head, Values
from forethought.outcome import ExtractionReport
from forethought.padding import CARRIERS
from forethought.precision import Coding, parts_of
from forethought.replay import Split
from forethought.store import DamagedSegmentError, Table
from forethought.targets import take
from forethought.verification import Chosen, Verification, compare, elsewhere, spread

_LOOK_S = 1.0  # how often files are looked at within an epoch, beside its beginning


@dataclass(frozen=True, eq=False)
class View:
    """One draw of every sample.

    Attributes:
        places: (N, 2): segment and row of each sample.
        targets: Whatever the data set holds beside the inputs.
    """

    places: NDArray[np.int64]
    targets: Any


@dataclass(eq=False)
class Features(Dataset[Any]):
    """The frontier's values for a data set, in its order. A map-style torch data set of (values, targets).

    Attributes:
        table: The rows.
        drawn: The views: one, or K seeded draws of each sample, of which an epoch is fed one.
        frontier: The tensors of a row.
        report: What it took to have them.
        codings: How each tensor is stored, None where exactly; empty if all are.
    """

    table: Table
    drawn: tuple[View, ...]
    frontier: tuple[FrontierTensor, ...]
    report: ExtractionReport
    make_split: Callable[[], Split] | None = None
    samples: Samples | None = field(default=None, repr=False)
    codings: tuple[Coding | None, ...] = ()
    _split: Split | None = None
    _segments: dict[int, list[int]] = field(default_factory=dict, repr=False)
    _looked: float = field(default=0.0, repr=False)
    _columns: dict[int, list["_Column | _Coded"]] = field(default_factory=dict, repr=False)
    _epochs: int = 0  # fed without a number

    def __len__(self) -> int:
        return len(self.drawn[0].places)

    @property
    def views(self) -> int:
        """How many draws of each sample there are."""
        return len(self.drawn)

    @property
    def targets(self) -> Any:
        """Whatever the data set holds beside the inputs: a tensor (N, ...), a tuple or dictionary of these, or a list.

        None if it holds nothing. Of several views, the first's.
        """
        return self.drawn[0].targets

    def __repr__(self) -> str:
        rows = ", ".join(f"{tensor.name} {tuple(tensor.shape)}" for tensor in self.frontier)
        return f"Features({len(self):,} rows of {rows}; {self.report})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle as paths: the model stays behind, and files are opened again where they are needed."""
        return {**self.__dict__, "make_split": None, "samples": None, "_split": None, "_columns": {}}

    @property
    def split(self) -> Split:
        """The split that the features belong to; made when first asked for after a complete hit."""
        if self._split is None:
            if self.make_split is None:
                raise DataError(
                    "Cannot give the split: expected features from this process, got a pickled copy. "
                    "Use the split of the features that were pickled."
                )
            self._split = self.make_split()
        return self._split

    @property
    def head(self) -> Head:
        """The model's own head: maps a batch's values to the model's output."""
        return self.split.head

    def __getitem__(self, index: int) -> Any:
        """Give one sample: its row (a tensor, or a tuple of several) and its targets; the row alone if it has none."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Cannot give row {index}: expected one of {len(self)}.")
        at = torch.tensor([index % len(self)])
        self._look([int(self.drawn[0].places[index, 0])])
        rows = tuple(column.rows(at)[0] for column in self._open(0))
        row = rows[0] if len(rows) == 1 else rows
        return row if self.targets is None else (row, take(self.targets, at, one=True))

    def batches(
        self,
        batch_size: int,
        shuffle: bool = False,
        seed: int | None = None,
        epoch: int | None = None,
        device: str | torch.device | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[Values, Any]]:
        """Feed every sample once.

        Args:
            batch_size: Samples a batch; the last may hold fewer.
            shuffle: In a new order each time, drawn from torch's generator, as DataLoader does.
            seed: Pins the order.
            epoch: Gives each epoch an order of its own under one seed, and of several views number `epoch` modulo
                their number. Without it, each call feeds the next view.
            device: Where to put values and targets.
            drop_last: Leave out a last batch that is not full.

        Returns:
            An iterator of (values, targets): what the head is given, one tensor (B, ...) or a tuple of several, and
            the targets of these samples. Both are copies: writing into them changes nothing stored.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"Cannot feed batches of {batch_size}: expected a whole number above 0. batches(4096)")
        return self._fed(batch_size, shuffle, seed, epoch, device, drop_last)

    def _fed(
        self,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        epoch: int | None,
        device: str | torch.device | None,
        drop_last: bool,
    ) -> Iterator[tuple[Values, Any]]:
        if epoch is None:
            self._epochs += 1
        view = (self._epochs - 1 if epoch is None else epoch) % self.views
        self._look(self._numbers(view))
        order = _order(len(self), shuffle, seed, epoch)
        stop = len(self) - len(self) % batch_size if drop_last else len(self)
        for start in range(0, stop, batch_size):
            end = min(start + batch_size, stop)
            at = slice(start, end) if order is None else order[start:end]
            if time.monotonic() > self._looked + _LOOK_S:
                self._look(self._numbers(view))
            yield self._values(view, at, device), _moved(take(self.drawn[view].targets, at), device)

    def numpy(self, view: int = 0) -> Any:
        """Give the features in the data set's order: one read-only array (N, ...), or a tuple of several.

        Args:
            view: Which draw of the samples.
        """
        if not 0 <= view < self.views:
            raise DataError(f"Cannot give view {view}: expected one of {self.views}. features.numpy(view=0)")
        self._look(self._numbers(view))
        everything = slice(0, len(self))
        arrays = []
        for column, tensor in zip(self._open(view), self.frontier, strict=True):
            if not _is_in_numpy(tensor.dtype):
                lacking = str(tensor.dtype).removeprefix("torch.")
                raise DataError(
                    f"Cannot give '{tensor.name}' as an array: numpy has no {lacking}. "
                    "Take tensors instead: torch.cat([v.float() for v, _ in features.batches(4096)])"
                )
            array = column.rows(everything).numpy()
            array.flags.writeable = False  # it may be the mapped file itself
            arrays.append(array)
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def verify(self, n: int = 64, seed: int = 0) -> Verification:
        """Run the model on some samples once more, and compare with the stored rows.

        The samples are read again, spread over the data set. Rows lie within what the model differs from itself when
        the same samples come in other batches; they are equal to the last bit if they come as they came when they
        were computed: all of them (n at least len), with the same batch size, none of them stored before.

        Args:
            n: How many samples, at most.
            seed: Of the choice.

        Returns:
            What differs, beside the model's own noise. `str()` says it, `.is_right` judges it.

        Raises:
            DataError: the data set has changed since, or these features are a pickled copy.
            SplitError: the model has changed since.
            StoreError: the rows are damaged or gone.

        Example:
            >>> import tempfile
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
            >>> _ = model[0].requires_grad_(False)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     print(ft.extract(model, torch.randn(50, 4), folder).verify())
            right: 50 of 50 rows equal the model's to the last bit
        """
        if self.samples is None:
            raise DataError(
                "Cannot verify features: expected features from this process, got a pickled copy, which has no data "
                "set. Verify those that were pickled, or extract again: ft.extract(model, dataset, store).verify()"
            )
        self._look(self._numbers(0))
        numbers = spread(len(self), n, seed)
        columns = self._open(0)
        chosen = Chosen(
            numbers,
            self._keys(numbers),
            lambda positions: [column.rows(torch.tensor([numbers[at] for at in positions])) for column in columns],
        )
        split = self.split
        return compare(split, self.samples, chosen, elsewhere(self.table.provenance, split), self.codings)

    def _numbers(self, view: int) -> list[int]:
        """The segments that a view is in."""
        if view not in self._segments:
            self._segments[view] = np.flatnonzero(np.bincount(self.drawn[view].places[:, 0])).tolist()
        return self._segments[view]

    def _look(self, segments: Sequence[int]) -> None:
        """Have the bytes of segments checked once more whose files are not what they were when they were checked."""
        self._looked = time.monotonic()
        if self.table.recheck(segments):
            self._columns.clear()

    def _keys(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Read which samples the stored rows are said to be of."""
        places = self.drawn[0].places[numbers]
        keys = np.empty((len(numbers), 16), np.uint8)
        for segment in np.unique(places[:, 0]):
            is_in = places[:, 0] == segment
            keys[is_in] = self.table.segment(int(segment)).keys[places[is_in, 1]]
        return keys

    def _values(self, view: int, at: slice | Tensor, device: str | torch.device | None) -> Values:
        rows = [column.fed(at, device or "cpu") for column in self._open(view)]
        values = tuple(tensor.from_rows(row) for tensor, row in zip(self.frontier, rows, strict=True))
        return values[0] if len(values) == 1 else values

    def _open(self, view: int) -> list["_Column | _Coded"]:
        if view not in self._columns:
            places = self.drawn[view].places
            codings = self.codings or (None,) * len(self.frontier)
            try:
                self._columns[view] = [
                    self._column(str(at), places, tensor, coding)
                    for at, (tensor, coding) in enumerate(zip(self.frontier, codings, strict=True))
                ]
            except DamagedSegmentError as err:
                raise StoreError(f"{err} Compute its rows again: ft.extract(model, dataset, store)") from err
        return self._columns[view]

    def _column(
        self, name: str, places: NDArray[np.int64], tensor: FrontierTensor, coding: Coding | None
    ) -> "_Column | _Coded":
        parts = [
            _Column(self.table, name + end, places, shape, dtype) for end, dtype, shape in parts_of(tensor, coding)
        ]
        return parts[0] if coding is None else _Coded(coding, parts)


class _Column:
    """One column of the rows, over the mapped segments. Holds no copy of them."""

    def __init__(
        self, table: Table, name: str, places: NDArray[np.int64], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        numbers, segment_of = np.unique(places[:, 0], return_inverse=True)
        self._segments = [self._tensor(table.segment(int(number)).column(name)) for number in numbers]
        self._segment_of = torch.from_numpy(segment_of.reshape(-1).astype(np.int64))
        self._row_of = torch.from_numpy(np.ascontiguousarray(places[:, 1]))

    def _tensor(self, rows: NDArray[np.uint8]) -> Tensor:
        flat = torch.from_numpy(rows.reshape(-1))
        return flat.view(CARRIERS[self._dtype.itemsize]).reshape(len(rows), *self._shape)

    def rows(self, at: slice | Tensor) -> Tensor:
        """Give rows (B, *shape): a view where they lie together in one segment, a copy where they do not."""
        return self._carried(at).view(self._dtype)

    def _carried(self, at: slice | Tensor) -> Tensor:
        segment_of, row_of = self._segment_of[at], self._row_of[at]
        if len(self._segments) == 1:
            return self._from(self._segments[0], row_of, is_slice=isinstance(at, slice))
        first = int(segment_of[0])
        if bool((segment_of == first).all()):
            return self._from(self._segments[first], row_of, is_slice=isinstance(at, slice))
        out = torch.empty((len(row_of), *self._shape), dtype=CARRIERS[self._dtype.itemsize])
        for number in torch.unique(segment_of).tolist():
            chosen = (segment_of == number).nonzero().squeeze(1)
            out[chosen] = self._segments[number].index_select(0, row_of[chosen])
        return out

    def fed(self, at: slice | Tensor, device: str | torch.device) -> Tensor:
        """Give rows as a copy of one's own: in aligned memory, as a live tensor is, and nobody else's to write into."""
        rows = self._carried(at)
        return rows.to(device, non_blocking=True, copy=rows._is_view()).view(self._dtype)

    def _from(self, segment: Tensor, row_of: Tensor, is_slice: bool) -> Tensor:
        first = int(row_of[0]) if len(row_of) else 0
        if is_slice and bool((row_of == torch.arange(first, first + len(row_of))).all()):
            return segment[first : first + len(row_of)]
        return segment.index_select(0, row_of)


class _Coded:
    """One tensor of the rows that is stored smaller than it is fed."""

    def __init__(self, coding: Coding, parts: list[_Column]) -> None:
        self._coding = coding
        self._parts = parts

    def rows(self, at: slice | Tensor) -> Tensor:
        """Give rows (B, *shape), as a copy."""
        return self.fed(at, "cpu")

    def fed(self, at: slice | Tensor, device: str | torch.device) -> Tensor:
        """Give rows (B, *shape) as a copy on a device: they travel there as they are stored."""
        return self._coding.decode([part.rows(at) for part in self._parts], device)


def _is_in_numpy(dtype: torch.dtype) -> bool:
    return dtype != torch.bfloat16 and not (dtype.is_floating_point and dtype.itemsize == 1)


def _order(rows: int, shuffle: bool, seed: int | None, epoch: int | None) -> Tensor | None:
    if not shuffle:
        return None
    if seed is None:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
    mixed = np.random.SeedSequence([seed % 2**64, (epoch or 0) % 2**64]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(mixed))
    return torch.randperm(rows, generator=generator)


def _moved(targets: Any, device: str | torch.device | None) -> Any:
    return targets if device is None else nesting.replace(targets, lambda t: t.to(device, non_blocking=True))
