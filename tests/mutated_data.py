"""Data sets of many kinds, made from text and files, and the ways in which one is changed."""

import csv
import io
import json
import mmap
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

N, SHAPE = 24, (3, 4, 4)
SIZE = 48

TEXT = """
import csv, functools, io, json, os, zipfile
import numpy as np
import PIL.Image
import torch
import torchvision.transforms.v2 as v2
from pathlib import Path
from torch.utils.data import Dataset
SCALE = {scale}
TABLE = {{"add": [{add}]}}
SIDE = {side!r}
{comment}
def read(path):
    {read}
{transform}
class Files(Dataset):
    step = {add}
    def __init__(self, folder, names, labels):
        self.folder, self.names, self.transform = folder, names, make()
        self.labels = {labels}
        {opened}
    def __len__(self):
        return len(self.names)
    def __getitem__(self, index):
        name = self.names[index]
        path = os.path.join(self.folder, name)
        raw = {raw}
        x = torch.from_numpy(np.array(raw, np.float32)).reshape(3, 4, 4)
        if {rare}:
            x = self.transform(x)
        return x, {label}
"""
READ = {
    "open": "with open(path, 'rb') as file: return np.frombuffer(file.read(), np.uint8)",
    "pathlib": "return np.frombuffer(Path(path).read_bytes(), np.uint8)",
    "fromfile": "return np.fromfile(path, np.uint8)",
    "memmap": "return np.memmap(path, np.uint8, 'r')",
    "descriptor": "number = os.open(path, os.O_RDONLY)\n    try: return np.frombuffer(os.read(number, 48), np.uint8)\n    finally: os.close(number)",
    "io": "with io.FileIO(path) as file: return np.frombuffer(file.readall(), np.uint8)",
    "torch": "return torch.from_file(str(path), size=48, dtype=torch.uint8).numpy()",
}  # fmt: skip
SCALED = "return x * {scale} + {add}"
TRANSFORM = {
    "global": "def tf(x): return x * SCALE + TABLE['add'][0]\ndef make(): return tf",
    "default": "def tf(x, k={scale}): return x * k\ndef make(): return tf",
    "keyword default": "def tf(x, *, k={scale}): return x * k\ndef make(): return tf",
    "closure": "def make(k={scale}):\n def tf(x): return x * k\n return tf",
    "constant": "def tf(x): return x * {scale} + {add}\ndef make(): return tf",
    "lambda": "def make(): return lambda x: x * {scale} + {add}",
    "object": "class T:\n def __init__(self): self.k = {scale}\n def __call__(self, x): return x * self.k\ndef make(): return T()",
    "class attribute": "class T:\n k = {scale}\n def __call__(self, x): return x * self.k\ndef make(): return T()",
    "inherited": "class B:\n k = {scale}\nclass T(B):\n def __call__(self, x): return x * self.k\ndef make(): return T()",
    "static": "class T:\n @staticmethod\n def k(): return {scale}\n def __call__(self, x): return x * T.k()\ndef make(): return T()",
    "property": "class T:\n @property\n def k(self): return {scale}\n def __call__(self, x): return x * self.k\ndef make(): return T()",
    "slots": "class T:\n __slots__ = ('k',)\n def __call__(self, x): return x * self.k\ndef make():\n t = T(); t.k = {scale}\n return t",
    "method": "class T:\n def __init__(self): self.k = {scale}\n def tf(self, x): return x * self.k\ndef make(): return T().tf",
    "partial": "def tf(k, x): return x * k\ndef make(): return functools.partial(tf, {scale})",
    "wrapped": "def deco(f):\n @functools.wraps(f)\n def g(x): return f(x) * {scale}\n return g\n@deco\ndef tf(x): return x\ndef make(): return tf",
    "cached": "@functools.lru_cache\ndef k(): return {scale}\ndef tf(x): return x * k()\ndef make(): return tf",
    "compose": "def tf(x): return x * {scale}\ndef make(): return v2.Compose([v2.Lambda(tf), v2.Normalize([0.], [{scale}])])",
    "module": "import {config}\ndef tf(x): return x * {config}.k\ndef make(): return tf",
    "module's name": "from {config} import k\ndef tf(x): return x * k\ndef make(): return tf",
    "local import": "def tf(x):\n import {config}\n return x * {config}.k\ndef make(): return tf",
    "environment": "os.environ['MUTATED'] = '{scale}'\ndef tf(x): return x * float(os.environ['MUTATED'])\ndef make(): return tf",
    "side file each time": "def tf(x):\n with open(SIDE) as file: return x * json.load(file)['k']\ndef make(): return tf",
    "side file once": "class T:\n k = None\n def __call__(self, x):\n  if self.k is None:\n   with open(SIDE) as file: self.k = json.load(file)['k']\n  return x * self.k\ndef make(): return T()",
    "side file at first": "class T:\n def __init__(self):\n  with open(SIDE) as file: self.k = json.load(file)['k']\n def __call__(self, x): return x * self.k\ndef make(): return T()",
    "side file if there": "def tf(x):\n if not os.path.exists(SIDE + '.more'): return x\n return x * 2\ndef make(): return tf",
    "tensor": "class T:\n def __init__(self): self.k = torch.tensor({scale})\n def __call__(self, x): return x * self.k\ndef make(): return T()",
    "array": "K = np.array([{scale}, {add}])\ndef tf(x): return x * K[0] + K[1]\ndef make(): return lambda x: tf(x).float()",
    "getattr": "class T:\n def __getattr__(self, name):\n  if name == 'k': return {scale}\n  raise AttributeError(name)\n def __call__(self, x): return x * self.k\ndef make(): return T()",
    "eval": "def tf(x): return eval('x * {scale}')\ndef make(): return tf",
    "function attribute": "def tf(x): return x * tf.k\ntf.k = {scale}\ndef make(): return tf",
    "module of torch": "class T(torch.nn.Module):\n def __init__(self):\n  super().__init__(); self.k = {scale}\n def forward(self, x): return x * self.k\ndef make(): return T()",
}  # fmt: skip
LABEL = {
    "given": ("labels", "", "self.labels[name]"),
    "name": ("None", "", "name"),
    "number": ("None", "", "int(name[:2]) * self.step"),
    "table at first": ("{{row[0]: row[1] for row in csv.reader(open(SIDE + '.csv'))}}".replace("{{", "{").replace("}}", "}"), "", "self.labels[name]"),
    "table each time": ("None", "", "next(row[1] for row in csv.reader(io.StringIO(Path(SIDE + '.csv').read_text())) if row[0] == name)"),
    "beside": ("None", "", "int(Path(path + '.label').read_text())"),
    "two": ("labels", "", "(self.labels[name], torch.tensor([SCALE, 1.0]))"),
    "mapping": ("labels", "", "{'a': self.labels[name], 'b': name}"),
}  # fmt: skip
SIDE_VALUES = (1, 2, 4)


def raw_of(number):
    return np.random.default_rng(number).integers(0, 256, SIZE, np.uint8).tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def overwrite(path, content):
    """Write in place, and put the time back."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def save_over(path, content):
    """Write another file and rename it over the old one, with its times."""
    before = os.stat(path)
    other = path.with_name("new")
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)


def through_a_mapping(path, content):
    before = os.stat(path)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[: len(content)] = content[: len(view)]
        view.flush()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_link(path, content):
    target = path.with_name(f"target{len(list(path.parent.iterdir()))}")
    target.write_bytes(content)
    path.unlink()
    path.symlink_to(target.name)


EDITS = {"in place": overwrite, "saved over": save_over, "mapped": through_a_mapping, "link": by_link,
         "anew": lambda path, content: path.write_bytes(content)}  # fmt: skip


class Files:
    """Rows of bytes in files, read by code of many kinds."""

    kind = "files"

    def __init__(self, rng, folder, form):
        self.rng, self.folder, self.form, self.fresh = rng, folder, form, 1000
        self.names = [f"{at:02}-{at % 3}" for at in range(N)]
        self.labels = {name: at % 3 for at, name in enumerate(self.names)}
        for at, name in enumerate(self.names):
            write(self.folder / name, self.encoded(at))
            write(self.folder / f"{name}.label", str(at % 3).encode())
        self.side = folder.parent / "side"
        self.side.write_text(json.dumps({"k": 2}))
        self.write_table()
        self.config = f"mutated_config_{id(self)}"
        sys.modules[self.config] = types.ModuleType(self.config)
        self.params = {"scale": 2, "add": 1, "comment": ""}
        self.rare = rng.choice(["True", "x.sum() % 7 == 3", "x.sum() % 7 == 3"])  # or few samples show a change
        self.ways = (rng.choice(list(READ)), rng.choice(list(TRANSFORM)), rng.choice(list(LABEL)))
        self.make()

    def __str__(self):
        return f"{self.kind} {self.ways} {self.params}"

    def encoded(self, number):
        return raw_of(number)

    def write_table(self):
        with open(f"{self.side}.csv", "w") as file:
            csv.writer(file).writerows(self.labels.items())

    def make(self):
        """Build the data set anew from its text, as a new run does."""
        read, transform, label = self.ways
        vars(sys.modules[self.config])["k"] = self.params["scale"]
        labels, opened, one = LABEL[label]
        transform = TRANSFORM[transform].format(**self.params, config=self.config)
        text = TEXT.format(
            **self.params, side=str(self.side), read=READ[read], transform=transform, labels=labels, opened=opened,
            label=one, raw=self.raw(), rare=self.rare,
        )  # fmt: skip
        user = types.ModuleType("user_data")
        exec(text, vars(user))
        self.inner = user.Files(str(self.folder), list(self.names), dict(self.labels))
        self.dataset = self.arranged(self.inner)

    def raw(self):
        return "read(path)"

    def arranged(self, inner):
        return inner

    def samples(self):
        """Read all samples, as anyone would."""
        return [self.dataset[at] for at in range(len(self.dataset))]

    def parted(self, sample):
        return (sample[0],), {}, sample[1]

    def close(self):
        sys.modules.pop(self.config, None)

    def changes(self):
        return {**CHANGES, **{f"edit {how}": lambda self, edit=edit: self.edit(edit) for how, edit in EDITS.items()}}

    def change(self):
        """Change something; say what."""
        changes = self.changes()
        name = self.rng.choice(list(changes))
        changes[name](self)
        return f"{self.kind}: {name}"

    def path(self):
        return self.folder / self.rng.choice(self.names)

    def edit(self, how):
        """Give one file another content; a known one at times."""
        self.fresh += 1
        how(self.path(), self.encoded(self.rng.choice([self.fresh, self.rng.randrange(N)])))

    def set(self, name, *values):
        self.params[name] = self.rng.choice([value for value in values if value != self.params[name]])
        self.make()

    def move(self):
        other = self.folder.with_name(f"moved{self.rng.randrange(10**6)}")
        self.folder.rename(other)
        self.folder = other
        self.make()

    def copied(self):
        other = self.folder.with_name(f"copied{self.rng.randrange(10**6)}")
        shutil.copytree(self.folder, other, symlinks=True)
        self.folder = other
        self.make()

    def swapped(self):
        one, other = self.rng.sample(self.names, 2)
        aside = self.folder / "aside"
        (self.folder / one).rename(aside)
        (self.folder / other).rename(self.folder / one)
        aside.rename(self.folder / other)

    def more(self):
        self.fresh += 1
        name = f"{self.rng.randrange(24, 100)}-{self.fresh}"
        write(self.folder / name, self.encoded(self.fresh))
        write(self.folder / f"{name}.label", b"1")
        self.names.append(name)
        self.labels[name] = 1
        self.write_table()
        self.make()

    def fewer(self):
        if len(self.names) > 4:
            self.names.pop(self.rng.randrange(len(self.names)))
        self.make()

    def reordered(self):
        self.rng.shuffle(self.names)
        self.make()

    def reordered_in_place(self):
        self.rng.shuffle(self.names)
        self.inner.names[:] = self.names

    def relabelled(self):
        self.labels[self.rng.choice(self.names)] += 1
        self.write_table()
        self.make()

    def relabelled_in_place(self):
        name = self.rng.choice(self.names)
        self.labels[name] += 1
        if isinstance(self.inner.labels, dict):
            self.inner.labels[name] = type(self.inner.labels[name])(self.labels[name])
        self.write_table()

    def relabelled_beside(self):
        overwrite(self.folder / f"{self.rng.choice(self.names)}.label", str(self.rng.randrange(10)).encode())

    def side_changed(self):
        overwrite(self.side, json.dumps({"k": self.rng.choice(SIDE_VALUES)}).encode())
        if self.rng.random() < 0.7:
            self.make()

    def side_appears(self):
        more = Path(f"{self.side}.more")
        if more.exists():
            more.unlink()
        else:
            more.touch()

    def attribute(self):
        """Give an attribute of the living transform, or of its class, another value."""
        transform = getattr(self.inner.transform, "__self__", self.inner.transform)
        value = self.rng.choice([1, 2, 4])
        for place in (transform, type(transform)):
            if isinstance(vars(place).get("k") if hasattr(place, "__dict__") else None, int):
                place.k = value
                return
        if hasattr(type(transform), "__slots__"):
            transform.k = value


CHANGES = {
    "anew": lambda d: d.make(),
    "scale": lambda d: d.set("scale", 1, 2, 4),
    "add": lambda d: d.set("add", 1, 2, 3),
    "comment": lambda d: d.set("comment", "", "# said otherwise"),
    "moved": lambda d: d.move(),
    "copied": lambda d: d.copied(),
    "swapped": lambda d: d.swapped(),
    "more": lambda d: d.more(),
    "fewer": lambda d: d.fewer(),
    "reordered": lambda d: d.reordered(),
    "reordered in place": lambda d: d.reordered_in_place(),
    "relabelled": lambda d: d.relabelled(),
    "relabelled in place": lambda d: d.relabelled_in_place(),
    "relabelled beside": lambda d: d.relabelled_beside(),
    "side file": lambda d: d.side_changed(),
    "side file appears": lambda d: d.side_appears(),
    "attribute": lambda d: d.attribute(),
    "global": lambda d: type(d.inner).__init__.__globals__.__setitem__("SCALE", d.rng.choice([1, 2, 4])),
    "table": lambda d: type(d.inner).__init__.__globals__["TABLE"]["add"].__setitem__(0, d.rng.choice([1, 2, 3])),
    "config": lambda d: setattr(sys.modules[d.config], "k", d.rng.choice([1, 2, 4])),
    "touched": lambda d: os.utime(d.path()),
    "nothing": lambda d: None,
}  # fmt: skip


class Images(Files):
    """The same, as pictures."""

    kind = "images"

    def encoded(self, number):
        file = io.BytesIO()
        pixels = np.frombuffer(raw_of(number), np.uint8).reshape(4, 4, 3)
        Image.fromarray(pixels).save(file, "png", compress_level=0)
        return file.getvalue()

    def raw(self):
        return "np.asarray(PIL.Image.open(path)).transpose(2, 0, 1)"


class Arranged(Files):
    """Parts and joins of data sets, and loaders that lend them."""

    kind = "arranged"

    def arranged(self, inner):
        order = list(range(len(inner)))
        self.rng.shuffle(order)
        ways = [
            lambda: Subset(inner, order[: len(order) // 2 + 1]),
            lambda: ConcatDataset([inner, Subset(inner, order[:3])]),
            lambda: Subset(ConcatDataset([inner, inner]), order),
            lambda: [inner[at] for at in order],
            lambda: tuple(inner[at] for at in order[:5]),
        ]
        return self.rng.choice(ways)()


class Lent(Files):
    """A loader lends its data set, workers and collate function, not its order."""

    kind = "lent"

    def arranged(self, inner):
        self.plain = inner
        return DataLoader(inner, batch_size=self.rng.choice([2, 5]), shuffle=True)

    def samples(self):
        return [self.plain[at] for at in range(len(self.plain))]


class Streamed(Files):
    """An iterable over files."""

    kind = "streamed"

    def arranged(self, inner):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter([inner[at] for at in range(len(inner))])

        class Plain:
            def __iter__(self):
                return (inner[at] for at in range(len(inner)))

        return self.rng.choice([Stream, Plain])()

    def samples(self):
        return list(iter(self.dataset))


class Chunks(Files):
    """Six samples a file, of which the last one read is kept."""

    kind = "chunks"

    def __init__(self, rng, folder, form):
        self.chunk_of = {}
        super().__init__(rng, folder, form)

    def raw(self):
        self.pack()
        return "(self.of(name[:2]))"

    def pack(self):
        pass

    def make(self):
        for first in range(0, N, 6):
            chunk = self.folder / f"chunk{first // 6}"
            if not chunk.exists():
                write(chunk, b"".join(raw_of(first + at) for at in range(6)))
        super().make()
        inner = type(self.inner)

        def of(self, number):
            at = int(number) % N
            if getattr(self, "number", None) != at // 6:
                self.number = at // 6
                with open(f"{self.folder}/chunk{self.number}", "rb") as file:
                    self.chunk = file.read()
            return [*self.chunk[at % 6 * 48 :][:48]]

        inner.of = of
        self.dataset = self.arranged(self.inner)

    def edit(self, how):
        self.fresh += 1
        path = self.folder / f"chunk{self.rng.randrange(N // 6)}"
        at = self.rng.randrange(6)
        content = path.read_bytes()
        how(path, content[: at * SIZE] + raw_of(self.fresh) + content[at * SIZE + SIZE :])
        self.make()  # an object that keeps what it read gives it still

    def swapped(self):
        pass


class Zipped(Files):
    """All samples in one archive, opened for each."""

    kind = "zipped"

    def raw(self):
        return "np.frombuffer(zipfile.ZipFile(os.path.join(self.folder, 'all.zip')).read(name), np.uint8)"

    def make(self):
        if not (self.folder / "all.zip").exists():
            self.pack({name: raw_of(at) for at, name in enumerate(self.names)})
        super().make()

    def pack(self, contents):
        with zipfile.ZipFile(self.folder / "all.zip", "w", zipfile.ZIP_STORED) as file:
            for name, content in contents.items():
                file.writestr(zipfile.ZipInfo(name), content)

    def unpacked(self):
        with zipfile.ZipFile(self.folder / "all.zip") as file:
            return {name: file.read(name) for name in file.namelist()}

    def edit(self, how):
        self.fresh += 1
        held = self.unpacked()
        held[self.rng.choice(self.names)] = raw_of(self.fresh)
        before = os.stat(self.folder / "all.zip")
        self.pack(held)
        os.utime(self.folder / "all.zip", ns=(before.st_atime_ns, before.st_mtime_ns))

    def swapped(self):
        pass

    def more(self):
        held = self.unpacked()
        super().more()
        self.pack(held | {self.names[-1]: raw_of(self.fresh)})


class Columns:
    """Tensors, arrays and lists in memory."""

    kind = "columns"

    def __init__(self, rng, folder, form):
        self.rng, self.form, self.fresh = rng, form, 0
        self.folder = folder
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)
        shape, most = ((6,), 16) if form == "tokens" else (SHAPE, 256)
        self.x = torch.randint(0, most, (N, *shape), generator=generator)
        self.x = self.x if form == "tokens" else self.x.float()
        self.y = torch.arange(N) % 3
        self.make()

    def __str__(self):
        return f"columns {self.way}"

    def make(self):
        self.way = self.rng.choice(["tensor", "array", "tuple", "dict", "dict and list", "TensorDataset", "samples", "memmap",
                                    "loader", "mappings", "read-only", "strided"])  # fmt: skip
        name = "input_ids" if self.form == "tokens" else "x"
        x, y = self.x, self.y
        self.dataset = {
            "tensor": lambda: x, "array": lambda: x.numpy(), "tuple": lambda: (x, y), "dict": lambda: {name: x, "y": y},
            "dict and list": lambda: {name: x, "y": [f"{at}" for at in y.tolist()]}, "TensorDataset": lambda: TensorDataset(x, y),
            "samples": lambda: list(zip(x, y, strict=True)), "memmap": lambda: (self.mapped(), y),
            "loader": lambda: DataLoader(TensorDataset(x, y), shuffle=True),
            "mappings": lambda: [{name: one, "y": int(label)} for one, label in zip(x, y, strict=True)],
            "read-only": lambda: (np.frombuffer(x.numpy().tobytes(), x.numpy().dtype).reshape(x.shape), y),
            "strided": lambda: (x.transpose(0, -1).contiguous().transpose(0, -1), y),
        }[self.way]()  # fmt: skip

    def mapped(self):
        path = self.folder / f"mapped{self.rng.randrange(10**9)}"
        self.x.numpy().tofile(path)
        return np.memmap(path, self.x.numpy().dtype, "r", shape=tuple(self.x.shape))

    def samples(self):
        if self.way in ("samples", "mappings"):
            return list(self.dataset)
        if self.way in ("tensor", "array"):
            return [torch.as_tensor(row) for row in self.dataset]
        if self.way in ("dict", "dict and list"):
            return [dict(zip(self.dataset, row, strict=True)) for row in zip(*self.dataset.values(), strict=True)]
        tensors = self.dataset.dataset.tensors if self.way == "loader" else self.dataset
        tensors = tensors.tensors if isinstance(tensors, TensorDataset) else tensors
        return [(x if isinstance(x, torch.Tensor) else torch.tensor(x), y) for x, y in zip(*tensors, strict=True)]

    def parted(self, sample):
        if isinstance(sample, dict):
            name = "input_ids" if self.form == "tokens" else "x"
            return (), {name: sample[name]}, sample["y"]
        return ((sample[0],), {}, sample[1]) if isinstance(sample, tuple | list) else ((sample,), {}, None)

    def change(self):
        names = {
            "another form": self.make, "one number": self.one, "one label": self.label, "reordered": self.reordered,
            "more": self.more, "fewer": self.fewer, "copied": self.copied, "nothing": lambda: None,
            "negative zero": self.zero,
        }  # fmt: skip
        name = self.rng.choice(list(names))
        names[name]()
        return f"columns: {name}"

    def one(self):
        flat = self.x.view(-1)
        flat[self.rng.randrange(len(flat))] = self.rng.randrange(16)
        self.again()

    def zero(self):
        if self.form != "tokens":
            self.x.view(-1)[self.rng.randrange(self.x.numel())] = self.rng.choice([0.0, -0.0])
        self.again()

    def again(self):
        if self.way in ("dict and list", "memmap", "read-only", "strided", "samples", "mappings"):
            self.make()

    def label(self):
        self.y[self.rng.randrange(len(self.y))] += 1
        self.again()

    def reordered(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.rng.randrange(10**6)))
        self.x, self.y = self.x[order], self.y[order]
        self.make()

    def more(self):
        self.x, self.y = torch.cat([self.x, self.x[:2] + 0]), torch.cat([self.y, self.y[:2]])
        self.x.view(-1)[-1] = self.rng.randrange(16)
        self.make()

    def fewer(self):
        if len(self.x) > 4:
            self.x, self.y = self.x[1:].clone(), self.y[1:].clone()
        self.make()

    def copied(self):
        self.x, self.y = self.x.clone(), self.y.clone()
        self.make()

    def close(self):
        pass


KINDS = {kind.kind: kind for kind in (Files, Images, Arranged, Lent, Streamed, Chunks, Zipped, Columns)}
