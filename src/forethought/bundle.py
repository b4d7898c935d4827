"""What a saved model's file holds beside its shape: states of heads, arguments as JSON, and each tensor once.

Whatever is read here was written by somebody else: it is checked, and nothing of it is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import BundleError
from forethought.splitting.halves import Head
from forethought.splitting.recording import Position


def tensors_of(name: str, head: nn.Module) -> dict[str, Tensor]:
    """List all tensors of a head as they are named in the file: its `state_dict`, and the buffers that it leaves out.

    Raises:
        BundleError: it keeps a state that is no tensor.
    """
    module = _module_of(head)
    state = module.state_dict(keep_vars=True)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise BundleError(
                f"Cannot save head '{name}': expected tensors in its state_dict, got a {type(value).__name__} as "
                f"'{key}', which a file without code cannot hold. Keep it in a buffer, or as an argument of the class."
            )
    others = {key: tensor for key, tensor in _buffers_of(module).items() if key not in state}
    return {f"heads.{name}.{key}": t for key, t in state.items()} | {
        f"buffers.{name}.{k}": t for k, t in others.items()
    }


def put_tensors(name: str, head: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a head the tensors that `tensors_of` listed.

    A buffer outside its `state_dict` that it does not have yet, or has in another size, is left to its forward.

    Raises:
        RuntimeError: parameters or buffers do not fit.
    """
    module, prefix = _module_of(head), f"heads.{name}."
    module.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    with torch.no_grad():
        for key, buffer in _buffers_of(module).items():
            saved = tensors.get(f"buffers.{name}.{key}")
            if saved is not None and (saved.shape, saved.dtype) == (buffer.shape, buffer.dtype):
                buffer.copy_(saved)


def _module_of(head: nn.Module) -> nn.Module:
    return head.body if isinstance(head, Head) else head


def _buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers(remove_duplicate=False))


def doubles(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tell which names are of a tensor that an earlier one names: name -> the first."""
    first: dict[int, str] = {}
    return {name: first[id(tensor)] for name, tensor in tensors.items() if first.setdefault(id(tensor), name) != name}


def with_doubles(tensors: dict[str, Tensor], same: Any, path: Path) -> dict[str, Tensor]:
    """Give every name its tensor again. Undoes `doubles`.

    Raises:
        BundleError: it names what is not in the file.
    """
    if not isinstance(same, dict) or not all(
        isinstance(first, str) and first in tensors and name not in tensors for name, first in same.items()
    ):
        raise BundleError(f"Cannot load '{path}': expected names of tensors in it, got others. Save the model again.")
    return tensors | {name: tensors[first] for name, first in same.items()}


def to_json(value: Any) -> Any:
    """Write the arguments of the example as JSON: tensors by position, tuples told from lists."""
    if isinstance(value, Position):
        return {"tensor": value.at}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if isinstance(value, tuple):
        return {"tuple": [to_json(item) for item in value]}
    if isinstance(value, list):
        return {"list": [to_json(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, to_json(item)] for key, item in value.items()]}
    raise BundleError(
        f"Cannot save the example inputs: expected tensors and plain values, got a {type(value).__qualname__}. "
        "Split the model with plain arguments."
    )


def from_json(written: Any, count: int) -> Any:
    """Read the arguments of the example. Undoes `to_json`.

    Args:
        written: What the file says.
        count: How many tensors the example has.

    Raises:
        BundleError: it names a tensor that is not there, or a kind of value that is not known.
    """
    ((kind, value),) = written.items()
    if kind == "tensor":
        if type(value) is not int or not 0 <= value < count:
            raise BundleError(f"Cannot read the example's arguments: expected one of {count} tensors, got {value!r}.")
        return Position(value)
    if kind in ("tuple", "list"):
        items = [from_json(item, count) for item in value]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {key: from_json(item, count) for key, item in value}
    if kind != "plain":
        raise BundleError(f"Cannot read the example's arguments: expected a known kind of value, got {kind!r}.")
    return value
