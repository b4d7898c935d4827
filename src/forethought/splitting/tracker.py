"""What is known of the tensors of a run, and of the memories behind them."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from forethought.splitting.operations import bare, is_wrapped
from forethought.splitting.recording import MIXED, Label, Value


@dataclass(slots=True)
class Memory:
    """What is known of one memory."""

    ref: StorageWeakRef
    label: Label
    written: int = -1  # the last operation that wrote into it
    trains: bool = False
    shown: Tensor | None = None  # its bytes when code that no mode sees was given a way into it
    views: dict[tuple[Any, ...], Value] = field(default_factory=dict)


Known = tuple["weakref.ref[Tensor]", tuple[Label, Value | None], int | None]
"""A tensor, its label and its value, and the address of the memory in which it had them."""


class Tracker:
    """Knows the label and the value of every tensor of a run, and of every memory behind them.

    Tensors are held weakly: a run keeps no activation alive. Memory is known by torch's own weak references, so an
    address that is used again is not mistaken for the old one; nor is a tensor, since a reference to one that is gone
    gives nothing.

    Args:
        trainable: The tensors that train.
        memories: Memories that are known already, by their address.
        known: Tensors that are known already, by their identity.
    """

    def __init__(
        self,
        trainable: Sequence[Tensor],
        memories: dict[int, Memory] | None = None,
        known: dict[int, Known] | None = None,
    ) -> None:
        self._known = {} if known is None else known
        self._memories = {} if memories is None else memories
        for tensor in trainable:
            memory = self.memory(tensor, Label.TRAINABLE)
            if memory is not None:
                memory.trains, memory.label = True, Label.TRAINABLE

    def memory(self, tensor: Tensor, label: Label | None = None) -> Memory | None:
        """Find the memory behind a tensor; with a label, begin to know it."""
        return self._memory(bare(tensor) if is_wrapped(tensor) else tensor, label)

    def _memory(self, tensor: Tensor, label: Label | None) -> Memory | None:
        storage = storage_of(tensor)
        if storage is None:
            return None
        address = storage._cdata
        known = self._memories.get(address)
        if known is None and label is not None:
            known = self._memories[address] = Memory(StorageWeakRef(storage), label)
        return known

    def read(self, tensor: Tensor) -> tuple[Label, Value | None]:
        """Tell the label and the value of a tensor as it is now."""
        label, value, _ = self.see(tensor)
        return label, value

    def see(self, tensor: Tensor) -> tuple[Label, Value | None, Memory | None]:
        """Tell the label, the value and the memory of a tensor as it is now."""
        tensor = bare(tensor) if is_wrapped(tensor) else tensor
        storage = storage_of(tensor)
        address = None if storage is None else storage._cdata
        memory = None if address is None else self._memories.get(address)
        noted = self._known.get(id(tensor))
        known = noted[1] if noted is not None and noted[0]() is tensor and noted[2] == address else None
        if memory is not None and memory.trains:
            return Label.TRAINABLE, known[1] if known else None, memory
        if memory is not None and memory.shown is not None and _is_filled(memory, tensor):
            return memory.label, None, memory
        if known is not None and memory is not None and memory.label > known[0]:
            return memory.label, _after(memory, tensor), memory  # written through another view of its memory
        if known is not None:
            return *known, memory
        if memory is not None:  # another object over known memory, made where no mode can see it
            return memory.label, memory.views.get(_view(tensor)), memory
        return (Label.TRAINABLE if tensor.requires_grad else Label.CONSTANT), None, None

    def note(self, tensor: Tensor, label: Label, value: Value | None) -> Memory | None:
        """Remember a tensor that an operation has just given."""
        tensor = bare(tensor)
        memory = self._memory(tensor, label)
        address = None if memory is None else memory.ref.cdata
        self._known[id(tensor)] = weakref.ref(tensor), (label, value), address
        if memory is not None and value is not None:
            memory.views[_view(tensor)] = value
        return memory

    def wrote(self, tensor: Tensor, label: Label, value: Value, ordinal: int) -> None:
        """Remember that an operation wrote into a tensor."""
        memory = self.note(tensor, label, value)
        if memory is not None:
            memory.written = ordinal
            memory.label = max(memory.label, label)
            memory.trains = memory.trains or label is Label.TRAINABLE

    def show(self, tensor: Tensor) -> None:
        """Remember what a constant holds, as code that no mode sees (numpy's) is given a way into its memory.

        If it holds something else later, it is no longer what the operation gave that made it.
        """
        label, value, memory = self.see(tensor)
        if (
            memory is not None
            and label is Label.CONSTANT
            and value is not None
            and tensor.untyped_storage().device.type != "meta"
        ):
            memory.shown = _bytes(bare(tensor)).clone()

    def last_written(self) -> dict[int, int]:
        """Tell, for each memory, the last operation that wrote into it."""
        return {address: memory.written for address, memory in self._memories.items()}


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Give what a tensor without wrappers lies in; sparse tensors and placeholders have none."""
    try:
        return tensor.untyped_storage()
    except RuntimeError:  # NotImplementedError is one
        return None


def _after(memory: Memory, tensor: Tensor) -> Value | None:
    """Name what a constant holds after frozen values were written into another view of its memory."""
    if memory.label is not Label.FROZEN or memory.written < 0:
        return None
    key = (memory.written, *_view(tensor))
    if key not in memory.views:
        memory.views[key] = memory.written, MIXED - len(memory.views)
    return memory.views[key]


def _is_filled(memory: Memory, tensor: Tensor) -> bool:
    """Say whether a constant has been written into since it was shown."""
    is_constant = memory.shown is not None and memory.label is Label.CONSTANT
    return is_constant and not torch.equal(_bytes(tensor), memory.shown)  # type: ignore[arg-type]


def _bytes(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)
