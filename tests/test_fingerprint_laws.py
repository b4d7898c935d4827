"""The laws of a fingerprint over real models: what must not change it, and the least that must.

stable      in every process, under every hash seed, name of a file, order of parameters, head and wrapper
changing    with one unit in the last place of anything that the frozen part reads, and with what it does
"""

import copy
import ctypes
import os
import subprocess
import sys
import textwrap
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import forethought as ft
from forethought.errors import IdentityError
from forethought.identifying.fingerprint import fingerprint_of
from forethought.identifying.identity import Digest
from forethought.identifying.numerics import numeric_state
from forethought.identifying.sources import numerics_version

torch.set_num_threads(1)


def told(model, *args, **kwargs):
    """The fingerprint of a model's frozen part."""
    return ft.split(model, args, kwargs).trunk.fingerprint


def image(size=32, rows=2):
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(rows=2, width=5):
    return torch.randint(0, 11, (rows, width), generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------- models


def _vision(make, head):
    def model():
        torch.manual_seed(0)
        return ft.freeze(make(pytest.importorskip("torchvision.models")).eval(), all_but=head), (image(),), {}

    return model


def _timm(name, head, **options):
    def model():
        torch.manual_seed(0)
        timm = pytest.importorskip("timm")
        return ft.freeze(timm.create_model(name, num_classes=3, **options).eval(), all_but=head), (image(),), {}

    return model


def _bert():
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    model = hf.BertForSequenceClassification(hf.BertConfig(vocab_size=11, **sizes)).eval()
    return (
        ft.freeze(model, all_but="classifier"),
        (),
        {"input_ids": tokens(), "attention_mask": torch.ones(2, 5).long()},
    )


def _gpt():
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = hf.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8, pad_token_id=0)
    return ft.freeze(hf.GPT2ForSequenceClassification(config).eval(), all_but="score"), (tokens(),), {}


class Toy(nn.Module):
    """Reads every kind of tensor: parameters, buffers, attributes, lists, closures, defaults, globals."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.mixed = nn.MultiheadAttention(6, 2, batch_first=True)
        self.register_buffer("grid", torch.rand(6))
        self.register_buffer("hidden", torch.rand(6), persistent=False)
        self.constant, self.table = torch.rand(6), {"a": [torch.rand(6)]}
        inside, given = torch.rand(6), torch.rand(6)
        self.closed = lambda x, given=given: x * inside + given
        self.inside, self.given = inside, given
        self.half = torch.rand(6).bfloat16()
        self.double = torch.rand(6).double()
        self.whole = torch.arange(6)
        self.number, self.option, self.flag = 0.5, 2, True
        self.embed = nn.EmbeddingBag(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)
        self.eval().requires_grad_(False)
        self.head.requires_grad_(True)

    def forward(self, x):
        y, _ = self.lstm(x)
        y, _ = self.mixed(y, y, y, need_weights=False)
        y = self.norm(y[:, -1]) + self.embed(self.whole.view(1, 6) % 5)
        y = self.closed(y * self.grid + self.hidden) - self.table["a"][0].abs() * self.constant
        y = (y * self.half.float() + self.double.float()) * self.number
        y = F.dropout(y.roll(self.option, 1), training=not self.flag)
        return self.head(y)


def _toy():
    return Toy(), (torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)),), {}


MODELS = {
    "toy": _toy,
    "mobilenet": _vision(lambda v: v.mobilenet_v3_small(num_classes=3), "classifier"),
    "densenet": _vision(lambda v: v.DenseNet(8, (2, 2), 16, num_classes=3), "classifier"),
    "vit": _vision(lambda v: v.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3), "heads"),
    "swin": _vision(lambda v: v.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=3), "head"),
    "convnext": _timm("test_convnext", "head.fc"),
    "deit": _timm("test_vit", "head"),
    "bert": _bert,
    "gpt": _gpt,
}
every_model = pytest.mark.parametrize("name", MODELS)


# ------------------------------------------------------------------------------------------- what is stable


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


@every_model
def test_what_surrounds_the_frozen_part_does_not_count(name):
    """Another run, copy, wrapper, head's weights, batch, name of a class and order of parameters are no changes."""
    model, args, kwargs = MODELS[name]()
    here = told(model, *args, **kwargs)
    again, _, _ = MODELS[name]()
    for parameter in again.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1)
    for module in again.modules():
        module._parameters = dict(reversed(module._parameters.items()))
        module._buffers = dict(reversed(module._buffers.items()))
    type_of = type(again)
    again.__class__ = type("Renamed", (type_of,), {"__module__": "elsewhere", "__doc__": "Other words."})
    assert told(again, *args, **kwargs) == here
    assert told(Wrapper(copy.deepcopy(model)), *args, **kwargs) == here
    by_hand = ft.thaw(MODELS[name]()[0])
    trains = {id(p) for p in by_hand.parameters()} - {
        id(p) for n, p in by_hand.named_parameters() if not dict(model.named_parameters())[n].requires_grad
    }
    for parameter in by_hand.parameters():
        parameter.requires_grad_(id(parameter) in trains)
    assert told(by_hand.eval(), *args, **kwargs) == here


PROGRAM = """
import sys
sys.path[:0] = {paths!r}
import torch, test_fingerprint_laws as laws
for name in sys.argv[1:]:
    model, args, kwargs = laws.MODELS[name]()
    print(name, laws.told(model, *args, **kwargs), laws.key(model))
"""


def key(model):
    """The key by which a store knows a model without running it."""
    from forethought.identifying.fingerprint import state_of

    return state_of(model, "cpu")


@pytest.mark.slow
def test_processes_and_hash_seeds_agree():
    """What one process stores, any other finds."""
    names = ["toy", "mobilenet", "bert", "deit"]
    program = PROGRAM.format(paths=[os.path.dirname(__file__), *filter(None, sys.path)])
    begun = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *names],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("0", "4242")
    ]
    answers = [process.communicate()[0].splitlines() for process in begun]
    assert len(answers[0]) == len(names)
    assert answers[0] == answers[1]


FILE = """
import torch
from torch import nn

SCALE = {{"big": 2.0, "small": 0.5}}

def helper(x):{comment}
    return x * SCALE["big"]

class Kind:
    def __init__(self):
        self.power = {power}

class Branch(nn.Module):
    '''{text}'''
    def __init__(self):
        super().__init__()
        self.kind, self.names = Kind(), {{"p", "q", "r"}}

    def forward(self, h):
        if float(h.detach().abs().sum()) < 0 and "p" in self.names:
            return helper(h) ** self.kind.power
        return{space}helper(h)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.branch, self.head = nn.Linear(4, 8), Branch(), nn.Linear(8, {classes})

    def forward(self, x):
        return self.head(self.branch(self.layer(x)))
"""
PLAIN = {"comment": "", "power": 3, "text": "One.", "space": " ", "classes": 2}
RUN = """
import sys, importlib.util
sys.path[:0] = {paths!r}
import torch, forethought as ft
spec = importlib.util.spec_from_file_location({name!r}, {path!r})
user = importlib.util.module_from_spec(spec)
sys.modules[{name!r}] = user
spec.loader.exec_module(user)
model = user.Model()
model.layer.requires_grad_(False)
split = ft.split(model, torch.ones(2, 4))
assert any(call.opaque for call in split.plan.recording.root.walk()) == {opaque}
print(split.trunk.fingerprint)
"""


def run_file(folder, name, opaque=True, **changes):
    """The fingerprint that a fresh process gives of a model in a file of some name."""
    path = folder / f"{name}.py"
    path.write_text(FILE.format(**{**PLAIN, **changes}))
    program = RUN.format(paths=[p for p in sys.path if p], name=name, path=str(path), opaque=opaque)
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_where_code_stands_in_its_file_and_words_do_not_count(tmp_path):
    """Python reads a value there, so that the code counts: what it does, not where it lies or what it says."""
    here = run_file(tmp_path, "first")
    assert run_file(tmp_path, "first") == here  # from the compiled file
    changes = {"comment": "  # doubles", "text": "Two.", "space": "    ", "classes": 5}
    assert run_file(tmp_path, "second", **changes) == here
    assert run_file(tmp_path, "third", power=4) != here


def test_devices_in_arguments_do_not_count():
    """A model moved elsewhere computes the same."""

    def model(write):
        class On(Toy):
            def forward(self, x):
                return super().forward(write(x))

        return told(On(), *_toy()[1])

    assert model(lambda x: x + torch.ones(4, device="cpu")) == model(lambda x: x + torch.ones(4, device=x.device))
    assert model(lambda x: x.to("cpu")) == model(lambda x: x.to(x.device))
    assert model(lambda x: x.to("cpu").add(1)) != model(lambda x: x.to("cpu").add(2))


def test_names_of_operators_do_not_depend_on_how_torch_was_built():
    """The binding's module is named after the compiler's interface."""
    from forethought.splitting.operations import name_of

    assert name_of(torch.ops.aten.relu) == "torch.ops.aten.relu"
    assert name_of(torch.ops.aten.relu.default) == "torch.ops.aten.relu.default"


# ------------------------------------------------------------------------------------------ what must change


def nudge(tensor):
    """Change one entry by the least there is."""
    at = (0,) * tensor.ndim
    with torch.no_grad():
        if tensor.is_floating_point():
            tensor[at] = torch.nextafter(tensor[at], torch.full_like(tensor[at], torch.inf))
        elif tensor.dtype is torch.bool:
            tensor[at] = ~tensor[at]
        else:
            tensor[at] += 1


def _leads_to_frontier(model, args, kwargs, tensor):
    """Whether the frozen part's output depends on a tensor, found by running it."""
    split = ft.split(model, args, kwargs)
    before = nesting(split.trunk(*args, **kwargs))
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(
            torch.rand_like(kept, dtype=torch.float64).add(0.5).to(kept.dtype) if kept.is_floating_point() else kept + 1
        )
        after = nesting(split.trunk(*args, **kwargs))
        tensor.copy_(kept)
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def nesting(values):
    return [values.clone()] if isinstance(values, torch.Tensor) else [value.clone() for value in values]


@every_model
def test_one_ulp_of_any_frozen_tensor_changes_it(name):
    """Every parameter and buffer that the trunk reads counts to the last bit, and what it does not read does not."""
    model, args, kwargs = MODELS[name]()
    split = ft.split(model, args, kwargs)
    here, reads = split.trunk.fingerprint, split.trunk_tensors()
    seen = {here}
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())
    assert len(reads) > 4
    for path, tensor in list(frozen.items())[:: 1 + len(frozen) // 30]:
        kept = tensor.detach().clone()
        nudge(tensor)
        there = split.trunk.fingerprint
        tensor.detach().copy_(kept)
        if path in reads:
            assert there not in seen, path
            seen.add(there)
        else:
            assert there == here, path
            assert not _leads_to_frontier(model, args, kwargs, tensor), path
    assert split.trunk.fingerprint == here


TENSORS = ["grid", "hidden", "constant", "inside", "given", "half", "double", "whole"]


@pytest.mark.parametrize("where", [*TENSORS, "table"])
def test_one_ulp_of_any_other_tensor_changes_it(where):
    """Constants in attributes, containers, closures and defaults are read as weights are."""
    before = told(*_toy()[0:1], *_toy()[1])
    model, args, _ = _toy()
    nudge(model.table["a"][0] if where == "table" else getattr(model, where))
    assert told(model, *args) != before


EDITS = {
    "number": lambda m: setattr(m, "number", 0.5000000000000001),
    "option": lambda m: setattr(m, "option", 3),
    "flag": lambda m: setattr(m, "flag", False),
    "eps": lambda m: setattr(m.norm, "eps", 1.0000000000000002e-05),
    "mode": lambda m: m.norm.train() and None,
    "heads": lambda m: setattr(m.mixed, "num_heads", 1),
    "padding": lambda m: setattr(m.embed, "padding_idx", 0),
    "kind": lambda m: setattr(m.embed, "mode", "sum"),
    "hook": lambda m: m.norm.register_forward_hook(lambda module, args, out: out + 1) and None,
    "pre-hook": lambda m: m.norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,)) and None,
    "closure": lambda m: setattr(m, "closed", lambda x, given=m.given: x * m.inside - given),
    "dtype": lambda m: setattr(m, "half", m.half.float()),
    "shape": lambda m: setattr(m, "constant", m.constant.view(1, 6)),
    "view": lambda m: setattr(m, "constant", m.constant.flip(0)),
}


def test_every_edit_of_what_the_forward_uses_changes_it():
    """And no two edits agree."""
    found = {"none": told(*_toy()[0:1], *_toy()[1])}
    for name, edit in EDITS.items():
        model, args, _ = _toy()
        edit(model)
        found[name] = told(model, *args)
    assert len(set(found.values())) == len(found), found


def _pooled(pool):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 2, 3).requires_grad_(False), nn.LazyLinear(2)
            self(image())

        def forward(self, x):
            return self.head(pool(self.conv(x)).flatten(1))

    return told(Pooled(), image())


def test_functions_that_torch_dispatches_are_told_apart():
    """`F.max_pool2d` and its kin are one local function of torch each, of the same name."""
    pools = [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.adaptive_max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 3),
        lambda x: F.max_pool2d(x, 2, 1),
    ]
    assert len({_pooled(pool) for pool in pools}) == len(pools)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float16)])
def test_autocast_inside_the_forward_counts(dtypes):
    """It is no operation; what it changes are the types of results."""

    class Cast(Toy):
        dtype = None

        def forward(self, x):
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                y = F.linear(x[:, 0], self.lstm.weight_ih_l0[:6])
            return self.head(y.float())

    found = []
    for dtype in (None, *dtypes):
        model, args, _ = Cast(), *_toy()[1:]
        model.dtype = dtype
        found.append(told(model, *args))
    assert len(set(found)) == len(found)


class Pair(NamedTuple):
    """What a frozen module below makes: a class of fields, which have no code of their own."""

    left: torch.Tensor
    right: float = 2.0


class Pairs(nn.Module):
    def forward(self, x):
        pair = Pair(x.exp())
        return pair.left * pair.right if float(x.sum()) > -1e9 else x


def test_a_class_of_fields_is_told_by_its_fields_and_defaults(monkeypatch):
    """Code that makes named tuples has an identity, and a default that it takes from them counts."""
    model = nn.Sequential(nn.Linear(4, 6).requires_grad_(False), Pairs(), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    first = ft.split(model, x).trunk.fingerprint
    assert ft.split(model, x).trunk.fingerprint == first
    monkeypatch.setattr(Pair.__new__, "__defaults__", (3.0,))
    assert ft.split(model, x).trunk.fingerprint != first


class Mapped(nn.Module):
    """Looks rows up, and goes on in code that torch maps over a batch of weights."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 6).requires_grad_(False)
        self.weights = nn.Parameter(torch.randn(3, 6, 4), requires_grad=False)

    def forward(self, ids):
        h = self.table(ids)
        return torch.vmap(lambda weight: (h @ weight).tanh())(self.weights).mean(0)


def test_what_lies_before_mapped_code_counts_and_no_value_of_the_example_does():
    """Where torch's vmap hides which operation gave a value, the module stands for it: not the value itself."""
    torch.manual_seed(0)
    model = nn.Sequential(Mapped(), nn.Linear(4, 2))
    one, other = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    first = ft.split(model, one).trunk.fingerprint
    assert ft.split(model, other).trunk.fingerprint == first
    assert "0.weights" in ft.split(model, one).trunk_tensors()
    nudge(model[0].table.weight[8])  # a row that neither example looks up
    assert ft.split(model, one).trunk.fingerprint != first


def test_the_code_of_a_custom_operator_counts():
    """Its name does not say what it does."""
    from torch.library import custom_op

    def made(factor):
        @custom_op("forethought_laws::scaled", mutates_args=())
        def scaled(x: torch.Tensor) -> torch.Tensor:
            return x * factor

        class Custom(Toy):
            def forward(self, x):
                return self.head(scaled(x[:, 0]).repeat(1, 2)[:, :6] * self.grid)

        return told(Custom(), *_toy()[1])

    assert made(2) != made(3)
    assert made(2) == made(2)


def test_a_module_told_by_its_code_is_told_by_all_of_it():
    """Helpers, classes of attributes, globals and enumerations that its code reads."""
    import enum

    source = """
    class Kind(enum.Enum):
        A = {member}
    TABLE = {{"a": {table}}}
    def deep(x): return x * TABLE["a"]
    def helper(x): return deep(x) + {added}
    class Opaque(nn.Module):
        kind = Kind.A
        def forward(self, h):
            return helper(h) if float(h.detach().sum()) > 1e9 or self.kind.value > 10 else h * 1
    class M(nn.Module):
        def __init__(self):
            super().__init__(); torch.manual_seed(0)
            self.layer, self.opaque, self.head = nn.Linear(4, 6), Opaque(), nn.Linear(6, 2)
            self.layer.requires_grad_(False)
        def forward(self, x): return self.head(self.opaque(self.layer(x)))
    """

    def of(**changes):
        user = types.ModuleType("user_file")
        vars(user).update(nn=nn, torch=torch, enum=enum)
        exec(textwrap.dedent(source).format(**{"member": 1, "table": 2, "added": 3, **changes}), vars(user))
        return told(user.M(), torch.ones(2, 4))

    found = [of(), of(member=2), of(table=3), of(added=4)]
    assert len(set(found)) == len(found)
    assert of() == found[0]


FILLED = {
    "numpy": "t = torch.empty(6); t.numpy()[:] = {value}",
    "numpy that reads only": "t = torch.full((6,), {value}); t.numpy().sum()",
    "asarray": "t = torch.zeros(6); np.asarray(t)[:] = {value}",
    "dlpack": "t = torch.zeros(6); torch.from_dlpack(t).fill_({value})",
    "pointer": "t = torch.zeros(6); (ctypes.c_float * 6).from_address(t.data_ptr())[:] = [{value}] * 6",
    "another memory": "t = torch.zeros(0); t.set_(torch.full((6,), {value}).untyped_storage(), 0, (6,))",
    "other data": "t = torch.zeros(6); t.data = torch.full((6,), {value})",
    "in place": "t = torch.zeros(6); t.fill_({value})",
    "through a view": "t = torch.zeros(6); t[:3] = {value}; t.view(2, 3)[1] = {value}",
    "out": "t = torch.zeros(6); torch.full((6,), {value}, out=t)",
}


@pytest.mark.parametrize("way", FILLED)
def test_what_a_constant_was_filled_with_counts(way):
    """Also where code that no operation shows wrote into it after it was made."""
    source = """
    class M(nn.Module):
        def __init__(self):
            super().__init__(); torch.manual_seed(0)
            self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
            self.layer.requires_grad_(False)
        def forward(self, x):
            {fill}
            return self.head((self.layer(x) * t).relu())
    """

    def of(value, rows=2):
        user = types.ModuleType("user_file")
        vars(user).update(nn=nn, torch=torch, np=np, ctypes=ctypes)
        exec(textwrap.dedent(source).format(fill=FILLED[way].format(value=value)), vars(user))
        return told(user.M(), torch.ones(rows, 4))

    assert of(1.0) != of(2.0)
    assert of(1.0) == of(1.0) == of(1.0, rows=3)


def test_the_number_of_hooks_in_a_process_does_not_count():
    """torch numbers them through; only their order on one module counts."""

    def hooked(numbers):
        layer = nn.ReLU()
        for factor in numbers:
            layer.register_forward_hook(lambda module, args, out, factor=factor: out * factor)
        return Digest().add(layer).hex()

    assert hooked([2, 3]) == hooked([2, 3]) != hooked([3, 2])


class Decides(nn.Module):
    """Python is told a frozen value, or a size that values decide, in code that both halves walk through."""

    def __init__(self, limit, what="value"):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.layer.requires_grad_(False), self.last.requires_grad_(False)
        self.limit, self.what = limit, what

    def forward(self, x, mask):
        h = self.layer(x)
        if self.what == "value":
            is_much = mask.sum() > self.limit
        elif self.what == "number":
            is_much = mask.sum().item() > self.limit
        else:
            is_much = mask.flatten().nonzero().shape[0] > self.limit
        return self.head(self.last(h * 2 if is_much else h * 1))


class Inside(Decides):
    """The same in a module of its own."""

    def forward(self, x, mask):
        return self.head(self.inner(x, mask))

    def inside(self):
        self.inner = Decides(self.limit, self.what).requires_grad_(False)
        self.inner.head = nn.Identity()
        return self


MASKED = torch.ones(4, 8), torch.ones(4, 3)


@pytest.mark.parametrize("what", ["value", "number", "size"])
@pytest.mark.parametrize("make", [Decides, lambda *given: Inside(*given).inside()], ids=["walked", "whole"])
def test_what_python_compares_a_frozen_value_with_counts(make, what):
    """The operations are the same for the example, but not for every sample."""
    here = told(make(50, what), *MASKED)
    assert told(make(60, what), *MASKED) != here
    assert told(make(50, what), *MASKED) == here
    assert told(Wrapper(make(50, what)), *MASKED) == here


def test_another_head_of_a_library_model_that_decides_does_not_count():
    """Its code is told by its version, and its configuration names the classes."""
    hf = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 11,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    found = set()
    for classes in (2, 5):
        torch.manual_seed(0)
        model = hf.BertForSequenceClassification(hf.BertConfig(**sizes, num_labels=classes)).eval()
        given = {"input_ids": tokens(), "attention_mask": torch.ones(2, 5).long()}
        found.add(told(ft.freeze(model, all_but="classifier"), **given))
    assert len(found) == 1


def _reading(read, **held):
    model = Toy()
    for name, value in held.items():
        setattr(model, name, value)
    type(model).forward, before = (lambda self, x: self.head(read(self, x[:, 0].repeat(1, 2)[:, :6]))), Toy.forward
    try:
        return told(model, *_toy()[1])
    finally:
        Toy.forward = before


def _doubled(factor):
    class Scaled(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
            return result * factor if func is F.linear else result

    return torch.eye(6).as_subclass(Scaled)


def _sparse(factor, layout):
    return (factor * torch.eye(6)).to_sparse(layout=layout)


def _quantized(scale, zero):
    return torch.quantize_per_tensor(torch.ones(6), scale, zero, torch.qint8)


def _quantized_by_channel(scale):
    scales = torch.tensor([scale, *[0.1] * 5]).double()
    return torch.quantize_per_channel(torch.ones(6, 6), scales, torch.zeros(6).long(), 0, torch.qint8)


def _dispatched(factor):
    @torch.overrides.wrap_torch_function(lambda x: (x,))
    def scaled(x):
        return x * factor

    return scaled


HOLDS_MORE = {
    "the code of a tensor's class": (lambda m, x: F.linear(x, m.held), _doubled, [(2.0,), (3.0,)]),
    "a sparse tensor": (
        lambda m, x: torch.sparse.mm(m.held, x.T).T,
        _sparse,
        [(1.0, torch.sparse_coo), (2.0, torch.sparse_coo)],
    ),
    "a sparse tensor in rows": (
        lambda m, x: (m.held @ x.T).T,
        _sparse,
        [(1.0, torch.sparse_csr), (2.0, torch.sparse_csr)],
    ),
    "the scale of a quantized tensor": (
        lambda m, x: x @ m.held.dequantize().diag(),
        _quantized,
        [(0.1, 0), (0.2, 0), (0.1, 1)],
    ),
    "the scale of a channel": (lambda m, x: x @ m.held.dequantize(), _quantized_by_channel, [(0.2,), (0.3,)]),
    "a function that torch dispatches": (lambda m, x: m.held(x), _dispatched, [(2.0,), (3.0,)]),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:torch.quantize")
@pytest.mark.parametrize("name", HOLDS_MORE)
def test_what_its_bytes_or_its_name_do_not_show_counts(name):
    """Tensors of other kinds, and functions of the user's that torch takes for its own."""
    read, make, cases = HOLDS_MORE[name]
    found = [_reading(read, held=make(*case)) for case in cases]
    assert len(set(found)) == len(cases)
    assert _reading(read, held=make(*cases[0])) == found[0]


class Scripted(nn.Module):
    def __init__(self, power=3.5, table=1.0, seed=0, limit=2):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.power, self.table = nn.Linear(8, 8), power, {"a": torch.full((8,), table)}
        self.limit: int = limit

    def helper(self, x):
        return x * self.table["a"] + torch.tensor([0.5])

    def forward(self, x):
        if self.limit > 1:
            x = x * self.power
        return self.helper(self.layer(x))


class Otherwise(Scripted):
    def helper(self, x):
        return x * self.table["a"] + torch.tensor([0.25])


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated", "ignore::torch.jit.TracerWarning")
def test_a_scripted_module_is_told_by_its_code_and_all_that_it_reads():
    """It is one operation to whoever watches, whatever it computes."""

    def of(script, later=lambda script: None):
        torch.manual_seed(9)
        model = nn.Sequential(script, nn.Linear(8, 2))
        split = ft.split(model, torch.ones(2, 8))
        later(script)
        return split.trunk.fingerprint

    def edited(script):
        with torch.no_grad():
            nudge(next(script.parameters()))

    def made(kind=Scripted, **options):
        return torch.jit.script(kind(**options).requires_grad_(False))

    x = torch.ones(2, 8)
    here = of(made())
    assert of(made()) == here
    others = [
        of(made(power=3.25)),
        of(made(table=2.0)),
        of(made(seed=1)),
        of(made(limit=1)),
        of(made(Otherwise)),
        of(made(), edited),
        of(torch.jit.trace(Scripted().requires_grad_(False), x)),
        of(torch.jit.trace(Scripted(seed=1).requires_grad_(False), x)),
        of(torch.jit.trace(nn.Hardtanh(-1.0, 1.0), x)),
        of(torch.jit.trace(nn.Hardtanh(-1.0, 2.0), x)),
    ]
    assert len({here, *others}) == 1 + len(others)


@pytest.mark.filterwarnings("ignore:.*(deprecated|quantized).*")
def test_a_quantized_module_is_told_by_its_packed_weights():
    def of(seed):
        torch.manual_seed(seed)
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})
        torch.manual_seed(9)
        return told(nn.Sequential(quantized, nn.Linear(8, 2)), torch.ones(2, 8))

    assert of(0) == of(0) != of(1)


# ---------------------------------------------------------------------------------- numeric state, versions

backends = torch.backends
STATES = {
    "tf32 on cuda": (backends.cuda.matmul, "allow_tf32", True),
    "tf32 in cudnn": (backends.cudnn, "allow_tf32", False),
    "half sums": (backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    "bfloat sums": (backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    "half accumulation": (backends.cuda.matmul, "allow_fp16_accumulation", True),
}


@pytest.mark.parametrize("name", STATES)
def test_every_numeric_setting_counts_and_is_put_back(name):
    """Also that of another device: rows are the same on all."""
    owner, setting, value = STATES[name]
    model, args, _ = _toy()
    split = ft.split(model, *args)
    here, before = split.trunk.fingerprint, getattr(owner, setting)
    assert before is not value
    setattr(owner, setting, value)
    try:
        assert split.trunk.fingerprint != here
    finally:
        setattr(owner, setting, before)
    assert split.trunk.fingerprint == here


def test_flushing_of_small_numbers_counts():
    here = numeric_state("cpu")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        assert numeric_state("cpu") != here
    finally:
        torch.set_flush_denormal(False)
    assert numeric_state("cpu") == here


def test_devices_have_one_numeric_state():
    """Rows made on a GPU are served on a CPU."""
    assert numeric_state("cpu") == numeric_state("cuda")
    with torch.autocast("cpu", torch.bfloat16):
        assert numeric_state("cpu") != numeric_state("cuda")


VERSIONS = {
    "minor": {
        "2.14.1+cpu": "2.14",
        "2.14.0": "2.14",
        "2.15.0+cu130": "2.15",
        "2.15.0.dev20260101+cpu": "2.15.0.dev20260101+cpu",
    },
    "exact": {"2.14.1+cpu": "2.14.1+cpu", "2.14.0": "2.14.0"},
    "any": {"2.14.1+cpu": "", "2.15.0": ""},
}


@pytest.mark.parametrize(("policy", "torches"), VERSIONS.items(), ids=list(VERSIONS))
def test_the_policy_says_which_versions_share_rows(monkeypatch, policy, torches):
    monkeypatch.setenv("FORETHOUGHT_VERSIONS", policy)
    for whole, counted in torches.items():
        monkeypatch.setattr(torch, "__version__", whole)
        assert numerics_version() == counted


def test_versions_separate_fingerprints_as_the_policy_says(monkeypatch):
    """Another patch or build of torch keeps rows, another minor version makes new ones."""
    plan = ft.split(_toy()[0], *_toy()[1]).plan
    here = fingerprint_of(plan)
    release = torch.__version__.split("+")[0].split(".")
    for version, same in (
        (f"{release[0]}.{release[1]}.9+cu999", True),
        (f"{release[0]}.{int(release[1]) + 1}.0", False),
    ):
        monkeypatch.setattr(torch, "__version__", version)
        assert (fingerprint_of(plan) == here) is same
    monkeypatch.setenv("FORETHOUGHT_VERSIONS", "any")
    free = fingerprint_of(plan)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert fingerprint_of(plan) == free
    monkeypatch.setenv("FORETHOUGHT_VERSIONS", "sometimes")
    with pytest.raises(IdentityError, match="FORETHOUGHT_VERSIONS"):
        fingerprint_of(plan)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    "make",
    [
        lambda big: big,
        lambda big: big.T,
        lambda big: big[:, 1:],
        lambda big: big[::2],
        lambda big: big.view(2, -1, 512).transpose(0, 2),
        lambda big: big[:1].expand(9000, -1),
        lambda big: big.bfloat16(),
        lambda big: torch.complex(big, big).conj(),
        lambda big: big[None, :, :].expand(1, -1, -1),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_large_tensors_are_told_by_content_whatever_their_layout_and_threads(make, threads):
    """Blocks and threads are a matter of speed."""
    big = torch.arange(9000 * 1024, dtype=torch.float32).reshape(9000, 1024)
    torch.set_num_threads(threads)
    try:
        tensor = make(big)
        plain = tensor.resolve_conj().contiguous()
        assert Digest().add(tensor).hex() == Digest().add(plain).hex()
        changed = plain.clone()
        changed.view(-1)[-1] += 1 if not changed.dtype.is_complex else 1j
        changed.view(-1)[-1] *= 2
        assert Digest().add(changed).hex() != Digest().add(plain).hex()
    finally:
        torch.set_num_threads(1)


def test_hashing_copies_no_whole_tensor():
    """A model that fills half the memory can be identified; a transposed weight is read in blocks."""
    import tracemalloc

    big = torch.zeros(8192, 2048)  # 64 MB
    for tensor in (big, big.T, big.view(64, -1, 2048).transpose(0, 2)):
        tracemalloc.start()
        with Peak() as peak:
            Digest().add(tensor)
        tracemalloc.stop()
        assert peak.bytes < big.nbytes // 2


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that any operation inside makes."""

    bytes = 0

    def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for tensor in [made] if isinstance(made, torch.Tensor) else ():
            if tensor.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, tensor.nbytes)
        return made
