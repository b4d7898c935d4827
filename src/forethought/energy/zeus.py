"""AMD GPUs and Apple silicon, through the zeus package (the `[energy]` extra). Imported only where it is installed.

What zeus does well is left to it, and what it would do besides is not asked for: its sums (0 where there is nothing),
its CPU zones (each counted, `psys` and mirrors too; a process a zone) and its pollers of power (a process each).
"""

import importlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

from forethought.energy.meters import BOUNDS, COUNTER, Limit, MeterReport

INSTRUMENT = "zeus"
JOULES = 1e-3  # zeus counts in millijoules
_APPLE = {"cpu_total_mj": "cpu", "dram_mj": "dram", "gpu_mj": "gpu", "gpu_sram_mj": "gpu-sram", "ane_mj": "ane"}


class ZeusMeter:
    """Joules by component since an arbitrary moment.

    Args:
        counts: Gives millijoules by component. What it raises is a reason.
        scope: What the components are, in words.
    """

    label = COUNTER
    instrument = INSTRUMENT
    step_s = 0.1
    step_j = JOULES
    min_window_s = 1.0
    most_power_w = 5000.0
    bound = BOUNDS[COUNTER]
    limits: Mapping[str, Limit] = MappingProxyType({})

    def __init__(self, counts: Callable[[], Mapping[str, float]], scope: str) -> None:
        self.scope = scope
        self.reason: str | None = None
        self._counts = counts

    def read(self) -> dict[str, float] | None:
        """Joules per component, or None when the device does not answer."""
        try:
            joules = {name: count * JOULES for name, count in self._counts().items()}
        except Exception as error:  # zeus raises what the vendors' libraries raise
            self.reason = f"{INSTRUMENT}: {str(error) or type(error).__name__}"
            return None
        self.reason = None
        return joules


def find_zeus() -> MeterReport:
    """Look for AMD GPUs and Apple silicon. Where zeus is not installed there is nothing to say."""
    return _apple() + _amd() if is_installed() else MeterReport()


def is_installed() -> bool:
    """Whether the `[energy]` extra is there."""
    return find_spec("zeus") is not None


def _apple() -> MeterReport:
    try:
        apple = importlib.import_module("zeus.device.soc.apple")
        if not apple.apple_silicon_is_available():
            return MeterReport()
        device = apple.AppleSilicon()
    except Exception as error:
        return _unavailable("Apple silicon", error)

    def counts() -> dict[str, float]:
        said = device.get_total_energy_consumption()
        found = {name: getattr(said, field, None) for field, name in _APPLE.items()}
        return {name: float(count) for name, count in found.items() if count is not None}

    return _believed(ZeusMeter(counts, "Apple silicon: " + ", ".join(_APPLE.values())))


def _amd() -> MeterReport:
    try:
        amd = importlib.import_module("zeus.device.gpu.amd")
        if not amd.amdsmi_is_available():
            return MeterReport()
        gpus = amd.AMDGPUs(False)
        counting = [at for at in range(len(gpus)) if gpus.supports_get_total_energy_consumption(at)]
        silent = sorted(set(range(len(gpus))) - set(counting))
        names = ", ".join(f"gpu{at} {gpus.get_name(at)}, whole device" for at in counting)
    except Exception as error:
        return _unavailable("AMD", error)
    unavailable = tuple((f"{INSTRUMENT} gpu{at}", "this AMD GPU has no energy counter that is right") for at in silent)
    if not counting:
        return MeterReport(unavailable=unavailable)

    def counts() -> dict[str, float]:
        return {f"gpu{at}": float(gpus.get_total_energy_consumption(at)) for at in counting}

    return _believed(ZeusMeter(counts, names)) + MeterReport(unavailable=unavailable)


def _believed(meter: ZeusMeter) -> MeterReport:
    """Read once: a meter that gives no first number is none."""
    if meter.read():
        return MeterReport(meters=(meter,))
    return MeterReport(unavailable=((INSTRUMENT, meter.reason or "no component counts its energy"),))


def _unavailable(what: str, error: Exception) -> MeterReport:
    return MeterReport(unavailable=((INSTRUMENT, f"{what}: {str(error) or type(error).__name__}"),))
