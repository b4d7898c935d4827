"""What a meter is, what its label promises, and the meters made of other meters or of none."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from forethought.errors import EnergyError

WALL = "measured:wall"
COUNTER = "measured:counter"
UNAVAILABLE = "unavailable"
Bound = tuple[float, float]
# Strongest first: a sum is worth what its weakest part is worth. Beside each, how far off it may be: the truth lies
# between (1 + low) and (1 + high) times the number. Proposals, from what is published on these instruments
# (docs/energy.md); None where only the user knows.
BOUNDS: Mapping[str, Bound | None] = MappingProxyType(
    {
        WALL: (-0.03, 0.03),
        COUNTER: (-0.10, 0.10),
        "sampled": (-0.25, 0.25),
        "calibrated": (-0.25, 0.25),
        "modelled": (-0.50, 1.00),
        "declared": None,
        UNAVAILABLE: None,
    }
)
LABELS = tuple(BOUNDS)


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
        step_s: Seconds from one renewal of the counter to the next: what an end of a window may be off.
        step_j: Joules from one value of the counter to the next.
        most_power_w: More than a component can draw on average: a counter that says more is not believed.
        bound: How far off the instrument may be, as in `BOUNDS`; None if that is not known.
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
    def step_s(self) -> float: ...
    @property
    def step_j(self) -> float: ...
    @property
    def most_power_w(self) -> float: ...
    @property
    def bound(self) -> Bound | None: ...
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
    step_s: float = 0.0
    step_j: float = 0.0
    most_power_w: float = 0.0
    bound: Bound | None = None

    @property
    def limits(self) -> dict[str, Limit]:
        """No counters, so no limits."""
        return {}

    def read(self) -> None:
        """Nothing was measured."""
        return


class DeclaredMeter:
    """Watts that the user states, times seconds: nothing is measured but the time.

    Args:
        power_w: Of the whole machine.
        clock: Seconds, monotonic.
    """

    label = "declared"
    instrument = "declared"
    scope = "whole machine, as stated by the user"
    min_window_s = 0.0
    step_s = 0.0
    step_j = 0.0
    bound: Bound | None = None
    limits: Mapping[str, Limit] = MappingProxyType({})
    reason: str | None = None

    def __init__(self, power_w: float, clock: Callable[[], float] = time.perf_counter) -> None:
        if not 0 < power_w < 1e6:
            raise EnergyError(f"Cannot count with {power_w} W: expected the watts that the machine draws. watts=350")
        self.most_power_w = 2 * power_w
        self._power_w = power_w
        self._clock = clock

    def read(self) -> dict[str, float]:
        """Joules since an arbitrary moment, at the stated power."""
        return {"machine": self._power_w * self._clock()}


class AllMeters:
    """Several meters read as one. When one of them cannot be read, nothing is: a part is not the whole."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = tuple(meters)
        self.label = max((meter.label for meter in meters), key=LABELS.index)
        self.instrument = " + ".join(meter.instrument for meter in meters)
        self.scope = ", ".join(meter.scope for meter in meters)
        self.min_window_s = max(meter.min_window_s for meter in meters)
        self.step_s = max(meter.step_s for meter in meters)
        self.step_j = sum(meter.step_j for meter in meters)
        self.most_power_w = max(meter.most_power_w for meter in meters)
        self.bound = widest([meter.bound for meter in meters])
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
        """Every meter read as one; a `NoMeter` that says why when there is none.

        What a wall meter sees holds all that counters see, so beside one they are not added.
        """
        if self.meters:
            return AllMeters([meter for meter in self.meters if meter.label == WALL] or self.meters)
        return NoMeter("; ".join(f"{instrument}: {reason}" for instrument, reason in self.unavailable))


def widest(bounds: Sequence[Bound | None]) -> Bound | None:
    """Give the bound that holds for a sum whatever its parts weigh; None if one of them is not known."""
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds) or not known:
        return None
    return min(low for low, _ in known), max(high for _, high in known)
