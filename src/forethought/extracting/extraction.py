"""`extract`: run the frozen part once per sample, and keep what it said.

A row's key is the identity of the trunk (the table) and of what the model is given for that sample. Rows that are
there are not computed; a complete hit does not run the model at all.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from forethought.errors import DataError, StoreError
from forethought.extracting.division import Division
from forethought.extracting.frozen import FrozenPart, MistakenNoteError
from forethought.extracting.outcome import ExtractionReport
from forethought.extracting.precision import Dtype
from forethought.extracting.roll import Read, Reading, Roll
from forethought.extracting.soundness import find_sound
from forethought.extracting.ways import TOLERANCE, check_speed
from forethought.features import Features
from forethought.feed import count_entries, evened
from forethought.identifying.tensors import KEY_BYTES
from forethought.ledger import Phase, phase_in, price_of_reuse, record_run, run_facts
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.samples.unevenness import UnforeseenSizesError
from forethought.shapes.forms import FrontierTensor
from forethought.splitting.replay import At, Split
from forethought.store import Store, Table
from forethought.views import View

_SEGMENT_BYTES = 64 * 2**20
COMMIT_S = 20.0  # what a kill may cost, in seconds of work
_WITH_HEADS = "not measured apart: heads were trained meanwhile"
_WITH_CHOICE = "not measured apart: ways to run it faster were tried meanwhile"
_ATTEMPTS = 3  # to have the same rows stored


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
    views: int | None = None,
    seed: int = 0,
    speed: Literal["exact", "fast"] = "exact",
    tolerance: float = TOLERANCE,
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
        views: How many seeded draws of each sample to store, where a transform is random; the feed uses one an epoch.
        seed: Seeds the draws: the same seed gives the same ones anywhere.
        speed: "exact", or "fast": other ways to run the frozen part (batch norms folded, channels last, bfloat16,
            compiled, batch size, threads) are measured on a few batches, and the fastest is taken whose rows are
            within `tolerance`. The store remembers the choice, and never serves such rows for others. `report.speed`
            shows what was measured.
        tolerance: Of "fast": the largest distance of a row from the exact one, beside that one's length (Euclidean).
        segment_rows: Rows a segment at most: what a kill may cost. By default about 64 MB, or 20 seconds of work.
        progress: Show a bar on long work, if a person is watching.

    Returns:
        The features, in the data set's order, with targets and a report.

    Raises:
        ImpureTrunkError: a frozen output depends on chance or on its batch.
        RandomDatasetError: the same index gives different inputs.
        DataError: the data set cannot be used as it is.
        SpeedError: the frozen part cannot be run here in the way that was chosen before.
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
    _check(segment_rows, views)
    store = store if isinstance(store, Store) else Store(store)
    settled = batch_size or (dataset.batch_size if isinstance(dataset, DataLoader) else None)
    trunk = FrozenPart(model, at, device, dtype, check_speed(speed, tolerance), settled)
    samples = Samples(
        dataset, trunk.model, inputs=inputs, collate_fn=collate_fn, batch_size=batch_size, num_workers=num_workers
    )
    drawn = [samples] if views is None else [samples.view(view, seed) for view in range(views)]
    return gather(trunk, drawn, store, dataset, segment_rows=segment_rows, progress=progress)


@dataclass(frozen=True)
class Begun:
    """What was done of an extraction before: while heads were trained on the rows, as they came.

    Attributes:
        rolls: The data set's, for each view.
        rows_computed: Rows that were stored.
        time_s: Seconds that computing and storing them took.
    """

    rolls: Sequence[Roll] = ()
    rows_computed: int = 0
    time_s: float = 0.0


def gather(
    trunk: FrozenPart,
    drawn: Sequence[Samples],
    store: Store,
    dataset: Any,
    *,
    segment_rows: int | None = None,
    progress: bool = True,
    begun: Begun | None = None,
) -> Features:
    """Compute what a store lacks of the views of a data set; give all rows as features.

    Args:
        trunk: The frozen part.
        drawn: The views.
        store: Where rows are.
        dataset: What the views are of.
        segment_rows: As for `extract`.
        progress: As for `extract`.
        begun: What was done before.
    """
    started, begun = time.perf_counter(), begun or Begun()
    with phase_in(store.place, "extract", readonly=store.readonly) as phase:
        rolls = list(begun.rolls)
        while True:
            try:
                if not rolls:
                    trunk.meet(store, drawn)
                    rolls = [Roll(each, store, repeats=each is not drawn[0]) for each in drawn]
                job = _Extraction(trunk, store, drawn[0], segment_rows, progress, phase)
                job.rows_computed = begun.rows_computed
                if trunk.speed is not None and trunk.speed.way.batch_size is not None:
                    for each in drawn:
                        each.read_by(trunk.speed.way.batch_size)
                places = [job.fill(roll) for roll in rolls]
                break
            except MistakenNoteError:
                rolls = [] if trunk.mistake(drawn) else rolls
            except UnforeseenSizesError:  # these samples are looked at now, and decide how rows are laid out
                rolls = []
                trunk.restart()
        trunk.remember(store)
        for roll in rolls:
            roll.keep()
        rows = sum(map(len, places))
        counts = [count_entries(job.table, job.frontier, each) for each in places]
        entries = [sum(each) for each in zip(*counts, strict=True)]
        device_type = trunk.device.type
        reuse = price_of_reuse(store, job.table.fingerprint, rows - job.rows_computed, device_type)
        phase.add(rows=rows, rows_reused=rows - job.rows_computed, avoided_s=reuse.time_s, avoided_j=reuse.energy_j)
    report = ExtractionReport(
        rows=rows,
        rows_computed=job.rows_computed,
        rows_reused=rows - job.rows_computed,
        size_bytes=trunk.size_bytes(rows, entries),
        time_s=time.perf_counter() - started + begun.time_s,
        energy_j=None if begun.rows_computed else phase.energy_j,
        energy_source=_WITH_HEADS if begun.rows_computed else phase.energy_source,
        precision=trunk.precision(entries),
        avoided_s=reuse.time_s,
        avoided_j=reuse.energy_j,
        avoided_source=reuse.remark,
        speed=trunk.speed,
    )
    views_of_rows = tuple(View(where, roll.targets) for where, roll in zip(places, rolls, strict=True))
    with suppress(StoreError):  # the rows are safe; what is lost is only the account of them
        facts = run_facts(asdict(report), trunk.model, dataset, device_type)
        measured: dict[str, Any] = {} if begun.rows_computed else {"label": phase.amount.label}
        if trunk.speed is not None and not trunk.speed.is_remembered:  # what choosing took is no price of a row
            measured = {"time_s": report.time_s - trunk.speed.time_s, "energy_j": None, "energy_source": _WITH_CHOICE}
        record_run(store, job.table.fingerprint, facts | measured | {"span": phase.span})
    return Features(
        job.table,
        views_of_rows,
        job.fed(drawn, places),
        report,
        trunk.split_on(drawn[0]),
        drawn[0],
        trunk.stored.codings,
        widths=drawn[0].widths,
    )


class _Extraction:
    """Computes the rows that a table lacks."""

    def __init__(
        self,
        trunk: FrozenPart,
        store: Store,
        samples: Samples,
        segment_rows: int | None,
        progress: bool,
        phase: Phase,
    ) -> None:
        self.table, self.frontier = trunk.table(store, samples)
        self.rows_computed = 0
        self.rows_borrowed = 0  # copied from other tables
        self._trunk = trunk
        self._store = store
        self._segment_rows = segment_rows
        self._progress = progress
        self._phase = phase
        crossing = [(tensor.name, list(tensor.shape), str(tensor.dtype), tensor.size_bytes) for tensor in self.frontier]
        about = {"model": type(trunk.model).__qualname__, "data": samples.name, "device": trunk.device.type}
        phase.add(table=self.table.fingerprint, frontier=crossing, batch_size=samples.batch_size, **about)

    def fill(self, roll: Roll) -> NDArray[np.int64]:
        """Compute what is missing of a data set; give the place of every row."""
        rows = len(roll.keys) if roll.is_indexed else None
        division = Division(self._store, (self.table.fingerprint, roll.name), rows, roll.batch_size)
        attempts = 0
        try:
            places, lacking = self._find(roll)
            if roll.unknown is not None and bool(((places[:, 0] < 0) & ~roll.unknown).any()):
                self._check_writable()
            while lacking is None or len(lacking):
                before = self.rows_computed + self.rows_borrowed
                self._pass(roll, lacking, division)
                places, lacking = self._find(roll)
                if self.rows_computed + self.rows_borrowed > before:
                    attempts += lacking is not None and len(lacking) > 0
                    _check_attempts(attempts, self.table.url)
                while lacking is not None and len(lacking) and not division.wait(lacking):
                    self.table.refresh()  # others are at these rows
                    places, lacking = self._find(roll)
        finally:
            division.release()
        return places

    def fed(self, drawn: Sequence[Samples], places: Sequence[NDArray[np.int64]]) -> tuple[FrontierTensor, ...]:
        """Give the tensors of a row as they are fed: of one shape where samples do not differ, wherever they lie."""
        if not all(samples.is_taken_for_uneven for samples in drawn):
            return self.frontier
        return evened(self.table, self.frontier, np.concatenate(places))

    def _check_writable(self) -> None:
        """Find out before samples are read and rows computed that they cannot be kept."""
        self.table.check_writable()
        refused = self._trunk.refused
        if refused is not None and not isinstance(refused.__cause__, PermissionError):  # that is of the notes' folder
            raise refused

    def _find(self, roll: Roll) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Find the place of each row, and the samples that must be read: None for all of an iterable."""
        if roll.unknown is None:
            return np.empty((0, 2), np.int64), None
        places = find_sound(self.table, roll.keys)
        return places, roll.to_read((places[:, 0] < 0) | roll.unknown)

    def _pass(self, roll: Roll, indices: NDArray[np.int64] | None, division: Division) -> None:
        """Read samples; compute and store the rows that are missing and nobody else is at."""
        fresh: set[bytes] = set()
        writer: Any = None
        stored = 0
        committed = time.perf_counter()
        try:
            for where, keys, batch in self._phase.timed(
                "read", self._watched(roll.read(indices), len(roll.keys) or None)
            ):
                missing = self._missing(keys, fresh)
                missing = missing[division.mine(where[missing])]
                fresh.update(key.tobytes() for key in keys[missing])
                if len(missing):
                    if writer is None:
                        self._check_writable()
                        writer = self.table.writer(
                            segment_rows=whole_batches(self.table, len(keys), self._segment_rows)
                        )
                    missing = self._borrow(writer, keys, batch, missing)
                if len(missing):
                    part = batch if len(missing) == len(keys) else batch.select(torch.from_numpy(missing))
                    with self._trunk.placed():
                        writer.append(keys[missing], self._trunk.rows(part, where[missing]))
                    self.rows_computed += len(missing)
                if writer is not None:
                    if writer.rows_written > stored:  # these rows are found in the table from now on
                        stored, fresh = writer.rows_written, self._unstored(fresh)
                    self._phase.add(rows_computed=self.rows_computed)
                if writer is not None and time.perf_counter() - committed > COMMIT_S:
                    writer.flush()
                    committed = time.perf_counter()
                    division.release(but=where[-1:].tolist())
        finally:
            if writer is not None:
                try:
                    writer.close()
                finally:
                    told = {"rows": writer.rows_written, "size_bytes": writer.bytes_written}
                    self._phase.aside("write", writer.write_s, **told)
        self.table.refresh()

    def _borrow(
        self, writer: Any, keys: NDArray[np.uint8], batch: Batch, missing: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Copy rows that lie in other tables of the model; give those that do not."""
        left = np.ones(len(missing), bool)
        standing, table = self._trunk.standing, self.table.fingerprint
        for at, columns in standing.lent(keys, batch, missing, self._trunk.stored, table):
            writer.append(keys[missing[at]], columns)
            left[at] = False
        self.rows_borrowed += int((~left).sum())
        return missing[left]

    def _missing(self, keys: NDArray[np.uint8], fresh: set[bytes]) -> NDArray[np.int64]:
        """Find the rows to compute: neither stored, nor met before in this pass."""
        rows: dict[bytes, int] = {}
        for row in np.flatnonzero(self.table.locate(keys)[:, 0] < 0).tolist():
            rows.setdefault(keys[row].tobytes(), row)
        return np.array([row for key, row in rows.items() if key not in fresh], np.int64)

    def _unstored(self, keys: set[bytes]) -> set[bytes]:
        """Choose the keys that the table does not hold: a set of all would grow with the data set."""
        listed = list(keys)
        places = self.table.locate(np.frombuffer(b"".join(listed), np.uint8).reshape(-1, KEY_BYTES))
        return {listed[at] for at in np.flatnonzero(places[:, 0] < 0).tolist()}

    def _watched(self, reading: Reading, total: int | None) -> Iterator[Read]:
        """Show how far a reading is, once it has taken a moment, to a person."""
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
            task = bar.add_task("thinking once", total=reading.rows or total, rate="")
            started, done = time.perf_counter(), 0
            for read in reading:
                yield read
                done += len(read[1])
                rate = done / max(time.perf_counter() - started, 1e-9)
                bar.update(task, completed=done, rate=f"{rate:,.0f} rows/s")


def whole_batches(table: Table, batch: int, wanted: int | None = None) -> int:
    """Choose the rows of a segment: whole batches, so that work taken up again has the batches it had before."""
    row = max(1, sum(column.row_bytes for column in table.columns))
    wanted = wanted or max(_SEGMENT_BYTES // row, 1)
    return wanted // batch * batch if wanted > batch else wanted


def _check(segment_rows: int | None, views: int | None) -> None:
    if segment_rows is not None and segment_rows < 1:
        raise DataError(f"Cannot write segments of {segment_rows} rows: expected at least 1. Leave segment_rows out.")
    if views is not None and (not isinstance(views, int) or isinstance(views, bool) or views < 1):
        raise DataError(f"Cannot draw {views!r} views of each sample: expected a whole number above 0. views=8")


def _check_attempts(attempts: int, place: str) -> None:
    if attempts > _ATTEMPTS:
        raise StoreError(
            f"Cannot keep rows in '{place}': expected them to be there after they were written, got others or damaged "
            f"ones {attempts} times. Check the disk, or use a store elsewhere: ft.Store(path)"
        )
