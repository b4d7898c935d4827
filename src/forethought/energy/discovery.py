"""Which meters this machine has, and why not the others."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from forethought.energy.meters import MeterReport
from forethought.energy.nvml import find_nvml
from forethought.energy.powercap import ROOT, find_powercap
from forethought.energy.wall import WallMeter
from forethought.energy.zeus import find_zeus

METER_VARIABLE = "FORETHOUGHT_METER"


def find_meters(
    *,
    gpus: Collection[str] | None = None,
    wall: str | Callable[[], float] | WallMeter | None = None,
    nvml: Any = None,
    powercap: Path = ROOT,
) -> MeterReport:
    """Look for the energy counters of this machine. Each is read once to be believed.

    Args:
        gpus: UUIDs of the NVIDIA GPUs to count, as `torch.cuda.get_device_properties(i).uuid` gives them.
            None counts every GPU of the machine, used or not.
        wall: A command or a function that gives a wall meter's running total in kWh; $FORETHOUGHT_METER, a command,
            when None.
        nvml: Stands in for the `pynvml` module.
        powercap: Stands in for /sys/class/powercap.

    Returns:
        The meters that gave a number, and (instrument, reason) for the rest. `.meter` reads them as one.

    Raises:
        EnergyError: `wall` is neither a command nor a function.
    """
    counters = find_nvml(nvml, gpus=gpus)
    return find_wall(wall) + counters + find_powercap(powercap) + (MeterReport() if counters.meters else find_zeus())


def find_wall(wall: str | Callable[[], float] | WallMeter | None = None) -> MeterReport:
    """Try the wall meter that the user named; where none was, there is nothing to say."""
    wall = wall if wall is not None else os.environ.get(METER_VARIABLE) or None
    if wall is None:
        return MeterReport()
    meter = wall if isinstance(wall, WallMeter) else WallMeter(wall)
    if meter.read() is not None:
        return MeterReport(meters=(meter,))
    return MeterReport(unavailable=((meter.instrument, meter.reason or "no number"),))
