"""Which machine this is, without its name: enough to know it again, and to tell a person what it is."""

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from blake3 import blake3

_PROC = Path("/proc")
# What systemd advises (machine-id(5)): never show it, hash it with something of one's own.
_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


@dataclass(frozen=True)
class Machine:
    """What a cost was measured on. Costs of another machine are never taken for ours.

    Attributes:
        id: 16 hex digits, the same in every process and after every start. A hash: it tells no name.
        cpu: The processor's name, "" if the system does not tell.
        cores: Logical ones.
        memory_bytes: None if the system does not tell.
        system: The operating system.
    """

    id: str
    cpu: str
    cores: int
    memory_bytes: int | None
    system: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows."""
        return asdict(self)

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.cpu or 'unknown processor'}, {self.cores} cores{memory}, {self.system}"


@cache
def this_machine() -> Machine:
    """Look at this machine. Nothing is asked of the network and no process is started."""
    cpu, cores = _cpu(), os.cpu_count() or 1
    told = "\n".join(["forethought ledger", _machine_id(), cpu, str(cores)])
    return Machine(blake3(told.encode()).hexdigest()[:16], cpu, cores, _memory(), _system())


def _machine_id() -> str:
    for path in _IDS:
        try:
            text = path.read_text().strip()
        except (OSError, ValueError):
            continue
        if re.fullmatch(r"[0-9a-f]{32}", text):
            return text
    return platform.node()  # of a container this changes: then it counts as another machine, which claims less


def _cpu() -> str:
    try:
        text = (_PROC / "cpuinfo").read_text()
    except OSError:
        return os.environ.get("PROCESSOR_IDENTIFIER", "") or platform.machine()
    match = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _memory() -> int | None:
    try:
        text = (_PROC / "meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemTotal:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _system() -> str:
    return f"{platform.system() or sys.platform} {platform.release()}".strip()
