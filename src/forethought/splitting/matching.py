"""Which recorded path features of some shapes belong to, and how many samples they hold."""

import inspect
from collections.abc import Sequence

from torch import Tensor

from forethought.shapes.forms import FrontierTensor
from forethought.splitting.plan import Plan
from forethought.splitting.recording import Operation, Recording


def fitting(plans: Sequence[Plan], values: tuple[Tensor, ...]) -> list[tuple[Plan, int]]:
    """Find the plans, and the batch sizes, that give a frontier of these shapes."""
    found = [(plan, batch_of_values(plan, values)) for plan in plans]
    return [(plan, batch) for plan, batch in found if batch is not None]


def batch_of_values(plan: Plan, values: tuple[Tensor, ...]) -> int | None:
    """Find the batch size by which a plan gives a frontier of these shapes; None if by none."""
    if len(values) != len(plan.frontier):
        return None
    batches = [tensor.form.batch_of(tuple(v.shape)) for tensor, v in zip(plan.frontier, values, strict=True)]
    batch = next((size for size in batches if size is not None), None)
    if batch is None:
        return None  # nothing tells how many samples there were
    for tensor, value in zip(plan.frontier, values, strict=True):
        if not tensor.fits(tuple(value.shape), batch) or tensor.dtype != value.dtype:
            return None
    return batch


def is_same_geometry(a: tuple[Plan, int], b: tuple[Plan, int]) -> bool:
    """Say whether two plans, with their batch sizes, are for inputs of the same shapes and plain values.

    Inputs given by position, and the same by name, are the same if the model does the same with them.
    """
    shapes = [[form.at(batch) for _, form in plan.inputs] for plan, batch in (a, b)]
    if shapes[0] != shapes[1]:
        return False
    if repr(a[0].arguments) == repr(b[0].arguments):
        return True
    named = [_named(plan) for plan, _ in (a, b)]
    return named[0] is not None and named[0] == named[1] and _does_the_same(a[0].recording, b[0].recording)


def _named(plan: Plan) -> str | None:
    """Write the arguments of a plan by the names that the model's forward has for them; None if it does not tell."""
    args, kwargs = plan.arguments
    try:
        return repr(inspect.signature(plan.recording.root.module.forward).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return None


def _does_the_same(a: Recording, b: Recording) -> bool:
    same = len(a.operations) == len(b.operations)
    return same and all(_told(*pair) for pair in zip(a.operations, b.operations, strict=True))


def _told(a: Operation, b: Operation) -> bool:
    if (a.func, a.call.path, a.label) != (b.func, b.call.path, b.label):
        return False
    return [read.value for read in a.reads] == [read.value for read in b.reads] and repr(a.arguments) == repr(
        b.arguments
    )


def shown_shape(tensor: FrontierTensor) -> str:
    """Write the shape of a tensor of the frontier for any batch."""
    names = [f"{a if a > 1 else ''}B{f'+{c}' if c else ''}" if a else str(c) for a, c in tensor.form.shape]
    return f"({', '.join(names)})"
