"""How long a certificate takes for 360 classes: processor time, the median of five."""

import statistics
import time

import torch

from forethought import heads

CLASSES = 360


def measure() -> list[str]:
    """Certify one head of each kind."""
    torch.manual_seed(0)
    anchors = torch.arange(CLASSES) * 20.0
    family: list[heads.Head] = [
        heads.AnchorSpline(256, anchors, knots="trainable", between="rational"),
        heads.AnchorSpline(256, anchors, "classifier"),
        heads.CumulativeLink(256, anchors),
        heads.CornHead(256, anchors),
        heads.HistogramHead(256, anchors),
        heads.PrototypeExact(400, anchors, torch.randn(CLASSES, 400)),
        heads.PartialMonotone(16, anchors, [1] * 4 + [0] * 12),
        heads.CircularSpline(256, anchors, 7200.0),
    ]
    return [f"{type(head).__name__}: {_median(head) * 1e3:.0f} ms" for head in family]


def _median(head: heads.Head) -> float:
    times = []
    for _ in range(5):
        start = time.process_time()
        head.certify().raise_if_failed()
        times.append(time.process_time() - start)
    return statistics.median(times)
