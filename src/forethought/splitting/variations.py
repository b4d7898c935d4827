"""Small variations of an example, on which a model is tried, and whether one sample shows as much as two."""

import torch
from torch import Tensor

_NOISE = 0.01  # of the largest number: much more than two kernels for one thing differ by


def resized(inputs: list[Tensor], batch: int, wanted: int) -> list[Tensor]:
    """Repeat rows until there are `wanted` samples."""
    if not batch or wanted == batch:
        return inputs
    rows = torch.arange(wanted) % batch
    return [_taken(t, rows) if t.ndim and t.shape[0] == batch else t for t in inputs]


def telling(inputs: list[Tensor], batch: int) -> list[Tensor]:
    """Choose the two samples that show most: the first, and that with the fewest ones in a mask of zeros and ones."""
    if batch < 2:
        return inputs
    second = 1
    for tensor in inputs:
        if (
            tensor.ndim > 1
            and tensor.shape[0] == batch
            and not tensor.is_sparse
            and not tensor.dtype.is_floating_point
            and _is_binary(tensor)
        ):
            counts = tensor.reshape(batch, -1).sum(1)
            second = int(counts[1:].argmin()) + 1
            break
    rows = torch.tensor([0, second])
    return [_taken(t, rows) if t.ndim and t.shape[0] == batch else t for t in inputs]


def rolled(inputs: list[Tensor], batch: int) -> list[Tensor]:
    """Give the same rows in another order; where all are equal, with their entries reversed."""
    return [_roll(t) if t.ndim and t.shape[0] == batch else t for t in inputs]


def varied(inputs: list[Tensor], batch: int) -> list[Tensor]:
    """Leave the last row out and the first one in twice: other values as a whole, each of them valid."""
    rows = torch.arange(batch)
    rows[-1:] = 0
    return [_taken(t, rows) if t.ndim and t.shape[0] == batch else t for t in inputs]


def is_alike(alone: list[Tensor], company: list[Tensor]) -> bool:
    """Say whether a sample gave alone what it gave as the second of several, but for the noise of other kernels."""
    if not alone or len(alone) != len(company):
        return False
    for one, several in zip(alone, company, strict=True):
        if not one.ndim or not several.ndim or one.shape != several[1:2].shape or several.is_complex():
            return False
        noise = _NOISE * float(several.abs().max()) if several.is_floating_point() and several.numel() else 0.0
        if not torch.allclose(one.double(), several[1:2].double(), rtol=0, atol=noise):
            return False
    return True


def _is_binary(tensor: Tensor) -> bool:
    return not tensor.is_complex() and bool(((tensor == 0) | (tensor == 1)).all())


def _taken(tensor: Tensor, rows: Tensor) -> Tensor:
    rows = rows.to(tensor.device)
    return tensor.index_select(0, rows) if tensor.is_sparse else tensor[rows]


def _roll(tensor: Tensor) -> Tensor:
    if tensor.is_sparse:
        return _taken(tensor, torch.arange(len(tensor)).roll(1))
    rolled = tensor.roll(1, 0)
    return tensor.flip(-1) if tensor.ndim > 1 and torch.equal(rolled, tensor) else rolled
