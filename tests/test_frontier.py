"""Where the frozen part ends, and what the tensors there look like."""

import odd_models
import pytest
import torch
from odd_models import CASES, Base, frozen
from torch import nn

import forethought as ft
from forethought.errors import NothingFrozenError, SplitError

BY_NAME = {case.name: case for case in CASES}


def _split(name, **options):
    torch.manual_seed(0)
    case = BY_NAME[name]
    model = case.make().train(case.train)
    return ft.split(model, *case.feed(case.sizes[0]), **options)


CROSSING = {
    "ReluInPlaceModules": [("3", (8,))],
    "TiedWeights": [("body", (8,)), ("relu", (8,))],
    "SingleParameter": [("body", (8,))],
    "FrozenAfterTrainable": [("body", (8,))],
    "LateFrozenBranch": [("body", (8,)), ("late", (8,))],
    "SequenceFirst": [("body", (5, 8))],
    "Windows": [("body", (4, 16, 8))],
    "BatchNormInHead": [("1", (8,))],
    "DropoutInHead": [("0", (8,))],
}


@pytest.mark.parametrize("name", CROSSING)
def test_what_crosses(name):
    assert [(tensor.name, tensor.shape) for tensor in _split(name).frontier] == CROSSING[name]


def test_a_skip_crosses_beside_the_last_layer():
    assert sorted(tensor.shape for tensor in _split("UNet").frontier) == [(1, 8, 8), (4, 4, 4), (8, 2, 2)]


def test_every_frozen_value_of_the_output_crosses():
    parts = _split("TupleOutput")
    assert sorted(tensor.shape for tensor in parts.frontier) == [(6,), (8,)]


def test_constants_do_not_cross():
    parts = _split("BatchConstants")
    assert len(parts.frontier) == 1
    assert all(tensor.row_axis == 0 for tensor in parts.frontier)


@pytest.mark.parametrize("name", ["DetachedHot", "HotDecision", "BranchOnHot"])
def test_values_derived_from_what_trains_are_not_frozen(name):
    parts = _split(name)
    assert [tensor.name for tensor in parts.frontier] == ["body"]


@pytest.mark.parametrize("name", [*CROSSING, "UNet", "TupleOutput", "BatchConstants", "Recurrent", "Bags", "DictInput"])
def test_rows_and_back(name):
    """`from_rows` undoes `to_rows`, strides included, for every tensor with rows."""
    case = BY_NAME[name]
    torch.manual_seed(0)
    model = case.make().train(case.train)
    parts = ft.split(model, *case.feed(case.sizes[0]))
    args, kwargs = case.feed(case.sizes[-1])
    values = parts.trunk(*args, **kwargs)
    values = values if isinstance(values, tuple) else (values,)
    for tensor, value in zip(parts.frontier, values, strict=True):
        if tensor.row_axis is None:
            continue
        rows = tensor.to_rows(value)
        assert tuple(rows.shape[1:]) == tensor.shape
        back = tensor.from_rows(rows.contiguous())
        assert torch.equal(back, value)
        if value.is_contiguous():
            assert back.stride() == value.stride()


def test_rows_of_a_folded_tensor_belong_to_their_sample():
    parts = _split("Windows")
    (tensor,) = parts.frontier
    assert (tensor.row_axis, tensor.fold, tensor.shape) == (0, 4, (4, 16, 8))
    x = torch.randn(5, 3, 8, 8)
    rows = tensor.to_rows(parts.trunk(x))
    assert torch.equal(rows[2], tensor.to_rows(parts.trunk(x[2:3]))[0])


def test_rows_of_a_sequence_first_tensor_belong_to_their_sample():
    parts = _split("SequenceFirst")
    (tensor,) = parts.frontier
    assert (tensor.row_axis, tensor.fold, tensor.shape) == (1, 1, (5, 8))
    x = torch.randn(5, 5, 6)
    assert torch.allclose(tensor.to_rows(parts.trunk(x))[2], tensor.to_rows(parts.trunk(x[2:3]))[0], atol=1e-6)


def test_a_tensor_without_rows_says_so():
    parts = _split("PooledOverBatch")
    assert [tensor.row_axis for tensor in parts.frontier] == [None]


def test_pairs_have_no_rows():
    class Pairs(Base):
        def forward(self, x):
            h = self.body(x)
            return (h[:, None] - h[None]).sum(-1) * self.head.bias[0]

    parts = ft.split(Pairs(), torch.randn(3, 6))
    assert [tensor.row_axis for tensor in parts.frontier] == [None]


@pytest.mark.parametrize(("at", "name"), [("body.0", "body.0"), ("body.1", "body.1"), ("body", "body")])
def test_an_earlier_cut(at, name):
    model = Base()
    parts, x = ft.split(model, torch.randn(3, 6), at=at), torch.randn(5, 6)
    assert [tensor.name for tensor in parts.frontier] == [name]
    assert torch.equal(parts.head(parts.trunk(x)), model(x))
    assert {id(p) for p in parts.head.parameters()} == {id(p) for p in model.head.parameters()}


def test_an_earlier_cut_takes_the_skips_along():
    case = BY_NAME["UNet"]
    model = case.make()
    parts, (args, _) = ft.split(model, *case.feed(3), at="down1"), case.feed(4)
    assert torch.equal(parts.head(parts.trunk(*args)), model(*args))
    assert "down1" in [tensor.name for tensor in parts.frontier]


def test_a_cut_inside_a_list_of_modules():
    model = odd_models.PlainListsOfModules().eval()
    parts, x = ft.split(model, torch.randn(3, 6), at="layers[0]"), torch.randn(5, 6)
    assert [tensor.name for tensor in parts.frontier] == ["layers[0]"]
    assert torch.equal(parts.head(parts.trunk(x)), model(x))


@pytest.mark.parametrize("at", ["head", "nowhere", ""])
def test_a_cut_that_cannot_be_is_refused(at):
    with pytest.raises(SplitError):
        ft.split(Base(), torch.randn(3, 6), at=at)


def test_a_cut_at_the_first_trainable_layer_is_nothing_frozen():
    with pytest.raises(NothingFrozenError):
        ft.split(Base().requires_grad_(True), torch.randn(3, 6))


def test_a_whole_frozen_model_has_its_output_for_a_frontier():
    model, x = frozen(Base()), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    assert torch.equal(parts.trunk(x), model(x))
    assert torch.equal(parts.head(parts.trunk(x)), model(x))
    assert not list(parts.head.parameters())


def test_one_memory_behind_two_parameters():
    """A frozen parameter that is a view of what trains is not frozen."""
    flat = torch.randn(8, 6)
    model = nn.Sequential(frozen(nn.Linear(6, 6)), nn.Linear(6, 8, bias=False), nn.Linear(8, 3))
    model[0].weight = nn.Parameter(flat[:6], requires_grad=False)
    model[1].weight = nn.Parameter(flat)
    with pytest.raises(NothingFrozenError):
        ft.split(model, torch.randn(3, 6))


def test_sizes_are_those_of_one_sample():
    (tensor,) = ft.split(Base(), torch.randn(3, 6)).frontier
    assert (tensor.shape, tensor.dtype, tensor.size_bytes) == ((8,), torch.float32, 32)
