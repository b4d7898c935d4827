"""Rows of a tensor whose sizes differ from row to row: all values one after the other, and the sizes of each row."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MAX_SIZE = 2**48  # what one size may be, and what the elements of one column of a segment may add up to


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows without padding.

    Attributes:
        values: The bytes of all rows, one row after the other: uint8, flat.
        sizes: The shape of each row: int64 of shape (N, dimensions).

    Example:
        >>> import numpy as np
        >>> words = np.array([1, 2, 3, 4, 5], np.int16)
        >>> rows = Ragged(words.view(np.uint8), np.array([[2], [0], [3]]))
        >>> rows.offsets.tolist()
        [0, 4, 4, 10]
        >>> rows.select(np.array([2, 0])).values.view(np.int16).tolist()
        [3, 4, 5, 1, 2]
    """

    values: Bytes
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each row begins in `values`, in bytes, and where the last one ends: (N + 1,).

        Raises:
            ValueError: `sizes` asks for more elements than `values` has bytes.
        """
        items = item_offsets(self.sizes, len(self.values))
        return items * (len(self.values) // max(int(items[-1]), 1))

    def select(self, rows: NDArray[Any] | slice) -> "Ragged":
        """Return some rows, in the order asked for; `values` is a view where they lie together in that order."""
        starts, stops = self.offsets[:-1][rows], self.offsets[1:][rows]
        sizes = self.sizes[rows]
        if not len(starts):
            return Ragged(self.values[:0], sizes)
        if (starts[1:] == stops[:-1]).all():
            return Ragged(self.values[starts[0] : stops[-1]], sizes)
        pieces = [self.values[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        return Ragged(np.concatenate(pieces), sizes)


def item_offsets(sizes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return where each row begins and the last one ends, in elements: (N + 1,) for sizes (N, dimensions).

    Sizes may come from a hostile file: no step can overflow, as `most` is below 2**62 and each product and sum is
    compared before it can grow further.

    Raises:
        ValueError: a size is out of bounds, or the rows have more than `most` elements together.
    """
    if ((sizes < 0) | (sizes >= MAX_SIZE)).any():
        raise ValueError("a size below 0 or not below 2**48")
    items = np.where((sizes == 0).any(axis=1), 0, 1)
    for size in sizes.T:
        if (items > most // np.maximum(size, 1)).any():
            raise ValueError(f"a row of more than {most} elements")
        items *= size
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(items, out=offsets[1:])
    # A sum that wrapped around has passed `most` before, by less than `most`.
    if (offsets > most).any():
        raise ValueError(f"rows of more than {most} elements together")
    return offsets
