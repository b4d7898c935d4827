"""`split` on models as users write them: the laws of replay, in evaluation and in training mode."""

import copy
import warnings

import odd_models
import pytest
import torch
from odd_models import Base
from odd_usage import USAGE
from odd_ways import WAYS
from torch import nn

import forethought as ft
from forethought.errors import ImpureTrunkError, ReplayDriftError, SplitError


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of what is used here a prototype
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in [*USAGE, *WAYS]])
def test_laws_of_the_split(case):
    """The halves give what the model gives, to the bit, with its gradients, and leave no trace."""
    odd_models.check(case, ft.split)


def test_a_head_that_begins_to_write_into_features_says_so():
    """What the recorded runs never wrote into is handed over as it is; another run that does must not be silent."""

    class Model(Base):
        careless = False

        def forward(self, x):
            h = self.body(x)
            return self.head(h.relu_() * 1 if self.careless and x.shape[0] > 4 else h)

    model = Model()
    model.careless = True
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(7, 6)
    with pytest.raises(ReplayDriftError, match="written in place"):
        parts.head(parts.trunk(x))


def test_features_keep_their_flags():
    """A forward that asks for gradients of what crosses does not set that on the stored tensors."""

    class Model(Base):
        def forward(self, x):
            return self.head(self.body(x).requires_grad_())

    parts = ft.split(Model(), torch.randn(3, 6))
    values = parts.trunk(torch.randn(5, 6))
    parts.head(values).sum().backward()
    assert not values.requires_grad
    assert values.grad is None


def test_gradients_reach_features_that_ask_for_them():
    model = nn.Sequential(odd_models.frozen(nn.Linear(6, 8)), nn.Linear(8, 3))
    parts = ft.split(model, torch.randn(3, 6))
    values = parts.trunk(torch.randn(5, 6)).requires_grad_()
    parts.head(values).sum().backward()
    assert torch.allclose(values.grad, model[1].weight.sum(0).expand(5, 8))


# State that the forward keeps ----------------------------------------------------------------------------------------


class Counts(Base):
    """Scales by how often it ran; where the count is kept is said by `keep`."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep
        if keep == "number":
            self.calls = 0
        elif keep == "tensor":
            self.calls = torch.zeros(())
        else:
            self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.keep == "replaced buffer":
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return self.head(self.body(x) * self.calls)


@pytest.mark.parametrize("keep", ["buffer", "replaced buffer", "tensor"])
def test_what_the_forward_changes_is_the_heads(keep):
    """Rows do not depend on how often the model ran; the head counts once a call, the trunk never."""
    model, x = Counts(keep), torch.randn(5, 6)
    twin = copy.deepcopy(model)
    parts = ft.split(model, torch.randn(3, 6))
    values = parts.trunk(x)
    for _ in range(3):
        assert torch.equal(parts.trunk(x), values)
        assert torch.equal(parts.head(values), twin(x))
    assert float(model.calls) == float(twin.calls) == 3


def test_a_frozen_layer_that_moves_by_itself_splits_but_gives_no_rows(tmp_path):
    """Spectral norm in training mode moves its estimate with every forward."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 3)).train()
    odd_models.frozen(model[0])
    data = torch.utils.data.TensorDataset(torch.randn(8, 6))
    with pytest.raises(ImpureTrunkError, match="weight_u"):
        ft.extract(model, data, tmp_path, batch_size=4)
    ft.extract(model.eval(), data, tmp_path, batch_size=4)


def test_a_count_that_python_keeps_is_refused_by_name():
    with pytest.raises(SplitError, match="calls"):
        ft.split(Counts("number"), torch.randn(3, 6))


@pytest.mark.parametrize("name", ["MaskedAutoencoder", "NoisyFeatures"])
def test_rows_that_chance_decides_are_refused(name, tmp_path):
    model = next(case for case in USAGE if case.name == name).make()
    data = torch.utils.data.TensorDataset(torch.randn(8, 6))
    with pytest.raises(ImpureTrunkError):
        ft.extract(model, data, tmp_path, batch_size=4)


def test_the_trunk_leaves_no_buffer_behind():
    case = next(case for case in odd_models.CASES if case.name == "RegistersMask")
    model = case.make()
    before = odd_models.traces(model)
    parts = ft.split(model, torch.randn(3, 6))
    before["torch random state"] = torch.get_rng_state().tolist()
    parts.trunk(torch.randn(5, 6))
    after = odd_models.traces(model) | {"torch random state": before["torch random state"]}
    odd_models.demand_untouched(before, after, "the trunk")


def test_a_frozen_value_left_as_a_buffer_is_a_copy():
    """What the model keeps must not be the memory of stored features."""

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(3, 8))

        def forward(self, x):
            h = self.body(x)
            self.last = h.detach()
            return self.head(h)

    model, x = Model(), torch.randn(5, 6)
    twin = copy.deepcopy(model)
    parts = ft.split(model, torch.randn(3, 6))
    values = parts.trunk(x)
    kept = values.clone()
    parts.head(values)
    twin(x)
    assert type(model.last) is torch.Tensor
    assert torch.equal(model.last, twin.last)
    model.last.zero_()
    assert torch.equal(values, kept)


@pytest.mark.parametrize("left", ["size", "tensor", "list", "number"])
def test_what_a_frozen_module_leaves_on_a_shared_object_is_of_this_batch(left):
    """A plain object that two modules hold carries values past the output; nothing of it stays on the user's object."""

    class Inner(nn.Module):
        def __init__(self, notes):
            super().__init__()
            self.net, self.notes = odd_models.frozen(nn.Linear(6, 8)), notes

        def forward(self, x):
            h = self.net(x)
            self.notes.log.append(len(x))
            self.notes.seen = {"size": len(x), "tensor": h.mean(1, keepdim=True), "number": float(h.max())}.get(left)
            return h

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.notes = odd_models.Notes()
            self.notes.log, self.notes.seen = [], 1
            self.body = Inner(self.notes)

        def forward(self, x):
            y = self.head(self.body(x))
            return y * (self.notes.log[-1] if left == "list" else self.notes.seen)

    model, x, y = Model(), torch.randn(4, 6), torch.randn(4, 6)
    notes, before = model.notes, copy.deepcopy(vars(model.notes))
    parts = ft.split(model, torch.randn(3, 6))
    values = [parts.trunk(x), parts.trunk(y)]
    mixed = [torch.cat(pair) for pair in zip(*[v if isinstance(v, tuple) else (v,) for v in values], strict=True)]
    got = parts.head(tuple(mixed)) if left != "number" else parts.head(parts.trunk(torch.cat([x, y])))
    assert vars(notes) == before
    assert torch.allclose(got, model(torch.cat([x, y])))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_that_has_not_run_is_refused():
    """Its weights have no shape yet, so nothing can be said of what trains."""
    model = nn.Sequential(odd_models.frozen(nn.Linear(6, 8)), nn.LazyLinear(3))
    with pytest.raises(SplitError, match=r"'1\.weight' of a lazy module.*model\(x\)"):
        ft.split(model, torch.randn(3, 6))
    model(torch.randn(3, 6))
    assert ft.split(model, torch.randn(3, 6)).head(torch.randn(3, 8)).shape == (3, 3)


class _Differs(Base):
    """Keeps the last features in a plain attribute, and looks at how far the next ones are from them."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        h = self.body(x)
        last, self.last = h if self.last is None else self.last, h.mean(0)
        return self.head(h - last)


class _Averages(Base):
    """Keeps a running mean in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.average = torch.zeros(8)

    def forward(self, x):
        h = self.body(x)
        self.average = 0.9 * self.average + 0.1 * h.mean(0)
        return self.head(h - self.average)


class _Remembers(Base):
    """Keeps the means of earlier batches in a list."""

    def __init__(self):
        super().__init__()
        self.means = []

    def forward(self, x):
        h = self.body(x)
        self.means = [*self.means, h.mean(0)][-3:]
        return self.head(h - torch.stack(self.means).mean(0))


class _Turns(Base):
    """Goes another way every second time."""

    def __init__(self):
        super().__init__()
        self.is_odd = False

    def forward(self, x):
        self.is_odd = not self.is_odd
        h = self.body(x)
        return self.head(h if self.is_odd else -h)


@pytest.mark.parametrize("kind", [_Differs, _Averages, _Remembers, _Turns])
def test_state_in_a_plain_attribute_is_refused_by_its_name(kind):
    """What a forward keeps in an attribute, and reads, is another thing in either half: the refusal names it."""
    model = kind()
    name = next(name for name in ("last", "average", "means", "is_odd") if hasattr(model, name))
    with pytest.raises(SplitError, match=rf"changes attributes that it reads \({name}\).*register_buffer"):
        ft.split(model, torch.randn(3, 6))


_PEAK = 1.0


def test_a_number_left_in_a_global_by_what_is_frozen_is_the_heads_own():
    """A number that a frozen module makes from values, for code outside it to read, belongs to the features given."""

    class Measures(nn.Module):
        def forward(self, x):
            global _PEAK
            _PEAK = float(x.max())
            return x * 2

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.measures = Measures()

        def forward(self, x):
            return self.head(self.measures(self.body(x))) / _PEAK

    model, x, y = Model(), torch.randn(5, 6), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    stored, _ = parts.trunk(x), parts.trunk(y)
    assert torch.equal(parts.head(stored), model(x))


_NOTES, _LIST = {}, [1.0]


class _Board:
    peak = 1.0

    def keep(self, peak):
        self.peak = peak


_BOARD = _Board()


def _note(x):
    _NOTES["peak"] = float(x.max())


class _LeavesInDict(nn.Module):
    def forward(self, x):
        _NOTES["peak"] = float(x.max())
        return x * 2

    def read(self):
        return _NOTES["peak"]


class _LeavesByHelper(_LeavesInDict):
    def forward(self, x):
        _note(x)
        return x * 2


class _LeavesInList(nn.Module):
    def forward(self, x):
        _LIST.append(float(x.max()))
        return x * 2

    def read(self):
        return _LIST[-1]


class _LeavesOnObject(nn.Module):
    def forward(self, x):
        setattr(_BOARD, "peak", float(x.max()))  # noqa: B010
        return x * 2

    def read(self):
        return _BOARD.peak


class _LeavesByMethod(_LeavesOnObject):
    def forward(self, x):
        _BOARD.keep(float(x.max()))
        return x * 2


class _LeavesInOwnDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.notes = {}

    def forward(self, x):
        self.notes["peak"] = float(x.max())
        return x * 2

    def read(self):
        return self.notes["peak"]


@pytest.mark.parametrize(
    "kind",
    [_LeavesInDict, _LeavesByHelper, _LeavesInList, _LeavesOnObject, _LeavesByMethod, _LeavesInOwnDict],
    ids=lambda kind: kind.__name__,
)
def test_a_number_left_anywhere_by_what_is_frozen_is_that_of_the_features_given(kind):
    """Wherever a frozen module leaves a number made from values, the head finds that of its own features."""

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.measures = kind()

        def forward(self, x):
            return self.head(self.measures(self.body(x))) / self.measures.read()

    model, x, y = Model(), torch.randn(5, 6), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    wanted, stored = model(x), parts.trunk(x)
    model(y)
    assert torch.equal(parts.head(stored), wanted)


class _Pair:
    def __init__(self, output, module):
        self.output, self.module = output, module


def test_modules_in_the_output_are_those_of_the_model():
    """A module, or a method of one, that a forward gives back is the user's own, not a copy; a copied head's is its."""

    class Model(Base):
        def forward(self, x):
            return {
                "y": self.head(self.body(x)),
                "parts": [self, self.body, self.head.forward],
                "o": _Pair(x, self.head),
            }

    model, x = Model(), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    given = parts.head(parts.trunk(x))
    assert given["parts"][:2] == [model, model.body]
    assert given["parts"][2].__self__ is model.head
    assert given["o"].module is model.head
    copied = copy.deepcopy(parts.head)
    assert copied(parts.trunk(x))["o"].module.weight is next(copied.parameters())
