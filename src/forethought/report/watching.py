"""What is there to measure with, and what the machine draws right now: for `forethought energy doctor` and `watch`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from forethought.energy import MeterReport, Ownership, Window
from forethought.energy.amounts import Amount
from forethought.energy.meters import WALL, Meter
from forethought.energy.zeus import is_installed
from forethought.errors import EnergyError
from forethought.ledger.machine import this_machine
from forethought.report.units import energy_text, time_text


@dataclass(frozen=True)
class Instrument:
    """One meter, as it is found.

    Attributes:
        name: Of the instrument.
        label: How its numbers are known.
        scope: What it covers.
        step_s: Seconds between renewals.
        shortest_s: Seconds that a phase must last.
        error: How far off it may be, in words.
        power_w: Watts by component, over the last moments; empty if it gave none.
        remark: Why not, "" otherwise.
    """

    name: str
    label: str
    scope: str
    step_s: float
    shortest_s: float
    error: str
    power_w: dict[str, float]
    remark: str


def instruments(
    report: MeterReport, seconds: float = 2.0, sleep: Callable[[float], object] = time.sleep
) -> list[Instrument]:
    """Read every meter over a few seconds."""
    seconds = max([seconds, *(meter.min_window_s for meter in report.meters)])
    windows = [Window(meter) for meter in report.meters]
    for window in windows:
        window.__enter__()
    if windows:
        sleep(seconds)
    for window in windows:
        window.__exit__(None, None, None)
    return [_instrument(meter, window) for meter, window in zip(report.meters, windows, strict=True)]


def _instrument(meter: Meter, window: Window) -> Instrument:
    reading = window.reading
    error = "not known" if meter.bound is None else f"{meter.bound[0]:+.0%} to {meter.bound[1]:+.0%}"
    watts = {name: joules / reading.time_s for name, joules in reading.components.items()}
    return Instrument(
        meter.instrument, meter.label, meter.scope, meter.step_s, meter.min_window_s, error, watts, reading.reason or ""
    )


def doctor_dict(report: MeterReport, found: list[Instrument]) -> dict[str, Any]:
    """Everything that the doctor says, as values that JSON knows."""
    with Ownership() as owner:
        whole = {name for each in found if each.label == WALL for name in each.power_w}
        owner.take([name for each in found for name in each.power_w], whole=whole)
        taken = dict(owner.refused)
    return {
        "machine": this_machine().to_dict(),
        "instruments": [vars(each) for each in found],
        "unavailable": [list(pair) for pair in report.unavailable],
        "counted_by_others": taken,
        "not_seen": not_seen(report),
        "zeus": is_installed(),
    }


def not_seen(report: MeterReport) -> str:
    """Say what these meters do not see."""
    if not report.meters:
        return "everything: no energy is measured here, and none is made up. Seconds are."
    if any(meter.label == WALL for meter in report.meters):
        return "nothing of the machine: the wall meter sees all of it"
    return "power supply, board, fans, disks, and what has no counter: a wall meter sees them (--meter-cmd)"


def doctor_text(told: dict[str, Any]) -> str:
    """Write what the doctor says."""
    machine = told["machine"]
    lines = [f"machine {machine['id'][:8]}: {machine['cpu'] or 'unknown processor'}, {machine['cores']} cores"]
    for each in told["instruments"]:
        watts = ", ".join(f"{name} {power:.4g} W" for name, power in each["power_w"].items())
        lines += [
            f"{each['name']}: {each['label']}, {each['scope']}",
            f"  now {watts or 'no number: ' + each['remark']}",
            f"  renewed every {each['step_s']:g} s, for {each['shortest_s']:g} s or more, error {each['error']}",
        ]
    lines += [f"{instrument}: unavailable: {reason}" for instrument, reason in told["unavailable"]]
    lines += [f"{name}: {reason}" for name, reason in told["counted_by_others"].items()]
    if not told["zeus"]:
        lines.append("zeus: not installed; AMD and Apple need it: pip install 'forethought[energy]'")
    lines.append(f"not seen: {told['not_seen']}")
    return "\n".join(lines)


def watch(
    report: MeterReport,
    *,
    interval_s: float = 2.0,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[str]:
    """Say again and again what is drawn now, and what was drawn since the beginning. Writes and locks nothing.

    Raises:
        EnergyError: there is nothing to measure with.
    """
    if not report.meters:
        reasons = "; ".join(f"{instrument}: {reason}" for instrument, reason in report.unavailable)
        raise EnergyError(
            f"Cannot watch: expected an energy counter, got none ({reasons}). Name a wall meter: --meter-cmd 'COMMAND'"
        )
    interval_s = max([interval_s, *(meter.min_window_s for meter in report.meters)])
    begun, drawn = clock(), []
    while True:
        windows = [Window(meter, clock=clock) for meter in report.meters]
        for window in windows:
            window.__enter__()
        sleep(interval_s)
        for window in windows:
            window.__exit__(None, None, None)
        readings = [window.reading for window in windows]
        now = [
            f"{name} {joules / reading.time_s:.4g} W"
            for reading in readings
            for name, joules in reading.components.items()
        ]
        now += [f"{reading.instrument}: {reading.reason}" for reading in readings if reading.reason]
        walls = [reading for reading in readings if reading.label == WALL]
        drawn += [
            Amount.unknown(reading.reason or "not measured")
            if reading.energy_j is None
            else Amount.of(reading.energy_j, reading.label)
            for reading in walls or readings
        ]
        total = Amount.total(drawn)
        known = "nothing yet" if total.known_j is None else energy_text(total.known_j)
        missing = "" if total.energy_j is not None else ", at least"
        yield f"{', '.join(now)} | {known} in {time_text(clock() - begun)} ({total.label}{missing})"
