"""Buffers that the forward itself changes where both halves run, and random numbers that it draws there.

What is computed from a counter, a running mean or a memory bank is not frozen: it changes as the head trains, or with
each call. So these are labelled like parameters that train: the head reads and changes them, the trunk neither. Random
numbers are drawn by the trunk if something frozen follows from them, else by the head.
"""

from collections.abc import Sequence

from forethought.splitting.operations import draws
from forethought.splitting.recording import Label, Operation, Read, Value


def moving(operations: Sequence[Operation], held: Sequence[Read]) -> list[Read]:
    """List the model's own tensors that the forward changes, and that something frozen reads.

    Args:
        operations: All operations of a run, with the calls around them known to be whole or not.
        held: What the model held before the run.
    """
    changed = {read.memory for read in held if read.now() is not read.outside and not _is_plain(read)}
    memories = {read.memory for read in held} - {None}
    for op in operations:
        if op.changed and op.call.outermost_whole() is None:
            changed |= {op.reads[at].memory for at in op.changed} & memories
    seen = _read_by_frozen(operations, changed) if changed else set()
    return [read for read in held if read.memory in seen]


def _read_by_frozen(operations: Sequence[Operation], changed: set[int | None]) -> set[int | None]:
    """Tell which of these memories something frozen is computed from, by way of constants or not."""
    behind: dict[Value | None, set[int | None]] = {}  # constants that are computed from them
    seen: set[int | None] = set()
    for op in operations:
        found = {read.memory for read in op.reads} & changed
        for read in op.reads:
            found |= behind.get(read.value, set())
        if op.label is Label.FROZEN:
            seen |= found
        elif op.label is Label.CONSTANT and found:
            behind |= {made.value: found for made in (*op.made, *op.changed.values()) if made.value is not None}
    return seen


def drawn(operations: Sequence[Operation]) -> frozenset[int]:
    """List the operations where both halves run that draw random numbers, by way of constants, for what is frozen."""
    behind: dict[Value, set[int]] = {}  # constants that follow from a draw
    found: set[int] = set()
    for op in operations:
        if op.is_drawn:
            found.add(op.ordinal)
        if op.label is Label.TRAINABLE or op.is_drawn or (not behind and not draws(op.func)):
            continue
        sources = {ordinal for read in op.reads if read.value in behind for ordinal in behind[read.value]}
        if op.label is Label.FROZEN:
            found |= sources
            continue
        given = [made for made in op.made if made.argument is None] + list(op.changed.values())
        if given and draws(op.func) and op.call.outermost_whole() is None:
            sources.add(op.ordinal)
        if sources:
            behind |= {made.value: sources for made in given if made.value is not None}
    return frozenset(found)


def drawn_apart(operations: Sequence[Operation]) -> tuple[frozenset[int], Operation | None]:
    """List the operations, of those that both halves run, that draw random numbers from which nothing frozen follows.

    Args:
        operations: Those before the last tensor of the frontier is there.

    Returns:
        Their ordinals, and the operation by which Python reads such a number: then either half needs them all.
    """
    found: set[int] = set()
    behind: set[Value] = set()
    for op in operations:
        is_draw = draws(op.func) and op.call.outermost_whole() is None
        if op.label is not Label.CONSTANT or not (is_draw or any(read.value in behind for read in op.reads)):
            continue
        if op.gives_numbers:
            return frozenset(), op
        given = [made for made in op.made if made.argument is None] + list(op.changed.values())
        behind |= {made.value for made in given if made.value is not None}
        if given and is_draw:
            found.add(op.ordinal)
    return frozenset(found), None


def _is_plain(read: Read) -> bool:
    """Say whether it is a plain attribute: one that is replaced is no buffer, and cannot be put into the model."""
    return read.home is not None and read.home[1] in read.home[0].__dict__
