"""Extraction with speed="fast" against a plain eager loop, the choice made before: the table of ways, and 3 pairs each.

The loop is `for x in loader: model(x)` under no_grad with batches of 64, and keeps nothing. Extraction hashes, checks,
writes and flushes; it captures, and where that was chosen compiles, in each call.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import forethought as ft
from forethought.demo.crepe import load_crepe


def measure(rows: int = 20_000) -> list[str]:
    """Compare on two trunks."""
    import torchvision

    resnet = ft.freeze(torchvision.models.resnet18(weights=None), until="avgpool").eval()
    frames = _compare("CREPE tiny", load_crepe("tiny"), lambda: torch.randn(rows, 1024))
    return [*frames, *_compare("ResNet-18 at 64 x 64", resnet, lambda: torch.randn(rows // 4, 3, 64, 64))]


def _compare(name: str, model: nn.Module, inputs: Callable[[], torch.Tensor]) -> list[str]:
    folder = Path(tempfile.mkdtemp())
    speed = ft.extract(model, inputs()[:1024], folder, speed="fast").report.speed

    def fast() -> None:
        fresh = inputs()
        assert ft.extract(model, fresh, folder, speed="fast").report.rows_computed == len(fresh)

    def eager() -> None:
        with torch.no_grad():
            for (x,) in DataLoader(TensorDataset(inputs()), batch_size=64):
                model(x)

    found = ft.timing.alternate(eager, fast, repeats=3)
    shutil.rmtree(folder, ignore_errors=True)
    return [f"{name}, eager against fast: {found}", *str(speed).splitlines()]
