"""The laws of purity: a row depends on its own sample alone, and rounding is no reason to refuse."""

import importlib
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import forethought as ft
from forethought.errors import ImpureTrunkError, SplitError
from forethought.probing import generators, purity
from forethought.probing.purity import probe, rows_of
from forethought.samples.batch import Batch


class Between(nn.Module):
    """A function between a frozen layer and a head."""

    def __init__(self, function, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2)
        self.function = function
        self.to(dtype)

    def forward(self, x):
        return self.head(self.function(self.layer(x)))


def make_x(n=20, seed=1):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def count(h, calls=[0]):  # noqa: B006
    calls[0] += 1
    return h + calls[0]


class Chosen(nn.Module):
    def forward(self, h):
        return h * 1.00001 if h[0].sum() > 0 else h


def dropped_in_secret(h):
    with torch.random.fork_rng():
        return F.dropout(h, 0.1)


def dropped_alike(h):
    torch.manual_seed(0)
    return F.dropout(h, 0.1)


OUTLIER = torch.tensor([1e6, 1.0, 1.0, 1.0])
IMPURE = {
    "mean of the batch": lambda h: h - h.mean(0),
    "a thousandth of the mean of the batch": lambda h: h - 1e-3 * h.mean(0),
    "a millionth of the mean of the batch": lambda h: h - 1e-6 * h.mean(0),
    "a millionth of the largest of the batch": lambda h: h * (1 + 1e-6 * h.max()),
    "a millionth of its neighbour": lambda h: h + 1e-6 * h.roll(1, 0),
    "a little of the size of the batch": lambda h: h * (1 + 1e-5 * len(h)),
    "a little of the position in the batch": lambda h: h * (1 + 1e-5 * torch.arange(len(h))[:, None]),
    "the path that the first sample chooses": Chosen(),
    "batch statistics": lambda h: (h - h.mean(0)) / h.std(0),
    "norm of the batch": lambda h: h / h.norm(),
    "softmax over the batch": lambda h: h.softmax(0),
    "attention over the batch": lambda h: (h @ h.T).softmax(-1) @ h,
    "sort over the batch": lambda h: h.sort(0)[0],
    "sum along the batch": lambda h: h.cumsum(0),
    "position in the batch": lambda h: h + torch.arange(len(h))[:, None],
    "last of the batch": lambda h: torch.cat([h[:-1], 2 * h[-1:]]),
    "size of the batch": lambda h: h / len(h),
    "neighbour": lambda h: h.roll(1, 0),
    "random numbers": lambda h: h + torch.rand(4),
    "small random numbers": lambda h: h + 1e-5 * torch.randn(4),
    "numpy's random numbers": lambda h: h + np.random.rand(),
    "Python's random numbers": lambda h: h + random.random(),
    "dropout": lambda h: F.dropout(h, 0.1),
    "a little dropout": lambda h: F.dropout(h, 0.01),
    "dropout with the generator put back": dropped_in_secret,
    "dropout with the same seed each time": dropped_alike,
    "a count of calls": count,
    "ranks in the batch": lambda h: h.argsort(0).float(),
    "batch norm without running statistics": nn.BatchNorm1d(4, affine=False, track_running_stats=False).eval(),
}


@pytest.mark.parametrize("name", IMPURE)
def test_what_depends_on_the_batch_or_on_chance_is_refused(name, store):
    with pytest.raises((ImpureTrunkError, SplitError), match="Between"):
        ft.extract(Between(IMPURE[name]), make_x(), store)
    assert not list(store.glob("tables/*/*.safetensors"))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype)
        for name, dtype in [
            ("mean of the batch", torch.float16),
            ("mean of the batch", torch.bfloat16),
            ("softmax over the batch", torch.bfloat16),
            ("batch statistics", torch.bfloat16),
        ]
    ],
)
def test_in_half_precision_too(name, dtype, store):
    with pytest.raises(ImpureTrunkError):
        ft.extract(Between(IMPURE[name], dtype), make_x().to(dtype), store)


def test_beside_a_large_entry_too(store):
    def function(h):
        return h * OUTLIER - h.mean(0) * torch.tensor([0.0, 1.0, 1.0, 1.0])

    with pytest.raises(ImpureTrunkError):
        ft.extract(Between(function), make_x(), store)


def test_a_statistic_that_the_first_half_decides_is_refused(store):
    x = make_x()
    x[0] = 100.0
    with pytest.raises(ImpureTrunkError):
        ft.extract(Between(lambda h: h / h.abs().max()), x, store)


def test_equal_samples_at_the_beginning_hide_nothing(store):
    x = torch.cat([make_x(1).repeat(8, 1), make_x()])
    with pytest.raises(ImpureTrunkError):
        ft.extract(Between(lambda h: h - 0.5 * h.mean(0)), x, store)


@pytest.mark.parametrize("inner", [lambda h: h * 2 if len(h) > 9 else h, lambda h: h * (1 + 1e-4 * (len(h) > 9))])
def test_what_happens_only_in_a_large_batch_is_refused(inner, store):
    """The few samples of the probe do not show it."""
    model = nn.Sequential(nn.Linear(4, 4), Function(inner), nn.Linear(4, 4)).requires_grad_(False)
    model.append(nn.Linear(4, 2))
    with pytest.raises(ImpureTrunkError, match="one of 16 samples and of 2"):
        ft.extract(model, make_x(), store, batch_size=16)
    assert not list(store.glob("tables/*/*.safetensors"))
    assert ft.extract(model, make_x(), store, batch_size=8).report.rows_computed == 20


def test_one_sample_at_first_hides_nothing(store):
    model = Between(lambda h: h - 0.5 * h.mean(0))

    def one_then_more():
        ft.extract(model, make_x(1), store)
        ft.extract(model, make_x(), store)

    with pytest.raises(ImpureTrunkError):
        one_then_more()


class Rarely(nn.Module):
    """Something that happens to one number in a million: a few rows, run twice, do not show it."""

    def __init__(self, happens, chance=None):
        super().__init__()
        self.happens, self.chance = happens, chance

    def forward(self, h):
        return h + self.happens(self.chance, h)


def rarely(happens, chance=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4).requires_grad_(False), Rarely(happens, chance), nn.Linear(4, 2))


RARE = {
    "dropout": lambda _, h: F.dropout(h, 1e-6),
    "attention": lambda _, h: F.scaled_dot_product_attention(h, h, h, dropout_p=1e-6).mean(0) * 0,
    "constants": lambda *_: torch.rand(4) < 1e-6,
    "numpy": lambda *_: np.random.rand() < 1e-6,
    "Python": lambda *_: random.random() < 1e-6,
}
RARE_OWN = {
    "torch": (torch.Generator, lambda chance, _: torch.rand(4, generator=chance) < 1e-6),
    "torch, in place": (torch.Generator, lambda chance, h: torch.empty_like(h).bernoulli_(1e-6, generator=chance)),
    "torch, of frozen": (torch.Generator, lambda chance, h: torch.bernoulli(h.sigmoid() * 1e-6, generator=chance)),
    "numpy": (lambda: np.random.default_rng(0), lambda chance, _: chance.random() < 1e-6),
    "numpy, old": (lambda: np.random.RandomState(0), lambda chance, _: chance.random() < 1e-6),
    "Python": (lambda: random.Random(0), lambda chance, _: chance.random() < 1e-6),
}


@pytest.mark.parametrize("name", RARE)
def test_what_is_rarely_random_is_refused(name, store):
    """It is the drawing that is refused, not what came of it."""
    with pytest.raises(ImpureTrunkError, match="random numbers drawn"):
        ft.extract(rarely(RARE[name]), make_x(), store)
    assert not list(store.glob("tables/*/*.safetensors"))


def test_a_recurrent_layer_that_rarely_drops_is_refused(store):
    """Its dropout is inside one operation."""
    model = Recurrent()
    model.lstm.dropout = 1e-6
    with pytest.raises(ImpureTrunkError, match="random numbers drawn"):
        ft.extract(model, torch.randn(8, 6, 4), store)


@pytest.mark.parametrize("name", RARE_OWN)
def test_a_generator_of_a_modules_own_is_refused(name, store):
    make, happens = RARE_OWN[name]
    model, x = rarely(happens, make()), make_x()
    with pytest.raises(ImpureTrunkError, match="random numbers drawn"):
        probe(ft.split(model, x), Batch((x,), {}, None))
    with pytest.raises(ImpureTrunkError, match="random numbers drawn"):
        ft.extract(model, x, store)
    assert not list(store.glob("tables/*/*.safetensors"))


def test_a_generator_in_a_module_that_reads_values_is_refused_as_random(store):
    """Not for having no identity, which says nothing of the fault."""

    class Reads(Rarely):
        def forward(self, h):
            return h + (self.chance.random() < 1e-6) if float(h.sum()) < 1e9 else h

    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), Reads(None, random.Random(0)), nn.Linear(4, 2))
    with pytest.raises(ImpureTrunkError, match=r"the generator '1.chance'"):
        ft.extract(model, make_x(), store)


def test_a_generator_of_the_heads_own_is_no_reason_to_refuse(store):
    model = rarely(lambda *_: 0).append(Rarely(lambda chance, h: torch.rand(2, generator=chance), torch.Generator()))
    assert ft.extract(model, make_x(), store).report.rows_computed == 20


@pytest.mark.parametrize("make", [random.Random, random.SystemRandom, np.random.default_rng, torch.Generator])
def test_a_generator_that_is_not_drawn_from_is_no_reason_to_refuse(make, store):
    assert ft.extract(rarely(lambda *_: 0, make()), make_x(), store).report.rows_computed == 20


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1), random.random, np.random.rand], ids=["torch", "Python", "numpy"]
)
def test_another_thread_that_draws_is_no_reason_to_refuse(draw, store, monkeypatch):
    """Generators belong to the process: a trunk that draws moves them in each of its runs, another thread in some."""
    runs = []

    def run_beside_another_thread(split, batch):
        runs.append(1)
        if len(runs) in (1, 3):
            thread = threading.Thread(target=draw)
            thread.start()
            thread.join()
        return rows_of(split, batch)

    monkeypatch.setattr(purity, "rows_of", run_beside_another_thread)
    assert ft.extract(rarely(lambda *_: 0), make_x(), store).report.rows_computed == 20
    assert len(runs) > 3


@pytest.mark.parametrize("name", ["dropout", "attention", "constants"])
def test_the_kernel_that_draws_is_named(name, store):
    with pytest.raises(ImpureTrunkError, match=r"random numbers drawn by aten\.\w+"):
        ft.extract(rarely(RARE[name]), make_x(), store)


def test_attention_that_drops_nothing_is_no_reason_to_refuse(store):
    """Its kernels may draw, and say so, whether they do or not."""
    attention = lambda _, h: F.scaled_dot_product_attention(*[h[:, None, None]] * 3)[:, 0, 0]  # noqa: E731
    model, x = rarely(attention), make_x()
    with torch.random.fork_rng(), generators.Drawing() as drawing:
        model(x)
    assert not drawing.seen
    assert ft.extract(model, x, store).report.rows_computed == 20


def test_random_numbers_in_the_head_are_no_reason_to_refuse(store):
    model = rarely(lambda *_: 0).append(Rarely(lambda *_: torch.rand(2)))
    assert ft.extract(model, make_x(), store).report.rows_computed == 20


class Layers(nn.Sequential):
    pass


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.BatchNorm1d(4), "BatchNorm1d '1'"),
        (nn.Dropout(0.5), "Dropout '1'"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2)), "Dropout '1.1'"),
        (nn.AlphaDropout(0.1), "AlphaDropout '1'"),
    ],
)
def test_layers_in_training_mode_are_named_with_the_fix(layer, says, store):
    model = Layers(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    model[0].requires_grad_(False)
    layer.requires_grad_(False)
    with pytest.raises(ImpureTrunkError) as caught:
        ft.extract(model, make_x(), store)
    assert says in str(caught.value)
    assert "ft.freeze(" in str(caught.value)
    ft.freeze(model, until="1")
    model.train()
    assert ft.extract(model, make_x(), store).report.rows_computed == 20


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


class Centred(nn.Module):
    def forward(self, h):
        return h - 1e-4 * h.mean(0)


class Dropped(nn.Module):
    def forward(self, h):
        return F.dropout(h, 0.1)


@pytest.mark.parametrize("inner", [Centred, Dropped])
def test_the_module_at_fault_is_named(inner, store):
    """However deep it lies, and although whatever follows gives other rows, too."""
    block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), inner()), nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), block, nn.ReLU()).requires_grad_(False).append(nn.Linear(4, 2))
    with pytest.raises(ImpureTrunkError, match=rf"in {inner.__name__} '1\.1\.1'"):
        ft.extract(model, make_x(), store)


def test_a_module_that_begins_to_count_is_named():
    """Two runs of one batch do not agree."""
    begun = []

    class Counted(nn.Module):
        def forward(self, h):
            if begun:
                begun.append(1)
            return h + len(begun)

    model = nn.Sequential(nn.Linear(4, 4), Counted(), nn.ReLU()).requires_grad_(False).append(nn.Linear(4, 2))
    split = ft.split(model, make_x())
    begun.append(1)
    with pytest.raises(ImpureTrunkError, match="two different ones, the first in Counted '1'"):
        probe(split, Batch((make_x(6),), {}, None))


def test_finding_the_module_at_fault_leaves_the_model_as_it_is(store):
    model = nn.Sequential(nn.BatchNorm1d(4), Centred()).requires_grad_(False).append(nn.Linear(4, 2))
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    with pytest.raises(ImpureTrunkError, match="Centred '1'"):
        ft.extract(model, make_x(), store)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(chance, torch.get_rng_state())


class Masked(nn.Module):
    """Leaves a mask out if it masks nothing, as transformers' models do: the batch decides how a sample is rounded."""

    def __init__(self, fault=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(64, 64).requires_grad_(False), nn.Linear(64, 2)
        self.fault = fault

    def forward(self, x, mask):
        h = self.layer(x)
        mask = None if mask.all() else mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        h = F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], attn_mask=mask)[:, 0]
        return self.head(h[:, 0] - self.fault * h.mean((0, 1)))


def test_a_mask_that_is_left_out_if_it_masks_nothing_is_no_reason_to_refuse(store):
    """What values decide may round otherwise; where nothing is decided otherwise, the last bit counts still."""
    x, mask = torch.randn(6, 9, 64, generator=torch.Generator().manual_seed(1)), torch.ones(6, 9, dtype=torch.bool)
    mask[4:, 5:] = False
    data = [{"x": a, "mask": b} for a, b in zip(x, mask, strict=True)]
    assert ft.extract(Masked(), data, store).report.rows_computed == 6
    with pytest.raises(ImpureTrunkError, match="depend on the rest of its batch"):
        ft.extract(Masked(1e-6), data, store / "other")


def test_four_layers_in_training_mode_are_counted(store):
    model = nn.Sequential(nn.Linear(4, 4), *(nn.Dropout(0.5) for _ in range(5)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    with pytest.raises(ImpureTrunkError, match="and 2 more"):
        ft.extract(model, make_x(), store)


def test_training_mode_of_the_head_is_no_reason_to_refuse(store):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert ft.extract(model, make_x(), store).report.rows_computed == 20


def test_a_dropout_that_drops_nothing_is_no_reason_to_refuse(store):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert ft.extract(model, make_x(), store).report.rows_computed == 20


def test_a_buffer_that_only_counts_is_left_as_found(store):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.head(self.layer(x) * self.calls.clamp(max=1))

    model = Counts()
    features = ft.extract(model, make_x(), store)
    assert model.calls == 0
    assert torch.equal(next(features.batches(100))[0], model.layer(make_x()))


def ordinary(name):
    torch.manual_seed(0)
    image = torch.randn(8, 3, 32, 32)
    if name == "conv":
        trunk = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
                for channels in (3, 16, 16, 16)
            ],
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return nn.Sequential(trunk.requires_grad_(False), nn.Linear(16, 2)).eval(), image
    if name in ("resnet", "mobilenet", "vit"):
        vision = pytest.importorskip("torchvision.models")
        model = {
            "resnet": vision.resnet18,
            "mobilenet": vision.mobilenet_v3_small,
            "vit": lambda: vision.VisionTransformer(32, 8, 2, 2, 32, 64),
        }[name]()
        model.requires_grad_(False)
        list(model.modules())[-1].requires_grad_(True)
        return model.eval(), image
    if name == "lstm":
        return Recurrent(), torch.randn(8, 6, 4)
    if name == "deep":
        blocks = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(20)]
        for block in blocks:
            nn.init.normal_(block[0].weight, std=0.25)
        return nn.Sequential(nn.Sequential(*blocks).requires_grad_(False), nn.Linear(64, 2)), torch.randn(8, 64)
    if name == "wide":
        return nn.Sequential(nn.Linear(2048, 64).requires_grad_(False), nn.Linear(64, 2)), torch.randn(8, 2048)
    if name == "noisy":  # long sums of which little is left, as in the classifiers of AlexNet and VGG
        layers = [nn.Linear(9216, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 512)]
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, 0, 0.01)
        return nn.Sequential(nn.Sequential(*layers).requires_grad_(False), nn.Linear(512, 2)), torch.rand(8, 9216)
    raise ValueError(name)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 16, 2, batch_first=True, bidirectional=True).requires_grad_(False)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "name",
    [
        *("conv", "lstm", "deep", "wide", "noisy"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit", "resnet", "mobilenet")),
    ],
)
def test_ordinary_models_are_not_refused_for_rounding(name, store, one_thread):
    model, x = ordinary(name)
    for rows in range(2, 9):
        features = ft.extract(model, x[:rows], store / str(rows), batch_size=8)
        assert features.report.rows_computed == rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["conv", "lstm", "deep"])
def test_ordinary_models_are_not_refused_for_rounding_in_other_types(name, dtype, store):
    model, x = ordinary(name)
    assert ft.extract(model.to(dtype), x.to(dtype), store).report.rows_computed == 8


REAL = [
    "torchvision/mobilenet_v3_small",
    "timm/vision_transformer.test_vit",
    "transformers/bert.SequenceClassification",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's models warn
@pytest.mark.parametrize("name", REAL)
def test_real_models_pass_as_they_are_and_no_fault_in_them_does(name, one_thread):
    """The benchmark's laws, on a few of its models, cut in the middle."""
    for needed in ("torchvision", "timm", "transformers"):
        pytest.importorskip(needed)
    sys.path.append(str(Path(__file__).parents[1] / "bench"))  # at the end: its modules must hide no package
    bench, zoo = importlib.import_module("purity"), importlib.import_module("zoo")
    faults = "a 10,000th of the batch's mean", "number of samples", "dropout of 1 %"
    found = bench.examine(zoo.specimens(name.partition("/")[0])[name], (0.5,), faults)
    assert (found.pure, found.refused, found.planted, found.missed) == (1, [], 3, [])


def test_infinite_entries_are_no_reason_to_refuse(store):
    def function(h):
        return h.masked_fill(torch.tensor([True, False, False, False]), float("-inf"))

    features = ft.extract(Between(function), make_x(), store)
    assert features.numpy()[:, 0].max() == -np.inf


def test_nothing_of_the_users_random_states_is_used(store):
    model = Between(torch.relu)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    ft.extract(model, make_x(), store)
    ft.extract(model, make_x(), store)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert np.array_equal(before[2], after[2])


@pytest.mark.parametrize(
    "held", [torch.eye(6).to_sparse(), torch.full((6,), torch.nan)], ids=["sparse", "not a number"]
)
def test_a_buffer_that_torch_cannot_compare_is_no_reason_to_refuse(held, store):
    """Buffers are compared as they are: sparse ones, and those with a not-a-number that no forward touched."""

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("held", held)
            self.linear = nn.Linear(6, 6).requires_grad_(False)

        def forward(self, x):
            return self.linear(torch.sparse.mm(self.held, x.T).T if self.held.is_sparse else x)

    model = nn.Sequential(Holds(), nn.Linear(6, 2))
    x = torch.randn(9, 6)
    features = ft.extract(model, x, store)
    assert torch.allclose(features.head(next(iter(features.batches(9)))[0]), model(x), atol=1e-6)
