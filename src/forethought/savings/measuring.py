"""`measure_saving`: what an epoch costs without the store, and with it, on this machine, with this head."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from forethought import nesting
from forethought.errors import DataError
from forethought.features import Features
from forethought.fitting.measures import as_loss
from forethought.ledger import phase_in
from forethought.ledger.journal import read_journal
from forethought.ledger.machine import this_machine
from forethought.ledger.spans import spans_of
from forethought.savings.sampling import sample
from forethought.savings.saving import Saving
from forethought.savings.spending import spent_on

TrainStep = Callable[[Any, Any], object]


def measure_saving(
    train: Features,
    head: nn.Module | TrainStep,
    *,
    batch_size: int = 256,
    lr: float = 1e-3,
    loss: Any = None,
    seconds: float = 60.0,
    block_s: float | None = None,
    device: str | torch.device | None = None,
) -> Saving:
    """Run real training steps without the store and with it, in turn, and say what the store saves.

    A step without it is what a training loop does: read samples in a random order with a DataLoader, run the frozen
    part, train the head. A step with it reads stored rows and trains the same head. Copies of the head are trained.
    What this costs is charged to the store, and what it found is kept beside it for `forethought report`.

    Args:
        train: Features, in the process that extracted them.
        head: A module that is trained with AdamW; or a function of (values, targets) that does one training step.
        batch_size: Samples a step, on both sides.
        lr: Step size of AdamW.
        loss: As in `fit`: the head's own, a name, or a function of (output, target).
        seconds: To measure, at least. Below 60 the interval is wider, and says so.
        block_s: Seconds a block of one kind; by default 5, or what the slowest counter needs.
        device: Where to train; by default where the model is.

    Returns:
        The comparison, what the store cost so far on this machine, and the epochs that were really run.

    Raises:
        DataError: the features are a pickled copy, or have no targets that a module can be trained on.
        EnergyError: no time to measure in.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> data = (torch.randn(64, 4), torch.randn(64, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train = ft.extract(model, data, folder)
        ...     saving = ft.measure_saving(train, nn.Linear(64, 2), batch_size=32, seconds=0.1)
        >>> saving.comparison.blocks >= 3, saving.epochs
        (True, 0.0)
    """
    if train.samples is None:
        raise DataError(
            "Cannot measure what the store saves: expected features from this process, got a pickled copy, which has "
            "no data set to read. Extract again: ft.extract(model, dataset, store)"
        )
    split = train.split
    home = next((p.device for p in split.model.parameters()), torch.device("cpu"))
    where = torch.device(device) if device is not None else home
    if where != home:
        raise DataError(
            f"Cannot measure on {where}: expected the device where the model is, got a model on {home}. "
            f"model.to('{where}') before extracting, or leave device out."
        )
    steps = [_step_of(head, loss, lr, where) for _ in range(2)]
    facts = {
        "table": train.table.fingerprint,
        "head": type(head).__name__ if isinstance(head, nn.Module) else getattr(head, "__name__", "a function"),
        "batch_size": batch_size,
        "device": where.type,
        "threads": torch.get_num_threads(),
    }
    with phase_in(train.table.place, "measure", readonly=train.table.readonly, **facts) as phase:
        comparison = sample(
            phase,
            _Uncached(train, batch_size, where, steps[0]),
            _Cached(train, batch_size, where, steps[1]),
            epoch_rows=len(train),
            seconds=seconds,
            block_s=block_s,
            facts=facts,
        )
    phase.write(comparison.to_json())
    rows = [*read_journal(train.table.place).rows, *phase.rows]  # a read-only store has not kept the last ones
    spending = spent_on(train.table.fingerprint, this_machine().id, spans_of(rows))
    return Saving(comparison, spending.time_s, spending.amount, spending.fed_rows)


class _Uncached:
    """Steps of a training loop without a store."""

    def __init__(self, train: Features, batch_size: int, device: torch.device, step: TrainStep) -> None:
        assert train.samples is not None
        self._samples, self._split, self._step = train.samples, train.split, step
        self._size, self._device = batch_size, device
        self._batches: Iterator[Any] = iter(())

    def __call__(self) -> int:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = self._samples.as_trained(self._size)
            batch = next(self._batches)
        moved = batch.to(self._device)
        targets = nesting.replace(batch.targets, lambda tensor: tensor.to(self._device, non_blocking=True))
        self._step(self._split.trunk(*moved.args, **moved.kwargs), targets)
        return int(moved.rows)


class _Cached:
    """Steps of the same loop from stored rows."""

    def __init__(self, train: Features, batch_size: int, device: torch.device, step: TrainStep) -> None:
        self._train, self._size, self._device, self._step = train, batch_size, device, step
        self._batches: Iterator[Any] = iter(())
        self._left = 0

    def __call__(self) -> int:
        found = next(self._batches, None)
        if found is None:
            self._batches, self._left = (
                self._train.batches(self._size, shuffle=True, device=self._device),
                len(self._train),
            )
            found = next(self._batches)
        rows = min(self._size, self._left)
        self._left -= rows
        self._step(*found)
        return rows


def _step_of(head: nn.Module | TrainStep, loss: Any, lr: float, device: torch.device) -> TrainStep:
    """Give what trains a head by one batch; each side has a copy of its own."""
    if not isinstance(head, nn.Module):
        return head
    module = copy.deepcopy(head).to(device).train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    measure = as_loss(loss, module)

    def step(values: Any, targets: Any) -> None:
        if not isinstance(targets, torch.Tensor):
            raise DataError(
                f"Cannot train {type(head).__name__}: expected one tensor of targets, got {type(targets).__name__}. "
                "Pass a function instead of a module: measure_saving(train, lambda values, targets: ...)"
            )
        optimizer.zero_grad()
        measure(values, targets).backward()
        optimizer.step()

    return step
