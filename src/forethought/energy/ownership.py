"""Who counts: counters see the whole device, so at one time one span of work on a machine may count a component.

Each component has a file in a folder that all users of the machine share, and whoever counts holds a lock on it. The
kernel lets go of it when its process ends, however that ends. What counts the whole machine, such as a plug, has seen
what the counters saw: it holds the machine's own file alone, and whoever counts a component shares that file.
"""

import os
import re
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

if sys.platform != "win32":
    import fcntl

FOLDER = Path("/tmp")
LOCKS = Path("/proc/locks")
COUNTED_BY = "counted by"
_MACHINE = "whole machine"


class Ownership:
    """The components that one span of work may count. Leaving the `with` block lets go of them.

    Args:
        folder: Where the files are; `FOLDER` when None.

    Attributes:
        refused: Why, for each component that somebody else counts.
        has_machine: Whether it counts the whole machine.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Ownership(folder) as first, Ownership(folder) as second:
        ...     first.take(["gpu0"]), second.take(["gpu0", "gpu1"])
        (frozenset({'gpu0'}), frozenset({'gpu1'}))
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.refused: dict[str, str] = {}
        self.has_machine = False
        self._folder = folder or FOLDER
        self._held: dict[str, int] = {}

    def take(
        self, components: Iterable[str], *, whole: Collection[str] = (), is_within: bool = False
    ) -> frozenset[str]:
        """Ask for components; say which of them this span counts from now on. May be asked again.

        Args:
            components: Their names.
            whole: Those that count the whole machine.
            is_within: A span around this one counts the whole machine, and holds what this one counts.
        """
        self.refused = {}
        if sys.platform == "win32":  # no such lock there; reports name spans that overlap
            return frozenset(components)
        for component in sorted(components, key=lambda name: name not in whole):
            if component not in self._held:
                reason = None if is_within else self._share(component in whole)
                reason = reason or self._ask(component, fcntl.LOCK_EX)
                if reason is not None:
                    self.refused[component] = reason
        if self._held.keys() == {_MACHINE}:  # others need not wait for who counts nothing
            self.release()
        return frozenset(self._held) - {_MACHINE}

    def release(self) -> None:
        """Let others count."""
        self.has_machine = False
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

    def _share(self, is_whole: bool) -> str | None:
        """Hold the machine's file, alone if all of it is counted; say why not."""
        if self.has_machine or (_MACHINE in self._held and not is_whole):
            return None
        if _MACHINE in self._held:  # counted in part so far: the kernel does not change such a lock at once
            self.release()
        reason = self._ask(_MACHINE, fcntl.LOCK_EX if is_whole else fcntl.LOCK_SH)
        self.has_machine = is_whole and reason is None
        return reason

    def _ask(self, component: str, how: int) -> str | None:
        """Lock a component's file; say why not."""
        path = self._folder / f"forethought-meter-{re.sub(r'[^A-Za-z0-9]+', '-', component)}.lock"
        try:
            file = _open(path)
        except OSError as error:
            return f"no lock can be had on {path}: {error.strerror or error}"
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(os.fstat(file).st_ino)
            os.close(file)
            return f"{COUNTED_BY} {holder} of this machine"
        self._held[component] = file
        return None


def _open(path: Path) -> int:
    """Open for a lock only, so that a file of another user will do; a link is not followed, a pipe not waited for."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        if os.fstat(file).st_uid == os.getuid():
            os.fchmod(file, 0o644)  # whatever this user's mask: other users ask for it, too
        return file


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
