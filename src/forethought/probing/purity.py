"""Purity is probed, not assumed: a row may be stored only if it depends on its own sample alone.

Before anything is stored the trunk runs on a few samples: twice, with buffers compared before and after; then with
other samples beside them; then in another order and number. Two runs must agree, and so must a sample that keeps its
place in batches of one size whatever lies beside it: nothing rounds otherwise then, so on the CPU it is the last bit
that counts. Only another place or number lets kernels add up in another order. How far that may move a row is not
guessed: errors as large as another order's are added to the model's own run, see rounding.py.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import ImpureTrunkError
from forethought.identifying.tensors import as_numbers
from forethought.probing.blame import first_to_differ, where_runs
from forethought.probing.chance import Alone
from forethought.probing.dispatch import DispatchMode
from forethought.probing.generators import Drawing, drawn_by, random_states
from forethought.probing.rounding import Rounding
from forethought.samples.batch import Batch
from forethought.splitting.operations import func_name
from forethought.splitting.recording import Call, Label
from forethought.splitting.replay import Split
from forethought.splitting.untouched import is_same

# Units in the last place that a row may always move with its place and the number of samples: a kernel more or less.
_EXACT = (torch.float64, torch.float32, torch.complex64, torch.complex128)
_LEAST = dict.fromkeys(_EXACT, 16.0)
_LEAST_HALF = 4.0
_TIMES = 4.0  # what rounding explains, for two runs with random errors do not meet with the worst
_MOST = 2.0**-8  # of a feature's largest value: an error of rounding that is larger is none
# How far rows that are verified may lie apart: at least, and where it is unknown how far the model's own lie apart.
_BOUNDS = dict.fromkeys(_EXACT, (16.0, 1024.0))
_BOUNDS_HALF = (4.0, 16.0)
_NOISE_TIMES = 8.0
# Kernels whose work for one sample may depend on the values of others without any fault: they group samples.
_GROUPS = ("grouped_mm", "nested", "pack_padded", "histc", "bincount")


@dataclass(frozen=True)
class Purity:
    """What the probe saw.

    Attributes:
        rows: Different samples probed.
        moved_ulps: How far a row moved at most when its place or the samples beside it changed, in units in the last
            place of the largest value of its feature.
        noise_ulps: How far errors of rounding move it; None if it moved so little that this was not measured.
    """

    rows: int
    moved_ulps: float
    noise_ulps: float | None


def probe(split: Split, batch: Batch) -> Purity:
    """Check that each row depends on its own sample alone, and always in the same way.

    Args:
        split: Whose trunk to probe.
        batch: A few samples, on the trunk's device. One sample is repeated.

    Raises:
        ImpureTrunkError: rows depend on chance, on state, or on the rest of the batch; the message names the modules.
    """
    check_still(split)
    if batch.rows == 1:
        batch = batch.select(torch.zeros(2, dtype=torch.long))
    buffers = [(name, buffer, buffer.clone()) for name, buffer in split.model.named_buffers()]
    with Alone():
        chance = random_states(split.model)
        with Drawing() as drawing:
            first, decisions = _decided(split, batch)
        second = rows_of(split, batch)
        _check_chance(split, batch, chance, drawing.seen)
    for name, buffer, before in buffers:
        if name.rpartition(".")[2] in split.plan.stale or not is_same(buffer, before):
            raise ImpureTrunkError(
                f"Cannot store features of {_name(split)}: expected frozen buffers to stay as they are, got "
                f"'{name}' changed by the forward. Call ft.freeze(model, until=...) or model.eval() first."
            )
    probing = _Probe(split, batch, first, decisions)
    probing.check_repeats(second)
    probing.check_company()
    probing.check_order()
    return Purity(len({key.tobytes() for key in batch.row_keys()}), probing.moved, probing.measured)


def check_still(split: Split) -> None:
    """Refuse, without running it, a trunk that shows that its rows are none: by their shape, a mode, or a generator.

    Raises:
        ImpureTrunkError: the message names the modules.
    """
    _check_rows(split)
    _check_modes(split)
    recording = split.plan.recording
    for op in recording.operations[: recording.last + 1]:
        if op.label is not Label.TRAINABLE and isinstance(op.arguments[1].get("generator"), torch.Generator):
            raise _drawn(split, str(op))


def check_number(split: Split, batch: Batch, rows: list[Tensor]) -> None:
    """Refuse a trunk that gives samples other rows in so large a batch than in twos: the few of a probe may hide it.

    Args:
        split: Whose trunk it is.
        batch: The samples.
        rows: What it gave for them.

    Raises:
        ImpureTrunkError: it does.
    """
    few = torch.tensor([0, batch.rows - 1])
    probing = _Probe(split, batch.select(few), rows_of(split, batch.select(few)), [])
    for at, (one, part) in enumerate(zip(_filled(split, batch, rows), probing.first, strict=True)):
        probing.check(at, distance(one[few], part, scale=one), f"it was one of {batch.rows} samples and of 2")


class _Probe:
    """Compares what a trunk gives of samples that are given in other ways.

    Attributes:
        first: What it gave of them the first time.
        moved: How far a row moved at most, in ulps.
        measured: How far errors of rounding move it, in ulps; None as long as nobody had to know.
    """

    def __init__(self, split: Split, batch: Batch, first: list[Tensor], decisions: list[Any]) -> None:
        self._split = split
        self._batch = batch
        self.first = first
        self._decisions = decisions
        self.moved = 0.0
        self.measured: float | None = None

    def check_repeats(self, second: list[Tensor]) -> None:
        """Compare with what the same batch gave the second time."""
        every = torch.arange(self._batch.rows)
        for at, (one, other) in enumerate(zip(self.first, second, strict=True)):
            if distance(one, other) > (0 if one.device.type == "cpu" else self._bound(at)):
                raise ImpureTrunkError(
                    f"Cannot store features of {_name(self._split)}: expected the frozen part to give the same output "
                    f"twice, got two different ones{self._blamed(self._batch, every)}: it draws random numbers or "
                    "keeps a state. Call model.eval(), or cut before the random part: "
                    "ft.extract(model, ..., at=<an earlier module>)"
                )

    def check_company(self) -> None:
        """Leave samples where they are, and put others beside them."""
        for chosen in _swaps(self._batch.rows):
            kept = torch.nonzero(chosen == torch.arange(self._batch.rows))[:, 0]
            other = self._batch.select(chosen)
            given, decisions = _decided(self._split, other)
            for at, (one, rows) in enumerate(zip(self.first, given, strict=True)):
                apart = distance(one[kept], rows[kept], scale=one)
                self.moved = max(self.moved, apart)
                is_exact = one.device.type == "cpu" and decisions == self._decisions
                if apart > (bound := 0.0 if is_exact else self._bound_beyond(at, apart)):
                    self._refuse(at, apart, bound, "other samples lay beside it", self._blamed(other, kept))

    def check_order(self) -> None:
        """Give the samples in other orders and numbers."""
        for chosen in companies(self._batch.rows):
            rows = rows_of(self._split, self._batch.select(chosen))
            for at, (one, other) in enumerate(zip(self.first, rows, strict=True)):
                self.check(at, distance(one[chosen], other, scale=one), "samples were given in another order or number")

    def check(self, at: int, apart: float, when: str) -> None:
        """Refuse rows that moved further than rounding explains."""
        self.moved = max(self.moved, apart)
        if apart > (bound := self._bound_beyond(at, apart)):
            self._refuse(at, apart, bound, when)

    def _bound_beyond(self, at: int, apart: float) -> float:
        """Give the bound; what no bound is below is allowed without finding out."""
        least = _least(self.first[at].dtype)
        return least if apart <= least else self._bound(at)

    def _bound(self, at: int) -> float:
        """Say how far another order of adding up may move a row."""
        dtype, noise = self.first[at].dtype, self._noise[at]
        if not (dtype.is_floating_point or dtype.is_complex):
            return 0.0
        return min(max(_least(dtype), _TIMES * noise), max(_MOST / torch.finfo(dtype).eps, _least(dtype)))

    @cached_property
    def _noise(self) -> list[float]:
        noise = [0.0] * len(self.first)
        for seed in (0, 1):
            with Rounding(seed):
                rows = rows_of(self._split, self._batch)
            moved = [distance(one, other) for one, other in zip(self.first, rows, strict=True)]
            noise = [max(pair) for pair in zip(noise, moved, strict=True)]
        self.measured = max(noise)
        return noise

    def _blamed(self, other: Batch, rows: Tensor) -> str:
        try:
            given = [(batch.args, batch.kwargs) for batch in (self._batch, other)]
            a, b = nesting.replace(given, torch.clone)
            found = first_to_differ(self._split.trunk.body, a, b, self._batch.rows, rows)
        except Exception:  # whatever a model says when it is run as a whole: it is only about a name
            found = None
        return f", the first in {found}" if found else ""

    def _refuse(self, at: int, apart: float, bound: float, when: str, where: str = "") -> None:
        explained = f"rounding explains {bound:.3g}" if bound else "rounding explains none"
        raise ImpureTrunkError(
            f"Cannot store features of {_name(self._split)}: expected '{self._split.frontier[at].name}' of a sample "
            f"not to depend on the rest of its batch, got a change of {apart:.3g} units in the last place, where "
            f"{explained}, when {when}{where}. It splits, but cannot be stored: use split.trunk live, or cut before: "
            "ft.extract(model, ..., at=<an earlier module>)"
        )


def _check_chance(split: Split, batch: Batch, before: dict[str, Any], kernels: list[str]) -> None:
    """Refuse a trunk that drew random numbers, even if it put the generator back."""
    drawn = kernels[0] if kernels else drawn_by(split.model, lambda: rows_of(split, batch), before)
    if not drawn:
        return
    try:
        where = where_runs(drawn, split.trunk.body, nesting.replace((batch.args, batch.kwargs), torch.clone))
    except Exception:  # whatever a model says when it is run as a whole: it is only about a name
        where = None
    raise _drawn(split, drawn + (f" in {where}" if where else ""))


def _drawn(split: Split, by: str) -> ImpureTrunkError:
    return ImpureTrunkError(
        f"Cannot store features of {_name(split)}: expected the frozen part to give the same output every time, got "
        f"random numbers drawn by {by}. Call model.eval(), or cut before the random part: "
        "ft.extract(model, ..., at=<an earlier module>)"
    )


def _least(dtype: torch.dtype) -> float:
    return _LEAST.get(dtype, _LEAST_HALF)


def _swaps(rows: int) -> list[Tensor]:
    """Choose other company for samples that keep their place: every second one, or the first or last alone."""
    every = torch.arange(rows)
    even = every - every % 2
    odd = torch.clamp(even + 1, max=rows - 1)
    first, last = torch.zeros_like(every), torch.full_like(every, rows - 1)
    first[-1], last[0] = rows - 1, 0
    return [even, odd, first, last] if rows > 2 else [even, odd]


def _decided(split: Split, batch: Batch) -> tuple[list[Tensor], list[Any]]:
    """Run the trunk; give what values decided on the way: numbers that Python read, and sizes."""
    with _Deciding() as deciding:
        rows = rows_of(split, batch)
    return rows, deciding.seen


class _Deciding(DispatchMode):
    """Sees what values decide in this thread: how much kernels are given, or which are run.

    Where that differs, a sample may be rounded otherwise without any fault: a mask that is left out if it masks
    nothing, tokens that are sorted by expert.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.data_dependent_output in func.tags:
            self.seen.append(repr(result))
        elif torch.Tag.dynamic_output_shape in func.tags:
            self.seen.append([tuple(tensor.shape) for tensor in nesting.tensors(result)])
        elif any(part in str(func) for part in _GROUPS):
            whole = [tensor for tensor in nesting.tensors((args, kwargs)) if not tensor.is_floating_point()]
            self.seen.append([tensor.tolist() for tensor in whole])
        return result


def companies(rows: int) -> list[Tensor]:
    """Choose samples in other orders and numbers: reversed, either half, two alone (one alone not all models can)."""
    half = max(2, (rows + 1) // 2)
    return [
        torch.arange(rows).flip(0),
        torch.arange(half),
        torch.arange(rows - half, rows),
        torch.arange(rows - 2, rows),
    ]


def bound_of(dtype: torch.dtype, noise: float) -> float:
    """Say how far rows that are verified may lie apart, in ulps.

    Args:
        dtype: Theirs.
        noise: How far the model's rows lie apart when samples come in other orders and numbers; infinite if unknown.
    """
    least, unknown = _BOUNDS.get(dtype, _BOUNDS_HALF)
    if noise == float("inf") or not (dtype.is_floating_point or dtype.is_complex):
        return unknown
    return min(max(least, _NOISE_TIMES * noise), max(_MOST / torch.finfo(dtype).eps, unknown))


def _check_rows(split: Split) -> None:
    packs = any("pack_padded" in func_name(op.func) for op in split.plan.recording.operations)
    fix = (
        "put the packing, the recurrent layer and the unpacking into one frozen module, whose output alone then crosses"
        if packs
        else "use split.trunk live, cut elsewhere with at=, or put what makes and reads it into one frozen module, "
        "whose output alone then crosses"
    )
    for tensor in split.frontier:
        if tensor.row_axis is None:
            raise ImpureTrunkError(
                f"Cannot store features of {_name(split)}: expected one row a sample in each tensor of the frontier, "
                f"got '{tensor.name}' of shape {tuple(tensor.shape)}, which belongs to the batch as a whole. "
                f"It splits, but cannot be stored: {fix}."
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
    return _filled(split, batch, split.rows(args, kwargs))


def _filled(split: Split, batch: Batch, rows: list[Tensor]) -> list[Tensor]:
    return rows if batch.shape is None else split.filled_up(rows, batch.shape)


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
    units = torch.clamp(largest, min=(float(largest.median()) or float(largest.max()) or 1.0) * 0.25) * eps
    return float(((a.double() - b.double()).abs() / units).nan_to_num(0.0, float("inf"), float("inf")).max())


def _name(split: Split) -> str:
    return f"'{type(split.model).__name__}'"
