"""Heads by the name of their kind: `linear`, `mlp`, those of `forethought.heads`; sized for features and targets."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.fitting.randomness import random_state_kept
from forethought.fitting.rows import pick_target
from forethought.heads.registry import KINDS
from forethought.nesting import tensors

_STRENGTH = {"ridge": "alpha", "logistic": "C"}  # convex kinds, and what scikit-learn calls their one number
_EVALUATIONS = 1000  # of a convex loss at most; it ends before, where it is least
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Setting:
    """What heads are sized for.

    Attributes:
        features: Shape of one sample's features.
        targets: Those of all training rows.
        rows: How many there are.
    """

    features: tuple[int, ...]
    targets: Any
    rows: int

    def outputs(self, target: int | str | None) -> tuple[int, bool]:
        """Say how many numbers a head gives for a target, and whether they are scores of classes."""
        column = pick_target(self.targets, target)
        if column.is_floating_point():
            return (math.prod(column.shape[1:]) if column.ndim > 1 else 0), False
        if column.ndim != 1:
            raise FitError(
                f"Cannot size a head for target {target!r}: expected classes (N,) or numbers, got {column.dtype} of "
                f"shape {tuple(column.shape)}. Pass target=, or a module of your own"
            )
        least = int(column.min()) if len(column) else 0
        if least < 0:
            raise FitError(
                f"Cannot size a head for target {target!r}: expected classes from 0 up, got {least} in row "
                f"{int(column.argmin())}. Renumber them, or pass a module of your own"
            )
        return int(column.max()) + 1, column.dtype != torch.bool


def is_kind(name: str, options: Mapping[str, Any]) -> bool:
    """Say whether there is a kind of this name."""
    return name in ("linear", "mlp", *_STRENGTH) or name in KINDS


def options_of(kind: str, options: Mapping[str, Any]) -> set[str]:
    """Name the options that a kind takes."""
    if kind in _STRENGTH:
        return {_STRENGTH[kind], "bias"}
    if _is_plain(kind, options):
        return {"bias"} if kind == "linear" else {"hidden", "width", "dropout", "activation", "bias"}
    return set(inspect.signature(KINDS[kind].__init__).parameters) - {"self", "in_features"}


def build(kind: str, options: Mapping[str, Any], setting: Setting, target: int | str | None, seed: int) -> nn.Module:
    """Make a head of a kind, its first weights drawn from a seed.

    Raises:
        FitError: there is no such kind, or it does not take these options.
    """
    if not is_kind(kind, options):
        raise FitError(
            f"Cannot make a head of kind {kind!r}: expected one of "
            f"{sorted({'linear', 'mlp', *_STRENGTH, *KINDS})}. Pass one of these, or a module"
        )
    unknown = sorted(set(options) - options_of(kind, options))
    if unknown:
        raise FitError(
            f"Cannot make a head of kind {kind!r}: expected options among {sorted(options_of(kind, options))}, got "
            f"{unknown[0]!r}. Leave it out"
        )
    if kind in _STRENGTH:
        options, kind = {"bias": options.get("bias", True)}, "linear"
    width = math.prod(setting.features)
    with random_state_kept(seed, torch.device("cpu")):
        if _is_plain(kind, options):
            made: nn.Module = _plain(width, setting.outputs(target), kind, options)
        else:
            made = KINDS[kind](in_features=width, **options)
    return made if len(setting.features) == 1 else nn.Sequential(nn.Flatten(1), made)


def loss_for(kind: str, options: Mapping[str, Any], setting: Setting, target: int | str | None) -> str | None:
    """Choose the loss of a kind that was given none: its own, or what the targets call for."""
    if not _is_plain(kind, options):
        return None
    return "cross_entropy" if setting.outputs(target)[1] else "mse"


def fixed_by(kind: str, options: Mapping[str, Any], setting: Setting, target: int | str | None) -> dict[str, Any]:
    """Give the options of `fit` that a kind decides: convex ones reach the minimum of scikit-learn's objective.

    Ridge minimises the sum of squared errors plus alpha |W|^2; logistic regression C times the sum of the losses plus
    |W|^2 / 2, where two classes share one vector of weights. Here the loss is a mean over rows, plus
    `weight_decay` / 2 |W|^2.

    Raises:
        FitError: the targets are not what the kind is for, or its number is none.
    """
    if kind not in _STRENGTH:
        return {}
    outputs, is_classes = setting.outputs(target)
    if is_classes != (kind == "logistic"):
        raise FitError(
            f"Cannot make a head of kind {kind!r}: expected {'numbers' if is_classes else 'classes'} as targets, got "
            f"{'classes' if is_classes else 'numbers'}. Pass {'targets.float()' if is_classes else 'targets.long()'}"
        )
    name = _STRENGTH[kind]
    strength = options.get(name, 1.0)
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool) and math.isfinite(strength)
    if not is_number or strength < 0 or (kind == "logistic" and not strength):
        raise FitError(
            f"Cannot make a head of kind {kind!r}: expected {name} to be a number above 0, got {strength!r}. {name}=1.0"
        )
    if kind == "ridge":
        decay = 2 * strength / (setting.rows * max(outputs, 1))
    else:
        decay = (2 if outputs == 2 else 1) / (strength * setting.rows)
    return {
        "optimizer": "lbfgs",
        "weight_decay": decay,
        "epochs": _EVALUATIONS,
        "patience": None,
        "schedule": None,
        "warmup": 0.0,
        "clip": None,
        "keep": "last",
        "loss": "cross_entropy" if kind == "logistic" else "mse",
    }


def _is_plain(kind: str, options: Mapping[str, Any]) -> bool:
    """Whether a kind is one of this module: an mlp with anchors is that of `forethought.heads`."""
    return kind == "linear" or (kind == "mlp" and "anchors" not in options)


def _plain(width: int, wanted: tuple[int, bool], kind: str, options: Mapping[str, Any]) -> nn.Module:
    outputs, _ = wanted
    bias = bool(options.get("bias", True))
    hidden: Any = options.get("hidden", options.get("width", (128,) if kind == "mlp" else ()))
    sizes = [width, *(hidden if isinstance(hidden, Sequence) else (hidden,))]
    activation = options.get("activation", "relu")
    if activation not in _ACTIVATIONS:
        raise FitError(
            f"Cannot make a head: expected activation to be one of {sorted(_ACTIVATIONS)}, got {activation!r}. "
            "Pass activation='relu'"
        )
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(sizes):
        layers += [nn.Linear(narrow, wide, bias=bias), _ACTIVATIONS[activation]()]
        layers += [nn.Dropout(options["dropout"])] if options.get("dropout") else []
    layers.append(nn.Linear(sizes[-1], max(outputs, 1), bias=bias))
    return (
        nn.Sequential(*layers, *([] if outputs else [nn.Flatten(0)])) if len(layers) > 1 or not outputs else layers[0]
    )


def features_shape(values: Any) -> tuple[int, ...]:
    """Give the shape of one sample's features.

    Raises:
        FitError: several tensors cross the frontier.
    """
    if not isinstance(values, Tensor):
        found = [f"{tuple(each.shape[1:])} {str(each.dtype).removeprefix('torch.')}" for each in tensors(values)]
        raise FitError(
            f"Cannot size a head: expected one tensor of features, got {len(found)}: {', '.join(found)}. Pass a module "
            "whose forward(self, values) takes the one that it wants (values[-1]), or cut where one crosses"
        )
    return tuple(values.shape[1:])
