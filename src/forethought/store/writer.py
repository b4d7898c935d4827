"""Write rows as segments, each whole or absent."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from blake3 import blake3
from numpy.typing import NDArray

from forethought.errors import StoreError
from forethought.store.buffer import Buffer
from forethought.store.column import KEY_BYTES, Column, as_keys
from forethought.store.files import writing
from forethought.store.header import MAX_ROWS, Header, layout
from forethought.store.place import Place
from forethought.store.ragged import Ragged
from forethought.store.segment import SUFFIX
from forethought.store.task import Task


class _Written(NamedTuple):
    """One segment: its name, its bytes, and the seconds that hashing, writing and flushing it took."""

    name: str
    size_bytes: int
    time_s: float


class _Turn(NamedTuple):
    """Which buffer is filled, and what became of the other. Replaced as a whole: an interrupt finds one or the next."""

    filling: Buffer
    other: Buffer | None = None  # None where rows are written in the foreground
    commit: Task[_Written] | None = None  # of the other one, until its outcome was told


class Writer:
    """Buffers whole rows and commits them as a segment when enough came together. Made by `Table.writer`.

    While one buffer is hashed, written and flushed in the background, the next one fills. Each holds half of
    `segment_rows`, in whole appends, so a kill costs at most `segment_rows` rows, and memory is bounded by two
    buffers. Where half of `segment_rows` is less than one append brings, there is one buffer, written in the
    foreground.

    Leaving the `with` block commits the rest, on any exception too: rows that were appended whole are worth
    keeping. One thread each; any number of writers may share a table. A forked child that goes on with a writer
    commits all that was not yet known to be committed, as its parent does: a row written twice is harmless.
    """

    def __init__(
        self,
        place: Place,
        folder: str,
        fingerprint: str,
        columns: Sequence[Column],
        *,
        segment_rows: int,
        segment_bytes: int,
        committed: Callable[[str], None],
    ) -> None:
        self.rows_written = 0
        self.bytes_written = 0
        self.write_s = 0.0  # seconds of work on what was committed, most of them in the background
        self._place = place
        self._folder = folder
        self._fingerprint = fingerprint
        self._columns = tuple(columns)
        self._segment_rows = segment_rows
        self._segment_bytes = segment_bytes
        self._committed = committed
        self._turn: _Turn | None = None
        self._closed = False

    def append(self, keys: NDArray[Any], columns: Sequence[NDArray[Any] | Ragged]) -> None:
        """Take rows: keys (N, 16) uint8, then one array of N rows for each column, in the table's order.

        Args:
            keys: One key for each row. A key that is already stored is harmless: the first committed row is
                served.
            columns: Each of the column's own type and shape (N, *shape), or its bytes as uint8 (N,
                row_bytes); for a column whose rows differ in size, a `Ragged` of N rows.

        Raises:
            StoreError: an array does not fit its column (nothing is taken), or a full segment could not be
                written, perhaps one of an earlier call.
        """
        if self._closed:
            raise StoreError("Cannot append rows: expected an open writer, got a closed one. Call table.writer().")
        self._settle(wait=False)
        keys = as_keys(keys)
        if len(columns) != len(self._columns):
            raise StoreError(
                f"Cannot append rows: expected {len(self._columns)} columns, got {len(columns)}. Pass one "
                "array for each of table.columns."
            )
        parts = {c.name: c.as_rows(array, len(keys)) for c, array in zip(self._columns, columns, strict=True)}
        taken = 0
        while taken < len(keys):
            turn = self._turn = self._turn or self._first_turn(len(keys))
            taken += turn.filling.take(keys, parts, taken)
            if taken < len(keys) or turn.filling.is_full:
                self._hand_over(turn)

    def flush(self) -> None:
        """Commit all rows that were appended; return when they are durable.

        Raises:
            StoreError: some cannot be written. These are given up; committed ones stay.
        """
        try:
            self._settle()
        except BaseException as error:
            try:
                self._commit_filling()
            except StoreError as lost:
                _note(error, lost)
            raise
        self._commit_filling()

    def _first_turn(self, rows: int) -> _Turn:
        """Make the buffers for appends of so many rows: whole ones, so that work taken up again has the same."""
        half = self._segment_rows // 2 // rows * rows
        if not half:
            return _Turn(Buffer(self._columns, self._segment_rows, self._segment_bytes))
        first, second = (Buffer(self._columns, half, self._segment_bytes // 2) for _ in range(2))
        return _Turn(first, second)

    def _hand_over(self, turn: _Turn) -> None:
        """Commit the buffer that is filled, and fill the other. Waits until that one was committed."""
        if turn.other is None:
            self._commit_filling()
            return
        self._settle()
        turn.other.clear()
        task = Task(partial(self._write, turn.filling))
        self._turn = _Turn(turn.other, turn.filling, task)
        task.start()

    def _settle(self, *, wait: bool = True) -> None:
        """Tell the outcome of what was committed in the background, in the thread of the caller."""
        turn = self._turn
        if turn is None or turn.commit is None or turn.other is None or not (wait or turn.commit.is_done):
            return
        try:
            written = turn.commit.result()
        except Exception:
            self._turn = turn._replace(commit=None)
            raise
        self._turn = turn._replace(commit=None)
        self._count(turn.other.rows, written)

    def _commit_filling(self) -> None:
        if self._turn is None or self._turn.filling.rows == 0:
            return
        buffer = self._turn.filling
        rows = buffer.rows
        try:
            written = self._write(buffer)
        except StoreError:
            buffer.clear()
            raise
        buffer.clear()
        self._count(rows, written)

    def _count(self, rows: int, written: _Written) -> None:
        self.rows_written += rows
        self.bytes_written += written.size_bytes
        self.write_s += written.time_s
        self._committed(written.name)

    def _write(self, buffer: Buffer) -> _Written:
        """Commit a buffer; say what was written. Changes nothing in memory."""
        began = time.perf_counter()
        columns = layout(self._columns)
        contents = buffer.contents()
        digests = {name: blake3(content.data).hexdigest() for name, content in contents.items()}
        header = Header(self._fingerprint, columns, buffer.rows, buffer.items, ())
        names = [name for name, _, _ in header.tensors()]
        raw = replace(header, digests=tuple(digests[name] for name in names)).encode()
        size = len(raw) + sum(content.nbytes for content in contents.values())
        # Unguessable, and from the system: a seeded or forked generator would repeat names.
        file = secrets.token_hex(16) + SUFFIX
        with writing(f"{buffer.rows} rows ({size / 1e6:.1f} MB)", self._place, self._folder):
            parts = (contents[name].data for name in names)
            self._place.put(f"{self._folder}/{file}", raw, *parts, keep=True)
        return _Written(file, size, time.perf_counter() - began)

    def close(self) -> None:
        """Commit what is buffered and take no more. Closing twice is harmless."""
        self._closed = True
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StoreError as lost:
            if error is None:
                raise
            _note(error, lost)


def _note(error: BaseException, lost: StoreError) -> None:
    """Say of an error what else was lost: the first failure is the news, and another must not hide it."""
    for line in (str(lost), *getattr(lost, "__notes__", ())):
        error.add_note(line)


def rows_per_segment(columns: Sequence[Column], segment_rows: int | None, segment_bytes: int) -> int:
    """Return how many rows make a segment: the smaller of both limits, at least 1."""
    by_bytes = segment_bytes // (KEY_BYTES + sum(column.row_bytes for column in columns))
    return max(1, min(by_bytes, MAX_ROWS, MAX_ROWS if segment_rows is None else segment_rows))
