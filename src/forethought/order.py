"""In which order a model's modules begin and end: as they run on an example, or as they were registered."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from forethought import nesting

Step = tuple[Literal["begin", "read", "end"], Any]
"""A module begins or ends, or a parameter is read."""


def registered(model: nn.Module) -> list[Step]:
    """List the steps of a model as if each module first read its own parameters, then called its children in order."""
    steps: list[Step] = []
    seen: set[int] = set()

    def visit(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        steps.append(("begin", module))
        steps.extend(("read", parameter) for parameter in module.parameters(recurse=False))
        for child in module.children():
            visit(child)
        steps.append(("end", module))

    visit(model)
    return steps


def executed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Step]:
    """List the steps of a model as it runs on an example, in evaluation mode. Modes and random states are put back."""
    steps: list[Step] = []
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(lambda called, _: steps.append(("begin", called))))
            handles.append(module.register_forward_hook(lambda called, *_: steps.append(("end", called))))
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        for module, _ in modes:
            module.training = False
        args, kwargs = nesting.replace((args, kwargs), torch.clone)
        with torch.random.fork_rng(devices), torch.no_grad(), _eagerly(), _Reads(steps):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return steps


class _Reads(TorchFunctionMode):
    """Notes every parameter that an operation reads."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self._steps = steps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one operation."""
        self._steps += [("read", parameter) for parameter in nesting.tensors((args, kwargs or {}), nn.Parameter)]
        return func(*args, **(kwargs or {}))


def _eagerly() -> AbstractContextManager[Any]:
    """Run compiled functions as they are written. Where nothing compiles, this costs nothing."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
