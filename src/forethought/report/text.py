"""A report in the terminal."""

import textwrap

from forethought.report.grid import Grid
from forethought.report.sections import grids, method_lines, total_lines
from forethought.report.statements import headline, saving_grid, saving_lines, subline
from forethought.report.summary import Summary
from forethought.report.units import day_text

WIDTH = 100


def to_text(summary: Summary) -> str:
    """Write a report as plain text."""
    span = (
        ""
        if summary.first is None or summary.last is None
        else f", {day_text(summary.first)} to {day_text(summary.last)}"
    )
    lines = [f"{summary.name}{span}", headline(summary), subline(summary), ""]
    for remark in summary.remarks:
        lines += textwrap.wrap(f"! {remark}", WIDTH, subsequent_indent="  ")
    made = grids(summary)
    for grid in made[:1]:
        lines += ["", *_grid(grid)]
    lines += ["", *(f"  {line}" for line in total_lines(summary))]
    lines += ["", "What it saved", *_savings(summary)]
    for grid in made[1:]:
        lines += ["", *_grid(grid)]
    lines += ["", "How it was measured"]
    for what, how in method_lines(summary):
        lines += textwrap.wrap(f"{what}: {how}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(line.rstrip() for line in lines)


def _savings(summary: Summary) -> list[str]:
    if not summary.savings:
        return ["  Not measured: ft.measure_saving(train, head) compares real steps without the store and with it."]
    lines = []
    for saving in summary.savings:
        lines += _grid(saving_grid(saving))
        for line in saving_lines(saving, summary.factors):
            lines += textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines


def _grid(grid: Grid) -> list[str]:
    """Align columns by their widest cell."""
    cells = [grid.columns, *grid.rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(grid.columns))]
    used = [at for at in range(len(grid.columns)) if any(row[at].strip() for row in grid.rows)]
    lines = [grid.title]
    for row in cells:
        parts = [row[at].rjust(widths[at]) if at in grid.numbers else row[at].ljust(widths[at]) for at in used]
        lines.append("  " + "  ".join(parts))
    if grid.last_is_sum:
        lines.insert(-1, "  " + "-" * (sum(widths[at] for at in used) + 2 * (len(used) - 1)))
    if grid.note:
        lines += textwrap.wrap(grid.note, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines
