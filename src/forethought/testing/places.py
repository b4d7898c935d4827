"""Rows that can be judged one by one, trees of files to copy, and places that fail."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from forethought.store import Column, DamagedSegmentError, Place, Stamp, Table
from forethought.store.place import MARKER

OpenPlace = Callable[[str], Place]

COLUMNS = (Column("0", "F32", (3,)), Column("1", "BF16", ()))
SEGMENT_ROWS = 4
MOST_BYTES = 2**40


def make_rows(numbers: Sequence[int], columns: Sequence[Column] = COLUMNS) -> tuple[Any, list[Any]]:
    """Return keys (N, 16) and the bytes of each column; a row follows from its number, so each can be judged alone."""
    width = 16 + sum(column.row_bytes for column in columns)
    rows = [np.random.default_rng(number).integers(0, 256, width, dtype=np.uint8) for number in numbers]
    whole = np.array(rows, np.uint8).reshape(len(rows), width)
    ends = np.cumsum([16, *(column.row_bytes for column in columns)])
    keys, *parts = np.split(whole, ends[:-1], axis=1)
    return np.ascontiguousarray(keys), [np.ascontiguousarray(part) for part in parts]


def write_rows(table: Table, numbers: Sequence[int], segment_rows: int = SEGMENT_ROWS) -> None:
    """Commit the rows of these numbers."""
    with table.writer(segment_rows=segment_rows) as writer:
        writer.append(*make_rows(numbers, table.columns))


def read_rows(table: Table, numbers: Sequence[int]) -> set[int]:
    """Return the numbers of those rows that are served, having looked at every byte of them.

    Damaged segments are dropped as a careful caller does, and another copy of their rows is looked for.
    """
    keys, parts = make_rows(numbers, table.columns)
    while True:
        served = set()
        try:
            for at, (number, row) in enumerate(table.locate(keys).tolist()):
                if number >= 0:
                    for column, part in zip(table.columns, parts, strict=True):
                        assert bytes(table.segment(number).column(column.name)[row]) == bytes(part[at]), "a wrong row"
                    served.add(numbers[at])
        except DamagedSegmentError as err:
            table.drop(number, err)
        else:
            return served


def copy_tree(source: Place, target: Place) -> None:
    """Copy all files from place to place, as any tool would."""
    target.make_folder("")
    for path, _ in sorted(source.files(""), key=lambda item: (item[0] != MARKER, item)):
        raw = source.get(path, MOST_BYTES)
        assert raw is not None
        folders = path.split("/")[:-1]
        for depth in range(len(folders)):
            target.make_folder("/".join(folders[: depth + 1]))
        target.put(path, raw)


class FaultyPlace:
    """A place of which one call fails, or does its work and then fails to say so.

    Args:
        place: What it stands before.
        fail_at: How many calls go well before.
        error: What to raise.
        is_done: Let the call do its work first.
    """

    def __init__(self, place: Place, fail_at: int, error: Exception, *, is_done: bool = False) -> None:
        self._place = place
        self._left = fail_at
        self._error = error
        self._is_done = is_done

    @property
    def has_failed(self) -> bool:
        """Whether the call that fails has been made."""
        return self._left < 0

    @property
    def url(self) -> str:
        """As the place's."""
        return self._place.url

    @property
    def folder(self) -> Path | None:
        """As the place's."""
        return self._place.folder

    def names(self, folder: str) -> list[str]:
        """As the place's, but for the fault; and so on."""
        return cast(list[str], self._call("names", folder))

    def files(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        """See `names`."""
        return iter(self._call("files", folder))

    def get(self, path: str, most_bytes: int) -> bytes | None:
        """See `names`."""
        return cast(bytes | None, self._call("get", path, most_bytes))

    def put(self, path: str, *parts: Any, keep: bool = False) -> None:
        """See `names`."""
        self._call("put", path, *parts, keep=keep)

    def put_new(self, path: str, *parts: Any) -> bool:
        """See `names`."""
        return bool(self._call("put_new", path, *parts))

    def remove(self, path: str) -> None:
        """See `names`."""
        self._call("remove", path)

    def stamp(self, path: str) -> Stamp | None:
        """See `names`."""
        return cast(Stamp | None, self._call("stamp", path))

    def local(self, path: str, *, anew: bool = False) -> Path:
        """See `names`."""
        return cast(Path, self._call("local", path, anew=anew))

    def make_folder(self, folder: str) -> None:
        """See `names`."""
        self._call("make_folder", folder)

    def sweep(self, folder: str) -> None:
        """It never fails."""
        self._place.sweep(folder)

    def is_writable(self, folder: str = "") -> bool:
        """It never fails."""
        return self._place.is_writable(folder)

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        self._left -= 1
        fails = self._left == -1
        result = None if fails and not self._is_done else getattr(self._place, name)(*args, **options)
        if name == "files" and result is not None:
            result = list(result)
        if fails:
            raise self._error
        return result


def segments_of(place: Place) -> list[str]:
    """Name the segments of table ab."""
    return sorted(name for name in place.names("tables/ab") if name.endswith(".safetensors"))
