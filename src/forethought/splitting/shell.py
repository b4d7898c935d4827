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
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode, _pop_mode_temporarily

from forethought import nesting
from forethought.freezing import MARK
from forethought.splitting.held import Held

_ATOMS = frozenset({type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size, MARK})
SHARED = ("_parameters", "_buffers", "_non_persistent_buffers_set")  # the shell has the very same
# Wrappers that change where or how fast a model runs, not what it computes: the shell is of what they hold.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}


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


def is_run_active() -> bool:
    """Say whether a run sees the calls of shells on this thread."""
    return _active.run is not None


class _Call:
    """Stands in the place where torch keeps a module's compiled call, which `module(...)` asks for first."""

    __slots__ = ("module", "origin", "path", "tree")

    def __init__(self, module: nn.Module, path: str, origin: nn.Module) -> None:
        self.module = module
        self.path = path
        self.origin = origin
        self.tree: list[nn.Module] = []  # of the root: every module of the shell

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = _active.run
        if run is None:
            again = next((value for value in args if hasattr(type(value), "call_again")), None)
            if again is not None:  # a checkpoint, in the backward pass
                return again.call_again(self.module, self.path, args, kwargs)
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
    return _Copier(model, tensors).root(model)


def calls_itself(model: nn.Module) -> bool:
    """Say whether a model's class has a `__call__` of its own: it may run before, after or instead of `forward`."""
    return type(model).__call__ is not nn.Module.__call__


def own_modules(value: Any) -> Any:
    """Put a model's own modules, and methods of these, in the place of those of a shell that a value holds."""

    def own(held: Any) -> Any:
        if isinstance(held, types.MethodType):
            return types.MethodType(held.__func__, own(held.__self__)) if isinstance(held.__self__, nn.Module) else held
        call = held.__dict__.get("_compiled_call_impl")
        return call.origin if isinstance(call, _Call) else held

    return nesting.replace(value, own, (nn.Module, types.MethodType))


def modules_of(body: nn.Module) -> list[nn.Module]:
    """List every module of a shell, those in plain lists and other attributes, too."""
    call = body.__dict__.get("_compiled_call_impl")
    known = [*(call.tree if isinstance(call, _Call) else ()), *names_of(body)]
    return [m for m in {id(m): m for m in known}.values() if not isinstance(m, torch.jit.ScriptModule)]


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """Name every module, as `named_modules` does, but without a generator for each module on the way down."""
    found: dict[nn.Module, str] = {}

    def name(module: nn.Module, path: str) -> None:
        found[module] = path
        for key, child in module._modules.items():
            if child is not None and child not in found:
                name(child, f"{path}.{key}" if path else key)

    name(model, "")
    return found


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """List every parameter once, as `parameters` does, whatever a class of the user's lets that show."""
    held = [each for module in names_of(model) for each in module._parameters.values() if each is not None]
    return list({id(each): each for each in held}.values())


@dataclass(slots=True)
class _Pair:
    """A module, its shell, and what the module held when the shell was last brought up to date."""

    path: str
    module: nn.Module
    shell: nn.Module
    held: Held


class Follower:
    """A shell that follows its model: an attribute or a mode changed on the model is changed on the shell.

    The last change wins: a mode set on the shell stays until the model's own is set again.

    Attributes:
        root: The shell of the root.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copier = _Copier(model, None)
        self.root = self._copier.root(model)
        self._pairs = [_Pair(*entry, Held(entry[1], SHARED)) for entry in self._copier.made.values()]

    @property
    def is_seen(self) -> bool:
        """Whether all that a run may leave on the shell shows in the attributes of its modules."""
        return not self._copier.functions

    def follow(self, paths: Collection[str] | None = None) -> set[str]:
        """Bring the shell up to date; name the attributes that have changed ("_modules": a module itself).

        Args:
            paths: Look at these modules only.
        """
        changed: set[str] = set()
        for pair in self._pairs:
            if (paths is None or pair.path in paths) and (names := pair.held.changed()):
                self._update(pair, names)
                pair.held = Held(pair.module, SHARED)
                changed |= names
        return changed

    def _update(self, pair: _Pair, names: set[str]) -> None:
        for name in names - {"_modules", "_compiled_call_impl"}:
            if name in pair.module.__dict__:
                value = self._copier.attribute(name, pair.module.__dict__[name], pair.path)
                pair.shell.__dict__[name] = value
            else:
                pair.shell.__dict__.pop(name, None)


class Scripted(nn.Module):
    """Stands for a scripted module in a shell, so that its calls are seen: each is one operation."""

    def __init__(self, scripted: nn.Module) -> None:
        super().__init__()
        self.scripted = scripted
        self.training = scripted.training

    def __getattr__(self, name: str) -> Any:
        """Give what the scripted module has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("scripted"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the scripted module; a function mode sees one call."""
        run = self.scripted.__call__
        if _get_current_function_mode() is None:
            return run(*args, **kwargs)
        with _pop_mode_temporarily() as mode:
            return mode.__torch_function__(run, (), args, kwargs)


class _Copier:
    def __init__(self, model: nn.Module, tensors: Callable[[Tensor], Tensor] | None) -> None:
        self._tensors = tensors
        self._names = {id(module): name for module, name in names_of(model).items()}
        self._scripted: dict[int, Scripted] = {}
        self.made: dict[int, tuple[str, nn.Module, nn.Module]] = {}
        self.functions: list[types.FunctionType] = []  # made anew: a run may leave something on one

    def root(self, model: nn.Module) -> nn.Module:
        made = self.module(model, "")
        call = made.__dict__.get("_compiled_call_impl")
        if isinstance(call, _Call):
            call.tree = [shell for _, _, shell in self.made.values()]
        return made

    def module(self, module: nn.Module, path: str) -> nn.Module:
        while type(module).__name__ in _WRAPPERS and (inner := _wraps(module)) is not None:
            path = _join(self._names.get(id(module), path), inner)
            module = getattr(module, inner)
        if isinstance(module, torch.jit.ScriptModule):
            return self._script(module, path)
        if getattr(type(module), "has_shell", False):
            return module  # a half of another split: it runs on a shell of its own
        if id(module) in self.made:
            return self.made[id(module)][2]
        path = self._path(module, path)
        made = object.__new__(type(module))
        self.made[id(module)] = path, module, made
        held = made.__dict__
        held.update(module.__dict__)
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in _ATOMS:
                continue
            if kind is OrderedDict and not value and name not in SHARED:
                held[name] = OrderedDict()  # one of the many that are there for hooks
            elif (kind is tuple or kind is list) and _ATOMS.issuperset(map(type, value)):
                held[name] = value[:]
            else:
                held[name] = self.attribute(name, value, path)
        held["_compiled_call_impl"] = _Call(made, path, self._origin(module, made))
        return made

    def _path(self, module: nn.Module, path: str) -> str:
        """Give a module's path in the model: that of a shell's is the one it was made with, in wrappers it has not."""
        call = module.__dict__.get("_compiled_call_impl")
        return call.path if isinstance(call, _Call) else self._names.get(id(module), path)

    def _origin(self, module: nn.Module, made: nn.Module) -> nn.Module:
        """Give the module that a user knows: that of the model; of a copy with tensors of its own, the copy's."""
        call = module.__dict__.get("_compiled_call_impl")
        origin = call.origin if isinstance(call, _Call) else module
        return made if self._tensors is not None else origin

    def attribute(self, name: str, value: Any, path: str) -> Any:
        """Give what the shell of the module at `path` holds under a name."""
        if type(value) in _ATOMS:
            return value
        if name in {"_parameters", "_buffers"}:
            return value if self._tensors is None else self._own(value)
        if name in SHARED and self._tensors is None:
            return value
        if name == "_modules":
            path = f"{path}." if path else ""
            return {key: None if child is None else self._value(child, path + key) for key, child in value.items()}
        return self._value(value, _join(path, name))

    def _script(self, module: nn.Module, path: str) -> nn.Module:
        if id(module) not in self._scripted:
            self._scripted[id(module)] = made = Scripted(module)
            made.__dict__["_compiled_call_impl"] = _Call(made, self._path(module, path), module)
        return self._scripted[id(module)]

    def _own(self, named: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        assert self._tensors is not None
        return {name: tensor if tensor is None else self._tensors(tensor) for name, tensor in named.items()}

    def _value(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind in (dict, OrderedDict):
            return kind((key, self._value(item, _join(path, str(key)))) for key, item in value.items())
        if kind in (list, tuple, set):
            return kind(self._value(item, f"{path}[{at}]") for at, item in enumerate(value))
        if isinstance(value, Tensor):
            return value if self._tensors is None else self._tensors(value)
        if isinstance(value, nn.Module):
            return self.module(value, path)
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.module(value.__self__, path))
        if kind is functools.partial:
            known = [self.made.get(id(arg)) if isinstance(arg, nn.Module) else None for arg in value.args]
            args = [
                self._value(arg, f"{path}[1][{at}]") if there is None else there[2]
                for at, (arg, there) in enumerate(zip(value.args, known, strict=True))
            ]
            keywords = self._value(value.keywords, f"{path}[2]") if value.keywords else {}
            return functools.partial(self._value(value.func, f"{path}[0]"), *args, **keywords)
        if kind is types.FunctionType and value.__closure__:
            return self._function(value, path)
        if kind is defaultdict:
            return defaultdict(value.default_factory, self._value(dict(value), path))
        return value

    def _function(self, function: types.FunctionType, path: str) -> types.FunctionType:
        """Let a function that was made around the model's modules see those of the shell."""
        cells = function.__closure__ or ()
        held = [cell.cell_contents if _is_filled(cell) else None for cell in cells]
        if not any(isinstance(value, nn.Module) and id(value) in self._names for value in held):
            return function
        closure = tuple(
            types.CellType(self._value(value, path)) if isinstance(value, nn.Module) else cell
            for cell, value in zip(cells, held, strict=True)
        )
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
        )
        made.__kwdefaults__ = function.__kwdefaults__
        made.__dict__.update(function.__dict__)
        self.functions.append(made)
        return made


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False  # not assigned yet


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _wraps(module: nn.Module) -> str | None:
    """Name the attribute in which a wrapper of torch's holds its model."""
    return _WRAPPERS.get(type(module).__name__) if type(module).__module__.startswith("torch.") else None
