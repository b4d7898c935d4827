"""Files as the store uses them: whole or absent, never half. No lock anywhere."""

import errno
import os
import secrets
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from forethought.errors import StoreError
from forethought.store.place import Place, where

TEMPORARY = ".tmp"
DEAD_AFTER_S = 24 * 3600  # a commit takes seconds, so a temporary file of yesterday has no living writer
_TICK_NS = 100_000_000  # of a file system's clock, amply
_RUN_OUT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class _Reading(FileIO):
    """A file that is only read: all of it was seen before it is closed, so a failure to close it is no news."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading. A pipe or device planted in the store must not hang the reader."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = _Reading(path, "rb", opener=lambda name, _: os.open(name, flags))
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
    except BaseException:
        file.close()
        raise
    return file


class FileState(NamedTuple):
    """What changes when a file does: which one it is, its bytes, and when content and anything of it last changed."""

    path: str
    inode: int
    size_bytes: int
    content_ns: int
    change_ns: int
    is_settled: bool  # False: it changed so shortly before that it may change again and show the same times

    @classmethod
    def of(cls, file: FileIO) -> "FileState":
        """Read the state of an open file."""
        return cls._from(os.fspath(file.name), os.fstat(file.fileno()))

    @classmethod
    def _from(cls, path: str, found: os.stat_result) -> "FileState":
        age_ns = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns)
        tick_ns = _TICK_NS if found.st_ctime_ns % 10**9 else 2 * 10**9  # some file systems know whole seconds
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, age_ns > tick_ns)

    @property
    def is_lasting(self) -> bool:
        """Whether nothing has changed since, for sure. A file that is gone does not change any more."""
        try:
            return self.is_settled and not self.differs(self._from(self.path, os.stat(self.path)))
        except OSError:
            return True

    def differs(self, other: "FileState") -> bool:
        """Say whether another file, or another content, shows."""
        return self[1:5] != other[1:5]


def write_whole(path: Path, *parts: Any) -> None:
    """Write `parts`, buffers each, so that `path` holds all of them, durably, or is as it was before."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can: Windows and some network disks cannot."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # names may be made in a folder that may not be read, and nobody can flush those
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make one folder, durably, unless it is there. Not its parent: a vanished store must not come back."""
    with suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)  # also where it is there: who made it may have died before this


def sweep(folder: Path) -> None:
    """Remove the temporary files of writers that are clearly dead. Never fails: others may sweep too."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(".") and entry.name.endswith(TEMPORARY):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > DEAD_AFTER_S:
                        Path(entry.path).unlink()


def has_run_out(err: OSError) -> bool:
    """Say whether this process ran out of descriptors or memory: a fault of the moment, not of the file."""
    return err.errno in _RUN_OUT


@contextmanager
def writing(thing: str, place: Place, path: str) -> Iterator[None]:
    """Turn any failure to write into a StoreError that says what was lost and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as err:
        home = "a folder" if place.folder is not None else "a bucket"
        # An answer that got lost on the way may have been a yes.
        fate = "Nothing of it was committed" if place.folder is not None else "Nothing of it counts as committed"
        raise StoreError(
            f"Cannot write {thing} to '{where(place, path)}': expected {home} with room and permission to write, got "
            f"{err.strerror or err}. {fate}; what was committed before stays readable. {_fix(err, place, path)}"
        ) from err


def _fix(err: OSError, place: Place, path: str) -> str:
    is_local = place.folder is not None
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and is_local:
        return f"Free some space and run again: df -h {shlex.quote(where(place, path))}"
    if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "To read only, open it with Store(path, readonly=True)."
    if err.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"The {'folder' if is_local else 'store'} is gone: open the store again with Store(path)."
    return "Run again when the disk takes writes." if is_local else "Run again when the bucket takes writes."
