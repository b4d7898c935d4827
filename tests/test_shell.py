"""`shell`: a second body over the same tensors, that leaves the model alone."""

import copy

import odd_models
import pytest
import torch
from odd_models import Base, PlainListsOfModules, frozen
from torch import nn

from forethought.splitting.shell import active, shell


class Watch:
    """Notes the calls that it sees."""

    def __init__(self):
        self.seen = []

    def call(self, module, path, args, kwargs):
        self.seen.append(path)
        return module._call_impl(*args, **kwargs)


def _cases():
    """All that have no state of their own that both runs would share, and no closure over the model."""
    stateful = ("Registers", "Replaces", "Counts", "Appends", "BufferOf")
    return [case for case in odd_models.CASES if not case.train and not case.name.startswith(stateful)]


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
def test_a_shell_computes_what_the_model_computes(case):
    torch.manual_seed(0)
    model = case.make().eval()
    args, kwargs = case.feed(4)
    wanted = copy.deepcopy(model)(*odd_models._copied(args), **odd_models._copied(kwargs))
    got = shell(model)(*odd_models._copied(args), **odd_models._copied(kwargs))
    odd_models.compare(wanted, got, "the shell's output")


def test_tensors_are_the_models_own():
    model = Base()
    body = shell(model)
    assert all(a is b for a, b in zip(model.parameters(), body.parameters(), strict=True))
    assert list(model.state_dict()) == list(body.state_dict())
    assert not {id(module) for module in model.modules()} & {id(module) for module in body.modules()}


def test_a_parameter_put_in_place_later_is_seen():
    model, x = Base(), torch.randn(3, 6)
    body = shell(model)
    model.head.weight = nn.Parameter(torch.randn(3, 8))
    assert torch.equal(body(x), model(x))


def test_every_call_is_seen_in_order_by_path():
    watch = Watch()
    with active(watch):
        shell(Base())(torch.randn(3, 6))
    assert watch.seen == ["", "body", "body.0", "body.1", "body.2", "head"]


def test_modules_in_lists_and_dicts_are_seen():
    watch = Watch()
    with active(watch):
        shell(PlainListsOfModules().eval())(torch.randn(3, 6))
    assert watch.seen == ["", "layers[0]", "layers[1]", "layers[2]", "named.act", "named.out.last"]


def test_the_model_itself_is_not_watched():
    model, watch = Base(), Watch()
    shell(model)
    with active(watch):
        model(torch.randn(3, 6))
    assert not watch.seen
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_the_place_is_given_back_after_an_error():
    outer, inner = Watch(), Watch()
    body = shell(Base())
    with active(outer):
        with pytest.raises(RuntimeError), active(inner):
            body(torch.randn(3, 7))
        body(torch.randn(3, 6))
    body(torch.randn(3, 6))
    assert outer.seen == ["", "body", "body.0", "body.1", "body.2", "head"]


def test_attributes_set_on_the_shell_stay_there():
    model = Base()
    body = shell(model)
    body.note, body.body.training, body.training = 1, False, False
    assert not hasattr(model, "note")
    assert model.training
    assert model.body.training


def test_one_module_under_two_names_stays_one():
    shared = frozen(nn.Linear(6, 6))
    body = shell(nn.Sequential(shared, nn.ReLU(), shared))
    assert body[0] is body[2]


def test_other_tensors_in_place_of_the_own():
    model = Base()
    body = shell(model, lambda tensor: tensor.detach().clone())
    assert not any(a is b for a, b in zip(model.parameters(), body.parameters(), strict=True))


def test_hooks_and_methods_belong_to_the_shell():
    model = Base()
    model.call_head = model.head.forward
    model.head.register_forward_hook(lambda module, args, output: output + 1)
    body, x = shell(model), torch.randn(3, 6)
    assert body.call_head.__self__ is body.head
    assert torch.equal(body(x), model(x))
    assert len(model.head._forward_hooks) == 1


def test_a_registered_buffer_is_the_models_as_it_was_registered():
    """What the head leaves is what the model would have left."""
    model = Base()
    shell(model).register_buffer("kept", torch.zeros(1), persistent=False)
    assert "kept" not in model.state_dict()
