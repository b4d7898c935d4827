"""The laws of extraction: a hit is right or it is no hit; nothing is computed twice; what was committed stays."""

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_models import Net
from processes import printed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

import forethought as ft
import forethought.store
from forethought.errors import (
    EmptyDatasetError,
    ForethoughtError,
    ImpureTrunkError,
    NothingFrozenError,
    SplitError,
    StoreError,
    StoreFormatError,
    StorePathError,
)
from forethought.store import DamagedSegmentWarning, Store


class Renamed(nn.Module):
    """The same computation in a class and under names of its own; comments do not count."""

    def __init__(self, net):
        super().__init__()
        self.inner, self.labels = net, ["a", "b"]

    def forward(self, batch):
        return self.inner(batch)  # nothing but a wrapper


class Samples(Dataset):
    def __init__(self, x, target=int):
        self.x, self.target = x, target

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.target(index)


def make_x(n=20, seed=1):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def live(model, x):
    """What the head is given by the model itself, hooks and all."""
    given = []
    handle = model.head.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().clone()))
    try:
        with torch.enable_grad():
            model(x.clone())
    finally:
        handle.remove()
    return given[0]


def values_of(features):
    return torch.cat([values for values, _ in features.batches(10**6)])


def is_right(features, model, x):
    return torch.equal(values_of(features), live(model, x))


def segments(store):
    return sorted(Path(store).glob("tables/*/*.safetensors"))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def runs(monkeypatch):
    """Counts every call of every module, where no identity of a model sees it."""
    seen = []
    call = nn.Module._call_impl

    def counted(self, *args, **kwargs):
        seen.append(type(self).__name__)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "_call_impl", counted)
    return seen


# --- never stale -------------------------------------------------------------------------------------------------


def one_ulp(net):
    weight = net.layer.weight.data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


def set_state(net, **options):
    net.layer.load_state_dict({name: 2 * value for name, value in net.layer.state_dict().items()}, **options)


def numpy_edit(net):
    net.layer.weight.detach().numpy()[0, 0] += 1


EDITS = {
    "one ulp of a weight": one_ulp,
    "a buffer": lambda net: net.shift.add_(1),
    "a running mean": lambda net: net.norm.running_mean.add_(1),
    "a running variance": lambda net: net.norm.running_var.mul_(2),
    "weight.data": lambda net: setattr(net.layer.weight, "data", 2 * net.layer.weight.data),
    "load_state_dict": set_state,
    "numpy over the same memory": numpy_edit,
    "eps": lambda net: setattr(net.norm, "eps", 0.1),
    "a Python attribute": lambda net: setattr(net, "scale", 3.0),
    "another Parameter": lambda net: setattr(
        net.layer, "weight", nn.Parameter(2 * net.layer.weight, requires_grad=False)
    ),
    "load_state_dict(assign=True)": lambda net: set_state(net, assign=True),
    "another submodule of the same kind": lambda net: setattr(net, "layer", nn.Linear(4, 8).requires_grad_(False)),
    "another submodule": lambda net: setattr(net, "act", nn.GELU()),
    "another buffer": lambda net: setattr(net, "shift", torch.full((8,), 3.0)),
    "a hook": lambda net: net.layer.register_forward_hook(lambda module, args, output: output * 2),
    "forward of one module": lambda net: setattr(net.act, "forward", lambda x: x * 5),
    "dtype": lambda net: net.double(),
}


@pytest.mark.parametrize("name", EDITS)
def test_no_edit_of_a_model_is_served_stale(name, store):
    x = make_x()
    net = Net()
    ft.extract(net, x, store)
    EDITS[name](net)
    x = x.to(net.layer.weight.dtype)
    features = ft.extract(net, x, store)
    assert is_right(features, net, x)
    assert features.report.rows_computed == len(x)
    assert is_right(ft.extract(Net(), make_x(), store), Net(), make_x())


@pytest.mark.parametrize("name", [name for name in EDITS if name != "dtype"])
@pytest.mark.parametrize("when", ["before the first extraction", "between two"])
def test_no_edit_of_a_split_model_is_served_stale_or_poisons_the_store(name, when, store):
    x = make_x()
    net = Net()
    split = ft.split(net, x[:2])
    if when == "between two":
        ft.extract(split, x, store)
    EDITS[name](net)
    try:
        features = ft.extract(split, x, store)
    except ForethoughtError:
        return  # refused: split again
    assert is_right(features, net, x)
    assert is_right(ft.extract(Net(), x, store), Net(), x), "another's honest extraction was given wrong rows"


@pytest.mark.parametrize(
    "use",
    ["model", "split"],
)
def test_a_trunk_set_to_train_is_refused(use, store):
    net = Net()
    given = ft.split(net, make_x(2)) if use == "split" else net
    ft.extract(given, make_x(), store)
    net.norm.train()
    with pytest.raises(ImpureTrunkError, match="norm"):
        ft.extract(given, make_x(), store)


# How Python may come by a number that forward uses; {k} is 2.0, then 3.0.
# fmt: off
ROUTES = {
    "code": "class M(Base):\n  def factor(self): return {k}",
    "default": "class M(Base):\n  def factor(self, k={k}): return k",
    "keyword default": "class M(Base):\n  def factor(self, *, k={k}): return k",
    "class number": "class M(Base):\n  K = {k}\n  def factor(self): return self.K",
    "class tuple": "class M(Base):\n  K = (1, {k})\n  def factor(self): return self.K[1]",
    "parent's number": "class P(Base):\n  K = {k}\nclass M(P):\n  def factor(self): return self.K",
    "static method": "class M(Base):\n  factor = staticmethod(lambda: {k})",
    "class method": "class M(Base):\n  factor = classmethod(lambda cls: {k})",
    "property": "class M(Base):\n  k = property(lambda self: {k})\n  def factor(self): return self.k",
    "global": "K = {k}\nclass M(Base):\n  def factor(self): return K",
    "global list": "K = [{k}]\nclass M(Base):\n  def factor(self): return K[0]",
    "global instance": "class C: pass\nc = C(); c.k = {k}\nclass M(Base):\n  def factor(self): return c.k",
    "global function": "def f(): return {k}\nclass M(Base):\n  def factor(self): return f()",
    "global's global": "K = {k}\ndef f(): return K\nclass M(Base):\n  def factor(self): return f()",
    "closure": "def make(k):\n  def f(): return k\n  return f\nf = make({k})\nclass M(Base):\n  def factor(self): return f()",
    "lambda in an attribute": "class M(Base):\n  def __init__(self): super().__init__(); self.factor = lambda: {k}",
    "partial": "p = functools.partial(float, {k})\nclass M(Base):\n  def factor(self): return p()",
    "other module": "other.K = {k}\nclass M(Base):\n  def factor(self): return other.K",
    "environment": "os.environ['ADVERSE'] = '{k}'\nclass M(Base):\n  def factor(self): return float(os.environ['ADVERSE'])",
    "list comprehension": "class M(Base):\n  def factor(self): return [x * {k} for x in (1,)][0]",
    "class list": "class M(Base):\n  K = [{k}]\n  def factor(self): return self.K[0]",
    "class dict": "class M(Base):\n  K = {{'k': {k}}}\n  def factor(self): return self.K['k']",
    "class tensor": "class M(Base):\n  K = torch.tensor({k})\n  def factor(self): return self.K",
    "class's class": "class M(Base):\n  class C:\n    K = {k}\n  def factor(self): return self.C.K",
    "class instance": "class C: pass\nc = C(); c.k = {k}\nclass M(Base):\n  C = c\n  def factor(self): return self.C.k",
    "cached method": "class M(Base):\n  @functools.cache\n  def factor(self): return {k}",
    "cached property": "class M(Base):\n  k = functools.cached_property(lambda self: {k})\n  def factor(self): return self.k",
    "partial method": "class M(Base):\n  def f(self, k): return k\n  factor = functools.partialmethod(f, {k})",
    "descriptor": "class D:\n  def __get__(self, *_): return {k}\nclass M(Base):\n  K = D()\n  def factor(self): return self.K",
    "submodule of a module": "other.sub.K = {k}\nclass M(Base):\n  def factor(self): return other.sub.K",
    "method of a dictionary": "get = {{0: {k}}}.get\nclass M(Base):\n  def factor(self): return get(0)",
    "string in a generator": "w = {{'2.0': 2.0, '3.0': 3.0}}\nclass M(Base):\n  def factor(self): return sum(w[i] for i in w if i == '{k}')",
    "attribute of a list": "class L(list): pass\nl = L(); l.k = {k}\nclass M(Base):\n  def factor(self): return l.k",
    "getattr by name": "other.K = {k}\nclass M(Base):\n  def factor(self): return getattr(other, 'K')",
    "globals()": "K = {k}\nclass M(Base):\n  def factor(self): return globals()['K']",
}
# fmt: on


@pytest.mark.parametrize("route", ROUTES)
def test_no_number_in_python_is_served_stale(route, store, monkeypatch):
    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 8).requires_grad_(False)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.layer(x) * self.factor())

    import functools

    other = types.ModuleType("other_user_code")
    other.sub = types.ModuleType("other_user_code.sub")
    monkeypatch.setenv("ADVERSE", "")
    x = make_x()
    for k in (2.0, 3.0):
        user = types.ModuleType("user_code")
        vars(user).update(Base=Base, torch=torch, functools=functools, os=os, other=other)
        exec(ROUTES[route].format(k=k), vars(user))
        model = user.M()
        features = ft.extract(model, x, store)
        assert torch.equal(values_of(features), model.layer(x) * k)


def test_one_table_never_holds_rows_of_two_models(store):
    class Listed(Net):
        gains = [1.0]  # noqa: RUF012

        def forward(self, x):
            return self.head(self.layer(x) * self.gains[0])

    x, net = make_x(), Listed()
    ft.extract(net, x[:10], store)
    Listed.gains = [3.0]
    ft.extract(net, x, store)
    for fingerprint in Store(store).tables():
        table = Store(store).table(fingerprint)
        assert table.rows in (10, 20)
    assert len(Store(store).tables()) == 2


@pytest.mark.parametrize("what", ["class", "function"])
def test_a_patched_library_is_not_served_stale(what, store, monkeypatch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.act = nn.Linear(4, 8).requires_grad_(False), nn.Hardswish()
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(F.softplus(self.act(self.layer(x))))

    x = make_x()
    ft.extract(Model(), x, store)
    if what == "class":
        monkeypatch.setattr(nn.Hardswish, "forward", lambda self, x: x * 9)
    else:
        monkeypatch.setattr(F, "softplus", lambda x: x * 9)
    assert is_right(ft.extract(Model(), x, store), Model(), x)


def test_numeric_state_separates_rows(store):
    x, net = make_x(), Net()
    before = torch.get_float32_matmul_precision()
    ft.extract(net, x, store)
    try:
        torch.set_float32_matmul_precision("medium" if before != "medium" else "high")
        assert ft.extract(net, x, store).report.rows_computed == len(x)
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", torch.bfloat16):
        features = ft.extract(net, x, store)
        assert features.report.rows_computed == len(x)
        assert is_right(features, net, x)
    assert ft.extract(net, x, store).report.rows_computed == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cuda.matmul", "mkldnn.matmul"])
def test_torchs_new_precision_settings_do_not_break_extraction(backend, tmp_path):
    code = (
        "import torch, forethought as ft; from torch import nn; torch.manual_seed(0)\n"
        "m = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)); m[0].requires_grad_(False); x = torch.randn(8, 4)\n"
        f"first = ft.extract(m, x, {str(tmp_path / 'store')!r}).report.rows_computed\n"
        f"torch.backends.{backend}.fp32_precision = 'tf32' if {backend!r} == 'cuda.matmul' else 'bf16'\n"
        f"again = ft.extract(m, x, {str(tmp_path / 'store')!r}).report.rows_computed\n"
        "print(first, again)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-400:]
    if backend.startswith("mkldnn"):
        assert done.stdout.split() == ["8", "8"]  # it changes what the CPU computes


def test_onednn_precision_separates_rows(store):
    setting = torch.backends.mkldnn.conv
    before, x, net = setting.fp32_precision, make_x(), Net()
    ft.extract(net, x, store)
    try:
        setting.fp32_precision = "bf16"
        assert ft.extract(net, x, store).report.rows_computed == len(x)
    finally:
        setting.fp32_precision = before


def test_a_byte_of_a_sample_and_a_transform_are_seen(store):
    x, net = make_x(), Net()
    ft.extract(net, Samples(x), store)
    x[3, 2] = torch.nextafter(x[3, 2], torch.tensor(9.0))
    features = ft.extract(net, Samples(x), store)
    assert (features.report.rows_computed, is_right(features, net, x)) == (1, True)
    shifted = [(row + 1, 0) for row in x]
    features = ft.extract(net, shifted, store)
    assert (features.report.rows_computed, is_right(features, net, x + 1)) == (len(x), True)


def test_dtype_and_shape_of_a_sample_are_part_of_it(store):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    x = torch.zeros(3, 4)
    assert ft.extract(model, x, store).report.rows_computed == 1
    assert ft.extract(model, x.reshape(3, 2, 2), store).report.rows_computed == 1
    assert ft.extract(model.double(), x.double(), store).report.rows_computed == 1


def test_zero_and_minus_zero_are_two_inputs(store):
    class Signs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(1, 1).requires_grad_(False), nn.Linear(1, 1)

        def forward(self, x):
            return self.head(self.layer(x) * 0 + torch.copysign(torch.ones_like(x), x))

    x = torch.tensor([[0.0], [-0.0], [float("nan")]])
    model = Signs()
    features = ft.extract(model, x, store)
    assert features.report.rows_computed == 3
    assert torch.equal(values_of(features)[:2], torch.tensor([[1.0], [-1.0]]))


def test_the_labels_are_those_of_today(store):
    x, net = make_x(), Net()
    assert ft.extract(net, (x, torch.zeros(20)), store).targets.sum() == 0
    again = ft.extract(net, (x, torch.ones(20)), store)
    assert (again.report.rows_computed, again.targets.sum()) == (0, 20)
    assert ft.extract(net, Samples(x, target=str), store)[7][1] == "7"


def test_a_trainable_number_that_python_reads_is_not_served_stale(store):
    class Model(Net):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.head(self.layer(x) * self.gain.detach().item())

    x, model = make_x(), Model()
    try:
        ft.extract(model, x, store)
        with torch.no_grad():
            model.gain.fill_(3.0)
        features = ft.extract(model, x, store)
    except ForethoughtError:
        return
    assert is_right(features, model, x)


# --- never needless ----------------------------------------------------------------------------------------------


def test_what_does_not_matter_computes_nothing(store, tmp_path):
    x, net = make_x(), Net()
    ft.extract(net, Samples(x), store, batch_size=7)

    def computed(model=net, data=None, **options):
        features = ft.extract(model, Samples(x) if data is None else data, store, **options)
        return features.report.rows_computed

    assert computed() == 0
    assert computed(Net(classes=5)) == 0
    other_head = Net()
    other_head.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    assert computed(other_head) == 0
    assert computed(Renamed(Net())) == 0
    assert computed(batch_size=3) == 0
    assert computed(batch_size=1) == 0
    assert computed(num_workers=1) == 0
    assert computed(segment_rows=2) == 0
    assert computed(data=Subset(Samples(x), [5, 3, 3])) == 0
    assert computed(data=Samples(x.flip(0))) == 0
    assert computed(data=ConcatDataset([Samples(x), Samples(x)])) == 0
    assert computed(data=x) == computed(data=x.numpy()) == computed(data=(x, x)) == computed(data=list(x)) == 0
    assert computed(data=DataLoader(Samples(x), shuffle=True, batch_size=3, drop_last=True)) == 0
    assert computed(ft.split(net, x[:2])) == 0
    net.head.weight.data.add_(1)
    assert computed() == 0
    assert computed(data=torch.cat([x, make_x(5, seed=2), x])) == 5
    moved = tmp_path / "moved"
    shutil.move(store, moved)
    assert ft.extract(net, x, moved).report.rows_computed == 0


def test_a_comment_a_docstring_and_line_numbers_are_no_change(store):
    texts = (
        "class M(Base):\n  def forward(self, x):\n    return self.head(self.layer(x))",
        "\n\nclass M(Base):\n  'Says more.'\n  def forward(self, x):\n    'And more.'\n    # and more\n    return self.head(self.layer(x))",
    )
    computed = []
    for text in texts:
        user = types.ModuleType("user_code")
        user.Base = Net
        exec(text, vars(user))
        computed.append(ft.extract(user.M(), make_x(), store).report.rows_computed)
    assert computed == [20, 0]


def test_equal_samples_are_computed_once_and_counted(store):
    x = make_x(6)
    features = ft.extract(Net(), torch.cat([x, x, x[:2]]), store, batch_size=5)
    report = features.report
    assert (report.rows, report.rows_computed, report.rows_reused) == (14, 6, 8)
    assert report.size_bytes == 14 * 8 * 4
    assert report.time_s > 0


def test_the_order_is_that_of_the_data_set(store):
    x, net = make_x(), Net()
    ft.extract(net, x, store)
    order = torch.randperm(20)
    assert is_right(ft.extract(net, x[order], store), net, x[order])


def test_the_form_in_which_inputs_are_named_does_not_matter(store):
    class Named(Net):
        def forward(self, x):
            return super().forward(x)

    x = make_x()
    ft.extract(Named(), x, store)
    assert ft.extract(Named(), {"x": x}, store).report.rows_computed == 0


# --- a second call does not run the trunk ------------------------------------------------------------------------


def test_a_complete_hit_calls_no_module(store, runs):
    net = Net()
    ft.extract(net, make_x(), store)
    assert runs
    for given in (store, Store(store), Store(store, readonly=True)):
        runs.clear()
        features = ft.extract(net, make_x(), given)
        values_of(features)
        assert (runs, features.report.rows_computed) == ([], 0)
    runs.clear()
    net.head.weight.data.add_(1)
    ft.extract(net, make_x()[:4], store)
    assert runs == []
    assert features.head(values_of(features)).shape == (20, 2)


def test_a_hit_in_a_readonly_store_writes_nothing(store):
    net = Net()
    ft.extract(net, make_x(), store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    ft.extract(Net(classes=7), make_x(), Store(store, readonly=True))
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    with pytest.raises(StoreError, match="readonly"):
        ft.extract(net, make_x(3, seed=9), Store(store, readonly=True))


@pytest.mark.parametrize(
    "kind",
    [
        "norm",
        "lstm",
        "gru",
        "attention",
        "hooked by freeze",
        "weight norm",
    ],
)
def test_a_complete_hit_of_an_ordinary_layer_calls_no_module(kind, store, runs):
    class Take(nn.Module):
        def forward(self, pair):
            return pair[0]

    torch.manual_seed(0)
    layer = {
        "norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(3)).eval(),
        "lstm": lambda: nn.Sequential(nn.LSTM(4, 4, batch_first=True), Take()),
        "gru": lambda: nn.Sequential(nn.GRU(4, 4, batch_first=True), Take()),
        "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(),
        "hooked by freeze": lambda: ft.freeze(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    }[kind]()
    model = nn.Sequential(layer.requires_grad_(False), nn.Linear(4, 2))
    x = torch.randn(6, 3, 4)
    ft.extract(model, x, store)
    runs.clear()
    assert ft.extract(model, x, store).report.rows_computed == 0
    assert runs == []


COUNTED = 0


class Counting(Net):
    def forward(self, x):
        global COUNTED
        COUNTED += 1
        return super().forward(x)


@pytest.mark.parametrize("how", ["global", "hook"])
def test_a_model_that_counts_its_calls_is_not_called_again(how, store):
    net, seen = (Counting(), None) if how == "global" else (Net(), [])
    if seen is not None:
        net.layer.register_forward_hook(lambda *_: seen.append(1))
    ft.extract(net, make_x(), store)
    before = (COUNTED, seen and len(seen))
    ft.extract(net, make_x(), store)
    assert (COUNTED, seen and len(seen)) == before


SCRIPT = """
import sys, time, torch
from torch import nn
import forethought as ft
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 512),
    nn.Linear(512, 2))
model[0].requires_grad_(False)
model[4].requires_grad_(False)
x = torch.randn(96, 1, 9, 9, generator=torch.Generator().manual_seed(1))
class Slow(torch.utils.data.Dataset):
    def __init__(self, wait): self.wait = wait
    def __len__(self): return len(x)
    def __getitem__(self, index):
        time.sleep(self.wait)
        return x[index], index
"""


@pytest.fixture
def scripted(monkeypatch):
    user = types.ModuleType("__main__")  # as the same code is called in a process of its own
    exec(SCRIPT, vars(user))
    return user


@pytest.mark.slow
def test_another_process_with_another_hash_seed_computes_nothing_and_runs_nothing(store):
    count = (
        "calls = []\ncall = nn.Module._call_impl\n"
        "nn.Module._call_impl = lambda self, *a, **k: (calls.append(1), call(self, *a, **k))[1]\n"
        f"r = ft.extract(model, Slow(0), {str(store)!r}).report\nprint(r.rows_computed, len(calls))\n"
    )
    first, second = [printed(SCRIPT + count, seeds=[seed])[0].split() for seed in (1, 2)]
    assert first[0] == "96"
    assert first[1] != "0"
    assert second == ["0", "0"]


# --- interruption ------------------------------------------------------------------------------------------------


def killed(store, rows):
    """Begin in a process of its own, and kill it when a few segments are there."""
    code = SCRIPT + f"ft.extract(model, Slow(0.01), {str(store)!r}, batch_size=8, segment_rows={rows})"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while len(segments(store)) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(segments(store)) >= 3


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(8, marks=pytest.mark.slow),
        10,
    ],
)
def test_after_a_kill_the_result_is_that_of_an_undisturbed_run(rows, store, tmp_path, scripted):
    killed(store, rows)
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        committed = sum(Store(store).table(key).rows for key in Store(store).tables())
        resumed = ft.extract(scripted.model, scripted.Slow(0), store, batch_size=8, segment_rows=rows)
        clean = ft.extract(scripted.model, scripted.Slow(0), tmp_path / "clean", batch_size=8, segment_rows=rows)
    finally:
        torch.set_num_threads(torch_threads)
    assert resumed.report.rows_computed == 96 - committed
    assert clean.report.rows_computed == 96
    np.testing.assert_allclose(resumed.numpy(), clean.numpy(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(resumed.numpy(), clean.numpy())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_keeps_every_row_that_was_computed(error, store, tmp_path):
    class Breaks(Samples):
        reads, at = 0, 10**9

        def __getitem__(self, index):
            self.reads += 1
            if self.reads > self.at:
                raise error
            return super().__getitem__(index)

    x, net, counter = make_x(80), Net(), Breaks(make_x(80))
    ft.extract(Net(), counter, tmp_path / "other", batch_size=4)
    data = Breaks(x)
    data.at = counter.reads - 20  # while the last quarter is read
    with pytest.raises(error):
        ft.extract(net, data, store, batch_size=4, segment_rows=1000)
    data.at = 10**9
    features = ft.extract(net, data, store, batch_size=4)
    assert features.report.rows_computed == 20
    torch.testing.assert_close(values_of(features), live(net, x))


@pytest.mark.parametrize("at", [0, 20, 200, -1, "half", "empty"])
def test_damaged_segments_are_warned_of_and_computed_again(at, store):
    x, net = make_x(), Net()
    wanted = values_of(ft.extract(net, x, store, segment_rows=5)).clone()
    for path in segments(store)[:2]:
        content = bytearray(path.read_bytes())
        if isinstance(at, int):
            content[at] ^= 1
        path.unlink()
        path.write_bytes(content[: {"half": len(content) // 2, "empty": 0}.get(at)])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        features = ft.extract(net, x, store, batch_size=5)
    assert [w.category for w in seen] == [DamagedSegmentWarning] * 2
    assert features.report.rows_computed == 10
    torch.testing.assert_close(values_of(features), wanted)
    for path in segments(store):
        path.write_bytes(b"")
    warnings.simplefilter("ignore")  # pytest puts the filters back
    with pytest.raises(StoreError, match="readonly"):
        ft.extract(net, x, Store(store, readonly=True))


def test_segments_that_vanish_are_computed_again(store):
    x, net = make_x(), Net()
    ft.extract(net, x, store, segment_rows=5)
    segments(store)[0].unlink()
    features = ft.extract(net, x, store)
    assert features.report.rows_computed == 5
    torch.testing.assert_close(values_of(features), live(net, x))


def test_a_damaged_note_is_a_miss(store):
    net = Net()
    ft.extract(net, make_x(), store)
    for note in store.rglob("*.note"):
        note.write_bytes(note.read_bytes()[:-4])
    features = ft.extract(net, make_x(), store)
    assert features.report.rows_computed == 0
    assert is_right(features, net, make_x())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_says_so_and_the_work_resumes(code, store, monkeypatch):
    x, net = make_x(), Net()
    put, written = forethought.store.Folder.put, []

    def full(folder, path, *parts, keep=False):
        if path.endswith(".safetensors"):
            if len(written) == 2:
                raise OSError(code, os.strerror(code))
            written.append(path)
        return put(folder, path, *parts, keep=keep)

    monkeypatch.setattr(forethought.store.Folder, "put", full)
    with pytest.raises(StoreError, match="Cannot write"):
        ft.extract(net, x, store, segment_rows=4, batch_size=4)
    monkeypatch.undo()
    features = ft.extract(net, x, store, batch_size=4)
    assert features.report.rows_computed == 12
    torch.testing.assert_close(values_of(features), live(net, x))


def test_a_failing_fsync_commits_nothing(store, monkeypatch):
    Store(store)

    def refuse(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError):
        ft.extract(Net(), make_x(), store)
    monkeypatch.undo()
    assert ft.extract(Net(), make_x(), store).report.rows_computed == 20


def test_a_path_that_cannot_be_a_store_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StorePathError, match="file"):
        ft.extract(Net(), make_x(), file)
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "forethought.json").write_text('{"format": 999}')
    with pytest.raises(StoreFormatError, match="999"):
        ft.extract(Net(), make_x(), newer)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        ft.extract(Net(), make_x(), mine)
    assert file.read_text() == "mine"
    assert os.listdir(mine) == ["thesis.tex"]


# --- the model and the user's data stay as they were -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "array", "tuple"])
def test_a_trunk_that_writes_in_place_leaves_the_data_alone(kind, store):
    x = make_x()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 8), nn.Linear(8, 2))
    model[1].requires_grad_(False)
    mine = x.clone()
    data = {"tensor": mine, "array": mine.numpy(), "tuple": (mine, torch.arange(20))}[kind]
    ft.extract(model, data, store)
    assert torch.equal(mine, x)


def test_the_model_stays_as_it_was(store):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    features = ft.extract(model, make_x(), store)
    assert features.head(values_of(features)).shape == (20, 2)
    model[1].running_mean.copy_(before["1.running_mean"])
    model[1].running_var.copy_(before["1.running_var"])
    model[1].num_batches_tracked.copy_(before["1.num_batches_tracked"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True, True, True]


def test_extraction_itself_does_not_touch_the_buffers_of_the_head(store):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    before = model[1].running_mean.clone()
    ft.extract(model, make_x(), store)
    assert torch.equal(model[1].running_mean, before)
    model(make_x())
    assert ft.extract(model, make_x(), store).report.rows_computed == 0


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.enable_grad, torch.inference_mode],
)
def test_gradient_modes_around_the_call_change_nothing(mode, store):
    x, net = make_x(), Net()
    with mode():
        features = ft.extract(net, x, store)
    assert is_right(features, net, x)
    assert ft.extract(net, x, store).report.rows_computed == 0


# --- misuse ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda s: ft.extract(nn.Linear(4, 2), make_x(), s), NothingFrozenError, "frozen"),
        (lambda s: ft.extract(Net(), make_x(), s, at="nope"), SplitError, "nope"),
        (lambda s: ft.extract(ft.split(Net(), make_x(2)), make_x(), s, at="layer"), SplitError, "ft.split"),
        (lambda s: ft.extract(Net(), make_x(0), s), EmptyDatasetError, "empty"),
        pytest.param(lambda s: ft.extract(lambda x: x, make_x(), s), ForethoughtError, "Module"),
        pytest.param(lambda s: ft.extract(Net(), make_x(), s, batch_size=-1), ForethoughtError, "batch"),
        pytest.param(lambda s: ft.extract(Net(), make_x(), s, batch_size=0), ForethoughtError, "batch"),
        pytest.param(lambda s: ft.extract(Net(), make_x(), s, segment_rows=0), ForethoughtError, "segment"),
    ],
)
def test_misuse_is_an_error_that_says_so(call, error, says, store):
    with pytest.raises(error, match=says):
        call(store)


def test_everything_frozen_stores_the_output(store):
    model = nn.Linear(4, 2).requires_grad_(False)
    features = ft.extract(model, make_x(), store)
    assert torch.equal(values_of(features), model(make_x()))
    assert torch.equal(features.head(values_of(features)), model(make_x()))


def test_at_stores_an_earlier_cut_apart_from_the_frontier(store):
    net = Net()
    early, late = ft.extract(net, make_x(), store, at="layer"), ft.extract(net, make_x(), store)
    assert torch.equal(values_of(early), net.layer(make_x()))
    assert is_right(late, net, make_x())
    assert torch.equal(early.head(values_of(early)), net(make_x()))
    assert ft.extract(net, make_x(), store, at="layer").report.rows_computed == 0


@pytest.mark.parametrize("targets", ["with", "without"])
def test_two_stages_chain(targets, store):
    x, net = make_x(), Net()
    first = ft.extract(net, (x, torch.arange(20)) if targets == "with" else x, store, at="layer")
    second = nn.Sequential(nn.Linear(8, 3).requires_grad_(False), nn.Linear(3, 1))
    features = ft.extract(second, first, store)
    assert torch.equal(values_of(features), second[0](net.layer(x)))
    assert ft.extract(second, first, store).report.rows_computed == 0


def test_fifty_extractions_leak_no_descriptor_and_no_mapping(store):
    def counts():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("\n")

    net = Net()
    kept = [ft.extract(net, make_x(), store, segment_rows=3)]
    before = counts()
    for _ in range(50):
        values_of(ft.extract(net, make_x(), store))
    after = counts()
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 20
    assert len(kept[0]) == 20


@pytest.mark.slow
def test_two_processes_that_extract_at_once_agree(store, scripted):
    code = SCRIPT + f"ft.extract(model, Slow(0.002), {str(store)!r}, batch_size=8, segment_rows=8)"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    features = ft.extract(scripted.model, scripted.Slow(0), store, batch_size=8)
    assert features.report.rows_computed == 0
    assert len(features) == 96
    wanted = ft.split(scripted.model, scripted.x[:2]).trunk(scripted.x)
    torch.testing.assert_close(values_of(features), wanted)
