"""Rows that wait to become a segment."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from forethought.store.column import KEY_BYTES, KEYS, SIZES, Bytes, Column
from forethought.store.header import layout
from forethought.store.ragged import Ragged


class Buffer:
    """Whole rows, at most `most_rows` of them and, but for a first row that is larger, `most_bytes`.

    Filled in place: tiny appends cost one copy, and memory that no row has reached is not touched.
    """

    def __init__(self, columns: Sequence[Column], most_rows: int, most_bytes: int) -> None:
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._ragged = {c.name: c for c in layout(columns) if c.is_ragged}
        self._row_bytes = KEY_BYTES + sum(c.row_bytes for c in columns)
        self._arrays = {KEYS: np.empty((most_rows, KEY_BYTES), np.uint8)}
        self._arrays |= {c.name: np.empty((most_rows, c.row_bytes), np.uint8) for c in columns if not c.is_ragged}
        self._sizes = {name: np.empty((most_rows, len(c.shape)), np.int64) for name, c in self._ragged.items()}
        self._values = {name: np.empty(0, np.uint8) for name in self._ragged}
        # Together, and set last: an interrupt leaves no half row.
        self._filled: tuple[int, dict[str, int]] = (0, dict.fromkeys(self._ragged, 0))

    @property
    def rows(self) -> int:
        """Rows in it."""
        return self._filled[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of these rows."""
        rows, ends = self._filled
        return rows * self._row_bytes + sum(ends.values())

    @property
    def items(self) -> tuple[int, ...]:
        """For each ragged column, in layout order, the elements of all rows together."""
        return tuple(self._filled[1][name] // column.item_bytes for name, column in self._ragged.items())

    @property
    def is_full(self) -> bool:
        """Whether no row can be taken."""
        return self.rows > 0 and (self.rows == self._most_rows or self.size_bytes >= self._most_bytes)

    def take(self, keys: Bytes, parts: Mapping[str, Bytes | Ragged], start: int) -> int:
        """Copy rows, from row `start` on, for which there is room; return how many."""
        rows, ends = self._filled
        count = self._room(parts, start, len(keys))
        source, target = slice(start, start + count), slice(rows, rows + count)
        ends = dict(ends)
        for name, part in {KEYS: keys, **parts}.items():
            if isinstance(part, Ragged):
                self._sizes[name][target] = part.sizes[source]
                ends[name] = self._take_values(name, part, source)
            else:
                self._arrays[name][target] = part[source]
        self._filled = rows + count, ends
        return count

    def contents(self) -> dict[str, Bytes]:
        """Return the bytes of each tensor of the segment, flat, not copied."""
        rows, ends = self._filled
        arrays = self._arrays | {name + SIZES: sizes for name, sizes in self._sizes.items()}
        contents = {name: array[:rows].reshape(-1).view(np.uint8) for name, array in arrays.items()}
        return contents | {name: values[: ends[name]] for name, values in self._values.items()}

    def clear(self) -> None:
        """Forget the rows; keep the memory, but for what a row larger than the limit took."""
        self._filled = 0, dict.fromkeys(self._ragged, 0)
        for name, values in self._values.items():
            if len(values) > self._most_bytes:
                self._values[name] = np.empty(0, np.uint8)

    def _room(self, parts: Mapping[str, Bytes | Ragged], start: int, stop: int) -> int:
        """Count the rows from `start` on that fit: in an empty buffer at least one."""
        count = min(stop - start, self._most_rows - self.rows)
        if not self._ragged or count == 0:
            return count
        sizes: NDArray[np.int64] = np.arange(1, count + 1) * self._row_bytes
        for part in parts.values():
            if isinstance(part, Ragged):
                sizes += part.offsets[start + 1 : start + count + 1] - part.offsets[start]
        fits = int(np.searchsorted(sizes, self._most_bytes - self.size_bytes, side="right"))
        return max(fits, int(self.rows == 0))

    def _take_values(self, name: str, part: Ragged, source: slice) -> int:
        """Copy the values of some rows; return where they end."""
        first, last = int(part.offsets[source.start]), int(part.offsets[source.stop])
        begin = self._filled[1][name]
        end = begin + last - first
        values = self._values[name]
        if end > len(values):
            values = np.empty(max(end, min(2 * len(values), self._most_bytes)), np.uint8)
            values[:begin] = self._values[name][:begin]
            self._values[name] = values
        values[begin:end] = part.values[first:last]
        return end
