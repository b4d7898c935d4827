"""One table: all rows that one trunk produced, as whatever segments its writers have committed."""

import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.errors import StoreError
from forethought.store.column import Bytes, Column, as_keys, check_columns
from forethought.store.files import has_run_out, writing
from forethought.store.index import Index
from forethought.store.notes import read_note, write_note
from forethought.store.place import MARKER, Place, where
from forethought.store.segment import SUFFIX, DamagedSegmentError, DamagedSegmentWarning, Segment
from forethought.store.writer import Writer, rows_per_segment

NOTE = "table.note"
MEBIBYTE = 2**20


class Table:
    """Rows under one fingerprint. Made by `Store.table`; opening it writes nothing.

    `locate` gives places only in segments whose header, size and keys were checked in this process. The bytes
    of a column are checked when `segment(number).column(name)` first maps them; if they fail, that raises
    DamagedSegmentError and the caller calls `drop(number, error)` and treats the rows as absent (another copy
    of a row, in a sound segment, is then found). A damaged segment is named in one DamagedSegmentWarning and
    in `damaged`; one that somebody removed meanwhile is absent without a word.

    A segment's number is its own for the life of this object and of its pickles, so places may be pickled
    with it. Pickles hold paths; nothing is opened until something is asked.
    """

    def __init__(
        self,
        place: Place,
        folder: str,
        fingerprint: str,
        columns: Sequence[Column],
        provenance: Mapping[str, Any],
        *,
        readonly: bool,
    ) -> None:
        self._place = place
        self._folder = folder
        self.fingerprint = fingerprint
        self.columns = tuple(columns)
        self.provenance = dict(provenance)
        self.readonly = readonly
        self.damaged: dict[str, str] = {}  # file name to reason
        self._removed: dict[str, str] = {}  # by somebody else, since they were listed
        # Numbers are positions in this list, which only ever grows: threads may read it while one refreshes.
        self._segments: list[Segment] = []
        self._index = Index()
        self._scanned = False
        self._unwarned: list[str] = []

    def __reduce__(self) -> tuple[Any, ...]:
        names = [segment.name for segment in self._segments]
        what = (self._place, self._folder, self.fingerprint, self.columns, self.provenance, self.readonly)
        return _reopen, (*what, names, self.damaged)

    def __repr__(self) -> str:
        return f"Table('{self.url}')"

    @property
    def place(self) -> Place:
        """The store's place that it lies in."""
        return self._place

    @property
    def path(self) -> Path:
        """The folder of a table of a local store.

        Raises:
            StoreError: the store is remote.
        """
        return local_folder(self._place) / self._folder

    @property
    def url(self) -> str:
        """The path of the folder, or its URL."""
        return where(self._place, self._folder)

    @property
    def is_remote(self) -> bool:
        """Whether its files must be fetched to be read."""
        return self._place.folder is None

    @property
    def rows(self) -> int:
        """Rows that can be located: committed, in sound segments, each key counted once."""
        return len(self._indexed())

    @property
    def size_bytes(self) -> int:
        """Bytes of the sound segments, rows that were written twice included."""
        self._indexed()
        # By name: two threads that refresh at once may number a file twice, which is harmless but for this sum.
        return sum({segment.name: segment.size_bytes for _, segment in self._sound()}.values())

    def locate(self, keys: NDArray[Any]) -> NDArray[np.int64]:
        """Return (segment, row) of each key: uint8 (N, 16) to int64 (N, 2); (-1, -1) where it is absent."""
        return self._indexed().find(as_keys(keys))

    def segment(self, number: int) -> Segment:
        """Return the segment that `locate` numbered so.

        Raises:
            DamagedSegmentError: it was dropped.
        """
        segment = self._numbered(number)
        if self._is_left_out(segment):
            raise DamagedSegmentError(self.damaged.get(segment.name) or self._removed[segment.name])
        return segment

    def recheck(self, numbers: Iterable[int]) -> bool:
        """Say whether files of these segments changed since their columns were checked, which are then checked anew."""
        changed = [segment for number in numbers if not (segment := self._numbered(number)).is_unchanged]
        for segment in changed:
            segment.forget()
        return bool(changed)

    def drop(self, number: int, error: DamagedSegmentError) -> None:
        """Leave a segment out from now on, in this object: its rows are absent unless another holds them."""
        self._condemn(self._numbered(number).name, error)
        self._index = Index()
        self._warn()

    def refresh(self) -> None:
        """See the segments that others committed since. What was located stays valid."""
        known = {segment.name for segment in self._segments} | self.damaged.keys()
        for name in sorted(self._names() - known):
            self._admit(name)
        self._scanned = True  # only now: after a failed listing the rows are unknown, not absent
        self._warn()

    def verify(self) -> dict[str, str]:
        """Read every byte of every segment again and drop those that fail; return `damaged`."""
        self.refresh()
        for _, segment in list(self._sound()):
            try:
                segment.check()
            except DamagedSegmentError as err:
                self._condemn(segment.name, err)
                self._index = Index()
        self._warn()
        return self.damaged

    def check_writable(self) -> None:
        """Find out, without writing, whether rows may be written here: before they are computed.

        Raises:
            StoreError: the store is readonly, or this user may not write here. A full disk shows only in writing.
        """
        if self.readonly:
            raise StoreError(
                f"Cannot write to '{self.url}': expected a writable store, got readonly=True. Open it with Store(path)."
            )
        if self._place.is_writable(self._folder) or not self._is_store_there():
            return  # a store that is gone says so when it is written to
        home = "a folder" if self._place.folder is not None else "a bucket"
        copy = f"cp -r {shlex.quote(self._place.url)} mine" if self._place.folder is not None else "with a bucket tool"
        raise StoreError(
            f"Cannot write to '{self.url}': expected {home} that this user may write to, got one that he may only "
            f"read. Nothing was computed. To add rows, copy the store and use the copy ({copy}), or ask its owner for "
            "the right to write there; to read only, open it with Store(path, readonly=True)."
        )

    def writer(self, *, segment_rows: int | None = None, segment_bytes: int = 64 * MEBIBYTE) -> Writer:
        """Return a writer whose segments hold at most `segment_rows` rows and about `segment_bytes` bytes.

        Raises:
            StoreError: the table cannot be written, or was made meanwhile with other columns.
        """
        rows = rows_per_segment(self.columns, segment_rows, segment_bytes)
        self.check_writable()
        with writing("a table", self._place, self._folder):
            self._place.make_folder(self._folder.rpartition("/")[0])
            self._place.make_folder(self._folder)
            self._describe()
        self._place.sweep(self._folder)
        return Writer(
            self._place,
            self._folder,
            self.fingerprint,
            self.columns,
            segment_rows=rows,
            segment_bytes=segment_bytes,
            committed=self._admit_committed,
        )

    def _describe(self) -> None:
        """Say on disk which columns the table has. A torn note is no loss: segments carry their own."""
        on_disk = read_description(self._place, self._folder, self.fingerprint)
        if on_disk is None:
            shapes = [{"name": c.name, "dtype": c.dtype, "shape": list(c.shape)} for c in self.columns]
            note = {"columns": shapes, "provenance": self.provenance}
            write_note(self._place, f"{self._folder}/{NOTE}", self.fingerprint, note)
        else:
            check_same(self.fingerprint, self.columns, on_disk[0])

    def _admit_committed(self, name: str) -> None:
        self._admit(name)
        self._warn()

    def _names(self) -> set[str]:
        try:
            return {name for name in self._place.names(self._folder) if is_segment_name(name)}
        except OSError as err:
            raise listing_failed(self._place, self._folder, err) from err

    def _numbered(self, number: int) -> Segment:
        if not 0 <= number < len(self._segments):
            raise StoreError(
                f"Cannot get segment {number}: expected a number from table.locate(keys), of "
                f"{len(self._segments)}. Leave out rows that are absent (-1)."
            )
        return self._segments[number]

    def _segment(self, name: str) -> Segment:
        return Segment(self._place, f"{self._folder}/{name}", self.fingerprint, self.columns)

    def _admit(self, name: str) -> None:
        segment = self._segment(name)
        try:
            _ = segment.header
        except DamagedSegmentError as err:
            self._condemn(name, err)
        else:
            self._segments.append(segment)
            self._removed.pop(name, None)

    def _is_there(self, name: str) -> bool:
        try:
            return self._place.stamp(f"{self._folder}/{name}") is not None
        except OSError as err:
            raise listing_failed(self._place, self._folder, err) from err

    def _is_store_there(self) -> bool:
        with suppress(OSError):
            return self._place.stamp(MARKER) is not None
        return False

    def _sound(self) -> Iterator[tuple[int, Segment]]:
        return ((n, each) for n, each in enumerate(self._segments) if not self._is_left_out(each))

    def _indexed(self) -> Index:
        """Return the index, with the segments admitted since the last call merged into it."""
        if not self._scanned:
            self.refresh()
        index, until = self._index, len(self._segments)
        if index.segments < until:
            self._index = index = index.merged(self._keys(index.segments, until), until)
            self._warn()
        return index

    def _keys(self, start: int, until: int) -> Iterator[tuple[int, Bytes]]:
        """Read the keys of the sound ones among some segments, one by one."""
        for number, segment in enumerate(self._segments[start:until], start):
            if not self._is_left_out(segment):
                try:
                    keys = segment.keys
                except DamagedSegmentError as err:
                    self._condemn(segment.name, err)
                else:
                    yield number, keys

    def _condemn(self, name: str, error: DamagedSegmentError) -> None:
        """Leave a segment out. One that is absent was removed since it was listed, which is no damage."""
        if not self._is_there(name):
            self._removed[name] = str(error)
        elif name not in self.damaged:
            self.damaged[name] = str(error)
            self._unwarned.append(str(error))

    def _is_left_out(self, segment: Segment) -> bool:
        return segment.name in self.damaged or segment.name in self._removed

    def _warn(self) -> None:
        """Name what was condemned. Last in every method: a warning may raise; state must be whole by then."""
        while self._unwarned:
            with suppress(IndexError):  # another thread was quicker
                warnings.warn(self._unwarned.pop(0), DamagedSegmentWarning, stacklevel=3)


def _reopen(
    place: Place,
    folder: str,
    fingerprint: str,
    columns: Sequence[Column],
    provenance: Mapping[str, Any],
    readonly: bool,
    names: Sequence[str],
    damaged: Mapping[str, str],
) -> Table:
    table = Table(place, folder, fingerprint, columns, provenance, readonly=readonly)
    table.damaged.update(damaged)
    table._segments.extend(table._segment(name) for name in names)
    return table


def is_segment_name(name: str) -> bool:
    """Say whether a file of this name claims to be a segment: temporary files begin with a dot."""
    return name.endswith(SUFFIX) and not name.startswith(".")


def read_description(place: Place, folder: str, fingerprint: str) -> tuple[tuple[Column, ...], dict[str, Any]] | None:
    """Return the columns and provenance of the table in `folder`, or None where nothing whole says them.

    Raises:
        StoreError: it cannot be known now.
    """
    try:
        note = read_note(place, f"{folder}/{NOTE}", fingerprint) or {}
    except OSError as err:
        # What this machine cannot read is as good as torn. A bucket that does not answer may yet have it.
        if place.folder is None or has_run_out(err):
            raise StoreError(
                f"Cannot open table '{where(place, folder)}': expected to read its {NOTE}, got {err.strerror or err}. "
                "Run again when it can be read."
            ) from err
        return None
    try:
        columns = [Column(item["name"], item["dtype"], tuple(item["shape"])) for item in note["columns"]]
        return check_columns(columns), dict(note["provenance"])
    except (LookupError, TypeError, ValueError, StoreError):
        return None


def listing_failed(place: Place, folder: str, err: OSError) -> StoreError:
    """Make the error for a folder whose content cannot be known: it must not pass for an empty one."""
    fix = "Give this user the right to read and enter it (chmod u+rx)."
    return StoreError(
        f"Cannot list '{where(place, folder)}': expected a readable folder, got {err.strerror or err}. "
        f"{fix if place.folder is not None else 'Run again when it can be reached.'}"
    )


def local_folder(place: Place) -> Path:
    """Return the folder of a local place; refuse for one that has none."""
    if place.folder is None:
        raise StoreError(
            f"Cannot give the path of '{place.url}': expected a local store, got a remote one. Use its url."
        )
    return place.folder


def check_same(fingerprint: str, expected: Sequence[Column], got: Sequence[Column]) -> None:
    """Raise StoreError unless the columns asked for are the ones on disk."""
    if tuple(expected) != tuple(got):
        raise StoreError(
            f"Cannot open table '{fingerprint}': expected columns {[str(c) for c in expected]}, got "
            f"{[str(c) for c in got]} on disk. Give other columns another fingerprint, or open what is "
            "there with store.table(fingerprint)."
        )
