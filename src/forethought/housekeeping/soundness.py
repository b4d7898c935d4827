"""Whether every byte of a store is as it was written."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from forethought.errors import StoreError
from forethought.housekeeping.files import (
    File,
    files_in,
    folder_of,
    is_torn,
    notes,
    open_table,
    segment_of,
)
from forethought.ledger.journal import MOST_BYTES, Journaled, journal_paths
from forethought.store import DamagedSegmentError, Segment, Store
from forethought.store.place import where
from forethought.store.table import NOTE

_UNREADABLE = "Give this user the right to read it (chmod u+r), or look after the disk."
_AGAIN = (
    "Its rows are computed again by ft.extract(model, dataset, store); "
    "forethought store gc {} --unreachable removes it."
)
_HARMLESS = (
    "No row is lost: it is written again when it is next needed; forethought store gc {} --unreachable removes it."
)


@dataclass(frozen=True)
class Fault:
    """One file that is not what was written: its path, what is wrong with it, and what to do."""

    path: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Findings:
    """What reading all of a store showed.

    Attributes:
        tables: Tables that hold segments.
        segments: Segments read.
        notes: Notes and manifests read.
        size_bytes: Bytes read.
        faults: The files that are damaged or torn.
    """

    tables: int
    segments: int
    notes: int
    size_bytes: int
    faults: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows."""
        return asdict(self) | {"is_sound": self.is_sound, "faults": [asdict(fault) for fault in self.faults]}


@dataclass(frozen=True)
class Checked:
    """One segment, read from the first byte to the last.

    Attributes:
        file: Its file.
        segment: It; None where the columns of its table are unknown.
        error: What is wrong with it, or None.
        is_readable: Whether its bytes could be had at all: a disk that refuses says nothing of them.
    """

    file: File
    segment: Segment | None
    error: str | None
    is_readable: bool


def verify_store(store: Store, progress: Callable[[int], None] = lambda _: None) -> Findings:
    """Read every byte of every segment and note. Nothing is changed.

    Args:
        store: A store; read-only will do.
        progress: Called with the bytes of each segment once it was read.

    Returns:
        What was read, and each file that is not what was written.

    Raises:
        StoreError: the store cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     verify_store(ft.Store(folder)).is_sound
        True
    """
    faults, tables, segments, size_bytes = [], 0, 0, 0
    home = where(store.place, "")
    for fingerprint in store.tables():
        if is_torn(store, fingerprint):
            reason = "expected the digest of the note's key and content in its first line, got another."
            path = where(store.place, f"{folder_of(fingerprint)}/{NOTE}")
            faults.append(Fault(path, reason, _HARMLESS.format(home)))
        count = 0
        for each in check_segments(store, fingerprint):
            count += 1
            size_bytes += each.file.size_bytes
            progress(each.file.size_bytes)
            if each.error is not None:
                fix = _AGAIN.format(home) if each.is_readable else _UNREADABLE
                faults.append(Fault(where(store.place, each.file.path), each.error, fix))
        tables, segments = tables + bool(count), segments + count
    noted = 0
    for note in notes(store):
        noted, size_bytes = noted + 1, size_bytes + note.file.size_bytes
        if note.value is None and store.stamp(note.file.path) is not None:
            reason = "expected the digest of the note's key and content in its first line, got another."
            fix = _HARMLESS.format(home) if note.is_readable else _UNREADABLE
            faults.append(Fault(where(store.place, note.file.path), reason, fix))
    faults += _lines_lost(store)
    return Findings(tables, segments, noted, size_bytes, tuple(faults))


def _lines_lost(store: Store) -> Iterator[Fault]:
    """Read the ledger; name each file with lines that are not what was written."""
    for path in journal_paths(store.place):
        found, path_in_words = Journaled(), where(store.place, path)
        try:
            found.read(store.place.get(path, MOST_BYTES) or b"")
        except OSError as err:
            yield Fault(path_in_words, f"expected a file, got {err.strerror or err}.", _UNREADABLE)
            continue
        if found.unreadable:
            reason = f"expected lines that end with a digest of the rest, got {found.unreadable} that do not."
            yield Fault(
                path_in_words, reason, "No row is lost: the ledger tells what was spent, and does without them."
            )


def check_segments(store: Store, fingerprint: str) -> Iterator[Checked]:
    """Read each segment of a table, whole. One that somebody removed meanwhile is no damage.

    Raises:
        StoreError: this process has run out of descriptors or memory.
    """
    table = open_table(store, fingerprint)
    for file in files_in(store, folder_of(fingerprint)):
        if not file.is_segment:
            continue
        if table is None:
            reason = "expected columns from the table's note or from all its segments alike, got neither."
            yield Checked(file, None, reason, is_readable=False)
            continue
        checked = _check(file, segment_of(store, file.path, table))
        if checked.error is None or store.stamp(file.path) is not None:
            yield checked


def _check(file: File, segment: Segment) -> Checked:
    try:
        segment.check()
    except DamagedSegmentError as err:
        return Checked(file, segment, _said(err), is_readable=not isinstance(err.__cause__, OSError))
    return Checked(file, segment, None, is_readable=True)


def _said(err: StoreError) -> str:
    """Give what was expected and found; housekeeping names the file and the fix itself."""
    whole = str(err).partition(" Its rows count as absent")[0]
    return whole[whole.find("expected ") :]
