"""What a module held at a moment, and what has changed since: attributes, and what lies in their containers."""

import operator
from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from forethought import nesting

_ABSENT = object()
_CONTAINERS = frozenset({dict, OrderedDict, list, set, deque})
_NO_ATTRIBUTES = frozenset({"_parameters", "_modules", "_compiled_call_impl"})


class Held:
    """Remembers the attributes of a module by identity.

    Args:
        module: The module.
        but: Names of attributes not to look at.
    """

    __slots__ = ("_before", "_but", "_empty", "_filled", "_now")

    def __init__(self, module: nn.Module, but: Collection[str]) -> None:
        self._now = module.__dict__
        self._before = dict(module.__dict__)
        self._but = but
        self._empty: list[Any] = []  # most of them are there for hooks
        self._filled: list[tuple[str, Any, list[Any]]] = []
        for name, value in self._now.items():
            if type(value) in _CONTAINERS and name not in but:
                if value:
                    self._filled.append((name, value, _entries(value)))
                else:
                    self._empty.append(value)

    def changed(self) -> set[str]:
        """Name the attributes that are others now, or hold others."""
        now, before = self._now, self._before
        filled = {name for name, value, entries in self._filled if not _is_identical(_entries(value), entries)}
        if not filled and not any(self._empty) and _is_identical(list(now.values()), list(before.values())):
            return set()
        names = {name for name in now.keys() | before.keys() if now.get(name, _ABSENT) is not before.get(name, _ABSENT)}
        names |= {name for name, value in now.items() if any(value is one for one in self._empty if one)}
        return (names | filled) - set(self._but)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """List the tensors among a module's buffers and attributes, and inside these."""
    return nesting.tensors([value for name, value in module.__dict__.items() if name not in _NO_ATTRIBUTES])


def _entries(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _is_identical(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))
