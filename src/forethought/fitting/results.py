"""What came out of `fit`."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import nn

from forethought.errors import FitError


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one head: mean training loss over its steps, then the metric over all validation rows."""

    epoch: int
    train_loss: float
    val_score: float


@dataclass(frozen=True)
class HeadResult:
    """What became of one head.

    `head` is a trained copy in eval mode, with the weights of `best_epoch` (counted from 1), the epoch with
    the best validation `score`. `score` is None when no epoch was finished, `failed` says why a head was
    stopped. `time_s` is the time spent in this head's steps and scoring; None on an accelerator, where
    heads overlap.
    """

    name: str
    head: nn.Module
    metrics: tuple[EpochMetrics, ...]
    best_epoch: int | None
    score: float | None
    time_s: float | None
    parameters: int
    failed: str | None = None

    def apply_to(self, module: nn.Module) -> None:
        """Copy the trained weights and buffers into a module that has all of them under the same names.

        Raises:
            FitError: a name is missing or its shape differs; then nothing is copied.
        """
        source = {**dict(self.head.named_parameters()), **dict(self.head.named_buffers())}
        into = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, tensor in source.items():
            if name not in into or into[name].shape != tensor.shape:
                got = tuple(into[name].shape) if name in into else "nothing"
                raise FitError(
                    f"Cannot apply head {self.name!r}: expected {name!r} of shape {tuple(tensor.shape)} "
                    f"in {type(module).__name__}, got {got}. Pass the module that was given to fit"
                )
        with torch.no_grad():
            for name, tensor in source.items():
                into[name].copy_(tensor)


@dataclass(frozen=True)
class Results:
    """Every head's result, best first: iterate, or pick by name.

    `test_score` is the best head's score on the test rows, computed once, after ranking. `interrupted`:
    Ctrl-C ended the training early. Failed and unscored heads come last.
    """

    ranked: tuple[HeadResult, ...]
    metric: str
    time_s: float
    interrupted: bool = False
    test_score: float | None = None
    is_comparable: bool = True

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
            raise FitError(
                "Cannot name the best head: expected one with a finite score, got "
                f"{first.failed or 'no finished epoch'} for {first.name!r}. Train for longer, or lower the "
                "learning rate: fit(..., lr=1e-4)"
            )
        return first

    def table(self) -> str:
        """Return the ranking as plain text, one head a line."""
        header = ("head", f"val {self.metric}", "best epoch", "epochs", "parameters", "time_s")
        rows = [header, *(_cells(result) for result in self.ranked)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        lines += [f"{r.name}: {r.failed}" for r in self.ranked if r.failed]
        if self.test_score is not None:
            lines.append(f"test {self.metric} of {self.ranked[0].name}: {self.test_score:.6g}")
        if self.interrupted:
            lines.append("interrupted: weights are those of the best finished epoch")
        return "\n".join(lines)

    __str__ = table

    def to_json(self) -> str:
        """Return everything but the modules as JSON, ranked; what is not finite is null."""
        heads = [{k: v for k, v in vars(r).items() if k not in ("head", "metrics")} for r in self.ranked]
        for entry, result in zip(heads, self.ranked, strict=True):
            entry["metrics"] = [
                {k: v if math.isfinite(v) else None for k, v in asdict(m).items()} for m in result.metrics
            ]
        whole = {k: v for k, v in vars(self).items() if k != "ranked"}
        return json.dumps({**whole, "heads": heads}, allow_nan=False)


def check_comparable(is_comparable: bool, what: str) -> None:
    """Raise when heads were scored on different targets or metrics, so that no ranking means anything."""
    if not is_comparable:
        raise FitError(
            f"Cannot {what}: expected one metric and one target for all heads, got several. "
            "Pick by name: results['pitch'], or fit heads of one task together"
        )


def _cells(result: HeadResult) -> tuple[str, ...]:
    """Return one line of the table; what is unknown is a dash."""
    score = "-" if result.score is None else f"{result.score:.6g}"
    time_s = "-" if result.time_s is None else f"{result.time_s:.2f}"
    best = "-" if result.best_epoch is None else str(result.best_epoch)
    name = result.name + " (failed)" * bool(result.failed)
    return name, score, best, str(len(result.metrics)), str(result.parameters), time_s
