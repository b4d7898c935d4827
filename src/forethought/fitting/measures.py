"""Losses to train by and metrics to rank by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError

Measure = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Measure] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "cross_entropy": F.cross_entropy,
}
METRICS: dict[str, Measure] = {
    "mae": lambda output, target: (output - target).abs(),
    "mse": lambda output, target: (output - target).square(),
    "rmse": lambda output, target: (output - target).square(),
    "accuracy": lambda output, target: output.argmax(1) == target,
}


def as_loss(loss: str | Measure | None, head: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    """Return a function of (values, target) that gives the scalar training loss of the head."""
    # Looked up on the class: `self.loss = nn.MSELoss()` on a user's module is a function of (output, target).
    own = getattr(type(head), "loss", None)
    if loss in (None, "own") and callable(own):
        return lambda values, target: own(head, values, target)
    if loss == "own":
        raise FitError(
            f"Cannot train {type(head).__name__} with loss='own': expected a method loss(values, targets), "
            "got none. Pass loss='mse'"
        )
    if callable(loss):
        given: Measure = loss
        return lambda values, target: given(head(values), target)
    name = loss or "mse"
    return lambda values, target: _named_loss(name, head(values), target)


def _named_loss(name: str, output: Tensor, target: Tensor) -> Tensor:
    check = _class_target if name == "cross_entropy" else _same_shape
    return LOSSES[name](output, check(output, target))


def per_sample(metric: str | Measure, output: Tensor, target: Tensor) -> Tensor:
    """Return the metric of each sample, (B,): for 'rmse' its square, whose root is taken of the mean.

    Raises:
        FitError: output and target do not match, or a metric of the user's own does not return (B,).
    """
    if isinstance(metric, str):
        check = _class_target if metric == "accuracy" else _same_shape
        scores = METRICS[metric](output, check(output, target))
        return scores.flatten(1).mean(1) if scores.ndim > 1 else scores
    scores = metric(output, target)
    if scores.shape != target.shape[:1]:
        raise FitError(
            f"Cannot score head: expected metric to return one number per sample, shape ({len(target)},), "
            f"got {tuple(scores.shape)}. Leave out the mean: metric=lambda output, target: (output - target).abs()"
        )
    return scores


def name_of(metric: str | Measure) -> str:
    """Return what to call a metric in a table."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def _same_shape(output: Tensor, target: Tensor) -> Tensor:
    """Return the target in the output's dtype; raise unless shapes are equal, as (B, 1) - (B,) is (B, B)."""
    if output.shape == target.shape:
        return target.to(output.dtype)
    fixes = {
        (target.ndim + 1, 1): "Drop the head's last axis: nn.Sequential(head, nn.Flatten(0))",
        (
            target.ndim - 1,
            -1,
        ): "Drop the targets' last axis where the data set makes them: target.squeeze(-1)",
    }
    last = 1 if output.shape[-1:] == (1,) else -1
    raise FitError(
        f"Cannot compare output and targets: expected equal shapes, got {tuple(output.shape)} and "
        f"{tuple(target.shape)}. "
        + fixes.get(
            (output.ndim, last),
            "For class scores (B, C) pass loss='cross_entropy' and metric='accuracy'; to choose among several "
            "targets pass target=0",
        )
    )


def _class_target(output: Tensor, target: Tensor) -> Tensor:
    """Return class indices (B,) as int64; raise unless output is (B, C) and targets are integers (B,)."""
    if output.ndim == 2 and target.shape == output.shape[:1] and not target.is_floating_point():
        return target.to(torch.int64)
    raise FitError(
        "Cannot compare classes: expected output (B, C) and integer targets (B,), got "
        f"{tuple(output.shape)} and {target.dtype} {tuple(target.shape)}. "
        "For numbers pass loss='mse' and metric='mae'; for class indices stored as floats target.long()"
    )
