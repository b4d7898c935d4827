"""Charts as SVG, drawn here: no script, no library, no network. Colours are the page's own, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from forethought.energy.amounts import KWH_J
from forethought.report.statements import main_balance
from forethought.report.summary import SavingLine
from forethought.report.tables import Reuse
from forethought.report.units import energy_text, epochs_text, time_text
from forethought.savings import Estimate
from forethought.savings.saving import two

WIDE, HALF, NARROW = (860, 360), (440, 320), (360, 300)
_FAR = 5.0  # times as many epochs as until it pays back: then the crossing is too far to the left to be seen


@dataclass(frozen=True)
class Crossing:
    """What the chart of cumulative cost shows.

    Attributes:
        spent: What the store cost.
        uncached: What an epoch costs without it.
        cached: What it costs with it.
        epochs: How many were run.
        pays_back: After how many it has paid for itself; None if never.
        unit: "J" or "s".
        is_near: Whether only the first epochs are shown.
    """

    spent: float
    uncached: Estimate
    cached: Estimate
    epochs: float
    pays_back: Estimate | None
    unit: str
    is_near: bool = False

    @classmethod
    def of(cls, line: SavingLine) -> "Crossing":
        """See a saving as a chart: in joules where they are known, else in seconds."""
        balance, unit = main_balance(line)
        return cls(
            balance.spent, balance.uncached_epoch, balance.cached_epoch, line.saving.epochs, balance.break_even, unit
        )

    @property
    def is_energy(self) -> bool:
        """Whether it shows joules, else seconds."""
        return self.unit == "J"

    @property
    def last(self) -> float:
        """The last epoch shown: what was run, and beyond the crossing."""
        if self.is_near and self.pays_back is not None:
            return 2.5 * self.pays_back.value
        return max(1.1 * self.epochs, 1.8 * self.pays_back.value if self.pays_back is not None else 0.0, 3.0)

    @property
    def is_far(self) -> bool:
        """Whether the crossing lies too far to the left to be seen."""
        return self.pays_back is not None and self.epochs > _FAR * self.pays_back.value

    def near(self) -> "Crossing":
        """The same, as far as the crossing and a little on."""
        return replace(self, is_near=True)

    def axis(self) -> tuple[str, float]:
        """The unit of its axis, and how many seconds or joules that is."""
        most = max(self.uncached.value * self.last, self.spent + self.cached.value * self.last)
        units = _ENERGY if self.is_energy else _TIME
        return next((pair for pair in units if most >= pair[1]), units[-1])

    def text(self, value: float) -> str:
        """Write a cost."""
        return energy_text(value) if self.is_energy else time_text(value)

    def points(self) -> list[tuple[float, float, float]]:
        """The chart in numbers: epochs, cost without the store and with it."""
        chosen = {0.0, 1.0, self.last}
        chosen |= {self.epochs} if self.epochs else set()
        chosen |= {self.pays_back.value} if self.pays_back is not None else set()
        shown = sorted(at for at in chosen if at <= self.last)
        return [(at, self.uncached.value * at, self.spent + self.cached.value * at) for at in shown]


_ENERGY = (("kWh", KWH_J), ("Wh", 3600.0), ("J", 1.0))
_TIME = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


class _Frame:
    """Where numbers lie on a drawing."""

    def __init__(self, size: tuple[int, int], most_x: float, most_y: float) -> None:
        self.width, self.height = size
        self.left, self.right, self.top, self.bottom = 52, 14, 30, 40
        self.most_x, self.most_y = most_x or 1.0, most_y or 1.0

    def x(self, value: float) -> float:
        return round(self.left + value / self.most_x * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        return round(self.height - self.bottom - value / self.most_y * (self.height - self.top - self.bottom), 1)


def crossing_chart(chart: Crossing, name: str, size: tuple[int, int]) -> str:
    """Draw cumulative cost with and without the store: two lines that cross where it has paid for itself.

    Args:
        chart: What to show.
        name: Unique on the page.
        size: WIDE or NARROW.
    """
    top = max(chart.uncached.value * chart.last, chart.spent + chart.cached.value * chart.last)
    frame = _Frame(size, chart.last, 1.06 * max(top, 1e-12))
    parts = _axes(frame, *chart.axis(), "epochs")
    for kind, fixed, slope in (("without", 0.0, chart.uncached), ("with", chart.spent, chart.cached)):
        parts.append(_band(frame, kind, fixed, slope, chart.last))
        run = min(chart.epochs, chart.last)
        if run:
            parts.append(_line(frame, f"{kind} run", (0.0, fixed), (run, fixed + slope.value * run)))
        start = (run, fixed + slope.value * run)
        parts.append(_line(frame, f"{kind} ahead", start, (chart.last, fixed + slope.value * chart.last)))
    parts += _marks(frame, chart)
    return _svg(frame, name, _title(chart), parts)


def _title(chart: Crossing) -> tuple[str, str]:
    what = "energy" if chart.is_energy else "time"
    crossing = (
        "They do not cross." if chart.pays_back is None else f"They cross after {two(chart.pays_back.value)} epochs."
    )
    told = (
        f"Without the store it grows by {chart.text(chart.uncached.value)} an epoch. With it, it begins at "
        f"{chart.text(chart.spent)} and grows by {chart.text(chart.cached.value)} an epoch. {crossing} "
        f"{epochs_text(chart.epochs)} epochs were run; what lies beyond is dashed."
    )
    return f"Cumulative {what} by epochs, with and without the store", told


def _axes(frame: _Frame, unit: str, scale: float, below: str) -> list[str]:
    parts = []
    for value in ticks(frame.most_y / scale):
        y = frame.y(value * scale)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 8}" y="{y + 4}" text-anchor="end">{short(value)}</text>')
    for value in ticks(frame.most_x):
        x, foot = frame.x(value), frame.height - frame.bottom + 18
        parts.append(f'<text class="tick" x="{x}" y="{foot}" text-anchor="middle">{short(value)}</text>')
    middle = (frame.left + frame.width - frame.right) / 2
    parts.append(f'<text class="axis" x="{frame.left - 44}" y="16">{escape(unit)}</text>')
    parts.append(f'<text class="axis" x="{middle}" y="{frame.height - 4}" text-anchor="middle">{escape(below)}</text>')
    return parts


def _band(frame: _Frame, kind: str, fixed: float, slope: Estimate, last: float) -> str:
    """The interval of a line, as far as the drawing shows it."""
    if not (math.isfinite(slope.low) and math.isfinite(slope.high)):
        return ""
    ends = [min(max(fixed + end * last, 0.0), frame.most_y) for end in (slope.low, slope.high)]
    start = frame.y(fixed)
    return (
        f'<polygon class="band {kind}" points="{frame.x(0)},{start} {frame.x(last)},{frame.y(ends[0])} '
        f'{frame.x(last)},{frame.y(ends[1])}"/>'
    )


def _line(frame: _Frame, kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = ((frame.x(x), frame.y(y)) for x, y in (start, end))
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _marks(frame: _Frame, chart: Crossing) -> list[str]:
    parts = []
    foot = frame.height - frame.bottom
    if chart.pays_back is not None and chart.pays_back.value <= chart.last:
        x, y = frame.x(chart.pays_back.value), frame.y(chart.uncached.value * chart.pays_back.value)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{y}" y2="{foot}"/>')
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="4.5"/>')
        if chart.is_near or not chart.is_far:
            parts.append(_note(frame, x, foot - 8, f"pays back: {two(chart.pays_back.value)}"))
    if chart.epochs and chart.epochs <= chart.last:
        x = frame.x(chart.epochs)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{frame.top}" y2="{foot}"/>')
        parts.append(_note(frame, x, frame.top - 6, f"run: {epochs_text(chart.epochs)}"))
    return parts


def _note(frame: _Frame, x: float, y: float, text: str) -> str:
    """Write beside a mark, on the side where there is room."""
    is_left = x > frame.left + 0.6 * (frame.width - frame.left - frame.right)
    anchor, at = ("end", x - 6) if is_left else ("start", x + 6)
    return f'<text class="note" x="{at}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(frame: _Frame, name: str, title: tuple[str, str], parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title[0])}</title><desc id="{name}-d">{escape(title[1])}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def ticks(most: float, about: int = 5) -> list[float]:
    """Choose round numbers from 0 to `most`.

    Example:
        >>> ticks(9.3), ticks(0.43)
        ([0.0, 2.0, 4.0, 6.0, 8.0], [0.0, 0.1, 0.2, 0.3, 0.4])
    """
    if not (math.isfinite(most) and most > 0):
        return [0.0]
    rough = most / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= 0.999 * rough)
    return [round(at * step, 12) for at in range(int(most / step) + 1)]


def reuse_chart(reuses: Sequence[Reuse], bins: Sequence[tuple[str, int]], name: str) -> str:
    """Draw rows that were served instead of computed, by day or month.

    Args:
        reuses: Told in the description.
        bins: What each bar is called, and its rows.
        name: Unique on the page.
    """
    frame = _Frame((NARROW[0], 180), float(len(bins)), float(max(rows for _, rows in bins)) * 1.1)
    parts = []
    for value in ticks(frame.most_y, 3):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 8}" y="{y + 4}" text-anchor="end">{short(value)}</text>')
    every = max(1, math.ceil(len(bins) / 5))
    for at, (called, rows) in enumerate(bins):
        left, right, y = frame.x(at + 0.15), frame.x(at + 0.85), frame.y(rows)
        height = round(max(frame.height - frame.bottom - y, 0), 1)
        parts.append(
            f'<rect class="bar" x="{left}" y="{y}" width="{round(right - left, 1)}" height="{height}" rx="2"/>'
        )
        if at % every == 0:
            middle, foot = round((left + right) / 2, 1), frame.height - frame.bottom + 18
            parts.append(f'<text class="tick" x="{middle}" y="{foot}" text-anchor="middle">{escape(called)}</text>')
    total = sum(each.rows for each in reuses)
    told = f"{total:,} rows in {len(reuses):,} runs: " + ", ".join(f"{called}: {rows:,}" for called, rows in bins)
    return _svg(frame, name, ("Rows served from the store instead of computed", told), parts)


def short(number: float) -> str:
    """Write a count in few letters.

    Example:
        >>> short(950), short(20_000), short(1_500_000)
        ('950', '20k', '1.5M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
