"""An epoch of training each head against one of a plain linear layer of as many outputs, and its certificate's time.

Features are drawn, 100,000 x 768, batches of 4,096, AdamW, both cores; FORETHOUGHT_BENCH_ROWS says how many rows. The
two sides in turn; least and most of five pairs.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from forethought import heads

ROWS = int(os.environ.get("FORETHOUGHT_BENCH_ROWS", "100000"))
WIDTH, CLASSES, BATCH, PAIRS = 768, 12, 4096, 5


def measure() -> list[str]:
    """Measure every head of the family."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH)
    anchors = torch.arange(CLASSES, dtype=torch.float32).mul(1.5).tolist()
    targets = torch.rand(ROWS) * anchors[-1]
    lines = []
    for name, head, outputs in _family(anchors, x):
        plain = nn.Linear(WIDTH, outputs)
        pairs = [
            (_epoch(head, head.loss, x, targets), _epoch(plain, _squares(plain), x, targets)) for _ in range(PAIRS)
        ]
        ratios = [ours / theirs for ours, theirs in pairs]
        own, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
        start = time.perf_counter()
        certificate = head.certify()
        took = time.perf_counter() - start
        lines.append(
            f"{name}: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}), {own:.2f} s against "
            f"{bare:.2f} of Linear({WIDTH}, {outputs}); certificate {took * 1e3:.0f} ms, "
            f"{'holds' if certificate.holds else 'does not hold'}"
        )
    return lines


def _family(anchors: list[float], x: torch.Tensor) -> list[tuple[str, heads.Head, int]]:
    labels = torch.arange(len(x)) % CLASSES
    means = heads.class_prototypes(x, labels, CLASSES)
    partial, deeper = (heads.PartialMonotone(WIDTH, anchors, {0: 1, 1: -1}, hidden=sizes) for sizes in ((), (32, 32)))
    return [
        ("AnchorSpline, linear", heads.AnchorSpline(WIDTH, anchors), 1),
        ("AnchorSpline, rational", heads.AnchorSpline(WIDTH, anchors, between="rational", knots="trainable"), 1),
        ("AnchorSpline, classifier", heads.AnchorSpline(WIDTH, anchors, "classifier"), CLASSES),
        ("CumulativeLink", heads.CumulativeLink(WIDTH, anchors), 1),
        ("CornHead", heads.CornHead(WIDTH, anchors), CLASSES - 1),
        ("HistogramHead, two-hot", heads.HistogramHead(WIDTH, anchors), CLASSES),
        ("HistogramHead, hl-gauss", heads.HistogramHead(WIDTH, anchors, targets="hl-gauss"), CLASSES + 6),
        ("PrototypeExact", heads.PrototypeExact(WIDTH, anchors, means), 1),
        ("PartialMonotone, two named, no hidden", partial.place(x), 1),
        ("PartialMonotone, two named, hidden 32, 32", deeper.place(x), 1),
        ("CircularSpline", heads.CircularSpline(WIDTH, anchors, 99.0), 2),
    ]


def _squares(plain: nn.Linear) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda features, targets: (plain(features) - targets[:, None]).square().mean()


def _epoch(
    module: nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    targets: torch.Tensor,
) -> float:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    order = torch.randperm(len(x))
    start = time.perf_counter()
    for rows in order.split(BATCH):
        optimizer.zero_grad(set_to_none=True)
        loss(x[rows], targets[rows]).backward()
        optimizer.step()
    return time.perf_counter() - start
