"""`fit`: from what was asked for to results."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from forethought.devices import present
from forethought.extracting.live import Live
from forethought.extracting.writethrough import WriteThrough
from forethought.fitting.board import Board
from forethought.fitting.checkpoints import Checkpoint
from forethought.fitting.costs import facts_of, phase_for
from forethought.fitting.identities import identify
from forethought.fitting.inputs import prepare
from forethought.fitting.kinds import Setting, features_shape
from forethought.fitting.loop import Loop
from forethought.fitting.measures import Measure, last_of, name_of
from forethought.fitting.options import NAMES, MakeOptimizer, Metric, PerHead, check_count
from forethought.fitting.randomness import random_state_kept
from forethought.fitting.raw import accepts_raw
from forethought.fitting.results import HeadResult, Results, rank
from forethought.fitting.rows import Batches, all_targets, as_batches, check_targets, fed, known_targets, pick_target
from forethought.fitting.specs import Candidate, expand
from forethought.fitting.standardizing import Standard, folded
from forethought.fitting.timesheet import Timesheet
from forethought.fitting.trainee import Trainee
from forethought.heads.reach import beyond, check_unit

Rows = Batches | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


@accepts_raw
def fit(
    train: Rows,
    val: Rows,
    heads: Any,
    *,
    lr: PerHead[float] | Sequence[float] = 1e-3,
    epochs: PerHead[int] = 20,
    batch_size: int = 4096,
    seed: int | Sequence[int] = 0,
    optimizer: PerHead[str | MakeOptimizer] | Sequence[str] = "adamw",
    loss: PerHead[str | Measure | None] | Sequence[str] = None,
    weight_decay: PerHead[float] | Sequence[float] = 0.0,
    momentum: PerHead[float] = 0.0,
    schedule: PerHead[str | None] = None,
    warmup: PerHead[float] = 0.0,
    clip: PerHead[float | None] = None,
    class_weight: PerHead[Any] = None,
    precision: PerHead[str | None] = None,
    standardize: PerHead[bool] = False,
    metric: PerHead[Metric] = None,
    higher_is_better: PerHead[bool | None] = None,
    target: PerHead[int | str | None] = None,
    patience: PerHead[int | None] = None,
    device: torch.device | str | None = None,
    test: Rows | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Results:
    """Train copies of many heads in one pass over the features, and rank them on validation rows.

    Heads that were passed in are not changed: take `results["a"].head`, or `results["a"].apply_to(module)`. The order
    of the batches and the random numbers of every head follow from `seed` alone, and the global random state
    is left as it was. Heads of one shape are trained as one computation, the others share each batch; a head ends up
    the same alone and in company, up to the rounding of sums in another order. Each head keeps the weights of its
    epoch with the best validation score. A head whose loss or score stops being finite is stopped and reported; the
    others go on. Ctrl-C ends the training and returns the results so far.

    Of raw data: `fit(model, dataset, heads, val=held_out, run=..., store=...)`, with `test=`, all options below, and
    those of `extract` that say how to read (`inputs`, `collate_fn`, `num_workers`, `at`, `dtype`, and
    `trunk_batch_size` for its `batch_size`). `run="stored"` extracts, then trains; `"live"` keeps nothing: one pass
    of the frozen part a batch feeds every head; `"write-through"` trains in the first epoch while it stores. By
    default "stored" if there is a store, else "live". The heads are the same either way, up to how rows are rounded
    in other batches. Without heads, a copy of the model's own is trained. It runs where the model is.

    Args:
        train: Features with `batches` (`Batches`), or a pair of tensors (values, targets).
        val: The same, for scores after each epoch.
        heads: By name, or a single one, which is named 'head': a module, called with the batch's values (B, ...); a
            function that makes one; the name of a kind: 'linear', 'mlp', or one of `forethought.heads`; or a dictionary
            with 'kind' or 'module' and options of its own, the kind's and those below.
        lr: Step size. This and every option typed PerHead may be a dict by head name; heads that it does not
            name keep the default. A list of values, here or in a head's dictionary, is tried: it becomes many heads.
        epochs: Passes over the training rows, at least 1.
        batch_size: Rows a step.
        seed: Of the batches' order, of dropout, and of the first weights of heads that are made here. Several seeds
            become several heads, which share the order of the first.
        optimizer: 'adamw', 'adam', 'sgd'; 'lbfgs', whose steps are each taken from all rows, for convex heads: an epoch
            is one evaluation, and it chooses its step size itself; or a function of the parameters that returns an
            optimiser, which then sets its own lr and weight decay.
        loss: None or 'own': the method `loss(values, targets)` of the head's class, or of the last module's in a
            Sequential (given weighted rows it must take `weights=`, as all of `forethought.heads` do); else 'mse';
            'mse', 'mae', 'huber', 'bce' (of logits), 'cross_entropy', or a function of (output, target), or of (output,
            target, weights), that returns a scalar. A kind's default is 'cross_entropy' for whole numbers.
        weight_decay: Of the named optimisers.
        momentum: Of 'sgd'.
        schedule: None, 'cosine' or 'linear': the lr falls to 0 over the epochs.
        warmup: Epochs over which the lr rises from 0.
        clip: Largest norm of a head's gradient: a larger one is scaled down.
        class_weight: How much each class counts in the training loss: numbers (C,), or 'balanced'.
        precision: None, or 'bf16': products in bfloat16, by autocast; weights stay as they are.
        standardize: Bring features to mean 0 and deviation 1, by the training rows alone; folded into the head at the
            end, which is then given raw features.
        metric: 'mae', 'mse', 'rmse', 'accuracy', 'cross_entropy', 'bce', or a function of (output, target) that returns
            one number per sample, (B,). The score is the mean over all rows, not over batches. Of a tuple of them the
            first ranks. None: what the loss is about.
        higher_is_better: For a metric of your own; None: lower, except for 'accuracy'.
        target: Which of several targets: position in a tuple, key in a dict, or column of a tensor (B, M).
        patience: Stop a head after so many epochs without a better score.
        device: Where to train; None: where the first head is.
        test: Scored with the best head of each task only, once, after ranking; left alone after Ctrl-C.
        checkpoint: A file to go on from if this is interrupted, written after each epoch and once a minute; nothing
            in it is executed when it is read. With the same arguments the result is the same.
        progress: Show a bar on a terminal's standard error.

    Returns:
        Results, best head first.

    Raises:
        FitError: heads, features, targets or options that do not fit together.

    Example:
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> line = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0))
        >>> results = ft.fit((x, 2 * x[:, 0]), (x, 2 * x[:, 0]), {"line": line}, lr=0.1, epochs=100)
        >>> results.best.name, results.best.score < 0.01
        ('line', True)
    """
    given = {name: value for name, value in locals().items() if name in NAMES}
    start = time.perf_counter()
    check_count("batch_size", batch_size)
    sides = {"train": as_batches(train, "train"), "val": as_batches(val, "val")}
    sides |= {} if test is None else {"test": as_batches(test, "test")}
    order = _order_seed(seed)
    candidates = expand(heads, given, cache(lambda: _setting(sides["train"], batch_size)))
    said = _check_targets(candidates, sides)
    where = present(device) if device is not None else _device_of(candidates)
    sheet, interrupted = Timesheet(), False
    with phase_for(train) as phase, random_state_kept(order, where):
        trainees = [Trainee(each.name, each.module, each.options, where) for each in candidates]
        preparation = prepare(trainees, sides["train"], batch_size, where)
        kept = None if checkpoint is None else Checkpoint(checkpoint, identify(candidates, sides, (batch_size, order)))
        loop = Loop(trainees, preparation, batch_size, order, where, sheet, phase, kept)
        try:
            rows = len(sides["train"]) * max(trainee.epochs for trainee in trainees)
            with Board(rows, is_shown=progress and sys.stderr.isatty()) as board:
                loop.run(sides["train"], sides["val"], board)
        except KeyboardInterrupt:
            interrupted = True
        loop.finish()
        ranked = rank([_result(each, trainee) for each, trainee in zip(candidates, trainees, strict=True)])
        tests = {} if test is None or interrupted else _test(ranked, trainees, loop, sides["test"])
        if preparation.standard is not None:
            ranked = _folded(ranked, trainees, loop, preparation.standard, sides["val"])
        phase.add(**facts_of(ranked, loop.passes, sides["train"], sides["val"]))
    tasks = {result.task for result in ranked}
    return Results(
        ranked=ranked,
        metric=" / ".join(dict.fromkeys(name_of(trainee.options.metrics[0]) for trainee in trainees)),
        time_s=time.perf_counter() - start,
        interrupted=interrupted,
        test_score=next(iter(tests.values())) if len(tasks) == 1 and tests else None,
        is_comparable=len(tasks) == 1,
        test_scores=tests,
        notes=(*said, *loop.notes),
        timesheet=sheet.entries(),
    )


def _order_seed(seed: Any) -> int:
    """Say which seed the order of the rows follows from: the first one."""
    first = next(iter(seed.values() if isinstance(seed, Mapping) else seed), 0) if not isinstance(seed, int) else seed
    return first if isinstance(first, int) else 0


def _setting(train: Batches, batch_size: int) -> Setting:
    """Look at the training rows, for heads that are sized for them."""
    targets = all_targets(train)
    if isinstance(train, Live | WriteThrough):
        return Setting(features_shape(train.glance()), targets, len(train))
    first = next(iter(fed(train, batch_size, torch.device("cpu"), epoch=0)))
    return Setting(features_shape(first[0]), first[1] if targets is None else targets, len(train))


def _check_targets(candidates: Sequence[Candidate], sides: Mapping[str, Batches]) -> list[str]:
    """Refuse targets that are missing, no numbers, or labels for values; return what is to be said of the others."""
    notes: list[str] = []
    for target in dict.fromkeys(candidate.options.target for candidate in candidates):
        heads = {each.name: last_of(each.module) for each in candidates if each.options.target == target}
        known = {side: known_targets(rows) for side, rows in sides.items()}
        for side, targets in known.items():
            if targets is not None:
                check_targets(targets, target, side)
        numbers = {side: pick_target(targets, target) for side, targets in known.items() if targets is not None}
        for name, head in heads.items():
            check_unit(name, head, list(numbers.values()))
        notes += beyond(heads, numbers)
    return notes


def _device_of(candidates: Sequence[Candidate]) -> torch.device:
    devices = (p.device for candidate in candidates for p in candidate.module.parameters())
    return next(devices, torch.device("cpu"))


def _result(candidate: Candidate, trainee: Trainee) -> HeadResult:
    """Say what became of a head."""
    names = [name_of(metric) for metric in trainee.options.metrics]
    best, target = trainee.best, trainee.options.target
    return HeadResult(
        name=trainee.name,
        head=trainee.head,
        metrics=tuple(trainee.metrics),
        best_epoch=None if best is None else best.epoch,
        score=None if best is None else best.val_score,
        time_s=trainee.time_s if trainee.device.type == "cpu" else None,
        parameters=trainee.parameters,
        failed=trainee.failed,
        family=candidate.family,
        tried=candidate.tried,
        scores={} if best is None else dict(zip(names, (best.val_score, *best.others), strict=True)),
        task=names[0] if target is None else f"{names[0]} of {target}",
        is_higher_better=trainee.options.is_higher_better,
    )


def _test(ranked: Sequence[HeadResult], trainees: Sequence[Trainee], loop: Loop, test: Batches) -> dict[str, float]:
    """Score the best head of each task on rows that chose nothing."""
    by_name = {trainee.name: trainee for trainee in trainees}
    best: dict[str, Trainee] = {}
    for result in ranked:
        if result.score is not None and not result.failed:
            best.setdefault(result.task, by_name[result.name])
    return dict(zip(best, loop.test(list(best.values()), test), strict=True)) if best else {}


def _folded(
    ranked: Sequence[HeadResult], trainees: Sequence[Trainee], loop: Loop, standard: Standard, val: Batches
) -> tuple[HeadResult, ...]:
    """Give heads that were trained on standardised features as heads for raw ones."""
    by_name = {trainee.name: trainee for trainee in trainees}
    values = loop.first(val)[0]
    return tuple(
        replace(result, head=folded(result.head, standard, values))
        if by_name[result.name].options.standardize
        else result
        for result in ranked
    )
