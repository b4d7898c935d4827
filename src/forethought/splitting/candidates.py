"""Where else a model could be cut: foretold from one recorded run, without running the model again.

The recording is relabelled for all modules at once; what crosses then follows as in `cut`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from forethought.shapes.forms import Form, FrontierTensor, Size
from forethought.splitting.operations import func_name
from forethought.splitting.recording import Call, Label, Made, Operation, Read, Recording, Value
from forethought.splitting.relabelling import AsCut, Cuts, Relabelled, bits_of, last_operations, upwards, wholes_of
from forethought.splitting.thrift import CHEAP, Thrift

_MOST_SPARED = 64  # values read for which it is worked out what to store of them: the work grows with their square


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module whose output could be the frontier.

    Attributes:
        path: What to ask for: `ft.split(model, x, at=path)`.
        tensors: What would cross the frontier.
        operations: How many frozen operations would be left to the trunk.
        share: Fraction of the measured time of all frozen operations that these took; None if not measured.
    """

    path: str
    tensors: tuple[FrontierTensor, ...]
    operations: int
    share: float | None = None

    @property
    def size_bytes(self) -> int | None:
        """Bytes a sample; None if a tensor has no row for each sample, so that it cannot be stored."""
        if any(tensor.row_axis is None for tensor in self.tensors):
            return None
        return sum(tensor.size_bytes for tensor in self.tensors)


def find_candidates(
    recording: Recording,
    larger: Recording | None,
    batch: int,
    more: int = 1,
    times_s: Sequence[float] | None = None,
) -> tuple[Candidate, ...]:
    """List the modules that a model could be cut at, in order of execution, outer modules before inner ones.

    A module is listed if it is called once, computes something, and gives frozen tensors only. What would cross is what
    a split there finds; where the head reads more than 64 frozen values, it may be more than a thrifty split stores.

    Args:
        recording: A run of the model, recorded without asking for a cut: `split.plan.recording`.
        larger: The run on more samples, `split.plan.larger`, which tells which axis is the batch.
        batch: Samples in the recording, `split.plan.batch`.
        more: How many more there are in `larger`.
        times_s: Seconds of each operation of the recording, in order.
    """
    calls = list(_candidate_calls(recording))
    relabelled = Relabelled(recording, calls)
    crossing = _Crossing(recording, relabelled)
    forms = _Forms(recording, larger, batch, more)
    frozen, shares = _before(recording, relabelled, len(calls), times_s)
    found = []
    for bit, call in enumerate(calls):
        names = crossing.names(bit)
        if not crossing.invalid >> bit & 1 and any(value[0] >= 0 for value, _ in names):
            tensors = tuple(FrontierTensor(name, forms.form(value), batch) for value, name in names)
            found.append(Candidate(call.path, tensors, frozen[bit], None if shares is None else shares[bit]))
    return tuple(found)


def within(candidates: Iterable[Candidate], limit: int) -> Candidate | None:
    """Choose the cut that leaves most to the trunk, of those that cost at most `limit` bytes a sample.

    Of cuts that save the same, the one of fewer bytes; of equal ones, the outermost module.
    """

    def worth(one: Candidate) -> tuple[float, int, int, int]:
        return one.share or 0.0, one.operations, -(one.size_bytes or 0), -one.path.count(".")

    fitting = [one for one in candidates if one.size_bytes is not None and one.size_bytes <= limit]
    return max(fitting, key=worth, default=None)


def distinct(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Leave out candidates that cross just what an earlier one crosses."""
    seen: dict[tuple[FrontierTensor, ...], Candidate] = {}
    for one in candidates:
        seen.setdefault(one.tensors, one)
    return tuple(seen.values())


def _candidate_calls(recording: Recording) -> Iterator[Call]:
    calls = [call for call in recording.root.walk() if call.path]
    count = Counter(call.path for call in calls)
    ends = last_operations(recording.root)
    frozen = []
    for call in calls:
        labels = {made.label for made in call.made}
        known = all(made.value is not None for made in call.made if made.label is Label.FROZEN)
        # A module without operations gives what it was given: the module before it is the same cut.
        computes = count[call.path] == 1 and id(call) in ends
        if computes and known and Label.FROZEN in labels and Label.TRAINABLE not in labels:
            frozen.append(call)
    yield from sorted(frozen, key=lambda call: (ends[id(call)], call.path.count(".")))


class _Crossing:
    """What crosses the frontier for each cut: `cut.Cut` for all of them at once."""

    def __init__(self, recording: Recording, relabelled: Relabelled) -> None:
        self.invalid: Cuts = 0
        self._operations = recording.operations
        self._relabelled = relabelled
        self._wholes = wholes_of(recording, relabelled)
        self._real: dict[Value, Cuts] = {}  # frozen values that the head computes, to decide by them
        self._in_head: dict[int, Cuts] = {}
        self._keys: dict[tuple[Value, int], Cuts] = {}
        self._decide_in_head(relabelled.every)
        outputs = self._outputs(recording)
        self._spare(recording, outputs)
        for op in recording.operations:
            self._cross_all(op)
        for read, cuts in outputs:
            self._cross(read.value, read.settled, cuts)
        self._names: dict[int, list[tuple[Value, str]]] = {}
        for (value, _), cuts in self._keys.items():
            for name, some in self._named(value, cuts):
                for bit in bits_of(some):
                    self._names.setdefault(bit, []).append((value, name))
        self._forbid_trainable_numbers()

    def names(self, bit: int) -> list[tuple[Value, str]]:
        """List what crosses for one cut, in order."""
        return self._names.get(bit, [])

    def _inside_whole(self, call: Call) -> Cuts:
        """Give the cuts for which a call lies in one that is run, or left out, as one step."""
        cuts = 0
        for around in upwards(call):
            cuts |= self._wholes[id(around)]
        return cuts

    def _decide_in_head(self, cuts: Cuts) -> None:
        for op in self._operations:
            if op.reads_values:
                self._give_to_head(op, cuts & ~self._relabelled.head[op.ordinal])

    def _give_to_head(self, op: Operation, cuts: Cuts) -> None:
        cuts &= ~self._inside_whole(op.call)
        if not cuts or not cuts & ~self._in_head.get(op.ordinal, 0):
            return
        self._in_head[op.ordinal] = self._in_head.get(op.ordinal, 0) | cuts
        for made in op.made:
            if made.value is not None:
                self._real[made.value] = self._real.get(made.value, 0) | cuts
        for read in op.reads:
            if read.label is Label.FROZEN and read.value is not None and read.value[0] >= 0:
                source = self._operations[read.value[0]]
                is_number = 0 <= read.value[1] < len(source.made) and source.made[read.value[1]].shape == ()
                if is_number and not source.changed:
                    self._give_to_head(source, cuts)

    def _cross_all(self, op: Operation) -> None:
        frozen = self._relabelled.frozen_reads[op.ordinal]
        if not frozen:
            return
        head = self._relabelled.head[op.ordinal]
        some = unknown = 0
        for read, cuts in frozen:
            some |= cuts
            unknown |= cuts & ~(self._real.get(read.value, 0) if read.value is not None else 0)
        if some & ~unknown & ~head:
            self._give_to_head(op, some & ~unknown & ~head)  # it follows from what the head computes
        runs = head | self._in_head.get(op.ordinal, 0)
        for read, cuts in frozen:
            self._cross(read.value, read.settled, runs & cuts)

    def _cross(self, value: Value | None, settled: int, cuts: Cuts) -> None:
        if value is None:
            self.invalid |= cuts  # nobody saw where it came from
            return
        cuts &= ~self._real.get(value, 0)
        if cuts:
            key = value, max(value[0], settled)
            self._keys[key] = self._keys.get(key, 0) | cuts

    def _outputs(self, recording: Recording) -> list[tuple[Read, Cuts]]:
        """List what the model gives back that is frozen, as reads, and for which cuts it is."""
        memories = {read.value: read.memory for op in self._operations for read in op.reads if read.value is not None}
        written = {op.reads[at].memory: op.ordinal for op in self._operations for at in op.changed}
        found = []
        for made in recording.root.made:
            if made.label is Label.FROZEN:
                memory = memories.get(made.value) if made.value is not None else None
                settled = written.get(memory, -1) if memory is not None else -1
                read = Read(Label.FROZEN, made.value, settled=settled, memory=memory)
                found.append((read, self._relabelled.every & ~self._relabelled.of_value(made.value, memory)))
        return found

    def _spare(self, recording: Recording, outputs: Sequence[tuple[Read, Cuts]]) -> None:
        """Let the head do cheap operations again where that leaves less to store, for each cut by itself."""
        derived: Cuts = 0
        needed = self._needed(outputs, self._relabelled.every)
        for bit, values in needed.items():
            if len(values) <= _MOST_SPARED and any(self._is_cheap(value) for value in values):
                derived |= 1 << bit
        for bit in bits_of(derived):
            view = AsCut(recording, self._relabelled, self._wholes, bit)
            thrift = Thrift(cast(Sequence[Operation], view), recording.inputs)
            values = needed[bit]
            if thrift.open_calls(values):
                view.take_over()
                self._decide_in_head(1 << bit)
                values = self._needed(outputs, 1 << bit).get(bit, {})
            for op in thrift.choose(values):
                self._in_head[op.ordinal] = self._in_head.get(op.ordinal, 0) | 1 << bit
                for made in op.made:
                    if made.value is not None:
                        self._real[made.value] = self._real.get(made.value, 0) | 1 << bit

    def _needed(self, outputs: Sequence[tuple[Read, Cuts]], wanted: Cuts) -> dict[int, dict[Value, Read]]:
        """Tell for each cut what the head reads of the frozen values that it does not compute."""
        needed: dict[int, dict[Value, Read]] = {}
        for at, frozen in enumerate(self._relabelled.frozen_reads):
            runs = wanted & (self._relabelled.head[at] | self._in_head.get(at, 0))
            for read, cuts in frozen if runs else ():
                self._need(needed, read, cuts & runs)
        for read, cuts in outputs:
            self._need(needed, read, cuts & wanted)
        return needed

    def _need(self, needed: dict[int, dict[Value, Read]], read: Read, cuts: Cuts) -> None:
        if read.value is not None:
            for bit in bits_of(cuts & ~self._real.get(read.value, 0)):
                needed.setdefault(bit, {})[read.value] = read

    def _is_cheap(self, value: Value) -> bool:
        """Say whether it may be that a value is made again rather than stored."""
        ordinal, position = value
        return ordinal >= 0 and position >= 0 and func_name(self._operations[ordinal].func) in CHEAP

    def _named(self, value: Value, cuts: Cuts) -> Iterator[tuple[str, Cuts]]:
        """Name a value as a split does: after the outermost call that is one step, or the operation."""
        if value[0] < 0:
            yield f"input {value[1]}", cuts
            return
        op = self._operations[value[0]]
        for call in reversed(list(upwards(op.call))):
            whole = self._wholes[id(call)]
            if cuts & whole:
                yield call.path or "output", cuts & whole
            cuts &= ~whole
        if cuts:
            short = getattr(op.func, "__name__", "operation")
            yield f"{op.call.path}.{short}" if op.call.path else short, cuts

    def _forbid_trainable_numbers(self) -> None:
        """Leave out cuts where Python reads a number from the head's values before the last frozen one is made."""
        numbers = [op for op in self._operations if op.gives_numbers and func_name(op.func) != "__bool__"]
        for bit, names in self._names.items():
            last = max(value[0] for value, _ in names)
            if any(self._relabelled.head[op.ordinal] >> bit & 1 for op in numbers if op.ordinal < last):
                self.invalid |= 1 << bit


class _Forms:
    """Forms of recorded values, from two recordings of different batch sizes."""

    def __init__(self, recording: Recording, larger: Recording | None, batch: int, more: int) -> None:
        self._a = recording
        self._b = larger or recording
        self._sizes = batch, more
        self._made: dict[Value, tuple[Made, Made | None]] = {}
        self._pair(self._a.root, self._b.root)

    def _pair(self, a: Call, b: Call | None) -> None:
        """Note what a call and the operations inside gave, and their partners in the other recording."""
        self._note(a.made, b.made if b else ())
        ours, theirs = a.touching(), b.touching() if b else []
        is_same = [op.func for op in ours] == [op.func for op in theirs]
        partners = {one.ordinal: other for one, other in zip(ours, theirs, strict=True)} if is_same else {}
        for op in a.operations:
            partner = partners.get(op.ordinal)
            self._note(op.made, partner.made if partner else ())
            self._note(list(op.changed.values()), list(partner.changed.values()) if partner else ())
            self._note([read.seen for read in op.reads], [read.seen for read in partner.reads] if partner else ())
        for key, child in a.children.items():
            self._pair(child, b.children.get(key) if b else None)

    def _note(self, ours: Sequence[Made | None], theirs: Sequence[Made | None]) -> None:
        others = theirs if len(theirs) == len(ours) else [None] * len(ours)
        for made, other in zip(ours, others, strict=True):
            if made is not None and made.value is not None and (made.value not in self._made or other is not None):
                self._made[made.value] = made, other

    def form(self, value: Value) -> Form:
        """Give the form of a value for any batch size; without a partner it is not steady."""
        ordinal, at = value
        if ordinal < 0:
            return self._join(self._a.inputs[at], self._b.inputs[at])
        return self._join(*self._made[value])

    def _join(self, a: Made, b: Made | None) -> Form:
        if b is not None and len(a.shape) == len(b.shape) and a.dtype == b.dtype:
            sizes = [[self._size(x, y) for x, y in zip(*both, strict=True)] for both in _pairs(a, b)]
            if None not in sizes[0]:
                shape, stride = (tuple(size or (0, 0) for size in both) for both in sizes)
                return Form(shape, stride, a.dtype, a.device, True)
        return Form(tuple((0, n) for n in a.shape), tuple((0, n) for n in a.stride), a.dtype, a.device, False)

    def _size(self, size: int, larger: int) -> Size | None:
        """Write a size as `a * batch + c`; None if it does not grow evenly."""
        batch, more = self._sizes
        slope, rest = divmod(larger - size, more)
        return None if rest else (slope, size - slope * batch)


def _pairs(a: Made, b: Made) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    return (a.shape, b.shape), (a.stride, b.stride)


def _before(
    recording: Recording, relabelled: Relabelled, count: int, times_s: Sequence[float] | None
) -> tuple[list[int], list[float] | None]:
    """Count, for each cut, the frozen operations left to the trunk, and their share of the time of all frozen ones."""
    frozen = [op.ordinal for op in recording.operations if op.label is Label.FROZEN]
    width = (count + 7) // 8
    packed = np.frombuffer(b"".join(relabelled.head[at].to_bytes(width, "little") for at in frozen), dtype=np.uint8)
    bits = np.unpackbits(packed.reshape(len(frozen), width), axis=1, bitorder="little")[:, :count]
    left = 1 - bits.astype(np.int64)
    if times_s is None:
        return left.sum(axis=0).tolist(), None
    times = np.array([times_s[at] for at in frozen], dtype=np.float64)
    total = float(times.sum())
    shares = (times @ left / total).tolist() if total else [0.0] * count
    return left.sum(axis=0).tolist(), shares
