"""Where a model is cut: eight ways to say which of its parameters train.

Layers are taken in the order in which a trial run executes them. A layer is a module that the forward calls and that
holds parameters with no called module beneath it that holds any; a parameter that a larger module reads itself (a
class token, a scale) is a layer of its own, and is called loose.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class CutImpossibleError(Exception):
    """The model has no place for this cut; the message says why."""


@dataclass(frozen=True)
class Layer:
    """Parameters that one place of the forward reads.

    Attributes:
        name: Path of the module, or of a loose parameter.
        parameters: Their names in the model.
        start: When the first of them is read.
        is_loose: A parameter that a module with layers inside it reads itself.
    """

    name: str
    parameters: tuple[str, ...]
    start: int
    is_loose: bool


@dataclass(frozen=True)
class Execution:
    """What one run of a model's forward did, in order.

    Attributes:
        layers: By the moment that their first parameter was read.
        begins: Path of a module -> when its first call began.
        ends: Path of a module -> when its last call ended.
    """

    layers: list[Layer]
    begins: dict[str, int]
    ends: dict[str, int]

    def inside(self, path: str) -> list[Layer]:
        """List the layers in a module."""
        return [layer for layer in self.layers if layer.name == path or layer.name.startswith(f"{path}.")]

    def after(self, start: int) -> list[Layer]:
        """List the layers from a moment on."""
        return [layer for layer in self.layers if layer.start >= start]


class _Clock(TorchFunctionMode):
    """Counts module calls and operations, and notes when each parameter is read first."""

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()
        self.now = 0
        self.reads: dict[str, int] = {}
        self._parameters = parameters

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one operation. Attributes such as `dtype` are no reads, nor is the care of weights without gradients."""
        self.now += 1
        if getattr(func, "__name__", "") != "__get__" and torch.is_grad_enabled():
            self._note([*args, *(kwargs or {}).values()])
        return func(*args, **(kwargs or {}))

    def _note(self, values: Any) -> None:
        for value in values:
            if isinstance(value, Tensor) and id(value) in self._parameters:
                self.reads.setdefault(self._parameters[id(value)], self.now)
            elif isinstance(value, list | tuple):
                self._note(value)


def execute(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Execution:
    """Run a model once and tell its layers in the order of execution."""
    clock = _Clock({id(parameter): name for name, parameter in model.named_parameters()})
    begins: dict[str, int] = {}
    ends: dict[str, int] = {}

    def begin(name: str) -> None:
        clock.now += 1
        begins.setdefault(name, clock.now)

    def end(name: str) -> None:
        clock.now += 1
        ends[name] = clock.now

    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: begin(name)))
            handles.append(module.register_forward_hook(lambda *_, name=name: end(name)))
    try:
        with clock:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return Execution(_layers(model, clock.reads, begins), begins, ends)


def _layers(model: nn.Module, reads: dict[str, int], begins: dict[str, int]) -> list[Layer]:
    owners: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        holder = name.rpartition(".")[0]
        if not parameter.is_floating_point() or (name not in reads and holder not in begins):
            continue  # the forward never came there
        while holder and holder not in begins:
            holder = holder.rpartition(".")[0]
        owners.setdefault(holder, []).append(name)
    layers = []
    for owner, names in owners.items():
        is_loose = any(other != owner and (not owner or other.startswith(f"{owner}.")) for other in owners)
        for group in [[name] for name in names] if is_loose else [names]:
            start = min(reads.get(name, begins[owner]) for name in group)
            layers.append(Layer(group[0] if is_loose else owner, tuple(group), start, is_loose))
    return sorted(layers, key=lambda layer: layer.start)


# The cuts -------------------------------------------------------------------------------------------------------------


def _classifier(model: nn.Module, run: Execution) -> list[str]:
    return _names(_some(run, 2)[-1:])


def _block(model: nn.Module, run: Execution) -> list[str]:
    first = run.inside(_blocks(run)[-1])[0]
    if first is run.layers[0]:
        raise CutImpossibleError("the last block is the whole model")
    return _names(run.after(first.start))


def _few(model: nn.Module, run: Execution) -> list[str]:
    layers = [layer for layer in _some(run, 2) if not layer.is_loose]
    return _names(layers[1:][-4:])


def _middle(model: nn.Module, run: Execution) -> list[str]:
    layers = _some(run, 2)
    frozen = set(_names(layers[: len(layers) // 2]))
    return [name for name, p in model.named_parameters() if name not in frozen and p.is_floating_point()]


def _inside(model: nn.Module, run: Execution) -> list[str]:
    blocks = _blocks(run)
    block = run.inside(blocks[len(blocks) * 2 // 3])
    chosen, last = block[len(block) // 2], block[-1]
    if chosen is run.layers[0]:
        raise CutImpossibleError("nothing comes before the layer inside a block")
    return _names([chosen, *(layer for layer in run.after(last.start) if layer is not last)])


def _island(model: nn.Module, run: Execution) -> list[str]:
    layers = _some(run, 3)
    return _names([layers[len(layers) // 2]])


def _adapter(model: nn.Module, run: Execution) -> list[str]:
    path, base = _last_linear(model, run)
    _put(model, path, adapter := Adapter(base))
    return [f"{path}.{name}" for name, _ in adapter.named_parameters() if not name.startswith("base.")]


def _parameter(model: nn.Module, run: Execution) -> list[str]:
    loose = [layer for layer in run.layers if layer.is_loose]
    if loose and loose[-1] is not run.layers[0]:
        return _names(loose[-1:])
    path, base = _last_linear(model, run)
    _put(model, path, Scaled(base))
    return [f"{path}.scale"]


CUTS: dict[str, Callable[[nn.Module, Execution], list[str]]] = {
    "classifier": _classifier,  # the last layer
    "block": _block,  # the last block, and what follows it
    "few": _few,  # the last four layers
    "middle": _middle,  # the second half
    "inside": _inside,  # one layer inside a block, and everything after that block
    "adapter": _adapter,  # a low-rank path beside one layer of the last block
    "island": _island,  # one layer in the middle, with frozen ones after it
    "parameter": _parameter,  # one parameter that a forward reads itself
}


def cut(model: nn.Module, kind: str, run: Execution) -> list[str]:
    """Let the parameters of one cut train and freeze all others; put an adapter in where the cut asks for one.

    Args:
        model: Changed in place.
        kind: A key of `CUTS`.
        run: What `execute` told of this model, or of a copy of it.

    Returns:
        The names of the parameters that train.

    Raises:
        CutImpossibleError: the model has no place for this cut.
    """
    chosen = set(CUTS[kind](model, run))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return sorted(chosen)


class Adapter(nn.Module):
    """A low-rank path that trains, beside a frozen layer. What else is asked of the layer, the layer answers."""

    def __init__(self, base: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        kind = type(base)
        if len(base.weight.shape) == 2:
            outs, ins = base.weight.shape if kind is nn.Linear else base.weight.shape[::-1]
            self.down: nn.Module = nn.Linear(ins, rank, bias=False)
            self.up: nn.Module = nn.Linear(rank, outs, bias=False)
        else:
            place = (base.kernel_size, base.stride, base.padding, base.dilation)
            self.down = kind(base.in_channels, rank, *place, bias=False, padding_mode=base.padding_mode)
            self.up = kind(rank, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) as the base layer's."""
        return self.base(x) + self.up(self.down(x))

    def __getattr__(self, name: str) -> Any:
        """Ask the layer for what this module does not have: parents read `weight`, `in_features`."""
        return _asked(self, name)


class Scaled(nn.Module):
    """A layer times one parameter that trains."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.tensor(1.25))

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) as the base layer's."""
        return self.base(x) * self.scale

    def __getattr__(self, name: str) -> Any:
        """Ask the layer for what this module does not have."""
        return _asked(self, name)


def _asked(module: nn.Module, name: str) -> Any:
    try:
        return nn.Module.__getattr__(module, name)
    except AttributeError:
        if name == "base":
            raise
        return getattr(module.base, name)


def _names(layers: list[Layer]) -> list[str]:
    return [name for layer in layers for name in layer.parameters]


def _some(run: Execution, least: int) -> list[Layer]:
    if len(run.layers) < least:
        raise CutImpossibleError(f"the forward reads {len(run.layers)} layer(s), and the cut needs {least}")
    return run.layers


def _blocks(run: Execution) -> list[str]:
    """List the repeated parts of a model in order of execution: numbered modules, or else any that hold layers."""
    numbered = [path for path in run.begins if path.rpartition(".")[2].isdigit()]
    for paths, least in ((numbered, 3), (numbered, 2), ([path for path in run.begins if path], 2)):
        found = [path for path in paths if len(run.inside(path)) >= least]
        if found:
            return sorted(found, key=run.begins.__getitem__)
    raise CutImpossibleError("no module holds several layers")


def _last_linear(model: nn.Module, run: Execution) -> tuple[str, nn.Module]:
    """Find the last plain Linear or convolution of the last block, or of the model if that has none."""
    for layers in (run.inside(_blocks(run)[-1]), run.layers):
        for layer in reversed(layers):
            module = None if layer.is_loose else model.get_submodule(layer.name)
            if _is_linear(module) and layer is not run.layers[0]:
                return layer.name, module
    raise CutImpossibleError("no Linear or convolution that the forward calls")


def _is_linear(module: nn.Module | None) -> bool:
    """Say whether this is a plain matrix or convolution; GPT-2's `Conv1D` is a matrix the other way round."""
    is_turned = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return is_turned or type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
