"""Which calls of a model are *whole*: nothing inside trains, and nothing but the output is given away.

Such a call can be run, or left out, as one step.
"""

import contextlib
import dis
import functools
import types
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from typing import Any

import torch
from torch import nn

from forethought import nesting
from forethought.identifying.sources import is_shipped
from forethought.splitting.recording import Call, Label

_STORES = ("STORE_ATTR", "STORE_GLOBAL")
_STORES_INSIDE = (*_STORES, "STORE_SUBSCR")
_CHANGES = {
    "__dict__", "__setattr__", "__setitem__", "add", "append", "appendleft", "clear", "discard", "extend", "insert",
    "pop", "popitem", "popleft", "put", "remove", "reverse", "setattr", "setdefault", "setitem", "sort", "update",
    "write",
}  # fmt: skip


def is_whole(call: Call, output: Any) -> bool:
    """Say whether a call that has just ended, and gave this, may be taken as one step."""
    if not nesting.is_plain(output) or not call.made:
        return False
    if any(made.label is not Label.FROZEN or made.value is None for made in call.made):
        return False
    tells = call.tells
    if tells.trains or tells.sets_attributes or _is_hooked(call.module, set()):
        return False  # the head may read what it leaves on a module; a hook may carry values elsewhere
    if tells.leaves and any(one.left and not _is_found(call, one) for one in call.walk()):
        return False
    return not tells.is_opaque or not (
        # A number made from values, given or left on a module: the head must make its own.
        _gives_numbers(output) or any(_leaves_numbers(type(one.module)) for one in call.walk())
    )


def _is_hooked(module: nn.Module, seen: set[int]) -> bool:
    """Say whether a module, or one inside it, has hooks of its forward."""
    if module._forward_hooks or module._forward_pre_hooks:
        return True
    for child in module._modules.values():
        if child is None or id(child) in seen:
            continue
        seen.add(id(child))
        if (_is_hooked(child, seen)) if child._modules else (child._forward_hooks or child._forward_pre_hooks):
            return True
    return False


def _is_found(outer: Call, inner: Call) -> bool:
    """Say whether a module is where its path says, seen from another."""
    prefix = f"{outer.path}." if outer.path else ""
    if inner is outer:
        return True
    try:
        return inner.path.startswith(prefix) and outer.module.get_submodule(inner.path[len(prefix) :]) is inner.module
    except AttributeError:
        return False


def _leaves_numbers(cls: type[nn.Module]) -> bool:
    """Say whether a forward may leave what it read from values where the head could find it.

    In an attribute, a global name, or something changeable that a name or a closure of the user's code leads to.
    """
    forward = getattr(cls, "forward", None)
    return _does(getattr(forward, "__code__", None), _STORES) or any(
        _does(each.__code__, _STORES_INSIDE)
        or (not _CHANGES.isdisjoint(each.__code__.co_names) and any(map(_is_changeable, _named(each))))
        for each in _reached(cls)
    )


def _reached(cls: type[nn.Module]) -> Iterator[types.FunctionType]:
    """Give the forward and the functions and methods that it names, unless a library's, which keeps no such notes."""
    waiting, seen = [getattr(cls, "forward", None)], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, types.FunctionType) and each not in seen and not is_shipped(each.__module__):
            seen.add(each)
            yield each
            named = _named(each)
            owners = [cls, *(type(value) for value in named if _is_changeable(value))]
            waiting += [*named, *(getattr(owner, name, None) for owner in owners for name in each.__code__.co_names)]


def _named(function: types.FunctionType) -> list[Any]:
    """List what a function finds by global names and in its closure."""
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            named.append(cell.cell_contents)
    return named


def _is_changeable(value: Any) -> bool:
    """Say whether numbers can be left in something: a container, or an object of a class of the user's."""
    if isinstance(value, type | types.FunctionType | types.ModuleType | nn.Module | torch.Tensor):
        return False
    return isinstance(value, MutableMapping | MutableSequence | MutableSet) or not is_shipped(type(value).__module__)


@functools.cache
def _does(code: types.CodeType | None, steps: tuple[str, ...]) -> bool:
    return code is not None and any(step.opname in steps for step in dis.get_instructions(code))


def _gives_numbers(output: Any) -> bool:
    """Say whether a plain value holds a number, a flag or a text beside its tensors."""
    if isinstance(output, bool | int | float | complex | str):
        return True
    return any(_gives_numbers(part) for part in nesting.parts(output))
