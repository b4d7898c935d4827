"""What a meter is, and the meters made of other meters or of none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

UNAVAILABLE = "unavailable"
# Strongest first: a sum is worth what its weakest part is worth.
LABELS = (
    "measured:wall",
    "measured:counter",
    "sampled:power",
    "calibrated",
    "modelled",
    "declared",
    UNAVAILABLE,
)


@dataclass(frozen=True)
class Limit:
    """How far one counter can be followed.

    Args:
        range_j: Joules after which the counter starts again at zero.
        power_w: More than its component can draw on average, in watts.
    """

    range_j: float
    power_w: float

    @property
    def gap_s(self) -> float:
        """Seconds between two reads within which the counter wraps at most once."""
        return self.range_j / self.power_w


class Meter(Protocol):
    """Cumulative joules, component by component.

    Attributes:
        label: How a number comes about, one of `LABELS`.
        instrument: What makes the numbers, such as "nvml".
        scope: What the numbers cover.
        min_window_s: Seconds below which a difference is mostly the step of the counter.
        limits: Components whose counter wraps. The others never do.
        reason: Why the last read gave nothing. None when it gave something.
    """

    @property
    def label(self) -> str: ...
    @property
    def instrument(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def min_window_s(self) -> float: ...
    @property
    def limits(self) -> Mapping[str, Limit]: ...
    @property
    def reason(self) -> str | None: ...

    def read(self) -> dict[str, float] | None:
        """Joules per component since an arbitrary moment, or None when they cannot be read."""
        ...


@dataclass(frozen=True)
class NoMeter:
    """Stands where no meter was found: nothing is measured, and `reason` says why."""

    reason: str = "no energy counter here"
    label: str = UNAVAILABLE
    instrument: str = "none"
    scope: str = "nothing"
    min_window_s: float = 0.0

    @property
    def limits(self) -> dict[str, Limit]:
        """No counters, so no limits."""
        return {}

    def read(self) -> None:
        """Nothing was measured."""
        return


class AllMeters:
    """Several meters read as one. When one of them cannot be read, nothing is: a part is not the whole."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = tuple(meters)
        self.label = max((meter.label for meter in meters), key=LABELS.index)
        self.instrument = " + ".join(meter.instrument for meter in meters)
        self.scope = ", ".join(meter.scope for meter in meters)
        self.min_window_s = max(meter.min_window_s for meter in meters)
        self.limits = {name: limit for meter in meters for name, limit in meter.limits.items()}
        self.reason: str | None = None

    def read(self) -> dict[str, float] | None:
        """Joules per component over every meter, or None when one of them cannot be read."""
        joules: dict[str, float] = {}
        for meter in self._meters:
            part = meter.read()
            if part is None:
                self.reason = meter.reason
                return None
            joules |= part
        self.reason = None
        return joules


@dataclass(frozen=True)
class MeterReport:
    """The meters of this machine.

    Args:
        meters: Those that gave a first number.
        unavailable: (instrument, reason) of everything that was looked for and gave none.
    """

    meters: tuple[Meter, ...] = ()
    unavailable: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: "MeterReport") -> "MeterReport":
        """Both reports as one."""
        return MeterReport(self.meters + other.meters, self.unavailable + other.unavailable)

    @property
    def meter(self) -> Meter:
        """Every meter read as one; a `NoMeter` that says why when there is none."""
        if self.meters:
            return AllMeters(self.meters)
        return NoMeter("; ".join(f"{instrument}: {reason}" for instrument, reason in self.unavailable))
