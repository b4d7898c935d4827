"""Assembling undoes splitting, loading undoes saving, and whatever is in a file, it is loaded or refused by name."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import forethought as ft
from forethought.errors import BundleError, FitError, ForethoughtError

torch.set_num_threads(1)

# The models live in text, so that a fresh process has the same classes without importing this file.
MODELS = '''
import torch
from torch import nn
import torch.nn.functional as F


def seeded(seed=0):
    torch.manual_seed(seed)


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        self[0].requires_grad_(False)

    inputs = (torch.linspace(-1, 1, 20).reshape(5, 4),), {}


class Normed(nn.Module):
    """BatchNorm on both sides of the frontier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Sequential(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
        for part in (self.conv, self.norm):
            part.requires_grad_(False)
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.rand(4))
            self.norm.running_var.copy_(torch.rand(4) + 0.5)
        self.norm.eval()

    def forward(self, x):
        return self.out(F.relu(self.norm(self.conv(x)))).mean((2, 3))

    inputs = (torch.linspace(-1, 1, 3 * 64).sin().reshape(3, 1, 8, 8),), {}


class Skip(nn.Module):
    """Two tensors cross the frontier."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.a.requires_grad_(False)
        self.b.requires_grad_(False)

    def forward(self, x):
        early = self.a(x).relu()
        late = self.b(early).tanh()
        return self.c(late) + self.c(early).sigmoid()

    inputs = Mlp.inputs


class Keywords(nn.Module):
    """Keyword inputs, nested, beside plain values; the output is a dict."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, batch, *, scale=1.0, mode=None, extra=()):
        x = batch["x"] + extra[0] * extra[1][0] if extra else batch["x"]
        return {"logits": self.b(self.a(x) * scale), "mode": mode}

    inputs = (({"x": Mlp.inputs[0][0], 3: None},), {"scale": 0.5, "mode": "a", "extra": [Mlp.inputs[0][0], (1.0, 2)]})


class Tied(nn.Module):
    """The output layer shares the frozen embedding."""

    def __init__(self):
        super().__init__()
        self.words, self.mix, self.out = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        self.out.weight = self.words.weight
        self.words.requires_grad_(False)

    def forward(self, ids):
        return self.out(self.mix(self.words(ids)))

    inputs = (torch.arange(12).reshape(4, 3) % 7,), {}


class Half(Mlp):
    """In bfloat16."""

    def __init__(self):
        super().__init__()
        self.bfloat16()

    inputs = (Mlp.inputs[0][0].bfloat16(),), {}


class Buffers(nn.Module):
    """Complex and not saved by state_dict, and still part of what the trunk reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)
        self.register_buffer("phase", torch.randn(8, dtype=torch.complex64), persistent=False)

    def forward(self, x):
        return self.b((self.a(x) * self.phase).abs())

    inputs = Mlp.inputs


MODELS = [Mlp, Normed, Skip, Keywords, Tied, Half, Buffers]
'''
_space: dict = {}
exec(MODELS, _space)
KINDS = {kind.__name__: kind for kind in _space["MODELS"]}
every_model = pytest.mark.parametrize("kind", KINDS)
X = KINDS["Mlp"].inputs[0][0]


def built(kind, seed=0):
    """A model of the table, its arguments and its keyword arguments."""
    torch.manual_seed(seed)
    args, kwargs = KINDS[kind].inputs
    return KINDS[kind](), args, kwargs


def halved(kind, seed=0):
    model, args, kwargs = built(kind, seed)
    return ft.split(model, args, kwargs), args, kwargs


def flat(output):
    """The tensors of an output, by path."""
    if isinstance(output, torch.Tensor):
        return {"": output}
    items = output.items() if isinstance(output, dict) else enumerate(output)
    parts = {k: v for k, v in items if isinstance(v, torch.Tensor | dict | list | tuple)}
    return {f"{k}.{path}": t for k, v in parts.items() for path, t in flat(v).items()}


def is_equal(a, b):
    """Whether two outputs are equal to the last bit."""
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def state(model):
    """Everything that loading may change: tensors, what trains, modes."""
    tensors = {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    return (
        tensors,
        {name: p.requires_grad for name, p in model.named_parameters()},
        {name: m.training for name, m in model.named_modules()},
    )


def is_same_state(a, b):
    return a[1:] == b[1:] and all(torch.equal(a[0][name], b[0][name]) for name in a[0])


def heads_for(split):
    """A head of each kind for a split of one flat tensor."""
    width = split.frontier[0].shape[0]
    return {
        "own": split.head,
        "spline": ft.heads.AnchorSpline(width, [0.0, 1.0, 4.0]),
        "histogram": ft.heads.HistogramHead(width, [3.0, 2.0, -1.0], targets="hl-gauss"),
        "mlp": ft.heads.MLPHead(width, [0.0, 1.0], hidden=(5,), dropout=0.3),
    }


@pytest.fixture
def saved(tmp_path):
    """A file with one head of the user's, and what it holds."""
    split, _, _ = halved("Mlp")
    torch.manual_seed(7)
    head = nn.Linear(8, 2)
    return ft.assemble(split, head).save(tmp_path / "model.safetensors")


# ------------------------------------------------------------------------------------------ assembling undoes splitting


@every_model
def test_assembling_undoes_splitting(kind):
    """Trunk and head together are the model, to the last bit."""
    split, args, kwargs = halved(kind)
    full = ft.assemble(split, split.head)
    assert is_equal(full(*args, **kwargs), split.model(*args, **kwargs))


@every_model
def test_assembled_heads_each_get_what_the_trunk_said(kind):
    """Many heads: every one gives what it gives on the trunk's values, under its name."""
    split, args, kwargs = halved(kind)
    split.head.eval()
    full = ft.assemble(split, {"b": split.head, "a": split.head})
    values = split.trunk(*args, **kwargs)
    output = full(*args, **kwargs)
    assert list(output) == ["b", "a"]
    assert all(is_equal(output[name], split.head(values)) for name in output)


def test_assembled_runs_the_trunk_once():
    """Ten heads, one pass."""
    split, args, _ = halved("Mlp")
    runs = []
    split.trunk.register_forward_hook(lambda *_: runs.append(1))
    ft.assemble(split, {f"h{i}": nn.Linear(8, 1) for i in range(10)})(*args)
    assert len(runs) == 1


def test_assembled_takes_other_batch_sizes():
    """The example's batch is not the only one."""
    split, _, _ = halved("Mlp")
    x = torch.randn(11, 4)
    assert torch.equal(ft.assemble(split, split.head)(x), split.model(x))


def test_assembled_head_may_give_anything():
    """A head's output is the user's business."""
    split, args, _ = halved("Mlp")

    class Both(nn.Module):
        def forward(self, values):
            return {"mean": values.mean(1), "first": (values[:, 0],)}

    output = ft.assemble(split, {"both": Both()})(*args)
    assert output["both"]["first"][0].shape == (5,)


def test_assembled_trains_the_heads_and_not_the_trunk():
    """A backward pass reaches every head and nothing frozen."""
    split, args, _ = halved("Mlp")
    full = ft.assemble(split, {"own": split.head, "new": nn.Linear(8, 1)})
    sum(output.sum() for output in full(*args).values()).backward()
    assert [p.grad is not None for p in split.model.parameters()] == [False, False, True, True, True, True]
    assert all(p.grad is not None for p in full.heads["new"].parameters())


def test_assembled_parameters_are_the_models_own_and_listed_once():
    """An optimizer over what trains in `full` trains the model and the new heads, each parameter once."""
    split, _, _ = halved("Mlp")
    new = nn.Linear(8, 1)
    full = ft.assemble(split, {"own": split.head, "new": new})
    listed = [p for p in full.parameters() if p.requires_grad]
    expected = [p for p in split.model.parameters() if p.requires_grad] + list(new.parameters())
    assert sorted(map(id, listed)) == sorted(map(id, expected))


def test_assembled_state_dict_goes_round():
    """The usual way of torch works as well: state_dict into another assembled model."""
    first, second = halved("Mlp", 0)[0], halved("Mlp", 1)[0]
    a = ft.assemble(first, {"own": first.head, "new": nn.Linear(8, 1)})
    b = ft.assemble(second, {"own": second.head, "new": nn.Linear(8, 1)})
    assert not is_equal(a(X), b(X))
    b.load_state_dict(a.state_dict())
    assert is_equal(a(X), b(X))
    assert torch.equal(second.model(X), first.model(X))


def test_assembled_to_changes_the_whole_model():
    """`.double()` reaches trunk, heads and the model behind them."""
    split, _, _ = halved("Mlp")
    full = ft.assemble(split, {"own": split.head, "new": nn.Linear(8, 1)}).double()
    assert {p.dtype for p in full.parameters()} == {torch.float64}
    output = full(X.double())
    assert torch.equal(output["own"], split.model(X.double()))
    assert output["new"].dtype == torch.float64


def test_assembled_saves_after_to(tmp_path):
    """A model moved or converted after it was assembled can be saved, and loading gives its outputs."""
    split, _, _ = halved("Mlp")
    full = ft.assemble(split, split.head).double()
    loaded = ft.load(full.save(tmp_path / "double"), built("Mlp", 5)[0].double())
    wanted = full(X.double())
    assert wanted.dtype == torch.float64
    assert is_equal(loaded(X.double()), wanted)


def test_assembled_train_leaves_the_trunk_frozen():
    """`full.train()`, the first line of any training loop, moves no frozen statistics and changes no feature."""
    split, args, _ = halved("Normed")
    full = ft.assemble(split, split.head)
    mean, values = split.model.norm.running_mean.clone(), split.trunk(*args)
    full.train()
    full(*args)
    assert torch.equal(split.model.norm.running_mean, mean)
    assert torch.equal(split.trunk(*args), values)


def test_assembled_train_leaves_a_trunk_frozen_by_freeze():
    """`ft.freeze` pins the modes, in the assembled model too."""
    torch.manual_seed(0)
    model = ft.freeze(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), until="1")
    split = ft.split(model, X)
    full = ft.assemble(split, split.head).train()
    mean = model[1].running_mean.clone()
    full(X + 3)
    assert torch.equal(model[1].running_mean, mean)


def test_assembled_can_be_deep_copied():
    """Averaged weights and snapshots are deep copies: the same outputs, parameters that train of its own."""
    split, args, _ = halved("Mlp")
    full = ft.assemble(split, {"own": split.head, "new": nn.Linear(8, 1)})
    before = full(*args)
    again = copy.deepcopy(full)
    assert is_equal(again(*args), before)
    with torch.no_grad():
        for parameter in again.heads.parameters():
            if parameter.requires_grad:  # what is frozen is shared, and nobody's to change
                parameter.zero_()
    assert not is_equal(again(*args), before)
    assert is_equal(full(*args), before)


@pytest.mark.parametrize("heads", [{}, {"": nn.Linear(8, 1)}, {"a.b": nn.Linear(8, 1)}, {"../a.b": nn.Linear(8, 1)}])
def test_assemble_refuses_no_heads_and_unusable_names(heads):
    """A head has a name, and a name has no dot."""
    with pytest.raises(FitError, match="Cannot"):
        ft.assemble(halved("Mlp")[0], heads)


@pytest.mark.parametrize("name", ["keys", "type", 1])
def test_assemble_refuses_names_that_torch_refuses(name):
    """'type' is a likely name of a head, and no method of ModuleDict may stand in its way unexplained."""
    with pytest.raises(FitError):
        ft.assemble(halved("Mlp")[0], {name: nn.Linear(8, 1)})


def test_assemble_refuses_what_is_no_module():
    """A function is no head."""
    with pytest.raises(FitError):
        ft.assemble(halved("Mlp")[0], {"a": lambda values: values})


# ----------------------------------------------------------------------------------------------- loading undoes saving


@every_model
def test_loading_undoes_saving(kind, tmp_path):
    """Into a model with other weights: every bit comes back, of every output."""
    split, args, kwargs = halved(kind)
    full = ft.assemble(split, split.head)
    path = full.save(tmp_path / "model")
    loaded = ft.load(path, built(kind, seed=5)[0])
    assert is_equal(loaded(*args, **kwargs), full.eval()(*args, **kwargs))
    assert loaded.split.trunk.fingerprint == split.trunk.fingerprint
    assert [(t.name, t.shape, t.dtype) for t in loaded.split.frontier] == [
        (t.name, t.shape, t.dtype) for t in split.frontier
    ]


@every_model
def test_loading_restores_what_trains_and_modes(kind, tmp_path):
    """Frozen is frozen again, and training is training."""
    split, _, _ = halved(kind)
    path = ft.assemble(split, split.head).save(tmp_path / "model")
    model = built(kind, seed=5)[0].requires_grad_(True).eval()
    ft.load(path, model)
    assert state(model)[1:] == state(split.model)[1:]


@every_model
def test_saving_changes_nothing(kind, tmp_path):
    """Neither the model, nor a mode, nor the generator."""
    split, _, _ = halved(kind)
    full = ft.assemble(split, split.head)
    before, modes, random = state(split.model), state(full)[2], torch.get_rng_state()
    full.save(tmp_path / "model")
    assert is_same_state(state(split.model), before)
    assert state(full)[2] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_heads_of_ours_need_nothing_to_load(tmp_path):
    """Our heads are rebuilt from their options; several of them, beside the model's own."""
    split, args, _ = halved("Mlp")
    full = ft.assemble(split, heads_for(split))
    loaded = ft.load(full.save(tmp_path / "model"), built("Mlp", 5)[0])
    assert is_equal(loaded(*args), full.eval()(*args))
    assert {name: type(head) for name, head in loaded.heads.items()} == {n: type(h) for n, h in full.heads.items()}


def test_heads_of_the_user_are_given(tmp_path, saved):
    """A module of the user's is brought along; without it the error says how."""
    with pytest.raises(BundleError, match=r"ft\.load\(path, model, heads=\{'head': Linear"):
        ft.load(saved, built("Mlp", 5)[0])
    head = nn.Linear(8, 2)
    loaded = ft.load(saved, built("Mlp", 5)[0], head)
    assert loaded.heads["head"] is head
    torch.manual_seed(7)
    assert torch.equal(head.weight, nn.Linear(8, 2).weight)


def test_certificates_are_saved_and_made_again(tmp_path):
    """A file holds each head's certificate; loading proves it again, for the same weights."""
    split, _, _ = halved("Mlp")
    full = ft.assemble(split, heads_for(split))
    path = full.save(tmp_path / "model")
    before = full.certificates()
    assert {name: certificate.holds for name, certificate in before.items()}["spline"]
    assert ft.load(path, built("Mlp", 5)[0]).certificates() == before


def test_a_head_changed_in_its_file_does_not_keep_its_certificate(saved, tmp_path):
    """Other weights, or another proof than can be made: refused."""
    split, _, _ = halved("Mlp")
    full = ft.assemble(split, {"a": ft.heads.AnchorSpline(8, [0.0, 1.0, 4.0])})
    path = full.save(tmp_path / "model")
    assert outcome(forged(path), heads=False) == "loaded"
    for forgery in (
        {"heads.a.latent_net.net.0.bias": full.heads["a"].latent_net.net[0].bias.detach() + 1e-7},
        {"heads.a.line.scale.values": torch.tensor([0.0, 4.0, 1.0])},
    ):
        assert outcome(forged(path, tensors=forgery), heads=False) == "refused"


def test_heads_are_loaded_ready_to_use(tmp_path):
    """Dropout sleeps in what was loaded."""
    split, args, _ = halved("Mlp")
    full = ft.assemble(split, {"a": ft.heads.MLPHead(8, [0.0, 1.0], dropout=0.9)})
    loaded = ft.load(full.save(tmp_path / "model"), built("Mlp", 5)[0])
    assert is_equal(loaded(*args), loaded(*args))


def test_trained_heads_are_saved_as_trained(tmp_path):
    """What fit returns is a copy; it is that copy that is saved."""
    split, args, _ = halved("Mlp")
    head = copy.deepcopy(split.head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(-2)
    full = ft.assemble(split, head)
    loaded = ft.load(full.save(tmp_path / "model"), built("Mlp", 5)[0])
    assert torch.equal(loaded(*args), full(*args))
    assert not torch.equal(loaded(*args), split.model(*args))


def test_two_trained_copies_of_the_own_head_are_both_kept(tmp_path):
    """One head at two step sizes: `fit` gives two copies, `assemble` takes both, so `load` gives both."""
    split, args, _ = halved("Mlp")
    heads = {name: copy.deepcopy(split.head) for name in ("slow", "fast")}
    with torch.no_grad():
        for parameter in heads["fast"].parameters():
            parameter.add_(1)
    full = ft.assemble(split, heads)
    loaded = ft.load(full.save(tmp_path / "model"), built("Mlp", 5)[0])
    assert is_equal(loaded(*args), full(*args))


def test_an_earlier_cut_is_kept(tmp_path):
    """split(at=...) is cut there again."""
    model, args, _ = built("Mlp")
    model[2].requires_grad_(False)
    split = ft.split(model, args, at="1")
    loaded = ft.load(ft.assemble(split, split.head).save(tmp_path / "model"), built("Mlp", 5)[0])
    assert loaded.split.at == ("1",)
    assert torch.equal(loaded(*args), model(*args))


def test_tied_weights_stay_tied(tmp_path):
    """One tensor, before and after."""
    split, _, _ = halved("Tied")
    model = built("Tied", 5)[0]
    ft.load(ft.assemble(split, split.head).save(tmp_path / "model"), model)
    assert model.out.weight is model.words.weight


def test_statistics_in_the_head_come_back(tmp_path):
    """BatchNorm after the frontier has moved by the time it is saved."""
    split, args, _ = halved("Normed")
    for _ in range(3):
        split.head(split.trunk(*args))
    path = ft.assemble(split, split.head).save(tmp_path / "model")
    model = built("Normed", 5)[0]
    ft.load(path, model)
    assert torch.equal(model.out[1].running_mean, split.model.out[1].running_mean)
    assert model.out[1].num_batches_tracked == 3


def test_buffers_outside_state_dict_come_back_in_the_head_too(tmp_path):
    """A random, non-persistent buffer after the frontier is part of the model as one before it is."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)
            self.register_buffer("scale", torch.rand(2), persistent=False)

        def forward(self, x):
            return self.b(self.a(x)) * self.scale

    split = ft.split(Model(), X)
    loaded = ft.load(ft.assemble(split, split.head).save(tmp_path / "model"), Model())
    assert torch.equal(loaded(X), split.model(X))


def test_buffers_that_a_forward_makes_are_made_again(tmp_path):
    """A cache that the first forward registers is no reason to refuse a file: a fresh model has none."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)

        def forward(self, x):
            h = self.b(self.a(x))
            if not hasattr(self, "ramp"):
                self.register_buffer("ramp", torch.linspace(0, 1, 2), persistent=False)
            return h * self.ramp

    model = Model()
    model(X)
    split = ft.split(model, X)
    loaded = ft.load(ft.assemble(split, split.head).save(tmp_path / "model"), Model())
    assert torch.equal(loaded(X), model(X))


FRESH = """
import sys, torch, safetensors.torch
import builtins, pickle
def refuse(*a, **k): raise AssertionError("pickle")
pickle.loads = pickle.load = refuse
torch.load = refuse
import forethought as ft
for kind in MODELS:
    path = f"{sys.argv[1]}/{kind.__name__}"
    torch.manual_seed(99)
    full = ft.load(path, kind())
    args, kwargs = kind.inputs
    out = full(*args, **kwargs)
    out = out["logits"] if isinstance(out, dict) else out
    wanted = safetensors.torch.load_file(path + ".wanted")["out"]
    assert torch.equal(out, wanted), kind
    print(kind.__name__, full.split.trunk.fingerprint)
"""


def test_a_fresh_process_gives_the_same_bits(tmp_path):
    """What another process loads gives the same outputs and the same fingerprint, without pickle."""
    prints = []
    for kind in KINDS:
        split, args, kwargs = halved(kind)
        full = ft.assemble(split, split.head)
        full.save(tmp_path / kind)
        out = full.eval()(*args, **kwargs)
        out = out["logits"] if isinstance(out, dict) else out
        safetensors.torch.save_file({"out": out.detach().contiguous()}, tmp_path / f"{kind}.wanted")
        prints.append(f"{kind} {split.trunk.fingerprint}")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", MODELS + "\ntorch.set_num_threads(1)\n" + FRESH, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONHASHSEED": "3"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == prints


def test_loading_under_another_matmul_precision(saved):
    """`torch.set_float32_matmul_precision('high')`, which half of all training scripts say, is no other model."""
    split, args, _ = halved("Mlp")
    head = nn.Linear(8, 2)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        loaded = ft.load(saved, built("Mlp", 5)[0], head)
        assert torch.equal(loaded(*args), head(split.trunk(*args)))
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(loaded(*args), head(split.trunk(*args)))
    torch.manual_seed(7)
    assert torch.equal(head.weight, nn.Linear(8, 2).weight)


def test_the_file_is_plain_safetensors(saved):
    """Anyone can read it: tensors by name, JSON in the header."""
    with safetensors.safe_open(saved, "pt") as file:
        about = json.loads(file.metadata()["forethought"])
        names = set(file.keys())
    assert about["format"] == 1
    assert {"trunk.0.weight", "trunk.0.bias", "heads.head.weight", "heads.head.bias"} <= names
    assert b"pickle" not in saved.read_bytes()


def test_saving_again_replaces_whole_files(saved, monkeypatch):
    """If the second save fails at its last step, the first file is whole and nothing else is left."""
    split, args, _ = halved("Mlp", seed=3)
    full = ft.assemble(split, split.head)
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(BundleError, match="disk full"):
            full.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    full.save(saved)
    assert torch.equal(ft.load(saved, built("Mlp", 5)[0])(*args), full(*args))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
def test_the_file_can_be_read_by_whom_the_umask_allows(saved):
    """A saved model has the mode of any other new file."""
    other = saved.with_name("other")
    other.write_bytes(b"")
    assert saved.stat().st_mode == other.stat().st_mode


def test_the_trunk_is_saved_once(tmp_path):
    """Frozen weights are in the file once, however many heads there are."""
    split, _, _ = halved("Mlp")
    path = ft.assemble(split, {"a": split.head, "b": copy.deepcopy(split.head)}).save(tmp_path / "model")
    frozen = split.model[0].weight
    held = safetensors.torch.load_file(path)
    assert sum(t.shape == frozen.shape and torch.equal(t, frozen) for t in held.values()) == 1


@pytest.mark.parametrize("same", [3, {"heads.head.weight": "nothing"}, {"x": ["y"]}, {"x": "x"}], ids=str)
def test_hostile_doubles_are_refused(saved, same):
    """A tensor that stands for another is in the file, and hides none that is."""
    assert outcome(forged(saved, {"same": same})) == "refused"


def test_example_inputs_that_json_cannot_hold_are_refused(tmp_path):
    """A dtype among the arguments: said by name, and nothing is written."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)

        def forward(self, x, dtype):
            return self.b(self.a(x.to(dtype)))

    split = ft.split(Model(), (X, torch.float32))
    with pytest.raises(BundleError, match="dtype"):
        ft.assemble(split, split.head).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/model", "."])
def test_saving_where_no_file_can_be_is_an_error_of_ours(tmp_path, place):
    """A folder that is not there, and a folder in the file's place."""
    split, _, _ = halved("Mlp")
    with pytest.raises(ForethoughtError):
        ft.assemble(split, split.head).save(tmp_path / place)


def test_heads_with_extra_state_are_refused_by_name(tmp_path):
    """What is no tensor cannot be in the file; the error says so, and nothing is written."""

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"k": 1}

        def set_extra_state(self, state):
            self.k = state["k"]

    split, _, _ = halved("Mlp")
    with pytest.raises(BundleError, match=r"head 'head'.*dict as '_extra_state'"):
        ft.assemble(split, Extra(8, 1)).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------- what does not fit


def refused(path, model, heads=None):
    """Loading is refused with a BundleError; returns what it says."""
    with pytest.raises(BundleError, match="Cannot load") as caught:
        ft.load(path, model, heads)
    return str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Linear(4, 4),
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 8), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)),
        lambda: nn.Sequential(nn.Linear(4, 8, dtype=torch.float64), nn.ReLU(), nn.Linear(8, 3)),
        lambda: nn.Identity(),
    ],
)
def test_another_model_is_refused_and_left_alone(saved, other):
    """A model that cannot take the tensors is refused before anything in it is changed."""
    model = other()
    before = state(model)
    refused(saved, model, nn.Linear(8, 2))
    assert is_same_state(state(model), before)


@pytest.mark.parametrize("between", [nn.GELU(), nn.Identity(), nn.LeakyReLU(1e-3)])
def test_another_function_with_the_same_weights_is_refused(saved, between):
    """The tensors fit but the code is another: the outputs and the fingerprint tell."""
    refused(saved, nn.Sequential(nn.Linear(4, 8), between, nn.Linear(8, 3)), nn.Linear(8, 2))


class Raising(nn.Sequential):
    def forward(self, x):
        raise KeyError("boom")


class TwoInputs(nn.Sequential):
    def forward(self, x, y):
        return super().forward(x + y)


@pytest.mark.parametrize("kind", ["raising", "other inputs", "meta"])
def test_a_model_that_cannot_run_the_example_is_refused(saved, kind):
    """Whatever the model says to the example, it comes as a BundleError with that cause."""
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)]
    model = {"raising": Raising, "other inputs": TwoInputs, "meta": nn.Sequential}[kind](*layers)
    refused(saved, model.to("meta") if kind == "meta" else model, nn.Linear(8, 2))


@pytest.mark.parametrize("head", [nn.Linear(8, 3), nn.Linear(8, 2, bias=False), nn.Identity()])
def test_another_head_is_refused(saved, head):
    """A given head must have the saved form."""
    assert "'head'" in refused(saved, built("Mlp", 5)[0], head)


@pytest.mark.parametrize("head", [None, nn.Linear(8, 3)])
def test_a_missing_or_wrong_head_leaves_the_model_alone(saved, head):
    """That a head is missing or misshapen is known from the file: the model must not be half-loaded."""
    model = built("Mlp", 5)[0]
    before = state(model)
    refused(saved, model, head)
    assert is_same_state(state(model), before)


def test_a_head_that_the_file_does_not_have_is_refused(saved):
    """A misspelt name is said, not passed over."""
    refused(saved, built("Mlp", 5)[0], {"head": nn.Linear(8, 2), "haed": nn.Linear(8, 2)})


def test_what_is_no_model_is_refused(saved):
    """A path in the model's place."""
    refused(saved, "model.pt")


# ------------------------------------------------------------------------------------- broken and hostile files


@pytest.mark.parametrize("content", [b"", b"\xff" * 200, b"PK\x03\x04" + b"\0" * 200, b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    """Empty, noise, a zip of torch.save's, a header alone."""
    path = tmp_path / "model"
    path.write_bytes(content)
    refused(path, built("Mlp")[0])


def test_files_that_are_not_there_are_refused(tmp_path):
    """A missing file, and a folder."""
    assert "no such file" in refused(tmp_path / "none", built("Mlp")[0])
    refused(tmp_path, built("Mlp")[0])


def test_torch_pickles_are_refused(tmp_path):
    """A pickle is not even opened as one."""
    torch.save(built("Mlp")[0].state_dict(), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", built("Mlp")[0])


def test_foreign_safetensors_are_refused(tmp_path):
    """A checkpoint of somebody else's."""
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a", {"format": "pt"})
    refused(tmp_path / "a", built("Mlp")[0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(saved, share):
    """A copy that ended early."""
    content = saved.read_bytes()
    path = saved.with_name("cut")
    path.write_bytes(content[: int(share * len(content))])
    refused(path, built("Mlp")[0], nn.Linear(8, 2))


def test_one_flipped_bit_is_refused_or_harmless(saved):
    """A flipped bit in the weights of the trunk is found by its fingerprint."""
    content = bytearray(saved.read_bytes())
    weight = built("Mlp")[0][0].weight.detach().numpy().tobytes()
    at = bytes(content).index(weight)
    for byte in range(at, at + len(weight), 5):
        content[byte] ^= 1
        saved.write_bytes(bytes(content))
        refused(saved, built("Mlp", 5)[0], nn.Linear(8, 2))
        content[byte] ^= 1


def test_a_newer_format_is_refused_with_the_way_out(saved):
    """The error says what to do."""
    assert "pip install --upgrade" in refused(forged(saved, {"format": 2}), built("Mlp")[0], nn.Linear(8, 2))


def forged(saved, about=None, drop=(), tensors=None, raw=None):
    """The saved file with other metadata or tensors."""
    with safetensors.safe_open(saved, "pt") as file:
        known = json.loads(file.metadata()["forethought"])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    known = {name: value for name, value in (known | (about or {})).items() if name not in drop}
    held = {name: tensor for name, tensor in (held | (tensors or {})).items() if name not in drop}
    path = saved.with_name("forged")
    safetensors.torch.save_file(held, path, {"forethought": json.dumps(known) if raw is None else raw})
    return path


class Executed(BaseException):
    """Something in the file was imported or run."""


def outcome(path, heads=True):
    """Say whether a file was loaded or refused; any other error gets through."""
    try:
        ft.load(path, built("Mlp")[0], nn.Linear(8, 2) if heads else None)
    except BundleError:
        return "refused"
    return "loaded"


KEYS = ["format", "model", "made_under", "trunk", "at", "single", "heads", "arguments", "frozen", "training"]
NEEDED = ["format", "heads", "arguments", "frozen", "training"]
WRONG = [None, 0, -1, True, 1.5, 10**30, "x", "../../etc", [], {}, [[1]], {"a": 1}, [None]]


@pytest.mark.parametrize("key", KEYS)
def test_missing_metadata_is_refused(saved, key):
    """A key that is not there: refused, or not needed; nothing else."""
    assert outcome(forged(saved, drop=[key])) in ({"refused"} if key in NEEDED else {"refused", "loaded"})


@pytest.mark.parametrize("key", KEYS)
def test_metadata_of_another_type_is_refused(saved, key):
    """A value of another JSON type: refused, or without effect; never an error of Python's."""
    results = {repr(wrong): outcome(forged(saved, {key: wrong})) for wrong in WRONG}
    assert set(results.values()) <= {"refused", "loaded"}, results


@pytest.mark.parametrize("number", [0, -1, True])
def test_formats_that_never_were_are_refused(saved, number):
    """Format 1 is the first."""
    assert outcome(forged(saved, {"format": number})) == "refused"


ARGUMENTS = [
    {"tuple": [{"tuple": [{"tensor": 5}]}, {"dict": []}]},
    {"tuple": [{"tuple": [{"tensor": -1}]}, {"dict": []}]},
    {"tuple": [{"tuple": [{"tensor": 0.5}]}, {"dict": []}]},
    {"tuple": [{"tuple": [{"tensor": False}]}, {"dict": []}]},
    {"tuple": [{"tuple": [{"tensor": 10**30}]}, {"dict": []}]},
    {"tuple": [{"tuple": [{"tensor": "x"}]}, {"dict": []}]},
    {"tuple": [{"tuple": [{"tensor": 0}, {"tensor": 0}]}, {"dict": []}]},
    {"tuple": [{"tuple": [{"tensor": 0}]}, {"dict": [["__class__", {"plain": 1}]]}]},
    {"tuple": [{"tuple": [{"tensor": 0}]}, {"dict": [[[1], {"plain": 1}]]}]},
    {"tuple": [{"tuple": [{"tensor": 0}]}, {"dict": [[1, {"plain": 1}]]}]},
    {"tuple": [{"tuple": []}, {"dict": []}]},
    {"tuple": [{"plain": "x"}, {"plain": 3}]},
    {"tuple": [{"tuple": [{"tensor": 0}]}]},
    {"tuple": [{"tuple": [{"eval": "__import__('os').system('true')"}]}, {"dict": []}]},
    {"list": []}, {"tensor": 0}, {"plain": None}, {"a": 1, "b": 2},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_hostile_arguments_are_refused(saved, arguments):
    """Positions out of range, keys that are no names, kinds that are not known."""
    assert outcome(forged(saved, {"arguments": arguments})) == "refused"


HEADS = [
    {}, {"kind": "evil"}, {"kind": ["own"]}, {"kind": "ours"}, {"kind": "ours", "config": 3}, {"kind": "given"},
    {"kind": "ours", "config": {}}, {"kind": "ours", "config": {"kind": "os.system"}}, {"kind": "own"}, 3, None,
    {"kind": "ours", "config": {"kind": "../pwl", "in_features": 8}},
    {"kind": "ours", "config": {"kind": "pwl", "in_features": 8, "anchors": ["a", "b"]}},
    {"kind": "ours", "config": {"kind": "pwl", "in_features": 8, "anchors": [1.0, 1.0]}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": -1, "anchors": [0.0, 1.0]}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": "8", "anchors": [0.0, 1.0]}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": 8, "anchors": [0.0, 1.0], "hidden": [10**12]}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": 8, "anchors": [0.0, 1.0], "hidden": [10**30]}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": 8, "anchors": [0.0, 1.0], "hidden": 3}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": 8, "anchors": [0.0, 1.0], "dropout": 7}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": 8, "anchors": [0.0, 1.0], "evil": 7}},
    {"kind": "ours", "config": {"kind": "mlp", "in_features": 8, "anchors": [0.0, 1.0], "dtype": "evil"}},
]  # fmt: skip


@pytest.mark.parametrize("spec", HEADS, ids=str)
def test_hostile_heads_are_refused(saved, spec):
    """Unknown kinds, unknown options, sizes that no machine has: refused, and nothing is imported or run."""
    assert outcome(forged(saved, {"heads": {"head": spec}}), heads=False) == "refused"


@pytest.mark.parametrize("name", ["../x", "a/b", "a.b", "", "keys", "__class__"])
def test_hostile_names_of_heads_are_refused(saved, name):
    """A name with a path in it names no path."""
    assert outcome(forged(saved, {"heads": {name: {"kind": "own"}}, "single": False})) == "refused"


@pytest.mark.parametrize("name", ["example.0", "output.0", "trunk.0.weight", "heads.head.weight"])
def test_missing_tensors_are_refused(saved, name):
    """Each tensor is needed."""
    assert outcome(forged(saved, drop=[name])) == "refused"


TENSORS = [
    {"trunk.training": torch.ones(1)}, {"trunk.__class__": torch.ones(1)}, {"heads.head.evil": torch.ones(1)},
    {"example.0": torch.ones(0, 4)}, {"example.0": torch.ones(3)}, {"example.7": torch.ones(3)},
    {"example.x": torch.ones(3)}, {"output.0": torch.ones(3)}, {"output.0": torch.full((2, 2), torch.nan)},
    {"trunk.0.weight": torch.full((8, 4), torch.nan)}, {"trunk.0.weight": torch.ones(8, 4, dtype=torch.int64)},
    {"output.3": torch.ones(1)},
]  # fmt: skip


@pytest.mark.parametrize("tensors", TENSORS, ids=lambda tensors: "{}".format(*tensors))
def test_hostile_tensors_are_refused(saved, tensors):
    """Tensors that nobody has asked for, of shapes that nothing takes."""
    assert outcome(forged(saved, tensors=tensors)) == "refused"


RAW = [
    "", "null", "[]", "3", '"x"', "{", "NaN", '{"format": NaN}', '{"format": ' + "9" * 5000 + "}", "\x00",
    '{"format": 1, "arguments": ' + "[" * 100_000 + "]" * 100_000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: raw[:14] or "empty")
def test_hostile_json_is_refused(saved, raw):
    """Not JSON, other JSON, numbers and nesting beyond reason."""
    assert outcome(forged(saved, raw=raw)) == "refused"


def test_no_code_is_run_by_names_in_the_file(saved, monkeypatch):
    """Names of classes in the file are told, never imported."""
    import importlib

    def caught(*_args, **_kwargs):
        raise Executed

    monkeypatch.setattr(importlib, "import_module", caught)
    monkeypatch.setattr(os, "system", caught)
    evil = {"kind": "given", "class": "os.system('echo pwned')"}
    path = forged(saved, {"heads": {"head": evil}, "model": "os.system"})
    with pytest.raises(BundleError, match="echo pwned"):
        ft.load(path, built("Mlp", 5)[0])


def test_paths_may_be_text(tmp_path, monkeypatch):
    """A str, relative, as people type it."""
    monkeypatch.chdir(tmp_path)
    split, args, _ = halved("Mlp")
    path = ft.assemble(split, split.head).save("model.safetensors")
    assert path == Path("model.safetensors")
    assert torch.equal(ft.load("model.safetensors", built("Mlp", 5)[0])(*args), split.model(*args))
