"""What measuring costs: a phase around nothing, against a second, with counters of every kind that a desktop has.

The counters are files of the kernel's form on disk and a stand-in for NVIDIA's driver, whose own calls are not in it.
Shares are of processor time: on a machine that others keep busy the clock tells mostly of them.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace

import forethought as ft
from forethought.energy import MeterReport, Window, find_meters

_TIMES = 1000


def measure() -> list[str]:
    """Time windows and whole phases around nothing."""
    folder = Path(tempfile.mkdtemp())
    counters = find_meters(nvml=_driver(), powercap=_zones(folder / "powercap"))
    nothing = find_meters(nvml=_driver(0), powercap=folder / "none")
    return [
        _said("reading both ends of a window", lambda: Window(counters.meter).__enter__().__exit__(None, None, None)),
        _said("a phase, measured and written down, no counter", _phase(folder / "a", nothing)),
        _said("the same, two GPUs, two CPU packages and their memory", _phase(folder / "b", counters)),
    ]


def _phase(place: Path, report: MeterReport) -> Callable[[], None]:
    ledger = ft.Ledger(place, meter=report)

    def once() -> None:
        with ledger.phase("work"):
            pass

    return once


def _said(name: str, work: Callable[[], object]) -> str:
    for _ in range(20):
        work()
    times, busy = [], []
    for _ in range(_TIMES):
        began, ran = time.perf_counter(), time.process_time()
        work()
        times.append(time.perf_counter() - began)
        busy.append(time.process_time() - ran)
    middle, most, own = median(times), quantiles(times, n=10)[-1], median(busy)
    return (
        f"{name}: {middle * 1e6:.0f} us (nine in ten below {most * 1e6:.0f}), {own * 1e6:.0f} us of a processor: "
        f"{own:.4%} of a phase of 1 s"
    )


def _zones(root: Path) -> Path:
    for at, name in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1")):
        for zone, called, microjoules in ((at, name, 10**8 * (1 + int(at[-1]))), (f"{at}:0", "dram", 10**7)):
            (root / zone).mkdir(parents=True)
            for file, text in (("name", called), ("energy_uj", microjoules), ("max_energy_range_uj", 262_143_328_850)):
                (root / zone / file).write_text(f"{text}\n")
    return root


def _driver(gpus: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda at: at,
        nvmlDeviceGetName=lambda at: "a GPU",
        nvmlDeviceGetUUID=lambda at: f"GPU-{at}",
        nvmlDeviceGetTotalEnergyConsumption=lambda at: time.monotonic_ns() // 1000,
        nvmlDeviceGetComputeRunningProcesses=lambda at: [],
    )
