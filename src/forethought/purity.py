"""Purity is probed, not assumed: a row may be stored only if it depends on its own sample alone.

Before anything is stored the trunk runs on the same samples twice, in another order and in another batch size, with
buffers compared before and after.
"""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from forethought import nesting
from forethought.batch import Batch
from forethought.chance import Alone
from forethought.errors import ImpureTrunkError
from forethought.recording import Call, Label, Operation
from forethought.replay import Split
from forethought.tensors import as_numbers

# How far a sample's row may move when the rest of its batch changes, in units in the last place of the largest value of
# its feature: some multiples of what the number of samples alone moves it (measured on copies of one sample, which have
# nothing to learn from each other), but at least the first number and at most the second.
_BOUNDS = dict.fromkeys((torch.float64, torch.float32, torch.complex64, torch.complex128), (16.0, 1024.0))
_BOUNDS_HALF = (4.0, 16.0)
_NOISE_TIMES = 8.0
_RUNS_TO_BLAME = 8  # in each of which a generator moved, for it to be the trunk's doing
# Generators that a module may hold for itself; one of torch is seen where an operation is given it.
_OWN = (random.Random, np.random.Generator, np.random.RandomState)


@dataclass(frozen=True)
class Purity:
    """What the probe saw.

    Attributes:
        rows: Different samples probed.
        moved_ulps: How far a row moved at most when the rest of its batch changed, in units in the last place of the
            largest value of its feature.
        noise_ulps: How far it moved when only the number of samples changed.
    """

    rows: int
    moved_ulps: float
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
    with Alone():
        chance = _random_states(split)
        first, second = rows_of(split, batch), rows_of(split, batch)
        _check_chance(split, batch, chance)
    for name, buffer, before in buffers:
        if not torch.equal(buffer, before):
            raise ImpureTrunkError(
                f"Cannot store features of {_name(split)}: expected frozen buffers to stay as they are, got "
                f"'{name}' changed by the forward. Call ft.freeze(model, until=...) or model.eval() first."
            )
    noise = _noise(split, batch)
    if any(distance(a, b) > (0 if a.device.type == "cpu" else bound) for a, b, bound in _bounded(first, second, noise)):
        raise ImpureTrunkError(
            f"Cannot store features of {_name(split)}: expected the frozen part to give the same output twice, got "
            "two different ones: it draws random numbers or keeps a state. Call model.eval(), or cut before the "
            "random part: ft.extract(model, ..., at=<an earlier module>)"
        )
    moved = 0.0
    for chosen in companies(batch.rows):
        for at, (whole, part, bound) in enumerate(_bounded(first, rows_of(split, batch.select(chosen)), noise)):
            difference = distance(whole[chosen], part, scale=whole)
            moved = max(moved, difference)
            if difference > bound:
                raise ImpureTrunkError(
                    f"Cannot store features of {_name(split)}: expected '{split.frontier[at].name}' of a sample not to "
                    f"depend on the rest of its batch, got a change of {difference:.3g} units in the last place, where "
                    f"rounding explains {bound:.3g}, when samples were given in another order or number. "
                    "It splits, but cannot be stored: use split.trunk live."
                )
    return Purity(len({key.tobytes() for key in batch.row_keys()}), moved, max(noise))


def _random_states(split: Split) -> list[Any]:
    """Read every generator that the trunk may draw from."""
    cuda = {p.device.index or 0 for p in split.model.parameters() if p.device.type == "cuda"}
    held = [value for module in split.model.modules() for value in vars(module).values() if isinstance(value, _OWN)]
    return [
        torch.get_rng_state().numpy().tobytes(),
        *(torch.cuda.get_rng_state(index).numpy().tobytes() for index in sorted(cuda)),
        random.getstate(),
        *(repr(part) if isinstance(part, str | int | float) else part.tobytes() for part in np.random.get_state()),
        *(_state(generator) for generator in held if not isinstance(generator, random.SystemRandom)),
    ]


def _state(generator: Any) -> str:
    """Write all that a generator of numpy's or Python's own holds."""
    if isinstance(generator, random.Random):
        return repr(generator.getstate())
    state = generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else None
    state = generator.bit_generator.state if state is None else state
    with np.printoptions(threshold=sys.maxsize):
        return repr(state)


def _check_chance(split: Split, batch: Batch, before: list[Any]) -> None:
    """Refuse a trunk that drew random numbers: rare or small effects need not show in a few rows.

    Generators belong to the process, so another thread may have moved them (a DataLoader draws a seed at each start).
    A trunk that draws does so in every run on one batch: if a run leaves them as they were, it was somebody else.
    """
    drawn = [str(op) for op in split.plan.recording.operations if _draws(op)]
    runs = 0
    while not drawn and _random_states(split) != before and runs < _RUNS_TO_BLAME:
        before = _random_states(split)
        with _Drawing() as drawing:
            rows_of(split, batch)
        drawn, runs = drawing.seen, runs + 1
    if not drawn and runs < _RUNS_TO_BLAME:
        return
    where = f" by {drawn[0]}" if drawn else ", or other threads that drew all the while"
    raise ImpureTrunkError(
        f"Cannot store features of {_name(split)}: expected the frozen part to give the same output every time, got "
        f"random numbers drawn{where}. Call model.eval(), or cut before the random part: "
        "ft.extract(model, ..., at=<an earlier module>)"
    )


class _Drawing(TorchDispatchMode):
    """Sees the kernels that draw random numbers in this thread, scripted and compiled ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_switched_off(func, args, kwargs or {}):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def _is_switched_off(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Say whether a kernel that may drop values, as attention does, was told to drop none."""
    told = {argument.name: argument.default_value for argument in func._schema.arguments}
    told |= dict(zip(told, args, strict=False)) | kwargs
    drops = told.get("dropout_p", told.get("dropout", 1.0))
    return drops == 0 or told.get("train", told.get("training", True)) is False


def _draws(op: Operation) -> bool:
    """Say whether a frozen or constant operation uses a generator of the model's own."""
    return op.label is not Label.TRAINABLE and isinstance(op.arguments[1].get("generator"), torch.Generator)


def _noise(split: Split, batch: Batch) -> list[float]:
    """Measure how far the number of samples alone moves a row: copies of one sample, in several numbers."""
    noise = [0.0] * len(split.frontier)
    row = batch.rows - 1
    whole = rows_of(split, batch.select(torch.full((batch.rows,), row)))
    for copies in (2, 2 * batch.rows):
        part = rows_of(split, batch.select(torch.full((copies,), row)))
        moved = [distance(a[:1], b[:1]) for a, b in zip(whole, part, strict=True)]
        noise = [max(pair) for pair in zip(noise, moved, strict=True)]
    return noise


def companies(rows: int) -> list[Tensor]:
    """Choose samples in other orders and numbers: reversed, either half, two alone (one alone not all models can)."""
    half = max(2, (rows + 1) // 2)
    return [
        torch.arange(rows).flip(0),
        torch.arange(half),
        torch.arange(rows - half, rows),
        torch.arange(rows - 2, rows),
    ]


def _bounded(first: list[Tensor], second: list[Tensor], noise: list[float]) -> Iterator[tuple[Tensor, Tensor, float]]:
    for a, b, moved in zip(first, second, noise, strict=True):
        yield a, b, bound_of(a.dtype, moved)


def bound_of(dtype: torch.dtype, noise: float) -> float:
    """Say how far rows may lie apart, where the company that they keep moves them so far, both in ulps."""
    least, most = _BOUNDS.get(dtype, _BOUNDS_HALF)
    return min(max(least, _NOISE_TIMES * noise), most)


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


def rows_of(split: Split, batch: Batch) -> list[Tensor]:
    """Run the trunk on copies of what the model is given, since a forward may write into it."""
    args, kwargs = nesting.replace((batch.args, batch.kwargs), torch.clone)
    return split.rows(args, kwargs)


def distance(a: Tensor, b: Tensor, scale: Tensor | None = None) -> float:
    """Largest change from a to b (B, ...), in units in the last place of the largest value that its feature takes.

    A feature that is zero, or tiny beside the others, is measured against a quarter of what is usual among them.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    eps = torch.finfo(a.dtype).eps if a.is_floating_point() or a.is_complex() else 0.0
    a, b = as_numbers(a), as_numbers(b)
    scale = a if scale is None else as_numbers(scale)
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    if torch.equal(a.nan_to_num(), b.nan_to_num()):
        return 0.0
    largest = scale.nan_to_num().double().abs().amax(0, keepdim=True)
    usual = float(largest.median()) or float(largest.max()) or 1.0
    units = torch.clamp(largest, min=usual * 0.25) * eps
    return float(((a.double() - b.double()).abs() / units).nan_to_num(0.0, float("inf"), float("inf")).max())


def _name(split: Split) -> str:
    return f"'{type(split.model).__name__}'"
