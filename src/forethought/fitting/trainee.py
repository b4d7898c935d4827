"""One head in training: its copy of the module, its steps, its scores, its best weights."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.fitting.measures import as_loss, per_sample
from forethought.fitting.options import Options
from forethought.fitting.randomness import RandomStream
from forethought.fitting.results import EpochMetrics, HeadResult
from forethought.fitting.rows import pick_target


class Trainee:
    """A trained copy of one module. Sums stay on the device: reading them is left to the end of an epoch."""

    def __init__(self, name: str, module: nn.Module, options: Options, device: torch.device, seed: int) -> None:
        self.name, self.options, self.device = name, options, device
        self.head = copy.deepcopy(module).to(device)
        trainable = [p for p in self.head.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trainable)
        self.optimizer = options.make_optimizer(trainable) if trainable else None
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups] if self.optimizer else []
        self.dtype = next((p.dtype for p in self.head.parameters() if p.is_floating_point()), None)
        self.metrics: list[EpochMetrics] = []
        self.best: EpochMetrics | None = None
        self.failed: str | None = None
        self.time_s = 0.0
        self._loss = as_loss(options.loss, self.head)
        self._random = RandomStream(seed, device)
        self._state: list[Tensor] = [*trainable, *self.head.buffers()]
        self._kept = [tensor.detach().clone() for tensor in self._state]
        self._total = self._zero()

    @property
    def epochs(self) -> int:
        """Epochs to run; a head with nothing to train is only scored, once."""
        return self.options.epochs if self.optimizer else 1

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
        return not (self.failed or is_tired or epoch >= self.epochs)

    def learn(self, values: Any, targets: Any, passed: float) -> None:
        """Take one step; `passed` is the number of epochs done, with the fraction of the current one."""
        with self._at_work(training=self.optimizer is not None):
            target = pick_target(targets, self.options.target)
            loss = self._loss(values, target)
            if loss.ndim != 0:
                raise FitError(
                    f"Cannot train head {self.name!r}: expected its loss to be one number, got shape "
                    f"{tuple(loss.shape)}. Return loss.mean()"
                )
            if self.optimizer is not None:
                self._set_lr(passed)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
            self._total += loss.detach() * len(target)

    def add_scores(self, values: Any, targets: Any) -> None:
        """Add the metric of one batch, summed over its rows, to the running sum."""
        with self._at_work(training=False):
            target = pick_target(targets, self.options.target)
            scores = per_sample(self.options.metric, self.head(values), target)
            self._total += scores.sum(dtype=self._total.dtype)

    def take_total(self) -> Tensor:
        """Return the running sum and start a new one."""
        total, self._total = self._total, self._zero()
        return total

    def close_epoch(self, epoch: int, train_loss: float, val_score: float) -> None:
        """Note the epoch's numbers, keep the weights if they are the best so far, stop if not finite."""
        metrics = EpochMetrics(epoch + 1, train_loss, val_score)
        self.metrics.append(metrics)
        if not (math.isfinite(train_loss) and math.isfinite(val_score)):
            what = "validation score" if math.isfinite(train_loss) else "training loss"
            self.failed = f"stopped in epoch {epoch + 1}: its {what} was not finite"
        elif self.best is None or self._is_better(val_score, self.best.val_score):
            # New copies, swapped in at once: Ctrl-C in the middle must not mix the weights of two epochs.
            kept = [tensor.detach().clone() for tensor in self._state]
            self._kept, self.best = kept, metrics

    def finish(self) -> None:
        """Put the best weights back (the first ones if the head failed before any), in eval mode."""
        if self.best is not None or self.failed:
            with torch.no_grad():
                for kept, tensor in zip(self._kept, self._state, strict=True):
                    tensor.copy_(kept)
        self.head.zero_grad(set_to_none=True)
        self.head.eval()

    def result(self) -> HeadResult:
        """Return what became of the head."""
        return HeadResult(
            name=self.name,
            head=self.head,
            metrics=tuple(self.metrics),
            best_epoch=self.best.epoch if self.best else None,
            score=self.best.val_score if self.best else None,
            time_s=self.time_s if self.device.type == "cpu" else None,
            parameters=self.parameters,
            failed=self.failed,
        )

    @contextmanager
    def _at_work(self, *, training: bool) -> Iterator[None]:
        """Set the mode, draw from the head's own random numbers, and count the time."""
        start = time.perf_counter()
        if self.head.training != training:
            self.head.train(training)
        try:
            with self._random, torch.set_grad_enabled(training):
                yield
        except Exception as err:
            err.add_note(f"(while fitting head {self.name!r})")
            raise
        finally:
            self.time_s += time.perf_counter() - start

    def _set_lr(self, passed: float) -> None:
        if self.options.schedule != "cosine" or self.optimizer is None:
            return
        share = (1 + math.cos(math.pi * min(passed / self.epochs, 1.0))) / 2
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * share

    def _is_better(self, score: float, best: float) -> bool:
        return score > best if self.options.is_higher_better else score < best

    def _zero(self) -> Tensor:
        # float64 so that a sum over millions of rows stays exact enough to rank by; MPS has none.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros((), dtype=dtype, device=self.device)
