"""Who counts: counters see the whole device, so at one time one span of work on a machine may count a component.

Each component has a file in a folder that all users of the machine share, and whoever counts holds a lock on it. The
kernel lets go of it when its process ends, however that ends.
"""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

if sys.platform != "win32":
    import fcntl

FOLDER = Path("/tmp")
LOCKS = Path("/proc/locks")
COUNTED_BY = "counted by"


class Ownership:
    """The components that one span of work may count. Leaving the `with` block lets go of them.

    Args:
        folder: Where the files are; `FOLDER` when None.

    Attributes:
        refused: Why, for each component that somebody else counts.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Ownership(folder) as first, Ownership(folder) as second:
        ...     first.take(["gpu0"]), second.take(["gpu0", "gpu1"])
        (frozenset({'gpu0'}), frozenset({'gpu1'}))
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.refused: dict[str, str] = {}
        self._folder = folder or FOLDER
        self._held: dict[str, int] = {}

    def take(self, components: Iterable[str]) -> frozenset[str]:
        """Ask for components; say which of them this span counts from now on. May be asked again."""
        self.refused = {}
        if sys.platform == "win32":  # no such lock there; reports name spans that overlap
            return frozenset(components)
        for component in components:
            if component not in self._held:
                self._ask(component)
        return frozenset(self._held)

    def release(self) -> None:
        """Let others count."""
        while self._held:
            _, file = self._held.popitem()
            if sys.platform != "win32":
                # A forked child may hold the same open file: closing ours would not let go.
                fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _ask(self, component: str) -> None:
        path = self._folder / f"forethought-meter-{re.sub(r'[^A-Za-z0-9]+', '-', component)}.lock"
        try:
            file = _open(path)
        except OSError as error:
            self.refused[component] = f"no lock can be had on {path}: {error.strerror or error}"
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.refused[component] = f"{COUNTED_BY} {_holder(os.fstat(file).st_ino)} of this machine"
            os.close(file)
            return
        self._held[component] = file


def _open(path: Path) -> int:
    """Open for a lock only, so that a file of another user will do; a link is not followed."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _holder(inode: int) -> str:
    """Name the process that holds the lock, where the kernel tells."""
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            return "this process" if words[4] == str(os.getpid()) else f"process {words[4]}"
    return "another process"
