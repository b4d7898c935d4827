"""In which ways rows of one frozen part are stored: exactly, in fewer bits, or run in a faster way."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from forethought.extracting.precision import Dtype
from forethought.extracting.ways import SpeedReport
from forethought.store import Store, Table
from forethought.store.table import read_description

EXACT = "exact"
_DTYPES: dict[str, Dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": "int8"}


@dataclass(frozen=True)
class WayStored:
    """One table of rows of a frozen part.

    Attributes:
        table: It.
        stored: "float16", "bfloat16" or "int8"; None for exactly.
        speed: How the frozen part was run, if not by its own operations.
    """

    table: Table
    stored: str | None
    speed: SpeedReport | None

    @property
    def name(self) -> str:
        """What it is called: "exact", "float16", "folded + compiled", "folded, float16"."""
        parts = [self.speed.way.name] if self.speed is not None else []
        return ", ".join([*parts, *([self.stored] if self.stored is not None else [])]) or EXACT

    @property
    def dtype(self) -> Dtype:
        """As it was given to `extract`."""
        return None if self.stored is None else _DTYPES[self.stored]


def ways_stored(store: Store, fingerprint: str) -> Iterator[WayStored]:
    """Find the tables that hold rows of a frozen part, by its fingerprint: those that say so, the exact one first."""
    speeds: dict[str, SpeedReport] | None = None
    for key in sorted(store.tables(), key=lambda key: (key != fingerprint, key)):
        described = read_description(store.place, f"tables/{key}", key)
        if described is None:
            continue
        told, table = described[1], store.table(key)
        if key == fingerprint:
            yield WayStored(table, None, None)
        elif told.get("trunk") == fingerprint:
            speed = None
            if told.get("speed") is not None:
                speeds = _speeds(store, fingerprint) if speeds is None else speeds
                speed = speeds.get(str(told["speed"]))
                if speed is None:
                    continue  # what was allowed of it is not known any more
            stored = told.get("stored")
            if stored is None or (isinstance(stored, str) and stored in _DTYPES):
                yield WayStored(table, stored, speed)


def _speeds(store: Store, fingerprint: str) -> dict[str, SpeedReport]:
    """Read what the store remembers of ways to run a frozen part; of one that was chosen twice, the stricter choice."""
    found: dict[str, SpeedReport] = {}
    for key in store.notes():
        note = store.note(key) or {}
        report = SpeedReport.from_json(note) if note.get("trunk") == fingerprint else None
        if report is not None and report.tolerance <= found.get(report.way.name, report).tolerance:
            found[report.way.name] = report
    return found
