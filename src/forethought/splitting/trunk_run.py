"""Running the frozen half of a model: its own Python is the program, until the last tensor of the frontier is there.

Whatever the other half would have computed is a placeholder: a tensor with shape, strides, dtype and device, and
nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import ReplayDriftError, ShapeError
from forethought.splitting.levels import FAST, Level, Walk, filled
from forethought.splitting.operations import Function, draws, func_name, is_about, shape_only
from forethought.splitting.placeholder import Placeholder, run_on
from forethought.splitting.plan import CallStep, OperationStep, Plan, Step
from forethought.splitting.recording import Label
from forethought.splitting.tracker import Tracker


class Finished(BaseException):
    """Ends the model's forward once the last tensor of the frontier is there. Not an error: no handler may eat it."""


class TrunkRun(Walk):
    """Runs what is frozen, takes the frontier's tensors, and stops.

    Args:
        plan: The recorded path.
        batch: How many samples the inputs hold.
        trainable: The parameters that train: what depends on them is not computed.
    """

    def __init__(self, plan: Plan, batch: int, trainable: Sequence[Tensor]) -> None:
        super().__init__(plan, batch)
        self._tracker = Tracker(trainable)
        self._trainable = {id(tensor) for tensor in trainable}
        self._open: list[Level] = []  # the levels from the outermost to this one
        self._taken: list[Tensor | None] = [None] * len(plan.frontier)
        self._draws = bool(plan.recording.drawn or plan.recording.apart)
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

    def _answer(self, step: CallStep, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a whole frozen call unwatched."""
        if step.whole is not None:
            result = self._unseen(module, args, kwargs)
            with torch._C.DisableTorchFunction():
                self._noted(step.whole, nesting.tensors((args, kwargs)), nesting.tensors(result))
            return result
        if isinstance(module, FAST) and step.is_constant:
            return self._unseen(module, args, kwargs)
        level = Level(step)
        self._open.append(level)
        try:
            result = self._walked(level, module, args, kwargs)
        finally:
            self._open.pop()
        level.check_touched(len(step.touching))
        return result

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
                self._take_read(self._level.next_touching(func), leaves)
            return self._left_out(self._level.next_trainable(func), leaves)
        is_constant = Label.FROZEN not in labels
        draw = self._level.next_draw(func) if self._draws and is_constant and draws(func) else None
        if draw is not None and draw.operation.is_apart:
            return self._left_out(self._level.next_trainable(func), leaves)
        if is_constant and draw is None:
            return run_on(func, args, kwargs, leaves, hollow)
        step = self._level.next_touching(func)
        self._take_read(step, leaves)
        if step.operation.label is Label.TRAINABLE:  # the frontier was asked for here, by `at`
            self._level.next_trainable(func)
            return self._left_out(step, leaves)
        result = func(*args, **kwargs) if hollow is None else run_on(func, args, kwargs, leaves, hollow)
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
        if len(results) != len(step.made):
            raise ShapeError(
                f"Cannot run the trunk on {self._batch} samples: expected {len(step.made)} tensors from a step in "
                f"'{self._level.step.path or 'the forward'}', as when the model was split, got {len(results)}. "
                "Cut elsewhere: ft.split(model, x, at=...)"
            )
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

    def _take_read(self, step: Step, leaves: list[Tensor]) -> None:
        for at, crossing in step.reads:
            self._take(crossing, leaves[at])

    def _take(self, crossing: int, tensor: Tensor) -> None:
        self._taken[crossing] = tensor
        if not self._plan.pending[crossing]:
            self._settle(crossing)

    def _settle(self, crossing: int) -> None:
        tensor = self._taken[crossing]
        assert tensor is not None
        if tensor.requires_grad:
            self._check_untrained(tensor, self._plan.frontier[crossing].name)
            tensor = tensor.detach()  # set by the forward itself
        self._taken[crossing] = tensor.clone() if self._plan.rewritten[crossing] else tensor
        self._final += 1
        if self._final == len(self._taken):
            for level in self._open:
                level.check_touched(sum(step.operation.ordinal <= self._plan.last for step in level.step.touching))
            raise Finished

    def _check_untrained(self, tensor: Tensor, name: str) -> None:
        """Check that no parameter that trains is behind a value that comes out of a frozen call, run unwatched."""
        waiting, seen = [tensor.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in self._trainable:
                raise ReplayDriftError(
                    f"Cannot run the trunk: expected '{name}' not to depend on what trains, as when the model was "
                    "split, got a batch for which it does. Split on such a batch: ft.split(model, x), or freeze it"
                )
            waiting += [following for following, _ in node.next_functions]

    def _left_out(self, step: OperationStep, leaves: list[Tensor]) -> Any:
        for at, (made, _) in step.changed.items():
            if not isinstance(leaves[at], Placeholder):
                self._tracker.wrote(leaves[at], Label.TRAINABLE, made.value or (0, 0), self._ordinal)
        if self._plan.is_stretched and not all(form.is_steady for _, form in step.made):
            raise ShapeError(
                f"Cannot run the trunk on inputs of another size than was recorded: expected to know the size of "
                f"what {step.operation} gives, got none that follows from theirs."
            )
        results = [
            leaves[made.argument] if made.argument is not None else Placeholder(made.value, form, self._batch)
            for made, form in step.made
        ]
        given = filled(step.result, results)
        return iter(given) if func_name(step.operation.func) == "__iter__" else given
