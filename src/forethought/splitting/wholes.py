"""Which calls of a model are *whole*: nothing inside trains, and nothing but the output is given away.

Such a call can be run, or left out, as one step.
"""

import dis
import functools
from typing import Any

from forethought import nesting
from forethought.splitting.recording import Call, Label


def is_whole(call: Call, output: Any) -> bool:
    """Say whether a call that has just ended, and gave this, may be taken as one step."""
    if any(m._forward_hooks or m._forward_pre_hooks for m in call.module.modules()):
        return False  # a hook may carry values elsewhere
    if not nesting.is_plain(output) or not call.made:
        return False
    if any(made.label is not Label.FROZEN or made.value is None for made in call.made):
        return False
    inner = list(call.walk())
    if any(one.sets_attributes for one in inner):
        return False  # the head may read what it leaves on a module
    if any(one.left and not _is_found(call, one) for one in inner):
        return False
    if any(one.opaque for one in inner) and (
        _gives_numbers(output) or any(_stores_attributes(type(one.module).forward) for one in inner)
    ):
        return False  # a number made from values, given or left on a module: the head must make its own
    return not any(op.label is Label.TRAINABLE for one in inner for op in one.operations)


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
    return code is not None and any(step.opname == "STORE_ATTR" for step in dis.get_instructions(code))


def _gives_numbers(output: Any) -> bool:
    """Say whether a plain value holds a number, a flag or a text beside its tensors."""
    if isinstance(output, bool | int | float | complex | str):
        return True
    return any(_gives_numbers(part) for part in nesting.parts(output))
