"""The laws of one path for inputs of any size: what follows from a few sizes is what would have been recorded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import forethought as ft
from forethought import nesting
from forethought.errors import ForethoughtError, ReplayDriftError, ShapeError
from forethought.shapes.curves import Curves
from forethought.shapes.padding import Leaf, Padding
from forethought.splitting.families import _all_made

transformers = pytest.importorskip("transformers")

WORDS = 40
TEXT = Padding((Leaf(((1, 0),)), Leaf(((1, 0),))), 1)
ONE = Padding((Leaf(((1, 0),)),), 1)


def make_text(rows, length, is_full=False, seed=0):
    """Token numbers and their mask: one full row, the others half of it."""
    generator = torch.Generator().manual_seed(seed + length)
    lengths = torch.tensor([length] + [length if is_full else max(1, length // 2 - 1)] * (rows - 1))
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": torch.randint(3, WORDS, (rows, length), generator=generator) * mask, "attention_mask": mask}


def make_hf(name, kind, layers_frozen):
    torch.manual_seed(0)
    options = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 24, "max_position_embeddings": 48, "pad_token_id": 0}  # fmt: skip
    if name == "distilbert":
        options |= {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
    if name == "llama":
        options |= {"num_key_value_heads": 1, "head_dim": 8, "use_cache": False}
    if name == "gpt2":
        options |= {"use_cache": False}
    config = transformers.AutoConfig.for_model(name, **options)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
    parameters = list(model.named_parameters())
    first = next(at for at, (path, _) in enumerate(parameters) if layers_frozen in path)
    for at, (_, parameter) in enumerate(parameters):
        parameter.requires_grad_(at >= first)
    return model


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 8).requires_grad_(False)
        self.layer = nn.GRU(8, 6, batch_first=True).requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.words(tokens))[0])


class Folded(nn.Module):
    """Tokens and samples are one axis at the frontier, then two again by the shape of the input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, tokens):
        rows, length = tokens.shape
        return self.head(self.words(tokens).sin().flatten(0, 1)).view(rows, length, 3)


class Sound(nn.Module):
    """A strided convolution over a sound of any length."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv1d(1, 4, 5, stride=3), nn.ReLU(), nn.Conv1d(4, 6, 3, stride=2))
        self.layers.requires_grad_(False)
        self.head = nn.Linear(6, 2)

    def forward(self, sound):
        return self.head(self.layers(sound[:, None]).mean(2)), self.head(self.layers(sound[:, None]).mT)


def tokens(rows, length, is_full=False):
    return {"tokens": make_text(rows, length)["input_ids"]}


MODELS = {
    "roberta, head": (lambda: make_hf("roberta", "SequenceClassification", "classifier"), make_text, TEXT),
    "bert, layer": (lambda: make_hf("bert", "TokenClassification", "layer.1"), make_text, TEXT),
    "distilbert, layer": (lambda: make_hf("distilbert", "SequenceClassification", "layer.1"), make_text, TEXT),
    "gpt2, layer": (lambda: make_hf("gpt2", "CausalLM", "h.1"), make_text, TEXT),
    "recurrent": (Recurrent, tokens, ONE),
    "folded": (Folded, tokens, ONE),
    "sound": (Sound, lambda rows, length, is_full=False: {"sound": torch.randn(rows, 3 * length)}, ONE),
}


@pytest.fixture(scope="module", params=MODELS)
def stretched(request):
    """A model, what feeds it, and a split of it that was recorded at length 16 and below."""
    make, feed, padding = MODELS[request.param]
    model = make()
    split = ft.split(model, (), feed(2, 16))
    split.stretch(padding, (), feed(2, 16))
    return model, feed, split


@pytest.mark.parametrize("is_full", [False, True], ids=["padded", "full"])
@pytest.mark.parametrize("length", [9, 31])
def test_both_halves_take_inputs_of_any_size(stretched, length, is_full):
    """head(trunk(x)) is model(x) to the bit for sizes that were never recorded, also if the head has only the values."""
    model, feed, split = stretched
    recorded = len(split._plans)
    given = feed(3, length, is_full)
    values = split.trunk(**given)
    copied = nesting.replace(values, torch.clone)
    live = nesting.tensors(model(**given))
    for each in (values, copied):
        if each is copied and isinstance(model, Folded):
            with pytest.raises(ShapeError, match="no copies"):  # samples times tokens: either may be any
                split.head(each)
            continue
        assert all(torch.equal(a, b) for a, b in zip(nesting.tensors(split.head(each)), live, strict=True))
    assert len(split._plans) == recorded, "nothing was recorded for one size alone"


def test_what_follows_is_what_would_have_been_recorded(stretched):
    """The plan that follows for a size has the forms of the plan that is recorded there."""
    model, feed, split = stretched
    followed = split.plans_for((), feed(2, 20))[0]
    recorded = ft.split(model, (), feed(2, 20)).plan
    pairs = list(zip(forms_of(followed), forms_of(recorded), strict=True))
    steady = [(a, b) for a, b in pairs if a.is_steady]
    assert [(a.shape, a.stride) for a, _ in steady] == [(b.shape, b.stride) for _, b in steady]
    assert len(steady) >= len(pairs) / 2
    assert followed.is_stretched
    assert not recorded.is_stretched


def forms_of(plan):
    return [form for _, form in _all_made(plan)]


@pytest.mark.parametrize("name", ["distilbert, layer", "recurrent", "folded", "sound"])
def test_the_fingerprint_does_not_depend_on_the_sizes_recorded(name):
    """A trunk is the same one, whatever sizes of input it was recorded on; another number in it makes it another."""
    make, feed, padding = MODELS[name]
    prints = set()
    for length in (16, 11):
        model = make()
        split = ft.split(model, (), feed(2, length))
        split.stretch(padding, (), feed(2, length))
        prints.add(split.trunk.fingerprint)
    assert len(prints) == 1
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1e-3
    assert split.trunk.fingerprint not in prints


class Cuts(nn.Module):
    def __init__(self, cut):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, 8).requires_grad_(False), nn.Linear(8, 3)
        self.cut = cut

    def forward(self, tokens):
        return self.head(self.cut(self.words(tokens)).sin().sum(1))


CUTS = {
    "all": lambda h: h,
    "one less": lambda h: h[:, : h.shape[1] - 1],
    "two less": lambda h: h[:, : h.shape[1] - 2],
    "half": lambda h: h[:, : h.shape[1] // 2],
    "a third": lambda h: h[:, : h.shape[1] // 3],
    "four": lambda h: h[:, :4],
    "scaled": lambda h: h / h.shape[1],
    "scaled by the root": lambda h: h / h.shape[1] ** 0.5,
    "squared": lambda h: h.repeat(1, h.shape[1], 1),
}


def test_what_depends_on_the_size_in_another_way_is_another_trunk():
    """Two trunks that treat one size alike and others not have different fingerprints."""
    prints = {}
    for name, cut in CUTS.items():
        split = ft.split(Cuts(cut), (), tokens(2, 12))
        split.stretch(ONE, (), tokens(2, 12))
        prints.setdefault(split.trunk.fingerprint, []).append(name)
    assert all(len(names) == 1 for names in prints.values()), prints


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, tokens):
        h = self.words(tokens)
        return self.head(h.sin() if tokens.shape[1] > 10 else h.cos())


def test_a_path_that_the_size_decides_is_refused():
    """Where Python takes other steps for other sizes there is no path for all."""
    split = ft.split(Branches(), (), tokens(2, 12))
    with pytest.raises(ReplayDriftError, match="other sizes"):
        split.stretch(ONE, (), tokens(2, 12))


class Clamps(nn.Module):
    """The size follows a line at first, and then no more."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.words(tokens)[:, :20].sin())


def test_a_size_that_leaves_its_curve_is_seen():
    """Beyond what was recorded, sizes that do not follow are recorded anew: never wrong."""
    model = Clamps()
    split = ft.split(model, (), tokens(2, 12))
    split.stretch(ONE, (), tokens(2, 12))
    for length in (19, 20, 21, 40):
        given = tokens(3, length)
        assert torch.equal(split.head(split.trunk(**given)), model(**given))


def test_a_model_that_changes_is_recorded_anew():
    """After a change of the model nothing is served of what was recorded before."""
    model = make_hf("distilbert", "TokenClassification", "layer.1")
    split = ft.split(model, (), make_text(2, 16))
    split.stretch(TEXT, (), make_text(2, 16))
    before = split.trunk.fingerprint
    model.distilbert.embeddings.LayerNorm.eps = 0.1
    given = make_text(3, 13)
    assert torch.equal(split.head(split.trunk(**given)).logits, model(**given).logits)
    assert split.trunk.fingerprint != before
    model.distilbert.embeddings.requires_grad_(True)
    with pytest.raises(ForethoughtError, match="Split it again"):
        split.trunk(**given)


def test_two_sizes_that_differ_apart():
    """Height and width of an image are sizes of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    model[0].requires_grad_(False)
    padding = Padding((Leaf(((2, 0), (3, 1))),), 2)
    split = ft.split(model, torch.randn(2, 1, 12, 9))
    split.stretch(padding, (torch.randn(2, 1, 12, 9),), {})
    for height, width in ((12, 9), (9, 12), (5, 30), (31, 3)):
        x = torch.randn(3, 1, height, width)
        assert torch.equal(split.head(split.trunk(x).clone()), model(x))
    assert len(split._plans) == 0


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.integers(-9, 9), min_size=3, max_size=3), st.integers(4, 400), st.integers(1, 10**4))
def test_a_polynomial_is_found_from_four_points(coefficients, largest, size):
    """Curves give back the polynomial that numbers came from, and nothing for numbers from none."""
    points = [(largest + 4,), (largest + 3,), (largest + 1,), (largest // 2 + 1,)]

    def value(n):
        return sum(c * n**power for power, c in enumerate(coefficients))

    curves = Curves(points)
    curve = curves.fit(tuple(value(n) for (n,) in points))
    assert curve == tuple(coefficients)
    assert curves.at(curve, (size,)) == value(size)
    assert curves.at(curve, (None,)) == (value(0) if not any(coefficients[1:]) else None)
    off = [value(n) for (n,) in points]
    off[0] += 1
    assert curves.fit(tuple(off)) != curve


def test_a_staircase_is_no_polynomial():
    """What a strided convolution leaves is never taken for a line."""
    curves = Curves([(64,), (63,), (48,), (33,)])
    assert curves.fit(tuple((n - 5) // 3 + 1 for n in (64, 63, 48, 33))) is None
