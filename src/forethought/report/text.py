"""A report in the terminal."""

import textwrap
from collections.abc import Iterable

from forethought.report.grid import Grid
from forethought.report.sections import grids, method_lines, total_lines
from forethought.report.statements import headline, next_step, saving_grid, saving_lines, subline
from forethought.report.summary import Summary
from forethought.report.units import day_text

WIDTH = 100
_LEAST = 24


def to_text(summary: Summary, width: int | None = None) -> str:
    """Write a report as plain text.

    Args:
        summary: The report.
        width: Columns of the terminal: a table that is wider becomes a list. None leaves tables as wide as they are,
            for a file or another program.
    """
    fold = max(_LEAST, min(width or WIDTH, WIDTH))
    made = grids(summary)
    lines = _wrapped([f"{summary.name}{_period(summary)}", headline(summary), subline(summary)], fold)
    lines += [""] if summary.remarks else []
    lines += _wrapped((f"! {remark}" for remark in summary.remarks), fold, below="  ")
    for grid in made[:1]:
        lines += ["", *_grid(grid, fold, width)]
    totals = _wrapped(total_lines(summary), fold, "  ", "    ")
    lines += ["", *totals] if totals else []
    lines += ["", "What it saved", *_savings(summary, fold, width)]
    for grid in made[1:]:
        lines += ["", *_grid(grid, fold, width)]
    how = _wrapped((f"{what}: {how}" for what, how in method_lines(summary)), fold, "  ", "    ")
    lines += ["", "How it was measured", *how] if how else []
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _period(summary: Summary) -> str:
    if summary.first is None or summary.last is None:
        return ""
    first, last = day_text(summary.first), day_text(summary.last)
    return f", {first}" if first == last else f", {first} to {last}"


def _wrapped(texts: Iterable[str], fold: int, first: str = "", below: str | None = None) -> list[str]:
    below = first if below is None else below
    return [line for text in texts for line in textwrap.wrap(text, fold, initial_indent=first, subsequent_indent=below)]


def _savings(summary: Summary, fold: int, width: int | None) -> list[str]:
    if not summary.savings:
        return _wrapped([next_step(summary)], fold, "  ")
    lines = []
    for saving in summary.savings:
        lines += _grid(saving_grid(saving, summary.here), fold, width)
        lines += _wrapped(saving_lines(saving, summary.factors), fold, "  ")
    return lines


def _grid(grid: Grid, fold: int, width: int | None) -> list[str]:
    """Align columns by their widest cell; what the terminal cannot hold side by side is told line by line."""
    widths = [max(len(row[at]) for row in (grid.columns, *grid.rows)) for at in range(len(grid.columns))]
    used = [at for at in range(len(grid.columns)) if any(row[at].strip() for row in grid.rows)]
    across = sum(widths[at] for at in used) + 2 * len(used)
    lines = _wrapped([grid.title], fold)
    if width is not None and across > width:
        lines += _listed(grid, used, fold)
    else:
        for row in (grid.columns, *grid.rows):
            parts = [row[at].rjust(widths[at]) if at in grid.numbers else row[at].ljust(widths[at]) for at in used]
            lines.append("  " + "  ".join(parts))
        if grid.last_is_sum:
            lines.insert(-1, "  " + "-" * (across - 2))
    return lines + (_wrapped([grid.note], fold, "  ") if grid.note else [])


def _listed(grid: Grid, used: list[int], fold: int) -> list[str]:
    lines = []
    for row in grid.rows:
        within = "  " if row[0].startswith("  ") else ""
        lines += _wrapped([row[used[0]].strip() or "and"], fold, f"  {within}", f"    {within}")
        told = (f"{grid.columns[at]}: {row[at].strip()}" for at in used[1:] if row[at].strip())
        lines += _wrapped(told, fold, f"    {within}", f"      {within}")
    return lines
