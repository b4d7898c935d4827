"""The first batch: does each head fit the features, the targets and its loss; does it draw random numbers?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import FitError
from forethought.fitting.groups import Work, check_loss
from forethought.fitting.measures import as_loss, is_of_classes, per_sample, takes_weights
from forethought.fitting.trainee import Trainee


@dataclass(frozen=True)
class Introduced:
    """What is known of a head that was run once.

    Attributes:
        draws: Whether it draws random numbers in training.
        classes: How many classes it knows; None if it is not about classes.
    """

    draws: bool
    classes: int | None


def introduce(trainee: Trainee, values: Any, target: Tensor, weights: Tensor | None) -> Introduced:
    """Run a head on its first batch, once scored and once trained, without taking a step; leave it as it was.

    Raises:
        FitError: it does not fit the features, or its output does not fit the targets.
    """
    options, head = trainee.options, trainee.head
    work = Work(trainee)
    if weights is not None and not takes_weights(options.loss, head):
        raise FitError(
            f"Cannot weigh samples for head {trainee.name!r}: expected a named loss, a function of (output, target, "
            "weights), or a head's own loss(values, targets, weights), got another. Pass loss='mse', or features "
            "without weights"
        )
    mode = head.training
    buffers = [(buffer, buffer.clone()) for buffer in head.buffers()]
    try:
        with work.at(training=False):
            output = _run(trainee, values)
            classes = _classes_of(trainee, output)
            if classes is not None:
                check_range(trainee.name, target, classes, "the first batch")
            for metric in options.metrics:
                per_sample(metric, output, target)
        before = work.random.state
        with work.at(training=False):
            head.train(trainee.parameters > 0)
            check_loss(trainee.name, as_loss(options.loss, head)(values, target, weights))
        return Introduced(not all(map(torch.equal, before, work.random.state)), classes)
    except Exception as err:
        err.add_note(f"(while fitting head {trainee.name!r})")
        raise
    finally:
        head.train(mode)
        with torch.no_grad():
            for buffer, was in buffers:
                buffer.copy_(was)


def _run(trainee: Trainee, values: Any) -> Tensor:
    """Run a head in evaluation mode; say both shapes if it does not fit."""
    given: list[tuple[nn.Module, Any]] = []
    leaves = [module for module in trainee.head.modules() if not list(module.children())]
    handles = [
        leaf.register_forward_pre_hook(lambda module, args: given.append((module, args)))
        for leaf in leaves
        if not isinstance(leaf, torch.jit.ScriptModule)
    ]
    try:
        trainee.head.eval()
        output = trainee.head(values)
    except (RuntimeError, ValueError, IndexError, TypeError) as err:
        if isinstance(err, FitError) or not given or not _is_of_shapes(err):
            raise
        layer, args = given[-1]
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in nesting.tensors(args))
        features = ", ".join(str(tuple(tensor.shape)) for tensor in nesting.tensors(values))
        raise FitError(
            f"Cannot fit head {trainee.name!r}: expected what its {layer} takes, got {shapes} there, from features of "
            f"shape {features}. Build the head for features of shape {_of_row(values)}"
        ) from err
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        raise FitError(
            f"Cannot fit head {trainee.name!r}: expected it to return a tensor, got a {type(output).__name__}. "
            "Wrap it in a module that returns one of its tensors, or pass a loss and metric that take it"
        )
    return output


def _classes_of(trainee: Trainee, output: Tensor) -> int | None:
    """Say how many classes a head knows, if that is what its loss or metrics are about."""
    is_of = is_of_classes(trainee.options.loss) or any(map(is_of_classes, trainee.options.metrics))
    return output.shape[1] if is_of and output.ndim == 2 else None


def check_range(name: str, target: Tensor, classes: int, where: str) -> None:
    """Raise unless targets, if they are classes (N,), are from 0 to classes - 1."""
    if target.is_floating_point() or target.ndim != 1:
        return
    wrong = ((target < 0) | (target >= classes)).nonzero().squeeze(1)
    if len(wrong):
        first = int(wrong[0])
        raise FitError(
            f"Cannot fit head {name!r}: expected classes from 0 to {classes - 1}, since it gives {classes} scores, got "
            f"class {int(target[first])} in row {first} of {where} ({len(wrong)} such rows). Give the head "
            f"{int(target.max()) + 1} outputs, or renumber the classes"
        )


def _is_of_shapes(err: Exception) -> bool:
    said = str(err)
    return any(word in said for word in ("shape", "size", "dimension", "dim ", "expected", "channels", "features"))


def _of_row(values: Any) -> str:
    return ", ".join(str(("B", *tensor.shape[1:])).replace("'", "") for tensor in nesting.tensors(values))
