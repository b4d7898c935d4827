"""What an optimizer remembers, as tensors by name: for checkpoints without pickle."""

import json
from typing import Any

import torch
from torch import Tensor

from forethought.errors import FitError

_PREFIX = "optimizer."
_PLAIN = "optimizer.plain"


def optimizer_state(optimizer: torch.optim.Optimizer | None, name: str) -> dict[str, Tensor]:
    """Give the state of each parameter: tensors as they are, plain values as JSON in one tensor of bytes.

    Raises:
        FitError: it remembers something that is neither.
    """
    if optimizer is None:
        return {}
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for at, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_PREFIX}{at}.{key}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                plain[f"{at}.{key}"] = value
            else:
                raise FitError(
                    f"Cannot write a checkpoint of head {name!r}: expected its optimizer to remember tensors and "
                    f"numbers, got {key!r} of type {type(value).__name__}. Use optimizer='adamw', or no checkpoint="
                )
    return tensors | {_PLAIN: torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)}


def load_optimizer(optimizer: torch.optim.Optimizer | None, found: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave."""
    if optimizer is None:
        return
    states: dict[int, dict[str, Any]] = {}
    for name, tensor in found.items():
        if name.startswith(_PREFIX) and name != _PLAIN:
            at, _, key = name.removeprefix(_PREFIX).partition(".")
            states.setdefault(int(at), {})[key] = tensor.clone()
    for name, value in json.loads(bytes(found[_PLAIN].tolist())).items():
        at, _, key = name.partition(".")
        states.setdefault(int(at), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
