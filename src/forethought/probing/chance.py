"""The random states of this process: lent to one thread of ours at a time, and left as they were found."""

import os
import random
import threading

import numpy as np
import torch


class Alone:
    """Held while random states are set, put back or compared: another thread's trial looks like chance in this one's.

    May be entered again by the thread that holds it.
    """

    _lock = threading.RLock()

    def __enter__(self) -> None:
        self._held = Alone._lock  # a process that was forked meanwhile has another
        self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()

    @classmethod
    def _renew(cls) -> None:
        cls._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Alone._renew)  # no thread is left there that would release it


class RandomStatesKept:
    """Leaves every random state of the process as it was before the `with` block."""

    def __enter__(self) -> None:
        self._alone = Alone()
        self._alone.__enter__()
        self._states = (torch.get_rng_state(), random.getstate(), np.random.get_state())

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._states[0])
        random.setstate(self._states[1])
        np.random.set_state(self._states[2])
        self._alone.__exit__()
