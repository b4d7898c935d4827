"""Joules that remember how they are known, through every sum.

A sum of which a part is unknown is unknown: what is known of it is kept beside, as "at least". Its label is the weakest
one that holds more than a twentieth of it, and its interval the sum of the intervals, as one instrument errs one way.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from forethought.energy.meters import LABELS, UNAVAILABLE

KWH_J = 3.6e6
_COUNTS = 0.05  # of a sum: a label that holds less does not name it


@dataclass(frozen=True)
class Amount:
    """Some joules, or how much of them is known.

    Attributes:
        energy_j: Joules; None unless every part of them is known.
        known_j: Joules of the parts that are known; None if none is.
        by_label: Joules known, by how they are known.
        interval_j: Between which two numbers the truth lies; None where that is not known.
        reasons: Why parts are not known, each once.

    Example:
        >>> measured = Amount.of(97.0, "measured:counter")
        >>> total = Amount.total([measured, Amount.of(3.0, "declared")])
        >>> total.energy_j, total.label, f"{total.measured_share:.0%}"
        (100.0, 'measured:counter', '97%')
        >>> Amount.total([measured, Amount.unknown("no counter")]).energy_j is None
        True
    """

    energy_j: float | None
    known_j: float | None
    by_label: Mapping[str, float] = field(default_factory=dict)
    interval_j: tuple[float, float] | None = None
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, energy_j: float, label: str, interval_j: tuple[float, float] | None = None) -> Self:
        """Joules that are known in one way."""
        return cls(energy_j, energy_j, {label: energy_j}, interval_j)

    @classmethod
    def unknown(cls, reason: str) -> Self:
        """Joules that are not known: not 0."""
        return cls(None, None, reasons=(reason,))

    @classmethod
    def total(cls, parts: Iterable["Amount"]) -> Self:
        """Add up; of nothing at all, nothing is known."""
        parts = list(parts)
        by_label: dict[str, float] = defaultdict(float)
        for part in parts:
            for label, joules in part.by_label.items():
                by_label[label] += joules
        known = [part.known_j for part in parts if part.known_j is not None]
        whole = [part.energy_j for part in parts if part.energy_j is not None]
        is_whole = bool(parts) and len(whole) == len(parts)
        intervals = [part.interval_j for part in parts if part.interval_j is not None]
        interval_j = None
        if is_whole and len(intervals) == len(parts):
            interval_j = sum(low for low, _ in intervals), sum(high for _, high in intervals)
        return cls(
            energy_j=sum(whole) if is_whole else None,
            known_j=sum(known) if known else None,
            by_label=dict(by_label),
            interval_j=interval_j,
            reasons=tuple(dict.fromkeys(reason for part in parts for reason in part.reasons)),
        )

    @property
    def label(self) -> str:
        """The weakest label among those that hold more than a twentieth of what is known."""
        weight = sum(map(abs, self.by_label.values()))
        if not self.by_label:
            return UNAVAILABLE
        counting = [label for label, joules in self.by_label.items() if abs(joules) > _COUNTS * weight]
        return max(counting or self.by_label, key=lambda label: LABELS.index(label) if label in LABELS else len(LABELS))

    @property
    def measured_share(self) -> float | None:
        """Which share of what is known was measured, by a plug or a counter; None if nothing is known."""
        weight = sum(map(abs, self.by_label.values()))
        if not weight:
            return None
        return sum(abs(j) for label, j in self.by_label.items() if label.startswith("measured:")) / weight

    def less(self, idle: "Amount") -> "Amount":
        """Take off what an idle machine would have drawn. Unknown unless both are known; of the weaker label."""
        both = Amount.total([self, idle])
        if self.energy_j is None or idle.energy_j is None:
            return Amount(None, None, reasons=both.reasons)
        net_j, interval_j = self.energy_j - idle.energy_j, None
        if self.interval_j is not None and idle.interval_j is not None:
            # One instrument errs the same way on both, and that is more than its steps: ends go with ends.
            ends = [mine - its for mine, its in zip(self.interval_j, idle.interval_j, strict=True)]
            interval_j = min(ends), max(ends)
        return Amount(net_j, net_j, {both.label: net_j}, interval_j)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows; what is not known is null."""
        return {
            "energy_j": self.energy_j,
            "energy_kwh": None if self.energy_j is None else self.energy_j / KWH_J,
            "at_least_j": self.known_j if self.energy_j is None else None,
            "interval_j": None if self.interval_j is None else list(self.interval_j),
            "label": self.label,
            "by_label_j": dict(self.by_label),
            "measured_share": self.measured_share,
            "not_measured": list(self.reasons),
        }
