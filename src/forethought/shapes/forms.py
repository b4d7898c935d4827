"""Shapes that hold for any batch size, and the tensors of the frontier as rows."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.errors import DataError, PaddingError
from forethought.shapes.padding import Layout, Uneven, cut, put_back

Rows = Tensor | Uneven
"""Rows of one tensor: (B, *shape), or without padding where they differ in size."""


def _read_only(rows: Tensor) -> NDArray[Any]:
    array = rows.numpy()
    array.flags.writeable = False  # it may be the mapped file itself
    return array


def entries_of(rows: Rows) -> Tensor:
    """Give rows (B, *shape), or all entries (M, *rest) along the axes where they differ in size."""
    return rows.values if isinstance(rows, Uneven) else rows


def some(rows: Rows, at: slice) -> Rows:
    """Take some rows."""
    return rows.select(at) if isinstance(rows, Uneven) else rows[at]


def joined(parts: Sequence[Rows]) -> Rows:
    """Put rows one after the other."""
    uneven = [part for part in parts if isinstance(part, Uneven)]
    return Uneven.joined(uneven) if uneven else torch.cat([part for part in parts if isinstance(part, Tensor)])


_MOST = 2**48  # of any size: no row is as large

Size = tuple[int, int]
"""A size `a * batch + c`, as (a, c)."""


@dataclass(frozen=True, slots=True)
class Form:
    """Shape, strides, dtype and device of a recorded tensor, for any batch size."""

    shape: tuple[Size, ...]
    stride: tuple[Size, ...]
    dtype: torch.dtype
    device: torch.device
    is_steady: bool  # False: the shape depends on values, so it cannot be foretold

    @functools.lru_cache(maxsize=65536)  # noqa: B019  (forms are small, and the cache forgets)
    def at(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give shape and strides for one batch size."""
        return tuple(a * batch + c for a, c in self.shape), tuple(a * batch + c for a, c in self.stride)

    @property
    def is_even(self) -> bool:
        """Whether each size is either the same for all batch sizes, or a multiple of the batch."""
        return self.is_steady and all(not a or not c for a, c in self.shape)

    def batch_of(self, shape: tuple[int, ...]) -> int | None:
        """Find the batch size that gives this shape; None if none does, none is needed, or values decide."""
        if not self.is_steady:
            return None
        for (a, c), size in zip(self.shape, shape, strict=False):
            if a:
                return (size - c) // a
        return None


def linear_size(size: int, larger: int, batch: int, more: int = 1) -> Size:
    """Write a size that is `size` for `batch` samples and `larger` for `more` of them in addition as `a * batch + c`.

    Where it does not grow evenly, the result does not give `larger`.
    """
    slope = (larger - size) // more
    return slope, size - slope * batch


@dataclass(frozen=True, slots=True)
class FrontierTensor:
    """One tensor of the frontier.

    Attributes:
        name: The module call that gave it, or the operation.
        form: Its shape (with the batch), strides, dtype and device.
        row_axis: The axis along which samples lie, or None if the tensor has none.
        fold: How many entries along that axis belong to one sample.
        open_axes: Axes whose size cannot be foretold: what `form` says of them was seen for other inputs.
        layout: How rows differ in size from sample to sample; None if they do not.
        among: Axes along which others differ in size among which these rows lie, that do not.
    """

    name: str
    form: Form
    batch: int
    open_axes: tuple[int, ...] = ()
    layout: Layout | None = None
    among: tuple[int, ...] = ()

    @property
    def row_axis(self) -> int | None:
        """Axis along which samples lie; None if no axis, or more than one, grows with the batch."""
        axes = [axis for axis, (a, _) in enumerate(self.form.shape) if a]
        if len(axes) != 1 or self.form.shape[axes[0]][1] != 0 or not self.form.is_steady:
            return None
        return axes[0]

    @property
    def fold(self) -> int:
        """Entries along the row axis that belong to one sample."""
        return 1 if self.row_axis is None else self.form.shape[self.row_axis][0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's row; the whole shape where there are no rows."""
        shape, _ = self.form.at(self.batch)
        axis = self.row_axis
        if axis is None:
            return shape
        rest = shape[:axis] + shape[axis + 1 :]
        return (self.fold, *rest) if self.fold > 1 else rest

    @property
    def stored_shape(self) -> tuple[int | None, ...]:
        """Shape of one row as it is stored: sizes that differ come first, as None."""
        axes = () if self.layout is None else self.layout.axes
        rest = tuple(size for axis, size in enumerate(self.shape, 1) if axis not in axes)
        return (None,) * len(axes) + rest

    def evened(self, sizes: Sequence[int]) -> "FrontierTensor":
        """Give the tensor for rows that have these sizes along the axes where others differ, and so one shape."""
        assert self.layout is not None
        shape, row_axis = list(self.form.shape), self.row_axis
        rest = [axis for axis in range(len(shape)) if axis != row_axis]
        for axis, size in zip(self.layout.axes, sizes, strict=True):
            at = axis - 1 - (self.fold > 1)
            if at < 0:
                assert row_axis is not None
                shape[row_axis] = (size, 0)
            else:
                shape[rest[at]] = (0, size)
        is_dense = _is_dense(*self.form.at(self.batch))
        stride = dense_form(self.form.stride, tuple(shape)) if is_dense else self.form.stride
        return replace(
            self, form=replace(self.form, shape=tuple(shape), stride=stride), layout=None, among=self.layout.axes
        )

    def cut(self, rows: Tensor, own: Tensor | None) -> Rows:
        """Cut padding off rows (B, *shape). Undone by `padded`.

        Args:
            rows: The rows.
            own: (B, K): the sizes of their samples, where rows differ in size.
        """
        if self.layout is None:
            return rows
        shape = [rows.shape[axis] for axis in self.layout.axes]
        unpadded = torch.tensor([shape]).expand(len(rows), -1)
        sizes = unpadded if self.layout.stairs is None or own is None else self.layout.sizes(own)
        return cut(rows, self.layout.axes, sizes, self.layout.at_end)

    def padded(self, rows: Rows, inputs: Sequence[int] | None = None) -> Tensor:
        """Give rows (B, *shape), padded where they differ in size.

        Args:
            rows: The rows.
            inputs: The sizes of the model's inputs in a batch of these samples; rows are padded as far as they ask for.
                By default to the largest row.

        Raises:
            PaddingError: rows of differing size came without padding.
        """
        if not isinstance(rows, Uneven):
            return rows
        assert self.layout is not None
        shape = rows.sizes.amax(0).tolist()
        if self.layout.stairs is None and bool((rows.sizes != rows.sizes[0]).any()):
            raise PaddingError(
                f"Cannot feed '{self.name}' of samples that differ in size together: expected them to come padded, got "
                "samples that came one at a time. Feed them so: features.batches(1), or pad them: "
                "ft.extract(..., collate_fn=...)"
            )
        if inputs is not None and self.layout.stairs is not None and not self.layout.by_longest:
            shape = self.layout.sizes(torch.tensor([inputs]))[0].tolist()
        return put_back(rows, self.layout.axes, shape, self.layout.fill, self.layout.at_end)

    def apart(self, rows: Rows) -> list[Tensor]:
        """Give each row for itself, without padding."""
        if not isinstance(rows, Uneven):
            return list(rows)
        assert self.layout is not None
        axes = tuple(axis - 1 for axis in self.layout.axes)
        return [rows.row(at).movedim(tuple(range(len(axes))), axes) for at in range(len(rows))]

    @property
    def shown(self) -> str:
        """Shape of one row, to people: a star for a size that differs."""
        axes = () if self.layout is None else self.layout.axes
        sizes = ["*" if axis in axes else str(size) for axis, size in enumerate(self.shape, 1)]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"

    def arrays(self, rows: Rows) -> Any:
        """Give rows as a read-only array (N, *shape), or a list of arrays where they differ in size.

        Raises:
            DataError: numpy has no such type.
        """
        if self.dtype == torch.bfloat16 or (self.dtype.is_floating_point and self.dtype.itemsize == 1):
            raise DataError(
                f"Cannot give '{self.name}' as an array: numpy has no {str(self.dtype).removeprefix('torch.')}. "
                "Take tensors instead: torch.cat([v.float() for v, _ in features.batches(4096)])"
            )
        if isinstance(rows, Uneven):
            assert self.layout is not None
            front = range(len(self.layout.axes))
            stops = rows.sizes.prod(1).cumsum(0).tolist()
            values, rest = _read_only(rows.values), rows.values.shape[1:]
            parts = zip([0, *stops], stops, rows.sizes.tolist(), strict=False)
            return [
                np.moveaxis(values[start:stop].reshape(*sizes, *rest), front, [axis - 1 for axis in self.layout.axes])
                for start, stop, sizes in parts
            ]
        return _read_only(rows)

    def fits(self, shape: tuple[int, ...], batch: int) -> bool:
        """Say whether so many samples give a tensor of this shape; an open axis may have any size."""
        foretold = self.form.at(batch)[0]
        sizes = enumerate(zip(foretold, shape, strict=False))
        return len(foretold) == len(shape) and all(at in self.open_axes or a == b for at, (a, b) in sizes)

    def to_rows(self, value: Tensor) -> Tensor:
        """Lay a tensor that crosses the frontier out as rows (B, *shape). Undone by `from_rows`."""
        axis = self.row_axis
        assert axis is not None
        value = value.resolve_conj().resolve_neg()  # what is stored are numbers, not how to read them
        if self.fold > 1:
            value = value.unflatten(axis, (-1, self.fold)).movedim(axis + 1, 0)
            return value.movedim(axis + 1, 0)
        return value.movedim(axis, 0)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Lay rows (B, *shape) out as the head knows the tensor, in the memory order that it had live."""
        axis = self.row_axis
        assert axis is not None
        batch = rows.shape[0]
        if self.fold > 1:
            value = rows.movedim((0, 1), (axis, axis + 1)).flatten(axis, axis + 1)
        else:
            value = rows.movedim(0, axis)
        shape, stride = self.form.at(batch)
        if not _is_dense(shape, stride):
            return value
        if shape != tuple(value.shape):  # inputs of other sizes: the same order of axes
            shape, stride = tuple(value.shape), _in_order_of(stride, value.shape)
        if value.stride() == stride:
            return value
        return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device).copy_(value)

    def to_json(self) -> dict[str, Any]:
        """Write as plain values. Undone by `from_json`."""
        form = {
            "shape": self.form.shape,
            "stride": self.form.stride,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        layout = None if self.layout is None else self.layout.to_json()
        return {"name": self.name, "batch": self.batch, "layout": layout, **form}

    @staticmethod
    def from_json(written: dict[str, Any]) -> "FrontierTensor":
        """Read what `to_json` wrote."""
        sizes = {key: tuple((int(a), int(c)) for a, c in written[key]) for key in ("shape", "stride")}
        bounded = all(0 <= number < _MOST for form in sizes.values() for size in form for number in size)
        if not bounded or len(sizes["shape"]) != len(sizes["stride"]):
            raise ValueError(f"expected as many strides as sizes, from 0 to {_MOST}, got {sizes}")
        dtype = getattr(torch, str(written["dtype"]))
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"expected the name of a dtype, got {written['dtype']!r}")
        form = Form(sizes["shape"], sizes["stride"], dtype, torch.device("cpu"), True)
        layout = None if written.get("layout") is None else Layout.from_json(written["layout"])
        if layout is not None and any(axis >= len(form.shape) + 1 for axis in layout.axes):
            raise ValueError(f"expected axes of a row, got {layout.axes} of {form.shape}")
        return FrontierTensor(str(written["name"]), form, int(written["batch"]), layout=layout)

    @property
    def dtype(self) -> torch.dtype:
        """Type of its entries."""
        return self.form.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of one sample's row."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def _in_order_of(stride: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Give dense strides for a shape, with axes in the order that other strides have."""
    made, step = [0] * len(shape), 1
    for axis in sorted(range(len(shape)), key=lambda axis: (stride[axis], -axis)):
        made[axis], step = step, step * shape[axis]
    return tuple(made)


def dense_form(stride: tuple[Size, ...], shape: tuple[Size, ...]) -> tuple[Size, ...]:
    """Give dense strides for a shape, with axes in the order that other strides have; one axis at most is the batch."""
    order = sorted(range(len(shape)), key=lambda axis: (sum(stride[axis]), -axis))
    made: list[Size] = [(0, 0)] * len(shape)
    step: Size = (0, 1)
    for axis in order:
        made[axis] = step
        (a, c), (b, d) = step, shape[axis]
        step = (a * d + b * c, c * d)
    return tuple(made)


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Say whether strides fill a block of memory exactly once."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
