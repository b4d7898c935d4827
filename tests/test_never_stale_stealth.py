"""Changes that go unnoticed most easily: one sample in many, by a way that no list of parts, files or stamps shows.

Where a store believes without reading, or without running a model, it has to account for all that is read. Here it is
read in ways that are easily forgotten. Reading a few samples again shows none of these, for only one of many changes.
"""

import collections
import contextlib
import contextvars
import functools
import mmap
import os
import pkgutil
import sys
import types

import numpy as np
import pytest
import torch
from test_never_stale import Net, Own, as_tensor, begin, extracted, overwrite, raw_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

from forethought.extracting import roll
from forethought.samples.dataset import Samples

MANY = 160
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


class Many(Own):
    """A file for each of many samples."""

    def __init__(self, folder, many=MANY):
        self.folder, self.many = folder, many
        for number in range(many):
            self.path(number).write_bytes(raw_of(number))

    def __len__(self):
        return self.many

    def __getitem__(self, index):
        return as_tensor(self.path(index).read_bytes()), index


@case
def file_edited_in_place(folder):
    data = Many(folder)
    yield data, MANY
    overwrite(data.path(77), raw_of(1000))
    yield data, 1


@case
def file_that_two_samples_read(folder):
    class Shared(Many):
        def __getitem__(self, index):
            return as_tensor(self.path(index).read_bytes()), int.from_bytes(
                self.path((index + 1) % MANY).read_bytes()[:1]
            )

    data = Shared(folder)
    yield data, MANY
    overwrite(data.path(77), raw_of(1000))
    yield data, 1


@case
def chunks_read_when_first_needed(folder):
    """A file holds ten samples; the last one read is kept. Each step has a new object, as each run has."""
    for chunk in range(MANY // 10):
        (folder / f"chunk{chunk}").write_bytes(b"".join(raw_of(10 * chunk + n) for n in range(10)))

    class Chunks(Dataset):
        def __init__(self):
            self.number, self.chunk = -1, b""

        def __len__(self):
            return MANY

        def __getitem__(self, index):
            if index // 10 != self.number:
                self.number = index // 10
                self.chunk = (folder / f"chunk{self.number}").read_bytes()
            size = len(self.chunk) // 10
            return as_tensor(self.chunk[index % 10 * size :][:size]), index

    yield Chunks(), MANY
    overwrite(folder / "chunk7", b"".join(raw_of(1000 if n == 5 else 70 + n) for n in range(10)))
    yield Chunks(), 1


@case
def read_ahead(folder):
    """While one sample is read, the file of the next is opened."""

    class Ahead(Many):
        next = (-1, b"")

        def __getitem__(self, index):
            raw = self.next[1] if self.next[0] == index else self.path(index).read_bytes()
            self.next = (index + 1, self.path((index + 1) % MANY).read_bytes())
            return as_tensor(raw), index

    yield Ahead(folder), MANY
    overwrite(folder / "77.raw", raw_of(1000))
    data = Ahead.__new__(Ahead)
    data.folder, data.many = folder, MANY
    yield data, 1


@case
def optional_file_that_appears(folder):
    """A mask beside the picture, where there is one."""

    class Masked(Many):
        def __getitem__(self, index):
            raw, mask = as_tensor(self.path(index).read_bytes()), self.path(index).with_suffix(".mask")
            return (raw * 0 if mask.exists() else raw), index

    data = Masked(folder)
    yield data, MANY
    data.path(77).with_suffix(".mask").touch()
    yield data, 1


@case
def optional_annotation_that_appears(folder):
    """A label beside the picture, where there is one: a target, so nothing is computed."""

    class Annotated(Many):
        def __getitem__(self, index):
            label = self.path(index).with_suffix(".txt")
            return as_tensor(self.path(index).read_bytes()), int(label.read_text()) if os.path.isfile(label) else -1

    data = Annotated(folder)
    yield data, MANY
    data.path(77).with_suffix(".txt").write_text("3")
    yield data, 0


@case
def label_in_the_target_of_a_link(folder):
    class Linked(Many):
        def __init__(self, folder):
            super().__init__(folder)
            for number in range(MANY):
                (folder / f"{number}.label").symlink_to("0")

        def __getitem__(self, index):
            return as_tensor(self.path(index).read_bytes()), int(os.readlink(self.folder / f"{index}.label"))

    data = Linked(folder)
    yield data, MANY
    (folder / "77.label").unlink()
    (folder / "77.label").symlink_to("5")
    yield data, 0


@case
def number_of_a_descriptor(folder):
    (folder / "all").write_bytes(b"".join(raw_of(n) for n in range(MANY)))
    descriptor = os.open(folder / "all", os.O_RDONLY)

    class Held(Dataset):
        def __init__(self):
            self.descriptor = descriptor

        def __len__(self):
            return MANY

        def __getitem__(self, index):
            return as_tensor(os.pread(self.descriptor, len(raw_of(0)), index * len(raw_of(0)))), index

    try:
        yield Held(), MANY
        overwrite(folder / "all", b"".join(raw_of(1000 if n == 77 else n) for n in range(MANY)))
        yield Held(), 1
    finally:
        os.close(descriptor)


@case
def attribute_in_a_slot(folder):
    class Slotted(Many):
        __slots__ = ("order",)

        def __getitem__(self, index):
            return as_tensor(self.path(self.order[index]).read_bytes()), index

    data = Slotted(folder)
    data.order = list(range(MANY))
    yield data, MANY
    data.order[77] = 3
    yield data, 0


@case
def data_of_a_package(folder):
    package = folder / "never_stale_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "labels").write_bytes(bytes(MANY))
    sys.path.insert(0, str(folder))
    try:
        __import__(package.name)
    finally:
        sys.path.remove(str(folder))

    class Packaged(Many):
        def __getitem__(self, index):
            return as_tensor(self.path(index).read_bytes()), pkgutil.get_data("never_stale_package", "labels")[index]

    data = Packaged(folder)
    yield data, MANY
    overwrite(package / "labels", bytes(77) + b"\1" + bytes(MANY - 78))
    yield data, 0


@case
def mapping_that_is_written_again(folder):
    """Another program has the file mapped, and goes on writing into a page that was not yet put on the disk."""
    data = Many(folder)
    with open(data.path(77), "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
    view[0:1] = b"\1"
    yield data, MANY
    view[0:1] = b"\2"
    view.close()
    yield data, 1


@case
def method_of_a_kind(folder):
    """Which method reads a sample follows from a text that is made; the method's code changes."""

    class Kinds(Many):
        kind = "raw"

        def __getitem__(self, index):
            return getattr(self, f"_read_{self.kind}")(index), index

    def made(number):
        class Made(Kinds):
            def _read_raw(self, index):
                return as_tensor(self.path(index).read_bytes()) + number * (index == 77)

        Made.__qualname__ = Made.__name__ = "Kinds"
        return Made

    data = made(0)(folder)
    yield data, MANY
    data.__class__ = made(1)
    yield data, 1


def check(tensor, index):
    if index == 77:
        raise ValueError
    return tensor


def inside(tensor, index):
    try:
        tensor = tensor + 0
        check(tensor, index)
    except ValueError:
        tensor = tensor + 1
    return tensor


def outside(tensor, index):
    try:
        tensor = tensor + 0
    except ValueError:
        tensor = tensor + 1
    else:
        check(tensor, index)
    return tensor


outside.__qualname__ = outside.__name__ = "inside"


@case
def what_a_handler_covers(folder):
    """The same instructions; only the table of what each handler covers tells them apart."""

    class Handled(Many):
        def __getitem__(self, index):
            tensor = as_tensor(self.path(index).read_bytes())
            try:
                return self.change(tensor, index), index
            except ValueError:
                return tensor + 5, index

    data = Handled(folder)
    data.change = inside
    yield data, MANY
    data.change = outside
    yield data, 1


@case
def folder_of_the_user(folder):
    """A path with a variable of the environment: the file that was opened is as it was, and another one is meant."""

    class Of(Many):
        def __getitem__(self, index):
            with open(os.path.expandvars("$STEALTH/table")) as table:
                return as_tensor(self.path(index).read_bytes()) + float(table.read().split()[index]), index

    for name, number in (("a", 0), ("b", 1)):
        (folder / name).mkdir()
        (folder / name / "table").write_text(" ".join(["0"] * 77 + [str(number)] + ["0"] * (MANY - 78)))
    data = Of(folder)
    os.environ["STEALTH"] = str(folder / "a")
    yield data, MANY
    os.environ["STEALTH"] = str(folder / "b")
    yield data, 1
    del os.environ["STEALTH"]


# How one number in a table gets from a module or function into a data set; {k} is 0, then 1; mod is a module of the name {m}.
ROUTES = {
    "a local import": "mod.K = {k}\ndef add(index):\n import {m}\n return {m}.K * (index == 77)",
    "a local import of a name": "mod.K = {k}\ndef add(index):\n from {m} import K\n return K * (index == 77)",
    "an attribute of a function": "def add(index): return add.k * (index == 77)\nadd.k = {k}",
    "a module held in a closure": "mod.K = {k}\ndef make(m):\n def add(index): return m.K * (index == 77)\n return add\nadd = make(mod)",
    "a module as a default": "mod.K = {k}\ndef add(index, m=mod): return m.K * (index == 77)",
    "a module in a dictionary": "mod.K = {k}\nC = {{'a': mod}}\ndef add(index): return C['a'].K * (index == 77)",
    "a metaclass": "class Meta(type):\n K = {k}\nclass C(metaclass=Meta): pass\ndef add(index): return C.K * (index == 77)",
    "an attribute of a library": "import numpy\nnumpy.{m} = {k}\ndef add(index): return numpy.{m} * (index == 77)",
    "a list of a library": "import numpy\nnumpy.{m} = [{k}]\ndef add(index): return numpy.{m}[0] * (index == 77)",
    "an array of a library": "import numpy\nnumpy.{m} = numpy.array([{k}])\ndef add(index): return numpy.{m}[0] * (index == 77)",
    "an object of a library": "import numpy\nclass C: pass\nnumpy.{m} = C()\nnumpy.{m}.k = {k}\ndef add(index): return numpy.{m}.k * (index == 77)",
    "a namespace of a library": "import numpy, types\nnumpy.{m} = types.SimpleNamespace(k={k})\ndef add(index): return numpy.{m}.k * (index == 77)",
    "a class of a library": "import numpy\nclass C: k = {k}\nnumpy.{m} = C\ndef add(index): return numpy.{m}.k * (index == 77)",
    "a module deep in a library": "import numpy.linalg\nnumpy.linalg.{m} = {k}\ndef add(index): return numpy.linalg.{m} * (index == 77)",
    "a library imported locally": "import numpy\nnumpy.{m} = {k}\ndef add(index):\n import numpy as np\n return np.{m} * (index == 77)",
    "a library in a closure": "import numpy\nnumpy.{m} = {k}\ndef make(m):\n def add(index): return m.{m} * (index == 77)\n return add\nadd = make(numpy)",
    "a library as a default": "import numpy\nnumpy.{m} = {k}\ndef add(index, m=numpy): return m.{m} * (index == 77)",
    "getattr": "mod.K = {k}\ndef add(index): return getattr(mod, 'K') * (index == 77)",
    "getattr by a text that is made": "mod.K = {k}\ndef add(index): return getattr(mod, chr(75)) * (index == 77)",
    "getattr of a library": "import numpy\nnumpy.{m} = {k}\ndef add(index): return getattr(numpy, '{m}') * (index == 77)",
    "the dictionary of a module": "mod.K = {k}\ndef add(index): return mod.__dict__[chr(75)] * (index == 77)",
    "attrgetter": "import operator\nmod.K = {k}\nget = operator.attrgetter('K')\ndef add(index): return get(mod) * (index == 77)",
    "a module's __getattr__": "exec('def __getattr__(name): return {k}', vars(mod))\ndef add(index): return mod.anything * (index == 77)",
    "a subclass that is looked up": "class P: pass\nclass Q(P):\n K = {k}\ndef add(index): return P.__subclasses__()[-1].K * (index == 77)",
    "import_module": "import importlib\nmod.K = {k}\ndef add(index): return importlib.import_module('{m}').K * (index == 77)",
    "code that is run from a text": "scope = {{}}\nexec('def add(index): return {k} * (index == 77)', scope)\nadd = scope['add']",
    "a class that is run from a text": "scope = {{}}\nexec('class C:\\n def __call__(self, index): return {k} * (index == 77)', scope)\nadd = scope['C']()",
    "another's name": "import numpy\n@functools.wraps(numpy.clip)\ndef add(index): return {k} * (index == 77)",
    "a library's wrapper": "import contextlib\n@contextlib.contextmanager\ndef made(index): yield {k} * (index == 77)\ndef add(index):\n with made(index) as found: return found",
    "sys.modules": "import sys\nmod.K = {k}\ndef add(index): return sys.modules['{m}'].K * (index == 77)",
    "a global": "K = {k}\ndef add(index): return K * (index == 77)",
    "a global of another module": "mod.K = {k}\ndef add(index): return mod.K * (index == 77)",
    "a table": "T = [0] * 160\nT[77] = {k}\ndef add(index): return T[index]",
}  # fmt: skip


class Numbered(Many):
    """A number that comes in many ways, all of which show."""

    def __init__(self, folder, number):
        super().__init__(folder)
        self.add = functools.partial(shifted, number)

    def __getitem__(self, index):
        noise = np.random.default_rng(3).integers(0, 1) + np.linalg.norm([0.0]) + np.pi - np.pi
        return as_tensor(self.path(index).read_bytes()) + self.add(index) + torch.tensor(float(noise)), index


def shifted(number, index):
    return number * (index == 77)


def number_from(route):
    def number_in_a_table(folder):
        name = f"stealth{list(ROUTES).index(route)}"
        outside = sys.modules[name] = types.ModuleType(name)

        def made(k):
            user = types.ModuleType("user_code")
            vars(user).update(mod=outside, functools=functools)
            exec(ROUTES[route].format(k=k, m=name), vars(user))
            return user.add

        class Added(Many):
            def __getitem__(self, index):
                return as_tensor(self.path(index).read_bytes()) + self.add(index), index

        data = Added(folder)
        try:
            data.add = made(0)
            yield data, MANY
            data.add = made(1)
            yield data, 1
        finally:
            del sys.modules[name]
            for place in (np, np.linalg):
                vars(place).pop(name, None)

    return number_in_a_table


CASES |= {f"number by {route}": number_from(route) for route in ROUTES}


@pytest.fixture(autouse=True)
def _no_luck(monkeypatch):
    """Samples that are read again show some changes by chance: let it be one sample only."""
    monkeypatch.setattr(roll, "_CHECKED", 1)


def test_what_shows_its_content_is_believed(tmp_path, monkeypatch):
    """Or else nothing here would be put to the test: such data sets are known again without reading their samples."""
    for at, data in enumerate([next(file_edited_in_place(tmp_path))[0], Numbered(tmp_path, 1)]):
        assert Samples(data, Net()).account() is not None, at


@pytest.fixture(scope="module")
def begun(tmp_path_factory, request):
    return begin(CASES, tmp_path_factory, request)


@pytest.mark.parametrize("name", CASES)
def test_one_change_in_many_is_seen(name, begun):
    """Twice before and once after: what is believed is believed by then."""
    steps, step, store = begun[name]
    try:
        while step is not None:
            dataset, rows = step
            assert extracted(Net(), dataset, store) == rows
            assert extracted(Net(), dataset, store) == 0
            step = next(steps, None)
    finally:
        steps.close()


MODEL_ROUTES = {
    "a local import": "mod.K = {k}\nclass M(Base):\n def factor(self):\n  import {m}\n  return {m}.K",
    "a local import of a name": "mod.K = {k}\nclass M(Base):\n def factor(self):\n  from {m} import K\n  return K",
    "an attribute of a function": "def f(): return f.k\nf.k = {k}\nclass M(Base):\n def factor(self): return f()",
    "an attribute that is a module": "mod.K = {k}\nclass M(Base):\n def __init__(self): super().__init__(); self.config = mod\n def factor(self): return self.config.K",
    "a class attribute that is a module": "mod.K = {k}\nclass M(Base):\n config = mod\n def factor(self): return self.config.K",
    "a module held in a closure": "mod.K = {k}\ndef make(m):\n def f(): return m.K\n return f\nf = make(mod)\nclass M(Base):\n def factor(self): return f()",
    "a module as a default": "mod.K = {k}\nclass M(Base):\n def factor(self, m=mod): return m.K",
    "a module in a dictionary": "mod.K = {k}\nC = {{'a': mod}}\nclass M(Base):\n def factor(self): return C['a'].K",
    "a metaclass": "class Meta(type(Base)):\n K = {k}\nclass M(Base, metaclass=Meta):\n def factor(self): return type(self).K",
    "an attribute of a library": "torch.stealth = {k}\nclass M(Base):\n def factor(self): return torch.stealth",
    "a list of a library": "torch.stealth = [{k}]\nclass M(Base):\n def factor(self): return torch.stealth[0]",
    "getattr": "mod.K = {k}\nclass M(Base):\n def factor(self): return getattr(mod, 'K')",
    "attrgetter": "import operator\nmod.K = {k}\nget = operator.attrgetter('K')\nclass M(Base):\n def factor(self): return get(mod)",
    "the dictionary of a module": "mod.K = {k}\nclass M(Base):\n def factor(self): return mod.__dict__['K']",
    "a module's __getattr__": "exec('def __getattr__(name): return {k}', vars(mod))\nclass M(Base):\n def factor(self): return mod.anything",
    "code that is run from a text": "scope = {{}}\nexec('def f(): return {k}', scope)\nclass M(Base):\n f = staticmethod(scope['f'])\n def factor(self): return self.f()",
    "another's name": "@functools.wraps(torch.nn.functional.linear)\ndef f(): return {k}\nclass M(Base):\n def factor(self): return f()",
    "a method that is wrapped": "def wrapped(old):\n @functools.wraps(old)\n def new(self, x): return old(self, x) * {k}\n return new\nclass L(type(Base().layer)): pass\ntorch.nn.Linear.stealth = wrapped(torch.nn.Linear.forward)\nclass M(Base):\n def factor(self): return 1\n def forward(self, x): return self.head(self.layer.stealth(x))",
    "sys.modules": "import sys\nmod.K = {k}\nclass M(Base):\n def factor(self): return sys.modules['{m}'].K",
    "a subclass that is looked up": "class P: pass\nclass Q(P):\n K = {k}\nclass M(Base):\n def factor(self): return P.__subclasses__()[-1].K",
    "a slot": "class C:\n __slots__ = ('k',)\nc = C(); c.k = {k}\nclass M(Base):\n def factor(self): return c.k",
    "a context variable": "mod.v = contextvars.ContextVar('v', default={k})\nclass M(Base):\n def factor(self): return mod.v.get()",
    "a deque": "d = collections.deque([{k}])\nclass M(Base):\n def factor(self): return d[0]",
    "a registered function": "@functools.singledispatch\ndef f(x): return 0\n@f.register\ndef _(x: int): return {k}\nclass M(Base):\n def factor(self): return f(1)",
    "a file that numpy reads": "import numpy\nnumpy.save(F + '/k.npy', {k})\nclass M(Base):\n def factor(self): return float(numpy.load(F + '/k.npy'))",
    "the working folder": "import os\nos.makedirs(F + '/{k}'); os.chdir(F + '/{k}')\nclass M(Base):\n def factor(self): return float(os.path.basename(os.getcwd()))",
    "a mode that is on": "class M(Base):\n def factor(self): return 1\n\nmode = Times({k})",
    "eval": "class M(Base):\n def __init__(self): super().__init__(); self.text = '{k}'\n def factor(self): return eval(self.text)",
}  # fmt: skip


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8, bias=False).requires_grad_(False)
        self.layer.weight.data = torch.arange(32.0).reshape(8, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer(x) * self.factor())


class Times(TorchDispatchMode):
    """Changes what operations give, outside of any model."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * self.factor if func is torch.ops.aten.mul.Tensor else result


@pytest.mark.parametrize("route", MODEL_ROUTES)
def test_a_number_that_reaches_a_model_by_stealth_is_seen(route, tmp_path, monkeypatch):
    """The store's note of a model is believed without running it: it has to account for every number that it reads."""
    name = f"stealth_model{list(MODEL_ROUTES).index(route)}"
    outside = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, outside)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "stealth", None, raising=False)
    monkeypatch.setattr(nn.Linear, "stealth", None, raising=False)
    x = torch.arange(40.0).reshape(10, 4)
    for k in (2.0, 3.0):
        user = types.ModuleType("user_code")
        vars(user).update(
            Base=Base, torch=torch, mod=outside, functools=functools, collections=collections, contextvars=contextvars,
            Times=Times, F=str(tmp_path),
        )  # fmt: skip
        exec(MODEL_ROUTES[route].format(k=k, m=name), vars(user))
        with getattr(user, "mode", contextlib.nullcontext()):
            extracted(user.M(), x, tmp_path / "store")


def test_a_partial_in_the_place_of_a_function_of_torch_is_seen(tmp_path, monkeypatch):
    """As any function of the user's is, although no code of the model's names it."""

    def times(old, factor, *args, **kwargs):
        return old(*args, **kwargs) * factor

    def factor(self):
        return 1

    made = type("M", (Base,), {"factor": factor})
    old, x = nn.functional.relu, torch.arange(40.0).reshape(10, 4)
    for number in (2.0, 3.0):
        model = made()
        model.layer = nn.Sequential(model.layer, nn.ReLU())
        monkeypatch.setattr(nn.functional, "relu", functools.partial(times, old, number))
        assert extracted(model, x, tmp_path) == 10
