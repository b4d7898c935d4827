"""Tensors inside nested values: listing and replacing agree, the original stays, and what holds no tensor is shared."""

import collections
import copy
import dataclasses
import enum
import types
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from forethought import nesting
from forethought.errors import SplitError

torch.set_num_threads(1)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Record:
    first: Any
    second: Any = None


@dataclasses.dataclass(frozen=True)
class Sealed:
    first: Any
    second: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    first: Any
    second: Any = None


class Plain:
    def __init__(self, first, second=None):
        self.first = first
        self.second = second


class ReadOnly:
    def __init__(self, first, second=None):
        self.__dict__.update(first=first, second=second)

    def __setattr__(self, name, value):
        raise AttributeError(name)


class NamedList(list):
    pass


class Boxed(tuple):
    """A tuple that is not built from an iterable."""

    def __new__(cls, left, right):
        return super().__new__(cls, (left, right))


class Rows(collections.abc.Sequence):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, at):
        return self.rows[at]


class Lookup(collections.abc.Mapping):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def __getitem__(self, key):
        return self.rows[key]


class Shelf(Lookup, collections.abc.MutableMapping):
    def __setitem__(self, key, item):
        self.rows[key] = item

    def __delitem__(self, key):
        del self.rows[key]


class Stamped(Lookup):
    def __init__(self, stamp, rows):
        super().__init__(rows)


class Halving(Rows):
    def __init__(self, rows):
        super().__init__(rows[: (len(rows) + 1) // 2])


class Colour(enum.Enum):
    RED = 1


# Each makes a container of two values, and takes the two out again.
CONTAINERS = {
    "tuple": (lambda a, b: (a, b), lambda v: [*v]),
    "list": (lambda a, b: [a, b], lambda v: [*v]),
    "dict": (lambda a, b: {"a": a, 1: b}, lambda v: [*v.values()]),
    "ordered": (lambda a, b: collections.OrderedDict(a=a, b=b), lambda v: [*v.values()]),
    "default": (lambda a, b: collections.defaultdict(list, a=a, b=b), lambda v: [*v.values()]),
    "userdict": (lambda a, b: collections.UserDict(a=a, b=b), lambda v: [*v.values()]),
    "named list": (lambda a, b: NamedList([a, b]), lambda v: [*v]),
    "named tuple": (Pair, lambda v: [v.left, v.right]),
    "dataclass": (Record, lambda v: [v.first, v.second]),
    "frozen dataclass": (Sealed, lambda v: [v.first, v.second]),
    "object": (Plain, lambda v: [v.first, v.second]),
    "read-only object": (ReadOnly, lambda v: [v.first, v.second]),
}
every_container = pytest.mark.parametrize("kind", CONTAINERS)

plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3), st.binary(max_size=3),
    st.sampled_from([torch.float16, torch.device("cpu"), torch.Size([2, 3]), range(3), ..., Colour.RED, nn.ReLU]),
)  # fmt: skip
numbers = st.integers(0, 1000).map(float)
values = st.recursive(
    st.one_of(numbers.map(torch.tensor), plain),
    lambda inner: st.builds(
        lambda kind, a, b: CONTAINERS[kind][0](a, b), st.sampled_from(sorted(CONTAINERS)), inner, inner
    ),
    max_leaves=12,
)
without_tensors = st.recursive(
    plain,
    lambda inner: st.builds(
        lambda kind, a, b: CONTAINERS[kind][0](a, b), st.sampled_from(sorted(CONTAINERS)), inner, inner
    ),
    max_leaves=8,
)


def described(value):
    """A value as nested lists that compare with ==, types included, tensors as their numbers."""
    if isinstance(value, torch.Tensor):
        return ["tensor", value.item()]
    for kind, (make, parts) in CONTAINERS.items():
        if type(value) is type(make(0, 0)):
            return [kind, *map(described, parts(value))]
    return [repr(value)]


# --------------------------------------------------------------------------------------------------- laws


@given(values)
def test_replacing_by_itself_changes_nothing(value):
    """Replacing each tensor by itself gives an equal value of the same types."""
    assert described(nesting.replace(value, lambda tensor: tensor)) == described(value)


@given(values)
def test_replace_visits_in_the_order_of_tensors(value):
    """`new` is called once for each tensor that `tensors` lists, in that order."""
    seen = []
    nesting.replace(value, lambda tensor: seen.append(tensor) or tensor)
    listed = nesting.tensors(value)
    assert len(seen) == len(listed)
    assert all(a is b for a, b in zip(seen, listed, strict=True))


@given(values)
def test_replacing_back_undoes_replacing(value):
    """Tensors out, positions in, tensors back in: the same value, with the very same tensors."""
    before = described(value)
    listed = nesting.tensors(value)
    count = iter(range(len(listed)))
    template = nesting.replace(value, lambda _: Position(next(count)))
    assert nesting.tensors(template) == []
    assert len(nesting.tensors(template, Position)) == len(listed)
    again = nesting.replace(template, lambda position: listed[position.at], Position)
    assert described(again) == before
    assert all(a is b for a, b in zip(nesting.tensors(again), listed, strict=True))
    assert described(value) == before  # the original was not touched on the way


@dataclasses.dataclass(frozen=True)
class Position:
    at: int


@given(without_tensors)
def test_replace_shares_what_holds_no_tensor(value):
    """A value without tensors comes back equal, and nothing is put in."""
    again = nesting.replace(value, lambda _: pytest.fail("called"))
    assert nesting.tensors(value) == []
    assert described(again) == described(value)


@pytest.mark.parametrize(
    "kind",
    list(CONTAINERS),
)
def test_replace_gives_back_the_same_object_if_it_holds_no_tensor(kind):
    """ "Anything that holds no tensor is left as it is, the same object.\""""
    value = CONTAINERS[kind][0](1, "b")
    assert nesting.replace(value, torch.clone) is value


def test_replace_gives_back_the_same_slice_if_it_holds_no_tensor():
    """A slice of numbers comes back equal."""
    assert nesting.replace(slice(1, 5, 2), torch.clone) == slice(1, 5, 2)


@every_container
def test_replace_copies_a_container_with_a_tensor_and_shares_the_rest(kind):
    """The container is new, what is beside the tensor is the same object, the original keeps its tensor."""
    make, parts = CONTAINERS[kind]
    tensor, beside = torch.tensor(1.0), [1, 2]
    value = make(tensor, beside)
    again = nesting.replace(value, lambda t: t + 1)
    assert type(again) is type(value)
    assert again is not value
    assert parts(value)[0] is tensor
    assert parts(again)[0].item() == 2.0
    assert parts(again)[1] is beside


@every_container
@settings(deadline=None)
@given(number=numbers)
def test_tensors_of_another_kind_are_found(kind, number):
    """`kind` may be any class; tensors are then left alone."""
    value = CONTAINERS[kind][0](Position(3), torch.tensor(number))
    assert nesting.tensors(value, Position) == [Position(3)]
    again = nesting.replace(value, lambda position: position.at, Position)
    assert CONTAINERS[kind][1](again)[0] == 3


# ------------------------------------------------------------------------------------- values of torch and others


def test_slices_with_tensors():
    """A tensor as the end of a slice is a tensor inside."""
    value = slice(torch.tensor(1), torch.tensor(3), None)
    assert len(nesting.tensors(value)) == 2
    assert nesting.replace((value, ...), lambda t: int(t)) == (slice(1, 3, None), ...)


def test_torch_return_types():
    """`torch.max(x, 1)` gives a struct sequence, which stays one."""
    value = torch.tensor([[1.0, 3.0]]).max(1)
    again = nesting.replace(value, lambda t: t * 2)
    assert type(again) is type(value)
    assert again.values.item() == 6.0
    assert again.indices.item() == 2


def packed():
    return nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.zeros(2, 2)])


def test_packed_sequences_are_rebuilt():
    """A PackedSequence stays one."""
    again = nesting.replace(packed(), torch.clone)
    assert isinstance(again, nn.utils.rnn.PackedSequence)
    assert torch.equal(again.data, packed().data)
    assert torch.equal(again.batch_sizes, packed().batch_sizes)


def test_packed_sequences_take_positions():
    """Positions can stand in a PackedSequence, as `split` does with every result."""
    listed = nesting.tensors(packed())
    count = iter(range(len(listed)))
    template = nesting.replace(packed(), lambda _: Position(next(count)))
    again = nesting.replace(template, lambda position: listed[position.at], Position)
    assert torch.equal(again.data, packed().data)


def test_model_outputs_keep_attributes_and_keys_in_step():
    """A transformers ModelOutput is a dict and a dataclass at once; both show the new tensor."""
    outputs = pytest.importorskip("transformers.modeling_outputs")
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    value = outputs.BaseModelOutput(last_hidden_state=one, hidden_states=(one, two))
    again = nesting.replace(value, lambda t: t + 10)
    assert type(again) is type(value)
    assert again.last_hidden_state is again["last_hidden_state"] is again[0]
    assert again.last_hidden_state.item() == 11.0
    assert [t.item() for t in again.hidden_states] == [11.0, 12.0]
    assert value.last_hidden_state is value["last_hidden_state"] is one
    assert list(again) == list(value)


def test_batch_encodings_are_rebuilt():
    """A tokenizer's output is a UserDict with more attributes."""
    transformers = pytest.importorskip("transformers")
    value = transformers.BatchEncoding({"ids": torch.tensor([1, 2])})
    again = nesting.replace(value, lambda t: t + 1)
    assert type(again) is type(value)
    assert again["ids"].tolist() == [2, 3]
    assert value["ids"].tolist() == [1, 2]


def test_modules_functions_and_classes_are_leaves():
    """What a module holds is not part of the value that holds the module."""
    layer = nn.Linear(2, 2)
    for leaf in (layer, torch.add, Record, copy, "text", b"bytes", torch.Size([1])):
        assert nesting.tensors([leaf]) == []
        assert nesting.replace([leaf, torch.ones(1)], torch.clone)[0] is leaf


def test_parameters_and_subclasses_are_tensors():
    """A Parameter is a tensor."""
    parameter = nn.Parameter(torch.ones(2))
    assert nesting.tensors({"p": parameter})[0] is parameter


def test_one_tensor_in_two_places_is_listed_twice():
    """Positions number places, not tensors."""
    tensor = torch.ones(1)
    assert len(nesting.tensors([tensor, (tensor,), {"again": tensor}])) == 3


SHARED = ["object", "dataclass", "frozen dataclass", "ordered", "userdict", "named list", "named tuple"]


@pytest.mark.parametrize("kind", SHARED)
def test_one_container_in_two_places_is_gone_through_twice_or_once_by_both(kind):
    """`tensors` and `replace` agree when the same object stands in two places, as in model(state, state)."""
    inner = CONTAINERS[kind][0](torch.ones(1), 2)
    seen = []
    nesting.replace([inner, inner], lambda tensor: seen.append(tensor) or tensor)
    assert len(seen) == len(nesting.tensors([inner, inner]))


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_one_plain_container_in_two_places_is_gone_through_twice(kind):
    """`tensors` and `replace` agree for the builtin containers."""
    inner = CONTAINERS[kind][0](torch.ones(1), 2)
    seen = []
    nesting.replace([inner, inner], lambda tensor: seen.append(tensor) or tensor)
    assert len(seen) == len(nesting.tensors([inner, inner])) == 2


def cycle_of_objects():
    value = Plain(torch.ones(1))
    value.second = value
    return value


def cycle_of_lists():
    value = [torch.ones(1)]
    value.append(value)
    return value


def cycle_of_dicts():
    value = {"a": torch.ones(1)}
    value["b"] = value
    return value


def test_tensors_ends_on_a_cycle_of_objects():
    """An object that knows itself is gone through once."""
    assert len(nesting.tensors(cycle_of_objects())) == 1


@pytest.mark.parametrize("make", [cycle_of_lists, cycle_of_dicts])
def test_tensors_ends_on_a_cycle_of_builtins(make):
    """A list or dict that holds itself is gone through once."""
    assert len(nesting.tensors(make())) == 1


@pytest.mark.parametrize("make", [cycle_of_objects, cycle_of_lists, cycle_of_dicts])
def test_replace_ends_on_a_cycle(make):
    """A value that holds itself, and tensors, is refused with an error that says so: no later look at it would end."""
    with pytest.raises(SplitError, match="holds itself"):
        nesting.replace(make(), torch.clone)


def test_replace_leaves_a_cycle_without_tensors():
    """What holds no tensor stays the same object, a value that holds itself too."""
    value = [1]
    value.append(value)
    assert nesting.replace(value, torch.clone) is value


def test_deep_nesting_is_gone_through():
    """Two hundred levels, as recursive models return, are no problem."""
    value = torch.ones(1)
    for _ in range(200):
        value = (value,)
    assert len(nesting.tensors(nesting.replace(value, torch.clone))) == 1


# ------------------------------------------------------------------------------------------------- rarer containers


@pytest.mark.parametrize(
    ("make", "out"),
    [
        pytest.param(lambda t: collections.deque([t], maxlen=3), lambda v: v[0], id="deque"),
        pytest.param(lambda t: collections.UserList([t]), lambda v: v[0], id="UserList"),
        pytest.param(lambda t: Rows([t]), lambda v: v[0], id="a Sequence of one's own"),
        pytest.param(lambda t: Lookup({"a": t}), lambda v: v["a"], id="a Mapping of one's own"),
        pytest.param(lambda t: types.MappingProxyType({"a": t}), lambda v: v["a"], id="mappingproxy"),
        pytest.param(lambda t: Boxed(t, 1), lambda v: v[0], id="tuple with its own constructor"),
        pytest.param(lambda t: Shelf({"a": t}), lambda v: v["a"], id="a MutableMapping of one's own"),
        pytest.param(lambda t: torch.max(t[None], 0), lambda v: v.values, id="what torch returns"),
    ],
)
def test_replace_rebuilds_rarer_containers(make, out):
    """Whatever `tensors` looks into, `replace` can rebuild, and the original stays as it was."""
    value = make(torch.ones(1))
    count = len(nesting.tensors(value))
    again = nesting.replace(value, lambda t: t + 1)
    assert type(again) is type(value)
    assert len(nesting.tensors(again)) == count
    assert (out(again).item(), out(value).item()) == (2.0, 1.0)


@pytest.mark.parametrize("value", [lambda t: Stamped(1, {"a": t}), lambda t: Halving([t, t, t])])
def test_replace_refuses_what_it_cannot_rebuild(value):
    """A class whose constructor takes other things, or keeps less than it is given, is refused by name."""
    with pytest.raises(SplitError, match=r"Cannot rebuild a (Stamped|Halving)"):
        nesting.replace(value(torch.ones(1)), torch.clone)


def test_tensors_in_slots_are_found():
    """A dataclass with slots holds tensors like any other."""
    assert len(nesting.tensors(Slotted(torch.ones(1)))) == 1


# ------------------------------------------------------------------------------------------------------- is_plain


@given(values.filter(lambda value: not isinstance(value, type)))
def test_is_plain_hides_nothing(value):
    """What is plain shows all that it holds: emptied of tensors, none is found by copying it."""
    if nesting.is_plain(value):
        assert "object" not in str(described(value))


@pytest.mark.parametrize("value", [object(), Plain(1), {torch.ones(1)}, iter([1]), lambda: 1, nn.ReLU(), [Plain(1)]])
def test_is_plain_refuses_what_could_hide_a_tensor(value):
    """Objects, sets, iterators, functions and modules are not plain."""
    assert not nesting.is_plain(value)


@pytest.mark.parametrize("kind", [kind for kind in CONTAINERS if "object" not in kind])
def test_is_plain_accepts_containers_of_constants(kind):
    """Containers of tensors and constants are plain."""
    assert nesting.is_plain(CONTAINERS[kind][0](torch.ones(1), 2))


def test_is_plain_refuses_a_slotted_dataclass_that_hides_an_object():
    """Slots hide nothing."""
    assert not nesting.is_plain(Slotted(Plain(torch.ones(1))))
