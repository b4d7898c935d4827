"""What a split must know to run either half: the recorded path, with forms that hold for any batch size.

Both halves follow the same tree of calls.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from forethought.errors import FrozenBranchError
from forethought.shapes.curves import Curve, Curves, Stairs
from forethought.shapes.forms import Form, FrontierTensor, Size
from forethought.splitting.recording import Made, Operation, Read, Recording, Value


@dataclass(slots=True)
class Step:
    """What one recorded operation or whole call gives, in a form for any batch size."""

    made: list[tuple[Made, Form]]
    changed: Mapping[int, tuple[Made, Form]]
    result: Any
    captures: tuple[tuple[bool, int, int], ...] = ()  # (from `changed`, position, crossing)
    settles: tuple[int, ...] = ()  # crossings whose memory is final after this step
    left: Sequence[tuple[str, str, Any]] = ()  # (path, name, value) to set on modules
    reads: tuple[tuple[int, int], ...] = ()  # (argument, crossing): to be taken before this step

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
    children: Mapping[tuple[str, int], "CallStep"]
    touching: Sequence[OperationStep]  # operations that read a frozen value, in order
    meeting: Sequence[OperationStep]  # those of them that meet a placeholder in the head
    trainable: Sequence[OperationStep]  # operations that only the head runs, in order
    inputs: list[Value | None]  # what it was given
    binds: dict[Value, int] | None  # given these arguments from the frontier, nothing inside needs watching in the head
    draws: Sequence[OperationStep] = ()  # of random numbers, by constants alone, in order

    @property
    def is_constant(self) -> bool:
        """Say whether nothing in it is frozen, trains or is drawn, up to where the trunk ends."""
        return all(one.whole is None and not (one.touching or one.trainable or one.draws) for one in self.walk())

    def walk(self) -> Iterator["CallStep"]:
        """Go through this call and every call inside."""
        yield self
        for child in self.children.values():
            yield from child.walk()


Climbed = Callable[[int, tuple[Any, ...], Sequence[Size]], list[Stairs | Curve] | None]
"""Says by which rule a whole number follows the size of the inputs: by its operation, its place in the arguments, and
what was seen of it."""


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
    doubts: frozenset[Value]  # values whose size Python is told, though nothing but the values themselves tells it
    moving: list[Read]  # buffers that the forward changes: the head's, not the trunk's
    stale: list[str]  # such buffers that count as frozen nevertheless: rows computed from them may not be stored
    written: list[Read]  # the model's own tensors that constant operations write into, where both halves walk
    told: str = ""  # the operation by which Python reads a random number of torch's before the trunk ends
    redraws: bool = False  # the trunk draws in Python where the head draws again: that has to draw the same
    of_few: bool = False  # recorded on the two samples that show most, and on more of them
    is_stretched: bool = False  # for sizes that were not recorded: it follows from plans for others
    siblings: tuple["Plan", ...] = ()  # of the same path, recorded on inputs of other sizes
    curves: Curves | None = None  # what writes numbers seen in this plan and its siblings
    climbed: "Climbed | None" = None  # those in arguments

    @property
    def draws(self) -> bool:
        """Say whether what is frozen follows from random numbers."""
        return self.redraws or bool(self.recording.drawn)

    def whole_call(self, path: str, inputs: list[Value | None]) -> Step | None:
        """Find a call that is one step by what it was given."""
        found = (one for one in self.root.walk() if one.path == path and one.inputs == inputs)
        return next((one.whole for one in found if one.whole is not None), None)

    def constants_written(self) -> list[Tensor]:
        """Give the model's own tensors that constant operations write into, as they are now."""
        return [tensor for tensor in (read.now() for read in self.written) if tensor is not None]


def frozen_branch(op: Operation) -> FrozenBranchError:
    """Say that Python asked for a frozen value where the head must run without it."""
    return FrozenBranchError(
        f"Cannot replay {op}: expected Python to decide nothing from frozen values, got a value read there. "
        "Cut after it: ft.split(model, x, at=<a later module>), or decide from shapes instead of values."
    )
