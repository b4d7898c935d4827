"""Tensors, arrays and lists in memory, seen as columns of a data set: these need no reading sample by sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from forethought.errors import DataError

Column = Tensor | np.ndarray | list[Any]
Columns = Column | tuple[Column, ...] | dict[Any, Column]
"""One column, or several by position or name; all of one length."""

_TARGETS = "targets"  # under which they lie beside inputs by name

_NUMBERS = {bool, int, float}
_PLAIN = _NUMBERS | {str, bytes, type(None)}


def columns_of(dataset: Any) -> Columns | None:
    """See a data set as columns; None if it is one of samples.

    A tuple or mapping with a tensor or array in it is taken for columns; lists beside it hold a target for each sample.

    Raises:
        DataError: the columns differ in length, or one holds what no sample can be made of.
    """
    if type(dataset) is TensorDataset:
        dataset = dataset.tensors if len(dataset.tensors) > 1 else dataset.tensors[0]
    if isinstance(dataset, Tensor | np.ndarray):
        column = _column(dataset)
        _check_lengths([column])
        return column
    named = dict(dataset) if _is_mapping(dataset) else None
    parts = list(named.values()) if named is not None else list(dataset) if _is_tuple(dataset) else []
    if not any(isinstance(part, Tensor | np.ndarray) for part in parts) or not all(map(_can_be_column, parts)):
        return None
    columns = [_column(part) for part in parts]
    _check_lengths(columns)
    return tuple(columns) if named is None else dict(zip(named, columns, strict=True))


def flattened(dataset: Any, inputs: Any, parameters: Sequence[str]) -> tuple[Any, Any]:
    """See `((a, b), targets)` or `({"a": a, "b": b}, targets)`, columns of inputs beside targets, as one level.

    Args:
        dataset: Any; anything else is given back as it is.
        inputs: What was asked for.
        parameters: The names in the model's `forward`.

    Returns:
        The columns, and the positions or keys of those that are inputs.

    Raises:
        DataError: columns beside what is none: no sample can be a tensor of all.
    """
    if not _is_tuple(dataset) or not any(isinstance(part, Tensor | np.ndarray) for part in dataset):
        return dataset, inputs
    first, *others = dataset
    parts = list(first.values()) if _is_mapping(first) else list(first) if isinstance(first, tuple | list) else []
    are_columns = bool(parts) and all(isinstance(part, Tensor | np.ndarray) and part.ndim for part in parts)
    lengths = {len(part) for part in [*parts, *others]} if are_columns and all(map(_can_be_column, others)) else set()
    if inputs is None and len(lengths) == 1 and (not isinstance(first, list) or len(first) not in lengths):
        if not _is_mapping(first):
            return (*first, *others), list(range(len(parts)))
        if len(others) == 1 and set(first) <= set(parameters) - {_TARGETS}:
            return {**first, _TARGETS: others[0]}, list(first)
    odd = next(
        (part for part in dataset if isinstance(part, tuple | list | Mapping) and not _can_be_column(part)), None
    )
    if odd is None:
        return dataset, inputs
    raise DataError(
        f"Cannot read this tuple as a data set: expected tensors or arrays of one length, or a first element that "
        f"holds the model's inputs so, got {', '.join(map(_described, dataset))}. Of several inputs: "
        "((a, b), targets), or {'name': a, 'label': targets} by forward's names; of samples one by one: "
        "list(zip(samples, targets))"
    )


def _described(part: Any) -> str:
    if isinstance(part, Tensor | np.ndarray):
        return f"{type(part).__name__} {tuple(part.shape)}"
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{name!r}: {_described(value)}" for name, value in list(part.items())[:4]) + "}"
    if isinstance(part, tuple | list):
        return f"{type(part).__name__} of {len(part)} ({', '.join(_described(each) for each in part[:3])})"
    return type(part).__name__


def length_of(columns: Columns) -> int:
    """Say how many samples columns hold."""
    return len(next(iter(_each(columns))))


def rows_of(columns: Columns | None, at: slice | np.ndarray) -> Any:
    """Give the rows at these indices as a collated batch: tensors, and lists of what is no number."""
    if columns is None:
        return None
    if isinstance(columns, dict):
        return {name: _rows(column, at) for name, column in columns.items()}
    if isinstance(columns, tuple):
        return tuple(_rows(column, at) for column in columns)
    return _rows(columns, at)


def _is_mapping(dataset: Any) -> bool:
    """Say whether a data set is a dictionary, or one in another coat, rather than something with samples by number."""
    return isinstance(dataset, Mapping) and 0 not in dataset


def _is_tuple(dataset: Any) -> bool:
    return type(dataset) is tuple or (isinstance(dataset, tuple) and hasattr(dataset, "_fields"))


def _can_be_column(part: Any) -> bool:
    if isinstance(part, list):
        return all(type(item) in _PLAIN for item in part)
    return isinstance(part, Tensor | np.ndarray) or hasattr(part, "to_numpy")  # of a table, pandas' or another's


def _column(part: Any) -> Column:
    """See one column as it will be cut: numbers as a tensor or array, anything else as a list."""
    if isinstance(part, list):
        kinds = {type(item) for item in part}
        if not kinds or kinds - _NUMBERS:
            return part
        return torch.tensor(part, dtype=torch.float64 if float in kinds else None)  # as default_collate does
    if isinstance(part, Tensor):
        return part
    array: np.ndarray = part if isinstance(part, np.ndarray) else part.to_numpy()
    if array.dtype.kind in "OUS" and array.ndim == 1 and all(type(item) in _PLAIN for item in array.tolist()):
        return list(array.tolist())
    try:
        torch.from_numpy(np.empty(0, array.dtype.newbyteorder("=")))
    except TypeError as err:
        raise DataError(
            f"Cannot use an array of {array.dtype} as a column: expected numbers or text. Encode it, or pass a list of "
            "samples."
        ) from err
    if isinstance(array, np.ma.MaskedArray):
        raise DataError("Cannot use a masked array as a column: expected numbers everywhere. Use array.filled(0).")
    return array


def _check_lengths(columns: list[Column]) -> None:
    sizes = {0 if isinstance(column, Tensor | np.ndarray) and not column.ndim else len(column) for column in columns}
    if len(sizes) != 1 or any(isinstance(column, Tensor | np.ndarray) and not column.ndim for column in columns):
        raise DataError(
            f"Cannot use tensors as a data set: expected one length, with samples along the first axis, got "
            f"{sorted(sizes)}."
        )


def _each(columns: Columns) -> list[Column]:
    if isinstance(columns, dict):
        return list(columns.values())
    return list(columns) if isinstance(columns, tuple) else [columns]


def _rows(column: Column, at: slice | np.ndarray) -> Tensor | list[Any]:
    """Copy rows: what is hashed is what is computed, whoever writes into the column meanwhile."""
    if isinstance(column, Tensor):
        return column[at].clone() if isinstance(at, slice) else column[torch.from_numpy(at)]
    if isinstance(column, list):
        return column[at] if isinstance(at, slice) else [column[index] for index in at.tolist()]
    return torch.from_numpy(np.array(column[at], dtype=column.dtype.newbyteorder("="), order="C"))
