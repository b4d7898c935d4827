"""What a split must know to run either half: the recorded path, with forms that hold for any batch size.

A model is recorded four times: on the example, on other values of the same shape, on one more sample, and on about
twice as many. Forms that differ between the first two depend on values; sizes that differ between the first and the
third are taken as `a * batch + c` if that also fits the fourth. Both halves then follow the same tree of calls.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forethought.errors import (
    FrozenBranchError,
    InvisibleOperationError,
    NothingFrozenError,
    ReplayDriftError,
)
from forethought.forms import Form, FrontierTensor, linear_size
from forethought.recording import Call, Label, Made, Operation, Recording, Value


@dataclass(slots=True)
class Step:
    """What one recorded operation or whole call gives, in a form for any batch size."""

    made: list[tuple[Made, Form]]
    changed: dict[int, tuple[Made, Form]]
    result: Any
    captures: list[tuple[bool, int, int]] = field(default_factory=list)  # (from `changed`, position, crossing)
    settles: list[int] = field(default_factory=list)  # crossings whose memory is final after this step

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
    is_free: bool  # the head meets nothing frozen inside: nothing there needs watching


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
    batch: int
    keeps_state: bool  # the forward leaves something on its modules: each run begins with a fresh shell

    def constants_written(self) -> list[Tensor]:
        """Give the model's own tensors that constant operations write into, at levels that both halves walk."""
        found = []
        for op in self.recording.operations:
            if op.label is Label.CONSTANT and op.changed and op.call.outermost_whole() is None:
                found += [read.now() for at, read in enumerate(op.reads) if at in op.changed and read.home]
        return [tensor for tensor in found if tensor is not None]


def make_plan(
    example: Recording,
    other: Recording,
    larger: Recording | None,
    far: Recording | None,
    arguments: Any,
    batch: int,
    keeps_state: bool,
) -> Plan:
    """Join the recordings of one model into a plan.

    Args:
        example: The run on the example inputs.
        other: The run on other values of the same shapes.
        larger: The run on one sample more; None if the model takes one batch size only.
        far: The run on `far_batch` samples, if there is one.
        arguments: (args, kwargs) of the example with positions in the place of tensors.
        batch: Samples in the example.
        keeps_state: Whether the forward leaves something on its modules.

    Raises:
        NothingFrozenError: only inputs cross the frontier.
        ReplayDriftError: the runs took different paths.
    """
    if all(crossing.value[0] < 0 for crossing in example.crossings):
        raise NothingFrozenError(
            "Cannot split: expected some layer to be frozen before the first trainable one, got none. "
            "Freeze the first layers: ft.freeze(model, until='<module>'), or set requires_grad_(False) on them."
        )
    _check_strangers(example, other)
    joiner = _Joiner(batch, far_batch(batch) if far else batch)
    root = joiner.call(example.root, other.root, (larger or example).root, (far or example).root)
    runs = [run.inputs for run in (example, other, larger or example, far or example)]
    inputs = [joiner.made(*made) for made in zip(*runs, strict=True)]
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
        larger=larger,
        batch=batch,
        keeps_state=keeps_state,
    )
    _place_crossings(plan, joiner, batch)
    return plan


def far_batch(batch: int) -> int:
    """Choose a batch size from which sizes that do not grow evenly stand out."""
    return 2 * batch + 3


class _Joiner:
    """Walks the recordings side by side."""

    def __init__(self, batch: int, far: int) -> None:
        self._batch = batch
        self._far = far
        self.steps: dict[int, Step] = {}  # id of a recorded operation or call -> its step

    def call(self, a: Call, b: Call, c: Call, d: Call) -> CallStep:
        if a.whole and b.whole and c.whole and d.whole and (step := self._whole(a, b, c, d)) is not None:
            return CallStep(a.path, step, {}, [], [], [], is_free=False)
        a.whole = False
        if not a.children.keys() == b.children.keys() == c.children.keys() == d.children.keys():
            raise ReplayDriftError(_drift(a, "the same modules called each time", "others for other inputs"))
        children = {
            key: self.call(child, b.children[key], c.children[key], d.children[key])
            for key, child in a.children.items()
        }
        touching = self._operations(a, a.touching(), b.touching(), c.touching(), d.touching())
        made = {id(step.operation): step for step in touching}
        meeting = self._operations(a, a.meeting(), b.meeting(), c.meeting(), d.meeting(), made)
        trainable = self._operations(a, a.trainable(), b.trainable(), c.trainable(), d.trainable(), made)
        is_free = not meeting and not any(op.lends_shape for op in a.operations)
        is_free = is_free and all(child.is_free for child in children.values())
        return CallStep(a.path, None, children, touching, meeting, trainable, is_free)

    def _whole(self, a: Call, b: Call, c: Call, d: Call) -> Step | None:
        if not repr(a.result) == repr(b.result) == repr(c.result) == repr(d.result):
            return None  # it gives Python something that changes: walk through it
        if not a.changed.keys() == b.changed.keys() == c.changed.keys() == d.changed.keys():
            return None
        step = Step(
            self._all(a.made, b.made, c.made, d.made), self._each(a.changed, b.changed, c.changed, d.changed), a.result
        )
        self.steps[id(a)] = step
        return step

    def _operations(
        self,
        call: Call,
        a: list[Operation],
        b: list[Operation],
        c: list[Operation],
        d: list[Operation],
        made: dict[int, OperationStep] | None = None,
    ) -> list[OperationStep]:
        if not len(a) == len(b) == len(c) == len(d) or any(
            not (w.func == x.func == y.func == z.func) for w, x, y, z in zip(a, b, c, d, strict=True)
        ):
            raise ReplayDriftError(_drift(call, "the same operations each time", "others for other inputs"))
        steps = []
        for w, x, y, z in zip(a, b, c, d, strict=True):
            step = (made or {}).get(id(w))
            if step is None:
                step = OperationStep(
                    self._all(w.made, x.made, y.made, z.made),
                    self._each(w.changed, x.changed, y.changed, z.changed),
                    w.result,
                )
                step.operation = w
                self.steps[id(w)] = step
            steps.append(step)
        return steps

    def _all(self, a: list[Made], b: list[Made], c: list[Made], d: list[Made]) -> list[tuple[Made, Form]]:
        return [self.made(w, x, y, z) for w, x, y, z in zip(a, b, c, d, strict=True)]

    def _each(
        self, a: dict[int, Made], b: dict[int, Made], c: dict[int, Made], d: dict[int, Made]
    ) -> dict[int, tuple[Made, Form]]:
        return {at: self.made(a[at], b[at], c[at], d[at]) for at in a}

    def made(self, a: Made, b: Made, c: Made, d: Made) -> tuple[Made, Form]:
        """Join one tensor's forms; one that values decide, or that does not grow evenly, is not steady."""
        unsteady = Form(tuple((0, n) for n in a.shape), tuple((0, n) for n in a.stride), a.dtype, a.device, False)
        if a.shape != b.shape or not len(a.shape) == len(c.shape) == len(d.shape) or not a.dtype == b.dtype == c.dtype:
            return a, unsteady
        shape = tuple(linear_size(x, z, self._batch) for x, z in zip(a.shape, c.shape, strict=True))
        stride = tuple(linear_size(x, z, self._batch) for x, z in zip(a.stride, c.stride, strict=True))
        form = Form(shape, stride, a.dtype, a.device, True)
        return a, form if form.at(self._far)[0] == d.shape else unsteady


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
            form, capture = _find(step, crossing.value, index)
            step.captures.append(capture)
            name = whole.path if whole else _name(source)
        if crossing.settled > max(ordinal, -1):
            writer = recording.operations[crossing.settled]
            joiner.steps[id(writer.call.outermost_whole() or writer)].settles.append(index)
            plan.pending[index] = True
        frontier.append(FrontierTensor(name or "output", form, batch))
    plan.frontier = tuple(frontier)


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
