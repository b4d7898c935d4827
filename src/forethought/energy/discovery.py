"""Which meters this machine has, and why not the others."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from forethought.energy.meters import MeterReport
from forethought.energy.nvml import find_nvml
from forethought.energy.powercap import ROOT, find_powercap


def find_meters(*, gpus: Collection[str] | None = None, nvml: Any = None, powercap: Path = ROOT) -> MeterReport:
    """Look for the energy counters of this machine. Each is read once to be believed.

    Args:
        gpus: UUIDs of the NVIDIA GPUs to count, as `torch.cuda.get_device_properties(i).uuid` gives them.
            None counts every GPU of the machine, used or not.
        nvml: Stands in for the `pynvml` module.
        powercap: Stands in for /sys/class/powercap.

    Returns:
        The meters that gave a number, and (instrument, reason) for the rest. `.meter` reads them as one.
    """
    return find_nvml(nvml, gpus=gpus) + find_powercap(powercap)
