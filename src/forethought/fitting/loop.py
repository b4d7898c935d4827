"""The loop: every batch once, every group on it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from forethought.errors import FitError
from forethought.fitting.board import Board
from forethought.fitting.checkpoints import Checkpoint, Kept, Position
from forethought.fitting.grouping import make_groups, regroup
from forethought.fitting.groups import Group, Sums, Work
from forethought.fitting.inputs import Inputs, Preparation
from forethought.fitting.introduction import check_range, introduce
from forethought.fitting.measures import per_sample
from forethought.fitting.nonfinite import BLAME, cause_in
from forethought.fitting.rows import Batch, Batches, check_targets, fed, known_targets, pick_target, rows_in
from forethought.fitting.stack import is_out_of_memory, said_of
from forethought.fitting.timesheet import Timesheet
from forethought.fitting.trainee import Trainee
from forethought.ledger import Phase

Given = tuple[Any, Tensor, Tensor | None]


class Loop:
    """Trains heads on batches of one size, in the order of one seed.

    Args:
        trainees: The heads.
        preparation: How each is given its values, targets and weights.
        batch_size: Rows a step.
        seed: Of the order.
        device: Where.
        sheet: Where time is counted.
        phase: Of the ledger.
        checkpoint: What is needed to go on is kept there; None for nowhere.
    """

    def __init__(
        self,
        trainees: Sequence[Trainee],
        preparation: Preparation,
        batch_size: int,
        seed: int,
        device: torch.device,
        sheet: Timesheet,
        phase: Phase,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._trainees, self._preparation = list(trainees), preparation
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._sheet, self._phase, self._checkpoint = sheet, phase, checkpoint
        self.passes = 0  # over training and validation rows, made here
        self._groups: list[Group] = []
        self._classes: dict[str, int | None] = {}
        self.notes: list[str] = []
        self._sides: dict[str, Batches] = {}
        self._causes: dict[str, str | None] = {}

    def run(self, train: Batches, val: Batches, board: Board) -> None:
        """Train until every head is done. What was begun before goes on where it stood."""
        self._sides = {"train": train, "val": val}
        found = self._checkpoint.load(self._trainees) if self._checkpoint is not None else None
        if found is not None and not found.groups:
            return
        position = Position(0) if found is None else found.position
        self._train_epoch(train, position, board, lambda inputs: self._begin(inputs, found, (train, val)))
        while self._groups:
            self._score_epoch(val, position.epoch)
            self.passes += 1
            board.show_leaders(self._trainees)
            position = Position(position.epoch + 1)
            self._dismiss(position.epoch)
            self._save(position)
            if self._groups:
                self._train_epoch(train, position, board)

    def finish(self) -> None:
        """Let all heads go, with the best of their weights."""
        for group in self._groups:
            group.leave(range(len(group.trainees)))
        self._groups = []

    def score(self, groups: list[Group], rows: Batches, kind: str) -> list[list[float]]:
        """Return mean loss and metrics of each head, over all rows: a short batch weighs less."""
        count = 0
        for batch in self._fed(rows, epoch=0):
            with self._sheet.of(kind, rows_in(batch)):
                inputs = self._preparation.of(batch)
                self._each(groups, inputs, lambda group, given: group.add_scores(*given), training=False)
            count += rows_in(batch)
        if not count:
            raise FitError(
                "Cannot score heads: expected batches with rows, got none. Check len(features) and batches()"
            )
        return [
            [row[0], *(v**0.5 if m == "rmse" else v for v, m in zip(row[1:], trainee.options.metrics, strict=True))]
            for group in groups
            for row, trainee in zip(group.take_means().tolist(), group.trainees, strict=True)
        ]

    def test(self, trainees: Sequence[Trainee], rows: Batches) -> list[float]:
        """Return the first metric of heads that are done, each over all rows."""
        sums = [Sums(1, 1, self._device) for _ in trainees]
        for batch in self._fed(rows, epoch=0):
            with self._sheet.of("test", rows_in(batch)):
                inputs = self._preparation.of(batch)
                for trainee, own in zip(trainees, sums, strict=True):
                    values, target, weights = inputs.to(trainee, training=False)
                    with Work(trainee).at(training=False):
                        scores = per_sample(trainee.options.metrics[0], trainee.head(values), target)
                    own.add_scores([scores[None]], weights)
        means = [float(own.take_means()[0, 1]) for own in sums]
        is_root = [trainee.options.metrics[0] == "rmse" for trainee in trainees]
        return [mean**0.5 if root else mean for mean, root in zip(means, is_root, strict=True)]

    def first(self, rows: Batches, **options: Any) -> Batch:
        """Give a first batch."""
        batch = next(iter(self._fed(rows, **{"epoch": 0} | options)), None)
        if batch is None:
            raise FitError("Cannot fit heads: expected batches with rows, got none. Check len(features) and batches()")
        return batch

    def _begin(self, inputs: Inputs, found: Kept | None, sides: tuple[Batches, Batches]) -> None:
        """Make the groups on a first batch, or as they were."""
        introduced = []
        for trainee in self._trainees:
            introduced.append(introduce(trainee, *inputs.to(trainee)))
            inputs.check(trainee.name)
            classes = self._classes[trainee.name] = introduced[-1].classes
            for name, rows in zip(("train", "val"), sides, strict=True):
                targets = known_targets(rows)
                if classes is not None and targets is not None:
                    check_range(trainee.name, pick_target(targets, trainee.options.target), classes, f"{name}=")
        if found is None:
            self._groups, self.notes = make_groups(self._trainees, introduced, inputs.to)
            return
        self.notes = list(found.notes)
        for kept in found.groups:
            trainees = [self._trainees[at] for at in kept.trainees]
            group = regroup(trainees, inputs.to(trainees[0])[0], kept.kind)
            group.load(kept.tensors, kept.steps)
            self._groups.append(group)

    def _train_epoch(
        self, train: Batches, position: Position, board: Board, begin: Callable[[Inputs], None] | None = None
    ) -> None:
        """Take every group through the rows once, from where the epoch stands. `begin` is called on the first batch."""
        done = 0
        is_unknown = known_targets(train) is None and position.epoch == 0
        for number, batch in enumerate(self._fed(train, shuffle=True, seed=self._seed, epoch=position.epoch)):
            rows, passed = rows_in(batch), position.epoch + done / len(train)
            with self._sheet.of("train", rows):
                inputs = self._preparation.of(batch)
                if number == 0 and begin is not None:
                    begin(inputs)
                if is_unknown:
                    self._check(batch, number)
                if number >= position.batches:
                    self._each(self._groups, inputs, partial(_learn, passed=passed), training=True)
            if number >= position.batches and self._checkpoint is not None and self._checkpoint.is_due:
                self._save(Position(position.epoch, number + 1))
            done += rows
            board.advance(rows)
            del batch, inputs
        if not done:
            raise FitError("Cannot fit heads: expected batches with rows, got none. Check len(features) and batches()")

    def _check(self, batch: Batch, number: int) -> None:
        """Refuse targets that nobody has seen before."""
        for trainee in self._trainees:
            check_targets(batch[1], trainee.options.target, "train", number)
            classes = self._classes[trainee.name]
            if classes is not None:
                check_range(trainee.name, pick_target(batch[1], trainee.options.target), classes, f"batch {number}")

    def _score_epoch(self, val: Batches, epoch: int) -> None:
        """Note how each head does; remember weights that are the best so far."""
        numbers = iter(self.score(self._groups, val, "validate"))
        for group in self._groups:
            improved = []
            for at, trainee in enumerate(group.trainees):
                loss, *scores = next(numbers)
                if trainee.close_epoch(epoch, loss, tuple(scores)):
                    improved.append(at)
                elif trainee.failed:
                    self._explain(trainee, epoch, "val" if math.isfinite(loss) else "train")
            group.keep(improved)
            group.close_pass()

    def _explain(self, trainee: Trainee, epoch: int, where: str) -> None:
        """Say of a head that failed whether its features were to blame. They are looked through once."""
        if where not in self._causes:
            rows = self._sides[where]
            self._causes[where] = cause_in(rows, where, self._batch_size, self._device, epoch)
        if self._causes[where] is not None:
            trainee.failed = f"{trainee.failed}, {BLAME}: {self._causes[where]}"

    def _dismiss(self, epoch: int) -> None:
        """Let go the heads that take no part in an epoch."""
        for group in self._groups:
            group.leave([at for at, trainee in enumerate(group.trainees) if not trainee.is_training(epoch)])
        self._groups = [group for group in self._groups if group.trainees]

    def _each(
        self,
        groups: list[Group],
        inputs: Inputs,
        work: Callable[[Group, Given], None],
        *,
        training: bool,
    ) -> None:
        """Have each group work on a batch. One that memory is too small for is divided, and tries again."""
        at = 0
        while at < len(groups):
            group = groups[at]
            try:
                work(group, inputs.to(group.trainees[0], training=training))
            except (RuntimeError, MemoryError) as err:
                if not is_out_of_memory(err):
                    raise
                if len(group.trainees) == 1:
                    raise FitError(
                        f"Cannot fit head {group.trainees[0].name!r}: expected memory for a batch of "
                        f"{self._batch_size} rows, got too little for it alone. Pass a smaller one: "
                        f"batch_size={max(self._batch_size // 2, 1)}"
                    ) from err
            else:
                inputs.check(group.trainees[0].name)
                at += 1
                continue
            # Out of the handler, which holds on to the tensors of what failed.
            groups[at : at + 1] = group.halved()
            self.notes.append(said_of(group.trainees, len(groups[at].trainees)))
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _save(self, position: Position) -> None:
        if self._checkpoint is not None:
            with self._sheet.of("checkpoint"):
                self._checkpoint.save(position, self._trainees, self._groups, self.notes)

    def _fed(self, rows: Batches, **options: Any) -> Iterator[Batch]:
        """Feed rows, and count how long that takes."""
        batches = iter(self._phase.timed("read", fed(rows, self._batch_size, self._device, **options)))
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._sheet.add("feed", time.perf_counter() - start, 0 if batch is None else rows_in(batch))
            if batch is None:
                return
            handed = [batch]
            del batch  # whoever is given it lets it go before the next is made
            yield handed.pop()


def _learn(group: Group, given: Given, *, passed: float) -> None:
    group.learn(*given, passed)
