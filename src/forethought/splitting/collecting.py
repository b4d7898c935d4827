"""Python's collector of cycles, kept still while a model is looked at.

What is seen of a model is tens of thousands of small objects that stay. They make the collector go through everything
that the process holds, torch and the user's data included, again and again: up to ten forward passes of a small model.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let no cycles be collected meanwhile, if they were before; then as before. Also a decorator."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
