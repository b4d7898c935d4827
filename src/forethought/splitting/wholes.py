"""Which calls of a model are *whole*: nothing inside trains, and nothing but the output is given away.

Such a call can be run, or left out, as one step.
"""

import dis
import functools
from typing import Any

from torch import nn

from forethought import nesting
from forethought.splitting.recording import Call, Label

_STORES = ("STORE_ATTR", "STORE_GLOBAL")


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
        _gives_numbers(output) or any(_stores_attributes(type(one.module).forward) for one in call.walk())
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


@functools.cache
def _stores_attributes(forward: Any) -> bool:
    code = getattr(forward, "__code__", None)
    return code is not None and any(step.opname in _STORES for step in dis.get_instructions(code))


def _gives_numbers(output: Any) -> bool:
    """Say whether a plain value holds a number, a flag or a text beside its tensors."""
    if isinstance(output, bool | int | float | complex | str):
        return True
    return any(_gives_numbers(part) for part in nesting.parts(output))
