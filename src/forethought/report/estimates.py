"""Joules where nothing measured, if the user asks for them: seconds times watts that the user read or states.

They are called what they are ("calibrated", "declared") and never stand beside a measurement of the same time. What
another span counted already is not estimated again, and seconds that two spans of a machine share count once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from forethought.energy.meters import BOUNDS
from forethought.energy.ownership import COUNTED_BY
from forethought.errors import EnergyError
from forethought.ledger.phases import BESIDE
from forethought.ledger.rows import Row, number_of

KIND = "calibration"
_NOT_OURS = (COUNTED_BY, BESIDE)


@dataclass(frozen=True)
class Calibration:
    """Two readings of a wall meter.

    Attributes:
        idle_w: Watts of the whole machine when it does nothing; None if only the load is known.
        load_w: Watts at work.
        label: "calibrated" for readings, "declared" for a statement.
        time: When, in seconds since 1970.
    """

    idle_w: float | None
    load_w: float
    label: str = "calibrated"
    time: float = 0.0


def declared(watts: float) -> Calibration:
    """What the user states the machine draws.

    Raises:
        EnergyError: no number of watts.
    """
    if not 0 < watts < 1e6:
        raise EnergyError(f"Cannot count with {watts} W: expected the watts that the machine draws. --watts 350")
    return Calibration(None, watts, "declared")


def calibrations_of(lines: Iterable[Mapping[str, object]]) -> dict[str, Calibration]:
    """Read the last calibration of each machine."""
    found: dict[str, Calibration] = {}
    for line in lines:
        idle_w, load_w, time = (number_of(line.get(name)) for name in ("idle_w", "load_w", "time"))
        machine = line.get("machine")
        if line.get("kind") != KIND or not isinstance(machine, str) or not load_w or time is None:
            continue
        if machine not in found or time >= found[machine].time:
            found[machine] = Calibration(idle_w, load_w, time=time)
    return found


def estimated(rows: Iterable[Row], calibrations: Mapping[str, Calibration], watts: float | None = None) -> list[Row]:
    """Put an estimate in the place of what was not measured, where there is one to make.

    Args:
        rows: Of all spans.
        calibrations: By machine. Each holds for its machine only.
        watts: What the user states every other machine draws; None makes no statement.
    """
    stated = None if watts is None else declared(watts)
    rows = sorted(rows, key=lambda row: row.start)
    measured = {(row.span, row.part) for row in rows if row.energy_j is not None}
    spans = {row.span for row in rows}
    covered: dict[str, float] = {}
    found, done = [], set()
    for row in rows:
        how = calibrations.get(row.machine, stated)
        if how is None or (row.span, row.part) in measured or (row.reason or "").startswith(_NOT_OURS):
            found.append(row)
            continue
        if (row.span, row.part) in done:
            continue  # one row stands for the whole machine
        done.add((row.span, row.part))
        begin, end = row.start, row.start + row.time_s
        if row.parent not in spans:  # else it lies within another, which is what is added up
            begin = max(begin, min(end, covered.get(row.machine, begin)))
            covered[row.machine] = max(end, covered.get(row.machine, end))
        found.append(_estimate(row, how, end - begin))
    return found


def _estimate(row: Row, how: Calibration, seconds: float) -> Row:
    energy_j, bound = how.load_w * seconds, BOUNDS[how.label]
    if not energy_j:
        return row
    return replace(
        row,
        component="machine",
        energy_j=energy_j,
        label=how.label,
        instrument="calibration" if how.label == "calibrated" else "stated by the user",
        scope="whole machine",
        interval_j=None if bound is None else (energy_j * (1 + bound[0]), energy_j * (1 + bound[1])),
        reason=None,
    )
