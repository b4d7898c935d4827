"""Claims: who works on what, as small files. They divide work; they never decide what is right."""

import functools
import os
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from forethought.store.files import DEAD_AFTER_S, TEMPORARY
from forethought.store.notes import check_hex
from forethought.store.place import Place

CLAIMS = "claims"
_PROBE_AGAIN_S = 10.0
_TOKEN_BYTES = 1024


class Claim:
    """One piece of work that this process has taken. Made by `Claims.take`; leaving its `with` block releases it."""

    def __init__(self, place: Place | None, path: str, token: bytes) -> None:
        self._place = place
        self._path = path
        self._token = token

    def refresh(self) -> bool:
        """Keep the claim from going stale. Returns whether it is still ours: somebody may have thought us dead."""
        if self._place is None:
            return True
        try:
            if not self._is_ours(self._place):
                return False
            self._place.put(self._path, self._token)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let others have it. Releasing twice is harmless."""
        try:
            if self._place is not None and self._is_ours(self._place):
                self._place.remove(self._path)
        except OSError:
            pass  # it goes stale
        self._place = None

    def _is_ours(self, place: Place) -> bool:
        return place.get(self._path, _TOKEN_BYTES) == self._token

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Claims:
    """The claims of one store. Made by `Store.claims`.

    Nothing here waits, and no failure raises: where no claim can be kept (a store that cannot be written, a full disk),
    everybody gets one that does nothing, and work is done twice at worst. Ages are differences of file times, so a
    machine whose clock is wrong does no harm.
    """

    def __init__(self, place: Place, *, is_kept: bool) -> None:
        self._place = place
        self._is_kept = is_kept
        self._clock: tuple[float, float] | None = None  # a file's time, and the monotonic clock's at that moment
        self._is_swept = False

    def take(self, key: str, *, stale_s: float = 60.0) -> Claim | None:
        """Claim the work called `key`, in hex; None while somebody else is at it.

        Args:
            key: Hex name of the work, the same for all who could do it.
            stale_s: A claim that was not refreshed for so many seconds is taken for dead, and taken over. So is one
                of a process of this machine that has ended.

        Raises:
            StoreError: `key` is not hex.
        """
        check_hex(key)
        path = f"{CLAIMS}/{key}"
        token = f"{secrets.token_hex(16)} {_process(os.getpid())}".encode()
        if not self._is_kept:
            return Claim(None, path, token)
        try:
            if not self._is_swept:
                self._place.make_folder(CLAIMS)
                self._is_swept = True
                self._sweep()
            if self._place.put_new(path, token):
                return Claim(self._place, path, token)
            held = self._place.stamp(path)
            # A time far ahead is a clock that was set back, and no reason to wait for it.
            if held is not None and abs(self._now_s() - held.changed_s) <= stale_s and not self._is_dead(path):
                return None
            self._place.put(path, token)
            # Of several that took it over at once the last writer has it, but for one that wrote after we looked.
            return Claim(self._place, path, token) if self._place.get(path, _TOKEN_BYTES) == token else None
        except OSError:
            return Claim(None, path, token)

    def _is_dead(self, path: str) -> bool:
        """Say whether a claim's owner ran on this machine and does not run any more."""
        try:
            token = self._place.get(path, _TOKEN_BYTES) or b""
        except OSError:
            return False  # whatever lies there instead of a claim does not say
        owner = token.decode("ascii", "replace").partition(" ")[2]
        machine, _, rest = owner.partition("/")
        pid = rest.partition("/")[0]
        return bool(machine) and machine == _machine() and pid.isdigit() and _process(int(pid)) != owner

    def _now_s(self) -> float:
        """Tell the time as the place's files do."""
        if self._clock is None or time.monotonic() - self._clock[1] > _PROBE_AGAIN_S:
            probe = f"{CLAIMS}/.{secrets.token_hex(8)}{TEMPORARY}"
            self._place.put_new(probe, b"\n")
            stamp = self._place.stamp(probe)
            self._place.remove(probe)
            self._clock = (stamp.changed_s if stamp is not None else time.time(), time.monotonic())
        return self._clock[0] + time.monotonic() - self._clock[1]

    def _sweep(self) -> None:
        """Remove the claims of those who died long ago."""
        for path, stamp in list(self._place.files(CLAIMS)):
            if self._now_s() - stamp.changed_s > DEAD_AFTER_S:
                self._place.remove(path)


@functools.cache
def _machine() -> str:
    """Name this machine since it was started, as its processes see each other; "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.readlink('/proc/self/ns/pid')}".replace("/", "-")
    except OSError:
        return ""


def _process(pid: int) -> str:
    """Name a process of this machine, so that no later one has its name: machine/number/start; "" if there is none."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{_machine()}/{pid}/{after_name[19]}" if _machine() and after_name[0] not in "ZX" else ""
