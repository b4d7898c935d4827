"""Trained heads as files: tensors and plain JSON, from which a head is made again without running anything."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from forethought.errors import BundleError
from forethought.fitting.standardizing import Standard, Standardized
from forethought.heads import Head, from_config

_KEY = "forethought_head"
_BARE: dict[str, type[nn.Module]] = {each.__name__: each for each in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)}


def save_head(head: nn.Module, path: Path, about: dict[str, Any]) -> Path:
    """Write a head, and what it was trained for, into one safetensors file. Undone by `load_head`.

    Raises:
        BundleError: the head is of layers that no description is known of.
    """
    told = json.dumps({"head": _described(head), "about": about})
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in head.state_dict().items()}
    write(path, safetensors.torch.save(tensors, {_KEY: told}))
    return path


def load_head(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Read a head that `forethought fit` saved. Nothing in the file is executed.

    Returns:
        The head in evaluation mode, from the features of one batch (B, ...) to its outputs; and what is known of it:
        its target, its classes in order, the model whose features it takes.

    Raises:
        BundleError: it is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_head(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), Path(folder) / "head.safetensors", {})
        ...     head, about = load_head(path)
        >>> head(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        head = _made(told["head"])
        head.load_state_dict(tensors)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as err:
        raise BundleError(
            f"Cannot load the head '{path}': expected a file that forethought fit saved, got "
            f"{type(err).__name__}: {' '.join(str(err).split())[:200]}. Check the path"
        ) from err
    about: dict[str, Any] = told["about"]
    return head.eval(), about


def write(path: Path, content: bytes) -> None:
    """Write a file whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as err:
        raise BundleError(f"Cannot save '{path}': {err}. Save into a folder that can be written: --out FOLDER") from err
    finally:
        temporary.unlink(missing_ok=True)


def _described(module: nn.Module) -> dict[str, Any]:
    """Describe a chain of layers, or a head of forethought's."""
    if isinstance(module, Head):
        return {"ours": module.config()}
    if type(module) is Standardized:
        return {"standardized": [_described(module.head), list(module.mean.shape)]}
    if type(module) is nn.Sequential:
        return {"chain": [_described(layer) for layer in module]}
    if type(module) is nn.Linear:
        return {"Linear": [module.in_features, module.out_features, module.bias is not None]}
    if type(module) is nn.Flatten:
        return {"Flatten": [module.start_dim, module.end_dim]}
    if type(module) is nn.Dropout:
        return {"Dropout": [module.p]}
    name = type(module).__name__
    if _BARE.get(name) is type(module):
        return {name: []}
    raise BundleError(
        f"Cannot save a head with a {name}: expected Linear, Flatten, Dropout, {', '.join(_BARE)}, or a head of "
        "forethought's. Save the assembled model: --save"
    )


def _made(told: dict[str, Any]) -> nn.Module:
    (name, options), *more = told.items()
    if more:
        raise ValueError("a layer of two kinds")
    if name == "ours":
        return from_config(options)
    if name == "standardized":
        head, shape = options
        return Standardized(_made(head), Standard(torch.zeros(*shape), torch.ones(*shape)))
    if name == "chain":
        return nn.Sequential(*map(_made, options))
    if name == "Linear":
        wide, out, bias = options
        return nn.Linear(int(wide), int(out), bias=bool(bias))
    if name == "Flatten":
        return nn.Flatten(*map(int, options))
    if name == "Dropout":
        return nn.Dropout(float(options[0]))
    return _BARE[name]()
