"""Tensors inside nested Python values: list them, and rebuild the value with others in their place.

Models take and return tuples, dicts, dataclasses and objects of their own; this is the one room that knows how to
look inside them. Anything that holds no tensor is left as it is, the same object.
"""

import copy
import dataclasses
import enum
import itertools
import operator
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import SplitError

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
_PLAIN_OR_TENSOR = (Tensor, *PLAIN)
_ATOMS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})  # most of what there is
_EMPTY = _ATOMS | {set}  # hold no tensor that could be given back in its place


def tensors(value: Any, kind: Kind = Tensor) -> list[Any]:
    """List the tensors (or the instances of another `kind`) inside a value, depth first.

    Example:
        >>> [t.shape for t in tensors({"a": torch.zeros(2), "b": (1, torch.zeros(3))})]
        [torch.Size([2]), torch.Size([3])]
    """
    if kind is Tensor and isinstance(value, Tensor):
        return [value]
    found: list[Any] = []
    try:
        _collect(value, kind, found, frozenset())
    except RecursionError:  # a list or a dict that holds itself: rare, so only now is each remembered
        found.clear()
        _collect_once(value, kind, found, set())
    return found


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """List the tensors among the arguments of a call: `tensors((args, kwargs))`, most often at once."""
    found: list[Tensor] = []
    try:
        for value in (*args, *kwargs.values()) if kwargs else args:
            if type(value) in _EMPTY:
                continue
            if isinstance(value, Tensor):
                found.append(value)
            else:
                _collect(value, Tensor, found, frozenset())
    except RecursionError:
        return tensors((args, kwargs))
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
    elif exact is slice:
        for item in (value.start, value.stop, value.step):
            if type(item) not in _EMPTY:
                _collect(item, kind, found, seen)
    elif not isinstance(value, _LEAVES) and id(value) not in seen:  # on the way down: a cycle ends
        for _, item in _items(value):
            _collect(item, kind, found, seen | {id(value)})


def _collect_once(value: Any, kind: Kind, found: list[Any], path: set[int]) -> None:
    """Collect from a value that holds itself: what is on the way down already holds nothing new."""
    if isinstance(value, kind):
        found.append(value)
    elif not isinstance(value, _LEAVES) and id(value) not in path:
        path.add(id(value))
        for _, item in _items(value):
            _collect_once(item, kind, found, path)
        path.discard(id(value))


def replace(value: Any, new: Callable[[Any], Any], kind: Kind = Tensor) -> Any:
    """Rebuild a value with `new(tensor)` in the place of each tensor (or `kind`), in the order of `tensors`.

    Containers that hold tensors are copied, never changed; the rest is shared with the original.

    Raises:
        SplitError: a container holds tensors and itself, or is of a class that does not show how it is built.

    Example:
        >>> replace([torch.zeros(2), "name"], lambda tensor: len(tensor))
        [2, 'name']
    """
    try:
        return _replaced(value, new, kind)
    except RecursionError as err:
        raise SplitError(
            f"Cannot look through a {type(value).__name__}: expected nested values that end, got one that holds "
            "itself, or hundreds inside one another. Take and return its tensors in a tuple or a dict."
        ) from err


def _replaced(value: Any, new: Callable[[Any], Any], kind: Kind) -> Any:
    exact = type(value)
    if exact in _ATOMS:
        return value
    if isinstance(value, kind):
        return new(value)
    if exact is tuple:
        made = tuple([item if type(item) in _ATOMS else _replaced(item, new, kind) for item in value])
        return value if all(map(operator.is_, made, value)) else made
    if exact in (dict, list) and _ATOMS.issuperset(map(type, value.values() if exact is dict else value)):
        return value
    if isinstance(value, _LEAVES):
        return value
    if isinstance(value, slice):
        return slice(*(_replaced(part, new, kind) for part in (value.start, value.stop, value.step)))
    if not tensors(value, kind):
        return value
    return _rebuild(value, [(key, _replaced(item, new, kind)) for key, item in _items(value)])


def is_plain(value: Any) -> bool:
    """Say whether a value is made of tensors and constants only, with nothing that could hide another tensor."""
    if isinstance(value, _PLAIN_OR_TENSOR):
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
    if isinstance(value, Tensor):
        return mark(0)
    count = itertools.count()
    return replace(value, lambda _: mark(next(count)))


def outlined(args: tuple[Any, ...], kwargs: dict[str, Any], mark: Callable[[int], Any]) -> Any:
    """Outline the arguments of a call: `outline((args, kwargs), mark)`, most often at once."""
    made, at = [], 0
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) in _ATOMS:
            made.append(value)
        elif isinstance(value, Tensor):
            made.append(mark(at))
            at += 1
        else:
            return outline((args, kwargs), mark)
    if not at:
        return args, kwargs
    return tuple(made[: len(args)]), dict(zip(kwargs, made[len(args) :], strict=True))


def entries(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> list[Any]:
    """List what a list or tuple holds; of a dictionary, each key and what is under it."""
    return [part for item in value.items() for part in item] if isinstance(value, dict) else list(value)


def parts(value: Any) -> list[Any]:
    """List what a container holds; nothing for anything else."""
    return [] if isinstance(value, _LEAVES) else [item for _, item in _items(value)]


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Name the parts of a container; for an object of an unknown class, its attributes."""
    if type(value) is dict:
        return list(value.items())
    if type(value) is list:
        return list(enumerate(value))
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
    if isinstance(value, Mapping):
        return _rebuild_mapping(value, items)
    if isinstance(value, tuple):
        parts = [item for _, item in items]
        if hasattr(value, "n_sequence_fields"):  # torch.return_types: made by C
            return type(value)(parts)
        made: Any = tuple.__new__(type(value), parts)  # whatever else its own constructor asks for
        if hasattr(value, "__dict__"):
            vars(made).update(vars(value))
        return made
    if isinstance(value, list):
        made = copy.copy(value)
        made[:] = [item for _, item in items]
        return made
    if isinstance(value, MutableSequence):
        made = _copied(value)
        for at, item in items:
            made[at] = item
        return made
    if isinstance(value, Sequence):
        return _built(value, [item for _, item in items])
    made = copy.copy(value)
    for key, item in items:
        object.__setattr__(made, key, item)  # a frozen dataclass has no other door
    return made


def _rebuild_mapping(value: Mapping[Any, Any], items: list[tuple[Any, Any]]) -> Any:
    if type(value) is dict:
        return dict(items)
    if not isinstance(value, MutableMapping):
        return _built(value, dict(items))
    made = _copied(value)
    for key, item in items:
        made[key] = item
    return made


def _copied(value: Any) -> Any:
    """Copy a container so that writing into the copy leaves the original: a class's own may share its inner one."""
    made = copy.copy(value)
    for name, held in list(vars(made).items()) if hasattr(made, "__dict__") else []:
        if isinstance(held, dict | list) and vars(value).get(name) is held:
            vars(made)[name] = copy.copy(held)
    return made


def _built(value: Any, content: Any) -> Any:
    """Build another of a class that shows no more than what it holds."""
    try:
        made = type(value)(content)
        is_whole = [key for key, _ in _items(made)] == [key for key, _ in _items(value)]
    except Exception as err:
        raise _unbuildable(value) from err
    if not is_whole:
        raise _unbuildable(value)
    return made


def _unbuildable(value: Any) -> SplitError:
    name, kind = type(value).__name__, "dict" if isinstance(value, Mapping) else "list"
    return SplitError(
        f"Cannot rebuild a {name} with other tensors in it: expected {name}({kind}) to give one, got another or an "
        f"error. Take and return a plain {kind}."
    )
