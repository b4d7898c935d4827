"""How the rows of a trunk differ in size, found by running it on samples alone, and padded as far as they come.

Rows of differing size are stored only if none depends on how far it was padded. The feed pads them anew, with one
value, so nothing that the head makes of a sample's own places may depend on what padding holds either.
"""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from forethought import nesting
from forethought.errors import ForethoughtError, ImpureTrunkError, PaddingError
from forethought.probing.purity import bound_of, distance, rows_of
from forethought.probing.rounding import Rounding
from forethought.samples.batch import Batch
from forethought.samples.measuring import one_value
from forethought.shapes.forms import FrontierTensor, Rows
from forethought.shapes.padding import Layout, Number, Uneven, cut, outside
from forethought.splitting.replay import Split

Layouts = tuple[Layout | None, ...]
"""One for each tensor of the frontier; None where rows have one size."""


class Padded:
    """The rows of an example: of all samples together, and of each alone, without padding.

    Args:
        split: Stretched for inputs like these.
        batch: The example: first a sample that fills it.
    """

    def __init__(self, split: Split, batch: Batch) -> None:
        assert batch.padding is not None
        assert batch.sizes is not None
        shape = batch.padding.sizes_in(batch.tensors)
        assert shape is not None
        self.split = split
        self.batch = batch
        self.padding = batch.padding
        self.sizes = batch.sizes
        self.shape = shape

    @cached_property
    def whole(self) -> list[Tensor]:
        """The rows of all samples together: (B, ...) for each tensor of the frontier."""
        return rows_of(self.split, self.batch)

    @cached_property
    def _apart(self) -> dict[int, list[Tensor]]:
        found = {}
        for row in range(self.batch.rows):
            try:
                found[row] = rows_of(self.split, self.batch.cropped(torch.tensor([row])))
            except ForethoughtError:
                raise
            except Exception:  # whatever a model says of a sample that is too small alone
                if row == 0:
                    raise
        return found

    @property
    def able(self) -> list[int]:
        """The samples that the model takes alone."""
        return list(self._apart)

    @property
    def alone(self) -> list[list[Tensor]]:
        """The rows of each of these alone, without padding."""
        return list(self._apart.values())

    @cached_property
    def noise(self) -> list[float]:
        """How far errors of rounding move rows, in ulps."""
        with Rounding(0):
            moved = rows_of(self.split, self.batch)
        return [distance(one, other) for one, other in zip(self.whole, moved, strict=True)]


def find_layouts(rows: Padded) -> Layouts:
    """Find how the rows of a trunk differ in size.

    Args:
        rows: Those of an example.

    Raises:
        ImpureTrunkError: rows depend on how far they are padded.
        PaddingError: the size of a row does not follow from that of its sample.
    """
    axes = [_axes(rows.split, at) for at in range(len(rows.split.frontier))]
    if all(leaf.pad is None for leaf in rows.padding.leaves):
        return tuple(Layout(each, None) if each else None for each in axes)
    return _by_longest(rows, tuple(_layout(rows, at, each) for at, each in enumerate(axes)))


def cut_rows(tensor: FrontierTensor, rows: Tensor, batch: Batch) -> Rows:
    """Cut padding off the rows (B, *shape) of a batch.

    Raises:
        PaddingError: they are padded to another size than was foretold.
    """
    layout = tensor.layout
    if layout is not None and layout.stairs is not None:
        assert batch.padding is not None
        assert batch.sizes is not None
        shape = batch.padding.sizes_in(batch.tensors)
        wanted = layout.sizes(torch.tensor([shape]))[0].tolist()
        got = [rows.shape[axis] for axis in layout.axes]
        if got != wanted:
            raise PaddingError(
                f"Cannot cut '{tensor.name}' from a padded batch: expected rows of size {wanted} for inputs of size "
                f"{shape}, got {got}. Cut elsewhere: ft.extract(model, ..., at=<another module>), or pad all samples "
                "to one size in the data set."
            )
    return tensor.cut(rows, batch.sizes)


def _by_longest(rows: Padded, layouts: Layouts) -> Layouts:
    """See which rows are padded to the largest of them only, where inputs are padded further."""
    smaller = [
        at for at in rows.able if all(own < full for own, full in zip(rows.sizes[at].tolist(), rows.shape, strict=True))
    ]
    if not smaller or not any(layouts):
        return layouts
    own, full = rows.sizes[smaller], torch.tensor([rows.shape])
    batch = rows.batch.select(torch.tensor(smaller))
    given = rows.split.rows(*nesting.replace((batch.args, batch.kwargs), torch.clone))
    found = [
        None if layout is None else replace(layout, by_longest=_is_short(layout, each, own, full))
        for layout, each in zip(layouts, given, strict=True)
    ]
    if any(layout is not None and layout.by_longest for layout in found):
        rows.split.forget()  # what was recorded of such inputs is none for all sizes
    return tuple(found)


def _is_short(layout: Layout, rows: Tensor, own: Tensor, full: Tensor) -> bool:
    """Say whether padded rows are as large as the largest of them, and not as inputs of the full size ask for."""
    got = [rows.shape[axis] for axis in layout.axes]
    return got == layout.sizes(own).amax(0).tolist() != layout.sizes(full)[0].tolist()


def _axes(split: Split, at: int) -> tuple[int, ...]:
    """List the axes of rows (B, ...) that have another size for inputs of other sizes."""
    shapes = {plan.frontier[at].shape for plan in (split.plan, *split.plan.siblings)}
    if len({len(shape) for shape in shapes}) > 1:
        raise _unsized(split, at, "rows with as many axes for each size of input")
    return tuple(axis for axis, sizes in enumerate(zip(*shapes, strict=True), 1) if len(set(sizes)) > 1)


def _layout(rows: Padded, at: int, axes: tuple[int, ...]) -> Layout | None:
    """Check rows, and find out how they lie in a padded batch where they have several sizes."""
    if axes:
        return _uneven(rows, at, axes)
    _check(rows, at, distance(torch.cat([each[at] for each in rows.alone]), rows.whole[at][rows.able]))
    return None


def _uneven(rows: Padded, at: int, axes: tuple[int, ...]) -> Layout:
    """Check rows of several sizes; find out how they lie in a padded batch."""
    found = [rows.split.stairs_of(at, axis) for axis in axes]
    stairs = tuple(each for each in found if each is not None)
    if len(stairs) < len(axes):
        raise _unsized(rows.split, at, "rows whose size follows from one size of their samples")
    layout = Layout(axes, stairs)
    sizes = layout.sizes(rows.sizes[rows.able])
    alone, whole = [each[at] for each in rows.alone], rows.whole[at][rows.able]
    if sizes.tolist() != [[row.shape[axis] for axis in axes] for row in alone]:
        raise _unsized(rows.split, at, "rows whose sizes follow from those of their samples")
    own = Uneven.joined([cut(row, axes, size[None]) for row, size in zip(alone, sizes, strict=True)]).values
    apart = {end: distance(own, cut(whole, axes, sizes, end).values) for end in (False, True)}
    at_end = apart[True] < apart[False]
    _check(rows, at, apart[at_end])
    fill = _fill(one_value(outside(whole, axes, sizes, at_end)), own.dtype)
    return Layout(axes, layout.stairs, at_end, fill)


def _fill(found: Number | None, dtype: torch.dtype) -> Number:
    """Choose what padding holds: what it held live if that is one number, as in a mask; else no head may read it."""
    if found is None or isinstance(found, complex):
        return False if dtype == torch.bool else 0
    return found


def _check(rows: Padded, at: int, apart: float) -> None:
    """Refuse rows that moved further by padding than the largest, which had none, by the company that it had."""
    whole, largest = rows.whole[at], rows.alone[0][at]
    noise = max(rows.noise[at], distance(whole[:1], largest, scale=whole))
    bound = bound_of(whole.dtype, noise)
    if apart > bound:
        raise ImpureTrunkError(
            f"Cannot store features of '{type(rows.split.model).__name__}': expected '{rows.split.frontier[at].name}' "
            f"of a sample not to depend on how far it is padded, got a change of {apart:.3g} units in the last place, "
            f"where rounding explains {bound:.3g}. Give the model the mask or the lengths of its samples, cut before "
            "padding gets in: ft.extract(model, ..., at=<an earlier module>), or pad all samples to one size in the "
            "data set."
        )


def _unsized(split: Split, at: int, expected: str) -> PaddingError:
    return PaddingError(
        f"Cannot store '{split.frontier[at].name}' of samples that differ in size: expected {expected}, got others. "
        "Cut elsewhere: ft.extract(model, ..., at=<another module>), or pad all samples to one size in the data set."
    )
