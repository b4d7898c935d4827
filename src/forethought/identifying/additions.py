"""What somebody put onto a value of a kind that is known: attributes, and a class of their own made from that kind."""

import collections
import enum
import functools
import types
from typing import Any

from forethought.identifying.sources import CLASS_BOOKKEEPING, is_made_by, is_shipped, unknown

_FIELD = type(vars(collections.namedtuple("_Row", "at"))["at"])
_ACCESSORS = (property, staticmethod, classmethod, functools.cached_property)
_OF_ENUMS = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"})
_OF_WRAPPERS = frozenset({
    "__annotate__", "__annotations__", "__doc__", "__module__", "__name__", "__qualname__", "__type_params__",
    "__wrapped__",
})  # fmt: skip
_OF_CACHED = frozenset({"attrname", "func", "lock"})
_OF_TENSORS = ("_dynamo_", "_is_hf_initialized")  # what torch's compiler and transformers note on them


def attributes_of(value: Any) -> dict[str, Any]:
    """Give what a value holds by name. No code of the value's runs: a `__getattr__` may do anything."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def has_slots(cls: type, *known: type) -> bool:
    """Say whether objects of a class hold more than what lies in `__dict__`, or than objects of a known kind do."""
    own = [base for base in cls.__mro__ if not any(issubclass(kind, base) for kind in known)]
    return bool({name for base in own for name in vars(base).get("__slots__", ())} - {"__dict__", "__weakref__"})


def accessed(value: Any) -> list[Any] | None:
    """List what an accessor in a class calls, or the place in a tuple that it reads; None for anything else."""
    if isinstance(value, _FIELD):
        return [value.__reduce__()[1][0]]
    if not isinstance(value, _ACCESSORS):
        return None
    names = ("fget", "fset", "fdel", "func", "__func__")
    return [[getattr(value, name) for name in names if hasattr(value, name)], *additions(value, *_ACCESSORS)]


def additions(value: Any, *kinds: type) -> list[Any]:
    """List what a value holds beside what each of some kinds does: nothing for most.

    Raises:
        IdentityError: its class keeps something where it cannot be seen.
    """
    cls = type(value)
    known = _OF_WRAPPERS | (_OF_CACHED if isinstance(value, functools.cached_property) else frozenset())
    held = {name: item for name, item in attributes_of(value).items() if name not in known}
    own = [held] if held else []
    if cls in kinds or is_made_by(cls, is_shipped):
        return own
    if has_slots(cls, *kinds):
        raise unknown(value)
    return [_written_in(cls), *own]


def additions_to_enum(member: enum.Enum) -> list[Any]:
    """List what a member of an enumeration has beside name and value: attributes, and the code of a user's class."""
    held = {name: item for name, item in attributes_of(member).items() if name not in _OF_ENUMS}
    code = {name: item for name, item in _written_in(type(member)).items() if not _is_of_enum(name, item)}
    return [part for part in (held, code) if part]


def _written_in(cls: type) -> dict[str, Any]:
    """Give what the user's own classes among the bases of one hold: the last one that holds a name says what it is."""
    own = [base for base in reversed(cls.__mro__) if not is_made_by(base, is_shipped)]
    return {name: item for base in own for name, item in vars(base).items() if name not in CLASS_BOOKKEEPING}


def _is_of_enum(name: str, item: Any) -> bool:
    """Say whether an enumeration has this of its own: a member, a table of them, a function of Python's."""
    if isinstance(item, types.FunctionType):
        return is_made_by(item, is_shipped)
    is_bookkeeping = name.startswith("_") and name.endswith("_")
    return is_bookkeeping or isinstance(item, enum.Enum) or type(item).__module__ == "enum"


def additions_to_tensor(tensor: Any) -> list[Any]:
    """List the attributes that somebody gave to a tensor."""
    held = {name: item for name, item in attributes_of(tensor).items() if not name.startswith(_OF_TENSORS)}
    return [held] if held else []
