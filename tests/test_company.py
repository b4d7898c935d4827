"""The laws of a row's company: which row a sample has follows from it and the model, never from what lies beside it."""

import numpy as np
import pytest
import torch
from test_padding import CASES, LENGTHS, Listed, N, compared

import forethought as ft
from forethought import nesting
from forethought.errors import DataError

EVEN = [at for at, length in enumerate(LENGTHS) if length == 16]
NAMES = ["bert, tokens, head", "recurrent", "packed", "sound", "pooled", "pooled in the head", "llama, left"]
# Values decide the shapes of what is packed: where samples never differ in size, it has no rows.
EVEN_TOO = [name for name in NAMES if name != "packed"]


HEAVY = {"bert, tokens, head", "pooled in the head"}


def over(names):
    return pytest.mark.parametrize(
        "case", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in names]
    )


def chosen(dataset, numbers):
    return Listed([dataset[at] for at in numbers])


def of_length(*lengths):
    return [at for at, length in enumerate(LENGTHS) if length in lengths]


class Counted:
    """Counts the samples that a model is run on."""

    def __init__(self, model):
        self.model, self.rows = model, 0

    def __enter__(self):
        self.hook = self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def _count(self, module, args, kwargs):
        self.rows += len(nesting.tensors((args, kwargs))[0])

    def __exit__(self, *_):
        self.hook.remove()


def is_live(features, count):
    """Whether rows are the model's, and the head gives of them what the model gives."""
    return features.verify(count).is_right


@over(NAMES)
def test_samples_of_one_size_are_found_among_those_that_differ(case, tmp_path):
    """One sample, or some that all have one size, of a stored data set: nothing is computed, and the model not run."""
    make, dataset, collate = CASES[case]
    ft.extract(make(), dataset, tmp_path, batch_size=4, collate_fn=collate)
    for numbers in ([3], EVEN, of_length(2), of_length(5)[:1] * 3):
        model = make()
        features = ft.extract(model, chosen(dataset, numbers), ft.Store(tmp_path, readonly=True), collate_fn=collate)
        assert features.report.rows_computed == 0
        assert is_live(features, len(numbers))


@over(EVEN_TOO)
def test_an_even_data_set_extended_by_a_sample_of_another_size(case, tmp_path):
    """Rows that were stored when all samples had one size are there when others come: only these are computed."""
    make, dataset, collate = CASES[case]
    first = of_length(9)
    ft.extract(make(), chosen(dataset, first), tmp_path, collate_fn=collate)
    more = [*first, 0]
    features = ft.extract(make(), chosen(dataset, more), tmp_path, collate_fn=collate)
    assert features.report.rows_computed == 1
    assert is_live(features, len(more))
    features = ft.extract(make(), dataset, tmp_path, batch_size=4, collate_fn=collate)
    assert features.report.rows_computed == N - len(more)
    assert is_live(features, N)


@over(EVEN_TOO)
def test_samples_of_one_size_are_fed_as_ever(case, tmp_path):
    """Wherever their rows lie, samples of one size have one shape: one array, any tier, what a store of theirs gives."""
    make, dataset, collate = CASES[case]
    numbers = [3, 8, 3]
    even = chosen(dataset, numbers)
    apart = ft.extract(make(), even, tmp_path / "apart", collate_fn=collate)
    ft.extract(make(), dataset, tmp_path / "among", batch_size=4, collate_fn=collate)
    among = ft.extract(make(), even, tmp_path / "among", collate_fn=collate)
    assert among.report.rows_computed == 0
    one, other = ([*nesting.tensors(each.numpy(), (np.ndarray,))] for each in (apart, among))
    if len(one) == len(other):  # a batch without padding may take another path, by which another mask crosses
        assert [a.shape for a in one] == [b.shape for b in other]
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True) if a.dtype == np.float32)
    assert all(isinstance(array, np.ndarray) for array in other)
    live = make()
    fed = [
        [value.clone() for values, _ in among.batches(2, tier=tier) for value in nesting.tensors(values)]
        for tier in ("ram", "mapped", None)
    ]
    assert all(torch.equal(a, b) for each in fed[1:] for a, b in zip(fed[0], each, strict=True))
    if any(tensor.among for tensor in among.frontier):
        with pytest.raises(DataError, match="stream"):
            next(among.batches(2, tier="streamed"))
        assert among.batches(2, memory=1).tier == "mapped"
    values, targets = next(among.batches(3))
    given = targets if isinstance(targets, dict) else torch.arange(3)
    by_place = {"labels": given["labels"], "number": torch.arange(3)} if isinstance(given, dict) else given
    assert compared(among, live, collate, even, values, by_place) < 1e-6


@pytest.mark.parametrize("case", ["bert, tokens, layer", "sound"])
def test_explaining_and_verifying_find_rows_wherever_they_lie(case, tmp_path):
    """What `explain` counts as stored is what `extract` does not compute, and a store's rows are verified for any part."""
    make, dataset, collate = CASES[case]
    even, more = chosen(dataset, [3, 8]), chosen(dataset, [3, 8, 1])
    ft.extract(make(), even, tmp_path, collate_fn=collate)
    assert ft.explain(make(), even, ft.Store(tmp_path), collate_fn=collate).stored == 2
    stored = ft.explain(make(), more, ft.Store(tmp_path), collate_fn=collate).stored
    assert ft.extract(make(), more, tmp_path, collate_fn=collate).report.rows_computed == 3 - stored
    assert ft.explain(make(), chosen(dataset, [1]), ft.Store(tmp_path), collate_fn=collate).stored == 1
