"""Write rows as segments, each whole or absent."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

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


class Writer:
    """Buffers whole rows and commits them as a segment when enough came together. Made by `Table.writer`.

    A kill costs at most what is buffered. Leaving the `with` block commits the rest, on any exception too:
    rows that were appended whole are worth keeping. One thread each; any number of writers may share a table.
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
        self._place = place
        self._folder = folder
        self._fingerprint = fingerprint
        self._columns = tuple(columns)
        self._committed = committed
        self._buffer = Buffer(self._columns, segment_rows, segment_bytes)
        self._closed = False

    def append(self, keys: NDArray[Any], columns: Sequence[NDArray[Any] | Ragged]) -> None:
        """Take rows: keys (N, 16) uint8, then one array of N rows for each column, in the table's order.

        Args:
            keys: One key for each row. A key that is already stored is harmless: the first committed row is
                served.
            columns: Each of the column's own type and shape (N, *shape), or its bytes as uint8 (N,
                row_bytes); for a column whose rows differ in size, a `Ragged` of N rows.

        Raises:
            StoreError: an array does not fit its column (nothing is taken), or a full segment cannot be
                written.
        """
        if self._closed:
            raise StoreError("Cannot append rows: expected an open writer, got a closed one. Call table.writer().")
        keys = as_keys(keys)
        if len(columns) != len(self._columns):
            raise StoreError(
                f"Cannot append rows: expected {len(self._columns)} columns, got {len(columns)}. Pass one "
                "array for each of table.columns."
            )
        parts = {c.name: c.as_rows(array, len(keys)) for c, array in zip(self._columns, columns, strict=True)}
        taken = 0
        while taken < len(keys):
            taken += self._buffer.take(keys, parts, taken)
            if taken < len(keys) or self._buffer.is_full:
                self.flush()

    def flush(self) -> None:
        """Commit what is buffered as one segment, durably.

        Raises:
            StoreError: it cannot be written. The buffered rows are given up; committed ones stay.
        """
        rows = self._buffer.rows
        if rows == 0:
            return
        try:
            name, size = self._write(self._buffer)
        except StoreError:
            self._buffer.clear()
            raise
        self._buffer.clear()
        self.rows_written += rows
        self.bytes_written += size
        self._committed(name)

    def _write(self, buffer: Buffer) -> tuple[str, int]:
        """Commit a buffer; return the name and the bytes of the segment. Changes nothing in memory."""
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
        return file, size

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
            error.add_note(str(lost))  # the first failure is the news; this one must not hide it


def rows_per_segment(columns: Sequence[Column], segment_rows: int | None, segment_bytes: int) -> int:
    """Return how many rows make a segment: the smaller of both limits, at least 1."""
    by_bytes = segment_bytes // (KEY_BYTES + sum(column.row_bytes for column in columns))
    return max(1, min(by_bytes, MAX_ROWS, MAX_ROWS if segment_rows is None else segment_rows))
