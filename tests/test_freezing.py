"""`freeze`: what it freezes, in which order, and that it stays so."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import SplitError


class Backwards(nn.Module):
    """Registers its head first and runs it last; owns a parameter and a frozen-to-be position table itself."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(6))
        self.head, self.norm, self.body = nn.Linear(8, 2), nn.BatchNorm1d(8), nn.Linear(6, 8)
        self.aux = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.norm(self.body(x + self.position)).relu())


def _trains(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_order_of_execution():
    model = ft.freeze(Backwards(), until="norm", args=torch.randn(3, 6))
    assert _trains(model) - {"position", "aux.weight", "aux.bias"} == {"head.weight", "head.bias"}


def test_order_of_registration_without_inputs():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert _trains(ft.freeze(model, until="1")) == {"2.weight", "2.bias"}


def test_everything():
    model = ft.freeze(Backwards())
    assert not _trains(model)
    assert not any(module.training for module in model.train().modules())


@pytest.mark.parametrize("given", [{}, {"args": torch.randn(2, 3, 16, 16)}], ids=["registered", "executed"])
def test_parameters_of_the_containers_are_frozen_too(given):
    """A class token or a position table belongs to the root, and runs before what is frozen."""
    vision = pytest.importorskip("torchvision.models")
    model = vision.VisionTransformer(16, 8, 3, 2, 8, 16, num_classes=2)
    ft.freeze(model, until="encoder.layers.encoder_layer_1", **given)
    assert all(name.startswith(("encoder.layers.encoder_layer_2", "encoder.ln", "heads")) for name in _trains(model))
    parts = ft.split(model, torch.randn(2, 3, 16, 16))
    assert [tensor.shape for tensor in parts.frontier] == [(5, 8)]


def test_inside_a_container():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 8)), nn.Linear(8, 2))
    ft.freeze(model, until="0.1").train()
    assert _trains(model) == {"0.2.weight", "0.2.bias", "1.weight", "1.bias"}
    assert {name: module.training for name, module in model.named_modules() if name} == {
        "0": True, "0.0": False, "0.1": False, "0.2": True, "1": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "train",
    [
        lambda model: model.train(),
        lambda model: model.apply(lambda module: module.train()),
        nn.Module.train,
        lambda model: model.eval().train(True),
    ],
)
def test_train_does_not_undo_it(train):
    model = ft.freeze(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), until="1")
    train(model)
    assert [module.training for module in model] == [False, False, True]
    before = model[1].running_mean.clone()
    model(torch.randn(4, 6))
    assert torch.equal(model[1].running_mean, before)


def test_a_copy_stays_frozen_by_itself():
    model = ft.freeze(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), until="0")
    copied = copy.deepcopy(model)
    copied.train()
    assert [module.training for module in copied] == [False, True]
    assert copied[0].train.args[0] is copied[0]


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_saved_model_loads(how):
    model = ft.freeze(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), until="0")
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    loaded.train()
    assert [module.training for module in loaded] == [False, True]


def test_the_weights_are_not_touched_and_nothing_stays_of_the_trial():
    model = Backwards().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    ft.freeze(model, until="norm", args=torch.ones(3, 6))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert model.training
    assert model.head.training


def test_a_trial_that_fails_changes_nothing():
    model = Backwards().train()
    with pytest.raises(RuntimeError):
        ft.freeze(model, until="norm", args=torch.randn(3, 7))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("until", "given"), [("nowhere", {}), ("aux", {"args": torch.randn(3, 6)})])
def test_names_that_cannot_be_are_refused(until, given):
    with pytest.raises(SplitError):
        ft.freeze(Backwards(), until=until, **given)


def test_frozen_then_split():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    parts = ft.split(ft.freeze(model, until="2"), torch.randn(3, 6))
    x = torch.randn(5, 6)
    assert torch.equal(parts.head(parts.trunk(x)), model(x))
    assert [tensor.name for tensor in parts.frontier] == ["2"]


class Tokens(nn.Module):
    """Holds a parameter itself, and frozen-to-be parts of every kind below."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(6))
        self.encoder = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.BatchNorm1d(6), nn.Dropout()), nn.Linear(6, 6))
        self.encoder_b = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 2)

    def forward(self, x):
        return self.classifier(self.encoder_b(self.encoder(x + self.token)))


ALL = {name for name, _ in Tokens().named_parameters()}


def _state(model):
    """Everything that `freeze` may change, and `thaw` must put back."""
    return (
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {name: set(vars(module)) for name, module in model.named_modules()},
    )


@pytest.mark.parametrize(
    ("chosen", "trains"),
    [
        ({"only": "encoder"}, {"token", "encoder_b", "classifier"}),
        ({"only": "encoder."}, {"token", "encoder_b", "classifier"}),
        ({"only": "encoder.2"}, {"token", "encoder.0", "encoder.1", "encoder_b", "classifier"}),
        ({"only": ["encoder", "token"]}, {"encoder_b", "classifier"}),
        ({"only": ("encoder_b.bias",)}, {"token", "encoder.", "encoder_b.weight", "classifier"}),
        ({"all_but": "classifier"}, {"classifier"}),
        ({"all_but": ["classifier", "token"]}, {"classifier", "token"}),
        ({"all_but": "encoder.1"}, {"encoder.1"}),
        ({"all_but": "classifier.bias"}, {"classifier.bias"}),
        ({"until": "encoder_b"}, {"classifier"}),
        ({"until": 0.0}, ALL),
        ({"until": 1.0}, set()),
    ],
    ids=lambda given: str(sorted(given) if isinstance(given, set) else given),
)
def test_what_is_chosen_is_frozen_and_nothing_else(chosen, trains):
    """A path stands for all that is below it, never for another path that begins with the same letters."""
    model = ft.freeze(Tokens(), **chosen)
    assert _trains(model) == {name for name in ALL if name.startswith(tuple(trains))}


def test_modes_of_what_is_chosen():
    """What lies around a part that trains follows `train()`, as that part does."""
    model = ft.freeze(Tokens(), all_but="encoder.1.1").train()
    training = {name for name, module in model.named_modules() if module.training}
    assert training == {"", "encoder", "encoder.1", "encoder.1.1"}
    model = ft.freeze(Tokens(), only="encoder").train()
    assert {name for name, module in model.named_modules() if module.training} == {"", "encoder_b", "classifier"}


def _numbers(model, frozen):
    return sum(p.numel() for p in model.parameters() if p.requires_grad is not frozen)


@pytest.mark.parametrize("given", [{}, {"args": torch.randn(2, 3, 32, 32)}], ids=["registered", "executed"])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.8, 0.999])
def test_a_fraction_is_the_most_that_is_not_more(given, fraction):
    """Freezing until any later module would freeze more than the fraction."""
    vision = pytest.importorskip("torchvision.models")
    model = vision.resnet18(num_classes=4)
    total, sizes = _numbers(model, None), []
    for until in (
        fraction,
        *(f"layer{i}.{j}.{part}" for i in (1, 2, 3, 4) for j in (0, 1) for part in ("conv1", "bn2")),
    ):
        sizes.append(_numbers(ft.freeze(model, until=until, **given), True))
        ft.thaw(model)
    assert sizes[0] <= fraction * total
    assert not any(sizes[0] < other <= fraction * total for other in sizes[1:])


def test_fractions_grow():
    """More is never less."""
    sizes = []
    for percent in range(0, 101, 10):
        model = ft.freeze(Tokens(), until=percent / 100)
        sizes.append(_numbers(model, True))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (0, sum(p.numel() for p in Tokens().parameters()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: ft.freeze(m, until="encoder_c"), "encoder_b"),
        (lambda m: ft.freeze(m, only="clasifier"), "classifier"),
        (lambda m: ft.freeze(m, all_but=["classifier", "encoder.9"]), r"encoder\.9"),
        (lambda m: ft.freeze(m, only="enc"), "encoder"),
        (lambda m: ft.freeze(m, until="token"), "token"),
        (lambda m: ft.freeze(m, only=""), "expected the path"),
        (lambda m: ft.freeze(m, only=[]), "expected the path"),
        (lambda m: ft.freeze(m, only=["encoder", ""]), "expected the path"),
        (lambda m: ft.freeze(m, only=3), "expected the path"),
        (lambda m: ft.freeze(m, all_but=()), "expected the path"),
        (lambda m: ft.freeze(m, until=1.5), "fraction"),
        (lambda m: ft.freeze(m, until=-0.1), "fraction"),
        (lambda m: ft.freeze(m, until=float("nan")), "fraction"),
        (lambda m: ft.freeze(m, until=1), "until='1'"),
        (lambda m: ft.freeze(m, until=True), "fraction"),
        (lambda m: ft.freeze(m, until=["encoder"]), "fraction"),
        (lambda m: ft.freeze(m, until="encoder", only="token"), "until and only"),
        (lambda m: ft.freeze(m, only="token", all_but="token"), "only and all_but"),
        (lambda m: ft.freeze(m, until=0.5, all_but="token"), "until and all_but"),
        (lambda m: ft.freeze(m, only="token", args=torch.zeros(2, 6)), "inputs"),
        (lambda m: ft.freeze(m, all_but="token", kwargs={"x": torch.zeros(2, 6)}), "inputs"),
        (lambda m: ft.freeze(m.state_dict()), "Module"),
        (lambda m: ft.thaw(m, "clasifier"), "classifier"),
        (lambda m: ft.thaw(m, "classifier"), "nothing"),
        (lambda m: ft.thaw(m, "token"), "nothing"),
        (lambda m: ft.thaw(m, ""), "expected the path"),
        (lambda m: ft.thaw(m, []), "expected the path"),
    ],
)
def test_what_cannot_be_is_refused_in_words_and_changes_nothing(change, says):
    """An error says what was expected and what is there, in one line with the way out."""
    model = Tokens()
    before = _state(model)
    with pytest.raises(SplitError, match=says) as caught:
        change(model)
    assert str(caught.value).startswith("Cannot ")
    assert ": expected " in str(caught.value)
    assert _state(model) == before


# ------------------------------------------------------------------------------------------------ thaw


def _prepared():
    """A model that its user has already frozen a part of, by hand."""
    model = Tokens()
    model.encoder[0].weight.requires_grad_(False)
    model.encoder[1].eval()
    model.classifier.bias.requires_grad_(False)
    return model


CHOICES = [
    {},
    {"until": "encoder.1"},
    {"until": "encoder.1", "args": torch.zeros(2, 6)},
    {"until": 0.6},
    {"only": ["encoder", "token"]},
    {"all_but": "classifier"},
    {"all_but": ["encoder.1.0", "token"]},
]


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_thaw_undoes_exactly_what_freeze_did(chosen, training):
    """Flags and modes are those of before, a hand's own too, and nothing of ours is left on the model."""
    model = _prepared()
    model.training = training
    before = _state(model)
    ft.freeze(model, **chosen)
    assert not model.encoder[0].weight.requires_grad
    assert ft.thaw(model) is model
    assert _state(model) == before
    ft.thaw(model)
    assert _state(model) == before
    assert all(module.training for module in model.train().modules())


@pytest.mark.parametrize("first", CHOICES, ids=str)
@pytest.mark.parametrize("second", CHOICES[:6:2], ids=str)
def test_frozen_twice_is_thawed_once(first, second):
    """What was before the first time is what counts."""
    model = _prepared()
    before = _state(model)
    ft.freeze(ft.freeze(model, **first), **second)
    model.train()
    assert _state(ft.thaw(model)) == before


def test_a_part_is_thawed():
    model = _prepared()
    before = _state(model)
    ft.thaw(ft.freeze(model), "encoder.1")
    assert _trains(model) == {"encoder.1.0.weight", "encoder.1.0.bias"}
    model.train()
    assert {name for name, module in model.named_modules() if module.training} == {
        "encoder.1",
        "encoder.1.0",
        "encoder.1.1",
    }
    model.eval()
    assert not any(module.training for module in model.modules())
    ft.thaw(model, ["encoder", "token"])
    assert _trains(model) == {"token", *(name for name in ALL if name.startswith("encoder."))} - {"encoder.0.weight"}
    ft.thaw(ft.freeze(model))
    ft.thaw(model)
    assert _state(model)[0] == before[0]
    assert _state(model)[2] == before[2]


def test_a_parameter_is_thawed():
    model = ft.thaw(ft.freeze(Tokens()), "token")
    assert _trains(model) == {"token"}
    assert not model.train().training
    assert _trains(ft.thaw(model)) == ALL


def test_thaw_leaves_alone_what_the_user_did_meanwhile():
    """What trained before trains; what a hand has thawed since stays so."""
    model = ft.freeze(_prepared())
    model.encoder[0].weight.requires_grad_(True)
    assert _trains(ft.thaw(model)) == ALL - {"classifier.bias"}


TIED = [["a"], ["b"], ["a", "b"], ["b", "a"]]


@pytest.mark.parametrize("frozen", TIED, ids=str)
@pytest.mark.parametrize("thawed", TIED, ids=str)
def test_a_shared_parameter_thaws_with_its_last_owner(frozen, thawed):
    """One tensor cannot be frozen and train: it trains again when nothing frozen holds it."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model.b.weight = model.a.weight
    for name in frozen:
        ft.freeze(model[name])
        assert not model.a.weight.requires_grad
    for name in thawed:
        ft.thaw(model[name] if len(frozen) == 1 else model, *([] if len(frozen) == 1 else [name]))
    still = set(frozen) - set(thawed)
    assert model.a.weight.requires_grad == (not still)
    ft.thaw(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_but_refuses_what_is_shared():
    """A language model's head that is tied to its embeddings cannot train alone."""
    model = nn.ModuleDict({"embed": nn.Linear(3, 3, bias=False), "head": nn.Linear(3, 3)})
    model.head.weight = model.embed.weight
    with pytest.raises(SplitError, match=r"embed\.weight.*head\.weight"):
        ft.freeze(model, all_but="head")
    assert all(parameter.requires_grad for parameter in model.parameters())
    ft.freeze(model, all_but=["head", "embed"])
    ft.freeze(model, only="embed")
    assert _trains(model) == {"head.bias"}


# ------------------------------------------------------------------------------------------- what it survives

SURVIVES = {
    "train": lambda m: m.train(),
    "eval, train": lambda m: m.eval().train(),
    "to": lambda m: m.to(torch.float64),
    "half": lambda m: m.half(),
    "to meta": lambda m: m.to_empty(device="cpu"),
    "load": lambda m: m.load_state_dict(Tokens().state_dict()) and m,
    "assign tensors": lambda m: m.load_state_dict(Tokens().state_dict(), assign=True) and m,
    "assign parameters": lambda m: (
        m.load_state_dict(dict(Tokens().named_parameters()), strict=False, assign=True) and m
    ),
    "apply": lambda m: m.apply(lambda module: module.train()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "zero_grad": lambda m: m.zero_grad() or m,
    "share_memory": lambda m: m.share_memory(),
    "step": lambda m: m(torch.randn(3, 6)).sum().backward() or m,
}


@pytest.mark.parametrize("name", SURVIVES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_it_survives(name, overwrite):
    """Whatever moves, converts, loads or copies a model leaves it frozen, and thaw still knows what was before."""
    before = _state(_prepared())
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    try:
        model = SURVIVES[name](ft.freeze(_prepared(), only=["encoder", "token"]))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    model.train()
    assert _trains(model) == {"encoder_b.weight", "encoder_b.bias", "classifier.weight"}
    assert not any(module.training for module in model.encoder.modules())
    assert model.training
    assert set(model.state_dict()) == set(Tokens().state_dict())
    assert _state(ft.thaw(model))[::2] == before[::2]
    assert {name for name, module in model.named_modules() if not module.training} == {
        "encoder.1",
        "encoder.1.0",
        "encoder.1.1",
    }


def test_parametrizations():
    """A parameter that is parametrized before or after freezing is frozen, and thaws."""
    from torch.nn.utils.parametrizations import weight_norm

    for early in (True, False):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        if early:
            weight_norm(model[0])
        ft.freeze(model, until="0")
        if not early:
            weight_norm(model[0])
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert {"0.bias"} <= frozen
        if early:
            assert frozen == {name for name, _ in model.named_parameters() if name.startswith("0.")}
        assert all(p.requires_grad for p in ft.thaw(model).parameters())


def test_lazy_modules():
    """They may be frozen before they know their sizes; a fraction of unknown sizes is refused."""
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    with pytest.raises(SplitError, match="lazy"):
        ft.freeze(model, until=0.5)
    ft.freeze(model, until="1").train()
    model(torch.zeros(3, 5))
    assert _trains(model) == {"2.weight", "2.bias"}
    assert [module.training for module in model] == [False, False, True]
    assert all(p.requires_grad for p in ft.thaw(model).parameters())
    fresh = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))
    assert _trains(ft.freeze(fresh, until=0.8, args=torch.zeros(3, 5))) == {"1.weight", "1.bias"}


def test_modules_added_later_follow():
    """An adapter below a frozen module trains, and learns of `train()` and `eval()` as anywhere."""
    model = ft.freeze(Tokens(), only="encoder")
    model.encoder[1].adapter = nn.Sequential(nn.Linear(6, 6), nn.Dropout())
    for mode in (True, False, True):
        model.train(mode)
        assert all(module.training is mode for module in model.encoder[1].adapter.modules())
        assert not model.encoder[1][0].training
    assert {"encoder.1.adapter.0.weight", "encoder.1.adapter.0.bias"} <= _trains(model)
    ft.freeze(model, only="encoder")
    assert not any(name.startswith("encoder.1") for name in _trains(model))
    model.train()
    assert not model.encoder[1].adapter[1].training


class Merging(nn.Linear):
    """Does more in `train` than set a flag, as low-rank adapters that merge their weights for evaluation do."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_modules_with_a_train_of_their_own_are_told():
    model = nn.Sequential(Merging(2, 2), nn.Linear(2, 2)).train()
    ft.freeze(model, until="0")
    model.train()
    assert model[0].merged
    ft.thaw(model)
    assert (model[0].merged, model[0].training) == (False, True)
    assert "train" not in vars(model[0])


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compile"]
)
@pytest.mark.parametrize("inside", [False, True])
def test_wrappers(wrap, inside):
    """A wrapper's own name in a path may be written or left out."""

    def made():
        model = Tokens()
        if inside:
            model.encoder = wrap(model.encoder)
            return model, {"encoder.2": f"encoder.{next(iter(model.encoder._modules))}.2"}
        model = wrap(model)
        return model, {"encoder.2": f"{next(iter(model._modules))}.encoder.2"}

    _, written = made()
    for path in (*written, *written.values()):
        for chosen in ({"until": path}, {"until": path, "args": torch.zeros(2, 6)}, {"only": path}, {"all_but": path}):
            model, _ = made()
            before = _state(model)
            ft.freeze(model, **chosen)
            plain = {name.replace("_orig_mod.", "").replace("module.", "") for name in _trains(model)}
            assert plain == _trains(ft.freeze(Tokens(), **{**chosen, next(iter(chosen)): "encoder.2"}))
            model.train()
            assert _state(ft.thaw(model)) == before


def test_a_path_of_the_wrapped_model_is_understood_by_the_plain_one():
    """Names from a checkpoint of a compiled or parallel model."""
    assert _trains(ft.freeze(Tokens(), all_but="_orig_mod.classifier")) == {"classifier.weight", "classifier.bias"}
    assert _trains(ft.freeze(Tokens(), all_but="module.classifier.bias")) == {"classifier.bias"}


def test_a_real_child_called_module_is_not_a_wrapper():
    model = nn.Sequential()
    model.add_module("module", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    model.add_module("head", nn.Linear(2, 2))
    assert _trains(ft.freeze(model, until="module.0")) == {
        f"{n}.{p}" for n in ("module.1", "head") for p in ("weight", "bias")
    }


def test_a_frozen_model_compiles():
    """What stands in for `train` is no obstacle to tracing."""
    model = ft.freeze(Tokens(), only="encoder").train()
    x = torch.randn(3, 6)
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_scripted_modules_are_frozen():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout())), nn.Linear(3, 2))
    ft.freeze(model, until="0").train()
    assert _trains(model) == {"1.weight", "1.bias"}
    assert not any(module.training for module in model[0].modules())
    x = torch.randn(20, 3)
    assert torch.equal(model(x), model(x))
    assert all(p.requires_grad for p in ft.thaw(model).parameters())


REAL = {
    "mobilenet": lambda vision: vision.mobilenet_v3_small(weights=None),
    "densenet": lambda vision: vision.DenseNet(8, (2, 2), 16, num_classes=3),
    "swin": lambda vision: vision.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=3),
    "vit": lambda vision: vision.VisionTransformer(64, 16, 2, 2, 8, 16, num_classes=3),
}


@pytest.mark.parametrize("name", REAL)
def test_laws_on_real_models(name):
    """Every way of choosing is undone, and splits where it says."""
    model = REAL[name](pytest.importorskip("torchvision.models"))
    before = _state(model)
    head = list(model.named_children())[-1][0]
    for chosen in ({"all_but": head}, {"until": 0.5}, {"until": 0.9}, {"only": next(iter(model._modules))}, {}):
        ft.freeze(model, **chosen)
        assert not any(
            p.requires_grad for module in model.modules() if "train" in vars(module) for p in module.parameters()
        )
        assert _state(ft.thaw(model)) == before
    ft.freeze(model, all_but=head)
    split = ft.split(model.eval(), torch.zeros(2, 3, 64, 64))
    assert {id(p) for p in split.head.parameters()} == {id(p) for p in model.get_submodule(head).parameters()}


def test_tied_language_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    before = _state(model)
    with pytest.raises(SplitError, match="lies on both sides"):
        ft.freeze(model, all_but="lm_head")
    ft.freeze(model, only="transformer.h.0")
    ft.freeze(model, until="transformer.h.1", args=(torch.zeros(1, 3, dtype=torch.long),))
    assert _trains(model) == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert _state(ft.thaw(model)) == before


def test_what_was_before_freezing_is_no_part_of_a_models_identity():
    """The same frozen model has one key, whether it trained before or not."""
    from forethought.identifying.fingerprint import state_of

    torch.manual_seed(0)
    model = Tokens()
    other = copy.deepcopy(model).eval()
    other.encoder.requires_grad_(False)
    keys = {state_of(ft.freeze(one), "cpu") for one in (model, other)}
    assert len(keys) == 1
