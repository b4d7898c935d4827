"""The local copies of what lies in a bucket: those that nobody used for long go, the objects stay."""

import re
import time
from contextlib import suppress
from pathlib import Path

USED = ".used"  # ends the name of an empty file beside a copy, whose time says when that was last used
_UNUSED_S = 30 * 86400.0
_FOLDER = re.compile(r"[0-9a-f]{32}\Z")
_COPY = re.compile(r"[0-9a-f]{32}(\.[^.]*)?\Z")


def drop_unused(base: Path, unused_s: float = _UNUSED_S) -> None:
    """Delete copies that no process used for so long, of any store; whoever has one open keeps it.

    Args:
        base: The folder in which each store has a folder of copies. What else lies there is left alone.
        unused_s: How long, in seconds.
    """
    oldest = time.time() - unused_s
    with suppress(OSError):
        for folder in base.iterdir():
            if _FOLDER.match(folder.name) and not folder.is_symlink():
                _drop(folder, oldest)


def copies_in(folder: Path) -> list[Path]:
    """List the copies in the folder of one store, and the notes of their use; what else lies there is left out."""
    try:
        return sorted(path for path in folder.iterdir() if _COPY.match(path.name.removesuffix(USED)))
    except OSError:
        return []


def forget_copy(copy: Path) -> None:
    """Delete a copy, and the note of its use."""
    for path in (copy, copy.with_name(copy.name + USED)):
        with suppress(OSError):
            path.unlink()


def _drop(folder: Path, oldest: float) -> None:
    """Delete what is older in the folder of one store, and the folder if nothing was in it for as long."""
    with suppress(OSError):
        is_old = folder.stat().st_mtime < oldest
        for path in list(folder.iterdir()):
            copy = path.with_name(path.name.removesuffix(USED))
            if _COPY.match(copy.name) and _last_used(copy) < oldest:
                forget_copy(copy)
        if is_old:  # else somebody may be about to put something there
            folder.rmdir()  # fails unless it is empty


def _last_used(copy: Path) -> float:
    times = [0.0]
    for path in (copy, copy.with_name(copy.name + USED)):
        with suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)
