"""Features that are not finite are named, by row and column, once a loss is not."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import FitError

X = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randn(300, generator=torch.Generator().manual_seed(1))
FINE = (X[:50], Y[:50])


def _linear():
    return nn.Sequential(nn.Linear(8, 1), nn.Flatten(0))


def _fit(train, val=FINE, heads=None, **options):
    given = {"epochs": 3, "batch_size": 64, "progress": False} | options
    return ft.fit(train, val, heads or {"a": _linear(), "b": _linear()}, **given)


def _spoilt(value=math.nan, row=217, columns=(3, 5), dtype=torch.float32):
    x = X.clone().to(dtype)
    x[row, list(columns)] = value
    return x


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_row_and_column_are_named(value):
    """Of every head that failed for it, and where the best one is asked for, without advice about something else."""
    results = _fit((_spoilt(value), Y))
    for result in results:
        assert f"train[217] has {value} in column 3, and 1 more in that row" in result.failed
        assert len(result.metrics) == 1
    with pytest.raises(FitError, match=r"train\[217\].*isfinite") as caught:
        _ = results.best
    assert "lr=" not in str(caught.value)


def test_validation_rows_are_named_as_such():
    """The training loss was finite, so that those are not looked through."""
    (result,) = _fit((X, Y), (_spoilt(row=0, columns=[7]), Y), {"a": _linear()})
    assert "validation score was not finite, as its features are not: val[0] has nan in column 7." in result.failed


def test_finite_features_are_not_blamed_and_read_once():
    """A learning rate that is too high is said as before; each side is looked through at most once for all heads."""
    passes = []

    class Counted:
        def __len__(self):
            return 300

        def batches(self, batch_size, *, shuffle=False, seed=None, epoch=None, device=None):
            passes.append(shuffle)
            yield from zip(X.split(batch_size), Y.split(batch_size), strict=True)

    fine = _fit(Counted())
    before = passes.copy()
    wild = _fit(Counted(), lr=1e30, optimizer="sgd")
    assert before == [True] * 3
    assert passes[3:].count(False) == 1
    assert fine.best.failed is None
    with pytest.raises(FitError, match="lr=1e-4"):
        _ = wild.best


def test_heads_that_can_take_them_are_not_stopped():
    """What is missing may be NaN: a head that knows that trains on."""

    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _linear()

        def forward(self, x):
            return self.net(x.nan_to_num())

    results = _fit((_spoilt(), Y), heads={"filled": Filled(), "plain": _linear()})
    assert results.best.name == "filled"
    assert "train[217]" in results["plain"].failed


def test_stored_features_are_named_by_sample(tmp_path):
    """By row of what was given to fit, by sample of the data set, and by the tensor's name; the fix works."""
    model = nn.Sequential(nn.PReLU(8).requires_grad_(False), nn.Linear(8, 1), nn.Flatten(0))
    x = _spoilt()
    features = ft.extract(model, (x, Y), tmp_path)
    train = features.select(range(100, 300))
    failed = _fit(train, heads={"a": _linear()})["a"].failed
    assert f"train[117], sample 217 has nan in column 3 of {features.frontier[0].name!r}, and 1 more" in failed
    assert "train.select(numpy.isfinite(train.numpy()).all(1))" in failed
    assert _fit(train.select(np.isfinite(train.numpy()).all(1))).best.failed is None
    with pytest.raises(FitError, match=r"standardise.*train\[217\] has nan"):
        _fit(features, standardize=True)


def test_float16_that_overflowed_is_said():
    """The fix is the width, not to leave rows out."""
    (result,) = _fit((_spoilt(1e30, dtype=torch.float16), Y), heads={"a": _linear()})
    assert "dtype='float32'" in result.failed


def test_a_live_run_is_not_repeated_to_find_them():
    """To run the frozen part again costs what fit is there to save."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1), nn.Flatten(0))
    model[0].requires_grad_(False)
    results = ft.fit(model, (_spoilt(), Y), val=FINE, run="live", epochs=2, batch_size=64, lr=0.1, progress=False)
    (result,) = results
    assert result.failed == "stopped in epoch 1: its training loss was not finite"


def test_places_in_rows_of_several_axes():
    """As an index has them."""
    x = X.view(300, 2, 4).clone()
    x[5, 1, 2] = math.nan
    (result,) = _fit((x, Y), (x[100:], Y[100:]), {"a": nn.Sequential(nn.Flatten(), _linear())})
    assert "train[5] has nan in column 1, 2." in result.failed
