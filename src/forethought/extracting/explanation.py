"""Why rows of a data set are not in a store: which part of the identity is another one, and since when."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from forethought.extracting.frozen import FrozenPart
from forethought.extracting.manifest import Manifest
from forethought.extracting.otherwise import ways_stored
from forethought.extracting.precision import Dtype
from forethought.extracting.roll import Roll
from forethought.identifying.fingerprint import fingerprint_of, parts_of
from forethought.samples.dataset import Samples
from forethought.samples.unevenness import UnforeseenSizesError
from forethought.splitting.replay import At, Split
from forethought.store import Store, Table
from forethought.store.table import read_description

_MOST_NAMED = 8
_NO_TIME = "a time that was not recorded"


@dataclass(frozen=True)
class Comparison:
    """One half of the identity, against the most alike that the store knows.

    Attributes:
        is_known: Whether the store has met it as it is.
        changed: The parts that are others than in the most alike; empty if nothing is alike.
        since: When the most alike was recorded, in seconds since 1970; None if there is none, or it does not say.
        of: What the most alike is called; None if there is none.
    """

    is_known: bool
    changed: tuple[str, ...]
    since: float | None
    of: str | None


@dataclass(frozen=True)
class Explanation:
    """What of a data set is stored for a model, and what changed for the rest.

    Attributes:
        rows: Samples in the data set.
        stored: How many have a row.
        trunk: The model's frozen part.
        data: The data set as it stands; None where that cannot be told without reading its samples.
        files: Files that changed since the data set was last read, or too shortly before to be told.
        otherwise: How many samples have a row of this frozen part that is stored in another way, by that way:
            ("float16", 10), ("folded", 3). Such rows are served to who asks for them so.
    """

    rows: int
    stored: int
    trunk: Comparison
    data: Comparison | None
    files: tuple[str, ...]
    otherwise: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.stored:,} of {self.rows:,} rows are stored; {self.rows - self.stored:,} would be computed."]
        lines.append(_said("the frozen part", self.trunk))
        lines += [f"  stored as {way}, for who asks for that: {rows:,} rows" for way, rows in self.otherwise]
        if self.data is None:
            lines.append("the data set: does not show its content, so its samples are read each time")
        else:
            lines.append(_said("the data set", self.data))
        if self.files:
            more = f" and {len(self.files) - _MOST_NAMED:,} more" if len(self.files) > _MOST_NAMED else ""
            lines.append(f"  files that changed: {', '.join(self.files[:_MOST_NAMED])}{more}")
        return "\n".join(lines)


def explain(
    model: nn.Module | Split,
    dataset: Any,
    store: Store,
    *,
    batch_size: int | None = None,
    num_workers: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    inputs: Sequence[str | int] | str | int | None = None,
    at: At = None,
    dtype: Dtype = None,
) -> Explanation:
    """Say what `extract` would compute, and which part of the identity changed. Computes and stores nothing.

    Samples of which nothing is known are read; the model is recorded on a few. Arguments are those of `extract`.

    Returns:
        The numbers of rows, and what changed; `str()` says it.

    Example:
        >>> import tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ft.extract(model, torch.ones(3, 4), folder)
        ...     _ = model[0].weight.data.add_(1)
        ...     print(ft.explain(model, torch.ones(3, 4), ft.Store(folder)).trunk.changed)
        ('0.weight',)
    """
    trunk = FrozenPart(model, at, None, dtype)
    samples = Samples(
        dataset, trunk.model, inputs=inputs, collate_fn=collate_fn, batch_size=batch_size, num_workers=num_workers
    )
    while True:
        try:
            return _explained(trunk, samples, store)
        except UnforeseenSizesError:  # these samples are looked at now
            trunk.restart()


def _explained(trunk: FrozenPart, samples: Samples, store: Store) -> Explanation:
    trunk.meet(store, [samples])
    roll = Roll(samples, store)
    split = trunk.split_for(samples)
    fingerprint = fingerprint_of(split.plan)
    files = roll.changed_files
    data = None if roll.parts is None else _compare(roll.parts, roll.is_met, _manifests(store))
    if not roll.is_complete:
        missing = None if roll.unknown is None else np.flatnonzero(roll.unknown)
        for _ in roll.read(missing):
            pass
    table = trunk.table_if_known(store, samples, fingerprint)
    ways = [way for way in ways_stored(store, fingerprint) if way.table.rows]
    others = [way for way in ways if table is None or way.table.fingerprint != table.fingerprint]
    otherwise = [(way.name, rows) for way in others if (rows := _stored(way.table, roll.keys))]
    is_known = bool(ways) or fingerprint in store.tables()
    compared = _compare(parts_of(split.plan, trunk.model), is_known, _tables(store))
    held = trunk.standing.held(roll.keys, samples.example(2), fingerprint if table is None else table.fingerprint)
    stored = int((held if table is None else held | (table.locate(roll.keys)[:, 0] >= 0)).sum())
    return Explanation(len(roll.keys), stored, compared, data, files, tuple(otherwise))


def _stored(table: Table, keys: NDArray[np.uint8]) -> int:
    return int((table.locate(keys)[:, 0] >= 0).sum())


Recorded = tuple[str, float | None, Mapping[str, str]]
"""What is recorded of one half of an identity: a name, when, and its parts."""


def _tables(store: Store) -> list[Recorded]:
    described = [read_description(store.place, f"tables/{key}", key) for key in store.tables()]
    facts = [each[1] for each in described if each is not None]  # else it was left before its first row, or is torn
    return [recorded for each in facts if (recorded := _recorded(each.get("model"), each)) is not None]


def _manifests(store: Store) -> list[Recorded]:
    raw = [store.read_manifest(key) for key in store.manifests()]
    facts = [made.facts for each in raw if each is not None and (made := Manifest.from_bytes(each)) is not None]
    return [recorded for each in facts if (recorded := _recorded(each.get("name"), each)) is not None]


def _recorded(name: Any, facts: Mapping[str, Any]) -> Recorded | None:
    parts, when = facts.get("parts"), facts.get("when")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        return None
    return str(name), when if isinstance(when, int | float) else None, parts


def _compare(parts: Mapping[str, str], is_known: bool, recorded: Sequence[Recorded]) -> Comparison:
    """Find what is most alike, the latest of several, and the parts in which it is another."""
    alike = [(sum(other.get(name) == part for name, part in parts.items()), when or 0.0, at)
             for at, (_, when, other) in enumerate(recorded)]  # fmt: skip
    if not alike or max(alike)[0] == 0:
        return Comparison(is_known, (), None, None)
    name, when, other = recorded[max(alike)[2]]
    changed = tuple(part for part in {**parts, **other} if parts.get(part) != other.get(part))
    return Comparison(is_known, () if is_known else changed, when, name)


def _said(what: str, compared: Comparison) -> str:
    when = _NO_TIME
    if compared.since is not None:
        with suppress(ValueError, OverflowError, OSError):  # a date that no calendar has
            when = f"{datetime.fromtimestamp(compared.since):%Y-%m-%d %H:%M}"
    if compared.is_known:
        return f"{what}: as it was recorded"
    if compared.of is None:
        return f"{what}: new to this store"
    named = ", ".join(compared.changed[:_MOST_NAMED])
    more = f" and {len(compared.changed) - _MOST_NAMED:,} more" if len(compared.changed) > _MOST_NAMED else ""
    return f"{what}: changed since {when} ({compared.of}): {named}{more}"
