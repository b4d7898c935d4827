"""NVIDIA's total energy counter: the driver counts, and is asked only at the ends of a window."""

import importlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from forethought.energy.meters import BOUNDS, COUNTER, Limit, MeterReport

INSTRUMENT = "nvml"
JOULES = 1e-3  # the counter is in millijoules


class NvmlMeter:
    """Joules of whole NVIDIA GPUs since the driver was loaded.

    Args:
        nvml: The `pynvml` module.
        handles: Component name to NVML device handle.
        scope: What the components are, in words.
    """

    label = COUNTER
    instrument = INSTRUMENT
    # The driver renews the counter every 20 to 100 ms: ten steps or more, so that one step is under 10 %.
    step_s = 0.1
    step_j = JOULES
    min_window_s = 1.0
    most_power_w = 5000.0  # of one device; a GH200 counts its whole module
    bound = BOUNDS[COUNTER]
    # 64 bits of millijoules never wrap.
    limits: Mapping[str, Limit] = MappingProxyType({})

    def __init__(self, nvml: Any, handles: Mapping[str, Any], scope: str) -> None:
        self.scope = scope
        self.reason: str | None = None
        self._nvml = nvml
        self._handles = dict(handles)

    def read(self) -> dict[str, float] | None:
        """Joules per GPU, or None when the driver does not answer."""
        count = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        try:
            joules = {name: count(handle) * JOULES for name, handle in self._handles.items()}
        except self._nvml.NVMLError as error:
            self.reason = f"{INSTRUMENT}: {error}"
            return None
        self.reason = None
        return joules

    def strangers(self, own: Collection[int]) -> int | None:
        """Count the processes other than ours that compute on these GPUs; None where the driver does not tell.

        In a container the driver may give numbers that mean nothing there: one process that is not known, where none
        of ours is listed, is taken for ours.
        """
        try:
            found = {
                process.pid
                for handle in self._handles.values()
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            }
        except (self._nvml.NVMLError, AttributeError):
            return None
        others = found - set(own)
        return 0 if len(others) == 1 and others == found else len(others)


def find_nvml(nvml: Any = None, *, gpus: Collection[str] | None = None) -> MeterReport:
    """Look for NVIDIA GPUs that count their energy.

    Args:
        nvml: The `pynvml` module; imported when None.
        gpus: UUIDs of the GPUs to count, with or without "GPU-". None counts every GPU of the machine.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return _unavailable("not installed. pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        wanted = [(i, h) for i, h in enumerate(handles) if gpus is None or _uuid(nvml, h) in _bare(gpus)]
    except nvml.NVMLError as error:
        return _unavailable(str(error))
    if not wanted:
        return _unavailable("no NVIDIA GPU here" if gpus is None else "none of the GPUs asked for is here")
    return _count(nvml, wanted)


def _count(nvml: Any, wanted: list[tuple[int, Any]]) -> MeterReport:
    """Keep the GPUs that answer; name the others."""
    handles, names, unavailable = {}, [], []
    for index, handle in wanted:
        component = f"gpu{index}"
        try:
            name = nvml.nvmlDeviceGetName(handle)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError as error:
            reason = f"{error} (the energy counter needs a Volta GPU or newer)"
            unavailable.append((f"{INSTRUMENT} {component}", reason))
            continue
        handles[component] = handle
        names.append(f"{component} {name}, whole device")
    meters = (NvmlMeter(nvml, handles, ", ".join(names)),) if handles else ()
    return MeterReport(meters, tuple(unavailable))


def _uuid(nvml: Any, handle: Any) -> str:
    return str(nvml.nvmlDeviceGetUUID(handle)).removeprefix("GPU-")


def _bare(uuids: Collection[str]) -> set[str]:
    return {uuid.removeprefix("GPU-") for uuid in uuids}


def _unavailable(reason: str) -> MeterReport:
    return MeterReport(unavailable=((INSTRUMENT, reason),))
