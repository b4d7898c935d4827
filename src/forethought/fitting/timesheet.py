"""What a fit spent its time on: one entry for each kind of work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One kind of work, of all epochs together.

    Attributes:
        name: "feed" (rows fetched), "train" (steps of all heads), "validate" (their scores), "test", "checkpoint".
        time_s: Seconds.
        rows: Rows that went through it; each counts once, however many heads there are.
    """

    name: str
    time_s: float
    rows: int


class Timesheet:
    """Adds up what is spent."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._rows: dict[str, int] = {}

    @contextmanager
    def of(self, name: str, rows: int = 0) -> Iterator[None]:
        """Count the time of some work on so many rows."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start, rows)

    def add(self, name: str, time_s: float, rows: int) -> None:
        """Count work that was done."""
        self._times[name] = self._times.get(name, 0.0) + time_s
        self._rows[name] = self._rows.get(name, 0) + rows

    def entries(self) -> tuple[Entry, ...]:
        """Give one entry for each kind of work."""
        return tuple(Entry(name, time_s, self._rows[name]) for name, time_s in self._times.items())
