"""Beside each table, what its rows cost to compute and when they were last of use: whoever reuses them knows the price.

One note a run that computed rows, under a key that no other run draws, so that nothing is lost when many processes
write at once; and one note a table for its last use, where a lost update costs nothing. A ledger that is lost or torn
changes no row.
"""

import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from torch import nn
from torch.utils.data import DataLoader, Subset

from forethought.energy.meters import LABELS, UNAVAILABLE
from forethought.errors import StoreError
from forethought.ledger.machine import this_machine
from forethought.store import Store
from forethought.store.notes import NOTES
from forethought.store.table import listing_failed

DAY_S = 24 * 3600.0
_PREFIX, _TIME, _RANDOM = 32, 16, 16  # hex digits of a key: whose table, when in nanoseconds, which run
_USED = "0" * (_TIME + _RANDOM)
_TEXTS = ("energy_source", "model", "dataset", "torch", "device", "machine", "label", "span")


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
        machine: Where it ran, as `this_machine().id` names it.
        label: How the joules are known.
        span: Its name in the ledger.
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
    machine: str = ""
    label: str = ""
    span: str = ""


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
        "machine": this_machine().id,
    }


@dataclass(frozen=True)
class Avoided:
    """What rows that were there already would have taken to compute.

    Attributes:
        time_s: Seconds, at what such rows took on this machine and kind of device; None if they never did here.
        energy_j: Joules, likewise; None where they were not measured.
        label: How the joules are known.
        remark: Where the numbers come from, or why there are none.
    """

    time_s: float | None
    energy_j: float | None
    label: str
    remark: str


def avoided(entries: Sequence[Entry], rows: int, machine: str, device: str) -> Avoided:
    """Say what reusing rows avoided. Costs of other machines are told, never taken for ours.

    Args:
        entries: The runs that computed rows of their table.
        rows: How many were reused.
        machine: This one.
        device: Where they would have run.
    """
    priced = [entry for entry in entries if entry.rows_computed and entry.time_s is not None]
    here = [entry for entry in priced if entry.machine == machine and entry.device == device]
    if not here:
        where = dict.fromkeys(_where(entry) for entry in priced)
        remark = "what these rows took was not recorded"
        if priced:
            seconds, count = sum(entry.time_s or 0.0 for entry in priced), sum(entry.rows_computed for entry in priced)
            remark = f"measured elsewhere: {count:,} rows took {seconds:,.1f} s on {' and '.join(where)}"
        return Avoided(None, None, UNAVAILABLE, remark)
    share = rows / sum(entry.rows_computed for entry in here)
    joules = [entry.energy_j for entry in here if entry.energy_j is not None]
    is_measured = len(joules) == len(here)
    label = max((entry.label for entry in here), key=lambda name: LABELS.index(name) if name in LABELS else len(LABELS))
    return Avoided(
        time_s=share * sum(entry.time_s or 0.0 for entry in here),
        energy_j=share * sum(joules) if is_measured else None,
        label=label if is_measured and label in LABELS else UNAVAILABLE,
        remark=f"at what {sum(entry.rows_computed for entry in here):,} of these rows took on this machine",
    )


def price_of_reuse(store: Store, fingerprint: str, rows: int, device: str) -> Avoided:
    """Say what reusing rows of a table avoided here; nothing where none was reused, or nothing can be known."""
    if not rows:
        return Avoided(None, None, UNAVAILABLE, "")
    try:
        entries = read_ledger(store, fingerprint)
    except StoreError as err:
        return Avoided(None, None, UNAVAILABLE, str(err))
    return avoided(entries, rows, this_machine().id, device)


def _where(entry: Entry) -> str:
    return f"{entry.device or 'a device'} of machine {entry.machine[:8] or 'not recorded'}"


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
    texts = {name: run[name] for name in _TEXTS if _is_text(run, name)}
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
