"""Where a model and its inputs lie, and whether it runs on them: what cannot is refused by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from forethought import nesting
from forethought.errors import ForethoughtError, SplitError
from forethought.splitting.inputs import refused
from forethought.splitting.shell import names_of

_NAMED = 3
_SHARDED = {"DTensor", "FSDPModule", "FullyShardedDataParallel"}


@contextmanager
def placed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Name what lies where, if a model cannot be run because of it, or what it was given.

    Raises:
        InputError: the model does not run on these inputs.
        SplitError: weights or inputs have no values (lazy, or on the meta device), or are on devices that do not meet.
    """
    held = _held(model)
    if any(map(is_lazy, held)):
        lazy = [name for name, each in (*model.named_parameters(), *model.named_buffers()) if is_lazy(each)]
        raise SplitError(
            f"Cannot split {type(model).__name__}: expected weights of known shapes, got '{lazy[0]}' of a lazy module "
            "that has not run yet. Run the model once, then freeze and split it: model(x)"
        )
    if any(tensor.is_meta for tensor in (*held, *nesting.tensors((args, kwargs)))):
        where = _devices(model, args, kwargs)
        raise SplitError(
            f"Cannot split {type(model).__name__}: expected weights and inputs with values, got "
            f"{_said(where, [torch.device('meta')])}. Load them first: model.to_empty(device='cpu'), "
            "model.load_state_dict(weights)"
        )
    try:
        yield
    except ForethoughtError:
        raise
    except RuntimeError as err:
        where = _devices(model, args, kwargs)
        if len(where) < 2 or "device" not in str(err):
            raise refused(model, nesting.tensors((args, kwargs)), err)  # noqa: B904  (it says what it comes from)
        home = next(iter(where))
        raise SplitError(
            f"Cannot run {type(model).__name__}: expected it to bring what it joins to one device, got "
            f"{_said(where, list(where))}: {str(err).splitlines()[0]}. Put all on one: model.to('{home}')"
        ) from err


def check_in_one_piece(model: nn.Module) -> None:
    """Refuse a model of which this process holds parts: what torch keeps of the others is no memory to look at.

    Raises:
        SplitError: weights are sharded over processes.
    """
    sharded = [name for name, tensor in model.named_parameters() if _is_sharded(type(tensor))]
    sharded += [name or "the model" for name, module in model.named_modules() if _is_sharded(type(module))]
    if sharded:
        raise SplitError(
            f"Cannot split {type(model).__name__}: expected each weight whole in this process, got '{sharded[0]}' "
            "sharded over processes (fully_shard, FullyShardedDataParallel, tensor parallelism). Split it before it is "
            "sharded, and train the head replicated: torch.nn.parallel.DistributedDataParallel(split.head)"
        )


def _is_sharded(kind: type) -> bool:
    return any(each.__name__ in _SHARDED and each.__module__.startswith("torch.distributed") for each in kind.__mro__)


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Tell the device and the type of a model by its first parameter that has a point."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


def moved_along(tensor: Tensor, home: tuple[torch.device, torch.dtype], model: nn.Module) -> Tensor:
    """Let an example follow its model to another device or dtype."""
    now = home_of(model)
    return tensor.to(now[0] if tensor.device == home[0] else None, now[1] if tensor.dtype == home[1] else None)


def devices_of(model: nn.Module) -> set[torch.device]:
    """Give the devices that a model's parameters and buffers lie on."""
    return {tensor.device for tensor in _held(model)}


def _held(model: nn.Module) -> list[Tensor]:
    """List parameters and buffers."""
    held = [each for module in names_of(model) for each in (*module._parameters.values(), *module._buffers.values())]
    return [tensor for tensor in held if tensor is not None]


def _devices(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[torch.device, list[str]]:
    found: dict[torch.device, list[str]] = {}
    inputs = ((f"input {at}", tensor) for at, tensor in enumerate(nesting.tensors((args, kwargs))))
    named: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers(), *inputs]
    for name, tensor in named:
        found.setdefault(tensor.device, []).append(name)
    return found


def _said(where: dict[torch.device, list[str]], which: list[torch.device]) -> str:
    parts = []
    for device in which:
        names = where[device]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        parts.append(", ".join(f"'{name}'" for name in names[:_NAMED]) + f"{more} on {device}")
    return "; ".join(parts)
