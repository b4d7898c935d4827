"""A report as one HTML file: no script, nothing fetched, readable on a phone and by a screen reader."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from forethought.report.charts import HALF, NARROW, WIDE, Crossing, crossing_chart, reuse_chart
from forethought.report.grid import Grid
from forethought.report.sections import grids, method_lines, total_lines
from forethought.report.statements import best_of, headline, main_balance, next_step, saving_grid, saving_lines, subline
from forethought.report.summary import SavingLine, Summary
from forethought.report.units import NOT_MEASURED, amount_text, day_text, epochs_text, label_text, time_text
from forethought.savings import Balance
from forethought.savings.saving import estimate_text, two

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_EMPTY = {
    NOT_MEASURED,
    "no baseline",
    "not known",
    "no epoch recorded",
    "cannot be told",
    "not known here",
    "not recorded",
    "nothing",
    "unavailable",
}
_MOST_BARS = 31
_SHORT = 24  # letters of a cell that is not broken: a date, a fingerprint


def to_html(summary: Summary) -> str:
    """Write a report as one self-contained page."""
    made = grids(summary)
    costs, rest = made[:1], made[1:]
    sections = [_remarks(summary), _savings(summary)]
    sections += [_grid(grid, f"grid-{at}", total_lines(summary)) for at, grid in enumerate(costs)]
    sections += [_grid(grid, f"grid-{at + 1}", (), _extra(grid, summary)) for at, grid in enumerate(rest)]
    sections.append(_method(summary))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{_text(summary.name)}: what it cost and what it saved</title>
<style>
{files("forethought.report").joinpath("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<p class="eyebrow">forethought report on <strong>{_text(summary.name)}</strong>{_period(summary)}</p>
<h1>{_text(headline(summary))}</h1>
<p class="sub">{_text(subline(summary))}</p>
{_figures(summary)}
</header>
<main id="main" tabindex="-1">
{"".join(sections)}
</main>
<footer><p>Made {_text(day_text(summary.time))} by <code>forethought report</code>. Intervals are 95&nbsp;%.
What was not measured is said to be so, and is never 0.</p></footer>
</body>
</html>
"""


def _text(text: str) -> str:
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return escape(plain).replace("95 %", "95&nbsp;%")


def _period(summary: Summary) -> str:
    if summary.first is None or summary.last is None:
        return ""
    first, last = day_text(summary.first), day_text(summary.last)
    return f", {_text(first)}" if first == last else f", {_text(first)} to {_text(last)}"


def _figures(summary: Summary) -> str:
    """The few numbers that a reader looks for first."""
    if not summary.spans:
        return ""
    figures = [("Spent, time", time_text(summary.time_s), "")]
    known = summary.gross.known_j is not None
    why = label_text(summary.gross) if known else "no instrument on this machine counted"
    figures.append(("Spent, energy", amount_text(summary.gross), why))
    best = best_of(summary)
    if best is not None:
        balance = main_balance(best)[0]
        figures.append(("Pays back after", _epochs(balance), _range(balance)))
        figures.append(
            ("Epochs run", epochs_text(best.saving.epochs), f"of {best.saving.comparison.epoch_rows:,} rows")
        )
    items = "".join(
        f"<div><dt>{_text(name)}</dt><dd{_class_of(value)}>{_text(value)}"
        f"{f'<small>{_text(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _epochs(balance: Balance) -> str:
    found = balance.break_even
    if found is None:
        return "never" if balance.epoch.is_clear else "cannot be told"
    return f"{estimate_text(found).partition(' (')[0]} epochs"


def _range(balance: Balance) -> str:
    found = balance.break_even
    if found is None and not balance.epoch.is_clear:
        return "an epoch with the store and one without cost the same, as far as measured"
    if found is None:
        return "reading costs more than computing again"
    if found.high == float("inf"):
        return f"at least {two(found.low)}, perhaps never"
    return estimate_text(found).partition(" (")[2].rstrip(")")


def _class_of(value: str) -> str:
    return ' class="none"' if value in _EMPTY else ""


def _remarks(summary: Summary) -> str:
    if not summary.remarks:
        return ""
    items = "".join(f"<li>{_text(remark)}</li>" for remark in summary.remarks)
    head = '<h2 id="remarks">To know first</h2>'
    return f'<section class="remarks" aria-labelledby="remarks">{head}<ul>{items}</ul></section>'


def _savings(summary: Summary) -> str:
    inside = "".join(_saving(line, summary, at) for at, line in enumerate(summary.savings))
    if not summary.savings:
        inside = f"<p>{_text(next_step(summary))}</p>"
    return f'<section aria-labelledby="saved"><h2 id="saved">What it saved</h2>{inside}</section>'


def _saving(line: SavingLine, summary: Summary, at: int) -> str:
    grid = saving_grid(line, summary.here)
    statements = "".join(f"<li>{_text(text)}</li>" for text in saving_lines(line, summary.factors))
    return (
        f'<h3 id="saving-{at}">{_text(grid.title)}</h3>{_table(grid, f"saving-{at}")}'
        f'{_figure(Crossing.of(line), at)}<ul class="statements">{statements}</ul>'
    )


def _figure(chart: Crossing, at: int) -> str:
    """The chart where both ways cross; where that is far to the left, once more from near."""
    panels = [(chart, "over the epochs that were run" if chart.epochs else "as it will grow")]
    if chart.is_far:
        panels.insert(0, (chart.near(), "the first epochs, until it pays back"))
    drawings = "".join(
        f'<div class="panel"><p class="panel-title">{_text(title.capitalize())}</p>'
        + "".join(
            crossing_chart(each, f"cost-{at}-{number}-{kind}", size).replace("<svg ", f'<svg class="{kind}" ', 1)
            for kind, size in (("wide", HALF if len(panels) > 1 else WIDE), ("narrow", NARROW))
        )
        + "</div>"
        for number, (each, title) in enumerate(panels)
    )
    what = "energy" if chart.is_energy else "time"
    rows = tuple((epochs_text(at), chart.text(without), chart.text(with_it)) for at, without, with_it in chart.points())
    table = Grid(f"Cumulative {what}", ("epochs", "without the store", "with it"), frozenset({0, 1, 2}), rows)
    return f"""<figure>
<figcaption>Cumulative {what} by epochs, shaded: the 95&nbsp;% intervals</figcaption>
<ul class="key"><li class="without">without the store</li><li class="with">with it</li>
<li class="ahead">not run yet</li></ul>
<div class="panels">{drawings}</div>
<details><summary>The same as a table</summary>{_table(table, f"cost-{at}-table", label=table.title)}</details>
</figure>"""


def _grid(grid: Grid, name: str, lines: Sequence[str] = (), extra: str = "") -> str:
    notes = "".join(f'<p class="note">{_text(text)}</p>' for text in (grid.note, *lines) if text)
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{_text(grid.title)}</h2>{extra}{_table(grid, name)}{notes}'
        "</section>"
    )


def _table(grid: Grid, name: str, label: str = "") -> str:
    """A table that scrolls by itself on a desk, and whose rows are cards on a phone.

    Cards are no table to a style sheet, so the roles are written out for screen readers.
    """
    used = [at for at in range(len(grid.columns)) if any(row[at].strip() for row in grid.rows)]
    heads = "".join(
        f'<th scope="col" role="columnheader"{_number(grid, at)}>{_text(grid.columns[at])}</th>' for at in used
    )
    body = "".join(_row(grid, number, used) for number in range(len(grid.rows)))
    called = f'aria-label="{_text(label)}"' if label else f'aria-labelledby="{name}"'
    return (
        f'<div class="scroll" tabindex="0" role="region" {called}><table role="table" {called}><thead role="rowgroup">'
        f'<tr role="row">{heads}</tr></thead><tbody role="rowgroup">{body}</tbody></table></div>'
    )


def _row(grid: Grid, number: int, used: Sequence[int]) -> str:
    row = grid.rows[number]
    is_sum = grid.last_is_sum and number == len(grid.rows) - 1
    kind = ' class="sum"' if is_sum else ' class="inner"' if row[0].startswith("  ") else ""
    cells = []
    for at in used:
        tag, role = ("th", ' scope="row" role="rowheader"') if at == 0 else ("td", ' role="cell"')
        kinds = (("n", at in grid.numbers), ("s", len(row[at]) <= _SHORT), ("none", row[at] in _EMPTY))
        names = [name for name, is_on in kinds if is_on]
        classes = f' class="{" ".join(names)}"' if names else ""
        label = f' data-label="{_text(grid.columns[at])}"' if at else ""
        cells.append(f"<{tag}{role}{classes}{label}>{_text(row[at].strip())}</{tag}>")
    return f'<tr role="row"{kind}>{"".join(cells)}</tr>'


def _number(grid: Grid, at: int) -> str:
    return ' class="n"' if at in grid.numbers else ""


def _extra(grid: Grid, summary: Summary) -> str:
    """The drawing that goes with the table of reuse."""
    if not grid.title.startswith("Reuse") or len(summary.reuses) < 2:
        return ""
    drawing = reuse_chart(summary.reuses, bins_of([(each.time, each.rows) for each in summary.reuses]), "reuse-chart")
    return (
        f'<figure class="reuse"><figcaption>Rows served instead of computed, over time</figcaption>{drawing}</figure>'
    )


def bins_of(rows: Sequence[tuple[float, int]]) -> list[tuple[str, int]]:
    """Put rows together by day, or by month where there are many days."""
    for form in ("%m-%d", "%Y-%m", "%Y"):
        counts: Counter[str] = Counter()
        for moment, count in sorted(rows):
            try:
                day = datetime.fromtimestamp(moment, UTC).astimezone()
            except (ValueError, OverflowError, OSError):
                continue
            counts[day.strftime(form)] += count
        if len(counts) <= _MOST_BARS:
            break
    return list(counts.items())[-_MOST_BARS:] or [("", 0)]


def _method(summary: Summary) -> str:
    items = "".join(f"<dt>{_text(what)}</dt><dd>{_text(how)}</dd>" for what, how in method_lines(summary))
    if not items:
        return ""
    return f'<section aria-labelledby="how"><h2 id="how">How it was measured</h2><dl class="how">{items}</dl></section>'
