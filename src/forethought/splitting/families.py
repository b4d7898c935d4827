"""The plans of one recorded path at a few sizes of its inputs, and what follows from them for any others."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from forethought import nesting
from forethought.errors import ReplayDriftError
from forethought.shapes.curves import Curve, Curves, Sizes, Stairs, climb
from forethought.shapes.forms import Form, FrontierTensor, Size, dense_form
from forethought.splitting.operations import func_name
from forethought.splitting.plan import CallStep, OperationStep, Plan, Step
from forethought.splitting.recording import Made, Operation, Recording, Value

Point = tuple[int, ...]
Way = tuple[Any, ...]
Rule = Curve | Stairs | None
"""What gives a number for inputs of any size; None if nothing does."""

_KEPT = 256  # plans for sizes that were met, of one path


class Family:
    """The plans of one path at several sizes, and those at any others that follow from them.

    Args:
        record: Gives the plan of this path for inputs of these sizes.
        look: Gives a single run on such inputs, and how many samples they hold.
        points: Sizes at which to record, the first of them the ones to go by.

    Raises:
        ReplayDriftError: the model took other steps for other sizes.
    """

    def __init__(
        self, record: Callable[[Point], Plan], look: Callable[[Point], tuple[Recording, int]], points: Sequence[Point]
    ) -> None:
        self.curves = Curves(points)
        plans = [record(point) for point in points]
        first, left = _outline(plans[0]), [step.left for step in _steps(plans[0])]
        if any(
            _outline(plan) != first or not nesting.is_same_plain([step.left for step in _steps(plan)], left)
            for plan in plans[1:]
        ):
            raise ReplayDriftError(
                "Cannot follow one path for inputs of all sizes: expected the same steps each time, got others for "
                "other sizes. Give all samples one size: pad or crop them in the data set."
            )
        plans = [replace(plan, frontier=tuple(map(_with_rows, plan.frontier))) for plan in plans]
        plans = [replace(plan, frontier=tuple(map(_with_rows, plan.frontier))) for plan in plans]
        self.plans = (
            replace(plans[0], siblings=tuple(plans[1:]), curves=self.curves, climbed=self._climbed),
            *plans[1:],
        )
        self._look = functools.lru_cache(maxsize=1)(look)
        self._heights: dict[tuple[Value, int, int, Point], int] = {}
        self._numbers: dict[Point, tuple[list[dict[Way, int]], int]] = {}  # in the arguments of each operation
        self._told: dict[tuple[int, int, int], Rule] = {}  # of the frontier's tensors, when first asked for
        asked = {read.value for read in plans[0].recording.asked}
        self._forms = [self._joined(at, made.value, made.value in asked) for at, made in enumerate(_values(plans[0]))]
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
        """Find the sizes of the inputs from which a frontier of these shapes came.

        Where a shape leaves several open, these are given as the smallest and the largest; None where none tells.
        """
        found: list[int | tuple[int, int] | None] = [None] * len(self.curves.points[0])
        for at, value in enumerate(values):
            form = self.first.frontier[at].form
            for axis, size in enumerate(value.shape) if value.ndim == len(form.shape) else ():
                told = None if form.shape[axis][0] else self._solved(at, axis, size)
                if told is not None and not isinstance(found[told[0]], int):
                    found[told[0]] = told[1]
        return tuple(found)

    def _solved(self, at: int, axis: int, size: int) -> tuple[int, int | tuple[int, int]] | None:
        rule = self._rule_of(at, axis, part=1)
        if isinstance(rule, Stairs):
            return rule.measure, rule.sizes_at(size)
        return None if rule is None else self.curves.solve(rule, size)

    def stairs_of(self, at: int, axis: int) -> Stairs | None:
        """Find the size of rows (B, ...) along an axis as a function of one size."""
        tensor = self.first.frontier[at]
        others = [each for each in range(len(tensor.form.shape)) if each != tensor.row_axis]
        if any(plan.frontier[at].fold > 1 for plan in self.plans):  # the first axis of a row is part of that of samples
            rule = self._rule_of(at, tensor.row_axis or 0, part=0) if axis == 1 else None
            rule = rule if axis == 1 else self._rule_of(at, others[axis - 2], part=1)
        else:
            rule = self._rule_of(at, others[axis - 1], part=1)
        if isinstance(rule, Stairs) or rule is None:
            return rule
        line = self.curves.line(rule)
        return Stairs(*line) if line is not None and line[1] > 0 else None

    def _rule_of(self, at: int, axis: int, part: int) -> Rule:
        """Find what gives a size of a tensor of the frontier."""
        if (at, axis, part) not in self._told:
            seen = tuple(plan.frontier[at].form.shape[axis][part] for plan in self.plans)
            value = self.first.recording.crossings[at].value
            self._told[at, axis, part] = self._rule(seen, value, axis, part)
        return self._told[at, axis, part]

    def _joined(self, at: int, value: Value | None, is_asked: bool) -> "_Curved":
        forms = [_all_made(plan)[at][1] for plan in self.plans]
        kinds = {(len(form.shape), form.dtype, form.is_steady) for form in forms}
        if len(kinds) > 1 or not forms[0].is_steady:
            return _Curved(forms[0], (), ())
        shape, stride = (
            [self._fitted(same) for same in zip(*sizes, strict=True)]
            for sizes in ([form.shape for form in forms], [form.stride for form in forms])
        )
        if is_asked and value is not None:
            shape = [
                (self._needed(forms, value, axis, 0), self._needed(forms, value, axis, 1)) for axis in range(len(shape))
            ]
        return _Curved(forms[0], tuple(shape), tuple(stride))

    def _needed(self, forms: Sequence[Form], value: Value, axis: int, part: int) -> Rule:
        return self._rule(tuple(form.shape[axis][part] for form in forms), value, axis, part)

    def _fitted(self, same: Sequence[Size]) -> tuple[Rule, Rule]:
        slopes, constants = zip(*same, strict=True)
        return self.curves.fit(slopes), self.curves.fit(constants)

    def _rule(self, seen: Point, value: Value, axis: int, part: int) -> Rule:
        """Find what gives a number seen at each point: how a size grows with the batch (part 0), or its rest."""
        curve = self.curves.fit(seen)
        if curve is not None or value[0] < 0:
            return curve
        return self._staircase(seen, lambda point: self._height(value, axis, part, point))

    def _climbed(self, ordinal: int, way: Way, seen: Sequence[Size]) -> list[Curve | Stairs] | None:
        """Find what gives a number in the arguments of an operation, by batch and by sizes; None if nothing."""
        rules = [
            self.curves.fit(numbers) or self._staircase(numbers, functools.partial(self._number_at, ordinal, way, part))
            for part, numbers in enumerate(zip(*seen, strict=True))
        ]
        return None if None in rules else [rule for rule in rules if rule is not None]

    def _staircase(self, seen: Point, height: Callable[[Point], int]) -> Stairs | None:
        """Find the staircase on which numbers lie that were seen at each point; None if they lie on none."""
        sizes = self.curves.points[0]
        climbing = [measure for measure in range(len(sizes)) if self._climbs(seen, measure)]
        if len(climbing) != 1:
            return None
        (measure,) = climbing
        try:
            stairs = climb(
                lambda size: height((*sizes[:measure], size, *sizes[measure + 1 :])), sizes[measure], measure
            )
        except ReplayDriftError:
            return None
        pairs = zip(self.curves.points, seen, strict=True)
        return stairs if stairs and all(stairs.at(point[measure]) == size for point, size in pairs) else None

    def _height(self, value: Value, axis: int, part: int, point: Point) -> int:
        """Look a size up in a run on inputs of a size; what else may be asked of such runs is kept."""
        if (value, axis, part, point) not in self._heights:
            operations, batch = self._operations_at(point)
            operation = operations[value[0]]
            made = operation.made[value[1]] if value[1] >= 0 else operation.changed[-1 - value[1]]
            self._heights[value, axis, part, point] = made.shape[axis] // (1 if part else batch)
        return self._heights[value, axis, part, point]

    def _number_at(self, ordinal: int, way: Way, part: int, point: Point) -> int:
        """Look a number up in the arguments of an operation, in a run on inputs of a size; all of them are kept."""
        if point not in self._numbers:
            operations, batch = self._operations_at(point)
            self._numbers[point] = [dict(_numbers(operation.arguments)) for operation in operations], batch
        numbers, batch = self._numbers[point]
        if way not in numbers[ordinal]:
            raise ReplayDriftError("Cannot follow one path for inputs of all sizes: expected the same arguments.")
        return numbers[ordinal][way] // (1 if part else batch)

    def _operations_at(self, point: Point) -> tuple[list[Operation], int]:
        recording, batch = self._look(point)
        ours, theirs = self.first.recording.operations, recording.operations
        if len(ours) != len(theirs) or any(a.func != b.func for a, b in zip(ours, theirs, strict=True)):
            raise ReplayDriftError("Cannot follow one path for inputs of all sizes: expected the same operations.")
        return theirs, batch

    def _climbs(self, seen: Sequence[int], measure: int) -> bool:
        """Say whether a number was another one where this size alone was another one."""
        first = self.curves.points[0]
        return any(
            size != seen[0] and all(a == b or at == measure for at, (a, b) in enumerate(zip(point, first, strict=True)))
            for point, size in zip(self.curves.points, seen, strict=True)
        )

    def _plan(self, sizes: Sizes) -> Plan:
        forms = iter([curved.form if not curved.shape else self._form(curved, sizes) for curved in self._forms])
        plan = _with_forms(self.first, forms)
        frontier = tuple(self._frontier_tensor(at, sizes) for at in range(len(plan.frontier)))
        return replace(plan, frontier=frontier, is_stretched=True, siblings=())

    def _form(self, curved: "_Curved", sizes: Sizes) -> Form:
        """Give a form for these sizes; one that is open, or takes a size that is not known, is not steady."""
        shape = tuple(self._size(rules, sizes) for rules in curved.shape)
        stride = tuple(self._size(rules, sizes) for rules in curved.stride)
        if None in shape:
            return replace(curved.form, is_steady=False)
        if None in stride:
            stride = dense_form(curved.form.stride, shape)  # type: ignore[arg-type]
        return replace(curved.form, shape=shape, stride=stride)  # type: ignore[arg-type]

    def _size(self, rules: tuple[Rule, Rule], sizes: Sizes) -> Size | None:
        found = [None if rule is None else self._number(rule, sizes) for rule in rules]
        return None if None in found else (found[0], found[1])  # type: ignore[return-value]

    def _number(self, rule: Curve | Stairs, sizes: Sizes) -> int | None:
        if not isinstance(rule, Stairs):
            return self.curves.at(rule, sizes)
        size = sizes[rule.measure]
        if not isinstance(size, tuple):
            return None if size is None else rule.at(size)
        ends = {rule.at(end) for end in size}
        return ends.pop() if len(ends) == 1 else None

    def _frontier_tensor(self, at: int, sizes: Sizes) -> FrontierTensor:
        """Give a tensor of the frontier, with the axes marked whose size nothing foretells."""
        tensor = self.first.frontier[at]
        forms = [plan.frontier[at].form for plan in self.plans]
        if len({len(form.shape) for form in forms}) > 1:
            return tensor
        axes = range(len(tensor.form.shape))
        shape = [self._size(self._fitted([form.shape[axis] for form in forms]), sizes) for axis in axes]
        stride = [self._size(self._fitted([form.stride[axis] for form in forms]), sizes) for axis in axes]
        open_axes = {axis for axis, size in enumerate(shape) if size is None} | set(tensor.open_axes)
        known = tuple(old if new is None else new for old, new in zip(tensor.form.shape, shape, strict=True))
        steps = tensor.form.stride if None in stride else tuple(stride)
        form = replace(tensor.form, shape=known, stride=steps)  # type: ignore[arg-type]
        return replace(tensor, form=form, open_axes=tuple(sorted(open_axes)))


def _with_rows(tensor: FrontierTensor) -> FrontierTensor:
    """See a tensor whose size depends on values as rows, where one axis grew with the samples: others are open."""
    growing = [axis for axis, (slope, _) in enumerate(tensor.form.shape) if slope]
    if tensor.form.is_steady or len(growing) != 1 or tensor.form.shape[growing[0]] != (1, 0):
        return tensor
    open_axes = tuple(axis for axis in range(len(tensor.form.shape)) if axis not in growing)
    return replace(tensor, form=replace(tensor.form, is_steady=True), open_axes=open_axes)


@dataclass(frozen=True)
class _Curved:
    """One form as it was recorded first, and the curves of its sizes and strides; none where it is not steady."""

    form: Form
    shape: tuple[tuple[Rule, Rule], ...]
    stride: tuple[tuple[Rule, Rule], ...]


def _numbers(argument: Any, way: Way = ()) -> Iterator[tuple[Way, int]]:
    """List the whole numbers in an argument, each with the way to it."""
    if isinstance(argument, slice):
        for name in ("start", "stop", "step"):
            yield from _numbers(getattr(argument, name), (*way, name))
    elif isinstance(argument, list | tuple | dict):
        for at, part in enumerate(nesting.entries(argument)):
            yield from _numbers(part, (*way, at))
    elif isinstance(argument, int) and not isinstance(argument, bool):
        yield way, argument


def _steps(plan: Plan) -> Iterator[Step]:
    """Give each step once, in an order that depends on the steps only."""
    seen: set[int] = set()
    for call in plan.root.walk():
        for step in [*([] if call.whole is None else [call.whole]), *call.touching, *call.meeting, *call.trainable]:
            if id(step) not in seen:
                seen.add(id(step))
                yield step


def _values(plan: Plan) -> list[Made]:
    return [made for made, _ in _all_made(plan)]


def _all_made(plan: Plan) -> list[tuple[Made, Form]]:
    return plan.inputs + [pair for step in _steps(plan) for pair in [*step.made, *step.changed.values()]]


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
    def changed(steps: Sequence[OperationStep]) -> list[OperationStep]:
        return [new[id(step)] for step in steps]  # type: ignore[misc]

    return replace(
        call,
        whole=None if call.whole is None else new[id(call.whole)],
        children={key: _call_with(child, new) for key, child in call.children.items()},
        touching=changed(call.touching),
        meeting=changed(call.meeting),
        trainable=changed(call.trainable),
    )
