"""What somebody put into a library, in the place of its functions or into its tables; its version tells the rest."""

import functools
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from forethought.identifying.additions import attributes_of
from forethought.identifying.sources import is_installed, is_library, is_made_by, is_shipped, version

_FOLLOWED = ("torchaudio", "torchvision", "timm", "transformers")  # torch is looked into as a whole
_OF_DATA = ("torchvision.datasets.folder", "torchvision.transforms")
_OF_MAKERS = {"timm.models._registry", "torchvision.models._api"}  # tables of what makes models, not of what they run
_CALLED = types.FunctionType | types.BuiltinFunctionType


def patches(model: nn.Module) -> list[Any]:
    """List, for a digest, what torch and the libraries that a model is made of hold and did not bring themselves."""
    return [*_in_torch(), *_in_libraries({cls.__module__ for each in model.modules() for cls in type(each).__mro__})]


def patches_in_data() -> list[Any]:
    """List, for a digest, what of the user's lies in torch and in the modules that prepare samples.

    Which of these modules were imported must not matter, so that what they took from other packages does not count.
    """
    found = _in_libraries({name for name in sys.modules if name.startswith(_OF_DATA)})
    return [*_in_torch(), *(each for each in found if not isinstance(each[-1], str))]


def _in_torch() -> Iterator[Any]:
    for place in (torch, torch.nn.functional, torch.Tensor):
        for name, item in vars(place).items():
            if _is_brought(item):
                yield place.__name__, name, item
            elif isinstance(item, _CALLED) and item.__name__ != name:
                yield place.__name__, name, item.__qualname__


def _is_brought(item: Any) -> bool:
    """Say whether something in torch that can be called is not torch's own."""
    if isinstance(item, types.FunctionType):
        return not is_made_by(item, is_library)
    if isinstance(item, functools.partial | types.MethodType):
        return True
    is_object = callable(item) and not isinstance(item, type)
    return is_object and not is_shipped(type(item).__module__) and not type(item).__module__.startswith("typing")


def _in_libraries(homes: set[str]) -> list[Any]:
    """Look into the modules of libraries, and those whose functions they use."""
    waiting = [home for home in homes if _is_followed(home)]
    met, found = set(waiting), []
    while waiting:
        home = waiting.pop()
        for name, item in vars(sys.modules.get(home, types)).items():
            if name.startswith("__"):
                continue
            found += [((home, *place), *told) for place, told in _held(name, item)]
            if isinstance(item, types.FunctionType) and item.__module__ not in met and _is_followed(item.__module__):
                waiting.append(item.__module__)
                met.add(item.__module__)
    return sorted(found, key=lambda each: each[0])  # modules come in the order in which they were imported


def _held(name: str, item: Any) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Give what a module holds under a name, and is no library's: alone, or in a table."""
    if isinstance(item, types.FunctionType | type):
        if isinstance(item, types.FunctionType) and item.__name__ != name and is_made_by(item, is_shipped):
            yield (name,), [item.__module__, item.__qualname__]
        tables: dict[str, Mapping[Any, Any]] = {"": {"": item}}
    elif isinstance(item, Mapping):
        tables = {"": item}
    elif isinstance(item, types.ModuleType):
        return
    else:
        tables = {part: held for part, held in attributes_of(item).items() if isinstance(held, dict)}
    for part, table in tables.items():
        for key, value in table.items():
            if told := _told(value):
                yield (name, part, str(key)), told


def _told(item: Any) -> list[Any]:
    """Tell what is no library's: a function or class of another package by its version, the user's by its content."""
    if not isinstance(item, types.FunctionType | type) or is_made_by(item, is_shipped):
        return []
    module = sys.modules.get(str(item.__module__))
    if module is not None and is_installed(module):
        return [item.__module__, item.__qualname__, version(item.__module__)]
    return [item]


def _is_followed(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _FOLLOWED and module not in _OF_MAKERS
