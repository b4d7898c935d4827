"""What is no data set: refused by its kind, before anything is read."""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
from torch import Tensor

from forethought.errors import DataError


def check_kind(dataset: Any) -> None:
    """Refuse what has no samples in an order that stays."""
    kind = type(dataset).__name__
    if isinstance(dataset, Iterator):
        raise DataError(
            f"Cannot extract from a {kind}: expected an iterable that can be read again, got an iterator, which can be "
            "read once. Pass the data set itself, or list(...)."
        )
    if isinstance(dataset, Mapping) and len(dataset) and 0 not in dataset:
        raise DataError(
            f"Cannot read this {kind} as a data set: expected tensors, arrays or lists of plain values under its keys, "
            f"got {', '.join(f'{key!r}: {type(part).__name__}' for key, part in list(dataset.items())[:4])}. "
            "Pass one of its entries, or tensors: {'x': torch.stack(...), 'label': torch.tensor(...)}"
        )
    if hasattr(dataset, "iloc"):
        raise DataError(
            f"Cannot read a {kind}: expected a data set of samples, got a table. Name its columns: "
            "{'x': table[[...]].to_numpy(), 'label': table['...']}"
        )
    if isinstance(dataset, list) and _are_columns(dataset):
        raise DataError(
            "Cannot read this list as a data set: expected one entry a sample, got tensors that hold as many each: "
            f"{', '.join(str(tuple(part.shape)) for part in dataset)}. Of inputs and targets, pass a tuple: "
            "(inputs, targets)"
        )
    if isinstance(dataset, Set):
        raise DataError(f"Cannot read a {kind}: expected samples in an order, got a set, which has none. list(...)")
    if not hasattr(dataset, "__getitem__") and not isinstance(dataset, Iterable):
        raise DataError(f"Cannot read a {kind}: expected a data set, a DataLoader, tensors or an iterable.")


def _are_columns(parts: list[Any]) -> bool:
    """Say whether these tensors can only be columns: of one length, and never to be joined into a batch."""
    if not 1 < len(parts) < 9 or not all(isinstance(part, Tensor | np.ndarray) and part.ndim for part in parts):
        return False
    return len({len(part) for part in parts}) == 1 and len({part.ndim for part in parts}) > 1
