"""The identity of a data set as it stands, without reading a sample of it.

It can be given only for a data set whose every part shows its content or is told by a library's version, and whose
code reads files in no way that Python does not see (watching.py). For any other there is none: its samples are read.
"""

import itertools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset, default_collate

from forethought.errors import IdentityError
from forethought.identifying.identity import Digest
from forethought.identifying.marks import SCALARS
from forethought.identifying.past import CONSTRUCTORS, past_methods
from forethought.identifying.patches import patches_in_data
from forethought.identifying.sources import imported, is_shipped, looks_up, names, read_globals, texts, version
from forethought.identifying.unseen import KNOWN, check_function, check_item, check_module, has_unseen_backend, refusal

_MAKES = {
    "__class__",
    "__init__",
    "__new__",
    "__post_init__",
    "dataclasses",
}  # an object of a class that it does not name
_PLAIN = {*SCALARS, bytes, type(None)}
_LONG = 256


def parts_of(dataset: Any, collate: Callable[..., Any], rest: Any) -> dict[str, str] | None:
    """Identify each part of a data set; None if a part does not show its content.

    Args:
        dataset: Any map-style data set.
        collate: What joins its samples.
        rest: Whatever else decides what the model is given, plain values.

    Returns:
        Hexadecimal digests by the part's name, "transform" for an attribute of that name, say.
    """
    if not hasattr(dataset, "__dict__") or _has_slots(dataset) or has_unseen_backend():
        return None  # a list, say: identifying it is reading it
    try:
        parts = dict(_parts(dataset))
        parts["collate_fn"] = _digest(None if collate is default_collate else collate)
        parts["reading"] = _digest((rest, _versions(), patches_in_data()))
    except IdentityError:
        return None
    return parts


def parts_of_columns(inputs: list[tuple[str, Any]], rest: Any) -> dict[str, str] | None:
    """Identify what the model is given of tensors and arrays in memory, column by column; targets do not count.

    Args:
        inputs: Columns by name.
        rest: Whatever else decides what the model is given, plain values.

    Returns:
        Hexadecimal digests by name; None where reading all of a file would be needed.
    """
    if any(_is_mapped(column) for _, column in inputs):
        return None
    return {name: _digest(column) for name, column in inputs} | {"reading": _digest(rest)}


def _is_mapped(column: Any) -> bool:
    """Say whether an array lies in a file, which may be larger than memory."""
    while isinstance(column, np.ndarray):
        if isinstance(column, np.memmap):
            return True
        column = column.base
    return False


def _has_slots(dataset: Any) -> bool:
    return any(vars(base).get("__slots__") for base in type(dataset).__mro__)


def _parts(dataset: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give the class and each attribute; of a data set made of others, theirs."""
    yield f"{prefix}{type(dataset).__qualname__}", _digest(type(dataset), is_kind=True)
    nested: dict[str, Any] = {}
    if type(dataset) is Subset:
        nested = {"dataset": dataset.dataset}
    elif type(dataset) is ConcatDataset:
        nested = {f"datasets.{at}": part for at, part in enumerate(dataset.datasets)}
    whole = {name.split(".")[0] for name in nested}
    digests: dict[int, str] = {}  # an attribute may have several names
    for name, value in sorted(vars(dataset).items()):
        if name not in whole:
            digests[id(value)] = digests.get(id(value)) or _digest(value)
            yield f"{prefix}{name}", digests[id(value)]
    for name, part in nested.items():
        yield from _parts(part, f"{prefix}{name}.")


def _digest(value: Any, is_kind: bool = False) -> str:
    """Identify a value, or the class of an object that is there."""
    for makes_anew in (False, True):
        digest = _DataDigest(makes_anew)
        if is_kind:
            digest._kind(value)
        else:
            digest.add(value)
        if not digest.makes_what_is_there:
            break
    return digest.hex()


class _DataDigest(Digest):
    """A digest that counts the libraries data sets are made of by version, and refuses what reads unseen.

    What made an object (`__init__`) is past: what came of it is in its attributes. It counts only where code that is
    run for a sample may make such an object again.
    """

    def __init__(self, makes_anew: bool) -> None:
        super().__init__()
        self._makes_anew = makes_anew
        self._there: set[int] = set()  # classes of objects
        self._named: set[int] = set()  # classes that code or an attribute holds
        self._kind_of: type | None = None  # the class of an object that is written next
        self._makes_unnamed = False
        self._past: dict[int, frozenset[str]] = {}
        self._left_out: set[str] = set()  # methods
        self._names: set[str] = set()  # that code reads
        self._looks_up = False  # names that no text in it need show

    def _alike(self) -> Digest:
        return _DataDigest(makes_anew=True)  # entries of a set: what they make is not told to the whole

    @property
    def makes_what_is_there(self) -> bool:
        """Whether reading a sample may make an object whose `__init__` was left out."""
        if self._makes_anew:
            return False
        by_name = self._left_out if self._looks_up else self._left_out & self._names
        return bool(by_name or self._named & self._there or (self._makes_unnamed and self._there))

    def _kind(self, cls: type) -> None:
        self._there.add(id(cls))
        self._kind_of = cls
        super()._kind(cls)

    def _is_past(self, cls: type, name: str) -> bool:
        if self._makes_anew or id(cls) not in self._there:
            return False
        if id(cls) not in self._past:
            self._past[id(cls)] = past_methods(cls, self._is_library)
            self._left_out |= self._past[id(cls)] - CONSTRUCTORS
        return name in self._past[id(cls)]

    def _add(self, value: Any) -> None:
        if isinstance(value, type):
            if value is not self._kind_of:
                self._named.add(id(value))
            self._kind_of = None
        if type(value) in (list, tuple) and len(value) > _LONG and _is_table(value):
            self._mark("table", repr(value).encode())  # which says as much of plain values, and at once
        else:
            super()._add(value)

    def _is_library(self, module: str | None) -> bool:
        root = (module or "").split(".")[0]
        return root in KNOWN or is_shipped(module)  # others patch torch's classes when they are imported

    def _check_reach(self, function: types.FunctionType) -> None:
        found = names(function.__code__)
        self._names |= found | texts(function.__code__)
        self._looks_up |= looks_up(function.__code__)
        self._makes_unnamed |= bool(_MAKES & found) or "type" in read_globals(function.__code__)
        check_function(function, {name for name in imported(function.__code__) if self._is_library(name)})

    def _check_known(self, value: Any) -> None:
        module = str(getattr(value, "__module__", None) or "builtins")
        if not self._is_library(module):
            raise refusal(f"{module}.{value.__qualname__}")
        check_item(module, value.__name__)

    def _check_module(self, module: types.ModuleType, read: set[str]) -> None:
        if self._is_library(module.__name__):
            check_module(module, read)

    def _object(self, value: Any) -> None:
        if callable(value) and hasattr(value, "cache_info"):
            raise refusal(f"{value.__qualname__}, which keeps what it read")
        super()._object(value)


def _is_table(value: list[Any] | tuple[Any, ...]) -> bool:
    """Say whether a list holds plain values only, or lists of plain values only."""
    kinds = set(map(type, value))
    if kinds <= {list, tuple}:
        kinds = set(map(type, itertools.chain.from_iterable(value)))
    return kinds <= _PLAIN


def _versions() -> list[str]:
    return [sys.version, *(version(root) if root in sys.modules else "" for root in sorted(KNOWN))]
