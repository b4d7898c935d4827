"""Rows of the frontier's tensors where they lie: in the mapped segments of a table, gathered batch by batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.extracting.precision import Coding, parts_of
from forethought.feed.gathering import gather
from forethought.shapes.forms import FrontierTensor
from forethought.shapes.padding import Uneven
from forethought.store import Table

Rows = slice | NDArray[np.int64]
"""Which rows, by their position among the samples."""
Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Gives memory on the host to gather rows into."""
Brought = tuple[Tensor | Uneven, ...]
"""Rows of each tensor of the frontier: (B, *shape), or without padding where they differ in size."""


@dataclass(frozen=True)
class Slot:
    """What one column of the store holds of a tensor.

    Attributes:
        name: Of the column.
        dtype: Of the entries.
        shape: Of one row; where rows differ in size, of one entry along the axes where they do.
        typical: Where rows differ in size, how many such entries a large one has.
        among: Where rows lie among others that differ in size, and do not: the axes along which those do.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    typical: int | None = None
    among: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of a large one, where rows differ in size."""
        return math.prod(self.shape) * self.dtype.itemsize * (1 if self.typical is None else self.typical)


Layout = Sequence[tuple[Coding | None, Sequence[Slot]]]
"""Of each tensor of the frontier: how it is stored, and in which columns."""


def layout_of(frontier: Sequence[FrontierTensor], codings: Sequence[Coding | None]) -> Layout:
    """Say what the store holds of each tensor."""
    return [
        (coding, [_slot(tensor, f"{at}{end}", dtype, shape) for end, dtype, shape in parts_of(tensor, coding)])
        for at, (tensor, coding) in enumerate(zip(frontier, codings, strict=True))
    ]


def _slot(tensor: FrontierTensor, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Slot:
    axes = () if tensor.layout is None else tensor.layout.axes
    typical = math.prod(tensor.shape[axis - 1] for axis in axes) if axes else None
    return Slot(name, dtype, tuple(size for size in shape if size is not None), typical, tensor.among)


class Part(Protocol):
    """The rows of one slot, one a sample."""

    @property
    def slot(self) -> Slot:
        """What a row is."""
        ...

    def gather(self, at: Rows, out: NDArray[np.uint8]) -> None:
        """Copy rows into `out`, (B, row_bytes)."""
        ...

    def view(self, at: slice) -> NDArray[np.uint8] | None:
        """Give rows (B, row_bytes) where they are, read-only by agreement; None where they do not lie together."""
        ...


class Brings(Protocol):
    """One tensor of the frontier: gathered on the host, decoded where the head is."""

    def host(self, at: Rows, empty: Empty) -> list[Tensor]:
        """Gather what is stored of rows into memory that `empty` gives."""
        ...

    def decode(self, parts: Sequence[Tensor], device: str | torch.device) -> Tensor | Uneven:
        """Turn it into rows on a device: (B, *shape), or without padding where they differ in size."""
        ...

    def brought(self, at: Rows, device: str | torch.device = "cpu") -> Tensor | Uneven:
        """Give rows as a copy: in aligned memory, as live ones are, and nobody else's to write into."""
        ...

    def rows(self, at: Rows) -> Tensor | Uneven:
        """Give rows: in the mapped file itself where they lie together, else as a copy."""
        ...


class Column:
    """One tensor of the frontier: what is stored of it, and how it becomes what the head is given.

    Args:
        parts: What is stored.
        coding: How; None where it is stored exactly, in one part.
    """

    def __init__(self, parts: Sequence[Part], coding: Coding | None) -> None:
        self.parts = tuple(parts)
        self.coding = coding

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, as stored."""
        return sum(part.slot.row_bytes for part in self.parts)

    def host(self, at: Rows, empty: Empty) -> list[Tensor]:
        """Gather each part's rows (B, *shape) into memory that `empty` gives."""
        gathered = []
        for part in self.parts:
            out = empty((_count(at), *part.slot.shape), part.slot.dtype)
            part.gather(at, out.reshape(-1).view(torch.uint8).numpy().reshape(len(out), part.slot.row_bytes))
            gathered.append(out)
        return gathered

    def decode(self, parts: Sequence[Tensor], device: str | torch.device) -> Tensor:
        """Turn gathered parts into rows (B, *shape) on a device. They travel there as they are stored."""
        return parts[0].to(device, non_blocking=True) if self.coding is None else self.coding.decode(parts, device)

    def brought(self, at: Rows, device: str | torch.device = "cpu") -> Tensor:
        """Give rows (B, *shape) as a copy: in aligned memory, as live ones are, and nobody else's to write into."""
        return self.decode(self.host(at, plain_memory), device)

    def over(self, parts: Sequence[Part]) -> "Column":
        """Give the same column with its parts elsewhere."""
        return Column(parts, self.coding)

    def rows(self, at: Rows) -> Tensor:
        """Give rows (B, *shape): in the mapped file itself where they lie together, else as a copy."""
        if self.coding is None and isinstance(at, slice):
            there, slot = self.parts[0].view(at), self.parts[0].slot
            if there is not None:
                return torch.from_numpy(there.reshape(-1)).view(slot.dtype).reshape(len(there), *slot.shape)
        return self.brought(at)


class Mapped:
    """A part over the mapped segments of a table. Holds no copy of it.

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
        self._segments = [table.segment(int(number)).column(slot.name) for number in numbers]
        self._segment_of = segment_of.reshape(-1).astype(np.min_scalar_type(len(numbers)))
        self._row_of = np.ascontiguousarray(places[:, 1])

    def view(self, at: slice) -> NDArray[np.uint8] | None:
        """Give rows where they are."""
        segment_of, row_of = self._segment_of[at], self._row_of[at]
        if not len(row_of) or not _is_one(segment_of) or not _is_run(row_of):
            return None
        rows: NDArray[np.uint8] = self._segments[segment_of[0]][row_of[0] : row_of[0] + len(row_of)]
        return rows

    def gather(self, at: Rows, out: NDArray[np.uint8]) -> None:
        """Copy rows."""
        there = self.view(at) if isinstance(at, slice) else None
        if there is not None:
            out[:] = there
        else:
            gather(self._segments, self._segment_of[at], self._row_of[at], out)


def plain_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Give memory that only this batch has."""
    return torch.empty(shape, dtype=dtype)


def _count(at: Rows) -> int:
    return len(range(at.start or 0, at.stop)) if isinstance(at, slice) else len(at)


def _is_one(segment_of: NDArray[np.unsignedinteger]) -> bool:
    return bool((segment_of == segment_of[0]).all())


def _is_run(row_of: NDArray[np.int64]) -> bool:
    return bool((row_of == np.arange(row_of[0], row_of[0] + len(row_of))).all())
