"""A wall meter: a smart plug or a power strip that keeps a running total, read by the user's own command or function.

It is the only instrument that sees all that the machine draws: power supply, board, fans and disks too.
"""

import math
import subprocess
from collections.abc import Callable, Mapping
from types import MappingProxyType

from forethought.energy.meters import BOUNDS, WALL, Bound, Limit
from forethought.errors import EnergyError

COMPONENT = "wall"
KWH_J = 3.6e6
_PATIENCE_S = 10.0


class WallMeter:
    """Joules of a whole machine, as its plug counts them.

    Args:
        source: What gives the plug's running total in kWh: a shell command that prints one number, or a function that
            returns it.
        step_kwh: The plug's smallest step: 0.001 for one that counts watt-hours.
        step_s: Seconds between two renewals of its total.
        bound: How far off it may be, as shares of the number; 3 % either way unless its maker says otherwise.

    Raises:
        EnergyError: the source is neither a command nor a function, or a step is not positive.

    Example:
        >>> meter = WallMeter(lambda: 1204.25)
        >>> meter.read(), meter.label
        ({'wall': 4335300000.0}, 'measured:wall')
    """

    label = WALL
    instrument = "wall meter"
    scope = "whole machine, at the plug"
    most_power_w = 1e5
    limits: Mapping[str, Limit] = MappingProxyType({})

    def __init__(
        self,
        source: str | Callable[[], float],
        *,
        step_kwh: float = 0.001,
        step_s: float = 1.0,
        bound: Bound | None = BOUNDS[WALL],
    ) -> None:
        if not callable(source) and not (isinstance(source, str) and source.strip()):
            raise EnergyError(
                f"Cannot read a wall meter by {source!r}: expected a command or a function that gives kWh, got "
                f"{type(source).__name__}. meter='curl -s http://plug/total'"
            )
        if not (step_kwh > 0 and step_s > 0):
            raise EnergyError(f"Cannot use steps of {step_kwh} kWh and {step_s} s: expected positive numbers.")
        self._source = source
        self.step_j = step_kwh * KWH_J
        self.step_s = step_s
        self.min_window_s = 2 * step_s
        self.bound = bound
        self.reason: str | None = None

    def read(self) -> dict[str, float] | None:
        """Joules on the plug, or None when it does not answer with a number."""
        try:
            kwh = float(_said(self._source) if isinstance(self._source, str) else self._source())
            if not math.isfinite(kwh) or kwh < 0:
                raise ValueError(f"expected a running total in kWh, got {kwh}")
        except Exception as error:  # the user's code: whatever is wrong with it, the work it would measure goes on
            self.reason = f"{self.instrument}: {str(error) or type(error).__name__}"
            return None
        self.reason = None
        return {COMPONENT: kwh * KWH_J}


def _said(command: str) -> str:
    """Run the user's command; give the one number that it prints."""
    try:
        run = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"no answer in {_PATIENCE_S:g} s from: {command}") from None
    if run.returncode != 0:
        complaint = (run.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise ValueError(f"status {run.returncode} from: {command}: {complaint}")
    words = run.stdout.split()
    if len(words) != 1:
        raise ValueError(f"expected one number from: {command}, got {run.stdout.strip()[:80]!r}")
    return words[0]
