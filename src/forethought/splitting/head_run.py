"""Running the half of a model that trains: its own Python is the program, and a plan says what to leave out.

Whatever the frozen half would have computed is a placeholder: a tensor with shape, strides, dtype and device, and
nothing else. Reading its values is an error, never a number. Stored tensors are put in where they are first needed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import ForethoughtError, InvisibleOperationError, ReplayDriftError, ShapeError
from forethought.shapes.forms import Form
from forethought.splitting.levels import Level, Walk, filled
from forethought.splitting.operations import (
    Function,
    asks_size,
    counts,
    draws,
    func_name,
    is_about,
    is_turned,
    shape_only,
)
from forethought.splitting.placeholder import Placeholder, run_on
from forethought.splitting.plan import CallStep, OperationStep, Plan, Step, frozen_branch
from forethought.splitting.recording import Label, Made, Operation, Value
from forethought.splitting.shell import own_modules


class HeadRun(Walk):
    """Runs what trains, with the stored tensors put in where they cross the frontier.

    Args:
        plan: The recorded path.
        values: The frontier's tensors.
        batch: How many samples they hold.
    """

    def __init__(self, plan: Plan, values: tuple[Tensor, ...], batch: int) -> None:
        super().__init__(plan, batch)
        # Other objects over the same memory: what is set on them (`requires_grad_`) stays out of the stored ones.
        self._values = tuple([v if v.requires_grad or v.is_inference() else v.detach() for v in values])
        self._versions = [0 if v.is_inference() else v._version for v in values]
        self._draws = bool(plan.recording.drawn)
        self._shadows: dict[int, tuple[Tensor, Placeholder]] = {}  # real constants that frozen code wrote into
        self._hollow: dict[int, Tensor] = {}  # their memories: other views of them hold no values either

    def arguments(self) -> tuple[Any, Any]:
        """Make the arguments of the model with placeholders for the input tensors."""
        args, kwargs = filled(self._plan.arguments, [self._placeholder(made, form) for made, form in self._plan.inputs])
        return args, kwargs

    def output(self, result: Any, body: nn.Module) -> Any:
        """Put stored tensors in the place of placeholders in the model's output, and among its buffers.

        Raises:
            ReplayDriftError: the forward wrote into a stored tensor, which no recorded run did.
        """
        if any(not v.is_inference() and v._version != was for v, was in zip(self._values, self._versions, strict=True)):
            raise ReplayDriftError(
                "Cannot replay: expected the head not to write into features, as when it was split, got one that is "
                "written in place. Give it copies: split.head(values.clone())"
            )
        for path, name in self._plan.recording.left:
            buffers = body.get_submodule(path)._buffers
            if (left := buffers.get(name)) is not None:
                buffers[name] = self._resolved(left).clone()
        return own_modules(nesting.replace(result, self._resolved))

    def _resolved(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._shadows:
            tensor = self._shadows[id(tensor)][1]
        if not isinstance(tensor, Placeholder):
            return tensor
        if tensor.bound is not None:
            return tensor.bound
        if tensor.again is not None:
            return tensor.again
        crossing = self._plan.output_crossing.get(tensor.value) if tensor.value else None
        if crossing is None:
            raise ReplayDriftError("Cannot replay the output: expected the frozen values recorded in it, got others.")
        return self._values[crossing]

    def _answer(self, step: CallStep, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do not run a whole frozen call."""
        if step.whole is not None:
            for where, name, value in step.whole.left:
                inner = module.get_submodule(where[len(step.path) :].removeprefix("."))
                inner.__dict__[name] = value
            with torch._C.DisableTorchFunction():
                leaves = nesting.tensors((args, kwargs)) if step.whole.needs_arguments else []
                return self._given(step.whole, leaves)
        if step.binds is not None:
            return self._unseen(module, *self._bound(step.binds, args, kwargs))
        return self._walked(Level(step), module, args, kwargs)

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, or give placeholders for what is frozen."""
        kwargs = kwargs or {}
        leaves = nesting.given(args, kwargs)
        if self._draws and draws(func) and self._is_frozen_draw(func, leaves):
            return self._given(self._level.next_meeting(func), leaves)
        if not self._concerns(leaves):
            return func(*args, **kwargs)
        if is_about(func, args, kwargs):
            return self._about(func, args, kwargs)
        leaves = [self._current(leaf) for leaf in leaves]
        hollow = shape_only(func)
        if hollow is not None and _is_unshaped(leaves[hollow]):
            raise self._unshaped()
        if not any(type(leaf) is Placeholder and at != hollow for at, leaf in enumerate(leaves)):
            return run_on(func, args, kwargs, leaves, hollow)
        step = self._level.next_meeting(func)
        op = step.operation
        if not _fits(op, leaves) and is_turned(func, op.func) and _fits(op, leaves[::-1]):
            func, args, leaves = op.func, args[::-1], leaves[::-1]
        if len(leaves) != len(op.reads):
            raise ReplayDriftError(f"Cannot replay {op}: expected {len(op.reads)} tensors there, got {len(leaves)}.")
        for at, read in enumerate(op.reads):
            leaf = leaves[at]
            if not isinstance(leaf, Placeholder) or at == hollow or (leaf.is_mixed and read.seen is not None):
                continue
            if leaf.value != read.value:
                raise ReplayDriftError(
                    f"Cannot replay {op}: expected the frozen value that it read when recorded, got another one: "
                    "values decide which. Put what decides and what it decides about into one frozen module, or cut "
                    "before it: ft.split(model, x, at=<an earlier module>)"
                )
        if op.label is Label.FROZEN and not op.in_head:
            if op.reads_values:
                raise frozen_branch(op)
            if counts(func) and (_is_unshaped(leaves[0]) or any(made.sized for made, _ in step.made)):
                raise self._unshaped()
            given = self._given(step, leaves)
            return iter(given) if func_name(func) == "__iter__" else given
        result = self._crossed(step, func, args, kwargs, leaves)
        return nesting.replace(result, self._done_again(step)) if op.is_again else result

    def _is_frozen_draw(self, func: Function, leaves: list[Tensor]) -> bool:
        """Say whether this draws, by nothing but constants, random numbers that the trunk has drawn."""
        hollow = shape_only(func)
        if self._concerns([leaf for at, leaf in enumerate(leaves) if at != hollow]):
            return False
        draw = self._level.next_draw(func)
        return draw is not None and draw.operation.is_drawn

    def _about(self, func: Function, args: Any, kwargs: Any) -> Any:
        """Answer what is asked about a placeholder, but not the size of one whose size depends on values."""
        if asks_size(func) and any(map(_is_unshaped, nesting.tensors((args, kwargs)))):
            raise self._unshaped()
        if func_name(func) == "__set__" and isinstance(args[1], Placeholder):  # it lies nowhere: torch would crash
            raise InvisibleOperationError(
                f"Cannot replay: expected frozen values in tensors of their own, got one put into another's "
                f".data in '{self._level.step.path or 'the forward'}'. "
                "Use the value itself: t = value in place of t.data = value, or cut after it: "
                "ft.split(model, x, at=<a later module>)"
            )
        return func(*args, **kwargs)

    def _unshaped(self) -> ForethoughtError:
        if self._plan.is_stretched:
            return ShapeError(
                "Cannot run the head: expected to be told the size of the model's inputs, which it asks for in "
                f"'{self._level.step.path or 'the forward'}', got features of a shape that does not tell. "
                "Give it the values that features.batches(...) or split.trunk(...) gave, and no copies of them."
            )
        return InvisibleOperationError(
            "Cannot replay: expected shapes that do not depend on values, got one that does "
            f"in '{self._level.step.path or 'the forward'}'. "
            "Cut after it: ft.split(model, x, at=<a later module>)"
        )

    def _bound(
        self, binds: dict[Value, int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give a call that meets nothing frozen but its own arguments their values: it can run as it is."""

        def given(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            tensor = self._current(value)
            crossing = binds.get(tensor.value) if isinstance(tensor, Placeholder) and tensor.value else None
            return tensor if crossing is None else self._values[crossing]

        return tuple([given(value) for value in args]), {name: given(value) for name, value in kwargs.items()}

    def _concerns(self, tensors: list[Tensor]) -> bool:
        """Say whether a placeholder is among them, or a tensor that holds no values either."""
        return any(type(tensor) is Placeholder or (self._shadows and self._is_hollow(tensor)) for tensor in tensors)

    def _is_hollow(self, tensor: Tensor) -> bool:
        """Say whether frozen code would have written into this real tensor, or into its memory."""
        return id(tensor) in self._shadows or _memory(tensor) in self._hollow

    def _current(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._shadows:
            tensor = self._shadows[id(tensor)][1]
        elif self._hollow and not isinstance(tensor, Placeholder) and _memory(tensor) in self._hollow:
            tensor = Placeholder.like(tensor)
        if isinstance(tensor, Placeholder) and tensor.bound is not None:
            return tensor.bound
        return tensor

    def _crossed(self, step: OperationStep, func: Function, args: Any, kwargs: Any, leaves: list[Tensor]) -> Any:
        """Run an operation at the frontier on the stored tensors."""
        real = [_made_again(leaf) for leaf in leaves]
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
                results.append(self._placeholder(made, form))
        return filled(step.result, results)

    def _done_again(self, step: OperationStep) -> Callable[[Tensor], Tensor]:
        """Let frozen operations see placeholders still, and only what trains the tensors that were made again."""
        values = iter([made.value for made, _ in step.made])

        def stand_for(tensor: Tensor) -> Tensor:
            value = next(values)
            if value in self._plan.recording.handed:
                return tensor
            placeholder = Placeholder.like(tensor, value)
            placeholder.again = tensor
            return placeholder

        return stand_for

    def _placeholder(self, made: Made, form: Form) -> Tensor:
        crossing = self._plan.crossing_of.get(made.value) if made.value else None
        if crossing is not None and made.value in self._plan.recording.handed:
            return self._values[crossing]
        is_sure = form.is_steady and not made.sized
        if crossing is not None and not is_sure and not self._values[crossing].is_nested:  # its shape is known here
            placeholder = Placeholder.like(self._values[crossing], made.value)
        else:
            placeholder = Placeholder(made.value, form, self._batch)
            placeholder.is_unshaped = not is_sure
        placeholder.stored = None if crossing is None else self._values[crossing]
        placeholder.run = self
        return placeholder

    def call_again(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call in a checkpoint that runs again: a whole frozen one is known by what it is given."""
        leaves = nesting.tensors((args, kwargs))
        given = [leaf.value if isinstance(leaf, Placeholder) else None for leaf in leaves]
        step = self._plan.whole_call(path, given)
        return module._call_impl(*args, **kwargs) if step is None else self._given(step, leaves)

    def _rename(self, tensor: Tensor, made: Made, form: Form) -> None:
        if isinstance(tensor, Placeholder):
            tensor.value = made.value
        else:
            self._shadows[id(tensor)] = (tensor, Placeholder(made.value, form, self._batch))
            self._hollow[_memory(tensor)] = tensor


def _is_unshaped(tensor: Tensor) -> bool:
    return isinstance(tensor, Placeholder) and tensor.is_unshaped


def _made_again(leaf: Tensor) -> Tensor:
    return leaf.again if isinstance(leaf, Placeholder) and leaf.again is not None else leaf


def _fits(op: Operation, leaves: list[Tensor]) -> bool:
    """Say whether the placeholders are where the operation read frozen values."""
    return all(
        leaf.value == read.value
        for leaf, read in zip(leaves, op.reads, strict=False)
        if isinstance(leaf, Placeholder) and not leaf.is_mixed
    )


def _memory(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
