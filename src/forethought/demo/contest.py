"""The heads that the demo trains, and how an answer in cents is scored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import forethought as ft
from forethought.demo.crepe import CENTS


@dataclass(frozen=True)
class Scores:
    """How far answers are from the truth.

    Attributes:
        mean_cents: Mean distance. A few octave slips (1,200 cents each) dominate it.
        median_cents: Median distance.
        within: Share of answers within 50, 25 and 10 cents.
        rows: Answers scored.
    """

    mean_cents: float
    median_cents: float
    within: dict[str, float]
    rows: int


def score(answers: Tensor, truth: Tensor) -> Scores:
    """Score answers (N,) against the truth (N,), both in cents.

    Example:
        >>> score(torch.tensor([0.0, 20.0, 1200.0]), torch.zeros(3)).within["25"]
        0.6666666666666666
    """
    if answers.shape != truth.shape:
        raise ValueError(f"Cannot score: expected answers and truth of one shape, got {answers.shape}, {truth.shape}")
    distance = (answers.double() - truth.double()).abs()
    within = {str(limit): float((distance <= limit).double().mean()) for limit in (50, 25, 10)}
    return Scores(float(distance.mean()), float(distance.median()), within, len(distance))


@dataclass(frozen=True)
class Entry:
    """One head of the contest: the module before training, its step size, and what it promises."""

    head: nn.Module
    lr: float
    promise: str


PROMISES = {
    "peak": "averages the classes around its strongest one: smooth, but may jump when that one changes",
    "mean": "averages all its classes: more weight on higher ones never lowers the answer",
    "monotone": "never falls as its latent rises, and is exact at every anchor, to the last bit",
    "free": "promises nothing",
}


def entries(features: ft.Features) -> dict[str, Entry]:
    """Make the heads: kinds, targets and step sizes. Those named 'crepe' start from CREPE's own last layer."""
    width = features.frontier[0].shape[0]
    blurred = {"targets": "blur", "sigma": 1.25, "activation": "sigmoid", "decode": "local"}  # 25 cents, as CREPE
    jumps, mean, monotone, free = PROMISES
    return {
        "crepe peak 3e-3": Entry(_warm(features, "histogram", **blurred), 3e-3, jumps),
        "crepe peak 1e-3": Entry(_warm(features, "histogram", **blurred), 1e-3, jumps),
        "crepe peak 3e-4": Entry(_warm(features, "histogram", **blurred), 3e-4, jumps),
        "crepe mean two-hot": Entry(_warm(features, "histogram"), 1e-3, mean),
        "crepe mean hl-gauss": Entry(_warm(features, "histogram", targets="hl-gauss", sigma=1.25), 1e-3, mean),
        "new mean hl-gauss": Entry(ft.heads.HistogramHead(width, CENTS, targets="hl-gauss", sigma=1.25), 3e-3, mean),
        "new peak": Entry(
            ft.heads.HistogramHead(width, CENTS, targets="hl-gauss", sigma=1.25, decode="local"), 3e-3, jumps
        ),
        "crepe spline 3e-3": Entry(_warm(features, "pwl"), 3e-3, monotone),
        "crepe spline 1e-3": Entry(_warm(features, "pwl"), 1e-3, monotone),
        "crepe spline sigmoid": Entry(_warm(features, "pwl", activation="sigmoid"), 1e-3, monotone),
        "new spline linear": Entry(ft.heads.AnchorSpline(width, CENTS), 1e-2, monotone),
        "new spline mlp": Entry(ft.heads.AnchorSpline(width, CENTS, latent="mlp", hidden=(256,)), 3e-3, monotone),
        "new mlp 128": Entry(ft.heads.MLPHead(width, CENTS, hidden=(128,)), 3e-3, free),
        "new mlp 256 x 2": Entry(ft.heads.MLPHead(width, CENTS, hidden=(256, 256)), 1e-3, free),
    }


def _warm(features: ft.Features, kind: str, **options: Any) -> nn.Module:
    return ft.as_regressor(features, CENTS, kind, **options)


def answers(head: nn.Module, features: ft.Features) -> Tensor:
    """Ask a head about every row: (N,) cents."""
    with torch.no_grad():
        return torch.cat([head(values) for values, _ in features.batches(4096)])
