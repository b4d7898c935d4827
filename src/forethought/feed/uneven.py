"""Rows that differ in size, where they lie: the entries of all rows of a segment, one row after the other."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.extracting.precision import Coding
from forethought.feed.columns import Column, Empty, Mapped, Rows, Slot, plain_memory
from forethought.shapes.forms import FrontierTensor
from forethought.shapes.padding import CARRIERS, OWN, Uneven, Widths, places_of
from forethought.store import Ragged, Table


class Pieces:
    """One column of such rows, over the mapped segments of a table. Holds no copy of it.

    Args:
        table: The table.
        slot: Which column of it.
        places: (N, 2): segment and row of each sample.

    Raises:
        DamagedSegmentError: bytes are not what was written.
    """

    def __init__(self, table: Table, slot: Slot, places: NDArray[np.int64]) -> None:
        self.slot = slot
        numbers, segment_of = np.unique(places[:, 0], return_inverse=True)
        self._segment_of = torch.from_numpy(segment_of.reshape(-1).astype(np.int64))
        row_of = torch.from_numpy(np.ascontiguousarray(places[:, 1]))
        columns: list[Ragged] = [table.segment(int(number)).column(slot.name) for number in numbers]
        self._carrier = CARRIERS[slot.dtype.itemsize]
        self._segments = [self._entries(column) for column in columns]
        dimensions = columns[0].sizes.shape[1] - len(slot.shape) if columns else 1
        self.sizes = torch.empty((len(places), dimensions), dtype=torch.long)
        self._starts = torch.empty(len(places), dtype=torch.long)
        for number, column in enumerate(columns):
            chosen = self._segment_of == number
            sizes = torch.from_numpy(column.sizes[:, :dimensions].copy())
            counts = sizes.prod(1)
            self.sizes[chosen] = sizes[row_of[chosen]]
            self._starts[chosen] = (counts.cumsum(0) - counts)[row_of[chosen]]
        self.counts = self.sizes.prod(1)

    def _entries(self, column: Ragged) -> Tensor:
        flat = torch.from_numpy(column.values).view(self._carrier)
        return flat.reshape(-1, *self.slot.shape) if flat.numel() else flat.new_empty((0, *self.slot.shape))

    def view(self, at: slice) -> Tensor | None:
        """Give the entries of rows where they are; None where they do not lie together."""
        segment_of, starts, counts = self._segment_of[at], self._starts[at], self.counts[at]
        if not len(starts) or bool((segment_of != segment_of[0]).any()):
            return None
        stops = starts + counts
        if bool((starts[1:] != stops[:-1]).any()):
            return None
        return self._segments[int(segment_of[0])][int(starts[0]) : int(stops[-1])].view(self.slot.dtype)

    def gather(self, at: Rows, empty: Empty) -> Tensor:
        """Copy the entries of rows, in their order, into memory that `empty` gives: (M, *shape)."""
        chosen = at if isinstance(at, slice) else torch.from_numpy(at)
        segment_of, starts, counts = self._segment_of[chosen], self._starts[chosen], self.counts[chosen]
        out = empty((int(counts.sum()), *self.slot.shape), self.slot.dtype)
        carried = out.view(self._carrier)
        numbers = torch.unique(segment_of).tolist()
        if len(numbers) == 1:
            torch.index_select(self._segments[numbers[0]], 0, places_of(starts, counts), out=carried)
            return out
        where = counts.cumsum(0) - counts
        for number in numbers:
            mine = segment_of == number
            carried[places_of(where[mine], counts[mine])] = self._segments[number].index_select(
                0, places_of(starts[mine], counts[mine])
            )
        return out


class Alike:
    """Rows of one size that lie among others of other sizes: does what `Mapped` does.

    Args:
        table: The table.
        slot: Which column of it, and the axes along which others differ.
        places: (N, 2): segment and row of each sample.

    Raises:
        DamagedSegmentError: bytes are not what was written.
    """

    def __init__(self, table: Table, slot: Slot, places: NDArray[np.int64]) -> None:
        self.slot = slot
        front = range(1, len(slot.among) + 1)
        rest = tuple(size for axis, size in enumerate(slot.shape, 1) if axis not in slot.among)
        self._sizes = [slot.shape[axis - 1] for axis in slot.among]
        self._is_in_order = tuple(front) == slot.among
        self._pieces = Pieces(table, Slot(slot.name, slot.dtype, rest), places)

    def view(self, at: slice) -> NDArray[np.uint8] | None:
        """Give rows where they are."""
        there = self._pieces.view(at) if self._is_in_order else None
        return None if there is None else self._bytes(there)

    def gather(self, at: Rows, out: NDArray[np.uint8]) -> None:
        """Copy rows."""
        out[:] = self._bytes(self._pieces.gather(at, plain_memory))

    def _bytes(self, entries: Tensor) -> NDArray[np.uint8]:
        count = len(entries) // math.prod(self._sizes)
        rows = entries.reshape(count, *self._sizes, *entries.shape[1:])
        rows = rows.movedim(tuple(range(1, len(self._sizes) + 1)), self.slot.among).contiguous()
        flat: NDArray[np.uint8] = rows.view(-1).view(torch.uint8).numpy().reshape(count, self.slot.row_bytes)
        return flat


class UnevenColumn:
    """One tensor of the frontier whose rows differ in size: does what `Column` does.

    Args:
        pieces: What is stored of it.
        coding: How; None where it is stored exactly, in one piece.
    """

    def __init__(self, pieces: Sequence[Pieces], coding: Coding | None) -> None:
        self.parts = tuple(pieces)
        self.coding = coding

    def host(self, at: Rows, empty: Empty) -> list[Tensor]:
        """Gather the entries of each piece, and the sizes of the rows, which stay on the host."""
        sizes = self.parts[0].sizes[at if isinstance(at, slice) else torch.from_numpy(at)]
        return [*(part.gather(at, empty) for part in self.parts), sizes]

    def decode(self, parts: Sequence[Tensor], device: str | torch.device) -> Uneven:
        """Turn gathered entries into rows on a device. They travel there as they are stored."""
        *entries, sizes = parts
        if self.coding is None:
            return Uneven(entries[0].to(device, non_blocking=True), sizes)
        return Uneven(self.coding.decode(entries, device), sizes)

    def brought(self, at: Rows, device: str | torch.device = "cpu") -> Uneven:
        """Give rows as a copy, without padding."""
        return self.decode(self.host(at, plain_memory), device)

    def rows(self, at: Rows) -> Uneven:
        """Give rows: in the mapped file itself where they lie together, else as a copy."""
        if self.coding is None and isinstance(at, slice):
            there = self.parts[0].view(at)
            if there is not None:
                return Uneven(there, self.parts[0].sizes[at])
        return self.brought(at)


def count_entries(table: Table, frontier: Sequence[FrontierTensor], places: NDArray[np.int64]) -> list[int]:
    """Count the rows of each tensor, or the entries along the axes where they differ in size."""
    counts = []
    for at, tensor in enumerate(frontier):
        rest = tuple(size for size in tensor.stored_shape if size is not None)
        slot = Slot(str(at), torch.uint8, rest)
        counts.append(len(places) if tensor.layout is None else int(Pieces(table, slot, places).counts.sum()))
    return counts


def evened(table: Table, frontier: tuple[FrontierTensor, ...], places: NDArray[np.int64]) -> tuple[FrontierTensor, ...]:
    """Give the tensors of rows that have one size each, although others of their table differ; as they are if not."""
    found = []
    for at, tensor in enumerate(frontier):
        if tensor.layout is None:
            found.append(tensor)
            continue
        rest = tuple(size for size in tensor.stored_shape if size is not None)
        sizes = Pieces(table, Slot(str(at), torch.uint8, rest), places).sizes
        first = sizes[0].tolist()
        if bool((sizes != sizes[0]).any()) or 0 in first or tensor.evened(first).fold != _fold_of(tensor, first):
            return frontier
        found.append(tensor.evened(first))
    return tuple(found)


def _fold_of(tensor: FrontierTensor, sizes: Sequence[int]) -> int:
    """Count the entries of a sample along the axis of samples, which must not vanish by being one."""
    assert tensor.layout is not None
    own = dict(zip(tensor.layout.axes, sizes, strict=True))
    return max(2, own.get(1, tensor.fold)) if tensor.fold > 1 else 1


class InputSizes:
    """The sizes that the model's inputs would have in a batch, where samples differ in size.

    Args:
        table: The rows; their samples' own sizes lie beside them.
        places: (N, 2): segment and row of each sample.
        widths: What batches are padded to.

    Raises:
        DamagedSegmentError: bytes are not what was written.
    """

    def __init__(self, table: Table, places: NDArray[np.int64], widths: Widths) -> None:
        own = next((column for column in table.columns if column.name == OWN), None)
        shape = () if own is None else tuple(size or 0 for size in own.shape)
        self._widths = widths
        self._own = None if own is None else Column([Mapped(table, Slot(OWN, torch.int64, shape), places)], None)

    def of(self, at: Rows) -> tuple[int, ...] | None:
        """Give the sizes of the inputs in a batch of these samples; None if samples do not differ."""
        if self._own is None:
            return None
        largest = self._own.brought(at).amax(0).tolist()
        return tuple(self._widths.at(measure, size) for measure, size in enumerate(largest))
