"""`freeze`: what it freezes, in which order, and that it stays so."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import SplitError


class Backwards(nn.Module):
    """Registers its head first and runs it last; owns a parameter and a frozen-to-be position table itself."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(6))
        self.head, self.norm, self.body = nn.Linear(8, 2), nn.BatchNorm1d(8), nn.Linear(6, 8)
        self.aux = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.norm(self.body(x + self.position)).relu())


def _trains(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_order_of_execution():
    model = ft.freeze(Backwards(), until="norm", args=torch.randn(3, 6))
    assert _trains(model) - {"position", "aux.weight", "aux.bias"} == {"head.weight", "head.bias"}


def test_order_of_registration_without_inputs():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert _trains(ft.freeze(model, until="1")) == {"2.weight", "2.bias"}


def test_everything():
    model = ft.freeze(Backwards())
    assert not _trains(model)
    assert not any(module.training for module in model.train().modules())


@pytest.mark.parametrize("given", [{}, {"args": torch.randn(2, 3, 16, 16)}], ids=["registered", "executed"])
def test_parameters_of_the_containers_are_frozen_too(given):
    """A class token or a position table belongs to the root, and runs before what is frozen."""
    vision = pytest.importorskip("torchvision.models")
    model = vision.VisionTransformer(16, 8, 3, 2, 8, 16, num_classes=2)
    ft.freeze(model, until="encoder.layers.encoder_layer_1", **given)
    assert all(name.startswith(("encoder.layers.encoder_layer_2", "encoder.ln", "heads")) for name in _trains(model))
    parts = ft.split(model, torch.randn(2, 3, 16, 16))
    assert [tensor.shape for tensor in parts.frontier] == [(5, 8)]


def test_inside_a_container():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 8)), nn.Linear(8, 2))
    ft.freeze(model, until="0.1").train()
    assert _trains(model) == {"0.2.weight", "0.2.bias", "1.weight", "1.bias"}
    assert {name: module.training for name, module in model.named_modules() if name} == {
        "0": True, "0.0": False, "0.1": False, "0.2": True, "1": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "train",
    [
        lambda model: model.train(),
        lambda model: model.apply(lambda module: module.train()),
        nn.Module.train,
        lambda model: model.eval().train(True),
    ],
)
def test_train_does_not_undo_it(train):
    model = ft.freeze(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), until="1")
    train(model)
    assert [module.training for module in model] == [False, False, True]
    before = model[1].running_mean.clone()
    model(torch.randn(4, 6))
    assert torch.equal(model[1].running_mean, before)


def test_a_copy_stays_frozen_by_itself():
    model = ft.freeze(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), until="0")
    copied = copy.deepcopy(model)
    copied.train()
    assert [module.training for module in copied] == [False, True]
    assert copied[0].train.args[0] is copied[0]


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_saved_model_loads(how):
    model = ft.freeze(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), until="0")
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    loaded.train()
    assert [module.training for module in loaded] == [False, True]


def test_the_weights_are_not_touched_and_nothing_stays_of_the_trial():
    model = Backwards().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    ft.freeze(model, until="norm", args=torch.ones(3, 6))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert model.training
    assert model.head.training


def test_a_trial_that_fails_changes_nothing():
    model = Backwards().train()
    with pytest.raises(RuntimeError):
        ft.freeze(model, until="norm", args=torch.randn(3, 7))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("until", "given"), [("nowhere", {}), ("aux", {"args": torch.randn(3, 6)})])
def test_names_that_cannot_be_are_refused(until, given):
    with pytest.raises(SplitError):
        ft.freeze(Backwards(), until=until, **given)


def test_frozen_then_split():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    parts = ft.split(ft.freeze(model, until="2"), torch.randn(3, 6))
    x = torch.randn(5, 6)
    assert torch.equal(parts.head(parts.trunk(x)), model(x))
    assert [tensor.name for tensor in parts.frontier] == ["2"]
