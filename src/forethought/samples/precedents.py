"""How samples differed in size before: samples that look even, or less uneven, may be found among those.

A text of a stored corpus, asked for alone, differs in size from nothing. What its row is does not depend on that: its
key is that of what the model is given without padding, and its row lies in the table that was made when others were
looked at. A precedent says how they differed; whether it holds for the samples at hand is tried on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from forethought import nesting
from forethought.errors import UnequalShapesError
from forethought.samples.batch import Batch
from forethought.samples.measuring import (
    ALONE,
    BATCH,
    ITEM,
    MASK,
    Collate,
    Measure,
    Path,
    Source,
    Telling,
    holds,
    leaves_in,
    tensor_at,
)
from forethought.samples.unevenness import Part, Unevenness, UnforeseenSizesError, example_apart, example_of
from forethought.shapes.padding import Leaf, Padding

_KINDS = (ITEM, MASK, ALONE, BATCH)
_MOST = 32  # tensors, axes or measures: no note is believed that names more


@dataclass(frozen=True)
class Precedent:
    """How samples of one model differed in size.

    Attributes:
        leaves: One for each tensor that the model is given.
        sources: What told each measure, without where in a sample; `leaf` counts what the model is given.
    """

    leaves: tuple[Leaf, ...]
    sources: tuple[Source, ...]

    @staticmethod
    def of(uneven: Unevenness) -> "Precedent | None":
        """Take down how samples differ; None if what the model is given does not."""
        padding, inputs = uneven.padding, uneven.inputs
        if not padding.count:
            return None
        sources = []
        for measure, source in enumerate(uneven.telling.sources[: padding.count]):
            if source.leaf in inputs:
                sources.append(replace(source, leaf=inputs.index(source.leaf), path=()))
            else:  # a mask that the model is not given
                leaf, axis = padding.place_of(measure)
                sources.append(Source(ALONE, leaf, axis))
        return Precedent(padding.leaves, tuple(sources))

    @property
    def padding(self) -> Padding:
        """How the model's inputs differed."""
        return Padding(self.leaves, len(self.sources))

    def to_json(self) -> dict[str, Any]:
        """Write as plain values. Undone by `from_json`."""
        sources = [[source.kind, source.leaf, source.axis, source.mark] for source in self.sources]
        return {"leaves": [leaf.to_json() for leaf in self.leaves], "sources": sources}

    @staticmethod
    def from_json(written: Any) -> "Precedent":
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is nothing of the kind.
        """
        leaves = tuple(Leaf.from_json(each) for each in written["leaves"])
        sources = tuple(
            Source(str(kind), int(leaf), int(axis), mark=int(mark)) for kind, leaf, axis, mark in written["sources"]
        )
        named = {measure for leaf in leaves for _, measure in leaf.axes}
        told = {leaf.tells for leaf in leaves if leaf.tells is not None}
        is_whole = (
            0 < len(sources) < _MOST > len(leaves)
            and named == set(range(len(sources)))
            and told <= named
            and all(0 < axis < _MOST for leaf in leaves for axis, _ in leaf.axes)
            and all(source.kind in _KINDS and source.mark in (0, 1) for source in sources)
            and all(
                0 <= source.leaf < len(leaves) and (source.axis, measure) in leaves[source.leaf].axes
                for measure, source in enumerate(sources)
            )
        )
        if not is_whole:
            raise ValueError("expected a source for each measure of the leaves")
        return Precedent(leaves, sources)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Say whether tensors that a model is given may differ in size like this."""
        return len(tensors) == len(self.leaves) and all(
            axis < tensor.ndim for leaf, tensor in zip(self.leaves, tensors, strict=True) for axis, _ in leaf.axes
        )

    def sized(self, batch: Batch) -> Batch:
        """Give a batch, none of which is padding, its sizes."""
        shape = self.padding.sizes_in(batch.tensors)
        assert shape is not None
        return batch.of_sizes(self.padding, [shape] * batch.rows)

    def example(self, batch: Batch) -> Batch:
        """Make an example for a model of samples of one size, by what shows the path of those that differ."""
        if any(leaf.pad is not None for leaf in self.leaves):
            return example_of(batch)
        return example_apart([batch.select(torch.tensor([row])) for row in range(batch.rows)])


@dataclass(frozen=True)
class Looked:
    """Samples that were looked at.

    Attributes:
        items: As they come.
        joined: All of them joined; None if they cannot be.
        collate: What joins them.
        part: Parts what was joined into inputs and targets.
        inputs: The tensors that the model is given, by number among those of a batch.
    """

    items: Sequence[Any]
    joined: Any
    collate: Collate
    part: Part
    inputs: Sequence[int]

    def batches(self, uneven: Unevenness | None) -> list[Batch]:
        """Join them, measured as is thought that they differ; one at a time if they cannot be joined.

        Raises:
            UnforeseenSizesError, UnequalShapesError: they differ otherwise.
        """
        parts = (
            [(self.items, self.joined)] if self.joined is not None else [([i], self.collate([i])) for i in self.items]
        )
        if uneven is None:
            return [self.part(joined) for _, joined in parts]
        measure = Measure(uneven.telling, self.collate)
        return [uneven.batch(self.part, joined, measure(items, joined)) for items, joined in parts]


class Guide(Protocol):
    """Chooses how samples are taken to differ."""

    def choose(self, seen: Looked, found: Unevenness | None) -> Unevenness | None:
        """Choose for some samples, given how they seem to differ."""
        ...

    def choose_even(self, batch: Batch) -> Precedent | None:
        """Choose for samples that lie in one tensor each, none of which is padding."""
        ...


def follow(precedent: Precedent, seen: Looked, found: Telling | None) -> Unevenness | None:
    """Take samples to differ as others did before; None if they do not, whatever else they do.

    Args:
        precedent: How the others did.
        seen: Some of the samples.
        found: How these differ.
    """
    one = seen.joined if seen.joined is not None else seen.collate(list(seen.items[:1]))
    tensors = nesting.tensors(one)
    if not precedent.fits([tensors[at] for at in seen.inputs]) or len(seen.inputs) != len(precedent.leaves):
        return None
    leaves = list(found.leaves) if found is not None else [Leaf()] * len(tensors)
    numbers = _numbers(precedent, leaves, seen.inputs)
    if numbers is None:
        return None
    steady = frozenset(range(len(precedent.sources))) - set(numbers.values())
    sources = [_source(source, precedent, seen, tensors) for source in precedent.sources]
    for measure, source in enumerate(found.sources if found is not None else ()):
        if measure not in numbers:  # of targets alone
            numbers[measure] = len(sources)
            sources.append(source)
    leaves = [_renumbered(leaf, numbers) for leaf in leaves]
    for at, leaf in zip(seen.inputs, precedent.leaves, strict=True):
        leaves[at] = leaf
    uneven = Unevenness(Telling(tuple(leaves), tuple(sources)), seen.inputs, follows=True)
    try:
        batches = seen.batches(uneven)
    except (UnforeseenSizesError, UnequalShapesError):
        return None
    if not all(
        _is_told(pair, batch) for batch in batches for pair in zip(precedent.leaves, batch.tensors, strict=True)
    ):
        return None
    uneven.hold(batches, steady)
    return uneven


def _is_told(pair: tuple[Leaf, Tensor], batch: Batch) -> bool:
    """Say whether a tensor that told sizes before tells them still."""
    leaf, tensor = pair
    if leaf.tells is None:
        return True
    assert batch.sizes is not None
    return tensor.ndim == 1 and bool((tensor == batch.sizes[:, leaf.tells].to(tensor.device)).all())


def _numbers(precedent: Precedent, leaves: Sequence[Leaf], inputs: Sequence[int]) -> dict[int, int] | None:
    """Say which measure of the precedent each measure of the samples at hand is; None if one is none."""
    numbers: dict[int, int] = {}
    for at, before in zip(inputs, precedent.leaves, strict=True):
        known = dict(before.axes)
        for axis, measure in leaves[at].axes:
            if axis not in known:
                return None
            numbers.setdefault(measure, known[axis])
    return numbers


def _renumbered(leaf: Leaf, numbers: dict[int, int]) -> Leaf:
    tells = None if leaf.tells is None else numbers.get(leaf.tells)
    return replace(leaf, axes=tuple((axis, numbers[measure]) for axis, measure in leaf.axes), tells=tells)


def _source(source: Source, precedent: Precedent, seen: Looked, tensors: Sequence[Tensor]) -> Source:
    """Find in the samples at hand what told a measure before, or else what they are alone."""
    here = replace(source, leaf=seen.inputs[source.leaf])
    if seen.joined is None:
        return replace(here, kind=BATCH)
    if source.kind != ITEM:
        return here
    path = _path_to(tensors[here.leaf], seen, precedent.leaves[source.leaf].at_end)
    return replace(here, kind=ALONE) if path is None else replace(here, path=path)


def _path_to(whole: Tensor, seen: Looked, at_end: bool) -> Path | None:
    """Find where in each sample what a batch holds of it lies."""
    for path, _ in leaves_in(seen.items[0]):
        own = [tensor_at(item, path) for item in seen.items]
        if all(
            one is not None and one.ndim == whole.ndim - 1 and holds(row, one, at_end)
            for one, row in zip(own, whole, strict=False)
        ):
            return path
    return None
