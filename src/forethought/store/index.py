"""Where each key is: sorted arrays, so a lookup is a binary search in C and ten million rows cost 320 MB."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forethought.store.column import KEY_BYTES, Bytes

# numpy compares these bytewise and pads with zeros; all are 16 bytes wide, so equal means equal in every
# byte.
_KEY = np.dtype(f"S{KEY_BYTES}")


@dataclass(frozen=True)
class Index:
    """Keys, sorted and unique, with the (segment, row) of each; `segments` numbers are accounted for.

    Immutable: merging makes a new one, so a thread that looks up never sees half of it.
    """

    keys: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, _KEY))
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    segments: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Bytes) -> NDArray[np.int64]:
        """Return (segment, row) for each key of shape (N, 16); (-1, -1) where it is absent."""
        if not len(self) or not len(keys):
            return np.full((len(keys), 2), -1, np.int64)
        wanted = keys.view(_KEY)[:, 0]
        position = np.searchsorted(self.keys, wanted)
        position[position == len(self)] = 0
        found = self.keys[position] == wanted
        return np.where(found[:, None], self.places[position], -1)

    def merged(self, pieces: Sequence[tuple[int, Bytes]], segments: int) -> "Index":
        """Return an index that also holds `pieces`, (number, keys) each. A key's first place stays.

        The sort is stable and the old keys are already in order: numpy's merges runs, so adding little costs
        little.
        """
        keys = np.concatenate([self.keys, *(keys.view(_KEY)[:, 0] for _, keys in pieces)])
        places = np.concatenate([self.places, *(_places(number, len(keys)) for number, keys in pieces)])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        return Index(keys[first], places[order[first]], segments)


def _places(number: int, rows: int) -> NDArray[np.int64]:
    return np.stack([np.full(rows, number), np.arange(rows)], axis=1)
