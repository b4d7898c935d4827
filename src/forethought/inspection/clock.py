"""How long each operation of a forward takes, in the terms of its recording.

The model runs on a shell with buffers of its own, so that nothing is left on it. Each torch function that the forward
calls is timed by itself; what Python does between them belongs to nobody. Runs that are timed alternate with runs
that are only timed as a whole, so that it can be seen how much of the forward the operations explain.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forethought import nesting
from forethought.splitting.operations import Function, func_name, is_about
from forethought.splitting.recording import Call, Recording
from forethought.splitting.shell import active, shell

INSTRUMENT = "time.perf_counter around each operation of the forward, median of the runs"
_RUNS = (3, 9)
_BUDGET_S = 4.0

Place = tuple[tuple[str, int], ...]
"""A call: the path and the number of each call around it, from the outside, and its own."""


@dataclass(frozen=True)
class Times:
    """What was measured.

    Attributes:
        operations_s: Seconds of each operation of the recording, in order; 0 for one that a later run left out.
        forward_s: Seconds of the whole forward, run without watching.
        runs: How many runs of either kind.
        device: Where the model ran.
        threads: Threads that torch used on the CPU.
    """

    operations_s: tuple[float, ...]
    forward_s: float
    runs: int
    device: str
    threads: int


def measure(model: nn.Module, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Times:
    """Time a model's operations on these inputs; those of the recording, as far as the forward still calls them."""
    buffers = {id(buffer) for buffer in model.buffers()}
    copies: dict[int, Tensor] = {}

    def own(tensor: Tensor) -> Tensor:
        if id(tensor) not in buffers:
            return tensor
        return copies.setdefault(id(tensor), tensor.detach().clone())

    body = shell(model, own)
    wait = _wait_for(model)

    def work(watch: "_Stopwatch | None" = None) -> float:
        given, options = nesting.replace((args, kwargs), torch.clone)  # a forward may write into its inputs
        with nullcontext() if watch is None else active(watch), nullcontext() if watch is None else watch:
            wait()
            start = time.perf_counter()
            body(*given, **options)
            wait()
            return time.perf_counter() - start

    runs: list[dict[Place, list[tuple[Function, float]]]] = []
    whole: list[float] = []
    began = time.perf_counter()
    with torch.enable_grad():
        work()
        while len(runs) < _RUNS[0] or (len(runs) < _RUNS[1] and time.perf_counter() - began < _BUDGET_S):
            whole.append(work())
            watch = _Stopwatch(wait)
            work(watch)
            runs.append(watch.seen)
    times: list[float] = [0.0] * len(recording.operations)
    _assign(recording.root, (), runs, times)
    device = str(next(model.parameters(), torch.empty(0)).device)
    return Times(tuple(times), median(whole), len(runs), device, torch.get_num_threads())


def _wait_for(model: nn.Module) -> Callable[[], object]:
    """Give what waits for the model's device to finish."""
    is_cuda = any(parameter.device.type == "cuda" for parameter in model.parameters())
    return torch.cuda.synchronize if is_cuda else lambda: None


class _Stopwatch(TorchFunctionMode):
    """Sees the calls and the operations of one run, and times the operations."""

    def __init__(self, wait: Callable[[], object]) -> None:
        super().__init__()
        self.seen: dict[Place, list[tuple[Function, float]]] = {(): []}
        self._wait = wait
        self._here: Place = ()
        self._counts: dict[tuple[Place, str], int] = {}
        self._begun = False

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See one call of a module of the shell."""
        outside = self._here
        if self._begun:
            at = self._counts.get((outside, path), 0)
            self._counts[outside, path] = at + 1
            self._here = (*outside, (path, at))
            self.seen[self._here] = []
        self._begun = True
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            self._here = outside

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Time one operation."""
        kwargs = kwargs or {}
        if is_about(func, args, kwargs):
            return func(*args, **kwargs)
        self._wait()
        start = time.perf_counter()
        result = func(*args, **kwargs)
        if func_name(func) == "__iter__":
            result = tuple(result)
        self._wait()
        self.seen[self._here].append((func, time.perf_counter() - start))
        return iter(result) if func_name(func) == "__iter__" else result


def _assign(
    call: Call, place: Place, runs: list[dict[Place, list[tuple[Function, float]]]], times: list[float]
) -> None:
    """Give the operations of a call, and of the calls inside, the median of their times."""
    matched: list[list[float]] = [[] for _ in call.operations]
    for run in runs:
        timed = run.get(place, [])
        for at, other in _matching([op.func for op in call.operations], [func for func, _ in timed]):
            matched[at].append(timed[other][1])
    for op, seconds in zip(call.operations, matched, strict=True):
        times[op.ordinal] = median(seconds) if seconds else 0.0
    for key, child in call.children.items():
        _assign(child, (*place, key), runs, times)


def _matching(ours: list[Function], theirs: list[Function]) -> Iterator[tuple[int, int]]:
    """Pair what two runs of a call have in common: a model that keeps something may compute it in one of them only."""
    if ours == theirs:
        yield from zip(range(len(ours)), range(len(theirs)), strict=True)
        return
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        yield from ((block.a + at, block.b + at) for at in range(block.size))
