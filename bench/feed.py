"""Shuffled batches of 4,096 from 250,000 x 512: against a bare loop over memory, TensorDataset, and the disk."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import forethought as ft

ROWS, WIDTH, BATCH = 250_000, 512, 4096
LIMITED = """
import sys, time, torch
import forethought as ft
sys.path.insert(0, "bench")
from feed import stored
features = stored(sys.argv[1], int(sys.argv[2]), torch.float16)
anonymous = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1e3
before, most = anonymous(), 0.0
started = time.perf_counter()
for values, _ in features.batches(4096, shuffle=True, seed=0, memory=int(sys.argv[3])):
    most = max(most, anonymous())
print(time.perf_counter() - started, most - before)
"""


def stored(folder: str | Path, rows: int, dtype: torch.dtype) -> ft.Features:
    """Give features of so many rows of 512."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, WIDTH), nn.Linear(WIDTH, 1)).to(dtype)
    model[0].requires_grad_(False)
    rest = torch.randn(rows, 64).to(dtype), torch.randn(rows)
    return ft.extract(model, rest, folder, batch_size=BATCH, progress=False)


def measure() -> list[str]:
    """Compare epochs: feeding alone, with a step of a linear head, and from disk in little memory."""
    return [*_in_memory(torch.float16), *_in_memory(torch.float32)[-1:], _out_of_core()]


def _in_memory(dtype: torch.dtype) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        features = stored(folder, ROWS, dtype)
        rows, targets = next(features.batches(ROWS))[0].clone(), features.targets
        held = TensorDataset(rows, targets)

        def ours() -> Iterator[tuple[Tensor, Tensor]]:
            return iter(features.batches(BATCH, shuffle=True))

        def bare() -> Iterator[tuple[Tensor, Tensor]]:
            for at in torch.randperm(ROWS).split(BATCH):
                yield rows[at], targets[at]

        def loader() -> Iterator[tuple[Tensor, Tensor]]:
            return iter(DataLoader(held, BATCH, shuffle=True))

        lines = []
        for name, feed, other in (("a bare loop", bare, ours), ("TensorDataset and DataLoader", loader, ours)):
            found = ft.timing.alternate(_trained(feed), _trained(other), repeats=7)
            lines.append(f"{dtype}, an epoch of a linear head, {name} against ours: {found}")
        found = ft.timing.alternate(_fed(loader), _fed(ours), repeats=5)
    size = ROWS * WIDTH * dtype.itemsize / 1e9
    rates = f"{size / found.a_median_s:.2f} GB/s against {size / found.b_median_s:.1f} GB/s"
    return [*lines, f"{dtype}, feeding alone, TensorDataset and DataLoader against ours: {found}; {rates}"]


def _fed(feed: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> Callable[[], None]:
    def epoch() -> None:
        for values, _ in feed():
            assert len(values)

    return epoch


def _trained(feed: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> Callable[[], None]:
    """Give an epoch of a linear head: cast, forward, loss, backward, step."""
    head = nn.Linear(WIDTH, 1)
    optimizer = torch.optim.SGD(head.parameters(), 1e-3)

    def epoch() -> None:
        for values, targets in feed():
            optimizer.zero_grad()
            nn.functional.mse_loss(head(values.float())[:, 0], targets).backward()
            optimizer.step()

    return epoch


def _out_of_core() -> str:
    """Feed four times as much as memory may hold, out of the system's cache, against reading the files in order."""
    rows, memory = 1_000_000, 256 * 2**20
    with tempfile.TemporaryDirectory(dir=".") as folder:
        stored(folder, rows, torch.float16)
        files = sorted(Path(folder).rglob("*.safetensors"))

        def in_order() -> None:
            for file in files:
                with file.open("rb", buffering=0) as opened:
                    while opened.read(8 * 2**20):
                        pass

        pairs = []
        for _ in range(3):
            _evict(files)
            read = ft.timing.alternate(in_order, lambda: None, repeats=1, warmup=0).a_s[0]
            _evict(files)
            done = subprocess.run(
                [sys.executable, "-c", LIMITED, folder, str(rows), str(memory)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            took, grown = map(float, done.stdout.split())
            pairs.append((took, read, grown))
        size = sum(file.stat().st_size for file in files) / 1e9
    found = ft.timing.Comparison(tuple(took for took, _, _ in pairs), tuple(read for _, read, _ in pairs))
    return (
        f"{size:.2f} GB in windows of 256 MB, out of the system's cache, against reading the files in order: {found}; "
        f"{size / found.a_median_s:.2f} GB/s against {size / found.b_median_s:.2f} GB/s; the process grew by "
        f"{max(grown for _, _, grown in pairs):.0f} MB"
    )


def _evict(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
