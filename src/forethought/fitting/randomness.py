"""Random numbers of one's own: PyTorch's generators on the CPU and, where used, on one CUDA device."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor


class RandomStream:
    """One head's random numbers. Inside `with`, torch draws from here; outside, nothing has been drawn."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self.state = [torch.Generator(where).manual_seed(seed).get_state() for where in _places(device)]
        self._ambient: list[Tensor] = []

    def __enter__(self) -> None:
        self._ambient = _read(self._device)
        _write(self._device, self.state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state = _read(self._device)
        _write(self._device, self._ambient)


@contextmanager
def random_state_kept(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU generator inside, for batches that draw from it, and leave everything as it was found."""
    before = _read(device)
    # Not torch.manual_seed: it would also queue a seed for CUDA devices that this fit does not use.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        _write(device, before)


def _places(device: torch.device) -> list[torch.device]:
    return [torch.device("cpu"), *([device] if device.type == "cuda" else [])]


def _read(device: torch.device) -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def _write(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
