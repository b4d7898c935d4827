"""What came out of `fit`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import FitError, MissingExtraError
from forethought.fitting.nonfinite import BLAME
from forethought.fitting.timesheet import Entry


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one head: mean training loss over its steps, then the metrics over all validation rows.

    `val_score` is the metric that ranks, `others` are the rest, in the order in which they were asked for.
    """

    epoch: int
    train_loss: float
    val_score: float
    others: tuple[float, ...] = ()


@dataclass(frozen=True)
class HeadResult:
    """What became of one head.

    `head` is a trained copy in eval mode, with the weights of `best_epoch` (counted from 1), the epoch with
    the best validation `score`. `score` is None when no epoch was finished, `failed` says why a head was
    stopped. `time_s` is the time spent in this head's steps and scoring, its share where several were trained
    together; None on an accelerator, where heads overlap.

    `family` is the name that it was asked for by, `tried` what was tried with it that others of its family have
    otherwise, `scores` all its metrics in its best epoch, and `task` what it was trained for: a target and a metric.
    """

    name: str
    head: nn.Module
    metrics: tuple[EpochMetrics, ...]
    best_epoch: int | None
    score: float | None
    time_s: float | None
    parameters: int
    failed: str | None = None
    family: str = ""
    tried: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    task: str = ""
    is_higher_better: bool = False

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return self.task.partition(" of ")[0]

    @property
    def trial(self) -> str:
        """The family and all that was tried, but for the seed: heads of one trial differ by chance alone."""
        shown = ", ".join(f"{key}={shown_as(value)}" for key, value in self.tried.items() if key != "seed")
        family = self.family or self.name
        return f"{family}[{shown}]" if shown else family

    def apply_to(self, module: nn.Module) -> None:
        """Copy the trained weights and buffers into a module that has all of them under the same names.

        What was trained behind a split, as `features.head` is, goes into the model that was split just as well, or into
        another one whose frozen part is the same: in evaluation it then gives what the trained head gives.

        Raises:
            FitError: a name is missing or its shape differs; then nothing is copied.
            SplitError: the model's frozen part is not the one that was split; then nothing is copied.
        """
        if not isinstance(module, nn.Module):
            raise FitError(
                f"Cannot apply head {self.name!r}: expected a module, got {type(module).__name__}. Pass the module "
                "that was given to fit, of a split its head: result.apply_to(split.head)"
            )
        source, into = _tensors(self.head), self._places_in(module)
        for name, tensor in source.items():
            if name not in into or into[name].shape != tensor.shape:
                got = tuple(into[name].shape) if name in into else "nothing"
                raise FitError(
                    f"Cannot apply head {self.name!r}: expected {name!r} of shape {tuple(tensor.shape)} "
                    f"in {type(module).__name__}, got {got}. Pass the module that was given to fit; to make one model "
                    f"of this head and a trunk: ft.assemble(split, {{{self.name!r}: result.head}})"
                )
        with torch.no_grad():
            for name, tensor in source.items():
                into[name].copy_(tensor)

    def _places_in(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the module's tensors by their names in the head."""
        of_model = getattr(self.head, "tensors_in", None)  # the head is what a split left to train of a whole model
        if of_model is None or isinstance(module, type(self.head)):
            return _tensors(module)
        found: dict[str, Tensor] = of_model(module)
        return found


@dataclass(frozen=True)
class Trial:
    """Heads that differ by their seed alone.

    Attributes:
        name: Of the trial.
        heads: Those with a score, best first.
        mean: Of their scores.
        std: Standard deviation of their scores, over seeds (divided by n - 1); None with one.
    """

    name: str
    heads: tuple[HeadResult, ...]
    mean: float
    std: float | None


@dataclass(frozen=True)
class Results:
    """Every head's result, best first: iterate, or pick by name.

    Heads are ranked by the mean over the seeds of their trial, then by their own score; failed and unscored heads come
    last. `test_score` is the best head's score on the test rows, computed once, after ranking; with several tasks,
    `test_scores` has one for each. `interrupted`: Ctrl-C ended the training early. `notes` say what did not go as
    planned, `timesheet` what the time was spent on.
    """

    ranked: tuple[HeadResult, ...]
    metric: str
    time_s: float
    interrupted: bool = False
    test_score: float | None = None
    is_comparable: bool = True
    test_scores: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    timesheet: tuple[Entry, ...] = ()

    def __iter__(self) -> Iterator[HeadResult]:
        return iter(self.ranked)

    def __len__(self) -> int:
        return len(self.ranked)

    def __getitem__(self, name: str) -> HeadResult:
        for result in self.ranked:
            if result.name == name:
                return result
        raise KeyError(f"no head named {name!r}; there are {[result.name for result in self.ranked]}")

    @property
    def best(self) -> HeadResult:
        """The head with the best validation score.

        Raises:
            FitError: no head has a score, or heads were scored on different targets or metrics.
        """
        check_comparable(self.is_comparable, "name the best head")
        first = self.ranked[0]
        if first.score is None or first.failed:
            fix = "Train for longer, or lower the learning rate: fit(..., lr=1e-4)"
            failed = first.failed or "no finished epoch"
            raise FitError(
                f"Cannot name the best head: expected one with a finite score, got {first.name!r}: {failed}"
                + ("" if BLAME in failed else f". {fix}")
            )
        return first

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The heads, those that differ by their seed alone taken together; in order of rank."""
        found: dict[tuple[str, str], list[HeadResult]] = {}
        for result in self.ranked:
            if result.score is not None and not result.failed:
                found.setdefault((result.task, result.trial), []).append(result)
        return tuple(_trial(name, heads) for (_, name), heads in found.items())

    @property
    def tasks(self) -> dict[str, "Results"]:
        """The results of each task, by its name: heads of one task are ranked against each other."""
        names = dict.fromkeys(result.task for result in self.ranked)
        return {
            name: replace(
                self,
                ranked=tuple(result for result in self.ranked if result.task == name),
                metric=name.rpartition(" of ")[0] or name,
                test_score=self.test_scores.get(name),
                is_comparable=True,
                test_scores={name: self.test_scores[name]} if name in self.test_scores else {},
            )
            for name in names
        }

    def table(self) -> str:
        """Return the ranking as plain text, one head a line."""
        trials = {head.name: trial for trial in self.trials for head in trial.heads}
        has_seeds = any(trial.std is not None for trial in trials.values())
        header = ["head", f"val {self.metric}", "best epoch", "epochs", "parameters", "time_s"]
        header += ["over seeds"] if has_seeds else []
        seeds = [[_spread(trials.get(result.name))] if has_seeds else [] for result in self.ranked]
        rows = [header, *([*_cells(result), *more] for result, more in zip(self.ranked, seeds, strict=True))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        lines += [f"{r.name}: {r.failed}" for r in self.ranked if r.failed]
        for task, score in self.test_scores.items():
            best = next(result for result in self.ranked if result.task == task)
            metric = self.metric if self.is_comparable else task
            lines.append(f"test {metric} of {best.name}: {score:.6g}")
        lines += self.notes
        if self.interrupted:
            lines.append("interrupted: weights are those of the best finished epoch")
        return "\n".join(lines)

    __str__ = table

    def records(self) -> list[dict[str, Any]]:
        """Return one dictionary of plain values for each head, in order of rank: for a data frame, say."""
        trials = {head.name: trial for trial in self.trials for head in trial.heads}
        return [_record(result, trials.get(result.name)) for result in self.ranked]

    def to_pandas(self) -> Any:
        """Return the records as a pandas data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped, unused-ignore]
        except ImportError as err:
            raise MissingExtraError(
                "Cannot make a data frame: expected pandas, got no such package. Run: pip install pandas, or use "
                "results.records()"
            ) from err
        return pandas.DataFrame.from_records(self.records())

    def to_json(self) -> str:
        """Return everything but the modules as JSON, ranked; what is not finite is null."""
        heads = [{k: v for k, v in vars(r).items() if k not in ("head", "metrics")} for r in self.ranked]
        for entry, result in zip(heads, self.ranked, strict=True):
            entry["tried"] = {key: shown_as(value) for key, value in result.tried.items()}
            entry["metrics"] = [asdict(m) for m in result.metrics]
        whole = {k: v for k, v in vars(self).items() if k not in ("ranked", "timesheet")}
        timesheet = [asdict(entry) for entry in self.timesheet]
        return json.dumps(finite({**whole, "timesheet": timesheet, "heads": heads}), allow_nan=False)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def rank(results: Sequence[HeadResult]) -> tuple[HeadResult, ...]:
    """Sort heads: best mean over the seeds of a trial first, then best score; those without one last."""
    scores: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.score is not None and not result.failed:
            scores.setdefault((result.task, result.trial), []).append(result.score)

    def key(result: HeadResult) -> tuple[bool, float, str, float]:
        sign = -1.0 if result.is_higher_better else 1.0
        if result.score is None or result.failed:
            return True, 0.0, "", 0.0 if result.score is None else sign * result.score
        return False, sign * fmean(scores[result.task, result.trial]), result.trial, sign * result.score

    return tuple(sorted(results, key=key))


def shown_as(value: Any) -> Any:
    """Return a value that was tried as JSON and tables can hold it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple | list):
        return ", ".join(str(shown_as(item)) for item in value)
    return getattr(value, "__name__", type(value).__name__)


def check_comparable(is_comparable: bool, what: str) -> None:
    """Raise when heads were scored on different targets or metrics, so that no ranking means anything."""
    if not is_comparable:
        raise FitError(
            f"Cannot {what}: expected one metric and one target for all heads, got several. "
            "Pick by task: results.tasks, or by name: results['pitch']"
        )


def _trial(name: str, heads: Sequence[HeadResult]) -> Trial:
    scores = [head.score for head in heads if head.score is not None]
    return Trial(name, tuple(heads), fmean(scores), stdev(scores) if len(scores) > 1 else None)


def _spread(trial: Trial | None) -> str:
    if trial is None or trial.std is None:
        return "-"
    return f"{trial.mean:.6g} ± {trial.std:.2g} ({len(trial.heads)})"


def _record(result: HeadResult, trial: Trial | None) -> dict[str, Any]:
    return {
        "name": result.name,
        "family": result.family,
        "task": result.task,
        **{key: shown_as(value) for key, value in result.tried.items()},
        "score": result.score,
        "mean_over_seeds": None if trial is None else trial.mean,
        "std_over_seeds": None if trial is None else trial.std,
        **{f"val_{name}": score for name, score in result.scores.items()},
        "best_epoch": result.best_epoch,
        "epochs": len(result.metrics),
        "parameters": result.parameters,
        "time_s": result.time_s,
        "failed": result.failed,
    }


def finite(value: Any) -> Any:
    """Put null in the place of numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _cells(result: HeadResult) -> tuple[str, ...]:
    """Return one line of the table; what is unknown is a dash."""
    score = "-" if result.score is None else f"{result.score:.6g}"
    time_s = "-" if result.time_s is None else f"{result.time_s:.2f}"
    best = "-" if result.best_epoch is None else str(result.best_epoch)
    name = result.name + " (failed)" * bool(result.failed)
    return name, score, best, str(len(result.metrics)), str(result.parameters), time_s
