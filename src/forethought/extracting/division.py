"""Divide the rows that a table lacks among the processes that fill it at once.

A claim says that somebody is at a stretch of samples. It never decides what is right: two that hold the same claim
compute the same rows, which is harmless; a claim left behind by the dead goes stale.
"""

import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from forethought.identifying.identity import Digest
from forethought.store import Claim, Store

_STRETCHES = 64  # of a data set at most
_SHORTEST = 64  # samples
_BEAT_S = 10.0
_LOOK_S = 0.25


class Division:
    """The stretches of a data set, and which of them are ours.

    Args:
        store: Where claims are left for others to see.
        what: The rows that are filled: their table and data set. Others that say the same share the work.
        rows: Samples in the data set, if known.
        batch: Samples a batch: none is divided.
    """

    def __init__(self, store: Store, what: tuple[str, ...], rows: int | None, batch: int) -> None:
        self._store = store
        self._what = what
        length = max(_SHORTEST, 1 << max((rows or 2**20) // _STRETCHES - 1, 0).bit_length())
        self._length = -(-length // batch) * batch
        self._held: dict[int, Claim] = {}
        self._others: set[int] = set()
        self._beat = time.monotonic()

    def mine(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say of each sample whether it is ours to compute; claims its stretch if nobody else does."""
        self.beat()
        stretches = indices // self._length
        return np.isin(stretches, [each for each in np.unique(stretches).tolist() if self._claim(each)])

    def beat(self) -> None:
        """Let others see that we are alive."""
        if time.monotonic() - self._beat > _BEAT_S:
            self._beat = time.monotonic()
            for claim in self._held.values():
                claim.refresh()

    def release(self, but: Iterable[int] = ()) -> None:
        """Give up stretches whose rows are stored, all but those of these samples; look anew at those of others."""
        kept = {index // self._length for index in but}
        for stretch in self._held.keys() - kept:
            self._held.pop(stretch).release()
        self._others.clear()

    def wait(self, indices: NDArray[np.int64]) -> bool:
        """Say whether a stretch of these samples is ours; if not, a moment later, in which others may store rows."""
        self._others.clear()
        if any(self._claim(each) for each in np.unique(indices // self._length).tolist()):
            return True
        time.sleep(_LOOK_S)
        return False

    def _claim(self, stretch: int) -> bool:
        if stretch not in self._held and stretch not in self._others:
            claim = self._store.claims.take(Digest().add("claim", self._what, self._length, stretch).hex())
            if claim is None:
                self._others.add(stretch)
            else:
                self._held[stretch] = claim
        return stretch in self._held
