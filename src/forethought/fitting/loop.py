"""The loop: every batch once, every head on it."""

import sys
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.fitting.board import Board
from forethought.fitting.costs import facts_of, phase_for
from forethought.fitting.measures import Measure, name_of
from forethought.fitting.options import MakeOptimizer, PerHead, check_count, options_by_head
from forethought.fitting.randomness import random_state_kept
from forethought.fitting.results import Results, check_comparable
from forethought.fitting.rows import Batches, as_batches
from forethought.fitting.trainee import Trainee
from forethought.ledger import Phase

Rows = Batches | tuple[Tensor, Tensor]


def fit(
    train: Rows,
    val: Rows,
    heads: Mapping[str, nn.Module] | nn.Module,
    *,
    lr: PerHead[float] = 1e-3,
    epochs: PerHead[int] = 20,
    batch_size: int = 4096,
    seed: int = 0,
    optimizer: PerHead[str | MakeOptimizer] = "adamw",
    loss: PerHead[str | Measure | None] = None,
    weight_decay: PerHead[float] = 0.0,
    schedule: PerHead[str | None] = None,
    metric: PerHead[str | Measure] = "mae",
    higher_is_better: bool | None = None,
    target: PerHead[int | str | None] = None,
    patience: PerHead[int | None] = None,
    device: torch.device | str | None = None,
    test: Rows | None = None,
    progress: bool = True,
) -> Results:
    """Train copies of many heads in one pass over the features, and rank them on validation rows.

    The heads passed in are not changed: take `results["a"].head`, or `results["a"].apply_to(module)`. The order
    of the batches and the random numbers of every head follow from `seed` alone, and the global random state
    is left as it was. Each head keeps the weights of its epoch with the best validation score. A head whose
    loss or score stops being finite is stopped and reported; the others go on. Ctrl-C ends the training and
    returns the results so far.

    Args:
        train: Features with `batches` (`Batches`), or a pair of tensors (values, targets).
        val: The same, for scores after each epoch.
        heads: Modules by name, each called with the batch's values (B, ...); a single module is named 'head'.
        lr: Step size. This and every option typed PerHead may be a dict by head name; heads that it does not
            name keep the default.
        epochs: Passes over the training rows, at least 1.
        batch_size: Rows a step.
        seed: Of the batches' order and of dropout.
        optimizer: 'adamw', 'adam', 'sgd', or a function of the parameters that returns an optimiser, which
            then sets its own lr and weight decay.
        loss: None or 'own': the head's `loss(values, targets)` method if its class has one, else 'mse';
            'mse', 'mae', 'huber', 'cross_entropy', or a function of (output, target) that returns a scalar.
        weight_decay: Of the named optimisers.
        schedule: None, or 'cosine': the lr falls to 0 over the epochs.
        metric: 'mae', 'mse', 'rmse', 'accuracy', or a function of (output, target) that returns one number
            per sample, (B,). The score is the mean over all rows, not over batches.
        higher_is_better: For a metric of your own; None: lower, except for 'accuracy'.
        target: Which of several targets: position in a tuple, key in a dict, or column of a tensor (B, M).
        patience: Stop a head after so many epochs without a better score.
        device: Where to train; None: where the first head is.
        test: Scored with the best head only, once, after ranking; left alone after Ctrl-C.
        progress: Show a bar on a terminal's standard error.

    Returns:
        Results, best head first.

    Raises:
        FitError: heads, features, targets or options that do not fit together.

    Example:
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> line = nn.Sequential(nn.Linear(1, 1), nn.Flatten(0))
        >>> results = fit((x, 2 * x[:, 0]), (x, 2 * x[:, 0]), {"line": line}, lr=0.1, epochs=100)
        >>> results.best.name, results.best.score < 0.01
        ('line', True)
    """
    start = time.perf_counter()
    modules = _as_modules(heads)
    options = options_by_head(
        list(modules),
        lr=lr,
        epochs=epochs,
        optimizer=optimizer,
        loss=loss,
        weight_decay=weight_decay,
        schedule=schedule,
        metric=metric,
        higher_is_better=higher_is_better,
        target=target,
        patience=patience,
    )
    check_count("batch_size", batch_size)
    train, val = as_batches(train, "train"), as_batches(val, "val")
    test = test if test is None else as_batches(test, "test")
    tasks = [(single.metric, single.target) for single in options.values()]
    is_comparable = all(task == tasks[0] for task in tasks)
    if test is not None:
        check_comparable(is_comparable, "score the best head on test rows")
    where = torch.device(device) if device is not None else _device_of(modules.values())
    with phase_for(train) as phase, random_state_kept(seed, where):
        trainees = [Trainee(name, module, options[name], where, seed) for name, module in modules.items()]
        loop = _Loop(batch_size, seed, where, phase)
        interrupted = loop.run(trainees, train, val, is_shown=progress and sys.stderr.isatty())
        for trainee in trainees:
            trainee.finish()
        ranked = sorted(trainees, key=lambda t: t.rank) if is_comparable else trainees
        is_tested = test is not None and not interrupted and ranked[0].is_ranked
        test_score = loop.score(ranked[:1], test)[0] if test is not None and is_tested else None
        phase.add(**facts_of(ranked, train, val))
    return Results(
        ranked=tuple(trainee.result() for trainee in ranked),
        metric=_metric_of(options.values()),
        time_s=time.perf_counter() - start,
        interrupted=interrupted,
        test_score=test_score,
        is_comparable=is_comparable,
    )


class _Loop:
    """Batches of one size, in the order of one seed, each given to every head."""

    def __init__(self, batch_size: int, seed: int, device: torch.device, phase: Phase) -> None:
        self.batch_size, self.seed, self.device, self.phase = batch_size, seed, device, phase

    def run(self, trainees: Sequence[Trainee], train: Batches, val: Batches, *, is_shown: bool) -> bool:
        """Train until every head is done; return whether Ctrl-C ended it first."""
        epochs = max(trainee.epochs for trainee in trainees)
        try:
            with Board(epochs * len(train), is_shown=is_shown) as board:
                for epoch in count():
                    active = [trainee for trainee in trainees if trainee.is_training(epoch)]
                    if not active:
                        break
                    losses = self._train_epoch(active, train, epoch, board)
                    scores = self.score(active, val)
                    for trainee, train_loss, val_score in zip(active, losses, scores, strict=True):
                        trainee.close_epoch(epoch, train_loss, val_score)
                    board.show_leaders(trainees)
        except KeyboardInterrupt:
            return True
        return False

    def score(self, active: Sequence[Trainee], features: Batches) -> list[float]:
        """Return each head's metric: the sum over all rows, divided once, so that a short batch weighs less."""
        rows = 0
        batches = features.batches(self.batch_size, epoch=0, device=self.device)
        for values, targets in self.phase.timed("read", batches):
            widened = _Widened(values)
            for trainee in active:
                trainee.add_scores(widened.to(trainee.dtype), targets)
                widened.check(trainee.name)
            rows += _rows_of(targets)
        means = _means(active, rows)
        is_root = [trainee.options.metric == "rmse" for trainee in active]
        return [mean**0.5 if root else mean for mean, root in zip(means, is_root, strict=True)]

    def _train_epoch(self, active: Sequence[Trainee], train: Batches, epoch: int, board: Board) -> list[float]:
        """Take every head through the rows once; return each one's mean training loss."""
        rows = 0
        batches = train.batches(self.batch_size, shuffle=True, seed=self.seed, epoch=epoch, device=self.device)
        for values, targets in self.phase.timed("read", batches):
            widened = _Widened(values)
            for trainee in active:
                if epoch == 0 and rows == 0:
                    # A metric that does not fit the head should fail now, not after a whole epoch.
                    trainee.add_scores(widened.to(trainee.dtype), targets)
                    trainee.take_total()
                trainee.learn(widened.to(trainee.dtype), targets, epoch + rows / len(train))
                widened.check(trainee.name)
            rows += _rows_of(targets)
            board.advance(_rows_of(targets))
        return _means(active, rows)


class _Widened:
    """A batch's values, cast at most once per dtype: features stored as float16 for heads in float32.

    Several tensors are left alone: they go to a head that is part of a model and has its own dtypes.
    """

    def __init__(self, values: Any) -> None:
        self.values = values
        self._by_dtype: dict[torch.dtype, Tensor] = {}
        self._versions = [tensor._version for tensor in self._tensors()]

    def check(self, name: str) -> None:
        """See that a head left the values as they were: the other heads are given the same ones."""
        if self._versions != [tensor._version for tensor in self._tensors()]:
            raise FitError(
                f"Cannot train head {name!r}: expected it to leave its input as it is, got it written into, and all "
                "heads share it. Use inplace=False in its first layer, or clone the input in its forward."
            )

    def _tensors(self) -> list[Tensor]:
        values = self.values if isinstance(self.values, tuple | list) else (self.values,)
        return [tensor for tensor in (*values, *self._by_dtype.values()) if isinstance(tensor, Tensor)]

    def to(self, dtype: torch.dtype | None) -> Any:
        """Return the values in the dtype, if that loses nothing."""
        values = self.values
        is_narrower = (
            isinstance(values, Tensor)
            and dtype is not None
            and values.is_floating_point()
            and values.dtype != dtype == torch.promote_types(values.dtype, dtype)
        )
        if not is_narrower or dtype is None:
            return values
        if dtype not in self._by_dtype:
            self._by_dtype[dtype] = values.to(dtype)
            self._versions.append(self._by_dtype[dtype]._version)
        return self._by_dtype[dtype]


def _means(active: Sequence[Trainee], rows: int) -> list[float]:
    """Return every head's running sum over rows, read from the device at once."""
    if rows == 0:
        raise FitError("Cannot fit heads: expected batches with rows, got none. Check len(features) and batches()")
    sums: list[float] = torch.stack([trainee.take_total() for trainee in active]).tolist()
    return [total / rows for total in sums]


def _rows_of(targets: Any) -> int:
    first = targets
    while not isinstance(first, Tensor):
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    return len(first)


def _as_modules(heads: Any) -> dict[str, nn.Module]:
    """Return modules by name."""
    is_single = isinstance(heads, nn.Module) and not isinstance(heads, nn.ModuleDict)
    modules = {"head": heads} if is_single else dict(heads.items()) if hasattr(heads, "items") else {}
    wrong = [f"{name!r}: {type(head).__name__}" for name, head in modules.items() if not isinstance(head, nn.Module)]
    if not modules or wrong:
        got = ", ".join(wrong) or ("none" if hasattr(heads, "items") else type(heads).__name__)
        raise FitError(
            f"Cannot fit heads: expected at least one module by name, got {got}. "
            "Pass heads={'linear': torch.nn.Linear(width, outputs)}"
        )
    return modules


def _device_of(modules: Any) -> torch.device:
    devices = (p.device for module in modules for p in module.parameters())
    return next(devices, torch.device("cpu"))


def _metric_of(options: Any) -> str:
    names = [name_of(single.metric) for single in options]
    return " / ".join(dict.fromkeys(names))
