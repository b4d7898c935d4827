"""The fourth meaning of "hits the anchors": in the mean of a class. It is measured on samples, never certified."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.interface import places_of
from forethought.heads.layers import as_rows, in_evaluation


@dataclass(frozen=True)
class ClassMean:
    """The mean answer for one class's samples.

    Attributes:
        label: The class.
        anchor: Its value.
        rows: Its samples.
        mean: Of the answers; None without samples.
        low, high: Confidence interval of the mean (Student's t); None for fewer than four samples.
    """

    label: int
    anchor: float
    rows: int
    mean: float | None
    low: float | None
    high: float | None

    @property
    def agrees(self) -> bool | None:
        """Whether the interval holds the anchor; None where there is none. No proof either way."""
        return None if self.low is None or self.high is None else self.low <= self.anchor <= self.high


def class_means(
    head: nn.Module, features: Tensor, labels: Tensor, anchors: Tensor | None = None, confidence: float = 0.95
) -> tuple[ClassMean, ...]:
    """Measure the mean answer of each class on samples that the head was not trained on.

    Args:
        head: (B, D) to (B,).
        features: (N, D).
        labels: (N,) class numbers, as the head has them: from 0 to K - 1, or `head.classes`.
        anchors: (K,), in the order of the classes; None: the head's own.
        confidence: Of each interval, by itself: of twenty intervals at 0.95, one misses on average.

    Raises:
        FitError: labels that are none, a confidence outside 0 to 1, or no anchors.

    Example:
        >>> from forethought.heads import AnchorCalibrator
        >>> scores, labels = torch.tensor([[0.0], [0.2], [1.0], [1.2]]), torch.tensor([0, 0, 1, 1])
        >>> [one.mean for one in class_means(AnchorCalibrator([10.0, 20.0]), scores, labels)]
        [11.0, 20.0]
    """
    if not 0 < confidence < 1:
        raise FitError(f"Cannot measure class means: expected 0 < confidence < 1, got {confidence}. confidence=0.95")
    values = getattr(head, "anchors", None) if anchors is None else anchors
    if not isinstance(values, Tensor):
        raise FitError(
            "Cannot measure class means: expected anchors, got a head without. class_means(..., anchors=anchors)"
        )
    numbers = getattr(head, "classes", None) if anchors is None else None
    features, labels = as_rows(features), as_rows(labels).detach().cpu()
    if numbers is not None:
        labels = places_of(labels, numbers, len(values))
    is_whole = not labels.is_floating_point() and labels.dtype != torch.bool
    is_known = is_whole and (not len(labels) or 0 <= int(labels.min()) <= int(labels.max()) < len(values))
    if labels.shape != features.shape[:1] or not is_known:
        raise FitError(
            f"Cannot measure class means: expected class indices ({len(features)},) from 0 to {len(values) - 1}, got "
            f"{labels.dtype} {tuple(labels.shape)}. Pass labels.long()"
        )
    with in_evaluation(head), torch.no_grad():
        answers = head(features).double().cpu()
    numbers = range(len(values)) if numbers is None else numbers
    return tuple(
        _one(numbers[k], float(value), answers[labels == k], confidence) for k, value in enumerate(values.tolist())
    )


def _one(label: int, anchor: float, answers: Tensor, confidence: float) -> ClassMean:
    rows = len(answers)
    if rows == 0:
        return ClassMean(label, anchor, 0, None, None, None)
    mean = float(answers.mean())
    if rows < 4:
        return ClassMean(label, anchor, rows, mean, None, None)
    reach = student_t((1 + confidence) / 2, rows - 1) * float(answers.std()) / math.sqrt(rows)
    return ClassMean(label, anchor, rows, mean, mean - reach, mean + reach)


def student_t(share: float, freedom: int) -> float:
    """Return the quantile of Student's t, within 1 % from 3 degrees of freedom up (Cornish and Fisher's expansion)."""
    z, n = NormalDist().inv_cdf(share), freedom
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / n**power for power, term in enumerate(terms)))
