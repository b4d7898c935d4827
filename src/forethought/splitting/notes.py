"""Plain objects that modules hold and share: a forward may leave values on them, for other modules to read.

A shell shares them with the model, so that a changed setting is seen at once. What a run leaves on one is put back
after it, and a call that leaves something there is never taken as one step.
"""

import functools
import operator
import types
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought.freezing import MARK
from forethought.splitting.held import holds_the_same

_OTHERS = (
    Tensor, nn.Module, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType,
    torch.Generator,
)  # fmt: skip
_CONTAINERS = (list, dict, set)
_SEQUENCES = (list, tuple)
_NO_ATTRIBUTES = frozenset({"_parameters", "_buffers", "_modules", "_compiled_call_impl"})
_EMPTY = frozenset({type(None), bool, int, float, complex, str, set, MARK})  # neither are notes nor hold any


def notes_of(modules: Iterable[nn.Module]) -> list[Any]:
    """List the plain objects among the attributes of modules, and in lists, tuples and dictionaries there."""
    found: dict[int, Any] = {}
    for module in modules:
        for name, value in module.__dict__.items():
            if type(value) in _EMPTY or (type(value) is OrderedDict and not value) or name in _NO_ATTRIBUTES:
                continue
            held = value if isinstance(value, _SEQUENCES) else value.values() if type(value) is dict else (value,)
            for one in held:
                if type(one) is OrderedDict or _is_ours(one):  # torch's own of hooks, a dozen a module
                    continue
                if hasattr(one, "__dict__") and not isinstance(one, _OTHERS):
                    found[id(one)] = one
    return list(found.values())


def _is_ours(value: Any) -> bool:
    """Say whether `freeze` left this on a module that it froze."""
    return type(value) is MARK or (type(value) is functools.partial and not value.__dict__)


class Noted:
    """What plain objects held at a moment.

    Args:
        notes: The objects.
    """

    def __init__(self, notes: Sequence[Any]) -> None:
        self.notes = notes
        self._held = [(note.__dict__, dict(note.__dict__)) for note in notes]
        self._inside = [
            (value, value.copy()) for _, before in self._held for value in before.values() if type(value) in _CONTAINERS
        ]

    def is_changed(self) -> bool:
        """Say whether one of them holds something else now."""
        if not self._held:
            return False
        if any(note.__dict__ is not now for note, (now, _) in zip(self.notes, self._held, strict=True)):
            return True
        return any(map(_differs, self._held)) or any(map(_differs, self._inside))

    def now(self) -> "Noted":
        """Give what they hold now."""
        return Noted(self.notes) if self.is_changed() else self

    def changed(self) -> set[str]:
        """Name what they hold now, and did not: `Config.step`."""
        names = set()
        for note, (now, before) in zip(self.notes, self._held, strict=True):
            for key in now.keys() | before.keys():
                value, was = now.get(key, self), before.get(key, self)
                inside = next((pair for pair in self._inside if pair[0] is value), None)
                if value is not was or (inside is not None and _differs(inside)):
                    names.add(f"{type(note).__name__}.{key}")
        return names

    def put_back(self) -> None:
        """Let them hold what they held."""
        for now, before in [*self._held, *self._inside]:
            if _differs((now, before)):
                now.clear()
                now.extend(before) if isinstance(now, list) else now.update(before)


def _differs(pair: tuple[Any, Any]) -> bool:
    now, before = pair
    if len(now) != len(before):
        return True
    if isinstance(now, dict):
        return not holds_the_same(now, before) and any(
            key not in before or value is not before[key] for key, value in now.items()
        )
    if isinstance(now, list):
        return not all(map(operator.is_, now, before))
    return bool(now != before)
