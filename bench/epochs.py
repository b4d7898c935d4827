"""A cached epoch against an uncached one, the same head on both sides: CREPE tiny, 4,000 frames.

The uncached side is a careful person's: the frozen layers under no_grad, then the head's forward, backward and step.
"""

import tempfile

import torch

import forethought as ft
from forethought.demo.costs import measure_epochs
from forethought.demo.crepe import CENTS, load_crepe
from forethought.demo.notes import Frames, make_splits


def measure() -> list[str]:
    """Compare epochs for two heads."""
    frames = _first(make_splits("default").train, 4_000)
    model = load_crepe("tiny")
    heads = {
        "AnchorSpline, linear latent (257 parameters)": ft.heads.AnchorSpline(256, CENTS),
        "HistogramHead, one Linear (94,576 parameters)": ft.heads.HistogramHead(
            256, CENTS, targets="blur", sigma=1.25, activation="sigmoid", decode="local"
        ),
    }
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        features = ft.extract(model, (frames.audio, frames.cents), folder, batch_size=256)
        for name, head in heads.items():
            found = measure_epochs(name, head, 1e-3, features, frames, model, batch=512, pairs=5)
            ratio, least, most = found.ratio
            lines.append(
                f"{name}: {ratio:.0f} x ({least:.0f} to {most:.0f} in 5 pairs), "
                f"{found.uncached_epoch_s:.2f} s against {found.cached_epoch_s:.4f} s, {found.rows:,} rows"
            )
    return lines


def _first(frames: Frames, rows: int) -> Frames:
    keep = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))[:rows]
    return Frames(
        frames.audio[keep],
        frames.cents[keep],
        frames.note[keep],
        frames.take[keep],
        frames.instrument[keep],
        frames.instruments,
    )
