"""For every test, doctest and documentation block: the same random numbers, and two names at hand."""

from typing import Any

import pytest
import torch

pytest.register_assert_rewrite("forethought.testing")  # asserts there say what they compared, as in tests


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Printed results in docs are true because the generator starts the same way for each of them."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    """Docstrings say `ft` and `torch` without importing them, as the text around them does."""
    import forethought as ft

    doctest_namespace |= {"ft": ft, "torch": torch}
