"""`assemble`: trunk and heads as one model again. Undoes `split`.

A saved model is one safetensors file: the trunk's tensors, the heads', an example with its outputs, and plain JSON
about how they belong together. No code is stored and none is run on reading: whoever loads it brings the model's class.
"""

import copy
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
from forethought.bundle import doubles, from_json, put_tensors, tensors_of, to_json, with_doubles
from forethought.errors import BundleError, FitError
from forethought.heads import Certificate, from_config
from forethought.heads import Head as RegressorHead
from forethought.identifying.numerics import numeric_state
from forethought.splitting.halves import Head
from forethought.splitting.recording import Position
from forethought.splitting.replay import Split

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
        taken = set(dir(nn.ModuleDict()))
        bad = [name for name in named if not isinstance(name, str) or not name or "." in name or name in taken]
        if bad:
            raise FitError(f"Cannot name a head {bad[0]!r}: expected a text without dots, no word of torch's own.")
        for name, head in named.items():
            if not isinstance(head, nn.Module):
                raise FitError(f"Cannot assemble head '{name}': expected a module, got a {type(head).__name__}.")
        self.split = split
        self.trunk = split.trunk
        self.heads = nn.ModuleDict(named)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the trunk once and every head on what it said."""
        values = self.trunk(*args, **kwargs)
        if self.is_single:
            return self.heads[_ONE](values)
        return {name: head(values) for name, head in self.heads.items()}

    def certificates(self) -> dict[str, Certificate]:
        """Certify every head of forethought's own, by name: what is proved of it with the weights it has now."""
        return {name: head.certify() for name, head in self.heads.items() if isinstance(head, RegressorHead)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything needed to have this model again into one safetensors file. Undone by `load`.

        Raises:
            BundleError: the example inputs hold something that is not a tensor or a plain value.
        """
        path = Path(path)
        plan = self.split.plan
        first = next(iter(self.split.trunk_tensors().values()), None)
        example = [_moved(tensor, first) for tensor in self.split.example]
        args, kwargs = nesting.replace(plan.arguments, lambda position: example[position.at], Position)
        with torch.no_grad():
            outputs = nesting.tensors(_evaluated(self, args, kwargs))
        tensors = {f"trunk.{name}": tensor for name, tensor in self.split.trunk_tensors().items()}
        for name, head in self.heads.items():
            tensors |= tensors_of(name, head)
        tensors |= {f"example.{at}": tensor for at, tensor in enumerate(example)}
        tensors |= {f"output.{at}": tensor for at, tensor in enumerate(outputs)}
        same = doubles(tensors)
        about = {
            "format": FORMAT,
            "model": type(self.split.model).__qualname__,
            "made_under": [str(torch.__version__), _numerics(self.split.model)],
            "trunk": self.trunk.fingerprint,
            "at": list(self.split.at),
            "single": self.is_single,
            "heads": {name: _described(head) for name, head in self.heads.items()},
            "arguments": to_json(plan.arguments),
            "same": same,
            "frozen": [name for name, p in self.split.model.named_parameters() if not p.requires_grad],
            "training": [name for name, module in self.split.model.named_modules() if module.training],
        }
        held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items() if name not in same}
        data = safetensors.torch.save(held, {"forethought": json.dumps(about)})
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as err:
            raise BundleError(
                f"Cannot save '{path}': {err}. Save into a folder that exists and can be written."
            ) from err
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
    if not isinstance(model, nn.Module) or any(p.is_meta for p in model.parameters()):
        raise BundleError(
            f"Cannot load '{path}': expected a module on a real device to load into, got {type(model).__name__}. "
            "Build the model as it was built for saving."
        )
    given = {_ONE: heads} if isinstance(heads, nn.Module) else dict(heads or {})
    before = _flags(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        return _loaded(about, tensors, model, given, path)
    except Exception as err:
        _restore(model, *before)
        if isinstance(err, BundleError):
            raise
        raise BundleError(
            f"Cannot load '{path}': expected a whole file and a model built by the code that saved it, got "
            f"{type(err).__name__}: {err}"
        ) from err


def _loaded(
    about: dict[str, Any],
    tensors: dict[str, Tensor],
    model: nn.Module,
    given: dict[str, nn.Module],
    path: str | os.PathLike[str],
) -> Assembled:
    unknown = sorted(given.keys() - about["heads"].keys())
    if unknown:
        raise BundleError(
            f"Cannot load head '{unknown[0]}': expected one of {sorted(about['heads'])}, got another name."
        )
    example = [tensors[f"example.{at}"] for at in range(_count(tensors, "example"))]
    _load_trunk(model, about, {k.removeprefix("trunk."): t for k, t in tensors.items() if k.startswith("trunk.")})
    args, kwargs = nesting.replace(
        from_json(about["arguments"], len(example)), lambda position: example[position.at], Position
    )
    first = next(model.parameters(), None)
    if first is not None:
        args, kwargs = nesting.replace((args, kwargs), lambda tensor: tensor.to(first.device))
    split = Split(model, args, kwargs, tuple(about["at"]))
    missing = sorted(name for name in split.trunk_tensors() if f"trunk.{name}" not in tensors)
    if missing:
        raise BundleError(
            f"Cannot load '{path}': expected '{missing[0]}', which the trunk reads, got a file without it."
        )
    made: dict[str, nn.Module] = {}
    for name, spec in about["heads"].items():
        is_second = any(head is split.head for head in made.values())
        made[name] = _load_head(name, spec, given, split, tensors, is_second)
    full = Assembled(split, made[_ONE] if about["single"] else made)
    with torch.no_grad():
        outputs = nesting.tensors(_evaluated(full, args, kwargs))
    expected = [tensors[f"output.{at}"] for at in range(_count(tensors, "output"))]
    same = len(outputs) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a.cpu().double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(outputs, expected, strict=True)
    )
    here = [str(torch.__version__), _numerics(model)]
    if not same or (about["made_under"] == here and split.trunk.fingerprint != about["trunk"]):
        raise BundleError(
            f"Cannot load '{path}': expected the model to give the outputs saved with it, got others. It was made "
            f"with a {about['model']} under torch {about['made_under'][0]}; give a model built by the same code and "
            "options."
        )
    return full


def _numerics(model: nn.Module) -> str:
    """Tell the settings under which a fingerprint holds."""
    first = next(model.parameters(), None)
    device = "cpu" if first is None else first.device.type
    return repr((device, numeric_state(device)))


def _flags(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [p.requires_grad for p in model.parameters()], [module.training for module in model.modules()]


def _restore(model: nn.Module, flags: tuple[list[bool], list[bool]], state: dict[str, Tensor]) -> None:
    """Put a model back as it was given."""
    for parameter, trains in zip(model.parameters(), flags[0], strict=True):
        parameter.requires_grad_(trains)
    for module, training in zip(model.modules(), flags[1], strict=True):
        module.training = training
    model.load_state_dict(state)


def _evaluated(full: Assembled, args: Any, kwargs: Any) -> Any:
    """Run with the heads in evaluation mode, whatever mode they are in."""
    modes = [(module, module.training) for module in full.heads.modules()]
    full.heads.eval()
    try:
        return full(*args, **kwargs)
    finally:
        for module, training in modes:
            module.training = training


def _moved(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Give an example the device and floating type that the model has now."""
    if like is None:
        return tensor
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() and like.is_floating_point() else None)


def _described(head: nn.Module) -> dict[str, Any]:
    """Say how a head can be had again: one of ours by its options, the model's own, or by whoever loads it."""
    if isinstance(head, Head):
        return {"kind": "own"}
    given = {"kind": "given", "class": type(head).__qualname__}
    if not isinstance(head, RegressorHead):
        return given
    certificate = {"certificate": head.certify().to_json()}
    try:
        return {"kind": "ours", "config": head.config(), **certificate}
    except FitError:  # it holds a module of the user's
        return {**given, **certificate}


def _load_head(
    name: str,
    spec: dict[str, Any],
    given: dict[str, nn.Module],
    split: Split,
    tensors: dict[str, Tensor],
    is_second: bool,
) -> nn.Module:
    if name in given:
        head = given[name]
    elif spec["kind"] == "own":
        head = copy.deepcopy(split.head) if is_second else split.head
    elif spec["kind"] == "ours":
        head = from_config(spec["config"])
    else:
        raise BundleError(
            f"Cannot load head '{name}': expected the module, a {spec.get('class')}, which the file cannot hold. "
            f"ft.load(path, model, heads={{'{name}': {spec.get('class')}(...)}})"
        )
    try:
        put_tensors(name, head, tensors)
    except RuntimeError as err:
        raise BundleError(
            f"Cannot load head '{name}': expected a module of the saved form, got another. {err}"
        ) from err
    if isinstance(head, RegressorHead) and "certificate" in spec:
        Certificate.from_json(spec["certificate"]).confirm(head.certify())
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
    except (safetensors.SafetensorError, ValueError, OSError, RecursionError) as err:
        raise BundleError(f"Cannot load '{path}': expected a whole safetensors file, got {err}.") from err
    version = about.get("format") if isinstance(about, dict) else None
    if not isinstance(about, dict) or type(version) is not int or version < 1:
        raise BundleError(f"Cannot load '{path}': expected a file that Assembled.save wrote, got another one.")
    if version > FORMAT:
        raise BundleError(
            f"Cannot load '{path}': expected format {FORMAT} or older, got {version}. "
            "It was made by a newer version: pip install --upgrade forethought"
        )
    return about, with_doubles(tensors, about.get("same", {}), path)


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    return sum(1 for name in tensors if name.startswith(f"{prefix}."))
