"""What may go from a store, and why; then its removal.

Finding changes nothing. Removing takes away whole files that were found, by name, and nothing else: what others read
stays mapped, what others commit meanwhile has another name. Rows that went are absent, and computed when next asked
for.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forethought.errors import StoreError
from forethought.housekeeping.files import (
    File,
    Note,
    files_in,
    folder_of,
    is_inside,
    is_quiet,
    notes,
    remove,
)
from forethought.housekeeping.holdings import used
from forethought.housekeeping.unreachable import COPY, Piece, find_orphans, find_unreachable
from forethought.store import Store
from forethought.store.copies import forget_copy
from forethought.store.place import where
from forethought.store.table import NOTE


@dataclass(frozen=True)
class Garbage:
    """What may go from a store.

    Attributes:
        pieces: What may go, each with the reason.
        store_bytes: Bytes of the store before.
        left_alone: What cannot be judged or must not be touched, and why, in words.
    """

    pieces: tuple[Piece, ...]
    store_bytes: int
    left_alone: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all that may go."""
        return sum(piece.size_bytes for piece in self.pieces)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows."""
        return {
            "size_bytes": self.size_bytes,
            "store_bytes": self.store_bytes,
            "pieces": [piece.to_dict() for piece in self.pieces],
            "left_alone": list(self.left_alone),
        }


def find_garbage(
    store: Store,
    *,
    max_size_bytes: int | None = None,
    unused_s: float | None = None,
    unreachable: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Garbage:
    """Find what may go from a store. Nothing is changed; `remove_garbage` does that.

    Args:
        store: A store; read-only will do.
        max_size_bytes: Let whole tables go, least recently used first, until the store is no larger.
        unused_s: Let tables go that were neither filled nor read for more than so many seconds.
        unreachable: Let go what no reader can or needs to use: damaged segments, segments all of whose rows others
            hold, temporary files of dead writers, torn notes, what is left of tables that are gone, and this machine's
            copies of what is gone from a bucket. Reads every byte.
        progress: Called with the bytes of each segment that was read for that.

    Raises:
        StoreError: the store cannot be read.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ft.extract(model, torch.randn(10, 4), folder) and ft.Store(folder)
        ...     garbage = find_garbage(store, max_size_bytes=0)
        ...     freed = remove_garbage(store, garbage)
        ...     print([piece.kind for piece in garbage.pieces], freed == garbage.size_bytes, ft.inventory(store))
        ['table'] True ()
    """
    store_bytes = store.size_bytes
    all_notes = list(notes(store))
    inside = {each: is_inside(store, folder_of(each)) for each in store.tables()}
    left_alone = [
        f"table {fingerprint}: it lies outside the store, where a link points to"
        for fingerprint, is_own in inside.items()
        if not is_own
    ]
    filled = {each: used(store, each) for each, is_own in inside.items() if is_own and _has_rows(store, each)}
    now = time.time()
    pieces, about = [], _only_about(all_notes, frozenset(inside))
    for fingerprint, when in filled.items():
        if unused_s is not None and now - when > unused_s:
            pieces.append(_table(store, fingerprint, about, f"not used for {_ago(now - when)}"))
    if unreachable:
        going = {piece.name for piece in pieces}
        found, unjudged = find_unreachable(store, [each for each in inside if each not in going], all_notes, progress)
        pieces, left_alone = [*pieces, *found], [*left_alone, *unjudged]
    seen: set[str] = set()
    pieces = _once(pieces, seen)
    if max_size_bytes is not None:
        pieces += _least_recent(store, filled, pieces, seen, about, store_bytes, max_size_bytes)
    orphans = find_orphans(store) if unreachable else ()
    return Garbage((*pieces, *orphans), store_bytes, tuple(left_alone))


def remove_garbage(store: Store, garbage: Garbage) -> int:
    """Remove what was found. Others may read and write the store meanwhile.

    Args:
        store: Where it was found.
        garbage: From `find_garbage`.

    Returns:
        Bytes freed. What somebody else removed in the meantime does not count.

    Raises:
        StoreError: some of it cannot be removed; all the rest is gone, and the message says how much that was.
    """
    if store.readonly:
        raise StoreError(
            f"Cannot remove anything from '{where(store.place, '')}': expected a writable store, got readonly=True. "
            "Open it with Store(path)."
        )
    freed, failed = 0, []
    for piece in garbage.pieces:
        sizes = {file.path: file.size_bytes for file in piece.files}
        if piece.kind == COPY:
            freed += sum(file.size_bytes for file in piece.files if _forgotten(Path(file.path)))
            continue
        for path in [*sizes, *([f"{piece.folder}/"] if piece.folder is not None else [])]:
            try:
                freed += sizes.get(path, 0) if remove(store, path) else 0
            except OSError as err:
                failed.append(f"'{where(store.place, path)}' ({err.strerror or err})")
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise StoreError(
            f"Cannot remove {failed[0]}{more}: expected files that this user may remove, got others; {freed:,} bytes "
            "were freed. Run it as the user who owns the store."
        )
    return freed


def _forgotten(copy: Path) -> bool:
    was_there = copy.exists()
    forget_copy(copy)
    return was_there and not copy.exists()


def _has_rows(store: Store, fingerprint: str) -> bool:
    return any(file.is_segment for file in files_in(store, folder_of(fingerprint)))


def _only_about(all_notes: Sequence[Note], tables: frozenset[str]) -> dict[str, list[File]]:
    """Find for each table the notes that are about no other table that is there."""
    found: dict[str, list[File]] = {}
    for note in all_notes:
        there = note.tables & tables
        if len(there) == 1:
            found.setdefault(there.pop(), []).append(note.file)
    return found


def _least_recent(
    store: Store,
    filled: Mapping[str, float],
    pieces: Sequence[Piece],
    seen: set[str],
    about: Mapping[str, Sequence[File]],
    store_bytes: int,
    max_size_bytes: int,
) -> list[Piece]:
    """Choose whole tables beside what goes already, least recently used first, until what stays is small enough."""
    chosen: list[Piece] = []
    now, left = time.time(), store_bytes - sum(piece.size_bytes for piece in pieces)
    gone = {piece.name for piece in pieces if piece.kind == "table"}
    for fingerprint, when in sorted(filled.items(), key=lambda item: (item[1], item[0])):
        if left <= max_size_bytes:
            break
        if fingerprint not in gone:
            reason = f"last used {_ago(now - when)} ago, before others, in a store above {max_size_bytes:,} bytes"
            found = _once([_table(store, fingerprint, about, reason)], seen)
            chosen += found
            left -= sum(piece.size_bytes for piece in found)
    return chosen


def _table(store: Store, fingerprint: str, about: Mapping[str, Sequence[File]], reason: str) -> Piece:
    """All of a table: what points to its rows goes first, so that a removal that is cut short leaves nothing that lies.

    Its own note and folder go only when nobody can still be writing there. Until then they cost next to nothing, and
    a writer that is at work finds the folder that it opened.
    """
    folder = folder_of(fingerprint)
    files = files_in(store, folder)
    going = [*about.get(fingerprint, ())]
    going += [file for file in files if file.is_segment or (file.is_temporary and file.is_old)]
    if not is_quiet(store, folder) or not all(file.is_old for file in files):
        return Piece("table", fingerprint, reason, tuple(going))
    return Piece("table", fingerprint, reason, (*going, *(file for file in files if file.name == NOTE)), folder)


def _once(pieces: Iterable[Piece], seen: set[str]) -> list[Piece]:
    """Leave out files that an earlier piece has, which `seen` tells, and pieces of which nothing is left."""
    kept = []
    for piece in pieces:
        fresh = tuple(file for file in piece.files if file.path not in seen)
        seen.update(file.path for file in fresh)
        if fresh or piece.folder:
            kept.append(replace(piece, files=fresh))
    return kept


def _ago(seconds: float) -> str:
    hours = max(seconds, 0) / 3600
    return f"{hours / 24:,.0f} days" if hours >= 48 else f"{hours:,.0f} hours" if hours >= 2 else "less than 2 hours"
