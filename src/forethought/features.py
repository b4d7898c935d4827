"""`Features`: the frontier's values for a data set, one row a sample, fed at memory speed.

Rows are read straight from the mapped segments of the store. What a batch holds is what the head was given live: the
same shapes, types and memory order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from forethought import nesting
from forethought.errors import DataError, StoreError
from forethought.forms import FrontierTensor
from forethought.halves import Head, Values
from forethought.precision import Coding, PrecisionReport, parts_of
from forethought.replay import Split
from forethought.store import DamagedSegmentError, Table


@dataclass(frozen=True)
class ExtractionReport:
    """What it took to have the features.

    Attributes:
        rows: Samples in the data set.
        rows_computed: Rows that this call computed and stored. Trial runs do not count.
        rows_reused: Rows that were there, or equal another sample of the data set.
        size_bytes: Bytes of the features, as stored.
        time_s: Seconds, from the call to its return.
        energy_j: Joules; None where they were not measured.
        energy_source: What measured them, or why nothing did.
        precision: What storing them smaller saves and costs; None if they are exact.
    """

    rows: int
    rows_computed: int
    rows_reused: int
    size_bytes: int
    time_s: float
    energy_j: float | None
    energy_source: str
    precision: PrecisionReport | None = None

    def __str__(self) -> str:
        energy = "energy not measured" if self.energy_j is None else f"{self.energy_j:,.0f} J"
        stored = f" as {self.precision.dtype}" if self.precision else ""
        return (
            f"{self.rows_computed:,} rows computed, {self.rows_reused:,} reused, "
            f"{self.size_bytes / 1e6:,.1f} MB{stored}, {self.time_s:.1f} s, {energy}"
        )


@dataclass(eq=False)
class Features(Dataset[Any]):
    """The frontier's values for a data set, in its order. A map-style torch data set of (values, targets).

    Attributes:
        table: The rows.
        places: (N, 2): segment and row of each sample.
        frontier: The tensors of a row.
        targets: Whatever the data set holds beside the inputs: a tensor (N, ...), a tuple or dictionary of these, or
            a list. None if it holds nothing.
        report: What it took to have them.
        codings: How each tensor is stored, None where exactly; empty if all are.
    """

    table: Table
    places: NDArray[np.int64]
    frontier: tuple[FrontierTensor, ...]
    targets: Any
    report: ExtractionReport
    make_split: Callable[[], Split] | None = None
    codings: tuple[Coding | None, ...] = ()
    _split: Split | None = None
    _columns: list["_Column | _Coded"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        rows = ", ".join(f"{tensor.name} {tuple(tensor.shape)}" for tensor in self.frontier)
        return f"Features({len(self):,} rows of {rows}; {self.report})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle as paths: the model stays behind, and files are opened again where they are needed."""
        return {**self.__dict__, "make_split": None, "_split": None, "_columns": None}

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
        rows = tuple(column.rows(at)[0] for column in self._open())
        row = rows[0] if len(rows) == 1 else rows
        return row if self.targets is None else (row, _pick(self.targets, at, one=True))

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
            epoch: Gives each epoch an order of its own under one seed.
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
        order = _order(len(self), shuffle, seed, epoch)
        stop = len(self) - len(self) % batch_size if drop_last else len(self)
        for start in range(0, stop, batch_size):
            end = min(start + batch_size, stop)
            at = slice(start, end) if order is None else order[start:end]
            yield self._values(at, device), _moved(_pick(self.targets, at), device)

    def numpy(self) -> Any:
        """Give the features in the data set's order: one read-only array (N, ...), or a tuple of several."""
        everything = slice(0, len(self))
        arrays = []
        for column, tensor in zip(self._open(), self.frontier, strict=True):
            if tensor.dtype == torch.bfloat16:
                raise DataError(
                    f"Cannot give '{tensor.name}' as an array: numpy has no bfloat16. "
                    "Take tensors instead: torch.cat([v.float() for v, _ in features.batches(4096)])"
                )
            array = column.rows(everything).numpy()
            array.flags.writeable = False  # it may be the mapped file itself
            arrays.append(array)
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def _values(self, at: slice | Tensor, device: str | torch.device | None) -> Values:
        rows = [column.fed(at, device or "cpu") for column in self._open()]
        values = tuple(tensor.from_rows(row) for tensor, row in zip(self.frontier, rows, strict=True))
        return values[0] if len(values) == 1 else values

    def _open(self) -> list["_Column | _Coded"]:
        if self._columns is None:
            codings = self.codings or (None,) * len(self.frontier)
            try:
                both = zip(self.frontier, codings, strict=True)
                self._columns = [self._column(str(at), tensor, coding) for at, (tensor, coding) in enumerate(both)]
            except DamagedSegmentError as err:
                raise StoreError(f"{err} Compute its rows again: ft.extract(model, dataset, store)") from err
        return self._columns

    def _column(self, name: str, tensor: FrontierTensor, coding: Coding | None) -> "_Column | _Coded":
        parts = [
            _Column(self.table, name + end, self.places, shape, dtype) for end, dtype, shape in parts_of(tensor, coding)
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
        return flat.view(self._dtype).reshape(len(rows), *self._shape)

    def rows(self, at: slice | Tensor) -> Tensor:
        """Give rows (B, *shape): a view where they lie together in one segment, a copy where they do not."""
        segment_of, row_of = self._segment_of[at], self._row_of[at]
        if len(self._segments) == 1:
            return self._from(self._segments[0], row_of, is_slice=isinstance(at, slice))
        first = int(segment_of[0])
        if bool((segment_of == first).all()):
            return self._from(self._segments[first], row_of, is_slice=isinstance(at, slice))
        out = torch.empty((len(row_of), *self._shape), dtype=self._dtype)
        for number in torch.unique(segment_of).tolist():
            chosen = (segment_of == number).nonzero().squeeze(1)
            out[chosen] = self._segments[number].index_select(0, row_of[chosen])
        return out

    def fed(self, at: slice | Tensor, device: str | torch.device) -> Tensor:
        """Give rows as a copy of one's own: in aligned memory, as a live tensor is, and nobody else's to write into."""
        rows = self.rows(at)
        return rows.to(device, non_blocking=True, copy=rows._is_view())

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


def _order(rows: int, shuffle: bool, seed: int | None, epoch: int | None) -> Tensor | None:
    if not shuffle:
        return None
    if seed is None:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
    mixed = np.random.SeedSequence([seed % 2**64, (epoch or 0) % 2**64]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(mixed))
    return torch.randperm(rows, generator=generator)


def _pick(targets: Any, at: slice | Tensor, one: bool = False) -> Any:
    """Take the targets of some samples, whatever they are."""
    if isinstance(targets, Tensor):
        return targets[at][0].clone() if one else targets[at].clone()
    if isinstance(targets, list):
        chosen = targets[at] if isinstance(at, slice) else [targets[i] for i in at.tolist()]
        return chosen[0] if one else chosen
    if isinstance(targets, tuple):
        return tuple(_pick(part, at, one) for part in targets)
    if isinstance(targets, dict):
        return {key: _pick(part, at, one) for key, part in targets.items()}
    return targets


def _moved(targets: Any, device: str | torch.device | None) -> Any:
    return targets if device is None else nesting.replace(targets, lambda t: t.to(device, non_blocking=True))


def join_targets(parts: Sequence[Any], rows: Sequence[int]) -> Any:
    """Join the targets of successive batches: a tensor or list by row, tuples and dictionaries by part.

    Args:
        parts: The targets of each batch.
        rows: How many samples each batch has.

    Raises:
        DataError: there is not one target for each sample.
    """
    joined = _joined(parts, rows)
    for column in [joined] if isinstance(joined, list) else nesting.tensors(joined):
        if len(column) != sum(rows):
            raise DataError(
                f"Cannot match targets to samples: expected {sum(rows)} of them, got {len(column)}. "
                "Let collate_fn give tensors with the batch as first axis, or a list with one entry a sample."
            )
    return joined


def _joined(parts: Sequence[Any], rows: Sequence[int]) -> Any:
    first = parts[0]
    if isinstance(first, np.ndarray):
        return _joined([torch.from_numpy(np.array(part)) for part in parts], rows)
    if isinstance(first, Tensor):
        return torch.cat([part.reshape(-1) if part.ndim == 0 else part for part in parts])
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], rows) for key in first}
    if isinstance(first, list | tuple) and all(_is_column(item, rows[0]) for item in first):
        return tuple(_joined([part[at] for part in parts], rows) for at in range(len(first)))
    if isinstance(first, list | tuple):
        return [item for part in parts for item in part]
    return None


def _is_column(item: Any, rows: int) -> bool:
    """Say whether an entry of a batch's targets is for all of its samples, rather than for one."""
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim > 0 and len(item) == rows
    if isinstance(item, dict):
        return bool(item) and all(_is_column(part, rows) for part in item.values())
    if isinstance(item, list | tuple):
        is_plain = not any(isinstance(part, Tensor | np.ndarray | dict | list | tuple) for part in item)
        return len(item) == rows if is_plain else all(_is_column(part, rows) for part in item)
    return False
