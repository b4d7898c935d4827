"""Rows in memory, on a device or in mapped files, given batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.feed.columns import Brought, Column, Part, Rows
from forethought.feed.couriers import Courier
from forethought.feed.gathering import gather
from forethought.feed.orders import Order
from forethought.shapes.padding import CARRIERS

Cuts = Sequence[tuple[int, int]]
_ONE = np.zeros(1, np.uint8)
_PIECE = 2**26  # bytes that are copied at a time when rows are taken into memory


class Source(Protocol):
    """Rows of every tensor of the frontier."""

    @property
    def tier(self) -> str:
        """Where they are: one of `tiers.TIERS`."""
        ...

    def serve(self, order: Order, cuts: Cuts, courier: Courier) -> Iterator[Brought]:
        """Give the rows of each batch, (B, *shape) of each tensor, where the courier brings them."""
        ...


class OnHost:
    """Rows in the memory of this machine.

    Args:
        columns: The tensors.
    """

    tier = "ram"

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns

    def columns(self, at: NDArray[np.int64] | None = None) -> Sequence[Column]:
        """Give the tensors."""
        return self._columns

    def serve(self, order: Order, cuts: Cuts, courier: Courier) -> Iterator[Brought]:
        """Gather each batch."""
        return courier.carry(self.columns, (order.part(start, stop) for start, stop in cuts))


class OnDevice:
    """Rows in the memory of a device, as the head is given them."""

    tier = "device"

    def __init__(self, columns: Sequence[Column], rows: int, device: torch.device) -> None:
        self._device = device
        self._tensors = [_whole(column, rows, device) for column in columns]
        self._carriers = [CARRIERS.get(tensor.dtype.itemsize, tensor.dtype) for tensor in self._tensors]

    def serve(self, order: Order, cuts: Cuts, courier: Courier) -> Iterator[Brought]:
        """Choose rows on the device: the order travels there once."""
        at = None if order.at is None else torch.from_numpy(order.at.astype(np.int64, copy=False)).to(self._device)
        for start, stop in cuts:
            if at is None:
                yield tuple(tensor[start:stop].clone() for tensor in self._tensors)
            else:
                yield tuple(
                    tensor.view(carrier).index_select(0, at[start:stop]).view(tensor.dtype)
                    for tensor, carrier in zip(self._tensors, self._carriers, strict=True)
                )


class Held:
    """A part in memory of its own, in one piece."""

    def __init__(self, part: Part, rows: int) -> None:
        self.slot = part.slot
        self._rows = np.empty((rows, self.slot.row_bytes), np.uint8)
        step = max(1, _PIECE // max(self.slot.row_bytes, 1))
        for start in range(0, rows, step):
            at = slice(start, min(start + step, rows))
            part.gather(at, self._rows[at])

    def view(self, at: slice) -> NDArray[np.uint8] | None:
        """Give rows where they are."""
        return self._rows[at]

    def gather(self, at: Rows, out: NDArray[np.uint8]) -> None:
        """Copy rows."""
        if isinstance(at, slice):
            out[:] = self._rows[at]
        else:
            gather([self._rows], _ONE, at, out)


def hold(columns: Sequence[Column], rows: int) -> OnHost:
    """Copy rows into memory, as they are stored."""
    return OnHost([column.over([Held(part, rows) for part in column.parts]) for column in columns])


def _whole(column: Column, rows: int, device: torch.device) -> Tensor:
    step = max(1, _PIECE // max(column.row_bytes, 1))
    pieces = [column.brought(slice(start, min(start + step, rows)), device) for start in range(0, rows, step)]
    carrier = CARRIERS.get(pieces[0].dtype.itemsize, pieces[0].dtype)
    return torch.cat([piece.view(carrier) for piece in pieces]).view(pieces[0].dtype)
