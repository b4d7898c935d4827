"""How the samples of one data set differ in size: batches of them as they were joined, with what is padding known."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from forethought import nesting
from forethought.samples.batch import Batch
from forethought.samples.measuring import Measured, Telling, one_value, untold
from forethought.samples.targets import UnevenTargets
from forethought.shapes.padding import Leaf, Padding, Widths, cut, outside

Part = Callable[[Any], Batch]


class UnforeseenSizesError(Exception):
    """How samples differ in size is not as it was taken to be: they must be looked at anew."""


class Unevenness:
    """How samples differ in size, in each tensor of a batch.

    Args:
        telling: How they do, and what tells.
        inputs: The tensors that the model is given, by number among those of a batch.
        follows: Whether they are taken to differ as others did before.

    Attributes:
        padding: How the model's inputs do.
        widths: What batches are padded to.
        steady: Sizes that all samples have, by measure, as far as is known.
    """

    def __init__(self, telling: Telling, inputs: Sequence[int], follows: bool = False) -> None:
        self.telling = telling
        self.inputs = tuple(inputs)
        self.follows = follows
        self.steady: dict[int, int] = {}
        leaves = tuple(telling.leaves[at] for at in inputs)
        used = {measure for leaf in leaves for _, measure in leaf.axes}
        self.padding = Padding(leaves, len(used))
        self.widths = Widths([])

    @property
    def is_padded(self) -> bool:
        """Whether batches hold samples of several sizes."""
        return any(leaf.pad is not None for leaf in self.telling.leaves)

    @property
    def is_even(self) -> bool:
        """Whether all samples are of one size, as far as is known."""
        return self.padding.count > 0 and len(self.steady) == self.padding.count

    def hold(self, batches: Sequence[Batch], measures: Collection[int]) -> None:
        """Expect of all samples the size that some have, by some measures."""
        for batch in batches:
            assert batch.sizes is not None
            self.steady |= {measure: int(batch.sizes[0, measure]) for measure in measures}

    def batch(self, part: Part, joined: Any, measured: Measured) -> Batch:
        """Part a batch that was joined and measured.

        Args:
            part: Parts what was joined into inputs and targets.
            joined: What a collate function gave.
            measured: The sizes of its samples.

        Raises:
            UnequalShapesError: it is not padded as the samples that were looked at say.
            UnforeseenSizesError: a sample is of another size than all that were looked at.
        """
        if any(bool((measured.sizes[:, measure] != size).any()) for measure, size in self.steady.items()):
            raise UnforeseenSizesError
        for measure, size, width in measured.alone:
            self.widths.note(measure, size, width)
        tensors = nesting.tensors(joined)
        shape = self.telling.sizes_in(tensors)
        for leaf, tensor in zip(self.telling.leaves, tensors, strict=True):
            self._check(leaf, tensor, shape, measured.sizes)
        self._check_widths(shape, measured.sizes)
        cut_up = {
            id(tensor): _targets(tensor, leaf, measured.sizes)
            for leaf, tensor in zip(self.telling.leaves, tensors, strict=True)
            if leaf.axes
        }
        batch = part(joined)
        targets = nesting.replace(batch.targets, lambda tensor: cut_up.get(id(tensor), tensor))
        if not self.padding.count:  # targets differ, and nothing else
            return replace(batch, targets=targets)
        return replace(batch, targets=targets, padding=self.padding, sizes=measured.sizes[:, : self.padding.count])

    def _check(self, leaf: Leaf, tensor: Tensor, shape: Sequence[int], sizes: Tensor) -> None:
        """Compare one tensor with what is known of its padding."""
        if not leaf.axes:
            return
        axes = [axis for axis, _ in leaf.axes]
        own = sizes[:, [measure for _, measure in leaf.axes]]
        room = torch.tensor([shape[measure] for _, measure in leaf.axes])
        if any(tensor.ndim <= axis or tensor.shape[axis] != shape[measure] for axis, measure in leaf.axes):
            raise UnforeseenSizesError
        if bool((own > room).any()):
            raise untold("batches that hold each sample whole, got one that does not")
        if bool((own == room).all()):
            return
        pad = one_value(outside(tensor, axes, own, leaf.at_end))
        if leaf.pad is None:
            raise UnforeseenSizesError
        if pad is None or not (pad == leaf.pad or (pad != pad and leaf.pad != leaf.pad)):
            raise untold(f"padding of {leaf.pad} in each batch, got {'several values' if pad is None else pad}")

    def _check_widths(self, shape: Sequence[int], sizes: Tensor) -> None:
        for measure, width in enumerate(shape):
            wanted = self.widths.at(measure, int(sizes[:, measure].max()))
            if wanted != width:
                raise untold(f"a batch padded to {wanted}, as its largest sample alone is, got one padded to {width}")


def example_of(batch: Batch) -> Batch:
    """Put two samples before those of a batch that show a model's path best: one that fills it, one far from it."""
    padding = batch.padding
    assert padding is not None
    assert batch.sizes is not None
    shape = padding.sizes_in(batch.tensors)
    assert shape is not None
    order = batch.sizes.prod(1).sort(stable=True).indices
    order = order[batch.sizes[order].amin(1) > 0]  # an empty one shows nothing
    if not len(order):
        raise untold("samples that hold something, got none that does")
    largest, smallest = batch.cropped(order[-1:]), batch.cropped(order[:1])
    own = batch.sizes[order[0]].tolist()
    # Smaller than any size that a path is recorded at: it must be padded at each.
    small = [max(1, min(one, full // 2 - 1)) for one, full in zip(own, shape, strict=True)]
    tensors = [
        padding.resized(largest.tensors, shape),
        padding.padded(padding.resized(smallest.tensors, small), small, shape),
        batch.tensors,
    ]
    joined = iter([torch.cat(parts) for parts in zip(*tensors, strict=True)])
    sizes = torch.cat([torch.tensor([shape, small]), batch.sizes])
    return replace(batch.with_tensors(lambda _: next(joined)), sizes=sizes)


def example_apart(alone: Sequence[Batch]) -> Batch:
    """Join samples that come one at a time: the largest, and the others made as large as it is."""
    padding = alone[0].padding
    assert padding is not None
    sizes = [padding.sizes_in(batch.tensors) for batch in alone]
    shape = max((each for each in sizes if each is not None), key=math.prod)
    largest = sizes.index(shape)
    order = [largest, *(at for at in range(len(alone)) if at != largest)]
    tensors = [padding.resized(alone[at].tensors, shape) for at in order]
    joined = iter([torch.cat(parts) for parts in zip(*tensors, strict=True)])
    return replace(
        alone[largest].with_tensors(lambda _: next(joined)),
        sizes=torch.tensor(shape).expand(len(alone), -1),
        padding=padding,
    )


def _targets(tensor: Tensor, leaf: Leaf, sizes: Tensor) -> UnevenTargets:
    axes = [axis for axis, _ in leaf.axes]
    return UnevenTargets(cut(tensor, axes, sizes[:, [measure for _, measure in leaf.axes]], leaf.at_end), leaf)
