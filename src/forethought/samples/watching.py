"""Which files are opened while a sample is read, and what proves them unchanged since.

Python tells audit hooks (PEP 578) of every file that it opens, and of other ways out of the process. Code in C that
opens files by itself is not seen: whether a data set holds such code is account.py's question.
"""

import os
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from typing import Any

Stamp = tuple[int, int, int, int]
"""Inode, bytes, and the times of the last change of content and of anything, in nanoseconds."""

UNPROVEN: Stamp = (0, 0, 0, 0)
"""The stamp of a file that may yet change without a change of its stamp. Equals no file's."""

_OUTSIDE = frozenset({
    "ctypes.dlopen", "os.exec", "os.listdir", "os.posix_spawn", "os.scandir", "os.spawn", "os.system",
    "socket.connect", "sqlite3.connect", "subprocess.Popen", "urllib.Request",
})  # fmt: skip
_EVENTS = _OUTSIDE | {"open"}
_PLACES = ("/dev/", "/proc/", "/sys/", *{os.path.abspath(each) + os.sep for each in sysconfig.get_paths().values()})
_IMPORTING = "<frozen importlib"  # modules are told by their code and version
_TICK_NS, _SECOND_NS = 100_000_000, 1_000_000_000


@dataclass
class Seen:
    """What was opened during a reading.

    Attributes:
        files: Path, as it was given, and stamp of each file opened to be read, taken before it was.
        outside: Whether something was read that is no file that Python opens by name.
    """

    files: dict[str, Stamp] = field(default_factory=dict)
    outside: bool = False

    def add(self, other: "Seen") -> None:
        """Take in what another reading opened; a file's first stamp stays."""
        self.files = other.files | self.files
        self.outside |= other.outside


class Watch:
    """Sees what is opened within a `with` block, in any thread.

    Example:
        >>> with Watch() as seen:
        ...     _ = open(os.devnull).close()
        >>> list(seen.files)
        ['/dev/null']
    """

    def __enter__(self) -> Seen:
        _install()
        self._seen = Seen()
        _watching[id(self._seen)] = self._seen
        return self._seen

    def __exit__(self, *_: object) -> None:
        del _watching[id(self._seen)]


_watching: dict[int, Seen] = {}  # by identity: several threads may watch at once
_installing = threading.Lock()
_is_installed = False


def _install() -> None:
    """Ask for Python's audit events, once in a process: a hook cannot be taken away again, so it sleeps instead."""
    global _is_installed
    with _installing:
        if not _is_installed:
            sys.addaudithook(_hear)
            _is_installed = True


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in _EVENTS:
        return
    if sys._getframe(1).f_code.co_filename.startswith(_IMPORTING):
        return
    if event != "open" or isinstance(arguments[0], int):  # a descriptor that was opened before, who knows of what
        for seen in list(_watching.values()):
            seen.outside = True
        return
    path, _, flags = arguments
    if flags & os.O_ACCMODE == os.O_WRONLY:
        return  # what is only written is not read
    name = os.fsdecode(path)
    found = stamp(name) or UNPROVEN
    for seen in list(_watching.values()):
        seen.files[name] = found


def is_installed(path: str) -> bool:
    """Say whether a file belongs to Python, to a package or to the system, or is code."""
    return path.endswith((".py", ".pyc")) or os.path.abspath(path).startswith(_PLACES)


def mapped_here() -> frozenset[int]:
    """Give the inodes of files that this process has mapped for writing.

    A page that was written, and not yet put on the disk, is written again without a change of the file's times.
    """
    try:
        with open("/proc/self/maps", "rb") as file:
            rows = [line.split(None, 5) for line in file]
    except OSError:
        return frozenset()  # not Linux
    return frozenset(int(row[4]) for row in rows if row[1][1:2] == b"w" and row[1][3:4] == b"s" and row[4] != b"0")


def stamp(path: str) -> Stamp | None:
    """Give what changes when a file does; None if there is no such file, `UNPROVEN` if it was changed just now.

    A file that is changed twice within one tick of its file system's clock has the same times after both. A time with
    a fraction of a second shows that the clock has ticks far shorter than 0.1 s; else they are taken to be of 2 s.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    tick = _TICK_NS if found.st_ctime_ns % _SECOND_NS else 2 * _SECOND_NS
    if max(found.st_mtime_ns, found.st_ctime_ns) > time.time_ns() - tick:
        return UNPROVEN
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
