"""Which frozen values to store: the fewest bytes from which the rest follows by moving or comparing numbers.

A view and what it is a view of are stored once; a mask, not the square of it; a small picture, not the one that it is
blown up to. Only operations that cost about as much as reading the stored bytes are done again in the head.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from forethought.splitting.operations import func_name
from forethought.splitting.recording import MIXED, Label, Made, Operation, Read, Value

_VIEWS = {
    "view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as",
    "narrow", "select", "__getitem__", "chunk", "split", "unbind", "movedim", "moveaxis", "swapaxes", "swapdims", "t",
    "contiguous", "detach", "clone", "view_as", "reshape_as", "diagonal", "tensor_split", "unfold", "__get__",
}  # fmt: skip
_COPIES = {
    "repeat", "repeat_interleave", "tile", "cat", "concat", "stack", "interpolate", "upsample", "upsample_nearest",
    "upsample_bilinear", "one_hot", "pad", "roll", "flip", "pixel_shuffle", "pixel_unshuffle", "broadcast_to",
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "bool", "long", "int",
}  # fmt: skip
_COMPARISONS = {
    "eq", "ne", "lt", "gt", "le", "ge", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or",
    "bitwise_not", "and", "or", "invert", "where", "masked_fill", "add", "sub", "rsub", "mul", "div", "truediv", "neg",
    "radd", "rmul",
}  # fmt: skip
CHEAP = _VIEWS | _COPIES | _COMPARISONS | {f"__{name}__" for name in _COMPARISONS}
_DEEPEST = 16  # operations between what is stored and what is needed
_MOST = 64  # values looked at for one that is needed
_WORTH_OPENING = 0.6  # a frozen call is walked through, which costs the head time, only for that much less to store


class Thrift:
    """Chooses what to store of one recorded run.

    Args:
        operations: All operations of the run.
        inputs: The model's inputs.
    """

    def __init__(self, operations: Sequence[Operation], inputs: Sequence[Made]) -> None:
        self._operations = operations
        self._inputs = inputs
        self._opens = False  # look into calls that are run as one step
        self._known: dict[Value, list[Value] | None] = {}
        self._sizes: dict[Value, int] = {}
        self._closed: tuple[Collection[Value], set[Value]] | None = None  # what was needed, and the fewest to store
        self._written = {op.reads[at].memory for op in operations for at in op.changed}

    def choose(self, needed: Mapping[Value, Read]) -> list[Operation]:
        """List the operations to be done again in the head, so that fewer bytes are stored.

        Args:
            needed: The frozen values that the head reads, each as it was read.
        """
        if self._closed is not None and self._closed[0] == needed.keys():
            return self._again(needed, self._closed[1])
        return self._again(needed, self._fewest(needed))

    def _again(self, needed: Mapping[Value, Read], stored: set[Value]) -> list[Operation]:
        again: dict[int, Operation] = {}
        for value in needed.keys() - stored:
            for op in self._steps(value, stored):
                again[op.ordinal] = op
        return [again[ordinal] for ordinal in sorted(again)]

    def open_calls(self, needed: Mapping[Value, Read]) -> bool:
        """Let both halves walk through frozen calls inside of which much less could be stored; say if any."""
        closed = self._fewest(needed)
        self._opens = True
        self._known.clear()
        stored = self._fewest(needed)
        chosen = self._again(needed, stored)
        is_worth = self._size(stored) <= _WORTH_OPENING * self._size(closed)
        self._opens = False
        self._known.clear()
        opened = [op.call for op in chosen if op.call.outermost_whole() is not None] if is_worth else []
        for call in opened:
            call.open()
        self._closed = None if opened else (set(needed), closed)
        return bool(opened)

    def _fewest(self, needed: Mapping[Value, Read]) -> set[Value]:
        """Find the values to store."""
        stored = {value for group in self._related(needed) for value in self._fewest_of(group)}
        return stored if any(value[0] >= 0 for value in stored) else set(needed)  # inputs alone are nothing to keep

    def _related(self, needed: Mapping[Value, Read]) -> list[dict[Value, Read]]:
        """Part the values into groups that share no source: each group is a question of its own."""
        groups: dict[Value, dict[Value, Read]] = {}
        for value, read in needed.items():
            kin = [value, *self._ancestors(value)] if self._is_simple(read) else [value]
            group = {value: read}
            for other in {id(groups[one]): groups[one] for one in kin if one in groups}.values():
                group |= other
            groups |= dict.fromkeys(
                [*kin, *(one for one, known in groups.items() if known.keys() & group.keys())], group
            )
        return list({id(group): group for group in groups.values()}.values())

    def _fewest_of(self, needed: Mapping[Value, Read]) -> set[Value]:
        stored = set(needed)
        candidates = self._candidates(needed) if len(needed) <= _MOST else []
        better = True
        while better:
            better = False
            for more in candidates:
                chosen = self._without_derived(stored | more, needed)
                if self._size(chosen) < self._size(stored):
                    stored, better = chosen, True
        return stored

    def _candidates(self, needed: Mapping[Value, Read]) -> list[frozenset[Value]]:
        """List sets of values that might be stored instead: each single one, and the smallest to get each by."""
        found: dict[frozenset[Value], None] = {}
        for value, read in needed.items():
            if not self._is_simple(read):
                continue
            found[self._smallest(value, _DEEPEST)[1]] = None
            for source in self._ancestors(value):
                found[frozenset([source])] = None
        found[frozenset(needed)] = None
        return list(found)

    def _without_derived(self, values: set[Value], needed: Mapping[Value, Read]) -> set[Value]:
        """Leave out what follows from the rest, the latest first."""
        kept = set(values)
        for value in sorted(values, reverse=True):
            kept.discard(value)
            is_free = value not in needed or self._is_simple(needed[value])
            if not (kept and is_free and self._follows(value, kept, _DEEPEST)):
                kept.add(value)
        return {value for value in kept if value in needed or self._is_used(value, kept, needed)}

    def _is_used(self, value: Value, kept: set[Value], needed: Mapping[Value, Read]) -> bool:
        rest = kept - {value}
        return any(not self._follows(one, rest, _DEEPEST) for one in needed if one not in kept)

    def _follows(self, value: Value, stored: set[Value], depth: int) -> bool:
        if value in stored:
            return True
        sources = self._sources(value) if depth else None
        return sources is not None and all(self._follows(source, stored, depth - 1) for source in sources)

    def _smallest(self, value: Value, depth: int) -> tuple[int, frozenset[Value]]:
        """Find the fewest bytes that a value follows from."""
        size = self._size([value])
        sources = self._sources(value) if depth else None
        if not sources:
            return size, frozenset([value])
        parts = [self._smallest(source, depth - 1) for source in sources]
        total = sum(part for part, _ in parts)
        return (total, frozenset().union(*(of for _, of in parts))) if total < size else (size, frozenset([value]))

    def _ancestors(self, value: Value) -> list[Value]:
        found: dict[Value, None] = {}
        open_values = [value]
        while open_values and len(found) < _MOST:
            sources = self._sources(open_values.pop()) or []
            open_values += [source for source in sources if source not in found]
            found |= dict.fromkeys(sources)
        return list(found)

    def _steps(self, value: Value, stored: set[Value]) -> Iterable[Operation]:
        """Give the operations by which a value follows from what is stored."""
        if value in stored:
            return
        yield self._operations[value[0]]
        for source in self._sources(value) or []:
            yield from self._steps(source, stored)

    def _sources(self, value: Value) -> list[Value] | None:
        """List the frozen values that a value follows from cheaply; None if it does not."""
        if value not in self._known:
            self._known[value] = self._find_sources(value)
        return self._known[value]

    def _find_sources(self, value: Value) -> list[Value] | None:
        ordinal, position = value
        if ordinal < 0 or position < 0:
            return None
        op = self._operations[ordinal]
        if op.label is not Label.FROZEN or op.changed or not (self._opens or op.call.outermost_whole() is None):
            return None
        if func_name(op.func) not in CHEAP or op.made[position].argument is not None:
            return None
        frozen = [read for read in op.reads if read.label is Label.FROZEN]
        if not all(map(self._is_simple, frozen)):
            return None
        return [read.value for read in frozen if read.value is not None]

    def _is_simple(self, read: Read) -> bool:
        """Say whether what was read is never written into, and can be taken where it is made."""
        if read.value is None or read.memory in self._written or read.seen is not None:
            return False
        if read.value[0] < 0:
            return True
        call = self._operations[read.value[0]].call
        whole = call if self._opens and call.whole else call.outermost_whole()
        return whole is None or any(made.value == read.value for made in whole.made)

    def _size(self, values: Collection[Value]) -> int:
        for value in values:
            if value not in self._sizes:
                self._sizes[value] = _bytes(self._made(value))
        return sum(self._sizes[value] for value in values)

    def _made(self, value: Value) -> Made | None:
        ordinal, position = value
        if ordinal < 0:
            return self._inputs[position]
        op = self._operations[ordinal]
        if position <= MIXED:
            return None
        return op.made[position] if position >= 0 else op.changed[-1 - position]


def _bytes(made: Made | None) -> int:
    if made is None:
        return 0
    size = made.dtype.itemsize
    for length in made.shape:
        size *= length
    return size
