"""Finding, from a few samples, how batches of a data set differ in size, and what tells how large each sample is."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from forethought import nesting
from forethought.errors import DataError
from forethought.samples.measuring import (
    ALONE,
    BATCH,
    ITEM,
    MASK,
    Collate,
    Path,
    Source,
    Telling,
    holds,
    joined_alone,
    leaves_in,
    one_value,
    run_of,
    tensor_at,
    untold,
)
from forethought.shapes.padding import Leaf, Number, outside


def find_telling(collate: Collate, items: Sequence[Any], joined: Any, order: Sequence[int]) -> Telling | None:
    """Find out, from a few samples, how batches of them differ in size and what tells; None if they do not.

    Args:
        collate: What joins samples.
        items: The samples.
        joined: All of them joined; None if they cannot be.
        order: The tensors of a batch that the model is given, by number: their measures come first.

    Raises:
        UnequalShapesError: something differs, and nothing tells what is a sample's and what padding.
        DataError: joining changes the order of samples.
    """
    alone = [nesting.tensors(joined_alone(collate, item)) for item in items]
    if joined is None:
        return _without_padding(alone, order)
    whole = nesting.tensors(joined)
    if any(len(tensors) != len(whole) for tensors in alone):
        alone = []
    return _Search(items, alone, whole, order).telling()


def has_one_size(telling: Telling, collate: Collate, items: Sequence[Any], joined: Any) -> bool:
    """Say whether each of a few samples is padded to the size of all of them, when it is joined alone."""
    if joined is None:
        return False
    whole = telling.sizes_in(nesting.tensors(joined))
    alone = [nesting.tensors(joined_alone(collate, item)) for item in items]
    return all(len(each) == len(telling.leaves) and telling.sizes_in(each) == whole for each in alone)


def _without_padding(alone: Sequence[Sequence[Tensor]], order: Sequence[int]) -> Telling | None:
    """Tell samples that only come one at a time by their own shapes."""
    if not alone or any([t.ndim for t in each] != [t.ndim for t in alone[0]] for each in alone) or not alone[0]:
        return None
    measures: dict[tuple[int, ...], Source] = {}
    leaves = [Leaf()] * len(alone[0])
    for at in [*order, *(at for at in range(len(leaves)) if at not in order)]:
        axes = []
        for axis in range(1, alone[0][at].ndim):
            sizes = tuple(tensors[at].shape[axis] for tensors in alone)
            if len(set(sizes)) > 1:
                measures.setdefault(sizes, Source(BATCH, at, axis))
                axes.append((axis, list(measures).index(sizes)))
        leaves[at] = Leaf(tuple(axes))
    return Telling(tuple(leaves), tuple(measures.values())) if measures else None


class _Search:
    """Looks for what tells, in samples, in batches of one, and in one of all.

    Args:
        items: The samples.
        alone: The tensors of each, joined alone; none if that is not possible.
        whole: The tensors of all, joined.
        order: Which tensors to begin with.
    """

    def __init__(
        self, items: Sequence[Any], alone: Sequence[Sequence[Tensor]], whole: Sequence[Tensor], order: Sequence[int]
    ) -> None:
        self._items = items
        self._alone = alone
        self._whole = whole
        self._sources: list[Source] = []
        self._sizes: list[tuple[int, ...]] = []  # of the samples, by measure
        self._leaves: dict[int, Leaf] = {}
        self._first = [*order, *(at for at in range(len(whole)) if at not in order)]
        self._order = [at for at in self._first if whole[at].ndim > 1 and len(whole[at]) == len(items)]

    def telling(self) -> Telling | None:
        for at in self._order:
            self._match(at)
        waiting = [at for at in self._order if at not in self._leaves]
        for at in waiting:
            self._join(at)
        while waiting := [at for at in waiting if at not in self._leaves and any(map(self._differs, self._axes(at)))]:
            self._found(waiting)
        if not self._sources:
            return None
        leaves = [self._leaves.get(at, self._teller(at)) for at in range(len(self._whole))]
        used = dict.fromkeys(measure for at in self._first for _, measure in leaves[at].axes)
        number = {old: new for new, old in enumerate(used)}
        return Telling(
            tuple(_renumbered(leaf, number) for leaf in leaves), tuple(self._sources[measure] for measure in used)
        )

    def _axes(self, at: int) -> list[tuple[int, int]]:
        return [(at, axis) for axis in range(1, self._whole[at].ndim)]

    def _alone_sizes(self, at: int, axis: int) -> tuple[int, ...]:
        if any(tensors[at].ndim <= axis for tensors in self._alone):
            return ()
        return tuple(tensors[at].shape[axis] for tensors in self._alone)

    def _differs(self, place: tuple[int, int]) -> bool:
        """Say whether some sample alone has another size than all together."""
        return set(self._alone_sizes(*place)) - {self._whole[place[0]].shape[place[1]]} != set()

    def _match(self, at: int) -> None:
        """Find a tensor of the batch in the samples, each smaller or as large as it is there."""
        whole = self._whole[at]
        others = []
        for path, _ in leaves_in(self._items[0]):
            own = [tensor_at(item, path) for item in self._items]
            if any(one is None or one.ndim != whole.ndim - 1 for one in own):
                continue
            found = [one for one in own if one is not None]
            if any(a > b for one in found for a, b in zip(one.shape, whole.shape[1:], strict=True)):
                continue
            if all(tuple(one.shape) == tuple(whole.shape[1:]) for one in found):
                if all(holds(row, one, at_end=False) for row, one in zip(whole, found, strict=True)):
                    return  # it is this, as it is: what else of a sample it seems to begin with does so by chance
                continue
            for at_end in (False, True):
                if all(holds(row, one, at_end) for row, one in zip(whole, found, strict=True)):
                    self._take(at, path, found, at_end)
                    return
            others.append(found)
        for found in others:
            self._check_order(at, found)

    def _take(self, at: int, path: Path, own: Sequence[Tensor], at_end: bool) -> None:
        sizes = {axis: tuple(one.shape[axis - 1] for one in own) for _, axis in self._axes(at)}
        axes = [
            axis for axis in sizes if set(sizes[axis]) != {self._whole[at].shape[axis]} or self._differs((at, axis))
        ]
        measures = [self._measure(sizes[axis], Source(ITEM, at, axis, path)) for axis in axes]
        self._settle(at, list(zip(axes, measures, strict=True)), at_end)

    def _measure(self, sizes: tuple[int, ...], source: Source) -> int:
        """Number a measure; a new one if samples have not these sizes by any, in batches of the same size."""
        padded = self._whole[source.leaf].shape[source.axis]
        for number, known in enumerate(self._sizes):
            other = self._sources[number]
            if known == sizes and self._whole[other.leaf].shape[other.axis] == padded:
                return number
        self._sizes.append(sizes)
        self._sources.append(source)
        return len(self._sources) - 1

    def _settle(self, at: int, axes: list[tuple[int, int]], at_end: bool) -> None:
        pad = self._pad(at, axes, at_end)
        if pad is None:
            raise untold(f"one value in the padding of {self._name(at)}, got several")
        self._leaves[at] = Leaf(tuple(axes), at_end, pad)

    def _pad(self, at: int, axes: list[tuple[int, int]], at_end: bool) -> Number | None:
        """Give the one value that fills what is no sample's; None if there are several, or none."""
        sizes = torch.tensor([self._sizes[measure] for _, measure in axes]).T
        if not axes or bool((sizes > torch.tensor([self._whole[at].shape[axis] for axis, _ in axes])).any()):
            return None
        return one_value(outside(self._whole[at], [axis for axis, _ in axes], sizes, at_end))

    def _join(self, at: int) -> None:
        """See whether a tensor that no sample holds has padding where a tensor that was found has."""
        choices = [(axis, measure) for _, axis in self._axes(at) for measure in self._alike(at, axis)]
        for count in range(len(choices), 0, -1):
            for axes in itertools.combinations(choices, count):
                if len({axis for axis, _ in axes}) < count:
                    continue
                for at_end in (False, True):
                    if self._pad(at, list(axes), at_end) is not None:
                        self._settle(at, list(axes), at_end)
                        return

    def _alike(self, at: int, axis: int) -> list[int]:
        """List the measures by which batches are as large as along this axis, alone and together."""
        found = []
        for number, source in enumerate(self._sources):
            same = self._whole[at].shape[axis] == self._whole[source.leaf].shape[source.axis]
            if same and self._alone_sizes(at, axis) == self._alone_sizes(source.leaf, source.axis):
                found.append(number)
        return found

    def _found(self, waiting: Sequence[int]) -> None:
        """Find a measure for the first tensor that differs in size: by a mask among those that do so, or alone."""
        at, axis = next(place for at in waiting for place in self._axes(at) if self._differs(place))
        alone = self._alone_sizes(at, axis)
        alike = [
            place
            for other in waiting
            for place in self._axes(other)
            if self._alone_sizes(*place) == alone
            and self._whole[place[0]].shape[place[1]] == self._whole[at].shape[axis]
        ]
        for sizes, source in (*self._masks(alike), (alone, Source(ALONE, at, axis))):
            count = len(self._sources), len(self._sizes)
            self._measure(sizes, source)
            for other in waiting:
                self._join(other)
            if at in self._leaves:
                return
            del self._sources[count[0] :], self._sizes[count[1] :]
        raise untold(f"one value in the padding of {self._name(at)}, got several")

    def _masks(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, ...], Source]]:
        """List what may be a mask, with the sizes that it gives."""
        for at, axis in places:
            whole = self._whole[at]
            if whole.ndim != 2 or whole.is_floating_point() or not bool(((whole == 0) | (whole == 1)).all()):
                continue
            for mark, at_end in itertools.product((1, 0), (False, True)):
                runs = [run_of(row, mark, at_end) for row in whole]
                own = [run_of(tensors[at][0], mark, at_end) for tensors in self._alone]
                if None not in runs and own == runs and 0 not in runs:
                    yield tuple(run for run in runs if run is not None), Source(MASK, at, axis, mark=mark)

    def _teller(self, at: int) -> Leaf:
        """See whether a tensor holds the samples' sizes themselves."""
        whole = self._whole[at]
        if whole.ndim == 1 and len(whole) == len(self._items) and not whole.is_floating_point():
            for measure, sizes in enumerate(self._sizes):
                if whole.dtype != torch.bool and not whole.is_complex() and tuple(whole.tolist()) == sizes:
                    return Leaf(tells=measure)
        return Leaf()

    def _check_order(self, at: int, own: Sequence[Tensor]) -> None:
        """Refuse a collate function that sorts: rows and targets would be another sample's."""
        rows = list(self._whole[at])
        is_told = len({(tuple(one.shape), str(one.tolist())) for one in own}) == len(own)
        if is_told and all(any(holds(row, one, at_end) for row in rows for at_end in (False, True)) for one in own):
            raise DataError(
                "Cannot tell samples apart: expected collate_fn to keep their order, got another one (does it sort "
                "them by length?). Leave them as they come; for pack_padded_sequence use enforce_sorted=False."
            )

    def _name(self, at: int) -> str:
        return f"a tensor {tuple(self._whole[at].shape)} of the batch"


def _renumbered(leaf: Leaf, number: dict[int, int]) -> Leaf:
    tells = None if leaf.tells is None else number[leaf.tells]
    return replace(leaf, axes=tuple((axis, number[measure]) for axis, measure in leaf.axes), tells=tells)
