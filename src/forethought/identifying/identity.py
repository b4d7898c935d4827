"""Identity of tensors, values and code: BLAKE3 over content, the same in every process, never by guess.

Everything is written with its type and length before its bytes, so that two different things cannot have the same
image. What cannot be told from its content is an `IdentityError`, never a name or a number drawn at random.
"""

import enum
import functools
import inspect
import logging
import re
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import blake3
import numpy as np
from torch import Tensor, nn

from forethought.errors import IdentityError
from forethought.identifying.additions import accessed, additions, additions_to_enum, additions_to_tensor, has_slots
from forethought.identifying.contents import SCRIPTS, parts_of_script, parts_of_tensor
from forethought.identifying.marks import CONTAINERS, NAMED_BY_STR, PLAIN, SCALARS, flat_mark, scalar_mark
from forethought.identifying.sources import (
    BY_TEXT,
    CLASS_BOOKKEEPING,
    DESCRIPTORS,
    cell_content,
    check_reach,
    imported,
    is_foreign,
    is_heap,
    is_library,
    is_made_by,
    is_patched,
    is_python,
    is_shipped,
    names,
    qualified,
    read_in,
    texts,
    unknown,
    version,
    wrapped_by,
)
from forethought.identifying.tensors import KEY_BYTES, TensorHash

_CALLED = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


@dataclass(slots=True)
class _Open:
    """A value that is being written."""

    number: int  # among the values that are open, or that refer back to one
    outermost: int  # depth of the outermost open value that something in it refers back to


class Digest:
    """Writes values into a hash.

    Args:
        skip: Tensors whose values do not count, only their form.
        ignore: Attributes of modules that do not count.

    Example:
        >>> Digest().add("a", 1).hex() == Digest().add("a", 1).hex() != Digest().add("a1").hex()
        True
    """

    def __init__(self, skip: Callable[[Tensor], bool] = lambda _: False, ignore: frozenset[str] = frozenset()) -> None:
        self._hash = blake3.blake3()
        self._skip = skip
        self._ignore = ignore | {"_compiled_call_impl", "_before_freeze"}
        self._images: dict[int, bytes] = {}  # of values that refer to nothing outside themselves
        self._open: list[_Open] = []
        self._depths: dict[int, int] = {}  # of the open values
        self._pending: dict[int, _Open] = {}  # written, but they refer to values that are still open
        self._count = 0
        self._held: list[Any] = []  # keeps ids from being used again
        self._hash_tensor = TensorHash()

    def add(self, *values: Any) -> "Digest":
        """Write values; returns itself.

        Raises:
            IdentityError: a value cannot be told from its content.
        """
        for value in values:
            try:
                self._add(value)
            except (RecursionError, NotImplementedError) as err:
                raise IdentityError(
                    f"Cannot establish the identity of a {qualified(type(value))}: expected values of moderate depth "
                    f"on a real device, got {type(err).__name__}: {err}"
                ) from err
        return self

    def alone(self, value: Any) -> str:
        """Hash a value apart, as a new digest would; what this one has met is not hashed again."""
        outer, self._hash = self._hash, blake3.blake3()
        try:
            return self.add(value).hex()
        finally:
            self._hash = outer

    def hex(self) -> str:
        """The hash so far: 32 hexadecimal digits (128 bits)."""
        return self._hash.hexdigest()[: 2 * KEY_BYTES]

    def _mark(self, kind: str, content: bytes = b"") -> None:
        self._hash.update(f"{kind}:{len(content)}:".encode() + content)

    def _add(self, value: Any) -> None:
        kind = type(value)
        if value is None or value is Ellipsis or kind in SCALARS:
            self._hash.update(scalar_mark(value))
        elif kind is bytes:
            self._mark("bytes", value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif kind in NAMED_BY_STR:
            self._mark(kind.__name__, str(value).encode())
        elif kind is np.ndarray or isinstance(value, np.generic):
            if value.dtype.hasobject:
                raise unknown(value)
            content = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            self._hash.update(f"array {value.dtype.str} {value.shape}:{len(content)}:".encode())
            self._hash.update(content)
        elif isinstance(value, enum.Enum):
            self._mark("enum", f"{qualified(kind)}.{value.name}".encode())
            self.add(value.value, *additions_to_enum(value))
        elif kind is slice:
            self._mark("slice")
            self.add(value.start, value.stop, value.step)
        elif kind in PLAIN and (flat := flat_mark(value)) is not None:
            self._hash.update(flat)
        else:
            self._once(value)

    def _tensor(self, tensor: Tensor) -> None:
        if id(tensor) not in self._images:
            if not self._skip(tensor) and (parts := parts_of_tensor(tensor)) is not None:
                self._held.append(parts)
                self.add(parts)
                return
            head = f" {tensor.dtype} {tuple(tensor.shape)}:".encode()
            self._images[id(tensor)] = self._hash_tensor(head, None if self._skip(tensor) else tensor)
            self._held.append(tensor)
        self._mark("tensor", self._images[id(tensor)])
        self.add(*(additions_to_tensor(tensor) if self._open else ()))  # what holds it may read what is noted on it

    def _once(self, value: Any) -> None:
        """Write the image of a value that may be met again, or hold itself.

        What is met again has the image that it had, so that sharing does not matter. A value that refers back to one
        that is still open has no image of its own until that one is closed: if met again before, it is named by its
        number, counted from the value that it refers back to. So no image depends on where a value was met.
        """
        key = id(value)
        if key in self._images:
            self._mark("value", self._images[key])
        elif key in self._depths:
            self._mark("above", str(len(self._open) - self._depths[key]).encode())
            self._refer(self._depths[key])
        elif key in self._pending:
            found = self._pending[key]
            self._mark("again", str(found.number - self._open[found.outermost].number).encode())
            self._refer(found.outermost)
        else:
            self._mark("value", self._written(value))

    def _refer(self, depth: int) -> None:
        self._open[-1].outermost = min(self._open[-1].outermost, depth)

    def _written(self, value: Any) -> bytes:
        """Write a value into a hash of its own."""
        depth, key = len(self._open), id(value)
        self._held.append(value)
        self._count += 1
        frame = _Open(self._count, depth)
        self._open.append(frame)
        self._depths[key] = depth
        outer, self._hash = self._hash, blake3.blake3()
        self._content(value)
        image = bytes(self._hash.digest())
        self._hash = outer
        self._open.pop()
        del self._depths[key]
        if frame.outermost < depth:
            self._pending[key] = frame
            self._refer(frame.outermost)
            return image
        self._images[key] = image
        while self._pending and next(reversed(self._pending.values())).number > frame.number:
            inner, one = self._pending.popitem()
            self._images[inner] = bytes(blake3.blake3(image + str(one.number - frame.number).encode()).digest())
        self._count = frame.number - 1
        return image

    def _content(self, value: Any) -> None:
        if isinstance(value, SCRIPTS):
            self.add(*parts_of_script(value))
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Mapping):
            self._container(value, [part for item in value.items() for part in item])
            self.add(getattr(value, "default_factory", None))
        elif isinstance(value, list | tuple):
            self._container(value, value)
        elif isinstance(value, set | frozenset):
            self._container(value, sorted(self._alike().add(item).hex() for item in value))
        else:
            self._object(value)

    def _container(self, value: Any, parts: Sequence[Any]) -> None:
        """Write the parts of a container, and the attributes that a class of the user's may have added."""
        kind = type(value)
        self._mark(f"container {qualified(kind)}", str(len(parts)).encode())
        self.add(*parts)
        if kind not in CONTAINERS:
            if not all(base in CONTAINERS or is_python(base) for base in kind.__mro__) or has_slots(kind):
                raise unknown(value)
            self.add(kind, dict(vars(value)) if hasattr(value, "__dict__") else None)

    def _object(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value, value.co_consts)
        elif isinstance(value, types.MethodType):
            self._mark("method")
            self.add(value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self._mark("partial")
            self.add(value.func, value.args, value.keywords, *additions(value, functools.partial))
        elif isinstance(value, weakref.ref):
            self._mark("reference")
            self.add(value(), *additions(value, weakref.ref))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, PurePath):
            self._mark("path", str(value).encode(errors="surrogateescape"))
            self.add(*additions(value, PurePath))
        elif isinstance(value, re.Pattern):
            self._mark("pattern")
            self.add(value.pattern, value.flags)
        elif isinstance(value, types.BuiltinFunctionType):
            self._check_known(value)
            self._mark("builtin", f"{value.__module__}.{value.__qualname__}".encode())
            owner = value.__self__
            self.add(None if isinstance(owner, types.ModuleType) else owner)
        elif isinstance(value, types.ModuleType):
            if not is_shipped(value.__name__):
                raise unknown(value)  # which of its numbers are read does not show
            self._mark("named", f"module {value.__name__}".encode())
        elif isinstance(value, logging.Logger):
            self._mark("named", f"Logger {value.name}".encode())
        elif isinstance(value, DESCRIPTORS):
            self._mark("descriptor", value.__qualname__.encode())
        elif (parts := accessed(value)) is not None:
            self._mark(type(value).__name__)
            self.add(*parts)
        elif not is_python(type(value)) and hasattr(value, "__wrapped__") and callable(value):
            self._mark("wrapper", qualified(type(value)).encode())  # functools.cache and its kind
            self.add(value.__wrapped__, *additions(value, type(value)))
        elif type(value) is types.SimpleNamespace:
            self._mark("namespace")
            self.add(dict(vars(value)))
        elif all(is_python(base) for base in type(value).__mro__) and hasattr(value, "__dict__"):
            self._mark("object")
            if has_slots(type(value)):
                raise unknown(value)
            self._kind(type(value))
            self.add(dict(vars(value)))
        else:
            raise unknown(value)

    def _module(self, module: nn.Module) -> None:
        self._mark("module")
        if has_slots(type(module)):
            raise unknown(module)
        self._kind(type(module))
        hooks = {name: held for name, held in vars(module).items() if "_hooks" in name and isinstance(held, dict)}
        order = {key: at for at, key in enumerate(sorted({key for held in hooks.values() for key in held}))}
        for name, value in sorted(vars(module).items()):
            if name in hooks:  # by numbers that count all hooks of the process
                self.add(name, {order[key]: hook for key, hook in value.items()})
            elif name not in self._ignore:
                self.add(name, value)
        self.add([parameter.requires_grad for parameter in module.parameters(recurse=False)])

    def _class(self, cls: type) -> None:
        """Write a class by name and by all that it holds; what a library made, by the library's version."""
        self._mark("class", qualified(cls).encode())
        if not is_shipped(type(cls).__module__):
            self.add(type(cls))
        for base in cls.__mro__:
            if not is_heap(base):
                self._mark("builtin", qualified(base).encode())
                continue
            library = is_made_by(base, self._is_library)
            if library:
                self._check_known(base)
                self._mark("library", f"{qualified(base)} {version(base.__module__)}".encode())
            for name, item in sorted(vars(base).items()):
                if library:
                    if not is_patched(base, item, self._is_library):
                        continue
                elif name in CLASS_BOOKKEEPING or self._is_past(cls, name):
                    continue
                self.add(name, item)

    def _function(self, function: types.FunctionType) -> None:
        self._mark("function", qualified(function).encode())
        if is_made_by(function, self._is_library):
            self._check_known(function)
            self._mark("library", version(function.__module__).encode())
            self.add([held for cell in function.__closure__ or () if is_foreign(held := cell_content(cell))])
            return
        if (wrapper := wrapped_by(function, self._is_library)) is not None:
            self.add(*wrapper)
            return
        code = function.__code__
        has_text = bool(code.co_consts) and isinstance(code.co_consts[0], str) and code.co_consts[0] == function.__doc__
        self._code(code, code.co_consts[1:] if has_text else code.co_consts)
        cells = dict(zip(code.co_freevars, map(cell_content, function.__closure__ or ()), strict=True))
        around = cells.pop("__class__", None)  # for super()
        self.add(function.__defaults__, function.__kwdefaults__, list(cells.values()))
        if around is not None:
            self._kind(around)
        if vars(function):
            self.add(dict(vars(function)))
        self._check_reach(function)
        read = names(code)
        read |= texts(code) if read & BY_TEXT else set()
        for name in sorted(read & function.__globals__.keys()):
            self.add(name)
            self._global(function.__globals__[name], read, set())
        known = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells.values()]
        known += [sys.modules[name] for name in sorted(imported(code) & sys.modules.keys())]
        for module in known:
            if isinstance(module, types.ModuleType):
                self._global(module, read, set())

    def _global(self, value: Any, read: set[str], met: set[int]) -> None:
        """Write a global that a function reads; of a module, what it reads there."""
        if not isinstance(value, types.ModuleType):
            self.add(value)
            return
        self._mark("named", value.__name__.encode())
        if id(value) in met:
            return
        met.add(id(value))
        self._check_module(value, read)
        is_library = self._is_library(value.__name__)
        for name in read_in(value, read, is_library):
            item = vars(value)[name]
            if not is_library or isinstance(item, types.ModuleType) or is_foreign(item):
                self.add(name)
                self._global(item, read, met)

    # What a digest of something other than a model sees otherwise.

    def _alike(self) -> "Digest":
        """Begin another digest that sees the same."""
        return type(self)(self._skip, self._ignore)

    def _kind(self, cls: type) -> None:
        """Write the class of an object that is there."""
        self.add(cls)

    def _is_past(self, cls: type, name: str) -> bool:
        """Say whether the method of this name was run when the objects were made, and is not run again."""
        return False

    def _is_library(self, module: str | None) -> bool:
        """Say whether the code of a module is told by its library's version."""
        return is_library(module)

    def _check_reach(self, function: types.FunctionType) -> None:
        """Refuse a function that may read what its code does not show."""
        check_reach(function)

    def _check_known(self, value: Any) -> None:
        """Refuse a class or function of a library, or one made in C, that may read what it does not show."""

    def _check_module(self, module: types.ModuleType, read: set[str]) -> None:
        """Refuse a module of which a function reads names, by which it may read what it does not show."""

    def _code(self, code: types.CodeType, constants: tuple[Any, ...]) -> None:
        self._mark("code", code.co_code)
        self._mark("handlers", code.co_exceptiontable)
        self.add(list(constants), code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.add(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _CALLED)
