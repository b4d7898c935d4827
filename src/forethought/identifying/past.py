"""Which methods of an object's class were run when it was made, and are not run again when it is used.

What came of them is in the object's attributes. What they read counts only where other code may run them again.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

from forethought.identifying.sources import is_made_by, names, texts

CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})


def past_methods(cls: type, is_library: Callable[[str | None], bool]) -> frozenset[str]:
    """Name the constructors of a class, and its private and class methods that no other of its methods names.

    Args:
        cls: The class of an object that is there.
        is_library: Whether a module is a library's: its code calls what it knows by name.
    """
    own = [base for base in cls.__mro__ if not is_made_by(base, is_library)]
    brought = {name for base in cls.__mro__ if base not in own for name in vars(base)}
    methods: dict[str, list[types.CodeType]] = {}
    of_class = set()
    for base in own:
        for name, item in vars(base).items():
            methods.setdefault(name, []).extend(_codes(item))
            if isinstance(item, classmethod):
                of_class.add(name)
    left = {name for name in methods if (_is_private(name) or name in of_class) and name not in brought}
    live = methods.keys() - left - CONSTRUCTORS
    while live:
        named = {name for method in live for code in methods[method] for name in names(code) | texts(code)}
        live = left & named
        left -= live
    return CONSTRUCTORS | left


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _codes(item: Any) -> list[types.CodeType]:
    if isinstance(item, staticmethod | classmethod):
        item = item.__func__
    if isinstance(item, functools.cached_property):
        item = item.func
    parts = [item.fget, item.fset, item.fdel] if isinstance(item, property) else [item]
    return [part.__code__ for part in parts if isinstance(part, types.FunctionType)]
