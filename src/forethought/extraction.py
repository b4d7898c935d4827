"""`extract`: run the frozen part once per sample, and keep what it said.

A row's key is the identity of the trunk (the table) and of what the model is given for that sample. Rows that are
there are not computed; a complete hit does not run the model at all.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.dataset import Batch, Samples
from forethought.energy import Window, find_meters
from forethought.errors import DataError, IdentityError, RandomDatasetError, SplitError
from forethought.features import ExtractionReport, Features, join_targets
from forethought.fingerprint import fingerprint_of, model_key, structure_of
from forethought.forms import FrontierTensor
from forethought.purity import probe
from forethought.replay import Split
from forethought.store import Column, DamagedSegmentError, Store, Table

_PROBE_ROWS = 8
_SEGMENT_BYTES = 64 * 2**20
_COMMIT_S = 20.0  # what a kill may cost, in seconds of work
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def extract(
    model: nn.Module | Split,
    dataset: Any,
    store: Store | str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    num_workers: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    inputs: Sequence[str | int] | str | int | None = None,
    at: str | None = None,
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
        at: Path of a module whose output is to be stored, although more is frozen after it.
        device: Where to run; by default where the model is. The model is moved back afterwards.
        segment_rows: Rows a segment at most: what a kill may cost. By default about 64 MB, or 20 seconds of work.
        progress: Show a bar on long work, if a person is watching.

    Returns:
        The features, in the data set's order, with targets and a report.

    Raises:
        ImpureTrunkError: a frozen output depends on chance or on its batch.
        RandomDatasetError: the same index gives different inputs.
        DataError: the data set cannot be used as it is.
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
    trunk = _Trunk(model, at, device)
    samples = Samples(
        dataset, trunk.model, inputs=inputs, collate_fn=collate_fn, batch_size=batch_size, num_workers=num_workers
    )
    probed = samples.check_repeats()
    with Window(find_meters().meter, synchronize=_synchronize) as window:
        try:
            job = _Extraction(trunk, store, samples, segment_rows, progress)
            places, targets = job.run(probed, window.lap)
        except _MistakenNoteError:
            trunk.believes = False
            job = _Extraction(trunk, store, samples, segment_rows, progress)
            places, targets = job.run(probed, window.lap)
    trunk.remember(store)
    rows = len(places)
    report = ExtractionReport(
        rows=rows,
        rows_computed=job.rows_computed,
        rows_reused=rows - job.rows_computed,
        size_bytes=rows * sum(tensor.size_bytes for tensor in job.frontier),
        time_s=time.perf_counter() - started,
        energy_j=window.reading.energy_j,
        energy_source=window.reading.reason or f"{window.reading.label}, {window.reading.instrument}",
    )
    return Features(job.table, places, job.frontier, targets, report, trunk.split_on(samples))


class _MistakenNoteError(Exception):
    """The store's note of a model does not say what the model does now: it must be recorded."""


class _Trunk:
    """A model's frozen part: which table its rows belong to, and, only where rows are missing, how to run it."""

    def __init__(self, model: nn.Module | Split, at: str | None, device: str | torch.device | None) -> None:
        if not isinstance(model, nn.Module | Split):
            raise SplitError(f"Cannot run a {type(model).__name__}: expected a torch.nn.Module or a Split.")
        if isinstance(model, Split) and at is not None and (at,) != model.at:
            raise SplitError(f"Cannot cut at '{at}': expected a model, got a split. Use ft.split(model, x, at={at!r}).")
        self._given = model if isinstance(model, Split) else None
        self._split = self._given
        self.model = model.model if isinstance(model, Split) else model
        self.believes = True
        self._at = at
        first = next(self.model.parameters(), None)
        self._home = torch.device("cpu") if first is None else first.device
        self.device = torch.device(device) if device is not None else self._home
        self._example: Batch | None = None
        self._believed: str | None = None  # the fingerprint that a note gave
        self._facts: dict[str, Any] | None = None

    def table(self, store: Store, samples: Samples) -> tuple[Table, tuple[FrontierTensor, ...]]:
        """Find the table of this trunk's rows; where the store knows the model as it stands, without running it."""
        example = self._example = samples.some(_PROBE_ROWS)
        different = len({key.tobytes() for key in example.row_keys()})
        key = self._key(example)
        known = store.note(key) if key and self.believes else None
        frontier = _frontier_of(known) if known is not None else None
        if (
            known is not None
            and frontier is not None
            and _is_number(known.get("probed"))
            and known["probed"] >= different
        ):
            self._believed = str(known["trunk"])
            return store.table(self._believed, _columns(frontier), {}), frontier
        self._believed = None
        with self.placed():
            split = self.split()
            fingerprint = fingerprint_of(split.plan)
            before = store.note(fingerprint) or {}  # of whoever probed this trunk before
            is_probed = _is_number(before.get("probed")) and before["probed"] >= different
            purity = None if is_probed else probe(split, example.to(self.device))
        facts = {
            "frontier": [tensor.to_json() for tensor in split.frontier],
            "model": type(self.model).__qualname__,
            "torch": torch.__version__,
            "device": self.device.type,
        }
        table = store.table(fingerprint, _columns(split.frontier), facts)
        probed = before if purity is None else {"probed": purity.rows, "moved_ulps": purity.moved_ulps}
        self._facts = {"trunk": fingerprint, "frontier": facts["frontier"], "probed": probed["probed"]}
        self._write_note(store, fingerprint, probed)
        self._write_note(store, key, self._facts)
        return table, split.frontier

    def remember(self, store: Store) -> None:
        """Let the store know the model as it stands after the work: running may have moved a counter of its own."""
        if self._facts is not None and self._example is not None:
            self._write_note(store, self._key(self._example), self._facts)

    def _write_note(self, store: Store, key: str | None, facts: dict[str, Any]) -> None:
        if key and not store.readonly and os.access(store.path, os.W_OK):
            store.write_note(key, facts)

    def _key(self, example: Batch) -> str | None:
        """Identify the model as it stands; None if something in it does not show its content."""
        if self._given is not None:
            return None
        forms = [(tuple(t.shape[1:]), str(t.dtype)) for t in example.tensors]
        count = iter(range(1 << 30))
        shape = nesting.replace((example.args, example.kwargs), lambda _: ("tensor", next(count)))
        try:
            return model_key(self.model, (self._at,) if self._at else (), (forms, shape), self.device.type)
        except IdentityError:
            return None

    def split(self) -> Split:
        """The split, recorded on a few samples when it is first needed.

        Raises:
            SplitError: a split was given, and its model has changed since.
        """
        if self._given is not None and self._given.structure != structure_of(self.model):
            raise SplitError(
                f"Cannot use this split of {type(self.model).__name__}: expected the model as it was split, got other "
                "modules, attributes, hooks or code. Split it again: ft.split(model, x)"
            )
        if self._split is None:
            assert self._example is not None
            example = self._example.select(torch.arange(min(2, self._example.rows))).to(self.device)
            split = Split(self.model, example.args, example.kwargs, (self._at,) if self._at else ())
            if self._believed is not None and fingerprint_of(split.plan) != self._believed:
                raise _MistakenNoteError
            self._split = split
        return self._split

    def split_on(self, samples: Samples) -> Callable[[], Split]:
        """Give a way to have the split later, on the device where the model is then."""

        def make() -> Split:
            self.device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            try:
                return self.split()
            except _MistakenNoteError as err:
                raise SplitError(
                    f"Cannot give the split of {type(self.model).__name__}: expected the model that these features "
                    "were made with, got one that has changed since. Extract again: ft.extract(model, dataset, store)"
                ) from err

        return make

    def rows(self, batch: Batch) -> list[np.ndarray]:
        """Run the trunk; give each tensor's rows as bytes (B, n)."""
        batch, split = batch.copied_to(self.device), self.split()
        values = split.trunk(*batch.args, **batch.kwargs)
        values = (values,) if isinstance(values, Tensor) else values
        return [_bytes(t.to_rows(v)) for t, v in zip(split.frontier, values, strict=True)]

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Have the model on the wanted device, and put it back."""
        if self.device == self._home:
            yield
            return
        self.model.to(self.device)
        try:
            yield
        finally:
            self.model.to(self._home)


class _Extraction:
    """One pass over a data set: computes the rows that the table lacks."""

    def __init__(self, trunk: _Trunk, store: Store, samples: Samples, segment_rows: int | None, progress: bool) -> None:
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
                _check_probed(own, probed, sum(map(len, keys)))
                keys.append(own)
                targets.append(batch.targets)
                missing = self._missing(own, fresh)
                if len(missing):
                    if writer is None:
                        writer = self.table.writer(segment_rows=self._whole_batches(len(own)))
                    part = batch if len(missing) == len(own) else batch.select(torch.from_numpy(missing))
                    with self._trunk.placed():
                        writer.append(own[missing], self._trunk.rows(part))
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
        row = max(1, sum(tensor.size_bytes for tensor in self.frontier))
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


def _columns(frontier: Sequence[FrontierTensor]) -> list[Column]:
    unknown = [tensor for tensor in frontier if tensor.dtype not in _DTYPES]
    if unknown:
        raise SplitError(
            f"Cannot store '{unknown[0].name}': expected a plain dtype, got {unknown[0].dtype}. "
            "Cut where the values are real numbers: ft.extract(..., at=...)"
        )
    return [Column(str(at), _DTYPES[tensor.dtype], tuple(tensor.shape)) for at, tensor in enumerate(frontier)]


def _frontier_of(note: dict[str, Any]) -> tuple[FrontierTensor, ...] | None:
    """Read what the store knows of a trunk; anything unexpected means that it knows nothing."""
    try:
        return tuple(FrontierTensor.from_json(tensor) for tensor in note["frontier"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bytes(rows: Tensor) -> np.ndarray:
    rows = rows.detach().cpu().contiguous()
    return rows.reshape(len(rows), -1).view(torch.uint8).numpy()


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
