"""Where Python decides by frozen values in code that both halves walk through: what else it may do, no operation shows.

An operation that was run shows what it computes. Which one runs for another sample is up to the code that read the
value, so that this code counts, with the numbers that it compares with.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from forethought import nesting
from forethought.identifying.sources import CLASS_BOOKKEEPING, is_library, qualified, version
from forethought.splitting.recording import Call, Label, Position, Recording, Sized, Value

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_HIDDEN = vars(nn.Module()).keys() | {"_compiled_call_impl", "_before_freeze", "train"}


def decisions(recording: Recording) -> list[tuple[int, Call]]:
    """List where Python is told a frozen value, or a size that values decide, before the trunk ends.

    Returns:
        For each, the operation and the call in which it is told; calls that are run as one step are left out.
    """
    found = [(op.ordinal, op.call) for op in recording.operations if op.reads_values and op.label is Label.FROZEN]
    found += [(value[0], call) for call in recording.root.walk() for value in asked_by_values(recording, call)]
    return sorted(
        [one for one in found if one[0] <= recording.last and one[1].outermost_whole() is None], key=lambda one: one[0]
    )


def asked_by_values(recording: Recording, call: Call) -> list[Value]:
    """List the frozen values of which a call told Python the size, where that depends on values."""
    return [
        value
        for value in dict.fromkeys(call.asked)
        if value[0] >= 0 <= value[1] and recording.operations[value[0]].made[value[1]].sized is Sized.VALUES
    ]


def codes(call: Call) -> list[Any]:
    """Give, for a digest, the code that may use what a call was told: its module's, and that of those above.

    A library's code counts by its version, as elsewhere; the user's with the attributes that it names.
    """
    return [_code(one.module) for one in _reached(call)]


def _reached(call: Call | None) -> Iterator[Call]:
    """Go up as long as something that is no tensor is given back, or left behind."""
    while call is not None:
        yield call
        if not (_holds_numbers(call.result) or call.left or call.sets_attributes):
            return
        call = call.parent


def _holds_numbers(result: Any) -> bool:
    if isinstance(result, Position):  # a tensor
        return False
    if isinstance(result, bool | int | float | complex | str):
        return True
    if is_library(type(result).__module__) and not isinstance(result, Mapping | Sequence):
        return False  # a cache of keys and values: its numbers are for the library's own code
    return any(_holds_numbers(part) for part in nesting.parts(result))


def _code(module: nn.Module) -> list[Any]:
    held = vars(module)
    hooks = [list(held[name].values()) for name in _HOOKS]
    users = [base for base in type(module).__mro__ if not is_library(base.__module__) and _adds(base)]
    known = next(base for base in type(module).__mro__ if is_library(base.__module__))
    code = [qualified(known), version(known.__module__), hooks]
    if not users:
        return code
    plain = {name: value for name, value in held.items() if name not in _HIDDEN and not _has_tensors(value)}
    return [*code, users, plain]


def _adds(kind: type) -> bool:
    """Say whether a class has anything that those that it is made from have not."""
    above = [vars(base) for base in kind.__mro__[1:]]
    own = {name: item for name, item in vars(kind).items() if name not in CLASS_BOOKKEEPING}
    return any(item is not next((held[name] for held in above if name in held), None) for name, item in own.items())


def _has_tensors(value: Any) -> bool:
    return bool(nesting.tensors(value, (nn.Module, Tensor)))
