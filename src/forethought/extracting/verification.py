"""Live against stored: some rows are computed once more and compared, beside how far the model differs from itself.

A row that was computed in another batch may differ in its last bits: libraries choose their kernels by the batch. So
the same samples are also run in other orders and numbers, and a stored row is right if it lies within what that
explains, by the bound under which rows are stored at all (`purity`). In the batch in which it was computed, on the
same machine, it is equal to the last bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.extracting.precision import Coding, decoded
from forethought.extracting.speedups import row_error
from forethought.extracting.ways import SpeedReport
from forethought.identifying.tensors import as_numbers
from forethought.probing.purity import bound_of, companies, distance, rows_of
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.shapes.forms import FrontierTensor, Rows, entries_of
from forethought.shapes.padding import Uneven
from forethought.splitting.replay import Split

_USUAL = 16  # rows that show how large a feature's values usually are


@dataclass(frozen=True)
class Verification:
    """What recomputing some rows showed.

    An ulp is a unit in the last place of the largest value that a feature takes among the rows compared.

    Attributes:
        rows: Rows compared.
        exact_rows: How many of them are to the last bit what would be stored now.
        absent_rows: Samples looked for of which no row is stored.
        difference: Largest difference between a stored and a live value.
        difference_ulps: The same in ulps.
        noise: Largest difference between the model and itself, for these samples in other batches.
        noise_ulps: The same in ulps.
        is_right: Whether every stored row lies within what is explained.
        worst: Index of the sample that differs most; None if all are equal.
        remark: Why more was allowed than batches explain; "" if it was not.
    """

    rows: int
    exact_rows: int
    absent_rows: int
    difference: float
    difference_ulps: float
    noise: float
    noise_ulps: float
    is_right: bool
    worst: int | None = None
    remark: str = ""

    def __str__(self) -> str:
        absent = f"; {self.absent_rows:,} samples have no row" if self.absent_rows else ""
        if self.exact_rows == self.rows:
            return f"right: {self.exact_rows:,} of {self.rows:,} rows equal the model's to the last bit{absent}"
        said = (
            f"{self.exact_rows:,} of {self.rows:,} rows equal the model's to the last bit, others differ by up to "
            f"{self.difference:.3g} ({self.difference_ulps:.3g} ulps); in other batches the model differs from itself "
            f"by up to {self.noise:.3g} ({self.noise_ulps:.3g} ulps)"
        )
        remark = f"; {self.remark}" if self.remark else ""
        return f"{'right' if self.is_right else f'wrong, at sample {self.worst} most'}: {said}{remark}{absent}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows; what is infinite is None."""
        numbers = asdict(self)
        return {name: None if value in (np.inf, -np.inf) else value for name, value in numbers.items()}


@dataclass(frozen=True)
class Chosen:
    """Some samples of a data set whose rows are stored.

    Attributes:
        numbers: Their indices, rising.
        keys: Their identities when their rows were stored: (n, 16) bytes.
        rows: Gives the rows of some of them, by position in `numbers`, for each tensor of the frontier.
        frontier: The tensors of a row.
    """

    numbers: Sequence[int]
    keys: np.ndarray
    rows: Callable[[Sequence[int]], list[Rows]]
    frontier: Sequence[FrontierTensor]


def spread(rows: int, n: int, seed: int) -> list[int]:
    """Choose n of so many samples, or all: one in each of n equal stretches, by a generator of its own.

    Raises:
        DataError: n is no whole number above 0.

    Example:
        >>> numbers = spread(1000, 4, seed=0)
        >>> [number // 250 for number in numbers], spread(3, 4, seed=0)
        ([0, 1, 2, 3], [0, 1, 2])
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise DataError(f"Cannot verify {n!r} rows: expected a whole number above 0. features.verify(64)")
    if n >= rows:
        return list(range(rows))
    ends = np.linspace(0, rows, n + 1).astype(np.int64)
    draws = np.random.default_rng(seed % 2**64).random(n)
    return [int(a + draw * (b - a)) for a, b, draw in zip(ends[:-1], ends[1:], draws, strict=True)]


def elsewhere(provenance: Mapping[str, Any], split: Split) -> str:
    """Say whether a table's rows may come from other arithmetic than this model's here and now; "" if not."""
    device = next((p.device.type for p in split.model.parameters()), "cpu")
    here = {"device": device, "torch": torch.__version__}
    other = [f"{name} {provenance[name]}" for name in here if provenance.get(name) not in (None, here[name])]
    return f"the first rows were computed with {' and '.join(other)}, so rounding may differ more" if other else ""


def compare(
    split: Split,
    samples: Samples,
    chosen: Chosen,
    remark: str = "",
    codings: Sequence[Coding | None] = (),
    absent_rows: int = 0,
    speed: SpeedReport | None = None,
) -> Verification:
    """Run the trunk on samples once more, where the model is now, and compare with what is stored of them.

    Args:
        split: Whose trunk to run.
        samples: The data set.
        chosen: Which samples, and what is stored of them.
        remark: Why stored rows may differ by more than batches explain: another device, another version of torch.
        codings: How each tensor of the frontier is stored, None where exactly; empty if all are.
        absent_rows: Samples that were looked for in vain.
        speed: How the rows were computed, if not by the very operations of the model: they may then lie as far from
            the live ones as was allowed.

    Raises:
        DataError: a sample is not what it was when its row was stored.
    """
    device = next((p.device for p in split.model.parameters()), torch.device("cpu"))
    is_fast = speed is not None and not speed.way.is_exact
    total = _Total(speed.tolerance if speed is not None and is_fast else None)
    for group in _groups(samples, chosen):
        numbers = [chosen.numbers[position] for position in group.positions]
        shape = (group.company or group.batch).shape
        is_shortened = any(tensor.layout is not None and tensor.layout.by_longest for tensor in chosen.frontier)
        frontier = [_by_inputs(tensor) for tensor in chosen.frontier]
        trunk = _Trunk(split, frontier, codings or (None,) * len(frontier), shape, is_shortened)
        pairs = zip(trunk.frontier, chosen.rows(group.positions), strict=True)
        stored = [tensor.padded(rows, shape) for tensor, rows in pairs]
        live = _run(trunk, group, device)
        total.add(numbers, stored, live, is_elsewhere=bool(remark))
    return Verification(
        rows=len(chosen.numbers),
        exact_rows=total.exact_rows,
        absent_rows=absent_rows,
        difference=total.difference[0],
        difference_ulps=total.difference[1],
        noise=total.noise[0],
        noise_ulps=total.noise[1],
        is_right=total.is_right,
        worst=total.worst,
        remark=_fast(speed, total) if speed and is_fast else "" if total.exact_rows == len(chosen.numbers) else remark,
    )


@dataclass(frozen=True)
class _Group:
    """Samples that are run together.

    Attributes:
        positions: Which they are, by position among those chosen.
        batch: What the model is given, for them first and maybe for others.
        company: The same with others beside them, where `batch` is too small to show what values are usual.
    """

    positions: Sequence[int]
    batch: Batch
    company: Batch | None = None


@dataclass(frozen=True)
class _Live:
    """What a model gives for one tensor of the frontier.

    Attributes:
        rows: Of the samples, (B, *).
        usual: Rows that show what values are usual.
        noise: How far the model differs from itself, in its values and in ulps.
        kept: The rows as they come back when they are stored: the same, unless they are stored smaller.
        step_ulps: How far apart neighbouring values are when they are stored smaller; 0 if they are not.
    """

    rows: Tensor
    usual: Tensor
    noise: tuple[float, float]
    kept: Tensor
    step_ulps: float


class _Total:
    """What was seen so far."""

    def __init__(self, tolerance: float | None) -> None:
        self.exact_rows, self.is_right = 0, True
        self._tolerance, self.error = tolerance, 0.0
        self.difference, self.noise = (0.0, 0.0), (0.0, 0.0)
        self.worst: int | None = None
        self._worst_ulps = -1.0

    def add(self, numbers: Sequence[int], stored: Sequence[Tensor], live: Sequence[_Live], is_elsewhere: bool) -> None:
        """Take in the rows of some samples, stored and live."""
        exact = torch.ones(len(numbers), dtype=torch.bool)
        for old, new in zip(stored, live, strict=True):
            equal = _is_equal(old, new.kept)
            exact &= equal
            apart = distance(new.rows, old, scale=new.usual)
            self.noise = (max(self.noise[0], new.noise[0]), max(self.noise[1], new.noise[1]))
            self.difference = (max(self.difference[0], _absolute(old, new.rows)), max(self.difference[1], apart))
            if self._tolerance is not None:
                error = row_error(new.rows, old)
                self.error = max(self.error, error)
                self.is_right &= error <= self._tolerance + row_error(new.rows, new.kept)
                self._note(numbers, old, new, equal, apart)
                continue
            bound = bound_of(new.rows.dtype, float("inf") if is_elsewhere else new.noise[1])
            self.is_right &= apart <= bound + new.step_ulps
            self._note(numbers, old, new, equal, apart)
        self.exact_rows += int(exact.sum())

    def _note(self, numbers: Sequence[int], old: Tensor, new: "_Live", equal: Tensor, apart: float) -> None:
        """Remember the sample that differs most."""
        if not bool(equal.all()) and apart > self._worst_ulps:
            rows = [_absolute(old[at : at + 1], new.rows[at : at + 1]) for at in range(len(numbers))]
            self.worst, self._worst_ulps = numbers[int(np.argmax(rows))], apart


def _fast(speed: SpeedReport, total: _Total) -> str:
    allowed = f"allowed are {speed.tolerance:g}"
    return f"run as '{speed.way.name}', rows are up to {total.error:.1e} of their length off, {allowed}"


@dataclass(frozen=True)
class _Trunk:
    """What gives rows, and how they are stored.

    Attributes:
        split: Whose trunk.
        frontier: The tensors of a row.
        codings: How each is stored, None where exactly.
        shape: The sizes of inputs to pad rows for, where they differ in size: one for all that are compared.
        is_shortened: Whether inputs are cut to the largest sample before they are run.
    """

    split: Split
    frontier: Sequence[FrontierTensor]
    codings: Sequence[Coding | None]
    shape: Sequence[int] | None
    is_shortened: bool

    def values(self, batch: Batch) -> list[Tensor]:
        """Give the rows of a batch, with the feed's padding in the place of what was padded live."""
        batch = batch.shortened() if self.is_shortened else batch
        rows = [each.detach().cpu() for each in rows_of(self.split, batch)]
        pairs = zip(self.frontier, rows, strict=True)
        return [tensor.padded(tensor.cut(each, batch.sizes), self.shape) for tensor, each in pairs]

    def kept(self, at: int, rows: Tensor, batch: Batch) -> Tensor:
        """Give rows as they come back when they are stored."""
        tensor, coding = self.frontier[at], self.codings[at]
        if coding is None:
            return rows
        parts = tensor.cut(rows, batch.sizes)
        coded = coding.encode(entries_of(parts))
        own = [replace(parts, values=part) for part in coded] if isinstance(parts, Uneven) else coded
        return tensor.padded(decoded(coding, own, "cpu"), self.shape)


def _by_inputs(tensor: FrontierTensor) -> FrontierTensor:
    """Have rows padded as far as inputs ask for, so that those of several batches can be compared."""
    return tensor if tensor.layout is None else replace(tensor, layout=replace(tensor.layout, by_longest=False))


def _run(trunk: _Trunk, group: _Group, device: torch.device) -> list[_Live]:
    """Run the trunk on a group; measure how far rows move when the samples come in other orders and numbers."""
    count = len(group.positions)
    own = trunk.values(group.batch.to(device))
    batch = (group.company or group.batch).to(device)
    if batch.rows == 1:
        batch = batch.select(torch.zeros(2, dtype=torch.long))  # one more of its kind
    usual = own if batch.rows == group.batch.rows else trunk.values(batch)
    noise = [
        (_absolute(a[:count], b[:count]), distance(a[:count], b[:count], a)) for a, b in zip(usual, own, strict=True)
    ]
    for company in companies(batch.rows):
        parts = zip(usual, trunk.values(batch.select(company)), noise, strict=True)
        noise = [
            (max(absolute, _absolute(whole[company], part)), max(ulps, distance(whole[company], part, scale=whole)))
            for whole, part, (absolute, ulps) in parts
        ]
    found = []
    for at, (rows, whole, moved) in enumerate(zip(own, usual, noise, strict=True)):
        step_ulps = 0.0
        if trunk.codings[at] is not None:  # rounding errs by half a step at most
            step_ulps = 2 * distance(whole, trunk.kept(at, whole, batch), scale=whole)
        kept = trunk.kept(at, rows, group.batch)[:count]
        found.append(_Live(rows[:count], whole, moved, kept, step_ulps))
    return found


def _is_equal(a: Tensor, b: Tensor) -> Tensor:
    """Say of each row whether it is equal to the last bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return torch.zeros(len(b), dtype=torch.bool)
    a, b = (each.contiguous().reshape(len(each), -1).view(torch.uint8) for each in (a, b))
    return (a == b).all(1)


def _absolute(a: Tensor, b: Tensor) -> float:
    """Give the largest difference; of values that are no numbers in one of both, infinity."""
    if a.shape != b.shape:
        return float("inf")
    a, b = as_numbers(a), as_numbers(b)
    different = (a != b) & ~(a.isnan() & b.isnan())
    change = (a.double() - b.double()).abs().nan_to_num(float("inf"))
    return float(change[different].max()) if bool(different.any()) else 0.0


def _groups(samples: Samples, chosen: Chosen) -> Iterator[_Group]:
    """Read the samples again; if all of them are chosen, in the batches in which they came."""
    if samples.is_indexed:
        size = samples.batch_size if samples.can_be_joined else 1
        for start in range(0, len(chosen.numbers), size):
            yield _fetched(samples, chosen, range(start, min(start + size, len(chosen.numbers))))
        return
    position, first = 0, 0
    for batch, _ in samples.read():
        positions = []
        while position < len(chosen.numbers) and chosen.numbers[position] < first + batch.rows:
            positions.append(position)
            position += 1
        if positions:
            yield _part(batch, [chosen.numbers[at] - first for at in positions], chosen, positions)
        first += batch.rows


def _fetched(samples: Samples, chosen: Chosen, positions: range) -> _Group:
    """Read samples together, and a few others if they are few."""
    numbers = [chosen.numbers[at] for at in positions]
    is_few = len(numbers) < _USUAL and samples.can_be_joined
    others = sorted(set(spread(len(samples), _USUAL, seed=0)) - set(numbers)) if is_few else []
    whole = samples.fetch([*numbers, *others])
    _check_same(whole, chosen, positions)
    if others and len(chosen.numbers) == len(samples):
        is_uneven = whole.padding is not None  # padded as far as it was, and not as far as the others are
        came = samples.fetch(numbers) if is_uneven else whole.select(torch.arange(len(numbers)))
        return _Group(positions, came, whole)
    return _Group(positions, whole)


def _part(came: Batch, rows: list[int], chosen: Chosen, positions: Sequence[int]) -> _Group:
    """Take some rows of a batch as it came, and others of it if they are few."""
    others = [row for row in range(came.rows) if row not in rows][: max(_USUAL - len(rows), 0)]
    batch = came.select(torch.tensor([*rows, *others])) if len(rows) < came.rows else came
    _check_same(batch, chosen, positions)
    return _Group(positions, batch)


def _check_same(batch: Batch, chosen: Chosen, positions: Sequence[int]) -> None:
    for key, at in zip(batch.row_keys(), positions, strict=False):  # others come after them
        if key.tobytes() != chosen.keys[at].tobytes():
            raise DataError(
                f"Cannot verify sample {chosen.numbers[at]}: expected what its row was computed from, got another "
                "input: the data set has changed since. Extract again: ft.extract(model, dataset, store)"
            )
