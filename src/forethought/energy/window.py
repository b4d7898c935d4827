"""A stretch of time and the joules drawn in it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from forethought.energy.meters import UNAVAILABLE, Meter
from forethought.errors import ForethoughtError

_STEPS = 20  # of a counter, so that one more or less is a twentieth


@dataclass(frozen=True)
class Reading:
    """What a window measured.

    Args:
        energy_j: Joules of all components. None when they were not measured, never 0.
        time_s: Seconds from opening to closing.
        instrument: What made the number.
        label: How it came about: "measured:counter", or "unavailable" when `energy_j` is None.
        scope: What the instrument covers. What it does not see (power supply, fans, disks) is not in it.
        components: Joules per component; empty when `energy_j` is None.
        interval_j: Between which two numbers of joules the truth lies, by what the instrument promises and by the
            steps of its counter. None where that is not known.
        overhead_s: Seconds that reading the meter took. They are not part of `time_s`.
        reason: Why `energy_j` is None.
    """

    energy_j: float | None
    time_s: float
    instrument: str
    label: str
    scope: str
    components: Mapping[str, float] = field(default_factory=dict)
    interval_j: tuple[float, float] | None = None
    overhead_s: float = 0.0
    reason: str | None = None


class Window:
    """Measure the block of a `with` statement. Windows may nest and overlap.

    A counter that wraps is followed as long as it wraps at most once between two reads. CPU counters wrap
    after one to thirty minutes of load, so work that takes longer calls `lap` about once a minute; without it
    such a window says that it lost count.

    Args:
        meter: What to read, at both ends and at each lap.
        synchronize: Waits until the device has done what was asked of it, such as `torch.cuda.synchronize`;
            without it the end of the block is not the end of the work.
        clock: Seconds, monotonic.

    Example:
        >>> from forethought.energy import NoMeter
        >>> with Window(NoMeter("no counter in this example")) as window:
        ...     total = sum(range(1000))
        >>> window.reading.energy_j is None, window.reading.reason
        (True, 'no counter in this example')
    """

    def __init__(
        self,
        meter: Meter,
        *,
        synchronize: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._meter = meter
        self._synchronize = synchronize
        self._clock = clock
        self._reading: Reading | None = None

    def __enter__(self) -> Self:
        """Wait for the device, then read."""
        self._reading = None
        self._components: dict[str, float] = {}
        self._synchronize()
        asked_s = self._clock()
        self._before, self._reason = self._read()
        self._last_reason = self._reason
        self._start_s = self._before_s = self._clock()
        self._overhead_s = self._start_s - asked_s
        return self

    def lap(self) -> None:
        """Read without closing, so that no counter wraps twice unseen. Nothing is waited for."""
        after_s = self._clock()
        after, reason = self._read()
        self._overhead_s += self._clock() - after_s
        if self._before is None or after is None:
            self._reason = self._reason or reason
        elif self._reason is None:
            time_s = after_s - self._before_s
            try:
                drawn = _drawn_j(self._before, after, time_s, self._meter)
            except _LostCountError as error:
                self._reason = f"{self._meter.instrument}: {error}"
            else:
                for name, joules in drawn.items():
                    self._components[name] = self._components.get(name, 0.0) + joules
        self._before, self._before_s, self._last_reason = after, after_s, reason

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the device, then read. After an error nothing is waited for: the device may be in it."""
        if kind is None:
            self._synchronize()
        self.lap()
        self._reading = self._close(self._before_s - self._start_s)

    def roll(self) -> Reading:
        """Close and open again at the read of the last lap, so that nothing falls between two windows."""
        reading = self._close(self._before_s - self._start_s)
        self._components, self._overhead_s = {}, 0.0
        self._start_s, self._reason = self._before_s, self._last_reason
        return reading

    @property
    def reading(self) -> Reading:
        """What was measured.

        Raises:
            ForethoughtError: the window is still open.
        """
        if self._reading is None:
            raise ForethoughtError(
                "Cannot give a reading: expected a closed window, got an open one."
                " Read `window.reading` after the `with` block."
            )
        return self._reading

    @property
    def has_moved(self) -> bool:
        """Whether the counter gained enough, up to the last lap, for its steps not to matter much."""
        return sum(self._components.values()) >= _STEPS * self._meter.step_j and bool(self._components)

    def _read(self) -> tuple[dict[str, float] | None, str | None]:
        """Read; a meter that fails gives nothing, and the work that it would measure goes on."""
        try:
            return self._meter.read(), self._meter.reason
        except Exception as error:
            return None, f"{self._meter.instrument}: {str(error) or type(error).__name__}"

    def _close(self, time_s: float) -> Reading:
        meter, reason = self._meter, self._reason
        if reason is None and time_s < meter.min_window_s:
            reason = f"{meter.instrument}: {time_s:.3g} s is too short, needs {meter.min_window_s:g} s"
        energy_j = sum(self._components.values())
        if reason is None and energy_j == 0:
            reason = f"{meter.instrument}: the counter did not move in {time_s:.3g} s"
        given = {"time_s": time_s, "instrument": meter.instrument, "scope": meter.scope, "overhead_s": self._overhead_s}
        if reason is not None:
            return Reading(None, label=UNAVAILABLE, reason=reason, **given)  # type: ignore[arg-type]
        interval_j = interval_of(energy_j, time_s, meter)
        return Reading(energy_j, label=meter.label, components=self._components, interval_j=interval_j, **given)  # type: ignore[arg-type]


def interval_of(energy_j: float, time_s: float, meter: Meter) -> tuple[float, float] | None:
    """Say between which joules the truth lies; None where the meter does not say how far off it may be.

    Each end of a window may be off by one step of the counter, and the whole by what the instrument promises.
    """
    if meter.bound is None:
        return None
    step_j = max(meter.step_s * energy_j / time_s if time_s > 0 else energy_j, meter.step_j)
    low, high = meter.bound
    return max(0.0, energy_j * (1 + low) - step_j), energy_j * (1 + high) + step_j


class _LostCountError(Exception):
    """Two reads do not say what was drawn between them."""


def _drawn_j(before: Mapping[str, float], after: Mapping[str, float], time_s: float, meter: Meter) -> dict[str, float]:
    """Joules per component between two reads, one wrap put right; no more than a component can draw."""
    if before.keys() != after.keys():
        raise _LostCountError(f"components changed from {sorted(before)} to {sorted(after)}")
    drawn = {}
    for name, start in before.items():
        joules, limit = after[name] - start, meter.limits.get(name)
        if limit is not None and time_s > limit.gap_s:
            raise _LostCountError(
                f"{name} was not read for {time_s:.0f} s and may wrap after {limit.gap_s:.0f} s."
                " Call `window.lap()` more often"
            )
        if joules < 0 and limit is not None and joules + limit.range_j <= limit.power_w * time_s:
            joules += limit.range_j
        if joules < 0:
            raise _LostCountError(f"{name} was reset during the window")
        if joules > meter.most_power_w * (time_s + 2 * meter.step_s) + 2 * meter.step_j:
            raise _LostCountError(f"{name} gained {joules:.4g} J in {time_s:.3g} s, which no such device can draw")
        drawn[name] = joules
    return drawn
