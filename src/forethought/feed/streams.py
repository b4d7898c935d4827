"""Rows read from the store's files in a bounded amount of memory: a window of them at a time, the next one ahead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from forethought.feed.ahead import Ahead
from forethought.feed.columns import Brought, Column, Layout, Rows, Slot
from forethought.feed.couriers import Courier
from forethought.feed.gathering import gather
from forethought.feed.orders import Order
from forethought.feed.sources import Cuts
from forethought.store import Table

WINDOWS = 4  # that the memory is divided into: one is used, one waits, one is read, and batches are made
BLOCK_BYTES = 2**18  # measured: four threads that read blocks of this size reach the rate of reading in sequence
_READ_BYTES = 2**20  # at most, at a time, and no more than a share of a window: readers have memory of their own
_READ_SHARE = 32
_GAP_BYTES = 2**16  # that are read through rather than jumped over
_READERS = 4
_ONE = np.zeros(1, np.uint8)


class Streamed:
    """Rows that are read as they are needed.

    Args:
        table: Whose rows.
        places: (N, 2): segment and row of each sample.
        layout: What the store holds of each tensor.
    """

    tier = "streamed"

    def __init__(self, table: Table, places: NDArray[np.int64], layout: Layout) -> None:
        self._table, self._places, self._layout = table, places, layout
        self._slots = [slot for _, slots in layout for slot in slots]

    def serve(self, order: Order, cuts: Cuts, courier: Courier) -> Iterator[Brought]:
        """Read window after window, and make batches of them."""
        loads = Ahead(self._read(order, cuts), depth=1)
        current = _Current(iter(loads))
        parts = iter([_FromLoads(slot, current, number) for number, slot in enumerate(self._slots)])
        columns = [Column([next(parts) for _ in slots], coding) for coding, slots in self._layout]
        try:
            yield from courier.carry(lambda: columns, _in_turn(cuts))
        finally:
            loads.close()

    def _read(self, order: Order, cuts: Cuts) -> "Iterator[_Load]":
        """Read what lies in each window, of the batches that are wanted."""
        with ThreadPoolExecutor(_READERS) as readers:
            for wanted in _windows(order, cuts):
                places = self._places[wanted]
                by_place = np.lexsort((places[:, 1], places[:, 0]))
                sorted_places = places[by_place]
                at = np.empty(len(wanted), np.int64)
                at[by_place] = np.arange(len(wanted))
                yield _Load([self._fetch(slot, sorted_places, order.window_rows, readers) for slot in self._slots], at)
                del places, by_place, sorted_places, at

    def _fetch(
        self, slot: Slot, places: NDArray[np.int64], window_rows: int, readers: ThreadPoolExecutor
    ) -> NDArray[np.uint8]:
        """Read the rows of one column, which come in the order of their places."""
        size = slot.row_bytes
        rows = np.empty((len(places), size), np.uint8)
        # First one look at each segment, so that no two threads check the same one.
        list(readers.map(lambda number: self._touch(slot, int(number)), np.unique(places[:, 0])))
        runs = _runs(places, max(1, min(_READ_BYTES // max(size, 1), window_rows // _READ_SHARE)), max(size, 1))
        list(readers.map(lambda run: self._read_run(slot, places, rows, *run), runs))
        return rows

    def _touch(self, slot: Slot, segment: int) -> None:
        self._table.segment(segment).read(slot.name, 0, np.empty((0, slot.row_bytes), np.uint8))

    def _read_run(self, slot: Slot, places: NDArray[np.int64], rows: NDArray[np.uint8], start: int, stop: int) -> None:
        segment, row_of = self._table.segment(int(places[start, 0])), places[start:stop, 1]
        first, last = int(row_of[0]), int(row_of[-1])
        if last - first + 1 == stop - start and (np.diff(row_of) == 1).all():
            segment.read(slot.name, first, rows[start:stop])
        else:
            through = np.empty((last - first + 1, rows.shape[1]), np.uint8)
            segment.read(slot.name, first, through)
            through.take(row_of - first, axis=0, out=rows[start:stop], mode="clip")


@dataclass(frozen=True)
class _Load:
    """What was read of one window.

    Attributes:
        parts: The rows of each part, in the order of their places.
        at: Where among them each row of the window is, in the order in which they are fed.
    """

    parts: list[NDArray[np.uint8]]
    at: NDArray[np.int64]


class _Current:
    """The loads that the present batch is made of."""

    def __init__(self, loads: Iterator[_Load]) -> None:
        self._loads = loads
        self._open: list[tuple[int, _Load]] = []  # each with the place of its first row among all that are fed
        self._end = 0

    def spans(self, start: int, stop: int) -> Iterator[tuple[_Load, int, int]]:
        """Give the loads that hold these rows, with the places in them. What lies before is let go."""
        self._open = [(first, load) for first, load in self._open if first + len(load.at) > start]
        while self._end < stop:
            load = next(self._loads)
            self._open.append((self._end, load))
            self._end += len(load.at)
        for first, load in self._open:
            if first < stop:
                yield load, max(start - first, 0), min(stop - first, len(load.at))


class _FromLoads:
    """A part whose rows are taken from what was read."""

    def __init__(self, slot: Slot, current: _Current, number: int) -> None:
        self.slot = slot
        self._current, self._number = current, number

    def view(self, at: slice) -> NDArray[np.uint8] | None:
        """Rows of a load have no place of their own."""

    def gather(self, at: Rows, out: NDArray[np.uint8]) -> None:
        """Copy rows; `at` counts those that are fed."""
        assert isinstance(at, slice)
        done = 0
        for load, start, stop in self._current.spans(at.start, at.stop):
            gather([load.parts[self._number]], _ONE, load.at[start:stop], out[done : done + stop - start])
            done += stop - start


def _in_turn(cuts: Cuts) -> Iterator[slice]:
    """Count the rows of the batches from 0 on."""
    start = 0
    for first, last in cuts:
        yield slice(start, start + last - first)
        start += last - first


def _windows(order: Order, cuts: Cuts) -> Iterator[NDArray[np.int64]]:
    """Give the rows of each window that batches are made of, in the order in which they are fed."""
    wanted: list[NDArray[np.int64]] = []
    window = cuts[0][0] // order.window_rows if cuts else 0
    for start, stop in cuts:
        while start < stop:
            number = start // order.window_rows
            if number != window and wanted:
                yield np.concatenate(wanted)
                wanted = []
            window = number
            end = min(stop, (number + 1) * order.window_rows)
            part = order.part(start, end)
            wanted.append(np.arange(start, end) if isinstance(part, slice) else part)
            start = end
    if wanted:
        yield np.concatenate(wanted)


def _runs(places: NDArray[np.int64], most: int, size: int) -> list[tuple[int, int]]:
    """Divide rows of some size, sorted by place, into runs that are each read at once, of at most so many rows."""
    segment_of, row_of = places[:, 0], places[:, 1]
    jumps = np.diff(row_of) > max(1, _GAP_BYTES // size)
    grid = row_of // most
    starts = np.flatnonzero(jumps | (np.diff(segment_of) != 0) | (np.diff(grid) != 0)) + 1
    edges = [0, *starts.tolist(), len(places)]
    return list(pairwise(edges))
