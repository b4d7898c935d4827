"""Targets of many samples: a tensor (N, ...), a list of N, a tuple or dictionary of these, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought import nesting
from forethought.errors import DataError
from forethought.identifying.tensors import tensor_bytes
from forethought.shapes.padding import Leaf, Uneven, Widths, put_back

Rows = slice | Tensor | np.ndarray
_CHOSEN = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
}  # fmt: skip


@dataclass(eq=False)
class UnevenTargets:
    """Targets of differing size, one tensor a sample: labels of tokens, say. Fed padded, as they came.

    Attributes:
        rows: The tensors, without padding.
        leaf: How they lie in a batch.
    """

    rows: Uneven
    leaf: Leaf

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Cannot give target {index}: expected one of {len(self)}.")
        return self.rows.row(index % len(self)).movedim(tuple(range(len(self._axes))), self._own_axes).clone()

    def padded(self, widths: Widths) -> Tensor:
        """Join them into a batch (B, ...)."""
        largest = self.rows.sizes.amax(0).tolist()
        shape = [widths.at(measure, size) for (_, measure), size in zip(self.leaf.axes, largest, strict=True)]
        fill = 0 if self.leaf.pad is None else self.leaf.pad
        return put_back(self.rows, self._axes, shape, fill, self.leaf.at_end)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, _ in self.leaf.axes)

    @property
    def _own_axes(self) -> tuple[int, ...]:
        return tuple(axis - 1 for axis in self._axes)


def padded(targets: Any, widths: Widths) -> Any:
    """Join targets of differing size into batches, wherever there are some among these."""
    return nesting.replace(targets, lambda uneven: uneven.padded(widths), UnevenTargets)


def take(targets: Any, at: Rows, one: bool = False) -> Any:
    """Take the targets of some samples, whatever they are."""
    if isinstance(at, np.ndarray):
        at = torch.from_numpy(at)
    if isinstance(targets, Tensor):
        if isinstance(at, Tensor) and at.dtype == torch.int64 and targets.dtype in _CHOSEN:
            chosen_rows = targets.index_select(0, at.to(targets.device))  # several times as fast as indexing
            return chosen_rows[0] if one else chosen_rows
        return targets[at][0].clone() if one else targets[at].clone()
    if isinstance(targets, UnevenTargets):
        at = at if isinstance(at, slice) else torch.as_tensor(at)
        return targets[int(at[0])] if one else replace(targets, rows=targets.rows.select(at))  # type: ignore[index]
    if isinstance(targets, list):
        chosen = targets[at] if isinstance(at, slice) else [targets[i] for i in at.tolist()]
        return chosen[0] if one else chosen
    if isinstance(targets, tuple):
        return tuple(take(part, at, one) for part in targets)
    if isinstance(targets, dict):
        return {key: take(part, at, one) for key, part in targets.items()}
    return targets


def put(targets: Any, at: np.ndarray, some: Any) -> bool:
    """Write the targets of some samples into those of all, in place; False, and no use of them, if they do not fit."""
    if isinstance(targets, Tensor):
        fits = isinstance(some, Tensor) and some.dtype == targets.dtype and some.shape[1:] == targets.shape[1:]
        if fits:
            targets[torch.from_numpy(at)] = some
        return fits
    if isinstance(targets, tuple):
        fits = isinstance(some, tuple) and len(some) == len(targets)
        return fits and all(put(all_of, at, part) for all_of, part in zip(targets, some, strict=True))
    if isinstance(targets, dict):
        fits = isinstance(some, dict) and list(some) == list(targets)
        return fits and all(put(targets[key], at, some[key]) for key in targets)
    if isinstance(targets, UnevenTargets):
        return _put_uneven(targets, at, some)
    if isinstance(targets, list):
        if not isinstance(some, list):
            return False
        for index, item in zip(at.tolist(), some, strict=True):
            targets[index] = item
        return True
    return targets is None and some is None


def _put_uneven(targets: UnevenTargets, at: np.ndarray, some: Any) -> bool:
    rows = targets.rows
    if (
        not isinstance(some, UnevenTargets)
        or some.leaf != targets.leaf
        or some.rows.values.dtype != rows.values.dtype
        or some.rows.values.shape[1:] != rows.values.shape[1:]
    ):
        return False
    order = torch.arange(len(rows))
    order[torch.from_numpy(at)] = len(rows) + torch.arange(len(at))
    targets.rows = Uneven.joined([rows, some.rows]).select(order)
    return True


def is_same(one: Any, other: Any) -> bool:
    """Say whether two sets of targets are equal to the last bit, and of one kind."""
    if isinstance(one, Tensor):
        alike = isinstance(other, Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return alike and tensor_bytes(one) == tensor_bytes(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, UnevenTargets):
        parts = ((each.rows.values, each.rows.sizes) for each in (one, other))
        return one.leaf == other.leaf and is_same(*parts)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    return bool(one == other) or bool(one != one and other != other)  # not a number, twice


class Gathering:
    """Targets of successive batches, joined as they come.

    Where they are tensors and their number is known they have a place of their own from the beginning: many small
    pieces that stay would keep the memory of batches that went from being used again.

    Args:
        rows: Samples in all; None if that is not known.

    Example:
        >>> both = Gathering(4)
        >>> for part in (torch.tensor([1, 2]), torch.tensor([3, 4])):
        ...     both.add(part, 2)
        >>> both.result()
        tensor([1, 2, 3, 4])
    """

    def __init__(self, rows: int | None) -> None:
        self._total = rows
        self._room: Any = None
        self._parts: list[Any] = []
        self._sizes: list[int] = []

    def add(self, targets: Any, rows: int) -> None:
        """Take in the targets of a batch of so many samples."""
        done = sum(self._sizes)
        if not done and self._total is not None:
            self._room = _room(_joined([targets], [rows]), rows, self._total)
        if self._room is not None:
            joined = _joined([targets], [rows])
            if _room(joined, rows, 0) is not None and put(self._room, np.arange(done, done + rows), joined):
                self._sizes = [done + rows]
                return
            self._parts, self._room = [take(self._room, slice(0, done))], None
        self._parts.append(targets)
        self._sizes.append(rows)

    def result(self) -> Any:
        """Give the targets of all samples. Raises as `join_targets` does."""
        if self._room is None:
            return join_targets(self._parts, self._sizes)
        return self._room


def _room(joined: Any, rows: int, total: int) -> Any:
    """Make place for the targets of all samples, by those of some; None where these are not tensors alone."""
    if type(joined) is Tensor and joined.ndim and len(joined) == rows and joined.layout is torch.strided:
        plain = joined.is_cpu and not joined.requires_grad and not joined.is_quantized
        return torch.empty((total, *joined.shape[1:]), dtype=joined.dtype) if plain else None
    if isinstance(joined, tuple | dict) and joined:
        parts = joined.values() if isinstance(joined, dict) else joined
        rooms = [_room(part, rows, total) for part in parts]
        if all(room is not None for room in rooms):
            return dict(zip(joined, rooms, strict=True)) if isinstance(joined, dict) else tuple(rooms)
    return None


def join_targets(parts: Sequence[Any], rows: Sequence[int]) -> Any:
    """Join the targets of successive batches: a tensor or list by row, tuples and dictionaries by part.

    Args:
        parts: The targets of each batch.
        rows: How many samples each batch has.

    Raises:
        DataError: there is not one target for each sample.
    """
    joined = _joined(parts, rows)
    counted = nesting.replace(joined, lambda uneven: uneven.rows.sizes, UnevenTargets)
    for column in [joined] if isinstance(joined, list) else nesting.tensors(counted):
        if len(column) != sum(rows):
            raise DataError(
                f"Cannot match targets to samples: expected {sum(rows)} of them, got {len(column)}. "
                "Let collate_fn give tensors with the batch as first axis, or a list with one entry a sample."
            )
    return joined


def _joined(parts: Sequence[Any], rows: Sequence[int]) -> Any:
    first = parts[0]
    if isinstance(first, np.ndarray):
        return _joined([torch.from_numpy(np.array(part)) for part in parts], rows)
    if isinstance(first, Tensor):
        return torch.cat([part.reshape(-1) if part.ndim == 0 else part for part in parts])
    if isinstance(first, UnevenTargets):
        return replace(first, rows=Uneven.joined([part.rows for part in parts]))
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], rows) for key in first}
    if isinstance(first, list | tuple) and all(_is_column(item, rows[0]) for item in first):
        return tuple(_joined([part[at] for part in parts], rows) for at in range(len(first)))
    if isinstance(first, list | tuple):
        return [item for part in parts for item in part]
    return None


def _is_column(item: Any, rows: int) -> bool:
    """Say whether an entry of a batch's targets is for all of its samples, rather than for one."""
    if isinstance(item, UnevenTargets):
        return len(item) == rows
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim > 0 and len(item) == rows
    if isinstance(item, dict):
        return bool(item) and all(_is_column(part, rows) for part in item.values())
    if isinstance(item, list | tuple):
        is_plain = not any(isinstance(part, Tensor | UnevenTargets | np.ndarray | dict | list | tuple) for part in item)
        return len(item) == rows if is_plain else all(_is_column(part, rows) for part in item)
    return False
