"""A budget for a CI job: what may be spent, in all or beyond what another report says was spent before."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from forethought.energy.amounts import KWH_J
from forethought.errors import EnergyError
from forethought.report.gathering import gather
from forethought.report.summary import Summary, summarize


@dataclass(frozen=True)
class Verdict:
    """Whether a budget was kept.

    Attributes:
        spent_kwh: What was spent: None if it is not known.
        before_kwh: What the baseline spent; None without one, or if it is not known.
        budget_kwh: What may be spent, beyond the baseline where there is one.
        is_kept: Whether it is known to be kept. What is not known is not kept.
    """

    spent_kwh: float | None
    before_kwh: float | None
    budget_kwh: float
    is_kept: bool
    reason: str

    def __str__(self) -> str:
        return self.reason


def check_budget(
    summary: Summary, budget_kwh: float, baseline: str | None = None, watts: float | None = None
) -> Verdict:
    """Compare what was spent with what may be.

    Args:
        summary: The report.
        budget_kwh: What may be spent; with a baseline, beyond what that says.
        baseline: A ledger, store, run or project of before, or a report that was written as JSON.
        watts: What the user states the machine draws, for a baseline that is no report yet.

    Raises:
        EnergyError: a budget that is none, or a baseline that cannot be read.
    """
    if not 0 <= budget_kwh < 1e12:
        raise EnergyError(f"Cannot keep a budget of {budget_kwh} kWh: expected 0 or more. --budget-kwh 1.5")
    spent = summary.gross.energy_j
    before = None if baseline is None else _spent_by(baseline, watts)
    if spent is None or (baseline is not None and before is None):
        whose = "this report" if spent is None else "the baseline"
        why = "; ".join(summary.gross.reasons) if spent is None else "not all that it tells of was measured"
        return Verdict(
            None if spent is None else spent / KWH_J,
            None if before is None else before / KWH_J,
            budget_kwh,
            False,
            f"Budget not kept: not all of the energy of {whose} is known ({why or 'nothing was recorded'}). "
            "A meter, or --watts, makes it known.",
        )
    more = (spent - (before or 0.0)) / KWH_J
    beyond = "" if before is None else f" more than the {before / KWH_J:.4g} kWh of the baseline"
    word = "kept" if more <= budget_kwh else "not kept"
    return Verdict(
        spent / KWH_J,
        None if before is None else before / KWH_J,
        budget_kwh,
        more <= budget_kwh,
        f"Budget {word}: {more:.4g} kWh spent{beyond}, {budget_kwh:g} kWh allowed.",
    )


def _spent_by(baseline: str, watts: float | None) -> float | None:
    """Give the joules that a baseline spent: a report in JSON says so itself, of a ledger they are added up."""
    path = Path(baseline)
    if path.is_file() and path.suffix == ".json":
        try:
            told = json.loads(path.read_text())["total"]["gross"]["energy_j"]
        except (OSError, ValueError, LookupError, TypeError) as err:
            raise EnergyError(
                f"Cannot read the baseline '{baseline}': expected a report in JSON, got {err or type(err).__name__}. "
                "forethought report OLD --format json --out old.json"
            ) from err
        return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else None
    return summarize(gather(os.fspath(path)), watts=watts).gross.energy_j
