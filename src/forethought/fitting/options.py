"""Options of `fit`, checked and spread over the heads."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.fitting.measures import LOSSES, METRICS, Measure

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
Metric: TypeAlias = str | Measure | tuple[str | Measure, ...] | None
T = TypeVar("T")
PerHead: TypeAlias = T | Mapping[str, T]

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
SCHEDULES: dict[str | None, Callable[[float], float]] = {
    None: lambda passed: 1.0,
    "cosine": lambda passed: (1 + math.cos(math.pi * min(passed, 1.0))) / 2,
    "linear": lambda passed: max(1.0 - passed, 0.0),
}
PRECISIONS: dict[str | None, torch.dtype | None] = {None: None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What one head is trained with; the values here are the defaults of `fit`."""

    lr: float = 1e-3
    epochs: int = 20
    optimizer: str | MakeOptimizer = "adamw"
    loss: str | Measure | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: str | None = None
    warmup: float = 0.0
    clip: float | None = None
    class_weight: str | Sequence[float] | Tensor | None = None
    precision: str | None = None
    standardize: bool = False
    metric: Metric = None
    higher_is_better: bool | None = None
    target: int | str | None = None
    patience: int | None = None
    seed: int = 0
    keep: str = "best"  # weights of the epoch with the best score, or of the "last" one: where the loss is least

    @property
    def metrics(self) -> tuple[str | Measure, ...]:
        """What is scored; the first ranks. By default what the loss is about: 'accuracy' of classes, else 'mae'."""
        if self.metric is None:
            return ({"cross_entropy": "accuracy", "bce": "bce"}.get(str(self.loss), "mae"),)
        return self.metric if isinstance(self.metric, tuple) else (self.metric,)

    @property
    def is_higher_better(self) -> bool:
        """Whether a greater score ranks first."""
        first = self.metrics[0]
        return first == "accuracy" if isinstance(first, str) or self.higher_is_better is None else self.higher_is_better

    @property
    def is_full_batch(self) -> bool:
        """Whether a step is taken from all rows."""
        return self.optimizer == "lbfgs"

    def lr_share(self, passed: float) -> float:
        """Say which share of the step size holds after so many epochs."""
        rise = min(passed / self.warmup, 1.0) if self.warmup else 1.0
        return rise * SCHEDULES[self.schedule](passed / self.epochs)

    def check(self) -> None:
        """Raise FitError at the first value that cannot be used."""
        _check_choice("optimizer", self.optimizer, (*_OPTIMIZERS, "lbfgs"), "a function of the parameters")
        _check_choice("loss", self.loss, (None, "own", *LOSSES), "a function of (output, target)")
        for metric in self.metrics or ("",):
            _check_choice("metric", metric, METRICS, "a function of (output, target)")
        _check_choice("schedule", self.schedule, tuple(SCHEDULES))
        _check_choice("precision", self.precision, tuple(PRECISIONS))
        _check_choice("keep", self.keep, ("best", "last"))
        check_count("epochs", self.epochs)
        if self.patience is not None:
            check_count("patience", self.patience)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise FitError(f"Cannot fit heads: expected seed to be a whole number, got {self.seed!r}. Pass seed=0")
        if not isinstance(self.standardize, bool):
            raise FitError(
                f"Cannot fit heads: expected standardize to be True or False, got {self.standardize!r}. "
                "Pass standardize=True"
            )
        if self.class_weight is not None and self.class_weight != "balanced":
            _check_class_weight(self.class_weight)
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, number, is_positive in (
            ("lr", self.lr, True),
            ("weight_decay", self.weight_decay, False),
            ("momentum", self.momentum, False),
            ("warmup", self.warmup, False),
            ("clip", 1.0 if self.clip is None else self.clip, True),
        ):
            is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
            if not is_number or number < 0 or (number == 0 and is_positive):
                raise FitError(
                    f"Cannot fit heads: expected {name} to be a finite number "
                    f"{'above 0' if is_positive else 'from 0 up'}, got {number!r}. Pass {name}={getattr(Options, name)}"
                )

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's optimiser of these parameters."""
        if isinstance(self.optimizer, str):
            make: Callable[..., torch.optim.Optimizer] = _OPTIMIZERS[self.optimizer]
            more = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
            # Fused is one call for all parameters: for small heads the optimiser is a large part of a step.
            is_fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
            return make(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=is_fused or None, **more)
        return self.optimizer(parameters)


NAMES = tuple(field.name for field in fields(Options))


def check_count(name: str, value: object) -> None:
    """Raise unless the value is a whole number from 1 up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FitError(
            f"Cannot fit heads: expected {name} to be a whole number from 1 up, got {value!r}. Pass {name}=1"
        )


def _check_class_weight(weight: Any) -> None:
    try:
        numbers = torch.as_tensor(weight, dtype=torch.float64)
        is_right = numbers.ndim == 1 and bool((numbers >= 0).all()) and bool(numbers.isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        is_right = False
    if not is_right:
        raise FitError(
            f"Cannot fit heads: expected class_weight to be 'balanced' or one finite number from 0 up for each class, "
            f"got {weight!r:.60}. Pass class_weight='balanced'"
        )


def _check_choice(name: str, value: object, choices: Sequence[str | None], alternative: str = "") -> None:
    if (callable(value) and alternative) or (isinstance(value, str | None) and value in choices):
        return
    listed = ", ".join(repr(choice) for choice in choices) + (f", or {alternative}" if alternative else "")
    raise FitError(
        f"Cannot fit heads: expected {name} to be one of {listed}, got {value!r}. "
        f"Pass {name}={next(choice for choice in choices if choice is not None)!r}"
    )
