"""A model's frozen part as a source of rows: which table they belong to, and how to compute those that are missing."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from forethought.devices import present
from forethought.errors import (
    IdentityError,
    SplitError,
    StoreError,
)
from forethought.extracting.accuracy import measure, report_of
from forethought.extracting.calibration import Trial, choose_stored, known_stored
from forethought.extracting.feeding import check_head
from forethought.extracting.kinship import frontier_in
from forethought.extracting.layouts import Padded, cut_rows, find_layouts
from forethought.extracting.pace import Pace
from forethought.extracting.precision import Dtype, PrecisionReport, Stored, name_of
from forethought.extracting.rowbytes import bytes_of, columns_of
from forethought.extracting.standing import Standing, emptiness_told, padding_tried
from forethought.extracting.ways import SpeedReport
from forethought.identifying.fingerprint import fingerprint_of, fingerprint_with_parts
from forethought.probing.purity import check_number, check_still, probe, rows_of
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.samples.unevenness import UnforeseenSizesError
from forethought.samples.watching import Watch, is_installed
from forethought.shapes.forms import FrontierTensor, Rows
from forethought.splitting.placement import devices_of
from forethought.splitting.replay import At, Split, split
from forethought.store import Ragged, Store, Table, warn_not_kept

_PROBE_ROWS = 6


# What probing showed in this process, by fingerprint and device: a trunk is probed once, however many stores it fills.
_PROBED: dict[tuple[str, str], dict[str, Any]] = {}


class MistakenNoteError(Exception):
    """The store's note of a model does not say what the model does now: it must be recorded."""


class FrozenPart:
    """A model's frozen part: which table its rows belong to, and, only where rows are missing, how to run it."""

    stored: Stored  # how its rows are stored; known once the table is

    def __init__(
        self,
        model: nn.Module | Split,
        at: At,
        device: str | torch.device | None,
        dtype: Dtype = None,
        tolerance: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module | Split):
            raise SplitError(f"Cannot run a {type(model).__name__}: expected a torch.nn.Module or a Split.")
        if isinstance(model, Split) and at is not None and _paths(at) != model.at:
            raise SplitError(f"Cannot cut at {at!r}: expected a model, got a split. Use ft.split(model, x, at={at!r}).")
        self._given = model if isinstance(model, Split) else None
        self._split = self._given
        self.model = model.model if isinstance(model, Split) else model
        self.believes = True
        self._dtype = name_of(dtype)
        self.pace = Pace(tolerance, batch_size)
        self._measured: Any = None
        self._most_rows = _PROBE_ROWS  # in a batch that is known to give the rows of a small one
        self._at = at
        first = next(self.model.parameters(), None)
        self._home = torch.device("cpu") if first is None else first.device
        self.device = torch.device(device) if device is not None else self._home
        if self.device != self._home and len(devices_of(self.model)) > 1:
            raise SplitError(
                f"Cannot move {type(self.model).__name__} to {self.device} and back: expected a model on one device, "
                f"got one on {sorted(map(str, devices_of(self.model)))}. Leave device= out."
            )
        self.measures = 0  # how many sizes a sample has
        self._frontier: tuple[FrontierTensor, ...] = ()
        self._example: Batch | None = None
        self._believed: str | None = None  # the fingerprint that a note gave
        self._facts: dict[str, Any] | None = None
        cut = _paths(at) if self._given is None else self._given.at
        self.standing = Standing(self.model, cut, self.device)
        self._reads_files = False  # as it runs: what a note says then holds for those files only
        self._noted: dict[str, dict[str, Any]] = {}  # what was written
        self.refused: StoreError | None = None  # why a note was not written: a complete hit can do without

    def meet(self, store: Store, drawn: Sequence[Samples]) -> None:
        """Have samples, of which nothing was read, taken to differ in size as those do among which their rows are."""
        is_shared = self.believes and self.pace.is_exact and self._dtype != "int8"
        self.standing.meet(store, drawn, self._dtype, is_shared=is_shared)

    def mistake(self, drawn: Sequence[Samples]) -> bool:
        """Believe no note from now on; say whether samples must be looked at anew."""
        self.believes = False
        is_left = self.standing.leave_precedent(drawn)
        if is_left:
            self.restart()
        return is_left

    def table(self, store: Store, samples: Samples) -> tuple[Table, tuple[FrontierTensor, ...]]:
        """Find the table of this trunk's rows; where the store knows the model as it stands, without running it."""
        with self.standing.precedent_left(samples):
            table, frontier = self._found(store, samples)
        if self._example is not None:
            self._keep(partial(self.standing.note, self._example, samples, table.fingerprint))
        return table, frontier

    def _found(self, store: Store, samples: Samples) -> tuple[Table, tuple[FrontierTensor, ...]]:
        example = self._example = samples.example(_PROBE_ROWS)
        self.measures = 0 if example.padding is None else example.padding.count
        different = len({key.tobytes() for key in example.row_keys()})
        key = self.standing.key(example)
        known = store.note(key) if key and self.believes and self._given is None else None
        frontier = frontier_in(known) if known is not None else None
        if known is not None and known.get("as_joined") is True and samples.take_as_joined():
            raise UnforeseenSizesError
        if (
            known is not None
            and frontier is not None
            and _is_number(known.get("probed"))
            and known["probed"] >= different
        ):
            self._believed = str(known["trunk"])
            return self._table(store, samples, self._believed, frontier), frontier
        self._believed = None
        with self.placed(), padding_tried(samples, lambda: self._write_note(store, key, {"as_joined": True})):
            split = self._watched(example)
            fingerprint, parts = self._fingerprint(split, example)
            probed = self._probed(store, fingerprint, different)
            frontier = self._laid_out(split, example)
        table = self._table(store, samples, fingerprint, frontier, parts)
        written = [tensor.to_json() for tensor in frontier]
        self._facts = {"trunk": fingerprint, "frontier": written, "probed": probed["probed"]}
        self._write_note(store, fingerprint, probed)
        self._write_note(store, None if self._reads_files else key, self._facts)
        return table, frontier

    def _watched(self, example: Batch) -> Split:
        """Record the model as it is now, and see whether it reads files."""
        with Watch() as seen:
            split = self.split()
            if self._given is not None:
                self._stretch(split, example.to(self.device))
                split.renew()
            check_still(split)
        self._reads_files = seen.outside or not all(map(is_installed, seen.files))
        return split

    def _laid_out(self, split: Split, example: Batch) -> tuple[FrontierTensor, ...]:
        """Say how rows differ in size, where samples do, and check that padding changes none."""
        if example.padding is None:
            return split.frontier
        rows = Padded(split, example.to(self.device))
        layouts = find_layouts(rows)
        check_head(rows, layouts)
        return tuple(replace(tensor, layout=each) for tensor, each in zip(split.frontier, layouts, strict=True))

    def _probed(self, store: Store, fingerprint: str, different: int) -> dict[str, Any]:
        """Say what probing this trunk with so many samples showed: here, a moment ago, or to whoever told the store."""
        assert self._example is not None
        here = (fingerprint, str(self.device))
        for told in (_PROBED.get(here), store.note(fingerprint)):
            if told is not None and _is_number(told.get("probed")) and told["probed"] >= different:
                return told
        purity = probe(self.split(), self._example.to(self.device))
        _PROBED[here] = {"probed": purity.rows, "moved_ulps": purity.moved_ulps}
        return _PROBED[here]

    def _fingerprint(self, split: Split, example: Batch) -> tuple[str, dict[str, str]]:
        try:
            return fingerprint_with_parts(split.plan, self.model)
        except IdentityError:
            probe(split, example.to(self.device))  # what draws or counts is said to, rather than to have no identity
            raise

    def _table(
        self,
        store: Store,
        samples: Samples,
        fingerprint: str,
        frontier: tuple[FrontierTensor, ...],
        parts: dict[str, str] | None = None,
    ) -> Table:
        """Open the table of a trunk's rows as they are to be stored. What is not known of that is tried out first."""
        self._frontier = frontier
        if not self.pace.is_settled(store, samples, fingerprint, self.device):
            with self.placed():
                chosen = self.pace.choose(self.split(), samples, fingerprint, self.device)
            self._write_note(store, *chosen)
        run = self.pace.table_id(fingerprint)
        trial = Trial(samples, self._sample_bytes(frontier), self._tried)
        stored = self.stored = choose_stored(self._dtype, run, frontier, store, trial)
        key = stored.table_id(run)
        facts = {
            "frontier": [tensor.to_json() for tensor in frontier],
            "model": type(self.model).__qualname__,
            "torch": torch.__version__,
            "device": self.device.type,
            "when": time.time(),
            "parts": parts,
        }
        if self.speed is not None and run != fingerprint:
            facts |= {"trunk": fingerprint, "speed": self.speed.way.name}
        columns = columns_of(stored, self.measures)
        if stored.is_exact:
            return self.standing.opened(key, columns) or store.table(key, columns, facts)
        facts |= {"trunk": fingerprint, "stored": stored.dtype, "scales": stored.scales}
        table = self.standing.opened(key, columns) or store.table(key, columns, facts)
        self._measured = (store.note(key) or {}).get("precision")
        if self._measured is None and table.rows == 0:
            with self.placed():
                self._measured = measure(stored, trial, self.split(), self.device)
            self._write_note(store, key, {"precision": self._measured})
        return table

    @property
    def speed(self) -> SpeedReport | None:
        """Which way was chosen to run it, where one was asked for."""
        return self.pace.report

    def _tried(self, batch: Batch) -> list[Rows]:
        with self.placed():
            return self._run(batch)

    def _sample_bytes(self, frontier: Sequence[FrontierTensor]) -> int:
        assert self._example is not None
        given = sum(tensor.nbytes for tensor in self._example.tensors) // self._example.rows
        return max(given, sum(tensor.size_bytes for tensor in frontier))

    def restart(self) -> None:
        """Begin anew, with another example."""
        self._split = self._given
        self.pace.forget()

    def size_bytes(self, rows: int, entries: Sequence[int]) -> int:
        """Bytes of so many rows as they are stored, with their sizes; `entries` as of `Stored`."""
        sizes = sum(column.row_bytes for column in columns_of(self.stored, self.measures) if column.is_ragged)
        return rows * (sizes + 8 * self.measures) + self.stored.size_bytes(entries)

    def precision(self, entries: Sequence[int]) -> PrecisionReport | None:
        """Report what storing rows smaller saves and costs; None if they are exact. `entries` as of `Stored`."""
        return None if self.stored.is_exact else report_of(self.stored, entries, self._measured)

    def remember(self, store: Store) -> None:
        """Let the store know the model as it stands after the work: running may have moved a counter of its own."""
        self.standing.forget()
        if self._facts is not None and self._example is not None and not self._reads_files:
            self._write_note(store, self.standing.key(self._example), self._facts)
        if self.refused is not None:
            warn_not_kept(self.refused)

    def _write_note(self, store: Store, key: str | None, facts: dict[str, Any]) -> None:
        if key and store.is_writable and self._noted.get(key) != facts:
            self._keep(lambda: store.write_note(key, facts))
            if self.refused is None:
                self._noted[key] = facts

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except StoreError as err:
            self.refused = err

    def split_for(self, samples: Samples) -> Split:
        """The split, recorded on a few of these samples."""
        example = self._example = samples.example(_PROBE_ROWS)
        self.measures = 0 if example.padding is None else example.padding.count
        with self.standing.precedent_left(samples), padding_tried(samples):
            if self._given is not None:
                self._stretch(self._given, example)
                self._given.renew()
            self._frontier = self._laid_out(self.split(), example)
        return self.split()

    def table_if_known(self, store: Store, samples: Samples, fingerprint: str) -> Table | None:
        """Open the table that `table` would, after `split_for`; None if something would be tried out for it first."""
        count = Trial(samples, self._sample_bytes(self._frontier), self._tried).count
        stored = known_stored(self._dtype, fingerprint, self._frontier, store, count)
        if stored is None:
            return None
        return store.table(stored.table_id(fingerprint), columns_of(stored, self.measures))

    def split(self) -> Split:
        """The split, recorded on a few samples when it is first needed."""
        if self._split is None:
            assert self._example is not None
            example = self._example.to(self.device)
            with emptiness_told(self.model, example):
                made = split(self.model, example.args, example.kwargs, self._at)
            self._stretch(made, example)
            if self._believed is not None and fingerprint_of(made.plan) != self._believed:
                raise MistakenNoteError
            self._split = made
        return self._split

    def _stretch(self, split: Split, example: Batch) -> None:
        """Let a split take samples of any size, where they differ."""
        if example.padding is not None or split.is_stretched:
            two = example.select(torch.arange(min(2, example.rows)))
            split.stretch(example.padding, two.args, two.kwargs)

    def split_on(self, samples: Samples) -> Callable[[], Split]:
        """Give a way to have the split later, on the device where the model is then."""

        def make() -> Split:
            self.device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
            try:
                return self.split()
            except MistakenNoteError as err:
                raise SplitError(
                    f"Cannot give the split of {type(self.model).__name__}: expected the model that these features "
                    "were made with, got one that has changed since. Extract again: ft.extract(model, dataset, store)"
                ) from err

        return make

    def rows(self, batch: Batch, indices: np.ndarray | None = None) -> list[np.ndarray | Ragged]:
        """Run the trunk; give each column's rows, as bytes (B, n) or ragged. `indices` name the samples in errors."""
        return bytes_of(self.stored.encode(self._run(batch), indices), batch.sizes)

    def rows_to_feed(self, batch: Batch, indices: np.ndarray) -> tuple[list[np.ndarray | Ragged], list[Rows]]:
        """Run the trunk; give each column's rows, as `rows` does, and beside them the rows as they will be fed."""
        encoded = self.stored.encode(self._run(batch), indices)
        return bytes_of(encoded, batch.sizes), self.stored.decode(encoded)

    def live_rows(self, batch: Batch) -> list[Rows]:
        """Run the trunk; give the rows of each tensor of the frontier, where it ran, without padding."""
        return self._run_there(batch)

    def live_frontier(self, samples: Samples) -> tuple[FrontierTensor, ...]:
        """Find the tensors of rows that are stored nowhere, and check that they are rows: as of those that are.

        Raises:
            ImpureTrunkError: a row depends on chance or on its batch.
        """
        example = self._example = samples.example(_PROBE_ROWS)
        with self.placed(), padding_tried(samples):
            split = self.split()
            if self._given is not None:
                self._stretch(split, example.to(self.device))
                split.renew()
            check_still(split)
            probe(split, example.to(self.device))
            self._frontier = self._laid_out(split, example)
        return self._frontier

    def _run(self, batch: Batch) -> list[Rows]:
        """Run the trunk; give the rows of each tensor of the frontier, on the CPU, without padding."""
        return [rows.cpu() for rows in self._run_there(batch)]

    def _run_there(self, batch: Batch) -> list[Rows]:
        if any(tensor.layout is not None and tensor.layout.by_longest for tensor in self._frontier):
            batch = batch.shortened()
        rows, split = self.pace.rows(self.split(), batch.copied_to(self.device)), self.split()
        if batch.rows > self._most_rows:
            there = batch.to(self.device)
            check_number(split, there, rows if self.speed is None else rows_of(split, there))
            self._most_rows = batch.rows
        return [cut_rows(tensor, each, batch) for tensor, each in zip(self._frontier, rows, strict=True)]

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Have the model on the wanted device, and put it back."""
        if self.device == self._home:
            yield
            return
        self.model.to(present(self.device))
        try:
            yield
        finally:
            self.model.to(self._home)


def _paths(at: At) -> tuple[Any, ...]:
    return (at,) if isinstance(at, str | int) else tuple(at or ())


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
