"""Identity of tensors, values and code: BLAKE3 over content, the same in every process, never by guess.

Everything is written with its type and length before its bytes, so that two different things cannot have the same
image. What cannot be told from its content is an `IdentityError`, never a name or a number drawn at random.
"""

import dis
import enum
import functools
import logging
import types
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import blake3
import numpy as np
import torch
from torch import Tensor, nn

from forethought.errors import IdentityError

KEY_BYTES = 16
_SCALARS = {bool, int, float, complex, str}
_NAMED_BY_STR = {torch.dtype, torch.layout, torch.memory_format, torch.device, range}
_CONTAINERS = {dict, OrderedDict, defaultdict, types.MappingProxyType, list, tuple, set, frozenset, torch.Size, object}
_DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)
_CLASS_BOOKKEEPING = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__abstractmethods__",
    "_abc_impl", "__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__", "__slots__",
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
        self._hash = blake3.blake3(max_threads=blake3.blake3.AUTO)
        self._skip = skip
        self._ignore = ignore | {"_compiled_call_impl", "_before_freeze"}
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # keeps ids from being used again

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
                    f"Cannot establish the identity of a {_qualified(type(value))}: expected values of moderate depth "
                    f"on a real device, got {type(err).__name__}: {err}"
                ) from err
        return self

    def hex(self) -> str:
        """The hash so far: 32 hexadecimal digits (128 bits)."""
        return self._hash.hexdigest()[: 2 * KEY_BYTES]

    def _mark(self, kind: str, content: bytes | memoryview = b"") -> None:
        self._hash.update(f"{kind}:{len(content)}:".encode())
        self._hash.update(content)

    def _add(self, value: Any) -> None:
        kind = type(value)
        if value is None or value is Ellipsis or kind in _SCALARS:
            text = value.hex() if kind is float else f"{value:x}" if kind is int else repr(value)
            self._mark(kind.__name__, text.encode())
        elif kind is bytes:
            self._mark("bytes", value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif kind in _NAMED_BY_STR:
            self._mark(kind.__name__, str(value).encode())
        elif kind is np.ndarray or isinstance(value, np.generic):
            if value.dtype.hasobject:
                raise _unknown(value)
            self._mark(f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes())
        elif isinstance(value, enum.Enum):
            self._mark("enum", f"{_qualified(kind)}.{value.name}".encode())
        elif kind is slice:
            self._mark("slice")
            self.add(value.start, value.stop, value.step)
        else:
            self._once(value)

    def _tensor(self, tensor: Tensor) -> None:
        kind = "" if type(tensor) in (Tensor, nn.Parameter, nn.Buffer) else _qualified(type(tensor))
        self._mark(f"tensor {kind}", f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        if not self._skip(tensor):
            self._mark("bytes", tensor_bytes(tensor))

    def _once(self, value: Any) -> None:
        """Write something that may hold itself: the second time only its number."""
        if id(value) in self._seen:
            self._mark("seen", str(self._seen[id(value)]).encode())
            return
        self._seen[id(value)] = len(self._seen)
        self._held.append(value)
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Mapping):
            self._container(value, [part for item in value.items() for part in item])
            self.add(getattr(value, "default_factory", None))
        elif isinstance(value, list | tuple):
            self._container(value, value)
        elif isinstance(value, set | frozenset):
            self._container(value, sorted(Digest(self._skip).add(item).hex() for item in value))
        else:
            self._object(value)

    def _container(self, value: Any, parts: Sequence[Any]) -> None:
        """Write the parts of a container, and the attributes that a class of the user's may have added."""
        kind = type(value)
        self._mark(f"container {_qualified(kind)}", str(len(parts)).encode())
        self.add(*parts)
        if kind not in _CONTAINERS:
            if not all(base in _CONTAINERS or _is_python(base) for base in kind.__mro__):
                raise _unknown(value)
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
            self.add(value.func, value.args, value.keywords)
        elif isinstance(value, weakref.ref):
            self._mark("reference")
            self.add(value())
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.BuiltinFunctionType):
            self._mark("builtin", f"{value.__module__}.{value.__qualname__}".encode())
            owner = value.__self__
            self.add(None if isinstance(owner, types.ModuleType) else owner)
        elif isinstance(value, types.ModuleType | logging.Logger):
            name = value.name if isinstance(value, logging.Logger) else value.__name__
            self._mark("named", f"{type(value).__name__} {name}".encode())
        elif isinstance(value, _DESCRIPTORS):
            self._mark("descriptor", value.__qualname__.encode())
        elif isinstance(value, property | staticmethod | classmethod | functools.cached_property):
            self._mark(type(value).__name__)
            names = ("fget", "fset", "fdel", "func", "__func__")
            self.add([getattr(value, name) for name in names if hasattr(value, name)])
        elif hasattr(value, "__wrapped__") and callable(value):  # functools.cache and its kind
            self._mark("wrapper", _qualified(type(value)).encode())
            self.add(value.__wrapped__)
        elif type(value) is types.SimpleNamespace:
            self._mark("namespace")
            self.add(dict(vars(value)))
        elif all(_is_python(base) for base in type(value).__mro__) and hasattr(value, "__dict__"):
            self._mark("object")
            slots = [name for base in type(value).__mro__ for name in vars(base).get("__slots__", ())]
            if set(slots) - {"__dict__", "__weakref__"}:
                raise _unknown(value)
            self.add(type(value), dict(vars(value)))
        else:
            raise _unknown(value)

    def _module(self, module: nn.Module) -> None:
        self._mark("module")
        self.add(type(module))
        for name, value in sorted(vars(module).items()):
            if name not in self._ignore:
                self.add(name, value)
        self.add([parameter.requires_grad for parameter in module.parameters(recurse=False)])

    def _class(self, cls: type) -> None:
        """Write a class by name and by all that it holds; what a library made, by the library's version."""
        self._mark("class", _qualified(cls).encode())
        for base in cls.__mro__:
            if not base.__flags__ & _HEAP_TYPE:
                self._mark("builtin", _qualified(base).encode())
                continue
            library = _is_library(base.__module__)
            if library:
                self._mark("library", f"{_qualified(base)} {_version(base.__module__)}".encode())
            for name, item in sorted(vars(base).items()):
                if library:
                    is_patched = isinstance(item, types.FunctionType) and not _is_library(item.__module__ or "")
                    if not is_patched:
                        continue
                elif name in _CLASS_BOOKKEEPING:
                    continue
                self.add(name, item)

    def _function(self, function: types.FunctionType) -> None:
        self._mark("function", f"{function.__module__}.{function.__qualname__}".encode())
        if _is_library(function.__module__ or ""):
            self._mark("library", _version(function.__module__ or "").encode())
            return
        code = function.__code__
        has_text = bool(code.co_consts) and isinstance(code.co_consts[0], str) and code.co_consts[0] == function.__doc__
        self._code(code, code.co_consts[1:] if has_text else code.co_consts)
        self.add(function.__defaults__, function.__kwdefaults__)
        self.add([_content(cell) for cell in function.__closure__ or ()])
        names = _names(code)
        anywhere = (_called_by_name(code) & _REACH_ANYWHERE - function.__globals__.keys()) | (names & _OUTSIDE)
        if anywhere:
            raise IdentityError(
                f"Cannot establish the identity of {function.__qualname__}: expected code that shows what it reads, "
                f"got one that uses {sorted(anywhere)[0]}."
            )
        for name in sorted(names & function.__globals__.keys()):
            self.add(name)
            self._global(function.__globals__[name], names, depth=0)

    def _global(self, value: Any, names: set[str], depth: int) -> None:
        """Write a global that a function reads; of a module, what it reads there."""
        if not isinstance(value, types.ModuleType):
            self.add(value)
            return
        self._mark("named", value.__name__.encode())
        if not _is_library(value.__name__) and depth < 4:
            for name in sorted(names & vars(value).keys()):
                self.add(name)
                self._global(vars(value)[name], names, depth + 1)

    def _code(self, code: types.CodeType, constants: tuple[Any, ...]) -> None:
        self._mark("code", code.co_code)
        self.add(list(constants), code.co_names, code.co_varnames, code.co_freevars)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Give a tensor's raw bytes in row-major order."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise IdentityError(
            f"Cannot establish the identity of a {tensor.layout} tensor: expected a dense one. Use tensor.to_dense()."
        )
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def row_keys(columns: list[Tensor], extra: bytes = b"") -> np.ndarray:
    """Give the identity of each row of several tensors.

    Args:
        columns: Tensors (B, ...), the same B.
        extra: Whatever else the rows depend on.

    Returns:
        (B, 16) bytes: BLAKE3 over dtype, shape and bytes of each column's row.
    """
    batch = len(columns[0])
    head = extra + "".join(f"{c.dtype} {tuple(c.shape[1:])};" for c in columns).encode()
    views = [np.frombuffer(tensor_bytes(c), np.uint8).reshape(batch, -1) for c in columns]
    keys = np.empty((batch, KEY_BYTES), np.uint8)
    for row in range(batch):
        digest = blake3.blake3(head)
        for view in views:
            digest.update(view[row].data)
        keys[row] = np.frombuffer(digest.digest(length=KEY_BYTES), np.uint8)
    return keys


def numeric_state(device: str) -> tuple[Any, ...]:
    """Give the settings outside any model that change what torch computes on a kind of device."""
    backends = torch.backends
    places: list[tuple[str, Any]] = [("mkldnn.matmul", backends.mkldnn), ("mkldnn.conv", backends.mkldnn)]
    if device == "cuda":
        places = [("cuda.matmul", backends.cuda), ("cudnn.conv", backends.cudnn), ("cudnn.rnn", backends.cudnn)]
    precision = [(name, _precision(getattr(place, name.split(".")[1], None))) for name, place in places]
    return (
        str(torch.get_default_dtype()),
        torch.is_autocast_enabled(device),
        str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
        _precision(backends),
        _legacy(torch.get_float32_matmul_precision),
        precision,
        _legacy(lambda: (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)) if device == "cuda" else None,
    )


def _precision(place: Any) -> str:
    """Read a float32 precision; not set is the exact one, which torch writes so once it was set and put back."""
    precision = str(getattr(place, "fp32_precision", "none"))
    return "ieee" if precision == "none" and place is not getattr(torch.backends.cudnn, "conv", None) else precision


def _legacy(read: Callable[[], Any]) -> Any:
    """Read an old setting; torch refuses to tell it once the new ones were used, which then count."""
    try:
        return read()
    except RuntimeError:
        return "superseded"


def _unknown(value: Any) -> IdentityError:
    return IdentityError(
        f"Cannot establish the identity of a {_qualified(type(value))}: expected plain values, tensors, modules or "
        "functions, got an object that does not show its content. "
        "Keep it out of the frozen part, or hold its content in attributes."
    )


def _is_python(cls: type) -> bool:
    """Say whether a class keeps all its state where Python can see it: in `__dict__`."""
    return cls is object or bool(cls.__flags__ & _HEAP_TYPE and "__module__" in vars(cls) and not _has_c_state(cls))


def _has_c_state(cls: type) -> bool:
    """Say whether the class was made in C: then its methods are not functions."""
    methods = [item for item in vars(cls).values() if isinstance(item, types.MethodDescriptorType)]
    return bool(methods)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not yet assigned


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= _names(item)
    return found


def _called_by_name(code: types.CodeType) -> set[str]:
    """Give the global names that a function reads, attributes left out."""
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found |= _called_by_name(item)
    return found


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_library(module: str) -> bool:
    return module.split(".")[0] in _LIBRARIES


@functools.cache
def _version(module: str) -> str:
    root = __import__(module.split(".")[0])
    return str(getattr(root, "__version__", ""))
