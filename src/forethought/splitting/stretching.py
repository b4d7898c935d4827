"""One recorded path for inputs of any size: lengths of texts and sounds, heights and widths of images.

A model is recorded on inputs of several sizes. Where it took the same steps each time, every size in its plans is
written as a polynomial in the sizes that differ, with whole coefficients, if one of low degree fits all that was seen.
That gives a plan for sizes that were never recorded. A size that does not fit, such as what a strided convolution
leaves, is open: the trunk need not know it beforehand, and the head has the stored tensor.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from forethought import nesting
from forethought.errors import ForethoughtError, ShapeError
from forethought.shapes.curves import Sizes, Stairs
from forethought.shapes.padding import Padding
from forethought.splitting.families import Family, Point
from forethought.splitting.inputs import batch_of, signature_of
from forethought.splitting.plan import Plan
from forethought.splitting.recording import Recording
from forethought.splitting.trials import record_once, record_plan

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_MOST_PATHS = 8  # of inputs of one form


class Stretch:
    """The paths of one model on inputs of any size.

    Args:
        model: The model.
        at: Paths of modules at which to cut.
        padding: Which axes of the inputs differ in size.
    """

    def __init__(self, model: nn.Module, at: Sequence[str], padding: Padding) -> None:
        self.padding = padding
        self._model = model
        self._at = at
        self._families: dict[Any, list[Family]] = {}

    @property
    def plans(self) -> list[Plan]:
        """One plan of each path."""
        return [family.first for families in self._families.values() for family in families]

    def forget(self) -> None:
        """Forget what was recorded."""
        self._families.clear()

    def plans_for(self, args: tuple[Any, ...], kwargs: dict[str, Any], example: Arguments) -> list[Plan]:
        """Give the plans for inputs of this form, whatever their sizes; none if they are not of the kind that differs.

        Args:
            args: The inputs.
            kwargs: Keyword inputs.
            example: Inputs to record, if there is no path for such yet and they are of the same form.

        Raises:
            ReplayDriftError: the model takes other steps for other sizes.
        """
        sizes = self.padding.sizes_in(nesting.tensors((args, kwargs)))
        if sizes is None:
            return []
        signature = self._signature(args, kwargs)
        if signature not in self._families:
            is_same = self._signature(*example) == signature
            self._families[signature] = [self._record(*(example if is_same else (args, kwargs)), as_given=False)]
        return [family.at(sizes) for family in self._families[signature]]

    def record_as_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
        """Record one path more: that of this very batch and of it made smaller; None if that is none for all sizes."""
        sizes = self.padding.sizes_in(nesting.tensors((args, kwargs)))
        families = self._families.setdefault(self._signature(args, kwargs), [])
        if sizes is None or len(families) >= _MOST_PATHS:
            return None
        try:
            families.append(self._record(args, kwargs, as_given=True))
        except ForethoughtError:
            return None
        return families[-1].at(sizes)

    def stairs_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], at: int, axis: int) -> Stairs | None:
        """Find the size of rows along an axis as a function of one size of inputs of this form."""
        return self._families[self._signature(args, kwargs)][0].stairs_of(at, axis)

    def plans_of(self, values: Sequence[Tensor], sizes: Sizes | None) -> list[Plan]:
        """Give the plans from which a frontier of these shapes may have come; the sizes of the inputs may be known."""
        families = [family for families in self._families.values() for family in families]
        fitting = [family for family in families if len(family.first.frontier) == len(values)]
        return [family.at(sizes or family.sizes_of(values)) for family in fitting]

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any], as_given: bool) -> Family:
        """Record the path of these inputs, and of the same ones made smaller."""
        sizes = self.padding.sizes_in(nesting.tensors((args, kwargs)))
        assert sizes is not None
        refused: Exception | None = None
        for points in _points(sizes):
            try:
                return Family(
                    lambda point: record_plan(self._model, self._at, *self._resized(args, kwargs, point), as_given),
                    lambda point: self._seen(args, kwargs, point),
                    points,
                )
            except ForethoughtError:
                raise
            except Exception as err:  # whatever a model says of inputs that are too small, or too large
                refused = refused or err
        raise ShapeError(
            f"Cannot run {type(self._model).__name__} on inputs of other sizes than {sizes}: {refused}. "
            "Give all samples one size: pad or crop them in the data set."
        ) from refused

    def _signature(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return signature_of(args, kwargs, self.padding)

    def _resized(self, args: tuple[Any, ...], kwargs: dict[str, Any], point: Point) -> Arguments:
        tensors = iter(self.padding.resized(nesting.tensors((args, kwargs)), point))
        return nesting.replace((args, kwargs), lambda _: next(tensors))  # type: ignore[no-any-return]

    def _seen(self, args: tuple[Any, ...], kwargs: dict[str, Any], point: Point) -> tuple[Recording, int]:
        args, kwargs = self._resized(args, kwargs, point)
        batch = batch_of(nesting.tensors((args, kwargs)))
        return record_once(self._model, self._at, args, kwargs), batch


def _points(sizes: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Choose sizes to record at, from the given ones down; the next choice is for models that cannot take the last."""
    for steps in (lambda n: (1, n - (3 * n + 3) // 4, n - n // 2 - 1), lambda _: (1, 2, 3), lambda _: (-1, -2, -3)):
        one, some, half = zip(*(steps(n) for n in sizes), strict=True)
        shrunk = [one, some, half] if len(sizes) == 1 else _spread(one, some, half)
        points = [tuple(n - less for n, less in zip(sizes, each, strict=True)) for each in ((0,) * len(sizes), *shrunk)]
        # Of one token, say, attention may take another path, and such inputs have it when they come.
        if len(set(points)) == len(points) and all(n > 1 for point in points for n in point):
            yield points


def _spread(one: tuple[int, ...], some: tuple[int, ...], half: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shrink each size alone and, where there are two, both: enough for polynomials of the second degree."""
    count = len(one)
    alone = [
        tuple(less[at] if at == each else 0 for at in range(count)) for each in range(count) for less in (one, some)
    ]
    return [*alone, *([one] if count == 2 else []), half]
