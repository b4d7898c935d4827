"""What must be known of a model before it is recorded, where only a recording shows it."""

from collections.abc import Mapping, Sequence

from forethought.splitting.recording import NOTHING, Label, Read, Value


class DoubtedError(Exception):
    """The recorded runs show something that has to be known before a model is recorded: record it again.

    Python is told sizes that nothing foretells, or frozen code reads a buffer that moves, or numbers that are drawn.
    """

    def __init__(
        self,
        values: frozenset[Value] = frozenset(),
        moving: Sequence[Read] = (),
        drawn: Mapping[int, Label] = NOTHING,
    ) -> None:
        super().__init__(f"{len(values)} sizes, {len(moving)} buffers, {len(drawn)} draws")
        self.values = values
        self.moving = moving
        self.drawn = drawn
