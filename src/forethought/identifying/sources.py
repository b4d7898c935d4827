"""What is known of a class or function from outside: whose it is, in which version, which names it reads."""

import argparse
import dis
import functools
import itertools
import os
import sys
import sysconfig
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from forethought.errors import IdentityError

VERSIONS = "FORETHOUGHT_VERSIONS"
POLICIES = ("minor", "exact", "any")
CLASS_BOOKKEEPING = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__abstractmethods__",
    "_abc_impl", "__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__", "__slots__",
    "__annotate_func__", "__annotations_cache__", "__dataclass_fields__", "__dataclass_params__", "__match_args__",
}  # fmt: skip
_ROUNDABOUT = {
    "__subclasses__", "_getframe", "currentframe", "get_objects", "get_referrers", "import_module",
}  # fmt: skip
BY_TEXT = {"getattr", "__dict__", "__getattribute__", "attrgetter", "getattr_static", "getmembers", "methodcaller"}
_REACH_ANYWHERE = {"globals", "locals", "vars", "eval", "exec", "open", "__import__"}
_OUTSIDE = {"environ", "getenv"}
_DATA = {
    bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, OrderedDict, defaultdict, np.ndarray,
    types.SimpleNamespace, argparse.Namespace,
}  # fmt: skip
DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)
_STANDARD = os.path.dirname(os.__file__)
_INSTALLED = tuple({sysconfig.get_paths()[name] + os.sep for name in ("purelib", "platlib")})
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
    return is_library(module) or _is_standard((module or "").split(".")[0])


def _is_standard(root: str) -> bool:
    """Say whether a name is that of a module of Python's own, and no file of the user's took it."""
    if root not in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is None or os.path.dirname(file).startswith(_STANDARD)


def is_installed(module: types.ModuleType) -> bool:
    """Say whether a module lies where packages are installed: some decorate or patch what others made."""
    return os.path.abspath(str(getattr(module, "__file__", None))).startswith(_INSTALLED)


def is_made_by(value: types.FunctionType | type, is_library: Callable[[str | None], bool]) -> bool:
    """Say whether a function or class is a library's, as its `__module__` says.

    `functools.wraps` gives any function the name of another, and what `exec` makes is named by chance.
    """
    if not is_library(value.__module__):
        return False
    if isinstance(value, types.FunctionType):
        scope = value.__globals__
        module = sys.modules.get(str(scope.get("__name__")))
        return module is not None and vars(module) is scope and (is_shipped(module.__name__) or is_installed(module))
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value or not is_heap(value)


def is_patched(cls: type, item: Any, is_library: Callable[[str | None], bool]) -> bool:
    """Say whether something in a library's class is a function of somebody else's, or of another class."""
    if not isinstance(item, types.FunctionType):
        return False
    owner = item.__qualname__.rpartition(".")[0]
    is_own = owner == cls.__qualname__ or "<locals>" in owner or (not owner and item.__module__ == cls.__module__)
    return not is_own or not is_made_by(item, is_library)


def wrapped_by(function: types.FunctionType, is_library: Callable[[str | None], bool]) -> list[Any] | None:
    """Give, for a digest, a library's decorator around a user's function, whose name it bears; None for any other."""
    home = str(function.__globals__.get("__name__"))
    if not is_library(home) or vars(sys.modules.get(home, types)) is not function.__globals__:
        return None
    held = [cell_content(cell) for cell in function.__closure__ or ()]
    return ["wrapped", home, version(home), held, vars(function).get("__wrapped__")]


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


def read_in(module: types.ModuleType, read: set[str], is_library: bool) -> list[str]:
    """List the names of a module that code with these names may read there."""
    held = vars(module).keys()
    found = read & held
    if not is_library:
        found |= {"__getattr__"} & held
        found |= {name for name in held if not name.startswith("__")} if read & BY_TEXT else set()
    return sorted(found)


def is_foreign(item: Any) -> bool:
    """Say whether something that a library's module holds is not told by its version: data, or somebody else's."""
    if type(item) in _DATA or isinstance(item, torch.Tensor):
        return True
    if isinstance(item, types.FunctionType | type):
        return not is_made_by(item, is_shipped)
    where = getattr(item, "__module__", None)
    return not is_shipped(where if isinstance(where, str) else type(item).__module__)


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
    anywhere = read_globals(code) & _REACH_ANYWHERE - function.__globals__.keys()
    anywhere |= (names(code) & _OUTSIDE) | roundabout(code)
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


def cell_content(cell: Any) -> Any:
    """Give what a closure holds; None if it was not yet assigned."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def may_call(function: types.FunctionType, module: types.ModuleType, name: str) -> bool:
    """Say whether a function may read this name of a module: as `module.name`, or of the module by another name."""
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if any(item is module for item in [*held, *map(cell_content, function.__closure__ or ())]):
        return True
    if module.__name__ in imported(function.__code__):
        return True
    aliases = {alias for alias, item in function.__globals__.items() if item is module}
    return bool({name, None} & _read_of(function.__code__, aliases))


def _read_of(code: types.CodeType, aliases: set[str]) -> set[str | None]:
    """Give the attributes that code, and that inside it, reads of these globals; None if it does something else."""
    found: set[str | None] = set()
    for step, after in itertools.pairwise(dis.get_instructions(code)):
        if "LOAD" in step.opname and step.argval in aliases:
            found.add(str(after.argval) if after.opname in ("LOAD_ATTR", "LOAD_METHOD") else None)
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= _read_of(item, aliases)
    return found


def roundabout(code: types.CodeType) -> set[str]:
    """Give the names by which a function, or one inside it, may find what no name in it says."""
    found = names(code)
    return found & _ROUNDABOUT | ({"modules"} if {"sys", "modules"} <= found else set())


def texts(code: types.CodeType) -> set[str]:
    """Give the texts in a function, and in the functions inside it, that may be names for `getattr` and its kind."""
    found = {item for item in code.co_consts if isinstance(item, str) and item.isidentifier()}
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= texts(item)
    return found


def looks_up(code: types.CodeType) -> bool:
    """Say whether a function, or one inside it, may look up a name that no text in it shows."""
    if (names(code) & BY_TEXT) - {"getattr"}:
        return True
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PUSH_NULL")]
    looked = [steps[at + 1 :] for at, step in enumerate(steps) if "LOAD" in step.opname and step.argval == "getattr"]
    if not all(map(_is_of_text, looked)):
        return True
    return any(looks_up(item) for item in code.co_consts if isinstance(item, types.CodeType))


def _is_of_text(steps: list[dis.Instruction]) -> bool:
    """Say whether these steps, after `getattr` was loaded, are its call as (owner.part, "text") or with a default."""
    owner, rest = steps[0], list(itertools.dropwhile(lambda step: step.opname == "LOAD_ATTR", steps[1:]))
    if not rest:
        return False
    name, given, rest = rest[0], 2, rest[1:]
    if len(rest) > 1 and rest[0].opname.startswith(("LOAD_", "BUILD_")):
        given, rest = 3, rest[1:]
    is_call = bool(rest) and rest[0].opname.startswith(("PRECALL", "CALL")) and rest[0].argval == given
    is_owner = owner.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL"))
    return is_call and is_owner and name.opname == "LOAD_CONST" and isinstance(name.argval, str)


def read_globals(code: types.CodeType) -> set[str]:
    """Give the global names that a function reads, attributes left out."""
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= read_globals(item)
    return found


def unknown(value: Any) -> IdentityError:
    """Say that a value does not show its content."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return IdentityError(
        f"Cannot establish the identity of a {kind}: expected plain values, tensors, modules or functions, got an "
        "object that does not show its content. Keep it out of the frozen part, or hold its content in attributes."
    )
