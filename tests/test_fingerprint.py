"""The laws of a trunk's fingerprint: one for one computation, in every process, whatever surrounds it."""

import copy
import types
import warnings

import pytest
import torch
from odd_models import Net
from processes import printed
from torch import nn

import forethought as ft
from forethought.errors import SplitError
from forethought.identifying.fingerprint import state_of

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def told(model, x=X, **options):
    return ft.split(model, x, **options).trunk.fingerprint


def made(source, **names):
    user = types.ModuleType("user_code")
    vars(user).update(Net=Net, torch=torch, nn=nn, **names)
    exec(source, vars(user))
    return user.M()


def test_a_fingerprint_is_hex_and_stays():
    split = ft.split(Net(), X)
    assert len(split.trunk.fingerprint) == 32
    assert int(split.trunk.fingerprint, 16) >= 0
    assert split.trunk.fingerprint == split.trunk.fingerprint == told(Net())
    split.trunk(X)
    split.head(split.trunk(X)).sum().backward()
    assert split.trunk.fingerprint == told(Net())


@pytest.mark.parametrize(
    "same",
    [
        lambda: told(Net(classes=7)),
        lambda: told(copy.deepcopy(Net())),
        lambda: told(nn.Sequential(Net())),
        lambda: told(Net(), X[:2]),
        lambda: told(Net(), X[:1]),
        lambda: told(Net(), X * 3),
        lambda: told(Net(), X.flip(0)),
        lambda: told(Net(), X.clone().requires_grad_(True)),
        lambda: told(made("class M(Net):\n  'Says more.'\n  pass")),
        lambda: told(made("class M(Net):\n  def forward(self, y):  # a comment\n    return super().forward(y)")),
        lambda: told(
            made(
                "class M(Net):\n  def forward(self, x):\n    s = self\n    f = s.act(s.norm(s.layer(x)) * 2.0 + s.shift)\n    return s.head(f).relu()"
            )
        ),
    ],
)
def test_what_does_not_change_the_computation_does_not_change_it(same):
    assert same() == told(Net())


def trained_head():
    net = Net()
    net.head.weight.data.add_(1)
    return net


def other_head():
    net = Net()
    net.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 9))
    return net


@pytest.mark.parametrize("make", [trained_head, other_head])
def test_the_head_does_not_count(make):
    net = make()
    before = told(net)
    net(X)
    assert before == told(net) == told(Net())


def changed(change):
    net = Net()
    change(net)
    return told(net)


CHANGES = {
    "one ulp": lambda net: net.layer.weight.data[0].copy_(torch.nextafter(net.layer.weight.data[0], torch.tensor(9.0))),
    "bias": lambda net: net.layer.bias.data.neg_(),
    "running mean": lambda net: net.norm.running_mean.add_(1),
    "eps": lambda net: setattr(net.norm, "eps", 1e-4),
    "number": lambda net: setattr(net, "scale", 2.0000000000000004),
    "type of a number": lambda net: setattr(net, "scale", 2),
    "option of a layer": lambda net: setattr(net, "act", nn.LeakyReLU(0.1)),
    "no bias": lambda net: setattr(net.layer, "bias", None),
    "hook": lambda net: net.layer.register_forward_hook(lambda m, a, out: out * 2) and None,
    "frozen farther": lambda net: net.head.requires_grad_(False),
    "sign of a zero": lambda net: net.norm.running_mean.neg_(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_computation_changes_it(name):
    assert changed(CHANGES[name]) != told(Net())


def test_no_two_changes_agree():
    every = [changed(change) for change in CHANGES.values()]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("self.layer(x) - x.sum(1, True)", "x.sum(1, True) - self.layer(x)"),
        ("self.layer(x).relu().tanh()", "self.layer(x).tanh().relu()"),
        ("self.layer(x).sum(1, True).expand(-1, 8)", "self.layer(x).mean(1, True).expand(-1, 8)"),
        ("self.layer(x).roll(1, 1)", "self.layer(x).roll(2, 1)"),
        ("self.layer(x)[:, [1, 0, 2, 3, 4, 5, 6, 7]]", "self.layer(x)[:, [0, 1, 2, 3, 4, 5, 6, 7]]"),
        ("self.layer(x).clamp(min=0.1)", "self.layer(x).clamp(max=0.1)"),
        ("self.layer(x) * torch.arange(8)", "self.layer(x) * torch.arange(8, 0, -1)"),
        ("self.layer(x).half().float()", "self.layer(x).bfloat16().float()"),
        ("torch.where(self.layer(x) > 0, 1.0, 2.0).cumsum(1)", "torch.where(self.layer(x) > 0, 2.0, 1.0).cumsum(1)"),
        ("self.layer(x).mul_(2)", "self.layer(x).add_(2)"),
        ("self.layer(x)[:, 1:].repeat(1, 2)[:, :8]", "self.layer(x)[:, :-1].repeat(1, 2)[:, :8]"),
        ("self.layer(x).flip(1).flip(1)", "self.layer(x).flip(1)"),
        ("self.layer(x.flip(1))", "self.layer(x)"),
        ("torch.cat([self.layer(x)[:, :4], x], 1)", "torch.cat([x, self.layer(x)[:, :4]], 1)"),
        ("self.layer(x) ** 2", "2 ** self.layer(x)"),
        (
            "self.layer(x).view(-1, 2, 4).transpose(1, 2).flatten(1)",
            "self.layer(x).view(-1, 4, 2).transpose(1, 2).flatten(1)",
        ),
    ],
)
def test_two_computations_have_two_fingerprints(a, b):
    text = "class M(Net):\n  def forward(self, x):\n    return self.head({})"
    assert told(made(text.format(a))) != told(made(text.format(b)))
    assert told(made(text.format(a))) == told(made(text.format(a)))


def test_where_it_is_cut_counts():
    assert told(Net(), at="layer") != told(Net()) != told(Net(), at="norm")


def test_the_form_of_a_sample_counts():
    model = nn.Sequential(nn.Flatten(1), nn.Linear(4, 2).requires_grad_(False), nn.Linear(2, 2))
    assert told(model, torch.zeros(3, 4)) != told(model, torch.zeros(3, 2, 2))


def test_the_numeric_state_counts():
    before = torch.get_float32_matmul_precision()
    here = told(Net())
    try:
        torch.set_float32_matmul_precision("high" if before != "high" else "medium")
        assert told(Net()) != here
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", torch.bfloat16):
        assert told(Net()) != here
    assert told(Net().double(), X.double()) != here
    assert told(Net()) == here


LATER = {
    "weight": lambda net: net.layer.weight.data.add_(1),
    "buffer": lambda net: net.norm.running_var.mul_(2),
    "eps": lambda net: setattr(net.norm, "eps", 0.5),
    "number": lambda net: setattr(net, "scale", 5.0),
    "parameter": lambda net: setattr(net.layer, "weight", nn.Parameter(net.layer.weight * 2, requires_grad=False)),
    "mode": lambda net: net.norm.train(),
    "assigned state": lambda net: net.layer.load_state_dict(
        {name: 2 * value for name, value in net.layer.state_dict().items()}, assign=True
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_a_split_sees_what_changes_after_it_was_made(name):
    net = Net()
    split = ft.split(net, X)
    before = split.trunk.fingerprint
    LATER[name](net)
    assert split.trunk.fingerprint != before


def test_a_split_does_not_tell_what_another_layer_computes():
    """A module put in place of another makes another split: there is no fingerprint of the old one, and it says so."""
    net = Net()
    split = ft.split(net, X)
    net.act = nn.GELU()
    with pytest.raises(SplitError, match="Split it again"):
        _ = split.trunk.fingerprint


def test_scripted_code_is_told_by_its_state():
    def model(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), torch.nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 2))

    a, b = model(0), model(1)
    for each in (a, b):
        each[0].requires_grad_(False)
        each[1].requires_grad_(False)
    assert told(a) != told(b)


def test_python_that_reads_a_frozen_value_inside_a_module_is_told_by_its_code():
    text = (
        "class Branch(nn.Module):\n"
        "  def forward(self, h):\n"
        "    return h * 2 if float(h.detach().abs().sum()) > -1 else h * {}\n"
        "class M(Net):\n"
        "  def __init__(self):\n    super().__init__(); self.branch = Branch()\n"
        "  def forward(self, x): return self.head(self.branch(self.layer(x)))"
    )
    assert told(made(text.format(3))) != told(made(text.format(4)))


PROGRAM = """
import sys, torch
from torch import nn
import forethought as ft
from forethought.identifying.fingerprint import state_of
class M(nn.Module):
    kinds = {"a", "b", "c"}
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), pool)
        self.trunk.eval().requires_grad_(False)
        self.names, self.head = {"x": {"p", "q", "r"}}, nn.Linear(4, 2)
    def forward(self, x):
        scale = 2 if "p" in self.names["x"] and x.ndim in {3, 4, 5} else 3
        return self.head(self.trunk(x) * scale)
model = M()
print(ft.split(model, torch.randn(2, 3, 8, 8)).trunk.fingerprint, state_of(model, "cpu"))
"""


@pytest.mark.slow
def test_fingerprints_agree_between_processes_and_hash_seeds():
    first, second = printed(PROGRAM, seeds=(3, 99))
    assert len(first.split()) == 2
    assert first == second


def test_the_key_of_a_model_leaves_out_what_trains_and_nothing_else():
    def key(net):
        return state_of(net, "cpu")

    assert key(Net()) == key(Net()) == key(trained_head())
    net = Net()
    net.layer.weight.data[0, 0] += 1
    assert key(net) != key(Net())
    assert key(Net().train()) != key(Net())
    thawed = Net()
    thawed.layer.requires_grad_(True)
    assert key(thawed) != key(Net())


def test_a_gradient_and_a_run_do_not_change_the_key():
    net = Net()
    before = state_of(net, "cpu")
    net(X).sum().backward()
    net.zero_grad(set_to_none=False)
    ft.split(net, X)
    assert state_of(net, "cpu") == before


class Scripted(nn.Module):
    """Reads a number, a list and its mode, with code of its own."""

    def __init__(self, gain=1.0, steps=(1.0, 2.0)):
        super().__init__()
        self.net, self.gain, self.steps = nn.Linear(4, 4), gain, list(steps)

    def forward(self, x):
        return self.net(x) * self.gain + self.steps[1]


class ScriptedOtherwise(Scripted):
    def forward(self, x):
        return self.net(x) * self.gain - self.steps[1]


def _of_script(inner, edit=lambda scripted: None):
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(inner().requires_grad_(False))
    edit(scripted)
    return ft.split(nn.Sequential(scripted, nn.Linear(4, 2)), torch.ones(3, 4)).trunk.fingerprint


def _one_ulp(scripted):
    weight = scripted.net.weight.data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


@pytest.mark.parametrize(
    "other",
    [
        (Scripted, _one_ulp),
        (lambda: Scripted(gain=2.0),),
        (lambda: Scripted(steps=(1.0, 3.0)),),
        (ScriptedOtherwise,),
    ],
    ids=["one ulp", "number", "list", "code"],
)
def test_what_a_scripted_module_computes_is_seen(other):
    """Function modes do not see inside: its code, weights and attributes stand for it."""
    assert _of_script(Scripted) == _of_script(Scripted)
    assert _of_script(*other) != _of_script(Scripted)


def test_a_trunk_inside_another_model_counts():
    def build(scale):
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
        inner[0].weight.data.mul_(scale)
        trunk = ft.split(inner, torch.ones(3, 4)).trunk
        model = nn.Sequential(trunk, nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))
        return ft.split(model, torch.ones(3, 4)).trunk.fingerprint

    assert build(1.0) == build(1.0)
    assert build(1.0) != build(2.0)
