"""Whether a run draws random numbers: rare or small effects need not show in a few rows, but drawing does."""

import functools
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from forethought import nesting
from forethought.errors import ReplayDriftError
from forethought.freezing import MARK
from forethought.probing.dispatch import DispatchMode

_WITHOUT = {type(None), bool, int, float, str, tuple, torch.Tensor, MARK}
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
    seen: set[int] = set()  # modules share settings, which are large
    for path, module in modules:
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _WITHOUT or name in _NO_ATTRIBUTES or (kind in _CONTAINERS and not value) or id(value) in seen:
                continue
            if kind is functools.partial and not value.__dict__:
                continue  # of what `freeze` has left; it shows no generator
            seen.add(id(value))
            for generator in nesting.tensors(value, _OWN):
                if not isinstance(generator, random.SystemRandom):
                    text = f"the generator '{f'{path}.' if path else ''}{name}'"
                    found.setdefault(id(generator), (text, Own(generator)))
    return list(found.values())


class Elsewhere:
    """The generators outside torch that a model's Python may draw from: Python's, numpy's, and its modules' own."""

    def __init__(self, generators: Iterable[Own]) -> None:
        self._own = [own for own in generators if not isinstance(own.generator, torch.Generator)]

    def states(self) -> tuple[Any, Any, list[Any]]:
        """Give all that they hold. Undone by `put_back`."""
        return random.getstate(), np.random.get_state(), [own.state() for own in self._own]

    def put_back(self, states: tuple[Any, Any, list[Any]]) -> None:
        """Make them go on from there."""
        random.setstate(states[0])
        np.random.set_state(states[1])
        for own, state in zip(self._own, states[2], strict=True):
            own.put_back(state)

    def told(self) -> Any:
        """Give what tells one state of them from another."""
        numpys: Any = np.random.get_state()
        name, numbers, *rest = numpys
        return random.getstate(), name, numbers.tobytes(), rest, [_plain(own.state()) for own in self._own]


class Redraws:
    """Where Python drew in code that both halves run, the head is to draw what the trunk drew: from where it began."""

    def __init__(self) -> None:
        self._before: WeakIdKeyDictionary = WeakIdKeyDictionary()  # the trunk's first tensor -> states, and if used

    def note(self, values: tuple[torch.Tensor, ...], states: Any) -> None:
        """Note the states from which the trunk made these values."""
        self._before[values[0]] = [states, False]

    @contextmanager
    def again(self, values: tuple[torch.Tensor, ...], body: nn.Module) -> Iterator[None]:
        """Draw the same again inside. The first time, chance goes on from there, as it does after the whole model.

        Raises:
            ReplayDriftError: the trunk did not give these values.
        """
        noted = self._before.get(values[0])
        if noted is None:
            raise ReplayDriftError(
                "Cannot run the head: expected the very values that split.trunk(...) gave, since the frozen part draws "
                "random numbers in Python (random, numpy) and the head has to draw the same, got others. Call "
                "model.eval(), or give the head what the trunk gave."
            )
        elsewhere = Elsewhere(own for _, own in generators_of(body.named_modules()))
        now, (states, is_used) = elsewhere.states(), noted
        elsewhere.put_back(states)
        try:
            yield
        finally:
            noted[1] = True
            if is_used:
                elsewhere.put_back(now)


def drawn_in_turns(model: nn.Module) -> ReplayDriftError:
    """Say that Python draws some numbers where both halves run and others where one does."""
    return ReplayDriftError(
        f"Cannot split {type(model).__name__}: expected each random number to be drawn in one half, got some that "
        "Python (random, numpy, a generator of a module) draws in frozen modules and others between them. Call "
        "model.eval(), or ft.freeze(model, until=...)"
    )


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
