"""One segment: an immutable safetensors file of rows and their keys, checked before it is believed."""

import os
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from io import FileIO
from pathlib import Path
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import numpy as np
from blake3 import blake3

from forethought.errors import StoreError
from forethought.store.column import KEY_BYTES, KEYS, SIZES, Bytes, Column
from forethought.store.files import FileState, has_run_out, open_regular
from forethought.store.header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    SEGMENT_FORMATS,
    Header,
    UnknownFormatError,
    decode,
    layout,
)
from forethought.store.mapping import map_bytes
from forethought.store.place import Place, where
from forethought.store.ragged import Ragged

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
    column's bytes against its digest, and the sizes of its rows, where they differ, against its bytes. The seal
    covers all digests, so keys cannot be joined to the rows of another segment. Bytes are checked with plain
    reads, so that a bad disk block is an error here and not a dead process later.

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
        self._columns = {column.name: column for column in columns}
        self._layout = layout(columns)
        self._header: Header | None = None
        self._content_offset = 0
        self._checked: dict[str, Bytes | Ragged] = {}
        self._known: Header | None = None  # of the file that was checked before, which is the one that was located
        self._state: FileState | None = None  # of the file whose columns are checked
        self._before: FileState | None = None
        self._sound: set[str] = set()  # columns whose bytes were checked, but are not mapped

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
        rows = self.rows
        with self._open() as file:
            return self._read_tensor(file, KEYS).reshape(rows, KEY_BYTES)

    @_at_second_look
    def column(self, name: str) -> Any:
        """Return one column, its bytes mapped and not copied: uint8 of shape (rows, row_bytes), or a `Ragged`.

        Writable, but private: what is written there stays in this process and is served to whoever asks next
        in it.
        """
        found = self._checked.get(name)
        if found is None:
            rows = self.rows
            column = self._columns.get(name) or self._refuse_name(name)
            with self._open() as file:
                self._watch(self._state_of(file))
                self._check(file, name)
                if column.is_ragged:
                    found = self._ragged(file, column)
                else:
                    found = self._map(file, name).reshape(rows, column.row_bytes)
            self._checked[name] = found
        return found

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is still what it was when columns of it were checked, as far as its inode and times tell.

        What is mapped shows what is written into the file later, but stays where the file is removed.
        """
        return self._state is None or self._state.is_lasting

    def forget(self) -> None:
        """Check columns anew when they are next asked for. What was given out before stays as it is."""
        self._known, self._header = self._header or self._known, None
        self._before, self._state = self._state, None
        self._checked, self._sound = {}, set()

    def _state_of(self, file: FileIO) -> FileState:
        try:
            return FileState.of(file)
        except OSError as err:
            self._fail(err)

    def _watch(self, state: FileState) -> None:
        """Remember the file whose columns are checked: all of them in one that stays as it is."""
        if self._state is None:
            # As it was when it was checked before: that is settled by now, even if a clock elsewhere runs ahead.
            is_old = self._before is not None and not state.differs(self._before)
            self._state = state._replace(is_settled=state.is_settled or is_old)
        elif state.differs(self._state):
            self._state, self._checked, self._sound = state, {}, set()

    @_at_second_look
    def read(self, name: str, start: int, out: Bytes) -> None:
        """Read rows of one column from `start` on into `out`, (n, row_bytes): checked like `column`, but not mapped."""
        column = self._columns.get(name) or self._refuse_name(name)
        offset, _, _ = self._span(name)
        with self._open() as file:
            self._watch(self._state_of(file))
            if name not in self._checked and name not in self._sound:
                self._check(file, name)
                self._sound.add(name)
            if len(out):
                self._read_into(file, offset + start * column.row_bytes, out.reshape(-1).data)

    def check(self) -> None:
        """Read the whole file again and raise DamagedSegmentError unless every byte is as it was written."""
        self._fetch(anew=True)
        with self._open() as file:
            self._header = self._read_header(file)
            for name, _, _ in self._header.spans():
                self._check(file, name)
            for column in self._columns.values():
                if column.is_ragged:
                    self._ragged(file, column)

    def _ragged(self, file: FileIO, column: Column) -> Ragged:
        """Join the mapped values, which were checked, to their sizes, which are checked here."""
        sizes = self._read_tensor(file, column.name + SIZES).view(np.int64).reshape(self.rows, len(column.shape))
        ragged = Ragged(self._map(file, column.name), sizes)
        try:
            column.check_ragged(ragged, self.rows)
        except ValueError as err:
            self._refuse(f"sizes of {column} that fit its values", str(err), err)
        return ragged

    def _span(self, name: str) -> tuple[int, int, str]:
        """Return where a tensor lies in the file, its bytes and its digest."""
        header = self.header
        at, (_, offset, size) = next((at, span) for at, span in enumerate(header.spans()) if span[0] == name)
        return self._content_offset + offset, size, header.digests[at]

    def _refuse_name(self, name: str) -> NoReturn:
        raise StoreError(f"Cannot read column {name!r}: expected one of {list(self._columns)}. See table.columns.")

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
        try:
            size = os.fstat(file.fileno()).st_size
        except OSError as err:
            self._fail(err)
        length = bytearray(LENGTH_BYTES)
        self._read_into(file, 0, memoryview(length))
        header_bytes = LENGTH_BYTES + int.from_bytes(length, "little")
        if header_bytes > min(size, MAX_HEADER_BYTES):
            self._refuse(f"a header of at most {min(size, MAX_HEADER_BYTES)} bytes", f"{header_bytes}")
        raw = bytearray(header_bytes)
        self._read_into(file, 0, memoryview(raw))
        try:
            header = decode(bytes(raw))
        except UnknownFormatError as err:
            upgrade = "run: pip install --upgrade forethought"
            self._refuse(f"format {' or '.join(SEGMENT_FORMATS)}", str(err), err, upgrade)
        except ValueError as err:
            self._refuse("the header of a segment", str(err), err)
        if header.fingerprint != self._fingerprint:
            self._refuse(f"rows of {self._fingerprint}", f"rows of {header.fingerprint}")
        if header.columns != self._layout:
            self._refuse(f"columns {_listed(self._layout)}", _listed(header.columns))
        if header_bytes + header.content_bytes != size:
            self._refuse(f"{header_bytes + header.content_bytes} bytes", f"{size}")
        if self._known is not None and header != self._known:
            self._refuse("the segment that was there before", "another one of its name")
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

    def _read_tensor(self, file: FileIO, name: str) -> Bytes:
        """Read and check one tensor, in memory of its own."""
        offset, size, digest = self._span(name)
        tensor = np.empty(size, np.uint8)
        self._read_into(file, offset, tensor.data)
        self._compare(name, blake3(tensor.data).hexdigest(), digest)
        return tensor

    def _check(self, file: FileIO, name: str) -> None:
        offset, size, digest = self._span(name)
        hasher = blake3()
        chunk = memoryview(bytearray(min(size, _CHUNK_BYTES)))
        for start in range(0, size, _CHUNK_BYTES):
            part = chunk[: min(_CHUNK_BYTES, size - start)]
            self._read_into(file, offset + start, part)
            hasher.update(part)
        self._compare(name, hasher.hexdigest(), digest)

    def _map(self, file: FileIO, name: str) -> Bytes:
        """Map bytes that were checked. What fails here is no fault of theirs, so it is never a miss."""
        offset, size, _ = self._span(name)
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
        if isinstance(err, FileNotFoundError):
            self._refuse("a file", "none: somebody removed it", err, "they are computed when they are next asked for.")
        self._refuse("a file that can be read", err.strerror or str(err), err)

    def _refuse(self, expected: str, got: str, cause: Exception | None = None, fix: str | None = None) -> NoReturn:
        removal = f"with: rm {shlex.quote(self._where)}" if self._place.folder is not None else "from the bucket."
        raise DamagedSegmentError(
            f"Cannot use segment '{self._where}': expected {expected}, got {got}. Its rows count as absent; "
            + (fix or f"delete it {removal}")
        ) from cause


def _listed(columns: Sequence[Column]) -> str:
    return "(" + ", ".join(str(column) for column in columns) + ")"
