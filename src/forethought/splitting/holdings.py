"""What a body holds before it runs: listed once, for all the runs in which it is watched."""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from forethought.splitting.held import NO_TENSORS, tensors_of
from forethought.splitting.notes import notes_of
from forethought.splitting.operations import bare
from forethought.splitting.recording import Label, Read
from forethought.splitting.shell import names_of
from forethought.splitting.tracker import Known, Memory, Tracker, storage_of


class Holdings:
    """Lists the tensors of a body, and the plain objects that its modules share.

    Attributes:
        modules: Its modules.
        held: Its parameters, buffers and other tensors that are attributes, each by its home.
        homes: The same by the identity of the tensor.
        native: The identities of these and of all tensors in its modules' containers.
        notes: The plain objects.
        training: Modules in which a parameter trains, at any depth, whether a run uses it or not.
    """

    def __init__(self, body: nn.Module) -> None:
        self._body = body
        self.modules = list(names_of(body))
        self._parameters = [p for m in self.modules for p in m._parameters.values() if p is not None]
        self._refs: dict[int, StorageWeakRef] = {}  # an address that one of these knows is not used again
        self._known: dict[int, Known] = {}
        self.held = self._list()
        self.homes = {id(read.outside): read.home for read in self.held}
        self.native = self.homes.keys() | tensors_of(self.modules).keys()
        self.notes = notes_of(self.modules)
        self.training = _in_which_something_trains(body)

    def _list(self) -> list[Read]:
        found = []
        for module in self.modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for names in (module._parameters, module._buffers, module.__dict__):
                for name, tensor in names.items():
                    if type(tensor) not in NO_TENSORS and isinstance(tensor, Tensor):
                        home = module, name
                        found.append(Read(Label.CONSTANT, None, tensor, memory=self._memory(tensor), home=home))
        return found

    def _memory(self, tensor: Tensor) -> int | None:
        tensor = bare(tensor)
        storage = storage_of(tensor)
        address: int | None = None if storage is None else storage._cdata
        itself = Label.CONSTANT, None  # not a view that shows all of it
        self._known[id(tensor)] = weakref.ref(tensor), itself, address
        if storage is None or address is None:
            return None
        if address not in self._refs:
            self._refs[address] = StorageWeakRef(storage)
        return address

    def is_current(self) -> bool:
        """Say whether the body holds the same modules and the same tensors, in the same memories."""
        modules = list(names_of(self._body))
        return (
            len(modules) == len(self.modules)
            and all(a is b for a, b in zip(modules, self.modules, strict=True))
            and all(read.now() is read.outside and _address(read.outside) == read.memory for read in self.held)
        )

    def tracker(self, moved: Sequence[Tensor]) -> Tracker:
        """Give a tracker that knows all this.

        Args:
            moved: Tensors that are no more frozen than what trains.
        """
        memories = {address: Memory(ref, Label.CONSTANT) for address, ref in self._refs.items()}
        return Tracker([*(p for p in self._parameters if p.requires_grad), *moved], memories, dict(self._known))


def _in_which_something_trains(root: nn.Module) -> frozenset[nn.Module]:
    """Find the modules in which a parameter trains, at any depth."""
    found: dict[nn.Module, bool] = {}

    def look(module: nn.Module) -> bool:
        if module not in found:
            found[module] = any(p is not None and p.requires_grad for p in module._parameters.values())
            below = [look(child) for _, child in module._modules.items() if child is not None]
            found[module] = found[module] or any(below)
        return found[module]

    look(root)
    return frozenset(module for module, trains in found.items() if trains)


def _address(tensor: Tensor | None) -> int | None:
    storage = None if tensor is None else storage_of(bare(tensor))
    return None if storage is None else storage._cdata
