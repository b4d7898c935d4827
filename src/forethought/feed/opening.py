"""Open the rows of a table for feeding, wherever they are to be kept."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.errors import DataError
from forethought.extracting.precision import Coding
from forethought.feed.columns import Brings, Brought, Column, Layout, Slot, layout_of
from forethought.feed.columns import Mapped as MappedPart
from forethought.feed.couriers import Courier
from forethought.feed.memory import available_bytes, free_on
from forethought.feed.orders import Order
from forethought.feed.sources import Cuts, OnDevice, Source, hold
from forethought.feed.streams import Streamed
from forethought.feed.tiers import Facts, choose
from forethought.feed.uneven import Alike, Pieces, UnevenColumn
from forethought.shapes.forms import FrontierTensor
from forethought.store import Table

_LOOK_S = 1.0  # how often files are looked at within an epoch, beside its beginning
_FETCHERS = 8  # files that are fetched from a remote store at once


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one view of a data set, unopened.

    Attributes:
        table: Whose rows.
        places: (N, 2): segment and row of each sample.
        frontier: The tensors of a row.
        codings: How each is stored, None where exactly.
    """

    table: Table
    places: NDArray[np.int64]
    frontier: Sequence[FrontierTensor]
    codings: Sequence[Coding | None]

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def layout(self) -> Layout:
        """What the store holds of each tensor."""
        return layout_of(self.frontier, self.codings)

    @property
    def are_uneven(self) -> bool:
        """Whether rows of some tensor differ in size."""
        return any(slot.typical is not None for _, slots in self.layout for slot in slots)

    @property
    def lie_among_others(self) -> bool:
        """Whether rows of one size lie among others that differ: no row's place in its file follows from its number."""
        return any(slot.among for _, slots in self.layout for slot in slots)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row, as stored."""
        return sum(slot.row_bytes for _, slots in self.layout for slot in slots)

    @cached_property
    def segments(self) -> NDArray[np.int64]:
        """The files that hold them, by number."""
        return np.unique(self.places[:, 0])

    @cached_property
    def by_place(self) -> NDArray[np.integer]:
        """All samples, sorted by where their rows lie."""
        narrow = np.int32 if len(self) < 2**31 else np.int64
        return np.lexsort((self.places[:, 1], self.places[:, 0])).astype(narrow)

    def room(self, memory: int | None) -> int | None:
        """Say how much memory rows may fill: what was said, else half of what is there; None if that is not known."""
        if memory is not None:
            return memory
        available = available_bytes()
        return None if available is None else available // 2

    def facts(self, device: torch.device, memory: int | None, shuffled: int) -> Facts:
        """Say what the choice of a tier depends on."""
        return Facts(
            size_bytes=len(self) * self.row_bytes,
            fed_bytes=len(self) * sum(tensor.size_bytes for tensor in self.frontier),
            files=len(self.segments),
            available=self.room(memory),
            device_free=None if memory is not None else free_on(device),
            is_on_host=device.type == "cpu",
            shuffled=shuffled,
        )

    @cached_property
    def mapped(self) -> "Mapped":
        """The rows where they lie."""
        return Mapped(self)

    def tier(
        self, wanted: str | None, device: torch.device, memory: int | None, *, shuffled: int, is_exact: bool
    ) -> str:
        """Choose where to keep them. What is shuffled exactly is mapped rather than streamed.

        Raises:
            DataError: there is no such tier.
        """
        if self.are_uneven:
            if wanted not in (None, "mapped"):
                raise DataError(
                    f"Cannot feed rows that differ in size from tier {wanted!r}: expected 'mapped', where they lie as "
                    "they are stored. batches(..., tier='mapped')"
                )
            return "mapped"
        if self.lie_among_others and wanted == "streamed":
            raise DataError(
                "Cannot stream rows that lie among others that differ in size: expected 'ram', 'device' or 'mapped', "
                "got tier 'streamed'. batches(..., tier='mapped')"
            )
        chosen = choose(wanted, self.facts(device, memory, shuffled))
        return "mapped" if (is_exact or self.lie_among_others) and chosen == "streamed" else chosen

    def open(self, tier: str, device: torch.device) -> Source:
        """Keep them in a tier.

        Raises:
            DamagedSegmentError: bytes are not what was written.
        """
        if tier == "streamed":
            return Streamed(self.table, self.places, self.layout)
        if tier == "mapped":
            return self.mapped
        columns = [column for column in self.mapped.columns() if isinstance(column, Column)]
        return OnDevice(columns, len(self), device) if tier == "device" else hold(columns, len(self))


class Mapped:
    """Rows in mapped files. What is written into a file later shows in the mapping: files are looked at again."""

    tier = "mapped"

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._columns: Sequence[Brings] | None = None
        self._looked = 0.0

    def columns(self, at: NDArray[np.int64] | None = None) -> Sequence[Brings]:
        """Give the tensors, their bytes checked in files that have not changed since.

        Args:
            at: Which samples are wanted: of the files that hold these, none has changed. None for all, now.

        Raises:
            DamagedSegmentError: bytes are not what was written.
        """
        rows = self._rows
        if self._columns is None:
            self._fetch()
        files = rows.segments if at is None else np.unique(rows.places[at, 0])
        if at is None:
            self._looked = time.monotonic()
        if rows.table.recheck(files.tolist()):
            self._columns = None  # also if opening them fails now
        self._columns = self._columns or open_columns(rows.table, rows.places, rows.layout)
        return self._columns

    def serve(self, order: Order, cuts: Cuts, courier: Courier) -> Iterator[Brought]:
        """Gather each batch."""
        self.columns()
        return courier.carry(self._lately, (order.part(start, stop) for start, stop in cuts))

    def _lately(self) -> Sequence[Brings]:
        if self._columns is None or time.monotonic() > self._looked + _LOOK_S:
            return self.columns()
        return self._columns

    def _fetch(self) -> None:
        """Have the files of a remote store on this machine: several at a time, before the first is needed."""
        table, segments = self._rows.table, self._rows.segments
        if table.is_remote and len(segments) > 1:
            with ThreadPoolExecutor(_FETCHERS) as fetchers:
                list(fetchers.map(lambda number: table.segment(int(number)).header, segments))


def open_columns(table: Table, places: NDArray[np.int64], layout: Layout) -> list[Brings]:
    """Map the rows at places (N, 2), segment and row, of each tensor.

    Raises:
        DamagedSegmentError: bytes are not what was written.
    """
    return [_opened(table, places, coding, slots) for coding, slots in layout]


def _opened(table: Table, places: NDArray[np.int64], coding: Coding | None, slots: Sequence[Slot]) -> Brings:
    if slots[0].typical is not None:
        return UnevenColumn([Pieces(table, slot, places) for slot in slots], coding)
    return Column([(Alike if slot.among else MappedPart)(table, slot, places) for slot in slots], coding)
