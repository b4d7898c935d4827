"""Parts of a model, chosen by path or by order."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from forethought.errors import SplitError
from forethought.order import Step

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


@dataclass
class Part:
    """A part of a model: modules with all that is below them, and parameters that other modules hold themselves."""

    modules: list[nn.Module]
    parameters: list[tuple[nn.Module, str]] = field(default_factory=list)

    def size(self) -> int:
        """How many numbers its parameters hold."""
        held = {id(p): p for module in self.modules for p in module.parameters()}
        held |= {id(p): p for p in (own_parameters(module)[name] for module, name in self.parameters)}
        return sum(parameter.numel() for parameter in held.values())


def part_until(model: nn.Module, steps: list[Step], last: nn.Module) -> Part | None:
    """Choose what begins before a module first ends, and what the modules around it hold and have read by then."""
    end = next((at for at, (kind, what) in enumerate(steps) if kind == "end" and what is last), None)
    if end is None:
        return None
    begun = {id(what): what for kind, what in steps[:end] if kind == "begin"}
    read = {id(what) for kind, what in steps[:end] if kind == "read"}
    around = [module for module in model.modules() if module is not last and _holds(module, last)]
    for module in around:
        begun.pop(id(module), None)
    parameters = [(module, name) for module in around for name, p in own_parameters(module).items() if id(p) in read]
    return Part(list(begun.values()), parameters)


def part_of_size(model: nn.Module, steps: list[Step], most: float) -> Part:
    """Choose the largest part up to the end of some module that holds no more numbers than `most`."""
    ends = list({id(what): what for kind, what in steps if kind == "end" and what is not model}.values())
    best, low, high = Part([]), 0, len(ends)
    while low < high:  # what ends later holds no less
        middle = (low + high) // 2
        part = part_until(model, steps, ends[middle])
        if part is not None and part.size() <= most:
            best, low = part, middle + 1
        else:
            high = middle
    return best


def part_below(paths: "Paths", chosen: list[str]) -> Part:
    """Choose modules, with all that is below them, and parameters."""
    part = Part([])
    for path in chosen:
        found = paths.find(path)
        if isinstance(found, nn.Module):
            part.modules.append(found)
        else:
            part.parameters.append(found)
    return part


def part_around(paths: "Paths", kept: list[str]) -> Part:
    """Choose everything but some modules, with all that is below them, and some parameters."""
    rest = part_below(paths, kept)
    own = {id(inner) for module in rest.modules for inner in module.modules()}
    inside = own | {id(module) for module, _ in rest.parameters}
    part = Part([])
    for module in paths.model.modules():
        if id(module) in own:
            continue
        if any(id(inner) in inside for inner in module.modules()):
            named = [(module, name) for name in own_parameters(module)]
            part.parameters += [one for one in named if one not in rest.parameters]
        elif not any(_holds(above, module) for above in part.modules):
            part.modules.append(module)
    _check_unshared(paths, part, rest, kept)
    return part


def _check_unshared(paths: "Paths", part: Part, rest: Part, kept: list[str]) -> None:
    names = dict(paths.parameters())
    trains = {id(p) for module in rest.modules for p in module.parameters()}
    trains |= {id(own_parameters(module)[name]) for module, name in rest.parameters}
    frozen = {id(p) for module in part.modules for p in module.parameters()}
    frozen |= {id(own_parameters(module)[name]) for module, name in part.parameters}
    shared = [path for path, p in names.items() if id(p) in trains & frozen]
    if shared:
        raise SplitError(
            f"Cannot freeze all but {kept}: expected parameters of its own there, got one that lies on both sides, "
            f"{shared}. Name the other side too, or give one of them a copy: "
            "module.weight = torch.nn.Parameter(module.weight.detach().clone())"
        )


class Paths:
    """The paths of a model's modules and parameters, as torch writes them and without what wrappers add to them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._short = {"": ""}  # a path as torch writes it -> without what wrappers add
        self._modules = {"": model}
        for path, module in model.named_modules(remove_duplicate=False):
            if path:
                above, _, key = path.rpartition(".")
                is_added = _WRAPPERS.get(type(self._modules[above]).__name__) == key
                self._short[path] = self._short[above] if is_added else _join(self._short[above], key)
                self._modules[path] = module

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Give every parameter by short path, a shared one under each of its paths."""
        for path, short in self._short.items():
            for name, parameter in own_parameters(self._modules[path]).items():
                yield _join(short, name), parameter

    def find(self, path: str) -> nn.Module | tuple[nn.Module, str]:
        """Find a module, or a parameter by its module and name."""
        for place, module in self._places(path):
            if place == "":
                return module
            if place in own_parameters(module):
                return module, place
        raise self._unknown(path, [name for name, _ in self.parameters()])

    def module(self, path: str) -> nn.Module:
        """Find a module."""
        for place, module in self._places(path):
            if place == "":
                return module
        raise self._unknown(path, [])

    def _places(self, path: str) -> Iterator[tuple[str, nn.Module]]:
        """Give the modules that a path may mean, then those above its last name, with that name."""
        path = path.removesuffix(".")
        written = [key for key in path.split(".") if key not in _WRAPPERS.values()]
        for wanted in (path, ".".join(written)):
            above, _, name = wanted.rpartition(".")
            for last, end in ((wanted, ""), (above, name)):
                yield from ((end, self._modules[full]) for full in self._short if full == last)
                yield from ((end, self._modules[full]) for full, short in self._short.items() if short == last)

    def _unknown(self, path: str, parameters: list[str]) -> SplitError:
        known = [name for name in dict.fromkeys(self._short.values()) if name] + parameters
        kind = "a module or a parameter" if parameters else "a module"
        return SplitError(
            f"Cannot find '{path}' in {type(self.model).__name__}: expected the path of {kind}, got one that is not "
            f"there. Use one of those that are, such as {difflib.get_close_matches(path, known) or known[:6]}"
        )


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name the parameters that a module holds itself."""
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _holds(module: nn.Module, inner: nn.Module) -> bool:
    return any(one is inner for one in module.modules())


def _join(above: str, name: str) -> str:
    return f"{above}.{name}" if above else name
