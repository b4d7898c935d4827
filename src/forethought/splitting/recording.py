"""What one run of a model showed: its operations and the tree of calls in which they happened."""

import enum
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forethought.splitting.operations import Function, shown_name


class Label(enum.IntEnum):
    """What a tensor depends on. The label of an operation is the highest label that it reads."""

    CONSTANT = 0
    FROZEN = 1
    TRAINABLE = 2


class Sized(enum.IntEnum):
    """What decides the size of a tensor."""

    SHAPES = 0  # the shapes of the inputs
    NUMBERS = 1  # perhaps a number that Python made from values, or code that cannot be seen
    VALUES = 2  # values, or a limit that a larger batch may exceed


Value = tuple[int, int]
"""One version of one tensor: (operation that made it, position among that operation's tensors); inputs are (-1, i)."""

MIXED = -1_000_000
"""Positions from here down: what a constant holds after an operation wrote frozen values into a view of its memory."""


NOTHING: Mapping[Any, Any] = MappingProxyType({})
"""Shared by the many calls and operations that have nothing to list: objects that stay cost Python's collector time."""


def _nothing() -> Mapping[Any, Any]:
    return NOTHING


@dataclass(eq=False, slots=True)
class Made:
    """A tensor that an operation or a call gave: its value, its form, and the argument that it is, if it is one."""

    value: Value | None
    label: Label
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    argument: int | None = None
    sized: Sized = Sized.SHAPES


@dataclass(eq=False, slots=True)
class Read:
    """A tensor that an operation read. Tensors from outside (weights, constants) are held, values are only named."""

    label: Label
    value: Value | None
    outside: Tensor | None = None
    settled: int = -1  # the last operation that had written into its memory
    memory: int | None = None  # tells one memory from another
    home: tuple[nn.Module, str] | None = None  # the module and name of a parameter or buffer
    seen: Made | None = None  # its form, where no operation gives it: a constant that was filled in parts

    def now(self) -> Tensor | None:
        """Give the tensor from outside as it is now: a parameter may have been swapped on its module."""
        if self.home is None:
            return self.outside
        module, name = self.home
        for held in (module._parameters, module._buffers, module.__dict__):
            if name in held:
                return held[name]
        return None


@dataclass(eq=False, slots=True)
class Operation:
    """One call of a torch function."""

    ordinal: int
    func: Function
    call: "Call"
    label: Label
    arguments: Any  # (args, kwargs), each tensor replaced by its position in `reads`
    reads: list[Read]
    made: list[Made]
    result: Any  # the result, each tensor replaced by its position in `made`
    changed: Mapping[int, Made]  # arguments written in place, by position in `reads`
    reads_values: bool  # gives Python a number made from frozen values
    gives_numbers: bool = False  # gives Python something that is no tensor
    crossing: Mapping[int, int] = field(default_factory=_nothing)  # position in `reads` -> position in the frontier
    lends_shape: bool = False  # reads only the shape of a frozen value
    is_again: bool = False  # frozen, but cheap: done again in the head, so that less is stored
    in_head: bool = False  # frozen, but the head runs it too, because Python decides by it
    is_drawn: bool = False  # frozen though it reads nothing frozen: random numbers from which frozen values follow
    is_apart: bool = False  # trains though it reads nothing that does: random numbers that only the head reads
    meets_frozen: bool = False  # reads a frozen value that the head does not compute

    def __str__(self) -> str:
        where = self.call.path or "the model's own forward"
        return f"{shown_name(self.func)} in {where}"


class Tells(NamedTuple):
    """What a call and those inside it do, as far as it decides whether they may be taken as one step."""

    sets_attributes: bool
    leaves: bool
    is_opaque: bool
    trains: bool


_tells = functools.cache(Tells)


def _trains(operations: list[Operation]) -> bool:
    return Label.TRAINABLE in [op.label for op in operations]


@dataclass(eq=False, slots=True)
class Call:
    """One call of one module, with everything that happened inside."""

    path: str
    module: nn.Module
    parent: "Call | None"
    children: Mapping[tuple[str, int], "Call"] = field(default_factory=_nothing)
    operations: list[Operation] = field(default_factory=list)  # every operation directly in this call
    made: list[Made] = field(default_factory=list)
    result: Any = None
    changed: Mapping[int, Made] = field(default_factory=_nothing)
    inputs: list[Value | None] = field(default_factory=list)
    direct: Collection[Value] = ()  # those of the inputs that are arguments themselves, not inside one
    whole: bool = False
    sets_attributes: bool = False  # of its own module, to something with tensors
    left: Mapping[str, Any] = field(default_factory=_nothing)  # attributes that it sets to something without
    opaque: bool = False  # something inside cannot be told from its operations alone
    asked: tuple[Value, ...] = ()  # frozen values of which it told Python the size
    _tells: "Tells | None" = None
    _open: tuple[dict[tuple[str, int], "Call"], dict[str, int]] | None = None  # the calls inside, and how many of each

    def child(self, path: str, module: nn.Module) -> "Call":
        """Open the next call of `path` made from inside this one."""
        if self._open is None:
            self._open = {}, {}
            self.children = self._open[0]
        children, counts = self._open
        index = counts.get(path, 0)
        counts[path] = index + 1
        made = children[path, index] = Call(path, module, self)
        return made

    @property
    def tells(self) -> "Tells":
        """What it and the calls inside do beside computing; asked for once each of them has ended."""
        if self._tells is None:
            own = self.sets_attributes, bool(self.left), self.opaque, _trains(self.operations)
            inner = [child.tells for child in self.children.values()]
            self._tells = _tells(*map(any, zip(own, *inner, strict=True))) if inner else _tells(*own)
        return self._tells

    def outermost_whole(self) -> "Call | None":
        """Find the largest whole call that contains this one."""
        found: Call | None = None
        call: Call | None = self
        while call is not None:
            found = call if call.whole else found
            call = call.parent
        return found

    def all_left(self) -> list[tuple[str, str, Any]]:
        """List what this call and those inside leave on their modules: (path, name, value)."""
        return [(call.path, name, value) for call in self.walk() for name, value in call.left.items()]

    def open(self) -> None:
        """Take this call, and each that contains it, as several steps."""
        call: Call | None = self
        while call is not None:
            call.whole = False
            call = call.parent

    def walk(self) -> Iterator["Call"]:
        """Go through this call and every call inside, in order of their beginning."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def touching(self) -> list[Operation]:
        """List the operations directly in this call that read a frozen value, or draw one."""
        return [op for op in self.operations if op.is_drawn or any(read.label is Label.FROZEN for read in op.reads)]

    def meeting(self) -> list[Operation]:
        """List the operations directly in this call that meet a placeholder in the head."""
        return [op for op in self.operations if op.meets_frozen]

    def trainable(self) -> list[Operation]:
        """List the operations directly in this call whose result depends on what trains."""
        return [op for op in self.operations if op.label is Label.TRAINABLE]


@dataclass(eq=False, slots=True)
class Crossing:
    """One tensor of the frontier."""

    value: Value
    settled: int  # the last operation that wrote into its memory before it was read
    rewritten: bool = False  # its memory is written again later: keep a copy


@dataclass(eq=False)
class Recording:
    """What one run of a model showed."""

    root: Call
    operations: list[Operation]
    crossings: list[Crossing]
    inputs: list[Made]
    output_crossing: dict[Value, int]
    strangers: list[tuple[Tensor, Operation]]
    outputs: list[Tensor]  # what the model gave, without a graph
    asked: list[Read]  # frozen tensors whose size Python was told, where both halves run
    handed: frozenset[Value]  # values that the head is given as they are
    left: dict[tuple[str, str], Read]  # frozen values that the forward leaves as buffers, by (path, name)
    moving: list[Read]  # buffers that the forward changes, and that something frozen reads
    replaces: bool  # it sets buffers, old ones or new
    drawn: frozenset[int]  # operations that draw random numbers from which frozen values follow
    apart: bool  # some random numbers are drawn by the head alone, before the trunk ends
    notes: list[Any]  # plain objects that modules hold, if the forward leaves something on one

    @property
    def last(self) -> int:
        """The operation by which the trunk has taken everything that crosses."""
        takes = [crossing.settled for crossing in self.crossings]
        takes += [crossing.value[0] for crossing in self.crossings]
        takes += [op.ordinal for op in self.operations for at in op.crossing if op.reads[at].seen is not None]
        return max(takes, default=-1)


@dataclass(frozen=True, slots=True)
class Position:
    """Stands for a tensor in a recorded argument or result."""

    at: int


position = functools.lru_cache(maxsize=1024)(Position)
"""Give the mark of a position: the same object each time."""


def forbid_leaks(operations: list[Operation], outputs: list[Value | None]) -> None:
    """Take a call as several steps if something reads a value of it other than its output."""
    readers: list[tuple[Value, Call | None]] = [
        (read.value, op.call) for op in operations for read in op.reads if read.value is not None
    ]
    readers += [(value, None) for value in outputs if value is not None]
    changed = True
    while changed:
        changed = False
        for value, reader in readers:
            source = operations[value[0]].call.outermost_whole() if value[0] >= 0 else None
            if source is None or _is_inside(reader, source):
                continue
            given = {made.value for made in source.made} | {made.value for made in source.changed.values()}
            if value not in given:
                source.whole = False
                changed = True


def _is_inside(call: Call | None, outer: Call) -> bool:
    while call is not None:
        if call is outer:
            return True
        call = call.parent
    return False
