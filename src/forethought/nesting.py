"""Tensors inside nested Python values: list them, and rebuild the value with others in their place.

Models take and return tuples, dicts, dataclasses and objects of their own; this is the one room that knows how to
look inside them. Anything that holds no tensor is left as it is, the same object.
"""

import copy
import dataclasses
import enum
import itertools
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Kind = type | tuple[type, ...]
PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.Size,
    range,
    type(Ellipsis),
    enum.Enum,
)
_CLOSED = (nn.Module, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)
_LEAVES = (*PLAIN, *_CLOSED, Tensor)
_ATOMS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})  # most of what there is
_EMPTY = _ATOMS | {set}  # hold no tensor that could be given back in its place


def tensors(value: Any, kind: Kind = Tensor) -> list[Any]:
    """List the tensors (or the instances of another `kind`) inside a value, depth first.

    Example:
        >>> [t.shape for t in tensors({"a": torch.zeros(2), "b": (1, torch.zeros(3))})]
        [torch.Size([2]), torch.Size([3])]
    """
    found: list[Any] = []
    _collect(value, kind, found, frozenset())
    return found


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """List the tensors among the arguments of a call: `tensors((args, kwargs))`, most often at once."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) not in _EMPTY:
            _collect(value, Tensor, found, frozenset())
    return found


def _collect(value: Any, kind: Kind, found: list[Any], seen: frozenset[int]) -> None:
    exact = type(value)
    if exact in _EMPTY:
        return
    if isinstance(value, kind):
        found.append(value)
    elif exact is tuple or exact is list:
        for item in value:
            if type(item) not in _EMPTY:
                _collect(item, kind, found, seen)
    elif exact is dict or exact is OrderedDict:
        for item in value.values():
            if type(item) not in _EMPTY:
                _collect(item, kind, found, seen)
    elif isinstance(value, slice):
        for item in (value.start, value.stop, value.step):
            _collect(item, kind, found, seen)
    elif not isinstance(value, _LEAVES) and id(value) not in seen:  # on the way down: a cycle ends
        for _, item in _items(value):
            _collect(item, kind, found, seen | {id(value)})


def replace(value: Any, new: Callable[[Any], Any], kind: Kind = Tensor) -> Any:
    """Rebuild a value with `new(tensor)` in the place of each tensor (or `kind`), in the order of `tensors`.

    Containers that hold tensors are copied, never changed; the rest is shared with the original.

    Example:
        >>> replace([torch.zeros(2), "name"], lambda tensor: len(tensor))
        [2, 'name']
    """
    exact = type(value)
    if exact in _ATOMS:
        return value
    if isinstance(value, kind):
        return new(value)
    if exact is tuple:
        return tuple([replace(item, new, kind) for item in value])
    if isinstance(value, _LEAVES):
        return value
    if isinstance(value, slice):
        return slice(*(replace(part, new, kind) for part in (value.start, value.stop, value.step)))
    if not tensors(value, kind):
        return value
    return _rebuild(value, [(key, replace(item, new, kind)) for key, item in _items(value)])


def is_plain(value: Any) -> bool:
    """Say whether a value is made of tensors and constants only, with nothing that could hide another tensor."""
    if isinstance(value, (Tensor, *PLAIN)):
        return True
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, Sequence):
        return all(is_plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(is_plain(item) for _, item in _items(value))
    return False


def is_same_plain(a: Any, b: Any) -> bool:
    """Compare two values without tensors, part by part; what shows neither parts nor equality differs."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, PLAIN):
        return bool(a == b)
    if isinstance(a, _CLOSED):
        return False
    mine, other = _items(a), _items(b)
    return (
        (bool(mine) or isinstance(a, list | tuple | dict))
        and len(mine) == len(other)
        and all(x[0] == y[0] and is_same_plain(x[1], y[1]) for x, y in zip(mine, other, strict=True))
    )


def outline(value: Any, mark: Callable[[int], Any] = lambda at: ("tensor", at)) -> Any:
    """Put a mark with its position in the place of each tensor: what is left tells values apart, and holds no tensor.

    Example:
        >>> outline({"a": torch.zeros(2), "b": 1})
        {'a': ('tensor', 0), 'b': 1}
    """
    count = itertools.count()
    return replace(value, lambda _: mark(next(count)))


def parts(value: Any) -> list[Any]:
    """List what a container holds; nothing for anything else."""
    return [] if isinstance(value, _LEAVES) else [item for _, item in _items(value)]


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Name the parts of a container; for an object of an unknown class, its attributes."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, Sequence):
        return list(enumerate(value))
    if isinstance(value, set | frozenset):
        return []
    slots = [name for cls in type(value).__mro__ for name in _names(vars(cls).get("__slots__", ()))]
    held = [(name, getattr(value, name)) for name in slots if hasattr(value, name) and not name.startswith("__")]
    return held + (list(vars(value).items()) if hasattr(value, "__dict__") else [])


def _names(slots: str | Sequence[str]) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else slots


def _rebuild(value: Any, items: list[tuple[Any, Any]]) -> Any:
    made: Any
    if isinstance(value, Mapping):
        if type(value) is dict:
            return dict(items)
        made = copy.copy(value)
        for key, item in items:
            made[key] = item
        return made
    if isinstance(value, tuple):
        parts = [item for _, item in items]
        if hasattr(value, "_fields"):
            return tuple.__new__(type(value), parts)
        return type(value)(parts)
    if isinstance(value, list):
        made = copy.copy(value)
        made[:] = [item for _, item in items]
        return made
    if isinstance(value, Sequence):  # a deque, or a class of the user's
        return type(value)([item for _, item in items])  # type: ignore[call-arg]
    made = copy.copy(value)
    for key, item in items:
        object.__setattr__(made, key, item)  # a frozen dataclass has no other door
    return made
