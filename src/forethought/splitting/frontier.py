"""Where the frozen part of a model ends: found by running it once and watching.

Every torch function that the model calls is seen by a function mode and labelled by what it reads:

    CONSTANT   does not depend on the input (weights that do not train, positions, masks made from shapes)
    FROZEN     depends on the input, through frozen values and constants only
    TRAINABLE  depends on a parameter that trains, however indirectly (through detach, rounding or an in-place write)

The frontier is the set of frozen tensors that some trainable operation, or the model's own output, reads. It is a cut
through the graph of values, not a layer.

The calls between modules are kept as a tree. A call in which nothing trains, and which gives nothing away but its
output, is *whole*: it can be run, or left out, as one step.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forethought import nesting
from forethought.errors import SplitError
from forethought.splitting.cut import Cut
from forethought.splitting.held import changed_items, holds_the_same
from forethought.splitting.holdings import Holdings
from forethought.splitting.moving import drawn, moving
from forethought.splitting.notes import Noted
from forethought.splitting.operations import (
    Function,
    check_unpatched,
    is_about,
    is_wrapped,
    packed,
    traits_of,
)
from forethought.splitting.recording import (
    MIXED,
    NOTHING,
    Call,
    Label,
    Made,
    Operation,
    Read,
    Recording,
    Sized,
    Value,
    forbid_leaks,
    position,
)
from forethought.splitting.shell import active, calls_itself, names_of
from forethought.splitting.wholes import is_whole


class Recorder(TorchFunctionMode):
    """Runs a model once, labels all that it does, and finds what crosses the frontier.

    Args:
        model: A shell of the model.
        at: Paths of modules whose output is taken as the frontier although more is frozen after it.
        is_thrifty: Let the head do cheap operations again where that leaves less to store.
        sizes: Values that cross where Python asks for their size.
        drawn: Operations, by number, that draw random numbers, and whether for what is frozen or what trains.
        moved: Buffers that the forward changes, and that are no more frozen than what trains.
        holdings: What the model holds, where that is known.
    """

    def __init__(
        self,
        model: nn.Module,
        at: Sequence[str] = (),
        is_thrifty: bool = True,
        sizes: Collection[Value] = (),
        moved: Sequence[Tensor] = (),
        drawn: Mapping[int, Label] = NOTHING,
        holdings: Holdings | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._at = set(at)
        self._is_thrifty = is_thrifty
        self._sizes = sizes
        self._drawn = drawn
        self._boundary: set[Value] = set()
        self._reached: set[str] = set()
        self._holdings = Holdings(model) if holdings is None else holdings
        self._tracker = self._holdings.tracker(moved)
        self._noted = Noted(self._holdings.notes)
        self._root = Call("", model, None)
        self._here = self._root
        self._begun = calls_itself(model)  # then its forward is a call inside
        self._operations: list[Operation] = []
        self._strangers: list[tuple[Tensor, Operation]] = []
        self._asked: list[tuple[Read, Call]] = []  # whose size Python was told, and where

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """Run the model on these inputs. Inputs must not require grad."""
        inputs = nesting.tensors((args, kwargs))
        for at, tensor in enumerate(inputs):
            self._tracker.note(tensor, Label.FROZEN, (-1, at))
        made = [_made(t, (-1, at), Label.FROZEN) for at, t in enumerate(inputs)]
        noted = self._noted = self._noted.now()
        with torch.enable_grad(), active(self), self:
            output = self._model(*args, **kwargs)
        if calls_itself(self._model):
            self._root.made, self._root.result = self._results(output, inputs)
        notes = self._holdings.notes if noted.is_changed() else []
        self._check_at()
        _check_output(output)
        forbid_leaks(self._operations, [self._tracker.read(tensor)[1] for tensor in nesting.tensors(output)])
        buffers = self._set_buffers()
        left = {where: read for where, read in buffers.items() if read.label is Label.FROZEN}
        gives = [*map(self._look, nesting.tensors(output)), *left.values()]
        sized = list({read.value: read for read in self._asked_for() if read.value in self._sizes}.values())
        cut = Cut(self._operations, self._tracker.last_written(), made, gives + sized, self._is_thrifty, self._sizes)
        for read in sized:
            cut.cross(read, "a size")
        output_crossing = {}
        for read in gives:
            if read.label is Label.FROZEN:
                place = cut.cross(read, "the model's output")
                if place is not None and read.value is not None:
                    output_crossing[read.value] = place
        outputs = [tensor.detach() for tensor in nesting.tensors(output)]
        return Recording(
            self._root, self._operations, cut.crossings, made, output_crossing, self._strangers, outputs,
            self._asked_for(), cut.hand_over(), left, moving(self._operations, self._holdings.held), bool(buffers),
            drawn(self._operations), Label.TRAINABLE in self._drawn.values(), notes,
        )  # fmt: skip

    def _set_buffers(self) -> dict[tuple[str, str], Read]:
        """Find the buffers that the forward has set."""
        return {
            (path, name): self._look(tensor)
            for module, path in names_of(self._model).items()
            for name, tensor in module._buffers.items()
            if tensor is not None and id(tensor) not in self._holdings.homes
        }

    def _asked_for(self) -> list[Read]:
        """Give the frozen tensors whose size Python was told, where both halves run."""
        return [read for read, call in self._asked if read.label is Label.FROZEN and call.outermost_whole() is None]

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See one call of a module of the shell."""
        call = self._here.child(path, module) if self._begun else self._root
        self._begun = True
        with torch._C.DisableTorchFunction():
            given = nesting.given(args, kwargs)
            call.inputs = before = [self._tracker.read(tensor)[1] for tensor in given]
            direct = {id(value) for value in (*args, *kwargs.values())}
            call.direct = tuple([v for t, v in zip(given, before, strict=True) if v is not None and id(t) in direct])
            attributes, noted = module.__dict__.copy(), self._noted.now()
        outside, self._here, self._noted = self._here, call, noted
        try:
            output = module._call_impl(*args, **kwargs)
        finally:
            self._here = outside
        with torch._C.DisableTorchFunction():
            call.sets_attributes = noted.is_changed()
            if not holds_the_same(module.__dict__, attributes):
                new = changed_items(module.__dict__, attributes)
                holds_tensors = any(nesting.tensors(v) or nesting.tensors(v, nn.Module) for v in new.values())
                is_gone = not attributes.keys() <= module.__dict__.keys()
                call.sets_attributes = call.sets_attributes or holds_tensors or is_gone
                call.left = NOTHING if call.sets_attributes else new or NOTHING
            self._close(call, output, given)
        return output

    def _close(self, call: Call, output: Any, given: list[Tensor]) -> None:
        """Note what a call gave and whether it may be taken as one step."""
        call.made, call.result = self._results(output, given)
        for at, tensor in enumerate(given):
            label, value = self._tracker.read(tensor)
            if value != call.inputs[at] and value is not None:
                call.changed = {**call.changed, at: _made(tensor, value, label)}
        # What trains in it may be unused in this run, as an expert to which no sample went, and used in another.
        call.whole = call.module not in self._holdings.training and is_whole(call, output)
        if call.path in self._at:
            self._reached.add(call.path)
            requires_grad = [tensor.requires_grad for tensor in nesting.tensors(output)]
            for made in call.made:
                if made.label is Label.TRAINABLE and self._boundary and not any(requires_grad):
                    continue  # behind another of the cuts that were asked for
                if made.label is Label.TRAINABLE:
                    raise SplitError(
                        f"Cannot cut at '{call.path}': expected a frozen output, got one that depends on trainable "
                        f"parameters. Freeze up to it: ft.freeze(model, until={call.path!r})"
                    )
                if made.label is Label.FROZEN and made.value is not None:
                    self._boundary.add(made.value)

    def _results(self, output: Any, given: list[Tensor]) -> tuple[list[Made], Any]:
        made: list[Made] = []

        def note(tensor: Tensor) -> Any:
            label, value = self._tracker.read(tensor)
            made.append(_made(tensor, value, label, _place(tensor, given)))
            return position(len(made) - 1)

        return made, note(output) if isinstance(output, Tensor) else nesting.replace(output, note)

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See one call of a torch function."""
        kwargs = kwargs or {}
        traits = traits_of(func)
        if traits.opens and args and isinstance(args[0], Tensor):
            self._tracker.show(args[0])
        if traits.asks if traits.asks is not None else is_about(func, args, kwargs):
            if traits.asks_size and isinstance(args[0], Tensor):
                read = self._look(args[0])
                self._asked.append((read, self._here))
                if read.label is Label.FROZEN and read.value is not None:
                    self._here.asked += (read.value,)
            return func(*args, **kwargs)
        if not traits.is_lasting:
            check_unpatched(func)
        leaves = nesting.given(args, kwargs)
        reads = [self._look(tensor) for tensor in leaves]
        hollow = traits.shape_only
        labels = [read.label for at, read in enumerate(reads) if at != hollow]
        label = max(labels, default=Label.CONSTANT)
        if self._boundary and any(read.value in self._boundary for at, read in enumerate(reads) if at != hollow):
            label = Label.TRAINABLE
        lends_shape = hollow is not None and hollow < len(reads) and reads[hollow].label is Label.FROZEN
        if hollow is not None and hollow < len(reads):
            self._asked.append((reads[hollow], self._here))
            reads[hollow] = Read(Label.CONSTANT, None)
        if reads and traits.counts:
            self._asked.append((reads[0], self._here))
        versions = [_version(tensor) for tensor in leaves]
        arguments = nesting.outlined(args, kwargs, position)
        # What a module with a fast path gives when watched is rounded in another way in any case: be quick about it.
        given = packed(func, args) if isinstance(self._here.module, nn.MultiheadAttention) else args
        result = func(*given, **kwargs)
        result = tuple(result) if traits.is_iterator else result
        outputs = nesting.tensors(result)
        drawn_for = self._drawn.get(len(self._operations)) if label is Label.CONSTANT else None
        label = drawn_for or label
        for tensor in outputs:
            if tensor.requires_grad:
                label = Label.TRAINABLE
        given_back = set(map(id, outputs))
        same = [at for at, leaf in enumerate(leaves) if id(leaf) in given_back]
        if same and len(same) >= len(outputs) and all(_version(leaves[at]) == versions[at] for at in same):
            label = max(reads[at].label for at in same)  # nothing was computed: x.contiguous() gave x itself
        op = Operation(len(self._operations), func, self._here, label, arguments, reads, [], None, NOTHING, False)
        op.lends_shape, op.is_drawn = lends_shape, drawn_for is Label.FROZEN
        op.is_apart = drawn_for is Label.TRAINABLE
        self._operations.append(op)
        self._here.operations.append(op)
        self._note(op, leaves, versions, result, outputs)
        return iter(result) if traits.is_iterator else result

    def _look(self, tensor: Tensor) -> Read:
        label, value, memory = self._tracker.see(tensor)
        outside = tensor if value is None else None
        home = self._holdings.homes.get(id(tensor)) if outside is not None else None
        if memory is None:
            return Read(label, value, outside, home=home)
        seen = _made(tensor, value, label) if value is not None and value[1] <= MIXED else None
        return Read(label, value, outside, memory.written, memory.ref.cdata, home, seen)

    def _note(
        self, op: Operation, leaves: list[Tensor], versions: list[int], result: Any, outputs: list[Tensor]
    ) -> None:
        for at, tensor in enumerate(leaves):
            if _version(tensor) != versions[at]:
                value = (op.ordinal, -1 - at)
                self._tracker.wrote(tensor, op.label, value, op.ordinal)
                op.changed = {**op.changed, at: _made(tensor, value, op.label)}
        for at, tensor in enumerate(outputs):
            argument = _place(tensor, leaves)
            label, known, memory = op.label, None, None
            if argument is None:  # what is made inside of vmap is nothing outside of it
                known = (op.ordinal, at) if not is_wrapped(tensor) else None
                memory = self._tracker.note(tensor, label, known)
            if argument is not None or (memory is not None and (memory.trains or memory.label > label)):
                label, known = self._tracker.read(tensor)
            op.made.append(_made(tensor, known, label, argument))
        op.result = position(0) if isinstance(result, Tensor) else nesting.outline(result, position)
        native = self._holdings.native
        op.gives_numbers = not outputs and not op.changed and result is not None
        op.reads_values = op.gives_numbers and op.label is Label.FROZEN
        for at, read in enumerate(op.reads):
            if read.outside is not None and read.label is Label.CONSTANT and id(read.outside) not in native:
                self._strangers.append((leaves[at], op))
        if op.reads_values:
            op.call.opaque = True

    def _check_at(self) -> None:
        for path in sorted(self._at - self._reached):
            names = [name for name, _ in self._model.named_modules() if name]
            kind = "a module that its forward calls" if path in names else f"one of its modules, such as {names[:4]}"
            raise SplitError(f"Cannot cut at '{path}': expected {kind}, got a name that is never called.")


def _place(tensor: Tensor, among: list[Tensor]) -> int | None:
    """Find a tensor among others: the very same."""
    for at, other in enumerate(among):
        if other is tensor:
            return at
    return None


def _check_output(output: Any) -> None:
    if not nesting.tensors(output):
        raise SplitError(
            f"Cannot split: expected forward to return tensors, got {type(output).__name__} without any (a generator "
            "computes its own after forward has returned). Return them in a tuple, a list or a dict."
        )


def _version(tensor: Tensor) -> int:
    """Count the writes into a tensor; tensors of inference mode do not."""
    return 0 if tensor.is_inference() else tensor._version


def _made(tensor: Tensor, value: Value | None, label: Label, argument: int | None = None) -> Made:
    if tensor.is_nested:  # its parts have shapes, it has none
        return Made(value, label, (), (), tensor.dtype, tensor.device, argument, Sized.VALUES)
    stride = () if tensor.layout is not torch.strided else tuple(tensor.stride())
    return Made(value, label, tuple(tensor.shape), stride, tensor.dtype, tensor.device, argument)
