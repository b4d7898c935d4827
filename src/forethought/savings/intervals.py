"""Numbers with how sure they are: means of blocks, with intervals that cover the truth as often as they say.

Student's t over the blocks, since there are few of them: of a dozen blocks a bootstrap's percentiles cover 95 % too
rarely (Efron and Tibshirani 1993, chapter 13), t does not, as long as blocks scatter about evenly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

# Student's t, 97.5 %, by degrees of freedom from 1 (Abramowitz and Stegun, table 26.10).
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_NORMAL = 1.959964


def student_t(freedom: int) -> float:
    """Give the 97.5 % quantile of Student's t.

    Example:
        >>> round(student_t(5), 3), round(student_t(60), 3)
        (2.571, 2.0)
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    # Its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5), off by less than 1e-5 from 31 on.
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval.

    Attributes:
        value: The best guess.
        low: Lower end; minus infinity where nothing is known.
        high: Upper end; infinity likewise.
        blocks: How many blocks it comes from.
    """

    value: float
    low: float
    high: float
    blocks: int

    @classmethod
    def of(cls, blocks: Sequence[float]) -> "Estimate":
        """The mean of some blocks; of one alone nobody can tell how sure it is.

        Example:
            >>> Estimate.of([9.0, 11.0, 10.0]).value
            10.0
        """
        value = fmean(blocks)
        if len(blocks) < 2:
            return cls(value, -math.inf, math.inf, len(blocks))
        half = student_t(len(blocks) - 1) * stdev(blocks) / math.sqrt(len(blocks))
        return cls(value, value - half, value + half, len(blocks))

    @property
    def is_clear(self) -> bool:
        """Whether it is above 0 or below, whichever end holds."""
        return self.low > 0 or self.high < 0

    def times(self, factor: float, less: float = 0.0) -> "Estimate":
        """Scale by something that is known, and take off something that is known."""
        ends = sorted((self.low * factor - less, self.high * factor - less))
        return Estimate(self.value * factor - less, ends[0], ends[1], self.blocks)

    def loosened(self, slack: float) -> "Estimate":
        """Allow for an error of every block alike, up to so much, that its scatter does not show.

        Example:
            >>> Estimate(10.0, 7.0, 13.0, 6).loosened(4.0)
            Estimate(value=10.0, low=5.0, high=15.0, blocks=6)
        """
        low, high = (math.hypot(end - self.value, slack) for end in (self.low, self.high))
        return Estimate(self.value, self.value - low, self.value + high, self.blocks)

    def widened(self, bound: tuple[float, float]) -> "Estimate":
        """Allow for an instrument that errs by a share between two bounds, the same way throughout."""
        ends = [end * (1 + share) for end in (self.low, self.high) for share in bound]
        return Estimate(self.value, min(ends), max(ends), self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows: an end that is not known is null."""
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high, "blocks": self.blocks}


def break_even(spent: float, gain: Estimate) -> Estimate | None:
    """Say after how many epochs something had paid for itself; None if it never does.

    An end at infinity means that it may never. Covers the truth as often as the gain's interval does, as it is the
    same statement about the same blocks.

    Args:
        spent: What it cost, known.
        gain: What each epoch saves.

    Example:
        >>> found = break_even(100.0, Estimate(50.0, 40.0, 80.0, 6))
        >>> found.low, found.value, found.high
        (1.25, 2.0, 2.5)
    """
    if gain.high <= 0 or gain.value <= 0:
        return None
    return Estimate(spent / gain.value, spent / gain.high, spent / gain.low if gain.low > 0 else math.inf, gain.blocks)
