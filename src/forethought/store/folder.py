"""A local folder as a place: files are written under another name, flushed and renamed."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.store.files import make_folder, open_regular, sweep, write_whole
from forethought.store.place import Stamp


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or one that it has mounted. What a symlink names is taken for the file, once opened."""

    folder: Path

    @property
    def url(self) -> str:
        """The path."""
        return str(self.folder)

    def names(self, folder: str) -> list[str]:
        """Name what is directly in a folder; nothing if it is absent."""
        try:
            return os.listdir(self.folder / folder)
        except FileNotFoundError:
            return []

    def files(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        """Give the path and the stamp of every file below a folder; symlinks are counted and not followed."""
        for parent, _, names in os.walk(self.folder / folder):
            at = Path(parent).relative_to(self.folder).as_posix()
            for name in names:
                path = name if at == "." else f"{at}/{name}"
                stamp = self.stamp(path)
                if stamp is not None:  # else a writer renamed or removed it meanwhile
                    yield path, stamp

    def get(self, path: str, most_bytes: int) -> bytes | None:
        """Read a regular file."""
        try:
            with open_regular(self.folder / path) as file:
                if os.fstat(file.fileno()).st_size > most_bytes:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                return file.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, path: str, *parts: Any, keep: bool = False) -> None:
        """Write under another name, flush, rename, flush the folder."""
        write_whole(self.folder / path, *parts)

    def put_new(self, path: str, *parts: Any) -> bool:
        """Create the file with O_EXCL, which one of all that try can."""
        try:
            with (self.folder / path).open("xb") as file:
                file.writelines(parts)
        except FileExistsError:
            return False
        return True

    def remove(self, path: str) -> None:
        """Unlink the name."""
        with suppress(FileNotFoundError):
            (self.folder / path).unlink()

    def stamp(self, path: str) -> Stamp | None:
        """Give size and mtime of what has this name, be it a symlink."""
        try:
            state = os.lstat(self.folder / path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stamp(state.st_size, state.st_mtime)

    def local(self, path: str, *, anew: bool = False) -> Path:
        """The file itself."""
        return self.folder / path

    def make_folder(self, folder: str) -> None:
        """Make a folder, durably."""
        if folder:
            make_folder(self.folder / folder)
        else:
            for parent in reversed(self.folder.parents):
                if not parent.exists():
                    make_folder(parent)
            make_folder(self.folder)

    def sweep(self, folder: str) -> None:
        """Remove temporary files of yesterday."""
        sweep(self.folder / folder)

    def is_writable(self, folder: str = "") -> bool:
        """Ask the system whether this user may."""
        at = self.folder / folder
        while at != self.folder and not os.path.exists(at):
            at = at.parent
        return os.access(at, os.W_OK | os.X_OK)
