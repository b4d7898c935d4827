"""Let another thread be a few items ahead of the one that uses them."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_PATIENCE_S = 0.1  # how often a thread that cannot go on looks whether anybody still wants it to


class Ahead(Generic[T]):
    """Iterates in a thread of its own, at most `depth` items ahead. Ends with whoever uses it.

    Args:
        items: What to iterate; not touched by any other thread.
        depth: How many items wait at most.

    Example:
        >>> list(Ahead(iter([1, 2, 3])))
        [1, 2, 3]
    """

    def __init__(self, items: Iterable[T], depth: int = 1) -> None:
        self._ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=_work, args=(items, self._ready, self._stopped), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                is_item, item = self._ready.get()
                if not is_item and item is None:
                    return
                if not is_item:
                    raise item  # type: ignore[misc]
                yield item  # type: ignore[misc]
                del item  # what was used is free before the next comes
        finally:
            self.close()

    def close(self) -> None:
        """Stop; wait until the thread has ended."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(_PATIENCE_S)


def _work(
    items: Iterable[T], ready: "queue.Queue[tuple[bool, T | BaseException | None]]", stopped: threading.Event
) -> None:
    """Run apart from the object, or the thread would keep it alive."""

    def put(is_item: bool, item: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((is_item, item), timeout=_PATIENCE_S)
            except queue.Full:
                continue
            return True
        return False

    try:
        for item in items:
            if not put(True, item):
                return
            del item
        put(False, None)
    except BaseException as err:  # it belongs to whoever waits
        put(False, err)
