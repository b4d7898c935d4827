"""Which rows come when: in order, shuffled exactly, or block by block; for one process, or shared among several.

An order follows from its seed and epoch alone, so that it can be made again anywhere, and taken up in the middle.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.errors import DataError


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is: each is fed its share of every epoch.

    Attributes:
        rank: From 0.
        world_size: How many there are.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DataError(
                f"Cannot feed rank {self.rank} of {self.world_size}: expected a rank from 0 to {self.world_size - 1}. "
                "batches(..., rank=0, world_size=2)"
            )

    @staticmethod
    def of(rank: int | None, world_size: int | None) -> "Shard":
        """Say which share is fed: as asked for, else as torch.distributed says, if it was set up.

        Raises:
            DataError: only one of them is given, or they do not fit together.
        """
        if rank is None and world_size is None:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                return Shard(torch.distributed.get_rank(), torch.distributed.get_world_size())
            return Shard()
        if rank is None or world_size is None:
            raise DataError(
                f"Cannot feed a share: expected both rank and world_size, got rank={rank} and "
                f"world_size={world_size}. batches(..., rank=0, world_size=2)"
            )
        return Shard(rank, world_size)


@dataclass(frozen=True)
class Mixing:
    """How well an order mixes rows.

    Two rows far apart land in one batch as often as under an exact shuffle. Two rows of one block do so
    `neighbours_meet` times as often. The mean of a batch varies as under an exact shuffle if rows that are stored
    together are no more alike than others; at worst, where all rows of a block are equal, see `worst_variance`.

    Attributes:
        kind: "none", "exact" or "block".
        rows: Rows in all.
        block_rows: Rows that are read together; 1 for an exact shuffle.
        blocks_mixed: How many blocks are mixed with one another at a time; `rows` for an exact shuffle.
    """

    kind: str
    rows: int
    block_rows: int = 1
    blocks_mixed: int = 1

    @property
    def neighbours_meet(self) -> float:
        """How many times as often two rows of one block land in one batch as under an exact shuffle."""
        return max(1.0, (self.rows - 1) / max(self.block_rows * self.blocks_mixed - 1, 1))

    def worst_variance(self, batch_size: int) -> float:
        """Bound how many times as much the mean of a batch varies as under an exact shuffle, in the worst case.

        That is where all rows of a block are equal, as in a data set sorted by class. With B rows a batch, W blocks
        mixed of K: the variance of the mean of one window is s^2 / W * (1 - W / K), that of a batch within a window
        s^2 / B at most, and s^2 / B * (1 - B / N) under an exact shuffle.
        """
        blocks = max(self.rows / self.block_rows, 1.0)
        between = max(0.0, 1 - self.blocks_mixed / blocks) / self.blocks_mixed
        exact = (1 - batch_size / self.rows) / batch_size if batch_size < self.rows else 0.0
        return 1.0 if between == 0.0 or not exact else 1.0 + between / exact

    def __str__(self) -> str:
        if self.kind != "block":
            return {"none": "in order", "exact": "shuffled exactly"}[self.kind]
        return (
            f"shuffled by blocks of {self.block_rows:,} rows, {self.blocks_mixed:,} of them mixed at a time; rows of "
            f"one block meet {self.neighbours_meet:.1f} times as often as under an exact shuffle"
        )


@dataclass(frozen=True)
class Order:
    """The rows of one epoch, in the order in which they come.

    Attributes:
        at: Which rows, in turn; None for 0, 1, 2, ...
        rows: How many.
        mixing: How they are mixed.
        window_rows: Of how many rows in turn nothing is mixed with those before and after; `rows` if all is mixed.
    """

    at: NDArray[np.integer] | None
    rows: int
    mixing: Mixing
    window_rows: int

    def part(self, start: int, stop: int) -> slice | NDArray[np.int64]:
        """Give the rows that come from the place `start` on, up to `stop`."""
        return slice(start, stop) if self.at is None else self.at[start:stop].astype(np.int64, copy=False)


def in_order(rows: int, window_rows: int | None = None) -> Order:
    """Rows as they are."""
    return Order(None, rows, Mixing("none", rows), window_rows or rows)


def exact(rows: int, seed: int, epoch: int) -> Order:
    """Give a permutation of all rows."""
    order = torch.randperm(rows, generator=_generator(seed, epoch)).numpy()
    return Order(order, rows, Mixing("exact", rows, 1, rows), rows)


def by_blocks(by_place: NDArray[np.integer], seed: int, epoch: int, block_rows: int, window_rows: int) -> Order:
    """Shuffle blocks of rows that lie together, then all rows of as many blocks as a window holds.

    Args:
        by_place: All rows, sorted by where they lie.
        seed: Pins the order.
        epoch: Gives each epoch an order of its own.
        block_rows: Rows of a block.
        window_rows: Rows that fit into memory at a time.
    """
    rows = len(by_place)
    windows = max(1, -(-rows // max(window_rows, block_rows)))
    window = -(-rows // windows)  # all of one size, or the last would mix badly
    generator = _generator(seed, epoch)
    # Blocks begin elsewhere each epoch: the short one at the end holds other rows each time.
    rolled = np.roll(by_place, -int(torch.randint(block_rows, (), generator=generator)))
    whole = rows // block_rows
    chosen = torch.randperm(whole, generator=generator).numpy()
    blocks, rest = rolled[: whole * block_rows].reshape(whole, block_rows), rolled[whole * block_rows :]
    order = np.concatenate([blocks[chosen].reshape(-1), rest])
    for start in range(0, rows, window):
        mixed = torch.randperm(min(window, rows - start), generator=generator).numpy()
        order[start : start + len(mixed)] = order[start : start + len(mixed)][mixed]
    blocks_mixed = min(max(1, window // block_rows), -(-rows // block_rows))
    return Order(order, rows, Mixing("block", rows, block_rows, blocks_mixed), window)


def batches_of(rows: int, batch_size: int, shard: Shard, drop_last: bool) -> list[tuple[int, int]]:
    """Cut an order into the batches of one process: places (start, stop).

    Every row comes once, and each process is fed as many batches as every other, whose sizes differ by one row at
    most, so that none waits for another at the end. `drop_last` leaves out what does not fill a batch of every process.

    Raises:
        DataError: there are fewer rows than processes.
    """
    rank, world = shard.rank, shard.world_size
    if drop_last:
        steps = rows // (batch_size * world)
        return [((step * world + rank) * batch_size, (step * world + rank + 1) * batch_size) for step in range(steps)]
    if world == 1:
        return [(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]
    pieces = -(-rows // (batch_size * world)) * world
    if pieces > rows:
        pieces = rows // world * world
    if not pieces:
        raise DataError(
            f"Cannot feed {world} processes: expected at least one row for each, got {rows} rows. Use fewer processes."
        )
    ends = [rows * piece // pieces for piece in range(pieces + 1)]
    return [(ends[piece], ends[piece + 1]) for piece in range(rank, pieces, world)]


def draw_seed() -> int:
    """Draw a seed from torch's generator, as DataLoader does."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _generator(seed: int, epoch: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed % 2**64, epoch % 2**64]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))
