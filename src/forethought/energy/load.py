"""Who else was at work on this machine meanwhile: counters see their joules too."""

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROC = Path("/proc")
# What an idle desktop does in the background stays below it.
FEW_CORES = 0.25
_SHORTEST_S = 1.0  # the kernel counts in hundredths


@dataclass(frozen=True)
class Load:
    """Seconds of processor time, added up over cores, since the machine started.

    Args:
        time_s: Seconds since the machine started.
        busy_s: By everybody.
        own_s: By this process, its children that ended, and its worker processes.
    """

    time_s: float
    busy_s: float
    own_s: float

    @classmethod
    def read(cls, proc: Path = PROC) -> Self | None:
        """Read it; None where the system does not tell."""
        try:
            tick = os.sysconf("SC_CLK_TCK")
            with (proc / "stat").open() as file:
                user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
            with (proc / "uptime").open() as file:
                time_s = float(file.readline().split()[0])
            own = sum(_ticks(proc, pid) for pid in own_processes())
        except (OSError, ValueError, AttributeError):
            return None
        return cls(time_s, (user + nice + system + irq + softirq) / tick, own / tick)

    def others_cores(self, after: "Load") -> float | None:
        """Cores that others kept busy between two reads, on average; None if that is too short to tell."""
        time_s = after.time_s - self.time_s
        if time_s < _SHORTEST_S:
            return None
        others_s = (after.busy_s - self.busy_s) - (after.own_s - self.own_s)
        return max(0.0, others_s) / time_s


def own_processes() -> frozenset[int]:
    """This process and the workers that it started."""
    return frozenset({os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)})


def _ticks(proc: Path, pid: int) -> int:
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # it ended; what it did is in our children's time now
        return 0
    return sum(map(int, fields[11:15]))  # user and system time, its own and that of its children that ended
