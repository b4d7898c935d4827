"""A trained tail goes back into the whole model that it was split from."""

import copy

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import FitError, ForethoughtError, SplitError


class _Whole(nn.Module):
    """Frozen body; a tail with a norm's buffers, a weight that is tied, and one that only forward holds."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(8))
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        h = self.norm(self.body(x).relu())
        return self.out(self.second(self.first(h).relu()) * self.scale).squeeze(-1)


class _Bare(nn.Module):
    """The body and one layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.out = nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.body(x)).squeeze(-1)


def _fitted(tmp_path, made, wrapped=None):
    torch.manual_seed(0)
    model = made().eval()
    ft.freeze(model, until="body")
    given = model if wrapped is None else wrapped(model)
    x = torch.randn(60, 6)
    features = ft.extract(given, (x, torch.randn(60)), tmp_path / "store")
    results = ft.fit(features, features, {"own": features.head}, epochs=2, batch_size=16, lr=0.01, progress=False)
    (values, _), *_ = features.batches(60)
    return given, features, results["own"], x, values


@pytest.mark.parametrize("made", [_Whole, _Bare])
@pytest.mark.parametrize("wrapped", [None, nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_the_model_gives_what_its_trained_head_gave(tmp_path, made, wrapped):
    """To the last bit: the model itself, its like from another process, and the split's head, which is the model's."""
    model, features, result, x, values = _fitted(tmp_path, made, wrapped)
    expected = result.head(values)
    like = copy.deepcopy(model)
    before = model(x)
    for into in (like, model):
        assert torch.equal(into(x), before)
        result.apply_to(into)
        assert torch.equal(into(x), expected)
        assert not torch.equal(expected, before)
    fresh = made().eval()
    fresh.load_state_dict({key.removeprefix("module."): value for key, value in _plain(like).items()})
    with torch.no_grad():
        for parameter in fresh.out.parameters():
            parameter.zero_()
    result.apply_to(fresh)
    assert torch.equal(fresh(x), expected)
    assert torch.equal(features.head(values), expected)


def _plain(model):
    return {key.removeprefix("_orig_mod."): value for key, value in model.state_dict().items()}


def test_a_model_that_is_not_frozen_alike_is_refused(tmp_path):
    """Another frozen weight, another class, another head: said with the fix, and nothing is copied."""
    model, features, result, *_ = _fitted(tmp_path, _Whole)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.body[3].weight[0, 0] += 1e-6
    wider = copy.deepcopy(model)
    wider.out = nn.Linear(8, 2)
    for into, error, says in (
        (other, SplitError, r"'body\.3\.weight'.*another one"),
        (_Bare(), SplitError, "another one|nothing of this name"),
        (nn.Linear(8, 1), SplitError, "nothing of this name"),
        (wider, FitError, r"'body\.out\.weight' of shape \(1, 8\)"),
        (features.split, FitError, r"apply_to\(split\.head\)"),
    ):
        before = copy.deepcopy(into.state_dict()) if isinstance(into, nn.Module) else {}
        with pytest.raises(ForethoughtError, match=says) as caught:
            result.apply_to(into)
        assert isinstance(caught.value, error)
        assert all(torch.equal(into.state_dict()[key], value) for key, value in before.items())
    linear = ft.fit(
        features, features, {"mine": nn.Sequential(nn.Linear(8, 1), nn.Flatten(0))}, epochs=1, progress=False
    )["mine"]
    with pytest.raises(FitError, match=r"ft\.assemble\(split, \{'mine': result\.head\}\)"):
        linear.apply_to(model)
