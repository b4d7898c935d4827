"""The files of a store, as housekeeping sees them: whose they are, how large, how old. Nothing here opens a row.

Paths are relative to the store, as in docs/format.md: 'tables/ab/table.note'.
"""

import errno
import os
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from forethought.errors import StoreError
from forethought.store import Column, DamagedSegmentWarning, Segment, Store, Table
from forethought.store.files import DEAD_AFTER_S, TEMPORARY, open_regular
from forethought.store.header import LENGTH_BYTES, MAX_HEADER_BYTES, decode, is_hex
from forethought.store.notes import read_note
from forethought.store.table import NOTE, is_segment_name, read_description

_NOTE_SUFFIX = ".note"
_PROBE_FACTS = {"probed", "moved_ulps"}  # what a note under a table's own fingerprint says


@dataclass(frozen=True)
class File:
    """One file: where, how many bytes, and when it was last written, in seconds since 1970."""

    path: str
    size_bytes: int
    time: float

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def is_temporary(self) -> bool:
        """Whether some writer had not finished it."""
        return self.name.startswith(".") and self.name.endswith(TEMPORARY)

    @property
    def is_segment(self) -> bool:
        """Whether it claims to be a segment."""
        return is_segment_name(self.name)

    @property
    def is_old(self) -> bool:
        """Whether nobody can still be at work on it."""
        return time.time() - self.time > DEAD_AFTER_S


@dataclass(frozen=True)
class Note:
    """One note of the store.

    Attributes:
        file: Its file.
        value: What it says; None if it is torn, or cannot be read.
        fingerprint: The table that it is about, if any.
        is_readable: Whether its bytes could be had at all.
    """

    file: File
    value: dict[str, Any] | None
    fingerprint: str | None
    is_readable: bool


def where(store: Store, path: str) -> str:
    """Say where a file lies, in words for a person."""
    return str(store.path / path)


def folder_of(fingerprint: str) -> str:
    """Give where a table's files are."""
    return f"tables/{fingerprint}"


def files_in(store: Store, folder: str) -> list[File]:
    """List the files of a folder, by name; what vanishes meanwhile is left out.

    Raises:
        StoreError: the folder cannot be read.
    """
    found = []
    for entry in _entries(store, folder):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode) or is_segment_name(entry.name):  # what claims to be one is looked at
            found.append(File(f"{folder}/{entry.name}".lstrip("/"), status.st_size, status.st_mtime))
    return found


def folders_in(store: Store, folder: str) -> list[str]:
    """List the folders in a folder, by name. Raises as `files_in` does."""
    return [f"{folder}/{entry.name}" for entry in _entries(store, folder) if entry.is_dir()]


def _entries(store: Store, folder: str) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(store.path / folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise StoreError(
            f"Cannot list '{where(store, folder)}': expected a readable folder, got {err.strerror}. Give this user the "
            "right to read and enter it (chmod u+rx)."
        ) from err


def is_inside(store: Store, folder: str) -> bool:
    """Say whether a folder lies in the store itself, and not somewhere that a link in it points to."""
    real, root = os.path.realpath(store.path / folder), os.path.realpath(store.path)
    return real == root or real.startswith(root + os.sep)


def is_there(store: Store, path: str) -> bool:
    """Say whether there is a file of this name, even one that cannot be read."""
    return os.path.lexists(store.path / path)


def is_quiet(store: Store, folder: str) -> bool:
    """Say whether nothing came into a folder, or went, for so long that nobody can still be writing there."""
    try:
        return time.time() - (store.path / folder).stat().st_mtime > DEAD_AFTER_S
    except OSError:
        return False


def remove(store: Store, path: str) -> bool:
    """Remove a file, or a folder (its path ends with '/') unless something is in it. Say whether it was there.

    Raises:
        OSError: it cannot be removed, or lies elsewhere, where a link points to.
    """
    folder = path.rstrip("/").rpartition("/")[0]
    if not is_inside(store, folder):
        raise OSError(errno.EXDEV, "it lies outside the store")
    try:
        if path.endswith("/"):
            (store.path / path).rmdir()
        else:
            (store.path / path).unlink()
    except FileNotFoundError:
        return False
    except OSError as err:
        if path.endswith("/") and err.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False  # somebody writes there again
        raise
    return True


def open_table(store: Store, fingerprint: str) -> Table | None:
    """Open a table; one that lost its note by what its segments say. None if they say nothing, or not the same."""
    if read_description(store.place, folder_of(fingerprint), fingerprint) is not None:
        return store.table(fingerprint)
    files = files_in(store, folder_of(fingerprint))
    columns = {_columns_of(store, file.path, fingerprint) for file in files if file.is_segment} - {None}
    return store.table(fingerprint, columns.pop()) if len(columns) == 1 else None


def segment_of(store: Store, path: str, table: Table) -> Segment:
    """Open a segment by its path."""
    return Segment(store.place, path, table.fingerprint, table.columns)


def is_torn(store: Store, fingerprint: str) -> bool:
    """Say whether a table's note is there but does not say what the columns are."""
    folder = folder_of(fingerprint)
    return is_there(store, f"{folder}/{NOTE}") and read_description(store.place, folder, fingerprint) is None


def _columns_of(store: Store, path: str, fingerprint: str) -> tuple[Column, ...] | None:
    """Read what a segment says of its columns, in the order of its own layout."""
    try:
        with open_regular(store.path / path) as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES:
                return None
            file.seek(0)
            header = decode(file.read(LENGTH_BYTES + length))
    except (OSError, ValueError):
        return None
    return header.columns if header.fingerprint == fingerprint else None


def notes(store: Store) -> Iterator[Note]:
    """Read every note of the store."""
    for folder in folders_in(store, "notes"):
        for file in files_in(store, folder):
            key = file.name.removesuffix(_NOTE_SUFFIX)
            if file.name.endswith(_NOTE_SUFFIX) and is_hex(key):
                value = read_note(store.place, file.path, key)
                yield Note(file, value, _about(key, value or {}), value is not None or _is_readable(store, file.path))


def _is_readable(store: Store, path: str) -> bool:
    try:
        with open_regular(store.path / path) as file:
            file.read(1)
    except OSError:
        return False
    return True


def _about(key: str, value: dict[str, Any]) -> str | None:
    """Find the table that a note is about: it says so, or it says how that table's trunk was probed."""
    told = value.get("table", value.get("trunk"))
    if is_hex(told):
        return str(told)
    return key if value and value.keys() <= _PROBE_FACTS else None


def temporary_files(store: Store) -> list[File]:
    """List the files that some writer, living or dead, had not finished."""
    folders = ["", "tables", "notes", *folders_in(store, "tables"), *folders_in(store, "notes")]
    return [
        file for folder in folders if is_inside(store, folder) for file in files_in(store, folder) if file.is_temporary
    ]


@contextmanager
def named_in_result() -> Iterator[None]:
    """Leave out the warnings that name damaged segments, where the result names them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedSegmentWarning)
        yield
