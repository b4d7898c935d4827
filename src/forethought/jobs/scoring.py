"""Results in the target's own units, beside what can be had without any head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import forethought as ft
from forethought.jobs.columns import Target
from forethought.jobs.parts import Parts


@dataclass(frozen=True)
class Ranked:
    """The heads of a target.

    Attributes:
        metric: What ranks them: "accuracy", or "mae".
        heads: As plain values, best first, in the target's own units.
        best: The best of them; None if none has a score.
        baseline: The score of one answer for all of val: the most frequent class, or the median, of those that train.
        answer: That answer.
        test: The best head's score on test; None if there is none.
        test_baseline: Likewise, of the one answer.
    """

    metric: str
    heads: list[dict[str, Any]]
    best: ft.HeadResult | None
    baseline: float
    answer: str
    test: float | None
    test_baseline: float | None

    @property
    def is_worth_it(self) -> bool:
        """Whether the best head is better on val than one answer for all files."""
        score = self.heads[0]["score"] if self.best is not None else None
        if score is None:
            return False
        return bool(score > self.baseline) if self.metric == "accuracy" else bool(score < self.baseline)


def judge(target: Target, results: ft.Results, scale: tuple[float, float], parts: Parts) -> Ranked:
    """Rank the heads of a target, in its own units."""
    own = [result for result in results.ranked if result.task.partition(" of ")[2] == target.name]
    factor = scale[1] if target.classes is None else 1.0
    records = {record["name"]: record for record in results.records()}
    heads = [_in_units(records[result.name], factor) for result in own]
    best = next((result for result in own if result.score is not None and not result.failed), None)
    task = own[0].task
    test = results.test_scores.get(task)
    baseline, answer = _baseline(target, parts, "val")
    return Ranked(
        own[0].metric,
        heads,
        best,
        baseline,
        answer,
        None if test is None else test * factor,
        _baseline(target, parts, "test")[0] if len(parts["test"]) else None,
    )


def _in_units(record: Mapping[str, Any], factor: float) -> dict[str, Any]:
    scored = {"score", "mean_over_seeds", "std_over_seeds", "val_mae", "val_rmse"}
    return {
        name: value * factor if name in scored and value is not None and factor != 1.0 else value
        for name, value in record.items()
        if name != "task"
    }


def _baseline(target: Target, parts: Parts, side: str) -> tuple[float, str]:
    """Score the best single answer."""
    train, rows = target.values[parts["train"]], target.values[parts[side]]
    if target.classes is None:
        median = float(train.double().quantile(0.5)) if len(train) < 2**24 else float(train.median())
        return float((rows.double() - median).abs().mean()), f"{median:g}"
    most = int(torch.bincount(train).argmax())
    return float((rows == most).double().mean()), target.classes[most]
