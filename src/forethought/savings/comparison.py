"""What an epoch costs without the store and with it: real steps of both, in turn, on one machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forethought.energy.meters import BOUNDS, LABELS, UNAVAILABLE, Bound
from forethought.ledger.rows import number_of, text_of
from forethought.savings.intervals import Estimate

KIND = "comparison"
_MOST_BLOCKS = 10_000


@dataclass(frozen=True)
class Side:
    """Blocks of steps of one kind.

    Attributes:
        rows: Samples that each block went through.
        time_s: Seconds that each took.
        energy_j: Joules that each drew; None where they were not measured.
    """

    rows: tuple[int, ...]
    time_s: tuple[float, ...]
    energy_j: tuple[float | None, ...]

    @property
    def row_s(self) -> list[float]:
        """Seconds a sample, block by block."""
        return [seconds / rows for seconds, rows in zip(self.time_s, self.rows, strict=True)]

    @property
    def row_j(self) -> list[float] | None:
        """Joules a sample, block by block; None unless every block was measured."""
        known = [joules / rows for joules, rows in zip(self.energy_j, self.rows, strict=True) if joules is not None]
        return known if len(known) == len(self.rows) else None

    def to_json(self) -> dict[str, list[Any]]:
        """As values that JSON knows."""
        return {"rows": list(self.rows), "time_s": list(self.time_s), "energy_j": list(self.energy_j)}


@dataclass(frozen=True)
class Gain:
    """What one sample costs both ways, in one unit.

    Attributes:
        uncached: Without the store.
        cached: With it.
        difference: What the store saves; below 0 if it costs.
        pairs: Both costs, pair by pair of blocks that were run one after the other.
        slack: What the steps of a counter may hide of both costs. On a quiet machine blocks meet the steps in the same
            place each time: then the scatter of the blocks tells nothing of it.
    """

    uncached: Estimate
    cached: Estimate
    difference: Estimate
    pairs: tuple[tuple[float, float], ...]
    slack: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, uncached: Sequence[float], cached: Sequence[float], slack: tuple[float, float] = (0.0, 0.0)) -> "Gain":
        """From blocks that were run in turn: what slowed a pair slowed both."""
        pairs = tuple(zip(uncached, cached, strict=True))
        difference = Estimate.of([without - with_it for without, with_it in pairs]).loosened(sum(slack))
        return cls(
            Estimate.of(uncached).loosened(slack[0]), Estimate.of(cached).loosened(slack[1]), difference, pairs, slack
        )

    def share(self, spent: float = 0.0, rows: float = 1.0) -> Estimate | None:
        """Which share of the uncached cost of so many samples is saved. An instrument's gain cancels in it.

        None where an uncached block cost nothing, or less.
        """
        if not rows or min(without for without, _ in self.pairs) <= 0:
            return None
        shares = Estimate.of([1 - (with_it + spent / rows) / without for without, with_it in self.pairs])
        least = min(without for without, _ in self.pairs)
        return shares.loosened((self.slack[1] + abs(1 - shares.value) * self.slack[0]) / least)


@dataclass(frozen=True)
class Comparison:
    """Both sides, and how their joules are known.

    Attributes:
        uncached: Steps without the store: frozen part, head, reading, as the user would have run them.
        cached: Steps of the same head from stored rows.
        label: How the joules of both are known.
        bound: How far off their instrument may be, as shares.
        is_shared: Whether others were at work meanwhile; None if not known.
        epoch_rows: Samples an epoch.
        machine: Whose.
        time: When, in seconds since 1970.
        facts: Table, head, batch size and whatever else both sides had in common.
        step_j: Joules of one step of what counted: what each block's joules may be off.
        step_s: Seconds from one renewal of it to the next, likewise.
    """

    uncached: Side
    cached: Side
    epoch_rows: int
    machine: str
    time: float
    label: str = UNAVAILABLE
    bound: Bound | None = None
    is_shared: bool | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    step_j: float = 0.0
    step_s: float = 0.0

    @property
    def table(self) -> str:
        """The table whose rows were fed; "" if it was another source."""
        table = self.facts.get("table")
        return table if isinstance(table, str) else ""

    @property
    def blocks(self) -> int:
        """How many blocks each side has."""
        return len(self.uncached.rows)

    @property
    def time_s(self) -> float:
        """Seconds of all blocks."""
        return sum(self.uncached.time_s) + sum(self.cached.time_s)

    @property
    def seconds(self) -> Gain:
        """Seconds a sample."""
        return Gain.of(self.uncached.row_s, self.cached.row_s)

    @property
    def joules(self) -> Gain | None:
        """Joules a sample; None where they were not measured, or are those of others' work too."""
        uncached, cached = self.uncached.row_j, self.cached.row_j
        if uncached is None or cached is None or self.is_shared:
            return None
        return Gain.of(uncached, cached, self.slack)

    @property
    def slack(self) -> tuple[float, float]:
        """Joules a sample that the steps of the counter may hide: of blocks without the store, and with it."""
        return self._slack(self.uncached), self._slack(self.cached)

    def _slack(self, side: Side) -> float:
        joules = sum(each or 0.0 for each in side.energy_j)
        off_j = max(self.step_j * len(side.rows), self.step_s * joules / sum(side.time_s) * len(side.rows))
        return off_j / sum(side.rows)

    @property
    def why_no_joules(self) -> str | None:
        """Why there are no joules."""
        if self.uncached.row_j is None or self.cached.row_j is None:
            return "energy not measured on both sides"
        return "other processes were at work: their joules cannot be told apart" if self.is_shared else None

    def __str__(self) -> str:
        gain, rows = self.seconds, self.epoch_rows
        without, with_it = gain.uncached.times(rows), gain.cached.times(rows)
        saved = gain.difference.times(rows)
        said = f"{saved.value:.3g} s saved ({saved.low:.3g} to {saved.high:.3g})"
        if not saved.is_clear:
            said = f"no measurable saving ({saved.low:.3g} to {saved.high:.3g} s)"
        elif saved.value < 0:
            said = f"{-saved.value:.3g} s more with the store ({-saved.high:.3g} to {-saved.low:.3g})"
        return (
            f"an epoch of {rows:,} rows: {without.value:.3g} s without the store, {with_it.value:.3g} s with it, "
            f"{said}; {self.blocks} blocks each, {self.time_s:.3g} s in all"
        )

    def to_json(self) -> dict[str, Any]:
        """As a line of a ledger. Undone by `read_comparison`."""
        return {
            "kind": KIND,
            "machine": self.machine,
            "time": self.time,
            "epoch_rows": self.epoch_rows,
            "label": self.label,
            "bound": None if self.bound is None else list(self.bound),
            "step_j": self.step_j,
            "step_s": self.step_s,
            "is_shared": self.is_shared,
            "uncached": self.uncached.to_json(),
            "cached": self.cached.to_json(),
            "facts": dict(self.facts),
        }


def read_comparison(value: Mapping[str, Any]) -> Comparison | None:
    """Read a line of a ledger; None if it is no comparison, or one that cannot be right."""
    sides = [_side(value.get(name)) for name in ("uncached", "cached")]
    machine, time, rows = (
        text_of(value.get("machine")),
        number_of(value.get("time")),
        number_of(value.get("epoch_rows")),
    )
    uncached, cached = sides
    if uncached is None or cached is None or len(uncached.rows) != len(cached.rows):
        return None
    if machine is None or time is None or not rows:
        return None
    label, facts, shared = value.get("label"), value.get("facts"), value.get("is_shared")
    is_known = label in LABELS and label != UNAVAILABLE
    if not is_known:
        uncached, cached = (Side(side.rows, side.time_s, (None,) * len(side.rows)) for side in (uncached, cached))
    return Comparison(
        uncached,
        cached,
        int(rows),
        machine,
        time,
        label=str(label) if is_known else UNAVAILABLE,
        bound=_bound(value.get("bound"), str(label)) if is_known else None,
        is_shared=shared if isinstance(shared, bool) else None,
        facts=facts if isinstance(facts, dict) else {},
        step_j=number_of(value.get("step_j")) or 0.0,
        step_s=number_of(value.get("step_s")) or 0.0,
    )


def _side(value: Any) -> Side | None:
    if not isinstance(value, dict):
        return None
    columns = [value.get(name) for name in ("rows", "time_s", "energy_j")]
    if not all(isinstance(column, list) for column in columns):
        return None
    rows, seconds, joules = ([number_of(item) for item in column] for column in columns if column is not None)
    if not 0 < len(rows) == len(seconds) == len(joules) <= _MOST_BLOCKS:
        return None
    if not all(rows) or not all(seconds):  # a block of nothing, or in no time
        return None
    return Side(tuple(int(count or 0) for count in rows), tuple(each or 0.0 for each in seconds), tuple(joules))


def _bound(value: Any, label: str) -> Bound | None:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
        low, high = map(float, value)
        if -1 <= low <= 0 <= high < 10 and math.isfinite(high):
            return low, high
    return BOUNDS.get(label)
