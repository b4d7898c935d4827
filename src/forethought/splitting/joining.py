"""Joining the recorded runs of a model into one plan.

A model is recorded a few times, on other values and numbers of samples. A size is taken as `a * batch + c` from two of
the recordings if it then fits them all; otherwise it depends on values, or does not grow evenly, and cannot be
foretold.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from forethought import nesting
from forethought.errors import InvisibleOperationError, NothingFrozenError, ReplayDriftError
from forethought.shapes.forms import Form, FrontierTensor, linear_size
from forethought.splitting.operations import counts
from forethought.splitting.plan import CallStep, OperationStep, Plan, Step
from forethought.splitting.recording import (
    MIXED,
    NOTHING,
    Call,
    Label,
    Made,
    Operation,
    Read,
    Recording,
    Sized,
    Value,
)
from forethought.splitting.sizes import mark_sizes
from forethought.splitting.strangers import check_strangers


def make_plan(recordings: Sequence[Recording], sizes: Sequence[int], arguments: Any) -> Plan:
    """Join the recordings of one model into a plan.

    Args:
        recordings: The run on the example first, then runs on other values and numbers of samples.
        sizes: How many samples each run had.
        arguments: (args, kwargs) of the example with positions in the place of tensors.

    Raises:
        NothingFrozenError: only inputs cross the frontier.
        ReplayDriftError: the runs took different paths.
    """
    example, batch = recordings[0], sizes[0]
    check_strangers(example, recordings[1])
    if not example.crossings and any(op.label is Label.FROZEN for op in example.operations):
        raise InvisibleOperationError(
            "Cannot split: expected what trains to read a frozen value where torch functions show it, got none, though "
            "some are computed: code that they do not show (a scripted function, a C++ extension) reads them, or "
            "nothing does. Cut before it: ft.split(model, x, at=<an earlier module>)"
        )
    if all(crossing.value[0] < 0 for crossing in example.crossings):
        raise NothingFrozenError(
            "Cannot split: expected some layer to be frozen before the first trainable one, got none. "
            "Freeze the first layers: ft.freeze(model, until='<module>'), or set requires_grad_(False) on them."
        )
    mark_sizes(recordings)
    joiner = _Joiner(sizes, [recording.last for recording in recordings], example.handed)
    root = joiner.call([recording.root for recording in recordings])
    inputs = [joiner.made(made) for made in zip(*(recording.inputs for recording in recordings), strict=True)]
    larger = next((at for at, size in enumerate(sizes) if size != batch), None)
    plan = Plan(
        root=root,
        inputs=inputs,
        arguments=arguments,
        frontier=(),
        input_captures=[],
        rewritten=[crossing.rewritten for crossing in example.crossings],
        pending=[False] * len(example.crossings),
        output_crossing=example.output_crossing,
        recording=example,
        larger=None if larger is None else recordings[larger],
        more=1 if larger is None else sizes[larger] - batch,
        batch=batch,
        keeps_state=False,
        writes=set(),
        is_even=joiner.is_even,
        paths_of_head=frozenset(step.path for step in root.walk() if step.whole is None),
        last=example.last,
        crossing_of={c.value: at for at, c in enumerate(example.crossings) if c.settled <= c.value[0]},
        doubts=frozenset(),
        moving=[],
        stale=[],
        written=_written(example.operations),
    )
    plan.doubts = _doubts(example, joiner)
    _place_crossings(plan, joiner, batch)
    return plan


class _Joiner:
    """Walks the recordings side by side.

    Attributes:
        is_even: Whether every size met is the same in all recordings, or a multiple of the batch.
    """

    def __init__(self, sizes: Sequence[int], lasts: Sequence[int], handed: Collection[Value]) -> None:
        self._handed = handed
        self._sizes = sizes
        self._lasts = lasts
        self._other = next((at for at, size in enumerate(sizes) if size != sizes[0]), None)
        self.steps: dict[int, Step] = {}  # id of a recorded operation or call -> its step
        self._read: dict[int, Sequence[Operation]] = {}  # id of a recorded operation -> it in all recordings
        self.is_even = True

    def form_read(self, op: Operation, at: int) -> Form:
        """Give the form of an argument of an operation that is walked through."""
        seen = [same.reads[at].seen for same in self._read[id(op)]]
        return self.made([made for made in seen if made is not None])[1]

    def call(self, calls: Sequence[Call]) -> CallStep:
        first = calls[0]
        if all(call.whole for call in calls) and (step := self._whole(calls)) is not None:
            return CallStep(first.path, step, NOTHING, (), (), (), first.inputs, None)
        first.whole = False
        keys = self._shared_children(calls)
        children = {key: self.call([call.children[key] for call in calls]) for key in keys}
        touching = self._operations(first, [_walked(call, last) for call, last in zip(calls, self._lasts, strict=True)])
        made = {id(step.operation): step for step in touching}
        meeting = self._operations(first, [call.meeting() for call in calls], made)
        needed = [
            [op for op in call.trainable() if op.ordinal <= last] for call, last in zip(calls, self._lasts, strict=True)
        ]
        trainable = self._operations(first, needed, made)
        binds = _binds(first, self._handed)
        drawn = {
            id(step): step for step in (*touching, *trainable) if step.operation.is_drawn or step.operation.is_apart
        }
        draws = sorted(drawn.values(), key=lambda step: step.operation.ordinal)
        return CallStep(first.path, None, children, touching, meeting, trainable, first.inputs, binds, draws)

    def _shared_children(self, calls: Sequence[Call]) -> list[tuple[str, int]]:
        """List the calls inside that all recordings made; once the trunk has ended, what only trains may differ."""
        first = calls[0].children
        if all(call.children.keys() == first.keys() for call in calls):
            return list(first)
        needed = [
            [key for key, child in call.children.items() if _is_needed(child, last)]
            for call, last in zip(calls, self._lasts, strict=True)
        ]
        if any(set(keys) != set(needed[0]) for keys in needed):
            raise ReplayDriftError(_drift(calls[0], "the same modules called each time", "others for other inputs"))
        return needed[0]

    def _whole(self, calls: Sequence[Call]) -> Step | None:
        first = calls[0]
        if any(repr(call.result) != repr(first.result) for call in calls):
            return None  # it gives Python something that changes: walk through it
        if any(call.changed.keys() != first.changed.keys() for call in calls):
            return None
        left = [call.all_left() for call in calls]
        if not all(nesting.is_same_plain(other, left[0]) for other in left):
            return None
        step = Step(self._all([c.made for c in calls]), self._each([c.changed for c in calls]), first.result)
        step.left = left[0]
        self.steps[id(first)] = step
        return step

    def _operations(
        self, call: Call, found: Sequence[list[Operation]], made: dict[int, OperationStep] | None = None
    ) -> list[OperationStep]:
        funcs = [[op.func for op in operations] for operations in found]
        if any(other != funcs[0] for other in funcs):
            raise ReplayDriftError(_drift(call, "the same operations each time", "others for other inputs"))
        steps = []
        for same in zip(*found, strict=True):
            step = (made or {}).get(id(same[0]))
            if step is None:
                forms = self._all([op.made for op in same]), self._each([op.changed for op in same])
                step = OperationStep(*forms, same[0].result)
                step.operation = same[0]
                self.steps[id(same[0])] = step
                self._read[id(same[0])] = same
            steps.append(step)
        return steps

    def _all(self, made: Sequence[list[Made]]) -> list[tuple[Made, Form]]:
        if any(len(one) != len(made[0]) for one in made):
            raise ReplayDriftError("Cannot split: expected an operation to give as many tensors each time.")
        return [self.made(same) for same in zip(*made, strict=True)]

    def _each(self, changed: Sequence[Mapping[int, Made]]) -> Mapping[int, tuple[Made, Form]]:
        return {at: self.made([one[at] for one in changed]) for at in changed[0]} if changed[0] else NOTHING

    def made(self, same: Sequence[Made]) -> tuple[Made, Form]:
        """Join one tensor's forms; one that values decide, or that does not grow evenly, is not steady."""
        first = same[0]
        form = self._form(same)
        self.is_even = self.is_even and form is not None and form.is_even
        if form is None:
            shape, stride = (tuple((0, n) for n in sizes) for sizes in (first.shape, first.stride))
            form = Form(shape, stride, first.dtype, first.device, is_steady=False)
        if form.is_steady and first.sized is Sized.VALUES:
            form = replace(form, is_steady=False)
        return first, form

    def _form(self, same: Sequence[Made]) -> Form | None:
        first, batch = same[0], self._sizes[0]
        if any(len(made.shape) != len(first.shape) or made.dtype != first.dtype for made in same):
            return None
        other, more = (first, 1) if self._other is None else (same[self._other], self._sizes[self._other] - batch)
        shape, stride = (
            tuple(linear_size(x, y, batch, more) for x, y in zip(a, b, strict=True))
            for a, b in ((first.shape, other.shape), (first.stride, other.stride))
        )
        form = Form(shape, stride, first.dtype, first.device, is_steady=True)
        is_steady = all(form.at(size)[0] == made.shape for size, made in zip(self._sizes, same, strict=True))
        return form if is_steady else None


def _walked(call: Call, last: int) -> list[Operation]:
    """List the operations on frozen values that a half must find as they were: what the head does alone may differ."""
    return [op for op in call.touching() if op.ordinal <= last or op.meets_frozen]


def _binds(call: Call, handed: Collection[Value]) -> dict[Value, int] | None:
    """Say which arguments of a call to take from the frontier so that it can run as it is; None if that is not enough.

    It is enough if nothing frozen is computed inside, or comes from elsewhere, or is written into, or given back.
    """
    found: dict[Value, int] = {}
    again = {made.value for inner in call.walk() for op in inner.operations if op.is_again for made in op.made}
    for inner in call.walk():
        for op in inner.operations:
            if op.lends_shape or (op.label is Label.FROZEN and not op.in_head):
                return None
            for at, crossing in op.crossing.items():
                read = op.reads[at]
                if read.value in handed:
                    continue
                if read.value is None or read.value not in call.direct:
                    return None
                if read.settled > read.value[0] or at in op.changed or read.seen:
                    return None
                found[read.value] = crossing
            unmet = [read for at, read in enumerate(op.reads) if read.label is Label.FROZEN and at not in op.crossing]
            if any(read.value not in again for read in unmet):
                return None
    gives = any(made.label is Label.FROZEN for made in call.made) or any(one.sets_attributes for one in call.walk())
    return None if found and gives else found


def _written(operations: Sequence[Operation]) -> list[Read]:
    """List the model's own tensors that constant operations write into, at levels that both halves walk."""
    found = []
    for op in operations:
        if op.label is Label.CONSTANT and op.changed and op.call.outermost_whole() is None:
            found += [read for at, read in enumerate(op.reads) if at in op.changed and read.home]
    return found


def _doubts(recording: Recording, joiner: _Joiner) -> frozenset[Value]:
    """List the values whose size Python is told where it may be another than foretold, and the values are not here."""
    asked = {read.value for read in recording.asked}
    unsure = {
        made.value
        for step in joiner.steps.values()
        for made, form in (*step.made, *step.changed.values())
        if made.value in asked and (made.sized or not form.is_steady)
    }
    here = {crossing.value for crossing in recording.crossings}
    here |= {made.value for op in recording.operations if op.in_head for made in op.made if made.value is not None}
    counted = {
        made.value
        for op in recording.operations
        if counts(op.func) and op.label is Label.FROZEN and not op.in_head and id(op) in joiner.steps
        for made in op.made
        if made.sized
    }
    return frozenset(value for value in (unsure - here) | counted if value is not None)


def _is_needed(call: Call, last: int) -> bool:
    """Say whether a call does something that both halves must know: something frozen, or before the trunk's end."""
    return any(op.ordinal <= last or op.meets_frozen for inner in call.walk() for op in inner.operations)


def _place_crossings(plan: Plan, joiner: _Joiner, batch: int) -> None:
    """Say after which step of the trunk each tensor of the frontier is taken."""
    recording = plan.recording
    frontier = []
    for index, crossing in enumerate(recording.crossings):
        ordinal, position = crossing.value
        if ordinal < 0:
            plan.input_captures.append((position, index))
            form, name = plan.inputs[position][1], f"input {position}"
        else:
            source = recording.operations[ordinal]
            whole = source.call.outermost_whole()
            step = joiner.steps[id(whole or source)]
            if crossing.value[1] <= MIXED and not _holds(step, crossing.value):
                form = _take_where_read(recording, joiner, index)
            else:
                form, capture = _find(step, crossing.value, index)
                step.captures = (*step.captures, capture)
            name = whole.path if whole else _name(source)
        if crossing.settled > max(ordinal, -1):
            writer = recording.operations[crossing.settled]
            settled = joiner.steps[id(writer.call.outermost_whole() or writer)]
            settled.settles = (*settled.settles, index)
            plan.pending[index] = True
        frontier.append(FrontierTensor(name or "output", form, batch))
    plan.frontier = tuple(frontier)


def _holds(step: Step, value: Value) -> bool:
    return any(made.value == value for made, _ in step.made)


def _take_where_read(recording: Recording, joiner: _Joiner, crossing: int) -> Form:
    """Let the trunk take a tensor that no step gives from the first operation that reads it."""
    for op in recording.operations:
        for at, place in op.crossing.items():
            if place == crossing:
                step = joiner.steps[id(op)]
                step.reads = (*step.reads, (at, crossing))
                return joiner.form_read(op, at)
    raise InvisibleOperationError(
        "Cannot split: expected the model's output to be given by an operation, got a constant that was filled in "
        "parts. Cut before it: ft.split(model, x, at=<an earlier module>)"
    )


def _find(step: Step, value: Value, crossing: int) -> tuple[Form, tuple[bool, int, int]]:
    for at, (made, form) in enumerate(step.made):
        if made.value == value:
            return form, (False, at, crossing)
    for at, (made, form) in step.changed.items():
        if made.value == value:
            return form, (True, at, crossing)
    raise InvisibleOperationError(
        "Cannot split: expected the tensor that crosses the frontier among the results of a step, got none there."
    )


def _name(op: Operation) -> str:
    short = getattr(op.func, "__name__", "operation")
    return f"{op.call.path}.{short}" if op.call.path else short


def _drift(call: Call, expected: str, got: str) -> str:
    return (
        f"Cannot split: expected {expected} in {call.path or 'the forward'}, got {got}. "
        "Cut after the part that decides: ft.split(model, x, at=<a later module>); or before it, where it decides "
        "about what trains: at=<an earlier module>"
    )
