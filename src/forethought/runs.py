"""Running half a model: the model's own Python is the program, and a plan says what to leave out.

Both runs follow the same plan. The trunk's run computes what is frozen and stops when the last tensor of the frontier
is there; the head's run computes what trains. Whatever the other half would have computed is a placeholder: a tensor
with shape, strides, dtype and device, and nothing else. Reading its values is an error, never a number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from forethought import nesting
from forethought.errors import InvisibleOperationError, ReplayDriftError, ShapeError
from forethought.forms import Form
from forethought.frontier import Tracker
from forethought.operations import Function, func_name, is_about, name_of, shape_only
from forethought.placeholder import Placeholder, run_on
from forethought.plan import CallStep, OperationStep, Plan, Step, frozen_branch
from forethought.recording import Label, Made, Position


class _Level:
    """Where a run is in one level of the plan."""

    __slots__ = ("counts", "met", "step", "touched", "trained")

    def __init__(self, step: CallStep) -> None:
        self.step = step
        self.counts: dict[str, int] = {}
        self.touched = 0
        self.met = 0
        self.trained = 0

    def child(self, path: str) -> CallStep | None:
        index = self.counts.get(path, 0)
        self.counts[path] = index + 1
        return self.step.children.get((path, index))

    def next_touching(self, func: Function) -> OperationStep:
        step = self._at(self.step.touching, self.touched, func)
        self.touched += 1
        return step

    def next_meeting(self, func: Function) -> OperationStep:
        step = self._at(self.step.meeting, self.met, func)
        self.met += 1
        return step

    def next_trainable(self, func: Function) -> OperationStep:
        step = self._at(self.step.trainable, self.trained, func)
        self.trained += 1
        return step

    def _at(self, steps: list[OperationStep], at: int, func: Function) -> OperationStep:
        if at < len(steps) and steps[at].operation.func == func:
            return steps[at]
        expected = str(steps[at].operation) if at < len(steps) else "no further operation on frozen values"
        raise ReplayDriftError(
            f"Cannot replay '{self.step.path or 'the forward'}': expected {expected}, got {name_of(func)}. "
            "The forward took another path than when it was split; split it in the mode and form in which it runs."
        )


def placeholders_for(plan: Plan, batch: int) -> tuple[Any, Any]:
    """Make the arguments of the model with placeholders for the input tensors."""
    made = [Placeholder(made.value, form, batch) for made, form in plan.inputs]
    args, kwargs = _filled(plan.arguments, made)
    return args, kwargs


def _filled(template: Any, made: list[Any]) -> Any:
    """Put tensors into a template at their positions."""
    if type(template) is Position:
        return made[template.at]
    return nesting.replace(template, lambda position: made[position.at], Position)


class _aside:  # noqa: N801  (a context manager, read as a clause)
    """Take a mode off its stack: what runs meanwhile is what runs without it, torch's own fast paths included."""

    def __init__(self, mode: TorchFunctionMode) -> None:
        self._mode = mode
        self._is_top = _get_current_function_mode() is mode

    def __enter__(self) -> None:
        if self._is_top:
            self._mode.__exit__(None, None, None)

    def __exit__(self, *_: object) -> None:
        if self._is_top:
            self._mode.__enter__()


class HeadRun(TorchFunctionMode):
    """Runs what trains, with the stored tensors put in where they cross the frontier.

    Args:
        plan: The recorded path.
        values: The frontier's tensors.
        batch: How many samples they hold.
    """

    def __init__(self, plan: Plan, values: tuple[Tensor, ...], batch: int) -> None:
        super().__init__()
        self._plan = plan
        self._values = values
        self._batch = batch
        self._level = _Level(plan.root)
        self._begun = False
        self._inside = False  # a call that meets nothing frozen: nothing to watch
        self._shadows: dict[int, tuple[Tensor, Placeholder]] = {}  # real constants that frozen code wrote into

    def output(self, result: Any) -> Any:
        """Put stored tensors in the place of placeholders in the model's output."""
        return nesting.replace(result, self._resolved)

    def _resolved(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._shadows:
            tensor = self._shadows[id(tensor)][1]
        if not isinstance(tensor, Placeholder):
            return tensor
        if tensor.bound is not None:
            return tensor.bound
        crossing = self._plan.output_crossing.get(tensor.value) if tensor.value else None
        if crossing is None:
            raise ReplayDriftError("Cannot replay the output: expected the frozen values recorded in it, got others.")
        return self._values[crossing]

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the call of one module: a whole frozen one is not run."""
        if self._inside:
            return module._call_impl(*args, **kwargs)
        outside = self._level
        step = outside.child(path) if self._begun else self._plan.root
        self._begun = True
        if step is None:
            return module._call_impl(*args, **kwargs)
        if step.whole is not None:
            with torch._C.DisableTorchFunction():
                leaves = nesting.tensors((args, kwargs)) if step.whole.needs_arguments else []
                return self._given(step.whole, leaves)
        if step.is_free:
            return self._unwatched(module, args, kwargs)
        self._level = _Level(step)
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            self._level = outside

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, or give placeholders for what is frozen."""
        kwargs = kwargs or {}
        if not self._concerns(args) and not self._concerns(kwargs.values()):
            return func(*args, **kwargs)
        if is_about(func, args, kwargs):
            return func(*args, **kwargs)
        leaves = [self._current(tensor) for tensor in nesting.tensors((args, kwargs))]
        hollow = shape_only(func)
        touches = any(isinstance(leaf, Placeholder) for at, leaf in enumerate(leaves) if at != hollow)
        if not touches:
            return run_on(func, args, kwargs, leaves, hollow)
        step = self._level.next_meeting(func)
        op = step.operation
        for at, read in enumerate(op.reads):
            leaf = leaves[at]
            if isinstance(leaf, Placeholder) and at != hollow and leaf.value != read.value:
                raise ReplayDriftError(f"Cannot replay {op}: expected another frozen value there.")
        if op.label is Label.FROZEN and not op.in_head:
            if op.reads_values:
                raise frozen_branch(op)
            given = self._given(step, leaves)
            return iter(given) if func_name(func) == "__iter__" else given
        return self._crossed(step, func, args, kwargs, leaves)

    def _unwatched(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._concerns(args) or self._concerns(kwargs.values()):  # written into before: known by their real tensors
            args, kwargs = nesting.replace((args, kwargs), self._current)
        self._inside = True
        try:
            with _aside(self):
                return module._call_impl(*args, **kwargs)
        finally:
            self._inside = False

    def _concerns(self, values: Any) -> bool:
        """Say whether a placeholder is among the arguments."""
        for value in values:
            kind = type(value)
            if kind is Placeholder or (self._shadows and id(value) in self._shadows):
                return True
            if kind in (list, tuple) and self._concerns(value):
                return True
            if kind is slice and self._concerns((value.start, value.stop, value.step)):
                return True
            if kind is dict and self._concerns(value.values()):
                return True
        return False

    def _current(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._shadows:
            tensor = self._shadows[id(tensor)][1]
        if isinstance(tensor, Placeholder) and tensor.bound is not None:
            return tensor.bound
        return tensor

    def _crossed(self, step: OperationStep, func: Function, args: Any, kwargs: Any, leaves: list[Tensor]) -> Any:
        """Run an operation at the frontier on the stored tensors."""
        real = list(leaves)
        for at, crossing in step.operation.crossing.items():
            real[at] = self._values[crossing]
            if at in step.changed:  # written in place: the stored tensor must stay as it is
                real[at] = real[at].clone()
                leaves[at].bound = real[at]  # type: ignore[attr-defined]
        return run_on(func, args, kwargs, real, shape_only(func))

    def _given(self, step: Step, leaves: list[Tensor]) -> Any:
        """Give what a frozen step would have given, and mark what it would have written into."""
        for at, (made, form) in step.changed.items():
            self._rename(leaves[at], made, form)
        results: list[Tensor] = []
        for made, form in step.made:
            if made.argument is not None:
                results.append(leaves[made.argument])
            else:
                if not form.is_steady:
                    raise InvisibleOperationError(
                        "Cannot replay: expected shapes that do not depend on values, got one that does "
                        f"in '{self._level.step.path or 'the forward'}'. "
                        "Cut after it: ft.split(model, x, at=<a later module>)"
                    )
                results.append(Placeholder(made.value, form, self._batch))
        return _filled(step.result, results)

    def _rename(self, tensor: Tensor, made: Made, form: Form) -> None:
        if isinstance(tensor, Placeholder):
            tensor.value = made.value
        else:
            self._shadows[id(tensor)] = (tensor, Placeholder(made.value, form, self._batch))


class Finished(BaseException):
    """Ends the model's forward once the last tensor of the frontier is there. Not an error: no handler may eat it."""


class TrunkRun(TorchFunctionMode):
    """Runs what is frozen, takes the frontier's tensors, and stops.

    Args:
        plan: The recorded path.
        batch: How many samples the inputs hold.
        trainable: The parameters that train: what depends on them is not computed.
    """

    def __init__(self, plan: Plan, batch: int, trainable: Sequence[Tensor]) -> None:
        super().__init__()
        self._plan = plan
        self._batch = batch
        self._tracker = Tracker(trainable)
        self._level = _Level(plan.root)
        self._begun = False
        self._inside = False  # a whole call: nothing to watch
        self._taken: list[Tensor | None] = [None] * len(plan.frontier)
        self._final = 0
        self._ordinal = 0

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The frontier's tensors."""
        return tuple(tensor for tensor in self._taken if tensor is not None)

    def begin(self, inputs: list[Tensor]) -> None:
        """Know the inputs; take those that cross the frontier themselves."""
        for (made, _), tensor in zip(self._plan.inputs, inputs, strict=True):
            self._tracker.note(tensor, Label.FROZEN, made.value)
        for at, crossing in self._plan.input_captures:
            self._take(crossing, inputs[at])

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the call of one module: a whole frozen one runs unwatched."""
        if self._inside:
            return module._call_impl(*args, **kwargs)
        outside = self._level
        step = outside.child(path) if self._begun else self._plan.root
        self._begun = True
        if step is None:
            return module._call_impl(*args, **kwargs)
        if step.whole is not None:
            self._inside = True
            try:
                with _aside(self):
                    result = module._call_impl(*args, **kwargs)
            finally:
                self._inside = False
            with torch._C.DisableTorchFunction():
                self._noted(step.whole, nesting.tensors((args, kwargs)), nesting.tensors(result))
            return result
        self._level = _Level(step)
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            self._level = outside

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, or give placeholders for what trains."""
        kwargs = kwargs or {}
        if self._inside or is_about(func, args, kwargs):
            return func(*args, **kwargs)
        leaves = nesting.tensors((args, kwargs))
        hollow = shape_only(func)
        labels = [self._label(leaf) for at, leaf in enumerate(leaves) if at != hollow]
        if Label.TRAINABLE in labels:
            if Label.FROZEN in labels:
                self._level.next_touching(func)
            return self._left_out(self._level.next_trainable(func), leaves)
        if Label.FROZEN not in labels:
            return run_on(func, args, kwargs, leaves, hollow)
        step = self._level.next_touching(func)
        if step.operation.label is Label.TRAINABLE:  # the frontier was asked for here, by `at`
            self._level.next_trainable(func)
            return self._left_out(step, leaves)
        result = func(*args, **kwargs)
        if func_name(func) == "__iter__":
            result = tuple(result)
        self._noted(step, leaves, nesting.tensors(result))
        return iter(result) if func_name(func) == "__iter__" else result

    def _label(self, tensor: Tensor) -> Label:
        if isinstance(tensor, Placeholder):
            return Label.TRAINABLE
        return self._tracker.read(tensor)[0]

    def _noted(self, step: Step, leaves: list[Tensor], results: list[Tensor]) -> None:
        """Know what a frozen step gave; take what crosses the frontier."""
        self._ordinal += 1
        for at, (made, _) in step.changed.items():
            self._tracker.wrote(leaves[at], made.label, made.value or (0, 0), self._ordinal)
        for (made, form), tensor in zip(step.made, results, strict=True):
            if form.is_steady and form.at(self._batch)[0] != tuple(tensor.shape):
                raise ShapeError(
                    f"Cannot run the trunk on {self._batch} samples: expected shape {form.at(self._batch)[0]} in "
                    f"'{self._level.step.path or 'the forward'}', as when the model was split, got "
                    f"{tuple(tensor.shape)}: it does not grow evenly with the batch, or depends on values. "
                    "Cut elsewhere: ft.split(model, x, at=...)"
                )
            self._tracker.note(tensor, made.label, made.value)
        for from_changed, at, crossing in step.captures:
            self._take(crossing, leaves[at] if from_changed else results[at])
        for crossing in step.settles:
            self._settle(crossing)

    def _take(self, crossing: int, tensor: Tensor) -> None:
        self._taken[crossing] = tensor
        if not self._plan.pending[crossing]:
            self._settle(crossing)

    def _settle(self, crossing: int) -> None:
        tensor = self._taken[crossing]
        assert tensor is not None
        self._taken[crossing] = tensor.clone() if self._plan.rewritten[crossing] else tensor
        self._final += 1
        if self._final == len(self._taken):
            raise Finished

    def _left_out(self, step: OperationStep, leaves: list[Tensor]) -> Any:
        for at, (made, _) in step.changed.items():
            if not isinstance(leaves[at], Placeholder):
                self._tracker.wrote(leaves[at], Label.TRAINABLE, made.value or (0, 0), self._ordinal)
        results = [
            leaves[made.argument] if made.argument is not None else Placeholder(made.value, form, self._batch)
            for made, form in step.made
        ]
        given = _filled(step.result, results)
        return iter(given) if func_name(step.operation.func) == "__iter__" else given
