"""Rows of differing size: cut from a padded batch, and put back into one.

Samples differ in size (texts, sounds, images), and a batch of them is padded to one size. What is padding and what is
a sample is told by the samples themselves (measuring.py), never guessed. The store keeps each row at its own size; the
feed pads as the batch was padded live.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Number = float | int | bool
# torch moves entries of any type by index, but not in each way: they are moved as numbers of the same width.
CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Stairs:
    """The size of a row as a function of the size of its sample: floor((rise * n + offset) / run).

    Attributes:
        measure: Which of a sample's sizes n is.
        rise: 1, unless the model makes it larger.
        offset: What is added: a token in front, say.
        run: 1, or the strides of convolutions multiplied.

    Example:
        >>> Stairs(0, offset=-10, run=5).at(torch.tensor([60, 64, 65])).tolist()
        [10, 10, 11]
    """

    measure: int
    rise: int = 1
    offset: int = 0
    run: int = 1

    def at(self, sizes: Tensor) -> Tensor:
        """Evaluate at sizes (...) of samples."""
        return (self.rise * sizes + self.offset).div(self.run, rounding_mode="floor").clamp(min=0)


@dataclass(frozen=True)
class Leaf:
    """How one tensor of a batch differs in size from sample to sample.

    Attributes:
        axes: (axis, measure) of each axis along which it does.
        at_end: Whether samples lie at the end of these axes, and padding before them.
        pad: What padding holds; None if there never is any.
        tells: For whole numbers (B,): the measure that they are.
    """

    axes: tuple[tuple[int, int], ...] = ()
    at_end: bool = False
    pad: Number | None = None
    tells: int | None = None


@dataclass(frozen=True)
class Padding:
    """How the tensors of a batch differ in size.

    Attributes:
        leaves: One for each tensor that the model is given.
        count: How many measures a sample has: one for the length of a text, two for an image's height and width.
    """

    leaves: tuple[Leaf, ...]
    count: int

    def sizes_in(self, tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
        """Tell the size of a batch by each measure; None if its tensors do not agree on it."""
        found: list[int | None] = [None] * self.count
        if len(tensors) != len(self.leaves):
            return None
        for leaf, tensor in zip(self.leaves, tensors, strict=True):
            for axis, measure in leaf.axes:
                if tensor.ndim <= axis or found[measure] not in (None, tensor.shape[axis]):
                    return None
                found[measure] = tensor.shape[axis]
        return None if None in found else tuple(found)  # type: ignore[arg-type]

    def resized(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Crop a batch to these sizes, or repeat what it holds until it has them."""
        made = []
        for leaf, tensor in zip(self.leaves, tensors, strict=True):
            for axis, measure in leaf.axes:
                places = torch.arange(sizes[measure])
                places = places - sizes[measure] if leaf.at_end else places
                tensor = tensor.index_select(axis, (places % tensor.shape[axis]).to(tensor.device))
            if leaf.tells is not None:
                tensor = tensor.clamp(max=sizes[leaf.tells])
            made.append(tensor)
        return made


@dataclass(frozen=True)
class Uneven:
    """Rows of several sizes, without padding.

    Attributes:
        values: (M, *rest): the entries of all rows, one row after the other.
        sizes: (N, D) whole numbers, on the CPU: the sizes of each row along the axes that differ.

    Example:
        >>> rows = cut(torch.tensor([[1, 2, 0], [3, 0, 0]]), (1,), torch.tensor([[2], [1]]))
        >>> rows.values.tolist(), put_back(rows, (1,), (4,), -1).tolist()
        ([1, 2, 3], [[1, 2, -1, -1], [3, -1, -1, -1]])
    """

    values: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.sizes)


def cut(batch: Tensor, axes: Sequence[int], sizes: Tensor, at_end: bool = False) -> Uneven:
    """Cut padding off a batch (B, ...).

    Args:
        batch: One entry a sample along the first axis.
        axes: The axes, from 1 on, along which samples differ.
        sizes: (B, len(axes)): how much of each is the sample's.
        at_end: Whether samples lie at the end of these axes, and padding before them.
    """
    front = batch.movedim(tuple(axes), tuple(range(1, len(axes) + 1)))
    inside = _inside(front.shape[1 : len(axes) + 1], sizes, at_end)
    return Uneven(front[inside.to(batch.device)], sizes)


def put_back(rows: Uneven, axes: Sequence[int], shape: Sequence[int], fill: Number, at_end: bool = False) -> Tensor:
    """Pad rows to one size: (B, ...). Undoes `cut`.

    Args:
        rows: The rows.
        axes: Where their axes go in the batch.
        shape: The size of the batch along each.
        fill: What padding holds.
        at_end: Whether samples lie at the end of these axes.
    """
    values, rest = rows.values, rows.values.shape[1:]
    carrier = CARRIERS[values.dtype.itemsize]
    places, width = len(rows) * math.prod(shape), math.prod(rest)
    whole = torch.full((places, width), fill, dtype=values.dtype, device=values.device).view(carrier)
    where = _inside(shape, rows.sizes, at_end).reshape(-1).nonzero().squeeze(1).to(values.device)
    whole.index_copy_(0, where, values.reshape(len(values), width).view(carrier))
    whole = whole.view(values.dtype).view(len(rows), *shape, *rest)
    return whole.movedim(tuple(range(1, len(axes) + 1)), tuple(axes))


def outside(batch: Tensor, axes: Sequence[int], sizes: Tensor, at_end: bool = False) -> Tensor:
    """Give all entries of a batch that are padding, flat; arguments as for `cut`."""
    front = batch.movedim(tuple(axes), tuple(range(1, len(axes) + 1)))
    return front[~_inside(front.shape[1 : len(axes) + 1], sizes, at_end).to(batch.device)].reshape(-1)


def _inside(shape: Sequence[int], sizes: Tensor, at_end: bool) -> Tensor:
    """Say of each place of a batch (B, *shape) whether it is a sample's, on the CPU."""
    inside = torch.ones((len(sizes), *shape), dtype=torch.bool)
    for axis, size in enumerate(shape):
        places = torch.arange(size)
        own = sizes[:, axis, None]
        part = places >= size - own if at_end else places < own
        inside &= part.reshape(len(sizes), *(size if at == axis else 1 for at in range(len(shape))))
    return inside
