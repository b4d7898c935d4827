"""Extraction against a bare `for x in loader: trunk(x)`, trunks of at least 1 ms a row, 9 pairs each.

The bare loop keeps nothing. Extraction also hashes, checks, writes and flushes; it is given the split, as the loop is.
What it does once, whatever the number of rows (looking at the model anew, hashing its weights, the probe), shows in the
smaller number of rows.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import forethought as ft
from forethought.demo.crepe import load_crepe


def measure() -> list[str]:
    """Compare on two trunks."""
    import torchvision

    resnet = ft.freeze(torchvision.models.resnet18(weights=None), until="avgpool")
    return [
        _compare("CREPE tiny", load_crepe("tiny"), torch.randn(2304, 1024)),
        _compare("CREPE tiny", load_crepe("tiny"), torch.randn(9216, 1024)),
        _compare("ResNet-18 at 64 x 64", resnet, torch.randn(2304, 3, 64, 64)),
        _compare("ResNet-18 at 64 x 64", resnet, torch.randn(9216, 3, 64, 64)),
    ]


def _compare(name: str, model: nn.Module, inputs: torch.Tensor) -> str:
    split = ft.split(model, inputs[:2])
    dataset = TensorDataset(inputs, torch.zeros(len(inputs)))
    folder = Path(tempfile.mkdtemp())

    def extract() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        assert ft.extract(split, dataset, folder, batch_size=64).report.rows_computed == len(inputs)

    def bare() -> None:
        for x, _ in DataLoader(dataset, batch_size=64):
            split.trunk(x)

    def by_hand() -> None:
        with torch.no_grad():
            for x, _ in DataLoader(dataset, batch_size=64):
                model(x)

    against_trunk = ft.timing.alternate(extract, bare, repeats=9)
    against_model = ft.timing.alternate(extract, by_hand, repeats=3)
    shutil.rmtree(folder, ignore_errors=True)
    each = against_trunk.b_median_s / len(inputs) * 1e3
    rows = f"{name}, {len(inputs):,} rows of {each:.2f} ms"
    return f"{rows}: {against_trunk}; against the model's own forward under no_grad: {against_model}"
