"""Where each key is: sorted arrays, searched in C. Ten million rows cost 200 MB, and twice that to be sorted."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forethought.store.column import KEY_BYTES, Bytes

Words = NDArray[np.uint64]  # keys as pairs of numbers, (N, 2); their order is ours alone, so the machine's will do


@dataclass(frozen=True, eq=False)
class _Run:
    """Keys in order, each once: both halves of a key and, in the index, the number of its row."""

    high: Words
    low: Words
    rows: NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, high: Words, low: Words) -> NDArray[np.int64]:
        """Return the number of each key's row, -1 where it is absent. Keys in order are found many times faster."""
        at = np.searchsorted(self.high, high)
        at[at == len(self)] = 0
        near = self.high[at] == high
        found = near & (self.low[at] == low)
        rows = self._rows(at, found)
        # By chance, no two of 2**32 keys share a first half; chosen keys may all do.
        crowded = np.flatnonzero(near & ~found)
        if len(crowded):
            rows[crowded] = self._find_in_crowd(high[crowded], low[crowded], at[crowded])
        return rows

    def without(self, at: NDArray[np.intp]) -> "_Run":
        """Return the run that lacks the keys at some positions."""
        return _Run(*(np.delete(each, at) for each in (self.high, self.low, self.rows))) if len(at) else self

    def _find_in_crowd(self, high: Words, low: Words, start: NDArray[np.intp]) -> NDArray[np.int64]:
        """Search the second halves, which are in order where the first ones are equal, from `start` on."""
        end = np.searchsorted(self.high, high, side="right")
        stop, last = end.copy(), len(self) - 1
        for _ in range(int((end - start).max()).bit_length()):
            middle = (start + stop) // 2
            is_after = (start < stop) & (self.low[np.minimum(middle, last)] < low)
            start, stop = np.where(is_after, middle + 1, start), np.where(is_after, stop, middle)
        at = np.minimum(start, last)
        return self._rows(at, (start < end) & (self.low[at] == low))

    def _rows(self, at: NDArray[np.intp], found: NDArray[np.bool_]) -> NDArray[np.int64]:
        rows = np.full(len(at), -1, np.int64)
        rows[found] = self.rows[at[found]]
        return rows


@dataclass(frozen=True, eq=False)
class Index:
    """Keys with the (segment, row) of each; `segments` numbers are accounted for.

    Immutable: merging makes a new one, so a thread that looks up never sees half of it. New keys make a run of their
    own; runs of like length are joined, so that there are few, and adding a segment does not sort all that was there.
    """

    segments: int = 0
    _runs: tuple[_Run, ...] = ()  # no key is in two of them
    # Rows are numbered in the order they came: those of segment `_numbers[i]` begin at `_firsts[i]`.
    _numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    _firsts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def find(self, keys: Bytes) -> NDArray[np.int64]:
        """Return (segment, row) for each key of shape (N, 16); (-1, -1) where it is absent."""
        words = _words(keys)
        order, _ = _order(words[:, 0])
        rows = self._find(words[order, 0], words[order, 1])
        found = np.flatnonzero(rows >= 0)
        rows, order = rows[found], order[found]
        piece = np.searchsorted(self._firsts, rows, side="right") - 1
        places = np.full((len(keys), 2), -1, np.int64)
        places[order, 0] = self._numbers[piece]
        places[order, 1] = rows - self._firsts[piece]
        return places

    def merged(self, pieces: Iterable[tuple[int, Bytes]], segments: int) -> "Index":
        """Return an index that also holds `pieces`, (number, keys) each. A key's first place stays."""
        waiting = deque(pieces)
        numbers = np.array([number for number, _ in waiting], np.int64)
        ends = self._firsts[-1] + np.cumsum([0, *(len(keys) for _, keys in waiting)], dtype=np.int64)
        words, rows = np.empty((ends[-1] - ends[0], 2), np.uint64), np.arange(ends[0], ends[-1], dtype=_type(ends[-1]))
        start = 0
        while waiting:  # let go of each piece once it is copied: together they are as large as the index
            _, keys = waiting.popleft()
            words[start : start + len(keys)] = _words(keys)
            start += len(keys)
        run = _sorted(words, rows)
        run = run.without(np.flatnonzero(self._find(run.high, run.low) >= 0))
        runs = _joined([*self._runs, run])
        return Index(segments, runs, np.concatenate([self._numbers, numbers]), np.concatenate([self._firsts, ends[1:]]))

    def _find(self, high: Words, low: Words) -> NDArray[np.int64]:
        rows = np.full(len(high), -1, np.int64)
        for run in self._runs:
            missing = np.flatnonzero(rows < 0)
            rows[missing] = run.find(high[missing], low[missing])
        return rows


def _words(keys: Bytes) -> Words:
    return keys.reshape(-1).view(np.uint64).reshape(len(keys), KEY_BYTES // 8)


def _type(rows: int) -> type[np.unsignedinteger]:
    return np.uint32 if rows <= 2**32 else np.uint64


def _order(high: Words) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return positions in the order of the first halves' leading bits, and where the one after ties with it.

    What numpy sorts fastest is plain numbers. So each is the beginning of a key with its position beneath, where
    they share 64 bits: what ties in the beginning, a handful by chance, is in the order of the positions.
    """
    bits = np.uint64(len(high).bit_length())
    packed = high >> bits << bits
    packed |= np.arange(len(high), dtype=_type(len(high)))
    packed.sort()
    ties = np.flatnonzero((packed[1:] ^ packed[:-1]) >> bits == 0)
    packed &= np.uint64((1 << int(bits)) - 1)
    return packed.view(np.int64), ties


def _sorted(words: Words, rows: NDArray[np.unsignedinteger]) -> _Run:
    """Make a run of keys with the numbers of their rows, which ascend where a key is repeated: the first one stays."""
    order, ties = _order(words[:, 0])
    if len(ties):
        at = np.union1d(ties, ties + 1)
        tied = order[at]
        order[at] = tied[np.lexsort((words[tied, 1], words[tied, 0]))]
    run = _Run(words[order, 0], words[order, 1], rows[order])
    return run.without(np.flatnonzero((run.high[1:] == run.high[:-1]) & (run.low[1:] == run.low[:-1])) + 1)


def _joined(runs: list[_Run]) -> tuple[_Run, ...]:
    """Join the last runs while they are not much longer one than the next: each key is sorted a few times in all."""
    while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
        last = [runs.pop(), runs.pop()][::-1]
        words = np.empty((sum(map(len, last)), 2), np.uint64)
        np.concatenate([run.high for run in last], out=words[:, 0])
        np.concatenate([run.low for run in last], out=words[:, 1])
        runs.append(_sorted(words, np.concatenate([run.rows for run in last])))
    return tuple(run for run in runs if len(run))
