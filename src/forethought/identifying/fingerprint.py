"""What a stored feature is a feature of: the frozen operations that lead to the frontier, with all that they read.

The evidence is the recorded sequence of operations, with constants and weights by content. A comment, another head or
a wrapper class around the model is no change; one bit of a weight, a buffer, a number in an argument is. Where
operations cannot tell (Python read a value to decide), the module's code and state stand in. docs/fingerprint.md says
what is covered and what cannot be seen.
"""

import functools
import types
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from forethought import nesting
from forethought.errors import IdentityError
from forethought.identifying.deciders import asked_by_values, codes, decisions
from forethought.identifying.identity import Digest
from forethought.identifying.numerics import numeric_state
from forethought.identifying.patches import patches
from forethought.identifying.sources import names, numerics_version
from forethought.identifying.unseen import HERE_AND_NOW, is_clock
from forethought.shapes.curves import Stairs
from forethought.shapes.forms import Form, Size, linear_size
from forethought.splitting.operations import code_of, name_of
from forethought.splitting.plan import Plan
from forethought.splitting.recording import Call, Operation, Position, Read, Recording, Value

VERSION = 2
NOTES = 3  # what a store notes of a model names its fingerprint: they change together


def fingerprint_of(plan: Plan) -> str:
    """Identify what the frozen part of a recorded model computes: 32 hexadecimal digits.

    Raises:
        IdentityError: something that the frozen part reads does not show its content.
    """
    return _written(plan).hex()


def fingerprint_with_parts(plan: Plan, model: nn.Module) -> tuple[str, dict[str, str]]:
    """Give `fingerprint_of` and `parts_of`, each tensor hashed once."""
    digest = _written(plan)
    return digest.hex(), _parts(plan, model, digest)


def _written(plan: Plan) -> Digest:
    digest = Digest()
    digest.add("forethought trunk", VERSION, numerics_version())
    digest.add(numeric_state(plan.frontier[0].form.device.type))
    for at, tensor in enumerate(plan.frontier):
        others = [sibling.frontier[at].form for sibling in plan.siblings]
        digest.add(_shape(plan, tensor.form, others), str(tensor.dtype))
    _Writer(plan, digest).write()
    return digest


def parts_of(plan: Plan, model: nn.Module) -> dict[str, str]:
    """Identify, each apart, what a fingerprint covers, so that a change can be named.

    Args:
        plan: The recorded model.
        model: Names the tensors.

    Returns:
        Hexadecimal digests by name: "operations", "numeric settings", "torch", and each tensor that is read.
    """
    return _parts(plan, model, Digest())


def _parts(plan: Plan, model: nn.Module, hashed: Digest) -> dict[str, str]:
    names = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    name_by_id = {id(tensor): name for name, tensor in reversed(names)}
    form = Digest(skip=lambda _: True)
    writer = _Writer(plan, form)
    writer.write()
    parts = {
        "operations": form.hex(),
        "numeric settings": Digest().add(numeric_state(plan.frontier[0].form.device.type)).hex(),
        "torch": numerics_version(),
    }
    for tensor in writer.outside():
        parts[name_by_id.get(id(tensor), f"constant {len(parts)}")] = hashed.alone(tensor)
    return parts


def state_of(model: nn.Module, device: str) -> str:
    """Identify a model as it stands, without running it, so that what was once recorded of it can be believed.

    It counts more than the trunk needs (all code and attributes, the head's too), but not the values that train.

    Raises:
        IdentityError: an attribute of the model does not show its content.
    """
    trains = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    digest = _ModelDigest(skip=lambda tensor: id(tensor) in trains)
    digest.add("forethought model", NOTES, str(torch.__version__), numeric_state(device), model)
    return digest.add(patches(model), _global_hooks()).hex()


def key_in(state: str, at: tuple[Any, ...], forms: Any) -> str:
    """Identify a model in a state, cut somewhere, on inputs of some form."""
    return Digest().add("forethought model", state, at, repr(forms)).hex()


class _ModelDigest(Digest):
    """A digest of a model that may be believed instead of a recording: it must see what recording would."""

    def _check_reach(self, function: types.FunctionType) -> None:
        super()._check_reach(function)
        hidden = names(function.__code__) & {"getattr", *HERE_AND_NOW}
        if hidden:
            raise _untold(function.__qualname__, sorted(hidden)[0])

    def _check_known(self, value: Any) -> None:
        if is_clock(value.__module__):
            raise _untold("the model", value.__name__)

    def _check_module(self, module: types.ModuleType, read: set[str]) -> None:
        if is_clock(module.__name__):
            raise _untold("the model", module.__name__)


def _untold(reader: str, way: str) -> IdentityError:
    return IdentityError(f"Cannot tell what {reader} reads: expected code that shows it, got one that uses {way}.")


def _global_hooks() -> list[Any]:
    """List the hooks that torch calls around every module of the process."""
    held = sorted((name, value) for name, value in vars(nn.modules.module).items() if name.startswith("_global_"))
    return [(name, list(value.values())) for name, value in held if isinstance(value, dict)]


class _Writer:
    """Writes the operations that the frontier follows from, in their order, with numbers of their own."""

    def __init__(self, plan: Plan, digest: Digest) -> None:
        self._plan = plan
        self._digest = digest
        self._operations = plan.recording.operations
        self._numbers: dict[Any, int] = {}
        self._decisions = decisions(plan.recording)
        self._opaque: dict[int, bool] = {}
        self._larger = self._aligned(plan.larger)
        self._siblings = [(self._aligned(each.recording), self._aligned(each.larger)) for each in plan.siblings]
        if not all(same and larger for same, larger in self._siblings):
            digest.add("recorded at", plan.curves.points if plan.curves else ())
            self._siblings = []

    def _aligned(self, recording: Recording | None) -> list[Operation]:
        """Give the operations of another run, if they are the same ones."""
        others = recording.operations if recording else []
        is_same = len(others) == len(self._operations)
        return others if is_same and all(a.func == b.func for a, b in zip(others, self._operations)) else []  # noqa: B905

    def write(self) -> None:
        """Write everything the frontier follows from, then the frontier."""
        for unit in self._needed():
            self._numbers[id(unit)] = len(self._numbers)
            if isinstance(unit, Call):
                self._digest.add("call", unit.module, len(unit.inputs))
                for value in unit.inputs:
                    self._value(value)
            else:
                self._operation(unit)
        for ordinal, call in self._decisions:
            self._digest.add("decides", self._number(ordinal), codes(call))
        for crossing in self._plan.recording.crossings:
            self._digest.add("frontier")
            self._value(crossing.value)

    def outside(self) -> list[torch.Tensor]:
        """List the tensors from outside that what is written reads, each once."""
        found: dict[int, torch.Tensor] = {}
        for unit in self._needed():
            if isinstance(unit, Call):
                read = [*unit.module.parameters(), *unit.module.buffers()]
            else:
                read = [tensor for one in unit.reads if one.value is None and (tensor := one.now()) is not None]
            found |= {id(tensor): tensor for tensor in read}
        return list(found.values())

    def _needed(self) -> list[Operation | Call]:
        """Collect the operations, or opaque calls, that the frontier follows from, in order."""
        wanted: dict[int, Operation | Call] = {}
        open_values = [(c.value, c.settled) for c in self._plan.recording.crossings]
        open_values += [((ordinal, 0), -1) for ordinal, _ in self._decisions]
        while open_values:
            value, settled = open_values.pop()
            for ordinal in {value[0], settled}:
                if ordinal < 0:
                    continue
                unit = self._unit(self._operations[ordinal])
                if id(unit) not in wanted:
                    wanted[id(unit)] = unit
                    open_values += self._sources(unit)
        return sorted(wanted.values(), key=self._position)

    def _unit(self, op: Operation) -> Operation | Call:
        """Find what stands for an operation: itself, or the whole call around it that only its code can tell."""
        call: Call | None = op.call
        while call is not None:
            if call.whole and self._is_opaque(call):
                return call
            call = call.parent
        return op

    def _is_opaque(self, call: Call) -> bool:
        if id(call) not in self._opaque:
            self._opaque[id(call)] = any(
                inner.opaque or asked_by_values(self._plan.recording, inner) for inner in call.walk()
            )
        return self._opaque[id(call)]

    def _position(self, unit: Operation | Call) -> int:
        if isinstance(unit, Operation):
            return unit.ordinal
        return min(op.ordinal for call in unit.walk() for op in call.operations)

    def _sources(self, unit: Operation | Call) -> Iterator[tuple[Value, int]]:
        if isinstance(unit, Operation):
            return ((read.value, read.settled) for read in unit.reads if read.value is not None)
        return ((value, -1) for value in unit.inputs if value is not None)

    def _operation(self, op: Operation) -> None:
        self._digest.add("operation", name_of(op.func), code_of(op.func))
        owner = getattr(op.func, "__self__", None)
        if owner is not None and getattr(type(owner), "has_shell", False):
            self._digest.add("trunk", owner.fingerprint)  # of a split of its own
        self._digest.add([str(made.dtype) for made in op.made])  # what an autocast region inside the forward changes
        seen = [(_counted(op), _counted(self._larger[op.ordinal] if self._larger else op))]
        seen += [(_counted(same[op.ordinal]), _counted(larger[op.ordinal])) for same, larger in self._siblings]
        self._argument(seen, (op.ordinal,))
        for at, read in enumerate(op.reads):
            self._read(read)
            for same, _ in self._siblings:
                other = same[op.ordinal].reads[at] if at < len(same[op.ordinal].reads) else None
                if other is not None and other.value is None and other.outside is not read.outside:
                    self._read(other)  # a constant of the inputs' size

    def _read(self, read: Read) -> None:
        if read.value is not None:
            self._value(read.value)
            if read.settled > read.value[0]:
                self._digest.add("after", self._number(read.settled))
        else:
            self._digest.add("outside", read.now())

    def _value(self, value: Value | None) -> None:
        if value is None:
            self._digest.add("no value")
        elif value[0] < 0:
            _, form = self._plan.inputs[value[1]]
            others = [sibling.inputs[value[1]][1] for sibling in self._plan.siblings]
            self._digest.add("input", value[1], _shape(self._plan, form, others), str(form.dtype))
        else:
            op = self._operations[value[0]]
            unit = self._unit(op)
            place = value[1] if isinstance(unit, Operation) else _place(unit, value)
            self._digest.add("value", self._number(value[0]), place)

    def _number(self, ordinal: int) -> int:
        return self._numbers[id(self._unit(self._operations[ordinal]))]

    def _argument(self, seen: Sequence[tuple[Any, Any]], place: tuple[Any, ...]) -> None:
        """Write one argument; a whole number that grows with the batch is written as a * batch + c.

        Args:
            seen: The argument, and the same one of a run with more samples; then both for inputs of each other size.
            place: Where it is: the operation, and the way there in its arguments.
        """
        argument = seen[0][0]
        if any(type(other) is not type(argument) for pair in seen for other in pair):
            self._digest.add([repr(other) for pair in seen for other in pair])
        elif isinstance(argument, Position):
            self._digest.add("tensor", argument.at)
        elif isinstance(argument, torch.device) or (isinstance(argument, str) and _is_device(argument)):
            self._digest.add("device")  # where, not what
        elif isinstance(argument, slice):
            self._digest.add("slice")
            for name in ("start", "stop", "step"):
                self._argument([(getattr(a, name), getattr(b, name)) for a, b in seen], (*place, name))
        elif isinstance(argument, list | tuple | dict) and len({len(each) for pair in seen for each in pair}) > 1:
            self._digest.add([repr(other) for pair in seen for other in pair])
        elif isinstance(argument, list | tuple | dict):
            self._digest.add(type(argument).__name__, len(argument))
            for at, parts in enumerate(zip(*(nesting.entries(each) for pair in seen for each in pair), strict=True)):
                self._argument(list(zip(parts[::2], parts[1::2], strict=True)), (*place, at))
        elif isinstance(argument, int) and not isinstance(argument, bool):
            self._digest.add(
                "size",
                _size(
                    self._plan,
                    [self._linear(self._plan, *seen[0])]
                    + [self._linear(plan, *pair) for plan, pair in zip(self._plan.siblings, seen[1:], strict=False)],
                    place,
                ),
            )
        else:
            self._digest.add(argument)
            self._digest.add(*(other for other, _ in seen[1:] if not nesting.is_same_plain(other, argument)))

    def _linear(self, plan: Plan, argument: int, larger: int) -> Size:
        return linear_size(argument, larger, plan.batch, plan.more)


def _shape(plan: Plan, form: Form, others: Sequence[Form]) -> Any:
    """Write a shape for any number of samples, and for inputs of any size: nothing foretells what has no curve."""
    if not others:
        return form.shape
    sizes = zip(form.shape, *(other.shape for other in others), strict=True)
    return [_curves(plan, list(same)) for same in sizes]


def _size(plan: Plan, seen: Sequence[Size], place: tuple[Any, ...]) -> Any:
    """Write a number for any number of samples, and for inputs of any size: as all that was seen, if by no rule."""
    if len(seen) == 1:
        return seen[0]
    if (curves := _curves(plan, seen)) is not None:
        return curves
    climbed = plan.climbed(place[0], place[1:], seen) if plan.climbed else None  # as convolutions with strides leave it
    if climbed is not None:
        return [("stairs", *astuple(each)) if isinstance(each, Stairs) else each for each in climbed]
    return plan.curves.points if plan.curves else (), list(seen)


def _curves(plan: Plan, seen: Sequence[Size]) -> Any:
    """Write sizes that were seen for inputs of several sizes as polynomials in these; None if no such one fits."""
    assert plan.curves is not None
    found = [plan.curves.fit(numbers) for numbers in zip(*seen, strict=True)]
    return None if None in found else found


def _place(call: Call, value: Value) -> int:
    places = [made.value for made in call.made] + [made.value for made in call.changed.values()]
    return places.index(value) if value in places else -1


@functools.lru_cache(maxsize=1024)
def _is_device(text: str) -> bool:
    try:
        torch.device(text)
    except RuntimeError:
        return False
    return True


def _counted(op: Operation) -> tuple[Any, dict[str, Any]]:
    """Give the arguments of an operation as they count: the momentum of a norm that keeps its statistics does not."""
    args, kwargs = op.arguments
    if op.func is F.batch_norm and kwargs.get("training") is False:
        kwargs = {**kwargs, "momentum": 0.1}
    return args, kwargs
