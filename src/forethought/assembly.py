"""`assemble`: trunk and heads as one model again. Undoes `split`.

A saved model is one safetensors file: the trunk's tensors, the heads', an example with its outputs, and plain JSON
about how they belong together. No code is stored and none is run on reading: whoever loads it brings the model's class.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import BundleError, FitError
from forethought.heads import Head as RegressorHead
from forethought.heads import from_config
from forethought.recording import Position
from forethought.replay import Head, Split

FORMAT = 1
_ONE = "head"  # the name of the head, where there is one without a name


def assemble(split: Split, heads: nn.Module | Mapping[str, nn.Module]) -> "Assembled":
    """Put a trunk and heads together: one pass of the trunk, every head.

    Args:
        split: Whose trunk to use.
        heads: One module, or modules by name, each from the frontier's tensors to its output.

    Returns:
        A module with the model's own inputs. Its output is the head's, or a dictionary of outputs by name.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> parts = ft.split(model, torch.randn(3, 4))
        >>> x = torch.randn(5, 4)
        >>> torch.equal(assemble(parts, parts.head)(x), model(x))
        True
        >>> sorted(assemble(parts, {"same": parts.head, "sum": nn.Linear(8, 1)})(x))
        ['same', 'sum']
    """
    if not isinstance(heads, nn.Module) and not heads:
        raise FitError("Cannot assemble: expected at least one head, got none. ft.assemble(split, results.best.head)")
    return Assembled(split, heads)


class Assembled(nn.Module):
    """A trunk and its heads as one model. Made by `assemble`, or by `load`.

    Attributes:
        split: Whose trunk it uses.
        heads: The heads by name; "head" where one was given without a name.
    """

    def __init__(self, split: Split, heads: nn.Module | Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.is_single = isinstance(heads, nn.Module)
        named = {_ONE: heads} if isinstance(heads, nn.Module) else dict(heads)
        bad = [name for name in named if not name or "." in name]
        if bad:
            raise FitError(f"Cannot name a head {bad[0]!r}: expected a name without dots. Use another key.")
        self.split = split
        self.trunk = split.trunk
        self.heads = nn.ModuleDict(named)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the trunk once and every head on what it said."""
        values = self.trunk(*args, **kwargs)
        if self.is_single:
            return self.heads[_ONE](values)
        return {name: head(values) for name, head in self.heads.items()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything needed to have this model again into one safetensors file. Undone by `load`.

        Raises:
            BundleError: the example inputs hold something that is not a tensor or a plain value.
        """
        path = Path(path)
        plan = self.split.plan
        example = self.split.example
        args, kwargs = nesting.replace(plan.arguments, lambda position: example[position.at], Position)
        with torch.no_grad():
            outputs = nesting.tensors(_evaluated(self, args, kwargs))
        tensors = {f"trunk.{name}": tensor for name, tensor in self.split.trunk_tensors().items()}
        for name, head in self.heads.items():
            tensors |= {f"heads.{name}.{key}": tensor for key, tensor in _state(head).items()}
        tensors |= {f"example.{at}": tensor for at, tensor in enumerate(example)}
        tensors |= {f"output.{at}": tensor for at, tensor in enumerate(outputs)}
        about = {
            "format": FORMAT,
            "model": type(self.split.model).__qualname__,
            "torch": torch.__version__,
            "trunk": self.trunk.fingerprint,
            "at": list(self.split.at),
            "single": self.is_single,
            "heads": {name: _described(head) for name, head in self.heads.items()},
            "arguments": _to_json(plan.arguments),
            "frozen": [name for name, p in self.split.model.named_parameters() if not p.requires_grad],
            "training": [name for name, module in self.split.model.named_modules() if module.training],
        }
        held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            safetensors.torch.save_file(held, temporary, {"forethought": json.dumps(about)})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path


def load(
    path: str | os.PathLike[str], model: nn.Module, heads: nn.Module | Mapping[str, nn.Module] | None = None
) -> Assembled:
    """Read a model that `Assembled.save` wrote, into a fresh model of the same class. Undoes `save`.

    What was loaded is checked: the trunk's fingerprint, and the outputs on the example that was saved with it.

    Args:
        path: The file.
        model: A model of the class that was split; its weights, modes and `requires_grad` are overwritten.
        heads: Modules for heads that are not forethought's own, or all of them, by name.

    Raises:
        BundleError: the file, the model and the heads do not fit together; nothing half-loaded is returned.
    """
    about, tensors = _read(Path(path))
    example = [tensors[f"example.{at}"] for at in range(_count(tensors, "example"))]
    _load_trunk(model, about, {k.removeprefix("trunk."): t for k, t in tensors.items() if k.startswith("trunk.")})
    args, kwargs = nesting.replace(_from_json(about["arguments"]), lambda position: example[position.at], Position)
    split = Split(model, args, kwargs, tuple(about["at"]))
    given = {_ONE: heads} if isinstance(heads, nn.Module) else dict(heads or {})
    made = {name: _load_head(name, spec, given, split, tensors) for name, spec in about["heads"].items()}
    full = Assembled(split, made[_ONE] if about["single"] else made)
    with torch.no_grad():
        outputs = nesting.tensors(_evaluated(full, args, kwargs))
    expected = [tensors[f"output.{at}"] for at in range(_count(tensors, "output"))]
    same = len(outputs) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a.cpu().double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(outputs, expected, strict=True)
    )
    if not same or (about["torch"] == torch.__version__ and split.trunk.fingerprint != about["trunk"]):
        raise BundleError(
            f"Cannot load '{path}': expected the model to give the outputs saved with it, got others. It was made "
            f"with a {about['model']} under torch {about['torch']}; give a model built by the same code and options."
        )
    return full


def _evaluated(full: Assembled, args: Any, kwargs: Any) -> Any:
    """Run with the heads in evaluation mode, whatever mode they are in."""
    modes = [(module, module.training) for module in full.heads.modules()]
    full.heads.eval()
    try:
        return full(*args, **kwargs)
    finally:
        for module, training in modes:
            module.training = training


def _state(head: nn.Module) -> dict[str, Tensor]:
    return dict(head.body.state_dict()) if isinstance(head, Head) else dict(head.state_dict())


def _described(head: nn.Module) -> dict[str, Any]:
    """Say how a head can be had again: one of ours by its options, the model's own, or by whoever loads it."""
    if isinstance(head, Head):
        return {"kind": "own"}
    if isinstance(head, RegressorHead):
        try:
            return {"kind": "ours", "config": head.config()}
        except FitError:
            pass  # it holds a module of the user's
    return {"kind": "given", "class": type(head).__qualname__}


def _load_head(
    name: str, spec: dict[str, Any], given: dict[str, nn.Module], split: Split, tensors: dict[str, Tensor]
) -> nn.Module:
    if name in given:
        head = given[name]
    elif spec["kind"] == "own":
        head = split.head
    elif spec["kind"] == "ours":
        head = from_config(spec["config"])
    else:
        raise BundleError(
            f"Cannot load head '{name}': expected the module, a {spec['class']}, which the file cannot hold. "
            f"ft.load(path, model, heads={{'{name}': {spec['class']}(...)}})"
        )
    prefix = f"heads.{name}."
    state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    try:
        (head.body if isinstance(head, Head) else head).load_state_dict(state)
    except RuntimeError as err:
        raise BundleError(
            f"Cannot load head '{name}': expected a module of the saved form, got another. {err}"
        ) from err
    return head.eval()


def _load_trunk(model: nn.Module, about: dict[str, Any], saved: dict[str, Tensor]) -> None:
    """Put saved tensors, `requires_grad` and modes into a fresh model, all or nothing."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in saved.items():
        if name not in own:
            raise BundleError(
                f"Cannot load the trunk: expected the model to have '{name}', got a {type(model).__qualname__} "
                f"without it. Give a model of the class that was saved, {about['model']}."
            )
        if own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
            raise BundleError(
                f"Cannot load '{name}': expected {tuple(tensor.shape)} {tensor.dtype}, got "
                f"{tuple(own[name].shape)} {own[name].dtype} in the model. Build it with the options it was saved with."
            )
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)
    frozen, training = set(about["frozen"]), set(about["training"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in model.named_modules():
        module.training = name in training


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("forethought", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
    except FileNotFoundError as err:
        raise BundleError(f"Cannot load '{path}': there is no such file. Save one first: full.save('{path}')") from err
    except (safetensors.SafetensorError, ValueError, OSError) as err:
        raise BundleError(f"Cannot load '{path}': expected a whole safetensors file, got {err}.") from err
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise BundleError(f"Cannot load '{path}': expected a file that Assembled.save wrote, got another one.")
    if about["format"] > FORMAT:
        raise BundleError(
            f"Cannot load '{path}': expected format {FORMAT} or older, got {about['format']}. "
            "It was made by a newer version: pip install --upgrade forethought"
        )
    return about, tensors


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    return sum(1 for name in tensors if name.startswith(f"{prefix}."))


def _to_json(value: Any) -> Any:
    """Write the arguments of the example as JSON: tensors by position, tuples told from lists."""
    if isinstance(value, Position):
        return {"tensor": value.at}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item) for item in value]}
    if isinstance(value, list):
        return {"list": [_to_json(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _to_json(item)] for key, item in value.items()]}
    raise BundleError(
        f"Cannot save the example inputs: expected tensors and plain values, got a {type(value).__qualname__}. "
        "Split the model with plain arguments."
    )


def _from_json(written: Any) -> Any:
    ((kind, value),) = written.items()
    if kind == "tensor":
        return Position(int(value))
    if kind in ("tuple", "list"):
        items = [_from_json(item) for item in value]
        return tuple(items) if kind == "tuple" else items
    return {key: _from_json(item) for key, item in value} if kind == "dict" else value
