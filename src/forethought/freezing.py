"""`freeze`: make the first part of a model frozen in every sense, and keep it so."""

import types
from typing import Any

import torch
from torch import nn

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
        args: Example inputs. Given, the order is that in which modules run; otherwise the order in which they were
            registered, which for most models is the same.
        kwargs: Example keyword arguments.

    Returns:
        The model.

    Raises:
        SplitError: no module has this path.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> model = freeze(model, until="1").train()
        >>> [module.training for module in model]
        [False, False, True]
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['2.weight', '2.bias']
    """
    names = dict(model.named_modules())
    if until is not None and until not in names:
        known = [name for name in names if name][:6]
        raise SplitError(
            f"Cannot freeze until '{until}': expected the path of a module, got one that is not there. "
            f"Some that are: {known}"
        )
    order = _executed(model, args, kwargs) if args is not None or kwargs else list(names)
    for name in order if until is None else _up_to(order, until):
        _pin(names[name])
    if until is None:
        _pin(model)
    return model


def _up_to(order: list[str], until: str) -> list[str]:
    """Take what comes before, what is inside, and the module itself, but no module that contains it."""
    last = max(at for at, name in enumerate(order) if name == until or name.startswith(f"{until}."))
    return [name for name in order[: last + 1] if name and not until.startswith(f"{name}.")]


def _executed(model: nn.Module, args: Any, kwargs: dict[str, Any] | None) -> list[str]:
    """List modules in the order in which they begin to run."""
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
    ]
    was = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            args, kwargs = nesting.replace((args if isinstance(args, tuple) else (args,), kwargs or {}), torch.clone)
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was:
            module.training = training
    return list(dict.fromkeys(order))


def _pin(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.eval()
    for inner in module.modules():
        inner.__dict__["train"] = types.MethodType(_stay, inner)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for `train` on a frozen module."""
    return module
