"""What an idle machine draws, and what is left of work's joules when that is taken off."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forethought.energy.amounts import Amount
from forethought.ledger.rows import number_of
from forethought.ledger.spans import Span
from forethought.report.estimates import Calibration

PHASE = "idle"
LEAST_S = 29.0  # of 30: what a baseline takes to be one
_STEPS = 20  # of a counter: then its steps are a twentieth of what it says
NO_BASELINE = "no idle baseline: forethought energy calibrate"


@dataclass(frozen=True)
class Baseline:
    """What one machine draws when it does nothing.

    Attributes:
        power_w: Watts by component.
        label: How they are known.
        time: When that was, in seconds since 1970.
        time_s: How long it was measured; None of a wall reading.
    """

    power_w: Mapping[str, float]
    label: str
    time: float
    time_s: float | None

    @property
    def total_w(self) -> float:
        """Watts of all that was counted; of a wall meter's, which sees all, alone."""
        return self.power_w["wall"] if "wall" in self.power_w else sum(self.power_w.values())

    def power_of(self, spans: Iterable[Span]) -> float | None:
        """Watts of just what all these spans counted; None if they did not count the same, or the baseline did not."""
        counted = {counted_in(span) for span in spans}
        if len(counted) != 1:
            return None
        names = counted.pop()
        if not names or not names <= self.power_w.keys():
            return None
        return sum(self.power_w[name] for name in names)


def counted_in(span: Span) -> frozenset[str]:
    """Name the components whose joules are added up in a span."""
    return frozenset(row.component for row in span.rows if row.inside is None and row.component is not None)


def baselines_of(spans: Sequence[Span], calibrations: Mapping[str, Calibration]) -> dict[str, Baseline]:
    """Find each machine's last baseline: one that was measured long enough, and alone."""
    found = {
        machine: Baseline({"machine": how.idle_w}, how.label, how.time, None)
        for machine, how in calibrations.items()
        if how.idle_w is not None
    }
    for span in spans:
        if span.phase != PHASE or span.time_s < LEAST_S or span.is_shared or span.amount.energy_j is None:
            continue
        if not span.amount.label.startswith(("measured", "sampled")):
            continue
        watts = {
            name: amount.energy_j / span.time_s
            for name, amount in span.components.items()
            if amount.energy_j is not None and longer_s(span.facts, name, amount.energy_j, span.time_s) is None
        }
        if not watts:
            continue
        known = found.get(span.machine)
        stated = dict(known.power_w) if known is not None and known.time_s is None else {}
        found[span.machine] = Baseline(stated | watts, span.amount.label, span.start, span.time_s)
    return found


def longer_s(facts: Mapping[str, Any], component: str, energy_j: float, time_s: float) -> float | None:
    """Say for how long a counter of such steps must be watched; None if it was long enough, or its steps are not known.

    A plug that counts watt-hours moves once or not at all in half a minute: what it says then is no power.
    """
    steps = facts.get("steps")
    told = steps.get(component) if isinstance(steps, dict) else None
    step_j, step_s = map(number_of, told) if isinstance(told, list | tuple) and len(told) == 2 else (None, None)
    needs_s = _STEPS * max((step_j or 0.0) / energy_j * time_s if energy_j > 0 else 0.0, step_s or 0.0)
    return needs_s if time_s < needs_s else None


def net_of(span: Span, baselines: Mapping[str, Baseline]) -> Amount:
    """Take off what the machine would have drawn anyway; unknown without a baseline of the same components."""
    baseline = baselines.get(span.machine)
    watts = baseline.power_of([span]) if baseline is not None else None
    if span.amount.energy_j is None:
        return Amount.unknown("; ".join(span.amount.reasons) or "not measured")
    if baseline is None or watts is None:
        return Amount.unknown(NO_BASELINE)
    interval = span.amount.interval_j
    idle_j = watts * span.time_s
    scale = None if interval is None else tuple(end / span.amount.energy_j * idle_j for end in interval)
    label = baseline.label
    return span.amount.less(Amount.of(idle_j, label, None if scale is None else (scale[0], scale[1])))
