"""A model or a data set by its name, as it is typed on the command line. Nothing is ever downloaded."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import DataError, MissingExtraError, ModelError

SAMPLES = 2
_RANDOM = "random weights (nothing is downloaded)"


@dataclass(frozen=True)
class NamedModel:
    """A model and inputs to run it on.

    Attributes:
        name: As it was asked for.
        model: The model; nobody else holds it, unless the name is that of a module object.
        args: Positional arguments for a batch of `SAMPLES`.
        kwargs: Keyword arguments.
        weights: Where its weights come from.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: str


def load_named(name: str, shapes: Sequence[tuple[int, ...]] = (), dtype: torch.dtype = torch.float32) -> NamedModel:
    """Build the model of this name, with inputs to run it on.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, `package.module:function` or `path/to/file.py:function`. The function
            is called without arguments and returns a model, or (model, args), or (model, args, kwargs).
        shapes: Of one sample of each input, without the batch; by default what the model or the function says.
        dtype: Of inputs made from `shapes`.

    Raises:
        ModelError: there is no such model, or it cannot be built; the message says what is close.
        MissingExtraError: torchvision or timm is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _made(name)
        if shapes:
            args: tuple[Any, ...] = tuple(_batch(shape, dtype) for shape in shapes)
            is_listed = bool(made.args) and isinstance(made.args[0], list)
            args = ([image for batch in args for image in batch],) if is_listed else args
            made = NamedModel(name, made.model, args, {}, made.weights)
    if any(nn.parameter.is_lazy(parameter) for parameter in made.model.parameters()) and (made.args or made.kwargs):
        built(name, lambda: made.model(*made.args, **made.kwargs))  # its first run gives lazy layers their sizes
    if not made.args and not made.kwargs:
        raise ModelError(
            f"Cannot run '{name}': expected inputs to run it on, got a function that returns a model alone. "
            "Return (model, args) from it, or give the shape of one sample: --input 3x224x224"
        )
    return made


def load_model(name: str) -> nn.Module:
    """Build the model of this name, to be run on a data set.

    Raises:
        ModelError: there is no such model, or it cannot be built.
        MissingExtraError: torchvision or timm is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _made(name).model


def load_dataset(name: str) -> Any:
    """Make the data set of this name.

    Args:
        name: `package.module:function` or `path/to/file.py:function`; the function is called without arguments and
            returns whatever `ft.extract` takes; an object of that kind will do, too.

    Raises:
        DataError: there is no such data set.
    """
    if not all(name.rpartition(":")[::2]):
        raise DataError(
            f"Cannot load the data set '{name}': expected package.module:function or file.py:function, got neither. "
            "Name a function that returns the data set: file.py:function"
        )
    try:
        return result_of(name, is_data=True)
    except ModelError as err:
        raise DataError(str(err).replace("returns a model", "returns a data set")) from err


def transform_of(name: str) -> Callable[[Any], Any] | None:
    """Find the evaluation transform that a model of one of the two libraries was trained for."""
    source, _, rest = name.partition(":")
    if source == "torchvision":
        models = library("torchvision").models
        if rest not in models.list_models():
            raise unknown_model("torchvision", rest, models.list_models())
        transform: Callable[[Any], Any] = models.get_model_weights(rest).DEFAULT.transforms()
        return transform
    if source == "timm":
        timm, data = library("timm"), importlib.import_module("timm.data")
        if not timm.is_model(rest.split(".")[0]):
            raise unknown_model("timm", rest, timm.list_models())
        trained = timm.get_pretrained_cfg(rest, allow_unregistered=True)
        config = data.resolve_data_config(pretrained_cfg=trained.to_dict() if trained is not None else {})
        made: Callable[[Any], Any] = data.create_transform(**config)
        return made
    return None


def _made(name: str) -> NamedModel:
    """Build the model of this name, as its library or function gives it."""
    source, colon, rest = name.partition(":")
    if not colon or not rest or not source:
        raise ModelError(
            f"Cannot load '{name}': expected SOURCE:NAME, got no {'colon' if not colon else 'name on one side of it'}. "
            f"Try torchvision:{name.strip(':') or 'resnet50'}, timm:NAME, package.module:function or file.py:function"
        )
    if source not in _LIBRARIES:
        return _by_function(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how weights begin that nobody will use
        model, args = _LIBRARIES[source](rest)
    return NamedModel(name, model.eval(), args, {}, _RANDOM)


def _batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make samples: numbers from 0 to 1; zeros and ones where numbers are whole."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.rand(SAMPLES, *shape).to(dtype)
    return torch.randint(0, 2, (SAMPLES, *shape)).to(dtype)


def _batch_of_images(shape: tuple[int, ...]) -> tuple[Any, ...]:
    return (_batch(shape, torch.float32),)


def _from_torchvision(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    models = library("torchvision").models
    if name not in models.list_models():
        raise unknown_model("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    known = inspect.signature(builder).parameters
    options = {option: None for option in ("weights", "weights_backbone") if option in known}
    model: nn.Module = built(f"torchvision:{name}", lambda: builder(**options))
    kind = builder.__module__.split(".")[2]
    crop = getattr(models.get_model_weights(name).DEFAULT.transforms(), "crop_size", [224])
    height, width = crop[0], crop[-1]
    if kind == "detection":
        return model, (list(_batch((3, 224, 224), torch.float32)),)
    if kind == "optical_flow":
        return model, _batch_of_images((3, 128, 128)) * 2
    if kind == "video":
        return model, _batch_of_images((3, 16, height, width))
    return model, _batch_of_images((3, height, width))


def _from_timm(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    timm = library("timm")
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise unknown_model("timm", name, timm.list_models())
    model: nn.Module = built(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return model, _batch_of_images(tuple(config.get("input_size", (3, 224, 224))))


_LIBRARIES: dict[str, Callable[[str], tuple[nn.Module, tuple[Any, ...]]]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name != name:
            raise
        raise MissingExtraError(
            f"Cannot load a model of {name}: expected the package {name}, got none. pip install 'forethought[vision]'"
        ) from err


def unknown_model(source: str, name: str, names: Sequence[str]) -> ModelError:
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    meant = ", ".join(f"{source}:{one}" for one in close)
    fix = f"Did you mean {meant}?" if close else f"See {source}'s list of models."
    return ModelError(
        f"Cannot load '{source}:{name}': expected a model that {source} knows, got none of this name. {fix}"
    )


def built(name: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except Exception as err:
        raise ModelError(
            f"Cannot build '{name}': expected its function to return, got {said(err)}. "
            "FORETHOUGHT_DEBUG=1 shows where it was raised."
        ) from err


def said(err: BaseException) -> str:
    """Name an exception, in one line."""
    words = " ".join(str(err).split())
    return f"{type(err).__name__}{f': {words[:200]}' if words else ''}"


def _by_function(name: str) -> NamedModel:
    place = name.rpartition(":")[0]
    if place == "transformers":
        raise ModelError(
            f"Cannot load '{name}': expected a source that knows the size of its models, got transformers, which does "
            "not. Write a function that returns (model, args) and name it: file.py:function"
        )
    made = result_of(name)
    model, args, kwargs = _parts(made)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"Cannot inspect '{name}': expected a function that returns a torch.nn.Module, or (model, args), or "
            f"(model, args, kwargs), got {type(made).__name__}. Return the model from it."
        )
    return NamedModel(name, model, args, kwargs, "weights as the function gives them")


def result_of(name: str, is_data: bool = False) -> Any:
    """Import what a name stands for: a function is called; a module, or any other data set, is meant itself."""
    place, _, attribute = name.rpartition(":")
    folder = Path(place).resolve().parent if place.endswith(".py") else Path.cwd()
    with _found_in(folder):
        module = _from_file(name, Path(place)) if place.endswith(".py") else _imported(name, place)
        found = _attribute(name, module, attribute)
        return found if is_data and not (inspect.isroutine(found) or inspect.isclass(found)) else _call(name, found)


@contextmanager
def _found_in(folder: Path) -> Iterator[None]:
    """Let a folder's modules be imported, as `python` does for its script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _imported(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{place}.".startswith(f"{err.name}."):
            raise _failed(name, err) from err
        raise ModelError(
            f"Cannot load '{name}': expected a module that can be imported from here, got no '{err.name}'. "
            f"Run this in the folder that holds it, or name the file: path/to/{place.split('.')[-1]}.py:function"
        ) from err
    except Exception as err:
        raise _failed(name, err) from err


def _from_file(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"Cannot load '{name}': expected a Python file, got no '{path}'. Check the path.")
    known = f"forethought_inspects_{path.stem}"
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[known] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        del sys.modules[known]
        raise _failed(name, err) from err
    return module


def _failed(name: str, err: Exception) -> ModelError:
    return ModelError(
        f"Cannot load '{name}': expected its module to be imported, got {said(err)}. "
        "FORETHOUGHT_DEBUG=1 shows where it was raised."
    )


def _attribute(name: str, module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            mine = [one for one in vars(found) if not one.startswith("_")] if hasattr(found, "__dict__") else []
            close = difflib.get_close_matches(part, mine, n=3, cutoff=0.5) or [
                one for one in mine if inspect.isfunction(vars(found)[one])
            ]
            fix = f"Some that are there: {', '.join(close[:3])}" if close else "Define a function that returns a model."
            raise ModelError(f"Cannot load '{name}': expected '{part}' to be defined there, got none. {fix}")
        found = getattr(found, part)
    return found


def _call(name: str, found: Any) -> Any:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(
            f"Cannot load '{name}': expected a function that returns a model, got {type(found).__name__}. "
            "Name a function: package.module:function"
        )
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return built(name, found)  # built in, without a signature
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        call = f"{getattr(found, '__name__', 'it')}({', '.join(f'{one}=...' for one in needed)})"
        raise ModelError(
            f"Cannot load '{name}': expected a function without arguments, got one that needs {', '.join(needed)}. "
            f"Write one that gives them: def make(): return {call}"
        )
    return built(name, found)


def _parts(made: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Take apart what a function returned: a model, (model, args), or (model, args, kwargs)."""
    if not isinstance(made, tuple) or not 1 <= len(made) <= 3:
        return made, (), {}
    args = made[1] if len(made) > 1 else ()
    kwargs = made[2] if len(made) > 2 else {}
    if isinstance(args, Mapping):
        return made[0], (), {**args, **kwargs}
    return made[0], args if isinstance(args, tuple) else (args,), dict(kwargs)
