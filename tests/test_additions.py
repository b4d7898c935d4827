"""What somebody puts onto a value of a known kind, and a class made from such a kind, is part of its identity."""

import collections
import enum
import functools
import pathlib
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import forethought as ft
from forethought.errors import IdentityError
from forethought.identifying.additions import additions, additions_to_enum
from forethought.identifying.identity import Digest


class Timed:
    """A decorator that is a class, with a setting of its own."""

    def __init__(self, function, times):
        self.function, self.times = function, times
        functools.update_wrapper(self, function)

    def __call__(self, x):
        return self.function(x) * self.times


class Attributed(functools.partial):
    """A partial function with a setting of its own."""

    def __call__(self, x):
        return super().__call__(x) * self.times


class Tagged(type(pathlib.Path())):
    """A path with an attribute."""


class Slotted(list):
    __slots__ = ("times",)


class SlottedModule(nn.Module):
    __slots__ = ("times",)


class Scaled(property):
    """A property with a setting of its own."""


class Owner:
    pass


OWNER = Owner()


class Reference(weakref.ref):
    """A reference with an attribute."""


def noted(value, times):
    value.times = times
    return value


def holder(item):
    return type("Holder", (), {"item": item})()


def method(times):
    return (lambda self, x: x * 2) if times == 2 else (lambda self, x: x * 3)


def mode(times):
    """A member of an enumeration of one name and value, whose code differs."""
    made = enum.Enum("Mode", {"A": 1}, module="anywhere")
    made.apply = method(times)
    return made.A


VALUES = {
    "class decorator": lambda times: Timed(torch.tanh, times),
    "class decorator, code": lambda times: type("Deco", (Timed,), {"__call__": method(times)})(torch.tanh, 1),
    "partial, attribute": lambda times: noted(functools.partial(torch.tanh), times),
    "partial of a class": lambda times: noted(Attributed(torch.tanh), times),
    "partial, code": lambda times: type("Part", (functools.partial,), {"__call__": method(times)})(torch.tanh),
    "property, attribute": lambda times: holder(noted(Scaled(len), times)),
    "property, code": lambda times: holder(type("Made", (property,), {"__get__": method(times)})(len)),
    "cached property, code": lambda times: holder(
        type("Made", (functools.cached_property,), {"__get__": method(times)})(len)
    ),
    "static method, code": lambda times: holder(type("Made", (staticmethod,), {"__get__": method(times)})(len)),
    "cached function, attribute": lambda times: noted(functools.cache(torch.tanh), times),
    "enumeration, code": mode,
    "enumeration, attribute": lambda times: noted(enum.Enum("Mode", {"A": 1}).A, times),
    "path, attribute": lambda times: noted(Tagged("/a"), times),
    "reference, attribute": lambda times: noted(Reference(OWNER), times),
    "tensor, attribute": lambda times: [noted(torch.ones(2), times)],
    "parameter, attribute": lambda times: noted_module(times),
}


def noted_module(times):
    made = nn.Linear(2, 2, bias=False)
    nn.init.ones_(made.weight)
    made.weight.times = times
    return made


@pytest.mark.parametrize("kind", VALUES)
def test_what_was_added_to_a_value_counts(kind):
    """Two values that differ only in what somebody added to them have two identities; two equal ones have one."""
    make = VALUES[kind]
    two, three = make(2), make(3)
    assert Digest().add(two).hex() != Digest().add(three).hex()
    assert Digest().add(two).hex() == Digest().add(make(2)).hex()


@pytest.mark.parametrize("kind", [Slotted, SlottedModule])
def test_what_lies_in_slots_of_a_user_s_class_is_refused(kind):
    """Nobody sees it there."""
    with pytest.raises(IdentityError, match="does not show its content"):
        Digest().add(noted(kind(), 2))


def test_nothing_is_added_to_plain_values():
    """So identities that were stored before hold, and notes of libraries on tensors are none."""
    from torchvision.transforms import InterpolationMode

    assert additions(functools.partial(len), functools.partial) == []
    assert additions(pathlib.Path("/a")) == []
    assert additions(weakref.ref(OWNER), weakref.ref) == []
    assert additions(staticmethod(test_nothing_is_added_to_plain_values), staticmethod) == []
    assert additions_to_enum(InterpolationMode.BILINEAR) == []
    noted_by_library = torch.ones(2)
    noted_by_library._is_hf_initialized = True
    assert Digest().add([noted_by_library]).hex() == Digest().add([torch.ones(2)]).hex()
    assert isinstance(Digest().add(collections.Counter(a=1)).hex(), str)


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2)
        self.activation = activation

    def features(self, x):
        return self.activation(self.body(x))

    def forward(self, x):
        return self.head(self.features(x))


class Gained(Net):
    def features(self, x):
        return self.body(x) * self.body.weight.times


CHANGED = {
    "class decorator": (lambda: Net(Timed(torch.tanh, 2)), lambda net: noted(net.activation, 3)),
    "partial of a class": (lambda: Net(noted(Attributed(torch.tanh), 2)), lambda net: noted(net.activation, 3)),
    "weight, attribute": (lambda: noted_weight(Gained(None), 2), lambda net: noted_weight(net, 3)),
}


def noted_weight(net, times):
    noted(net.body.weight, times)
    return net


@pytest.mark.parametrize("kind", CHANGED)
def test_what_was_added_in_a_model_changes_its_rows(tmp_path, kind):
    """The store does not know the model again, and serves rows of the model as it is."""
    make, change = CHANGED[kind]
    net, data = make(), torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    assert ft.extract(net, data, tmp_path, progress=False).report.rows_computed == 10
    assert ft.extract(net, data, tmp_path, progress=False).report.rows_computed == 0
    change(net)
    again = ft.extract(net, data, tmp_path, progress=False)
    assert again.report.rows_computed == 10
    assert torch.equal(torch.tensor(again.numpy()), net.features(data))


class Settings:
    """Attributes from a dictionary, as many write them: what is not there is a KeyError."""

    def __init__(self):
        self.held = {"times": 2}

    def __getattr__(self, name):
        return self.held[name] if name != "held" else super().__getattribute__(name)


class Set(Dataset):
    def __init__(self):
        self.settings = Settings()

    def __len__(self):
        return 10

    def __getitem__(self, at):
        return torch.full((4,), float(at)) * self.settings.times


def test_objects_whose_getattr_fails_are_looked_at_without_it(tmp_path):
    """No code of an object runs to see whether it is one of a known kind."""
    first = ft.extract(Net(torch.tanh), Set(), tmp_path, progress=False)
    assert first.report.rows == 10
    assert isinstance(Digest().add(Settings()).hex(), str)
