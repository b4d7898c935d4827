"""Everyday data sets are known without reading a sample; what may read what nobody sees is not."""

import csv
import dataclasses
import datetime
import glob
import linecache
import os
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset, default_collate, random_split
from torchvision import transforms
from torchvision.datasets import MNIST, FakeData, ImageFolder
from torchvision.transforms import v2

from forethought.identifying.account import parts_of

PIXELS = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
OLD = transforms.Compose([transforms.Resize(8), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])


def known(dataset):
    return parts_of(dataset, default_collate, None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rows = []
    for at in range(6):
        path = root / "images" / f"class{at % 2}" / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(at).integers(0, 256, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path)
        rows.append((str(path), at % 2))
    with open(root / "rows.csv", "w") as file:
        csv.writer(file).writerows(rows)
    np.save(root / "rows.npy", np.random.default_rng(0).random((6, 4), np.float32))
    return root


class Table(Dataset):
    """A table of paths and labels."""

    def __init__(self, root, transform=PIXELS):
        if not os.path.exists(root / "rows.csv"):
            raise FileNotFoundError(root)
        with open(root / "rows.csv") as file:
            self.rows = list(csv.reader(file))
        self.classes = sorted(os.listdir(root / "images"))
        self.transform = transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        path, label = self.rows[index]
        return self.transform(PIL.Image.open(path).convert("RGB")), int(label)


class Globbed(Dataset):
    """Files that a private method finds."""

    def __init__(self, root, transform=PIXELS):
        self.files, self.transform = self._find(root), transform

    @classmethod
    def here(cls):
        return cls(Path.cwd()) if os.path.isdir("images") else None

    def _find(self, root):
        return sorted(path for path in glob.glob(f"{root}/images/*/*.png") if os.path.isfile(path))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        change = getattr(self, "transform", None)
        return change(PIL.Image.open(self.files[index])), index


class Array(Dataset):
    def __init__(self, root):
        self.rows = np.load(root / "rows.npy")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return torch.from_numpy(self.rows[index]), index


class Doubled(ImageFolder):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image * 2, label


def digits(root):
    made = MNIST.__new__(MNIST)
    vars(made).update(root=str(root), train=True, transform=OLD, target_transform=None)
    made.data, made.targets = torch.zeros(6, 28, 28, dtype=torch.uint8), torch.arange(6)
    return made


def folder(root, transform=PIXELS, kind=ImageFolder):
    return kind(str(root / "images"), transform=transform)


EVERYDAY = {
    "ImageFolder": folder,
    "ImageFolder, transforms": lambda root: folder(root, OLD),
    "ImageFolder, lambda": lambda root: folder(root, lambda image: PIXELS(image) * 2),
    "ImageFolder, a model's transforms": lambda root: folder(
        root, torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    ),
    "a subclass of ImageFolder": lambda root: folder(root, kind=Doubled),
    "Subset": lambda root: Subset(folder(root), [3, 1]),
    "random_split": lambda root: random_split(folder(root), [2, 4], torch.Generator().manual_seed(0))[0],
    "ConcatDataset": lambda root: folder(root) + folder(root, OLD),
    "ConcatDataset of parts": lambda root: ConcatDataset([Subset(folder(root), [1]), Table(root)]),
    "StackDataset": lambda root: StackDataset(folder(root), folder(root, OLD)),
    "FakeData": lambda root: FakeData(6, (3, 8, 8), transform=OLD),
    "MNIST": digits,
    "a table": Table,
    "files that were found": Globbed,
    "an array": Array,
    "a part of tensors": lambda root: Subset(TensorDataset(torch.ones(4, 2)), [1]),
}


@pytest.mark.parametrize("kind", EVERYDAY)
def test_everyday_data_sets_are_known(kind, root):
    """Made twice, they are the same; with another transform or file list, another."""
    parts = known(EVERYDAY[kind](root))
    assert parts is not None
    assert known(EVERYDAY[kind](root)) == parts
    other = EVERYDAY[kind](root)
    held = getattr(other, "dataset", other)
    held.transform = transforms.Resize(4)
    assert known(other) != parts


class Asking:
    """Asks the file system when it is made."""

    def __init__(self, factor):
        self.factor = 2 if os.path.exists(f"/nowhere/{factor}") else 1

    def __call__(self, image):
        return PIXELS(image) * self.factor


@dataclasses.dataclass
class Options:
    factor: int = 1

    def __post_init__(self):
        self.factor = 2 if os.path.exists("/nowhere") else 1


class Anew(Asking):
    """Makes itself anew for each sample, in one of many ways."""

    def __init__(self, how):
        super().__init__(1)
        self.how, self.options = how, Options()

    def __call__(self, image):
        return PIXELS(image) * self.how(self)

    def _ask(self):
        return 2 if os.path.exists("/nowhere") else 1

    @classmethod
    def ask(cls):
        return 2 if os.path.exists("/nowhere") else 1


class Quiet(Asking):
    """Has ways to ask, and does not use them."""

    def __init__(self):
        super().__init__(self._ask())

    def _ask(self):
        return 2 if os.path.exists("/nowhere") else 1

    @classmethod
    def ask(cls):
        return cls() if os.path.exists("/nowhere") else None


def read(path):
    return Path(path).read_bytes()


def by_helper(image, number=0):
    return len(os.path.basename("x")) + len(read(__file__))


def by_alias(image, number=0):
    system = os
    return system.read(number, 1)


def by_default(image, number=0, system=os):
    return system.read(number, 1)


def by_text(image, number=0):
    return getattr(os, "re" + "ad")(number, 1).read


def by_import(image, number=0):
    import os as system

    return system.read(number, 1)


@pytest.mark.parametrize("change", [by_helper, by_alias, by_default, by_text, by_import, lambda image: os.read(0, 1)])
def test_what_reads_an_open_descriptor_is_not_known(change, root):
    """It was opened before anybody looked; anything else of the name `read` is no harm."""
    assert (known(folder(root, change)) is None) == (change is not by_helper)


NOW_AND_HERE = {
    "a variable in a path": lambda self: os.path.expandvars("$HOME"),
    "the user's folder": lambda self: os.path.expanduser("~"),
    "the user's folder, as a path": lambda self: Path.home(),
    "the working folder": lambda self: os.getcwd(),
    "the working folder, as a path": lambda self: Path.cwd(),
    "an absolute path": lambda self: os.path.abspath("x"),
    "where a link leads": lambda self: os.path.realpath("x"),
    "where a link leads, as a path": lambda self: Path("x").resolve(),
    "when a file was read": lambda self: os.path.getatime("x"),
    "bytes beside a file": lambda self: os.getxattr("x", "user.x"),
    "an open descriptor": lambda self: os.readv(0, [bytearray(1)]),
    "the clock": lambda self: time.time(),
    "today": lambda self: datetime.datetime.now(),
    "lines that Python keeps": lambda self: linecache.getline("x", 1),
    "the process": lambda self: os.getpid(),
    "the worker": lambda self: torch.utils.data.get_worker_info(),
}


@pytest.mark.parametrize("way", NOW_AND_HERE)
def test_what_reads_the_moment_or_the_place_is_not_known(way, root):
    """The same code gives other samples tomorrow, in another folder, or to another user, and no file shows it."""
    assert known(folder(root, NOW_AND_HERE[way])) is None


def test_a_text_that_is_made_may_name_any_method(root):
    """`getattr(self, "_read_" + kind)` runs a method that no name in the code shows; one whole text shows its own."""

    class Kinds(Quiet):
        def __call__(self, image):
            return getattr(self, "_" + "ask")()

    class One(Quiet):
        def __call__(self, image):
            return getattr(self, "factor", None)

    assert known(folder(root, One())) is not None
    assert known(folder(root, Kinds())) is None


AGAIN = {
    "by its name": lambda self: Asking(1).factor,
    "by its type": lambda self: type(self)(None).factor,
    "by its class": lambda self: self.__class__(None).factor,
    "by its constructor": lambda self: self.__init__(self.how) or self.factor,
    "by replace": lambda self: dataclasses.replace(self.options, factor=1).factor,
    "a private method": lambda self: self._ask(),
    "a private method, by text": lambda self: getattr(self, "_ask")(),  # noqa: B009
    "a class method": lambda self: self.ask(),
}


@pytest.mark.parametrize("how", AGAIN)
def test_what_an_object_did_when_it_was_made_counts_where_it_may_be_made_again(how, root):
    """What came of `__init__` is in the attributes, and whatever it asked is past; unless a sample asks again."""
    assert known(folder(root, Asking(1))) is not None
    assert known(folder(root, Quiet())) is not None
    assert known(folder(root, Anew(AGAIN[how]))) is None
