"""One head in training: what it is trained with, how it does, how it ended. Its weights are in its group."""

import copy
import math

import torch
from torch import nn

from forethought.fitting.options import Options
from forethought.fitting.results import EpochMetrics


class Trainee:
    """What is known of one head.

    Args:
        name: Its name.
        module: What was handed in; a copy is trained.
        options: What it is trained with.
        device: Where.
    """

    def __init__(self, name: str, module: nn.Module, options: Options, device: torch.device) -> None:
        self.name, self.options, self.device = name, options, device
        self.head = copy.deepcopy(module).to(device)
        self.parameters = sum(p.numel() for p in self.head.parameters() if p.requires_grad)
        self.dtype = next((p.dtype for p in self.head.parameters() if p.is_floating_point()), None)
        self.metrics: list[EpochMetrics] = []
        self.best: EpochMetrics | None = None
        self.failed: str | None = None
        self.time_s = 0.0
        self.is_done = False  # nothing more is to be gained: its optimizer has converged

    @property
    def epochs(self) -> int:
        """Epochs to run; a head with nothing to train is only scored, once."""
        return self.options.epochs if self.parameters else 1

    @property
    def is_ranked(self) -> bool:
        """Whether the head has a score and did not fail."""
        return self.best is not None and self.failed is None

    @property
    def rank(self) -> tuple[bool, float]:
        """A key that sorts the best first."""
        sign = -1.0 if self.options.is_higher_better else 1.0
        return (not self.is_ranked, sign * self.best.val_score if self.best else math.inf)

    def is_training(self, epoch: int) -> bool:
        """Whether this head takes part in the epoch, counted from 0."""
        waited = epoch - (self.best.epoch if self.best else 0)
        is_tired = self.options.patience is not None and waited >= self.options.patience
        return not (self.failed or self.is_done or is_tired or epoch >= self.epochs)

    def close_epoch(self, epoch: int, train_loss: float, scores: tuple[float, ...]) -> bool:
        """Note the epoch's numbers; stop if they are not finite; say whether they are the best so far."""
        metrics = EpochMetrics(epoch + 1, train_loss, scores[0], scores[1:])
        self.metrics.append(metrics)
        if not (math.isfinite(train_loss) and math.isfinite(scores[0])):
            what = "validation score" if math.isfinite(train_loss) else "training loss"
            self.failed = f"stopped in epoch {epoch + 1}: its {what} was not finite"
            return False
        if self.best is None or self.options.keep == "last" or self._is_better(scores[0], self.best.val_score):
            self.best = metrics
            return True
        return False

    def _is_better(self, score: float, best: float) -> bool:
        return score > best if self.options.is_higher_better else score < best
