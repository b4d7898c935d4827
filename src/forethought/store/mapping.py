"""Map part of a file into memory, copy-on-write, without keeping a file descriptor.

Python's `mmap` keeps a duplicate of the descriptor for as long as the mapping lives (python/cpython#78502;
3.13 can leave it out), so a store of a thousand segments would use up the usual limit of 1024. Hence the C
library's own call.
"""

import ctypes
import mmap
import os
from typing import Any

import numpy as np

from forethought.store.column import Bytes

_FAILED = ctypes.c_void_p(-1).value


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


_LIBC: Any = _libc() if os.name == "posix" else None


class _Mapping:
    """Owns one mapping; numpy keeps this object alive for as long as an array looks into it."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        access = mmap.PROT_READ | mmap.PROT_WRITE
        address = _LIBC.mmap(None, length, access, mmap.MAP_PRIVATE, descriptor, offset)
        if address in (None, _FAILED):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._unmap, self._address, self._length = _LIBC.munmap, address, length
        self.__array_interface__ = {
            "shape": (length,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._unmap(self._address, self._length)


def map_bytes(descriptor: int, offset: int, length: int) -> Bytes:
    """Return `length` bytes of an open file as a uint8 array; what is written to it stays in this process.

    The descriptor may be closed at once. The memory is given back when the last array over it dies.
    """
    if length == 0:
        return np.empty(0, np.uint8)
    skipped = offset % mmap.ALLOCATIONGRANULARITY
    if _LIBC is not None:
        whole = np.asarray(_Mapping(descriptor, offset - skipped, length + skipped))
    else:
        view = mmap.mmap(descriptor, length + skipped, access=mmap.ACCESS_COPY, offset=offset - skipped)
        whole = np.frombuffer(view, np.uint8)
    return whole[skipped:]
