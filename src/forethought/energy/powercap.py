"""Linux powercap: the energy counters of CPU packages and of the memory that belongs to them (RAPL).

The folder lists zones that contain each other or show the same counter twice, so adding everything up counts
too much. Counted are zones named `package-*` and their `dram`. `core` and `uncore` are inside the package,
`psys` is around it, and a package seen through a second interface, or a die that mirrors another die of its
package, is the same counter again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forethought.energy.meters import BOUNDS, COUNTER, Limit, MeterReport

INSTRUMENT = "powercap"
ROOT = Path("/sys/class/powercap")
JOULES = 1e-6  # the counters are in microjoules
WATTS = 1e-6  # and the limits in microwatts
MOST_POWER_W = 1000.0  # more than any CPU package, or the memory of one, draws today
# Mirrored dies renew their copies at slightly different moments. Two dies that count for themselves are this
# close about once in 100,000 machines.
MIRROR_J = 1.0

TOP_ZONE = re.compile(r"[a-z-]+:\d+")
PACKAGE = re.compile(r"(package-\d+)(-die-\d+)?")


@dataclass(frozen=True)
class Zone:
    """One counter: a folder of the powercap tree and the component that it stands for."""

    folder: Path
    component: str

    def read_j(self) -> float:
        """Joules on the counter."""
        return _number(self.folder / "energy_uj") * JOULES

    def read_limit(self) -> Limit:
        """How far the counter can be followed between two reads."""
        range_j = _number(self.folder / "max_energy_range_uj") * JOULES
        limits_w = [_limit_w(path) for path in self.folder.glob("constraint_*_power_limit_uw")]
        # Twice, since a limit may be exceeded for moments; boards that lift it write any number there.
        power_w = 2 * max(limits_w, default=0.0) or MOST_POWER_W
        return Limit(range_j, min(MOST_POWER_W, power_w))


class PowercapMeter:
    """Joules of CPU packages and their memory. Counters wrap: `limits` says when.

    Args:
        zones: The counters to read, none of them inside another.
        limits: How far each can be followed.
    """

    label = COUNTER
    instrument = INSTRUMENT
    step_s = 0.001
    step_j = 1e-4  # RAPL counts in steps of 2**-14 J, some in 2**-16
    min_window_s = 0.05  # fifty steps
    most_power_w = 2 * MOST_POWER_W
    bound = BOUNDS[COUNTER]

    def __init__(self, zones: tuple[Zone, ...], limits: Mapping[str, Limit]) -> None:
        self.scope = ", ".join(zone.component for zone in zones)
        self.limits = dict(limits)
        self.reason: str | None = None
        self._zones = zones

    def read(self) -> dict[str, float] | None:
        """Joules per component, or None when one of them cannot be read."""
        try:
            joules = {zone.component: zone.read_j() for zone in self._zones}
        except (OSError, ValueError) as error:
            self.reason = f"{INSTRUMENT}: {error}"
            return None
        self.reason = None
        return joules


def find_powercap(root: Path = ROOT) -> MeterReport:
    """Look for CPU energy counters under `root`."""
    if not root.is_dir():
        return _unavailable(f"no folder {root} (Linux only; most virtual machines have none)")
    try:
        packages = _distinct(_packages(root))
        zones = tuple(zone for package in packages for zone in (package, *_dram(package)))
        limits = {zone.component: zone.read_limit() for zone in zones}
        for zone in zones:
            zone.read_j()
    except PermissionError:
        return _unavailable(
            f"the counters may not be read by this user. sudo chmod a+r {root}/*/energy_uj"
            " (until the next boot; every user of this machine may then read them)"
        )
    except (OSError, ValueError) as error:
        return _unavailable(str(error))
    if not zones:
        return _unavailable(f"no CPU package among the zones of {root}")
    return MeterReport(meters=(PowercapMeter(zones, limits),))


def _packages(root: Path) -> list[Zone]:
    """One zone a package name; the MSR interface, `intel-rapl:*`, goes before any other."""
    folders = [path for path in root.iterdir() if TOP_ZONE.fullmatch(path.name)]
    folders.sort(key=lambda path: (not path.name.startswith("intel-rapl:"), path.name))
    found: dict[str, Zone] = {}
    for folder in folders:
        name = _name(folder)
        if PACKAGE.fullmatch(name):
            # The kernel builds names from the topology, so an equal name is the same package again.
            found.setdefault(name, Zone(folder, name))
    return list(found.values())


def _distinct(packages: list[Zone]) -> list[Zone]:
    """Drop a die that shows the counter of an earlier die of the same package."""
    kept: list[tuple[str, float, Zone]] = []
    for zone in packages:
        match = PACKAGE.fullmatch(zone.component)
        package = match[1] if match else zone.component
        joules = zone.read_j()
        # A counter at zero does not count: two of them are no evidence of being one.
        is_mirror = any(
            package == other and joules > 0 and abs(joules - other_j) <= MIRROR_J for other, other_j, _ in kept
        )
        if not is_mirror:
            kept.append((package, joules, zone))
    return [zone for _, _, zone in kept]


def _dram(package: Zone) -> list[Zone]:
    """The memory zone beside `package`: sub-zones appear in the root folder as `<zone>:<n>`."""
    folders = sorted(package.folder.parent.glob(f"{package.folder.name}:*"))
    return [Zone(folder, f"{package.component}/dram") for folder in folders if _name(folder) == "dram"]


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except FileNotFoundError:
        return ""


def _number(path: Path) -> int:
    text = path.read_text().strip()
    if not text.isdecimal():
        raise ValueError(f"expected a number in {path}, got {text[:40]!r}")
    return int(text)


def _limit_w(path: Path) -> float:
    """Watts allowed; 0 where the kernel does not say."""
    try:
        return _number(path) * WATTS
    except (OSError, ValueError):
        return 0.0


def _unavailable(reason: str) -> MeterReport:
    return MeterReport(unavailable=((INSTRUMENT, reason),))
