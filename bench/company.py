"""Many heads together against one, and against one after another."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from feed import stored
from torch import nn

import forethought as ft

ROWS = 50_000


def measure() -> list[str]:
    """Compare epochs of linear heads, and of small MLPs, in groups of several sizes."""
    with tempfile.TemporaryDirectory() as folder:
        features = stored(folder, ROWS, torch.float32)
        linear = _Group("linear", 4096, nn.Sequential(nn.Linear(512, 1), nn.Flatten(0)), features)
        mlp = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
        return [*linear.measure(), *_Group("512-32-1", 256, mlp, features).measure()]


@dataclass
class _Group:
    name: str
    batch_size: int
    head: nn.Module
    features: ft.Features

    def measure(self) -> list[str]:
        lines = [self._in_turn(count, repeats) for count, repeats in ((2, 5), (8, 3), (64, 2))]
        found = ft.timing.alternate(lambda: self._epoch(self._heads(64)), lambda: self._epoch(self.head), repeats=5)
        return [*lines, f"64 {self.name} heads, batch {self.batch_size}, together against one: {found}"]

    def _in_turn(self, count: int, repeats: int) -> str:
        heads = self._heads(count)

        def in_turn() -> None:
            for head in heads.values():
                self._epoch(head)

        found = ft.timing.alternate(in_turn, lambda: self._epoch(heads), repeats=repeats)
        return f"{count} {self.name} heads, batch {self.batch_size}, in turn against together: {found}"

    def _heads(self, count: int) -> dict[str, nn.Module]:
        return {f"h{at}": self.head for at in range(count)}  # fit copies them

    def _epoch(self, heads: nn.Module | Mapping[str, nn.Module]) -> None:
        few = next(self.features.batches(256))  # validation costs next to nothing
        ft.fit(self.features, few, heads, epochs=1, batch_size=self.batch_size, progress=False)
