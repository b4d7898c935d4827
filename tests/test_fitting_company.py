"""The law of company: a head ends up the same alone and among others of its shape, whatever trains it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from forethought.errors import FitError
from forethought.fitting import fit
from forethought.fitting.chains import read_chain
from forethought.fitting.grouping import is_same_shape
from forethought.fitting.products import _is_faster, linear
from forethought.heads import AnchorSpline, HistogramHead

D, N = 12, 300
G = torch.Generator().manual_seed(0)
X, X_VAL = torch.randn(N, D, generator=G), torch.randn(90, D, generator=G)
W = torch.randn(D, generator=G) / 3
Y, Y_VAL = (X @ W).sin(), (X_VAL @ W).sin()
C, C_VAL = (Y * 2 + 2.5).long().clamp(0, 4), (Y_VAL * 2 + 2.5).long().clamp(0, 4)
B, B_VAL = torch.stack([Y > 0, Y > 0.5], 1).float(), torch.stack([Y_VAL > 0, Y_VAL > 0.5], 1).float()
NUMBERS, CLASSES, LABELS = ((X, Y), (X_VAL, Y_VAL)), ((X, C), (X_VAL, C_VAL)), ((X, B), (X_VAL, B_VAL))
ANCHORS = [-1.0, -0.5, 0.0, 0.4, 1.0]
# What one step may differ by, alone and in company: sums in another order, magnified where Adam divides by a small root.
STEP, METRIC = 1e-5, 1e-4


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Own(nn.Module):
    """A module of the user's, with layers of torch and a forward of its own."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.a, self.b, self.norm, self.drop = nn.Linear(D, 8), nn.Linear(8, 1), nn.LayerNorm(8), drop

    def forward(self, x):
        h = F.dropout(torch.tanh(self.norm(self.a(x))), self.drop, self.training)
        return self.b(h + h.square().mean(1, keepdim=True)).squeeze(1)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        # A bias before it would have no effect, and Adam would move it by the noise of rounding.
        self.net = nn.Sequential(
            nn.Linear(D, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)
        )

    def forward(self, x):
        return self.net(x)


def mlp(*middle):
    return lambda: nn.Sequential(nn.Linear(D, 16), *copy.deepcopy(middle), nn.Linear(16, 1), nn.Flatten(0))


SHAPES = {
    "linear": (lambda: nn.Sequential(nn.Linear(D, 1), nn.Flatten(0)), NUMBERS, {}),
    "classes": (lambda: nn.Linear(D, 5), CLASSES, {"loss": "cross_entropy"}),
    "labels": (lambda: nn.Linear(D, 2, bias=False), LABELS, {"loss": "bce"}),
    "mlp": (mlp(nn.ReLU()), NUMBERS, {"loss": "huber"}),
    "deep": (mlp(nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 16), nn.SiLU()), NUMBERS, {"loss": "mae"}),
    "dropout": (mlp(nn.ReLU(inplace=True), nn.Dropout(0.4)), NUMBERS, {}),
    "dropout first": (lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(D, 5)), CLASSES, {"loss": "cross_entropy"}),
    "own class": (Own, NUMBERS, {}),
    "own class, dropout": (lambda: Own(0.3), NUMBERS, {}),
    "batch norm": (Normed, NUMBERS, {}),
    "spline": (lambda: AnchorSpline(D, ANCHORS, latent="mlp", hidden=(8,)), NUMBERS, {}),
    "histogram": (lambda: HistogramHead(D, ANCHORS), NUMBERS, {}),
    "own loss": (mlp(nn.Tanh()), NUMBERS, {"loss": lambda output, target: (output - target).abs().pow(1.5).mean()}),
    "own metric": (mlp(nn.Tanh()), NUMBERS, {"metric": lambda output, target: (output - target).abs().sqrt()}),
    "convolution": (lambda: nn.Sequential(nn.Unflatten(1, (1, D)), nn.Conv1d(1, 2, 3), nn.Flatten(1), nn.Linear(20, 1), nn.Flatten(0)), NUMBERS, {}),
    "double": (lambda: nn.Sequential(nn.Linear(D, 1), nn.Flatten(0)).double(), NUMBERS, {}),
}  # fmt: skip
TRAINED = {
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "momentum": {"optimizer": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 1e-2},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "clipped": {"optimizer": "adamw", "lr": 0.01, "clip": 0.05, "schedule": "cosine", "warmup": 1.0},
    "lbfgs": {"optimizer": "lbfgs", "weight_decay": 1e-2},
}


def difference(one, other):
    """Of all weights, relative to their size."""
    pairs = list(zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    gap = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (gap / max(sum(float(a.double().square().sum()) for a, _ in pairs), 1e-12)) ** 0.5


def heads_of(make, count):
    heads = {}
    for number in range(count):
        torch.manual_seed(number)
        heads[f"h{number}"] = make()
    return heads


def kinds_of_groups(monkeypatch):
    """See which groups a fit makes."""
    from forethought.fitting import loop

    seen, make = [], loop.make_groups

    def watched(*args):
        groups, notes = make(*args)
        seen.extend((type(group).__name__, len(group.trainees)) for group in groups)
        return groups, notes

    monkeypatch.setattr(loop, "make_groups", watched)
    return seen


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_in_company_is_the_head_alone(shape, trained):
    """After the first steps within the bound, and in the score of every epoch: for each shape and each optimizer."""
    make, (train, val), options = SHAPES[shape]
    if trained == "lbfgs" and "dropout" in shape:
        pytest.skip("a full-batch method needs a function that stays the same")
    heads = heads_of(make, 6)
    common = {"batch_size": 100, "seed": 3, "progress": False} | TRAINED[trained] | options
    lrs = {name: common["lr"] * (1 + at % 3) for at, name in enumerate(heads)} if "lr" in common else {}
    for epochs in (1, 4):
        together = fit(train, val, heads, epochs=epochs, **common | ({"lr": lrs} if lrs else {}))
        assert together.notes == ()
        for name in ("h0", "h4"):
            alone = fit(train, val, {name: heads[name]}, epochs=epochs, **common | ({"lr": lrs[name]} if lrs else {}))
            if epochs == 1:
                assert difference(alone[name].head, together[name].head) < STEP
            for one, other in zip(alone[name].metrics, together[name].metrics, strict=True):
                assert one.val_score == pytest.approx(other.val_score, rel=METRIC, abs=METRIC)
                assert one.train_loss == pytest.approx(other.train_loss, rel=METRIC, abs=METRIC)


@pytest.mark.parametrize("seed", range(3))
def test_a_head_in_a_group_of_64_is_the_head_alone(seed, monkeypatch):
    """The law as it is asked for: 64 linear heads and 64 small networks, several seeds, the first steps and the end."""
    groups = kinds_of_groups(monkeypatch)
    for make in (SHAPES["linear"][0], SHAPES["mlp"][0]):
        heads = heads_of(make, 64)
        for epochs in (1, 8):
            together = fit(*NUMBERS, heads, lr=0.01, epochs=epochs, batch_size=50, seed=seed, progress=False)
            assert groups == [("Stack", 64)]
            for name in ("h0", "h31", "h63"):
                alone = fit(*NUMBERS, heads[name], lr=0.01, epochs=epochs, batch_size=50, seed=seed, progress=False)
                if epochs == 1:
                    assert difference(alone["head"].head, together[name].head) < STEP
                assert alone["head"].score == pytest.approx(together[name].score, rel=METRIC)
            groups.clear()


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [("linear", "Stack"), ("mlp", "Stack"), ("deep", "Stack"), ("dropout", "Stack"), ("own class", "Stack"),
     ("own class, dropout", "Stack"), ("batch norm", "Stack"), ("spline", "Stack"), ("histogram", "Stack"),
     ("own loss", "Stack"), ("convolution", "Single")],
)  # fmt: skip
def test_heads_of_one_shape_are_one_computation(shape, wanted, monkeypatch):
    """What can be run as one is, silently; what would be slower is not."""
    groups = kinds_of_groups(monkeypatch)
    make, (train, val), options = SHAPES[shape]
    results = fit(train, val, heads_of(make, 5), epochs=1, batch_size=100, progress=False, **options)
    assert groups == ([("Stack", 5)] if wanted == "Stack" else [("Single", 1)] * 5)
    assert results.notes == ()


def test_what_differs_is_not_one_computation(monkeypatch):
    """Other sizes, attributes, losses, optimizers, hooks, tied or frozen weights: each is a group of its own."""
    groups = kinds_of_groups(monkeypatch)

    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale, self.layer = scale, nn.Linear(D, 1)

        def forward(self, x):
            return self.layer(x).squeeze(1) * self.scale

    hooked = SHAPES["linear"][0]()
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    frozen = SHAPES["linear"][0]()
    frozen[0].weight.requires_grad_(False)
    heads = {
        "a": Scaled(1.0), "b": Scaled(2.0), "c": SHAPES["linear"][0](), "d": SHAPES["linear"][0](), "e": hooked, "f": frozen,
        "g": mlp(nn.ReLU())(), "h": mlp(nn.Tanh())(),
    }  # fmt: skip
    fit(*NUMBERS, heads, loss={"d": "mae"}, epochs=1, progress=False)
    assert groups == [("Single", 1)] * 8
    assert not is_same_shape(Scaled(1.0), Scaled(2.0))
    assert is_same_shape(Scaled(1.0), Scaled(1.0))


def test_heads_that_lie_about_themselves_are_found_out():
    """A module whose forward does not depend on its parameters alone is trained in turn, and this is said."""

    class Liar(nn.Module):
        _calls = 0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(D, 1)
            self._secret = float(torch.randn(()))  # private: no attribute that a stranger would compare

        def forward(self, x):
            return self.layer(x).squeeze(1) + self._secret

    heads = heads_of(Liar, 5)
    together = fit(*NUMBERS, heads, epochs=2, progress=False)
    assert any("in turn" in note for note in together.notes)
    assert "in turn" in together.table()
    alone = fit(*NUMBERS, heads["h3"], epochs=2, progress=False)
    assert alone.best.metrics == together["h3"].metrics


def test_a_diverging_head_stops_alone():
    """In a group too: it is reported, and the others end up as without it."""
    heads = heads_of(SHAPES["mlp"][0], 6)
    options = {"optimizer": "sgd", "epochs": 6, "batch_size": 50, "progress": False}
    lrs = dict.fromkeys(heads, 0.05)
    wild = fit(*NUMBERS, heads, lr=lrs | {"h2": 1e30}, **options)
    calm = fit(*NUMBERS, {name: head for name, head in heads.items() if name != "h2"}, lr=0.05, **options)
    assert wild.ranked[-1].name == "h2"
    assert "not finite" in wild["h2"].failed
    assert len(wild["h2"].metrics) == 1
    for name in calm:
        assert difference(wild[name.name].head, name.head) < METRIC
    assert all(p.isfinite().all() for p in wild["h2"].head.parameters())


def test_heads_of_a_group_stop_when_they_are_done():
    """Patience and epochs are each head's own: who goes on is not disturbed by who left."""
    heads = heads_of(SHAPES["mlp"][0], 5)
    options = {"batch_size": 50, "progress": False, "lr": 0.02}
    together = fit(*NUMBERS, heads, epochs={"h0": 2, "h1": 9, "h2": 5, "h3": 9, "h4": 9}, patience={"h3": 1}, **options)
    assert [len(together[f"h{at}"].metrics) for at in (0, 1, 2)] == [2, 9, 5]
    for at, epochs in ((0, 2), (1, 9), (2, 5)):
        alone = fit(*NUMBERS, heads[f"h{at}"], epochs=epochs, **options).best
        assert alone.score == pytest.approx(together[f"h{at}"].score, rel=METRIC)
        assert difference(alone.head, together[f"h{at}"].head) < METRIC
    stopped = fit(*NUMBERS, heads["h3"], epochs=9, patience=1, **options).best
    assert len(stopped.metrics) == len(together["h3"].metrics)


@pytest.mark.parametrize("shape", ["mlp", "own class", "batch norm", "spline"])
@pytest.mark.parametrize("when", ["at once", "later", "while scoring"])
def test_memory_that_runs_out_divides_the_group(shape, when, monkeypatch):
    """Fewer heads at a time, nothing learned twice or lost, and it is said; one head too many is refused with the fix."""
    from forethought.fitting.weights import Weights

    make, (train, val), options = SHAPES[shape]
    heads = heads_of(make, 7)
    options = options | {"epochs": 2, "batch_size": 60, "progress": False}
    calm = fit(train, val, heads, **options)
    calls, whole, scored = [0], Weights.differentiate, Weights.outputs

    def little(self, *args):
        calls[0] += 1
        if len(self.tensors[self.trainable[0]]) > 2 and (when == "at once" or (when == "later" and calls[0] > 4)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *args)

    def little_room(self, values):
        if when == "while scoring" and len(self.tensors[self.trainable[0]]) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return scored(self, values)

    monkeypatch.setattr(Weights, "differentiate", little)
    monkeypatch.setattr(Weights, "outputs", little_room)
    tight = fit(train, val, heads, **options)
    assert any("memory ran out" in note for note in tight.notes)
    for result in calm:
        assert difference(result.head, tight[result.name].head) < METRIC
        assert result.score == pytest.approx(tight[result.name].score, rel=METRIC)


def test_memory_too_small_for_one_head_is_refused(monkeypatch):
    """With the batch size to try."""

    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.times = nn.Linear(D, 1), 0

        def forward(self, x):
            self.times += 1
            if self.times > 3:
                raise MemoryError
            return self.layer(x).squeeze(1)

    with pytest.raises(FitError, match="batch_size=50"):
        fit(*NUMBERS, {"a": Greedy()}, batch_size=100, progress=False)


def test_products_are_those_of_torch():
    """Value and every derivative, for sizes on both sides of the choice, and views."""
    for rows, outputs, width, dtype in (
        (300, 64, 40, torch.float32),
        (7, 3, 5, torch.float32),
        (300, 64, 40, torch.float64),
    ):
        x = torch.randn(rows, width, dtype=dtype, requires_grad=True)
        w = torch.randn(outputs, width, dtype=dtype, requires_grad=True)
        b = torch.randn(outputs, dtype=dtype, requires_grad=True)
        for bias in (b, None):
            wanted, got = F.linear(x, w, bias), linear(x, w, bias)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
            gradient = torch.randn_like(wanted)
            inputs = [x, w] + ([b] if bias is not None else [])
            for mine, its in zip(
                torch.autograd.grad(got, inputs, gradient), torch.autograd.grad(wanted, inputs, gradient), strict=True
            ):
                torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-3)
    assert isinstance(_is_faster(), bool)


def test_only_chains_are_read_as_chains():
    """What joins samples, writes into what is shared, or is none of the known layers is not."""
    yes = [
        nn.Linear(D, 2),
        nn.Sequential(nn.Flatten(1), nn.Linear(D, 2), nn.ReLU(inplace=True)),
        mlp(nn.Dropout(0.1))(),
    ]
    no = [
        nn.ReLU(), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(D, 2)), nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 2)),
        nn.Sequential(nn.Flatten(0), nn.Linear(D, 2)), nn.Sequential(nn.Linear(D, 2), nn.Flatten(0), nn.ReLU()), Own(),
        nn.Sequential(nn.Linear(D, 2), nn.Softmax(1)), nn.Sequential(nn.Linear(D, 2), nn.BatchNorm1d(2)),
    ]  # fmt: skip
    assert [read_chain(head, (D,)) is not None for head in yes] == [True] * len(yes)
    assert [read_chain(head, (D,)) is not None for head in no] == [False] * len(no)
    assert read_chain(nn.Linear(D, 2), (3, D)) is None
