"""Purity is probed, not assumed: a row may be stored only if it depends on its own sample alone.

Before anything is stored the trunk runs on the same samples twice, in another order and in another batch size, with
buffers compared before and after.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.dataset import Batch
from forethought.errors import ImpureTrunkError
from forethought.recording import Call, Label
from forethought.replay import Split

# Rounding that another batch shape may bring: sums in another order, through a deep network.
_NOISE_ULPS = 512


@dataclass(frozen=True)
class Purity:
    """What the probe saw.

    Attributes:
        rows: Samples probed.
        noise_ulps: Largest difference between batch shapes, in units in the last place of the largest entry.
    """

    rows: int
    noise_ulps: float


def probe(split: Split, batch: Batch) -> Purity:
    """Check that each row depends on its own sample alone, and always in the same way.

    Args:
        split: Whose trunk to probe.
        batch: A few samples, on the trunk's device. One sample is repeated.

    Raises:
        ImpureTrunkError: rows depend on chance, on state, or on the rest of the batch; the message names the modules.
    """
    _check_rows(split)
    _check_modes(split)
    if batch.rows == 1:
        batch = batch.select(torch.zeros(2, dtype=torch.long))
    buffers = [(name, buffer, buffer.clone()) for name, buffer in split.model.named_buffers()]
    first, second = _rows(split, batch), _rows(split, batch)
    for name, buffer, before in buffers:
        if not torch.equal(buffer, before):
            raise ImpureTrunkError(
                f"Cannot store features of {_name(split)}: expected frozen buffers to stay as they are, got "
                f"'{name}' changed by the forward. Call ft.freeze(model, until=...) or model.eval() first."
            )
    if any(_ulps(a, b) > (0 if a.device.type == "cpu" else _NOISE_ULPS) for a, b in zip(first, second, strict=True)):
        raise ImpureTrunkError(
            f"Cannot store features of {_name(split)}: expected the frozen part to give the same output twice, got "
            "two different ones: it draws random numbers or keeps a state. Call model.eval(), or cut before the "
            "random part: ft.extract(model, ..., at=<an earlier module>)"
        )
    order = torch.arange(batch.rows).flip(0)
    flipped = [rows[order] for rows in _rows(split, batch.select(order))]
    half = (batch.rows + 1) // 2
    part = _rows(split, batch.select(torch.arange(half)))
    noise = 0.0
    for at, (whole, other, small) in enumerate(zip(first, flipped, part, strict=True)):
        difference = max(_ulps(whole, other), _ulps(whole[:half], small))
        noise = max(noise, difference)
        if difference > _NOISE_ULPS:
            raise ImpureTrunkError(
                f"Cannot store features of {_name(split)}: expected '{split.frontier[at].name}' of a sample not to "
                f"depend on the rest of its batch, got a difference of {difference:.3g} units in the last place when "
                "samples were given in another order or number. It splits, but cannot be stored: use split.trunk live."
            )
    return Purity(batch.rows, noise)


def _check_rows(split: Split) -> None:
    for tensor in split.frontier:
        if tensor.row_axis is None:
            raise ImpureTrunkError(
                f"Cannot store features of {_name(split)}: expected one row a sample in each tensor of the frontier, "
                f"got '{tensor.name}' of shape {tuple(tensor.shape)}, which belongs to the batch as a whole. "
                "It splits, but cannot be stored: use split.trunk live, or cut elsewhere with at=."
            )


def _check_modes(split: Split) -> None:
    """Name the frozen modules whose training mode makes them depend on chance or on the batch."""
    found = []
    for call in _frozen_calls(split.plan.recording.root):
        module = call.module
        kind = type(module).__name__
        if not module.training:
            continue
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if is_norm or is_dropout or (kind in {"DropPath", "StochasticDepth"} and _rate(module) > 0):
            found.append(f"{kind} '{call.path}'")
    if found:
        found = list(dict.fromkeys(found))
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ImpureTrunkError(
            f"Cannot store features of {_name(split)}: expected frozen layers to repeat themselves, got "
            f"{', '.join(found[:3])}{more} in training mode. Call ft.freeze(model, until=...), which keeps them in "
            "evaluation mode, or model.eval(), and split again."
        )


def _frozen_calls(root: Call) -> list[Call]:
    return [
        call
        for call in root.walk()
        if any(op.label is Label.FROZEN for op in call.operations)
        and not any(op.label is Label.TRAINABLE for op in call.operations)
    ]


def _rate(module: nn.Module) -> float:
    for name in ("drop_prob", "p"):
        rate: Any = getattr(module, name, None)
        if isinstance(rate, int | float):
            return float(rate)
    return 0.0


def _rows(split: Split, batch: Batch) -> list[Tensor]:
    args, kwargs = nesting.replace((batch.args, batch.kwargs), torch.clone)
    values = split.trunk(*args, **kwargs)
    values = (values,) if isinstance(values, Tensor) else values
    return [tensor.to_rows(value) for tensor, value in zip(split.frontier, values, strict=True)]


def _ulps(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units in the last place of the largest entry; infinite where one is not finite."""
    if a.shape != b.shape:
        return float("inf")
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    if torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isfinite(), b.isfinite()):
        return 0.0
    scale = max(float(a.abs().max()), torch.finfo(a.dtype).tiny)
    difference = float((a.double() - b.double()).abs().max())
    return difference / (scale * torch.finfo(a.dtype).eps) if difference == difference else float("inf")


def _name(split: Split) -> str:
    return f"'{type(split.model).__name__}'"
