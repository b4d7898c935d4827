"""Rows that are computed as they are fed: one pass of the frozen part a batch, for every head. Nothing is stored.

The order of the samples is that in which their stored rows would be fed.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought import nesting
from forethought.errors import DataError
from forethought.extracting.frozen import FrozenPart
from forethought.feed import exact
from forethought.samples.dataset import Samples
from forethought.samples.targets import join_targets, padded, take
from forethought.samples.unevenness import UnforeseenSizesError
from forethought.shapes.forms import FrontierTensor, Rows, joined, some
from forethought.shapes.padding import Uneven
from forethought.splitting.halves import Head
from forethought.splitting.replay import Split


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of samples that were computed together.

    Attributes:
        rows: Of each tensor of the frontier, without padding.
        sizes: Of the samples, (B, K), where they differ in size.
        targets: Of the samples.
    """

    rows: Sequence[Rows]
    sizes: Tensor | None
    targets: Any

    def __len__(self) -> int:
        return len(self.rows[0])

    def part(self, at: slice) -> "Piece":
        """Take some of the samples."""
        sizes = None if self.sizes is None else self.sizes[at]
        return Piece([some(rows, at) for rows in self.rows], sizes, take(self.targets, at))

    @staticmethod
    def joined(pieces: "Sequence[Piece]") -> "Piece":
        """Put samples one after the other."""
        sizes = [piece.sizes for piece in pieces if piece.sizes is not None]
        return Piece(
            [joined(column) for column in zip(*(piece.rows for piece in pieces), strict=True)],
            torch.cat(sizes) if sizes else None,
            join_targets([piece.targets for piece in pieces], [len(piece) for piece in pieces]),
        )


class Live:
    """A data set as batches of features, computed whenever they are fed.

    Samples may be drawn anew each time, by a transform: nothing is kept. The frozen part itself must give each sample a
    row of its own, as if it were stored.

    Args:
        trunk: The frozen part.
        samples: The data set.

    Raises:
        DataError: the data set has no length, so that its order cannot be another each epoch.
        ImpureTrunkError: a row depends on chance or on its batch.
    """

    def __init__(self, trunk: FrozenPart, samples: Samples) -> None:
        check_indexed(samples)
        self.targets: Any = samples.targets() if samples.is_in_memory else None  # known without reading, or read
        self._trunk, self._samples = trunk, samples
        try:
            self._frontier = trunk.live_frontier(samples)
        except UnforeseenSizesError:  # padding is part of these samples
            trunk.restart()
            self._frontier = trunk.live_frontier(samples)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def split(self) -> Split:
        """The split whose trunk is run."""
        return self._trunk.split()

    @property
    def head(self) -> Head:
        """The model's own head: maps a batch's values to the model's output."""
        return self.split.head

    @property
    def fingerprint(self) -> str:
        """What the frozen part computes."""
        return self.split.trunk.fingerprint

    def read_targets(self) -> Any:
        """Give the targets of all samples: read once, without computing a row."""
        if self.targets is None:
            parts = [(batch.targets, batch.rows) for batch, _ in self._samples.read()]
            self.targets = join_targets([targets for targets, _ in parts], [rows for _, rows in parts])
        return self.targets

    def glance(self) -> Any:
        """Give the values of a few samples."""
        return glance(self._trunk, self._samples, self._frontier)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        epoch: int | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (values, targets), as `Features.batches` does."""
        where = torch.device(device or "cpu")
        pieces = self._pieces(order_of(len(self), shuffle, seed, epoch))
        with closing(pieces), self._trunk.placed():
            yield from in_batches(pieces, self._frontier, self._samples, batch_size, where, self.split)

    def _pieces(self, order: NDArray[np.int64]) -> Generator[Piece]:
        with told_of_sizes():
            for batch, _ in self._samples.read(order):
                yield Piece(self._trunk.live_rows(batch), batch.sizes, join_targets([batch.targets], [batch.rows]))


def glance(trunk: FrozenPart, samples: Samples, frontier: Sequence[FrontierTensor]) -> Any:
    """Give the values of a few samples, as a head is given them."""
    batch = samples.fetch(range(min(2, len(samples))))
    with trunk.placed():
        piece = Piece(trunk.live_rows(batch), batch.sizes, None)
        return next(in_batches(iter([piece]), frontier, samples, 2, torch.device("cpu"), trunk.split()))[0]


class told_of_sizes:  # noqa: N801  (a context manager, read as a phrase)
    """Say what to do about samples of sizes that the first few did not show, where training cannot begin anew."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, UnforeseenSizesError):
            raise DataError(
                "Cannot train on samples as they come: expected them to differ in size in the way of the few that were "
                "looked at, got others. Store their features first: ft.fit(model, dataset, heads, val=val, "
                "store='thoughts', run='stored')"
            ) from error


def check_indexed(samples: Samples) -> None:
    """Raise unless samples can be read in any order."""
    if not samples.is_indexed:
        raise DataError(
            f"Cannot train on a {samples.name} as it is read: expected a data set with samples by index, got an "
            "iterable. Store its features first: ft.fit(model, dataset, heads, val=val, store='thoughts', run='stored')"
        )


def order_of(rows: int, shuffle: bool, seed: int | None, epoch: int | None) -> NDArray[np.int64]:
    """Say in which order samples are fed: exactly that of stored rows that fit in memory."""
    at = exact(rows, seed or 0, epoch or 0).at if shuffle else None
    return np.arange(rows) if at is None else at.astype(np.int64, copy=False)


def in_batches(
    pieces: Iterator[Piece],
    frontier: Sequence[FrontierTensor],
    samples: Samples,
    size: int,
    device: torch.device,
    split: Split,
) -> Iterator[tuple[Any, Any]]:
    """Join what was computed together into batches as a head is given them.

    Args:
        pieces: What was computed, in order.
        frontier: The tensors of a row.
        samples: Theirs.
        size: Samples a batch; the last may hold fewer.
        device: Where to put values and targets.
        split: Is told how large the inputs were, where samples differ in size.
    """

    def finished(piece: Piece) -> tuple[Any, Any]:
        shape = None
        if piece.sizes is not None:
            largest = piece.sizes.amax(0).tolist()
            shape = tuple(samples.widths.at(measure, width) for measure, width in enumerate(largest))
        pairs = zip(frontier, piece.rows, strict=True)
        each = tuple(tensor.from_rows(tensor.padded(_moved(rows, device), shape)) for tensor, rows in pairs)
        if shape is not None:
            split.note_sizes(each[0], shape)
        targets = nesting.replace(padded(piece.targets, samples.widths), lambda tensor: tensor.to(device))
        return each[0] if len(each) == 1 else each, targets

    waiting: list[Piece] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        while count >= size:
            whole = Piece.joined(waiting)
            yield finished(whole.part(slice(0, size)))
            count -= size
            waiting = [whole.part(slice(size, None))] if count else []
    if count:
        yield finished(Piece.joined(waiting))


def _moved(rows: Rows, device: torch.device) -> Rows:
    if isinstance(rows, Uneven):
        return Uneven(rows.values.to(device), rows.sizes)
    return rows.to(device)
