"""A second body for a model: the same modules in a tree of their own, over the very same tensors.

To see a model's calls, or to leave some out, something must stand between a module and its caller. Patching the
user's model would leave traces after an error and would meet other threads. A shell is a copy of the tree of Python
objects (not of any tensor: the dictionaries of parameters and buffers are shared), so that the model itself is never
touched and a parameter or buffer swapped on the model is seen at once.

Each module of the shell hands its calls to the run that is active on this thread, or runs plainly if there is none.
"""

import functools
import threading
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn


class Run(Protocol):
    """Whatever wants to see the calls between the modules of a shell."""

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of the module at `path`."""
        ...


class _Active(threading.local):
    run: Run | None = None


_active = _Active()


class active:  # noqa: N801  (a context manager, read as a verb: `with active(run):`)
    """Let a run see the calls of shells on this thread, and give the place back afterwards."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._before: Run | None = None

    def __enter__(self) -> None:
        self._before, _active.run = _active.run, self._run

    def __exit__(self, *_: object) -> None:
        _active.run = self._before


class _Call:
    """Stands in the place where torch keeps a module's compiled call, which `module(...)` asks for first."""

    __slots__ = ("module", "path")

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module = module
        self.path = path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = _active.run
        if run is None:
            return self.module._call_impl(*args, **kwargs)
        return run.call(self.module, self.path, args, kwargs)


def shell(model: nn.Module, tensors: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """Copy a model's tree of modules over the same tensors.

    Args:
        model: Any eager model, or another shell.
        tensors: Gives the tensor to use for each parameter and buffer. By default the very same ones, in the very
            same dictionaries.

    Returns:
        The shell of the root. Attributes that are modules, bound methods of modules, or containers of these point
        into the shell; every other attribute is the model's own object.
    """
    return _Copier(model, tensors).module(model, "")


class _Copier:
    def __init__(self, model: nn.Module, tensors: Callable[[Tensor], Tensor] | None) -> None:
        self._tensors = tensors
        self._names = {id(module): name for name, module in model.named_modules()}
        self._made: dict[int, nn.Module] = {}

    def module(self, module: nn.Module, path: str) -> nn.Module:
        if type(module).__name__ == "OptimizedModule":
            module = cast(nn.Module, module._orig_mod)  # torch.compile's wrapper hides what runs
        if isinstance(module, torch.jit.ScriptModule):
            return module  # compiled code has no Python tree to copy
        if getattr(type(module), "has_shell", False):
            return module  # a half of another split: it runs on a shell of its own
        if id(module) in self._made:
            return self._made[id(module)]
        path = self._names.get(id(module), path)
        made = self._made[id(module)] = object.__new__(type(module))
        for name, value in module.__dict__.items():
            if name in {"_parameters", "_buffers"}:
                made.__dict__[name] = value if self._tensors is None else self._own(value)
            elif name == "_modules":
                made.__dict__[name] = {key: self._value(child, _join(path, key)) for key, child in value.items()}
            else:
                made.__dict__[name] = self._value(value, _join(path, name))
        made.__dict__["_compiled_call_impl"] = _Call(made, path)
        return made

    def _own(self, named: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        assert self._tensors is not None
        return {name: tensor if tensor is None else self._tensors(tensor) for name, tensor in named.items()}

    def _value(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return value if self._tensors is None else self._tensors(value)
        if isinstance(value, nn.Module):
            return self.module(value, path)
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.module(value.__self__, path))
        if type(value) is functools.partial:
            parts = self._value([value.func, list(value.args), value.keywords], path)
            return functools.partial(parts[0], *parts[1], **parts[2])
        if type(value) is defaultdict:
            return defaultdict(value.default_factory, self._value(dict(value), path))
        if type(value) in (dict, OrderedDict):
            return type(value)((key, self._value(item, _join(path, str(key)))) for key, item in value.items())
        if type(value) in (list, tuple, set):
            return type(value)(self._value(item, f"{path}[{at}]") for at, item in enumerate(value))
        return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
