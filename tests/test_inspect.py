"""`forethought inspect`: a model by its name, its parts, what they cost, where it can be cut; nothing left on it."""

import json
import re
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import forethought as ft
from forethought import cli
from forethought.errors import MissingExtraError, ModelError, SplitError
from forethought.inspection import inspect_model
from forethought.inspection.clock import _matching, measure
from forethought.inspection.screen import show
from forethought.loading import NamedModel, load_named
from forethought.splitting.candidates import Candidate

torch.set_num_threads(1)

MODELS = '''
"""Models of a user."""
import torch
from torch import nn
import forethought as ft

print("hello from the module")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)
        self.spare = nn.Linear(3, 3)

    def forward(self, x, scale=None):
        y = self.norm(self.body(x))
        return self.head(y if scale is None else y * scale)


made = []


def frozen():
    model = Net()
    ft.freeze(model, until="norm")
    made.append(model)
    return model, torch.randn(4, 6)


def fresh():
    return Net(), (torch.randn(4, 6),), {"scale": torch.rand(4, 1)}


def by_name():
    return Net(), {"x": torch.randn(4, 6)}


def alone():
    return Net()


def needs(width, *, depth):
    return Net()


def number():
    return 3


def broken():
    raise RuntimeError("no such file:\\n weights.pt")


instance = Net()
limit = 5
'''
KEYS = {
    "model", "type", "weights", "inputs", "assumption", "refusal", "parameters", "trainable_parameters", "frozen_share",
    "frontier", "modules", "candidates", "measured",
}  # fmt: skip


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A package in the folder that the command runs in."""
    package = tmp_path / "zoo_of_inspect"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(MODELS)
    (package / "hollow.py").write_text("import nothing_of_this_name\n")
    (package / "wrong.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("zoo_of_inspect", "forethought_inspects"))]:
        del sys.modules[name]


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command line in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["forethought", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        return SimpleNamespace(code=left.value.code or 0, out=out, err=err)

    return call


def named(model, *args, **kwargs):
    return NamedModel("a model", model, args, kwargs, "weights")


def part(inspection, path):
    return next(one for one in inspection.modules if one.path == path)


# ---------------------------------------------------------------------------------------------------------- the command


def test_json_is_all_that_is_printed(run, zoo):
    """Whatever a model's module prints goes to stderr; stdout is one JSON object with stable keys."""
    result = run("zoo_of_inspect.nets:frozen", "--json")
    assert result.code == 0
    assert "hello from the module" in result.err
    facts = json.loads(result.out, parse_constant=lambda name: pytest.fail(name))
    assert facts.keys() == KEYS
    assert (facts["model"], facts["type"], facts["assumption"]) == ("zoo_of_inspect.nets:frozen", "Net", None)
    assert facts["inputs"] == [{"shape": [4, 6], "dtype": "float32"}]
    assert facts["frontier"] == [{"name": "norm", "shape": [8], "dtype": "float32", "size_bytes": 32}]
    assert (facts["parameters"], facts["trainable_parameters"]) == (6 * 8 + 8 + 72 + 16 + 18 + 12, 18 + 12)
    assert [one["at"] for one in facts["candidates"]] == ["body.0", "body.1", "body", "body.2", "norm"]
    states = {one["path"]: (one["state"], one["side"], one["calls"]) for one in facts["modules"]}
    assert states == {
        "": ("mixed", "both", 1), "body": ("frozen", "trunk", 1), "body.0": ("frozen", "trunk", 1),
        "body.1": (None, "trunk", 1), "body.2": ("frozen", "trunk", 1), "norm": ("frozen", "trunk", 1),
        "head": ("trainable", "head", 1), "spare": ("trainable", None, 0),
    }  # fmt: skip
    assert facts["measured"]["runs"] >= 3


def test_text_is_for_people(run):
    """80 columns when piped, no colour codes, the frontier beside the other cuts, and how it was measured."""
    pytest.importorskip("torchvision")
    result = run("torchvision:resnet18", "--input", "3x64x64")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.out
    assert "random weights (nothing is downloaded)" in result.out
    assert "as if everything but 'fc', the last layer with parameters" in " ".join(result.out.split())
    assert re.search(r"^layer4 Sequential +trunk +8,393,728 +no +\d+\.\d% +512x2x2 *$", result.out, re.MULTILINE)
    assert re.search(r"^  1 BasicBlock +trunk ", result.out, re.MULTILINE)
    assert re.search(r"^fc Linear +head +513,000 +all ", result.out, re.MULTILINE)
    assert re.search(r"^layer3 +256x4x4 +16,384 +\d+\.\d% *$", result.out, re.MULTILINE)
    assert re.search(r"^the frontier +512 +2,048 +\d+\.\d% *$", result.out, re.MULTILINE)
    assert "median of" in result.out


@pytest.mark.parametrize(
    ("forward_s", "operations_s", "says"),
    [
        (2.5, (1.0, 0.25), "1,250.0 ms of the 2,500.0 ms that a run takes."),
        (3e-3, (1e-3,), "1.0 ms of the 3.0 ms that a run takes."),
        (25e-6, (4e-6, 3.5e-6), "7.5 microseconds of the 25.0 microseconds that a run takes."),
    ],
)
def test_a_time_is_told_in_a_unit_that_shows_it(capfd, forward_s, operations_s, says):
    """A small model takes microseconds: never 0.0 of a unit that is too large for it."""
    looked = inspect_model(named(nn.Sequential(nn.Linear(2, 2)), torch.randn(2, 2)))
    show(replace(looked, times=replace(looked.times, forward_s=forward_s, operations_s=operations_s)), 2)
    assert says in " ".join(capfd.readouterr().out.split())


def test_depth_is_how_far_one_looks(run, zoo):
    """Deeper modules and cuts at them are left out."""
    shallow, deep = (run("zoo_of_inspect.nets:frozen", "--depth", depth).out for depth in (1, 3))
    assert "body Sequential" in shallow
    assert "2 Linear" not in shallow
    assert "body.0" not in shallow
    assert "2 Linear" in deep
    assert "body.0" in deep
    assert re.search(r"^spare Linear +not run", shallow, re.MULTILINE)


def test_until_shows_another_freezing(run, zoo):
    """The tree and the frontier of what would be frozen; the model is a copy."""
    result = run("zoo_of_inspect.nets:fresh", "--until", "body", "--json")
    facts = json.loads(result.out)
    assert facts["assumption"] == "Shown as if everything up to 'body' were frozen."
    assert facts["frontier"][0]["name"] == "body"
    assert facts["modules"][1]["state"] == "frozen"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["zoo_of_inspect.nets:frozen", "--input", "3xx"], "3x224x224"),
        (["zoo_of_inspect.nets:frozen", "--input", "0x3"], "3x224x224"),
        (["zoo_of_inspect.nets:frozen", "--dtype", "int9"], "float32 or int64"),
        (["zoo_of_inspect.nets:frozen", "--dtype", "nn"], "float32 or int64"),
        (["zoo_of_inspect.nets:frozen", "--depth", "0"], "depth"),
        ([], "model"),
    ],
)
def test_misuse_exits_with_2(run, zoo, arguments, says):
    """What cannot be meant is named."""
    result = run(*arguments)
    assert result.code == 2
    assert says in result.err.lower()
    assert result.out == ""


def test_errors_are_one_line(run, zoo):
    """No traceback, exit code 1, nothing on stdout."""
    result = run("zoo_of_inspect.nets:broken", "--json")
    assert (result.code, result.out) == (1, "")
    (line,) = [line for line in result.err.splitlines() if not line.startswith("hello")]
    assert line.startswith("Error: Cannot build 'zoo_of_inspect.nets:broken'")
    assert "RuntimeError: no such file: weights.pt" in line


def test_help_has_an_example(run):
    """As for every command."""
    assert "Example: forethought inspect" in run("--help").out


# ------------------------------------------------------------------------------------------------- a model by its name


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("resnet50", ModelError, "got no colon. Try torchvision:resnet50"),
        ("torchvision:", ModelError, "no name on one side"),
        (":resnet50", ModelError, "no name on one side"),
        ("torchvision:resnet5", ModelError, "Did you mean torchvision:resnet50"),
        ("torchvision:ResNet18x", ModelError, "torchvision:resnet18"),
        ("torchvision:qqqq", ModelError, "See torchvision's list"),
        ("timm:vit_tiny_patch16_223", ModelError, "timm:vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.nope", ModelError, "Invalid pretrained tag"),
        ("timm:hf-hub:timm/resnet18", ModelError, "expected a model that timm knows"),
        ("transformers:bert", ModelError, "Write a function that returns (model, args)"),
        ("nowhere_at_all.nets:f", ModelError, "got no 'nowhere_at_all'"),
        ("zoo_of_inspect.net:f", ModelError, "got no 'zoo_of_inspect.net'"),
        ("zoo_of_inspect.hollow:f", ModelError, "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("zoo_of_inspect.wrong:f", ModelError, "SyntaxError"),
        ("zoo_of_inspect.nets:frozn", ModelError, "Some that are there: frozen"),
        ("zoo_of_inspect.nets:needs", ModelError, "def make(): return needs(width=..., depth=...)"),
        ("zoo_of_inspect.nets:number", ModelError, "got int"),
        ("zoo_of_inspect.nets:limit", ModelError, "got int"),
        ("zoo_of_inspect.nets:broken", ModelError, "RuntimeError: no such file"),
        ("zoo_of_inspect.nets:alone", ModelError, "--input 3x224x224"),
        ("zoo_of_inspect/none.py:f", ModelError, "got no 'zoo_of_inspect/none.py'"),
        ("zoo_of_inspect/wrong.py:f", ModelError, "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_fix(zoo, name, error, says):
    """Cannot what, expected what, got what, and what to type instead."""
    if name.startswith(("torchvision", "timm")):
        pytest.importorskip(name.split(":")[0] or "torch")
    with pytest.raises(error, match=re.escape(says)) as caught:
        load_named(name)
    assert re.match(r"Cannot .*: expected .*, got .*\. .", str(caught.value), re.DOTALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_says_how_to_install_it(monkeypatch, package):
    """The extra that brings it, as a command."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'forethought[vision]'")):
        load_named(f"{package}:resnet18")


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [("frozen", 1, []), ("fresh", 1, ["scale"]), ("by_name", 0, ["x"])],
)
def test_a_function_gives_model_and_inputs(zoo, name, args, kwargs):
    """(model, args), (model, args, kwargs), or keywords alone."""
    made = load_named(f"zoo_of_inspect.nets:{name}")
    assert type(made.model).__name__ == "Net"
    assert (len(made.args), list(made.kwargs)) == (args, kwargs)
    assert inspect_model(made).frontier


@pytest.mark.parametrize(
    "name", ["zoo_of_inspect.nets:instance", "zoo_of_inspect/nets.py:Net", "zoo_of_inspect.nets:alone"]
)
def test_a_module_or_a_class_will_do(zoo, name):
    """With the shape of its input said on the command line."""
    path = list(sys.path)
    made = load_named(name, [(6,)])
    assert sys.path == path
    assert made.args[0].shape == (2, 6)
    assert part(inspect_model(made), "head").outputs == ((2,),)


def test_whole_numbers_are_small(zoo):
    """Token numbers that every vocabulary has."""
    made = load_named("torch.nn:Identity", [(5,), (3, 4)], torch.int64)
    assert [(t.dtype, tuple(t.shape)) for t in made.args] == [(torch.int64, (2, 5)), (torch.int64, (2, 3, 4))]
    assert set(made.args[1].unique().tolist()) <= {0, 1}


def test_libraries_say_what_their_models_take(monkeypatch):
    """The size that a model was made for; nothing is downloaded, whatever the builder's defaults are."""
    vision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    assert load_named("torchvision:inception_v3").args[0].shape == (2, 3, 299, 299)
    assert load_named("timm:tf_efficientnet_b1").args[0].shape == (
        2,
        3,
        *timm.get_pretrained_cfg("tf_efficientnet_b1").input_size[1:],
    )
    (images,) = load_named("torchvision:ssdlite320_mobilenet_v3_large").args
    assert [image.shape for image in images] == [(3, 224, 224)] * 2
    (images,) = load_named("torchvision:ssdlite320_mobilenet_v3_large", [(3, 64, 80)]).args
    assert [image.shape for image in images] == [(3, 64, 80)] * 2
    assert load_named("torchvision:lraspp_mobilenet_v3_large").model.training is False
    assert load_named("torchvision:r3d_18").args[0].shape == (2, 3, 16, 112, 112)
    assert "raft_small" in vision.models.list_models()
    assert len(load_named("torchvision:raft_small").args) == 2


# --------------------------------------------------------------------------------------------------------- what is seen


def test_nothing_is_left_on_the_model(zoo):
    """Attributes, hooks, modes, flags, buffers, random state: as before, whether copied, run or timed."""
    made = load_named("zoo_of_inspect.nets:fresh")
    model = made.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = [(id(module), module.training, dict(module.__dict__)) for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    inspect_model(made)
    inspect_model(made, until="body")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert held == [(id(module), module.training, module.__dict__) for module in model.modules()]
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_frozen_model_is_shown_as_it_is(zoo):
    """What `ft.split` finds, without any assumption."""
    made = load_named("zoo_of_inspect.nets:frozen")
    seen = inspect_model(made)
    assert seen.assumption is None
    assert seen.refusal is None
    assert seen.frontier == ft.split(made.model, *made.args).frontier
    assert [one.tensors for one in seen.candidates if one.path == "norm"] == [seen.frontier]


def test_times_add_up(zoo):
    """A module takes what is inside it and its own; later cuts save no less; all of it is the root's."""
    seen = inspect_model(load_named("zoo_of_inspect.nets:frozen"))
    assert part(seen, "").share == pytest.approx(1.0)
    top = sum(one.share or 0.0 for one in seen.modules if one.depth == 1)
    inner = sum(one.share for one in seen.modules if one.path.startswith("body."))
    assert top == pytest.approx(1.0)
    assert inner == pytest.approx(part(seen, "body").share)
    shares = [one.share for one in seen.candidates]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert 0 < seen.frozen_share < 1
    assert part(seen, "spare").share is None


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 2))


@pytest.mark.parametrize("wrap", [scripted, lambda: torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))])
def test_what_is_compiled_is_seen_and_left_alone(wrap):
    """A scripted layer has no copy, and is given back as it was; a compiled model is looked into."""
    model = wrap()
    seen = inspect_model(named(model, torch.randn(3, 4)))
    assert [one.path for one in seen.candidates] == ["0"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_lazy_layers_get_their_sizes(zoo):
    """From the inputs that the model is shown with."""
    (zoo / "lazy_of_inspect.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.Linear(3, 1))\n"
    )
    seen = inspect_model(load_named("lazy_of_inspect.py:make", [(5,)]))
    assert seen.modules[0].parameters == 5 * 3 + 3 + 4


def test_a_model_without_values_is_shown_and_cannot_be_split():
    """On the meta device there is nothing to run; the refusal says which weights lie there."""
    seen = inspect_model(
        named(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).to("meta"), torch.randn(2, 4, device="meta"))
    )
    assert "'0.weight', '0.bias', '1.weight'" in repr(seen)
    assert "on meta. Load them first" in repr(seen)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.out = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.body(self.embed(x)))


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head, self.seen = nn.Linear(4, 4), nn.Linear(4, 2), {}
        self.layer.requires_grad_(False)

    def forward(self, x):
        if "mask" not in self.seen:
            self.seen["mask"] = torch.ones(4).cumsum(0)
        return self.head(self.layer(self.layer(x)) * self.seen["mask"])


def test_what_is_frozen_may_have_to_be_assumed():
    """Everything trains, the first layer trains, weights are shared: it is said, and the cuts are shown."""
    fresh = inspect_model(named(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4)))
    assert "every parameter trains" in fresh.assumption
    assert "everything but '1'" in fresh.assumption
    assert [one.path for one in fresh.candidates] == ["0"]

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    late = inspect_model(named(model, torch.randn(2, 4)))
    assert "before the first operation that trains" in late.assumption
    assert [one.path for one in late.candidates] == ["0", "1"]

    tied = inspect_model(named(Tied(), torch.zeros(2, 3, dtype=torch.long)))
    assert "as if everything were frozen" in tied.assumption
    assert [one.path for one in tied.candidates] == ["embed", "body", "out"]
    assert part(tied, "").parameters == 36 + 20


def test_where_nothing_trains_the_output_is_the_frontier():
    """Everything frozen, or nothing to freeze."""
    frozen = inspect_model(named(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).requires_grad_(False), torch.randn(2, 4)))
    assert (frozen.assumption, frozen.frozen_share) == (None, 1.0)
    assert [one.path for one in frozen.candidates] == ["0", "1"]
    bare = inspect_model(named(nn.Sequential(nn.Tanh(), nn.ReLU()), torch.randn(2, 4)))
    assert bare.assumption == "This model has no parameters."
    assert bare.to_dict()["modules"][1]["state"] is None


def test_calls_are_counted_and_caches_are_no_obstacle():
    """A module that runs twice, and a value that only the first run computes."""
    seen = inspect_model(named(Reused(), torch.randn(2, 4)))
    assert part(seen, "layer").calls == 2
    assert part(seen, "layer").share > 0
    assert seen.candidates == ()


class Refused(nn.Module):
    """Frozen values take a way that cannot be seen, after the first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.first.requires_grad_(False)

    def forward(self, x):
        h = self.first(x)
        return self.head(h + torch.from_numpy(h.detach().numpy() * 2))


def test_a_model_that_cannot_be_split_is_shown_with_the_reason():
    """The tree and the times need no split."""
    seen = inspect_model(named(Refused(), torch.randn(4, 4)))
    assert seen.refusal.startswith("Cannot ")
    assert seen.frontier is None
    assert part(seen, "head").side == "head"
    assert seen.to_dict()["frontier"] is None


def test_a_model_that_does_not_take_its_inputs_says_which():
    """The shapes, what the model said, and how to give others."""
    with pytest.raises(ModelError, match=r"Cannot run Linear on \(2, 5\) float32: .*RuntimeError.*--input"):
        inspect_model(named(nn.Linear(4, 2), torch.randn(2, 5)))
    with pytest.raises(SplitError, match="layer9"):
        inspect_model(named(nn.Linear(4, 2), torch.randn(2, 4)), until="layer9")


def test_matching_pairs_what_two_runs_share():
    """What one of them computed alone is left out."""
    assert list(_matching([len, abs], [len, abs])) == [(0, 0), (1, 1)]
    assert list(_matching([any, len, abs, all], [len, abs, max, all])) == [(1, 0), (2, 1), (3, 3)]
    assert list(_matching([len], [])) == []


def test_operations_are_timed_one_by_one():
    """As many times as the recording has operations, each a part of the forward."""
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 2))
    ft.freeze(model, until="1")
    x = torch.randn(64, 64)
    split = ft.split(model, x)
    times = measure(model, split.plan.recording, (x,), {})
    assert len(times.operations_s) == len(split.plan.recording.operations) == 3
    assert min(times.operations_s) > 0
    assert times.device == "cpu"


def test_many_outputs_and_names_of_any_length_fit(run, zoo, monkeypatch):
    """80 columns hold, whatever the model calls its parts."""
    (zoo / "zoo_of_inspect" / "long.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class A_class_of_a_name_that_goes_on_and_on_and_on_and_on(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a_layer_of_a_name_that_goes_on_and_on_and_on = nn.ModuleDict({'[red]': nn.Linear(4, 4)})\n"
        "        self.head = nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        h = self.a_layer_of_a_name_that_goes_on_and_on_and_on['[red]'](x)\n"
        "        return self.head(h), h, h\n"
        "def make():\n    return A_class_of_a_name_that_goes_on_and_on_and_on_and_on(), torch.randn(2, 4)\n"
    )
    result = run("zoo_of_inspect.long:make")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert "[red]" in result.out
    assert "2 +2" in result.out


def test_candidates_know_no_size_where_there_are_no_rows():
    """In JSON, too, unknown is null."""
    seen = inspect_model(named(nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Linear(8, 1)), torch.randn(2, 4)))
    assert all(isinstance(one, Candidate) for one in seen.candidates)
    assert [one["size_bytes"] for one in seen.to_dict()["candidates"]][-1] in (16, None)


@pytest.mark.slow
def test_detection_models_are_shown():
    """Lists of images, outputs of any number, and a split that is refused: what can be seen is."""
    pytest.importorskip("torchvision")
    made = load_named("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", [(3, 64, 64)])
    seen = inspect_model(made, until="backbone")
    assert part(seen, "backbone").side == "trunk"
    assert part(seen, "roi_heads").side == "head"
    assert "backbone" in [one.path for one in seen.candidates]
