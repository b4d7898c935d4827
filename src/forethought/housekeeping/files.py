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

from forethought.store import Column, DamagedSegmentWarning, Segment, Store, Table
from forethought.store.claims import CLAIMS
from forethought.store.files import DEAD_AFTER_S, TEMPORARY, open_regular
from forethought.store.header import LENGTH_BYTES, MAX_HEADER_BYTES, decode, is_hex
from forethought.store.notes import MANIFESTS, MOST_BYTES, NOTES, path_of, read_note, read_sealed
from forethought.store.table import NOTE, is_segment_name, listing_failed, read_description

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
    """One note of the store, or one manifest.

    Attributes:
        kind: 'note' or 'manifest'.
        key: What it was written under.
        file: Its file.
        value: What a note says, nothing of a manifest; None if it is torn, or cannot be read.
        fingerprint: The table that it is about, if any.
        is_readable: Whether its bytes could be had at all.
    """

    kind: str
    key: str
    file: File
    value: dict[str, Any] | None
    fingerprint: str | None
    is_readable: bool

    @property
    def tables(self) -> set[str]:
        """The tables without which it says nothing: the one that it is about, or all of several."""
        several = (self.value or {}).get("tables")
        if isinstance(several, list):
            return {each for each in several if isinstance(each, str)}
        return set() if self.fingerprint is None else {self.fingerprint}


def folder_of(fingerprint: str) -> str:
    """Give where a table's files are."""
    return f"tables/{fingerprint}"


def files_in(store: Store, folder: str) -> list[File]:
    """List the files of a folder, by name; what vanishes meanwhile is left out.

    Raises:
        StoreError: the folder cannot be read.
    """
    if store.place.folder is None:
        return [file for file in files_below(store, folder) if file.path.rpartition("/")[0] == folder]
    found = []
    for entry in _entries(store, folder):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode) or is_segment_name(entry.name):  # what claims to be one is looked at
            found.append(File(f"{folder}/{entry.name}".lstrip("/"), status.st_size, status.st_mtime))
    return found


def files_below(store: Store, folder: str) -> list[File]:
    """List the files of a folder and of the folders in it. Raises as `files_in` does."""
    if store.place.folder is not None:
        inside = [f"{folder}/{entry.name}".lstrip("/") for entry in _entries(store, folder) if _is_folder(entry)]
        return [file for each in (folder, *inside) for file in files_in(store, each)]
    try:
        return sorted((File(path, *stamp) for path, stamp in store.place.files(folder)), key=lambda file: file.path)
    except OSError as err:
        raise listing_failed(store.place, folder, err) from err


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(store: Store, folder: str) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(store.path / folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise listing_failed(store.place, folder, err) from err


def is_inside(store: Store, folder: str) -> bool:
    """Say whether a folder lies in the store itself, and not somewhere that a link in it points to."""
    if store.place.folder is None:
        return True
    real, root = os.path.realpath(store.path / folder), os.path.realpath(store.path)
    return real == root or real.startswith(root + os.sep)


def is_quiet(store: Store, folder: str) -> bool:
    """Say whether nothing came into a folder, or went, for so long that nobody can still be writing there."""
    if store.place.folder is None:
        return all(file.is_old for file in files_in(store, folder))
    try:
        return time.time() - (store.path / folder).stat().st_mtime > DEAD_AFTER_S
    except OSError:
        return False


def remove(store: Store, path: str) -> bool:
    """Remove a file, or a folder (its path ends with '/') unless something is in it. Say whether it was there.

    Raises:
        OSError: it cannot be removed, or lies elsewhere, where a link points to.
    """
    if store.place.folder is None:
        if not path.endswith("/"):  # a bucket has no folders
            store.place.remove(path)
        return True
    if not is_inside(store, path.rstrip("/").rpartition("/")[0]):
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


def names_of(store: Store, fingerprint: str) -> set[str]:
    """Give what notes may call a table: its fingerprint, and that of its trunk where its rows are stored smaller."""
    described = read_description(store.place, folder_of(fingerprint), fingerprint)
    trunk = described[1].get("trunk") if described is not None else None
    return {fingerprint, str(trunk)} if is_hex(trunk) else {fingerprint}


def segment_of(store: Store, path: str, table: Table) -> Segment:
    """Open a segment by its path."""
    return Segment(store.place, path, table.fingerprint, table.columns)


def is_torn(store: Store, fingerprint: str) -> bool:
    """Say whether a table's note is there but does not say what the columns are."""
    folder = folder_of(fingerprint)
    return store.stamp(f"{folder}/{NOTE}") is not None and read_description(store.place, folder, fingerprint) is None


def _columns_of(store: Store, path: str, fingerprint: str) -> tuple[Column, ...] | None:
    """Read what a segment says of its columns, in the order of its own layout."""
    try:
        with open_regular(store.place.local(path)) as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES:
                return None
            file.seek(0)
            header = decode(file.read(LENGTH_BYTES + length))
    except (OSError, ValueError):
        return None
    return header.columns if header.fingerprint == fingerprint else None


def notes(store: Store) -> Iterator[Note]:
    """Read every note and every manifest of the store."""
    for kind, folder in (("note", NOTES), ("manifest", MANIFESTS)):
        for file in files_below(store, folder):
            key, dot, end = file.name.partition(".")
            if not dot or end != kind or not is_hex(key) or file.path != path_of(folder, key):
                continue
            value, is_readable = None, True
            try:
                if kind == "note":
                    value = read_note(store.place, file.path, key)
                elif read_sealed(store.place, file.path, key, MOST_BYTES[folder]) is not None:
                    value = {}
            except OSError:
                is_readable = False
            yield Note(kind, key, file, value, _about(key, value or {}), is_readable)


def _about(key: str, value: dict[str, Any]) -> str | None:
    """Find the table that a note is about: it says so, or it says how that table's trunk was probed."""
    told = value.get("table", value.get("trunk"))
    if is_hex(told):
        return str(told)
    return key if value and value.keys() <= _PROBE_FACTS else None


def temporary_files(store: Store) -> list[File]:
    """List the files that somebody, living or dead, had not finished, and the claims to work."""
    found = files_in(store, "")
    for folder in ("tables", NOTES, MANIFESTS, CLAIMS):
        found += [file for file in files_below(store, folder) if is_inside(store, file.path.rpartition("/")[0])]
    return [file for file in found if file.is_temporary or file.path.startswith(f"{CLAIMS}/")]


@contextmanager
def named_in_result() -> Iterator[None]:
    """Leave out the warnings that name damaged segments, where the result names them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedSegmentWarning)
        yield
