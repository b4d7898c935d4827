"""Rows of differing size: cut from a padded batch, and put back into one.

Samples differ in size (texts, sounds, images), and a batch of them is padded to one size. What is padding and what is
a sample is told by the samples themselves (measuring.py), never guessed. The store keeps each row at its own size; the
feed pads as the batch was padded live.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forethought.shapes.curves import Stairs

Number = float | int | bool | complex
# torch moves entries of any type by index, but not in each way: they are moved as numbers of the same width.
OWN = "own"  # the column of a table that holds the samples' own sizes
CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Layout:
    """How the rows (B, ...) of a tensor of the frontier differ in size.

    Attributes:
        axes: The axes along which they do, from 1 on.
        stairs: The size along each by the size of a sample; None where samples come unpadded.
        at_end: Whether rows lie at the end of these axes in a padded batch.
        fill: What padding holds.
        by_longest: Whether a padded batch is as large as its largest row, rather than as its inputs ask for.
    """

    axes: tuple[int, ...]
    stairs: tuple[Stairs, ...] | None
    at_end: bool = False
    fill: Number = 0
    by_longest: bool = False

    def sizes(self, own: Tensor) -> Tensor:
        """Give the sizes (B, len(axes)) of rows by the sizes (B, K) of their samples."""
        assert self.stairs is not None
        return torch.stack([stairs.at(own[:, stairs.measure]) for stairs in self.stairs], 1).clamp(min=0)

    def to_json(self) -> dict[str, Any]:
        """Write as plain values. Undone by `from_json`."""
        return asdict(self) | {"fill": _written(self.fill)}

    @staticmethod
    def from_json(written: dict[str, Any]) -> "Layout":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is nothing of the kind.
        """
        stairs = written["stairs"]
        if stairs is not None:
            stairs = tuple(Stairs(**{name: int(number) for name, number in each.items()}) for each in stairs)
            if any(each.run < 1 or each.measure < 0 for each in stairs):
                raise ValueError(f"expected steps of a width above 0, got {stairs}")
        axes = tuple(int(axis) for axis in written["axes"])
        if any(axis < 1 for axis in axes) or (stairs is not None and len(stairs) != len(axes)):
            raise ValueError(f"expected axes from 1 on, got {axes}")
        return Layout(axes, stairs, bool(written["at_end"]), _read(written["fill"]), bool(written["by_longest"]))


def _written(number: Number) -> Any:
    if isinstance(number, complex):
        return [number.real.hex(), number.imag.hex()]
    return [number.hex()] if isinstance(number, float) else number


def _read(written: Any) -> Number:
    if isinstance(written, list):
        if len(written) not in (1, 2):
            raise ValueError(f"expected a real or a complex number, got {written!r}")
        parts = [float.fromhex(part) for part in written]
        return parts[0] if len(parts) == 1 else complex(*parts)
    if not isinstance(written, bool | int):
        raise ValueError(f"expected a number, got {written!r}")
    return written


class Widths:
    """The size of a batch by that of its largest sample: what a collate function pads to.

    Args:
        known: For each measure, sizes of samples and the size of a batch of each alone, where that is another.
    """

    def __init__(self, known: Sequence[Mapping[int, int]]) -> None:
        self._known = [dict(each) for each in known]

    def at(self, measure: int, largest: int) -> int:
        """Give the size of a batch whose largest sample has this size."""
        return self._known[measure].get(largest, largest) if measure < len(self._known) else largest

    def note(self, measure: int, size: int, width: int) -> None:
        """Take in what a sample of this size was padded to."""
        while len(self._known) <= measure:
            self._known.append({})
        if width != size:
            self._known[measure][size] = width

    def update(self, other: "Widths") -> None:
        """Take in what else is known."""
        for measure, each in enumerate(other._known):
            for size, width in each.items():
                self.note(measure, size, width)

    def to_json(self) -> list[list[tuple[int, int]]]:
        """Write as plain values: the argument of `from_json`."""
        return [sorted(each.items()) for each in self._known]

    @staticmethod
    def from_json(written: Any) -> "Widths":
        """Read what `to_json` wrote."""
        return Widths([{int(size): int(width) for size, width in each} for each in written])


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

    def to_json(self) -> list[Any]:
        """Write as plain values. Undone by `from_json`."""
        pad = None if self.pad is None else [_written(self.pad)]
        return [[list(pair) for pair in self.axes], self.at_end, pad, self.tells]

    @staticmethod
    def from_json(written: Any) -> "Leaf":
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError: it is nothing of the kind.
        """
        axes, at_end, pad, tells = written
        measures = tuple((int(axis), int(measure)) for axis, measure in axes)
        told = None if tells is None else int(tells)
        return Leaf(measures, bool(at_end), None if pad is None else _read(pad[0]), told)

    def without_sizes(self, shape: Sequence[int | None]) -> tuple[Any, ...]:
        """Give the shape (without the batch) of a tensor, with measures in the place of sizes that differ."""
        measures = dict(self.axes)
        return tuple((measures[axis],) if axis in measures else size for axis, size in enumerate(shape, 1))


@dataclass(frozen=True)
class Padding:
    """How the tensors of a batch differ in size.

    Attributes:
        leaves: One for each tensor that the model is given.
        count: How many measures a sample has: one for the length of a text, two for an image's height and width.
    """

    leaves: tuple[Leaf, ...]
    count: int

    def place_of(self, measure: int) -> tuple[int, int]:
        """Give a tensor, by its number, and an axis of it along which samples differ by a measure."""
        return next((at, axis) for at, leaf in enumerate(self.leaves) for axis, own in leaf.axes if own == measure)

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

    def cropped(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Cut padding off samples that all have these sizes."""
        made = []
        for leaf, tensor in zip(self.leaves, tensors, strict=True):
            for axis, measure in leaf.axes:
                size = sizes[measure]
                tensor = tensor.narrow(axis, tensor.shape[axis] - size if leaf.at_end else 0, size)
            made.append(tensor.contiguous() if leaf.axes else tensor)
        return made

    def padded(self, tensors: Sequence[Tensor], sizes: Sequence[int], shape: Sequence[int]) -> list[Tensor]:
        """Pad samples that all have these sizes and no padding to a size. Undone by `cropped`."""
        made = []
        for leaf, tensor in zip(self.leaves, tensors, strict=True):
            if leaf.axes:
                own = torch.tensor([[sizes[measure] for _, measure in leaf.axes]]).expand(len(tensor), -1)
                axes = [axis for axis, _ in leaf.axes]
                fill = 0 if leaf.pad is None else leaf.pad
                rows = cut(tensor, axes, own)
                tensor = put_back(rows, axes, [shape[measure] for _, measure in leaf.axes], fill, leaf.at_end)
            made.append(tensor)
        return made

    def resized(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Crop a batch to these sizes, or repeat what it holds until it has them; what filled it fills it still."""
        made, shape = [], self.sizes_in(tensors)
        assert shape is not None
        for leaf, tensor in zip(self.leaves, tensors, strict=True):
            for axis, measure in leaf.axes:
                places = torch.arange(sizes[measure])
                places = places - sizes[measure] if leaf.at_end else places
                tensor = tensor.index_select(axis, (places % tensor.shape[axis]).to(tensor.device))
            if leaf.tells is not None:
                size = sizes[leaf.tells]
                tensor = torch.where(tensor >= shape[leaf.tells], size, tensor.clamp(max=size))
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

    def cpu(self) -> "Uneven":
        """Have the entries on the CPU."""
        return replace(self, values=self.values.cpu())

    def record_stream(self, stream: Any) -> None:
        """Hold on to the entries until a stream has used them; see torch.Tensor.record_stream."""
        self.values.record_stream(stream)

    def select(self, rows: Tensor | slice) -> "Uneven":
        """Take some rows, in the order asked for."""
        counts = self.sizes.prod(1)
        stops = counts.cumsum(0)
        return Uneven(self.values[places_of((stops - counts)[rows], counts[rows])], self.sizes[rows])

    def row(self, at: int) -> Tensor:
        """Give one row (*sizes, *rest)."""
        counts = self.sizes.prod(1)
        start = int(counts[:at].sum())
        own = self.values[start : start + int(counts[at])]
        return own.reshape(*self.sizes[at].tolist(), *own.shape[1:])

    @staticmethod
    def joined(parts: "Sequence[Uneven]") -> "Uneven":
        """Put rows one after the other."""
        return Uneven(torch.cat([part.values for part in parts]), torch.cat([part.sizes for part in parts]))


def places_of(starts: Tensor, counts: Tensor) -> Tensor:
    """List the places of stretches of entries: of each `counts` many from `starts` on.

    Example:
        >>> places_of(torch.tensor([7, 0]), torch.tensor([2, 3])).tolist()
        [7, 8, 0, 1, 2]
    """
    before = counts.cumsum(0) - counts
    return torch.repeat_interleave(starts - before, counts) + torch.arange(int(counts.sum()))


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
