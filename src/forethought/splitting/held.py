"""What a module held at a moment, and what has changed since: attributes, and what lies in their containers."""

import functools
import operator
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn

from forethought import nesting
from forethought.freezing import MARK

_ABSENT = object()
_CONTAINERS = frozenset({dict, OrderedDict, list, set, deque})
_NO_ATTRIBUTES = frozenset({"_parameters", "_modules", "_compiled_call_impl"})
_ATOMS = frozenset({type(None), bool, int, float, complex, str, set, MARK})  # hold no tensor that is written into

NO_TENSORS = _ATOMS | _CONTAINERS | {tuple}


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
        filled: list[tuple[str, Any, Any]] = []
        for name, value in self._now.items():
            if type(value) in _CONTAINERS and name not in but:
                if value:
                    filled.append((name, value, value.copy()))
                else:
                    self._empty.append(value)
        self._filled = tuple(filled)

    def changed(self) -> set[str]:
        """Name the attributes that are others now, or hold others."""
        now, before = self._now, self._before
        filled = {name for name, value, held in self._filled if not _is_identical(_entries(value), _entries(held))}
        if not filled and not any(self._empty) and holds_the_same(now, before):
            return set()
        names = {name for name in now.keys() | before.keys() if now.get(name, _ABSENT) is not before.get(name, _ABSENT)}
        names |= {name for name, value in now.items() if any(value is one for one in self._empty if one)}
        return (names | filled) - set(self._but)

    def put_back(self) -> None:
        """Give the module what it held; also to its containers, not to what lies in these."""
        for value in self._empty:
            if value:
                value.clear()
        for _, value, held in self._filled:
            if not _is_identical(_entries(value), _entries(held)):
                value.clear()
                value.extend(held) if isinstance(value, list | deque) else value.update(held)
        for name in self._now.keys() - self._before.keys():
            del self._now[name]
        self._now.update(self._before)


class Deep:
    """Remembers what lies in the containers inside a module's containers, where `Held` does not look.

    Args:
        module: The module.
        but: Names of attributes not to look at.
    """

    def __init__(self, module: nn.Module, but: Collection[str]) -> None:
        self._values = [value for name, value in _telling(module) if name not in but and not _is_flat(value)]
        self._inside = _inside(self._values) if self._values else []

    def is_changed(self) -> bool:
        """Say whether another object lies somewhere there; also of what is too deep to be looked at."""
        return bool(self._values) and (self._inside is None or not _is_identical(_inside(self._values), self._inside))


def _is_flat(value: Any) -> bool:
    """Say whether all that may change in an attribute is seen by `Held`: no container lies in another."""
    return _is_fixed(value) or (type(value) in _CONTAINERS and all(map(_is_fixed, _entries(value))))


def _is_fixed(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_fixed, value))
    if isinstance(value, functools.partial):
        return all(map(_is_fixed, (*value.args, *value.keywords.values())))
    return not isinstance(value, dict | list | set | deque)


def _inside(values: list[Any]) -> list[Any] | None:
    found: list[Any] = []

    def look(value: Any) -> None:
        found.append(value)
        if isinstance(value, functools.partial):
            value = (*value.args, *value.keywords.values())
        if isinstance(value, tuple | dict | list | set | deque):
            entries = _entries(value)
            found.append(len(entries))  # a large number is another object each time: changed, to be sure
            for entry in entries:
                look(entry)

    try:
        look(values)
    except RecursionError:
        return None
    return found


def tensors_of(modules: Iterable[nn.Module]) -> dict[int, Tensor]:
    """List the tensors among the buffers and attributes of modules, and inside these, by their identity."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()  # modules share settings, which are large
    for module in modules:
        for name, value in _telling(module):
            if name in _NO_ATTRIBUTES or id(value) in seen:
                continue
            seen.add(id(value))
            for tensor in nesting.tensors(value):
                found[id(tensor)] = tensor
    return found


def _telling(module: nn.Module) -> list[tuple[str, Any]]:
    """List the attributes of a module that may hold a tensor."""
    return [
        (name, value)
        for name, value in module.__dict__.items()
        if type(value) not in _ATOMS and (type(value) is not OrderedDict or value) and _may_hold(value)
    ]


def _may_hold(value: Any) -> bool:
    """Say whether a value may hold a tensor: nearly all attributes are numbers, or empty, or what `freeze` has left."""
    kind = type(value)
    if kind is tuple or kind is list:
        return not _ATOMS.issuperset(map(type, value))
    return bool(value) if kind in _CONTAINERS else not (kind is functools.partial and not value.__dict__)


def changed_items(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Give what is under other names than before, or is another object; what is gone is not among it."""
    if holds_the_same(now, before):
        return {}
    return {name: value for name, value in now.items() if name not in before or before[name] is not value}


def holds_the_same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Say whether two dictionaries hold the very same objects, under the very same names, in the same order."""
    return (
        len(now) == len(before)
        and all(map(operator.is_, now.values(), before.values()))
        and all(map(operator.is_, now, before))
    )


def _entries(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _is_identical(now: list[Any] | None, before: list[Any] | None) -> bool:
    return now is not None and before is not None and len(now) == len(before) and all(map(operator.is_, now, before))
