"""Copy chosen rows out of one or several arrays, in as many threads as torch uses.

numpy's `take` copies rows at the speed of memory and lets other threads run meanwhile; torch's own indexing is several
times slower for rows of two-byte numbers, and splits no work where there is one thread.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_LEAST_BYTES = 2**19  # that are worth a thread: waking it costs as much as copying a third of them
_MOST_THREADS = 8  # copying is bound by memory beyond
_KEPT_BYTES = 2**23  # of memory to sort rows in, that a thread keeps
_local = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def gather(
    arrays: Sequence[Bytes], array_of: NDArray[np.unsignedinteger], row_of: NDArray[np.int64], out: Bytes
) -> None:
    """Copy rows into `out`, (B, row_bytes).

    Args:
        arrays: Each (N, row_bytes).
        array_of: (B,) which array each row is in.
        row_of: (B,) which row of it.
        out: Where to.
    """
    if len(arrays) == 1 or (len(array_of) and (array_of == array_of[0]).all()):
        array = arrays[int(array_of[0]) if len(array_of) else 0]
        _divide(out, lambda start, stop: _take(array, row_of[start:stop], out[start:stop]))
    else:
        _divide(out, lambda start, stop: _from_many(arrays, array_of[start:stop], row_of[start:stop], out[start:stop]))


def _from_many(
    arrays: Sequence[Bytes], array_of: NDArray[np.unsignedinteger], row_of: NDArray[np.int64], out: Bytes
) -> None:
    """Gather array by array, then put the rows in order: two copies, but nothing row by row in Python."""
    by_array = np.argsort(array_of, kind="stable")
    wanted = row_of[by_array]
    ends = np.cumsum(np.bincount(array_of, minlength=len(arrays)))
    found = _scratch(out)
    start = 0
    for number in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
        end = int(ends[number])
        _take(arrays[number], wanted[start:end], found[start:end])
        start = end
    back = np.empty_like(by_array)
    back[by_array] = np.arange(len(by_array))
    _take(found, back, out)


def _take(array: Bytes, rows: NDArray[np.int64], out: Bytes) -> None:
    array.take(rows, axis=0, out=out, mode="clip")  # 'raise' would copy once more; the rows are there


def _scratch(like: Bytes) -> Bytes:
    """Give memory that this thread has used before, and has in its cache."""
    if like.nbytes > _KEPT_BYTES:
        return np.empty_like(like)
    kept: Bytes | None = getattr(_local, "kept", None)
    if kept is None or len(kept) < like.nbytes:
        kept = _local.kept = np.empty(like.nbytes, np.uint8)
    return kept[: like.nbytes].reshape(like.shape)


def _divide(out: Bytes, work: Callable[[int, int], None]) -> None:
    """Have parts of the rows worked on by several threads, this one among them."""
    parts = min(torch.get_num_threads(), _MOST_THREADS, out.nbytes // _LEAST_BYTES, len(out))
    if parts < 2:
        work(0, len(out))
        return
    edges = [len(out) * part // parts for part in range(parts + 1)]
    others = [_pool().submit(work, start, stop) for start, stop in pairwise(edges[1:])]
    work(0, edges[1])
    for other in others:
        other.result()


def _pool() -> ThreadPoolExecutor:
    process = os.getpid()
    if process not in _pools:
        _pools.clear()
        _pools[process] = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="forethought-gather")
    return _pools[process]
