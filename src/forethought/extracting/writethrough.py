"""Rows that are stored as they are first fed: the first epoch trains heads while it fills the store."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.extracting.extraction import COMMIT_S, Begun, gather, whole_batches
from forethought.extracting.frozen import FrozenPart
from forethought.extracting.live import Piece, check_indexed, glance, in_batches, order_of, told_of_sizes
from forethought.extracting.roll import Roll
from forethought.extracting.soundness import find_sound
from forethought.features import Features
from forethought.feed import Rows as Stored
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.samples.targets import join_targets
from forethought.samples.unevenness import UnforeseenSizesError
from forethought.shapes.forms import Rows, joined
from forethought.shapes.padding import Uneven
from forethought.splitting.halves import Head
from forethought.store import Ragged, Store, Table, Writer


class WriteThrough:
    """A data set as batches of features: computed and stored when they are first fed, read from then on.

    Heads are given what is stored: with `dtype`, rows are rounded in the first epoch, too. An epoch that is broken off
    leaves its rows in the store, and they are not computed again.

    Args:
        trunk: The frozen part.
        samples: The data set.
        store: Where rows are kept.
        dataset: What the samples are of.

    Raises:
        DataError: the data set has no length.
        RandomDatasetError: the same index gives different inputs.
        ImpureTrunkError: a row depends on chance or on its batch.
    """

    def __init__(self, trunk: FrozenPart, samples: Samples, store: Store, dataset: Any) -> None:
        check_indexed(samples)
        self.rows_from_store = 0  # fed in passes over what was stored before
        self._trunk, self._samples, self._store, self._dataset = trunk, samples, store, dataset
        self._features: Features | None = None
        self._rows_computed, self._time_s = 0, 0.0
        while True:
            try:
                self._begin()
                break
            except UnforeseenSizesError:  # samples differ in size otherwise: padding is part of them, say
                trunk.restart()

    def _begin(self) -> None:
        """Look which rows are there."""
        trunk = self._trunk
        trunk.meet(self._store, [self._samples])
        self._roll = Roll(self._samples, self._store)
        self.table, self._frontier = trunk.table(self._store, self._samples)
        if self._roll.is_complete and bool((self.table.locate(self._roll.keys)[:, 0] >= 0).all()):
            self._finish()
        else:
            trunk.believes = False  # it is run now: what a note says of it is found out before the first step
            self.table, self._frontier = trunk.table(self._store, self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def targets(self) -> Any:
        """The targets of all samples; None as long as they are not known."""
        if self._features is not None:
            return self._features.targets
        return self._samples.targets() if self._samples.is_in_memory else None

    @property
    def head(self) -> Head:
        """The model's own head: maps a batch's values to the model's output."""
        return self._trunk.split().head if self._features is None else self._features.head

    @property
    def fingerprint(self) -> str:
        """What the frozen part computes, and how its rows are stored."""
        return self.table.fingerprint

    def read_targets(self) -> Any:
        """Give the targets of all samples. What is lacking of the rows is computed, as it has to be read."""
        return self.targets if self.targets is not None else self._whole().targets

    def glance(self) -> Any:
        """Give the values of a few samples."""
        if self._features is not None:
            return next(iter(self._features.batches(2, rank=0, world_size=1)))[0]
        return glance(self._trunk, self._samples, self._frontier)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        epoch: int | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (values, targets), as `Features.batches` does."""
        where = torch.device(device or "cpu")
        if self._features is not None:
            self.rows_from_store += len(self)
            yield from self._features.batches(batch_size, shuffle, seed, epoch, where, rank=0, world_size=1)
            return
        pieces = self._pieces(order_of(len(self), shuffle, seed, epoch))
        with closing(pieces), self._trunk.placed():
            yield from in_batches(pieces, self._frontier, self._samples, batch_size, where, self._trunk.split())
        self._finish()

    def _whole(self) -> Features:
        if self._features is None:
            self._finish()
        assert self._features is not None
        return self._features

    def _finish(self) -> None:
        """See all rows as features; compute what is lacking."""
        begun = Begun([self._roll], self._rows_computed, self._time_s)
        self._features = gather(self._trunk, [self._samples], self._store, self._dataset, progress=False, begun=begun)

    def _pieces(self, order: NDArray[np.int64]) -> Generator[Piece]:
        """Read samples; store rows that are missing, and give all of them as they are stored."""
        keeping = _Keeping(self.table)
        try:
            with told_of_sizes():
                for where, keys, batch in self._roll.read(order):
                    began = time.perf_counter()
                    rows = self._rows(where, keys, batch, keeping)
                    self._time_s += time.perf_counter() - began
                    yield Piece(rows, batch.sizes, join_targets([batch.targets], [batch.rows]))
        finally:
            keeping.close()
            self._rows_computed += keeping.rows

    def _rows(self, where: NDArray[np.int64], keys: NDArray[np.uint8], batch: Batch, keeping: "_Keeping") -> list[Rows]:
        """Give the rows of a batch: those that are stored as they are, the others computed, and kept."""
        places = find_sound(self.table, keys)
        there, missing = (np.flatnonzero(mask) for mask in (places[:, 0] >= 0, places[:, 0] < 0))
        stored = self._stored(places[there]) if len(there) else []
        if not len(missing):
            return stored
        part = batch if not len(there) else batch.select(torch.from_numpy(missing))
        encoded, computed = self._trunk.rows_to_feed(part, where[missing])
        keeping.add(keys[missing], encoded, self._samples.batch_size)
        if not stored:
            return computed
        back = torch.from_numpy(np.argsort(np.concatenate([there, missing])))
        return [_chosen(joined(pair), back) for pair in zip(stored, computed, strict=True)]

    def _stored(self, places: NDArray[np.int64]) -> list[Rows]:
        codings = self._trunk.stored.codings or (None,) * len(self._frontier)
        columns = Stored(self.table, places, self._frontier, codings).mapped.columns(None)
        return [column.brought(slice(0, len(places))) for column in columns]


class _Keeping:
    """Writes rows to a table as they come, each once."""

    def __init__(self, table: Table) -> None:
        self.rows = 0
        self._table = table
        self._writer: Writer | None = None
        self._fresh: set[bytes] = set()  # written, and maybe not found in the table yet
        self._committed = time.perf_counter()

    def add(self, keys: NDArray[np.uint8], encoded: Sequence[NDArray[np.uint8] | Ragged], batch_size: int) -> None:
        """Keep rows that were not kept before."""
        first = {key.tobytes(): at for at, key in reversed(list(enumerate(keys)))}
        new = sorted(at for key, at in first.items() if key not in self._fresh)
        self._fresh.update(first)
        if not new:
            return
        if self._writer is None:
            self._table.check_writable()
            self._writer = self._table.writer(segment_rows=whole_batches(self._table, batch_size))
        self._writer.append(keys[new], encoded if len(new) == len(keys) else [_part(column, new) for column in encoded])
        self.rows += len(new)
        if time.perf_counter() - self._committed > COMMIT_S:
            self._writer.flush()
            self._committed = time.perf_counter()

    def close(self) -> None:
        """Have everything on disk, and found."""
        if self._writer is not None:
            self._writer.close()
            self._table.refresh()


def _part(column: NDArray[np.uint8] | Ragged, at: list[int]) -> Any:
    return column.select(np.array(at)) if isinstance(column, Ragged) else column[at]


def _chosen(rows: Rows, at: torch.Tensor) -> Rows:
    return rows.select(at) if isinstance(rows, Uneven) else rows[at]
