"""The ledger of a store: what the rows of each table cost to compute, and when they were last of use.

One note a run that computed rows, under a key that no other run draws, so that nothing is lost when many processes
write at once; and one note a table for its last use, where a lost update costs nothing. A ledger that is lost or torn
changes no row.
"""

import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from torch import nn
from torch.utils.data import DataLoader, Subset

from forethought.store import Store
from forethought.store.notes import NOTES
from forethought.store.table import listing_failed

DAY_S = 24 * 3600.0
_PREFIX, _TIME, _RANDOM = 32, 16, 16  # hex digits of a key: whose table, when in nanoseconds, which run
_USED = "0" * (_TIME + _RANDOM)


@dataclass(frozen=True)
class Entry:
    """One run, as it was recorded; None and "" where it did not say.

    Attributes:
        time: When it ended, in seconds since 1970.
        rows_computed: Rows that it computed and stored; 0 if it only read.
        time_s: Seconds that it took.
        energy_j: Joules; None where they were not measured.
        energy_source: What measured them, or why nothing did.
        model: The model's class.
        dataset: The data set's class and length.
        torch: The version of torch.
        device: The type of device that it ran on.
    """

    time: float
    rows_computed: int = 0
    time_s: float | None = None
    energy_j: float | None = None
    energy_source: str = ""
    model: str = ""
    dataset: str = ""
    torch: str = ""
    device: str = ""


def run_facts(report: Mapping[str, Any], model: nn.Module, dataset: Any, device: str) -> dict[str, Any]:
    """Say what is kept of a run: its report, and the names of what it ran on."""
    dataset = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    kinds = [type(dataset).__qualname__]
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
        kinds.append(type(dataset).__qualname__)
    return {
        "rows_computed": report["rows_computed"],
        "time_s": report["time_s"],
        "energy_j": report["energy_j"],
        "energy_source": report["energy_source"],
        "model": type(model).__qualname__,
        "dataset": f"{' of '.join(kinds)} of {report['rows']:,}",
        "torch": str(torch.__version__),
        "device": device,
    }


def record_run(store: Store, fingerprint: str, facts: Mapping[str, Any]) -> None:
    """Keep what a run says of itself: all of it if it computed rows, else at most once a day that it was here.

    Args:
        store: Where its table is. Nothing is written to a read-only one.
        fingerprint: Its table's.
        facts: Fields of `Entry` but `time`, as far as they are known.

    Raises:
        StoreError: the store cannot be written, or a fact is no JSON value.
    """
    if store.readonly:
        return
    now = time.time()
    if facts.get("rows_computed"):
        unique = f"{time.time_ns():0{_TIME}x}{secrets.token_hex(_RANDOM // 2)}"
    elif abs(now - (last_used(store, fingerprint) or 0.0)) < DAY_S:
        return
    else:
        unique = _USED
    store.write_note(_prefix(fingerprint) + unique, {"table": fingerprint, "time": now, "run": dict(facts)})


def read_ledger(store: Store, fingerprint: str) -> tuple[Entry, ...]:
    """Give what was recorded of a table, oldest first. What is torn or foreign is left out.

    Raises:
        StoreError: the notes cannot be listed.
    """
    notes = (store.note(key) for key in _keys(store, fingerprint))
    entries = [_entry(note) for note in notes if note is not None and note.get("table") == fingerprint]
    return tuple(sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.time))


def last_used(store: Store, fingerprint: str) -> float | None:
    """Give when a table was last filled or read, in seconds since 1970; None if that was not recorded.

    Names say when a run ended, so one note is read at most.

    Raises:
        StoreError: the notes cannot be listed.
    """
    ended = [int(key[_PREFIX : _PREFIX + _TIME], 16) / 1e9 for key in _keys(store, fingerprint)]
    read = store.note(_prefix(fingerprint) + _USED) or {}
    if read.get("table") == fingerprint and (when := _number(read.get("time"))) is not None:
        ended.append(when)
    return max(ended) or None if ended else None


def _prefix(fingerprint: str) -> str:
    return blake3(b"ledger " + fingerprint.encode("ascii")).hexdigest()[:_PREFIX]


def _keys(store: Store, fingerprint: str) -> list[str]:
    """List the keys of a table's entries.

    Raises:
        StoreError: they cannot be listed: a table must not pass for one that nobody uses.
    """
    prefix = _prefix(fingerprint)
    form = re.compile(rf"({prefix}[0-9a-f]{{{_TIME + _RANDOM}}})\.note\Z")
    folder = f"{NOTES}/{prefix[:2]}"
    try:
        names = store.place.names(folder)
    except OSError as err:
        raise listing_failed(store.place, folder, err) from err
    return [match[1] for match in map(form.match, sorted(names)) if match]


def _entry(note: Mapping[str, Any]) -> Entry | None:
    """Read an entry; whatever is not of its type was not said."""
    when, run = _number(note.get("time")), note.get("run")
    if when is None or not isinstance(run, dict):
        return None
    texts = {
        name: run[name] for name in ("energy_source", "model", "dataset", "torch", "device") if _is_text(run, name)
    }
    return Entry(
        time=when,
        rows_computed=int(_number(run.get("rows_computed")) or 0),
        time_s=_number(run.get("time_s")),
        energy_j=_number(run.get("energy_j")),
        **texts,
    )


def _is_text(run: Mapping[str, Any], name: str) -> bool:
    return isinstance(run.get(name), str) and len(run[name]) <= 1000


def _number(value: Any) -> float | None:
    """Give a number that a clock, a counter or a meter could have given, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value < 2**63 else None
