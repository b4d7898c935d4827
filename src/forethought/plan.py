"""What a split must know to run either half: the recorded path, with forms that hold for any batch size.

A model is recorded a few times, on other values and numbers of samples. A size is taken as `a * batch + c` from two of
the recordings if it then fits them all; otherwise it depends on values, or does not grow evenly, and cannot be
foretold. Both halves then follow the same tree of calls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forethought import nesting
from forethought.errors import (
    FrozenBranchError,
    InvisibleOperationError,
    NothingFrozenError,
    ReplayDriftError,
)
from forethought.forms import Form, FrontierTensor, linear_size
from forethought.recording import MIXED, Call, Label, Made, Operation, Read, Recording, Value


@dataclass(slots=True)
class Step:
    """What one recorded operation or whole call gives, in a form for any batch size."""

    made: list[tuple[Made, Form]]
    changed: dict[int, tuple[Made, Form]]
    result: Any
    captures: list[tuple[bool, int, int]] = field(default_factory=list)  # (from `changed`, position, crossing)
    settles: list[int] = field(default_factory=list)  # crossings whose memory is final after this step
    left: list[tuple[str, str, Any]] = field(default_factory=list)  # (path, name, value) to set on modules
    reads: list[tuple[int, int]] = field(default_factory=list)  # (argument, crossing): to be taken before this step

    @property
    def needs_arguments(self) -> bool:
        """Whether it gives back, or writes into, a tensor that it was given."""
        return bool(self.changed) or any(made.argument is not None for made, _ in self.made)


@dataclass(slots=True)
class OperationStep(Step):
    """One operation at a level that both halves walk through."""

    operation: Operation = None  # type: ignore[assignment]


@dataclass(slots=True)
class CallStep:
    """One call: either one step (`whole`), or a level to walk through."""

    path: str
    whole: Step | None
    children: dict[tuple[str, int], "CallStep"]
    touching: list[OperationStep]  # operations that read a frozen value, in order
    meeting: list[OperationStep]  # those of them that meet a placeholder in the head
    trainable: list[OperationStep]  # operations that only the head runs, in order
    inputs: list[Value | None]  # what it was given
    binds: dict[Value, int] | None  # given these arguments from the frontier, nothing inside needs watching in the head

    def walk(self) -> Iterator["CallStep"]:
        """Go through this call and every call inside."""
        yield self
        for child in self.children.values():
            yield from child.walk()


@dataclass(slots=True)
class Plan:
    """Everything that the two halves share, for one form of the inputs."""

    root: CallStep
    inputs: list[tuple[Made, Form]]
    arguments: Any  # (args, kwargs) of the example, tensors replaced by their position
    frontier: tuple[FrontierTensor, ...]
    input_captures: list[tuple[int, int]]  # (position among the inputs, crossing)
    rewritten: list[bool]
    pending: list[bool]  # the crossing's memory is written after the tensor was made
    output_crossing: dict[Value, int]
    recording: Recording
    larger: Recording | None
    more: int  # by how many samples the `larger` recording is larger
    batch: int
    keeps_state: bool  # the forward leaves something on its modules: each run begins with a fresh shell
    writes: set[str]  # the attributes that it leaves
    is_even: bool  # every size is the same for all batch sizes, or a multiple of the batch
    paths_of_head: frozenset[str]  # the modules that the head calls
    last: int  # the operation by which the trunk has taken everything
    crossing_of: dict[Value, int]  # values that are not written into afterwards -> place in the frontier
    written: list[Read]  # the model's own tensors that constant operations write into, where both halves walk

    def whole_call(self, path: str, inputs: list[Value | None]) -> Step | None:
        """Find a call that is one step by what it was given."""
        found = (one for one in self.root.walk() if one.path == path and one.inputs == inputs)
        return next((one.whole for one in found if one.whole is not None), None)

    def constants_written(self) -> list[Tensor]:
        """Give the model's own tensors that constant operations write into, as they are now."""
        return [tensor for tensor in (read.now() for read in self.written) if tensor is not None]


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
    if all(crossing.value[0] < 0 for crossing in example.crossings):
        raise NothingFrozenError(
            "Cannot split: expected some layer to be frozen before the first trainable one, got none. "
            "Freeze the first layers: ft.freeze(model, until='<module>'), or set requires_grad_(False) on them."
        )
    _check_strangers(example, recordings[1])
    joiner = _Joiner(sizes, [recording.last for recording in recordings])
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
        written=_written(example.operations),
    )
    _place_crossings(plan, joiner, batch)
    return plan


class _Joiner:
    """Walks the recordings side by side.

    Attributes:
        is_even: Whether every size met is the same in all recordings, or a multiple of the batch.
    """

    def __init__(self, sizes: Sequence[int], lasts: Sequence[int]) -> None:
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
            return CallStep(first.path, step, {}, [], [], [], first.inputs, None)
        first.whole = False
        keys = self._shared_children(calls)
        children = {key: self.call([call.children[key] for call in calls]) for key in keys}
        touching = self._operations(first, [call.touching() for call in calls])
        made = {id(step.operation): step for step in touching}
        meeting = self._operations(first, [call.meeting() for call in calls], made)
        needed = [
            [op for op in call.trainable() if op.ordinal <= last] for call, last in zip(calls, self._lasts, strict=True)
        ]
        trainable = self._operations(first, needed, made)
        return CallStep(first.path, None, children, touching, meeting, trainable, first.inputs, _binds(first))

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

    def _each(self, changed: Sequence[dict[int, Made]]) -> dict[int, tuple[Made, Form]]:
        return {at: self.made([one[at] for one in changed]) for at in changed[0]}

    def made(self, same: Sequence[Made]) -> tuple[Made, Form]:
        """Join one tensor's forms; one that values decide, or that does not grow evenly, is not steady."""
        first = same[0]
        form = self._form(same)
        if form is None:
            shape, stride = (tuple((0, n) for n in sizes) for sizes in (first.shape, first.stride))
            form = Form(shape, stride, first.dtype, first.device, is_steady=False)
        self.is_even = self.is_even and form.is_even
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


def _binds(call: Call) -> dict[Value, int] | None:
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
                if read.value not in call.direct or read.settled > read.value[0] or at in op.changed or read.seen:
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
                step.captures.append(capture)
            name = whole.path if whole else _name(source)
        if crossing.settled > max(ordinal, -1):
            writer = recording.operations[crossing.settled]
            joiner.steps[id(writer.call.outermost_whole() or writer)].settles.append(index)
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
                joiner.steps[id(op)].reads.append((at, crossing))
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


def _check_strangers(a: Recording, b: Recording) -> None:
    """Tell constants that live outside the model from results of operations that cannot be seen."""
    for index, (tensor, op) in enumerate(a.strangers):
        other = b.strangers[index][0] if index < len(b.strangers) else None
        if other is tensor or (other is not None and _is_equal(tensor, other)):
            continue
        if op.call.outermost_whole() is not None:
            op.call.opaque = True
            continue
        raise InvisibleOperationError(
            f"Cannot split: expected to see where every tensor comes from, got one read by {op} that code made which "
            "torch functions do not show (scripted code, a C++ extension, numpy). "
            "Cut before it: ft.split(model, x, at=<an earlier module>)"
        )


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    try:
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    except RuntimeError:
        return False  # a tensor of vmap has no values of its own


def _drift(call: Call, expected: str, got: str) -> str:
    return (
        f"Cannot split: expected {expected} in {call.path or 'the forward'}, got {got}. "
        "Cut after the part that decides: ft.split(model, x, at=<a later module>)"
    )


def frozen_branch(op: Operation) -> FrozenBranchError:
    """Say that Python asked for a frozen value where the head must run without it."""
    return FrozenBranchError(
        f"Cannot replay {op}: expected Python to decide nothing from frozen values, got a value read there. "
        "Cut after it: ft.split(model, x, at=<a later module>), or decide from shapes instead of values."
    )
