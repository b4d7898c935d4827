"""Intervals around a head's answers that hold as often as they say, by split conformal prediction.

The radius is the right quantile of the errors on rows that the head has not seen, the same everywhere, so both ends of
an interval rise and fall with the answer, float by float: a monotone head has monotone intervals. Scores that vary with
the input (normalised residuals, quantile regression) lose that, unless they are monotone themselves. Kept here, as it
is one quantile; `mapie` and `crepes` do the rest on the scikit-learn estimator.

Vovk, Gammerman and Shafer (2005); Lei, G'Sell, Rinaldo, Tibshirani and Wasserman (2018), arXiv:1604.04173.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.layers import as_rows, in_evaluation


@dataclass(frozen=True)
class Coverage:
    """How often intervals held on some rows.

    Attributes:
        share: Of rows whose target is in its interval.
        low, high: Wilson's 95 % interval of that share.
        rows: How many.
        width: Of an interval, in the targets' unit: the mean over rows.
    """

    share: float
    low: float
    high: float
    rows: int
    width: float


class Conformal(nn.Module):
    """A head with an interval around each answer: features (B, D) to (lower, answer, upper), each (B,).

    Made by `conformalize`.

    Attributes:
        head: What gives the answers.
        radius: Half an interval's width, a scalar, in the anchors' unit.
        confidence: How often an interval holds a new target, at least, on average over calibration rows.
        rows: Calibration rows.
        within: Least and greatest value that targets can have, or None.
    """

    radius: Tensor

    def __init__(
        self, head: nn.Module, radius: float, confidence: float, rows: int, within: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("radius", torch.tensor(radius, dtype=torch.float64))
        self.confidence, self.rows, self.within = confidence, rows, within

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return lower end, answer and upper end for each row."""
        y = self.head(features)
        low, high = y - self.radius.to(y.dtype), y + self.radius.to(y.dtype)
        if self.within is not None:
            low, high = low.clamp(*self.within), high.clamp(*self.within)
        return low, y, high

    def coverage(self, features: Tensor, targets: Tensor) -> Coverage:
        """Count how often the intervals hold on rows that neither trained nor calibrated the head."""
        features, targets = as_rows(features), as_rows(targets)
        _check_rows(features, targets)
        with in_evaluation(self), torch.no_grad():
            low, _, high = self(features)
        held = (targets >= low) & (targets <= high)
        rows, share = len(targets), float(held.double().mean())
        return Coverage(share, *_wilson(share, rows), rows, float((high - low).double().mean()))


def conformalize(
    head: nn.Module,
    features: Tensor,
    targets: Tensor,
    confidence: float = 0.9,
    within: tuple[float, float] | None = None,
) -> Conformal:
    """Find how far answers are off on rows that the head was not trained on, in one pass.

    Args:
        head: (B, D) to (B,), trained.
        features: (N, D). Rows that trained it, or the trunk that its features come from, void the guarantee.
        targets: (N,), in the anchors' unit.
        confidence: Of an interval, over new rows drawn as these were.
        within: Least and greatest value that a target can have: intervals are cut there. Only if it is so.

    Raises:
        FitError: too few rows for the confidence, targets that are not finite or do not match, a head on a circle.

    Example:
        >>> from forethought.heads import AnchorCalibrator
        >>> x = torch.linspace(0, 1, 99)[:, None]
        >>> intervals = conformalize(AnchorCalibrator([10.0, 20.0]), x, 10 + 10 * x.squeeze(1) ** 2)
        >>> [round(end.item(), 2) for end in intervals(torch.tensor([[0.5]]))]
        [12.53, 15.0, 17.47]
    """
    if not 0 < confidence < 1:
        raise FitError(f"Cannot make intervals: expected 0 < confidence < 1, got {confidence}. confidence=0.9")
    if hasattr(head, "period"):
        raise FitError(
            "Cannot make intervals: expected values on a line, got a head on a circle, where there is no lower end. "
            "Use the quantile of its own distance: head.distance(head(features), targets).quantile(0.9)"
        )
    features, targets = as_rows(features), as_rows(targets)
    _check_rows(features, targets)
    least = math.ceil(confidence / (1 - confidence) - 1e-9)
    if len(targets) < least:
        raise FitError(
            f"Cannot make intervals of confidence {confidence}: expected at least {least} rows, got {len(targets)}. "
            "Hold out more rows, or ask for less"
        )
    with in_evaluation(head), torch.no_grad():
        answers = head(features)
    errors = (answers.double() - targets.double()).abs()
    if answers.shape != targets.shape or not errors.isfinite().all():
        got, fix = "one that is not finite", "Leave out rows whose targets are not finite"
        if answers.shape != targets.shape:
            got = f"answers {tuple(answers.shape)}"
            fix = "Take the heads of several targets one by one: conformalize(head.heads['pitch'], ...)"
        raise FitError(
            f"Cannot make intervals: expected a finite error for each of {len(targets)} rows, got {got}. {fix}"
        )
    rank = math.ceil((len(targets) + 1) * confidence - 1e-9)
    radius = float(errors.sort().values[rank - 1])
    # In the head's precision y + radius may round inward: one step more, and the row that set it is in its interval.
    radius += 2 * torch.finfo(answers.dtype).eps * (float(targets.double().abs().max()) + radius)
    return Conformal(head, radius, confidence, len(targets), within).to(features.device)


def _check_rows(features: Tensor, targets: Tensor) -> None:
    if targets.shape != features.shape[:1] or not len(targets):
        raise FitError(
            f"Cannot make intervals: expected one target a row, ({len(features)},), got {tuple(targets.shape)}. "
            "Pass targets.squeeze(1)"
        )


def _wilson(share: float, rows: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z = NormalDist().inv_cdf(0.975)
    middle, reach = share + z * z / (2 * rows), z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    return (middle - reach) / (1 + z * z / rows), (middle + reach) / (1 + z * z / rows)
