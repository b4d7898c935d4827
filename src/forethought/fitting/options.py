"""Options of `fit`, checked and spread over the heads."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from forethought.errors import FitError
from forethought.fitting.measures import LOSSES, METRICS, Measure

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
T = TypeVar("T")
PerHead: TypeAlias = T | Mapping[str, T]

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class Options:
    """What one head is trained with; the values here are the defaults of `fit`."""

    lr: float = 1e-3
    epochs: int = 20
    optimizer: str | MakeOptimizer = "adamw"
    loss: str | Measure | None = None
    weight_decay: float = 0.0
    schedule: str | None = None
    metric: str | Measure = "mae"
    higher_is_better: bool | None = None
    target: int | str | None = None
    patience: int | None = None

    @property
    def is_higher_better(self) -> bool:
        """Whether a greater score ranks first."""
        named = isinstance(self.metric, str)
        return self.metric == "accuracy" if named or self.higher_is_better is None else self.higher_is_better

    def check(self) -> None:
        """Raise FitError at the first value that cannot be used."""
        _check_choice("optimizer", self.optimizer, tuple(_OPTIMIZERS), "a function of the parameters")
        _check_choice("loss", self.loss, (None, "own", *LOSSES), "a function of (output, target)")
        _check_choice("metric", self.metric, tuple(METRICS), "a function of (output, target)")
        _check_choice("schedule", self.schedule, (None, "cosine"))
        check_count("epochs", self.epochs)
        if self.patience is not None:
            check_count("patience", self.patience)
        for name, number, lowest in (
            ("lr", self.lr, "above 0"),
            ("weight_decay", self.weight_decay, "from 0 up"),
        ):
            is_number = isinstance(number, int | float) and math.isfinite(number)
            if not is_number or number < 0 or (number == 0 and name == "lr"):
                raise FitError(
                    f"Cannot fit heads: expected {name} to be a finite number {lowest}, got {number!r}. "
                    f"Pass {name}={getattr(Options, name)}"
                )

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of these parameters."""
        if isinstance(self.optimizer, str):
            make: Callable[..., torch.optim.Optimizer] = _OPTIMIZERS[self.optimizer]
            # Fused is one call for all parameters: for small heads the optimiser is a large part of a step.
            is_fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
            return make(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=is_fused or None)
        return self.optimizer(parameters)


def options_by_head(names: Sequence[str], **given: Any) -> dict[str, Options]:
    """Return each head's options; a mapping holds values by head name, and heads it omits keep the default.

    Raises:
        FitError: a mapping names no head of this fit, or a value cannot be used.
    """
    per_head: dict[str, dict[str, Any]] = {name: {} for name in names}
    assert set(given) <= {field.name for field in fields(Options)}
    for option, value in given.items():
        by_name = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
        for name, single in by_name.items():
            if name not in per_head:
                raise FitError(
                    f"Cannot fit heads: expected {option}= to name heads among {list(names)}, got {name!r}. "
                    f"Pass {option}={{{names[0]!r}: ...}}"
                )
            per_head[name][option] = single
    options = {name: Options(**chosen) for name, chosen in per_head.items()}
    for single in options.values():
        single.check()
    return options


def check_count(name: str, value: object) -> None:
    """Raise unless the value is a whole number from 1 up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FitError(
            f"Cannot fit heads: expected {name} to be a whole number from 1 up, got {value!r}. Pass {name}=1"
        )


def _check_choice(name: str, value: object, choices: Sequence[str | None], alternative: str = "") -> None:
    if (callable(value) and alternative) or (isinstance(value, str | None) and value in choices):
        return
    listed = ", ".join(repr(choice) for choice in choices) + (f", or {alternative}" if alternative else "")
    raise FitError(
        f"Cannot fit heads: expected {name} to be one of {listed}, got {value!r}. Pass {name}={choices[-1]!r}"
    )
