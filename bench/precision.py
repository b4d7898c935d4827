"""Feeding shuffled batches of 100,000 rows of 512 that are stored smaller, against exact float32; and their bytes."""

import tempfile

import torch

import forethought as ft


def measure() -> list[str]:
    """Compare one epoch of batches of 4,096 in each precision with one of exact rows."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    model[0].requires_grad_(False)
    inputs = torch.randn(100_000, 64)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        exact = ft.extract(model, inputs, folder, batch_size=4096)
        for dtype in (torch.float16, torch.bfloat16, "int8"):
            small = ft.extract(model, inputs, folder, batch_size=4096, dtype=dtype)
            found = ft.timing.alternate(lambda: _fed(exact), lambda small=small: _fed(small), repeats=9)
            lines.append(f"{found}; {small.report.precision}")
    return lines


def _fed(features: ft.Features) -> None:
    for values, _ in features.batches(4096, shuffle=True):
        assert values.dtype == torch.float32
