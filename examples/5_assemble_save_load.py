"""Trunk and heads become one model again, go through one file without pickle, and give the same numbers."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import forethought as ft


def listener() -> nn.Module:
    """Build a classifier of sounds, (B, 100), by instrument, (B, 4)."""
    ear = nn.Sequential(nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    return nn.Sequential(ear, nn.Linear(16, 4))


model = ft.freeze(listener(), until="0")
split = ft.split(model, torch.randn(2, 100))
pitch = ft.heads.AnchorSpline(16, anchors=[60.0, 62.0, 64.0])
full = ft.assemble(split, {"instrument": split.head, "pitch": pitch, "loudness": nn.Linear(16, 1)})

with tempfile.TemporaryDirectory() as folder:
    path = full.save(Path(folder) / "listener.safetensors")
    print(f"{path.name}: {path.stat().st_size:,} bytes")
    # The model's own head and forethought's need nothing; a module of yours is brought along.
    loaded = ft.load(path, listener(), heads={"loudness": nn.Linear(16, 1)})

sounds = torch.randn(3, 100)
before, after = full(sounds), loaded(sounds)
for name in before:
    print(f"{name:<11} {tuple(after[name].shape)!s:<7} the same bits: {torch.equal(before[name], after[name])}")
