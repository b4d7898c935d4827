"""A recorded run as it would be if it had been cut elsewhere: for many cuts at once, one bit each.

A cut asked for at a module makes its outputs the boundary: what reads their values belongs to the head, and so does
everything that follows from that, as in `frontier.Recorder`.
"""

from collections.abc import Iterator, Sequence

from forethought.splitting.recording import Call, Label, Operation, Read, Recording, Value

Cuts = int
"""A set of cuts, one bit each."""


class Relabelled:
    """For each operation, value and memory of a recording, the cuts for which the head computes it."""

    def __init__(self, recording: Recording, calls: Sequence[Call]) -> None:
        self.every: Cuts = (1 << len(calls)) - 1
        self._of_chance: dict[int, Cuts] = {}
        self._relabel_all(recording, calls)
        if recording.drawn:  # known only now: whether what follows from a draw is frozen for a cut
            self._of_chance = _of_chance(recording.operations, self.head, self.every)
            self._relabel_all(recording, calls)

    def _relabel_all(self, recording: Recording, calls: Sequence[Call]) -> None:
        self.head: list[Cuts] = []  # of each operation
        self.frozen_reads: list[list[tuple[Read, Cuts]]] = []  # of each operation: what it reads, frozen for which cuts
        self._values: dict[Value, Cuts] = {}
        self._memories: dict[int, Cuts] = {}
        self._boundary: dict[Value, Cuts] = {}
        ends = last_operations(recording.root)
        begun = 0
        for op in recording.operations:
            while begun < len(calls) and ends[id(calls[begun])] < op.ordinal:
                self._begin(calls[begun], 1 << begun)
                begun += 1
            self._relabel(op)

    def of_value(self, value: Value | None, memory: int | None = None) -> Cuts:
        """Give the cuts for which the head computes a value, or has written into its memory."""
        cuts = self._values.get(value, 0) if value is not None else 0
        return cuts | (self._memories.get(memory, 0) if memory is not None else 0)

    def _begin(self, call: Call, bit: Cuts) -> None:
        """Take the outputs of a call as the boundary from here on."""
        for made in call.made:
            if made.label is Label.FROZEN and made.value is not None:
                self._boundary[made.value] = self._boundary.get(made.value, 0) | bit

    def _relabel(self, op: Operation) -> None:
        read = [self.of_value(read.value, read.memory) for read in op.reads]
        self.frozen_reads.append(
            [(r, self.every & ~cuts) for r, cuts in zip(op.reads, read, strict=True) if r.label is Label.FROZEN]
        )
        given = [made.argument for made in op.made]
        if given and all(at is not None and at not in op.changed for at in given):
            cuts = 0  # nothing is computed: x.contiguous() gives x itself
            for at in given:
                cuts |= read[at] if at is not None else 0
        else:
            cuts = 0
            for at, one in enumerate(op.reads):
                cuts |= read[at] | (self._boundary.get(one.value, 0) if one.value is not None else 0)
        cuts |= self._of_chance.get(op.ordinal, 0)
        if op.label is Label.TRAINABLE:
            cuts = self.every
        self.head.append(cuts)
        if not cuts:
            return
        for made in op.made:
            if made.argument is None and made.value is not None:
                self._values[made.value] = cuts
        for at, made in op.changed.items():
            memory = op.reads[at].memory
            if made.value is not None:
                self._values[made.value] = cuts
            if memory is not None:
                self._memories[memory] = self._memories.get(memory, 0) | cuts


def _of_chance(operations: Sequence[Operation], head: Sequence[Cuts], every: Cuts) -> dict[int, Cuts]:
    """Tell for random numbers, and for what follows from them alone, the cuts for which only the head reads them."""
    by_chance: set[Value] = set()
    chosen = []
    for op in operations:
        frozen = [read.value for read in op.reads if read.label is Label.FROZEN]
        if op.is_drawn or (op.label is Label.FROZEN and frozen and all(value in by_chance for value in frozen)):
            by_chance |= {made.value for made in (*op.made, *op.changed.values()) if made.value is not None}
            chosen.append(op)
    readers: dict[Value, list[int]] = {}
    for op in operations:
        for read in op.reads:
            if read.value in by_chance:
                readers.setdefault(read.value, []).append(op.ordinal)
    found: dict[int, Cuts] = {}
    for op in reversed(chosen):
        cuts = every
        for made in (*op.made, *op.changed.values()):
            for reader in readers.get(made.value, []) if made.value is not None else []:
                cuts &= found.get(reader, head[reader])
        found[op.ordinal] = cuts
    for op in chosen:
        for read in op.reads:
            if read.value in by_chance and read.value is not None:  # what the trunk draws, it also computes with
                found[op.ordinal] &= found[read.value[0]]
    return found


class AsCut:
    """The operations of a recording as they would be for one cut: what `thrift` asks of them."""

    def __init__(self, recording: Recording, relabelled: Relabelled, wholes: dict[int, Cuts], bit: int) -> None:
        self._operations = recording.operations
        self._head = relabelled.head
        self._wholes = wholes
        self._bit = bit
        self._calls: dict[int, Call] = {}
        self._known: dict[int, Operation] = {}

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)

    def __getitem__(self, ordinal: int) -> Operation:
        if ordinal not in self._known:
            op = self._operations[ordinal]
            label = Label.TRAINABLE if self._head[ordinal] >> self._bit & 1 else op.label
            self._known[ordinal] = Operation(
                op.ordinal, op.func, self._call(op.call), label, op.arguments, op.reads, op.made, op.result, op.changed,
                op.reads_values,
            )  # fmt: skip
        return self._known[ordinal]

    def _call(self, call: Call) -> Call:
        if id(call) not in self._calls:
            parent = None if call.parent is None else self._call(call.parent)
            whole = bool(self._wholes[id(call)] >> self._bit & 1)
            self._calls[id(call)] = Call(call.path, call.module, parent, made=call.made, whole=whole)
        return self._calls[id(call)]

    def take_over(self) -> None:
        """Note which calls were opened."""
        for call, made in self._calls.items():
            if not made.whole:
                self._wholes[call] &= ~(1 << self._bit)


def wholes_of(recording: Recording, relabelled: Relabelled) -> dict[int, Cuts]:
    """Tell for each call, by its id, for which cuts it is one step."""
    leaky = _leaky(recording)
    busy: dict[int, Cuts] = {}
    wholes: dict[int, Cuts] = {}
    for call in reversed(list(recording.root.walk())):
        cuts = 0
        for child in call.children.values():
            cuts |= busy[id(child)]
        for op in call.operations:
            cuts |= relabelled.head[op.ordinal]
        busy[id(call)] = cuts
        given = 0
        for made in call.made:
            given |= relabelled.of_value(made.value)
        wholes[id(call)] = relabelled.every & ~cuts & ~given if call.whole and id(call) not in leaky else 0
    return wholes


def _leaky(recording: Recording) -> set[int]:
    """Find the calls of which something outside reads a value other than their output."""
    leaky: set[int] = set()
    given: dict[int, set[Value | None]] = {}
    readers: set[tuple[Value, Call | None]] = {
        (read.value, op.call) for op in recording.operations for read in op.reads if read.value is not None
    }
    readers |= {(made.value, None) for made in recording.root.made if made.value is not None}
    for value, reader in readers:
        inside = {id(call) for call in upwards(reader)}
        source = recording.operations[value[0]].call if value[0] >= 0 else None
        for call in upwards(source):
            if id(call) in inside:
                break
            if id(call) not in given:
                given[id(call)] = {made.value for made in (*call.made, *call.changed.values())}
            if value not in given[id(call)]:
                leaky.add(id(call))
    return leaky


def upwards(call: Call | None) -> Iterator[Call]:
    """Go from a call through those around it to the outermost one."""
    while call is not None:
        yield call
        call = call.parent


def last_operations(root: Call) -> dict[int, int]:
    """Tell the last operation inside each call that has any."""
    ends: dict[int, int] = {}
    for call in reversed(list(root.walk())):
        inner = [ends[id(child)] for child in call.children.values() if id(child) in ends]
        inner += [op.ordinal for op in call.operations[-1:]]
        if inner:
            ends[id(call)] = max(inner)
    return ends


def bits_of(cuts: Cuts) -> Iterator[int]:
    while cuts:
        lowest = cuts & -cuts
        yield lowest.bit_length() - 1
        cuts ^= lowest
