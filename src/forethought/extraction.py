"""`extract`: run the frozen part once per sample, and keep what it said.

A row's key is the identity of the trunk (the table) and of what the model is given for that sample. Rows that are
there are not computed; a complete hit does not run the model at all.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from forethought.dataset import Batch, Samples
from forethought.energy import Window, find_meters
from forethought.errors import DataError, RandomDatasetError
from forethought.features import ExtractionReport, Features, join_targets
from forethought.frozen import FrozenPart, MistakenNoteError
from forethought.precision import Dtype
from forethought.replay import At, Split
from forethought.store import DamagedSegmentError, Store

_SEGMENT_BYTES = 64 * 2**20
_COMMIT_S = 20.0  # what a kill may cost, in seconds of work


def extract(
    model: nn.Module | Split,
    dataset: Any,
    store: Store | str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    num_workers: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    inputs: Sequence[str | int] | str | int | None = None,
    at: At = None,
    dtype: Dtype = None,
    device: str | torch.device | None = None,
    segment_rows: int | None = None,
    progress: bool = True,
) -> Features:
    """Run the frozen part of a model once per sample and keep the result. Resumable; a second call computes nothing.

    Args:
        model: A model with something frozen, or a Split.
        dataset: A map-style or iterable data set, a DataLoader, a tensor or array (N, ...), a tuple or dictionary of
            these. A tuple's first element is the input and the rest are targets; a dictionary's keys that the model's
            forward names are inputs.
        store: A Store, or the path of one.
        batch_size: Samples a batch; 64, or the DataLoader's.
        num_workers: Processes that read samples.
        collate_fn: Joins samples into a batch.
        inputs: Positions or keys of the inputs, where the rule above does not fit.
        at: Where to cut although more is frozen after it: a module's path, several, or the most bytes a sample.
        dtype: How to store floating-point features: torch.float16, torch.bfloat16 or "int8"; by default exactly. They
            are fed in their own type, and `report.precision` says how far off they are.
        device: Where to run; by default where the model is. The model is moved back afterwards.
        segment_rows: Rows a segment at most: what a kill may cost. By default about 64 MB, or 20 seconds of work.
        progress: Show a bar on long work, if a person is watching.

    Returns:
        The features, in the data set's order, with targets and a report.

    Raises:
        ImpureTrunkError: a frozen output depends on chance or on its batch.
        RandomDatasetError: the same index gives different inputs.
        DataError: the data set cannot be used as it is.
        PrecisionError: a feature cannot be stored as `dtype`: it is not finite, or too large.
        StoreError: the store cannot be read or written.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> data = (torch.randn(10, 4), torch.arange(10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = extract(model, data, folder)
        ...     again = extract(model, data, folder)
        ...     print(first.report.rows_computed, again.report.rows_computed, again.numpy().shape)
        10 0 (10, 8)
    """
    started = time.perf_counter()
    if segment_rows is not None and segment_rows < 1:
        raise DataError(f"Cannot write segments of {segment_rows} rows: expected at least 1. Leave segment_rows out.")
    store = store if isinstance(store, Store) else Store(store)
    trunk = FrozenPart(model, at, device, dtype)
    samples = Samples(
        dataset, trunk.model, inputs=inputs, collate_fn=collate_fn, batch_size=batch_size, num_workers=num_workers
    )
    probed = samples.check_repeats()
    with Window(find_meters().meter, synchronize=_synchronize) as window:
        try:
            job = _Extraction(trunk, store, samples, segment_rows, progress)
            places, targets = job.run(probed, window.lap)
        except MistakenNoteError:
            trunk.believes = False
            job = _Extraction(trunk, store, samples, segment_rows, progress)
            places, targets = job.run(probed, window.lap)
    trunk.remember(store)
    rows = len(places)
    report = ExtractionReport(
        rows=rows,
        rows_computed=job.rows_computed,
        rows_reused=rows - job.rows_computed,
        size_bytes=rows * sum(column.row_bytes for column in job.table.columns),
        time_s=time.perf_counter() - started,
        energy_j=window.reading.energy_j,
        energy_source=window.reading.reason or f"{window.reading.label}, {window.reading.instrument}",
        precision=trunk.precision(rows),
    )
    return Features(job.table, places, job.frontier, targets, report, trunk.split_on(samples), trunk.stored.codings)


class _Extraction:
    """One pass over a data set: computes the rows that the table lacks."""

    def __init__(
        self, trunk: FrozenPart, store: Store, samples: Samples, segment_rows: int | None, progress: bool
    ) -> None:
        self.table, self.frontier = trunk.table(store, samples)
        self.rows_computed = 0
        self._trunk = trunk
        self._samples = samples
        self._segment_rows = segment_rows
        self._progress = progress

    def run(self, probed: dict[int, bytes], lap: Callable[[], None]) -> tuple[np.ndarray, Any]:
        """Compute what is missing; give the place of every row, and the targets."""
        keys, targets, sizes = self._pass(probed, lap)
        places = self.table.locate(keys)
        damaged = self._drop_damaged(places)
        while damaged or bool((places[:, 0] < 0).any()):
            keys, targets, sizes = self._pass(probed, lap)
            places = self.table.locate(keys)
            damaged = self._drop_damaged(places)
        return places, join_targets(targets, sizes)

    def _pass(self, probed: dict[int, bytes], lap: Callable[[], None]) -> tuple[np.ndarray, list[Any], list[int]]:
        keys: list[np.ndarray] = []
        targets: list[Any] = []
        fresh: set[bytes] = set()
        writer: Any = None
        committed = time.perf_counter()
        try:
            for batch in self._watched():
                own = batch.row_keys()
                start = sum(map(len, keys))
                _check_probed(own, probed, start)
                keys.append(own)
                targets.append(batch.targets)
                missing = self._missing(own, fresh)
                if len(missing):
                    if writer is None:
                        writer = self.table.writer(segment_rows=self._whole_batches(len(own)))
                    part = batch if len(missing) == len(own) else batch.select(torch.from_numpy(missing))
                    with self._trunk.placed():
                        writer.append(own[missing], self._trunk.rows(part, start + missing))
                    self.rows_computed += len(missing)
                if writer is not None and time.perf_counter() - committed > _COMMIT_S:
                    writer.flush()
                    committed = time.perf_counter()
                    lap()
        finally:
            if writer is not None:
                writer.close()
        self.table.refresh()
        return np.concatenate(keys), targets, [len(part) for part in keys]

    def _whole_batches(self, batch: int) -> int:
        """Choose the rows of a segment: whole batches, so that work taken up again has the batches it had before."""
        row = max(1, sum(column.row_bytes for column in self.table.columns))
        wanted = self._segment_rows or max(_SEGMENT_BYTES // row, 1)
        return wanted // batch * batch if wanted > batch else wanted

    def _missing(self, keys: np.ndarray, fresh: set[bytes]) -> np.ndarray:
        """Find the rows to compute: neither stored, nor met before in this pass."""
        rows = []
        for row in np.flatnonzero(self.table.locate(keys)[:, 0] < 0):
            key = keys[row].tobytes()
            if key not in fresh:
                fresh.add(key)
                rows.append(int(row))
        return np.asarray(rows, dtype=np.int64)

    def _drop_damaged(self, places: np.ndarray) -> bool:
        """Read every segment that is to be served; leave out those whose bytes are not what was written."""
        damaged = False
        for number in np.unique(places[:, 0]):
            try:
                for column in self.table.columns:
                    self.table.segment(int(number)).column(column.name)
            except DamagedSegmentError as err:
                self.table.drop(int(number), err)
                damaged = True
        return damaged

    def _watched(self) -> Iterator[Batch]:
        """Show how far the pass is, once it has taken a moment, to a person."""
        total = len(self._samples) if self._samples.is_indexed else None
        # On use: drawing costs time at import.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not (self._progress and console.is_terminal)) as bar:
            task = bar.add_task("thinking once", total=total, rate="")
            started, done = time.perf_counter(), 0
            for batch in self._samples:
                yield batch
                done += batch.rows
                rate = done / max(time.perf_counter() - started, 1e-9)
                bar.update(task, completed=done, rate=f"{rate:,.0f} rows/s")
        if done == 0:
            raise DataError(
                "Cannot extract features: expected an iterable that can be read again, got nothing the second time. "
                "Pass the iterable itself, not an iterator over it."
            )


def _check_probed(keys: np.ndarray, probed: dict[int, bytes], start: int) -> None:
    for row, key in enumerate(keys):
        if probed and probed.get(start + row, key.tobytes()) != key.tobytes():
            raise RandomDatasetError(
                f"Cannot store features of this data set: expected sample {start + row} to be the same each time it is "
                "read, got another input than a moment ago. Use the evaluation transform for the features."
            )


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
