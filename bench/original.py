"""The problem that it began with: 250,000 frames to train on, 50,000 to validate, CREPE tiny frozen but for its head.

The uncached epoch is timed on a sample of frames and scaled to all: it is the same work for each. The cached epoch is a
whole one, over a table of 300,000 rows as wide as CREPE's. Those rows come from a layer that is quicker to run than
CREPE: what is in them does not change how long they take to feed.
"""

import copy
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn

import forethought as ft
from forethought.demo.costs import embedded
from forethought.demo.crepe import CENTS, load_crepe

TRAIN, VAL, SAMPLE, BATCH = 250_000, 50_000, 3_072, 512


def measure() -> list[str]:
    """Compare epochs, validation included, for a scalar head and for one of 360 classes."""
    heads = {
        "AnchorSpline, 257 parameters": ft.heads.AnchorSpline(256, CENTS),
        "HistogramHead, 92,520 parameters": ft.heads.HistogramHead(256, CENTS, targets="blur", sigma=1.25),
    }
    torch.manual_seed(0)
    stand_in = nn.Sequential(nn.Linear(32, 256), nn.Linear(256, 1))
    stand_in[0].requires_grad_(False)
    x, cents = torch.randn(TRAIN + VAL, 32), torch.empty(TRAIN + VAL).uniform_(float(CENTS[0]), float(CENTS[-1]))
    with tempfile.TemporaryDirectory() as folder:
        train, val = (
            ft.extract(stand_in, (x[part], cents[part]), folder, batch_size=4096, progress=False)
            for part in (slice(TRAIN), slice(TRAIN, None))
        )
        return [_line(name, head, train, val) for name, head in heads.items()]


def _line(name: str, head: nn.Module, train: ft.Features, val: ft.Features) -> str:
    crepe, audio = load_crepe("tiny"), torch.randn(SAMPLE, 1024)
    cents = torch.empty(SAMPLE).uniform_(float(CENTS[0]), float(CENTS[-1]))
    live, fed = _Loop(head), _Loop(head)
    cut = SAMPLE * TRAIN // (TRAIN + VAL)

    def uncached() -> None:
        """A careful person's epoch over the sample: the frozen layers under no_grad, then the head."""
        for at in torch.randperm(cut).split(BATCH):
            with torch.no_grad():
                values = embedded(crepe, audio[at])
            live.step(values, cents[at])
        for at in torch.arange(cut, SAMPLE).split(BATCH):
            live.score(embedded(crepe, audio[at]), cents[at])

    def cached() -> None:
        for values, targets in train.batches(BATCH, shuffle=True):
            fed.step(values, targets)
        for values, targets in val.batches(BATCH):
            fed.score(values, targets)

    found = ft.timing.alternate(uncached, cached, repeats=5)
    scale = (TRAIN + VAL) / SAMPLE
    least, most = found.ratio_min * scale, found.ratio_max * scale
    times = f"{found.a_median_s * scale:.0f} s, scaled from {SAMPLE:,} frames, against {found.b_median_s:.3f} s"
    return f"{name}: {found.ratio * scale:.0f} x ({least:.0f} to {most:.0f} in 5 pairs): {times}"


class _Loop:
    def __init__(self, head: nn.Module) -> None:
        self._head = copy.deepcopy(head).train()
        self._optimizer = torch.optim.AdamW(self._head.parameters(), lr=1e-3)
        self._loss: Callable[[Tensor, Tensor], Tensor] = self._head.loss  # type: ignore[assignment]

    def step(self, values: Tensor, targets: Tensor) -> None:
        self._optimizer.zero_grad()
        self._loss(values, targets).backward()
        self._optimizer.step()

    @torch.no_grad()
    def score(self, values: Tensor, targets: Tensor) -> float:
        return float((self._head(values) - targets).abs().sum())
