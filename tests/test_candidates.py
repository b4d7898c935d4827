"""What is foretold of other cuts from one recording is what a split at each of them finds."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_models import CASES, Base
from torch import nn

import forethought as ft
from forethought.errors import ForethoughtError
from forethought.splitting.candidates import Candidate, distinct, find_candidates, within

torch.set_num_threads(1)

# Where these are cut, other kernels run than where they are whole, or code that cannot be seen: the split is refused.
REFUSED = {
    "DataWrites": {"body", "body.2"},
    "FrozenViewWritten": {"body", "body.2"},
    "NumpyInsideFrozen": {"body.net"},
    "SharedNotes": {"body", "body.0", "body.1", "body.2"},
}
FAST_PATH = ("Transformer", "TokenIds")


def foretold(split, times_s=None):
    plan = split.plan
    return find_candidates(plan.recording, plan.larger, plan.batch, plan.more, times_s)


def crossing(tensors):
    """What a split says of its frontier, in any order."""
    return sorted((t.name, t.shape, t.row_axis, t.size_bytes, str(t.dtype)) for t in tensors)


def agree(split, args, kwargs=None, every=1, may_refuse=lambda path: False):
    """Split at every candidate, or at every few, and compare; give how many were compared."""
    compared = 0
    for one in distinct(foretold(split))[::every]:
        try:
            actual = ft.split(split.model, args, kwargs, at=one.path).frontier
        except ForethoughtError:
            assert may_refuse(one.path), one.path
            continue
        if split.plan.larger is None:  # recorded for one number of samples: nothing tells rows
            assert one.size_bytes is None
            continue
        if len(actual) > len(one.tensors):  # what Python asks the size of crosses, too, where values decide it
            assert {t.name for t in one.tensors} <= {t.name for t in actual}
            continue
        assert crossing(actual) == crossing(one.tensors), one.path
        rows = all(t.row_axis is not None for t in actual)
        assert one.size_bytes == (sum(t.size_bytes for t in actual) if rows else None)
        compared += 1
    return compared


# ------------------------------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_candidates_of_odd_models_are_what_splits_find(case):
    """Skips, in-place writes, decisions, several outputs, other people's habits."""
    torch.manual_seed(0)
    model = case.make().train(case.train)
    args, kwargs = case.feed(case.sizes[0])
    try:
        split = ft.split(model, args, kwargs)
    except Exception:
        pytest.skip("cannot be split at all")
    is_fast = case.name.startswith(FAST_PATH)
    agree(
        split,
        args,
        kwargs,
        every=3 if is_fast else 1,
        may_refuse=lambda path: is_fast or path in REFUSED.get(case.name, ()),
    )


class Net(nn.Module):
    """Layers wired at random: skips, in-place steps, concatenations, blocks, views, pairs, late frozen branches."""

    def __init__(self, steps, trains):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList()
        for kind, *_ in steps:
            inner = [nn.Linear(4, 4), nn.ReLU(inplace=kind == "written"), nn.Linear(4, 4)]
            self.layers.append(nn.Sequential(*inner) if kind in ("block", "written") else nn.Linear(4, 4))
        self.requires_grad_(False)
        self.head = nn.Linear(4, 2)
        if trains < len(steps):
            self.layers[trains].requires_grad_(True)

    def forward(self, x):
        known = [x]
        for (kind, a, b), layer in zip(self.steps, self.layers, strict=True):
            first, second = known[a % len(known)], known[b % len(known)]
            if kind == "in place":
                known.append(layer(first).add_(second))
            elif kind == "both":
                known.append(layer(first) + layer(second))
            elif kind == "cat":
                known.append(layer(torch.cat([first, second], dim=1).unflatten(1, (2, 4)).mean(1)))
            elif kind == "rectified":
                known.append(F.relu_(layer(first)))
            elif kind == "shape":
                known.append(layer(first) + torch.zeros_like(second))
            elif kind == "functional":
                known.append(torch.tanh(first) * second)
            else:
                known.append(layer(first))
        return self.head(known[-1] + known[-2]), known[1]


KINDS = ["plain", "block", "written", "in place", "both", "cat", "rectified", "shape", "functional"]
WIRES = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=6)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=WIRES, trains=st.integers(0, 12))
def test_candidates_of_random_nets_are_what_splits_find(steps, trains):
    """Any wiring, with a layer that trains somewhere or only the head."""
    torch.manual_seed(0)
    model, x = Net(steps, trains), torch.randn(3, 4)
    try:
        split = ft.split(model, x)
    except ft.ForethoughtError:
        return
    agree(split, x)


def resnet():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=4).eval()
    return ft.freeze(model, until="layer4"), torch.rand(2, 3, 32, 32)


def densenet():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.DenseNet(4, (2, 3), 8, num_classes=4).eval()
    return ft.freeze(model, until="features"), torch.rand(2, 3, 32, 32)


def vision_transformer():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4).eval()
    return ft.freeze(model, until="blocks"), torch.rand(2, 3, 32, 32)


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}
    config = transformers.BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return ft.freeze(transformers.BertModel(config).eval(), until="encoder"), torch.randint(0, 50, (2, 7))


@pytest.mark.parametrize(
    ("make", "every"), [(resnet, 6), (densenet, 6), (vision_transformer, 4), (bert, 5)], ids=lambda x: getattr(x, "__name__", "")
)  # fmt: skip
def test_candidates_of_real_models_are_what_splits_find(make, every):
    """Residual, dense and attention blocks."""
    torch.manual_seed(0)
    model, x = make()
    assert agree(ft.split(model, x), x, every=every) >= 5


# ----------------------------------------------------------------------------------------------------- which are listed


class Skips(nn.Module):
    """A frozen body with a skip around its second layer, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.nothing = nn.Identity()
        ft.freeze(self, until="second")

    def forward(self, x):
        h = self.first(x)
        return self.head(self.nothing(self.second(h)) + h)


def test_a_skip_crosses_beside_its_block():
    """Cut inside a skip, both ends of it cross; sizes add up."""
    first, second = foretold(ft.split(Skips(), torch.randn(2, 6)))
    assert [(first.path, first.size_bytes), (second.path, second.size_bytes)] == [("first", 32), ("second", 64)]
    assert sorted(tensor.name for tensor in second.tensors) == ["first", "second"]


def test_what_computes_nothing_trains_or_runs_twice_is_not_listed():
    """`nothing` gives what it was given, `head` trains, and a module called twice has no one place."""

    class Twice(Base):
        def forward(self, x):
            return self.head(self.body(x) + self.body(x + 1))

    assert [one.path for one in foretold(ft.split(Skips(), torch.randn(2, 6)))] == ["first", "second"]
    assert foretold(ft.split(Twice(), torch.randn(2, 6))) == ()


def test_a_cut_of_the_batch_has_no_size():
    """What belongs to the batch as a whole is no row: its bytes a sample are unknown, not 0."""

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(0)

    model = nn.Sequential(nn.Linear(6, 8), Mean(), nn.Linear(8, 2))
    ft.freeze(model, until="1")
    sizes = {one.path: one.size_bytes for one in foretold(ft.split(model, torch.randn(3, 6)))}
    assert sizes == {"0": 32, "1": None}


def test_the_recording_is_left_as_it_was():
    """Nothing is marked on it: the split that it belongs to works on."""
    model, x = Skips(), torch.randn(2, 6)
    split = ft.split(model, x)
    before = [(op.in_head, dict(op.crossing), op.label, op.meets_frozen) for op in split.plan.recording.operations]
    foretold(split)
    assert before == [(op.in_head, op.crossing, op.label, op.meets_frozen) for op in split.plan.recording.operations]
    assert torch.equal(split.head(split.trunk(x)), model(x))


# ------------------------------------------------------------------------------------------------------------- choosing


def test_share_is_the_time_before_the_cut():
    """Each frozen operation weighs what it took; what trains does not count."""
    split = ft.split(Skips(), torch.randn(2, 6))
    operations = split.plan.recording.operations
    times = {"first": 1.0, "second": 2.0, "": 1.0, "head": 50.0}
    first, second = foretold(split, [times[op.call.path] for op in operations])
    assert (first.share, second.share) == (0.25, 0.75)
    assert foretold(split)[0].share is None


def tensors(size_bytes):
    """A frontier of one tensor with rows of so many bytes."""
    width = size_bytes // 4
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    return ft.split(ft.freeze(model, until="0"), torch.randn(2, 2)).frontier


def test_within_takes_the_latest_cut_that_fits():
    """Most saved first, then fewer bytes, then the outer module; None if nothing fits."""
    wide, narrow, last = (tensors(size) for size in (400, 40, 80))
    found = [
        Candidate("a.0", wide, 1, 0.1),
        Candidate("a", narrow, 5, 0.5),
        Candidate("b.0", last, 9, 0.9),
        Candidate("b.1", narrow, 9, 0.9),
        Candidate("c.0.0", wide, 9, 1.0),
        Candidate("c.0", wide, 9, 1.0),
    ]
    assert [getattr(within(found, limit), "path", None) for limit in (4000, 399, 79, 40, 39)] == [
        "c.0", "b.1", "b.1", "b.1", None,
    ]  # fmt: skip
    assert within(found[:3], 50).path == "a"
    assert within([Candidate("a", wide, 1), Candidate("b", wide, 2)], 400).path == "b"


def test_distinct_keeps_the_first_of_equal_cuts():
    """A block and its last layer are one cut."""
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 2))
    ft.freeze(model, until="0")
    found = foretold(ft.split(model, torch.randn(2, 6)))
    assert [one.path for one in found] == ["0.0", "0", "0.1"]
    assert [one.path for one in distinct(found)] == ["0.0", "0"]
