"""Write rows as segments, each whole or absent."""

import secrets
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from forethought.errors import StoreError
from forethought.store.column import KEY_BYTES, Bytes, Column, as_keys
from forethought.store.files import writing
from forethought.store.header import MAX_ROWS, Header, layout
from forethought.store.place import Place
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
        committed: Callable[[str], None],
    ) -> None:
        self.rows_written = 0
        self.bytes_written = 0
        self._place = place
        self._folder = folder
        self._fingerprint = fingerprint
        self._columns = tuple(columns)
        self._committed = committed
        # Filled in place: tiny appends cost one copy, and memory that no row has reached is not touched.
        self._keys = np.empty((segment_rows, KEY_BYTES), np.uint8)
        self._buffers = {c.name: np.empty((segment_rows, c.row_bytes), np.uint8) for c in columns}
        self._buffered = 0
        self._closed = False

    def append(self, keys: NDArray[Any], columns: Sequence[NDArray[Any]]) -> None:
        """Take rows: keys (N, 16) uint8, then one array of N rows for each column, in the table's order.

        Args:
            keys: One key for each row. A key that is already stored is harmless: the first committed row is
                served.
            columns: Each of the column's own type and shape (N, *shape), or its bytes as uint8 (N,
                row_bytes).

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
        parts = {c.name: c.as_bytes(array, len(keys)) for c, array in zip(self._columns, columns, strict=True)}
        start = 0
        while start < len(keys):
            start += self._take(keys[start:], {name: part[start:] for name, part in parts.items()})
            if self._buffered == len(self._keys):
                self.flush()

    def _take(self, keys: Bytes, parts: dict[str, Bytes]) -> int:
        """Copy what the buffer has room for. The count is set last: an interrupt leaves no half row."""
        room = slice(self._buffered, min(self._buffered + len(keys), len(self._keys)))
        count = room.stop - room.start
        self._keys[room] = keys[:count]
        for name, part in parts.items():
            self._buffers[name][room] = part[:count]
        self._buffered = room.stop
        return count

    def flush(self) -> None:
        """Commit what is buffered as one segment, durably.

        Raises:
            StoreError: it cannot be written. The buffered rows are given up; committed ones stay.
        """
        rows = self._buffered
        if rows == 0:
            return
        ordered = layout(self._columns)
        contents = [self._keys[:rows], *(self._buffers[column.name][:rows] for column in ordered)]
        digests = tuple(blake3(content.reshape(-1).data).hexdigest() for content in contents)
        raw = Header(self._fingerprint, ordered, rows, digests).encode()
        size = len(raw) + sum(content.nbytes for content in contents)
        # Unguessable, and from the system: a seeded or forked generator would repeat names.
        name = secrets.token_hex(16) + SUFFIX
        try:
            with writing(f"{rows} rows ({size / 1e6:.1f} MB)", self._place, self._folder):
                self._place.put(f"{self._folder}/{name}", raw, *contents, keep=True)
        except StoreError:
            self._buffered = 0
            raise
        self._buffered = 0
        self.rows_written += rows
        self.bytes_written += size
        self._committed(name)

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
