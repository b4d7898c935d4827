"""One call in a thread of its own."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Task(Generic[T]):
    """A call that is made once: in the background after `start`, or by whoever asks for its result before it began.

    So nothing waits for a thread that never came: because there was none to be had, because an interrupt hit
    `start`, or because this process was forked. In a forked child the call is made again, by the child. The
    thread ends with the call; a process that exits waits for it.

    Example:
        >>> task = Task(lambda: 6 * 7)
        >>> task.start()
        >>> task.result()
        42
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._future: Future[T] = Future()
        self._process = os.getpid()

    def start(self) -> None:
        """Begin in the background, where there is a thread to be had."""
        with suppress(RuntimeError):  # none is: this process has too many, or ends
            threading.Thread(target=self._run, name="forethought").start()

    @property
    def is_done(self) -> bool:
        """Whether `result` returns without waiting, or must be asked for anything to happen."""
        return self._is_orphan or self._future.done()

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. May be asked again, after an interrupt too."""
        if self._is_orphan or self._future.cancel():
            return self._call()
        return self._future.result()

    @property
    def _is_orphan(self) -> bool:
        """Whether the thread was left in the process that this one was forked from, with the future's lock perhaps."""
        return os.getpid() != self._process

    def _run(self) -> None:
        if self._future.set_running_or_notify_cancel():
            try:
                self._future.set_result(self._call())
            except BaseException as err:
                self._future.set_exception(err)
