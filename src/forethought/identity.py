"""Identity of tensors, values and code: BLAKE3 over content, the same in every process, never by guess.

Everything is written with its type and length before its bytes, so that two different things cannot have the same
image. What cannot be told from its content is an `IdentityError`, never a name or a number drawn at random.
"""

import enum
import functools
import logging
import types
from collections.abc import Callable, Mapping
from typing import Any

import blake3
import numpy as np
import torch
from torch import Tensor, nn

from forethought.errors import IdentityError

KEY_BYTES = 16
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

    Example:
        >>> Digest().add("a", 1).hex() == Digest().add("a", 1).hex() != Digest().add("a1").hex()
        True
    """

    def __init__(self, skip: Callable[[Tensor], bool] = lambda _: False) -> None:
        self._hash = blake3.blake3(max_threads=blake3.blake3.AUTO)
        self._skip = skip
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # keeps ids from being used again

    def add(self, *values: Any) -> "Digest":
        """Write values; returns itself.

        Raises:
            IdentityError: a value cannot be told from its content.
        """
        for value in values:
            self._add(value)
        return self

    def hex(self) -> str:
        """The hash so far: 32 hexadecimal digits (128 bits)."""
        return self._hash.hexdigest()[: 2 * KEY_BYTES]

    def _mark(self, kind: str, content: bytes | memoryview = b"") -> None:
        self._hash.update(f"{kind}:{len(content)}:".encode())
        self._hash.update(content)

    def _add(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | type(Ellipsis)):
            self._scalar(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.device | range):
            self._mark(type(value).__name__, str(value).encode())
        elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            self._mark(f"array {value.dtype} {value.shape}", np.ascontiguousarray(value).tobytes())
        elif isinstance(value, enum.Enum):
            self._mark("enum", f"{_qualified(type(value))}.{value.name}".encode())
        elif isinstance(value, slice):
            self._mark("slice")
            self.add(value.start, value.stop, value.step)
        else:
            self._once(value)

    def _scalar(self, value: Any) -> None:
        text = value.hex() if isinstance(value, float) else repr(value)
        self._mark(type(value).__name__, text.encode())

    def _tensor(self, tensor: Tensor) -> None:
        self._mark("tensor", f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        if not self._skip(tensor):
            self._mark("bytes", tensor_bytes(tensor))

    def _once(self, value: Any) -> None:
        """Write something that may hold itself: the second time only its number."""
        if id(value) in self._seen:
            self._mark("seen", str(self._seen[id(value)]).encode())
            return
        self._seen[id(value)] = len(self._seen)
        self._held.append(value)
        if isinstance(value, Mapping):
            self._mark(f"mapping {_qualified(type(value))}", str(len(value)).encode())
            for key, item in value.items():
                self.add(key, item)
        elif isinstance(value, list | tuple):
            self._mark(f"sequence {_qualified(type(value))}", str(len(value)).encode())
            self.add(*value)
        elif isinstance(value, set | frozenset):
            self._mark("set", "".join(sorted(Digest(self._skip).add(item).hex() for item in value)).encode())
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.MethodType):
            self._mark("method")
            self.add(value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self._mark("partial")
            self.add(value.func, value.args, value.keywords)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.BuiltinFunctionType | types.ModuleType | logging.Logger):
            name = value.name if isinstance(value, logging.Logger) else value.__name__
            self._mark("named", f"{getattr(value, '__module__', '')}.{name}".encode())
        elif isinstance(value, nn.Module):
            self._module(value)
        elif hasattr(value, "__dict__") and not hasattr(type(value), "__slots__") and not _is_opaque(value):
            self._mark("object")
            self.add(type(value), vars(value))
        elif isinstance(value, types.MethodDescriptorType | types.WrapperDescriptorType | types.GetSetDescriptorType):
            self._mark("descriptor", value.__qualname__.encode())
        else:
            raise IdentityError(
                f"Cannot establish the identity of a {_qualified(type(value))}: expected plain values, tensors, "
                "modules or functions, got an object that does not show its content. "
                "Keep it out of the frozen part, or hold its content in attributes."
            )

    def _module(self, module: nn.Module) -> None:
        self._mark("module")
        self.add(type(module))
        for name, value in sorted(vars(module).items()):
            if name != "_compiled_call_impl":
                self.add(name, value)
        self.add([parameter.requires_grad for parameter in module.parameters(recurse=False)])

    def _class(self, cls: type) -> None:
        """Write a class by name and, unless a library made it, by the code of its methods."""
        self._mark("class", _qualified(cls).encode())
        for base in cls.__mro__:
            if _is_library(base.__module__):
                self._mark("library", f"{_qualified(base)} {_version(base.__module__)}".encode())
                continue
            for name, item in sorted(vars(base).items()):
                item = getattr(item, "__func__", getattr(item, "fget", item))
                if isinstance(item, types.FunctionType) or (
                    isinstance(item, bool | int | float | str | tuple) and not name.startswith("__")
                ):
                    self.add(name, item)

    def _function(self, function: types.FunctionType) -> None:
        self._mark("function", f"{function.__module__}.{function.__qualname__}".encode())
        if _is_library(function.__module__ or ""):
            self._mark("library", _version(function.__module__ or "").encode())
            return
        self.add(function.__code__, function.__defaults__, function.__kwdefaults__)
        self.add([_content(cell) for cell in function.__closure__ or ()])
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self.add(name)
                self._global(function.__globals__[name], _names(function.__code__))

    def _global(self, value: Any, names: set[str]) -> None:
        """Write a global that a function reads; of a module, the plain values among the names it reads."""
        if isinstance(value, types.ModuleType):
            self._mark("named", value.__name__.encode())
            if not _is_library(value.__name__):
                for name in sorted(names & set(vars(value))):
                    self.add(
                        name,
                        getattr(value, name) if not isinstance(getattr(value, name), types.ModuleType) else None,
                    )
        else:
            self.add(value)

    def _code(self, code: types.CodeType) -> None:
        constants = [item for item in code.co_consts if not isinstance(item, str)]
        texts = [item for item in code.co_consts[1:] if isinstance(item, str)]  # the first may be a docstring
        self._mark("code", code.co_code)
        self.add(constants, texts, code.co_names, code.co_varnames, code.co_freevars)


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
    state: tuple[Any, ...] = (
        str(torch.get_default_dtype()),
        torch.is_autocast_enabled(device),
        str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
        torch.get_float32_matmul_precision(),
    )
    if device == "cuda":
        state += (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    return state


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


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_library(module: str) -> bool:
    return module.split(".")[0] in _LIBRARIES


@functools.cache
def _version(module: str) -> str:
    root = __import__(module.split(".")[0])
    return str(getattr(root, "__version__", ""))


def _is_opaque(value: Any) -> bool:
    return isinstance(value, torch.Generator | types.GeneratorType)
