"""How gathered rows reach a device: at once on the CPU, by page-locked memory and a stream of their own on CUDA."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from forethought.feed.ahead import Ahead
from forethought.feed.columns import Brings, Brought, Rows

Supply = Callable[[], Sequence[Brings]]
_SLOTS = 3  # one that is filled, one that travels, one that is used


class Courier(Protocol):
    """Brings batches to a device."""

    def carry(self, columns: Supply, batches: Iterable[Rows]) -> Iterator[Brought]:
        """Gather the rows of each batch, from the columns as they are then, and give them where they are to be."""
        ...


class ByHand:
    """Gathers when it is asked, and moves with plain copies: for the CPU, and for devices without streams."""

    def __init__(self, device: str | torch.device) -> None:
        self._device = device

    def carry(self, columns: Supply, batches: Iterable[Rows]) -> Iterator[Brought]:
        """Gather one batch at a time."""
        for at in batches:
            yield tuple(column.brought(at, self._device) for column in columns())


class Lane(Protocol):
    """What a device offers for copies that nobody waits for: page-locked memory, and a stream of their own."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give page-locked memory on the host."""
        ...

    def send(self, work: Callable[[], Brought]) -> tuple[Brought, Any]:
        """Begin copies in the lane; give what they will make, and a ticket."""
        ...

    def receive(self, tensors: Brought, ticket: Any) -> None:
        """Have the computing stream wait for the copies, and hold on to what they made until it has used it."""
        ...

    def wait(self, ticket: Any) -> None:
        """Wait, here, until the copies are done: their memory on the host may be filled again."""
        ...


class ByLane:
    """Gathers in a thread into page-locked memory, and copies to the device while it computes.

    A slot of that memory is filled again only once what was in it has arrived.
    """

    def __init__(self, device: torch.device, lane: Lane) -> None:
        self._device, self._lane = device, lane

    def carry(self, columns: Supply, batches: Iterable[Rows]) -> Iterator[Brought]:
        """Gather, copy and give batches, each step one batch ahead of the next."""
        slots = [_Slot(self._lane) for _ in range(_SLOTS)]
        gathered = Ahead(self._gather(columns, batches, slots), depth=1)
        travelling: deque[tuple[Brought, Any]] = deque()
        try:
            for slot, decode in gathered:
                travelling.append(slot.send(decode))
                if len(travelling) > 1:
                    yield self._arrived(*travelling.popleft())
            while travelling:
                yield self._arrived(*travelling.popleft())
        finally:
            gathered.close()

    def _gather(
        self, columns: Supply, batches: Iterable[Rows], slots: "list[_Slot]"
    ) -> "Iterator[tuple[_Slot, Callable[[], Brought]]]":
        for number, at in enumerate(batches):
            slot = slots[number % _SLOTS]
            slot.reopen()
            there = columns()
            yield slot, partial(self._decode, there, [column.host(at, slot.empty) for column in there])

    def _decode(self, columns: Sequence[Brings], parts: list[list[Tensor]]) -> Brought:
        return tuple(column.decode(own, self._device) for column, own in zip(columns, parts, strict=True))

    def _arrived(self, tensors: Brought, ticket: Any) -> Brought:
        self._lane.receive(tensors, ticket)
        return tensors


class _Slot:
    """Page-locked memory for one batch, used again and again. Filled by one thread, sent by another, in turn."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._memory: list[Tensor] = []
        self._given = 0
        self._ticket: Any = None

    def reopen(self) -> None:
        """Wait until what was here has arrived."""
        if self._ticket is not None:
            self._lane.wait(self._ticket)
        self._given, self._ticket = 0, None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give part of the memory: as much as ever was asked for at this turn."""
        count = int(torch.Size(shape).numel())
        at, self._given = self._given, self._given + 1
        if at == len(self._memory):
            self._memory.append(self._lane.pinned((count,), dtype))
        elif len(self._memory[at]) < count:
            self._memory[at] = self._lane.pinned((count,), dtype)
        return self._memory[at][:count].view(shape)

    def send(self, work: Callable[[], Brought]) -> tuple[Brought, Any]:
        """Begin to copy what is here."""
        sent, self._ticket = self._lane.send(work)
        return sent, self._ticket


class CudaLane:
    """A stream for copies on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give page-locked memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, work: Callable[[], Brought]) -> tuple[Brought, Any]:
        """Begin copies in the stream."""
        with torch.cuda.stream(self._stream):
            made = work()
            return made, self._stream.record_event()

    def receive(self, tensors: Brought, ticket: Any) -> None:
        """Have the current stream wait; the allocator must not give the memory away before it has used it."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(ticket)
        for tensor in tensors:
            tensor.record_stream(current)

    def wait(self, ticket: Any) -> None:
        """Wait for the event."""
        ticket.synchronize()


def courier_to(device: str | torch.device | None) -> Courier:
    """Give the courier for a device; None is the CPU."""
    where = torch.device(device or "cpu")
    if where.type != "cuda":
        return ByHand(where)
    where = torch.device("cuda", torch.cuda.current_device()) if where.index is None else where
    return ByLane(where, CudaLane(where))
