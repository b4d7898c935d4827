"""Whether a run draws random numbers: rare or small effects need not show in a few rows, but drawing does."""

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from forethought import nesting
from forethought.dispatch import DispatchMode

_WITHOUT = {type(None), bool, int, float, str, tuple, torch.Tensor}
_CONTAINERS = {dict, OrderedDict, list, set}
_NO_ATTRIBUTES = {"_parameters", "_modules", "_buffers", "_compiled_call_impl"}
_RUNS_TO_BLAME = 8  # in each of which a generator moved, for it to be the run's doing
# Generators that a module may hold for itself.
_OWN = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def random_states(model: nn.Module) -> dict[str, Any]:
    """Read every generator that a model may draw from, by name."""
    cuda = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    held = generators_of(model.named_modules())
    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        **{f"that of cuda:{index}": torch.cuda.get_rng_state(index).numpy().tobytes() for index in sorted(cuda)},
        "Python's random": random.getstate(),
        "numpy.random": _plain(np.random.get_state()),
        **{f"{name} ({at})": _plain(own.state()) for at, (name, own) in enumerate(held)},
    }


@dataclass(frozen=True)
class Own:
    """A generator that a module holds for itself."""

    generator: Any

    def state(self) -> Any:
        """Give all that it holds. Undone by `put_back`."""
        if isinstance(self.generator, torch.Generator):
            return self.generator.get_state()
        if isinstance(self.generator, random.Random):
            return self.generator.getstate()
        if isinstance(self.generator, np.random.RandomState):
            return self.generator.get_state(legacy=False)
        return self.generator.bit_generator.state

    def put_back(self, state: Any) -> None:
        """Make it go on from there."""
        if isinstance(self.generator, torch.Generator):
            self.generator.set_state(state)
        elif isinstance(self.generator, random.Random):
            self.generator.setstate(state)
        elif isinstance(self.generator, np.random.RandomState):
            self.generator.set_state(state)
        else:
            self.generator.bit_generator.state = state


def generators_of(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, Own]]:
    """List the generators that modules hold in their attributes, or in what these hold, each with a name."""
    found: dict[int, tuple[str, Own]] = {}
    for path, module in modules:
        for name, value in vars(module).items():
            if type(value) in _WITHOUT or name in _NO_ATTRIBUTES or (type(value) in _CONTAINERS and not value):
                continue
            for generator in nesting.tensors(value, _OWN):
                if not isinstance(generator, random.SystemRandom):
                    text = f"the generator '{f'{path}.' if path else ''}{name}'"
                    found.setdefault(id(generator), (text, Own(generator)))
    return list(found.values())


def _plain(state: Any) -> str:
    """Write a state out, to be compared."""
    with np.printoptions(threshold=sys.maxsize):
        return repr(state.tolist() if isinstance(state, torch.Tensor) else state)


def drawn_by(model: nn.Module, run: Callable[[], object], before: dict[str, Any]) -> str:
    """Name the kernel that drew random numbers in a run, or the generator that moved; nothing if none did.

    Generators belong to the process, so another thread may have moved them (a DataLoader draws a seed at each start).
    What draws does so in every run on one batch: if a run leaves them as they were, it was somebody else.

    Args:
        model: Whose generators to look at.
        run: Runs it once more.
        before: The states before it ran for the first time.
    """
    moved: list[str] = []
    for _ in range(_RUNS_TO_BLAME):
        now = random_states(model)
        moved = [name for name in now if now[name] != before.get(name)]
        if not moved:
            return ""
        before = now
        with Drawing() as drawing:
            run()
        if drawing.seen:
            return str(drawing.seen[0])
    return f"{moved[0].partition(' (')[0]}, in every run" if random_states(model) != before else ""


class Drawing(DispatchMode):
    """Sees the kernels that draw random numbers in this thread, scripted and compiled ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_switched_off(func, args, kwargs or {}):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def _is_switched_off(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Say whether a kernel that may drop values, as attention does, was told to drop none."""
    told = {argument.name: argument.default_value for argument in func._schema.arguments}
    told |= dict(zip(told, args, strict=False)) | kwargs
    drops = told.get("dropout_p", told.get("dropout", 1.0))
    return drops == 0 or told.get("train", told.get("training", True)) is False
