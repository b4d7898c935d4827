"""Measure ways to run the frozen part on a few batches, and choose the fastest whose rows are near enough to the exact.

Choosing is greedy: first the batch size and the threads, which change nothing else; then what rounds otherwise; then
compiling the best of that, in float32 and in bfloat16.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forethought.errors import SpeedError
from forethought.extracting.ways import SpeedReport, Way, WayTried
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.splitting.replay import Split

if TYPE_CHECKING:
    from forethought.extracting.capturing import Runner

_EXACT = Way()
_GAIN = 1.05  # by how much a way must be faster than the best so far
_TURNS = 3  # each way and the exact one are timed in turn so often
_LONG_S = 2.0  # a run that takes this long is timed once
_TIMES = (4.0, 0.25)  # other batch sizes that are tried
_FITS = 40  # a larger batch is tried if memory is so many times as large as what it holds


@dataclass
class _Choosing:
    """What was measured so far."""

    split: Split
    device: torch.device
    tolerance: float
    batches: Callable[[int], list[Batch]]  # gives a batch to capture on, and one to measure on
    tried: list[WayTried] = field(default_factory=list)
    faster: dict[Way, float] = field(default_factory=dict)

    def measure(self, way: Way, base: Way = _EXACT) -> float | None:
        """Try a way beside another one; say how many times faster than the exact one it is, if its rows are near."""
        try:
            runs = [self._runner(each) for each in (base, way)]
            rate, against, error = self._timed(*runs, is_same=way == base)
        except SpeedError as err:
            self.tried.append(WayTried(way, None, None, None, str(err)))
            return None
        is_near = error <= self.tolerance
        told = "" if is_near else f"error above {self.tolerance:g}"
        if not math.isfinite(error):
            told = "gives rows that cannot be compared: not numbers, or of another shape"
        self.faster[way] = rate / against * self.faster.get(base, 1.0)
        self.tried.append(WayTried(way, rate, self.faster[way], error if math.isfinite(error) else None, told))
        return self.faster[way] if is_near else None

    def _runner(self, way: Way) -> "tuple[Runner, Batch]":
        from forethought.extracting.capturing import Runner  # torch's tracer takes a second to import

        example, measured = self.batches(way.batch_size or 0)
        try:
            return Runner(self.split, way, example, example.rows), measured
        except torch.OutOfMemoryError as err:
            raise SpeedError("out of memory") from err

    def _timed(
        self, base: "tuple[Runner, Batch]", own: "tuple[Runner, Batch]", *, is_same: bool
    ) -> tuple[float, float, float]:
        """Give samples a second of a way and of another one, in turn, and how far its rows are from the exact ones."""
        times: list[list[float]] = [[], []]
        self._run(base)  # warm
        given, spent = self._run(own)
        for _ in range(_TURNS if spent < _LONG_S else 1):
            for at, each in enumerate((base, own)):
                times[at].append(self._run(each)[1])
        rates = [each[1].rows / min(taken) for each, taken in zip((base, own), times, strict=True)]
        if own[0].way.is_exact:
            error = 0.0
        else:
            exact = self.split.rows(*_given(own[1]))
            error = max(row_error(one, other) for one, other in zip(exact, given, strict=True))
        return rates[1], rates[1] if is_same else rates[0], error

    def _run(self, pair: "tuple[Runner, Batch]") -> tuple[list[Tensor], float]:
        runner, batch = pair
        copied = batch.copied_to(self.device)
        self._wait()
        start = time.perf_counter()
        try:
            rows = runner(copied)
        except torch.OutOfMemoryError as err:
            raise SpeedError("out of memory") from err
        self._wait()
        return rows, time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose(
    split: Split, samples: Samples, device: torch.device, tolerance: float, batch_size: int | None, room: int | None
) -> SpeedReport:
    """Measure ways and choose one.

    Args:
        split: Whose trunk is run, where it is to be run.
        samples: The data set.
        device: Where.
        tolerance: The largest error allowed, see `WayTried.error`.
        batch_size: Samples a batch, if that is settled; None to try others, too.
        room: Bytes of memory that are free; None if that is not known.
    """
    started = time.perf_counter()
    is_even = samples.can_be_joined and samples.unevenness is None
    work = _Choosing(split, device, tolerance, lambda size: _batches(samples, size or samples.batch_size, device))
    best, faster = _EXACT, work.measure(_EXACT) or 1.0
    if is_even:
        for way, base in _sizes(samples, batch_size, room, device, work):
            best, faster = _better(work, replace(best, batch_size=way), base, best, faster)
        for count in _counts(device):
            best, faster = _better(work, replace(best, threads=count), best, best, faster)
        best, faster = _roundings(work, best, faster)
    else:
        reason = "samples differ in size"
        work.tried += [WayTried(replace(_EXACT, **{name: True}), None, None, None, reason) for name in _NAMES]
    exact = work.batches(0)[1]
    tried = tuple(replace(each, reason=_reason(each, best)) for each in work.tried)
    return SpeedReport(
        way=best,
        tried=tried,
        tolerance=tolerance,
        noise=_noise(split, exact),
        rows=exact.rows,
        device=device.type,
        threads=torch.get_num_threads(),
        time_s=time.perf_counter() - started,
    )


_NAMES = ("folded", "channels_last", "bfloat16", "compiled")


def _roundings(work: _Choosing, best: Way, faster: float) -> tuple[Way, float]:
    """Try what rounds otherwise: in float32 and in bfloat16, and the better of each compiled."""
    base = best
    for is_half in (False, True):
        own, own_faster = None, 0.0
        for names in (("folded",), ("folded", "channels_last")):
            way = replace(base, **dict.fromkeys(names, True), bfloat16=is_half)
            found = work.measure(way, base) or 0.0
            if found > own_faster:
                own, own_faster = way, found
        if own is None:  # too far off, or not to be captured: compiling helps neither
            continue
        compiled = replace(own, compiled=True)
        for way, found in ((own, own_faster), (compiled, work.measure(compiled, base) or 0.0)):
            if found > faster * _GAIN:
                best, faster = way, found
    return best, faster


def _better(work: _Choosing, way: Way, base: Way, best: Way, faster: float) -> tuple[Way, float]:
    found = work.measure(way, base)
    return (way, found) if found is not None and found > faster * _GAIN else (best, faster)


def _sizes(
    samples: Samples, settled: int | None, room: int | None, device: torch.device, work: _Choosing
) -> Iterator[tuple[int, Way]]:
    """Give other batch sizes to try: those that there are samples and memory for."""
    if settled is not None or not samples.is_indexed:
        return
    own = samples.batch_size
    given = sum(tensor.nbytes for tensor in work.batches(0)[0].tensors)
    for times in _TIMES:
        size = max(1, round(own * times))
        is_small = device.type == "cuda" or room is None or given * times * _FITS < room
        if size <= len(samples) and (times < 1 or is_small):
            yield size, _EXACT


def _counts(device: torch.device) -> list[int]:
    """Give other numbers of threads to try."""
    now = torch.get_num_threads()
    return [] if device.type != "cpu" or now == 1 else [max(1, now // 2)]


def _batches(samples: Samples, size: int, device: torch.device) -> list[Batch]:
    """Read two batches spread over the data set, of other samples where there are enough."""
    if samples.is_indexed:
        total = len(samples)
        size = min(size, total)
        step = max(total // (2 * size), 1)
        picks = [[(at * step * 2 + part * step) % total for at in range(size)] for part in range(2)]
        return [
            samples.fetch(pick).to(device) if samples.can_be_joined else samples.example(2).to(device) for pick in picks
        ]
    found = list(samples.first(2 * size))
    return [found[0].to(device), found[-1 if found[-1].rows == found[0].rows else 0].to(device)]


def row_error(exact: Tensor, other: Tensor) -> float:
    """Give the largest distance of a row from the exact one, beside that one's length (Euclidean).

    Rows that are not numbers, or not to be measured, are equal or infinitely far apart. A row of nothing but zeros
    counts as long as the rows are on average.

    Example:
        >>> row_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]]))
        0.1
    """
    if exact.shape != other.shape or exact.dtype != other.dtype:
        return math.inf
    if not (exact.is_floating_point() or exact.is_complex()):
        return 0.0 if torch.equal(exact, other) else math.inf
    wide = torch.complex128 if exact.is_complex() else torch.float64
    one, two = (rows.detach().cpu().to(wide).reshape(len(rows), -1) for rows in (exact, other))
    is_known = one.isfinite()
    if not torch.equal(one[~is_known].nan_to_num(), two[~is_known].nan_to_num()) or not bool(
        two[is_known].isfinite().all()
    ):
        return math.inf
    one, two = one.masked_fill(~is_known, 0), two.masked_fill(~is_known, 0)
    lengths = torch.linalg.vector_norm(one, dim=1)
    usual = float(lengths.mean()) if len(lengths) else 0.0
    apart = torch.linalg.vector_norm(one - two, dim=1)
    if not usual:
        return 0.0 if not bool(apart.any()) else math.inf
    return float((apart / torch.where(lengths > 0, lengths, usual)).max()) if len(lengths) else 0.0


def _noise(split: Split, batch: Batch) -> float | None:
    """Say how far the exact rows move when the samples come in another batch: half of them, in reverse."""
    chosen = torch.arange(batch.rows).flip(0)[: max(batch.rows // 2, 2)]
    whole, part = split.rows(*_given(batch)), split.rows(*_given(batch.select(chosen)))
    moved = max(row_error(one[chosen.to(one.device)], other) for one, other in zip(whole, part, strict=True))
    return moved if math.isfinite(moved) else None


def _given(batch: Batch) -> tuple[tuple[object, ...], dict[str, object]]:
    copied = batch.copied_to(batch.tensors[0].device)
    return copied.args, copied.kwargs


def _reason(each: WayTried, best: Way) -> str:
    if each.way == best:
        return ""
    if each.rows_per_s is None:
        return f"unavailable: {each.reason}"
    return each.reason or "not taken"
