"""Which recorded path features of some shapes belong to, and how many samples they hold."""

from collections.abc import Sequence

from torch import Tensor

from forethought.shapes.forms import FrontierTensor
from forethought.splitting.plan import Plan


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
    """Say whether two plans, with their batch sizes, are for inputs of the same shapes and plain values."""
    shapes = [[form.at(batch) for _, form in plan.inputs] for plan, batch in (a, b)]
    return shapes[0] == shapes[1] and repr(a[0].arguments) == repr(b[0].arguments)


def shown_shape(tensor: FrontierTensor) -> str:
    """Write the shape of a tensor of the frontier for any batch."""
    names = [f"{a if a > 1 else ''}B{f'+{c}' if c else ''}" if a else str(c) for a, c in tensor.form.shape]
    return f"({', '.join(names)})"
