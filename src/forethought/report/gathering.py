"""Find every ledger and store below a path, and read what they tell. Nothing is written."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forethought.energy.meters import LABELS, UNAVAILABLE
from forethought.errors import EnergyError, StoreError
from forethought.housekeeping import Holding, inventory
from forethought.ledger import Entry, read_ledger
from forethought.ledger.journal import FOLDER, Journaled, read_journal
from forethought.ledger.phases import BEGIN
from forethought.ledger.rows import Row, number_of, text_of
from forethought.store import Store
from forethought.store.folder import Folder
from forethought.store.place import MARKER

_DEPTH = 4
_MOST_FOLDERS = 20_000
UNKNOWN = "not recorded"


@dataclass
class Gathered:
    """Everything that a report is made of.

    Attributes:
        name: What the report is about, to a person.
        places: Where something was found.
        journal: What all ledgers tell.
        holdings: What the stores hold.
        notes: What could not be read.
        noted: Spans of which no ledger tells, only notes beside the rows that they computed.
    """

    name: str
    places: list[str] = field(default_factory=list)
    journal: Journaled = field(default_factory=Journaled)
    holdings: list[Holding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    noted: dict[str, Row] = field(default_factory=dict)

    def settle(self) -> None:
        """Add what only notes tell. Several copies of a store tell of one run: a ledger's word goes before a note's."""
        told = {row.span for row in self.journal.rows}
        self.noted = {span: row for span, row in self.noted.items() if span not in told}
        self.journal.rows += self.noted.values()

    @property
    def begun(self) -> dict[str, dict[str, Any]]:
        """Spans that began, by name."""
        found = {text_of(line.get("span")): line for line in self.journal.others if line["kind"] == BEGIN}
        return {span: line for span, line in found.items() if span}


def gather(path: str | os.PathLike[str]) -> Gathered:
    """Read a store, a run, a ledger's file, or every one of them below a folder.

    Args:
        path: A store's folder or URL, a run's folder, a project's, or a file of JSON lines.

    Raises:
        EnergyError: there is nothing to report on.
        StoreError: a store that was named itself cannot be read.
    """
    text = os.fspath(path)
    if "://" in text:
        found = Gathered(text)
        _add_store(found, Store(text, readonly=True))
        found.settle()
        return found
    root = Path(os.path.abspath(text))
    found = Gathered(root.name or str(root))
    if root.is_file():
        found.places.append(str(root))
        found.journal.read(root.read_bytes())
        if not found.journal.rows:
            raise _nothing(text, "a file without a line of a ledger")
        return found
    if not root.is_dir():
        raise _nothing(text, "nothing there")
    for folder in _folders(root):
        if (folder / MARKER).is_file():
            try:
                _add_store(found, Store(folder, readonly=True))
            except StoreError as err:
                if folder == root:
                    raise
                found.notes.append(f"{folder.relative_to(root)} was left out: {err}")
        elif (folder / FOLDER).is_dir():
            found.places.append(str(folder))
            found.journal.add(read_journal(Folder(folder)))
    if not found.places:
        raise _nothing(text, "neither")
    found.settle()
    return found


def _nothing(path: str, got: str) -> EnergyError:
    return EnergyError(
        f"Cannot report on '{path}': expected a store or a folder with a ledger, got {got}. "
        "Make one: ft.extract(model, dataset, store), or with ft.Ledger(path).phase('my work'):"
    )


def _folders(root: Path) -> Iterator[Path]:
    """Give stores and folders of ledgers, the outer ones first; what lies within a store is its own."""
    level, seen = [root], 0
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            seen += 1
            is_store = (folder / MARKER).is_file()
            if is_store or (folder / FOLDER).is_dir():
                yield folder
            if not is_store and seen < _MOST_FOLDERS:
                below += _inside(folder)
        level = below


def _inside(folder: Path) -> list[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    skipped = {"node_modules", "__pycache__", FOLDER}
    return [
        Path(entry.path)
        for entry in entries
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and entry.name not in skipped
    ]


def _add_store(found: Gathered, store: Store) -> None:
    found.places.append(store.url)
    found.journal.add(read_journal(store.place))
    holdings = inventory(store)
    for holding in holdings:
        for entry in read_ledger(store, holding.fingerprint):
            if entry.rows_computed:
                row = _row_of(holding.fingerprint, entry)
                found.noted[row.span] = row
    found.holdings += holdings


def _row_of(table: str, entry: Entry) -> Row:
    """See the note that lies by a table as a row: what its rows cost is known although no ledger tells."""
    label = entry.label or next((label for label in LABELS if entry.energy_source.startswith(label)), UNAVAILABLE)
    energy_j = entry.energy_j if label in LABELS and label != UNAVAILABLE else None
    return Row(
        span=entry.span or f"note-{table[:16]}-{entry.time:.6f}",
        phase="extract",
        machine=entry.machine or UNKNOWN,
        start=max(0.0, entry.time - (entry.time_s or 0.0)),
        time_s=number_of(entry.time_s) or 0.0,
        component="all" if energy_j is not None else None,
        energy_j=energy_j,
        label=label if energy_j is not None else UNAVAILABLE,
        reason=None if energy_j is not None else entry.energy_source or UNKNOWN,
        outcome="done",
        facts={
            "table": table,
            "rows_computed": entry.rows_computed,
            "model": entry.model,
            "data": entry.dataset,
            "device": entry.device,
        },
    )
