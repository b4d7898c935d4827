"""Tensors that no recorded operation gave: constants from outside the model, or results of code that is not seen."""

import torch

from forethought.errors import InvisibleOperationError
from forethought.splitting.operations import bare
from forethought.splitting.recording import Label, Recording


def check_strangers(a: Recording, b: Recording) -> None:
    """Tell constants that live outside the model from results of operations that cannot be seen."""
    for index, (tensor, op) in enumerate(a.strangers):
        other = b.strangers[index][0] if index < len(b.strangers) else None
        if other is tensor or (other is not None and _is_equal(tensor, other)):
            continue
        if op.call.outermost_whole() is not None:
            op.call.opaque = True
            continue
        raise InvisibleOperationError(
            f"Cannot split: expected to see where every tensor comes from, got one read by {op} that code made which "
            "torch functions do not show (scripted code, a C++ extension, numpy, vmap). "
            "Cut before it: ft.split(model, x, at=<an earlier module>)"
        )
    for op in a.operations:
        if any(read.label is Label.FROZEN and read.value is None for read in op.reads):
            op.call.opaque = True  # what vmap gives: its memory is known, but not the operation that made it


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = bare(a), bare(b)
    try:
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    except RuntimeError:
        return False  # of kinds that do not compare
