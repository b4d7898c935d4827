"""What a store saved: the epochs that were really run, against all that it cost, as intervals."""

import math
from dataclasses import dataclass
from typing import Any

from forethought.energy.amounts import KWH_J, Amount
from forethought.savings.comparison import Comparison, Gain
from forethought.savings.intervals import Estimate, break_even

NEVER = "the store never pays back here: reading costs more than computing again"
PERHAPS_NEVER = (
    "when the store pays back cannot be told: an epoch with it and one without cost the same, as far as measured"
)
UNCLEAR = "no measurable saving"


@dataclass(frozen=True)
class Balance:
    """One unit of a saving.

    Attributes:
        uncached_epoch: What an epoch costs without the store.
        cached_epoch: What it costs with it.
        epoch: What an epoch saves.
        spent: What the store cost so far.
        break_even: Epochs after which it had paid for itself; None if it never does.
        saved: What was saved so far, spending taken off; its interval allows for the instrument too.
        share: `saved` as a share of what the same epochs would have cost without the store; None before the first.
    """

    uncached_epoch: Estimate
    cached_epoch: Estimate
    epoch: Estimate
    spent: float
    break_even: Estimate | None
    saved: Estimate
    share: Estimate | None

    @property
    def verdict(self) -> str:
        """In a word: "saved", "lost", or that neither can be told."""
        return UNCLEAR if not self.saved.is_clear else "saved" if self.saved.value > 0 else "lost"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows."""
        return {
            "uncached_epoch": self.uncached_epoch.to_dict(),
            "cached_epoch": self.cached_epoch.to_dict(),
            "saved_an_epoch": self.epoch.to_dict(),
            "spent": self.spent,
            "break_even_epochs": None if self.break_even is None else self.break_even.to_dict(),
            "saved": self.saved.to_dict(),
            "share": None if self.share is None else self.share.to_dict(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Saving:
    """A comparison, what the store cost, and how often its rows were really fed.

    Seconds are always there. Joules are there where both sides and all that was spent were measured in the same way.

    Attributes:
        comparison: What an epoch costs both ways.
        spent_s: Seconds that the store cost on this machine: extracting, aborted runs, verifying, and the comparison.
        spent: Joules, likewise.
        fed_rows: Rows that were really fed to heads: a pass over the data counts once, however many heads shared it.
        idle_w: What the machine draws when it does nothing; None if that was not measured.
    """

    comparison: Comparison
    spent_s: float
    spent: Amount
    fed_rows: int
    idle_w: float | None = None

    @property
    def epochs(self) -> float:
        """Epochs that were really run."""
        return self.fed_rows / self.comparison.epoch_rows

    @property
    def seconds(self) -> Balance:
        """The balance of time, in seconds."""
        return self._balance(self.comparison.seconds, self.spent_s, None)

    @property
    def joules(self) -> Balance | None:
        """The balance of energy as drawn, in joules; None where it is not known."""
        gain = self.comparison.joules
        if gain is None or self.why_no_joules is not None:
            return None
        assert self.spent.energy_j is not None
        return self._balance(gain, self.spent.energy_j, self.comparison.bound)

    @property
    def net_joules(self) -> Balance | None:
        """The balance above what an idle machine draws; None where either is not known."""
        if self.joules is None or self.idle_w is None or self.spent.energy_j is None:
            return None
        uncached, cached = (
            [joules - self.idle_w * seconds for joules, seconds in zip(side.row_j or [], side.row_s, strict=True)]
            for side in (self.comparison.uncached, self.comparison.cached)
        )
        spent = self.spent.energy_j - self.idle_w * self.spent_s
        return self._balance(Gain.of(uncached, cached, self.comparison.slack), spent, self.comparison.bound)

    @property
    def why_no_joules(self) -> str | None:
        """Why there is no balance of energy."""
        if self.comparison.why_no_joules is not None:
            return self.comparison.why_no_joules
        if self.spent.energy_j is None:
            return "not all that the store cost was measured: " + "; ".join(self.spent.reasons)
        if self.spent.label != self.comparison.label:
            return f"what the store cost is {self.spent.label}, what an epoch costs is {self.comparison.label}"
        return None

    def _balance(self, gain: Gain, spent: float, bound: tuple[float, float] | None) -> Balance:
        rows = self.comparison.epoch_rows
        saved = gain.difference.times(self.fed_rows, spent)
        epoch = gain.difference.times(rows)
        return Balance(
            uncached_epoch=gain.uncached.times(rows),
            cached_epoch=gain.cached.times(rows),
            epoch=epoch,
            spent=spent,
            break_even=break_even(spent, epoch),
            saved=saved if bound is None else saved.widened(bound),
            share=gain.share(spent, self.fed_rows),
        )


def saved_text(balance: Balance, unit: str = "s") -> str:
    """Say what was saved, or lost, or that neither can be told.

    Args:
        balance: Of a `Saving`.
        unit: "s", or "J" of joules.
    """
    saved = balance.saved
    if balance.verdict == UNCLEAR:
        return f"{UNCLEAR}: between {ends_text(saved, unit)}"
    if saved.value < 0:
        return estimate_text(saved.times(-1.0), unit, " more spent than saved")
    return estimate_text(saved, unit, " saved")


def estimate_text(estimate: Estimate, unit: str = "", word: str = "") -> str:
    """Write a number, a word, and its interval: two significant digits, or three where the ends need them to differ.

    Example:
        >>> estimate_text(Estimate(0.4449, 0.42, 0.46, 6), "J"), estimate_text(Estimate(36e3, 34e3, 38e3, 6), "s")
        ('0.44 J (0.42 to 0.46)', '10 hours (9.4 to 11)')
    """
    scale, name = scale_of(abs(estimate.value), unit)
    ends = [end / scale for end in (estimate.value, estimate.low, estimate.high)]
    words = [two(end) for end in ends]
    if words[1] == words[2] and ends[1] != ends[2]:
        words = [two(end, 3) for end in ends]
    range_text = f"{words[1]} to {words[2]}" if words[1] != words[2] else f"within {two(abs(ends[2] - ends[0]))}"
    return f"{words[0]}{f' {name}' if name else ''}{word} ({range_text})"


def ends_text(estimate: Estimate, unit: str) -> str:
    """Write the ends of an interval."""
    known = [abs(end) for end in (estimate.low, estimate.high) if math.isfinite(end)]
    scale, name = scale_of(max(known, default=0.0), unit)
    return f"{two(estimate.low / scale)} and {two(estimate.high / scale)} {name}".rstrip()


def scale_of(size: float, unit: str) -> tuple[float, str]:
    """Choose how to write seconds ("s") or joules ("J") of a size: (how many of them, its name)."""
    scales = {
        "s": ((3 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "min")),
        "J": ((0.1 * KWH_J, KWH_J, "kWh"), (360.0, 3600.0, "Wh")),
    }
    found = [(scale, name) for least, scale, name in scales.get(unit, ()) if size >= least]
    return found[0] if found else (1.0, unit)


def two(number: float, digits: int = 2) -> str:
    """Write a number with two significant digits, whole ones in full: more would be made up.

    Example:
        >>> two(0.4449), two(1234.0), two(-2.05), two(1.0826, 3)
        ('0.44', '1,234', '-2.0', '1.08')
    """
    if abs(number) >= 9.95 * 10 ** (digits - 2) and math.isfinite(number):
        return f"{number:,.0f}"
    return f"{number:#.{digits}g}" if number else "0"
