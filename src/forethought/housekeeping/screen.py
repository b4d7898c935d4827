"""What housekeeping says to a person, as lines of text; and a bar on long work. It computes nothing."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from forethought.housekeeping.garbage import Garbage
from forethought.housekeeping.holdings import Holding
from forethought.housekeeping.soundness import Findings
from forethought.housekeeping.unreachable import COPY

_SHORT = 12
_MOST_LINES = 20


def holdings_text(holdings: Sequence[Holding]) -> str:
    """Say what a store holds: a few lines a table, and the sum."""
    blocks = [_holding_text(held) for held in holdings]
    rows, size = sum(held.rows for held in holdings), sum(held.size_bytes for held in holdings)
    return "\n\n".join([*blocks, f"{_count(len(holdings), 'table')}, {_count(rows, 'row')}, {size_text(size)}"])


def _holding_text(held: Holding) -> str:
    lines = [
        f"{held.fingerprint[:_SHORT]}  {_listed(held.models)}, data: {_listed(held.datasets)}",
        f"  {_count(held.rows, 'row')} of {_listed(held.columns)}; "
        f"{size_text(held.size_bytes)} in {_count(held.segments, 'segment')}",
        f"  created {_day(held.created)}, last used {_day(held.last_used)}; "
        f"torch {_listed(held.torch)}, device {_listed(held.devices)}",
        f"  computing took {_cost(held)}",
    ]
    return "\n".join([*lines, *(f"  DAMAGED: {reason}" for reason in held.damaged)])


def findings_text(findings: Findings) -> str:
    """Say what reading a store showed."""
    lines = [f"{fault.path}\n  {fault.reason} {fault.fix}" for fault in findings.faults]
    read = (
        f"{_count(findings.tables, 'table')}, {_count(findings.segments, 'segment')}, "
        f"{_count(findings.notes, 'note')}, {size_text(findings.size_bytes)} read: "
    )
    count = len(findings.faults)
    return "\n".join(
        [*lines, read + ("every byte is as it was written" if not count else _count(count, "damaged file"))]
    )


def garbage_text(garbage: Garbage) -> str:
    """Say what may go, by kind, and why."""
    lines = []
    for kind, count in Counter(piece.kind for piece in garbage.pieces).items():
        ours = [piece for piece in garbage.pieces if piece.kind == kind]
        size = size_text(sum(piece.size_bytes for piece in ours))
        lines.append(f"{_count(count, kind)}, {size}")
        lines += [f"  {piece.name}  {size_text(piece.size_bytes)}: {piece.reason}" for piece in ours[:_MOST_LINES]]
        lines += [f"  and {count - _MOST_LINES:,} more (--json lists all)"] if count > _MOST_LINES else []
    lines += [f"left alone: {reason}" for reason in garbage.left_alone]
    if garbage.pieces:
        copies = sum(piece.size_bytes for piece in garbage.pieces if piece.kind == COPY)
        beside = f", and {size_text(copies)} of copies on this machine" if copies else ""
        lines.append(f"{size_text(garbage.size_bytes - copies)} of {size_text(garbage.store_bytes)} would go{beside}.")
    else:
        lines.append(f"Nothing to remove: the store has {size_text(garbage.store_bytes)}.")
    return "\n".join(lines)


@contextmanager
def progress(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show a bar to a person, on stderr; gives what counts bytes that are done."""
    # On use: drawing costs time at import.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal or not total_bytes) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda done: bar.advance(task, done)


def size_text(size_bytes: float) -> str:
    """Write bytes as a person reads them, in powers of 1000.

    Example:
        >>> size_text(999), size_text(1_234_567)
        ('999 bytes', '1.2 MB')
    """
    if size_bytes < 1000:
        return f"{size_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        size_bytes /= 1000
        if size_bytes < 999.95 or unit == "TB":
            break
    return f"{size_bytes:,.1f} {unit}"


def _count(number: int, thing: str) -> str:
    things = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else things}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "not recorded"


def _day(when: datetime | None) -> str:
    return "not recorded" if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M")


def _cost(held: Holding) -> str:
    if not held.rows_accounted:
        return "a time that was not recorded"
    time = "a time that was not recorded" if held.time_s is None else f"{held.time_s:,.1f} s"
    energy = "energy not measured" if held.energy_j is None else f"{held.energy_j:,.0f} J ({held.energy_source})"
    part = f" for {held.rows_accounted:,} of the rows" if held.rows_accounted < held.rows else ""
    return f"{time}, {energy}{part}"
