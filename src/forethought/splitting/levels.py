"""Following the model's own calls along a plan, one level at a time: what both halves' runs share."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from forethought import nesting
from forethought.errors import ReplayDriftError
from forethought.splitting.operations import Function, is_turned, shown_name
from forethought.splitting.plan import CallStep, OperationStep, Plan
from forethought.splitting.recording import Position
from forethought.splitting.shell import calls_itself

FAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Modules of torch's that run other kernels when nobody watches."""


class Level:
    """Where a run is in one level of the plan."""

    __slots__ = ("counts", "drawn", "met", "step", "touched", "trained")

    def __init__(self, step: CallStep) -> None:
        self.step = step
        self.counts: dict[str, int] = {}
        self.touched = 0
        self.met = 0
        self.trained = 0
        self.drawn = 0

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

    def next_draw(self, func: Function) -> OperationStep | None:
        """Give the next recorded draw of random numbers by nothing but constants, if this is it."""
        draws = self.step.draws
        if self.drawn >= len(draws) or draws[self.drawn].operation.func != func:
            return None
        self.drawn += 1
        return draws[self.drawn - 1]

    def check_touched(self, wanted: int) -> None:
        """Check that no recorded operation on frozen values was left out."""
        if self.touched < wanted:
            raise self._drift(str(self.step.touching[self.touched].operation), "none further")

    def _at(self, steps: Sequence[OperationStep], at: int, func: Function) -> OperationStep:
        if at < len(steps) and (steps[at].operation.func == func or is_turned(func, steps[at].operation.func)):
            return steps[at]
        expected = str(steps[at].operation) if at < len(steps) else "no further operation on frozen values"
        raise self._drift(expected, shown_name(func))

    def _drift(self, expected: str, got: str) -> ReplayDriftError:
        return ReplayDriftError(
            f"Cannot replay '{self.step.path or 'the forward'}': expected {expected}, got {got}. "
            "The forward took another path than when it was split; split it in the mode and form in which it runs."
        )


def filled(template: Any, made: list[Any]) -> Any:
    """Put tensors into a template at their positions."""
    if type(template) is Position:
        return made[template.at]
    return nesting.replace(template, lambda position: made[position.at], Position)


class aside:  # noqa: N801  (a context manager, read as a clause)
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


class Walk(TorchFunctionMode):
    """A run of the model's own Python along a plan. The halves say what to do with a whole call, and with a level.

    Args:
        plan: The recorded path.
        batch: How many samples there are.
    """

    def __init__(self, plan: Plan, batch: int) -> None:
        super().__init__()
        self._plan = plan
        self._batch = batch
        self._level = Level(plan.root)
        self._begun = calls_itself(plan.recording.root.module)
        self._inside = False  # a call in which there is nothing to watch

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the call of one module."""
        if self._inside:
            return module._call_impl(*args, **kwargs)
        step = self._level.child(path) if self._begun else self._plan.root
        self._begun = True
        if step is None:
            return module._call_impl(*args, **kwargs)
        return self._answer(step, module, args, kwargs)

    def _answer(self, step: CallStep, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the call of a module that the plan knows."""
        raise NotImplementedError

    def _walked(self, level: Level, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call one level further down."""
        outside, self._level = self._level, level
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            self._level = outside

    def _unseen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call with nobody watching."""
        self._inside = True
        try:
            with aside(self):
                return module._call_impl(*args, **kwargs)
        finally:
            self._inside = False
