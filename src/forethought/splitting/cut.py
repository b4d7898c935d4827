"""Which frozen tensors cross the frontier, from a recorded run.

A tensor crosses if something that the head runs reads it: a trainable operation, or the model's output. So does one by
whose value Python decides what to run next, such as `mask.all()`: the head must decide for itself. It is then not the
decision that crosses but the tensor that it was made from, as long as that belongs to the batch as a whole.
"""

from collections.abc import Collection, Mapping, Sequence

from forethought.errors import FrozenBranchError, InvisibleOperationError
from forethought.splitting.operations import counts, func_name
from forethought.splitting.recording import Crossing, Label, Made, Operation, Read, Value
from forethought.splitting.thrift import Thrift


class Cut:
    """Finds the crossings of one recorded run; marks on its operations what the head does with them.

    Args:
        operations: All operations, in order, with the calls around them known to be whole or not.
        last_written: For each memory, the last operation that wrote into it.
        inputs: The model's inputs.
        outputs: The tensors that it gave.
        is_thrifty: Let the head do cheap operations again where that leaves less to store.
        sizes: Values whose size the head must see: it also counts their parts itself.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        last_written: Mapping[int, int],
        inputs: Sequence[Made],
        outputs: Sequence[Read],
        is_thrifty: bool,
        sizes: Collection[Value] = (),
    ) -> None:
        self.crossings: list[Crossing] = []
        self._operations = operations
        self._sizes = sizes
        self._last_written = last_written
        self._index: dict[tuple[Value, int], int] = {}
        self._real: set[Value] = set()  # frozen values that the head computes, and what follows from them
        self._again: set[Value] = set()  # frozen values that the head computes for what trains, not for what is frozen
        self._decide_in_head()
        if is_thrifty:
            thrift = Thrift(operations, inputs)
            if thrift.open_calls(self._needed(outputs)):
                self._decide_in_head()
            for op in thrift.choose(self._needed(outputs)):
                op.in_head = op.is_again = True
                self._again |= {made.value for made in op.made if made.value is not None}
        for op in operations:
            self._cross_all(op)
        self._forbid_trainable_numbers()

    def _decide_in_head(self) -> None:
        for op in self._operations:
            if (op.reads_values or self._is_counted(op)) and op.call.outermost_whole() is None:
                self._give_to_head(op)

    def _is_counted(self, op: Operation) -> bool:
        """Say whether the head must see for itself how many tensors an operation gives."""
        if not self._sizes or not counts(op.func) or op.label is not Label.FROZEN:
            return False
        return any(value in self._sizes for value in (op.reads[0].value, *(made.value for made in op.made)))

    def _needed(self, outputs: Sequence[Read]) -> dict[Value, Read]:
        """Tell what the head reads of the frozen values that it does not compute."""
        reads = [
            read for op in self._operations if op.in_head or op.label is Label.TRAINABLE for read in op.reads
        ] + list(outputs)
        return {
            read.value: read
            for read in reads
            if read.label is Label.FROZEN and read.value is not None and read.value not in self._real
        }

    def _forbid_trainable_numbers(self) -> None:
        """Refuse numbers that Python made from what trains, where they can still reach a frozen value.

        A yes or no can only choose a path, and another path than the recorded one is seen when it is taken.
        """
        last = max((crossing.value[0] for crossing in self.crossings), default=-1)
        for op in self._operations[: max(last, 0)]:
            if op.label is Label.TRAINABLE and op.gives_numbers and func_name(op.func) != "__bool__":
                raise FrozenBranchError(
                    f"Cannot split: expected frozen values to follow from the input alone, got Python reading a "
                    f"trainable value ({op}) before the last of them is made. Cut before it: "
                    "ft.split(model, x, at=<an earlier module>)"
                )

    def cross(self, read: Read, what: str) -> int | None:
        """Let what was read cross; give its place in the frontier. None if the head computes it.

        Raises:
            InvisibleOperationError: nobody saw where it came from.
        """
        if read.value is None:
            raise InvisibleOperationError(
                f"Cannot split: expected to see every operation that leads to {what}, "
                "got a tensor made by code that torch functions do not show (scripted code, a C++ extension, numpy, "
                "vmap). Cut before it: ft.split(model, x, at=<an earlier module>)"
            )
        if read.value in self._real or read.value in self._again:
            return None
        key = read.value, max(read.value[0], read.settled)
        if key not in self._index:
            later = self._last_written.get(read.memory, -1) if read.memory is not None else -1
            self._index[key] = len(self.crossings)
            self.crossings.append(Crossing(*key, rewritten=later > key[1]))
        return self._index[key]

    def hand_over(self) -> frozenset[Value]:
        """Choose the tensors that the head is given as they are, from where they are made.

        They are those that nobody writes into and that no frozen step reads where both halves run. The head's own code
        then meets no placeholder, whatever it does and however it decides. To be asked once everything has crossed.
        """
        settled = {c.value for c in self.crossings if not c.rewritten and c.settled <= c.value[0]}
        handed = {value for value in settled if value[1] >= 0} | self._again
        walked = [op for op in self._operations if op.call.outermost_whole() is None]
        for op in walked:
            if op.changed or (op.label is Label.FROZEN and (not op.in_head or op.is_again)):
                handed.difference_update([read.value for read in op.reads])
        real = handed | self._real
        for op in walked:
            op.meets_frozen = op.is_drawn or any(
                read.label is Label.FROZEN and read.value not in real for read in op.reads
            )
        return frozenset(handed)

    def _give_to_head(self, op: Operation) -> None:
        """Let the head run a frozen operation too, and what it follows from down to tensors with rows."""
        op.in_head = True
        self._real |= {made.value for made in op.made if made.value is not None}
        for read in op.reads:
            if read.label is Label.FROZEN and read.value is not None and read.value[0] >= 0:
                source = self._operations[read.value[0]]
                is_number = 0 <= read.value[1] < len(source.made) and source.made[read.value[1]].shape == ()
                if is_number and not source.changed and source.call.outermost_whole() is None:
                    self._give_to_head(source)

    def _cross_all(self, op: Operation) -> None:
        frozen = {at: read for at, read in enumerate(op.reads) if read.label is Label.FROZEN}
        known = [read.value in self._real for read in frozen.values()]
        op.meets_frozen = op.is_drawn or not all(known)
        if op.label is Label.FROZEN and not op.in_head and known and all(known) and op.call.outermost_whole() is None:
            self._give_to_head(op)  # it follows from what the head computes
        if frozen and (op.in_head or op.label is Label.TRAINABLE):
            places = {at: self.cross(read, str(op)) for at, read in frozen.items()}
            op.crossing = {at: place for at, place in places.items() if place is not None}
