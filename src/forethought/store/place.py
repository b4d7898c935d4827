"""Where a store's files lie: a tree of files by relative posix path, each whole or absent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

MARKER = "forethought.json"


class Stamp(NamedTuple):
    """How large a file is, and when it changed by the clock of the place: comparable with one another only."""

    size_bytes: int
    changed_s: float


class Place(Protocol):
    """A tree of files. `forethought.testing.StoreContract` says what must hold of one.

    A path is relative and posix: 'tables/ab/x.safetensors'; '' is the root. A place knows nothing of what is in the
    files. Whatever fails raises OSError, FileNotFoundError and PermissionError among them; a Store turns it into a
    StoreError. Any number of threads and processes use one tree at once; a place pickles and opens nothing until asked.
    """

    @property
    def url(self) -> str:
        """What a person calls it. Holds no credentials."""

    @property
    def folder(self) -> Path | None:
        """The local folder that the files themselves lie in; None if they lie elsewhere."""

    def names(self, folder: str) -> list[str]:
        """Name what is directly in a folder, folders too, in any order; nothing if the folder is absent."""

    def files(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        """Give the path and the stamp of every file in a folder and below it."""

    def get(self, path: str, most_bytes: int) -> bytes | None:
        """Read a small file; None if it is absent. One of more than `most_bytes` is an OSError and is not read."""

    def put(self, path: str, *parts: Any, keep: bool = False) -> None:
        """Write buffers so that the path holds all of them, durably, or is as it was before.

        Args:
            path: The file; its folder has been made.
            parts: Buffers, one after the other.
            keep: The file will never change and is read back soon: `local` need not fetch it.
        """

    def put_new(self, path: str, *parts: Any) -> bool:
        """Write a small file unless there is one, as far as the place can tell; say whether it did. Need not last."""

    def remove(self, path: str) -> None:
        """Remove a file; one that is absent is no error."""

    def stamp(self, path: str) -> Stamp | None:
        """Give a file's stamp; None if it is absent."""

    def local(self, path: str, *, anew: bool = False) -> Path:
        """Give a local file with the bytes of one that never changes; `anew` trusts no earlier copy of it."""

    def make_folder(self, folder: str) -> None:
        """Make a folder unless it is there. Its parent must be: a store that vanished does not come back half.

        The root, '', is made with its parents.
        """

    def sweep(self, folder: str) -> None:
        """Remove what writers that died left behind. Never fails."""

    def is_writable(self, folder: str = "") -> bool:
        """Say whether files can be written in a folder, or where it would be made. Never raises."""


def where(place: Place, path: str) -> str:
    """Say where a file lies, in words for a person."""
    return str(place.folder / path) if place.folder is not None else f"{place.url}/{path}".rstrip("/")
