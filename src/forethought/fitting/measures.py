"""Losses to train by and metrics to rank by, for the output of one head, (B, *), or of H heads at once, (H, B, *)."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError
from forethought.heads.layers import at_least_tiny

Measure = Callable[..., Tensor]
_NOTHING: AbstractContextManager[Any] = nullcontext()

LOSSES: dict[str, Measure] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "cross_entropy": F.cross_entropy,
    "bce": F.binary_cross_entropy_with_logits,
}
_OF_CLASSES = ("cross_entropy", "accuracy")
_ELEMENTWISE: dict[str, Measure] = {
    "mse": lambda output, target: (output - target).square(),
    "rmse": lambda output, target: (output - target).square(),
    "mae": lambda output, target: (output - target).abs(),
    "huber": lambda output, target: F.huber_loss(output, target.expand_as(output), reduction="none"),
    "bce": lambda output, target: F.binary_cross_entropy_with_logits(
        output, target.expand_as(output), reduction="none"
    ),
}
METRICS = ("mae", "mse", "rmse", "accuracy", "cross_entropy", "bce")


def as_loss(
    loss: str | Measure | None, head: nn.Module, within: AbstractContextManager[Any] = _NOTHING
) -> Callable[..., Tensor]:
    """Return a function of (values, target, weights=None) that gives the scalar training loss of the head.

    Args:
        loss: A name, a function, or None for the head's own or the default.
        head: The head.
        within: Where to run it.
    """
    if has_own_loss(loss, head):

        def loss_of_its_own(values: Any, target: Tensor, weights: Tensor | None = None) -> Tensor:
            with within:
                return own_loss(head, values, target, weights)

        return loss_of_its_own
    if loss == "own":
        raise FitError(
            f"Cannot train {type(head).__name__} with loss='own': expected a method loss(values, targets), "
            "got none. Pass loss='mse'"
        )

    def loss_of(values: Any, target: Tensor, weights: Tensor | None = None) -> Tensor:
        with within:
            output = head(values)
        return mean_loss(loss or "mse", output, target, weights)

    return loss_of


def has_own_loss(loss: str | Measure | None, head: nn.Module) -> bool:
    """Whether a head is trained by a method of its class: `self.loss = nn.MSELoss()` on a user's module is none."""
    return loss in (None, "own") and callable(_loss_of(last_of(head)))


def _loss_of(head: nn.Module) -> Any:
    return getattr(type(head), "loss", None)


def last_of(head: nn.Module) -> nn.Module:
    """Return what makes a head's answers: of a Sequential its last module."""
    while type(head) is nn.Sequential and len(head):
        head = head[-1]
    return head


def own_loss(head: nn.Module, values: Any, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the loss by the method of a head's class, or of the last module's in a Sequential, a scalar."""
    while type(head) is nn.Sequential:
        *before, head = head
        for part in before:
            values = part(values)
    own: Measure = _loss_of(head)
    return own(head, values, target) if weights is None else own(head, values, target, weights=weights)


def takes_weights(loss: str | Measure | None, head: nn.Module) -> bool:
    """Whether a loss can weigh samples: a named one, a function of (output, target, weights), or an own one of weights.

    A method is asked for the name, since its third argument may be anything.
    """
    if has_own_loss(loss, head):
        return "weights" in _arguments(_loss_of(last_of(head)))
    return not callable(loss) or len(_arguments(loss)) >= 3


def _arguments(function: Measure) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def mean_loss(loss: str | Measure, output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the loss of one head's output (B, *), a scalar; with weights (B,), the weighted mean of the rows'."""
    if callable(loss):
        return loss(output, target) if weights is None else loss(output, target, weights)
    if weights is None:
        output = _widened(output)
        return LOSSES[loss](output, _fitted(loss, output, target))
    return _mean(rows_of(loss, output, target), weights)


def mean_losses(loss: str | Measure, outputs: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the loss of each of H heads, (H,), from their outputs (H, B, *)."""
    if callable(loss):
        return torch.stack([mean_loss(loss, output, target, weights) for output in outputs])
    return _mean(rows_of(loss, outputs, target, is_stacked=True), weights)


def rows_of(measure: str, output: Tensor, target: Tensor, *, is_stacked: bool = False) -> Tensor:
    """Return a named loss or metric of each row: (B,) of outputs (B, *); if stacked, (H, B) of outputs (H, B, *).

    Raises:
        FitError: output and target do not match.
    """
    output = _widened(output)
    one = output[0] if is_stacked else output
    target = _fitted(measure, one, target)
    if measure == "accuracy":
        return output.argmax(-1) == target
    if measure == "cross_entropy":
        return _cross_entropies(output, target)
    scores = _ELEMENTWISE[measure](output, target)
    rows = output.ndim - one.ndim + 1
    return scores.flatten(rows).mean(-1) if scores.ndim > rows else scores


def per_sample(metric: str | Measure, output: Tensor, target: Tensor) -> Tensor:
    """Return the metric of each sample, (B,): for 'rmse' its square, whose root is taken of the mean.

    Raises:
        FitError: output and target do not match, or a metric of the user's own does not return (B,).
    """
    if not callable(metric):
        return rows_of(metric, output, target)
    scores = metric(output, target)
    if scores.shape != target.shape[:1]:
        raise FitError(
            f"Cannot score head: expected metric to return one number per sample, shape ({len(target)},), "
            f"got {tuple(scores.shape)}. Leave out the mean: metric=lambda output, target: (output - target).abs()"
        )
    return scores


def scores_of(metric: str | Measure, outputs: Tensor, target: Tensor) -> Tensor:
    """Return the metric of each sample for each of H heads, (H, B)."""
    if callable(metric):
        return torch.stack([per_sample(metric, output, target) for output in outputs])
    return rows_of(metric, outputs, target, is_stacked=True)


def name_of(metric: str | Measure) -> str:
    """Return what to call a metric in a table."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def is_of_classes(measure: Any) -> bool:
    """Whether a measure needs class indices as targets."""
    return isinstance(measure, str) and measure in _OF_CLASSES


def _widened(output: Tensor) -> Tensor:
    """Return the output in at least float32: targets and sums would lose digits in less."""
    return output.float() if output.is_floating_point() and output.dtype.itemsize < 4 else output


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return rows.mean(-1)
    return (rows * weights.to(rows.dtype)).sum(-1) / at_least_tiny(weights.sum().to(rows.dtype))


def _cross_entropies(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of each row, computed in the order in which outputs lie in memory."""
    if output.ndim == 2:
        return F.cross_entropy(output, target, reduction="none")
    heads, rows, classes = output.shape
    if output.is_contiguous():
        flat, targets = output.view(heads * rows, classes), target.repeat(heads)
        return F.cross_entropy(flat, targets, reduction="none").view(heads, rows)
    flat, targets = output.transpose(0, 1).reshape(rows * heads, classes), target.repeat_interleave(heads)
    return F.cross_entropy(flat, targets, reduction="none").view(rows, heads).t()


def _fitted(measure: str, output: Tensor, target: Tensor) -> Tensor:
    """Return the target as a measure takes it beside the output (B, *) of one head."""
    return _class_target(output, target) if measure in _OF_CLASSES else _same_shape(output, target)


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
