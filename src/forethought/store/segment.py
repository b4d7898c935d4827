"""One segment: an immutable safetensors file of rows and their keys, checked before it is believed."""

import os
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from io import FileIO
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

import numpy as np
from blake3 import blake3

from forethought.errors import StoreError
from forethought.store.column import KEY_BYTES, KEYS, Bytes, Column
from forethought.store.files import has_run_out, open_regular
from forethought.store.header import LENGTH_BYTES, MAX_HEADER_BYTES, Header, decode, layout
from forethought.store.mapping import map_bytes
from forethought.store.place import Place, where

SUFFIX = ".safetensors"
_CHUNK_BYTES = 2**20
_P = ParamSpec("_P")
_T = TypeVar("_T")


class DamagedSegmentError(StoreError):
    """A segment is torn, altered, foreign or gone: none of its unread rows may be served."""


class DamagedSegmentWarning(UserWarning):
    """A segment was left out, by name; its rows count as absent."""


def _at_second_look(look: Callable[Concatenate["Segment", _P], _T]) -> Callable[Concatenate["Segment", _P], _T]:
    """Blame a remote file only for what a second copy of it shows too: the first may have suffered on the way here."""

    @wraps(look)
    def twice(self: "Segment", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return look(self, *args, **kwargs)
        except DamagedSegmentError:
            if self._is_second_copy or self._place.folder is not None:
                raise
            self._is_second_copy = True
            self._fetch(anew=True)
            return look(self, *args, **kwargs)

    return twice


class Segment:
    """Rows of one file, opened when first asked.

    Three checks, each made once in a process (a forked child keeps its parent's) and before what it covers is
    used: the header against its seal, its table and the file's size; the keys against their digest; a
    column's bytes against its digest. The seal covers all digests, so keys cannot be joined to the rows of
    another segment. Bytes are checked with plain reads, so that a bad disk block is an error here and not a
    dead process later.

    Every method raises DamagedSegmentError where a check fails and StoreError where the process has run out
    of descriptors or memory. Threads may share a segment: two that race both check, nothing else happens.
    """

    def __init__(self, place: Place, path: str, fingerprint: str, columns: Sequence[Column]) -> None:
        self.name = path.rpartition("/")[2]
        self._place = place
        self._path = path
        self._where = where(place, path)
        self._is_second_copy = False
        self._fingerprint = fingerprint
        self._layout = layout(columns)
        self._header: Header | None = None
        self._content_offset = 0
        self._checked: dict[str, Bytes] = {}

    @property
    @_at_second_look
    def header(self) -> Header:
        """The header, checked."""
        if self._header is None:
            with self._open() as file:
                self._header = self._read_header(file)
        return self._header

    @property
    def rows(self) -> int:
        """Rows in the segment."""
        return self.header.rows

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        header = self.header
        return self._content_offset + header.content_bytes

    @property
    @_at_second_look
    def keys(self) -> Bytes:
        """Keys of shape (rows, 16), read and checked anew at each call, in memory of their own."""
        header = self.header
        with self._open() as file:
            keys = np.empty((header.rows, KEY_BYTES), np.uint8)
            self._read_into(file, self._content_offset, keys.reshape(-1).data)
        self._compare(KEYS, blake3(keys.data).hexdigest(), header.digests[0])
        return keys

    @_at_second_look
    def column(self, name: str) -> Bytes:
        """Return the bytes of one column, uint8 of shape (rows, row_bytes), mapped and not copied.

        Writable, but private: what is written there stays in this process and is served to whoever asks next
        in it.
        """
        if name not in self._checked:
            header = self.header
            offset, size, digest = self._span(name)
            with self._open() as file:
                self._check(file, name, offset, size, digest)
                mapped = self._map(file, offset, size)
            self._checked[name] = mapped.reshape(header.rows, size // header.rows)
        return self._checked[name]

    def check(self) -> None:
        """Read the whole file again and raise DamagedSegmentError unless every byte is as it was written."""
        self._fetch(anew=True)
        with self._open() as file:
            self._header = self._read_header(file)
            for name, _, _ in self._header.spans():
                self._check(file, name, *self._span(name))

    def _span(self, name: str) -> tuple[int, int, str]:
        """Return where a column lies in the file, its bytes and its digest."""
        for (each, offset, size), digest in zip(self.header.spans(), self.header.digests, strict=True):
            if each == name:
                return self._content_offset + offset, size, digest
        raise StoreError(
            f"Cannot read column {name!r}: expected one of {[column.name for column in self._layout]}. See "
            "table.columns."
        )

    def _open(self) -> FileIO:
        path = self._fetch()
        try:
            return open_regular(path)
        except OSError as err:
            self._fail(err)

    def _fetch(self, *, anew: bool = False) -> Path:
        try:
            return self._place.local(self._path, anew=anew)
        except FileNotFoundError as err:
            self._fail(err)
        except OSError as err:
            raise StoreError(
                f"Cannot fetch segment '{self._where}': expected an answer from there, and room for a copy in the "
                f"cache, got {err.strerror or err}. Run again when it can be reached, or keep copies elsewhere: "
                f"Store('{self._place.url}', cache=folder)."
            ) from err

    def _read_header(self, file: FileIO) -> Header:
        size = os.fstat(file.fileno()).st_size
        length = bytearray(LENGTH_BYTES)
        self._read_into(file, 0, memoryview(length))
        header_bytes = LENGTH_BYTES + int.from_bytes(length, "little")
        if header_bytes > min(size, MAX_HEADER_BYTES):
            self._refuse(f"a header of at most {min(size, MAX_HEADER_BYTES)} bytes", f"{header_bytes}")
        raw = bytearray(header_bytes)
        self._read_into(file, 0, memoryview(raw))
        try:
            header = decode(bytes(raw))
        except ValueError as err:
            self._refuse("the header of a segment of format 1", str(err), err)
        if header.fingerprint != self._fingerprint:
            self._refuse(f"rows of {self._fingerprint}", f"rows of {header.fingerprint}")
        if header.columns != self._layout:
            self._refuse(f"columns {_listed(self._layout)}", _listed(header.columns))
        if header_bytes + header.content_bytes != size:
            self._refuse(f"{header_bytes + header.content_bytes} bytes", f"{size}")
        self._content_offset = header_bytes
        return header

    def _read_into(self, file: FileIO, offset: int, into: memoryview) -> None:
        try:
            file.seek(offset)
            done = 0
            while done < len(into):
                count = file.readinto(into[done:])
                if not count:
                    self._refuse(f"{offset + len(into)} bytes or more", f"{offset + done}")
                done += count
        except DamagedSegmentError:
            raise
        except OSError as err:
            self._fail(err)

    def _check(self, file: FileIO, name: str, offset: int, size: int, digest: str) -> None:
        hasher = blake3()
        chunk = memoryview(bytearray(min(size, _CHUNK_BYTES)))
        for start in range(0, size, _CHUNK_BYTES):
            part = chunk[: min(_CHUNK_BYTES, size - start)]
            self._read_into(file, offset + start, part)
            hasher.update(part)
        self._compare(name, hasher.hexdigest(), digest)

    def _map(self, file: FileIO, offset: int, size: int) -> Bytes:
        """Map bytes that were checked. What fails here is no fault of theirs, so it is never a miss."""
        try:
            return map_bytes(file.fileno(), offset, size)
        except OSError as err:
            raise StoreError(
                f"Cannot map segment '{self._where}': expected a file system and free memory to map it, got "
                f"{err.strerror}. Raise vm.max_map_count, or copy the store to a local disk."
            ) from err

    def _compare(self, name: str, got: str, expected: str) -> None:
        if got != expected:
            self._refuse(f"bytes of {name!r} with BLAKE3 {expected[:16]}...", f"{got[:16]}...")

    def _fail(self, err: OSError) -> NoReturn:
        """Raise for an error of the system: the file's fault is a miss, ours must not cost the user rows."""
        if has_run_out(err):
            raise StoreError(
                f"Cannot read segment '{self._where}': expected free descriptors and memory, got "
                f"{err.strerror}. Raise the limit (ulimit -n 65536) or close other files."
            ) from err
        self._refuse("a file that can be read", err.strerror or str(err), err)

    def _refuse(self, expected: str, got: str, cause: Exception | None = None) -> NoReturn:
        removal = f"with: rm {shlex.quote(self._where)}" if self._place.folder is not None else "from the bucket."
        raise DamagedSegmentError(
            f"Cannot use segment '{self._where}': expected {expected}, got {got}. Its rows count as absent; "
            f"delete it {removal}"
        ) from cause


def _listed(columns: Sequence[Column]) -> str:
    return "(" + ", ".join(str(column) for column in columns) + ")"
