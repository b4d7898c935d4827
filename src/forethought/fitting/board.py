"""A bar on standard error, for people who watch."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from forethought.fitting.trainee import Trainee

_SHOWN = 3


class Board:
    """Rows done of rows to do, and the leading heads; silent unless shown."""

    def __init__(self, rows: int, *, is_shown: bool) -> None:
        self._bar = None
        if is_shown:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("first epoch", total=rows)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, rows: int) -> None:
        """Count rows given to the heads."""
        if self._bar:
            self._bar.advance(self._task, rows)

    def show_leaders(self, trainees: Sequence[Trainee]) -> None:
        """Name the leading heads with their best scores."""
        if self._bar:
            leaders = [t for t in sorted(trainees, key=lambda t: t.rank) if t.best][:_SHOWN]
            text = "  ".join(f"{t.name} {t.best.val_score:.4g}" for t in leaders if t.best)
            self._bar.update(self._task, description=text or "every head failed")
