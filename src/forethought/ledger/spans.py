"""Rows put together again: spans of work, each once, however many ledgers tell of it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from forethought.energy.amounts import Amount
from forethought.energy.meters import WALL
from forethought.ledger.rows import Row
from forethought.ledger.sums import amount_of

_PLUG = ""
_CLOCKS_S = 1.0  # what clocks of one machine may differ, from row to row


@dataclass(frozen=True)
class Span:
    """One run of a phase. Its rows are in order of their parts."""

    rows: tuple[Row, ...]

    @property
    def id(self) -> str:
        """Its name in the ledger."""
        return self.rows[0].span

    @property
    def phase(self) -> str:
        """What was done."""
        return self.rows[0].phase

    @property
    def parent(self) -> str | None:
        """The span that it lies within."""
        return self.rows[0].parent

    @property
    def machine(self) -> str:
        """Whose."""
        return self.rows[0].machine

    @property
    def start(self) -> float:
        """Seconds since 1970."""
        return self.rows[0].start

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known of it, as its last part tells."""
        return self.rows[-1].facts

    @property
    def outcome(self) -> str | None:
        """ "done", "failed" or "interrupted"; None if it never came to its end, or goes on."""
        return self.rows[-1].outcome

    @cached_property
    def _parts(self) -> dict[int, Row]:
        """A row of each part: what is not about a component is the same on all of them."""
        return {row.part: row for row in reversed(self.rows)}

    @property
    def time_s(self) -> float:
        """Seconds that were written down."""
        return sum(row.time_s for row in self._parts.values())

    @property
    def end(self) -> float:
        """When what was written down ended, in seconds since 1970."""
        return max(row.start + row.time_s for row in self._parts.values())

    @property
    def overhead_s(self) -> float:
        """Seconds that reading the meters took."""
        return sum(row.overhead_s for row in self._parts.values())

    @cached_property
    def amount(self) -> Amount:
        """Its joules."""
        return amount_of(self.rows)

    @cached_property
    def components(self) -> dict[str, Amount]:
        """Its joules by what drew them, those that a wall meter has seen too included."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.component is not None:
                found[row.component].append(row)
        return {
            name: Amount.total(
                Amount.unknown(row.reason or "not measured")
                if row.energy_j is None
                else Amount.of(row.energy_j, row.label, row.interval_j)
                for row in rows
            )
            for name, rows in found.items()
        }

    @property
    def is_shared(self) -> bool | None:
        """Whether others were at work meanwhile; None if not known."""
        told = [row.is_shared for row in self.rows if row.is_shared is not None]
        return any(told) if told else None

    def number(self, name: str) -> int:
        """Give a count among its facts, 0 where there is none."""
        value = self.facts.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else 0


def spans_of(rows: Iterable[Row]) -> list[Span]:
    """Put rows together, oldest span first. A row that two ledgers tell counts once."""
    found: dict[str, dict[tuple[int, str | None], Row]] = defaultdict(dict)
    for row in rows:
        found[row.span].setdefault((row.part, row.component), row)
    spans = [Span(tuple(sorted(each.values(), key=lambda row: row.part))) for each in found.values()]
    return sorted(spans, key=lambda span: (span.start, span.id))


def outermost(spans: Sequence[Span]) -> list[Span]:
    """Leave out spans whose seconds and joules another one here holds."""
    known = {span.id: span for span in spans}
    return [span for span in spans if not _is_held(span, known)]


def _is_held(span: Span, known: Mapping[str, Span]) -> bool:
    seen = {span.id}
    parent = span.parent
    while parent is not None and parent in known and parent not in seen:
        around = known[parent]
        if around.outcome is not None or span.end <= around.end + _CLOCKS_S:
            return True
        seen.add(parent)  # killed before this one was over: what was written of it does not hold all of this
        parent = around.parent
    return False


def overlapping(spans: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Find outermost spans that counted one component of one machine at one time: their joules may be the same.

    A plug has seen what any counter of its machine saw.
    """
    counted: dict[str, list[Row]] = defaultdict(list)
    of = {span.id: span for span in spans}
    for span in spans:
        for row in span.rows:
            if row.energy_j is not None and row.component is not None:
                counted[row.machine].append(row)
    found = {}
    for rows in counted.values():
        latest: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: row.start):
            name = _PLUG if row.label == WALL else str(row.component)
            for seen, other in latest.items():
                is_both = seen == name or _PLUG in (seen, name)
                if is_both and other.span != row.span and _end(other) > row.start + _CLOCKS_S:
                    found[other.span, row.span] = of[other.span], of[row.span]
            latest[name] = max(latest.get(name, row), row, key=_end)
    return list(found.values())


def _end(row: Row) -> float:
    return row.start + row.time_s
