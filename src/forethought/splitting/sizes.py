"""What decides the size of a tensor: the shapes of the inputs alone, or perhaps more.

The head is told the sizes of tensors that it does not compute. A size is foretold from a few recorded runs, and runs
may agree by accident: as many samples passed a threshold, as many words were told apart. So a size is believed only
where no operation that leads to it makes one from values, from a number that Python read, or from a limit that larger
batches may exceed. Any other tensor crosses the frontier where Python asks for its size.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from forethought import nesting
from forethought.splitting.operations import func_name, is_native
from forethought.splitting.recording import MIXED, Call, Label, Made, Operation, Position, Read, Recording, Sized, Value

_BY_VALUES = {
    "nonzero", "argwhere", "unique", "unique_consecutive", "unique_dim", "masked_select", "bincount", "nms",
    "unique_dim_consecutive", "linalg_lstsq",
    "batched_nms", "to_sparse", "to_sparse_coo", "to_sparse_csr", "to_sparse_csc", "to_sparse_bsr", "to_sparse_bsc",
    "coalesce", "pack_padded_sequence", "pad_packed_sequence",
}  # fmt: skip
# Functions that give a tensor of the size of their first.
_OF_THE_FIRST = {
    "index_add", "index_copy", "index_fill", "index_put", "scatter", "scatter_add", "scatter_reduce", "masked_fill",
    "masked_scatter", "select_scatter", "slice_scatter",
}  # fmt: skip
# Functions for which numbers are no sizes.
_NEVER_BY_NUMBERS = {
    "add", "sub", "rsub", "mul", "div", "truediv", "floordiv", "floor_divide", "mod", "remainder", "pow", "eq", "ne",
    "lt", "gt", "le", "ge", "and", "or", "xor", "radd", "rmul", "rtruediv", "rpow", "clamp", "where", "softmax",
    "log_softmax", "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all", "prod", "std", "var",
    "norm", "cumsum", "cumprod", "transpose", "permute", "squeeze", "unsqueeze", "swapaxes", "movedim", "flatten",
    "dropout", "gelu", "relu", "leaky_relu", "elu", "linear", "matmul", "bmm", "layer_norm", "group_norm", "batch_norm",
    "embedding", "scaled_dot_product_attention", "masked_fill", "index_add", "scatter", "gather", "index_select",
}  # fmt: skip
# Functions that give pieces of a tensor, and the axis along which they do.
_PIECES = {"split": 0, "chunk": 0, "tensor_split": 0, "split_with_sizes": 0, "hsplit": 1, "vsplit": 0, "dsplit": 2}


def mark_sizes(recordings: Sequence[Recording]) -> None:
    """Note on the tensors of the first recording what decides their size.

    Args:
        recordings: Runs of one model on several numbers of samples.
    """
    _Sizes(recordings).mark()


class _Sizes:
    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._recordings = recordings
        funcs = [[op.func for op in recording.operations] for recording in recordings]
        self._is_same = all(one == funcs[0] for one in funcs)  # operation by operation
        self._known: dict[Value, Sized] = {}
        self._reading: set[int] = set()  # calls that are one step, inside of which Python has read a number
        self._has_read = False  # the same, where both halves run
        self._wholes: dict[int, Call | None] = {}

    def mark(self) -> None:
        root = self._recordings[0].root
        for call in root.walk():
            self._wholes[id(call)] = call.outermost_whole()
        for op in self._recordings[0].operations:
            if op.label is not Label.TRAINABLE:
                self._mark(op)
        for call in root.walk():
            for made in (*call.made, *call.changed.values()):
                made.sized = max(made.sized, self._of(made.value))

    def _mark(self, op: Operation) -> None:
        whole = self._wholes[id(op.call)]
        sized = max(self._given(op), self._own(op))
        if (self._has_read or id(whole) in self._reading) and _takes_numbers(op):
            sized = max(sized, Sized.NUMBERS)
        for made in op.made:
            if (
                made.argument is None
                and made.value is not None
                and (total := max(made.sized, sized * bool(made.shape)))
            ):
                self._known[made.value] = made.sized = Sized(total)
        for at, made in op.changed.items():  # what is written into keeps its size
            if made.value is not None and (kept := self._of(op.reads[at].value)):
                self._known[made.value] = made.sized = kept
        if op.gives_numbers and op.label is Label.FROZEN and not isinstance(op.result, bool):
            self._has_read = self._has_read or whole is None
            self._reading.add(id(whole))

    def _of(self, value: Value | None) -> Sized:
        return self._known.get(value, Sized.SHAPES) if value is not None else Sized.SHAPES

    def _given(self, op: Operation) -> Sized:
        """Tell what decides the sizes that an operation is given."""
        if not self._known:
            return Sized.SHAPES
        reads = op.reads[:1] if func_name(op.func).strip("_") in _OF_THE_FIRST else op.reads
        return max((self._of(read.value) for read in reads), default=Sized.SHAPES)

    def _own(self, op: Operation) -> Sized:
        """Tell what decides the sizes that an operation makes of those that it is given."""
        name = func_name(op.func)
        if op.label is not Label.FROZEN:
            return Sized.SHAPES
        if name.strip("_") in _BY_VALUES or self._is_by_values(op, name):
            return Sized.VALUES
        if name == "__getitem__":
            return max((self._cut(op, axis, bounds) for axis, bounds in _slices(op)), default=Sized.SHAPES)
        if name in _PIECES:
            return self._pieces(op, name)
        if name == "pad" and self._is_varying(op):
            return Sized.NUMBERS
        return Sized.SHAPES if is_native(op.func) else Sized.NUMBERS

    def _is_by_values(self, op: Operation, name: str) -> bool:
        args, kwargs = op.arguments
        if name == "__getitem__":
            limits = {position.at for _, bounds in _slices(op) for position in nesting.tensors(bounds, Position)}
            masks = [at for at in range(1, len(op.reads)) if at in limits or self._is_mask(op.reads[at])]
            return any(op.reads[at].label is Label.FROZEN for at in masks)
        if name == "where":
            return len(args) == 1 and not kwargs
        if name == "one_hot":
            return bool(kwargs.get("num_classes", args[1] if len(args) > 1 else -1) == -1)
        if name in {"repeat_interleave", "tensor_split"}:
            by_tensor = len(op.reads) > 1 or len(args) + len(kwargs) == 1
            return by_tensor and op.reads[-1].label is Label.FROZEN and "output_size" not in kwargs
        return False

    def _is_mask(self, read: Read) -> bool:
        seen = read.outside if read.value is None else _made(self._recordings[0], read.value)
        return seen is None or seen.dtype in (torch.bool, torch.uint8)

    def _cut(self, op: Operation, axis: int, bounds: slice) -> Sized:
        """Judge a slice: along an axis that grows with the batch, a limit may be one that larger batches exceed."""
        if not self._grows(op, axis):
            return Sized.SHAPES
        if self._is_varying(op):
            return Sized.NUMBERS
        return Sized.VALUES if any(type(n) is int and n > 0 for n in (bounds.start, bounds.stop)) else Sized.SHAPES

    def _pieces(self, op: Operation, name: str) -> Sized:
        """Judge a split into pieces: even ones, of an axis that grows evenly, grow evenly too."""
        args, kwargs = op.arguments
        axis = kwargs.get("dim", args[2] if len(args) > 2 and type(args[2]) is int else _PIECES[name])
        if not self._grows(op, axis):
            return Sized.SHAPES
        if self._is_varying(op):
            return Sized.NUMBERS
        is_even = all(len({made.shape for made in same.made}) == 1 for same in self._same(op))
        return Sized.SHAPES if is_even and not name.startswith("split") else Sized.VALUES

    def _grows(self, op: Operation, axis: int) -> bool:
        """Say whether an axis of what is read first grows with the batch; if runs differ in kind, the first does."""
        if not self._is_same:
            return axis == 0
        shapes = []
        for same, recording in zip(self._same(op), self._recordings, strict=True):
            made = _made(recording, same.reads[0].value) if same.reads else None
            shapes.append(made.shape if made is not None else ())
        return len({shape[axis] for shape in shapes if -len(shape) <= axis < len(shape)}) > 1

    def _is_varying(self, op: Operation) -> bool:
        """Say whether an operation was given other numbers for other numbers of samples."""
        return len({repr(same.arguments) for same in self._same(op)}) > 1

    def _same(self, op: Operation) -> list[Operation]:
        """Give an operation as it was in each recording."""
        return [recording.operations[op.ordinal] for recording in self._recordings] if self._is_same else [op]


def _made(recording: Recording, value: Value | None) -> Made | None:
    """Find the form of a value."""
    if value is None or value[1] <= MIXED:
        return None
    ordinal, position = value
    if ordinal < 0:
        return recording.inputs[position]
    op = recording.operations[ordinal]
    return op.made[position] if position >= 0 else op.changed[-1 - position]


def _slices(op: Operation) -> Iterator[tuple[int, slice]]:
    """List the slices by which a tensor is indexed, each with its axis; counted from the end after an ellipsis."""
    index = op.arguments[0][1]
    parts = list(index) if isinstance(index, tuple) else [index]
    axes = [part for part in parts if part is not None]  # None makes a new axis
    at = next((at for at, part in enumerate(axes) if part is Ellipsis), len(axes))
    for axis, part in enumerate(axes):
        if isinstance(part, slice):
            yield axis if axis < at else axis - len(axes), part


def _takes_numbers(op: Operation) -> bool:
    """Say whether an operation is given numbers, or a list, that may decide the size of what it gives."""
    if func_name(op.func).strip("_") in _NEVER_BY_NUMBERS:
        return False
    return any(_has_number(value) for part in (op.arguments[0], op.arguments[1].values()) for value in part)


def _has_number(value: Any) -> bool:
    if isinstance(value, slice):
        return any(type(bound) is int for bound in (value.start, value.stop, value.step))
    if isinstance(value, tuple):
        return any(map(_has_number, value))
    return type(value) in (int, list, torch.Size)
