"""A part of a span: every meter read at both ends, and what each component drew as rows that are not yet named."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from forethought.energy import DeclaredMeter, Load, Meter, MeterReport, Reading, WallMeter, Window, find_meters
from forethought.energy.amounts import Amount
from forethought.energy.load import FEW_CORES, own_processes
from forethought.energy.meters import UNAVAILABLE, WALL
from forethought.energy.nvml import NvmlMeter
from forethought.energy.wall import COMPONENT as WALL_COMPONENT
from forethought.energy.window import interval_of
from forethought.errors import EnergyError
from forethought.ledger.devices import synchronize, visible_gpus
from forethought.ledger.machine import this_machine
from forethought.ledger.rows import Row
from forethought.ledger.sums import amount_of

AnyMeter = str | Callable[[], float] | Meter | MeterReport | Sequence[Meter] | None
_LAP_S = 5.0
Names = Mapping[int, tuple[str, ...]]


def find(meter: AnyMeter) -> MeterReport:
    """Turn what a user gives as `meter=` into meters.

    Raises:
        EnergyError: it is no meter.
    """
    if meter is None:
        return MeterReport(unavailable=(("not asked for", "meter=None"),))
    if isinstance(meter, MeterReport):
        return meter
    if meter == "auto":
        return find_meters(gpus=visible_gpus())
    if isinstance(meter, str | WallMeter) or (callable(meter) and not hasattr(meter, "read")):
        return find_meters(gpus=visible_gpus(), wall=meter)
    meters = tuple(meter) if isinstance(meter, list | tuple) else (meter,)
    if not meters or not all(hasattr(each, "read") and hasattr(each, "limits") for each in meters):
        raise EnergyError(
            f"Cannot measure with {meter!r}: expected 'auto', a command, a function that gives kWh, a meter or None. "
            "ft.Ledger(place, meter='auto')"
        )
    return MeterReport(meters)


def components_of(report: MeterReport) -> dict[int, tuple[str, ...]]:
    """Say what each meter counts, by its position. Wall meters count one thing, and may be slow to ask."""
    return {
        at: (WALL_COMPONENT,) if isinstance(meter, WallMeter) else tuple(meter.read() or {meter.instrument: 0.0})
        for at, meter in enumerate(report.meters)
    }


def steps_of(report: MeterReport, names: Names) -> dict[str, list[float]]:
    """Say in which joules and seconds each component is counted."""
    return {name: [meter.step_j, meter.step_s] for at, meter in enumerate(report.meters) for name in names[at]}


def whole_of(report: MeterReport, names: Names) -> frozenset[str]:
    """Say which components are the whole machine."""
    whole = (at for at, meter in enumerate(report.meters) if meter.label == WALL or isinstance(meter, DeclaredMeter))
    return frozenset(name for at in whole for name in names[at])


class Part:
    """Begins when it is made. Nothing is waited for.

    Args:
        report: The meters.
        names: What each of them counts.
        refused: Components that somebody else counts, and who.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        report: MeterReport,
        names: Names,
        refused: Mapping[str, str],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.time_s = 0.0
        self._clock = clock
        self._report, self._names, self._refused = report, names, dict(refused)
        began = clock()
        self._load, self._strangers = Load.read(), strangers_at(report)
        self._windows = {
            at: Window(meter, clock=clock)
            for at, meter in enumerate(report.meters)
            if any(name not in refused for name in names[at])
        }
        for window in self._windows.values():
            window.__enter__()
        self._start, self._began = time.time(), clock()
        self._lapped = self._began
        self._overhead_s = self._began - began

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    def lap(self) -> None:
        """Read the counters that wrap, unless they were read a moment ago."""
        if self._clock() - self._lapped < _LAP_S:
            return
        self._lapped = self._clock()
        for at, window in self._windows.items():
            if self._report.meters[at].limits:
                window.lap()

    def close(self) -> list[Row]:
        """Read every meter; give a row for each component, without a span yet."""
        ended = self._clock()
        for window in self._windows.values():
            window.__exit__(None, None, None)
        return self._told(ended, {at: window.reading for at, window in self._windows.items()})

    def roll(self) -> list[Row] | None:
        """Close and begin again, at the same reads; None, and go on, while a coarse counter has hardly moved."""
        ended = self._clock()
        for window in self._windows.values():
            window.lap()
        if not all(window.has_moved for window in self._windows.values()):
            return None
        rows = self._told(ended, {at: window.roll() for at, window in self._windows.items()})
        self._load, self._strangers, self._overhead_s = Load.read(), strangers_at(self._report), 0.0
        self._start, self._began = self._start + (ended - self._began), ended
        return rows

    @property
    def is_whole(self) -> bool:
        """Whether nobody else counts a component of this part."""
        return not self._refused

    def _told(self, ended: float, readings: Mapping[int, Reading]) -> list[Row]:
        self.time_s = ended - self._began
        others, shared = self._company()
        self._overhead_s += self._clock() - ended
        about: dict[str, Any] = {
            "span": "",
            "phase": "",
            "machine": this_machine().id,
            "start": self._start,
            "time_s": self.time_s,
            "others_cores": others,
            "is_shared": shared,
            "overhead_s": self._overhead_s,
        }
        meters = enumerate(self._report.meters)
        rows = [row for at, meter in meters for row in self._rows_of(at, meter, readings.get(at), about)]
        if not rows:
            reasons = (f"{instrument}: {reason}" for instrument, reason in self._report.unavailable)
            rows = [Row(**about, reason="; ".join(reasons) or "no meter")]
        return _within_walls(rows)

    def _rows_of(self, at: int, meter: Meter, reading: Reading | None, about: Mapping[str, Any]) -> list[Row]:
        """The rows of one meter."""
        return [self._row(meter, reading, name, about) for name in self._names[at]]

    def _row(self, meter: Meter, reading: Reading | None, name: str, about: Mapping[str, Any]) -> Row:
        drawn = reading.components.get(name) if reading is not None else None
        told: dict[str, Any] = {**about, "component": name, "instrument": meter.instrument, "scope": meter.scope}
        reason = self._refused.get(name)
        if reason is None and not drawn:
            # A counter that stood still did not measure: 0 J is no answer.
            reason = (reading.reason if reading is not None else None) or f"{name}: the counter did not move"
        if reason is not None or drawn is None or reading is None:
            return Row(**told, label=UNAVAILABLE, reason=reason)
        interval_j = interval_of(drawn, reading.time_s, meter)
        return Row(**told, label=meter.label, energy_j=drawn, interval_j=interval_j)

    def _company(self) -> tuple[float | None, bool | None]:
        """Cores that others kept busy, and whether anybody else was at work."""
        after = Load.read()
        others = self._load.others_cores(after) if self._load is not None and after is not None else None
        counts = [count for count in (self._strangers, strangers_at(self._report)) if count is not None]
        signs = [others > FEW_CORES] if others is not None else []
        signs += [max(counts) > 0] if counts else []
        return others, any(signs) if signs else None


class Block:
    """A piece of a phase, measured and not written down. Made by `Phase.block`."""

    def __init__(self, begin: Callable[[], Part]) -> None:
        self._begin = begin
        self._rows: list[Row] = []

    def __enter__(self) -> Self:
        synchronize()
        self._part = self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            synchronize()
        self._rows = self._part.close()

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return self._part.age_s

    @property
    def time_s(self) -> float:
        """Seconds that it took."""
        return self._part.time_s

    @property
    def amount(self) -> Amount:
        """The joules, with how they are known."""
        return amount_of(self._rows)

    @property
    def is_shared(self) -> bool | None:
        """Whether others were at work meanwhile; None if not known."""
        return self._rows[0].is_shared if self._rows else None


def strangers_at(report: MeterReport) -> int | None:
    """Count the processes of others on the GPUs that are counted; None where no driver tells."""
    counts = [meter.strangers(own_processes()) for meter in report.meters if isinstance(meter, NvmlMeter)]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _within_walls(rows: Sequence[Row]) -> list[Row]:
    """Mark what a wall meter has seen too: it must not be added to what that says."""
    wall = next((row.component for row in rows if row.label == WALL), None)
    if wall is None:
        return list(rows)
    return [row if row.label == WALL else replace(row, inside=wall) for row in rows]
