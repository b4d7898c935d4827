"""`split`: the laws of replay, over a table of odd models, over the libraries that people use, and one by one."""

import copy
import operator
import pickle
import random
import threading

import numpy as np
import odd_models
import pytest
import torch
import torch.nn.functional as F
from odd_models import CASES, Base, check, frozen
from torch import nn
from torch.utils.checkpoint import checkpoint

import forethought as ft
from forethought.errors import ForethoughtError, NothingFrozenError, ReplayDriftError, ShapeError, SplitError


def _cases():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    for case in CASES:
        yield pytest.param(case, id=case.name)


@pytest.mark.parametrize("case", list(_cases()))
def test_laws_of_the_split(case):
    """The halves give what the model gives, to the bit, with its gradients, and leave no trace; or a typed refusal."""
    try:
        check(case, ft.split)
    except ForethoughtError as refused:
        if case.refusal is None or not isinstance(refused, case.refusal):
            raise


# What a run is given -------------------------------------------------------------------------------------------------


def _joined(parts, *args, **kwargs):
    return parts.head(parts.trunk(*args, **kwargs))


class Scaled(Base):
    """Reads a number, a flag and an object that are no tensors, in the head."""

    def forward(self, x, scale=1.0, flip=False, config=None):
        y = self.head(self.body(x)) * scale * (config.gain if config is not None else 1)
        return -y if flip else y


class Config:
    def __init__(self, gain):
        self.gain = gain


class Cropped(Base):
    def forward(self, x, lengths):
        y = self.head(self.body(x))
        return torch.stack([y[i, :n].mean(0) for i, n in enumerate(lengths)])


@pytest.mark.parametrize(
    "given", [{"scale": 4.0}, {"flip": True}, {"config": Config(3.0)}], ids=lambda g: next(iter(g))
)
def test_arguments_that_are_no_tensors_reach_the_head(given):
    model, x = Scaled(), torch.randn(4, 6)
    parts = ft.split(model, x)
    assert torch.equal(_joined(parts, x, **given), model(x, **given))
    assert torch.equal(_joined(parts, x), model(x))


def test_a_list_of_lengths_reaches_the_head():
    model, x = Cropped(), torch.randn(2, 5, 6)
    parts = ft.split(model, (x, [3, 5]))
    assert torch.equal(_joined(parts, x, [1, 2]), model(x, [1, 2]))


def test_long_arrays_are_told_apart():
    class Model(Base):
        def forward(self, x, weights):
            return self.head(self.body(x)) * float(weights.sum())

    model, x = Model(), torch.randn(4, 6)
    one, other = np.ones(2000), np.ones(2000)
    other[1000] = 500
    parts = ft.split(model, (x, one))
    assert torch.equal(_joined(parts, x, other), model(x, other))


def test_one_sample_shows_enough():
    model = Base()
    parts = ft.split(model, torch.randn(1, 6))
    for batch in (1, 2, 7, 0):
        x = torch.randn(batch, 6)
        assert torch.equal(_joined(parts, x), model(x))


def test_rows_of_features_may_be_mixed():
    model, x = Base(), torch.randn(9, 6)
    parts = ft.split(model, x[:3])
    rows = torch.tensor([3, 1, 8, 3])
    assert torch.equal(parts.head(parts.trunk(x)[rows]), model(x)[rows])


class Pair(Base):
    def forward(self, x, y, gain=1.0):
        return self.head(self.body(x) - self.body(y)) * gain


def test_inputs_by_position_and_by_name_are_one_form():
    """Features of inputs that were given by name go to the head of a split that was given them by position."""
    model, x, y = Pair(), torch.randn(5, 6), torch.randn(5, 6)
    parts = ft.split(model, (x[:3], y[:3]))
    values = parts.trunk(x=x, y=y)
    assert torch.equal(parts.head(values.clone()), model(x, y))
    parts.trunk(x, y, 2.0)  # another number: another form
    with pytest.raises(ShapeError, match="several numbers"):
        parts.head(values.clone())


def test_a_model_that_tells_names_from_positions_is_asked_for_one_form():
    """Where a hook makes another model of inputs by name, features that do not tell which are refused."""
    model, x, y = Pair(), torch.randn(5, 6), torch.randn(5, 6)
    model.register_forward_hook(lambda _, args, named, out: out * 2 if named else out, with_kwargs=True)
    parts = ft.split(model, (x[:3], y[:3]))
    assert torch.equal(_joined(parts, x=x, y=y), model(x=x, y=y))
    with pytest.raises(ShapeError, match="one shape"):
        parts.head(parts.trunk(x=x, y=y).clone())


def test_one_tensor_given_twice():
    class Model(Base):
        def forward(self, a, b):
            return self.head(self.body(a)) + b[:, :3]

    model, x, y = Model(), torch.randn(4, 6), torch.randn(5, 6)
    parts = ft.split(model, (x, x))
    assert torch.equal(_joined(parts, y, y), model(y, y))


def test_another_length_is_recorded_when_it_comes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = frozen(nn.Linear(6, 8)), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.body(x)).flatten(1)

    model = Model()
    parts = ft.split(model, torch.randn(3, 5, 6))
    for x in (torch.randn(4, 7, 6), torch.randn(2, 5, 6)):
        assert torch.equal(_joined(parts, x), model(x))


class Pooled(nn.Module):
    """Sound of any length to one row of features."""

    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.Conv1d(1, 4, 3, 2)), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x).mean(-1))


def test_lengths_that_pool_to_one_shape():
    model = Pooled()
    parts = ft.split(model, torch.randn(3, 1, 16))
    for x in (torch.randn(4, 1, 33), torch.randn(2, 1, 16)):
        assert torch.equal(_joined(parts, x), model(x))


def test_time_first_through_a_strided_convolution():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = frozen(nn.Conv1d(6, 4, 3, 2)), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x.permute(1, 2, 0)).permute(2, 0, 1))

    model = Model()
    parts = ft.split(model, torch.randn(9, 2, 6))
    x = torch.randn(16, 2, 6)
    assert torch.equal(_joined(parts, x), model(x))


def test_features_of_a_wrong_shape_are_refused():
    parts = ft.split(Base(), torch.randn(3, 6))
    for values in (torch.randn(3, 7), torch.randn(3, 8).double(), (torch.randn(3, 8), torch.randn(3, 8)), ()):
        with pytest.raises(ShapeError):
            parts.head(values)


# Where it runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.LSTM(6, 8, batch_first=True), nn.Conv1d(5, 5, 3, padding=1)])
def test_runs_under_any_gradient_mode(context, layer):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.mid = frozen(layer), nn.LazyLinear(4)

        def forward(self, x):
            h = self.body(x)
            return self.mid(h[0] if isinstance(h, tuple) else h)

    model, x = Model(), torch.randn(3, 5, 6)
    model(x)
    parts = ft.split(model, x)
    with context():
        assert torch.equal(_joined(parts, x), model(x))


def test_attention_in_the_head_under_no_grad():
    """In evaluation without gradients torch has a fast attention, which a function mode would switch off."""
    model = nn.Sequential(frozen(nn.Linear(6, 6)), nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)).eval()
    parts, x = ft.split(model, torch.randn(3, 5, 6)), torch.randn(4, 5, 6)
    with torch.no_grad():
        assert torch.equal(_joined(parts, x), model(x))


def test_split_under_no_grad_still_trains():
    model, x = Base(), torch.randn(4, 6)
    with torch.no_grad():
        parts = ft.split(model, x)
    _joined(parts, x).sum().backward()
    assert model.head.weight.grad is not None
    assert model.body[0].weight.grad is None


def test_split_under_inference_mode():
    model, x = Base(), torch.randn(4, 6)
    with torch.inference_mode():
        parts = ft.split(model, x)
        assert torch.equal(_joined(parts, x), model(x))


def test_autocast_around_each_half():
    model, x = Base(), torch.randn(4, 6)
    parts = ft.split(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = _joined(parts, x), model(x)
    assert got.dtype == wanted.dtype == torch.bfloat16
    assert torch.equal(got, wanted)
    assert torch.equal(_joined(parts, x), model(x))


def test_halves_run_in_many_threads():
    model = Base()
    parts = ft.split(model, torch.randn(4, 6))
    wrong = []

    def work(seed):
        chance = torch.Generator().manual_seed(seed)
        for batch in range(1, 12):
            x = torch.randn(batch, 6, generator=chance)
            if not torch.equal(_joined(parts, x), model(x)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_of_the_model_leaves_nothing_behind():
    class Breaks(nn.Module):
        def forward(self, x):
            raise KeyError("boom")

    model = nn.Sequential(frozen(nn.Linear(6, 8)), nn.BatchNorm1d(8), Breaks())
    x = torch.randn(3, 6)
    before = odd_models.traces(model)
    with pytest.raises(KeyError, match="boom"):
        ft.split(model, x)
    odd_models.demand_untouched(before, odd_models.traces(model), "a failed split")


def test_a_forward_that_swallows_everything_is_refused():
    class Model(Base):
        def forward(self, x):
            try:
                h = self.body(x)
            except BaseException:
                h = x.new_zeros(x.shape[0], 8)
            return self.head(h)

    with pytest.raises(ReplayDriftError):
        ft.split(Model(), torch.randn(3, 6))


def test_no_generator_of_another_device_is_seeded(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    ft.split(Base(), torch.randn(3, 6))
    assert not seeded


def test_python_and_numpy_random_states_stay():
    class Model(Base):
        def forward(self, x):
            random.random()
            np.random.rand()
            return super().forward(x)

    before = random.getstate(), np.random.get_state()[2]
    ft.split(Model(), torch.randn(3, 6))
    assert (random.getstate(), np.random.get_state()[2]) == before


def test_a_model_that_never_repeats_itself_is_not_believed():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.peak = frozen(nn.Linear(6, 8)), 1.0

        def forward(self, x):
            h = self.net(x)
            self.peak = float(h.max())
            return h

    calls = []

    class Model(Base):
        def forward(self, x):
            calls.append(1)
            h = self.body(x)
            return self.head(h) * self.body.peak + 1e-3 * len(calls)

    model, x = Model(), torch.randn(4, 6)
    model.body = Inner()
    with pytest.raises(ForethoughtError):
        ft.split(model, x)


# What happens to the model afterwards ---------------------------------------------------------------------------------


def test_changed_weights_are_seen():
    model, x = Base(), torch.randn(4, 6)
    parts = ft.split(model, x)
    model.body[0].weight.data.mul_(2)
    model.load_state_dict(Base().state_dict())
    model.head.weight = nn.Parameter(torch.randn(3, 8))
    assert torch.equal(_joined(parts, x), model(x))
    model.double()
    assert torch.equal(_joined(parts, x.double()), model(x.double()))


def test_training_the_head_trains_the_model():
    model, x = Base(), torch.randn(16, 6)
    twin = copy.deepcopy(model)
    parts = ft.split(model, x)
    values = parts.trunk(x)
    ours = torch.optim.Adam(parts.head.parameters(), 1e-2)
    theirs = torch.optim.Adam(twin.head.parameters(), 1e-2)
    for _ in range(5):
        for optimizer, run in ((ours, lambda: parts.head(values)), (theirs, lambda: twin(x))):
            optimizer.zero_grad()
            run().square().mean().backward()
            optimizer.step()
    assert torch.equal(model(x), twin(x))


def test_freezing_more_afterwards_changes_no_number():
    model = nn.Sequential(frozen(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Linear(8, 3))
    parts = ft.split(model, torch.randn(3, 6))
    model[1].requires_grad_(False)
    x = torch.randn(4, 6)
    assert torch.equal(_joined(parts, x), model(x))
    assert len(list(parts.head.parameters())) == 2


def test_unfreezing_afterwards_is_noticed():
    model, x = nn.Sequential(frozen(nn.Linear(6, 8)), frozen(nn.Linear(8, 8)), nn.Linear(8, 3)), torch.randn(3, 6)
    parts = ft.split(model, x)
    model[1].requires_grad_(True)
    with pytest.raises(ForethoughtError):
        parts.trunk(x)


def test_swapping_a_module_afterwards_is_noticed():
    model, x = Base(), torch.randn(3, 6)
    parts = ft.split(model, x)
    model.head = nn.Linear(8, 3)
    try:
        got = _joined(parts, x)
    except ForethoughtError:
        return
    assert torch.equal(got, model(x))


def test_the_mode_of_the_model_is_followed():
    model, x = nn.Sequential(frozen(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Dropout()), torch.randn(3, 6)
    parts = ft.split(model.train(), x)
    model.eval()
    assert torch.equal(_joined(parts, x), model(x))


def test_the_mode_of_the_head_is_its_own():
    model, x = nn.Sequential(frozen(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Dropout()), torch.randn(3, 6)
    parts = ft.split(model.eval(), x)
    values = parts.trunk(x)
    still = parts.head(values)
    parts.head.train()
    assert not torch.equal(parts.head(values), still)
    parts.head.eval()
    assert torch.equal(parts.head(values), still)
    assert not model.training


def test_no_weight_is_copied():
    model = Base()
    parts = ft.split(model, torch.randn(3, 6))
    places = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert {p.untyped_storage().data_ptr() for p in parts.head.body.parameters()} == places
    assert {p.untyped_storage().data_ptr() for p in parts.trunk.parameters()} == places


# Copies and chains ----------------------------------------------------------------------------------------------------


def _is_independent(model, x, mode=True):
    parts = ft.split(model, x)
    values = parts.trunk(x)
    copied = copy.deepcopy(parts.head).train(mode)
    before = copy.deepcopy(model.state_dict())
    copied(values).sum().backward()
    assert all(p.grad is not None for p in copied.parameters())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(torch.as_tensor(copied(values)[0]), torch.as_tensor(parts.head(values)[0]))


def test_a_copied_head_is_independent():
    _is_independent(Base(), torch.randn(4, 6))


def test_a_copied_recurrent_head_is_independent():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = frozen(nn.Linear(6, 8)), nn.LSTM(8, 3, batch_first=True)

        def forward(self, x):
            return self.head(self.body(x))[0]

    _is_independent(Model(), torch.randn(3, 5, 6))


def test_a_copied_head_has_its_own_statistics():
    model = nn.Sequential(frozen(nn.Linear(6, 8)), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    _is_independent(model, torch.randn(4, 6))


def test_a_copied_head_owns_parameters_in_lists():
    class Model(Base):
        def __init__(self):
            super().__init__()
            self.weights = [self.head.weight, self.head.bias]

        def forward(self, x):
            return F.linear(self.body(x), *self.weights)

    _is_independent(Model(), torch.randn(4, 6))


def test_a_copied_head_of_a_closure_is_refused_or_independent():
    model = Base()
    model.forward = lambda x: model.head(model.body(x))
    try:
        _is_independent(model, torch.randn(4, 6))
    except ForethoughtError:
        return


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_halves_can_be_copied_whole(duplicate):
    model, x = nn.Sequential(frozen(nn.Linear(6, 8)), nn.Linear(8, 3)), torch.randn(4, 6)
    parts = duplicate(ft.split(model, x))
    assert torch.equal(_joined(parts, x), model(x))


def test_a_trunk_is_a_module_of_another_model():
    parts = ft.split(Base(), torch.randn(4, 6))
    model = nn.Sequential(parts.trunk, frozen(nn.Linear(8, 8)), nn.Linear(8, 3))
    chained, x = ft.split(model, torch.randn(4, 6)), torch.randn(5, 6)
    assert torch.equal(_joined(chained, x), model(x))


def test_a_head_is_split_again_when_more_is_frozen():
    model = nn.Sequential(frozen(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    parts, x = ft.split(model, torch.randn(4, 6)), torch.randn(5, 6)
    frozen(model[2])
    later = ft.split(parts.head, parts.trunk(torch.randn(4, 6)))
    assert torch.equal(_joined(later, parts.trunk(x)), model(x))


# Code that torch functions do not show --------------------------------------------------------------------------------


def _script(module):
    with pytest.warns(FutureWarning, match="deprecated"):
        return torch.jit.script(module)


def test_a_scripted_module_after_the_frontier():
    model = nn.Sequential(frozen(nn.Linear(6, 8)), nn.Linear(8, 8), _script(nn.Sequential(nn.ReLU(), nn.Linear(8, 3))))
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    assert torch.equal(_joined(parts, x), model(x))


def test_a_scripted_frozen_module():
    model = nn.Sequential(frozen(nn.Linear(6, 6)), _script(frozen(nn.Linear(6, 8))), nn.ReLU(), nn.Linear(8, 3))
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    assert torch.equal(_joined(parts, x), model(x))


def test_scripted_code_across_the_frontier():
    class Model(Base):
        def __init__(self):
            super().__init__()
            self.fast = _script(nn.Linear(8, 3))

        def forward(self, x):
            h = self.body(x)
            return self.fast(h) + self.head(h)

    model = Model()
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    assert torch.equal(_joined(parts, x), model(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while compiling
def test_compiled_functions_run_eagerly():
    act = torch.compile(lambda x: x.relu() * 2, backend="eager")

    class Model(Base):
        def forward(self, x):
            return act(self.head(act(self.body(x))))

    model = Model()
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    assert torch.equal(_joined(parts, x), model(x))


def test_an_operator_of_ones_own():
    @torch.library.custom_op("forethought_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    class Model(Base):
        def forward(self, x):
            return self.head(twice(self.body(x)))

    model = Model()
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    assert torch.equal(_joined(parts, x), model(x))


def test_a_traced_model():
    model = torch.fx.symbolic_trace(Base())
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    assert torch.equal(_joined(parts, x), model(x))


# The libraries --------------------------------------------------------------------------------------------------------


def _layers(model):
    return [module for module in model.modules() if not list(module.children()) and list(module.parameters())]


def _last(model):
    frozen(model)
    _layers(model)[-1].requires_grad_(True)


def _third(model):
    frozen(model)
    layers = _layers(model)
    for layer in layers[2 * len(layers) // 3 :]:
        layer.requires_grad_(True)


def _single(model):
    frozen(model)
    parameters = list(model.parameters())
    parameters[3 * len(parameters) // 4].requires_grad_(True)


def _splits(build, feed, cuts, train=False, sizes=(2, 2, 3)):
    for cut in cuts:

        def make(cut=cut):
            model = build()
            cut(model)
            return model

        check(odd_models.Case(cut.__name__, make, feed, train=train, sizes=sizes), ft.split)


def _pictures(size):
    return lambda batch: ((torch.randn(batch, 3, size, size),), {})


VISION = ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "densenet121", "swin_t"]


def _vision(name):
    models = pytest.importorskip("torchvision.models")
    extra = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    return lambda: getattr(models, name)(weights=None, num_classes=3, **extra)


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_torchvision(name):
    _splits(_vision(name), _pictures(32 if name != "googlenet" else 48), [_third])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large"])
def test_segmentation(name):
    models = pytest.importorskip("torchvision.models.segmentation")
    _splits(lambda: getattr(models, name)(weights=None, weights_backbone=None, num_classes=2), _pictures(32), [_third])


@pytest.mark.slow
def test_detection_splits_or_is_refused_by_type():
    models = pytest.importorskip("torchvision.models.detection")

    def build():
        return models.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)

    try:
        _splits(build, lambda batch: (([torch.rand(3, 64, 64) for _ in range(batch)],), {}), [_last])
    except ForethoughtError:
        return


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "levit_128s", "convnext_atto"])
def test_timm(name):
    timm = pytest.importorskip("timm")
    size = {"levit_128s": 224, "eva02_tiny_patch14_224": 56}.get(name, 64)
    extra = {} if name.startswith(("levit", "convnext")) else {"img_size": size, "depth": 4}
    _splits(lambda: timm.create_model(name, num_classes=3, **extra), _pictures(size), [_third])


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = TINY | {"vocab_size": 50}


def _hf(name):
    hf = pytest.importorskip("transformers")
    kind, config = {
        "bert": (hf.BertForSequenceClassification, lambda: hf.BertConfig(**TOKENS)),
        "gpt2": (
            hf.GPT2LMHeadModel,
            lambda: hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0),
        ),
        "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**TOKENS, num_key_value_heads=1)),
        "mistral": (
            hf.MistralForCausalLM,
            lambda: hf.MistralConfig(**TOKENS, num_key_value_heads=1, sliding_window=4),
        ),
        "deberta": (
            hf.DebertaV2ForSequenceClassification,
            lambda: hf.DebertaV2Config(**TOKENS, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        ),
        "vit": (hf.ViTForImageClassification, lambda: hf.ViTConfig(**TINY, image_size=16, patch_size=8)),
    }[name]
    return lambda: kind(config())


def _texts(masked):
    def feed(batch):
        given = {"input_ids": torch.randint(3, 50, (batch, 6))}
        if masked:
            given["attention_mask"] = (torch.arange(6)[None] < 6 - torch.arange(batch)[:, None] % 3).long()
        return (), given

    return feed


@pytest.mark.parametrize("name", ["gpt2"])
def test_transformers_without_mask(name):
    _splits(_hf(name), _texts(False), [_third])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama", "mistral", "deberta"])
def test_more_transformers_without_mask(name):
    _splits(_hf(name), _texts(False), [_third])


def test_transformers_of_pictures():
    _splits(_hf("vit"), lambda batch: ((), {"pixel_values": torch.randn(batch, 3, 16, 16)}), [_single])


def test_a_padded_text_classifier_of_which_all_but_the_last_layer_is_frozen():
    _splits(_hf("bert"), _texts(True), [_last])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_transformers_with_a_mask(name):
    """transformers asks `padding_mask.all()` in the middle of a partly frozen call."""
    _splits(_hf(name), _texts(True), [_third])


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("first", [0, 2], ids=["full first", "padded first"])
def test_batches_with_and_without_padding(name, first):
    model = _hf(name)().eval()
    _third(model)

    def feed(cut):
        mask = torch.ones(3, 6, dtype=torch.long)
        mask[0, 6 - cut :] = 0
        return {"input_ids": torch.randint(3, 50, (3, 6)), "attention_mask": mask}

    parts = ft.split(model, (), feed(first))
    for cut in (0, 2, 0):
        given = feed(cut)
        odd_models.compare(model(**given), _joined(parts, **given), f"{cut} padded")


def test_a_mask_read_by_no_python():
    _splits(_hf("mistral"), _texts(True), [_third])


def test_relative_positions_in_one_parameter_cut():
    _splits(_hf("deberta"), _texts(True), [_single])


def test_nothing_frozen_and_no_inputs_are_refused():
    with pytest.raises(NothingFrozenError):
        ft.split(nn.Linear(6, 3), torch.randn(3, 6))
    with pytest.raises(SplitError):
        ft.split(Base(), ())
    with pytest.raises(SplitError):
        ft.split(lambda x: x, torch.randn(3, 6))


# What a head must not get wrong ---------------------------------------------------------------------------------------


class Does(Base):
    """Base, with a forward of the test's own."""

    def __init__(self, do):
        super().__init__()
        self.square = nn.Linear(8, 8)
        self.do = do

    def forward(self, x):
        return self.do(self, self.body(x))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["lt", "gt", "le", "ge", "eq", "ne", "sub", "truediv", "pow"])
def test_operators_between_frozen_and_trainable(name, turned):
    """For `a < b` Python asks the more special class first, with the comparison turned round."""
    do = getattr(operator, name)
    model = Does(lambda m, h: do(h, m.square(h)) if turned else do(m.square(h), h))
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    odd_models.compare(model(x), _joined(parts, x), name)


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_constant_that_is_filled_through_its_views(rewritten):
    def do(m, h):
        filled = torch.zeros(h.shape[0], 2, 8)
        for at in range(2):
            filled[:, at].copy_(h * (at + 1))
        first = m.head(filled)
        if rewritten:
            filled[:, 0].zero_()
        return first, m.head(filled), m.head(filled.view(-1, 8))

    model = Does(do)
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(5, 6)
    odd_models.compare(model(x), _joined(parts, x), "filled")


def test_frozen_values_of_a_changing_number_may_cross():
    model = Does(lambda m, h: m.head(h[h[:, 0] > 0]).sum(0))
    parts = ft.split(model, torch.randn(6, 6))
    for _ in range(3):
        x = torch.randn(9, 6)
        odd_models.compare(model(x), _joined(parts, x), "chosen")


def test_a_tensor_for_each_sample():
    """One path is recorded for each number of samples, where they differ in kind."""
    model = Does(lambda m, h: m.head(torch.cat([one * 2 for one in h.split(1)])))
    parts = ft.split(model, torch.randn(3, 6))
    for batch in (3, 5, 2, 5):
        x = torch.randn(batch, 6)
        odd_models.compare(model(x), _joined(parts, x), f"{batch} samples")


def test_what_trains_may_take_another_path_once_nothing_is_frozen():
    def do(m, h):
        y = m.head(h)
        for _ in range(int(y.abs().sum() * 10) % 3):
            y = y + m.head(y.new_ones(8))
        return y

    model = Does(do)
    parts = ft.split(model, torch.randn(4, 6))
    for _ in range(5):
        x = torch.randn(7, 6)
        odd_models.compare(model(x), _joined(parts, x), "loops")


@pytest.mark.parametrize("sparse", [True, False])
def test_one_graph_has_a_fingerprint_and_is_split_again(sparse):
    """What is recorded anew is recorded on all of the example where two of its rows mean nothing."""
    model = odd_models._Convolves()
    args, _ = (odd_models._sparse_graph if sparse else odd_models._graph)(6)
    parts = ft.split(model, args)
    before = parts.trunk.fingerprint
    with torch.no_grad():
        model.body[0].weight[0, 0] += 1
    assert parts.trunk.fingerprint != before
    other, _ = odd_models._graph(9)
    assert torch.equal(_joined(parts, *other), model(*other))


@pytest.mark.filterwarnings("ignore:.*(nested|CSR)")
@pytest.mark.parametrize(
    ("convert", "says"),
    [
        (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "to_padded_tensor"),
        (torch.Tensor.to_sparse_csr, r"to_sparse_coo\(\)"),
    ],
    ids=["nested", "csr"],
)
def test_inputs_whose_samples_cannot_be_chosen_are_refused_by_name(convert, says):
    """Trials choose samples: inputs of which torch gives no rows are refused before, with the conversion."""
    with pytest.raises(SplitError, match=says):
        ft.split(Base(), convert(torch.ones(3, 6)))


def test_rows_of_fewer_inputs_than_the_example_had_say_so():
    """A data set that leaves an input out, as labels, crosses another frontier: the message tells it from padding."""

    class Weighs(Base):
        def forward(self, x, labels=None):
            y = self.head(self.body(x))
            return y if labels is None else (y * labels).sum()

    parts = ft.split(Weighs(), torch.randn(3, 6), {"labels": torch.randn(3, 1)})
    with pytest.raises(ShapeError, match=r"Give all 2 tensors of the split's example, not 1: .*inputs="):
        parts.rows((torch.randn(3, 6),), {})


class Routes(nn.Module):
    """Frozen, but for an expert that few batches need: below it, or only reached through a list."""

    def __init__(self, expert, is_below):
        super().__init__()
        self.usual = frozen(nn.Linear(6, 8))
        self.experts = nn.ModuleList([expert]) if is_below else [expert]

    def forward(self, x):
        return self.experts[0](x) if float(x.sum()) > 50 else self.usual(x)


class Expert(Base):
    """The expert trains, and is a part of the whole; the routes are frozen otherwise."""

    def __init__(self, is_below):
        super().__init__()
        self.expert = nn.Linear(6, 8)
        self.routes = Routes(self.expert, is_below)

    def forward(self, x):
        return self.head(self.body(x) + self.routes(x))


@pytest.mark.parametrize("is_below", [True, False])
def test_what_trains_but_was_not_used_by_the_example_is_not_frozen(is_below):
    """A batch that uses what the example did not gives its gradients, or is refused: it is never taken as frozen."""
    torch.manual_seed(0)
    model, x = Expert(is_below), torch.randn(4, 6)
    parts = ft.split(model, x)
    assert torch.equal(_joined(parts, x), model(x))
    x = x.abs() * 50
    try:
        given = torch.autograd.grad(_joined(parts, x).sum(), [*model.expert.parameters()], allow_unused=True)
    except (NothingFrozenError, ReplayDriftError):
        return
    wanted = torch.autograd.grad(model(x).sum(), [*model.expert.parameters()])
    assert all(map(torch.equal, given, wanted))


class Shrinks(Base):
    """Runs a frozen layer until a batch is small enough."""

    def __init__(self):
        super().__init__()
        self.step = frozen(nn.Linear(6, 6, bias=False))
        nn.init.eye_(self.step.weight).mul_(0.5)

    def forward(self, x):
        while x.norm() > 1:
            x = self.step(x)
        return self.head(self.body(x))


def _of_other_rows(parts, x):
    return parts.rows((torch.cat([x, x * 900]),), {})


def _of_other_weights(parts, _):
    nn.init.eye_(parts.model.step.weight).mul_(0.9)
    return parts.trunk.fingerprint


@pytest.mark.parametrize("ask", [_of_other_rows, _of_other_weights])
def test_rows_of_a_loop_that_values_end_are_refused_with_its_cause(ask):
    """Batches that leave a frozen loop sooner or later share no frontier: what decides is named, and the fix."""
    torch.manual_seed(0)
    model, x = Shrinks(), torch.randn(3, 6)
    parts = ft.split(model, x)
    assert torch.equal(_joined(parts, x * 50), model(x * 50))
    with pytest.raises((ShapeError, SplitError), match=r"Tensor\.__bool__ in the model's own.*module of their own"):
        ask(parts, x)


def test_a_split_of_what_reads_another_file_now_says_so(tmp_path):
    """A path that a file decides is another one once the file is: the refusal names files among the causes."""
    file = tmp_path / "deep"

    class Reads(Base):
        def forward(self, x):
            h = self.body(x)
            return self.head(h.tanh() if file.exists() else h)

    parts = ft.split(Reads(), torch.randn(3, 6))
    file.touch()
    with pytest.raises(SplitError, match="what its forward reads: a file"):
        parts.trunk.fingerprint  # noqa: B018


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: setattr(m.body[1], "slope", 2.0),
        lambda m: m.body[1].register_forward_hook(lambda module, args, output: output * 3),
        lambda m: m.body[1].slopes.append(5.0),
        lambda m: m.body[1].slopes.__setitem__(0, 5.0),
        lambda m: m.head.register_forward_hook(lambda module, args, output: output * 3),
        lambda m: setattr(m, "scale", 3.0),
        lambda m: m.train(),
        lambda m: m.eval(),
        lambda m: m.body.train(),
    ],
    ids=["number", "hook", "list grown", "list changed", "hook of the head", "root", "train", "eval", "part in train"],
)
def test_edits_of_the_model_are_followed(edit):
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.slopes = 1.0, [2.0]

        def forward(self, x):
            return x * self.slope * sum(self.slopes) + self.training

    class Model(Base):
        scale = 1.0

        def __init__(self):
            super().__init__()
            self.body[1] = Slope()

        def forward(self, x):
            return self.head(self.body(x)) * self.scale + self.training

    model, x = Model(), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    _joined(parts, x)
    edit(model)
    odd_models.compare(model(x), _joined(parts, x), "edited")


@pytest.mark.parametrize("region", ["head", "frozen", "both", "mixed"])
def test_checkpoints_run_again_in_the_backward_pass(region):
    def do(m, x):
        def run(inner, value):
            return checkpoint(inner, value, use_reentrant=False)

        if region == "head":
            return m.head(run(m.square, m.body(x)))
        if region == "frozen":
            return m.head(run(m.body, x))
        if region == "both":
            return run(lambda x: m.head(m.square(m.body(x))), x)
        return run(lambda h: m.head(m.late(h) + m.square(h)), m.body(x))

    class Model(Does):
        def __init__(self):
            super().__init__(do)
            self.late = frozen(nn.Linear(8, 8))

        def forward(self, x):
            return self.do(self, x)

    model, x = Model(), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    gradients = []
    for run in (model, lambda x: _joined(parts, x)):
        model.zero_grad()
        output = run(x)
        if output.requires_grad:
            output.square().sum().backward()
        gradients.append([output] + [p.grad.clone() for p in model.parameters() if p.grad is not None])
    odd_models.compare(gradients[0], gradients[1], "output and gradients")


@pytest.mark.parametrize(
    ("args", "kwargs"), [((torch.zeros(2, 6),), {}), ((torch.zeros(2, 6),), {"mask": 1, "nope": 2})]
)
def test_arguments_that_do_not_fit_are_refused_with_what_is_wanted(args, kwargs):
    class Model(Base):
        def forward(self, x, mask):
            return super().forward(x)

    with pytest.raises(SplitError, match=r"forward\(x, mask\)"):
        ft.split(Model(), args, kwargs)


def test_settings_that_a_forward_changes_for_a_part_are_put_back():
    """The trunk ends inside the forward, before what would put them back; nothing that follows may round otherwise."""

    class Coarse(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 5).requires_grad_(False), nn.Linear(5, 2)

        def forward(self, x):
            precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
            torch.set_float32_matmul_precision("medium")
            torch.set_default_dtype(torch.float16)
            x = self.layer(x)
            torch.set_float32_matmul_precision(precision)
            torch.set_default_dtype(dtype)
            return self.head(x)

    before = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    split = ft.split(Coarse(), torch.randn(3, 4))
    split.trunk(torch.randn(6, 4))
    assert (torch.get_float32_matmul_precision(), torch.get_default_dtype()) == before
