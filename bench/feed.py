"""Feeding shuffled batches of 250,000 rows of 512 float32 against TensorDataset + DataLoader, both from memory."""

import tempfile

import torch
from torch.utils.data import DataLoader, TensorDataset

import forethought as ft


def measure() -> list[str]:
    """Compare one epoch of batches of 4,096."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Linear(512, 2))
    model[0].requires_grad_(False)
    rows = 250_000
    with tempfile.TemporaryDirectory() as folder:
        features = ft.extract(model, (torch.randn(rows, 64), torch.zeros(rows)), folder, batch_size=4096)
        held = TensorDataset(next(features.batches(rows))[0], features.targets)

        def fed() -> None:
            for values, _ in features.batches(4096, shuffle=True):
                assert len(values)

        def loaded() -> None:
            for values, _ in DataLoader(held, 4096, shuffle=True):
                assert len(values)

        found = ft.timing.alternate(loaded, fed, repeats=5)
    size = rows * 512 * 4 / 1e9
    return [f"{found}; {size / found.b_median_s:.1f} GB/s against {size / found.a_median_s:.2f} GB/s"]
