"""What a run of a model may leave behind: seen, and put back."""

import copy
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought.identifying.tensors import as_numbers
from forethought.probing.chance import Alone
from forethought.probing.generators import Elsewhere, generators_of
from forethought.splitting.held import Deep, Held, holds_the_same, tensors_of
from forethought.splitting.notes import Noted, notes_of
from forethought.splitting.shell import SHARED, modules_of, parameters_of

_COMPARED = (torch.float32, torch.int64, torch.bool)  # as they are, most of what there is
_HELD_ELSEWHERE = ("_parameters", "_modules")


class State:
    """What the modules of a shell hold beside tensors in place.

    Attributes:
        body: The shell.
    """

    def __init__(self, body: nn.Module) -> None:
        modules = modules_of(body)
        self.body = body
        self._inner = _Contents([module._modules for module in modules])
        self._held = [Held(module, _HELD_ELSEWHERE) for module in modules]
        self._deep = [Deep(module, (*_HELD_ELSEWHERE, *SHARED)) for module in modules]

    def changed(self) -> set[str]:
        """Name the attributes that are not what they were."""
        return {name for held in self._held for name in held.changed()}

    def is_left(self) -> bool:
        """Say whether the shell is as good as a new one: nothing was left anywhere on it."""
        return (
            not self._inner.are_changed() and not self.changed() and not any(deep.is_changed() for deep in self._deep)
        )

    def put_back(self, changed: set[str]) -> bool:
        """Give the modules what they held, where all that may have changed is seen; say so.

        Args:
            changed: The names of the attributes that are others now.
        """
        if not changed.isdisjoint(SHARED) or any(deep.is_changed() for deep in self._deep):
            return False
        for held in self._held:
            held.put_back()
        return True


class _Contents:
    """What dictionaries and sets held at a moment. Most of them hold nothing, which takes no copy."""

    def __init__(self, holders: Iterable[Any]) -> None:
        self._filled = [(holder, copy.copy(holder)) for holder in holders if holder]
        self._empty = [holder for holder in holders if not holder]

    def are_changed(self) -> bool:
        """Say whether one of these dictionaries holds something else now."""
        return any(self._empty) or not all(holds_the_same(now, before) for now, before in self._filled)

    def put_back(self) -> None:
        """Let them hold what they held."""
        for holder in self._empty:
            if holder:
                holder.clear()
        put_back(self._filled)


class untouched:  # noqa: N801  (a context manager, read as an adjective)
    """Put back what a trial run may write into, and every random state. Inside, chance begins anew.

    Modules share their dictionaries of buffers with the model, so these are put back, too. What is put back is what was
    there when this was made: it serves for several runs, one after the other.
    """

    def __init__(self, body: nn.Module) -> None:
        modules = modules_of(body)
        self._held = _Contents(
            [
                held
                for module in modules
                for held in (module._buffers, module._parameters, module._non_persistent_buffers_set)
            ]
        )
        self._noted = Noted(notes_of(modules))
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors_of(modules).values()]
        self._generators = [own for _, own in generators_of(("", module) for module in modules)]
        self.elsewhere = Elsewhere(self._generators)
        self._devices = sorted({p.device.index or 0 for p in parameters_of(body) if p.device.type == "cuda"})

    def __enter__(self) -> None:
        self._alone = Alone()
        self._alone.__enter__()
        self._states, self._own = self.elsewhere.states(), [own.state() for own in self._generators]
        self._random = torch.random.fork_rng(self._devices)
        self._random.__enter__()
        torch.default_generator.manual_seed(0)
        for device in self._devices:
            torch.cuda.default_generators[device].manual_seed(0)
        random.seed(0)
        np.random.seed(0)

    def __exit__(self, *error: Any) -> None:
        self.elsewhere.put_back(self._states)
        for own, state in zip(self._generators, self._own, strict=True):
            own.put_back(state)
        self._random.__exit__(*error)
        self._alone.__exit__()
        self._held.put_back()
        self._noted.put_back()
        with torch.no_grad():
            for tensor, was in self._tensors:
                if not is_same(tensor, was):
                    tensor.copy_(was)


class kept:  # noqa: N801  (a context manager, read as an adjective)
    """Put tensors, and the buffers of modules, back: both halves run what is constant, only the head's is to stay.

    Args:
        tensors: Put back to the numbers that they hold.
        modules: Given the buffers back that they hold.
        notes: Plain objects, given back what they hold.
    """

    def __init__(
        self, tensors: Sequence[Tensor] = (), modules: Sequence[nn.Module] = (), notes: Sequence[Any] = ()
    ) -> None:
        self._noted = Noted(notes)
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._held = [(held, copy.copy(held)) for m in modules for held in (m._buffers, m._non_persistent_buffers_set)]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        put_back(self._held)
        self._noted.put_back()
        with torch.no_grad():
            for tensor, before in self._tensors:
                tensor.copy_(before)


def put_back(held: Iterable[tuple[Any, Any]]) -> None:
    """Let dictionaries and sets hold what they held, each given with a copy from before."""
    for now, before in held:
        is_changed = now != before if isinstance(now, set) else not holds_the_same(now, before)
        if is_changed:
            now.clear()
            now.update(before)


def is_same(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors, not-a-number equal to itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype in _COMPARED and a.layout is b.layout is torch.strided and torch.equal(a, b):
        return True
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return a.layout is b.layout and is_same(a.to_dense(), b.to_dense())
    a, b = as_numbers(a), as_numbers(b)
    return torch.equal(a, b) or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def all_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Compare as many tensors with as many others."""
    return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True))
