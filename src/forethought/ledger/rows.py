"""A row of the ledger: what one component drew in one part of one span of work, and how that is known.

A *span* is one run of one phase. It has one row a component and part: parts follow each other in time (a long span is
written down about once a minute, so that a kill costs a minute of the account), components are side by side. What is
not about the component (rows, bytes, seconds) is said on each row of the part and counts once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forethought.energy.meters import LABELS, UNAVAILABLE

KIND = "phase"
OUTCOMES = ("done", "failed", "interrupted")
_MOST_TEXT = 1000
_TEXTS = ("span", "phase", "label", "machine")
_OPTIONAL = ("parent", "component", "instrument", "scope", "reason", "inside")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        span: Which run of a phase; unguessable, so rows from anywhere can be put together.
        parent: The span that this one lies within, whose joules hold these; None of an outermost one.
        part: Its number within the span, from 0.
        phase: What was done: "extract", "train", "verify", "measure", "idle", or the user's own word.
        component: What drew: "gpu0", "package-0", "wall"; None where there was nothing to read.
        start: Seconds since 1970.
        time_s: Seconds of the part.
        energy_j: Joules, gross; None where they were not measured.
        label: How they are known.
        instrument: What gave them.
        scope: What it covers.
        interval_j: Between which two numbers the truth lies, if that is known.
        reason: Why `energy_j` is None.
        inside: The component that has seen these joules too: a wall meter sees all.
        machine: Whose.
        others_cores: Processor cores that other processes kept busy meanwhile; None if not known.
        is_shared: Whether these joules are also those of others' work; None if not known.
        overhead_s: Seconds that reading the meters took.
        outcome: "done", "failed" or "interrupted" on the span's last part; None on others.
        facts: Whatever else is known of the span.
    """

    span: str
    phase: str
    machine: str
    start: float
    time_s: float
    parent: str | None = None
    part: int = 0
    component: str | None = None
    energy_j: float | None = None
    label: str = UNAVAILABLE
    instrument: str | None = None
    scope: str | None = None
    interval_j: tuple[float, float] | None = None
    reason: str | None = None
    inside: str | None = None
    others_cores: float | None = None
    is_shared: bool | None = None
    overhead_s: float = 0.0
    outcome: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object; what is not known is null. Undone by `read_row`."""
        return {"kind": KIND, **vars(self)}


def read_row(value: Mapping[str, Any]) -> Row | None:
    """Read a row from JSON; None if it is none. Rows come from anywhere: what is not of its type was not said."""
    texts = {name: text_of(value.get(name)) or "" for name in _TEXTS}
    start, time_s, part = number_of(value.get("start")), number_of(value.get("time_s")), number_of(value.get("part"))
    if not all(texts.values()) or start is None or time_s is None or part is None:
        return None
    label, energy_j = texts["label"], number_of(value.get("energy_j"))
    if label not in LABELS or (energy_j is None) != (label == UNAVAILABLE):
        # A number without a word for how it is known, or a word without a number: neither is believed.
        label, energy_j = UNAVAILABLE, None
    outcome, facts, shared = value.get("outcome"), value.get("facts"), value.get("is_shared")
    optional: dict[str, Any] = {name: text_of(value.get(name)) for name in _OPTIONAL}
    return Row(
        span=texts["span"],
        phase=texts["phase"],
        machine=texts["machine"],
        label=label,
        start=start,
        time_s=time_s,
        part=int(part),
        energy_j=energy_j,
        interval_j=_interval(value.get("interval_j")) if energy_j is not None else None,
        others_cores=number_of(value.get("others_cores")),
        is_shared=shared if isinstance(shared, bool) else None,
        overhead_s=number_of(value.get("overhead_s")) or 0.0,
        outcome=outcome if outcome in OUTCOMES else None,
        facts=facts if isinstance(facts, dict) else {},
        **optional,
    )


def number_of(value: Any) -> float | None:
    """Give a number that a clock, a counter or a meter could have given, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) and 0 <= value < 2**63 else None
    except OverflowError:
        return None


def text_of(value: Any) -> str | None:
    """Give a text of a sane length, without what moves a terminal's cursor, else None."""
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_TEXT:
        return None
    return "".join(letter if letter.isprintable() else " " for letter in value)


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = (number_of(end) for end in value)
    return (low, high) if low is not None and high is not None and low <= high else None
