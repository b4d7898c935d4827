"""The laws of targets: joined as they come, they are what they would be if all were joined at the end."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forethought.errors import DataError
from forethought.samples.targets import Gathering, is_same, join_targets


def numbers(rows, dtype=torch.int64, shape=()):
    return torch.arange(rows * int(np.prod(shape))).reshape(rows, *shape).to(dtype)


KINDS = {
    "numbers": lambda rows: numbers(rows),
    "boxes": lambda rows: numbers(rows, torch.float64, (2, 4)),
    "half": lambda rows: numbers(rows, torch.bfloat16),
    "columns": lambda rows: [numbers(rows), numbers(rows, torch.float32, (3,))],
    "pair": lambda rows: (numbers(rows), numbers(rows, torch.bool)),
    "named": lambda rows: {"a": numbers(rows), "b": (numbers(rows), numbers(rows, torch.uint8, (0,)))},
    "arrays": lambda rows: np.arange(rows),
    "texts": lambda rows: [f"label {at}" for at in range(rows)],
    "texts beside numbers": lambda rows: [[f"label {at}" for at in range(rows)], numbers(rows)],
    "dictionaries": lambda rows: [{"box": at} for at in range(rows)],
    "nothing": lambda rows: None,
    "needing a gradient": lambda rows: numbers(rows, torch.float32).requires_grad_(),
}


@given(
    kind=st.sampled_from(sorted(KINDS)), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), known=st.booleans()
)
def test_targets_gathered_are_targets_joined(kind, sizes, known):
    """Whatever they are, and whether their number is known or not."""
    parts = [KINDS[kind](rows) for rows in sizes]
    gathering = Gathering(sum(sizes) if known else None)
    for part, rows in zip(parts, sizes, strict=True):
        gathering.add(part, rows)
    assert is_same(gathering.result(), join_targets(parts, sizes))


@given(
    kinds=st.lists(st.sampled_from(["numbers", "boxes", "half", "texts", "columns", "nothing"]), min_size=2, max_size=4)
)
def test_targets_that_change_their_kind_are_joined_or_refused_as_ever(kinds):
    """What does not fit the place that was made is joined as if there had been none."""
    parts = [KINDS[kind](3) for kind in kinds]

    def joined(join):
        try:
            return join()
        except (DataError, RuntimeError, TypeError, IndexError, AttributeError) as err:
            return type(err)

    def gather():
        gathering = Gathering(3 * len(parts))
        for part in parts:
            gathering.add(part, 3)
        return gathering.result()

    at_once, as_they_come = joined(lambda: join_targets(parts, [3] * len(parts))), joined(gather)
    assert at_once is as_they_come or is_same(at_once, as_they_come)


def test_what_is_gathered_is_a_copy():
    """A data set that gives the same tensor again and again, with other numbers in it, has all of them."""
    part, gathering = torch.zeros(2), Gathering(4)
    for number in (1, 2):
        gathering.add(part.fill_(number), 2)
    assert gathering.result().tolist() == [1, 1, 2, 2]


def test_too_few_targets_are_refused():
    """One target a sample."""
    gathering = Gathering(4)
    gathering.add(torch.zeros(2), 2)
    gathering.add(torch.zeros(1), 2)
    with pytest.raises(DataError, match="one entry a sample"):
        gathering.result()
