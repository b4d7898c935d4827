"""A wall meter: a smart plug or a power strip that keeps a running total, read by the user's own command or function.

It is the only instrument that sees all that the machine draws: power supply, board, fans and disks too.
"""

import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType

from forethought.energy.meters import BOUNDS, WALL, Bound, Limit
from forethought.errors import EnergyError

COMPONENT = "wall"
KWH_J = 3.6e6
_PATIENCE_S = 10.0
_MOST_BYTES = 4096  # of what a command prints


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
    pipe = subprocess.PIPE
    # A session of its own, so that all that the command started ends with it: `curl ... | jq ...` is three processes.
    with subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    ) as run:
        try:
            out, complaints = _heard(run)
            status = run.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            _end(run)
            raise ValueError(f"no answer in {_PATIENCE_S:g} s from: {command}") from None
        except BaseException:
            _end(run)
            raise
    words = out.decode(errors="replace").split()
    if status != 0 and len(out) <= _MOST_BYTES:
        complaint = (complaints.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:200]
        raise ValueError(f"status {status} from: {command}: {complaint}")
    if len(words) != 1 or len(out) > _MOST_BYTES:
        shown = out[:80].decode(errors="replace").strip()
        raise ValueError(f"expected one number from: {command}, got {shown!r}")
    return words[0]


def _heard(run: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
    """Read what a command prints and complains of, little of it, for a while."""
    if sys.platform == "win32":  # pipes cannot be waited for there
        return run.communicate(timeout=_PATIENCE_S)
    until, heard = time.monotonic() + _PATIENCE_S, {run.stdout: b"", run.stderr: b""}
    with selectors.DefaultSelector() as pipes:
        for pipe in heard:
            if pipe is not None:
                pipes.register(pipe, selectors.EVENT_READ)
        while pipes.get_map() and len(heard[run.stdout]) <= _MOST_BYTES:
            ready = pipes.select(max(0.0, until - time.monotonic()))
            if not ready or time.monotonic() > until:
                raise subprocess.TimeoutExpired(run.args, _PATIENCE_S)
            for key, _ in ready:
                some = os.read(key.fd, _MOST_BYTES)
                heard[key.fileobj] = (heard[key.fileobj] + some)[-2 * _MOST_BYTES :]  # type: ignore[index]
                if not some:
                    pipes.unregister(key.fileobj)
    if len(heard[run.stdout]) > _MOST_BYTES:
        _end(run)  # it may go on for ever
    return heard[run.stdout], heard[run.stderr]


def _end(run: "subprocess.Popen[bytes]") -> None:
    if sys.platform == "win32":
        run.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
