"""What a trial leaves behind on a body: seen, and put back wherever all of it is seen."""

import contextlib
import gc
from collections import OrderedDict, defaultdict, deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import forethought as ft
from forethought.errors import NothingFrozenError, SplitError
from forethought.splitting.shell import shell
from forethought.splitting.untouched import State

FLAT = {
    "number": 1,
    "list": [1, 2],
    "dict": {"a": 1},
    "ordered": OrderedDict(a=1),
    "set": {1},
    "deque": deque([1]),
    "tuple": (1, (2, 3)),
    "nothing": None,
}
DEEP = {
    "list in a dict": {"a": [1]},
    "list in a tuple": ([1],),
    "list in a list": [[1]],
    "dict in a list": [{"a": 1}],
    "empty list in a dict": {"a": []},
    "default": defaultdict(list),
}


def _write(value):
    """Change a value in place, as deep inside as it goes; say whether that is possible."""
    if isinstance(value, tuple):
        return any(_write(part) for part in value)
    if isinstance(value, dict):
        inside = [part for part in value.values() if _write(part)]
        if not inside:
            value["new"] = object()
        return True
    if isinstance(value, list | deque):
        if not any(_write(part) for part in value):
            value.append(object())
        return True
    if isinstance(value, set):
        value.add(object())
        return True
    return False


def _body(values):
    model = nn.Sequential(nn.Linear(2, 2))
    for at, value in enumerate(values):
        setattr(model[0], f"held{at}", value)
    return shell(model)


@given(st.lists(st.sampled_from(sorted(FLAT)), max_size=4), st.data())
def test_what_is_seen_is_put_back(names, data):
    """Attributes set, deleted, added, and containers written into, are what they were: names, order, content."""
    body = _body([FLAT[name] for name in names])
    held = body[0].__dict__
    before = {name: value.copy() if hasattr(value, "copy") else value for name, value in held.items()}
    state = State(body)
    for at in range(len(names)):
        what = data.draw(st.sampled_from(["set", "write", "delete", "leave"]))
        if what == "set":
            held[f"held{at}"] = [object()]
        elif what == "write":
            _write(held[f"held{at}"])
        elif what == "delete":
            del held[f"held{at}"]
    if data.draw(st.booleans()):
        held["new"] = 5
    changed = state.changed()
    assert state.put_back(changed)
    assert held == before
    assert state.changed() == set()


@pytest.mark.parametrize("name", DEEP)
def test_what_is_not_seen_is_never_taken_as_put_back(name):
    """A container inside another, or of a kind that is not looked into, may hold what no list of names tells of."""
    body = _body([DEEP[name], 1])
    state = State(body)
    body[0].held1 = 2
    assert state.put_back(state.changed())
    body[0].held1 = 2
    assert _write(body[0].held0)
    assert not state.put_back(state.changed())


def test_buffers_that_were_set_are_not_put_back():
    """A shell shares them with its model: whoever ran it gives them back."""
    body = _body([1])
    state = State(body)
    body[0]._buffers["new"] = torch.zeros(1)
    assert not state.put_back(state.changed())


class Caching(nn.Module):
    """Keeps something in Python from one run to the next."""

    def __init__(self, keep):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.cache, self.nested, self.runs = {}, {"seen": []}, 0
        self.keep = keep

    def forward(self, x):
        RUNS.append(len(x))
        return self.head(self.keep(self, self.body(x)))


RUNS = []


def _cached_bias(model, h):
    if "bias" not in model.cache:
        model.cache["bias"] = torch.arange(4.0)
    return h + model.cache["bias"]


def _nested_list(model, h):
    model.runs += 1
    model.nested["seen"].append(len(h))
    return h * len(model.nested["seen"])


def _last_output(model, h):
    last, model.cache["last"] = model.cache.get("last", 0), h.detach().sum()
    return h + last


def _counter(model, h):
    model.runs += 1
    return h * model.runs


def _same_buffer(model, h):
    return h + model.cache.setdefault("made", torch.zeros(1)).add_(1)


def test_a_cache_costs_three_runs_more():
    """That the next run gives the same, and one after others, is seen on the two samples that were recorded."""
    model = ft.freeze(Caching(_cached_bias).eval(), until="body")
    RUNS.clear()
    x = torch.randn(2, 4)
    parts = ft.split(model, x)
    assert sorted(RUNS) == [2, 2, 2, 2, 2, 2, 3]
    assert model.cache == {}
    other = torch.randn(7, 4)
    assert torch.equal(parts.head(parts.trunk(other)), model(other))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("keep", [_nested_list, _last_output, _counter, _same_buffer])
def test_a_memory_in_python_is_refused(keep, batch):
    """A model whose next run gives something else is never split, whatever it remembers, and wherever."""
    model = ft.freeze(Caching(keep).eval(), until="body")
    with pytest.raises(SplitError):
        ft.split(model, torch.randn(batch, 4))
    assert (model.cache, model.nested, model.runs) == ({}, {"seen": []}, 0)


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_collector_of_cycles_is_as_it_was_after_a_split(is_on, fails):
    """A split leaves Python's collector on or off as it found it, also where it refuses."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[int(fails)].requires_grad_(False)  # without the first: nothing is frozen before what trains
    (gc.enable if is_on else gc.disable)()
    try:
        with pytest.raises(NothingFrozenError) if fails else contextlib.nullcontext():
            ft.split(model, torch.randn(3, 4))
        assert gc.isenabled() == is_on
    finally:
        gc.enable()
