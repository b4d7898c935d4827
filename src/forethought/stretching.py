"""One recorded path for inputs of any size: lengths of texts and sounds, heights and widths of images.

A model is recorded on inputs of several sizes. Where it took the same steps each time, every size in its plans is
written as a polynomial in the sizes that differ, with whole coefficients, if one of low degree fits all that was seen.
That gives a plan for sizes that were never recorded. A size that does not fit, such as what a strided convolution
leaves, is open: the trunk need not know it beforehand, and the head has the stored tensor.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from forethought import nesting
from forethought.curves import Curve, Curves, Sizes
from forethought.errors import ForethoughtError, ReplayDriftError, ShapeError
from forethought.forms import Form, FrontierTensor, Size
from forethought.inputs import signature_of
from forethought.operations import func_name
from forethought.padding import Padding
from forethought.plan import CallStep, OperationStep, Plan, Step
from forethought.trials import record_plan

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_MOST_PATHS = 8  # of inputs of one form
_KEPT = 256  # plans for sizes that were met, of one path


class Family:
    """The plans of one path at several sizes, and those at any others that follow from them.

    Args:
        plans: Recorded at different sizes, the first of them the one to go by.
        points: The sizes.

    Raises:
        ReplayDriftError: the model took other steps for other sizes.
    """

    def __init__(self, plans: Sequence[Plan], points: Sequence[tuple[int, ...]]) -> None:
        self.curves = Curves(points)
        self.plans = (replace(plans[0], siblings=tuple(plans[1:]), curves=self.curves), *plans[1:])
        first = _outline(plans[0])
        left = [step.left for step in _steps(plans[0])]
        if any(
            _outline(plan) != first or not nesting.is_same_plain([step.left for step in _steps(plan)], left)
            for plan in plans[1:]
        ):
            raise ReplayDriftError(
                "Cannot follow one path for inputs of all sizes: expected the same steps each time, got others for "
                "other sizes. Give all samples one size: pad or crop them in the data set."
            )
        self._forms = [self._joined(forms) for forms in zip(*map(_forms, plans), strict=True)]
        self._made: OrderedDict[Sizes, Plan] = OrderedDict()

    @property
    def first(self) -> Plan:
        """The plan to go by."""
        return self.plans[0]

    def at(self, sizes: Sizes) -> Plan:
        """Give the plan for inputs of these sizes."""
        if sizes in self.curves.points:
            return self.plans[self.curves.points.index(sizes)]
        if sizes not in self._made:
            self._made[sizes] = self._plan(sizes)
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(sizes)
        return self._made[sizes]

    def sizes_of(self, values: Sequence[Tensor]) -> Sizes:
        """Find the sizes of the inputs from which a frontier of these shapes came; None for one that no shape tells."""
        found: list[int | None] = [None] * len(self.curves.points[0])
        for at, value in enumerate(values):
            forms = [plan.frontier[at].form for plan in self.plans]
            if value.ndim != len(forms[0].shape):
                continue
            for axis, size in enumerate(value.shape):
                curve = self.curves.fit(tuple(form.shape[axis][1] for form in forms))
                if curve is not None and not any(form.shape[axis][0] for form in forms):
                    told = self.curves.solve(curve, size)
                    if told is not None:
                        found[told[0]] = told[1]
        return tuple(found)

    def _joined(self, forms: Sequence[Form]) -> "_Curved":
        kinds = {(len(form.shape), form.dtype, form.is_steady) for form in forms}
        if len(kinds) > 1 or not forms[0].is_steady:
            return _Curved(forms[0], (), ())
        shape, stride = (
            tuple(self._fitted(same) for same in zip(*sizes, strict=True))
            for sizes in ([form.shape for form in forms], [form.stride for form in forms])
        )
        return _Curved(forms[0], shape, stride)

    def _fitted(self, same: Sequence[Size]) -> tuple[Curve | None, Curve | None]:
        slopes, constants = zip(*same, strict=True)
        return self.curves.fit(slopes), self.curves.fit(constants)

    def _plan(self, sizes: Sizes) -> Plan:
        forms = iter([curved.form if not curved.shape else self._form(curved, sizes) for curved in self._forms])
        plan = _with_forms(self.first, forms)
        frontier = tuple(self._frontier_tensor(at, sizes) for at in range(len(plan.frontier)))
        return replace(plan, frontier=frontier, is_stretched=True, siblings=())

    def _form(self, curved: "_Curved", sizes: Sizes) -> Form:
        """Give a form for these sizes; one that is open, or takes a size that is not known, is not steady."""
        shape, stride = (
            tuple(self._size(curves, sizes) for curves in parts) for parts in (curved.shape, curved.stride)
        )
        if None in shape or None in stride:
            return replace(curved.form, is_steady=False)
        return replace(curved.form, shape=shape, stride=stride)  # type: ignore[arg-type]

    def _size(self, curves: tuple[Curve | None, Curve | None], sizes: Sizes) -> Size | None:
        found = [None if curve is None else self.curves.at(curve, sizes) for curve in curves]
        return None if None in found else (found[0], found[1])  # type: ignore[return-value]

    def _frontier_tensor(self, at: int, sizes: Sizes) -> FrontierTensor:
        """Give a tensor of the frontier, with the axes marked whose size nothing foretells."""
        tensor = self.first.frontier[at]
        curved = self._joined([plan.frontier[at].form for plan in self.plans])
        if not curved.shape:
            return tensor
        shape = [self._size(curves, sizes) for curves in curved.shape]
        stride = [self._size(curves, sizes) for curves in curved.stride]
        open_axes = tuple(axis for axis, size in enumerate(shape) if size is None)
        known = tuple(old if new is None else new for old, new in zip(tensor.form.shape, shape, strict=True))
        steps = tensor.form.stride if None in stride else tuple(stride)
        form = replace(tensor.form, shape=known, stride=steps)  # type: ignore[arg-type]
        return replace(tensor, form=form, open_axes=open_axes)


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

    def plans_of(self, values: Sequence[Tensor]) -> list[Plan]:
        """Give the plans from which a frontier of these shapes may have come."""
        families = [family for families in self._families.values() for family in families]
        fitting = [family for family in families if len(family.first.frontier) == len(values)]
        return [family.at(family.sizes_of(values)) for family in fitting]

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any], as_given: bool) -> Family:
        """Record the path of these inputs, and of the same ones made smaller."""
        sizes = self.padding.sizes_in(nesting.tensors((args, kwargs)))
        assert sizes is not None
        refused: Exception | None = None
        for points in _points(sizes):
            try:
                return Family([self._plan(args, kwargs, point, as_given) for point in points], points)
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

    def _plan(self, args: Any, kwargs: Any, point: tuple[int, ...], as_given: bool) -> Plan:
        tensors = iter(self.padding.resized(nesting.tensors((args, kwargs)), point))
        args, kwargs = nesting.replace((args, kwargs), lambda _: next(tensors))
        return record_plan(self._model, self._at, args, kwargs, as_given)


def _points(sizes: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Choose sizes to record at, from the given ones down; the next choice is for models that cannot take the last."""
    for steps in (lambda n: (1, n - (3 * n + 3) // 4, n - n // 2 - 1), lambda _: (1, 2, 3), lambda _: (-1, -2, -3)):
        one, some, half = zip(*(steps(n) for n in sizes), strict=True)
        shrunk = [one, some, half] if len(sizes) == 1 else _spread(one, some, half)
        points = [tuple(n - less for n, less in zip(sizes, each, strict=True)) for each in ((0,) * len(sizes), *shrunk)]
        if len(set(points)) == len(points) and all(n > 0 for point in points for n in point):
            yield points


def _spread(one: tuple[int, ...], some: tuple[int, ...], half: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shrink each size alone and, where there are two, both: enough for polynomials of the second degree."""
    count = len(one)
    alone = [
        tuple(less[at] if at == each else 0 for at in range(count)) for each in range(count) for less in (one, some)
    ]
    return [*alone, *([one] if count == 2 else []), half]


@dataclass(frozen=True)
class _Curved:
    """One form as it was recorded first, and the curves of its sizes and strides; none where it is not steady."""

    form: Form
    shape: tuple[tuple[Curve | None, Curve | None], ...]
    stride: tuple[tuple[Curve | None, Curve | None], ...]


def _steps(plan: Plan) -> Iterator[Step]:
    """Give each step once, in an order that depends on the steps only."""
    seen: set[int] = set()
    for call in plan.root.walk():
        for step in [*([] if call.whole is None else [call.whole]), *call.touching, *call.meeting, *call.trainable]:
            if id(step) not in seen:
                seen.add(id(step))
                yield step


def _forms(plan: Plan) -> list[Form]:
    made = [form for step in _steps(plan) for _, form in [*step.made, *step.changed.values()]]
    return [form for _, form in plan.inputs] + made


def _outline(plan: Plan) -> str:
    """Write everything of a plan but its sizes, and the values that it names by number."""
    calls = [
        (
            call.path,
            call.whole is None,
            list(call.children),
            [
                [func_name(step.operation.func) for step in steps]
                for steps in (call.touching, call.meeting, call.trainable)
            ],
            call.binds is None,
        )
        for call in plan.root.walk()
    ]
    steps = [
        (len(step.made), list(step.changed), step.result, step.captures, step.settles, step.reads)
        for step in _steps(plan)
    ]
    crossings = [tensor.name for tensor in plan.frontier], plan.input_captures, plan.rewritten, plan.pending
    return repr((calls, steps, crossings, plan.arguments, len(plan.inputs)))


def _with_forms(plan: Plan, forms: Iterator[Form]) -> Plan:
    """Give a plan with other forms, in the order of `_forms`."""
    inputs = [(made, next(forms)) for made, _ in plan.inputs]
    new: dict[int, Step] = {}
    for step in _steps(plan):
        made = [(one, next(forms)) for one, _ in step.made]
        changed = {at: (one, next(forms)) for at, (one, _) in step.changed.items()}
        new[id(step)] = replace(step, made=made, changed=changed)
    return replace(plan, inputs=inputs, root=_call_with(plan.root, new))


def _call_with(call: CallStep, new: dict[int, Step]) -> CallStep:
    def changed(steps: list[OperationStep]) -> list[OperationStep]:
        return [new[id(step)] for step in steps]  # type: ignore[misc]

    return replace(
        call,
        whole=None if call.whole is None else new[id(call.whole)],
        children={key: _call_with(child, new) for key, child in call.children.items()},
        touching=changed(call.touching),
        meeting=changed(call.meeting),
        trainable=changed(call.trainable),
    )
