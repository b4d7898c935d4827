"""What is known of a class or function from outside: whose it is, in which version, which names it reads."""

import dis
import functools
import os
import sys
import types
from typing import Any

import torch

from forethought.errors import IdentityError

VERSIONS = "FORETHOUGHT_VERSIONS"
POLICIES = ("minor", "exact", "any")
CLASS_BOOKKEEPING = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__abstractmethods__",
    "_abc_impl", "__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__", "__slots__",
    "__annotate_func__", "__annotations_cache__",
}  # fmt: skip
_REACH_ANYWHERE = {"globals", "locals", "vars", "eval", "exec", "open", "__import__"}
_OUTSIDE = {"environ", "getenv"}
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, not by static C
_LIBRARIES = (
    "torch",
    "torchvision",
    "torchaudio",
    "timm",
    "transformers",
    "numpy",
    "math",
    "builtins",
    "typing",
)


def numerics_version() -> str:
    """Give the part of torch's version that separates stored rows.

    The policy is the environment variable FORETHOUGHT_VERSIONS: `minor` (the default; 2.14 and 2.15 differ, patches
    and builds do not), `exact` (patches and builds differ, too), or `any` (no version separates rows).

    Raises:
        IdentityError: the policy is none of these.
    """
    policy = os.environ.get(VERSIONS, POLICIES[0])
    if policy not in POLICIES:
        raise IdentityError(
            f"Cannot tell which versions share rows: expected {VERSIONS} to be one of {POLICIES}, got {policy!r}. "
            f"Set it: export {VERSIONS}={POLICIES[0]}"
        )
    whole = str(torch.__version__)
    release, _, _ = whole.partition("+")
    is_released = release.replace(".", "").isdigit()  # a nightly build has no promise to keep
    return {"minor": ".".join(release.split(".")[:2]) if is_released else whole, "exact": whole, "any": ""}[policy]


def is_library(module: str | None) -> bool:
    """Say whether a module belongs to a library whose code is told by its version."""
    return (module or "").split(".")[0] in _LIBRARIES


def is_shipped(module: str | None) -> bool:
    """Say whether a module comes with Python or with such a library, and not from the user."""
    return is_library(module) or (module or "").split(".")[0] in sys.stdlib_module_names


@functools.cache
def version(module: str | None) -> str:
    """Give the version of a library, builds of it left out: they differ between devices."""
    root = __import__((module or "builtins").split(".")[0])
    return str(getattr(root, "__version__", "")).partition("+")[0]


def qualified(value: Any) -> str:
    """Name a class or function: a library's with its module, a user's without, whose file may be renamed."""
    is_named_by_file = is_heap(value) and not is_library(value.__module__)
    return str(value.__qualname__ if is_named_by_file else f"{value.__module__}.{value.__qualname__}")


def is_heap(value: Any) -> bool:
    """Say whether a class or function was made by Python code."""
    return not isinstance(value, type) or bool(value.__flags__ & _HEAP_TYPE)


def is_python(cls: type) -> bool:
    """Say whether a class keeps all its state where Python can see it: in `__dict__`."""
    return cls is object or bool(is_heap(cls) and "__module__" in vars(cls) and not _has_c_state(cls))


def _has_c_state(cls: type) -> bool:
    """Say whether the class was made in C: then its methods are not functions."""
    return any(isinstance(item, types.MethodDescriptorType) for item in vars(cls).values())


def check_reach(function: types.FunctionType) -> None:
    """Refuse a function that may read what its code does not show.

    Raises:
        IdentityError: it looks names up by text, runs text, or reads files or the environment.
    """
    code = function.__code__
    brought = {name for name in imported(code) if not is_shipped(name)}
    if brought:
        raise IdentityError(
            f"Cannot establish the identity of {function.__qualname__}: expected code that shows what it reads, "
            f"got one that imports {sorted(brought)[0]} when it runs. Import it at the top of the file."
        )
    anywhere = (_called_by_name(code) & _REACH_ANYWHERE - function.__globals__.keys()) | (names(code) & _OUTSIDE)
    if anywhere:
        raise IdentityError(
            f"Cannot establish the identity of {function.__qualname__}: expected code that shows what it reads, "
            f"got one that uses {sorted(anywhere)[0]}. Read it in __init__ and keep it in an attribute."
        )


def imported(code: types.CodeType) -> set[str]:
    """Give the modules that a function, and the functions inside it, import when they run; "" for relative ones."""
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"}
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= imported(item)
    return found


def names(code: types.CodeType) -> set[str]:
    """Give the names that a function, and the functions inside it, look up."""
    found = set(code.co_names)
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= names(item)
    return found


def _called_by_name(code: types.CodeType) -> set[str]:
    """Give the global names that a function reads, attributes left out."""
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= _called_by_name(item)
    return found
