"""What asking again costs: 250,000 files and 250,000 rows of tensors, all stored, in a fresh process."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

FILES, IMAGES, WIDTH = 250_000, 500, 512
PROGRAM = """
import sys, time, torch
import forethought as ft
from torch import nn
torch.manual_seed(0)
kind, folder, store = sys.argv[1:]
if kind == "files":
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2
    data = ImageFolder(folder, transform=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
else:
    data = torch.randn(250_000, 512, generator=torch.Generator().manual_seed(0))
    body = nn.Sequential(nn.Linear(512, 512), nn.ReLU())
model = nn.Sequential(body, nn.Linear(8 if kind == "files" else 512, 2))
ft.freeze(model, until="0")
started = time.perf_counter()
made = ft.extract(model, data, store, batch_size=500, progress=False, num_workers=2 if kind == "files" else 0)
print(made.report.rows_computed, time.perf_counter() - started)
started = time.perf_counter()
next(iter(made.batches(4096, shuffle=True)))
print(made.report.rows_computed, time.perf_counter() - started)
"""


def measure() -> list[str]:
    """Extract, then ask again twice, each in a process of its own."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        _make_files(Path(place) / "images")
        for kind in ("files", "tensors"):
            told = [_run(kind, place) for _ in range(3)]
            first, again = told[0], told[1:]
            if any(rows for rows, _, _ in again):
                raise RuntimeError(f"rows were computed again: {told}")
            seconds = " and ".join(f"{took:.1f}" for _, took, _ in again)
            shuffled = min(took for _, _, took in again)
            found.append(
                f"{FILES:,} {kind}: {first[1]:.1f} s at first, {first[0]:,} rows computed; again {seconds} s, none; "
                f"first shuffled batch {shuffled:.3f} s later"
            )
    return found


def _make_files(folder: Path) -> None:
    """Make small pictures, each under many names."""
    generator = np.random.default_rng(0)
    for at in range(IMAGES):
        (folder / f"{at:03}").mkdir(parents=True)
        first = folder / f"{at:03}" / "0.png"
        PIL.Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(first)
        for number in range(1, FILES // IMAGES):
            os.link(first, first.with_name(f"{number}.png"))
    time.sleep(0.2)  # what changed just now proves nothing yet


def _run(kind: str, place: str) -> tuple[int, float, float]:
    command = [sys.executable, "-c", PROGRAM, kind, f"{place}/images", f"{place}/{kind}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(told[0]), float(told[1]), float(told[3])
