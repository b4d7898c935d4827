"""What no reader of a store can or needs to use."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from forethought.extracting.manifest import Manifest
from forethought.housekeeping.files import (
    File,
    Note,
    files_in,
    folder_of,
    is_inside,
    is_quiet,
    is_torn,
    named_in_result,
    names_of,
    open_table,
    temporary_files,
)
from forethought.housekeeping.soundness import Checked, check_segments
from forethought.store import Bucket, DamagedSegmentError, Store
from forethought.store.table import NOTE, listing_failed

_KEY = np.dtype("S16")


@dataclass(frozen=True)
class Piece:
    """Files that may go together, and why.

    Attributes:
        kind: 'table', 'damaged segment', 'repeated segment', 'note', 'manifest', 'temporary file', 'claim', or
            'local copy' of what is gone from a bucket, which is no part of the store.
        name: What a person calls it: a fingerprint or a file.
        reason: Why it may go.
        files: The files, in the order in which they go.
        folder: The folder that they leave empty, if nobody can still be writing there; else None.
    """

    kind: str
    name: str
    reason: str
    files: tuple[File, ...]
    folder: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.size_bytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows."""
        named = {"kind": self.kind, "name": self.name, "reason": self.reason, "size_bytes": self.size_bytes}
        return named | {"files": [file.path for file in self.files]}


COPY = "local copy"


def find_orphans(store: Store) -> Iterator[Piece]:
    """Find what this machine's cache holds of objects that a bucket does not hold any more."""
    if isinstance(store.place, Bucket):
        try:
            orphans = store.place.orphans()
        except OSError as err:
            raise listing_failed(store.place, "", err) from err
        for copy in orphans:
            with suppress(FileNotFoundError):
                state = copy.lstat()
                file = File(str(copy), state.st_size, state.st_mtime)
                yield Piece(COPY, file.path, "what it is a copy of is gone from the bucket", (file,))


def find_unreachable(
    store: Store, fingerprints: Sequence[str], notes: Sequence[Note], progress: Callable[[int], None]
) -> tuple[list[Piece], list[str]]:
    """Find what may go from some tables of a store and from beside them; every byte is read.

    Args:
        store: The store.
        fingerprints: The tables that stay; those outside the store, where a link points to, are not looked into.
        notes: All notes of the store.
        progress: Called with the bytes of each segment that was read.

    Returns:
        What may go, and in words what cannot be judged.
    """
    pieces: list[Piece] = []
    left_alone: list[str] = []
    for fingerprint in fingerprints:
        if not is_inside(store, folder_of(fingerprint)):
            continue
        files = files_in(store, folder_of(fingerprint))
        if not any(file.is_segment for file in files):
            pieces += [_empty(store, fingerprint, files)] if is_quiet(store, folder_of(fingerprint)) else []
            continue
        sound = []
        for each in check_segments(store, fingerprint):
            progress(each.file.size_bytes)
            if each.error is None:
                sound.append(each)
            elif each.is_readable:
                pieces.append(_single("damaged segment", each.file, each.error))
            else:
                left_alone.append(f"{each.file.path}: {each.error}")
        pieces += [_single("repeated segment", file, "others hold each of its rows") for file in _repeated(sound)]
        if sound and is_torn(store, fingerprint):
            torn = [file for file in files if file.name == NOTE]
            pieces += [_single("note", file, "it is torn; segments say what it said") for file in torn]
    for file in temporary_files(store):
        if file.is_old:
            kind = "temporary file" if file.is_temporary else "claim"
            pieces.append(_single(kind, file, "who left it has been gone for a day or more"))
    pieces += _lonely(store, fingerprints, notes)
    pieces += _stray(notes, frozenset(name for each in store.tables() for name in names_of(store, each)))
    pieces += _forgotten(store, fingerprints, notes)
    return pieces, left_alone


def _forgotten(store: Store, fingerprints: Sequence[str], notes: Sequence[Note]) -> Iterator[Piece]:
    """Find manifests of data sets of which no sample has a row in any table that stays."""
    with named_in_result():
        tables = [table for each in fingerprints if (table := open_table(store, each)) is not None]
        for note in notes:
            if note.kind == "manifest" and note.value is not None and note.file.is_old:
                manifest = Manifest.from_bytes(store.read_manifest(note.key) or b"")
                if manifest is not None and not any((t.locate(manifest.keys)[:, 0] >= 0).any() for t in tables):
                    yield _single("manifest", note.file, "none of its samples has a row")


def _lonely(store: Store, fingerprints: Sequence[str], notes: Sequence[Note]) -> Iterator[Piece]:
    """Find notes of the forms of samples, which are of no table and of no use once none has rows."""
    if not any(file.is_segment for each in fingerprints for file in files_in(store, folder_of(each))):
        for note in notes:
            if note.value is not None and note.value.keys() == {"kinds"} and note.file.is_old:
                yield _single("note", note.file, "it tells forms of samples, and no table has a row")


def _stray(notes: Sequence[Note], fingerprints: frozenset[str]) -> Iterator[Piece]:
    for note in notes:
        if note.value is None and note.is_readable:
            yield _single(note.kind, note.file, "it is torn: readers take it for absent")
        # A note may come before the first row of its table.
        elif note.tables and not note.tables & fingerprints and note.file.is_old:
            yield _single("note", note.file, f"its table {min(note.tables)} is gone")


def _empty(store: Store, fingerprint: str, files: Sequence[File]) -> Piece:
    own = tuple(file for file in files if file.name == NOTE or file.is_temporary)
    return Piece("table", fingerprint, "it has no rows", own, folder_of(fingerprint))


def _repeated(sound: Sequence[Checked]) -> Iterator[File]:
    """Choose segments, those of few rows first, so that each of their keys stays in another.

    Two who choose at once choose the same ones, so that no key loses both of its copies.
    """
    held: list[tuple[File, Any]] = []
    for each in sound:
        assert each.segment is not None
        try:
            held.append((each.file, np.unique(each.segment.keys.view(_KEY)[:, 0])))
        except DamagedSegmentError:
            continue  # it went a moment ago
    if len(held) < 2:
        return
    keys, counts = np.unique(np.concatenate([own for _, own in held]), return_counts=True)
    for file, own in sorted(held, key=lambda item: (len(item[1]), item[0].name)):
        at = np.searchsorted(keys, own)
        if bool((counts[at] > 1).all()):
            counts[at] -= 1
            yield file


def _single(kind: str, file: File, reason: str) -> Piece:
    return Piece(kind, file.path, reason, (file,))
