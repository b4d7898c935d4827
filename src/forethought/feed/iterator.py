"""`Feed`: one epoch of batches, which knows where it stands and can be taken up there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from forethought.errors import DataError, StoreError
from forethought.feed.columns import Brought
from forethought.feed.couriers import courier_to
from forethought.feed.opening import Rows
from forethought.feed.orders import Mixing, Order, Shard, batches_of, by_blocks, draw_seed, exact, in_order
from forethought.feed.sources import Cuts, Source
from forethought.feed.streams import BLOCK_BYTES, WINDOWS
from forethought.store import DamagedSegmentError

_LEAST_BLOCKS = 64  # in a window: fewer would mix too badly
_KINDS = (False, True, "exact", "block")
_PINNED = ("rows", "batch_size", "shuffle", "drop_last", "rank", "world_size")


@dataclass(frozen=True)
class Request:
    """What is asked of an epoch: the arguments of `Features.batches`, checked."""

    batch_size: int
    shuffle: bool | str
    seed: int | None
    epoch: int | None
    device: torch.device
    drop_last: bool
    tier: str | None
    memory: int | None
    shard: Shard

    def __post_init__(self) -> None:
        size = self.batch_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DataError(f"Cannot feed batches of {size!r}: expected a whole number above 0. batches(4096)")
        if self.shuffle not in _KINDS:
            raise DataError(
                f"Cannot shuffle {self.shuffle!r}: expected True, False, 'exact' or 'block'. batches(..., shuffle=True)"
            )
        if self.shuffle == "exact" and self.tier == "streamed":
            raise DataError(
                "Cannot shuffle exactly what is streamed: expected rows that memory can hold. Mix blocks of them: "
                "batches(..., shuffle='block'), or batches(..., tier='mapped')"
            )
        if self.shuffle and self.seed is None and self.shard.world_size > 1:
            raise DataError(
                f"Cannot shuffle for {self.shard.world_size} processes: expected one seed for all, got none, so that "
                "each would draw another order. batches(..., seed=0, epoch=epoch)"
            )


class Host(Protocol):
    """Whose rows are fed: `Features`."""

    def __len__(self) -> int:
        """Count samples."""

    def view_of(self, epoch: int | None) -> int:
        """Choose which draw of the samples is fed; without a number of the epoch, the next one."""

    def opened(self, view: int, request: Request, *, is_exact: bool) -> tuple[Rows, Source]:
        """Give the rows of a draw, and where they are fed from; for an exact shuffle, where any row can be had."""

    def finished(self, view: int, at: Any, rows: Brought, device: torch.device) -> tuple[Any, ...]:
        """Make a batch of rows."""


class Feed(Iterator[tuple[Any, ...]]):
    """The batches of one epoch. Nothing is read before the first is asked for.

    `state_dict` is where it stands, in plain values; `load_state_dict` goes there, in another process too.
    """

    def __init__(self, host: Host, request: Request, state: Mapping[str, Any] | None = None) -> None:
        self._host, self._request = host, request
        self._seed, self._epoch = request.seed, request.epoch
        self._kind = "none" if request.shuffle is False else "any" if request.shuffle is True else request.shuffle
        self._view: int | None = None
        self._given = 0
        self._cuts = batches_of(len(host), request.batch_size, request.shard, request.drop_last)
        self._batches: Iterator[tuple[Any, ...]] | None = None
        self._mixing: Mixing | None = None
        self._blocks: tuple[int, int] | None = None  # rows of a block and of a window, where they are known before
        self._tier: str | None = None
        if state is not None:
            self.load_state_dict(state)

    def __len__(self) -> int:
        """Count the batches of the whole epoch."""
        return len(self._cuts)

    def __next__(self) -> tuple[Any, ...]:
        if self._batches is None:
            self._batches = self._begin()
        batch = next(self._batches)
        self._given += 1
        return batch

    def close(self) -> None:
        """Stop, and end what reads ahead."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]

    @property
    def mixing(self) -> Mixing:
        """How well the rows are mixed."""
        if self._mixing is None:
            self._batches = self._begin()
        assert self._mixing is not None
        return self._mixing

    @property
    def tier(self) -> str:
        """Where rows are fed from: 'device', 'ram', 'mapped' or 'streamed'."""
        _ = self.mixing
        assert self._tier is not None
        return self._tier

    def state_dict(self) -> dict[str, Any]:
        """Say where it stands, as values that JSON can hold."""
        mixing = self.mixing
        where = {"batches": self._given, "seed": self._seed, "epoch": self._epoch, "view": self._view}
        return where | {"mixing": mixing.kind, "blocks": self._blocks} | self._pinned()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a feed of the same rows stood.

        Raises:
            DataError: it was fed otherwise.
        """
        mine = self._pinned()
        other = [name for name in _PINNED if state.get(name) != mine[name]]
        if other:
            raise DataError(
                f"Cannot go on with this feed: expected {other[0]}={state.get(other[0])!r} as before, got "
                f"{mine[other[0]]!r}. Ask for the same batches, or begin anew without resume="
            )
        self.close()
        self._batches, self._mixing = None, None
        self._given, self._seed = int(state["batches"]), state["seed"]
        self._epoch, self._view = state["epoch"], state["view"]
        self._blocks = None if state["blocks"] is None else (int(state["blocks"][0]), int(state["blocks"][1]))
        self._kind = str(state["mixing"])

    def _pinned(self) -> dict[str, Any]:
        request, shard = self._request, self._request.shard
        told = (len(self._host), request.batch_size, request.shuffle, request.drop_last, shard.rank, shard.world_size)
        return dict(zip(_PINNED, told, strict=True))

    def _settle(self) -> None:
        """Decide what was left to chance."""
        if self._view is None:
            self._view = self._host.view_of(self._epoch)
        if self._seed is None and self._request.shuffle:
            self._seed = draw_seed()

    def _begin(self) -> Iterator[tuple[Any, ...]]:
        if self._view is None:
            self._view = self._host.view_of(self._epoch)
        if self._seed is None and self._kind != "none":
            self._seed = draw_seed()
        rows, source = self._host.opened(self._view, self._request, is_exact=self._kind == "exact")
        order = self._order(rows, source.tier)
        self._mixing, self._tier = order.mixing, source.tier
        return _serve(self._host, self._view, source, order, self._cuts[self._given :], self._request.device)

    def _order(self, rows: Rows, tier: str) -> Order:
        seed, epoch = self._seed or 0, self._epoch or 0
        if self._kind == "exact" or (self._kind == "any" and tier != "streamed"):
            return exact(len(rows), seed, epoch)
        memory = rows.room(self._request.memory)
        window = len(rows) if memory is None else memory // WINDOWS // max(rows.row_bytes, 1)
        window = max(1, min(len(rows), window))
        if self._kind == "none":
            return in_order(len(rows), window)
        if self._blocks is None:
            block = max(1, min(BLOCK_BYTES // max(rows.row_bytes, 1), window // _LEAST_BLOCKS))
            if rows.table.is_remote:  # whole files come from there: a window is as many of them as fit
                block = max(block, min(window, len(rows) // len(rows.segments)))
            self._blocks = (block, window)
        return by_blocks(rows.by_place, seed, epoch, *self._blocks)


def _serve(
    host: Host, view: int, source: Source, order: Order, cuts: Cuts, device: torch.device
) -> Iterator[tuple[Any, ...]]:
    """Run apart from the feed, so that a feed that is left is let go at once, with the threads that read ahead."""
    served = source.serve(order, cuts, courier_to(device))
    try:
        for start, stop in cuts:  # no name for the rows: a batch that was used is let go before the next is made
            yield host.finished(view, order.part(start, stop), next(served), device)
    except DamagedSegmentError as err:
        raise StoreError(f"{err} Compute its rows again: ft.extract(model, dataset, store)") from err
    finally:
        served.close()  # type: ignore[attr-defined]
