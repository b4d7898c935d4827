"""`freeze`: make the first part of a model frozen in every sense, and keep it so."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from forethought import nesting
from forethought.errors import SplitError


def freeze(
    model: nn.Module, until: str | None = None, *, args: Any = None, kwargs: dict[str, Any] | None = None
) -> nn.Module:
    """Freeze a model up to and including a module, in order of execution.

    Their parameters stop training, and they stay in evaluation mode: `model.train()` does not undo it.

    Args:
        model: The model, changed in place.
        until: Path of the last module to freeze; None freezes everything.
        args: Example inputs. Given, the model runs once and the order is that of execution. Without them it is the
            order in which modules were registered, the same for most models, and parameters that the modules around
            `until` hold themselves (a class token, positions) are taken to come before it.
        kwargs: Example keyword arguments.

    Returns:
        The model.

    Raises:
        SplitError: no module has this path, or the forward does not call it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> model = freeze(model, until="1").train()
        >>> [module.training for module in model]
        [False, False, True]
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['2.weight', '2.bias']
    """
    names = dict(model.named_modules())
    if until is None or until == "":
        _pin(model)
        return model
    if until not in names:
        known = [name for name in names if name][:6]
        raise SplitError(
            f"Cannot freeze until '{until}': expected the path of a module, got one that is not there. "
            f"Some that are: {known}"
        )
    if args is not None or kwargs:
        order, used = _executed(model, until, args if isinstance(args, tuple) else (args,), kwargs or {})
    else:
        order, used = _registered(list(names), until), None
    for name in order:
        if not until.startswith(f"{name}."):
            _pin(names[name])
    for parameter in _around(names, until):
        if used is None or id(parameter) in used:
            parameter.requires_grad_(False)
    return model


def _registered(names: list[str], until: str) -> list[str]:
    """List the modules registered up to `until` and what is inside it."""
    last = max(at for at, name in enumerate(names) if name == until or name.startswith(f"{until}."))
    return [name for name in names[: last + 1] if name]


def _around(names: dict[str, nn.Module], until: str) -> Iterator[nn.Parameter]:
    """Give the parameters that the modules around `until` hold themselves."""
    for name, module in names.items():
        if name == "" or until.startswith(f"{name}."):
            yield from module.parameters(recurse=False)


class _Used(TorchFunctionMode):
    """Notes every parameter that an operation reads, until told that enough was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: set[int] = set()
        self.modules: list[str] = []
        self.is_open = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one operation."""
        if self.is_open:
            found = nesting.tensors((args, kwargs or {}), nn.Parameter)
            self.parameters |= {id(parameter) for parameter in found}
        return func(*args, **(kwargs or {}))


def _executed(
    model: nn.Module, until: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[str], set[int]]:
    """List the modules that begin to run before `until` ends, and the parameters read by then."""
    used = _Used()
    before = [(module, module.training) for module in model.modules()]

    def begin(name: str) -> None:
        if used.is_open:
            used.modules.append(name)

    def end() -> None:
        used.is_open = False

    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: begin(name)) for name, module in model.named_modules()
    ]
    handles.append(model.get_submodule(until).register_forward_hook(lambda *_: end()))
    try:
        model.eval()
        args, kwargs = nesting.replace((args, kwargs), torch.clone)
        with torch.no_grad(), used:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in before:
            module.training = training
    if used.is_open:
        raise SplitError(f"Cannot freeze until '{until}': expected a module that the forward calls, got another one.")
    return [name for name in dict.fromkeys(used.modules) if name], used.parameters


def _pin(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.eval()
    for inner in module.modules():
        inner.__dict__["train"] = functools.partial(_stay, inner)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for `train` on a frozen module."""
    return module
