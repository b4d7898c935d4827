"""What targets have to be for a head: in the unit of its anchors, and best where it can answer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.circular import CircularSpline
from forethought.heads.interface import Head
from forethought.heads.mlp import MLPHead
from forethought.heads.multi import MultiHead


def check_unit(name: str, head: nn.Module, sides: Sequence[Tensor]) -> None:
    """Raise where targets look like class labels and not like values.

    Whole numbers from 0 to K - 1 of an integer type, where the K anchors are other numbers. As values they would
    teach a head that answers from 60 to 67 to answer from 0 to 4, without a word.

    Args:
        name: Of the head.
        head: Trained with them, by its own loss.
        sides: Targets (N,) or (N, T) of training, validation and test rows: one that is no label speaks for all.

    Raises:
        FitError: they do.
    """
    columns: dict[int, list[Tensor]] = {}
    heads: dict[int, Any] = {}
    for targets in sides:
        for each, column in _columns(head, targets):
            heads[id(each)] = each
            columns.setdefault(id(each), []).append(column.detach().cpu())
    for key, each in heads.items():
        found = torch.cat(columns[key]).unique()
        if are_labels(found, each.scale.given.detach().cpu().double()):
            low, high = each.scale.ends
            raise FitError(
                f"Cannot fit head {name!r}: expected targets in the unit of its anchors, from {low:g} to {high:g}, got "
                f"whole numbers from {int(found.min())} to {int(found.max())}, as class labels are. Pass them "
                "as values: ft.fit((train, head.values_of(train.targets)), (val, head.values_of(val.targets)), ...), "
                "where train and val are features or tensors; targets.float(), if values is what they are"
            )


def are_labels(found: Tensor, anchors: Tensor) -> bool:
    """Say whether targets can only be class labels: whole numbers from 0 to K - 1, where the K anchors are others.

    Args:
        found: The distinct targets (N,).
        anchors: (K,), float64.
    """
    if found.is_floating_point() or not len(found):
        return False
    values = found.double()
    is_class = values.min() >= 0 and values.max() < len(anchors)
    return bool(is_class) and not bool(torch.isin(values, anchors).all())


def beyond(heads: Mapping[str, nn.Module], sides: Mapping[str, Tensor]) -> list[str]:
    """Say how many targets lie where heads never answer, in a line for each set of anchors.

    Args:
        heads: By name, trained with these targets.
        sides: Targets (N,) or (N, T) of all rows, by what to call them.
    """
    counts: dict[tuple[float, float], dict[str, str]] = {}
    names: dict[tuple[float, float], list[str]] = {}
    for name, head in heads.items():
        for side, targets in sides.items():
            for each, column in _columns(head, targets):
                low, high = each.scale.ends
                outside = int(((column < low) | (column > high)).sum())
                if outside and getattr(each, "extrapolate", "clamp") == "clamp":
                    counts.setdefault((low, high), {})[side] = f"{outside:,} of {len(column):,} targets of {side}="
                    names.setdefault((low, high), []).append(name)
    return [
        f"{', '.join(found.values())} are beyond {low:g} to {high:g}, the anchors of "
        f"{_enumerated(list(dict.fromkeys(names[low, high])))}, where no answer goes: anchors further out reach them"
        for (low, high), found in counts.items()
    ]


def _columns(head: nn.Module, targets: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """Give the heads on a line with the targets (N,) of each."""
    if isinstance(head, MultiHead) and targets.ndim == 2:
        for each, column in zip(head.heads.values(), targets.unbind(-1), strict=False):
            yield from _columns(each, column)
    elif isinstance(head, Head) and not isinstance(head, MultiHead | MLPHead | CircularSpline) and targets.ndim == 1:
        yield head, targets


def _enumerated(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) < 4 else f"{shown} and {len(names) - 3} more"
