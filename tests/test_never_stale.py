"""A hit is right, or it is no hit: mutations of models and data, each followed by an extraction that must see it.

After every step all served rows are compared, bit for bit, with what the model's head is given live on the same batches,
targets with what the data set gives now, and the rows computed with what had changed. Nothing is asked of how a hit is
found: a manifest, stamps of files or the content of every sample may all decide, as long as none of them is fooled.

A case is a generator. It yields (data set, rows that must be computed) or (model, data set, rows), and changes something
before it yields again. All cases are begun together and then rest, so that their files are older than any caution about
recent time stamps when the first extraction reads them.
"""

import ctypes
import functools
import io
import json
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as TF

import forethought as ft
from forethought.errors import ForethoughtError, ImpureTrunkError, RandomDatasetError

N, CLASSES, SIDE, BATCH = 12, 3, 8, 5
REST_S = 3.0  # longer than any file system's time stamps are coarse


# --- a model whose sums are exact, so that rows do not depend on the batch that they were computed in ---------------


class Net(nn.Module):
    """A frozen trunk of whole numbers with a bit of everything, and a head that trains."""

    def __init__(self, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.conv.weight.data = (torch.arange(48.0) % 5 - 2).reshape(4, 3, 2, 2)
        self.conv.bias.data = torch.arange(4.0)
        self.norm = nn.BatchNorm2d(4, eps=0.25)
        self.norm.running_mean += torch.arange(4)
        self.norm.running_var.fill_(0.75)
        self.act = nn.LeakyReLU(0.5)
        self.drop = nn.Dropout(0.5)
        self.scale = 2.0
        self.register_buffer("shift", torch.arange(4.0).reshape(4, 1, 1))
        self.table = {"gain": [1.0, 3.0]}
        self.requires_grad_(False).eval()
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        x = self.drop(self.act(self.norm(self.conv(x.to(self.conv.weight.dtype)))))
        return self.head((x * self.scale + self.shift * self.table["gain"][1]).flatten(1))


def loaded(dataset):
    """Read a data set as anyone would, now."""
    if isinstance(dataset, DataLoader):
        return DataLoader(dataset.dataset, BATCH, collate_fn=dataset.collate_fn)
    columns = (dataset,) if isinstance(dataset, torch.Tensor) else dataset
    return DataLoader(TensorDataset(*columns) if isinstance(columns, tuple) else dataset, BATCH)


def live(model, dataset):
    """What the head is given by the model itself, its outputs, and the targets, on batches of the same size."""
    given, targets, outputs = [], [], []
    handle = model.head.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().clone()))
    try:
        for batch in loaded(dataset):
            inputs, *rest = batch if isinstance(batch, tuple | list) else (batch,)
            targets += rest
            outputs.append(model(inputs))
    finally:
        handle.remove()
    return torch.cat(given), torch.cat(outputs), torch.cat(targets) if targets else None


def extracted(model, dataset, store, **options):
    """Extract, compare every served row and target with a live one, and give the rows computed."""
    features = ft.extract(model, dataset, store, batch_size=BATCH, progress=False, **options)
    rows, outputs, targets = live(model, dataset)
    batches = [values for values, _ in features.batches(BATCH)]
    served = torch.cat(batches)
    if served.shape != rows.shape:  # the frontier lies before what the head is given
        served, rows = torch.cat([features.head(batch) for batch in batches]), outputs
    assert torch.equal(served, rows), f"stale rows: {(served != rows).flatten(1).any(1).nonzero().flatten().tolist()}"
    if targets is not None:
        assert torch.equal(features.targets, targets), "stale targets"
    return features.report.rows_computed


def unfolded(step):
    """A step of a case: (data set, rows), or with a model of its own in front."""
    return step if len(step) == 3 else (Net(), *step)


CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def store_of(folder):
    return folder.with_name(f"{folder.name}-store")


def begin(cases, tmp_path_factory, request):
    """Begin every chosen case: (its steps, the first one, a store), once the files of all have rested."""
    chosen = [item for item in request.session.items if item.path == request.path and "begun" in item.fixturenames]
    running = {}
    for name in sorted({item.callspec.params["name"] for item in chosen}):
        folder = tmp_path_factory.mktemp("case")
        steps = cases[name](folder)
        running[name] = (steps, next(steps), store_of(folder))
    time.sleep(REST_S)
    return running


@pytest.fixture(scope="module")
def begun(tmp_path_factory, request):
    return begin(CASES, tmp_path_factory, request)


def test_the_suite_sees_stale_rows(tmp_path, monkeypatch):
    """If keys did not follow the content, this suite would say so."""
    from forethought.samples.batch import Batch

    monkeypatch.setattr(Batch, "row_keys", lambda self: np.zeros((self.rows, 16), np.uint8))
    with pytest.raises(AssertionError, match="stale rows"):
        extracted(Net(), torch.rand(4, 3, SIDE, SIDE), tmp_path / "store")


# --- models ------------------------------------------------------------------------------------------------------

X = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, 3, SIDE, SIDE)).astype(np.float32))


def one_ulp(net):
    weight = net.conv.weight.data
    weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))


def replaced_forward(net):
    net.act.forward = types.MethodType(lambda self, x: x * 0.5, net.act)


def swapped_weights(net):
    net.conv.weight.data, net.shift = net.conv.weight.data.flip(0), net.shift.flip(0)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.power = 1

    def forward(self, x):
        return torch.where(x > 0, x, -x) * self.power


def with_odd(net):
    net.act = Odd()


EDITS = {
    "one ulp of a weight": one_ulp,
    "a bias": lambda net: net.conv.bias.data[0].add_(1),
    "a weight through numpy": lambda net: net.conv.weight.numpy().__setitem__((0, 0, 0, 0), 7),
    "a running mean": lambda net: net.norm.running_mean[0].add_(1),
    "a running variance": lambda net: net.norm.running_var[3].mul_(4),
    "eps": lambda net: setattr(net.norm, "eps", 3.25),
    "the affine of a norm": lambda net: net.norm.weight.data[1].mul_(2),
    "a buffer": lambda net: net.shift[2].add_(1),
    "a buffer that is replaced": lambda net: setattr(net, "shift", net.shift + 1),
    "a Python float": lambda net: setattr(net, "scale", 4.0),
    "a number deep in an attribute": lambda net: net.table["gain"].__setitem__(1, 5.0),
    "a slope": lambda net: setattr(net.act, "negative_slope", 0.25),
    "padding, with the stride": lambda net: (setattr(net.conv, "dilation", (2, 2)), setattr(net.conv, "padding", (1, 1))),
    "another module": with_odd,
    "the forward of an instance": replaced_forward,
    "a forward hook": lambda net: net.conv.register_forward_hook(lambda module, args, output: output + 1),
    "a hook before": lambda net: net.conv.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "weights exchanged": swapped_weights,
    "double": lambda net: net.double(),
    "a weight parametrized": lambda net: nn.utils.parametrizations.weight_norm(net.conv)
    and net.conv.parametrizations.weight.original0.data.mul_(2),
    "weights loaded": lambda net: net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}),
    "weights assigned": lambda net: net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}, assign=True),
    "the conv replaced": lambda net: setattr(net, "conv", nn.Conv2d(3, 4, 2, stride=2).requires_grad_(False)),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_model_is_computed_anew(edit, tmp_path):
    """All rows and only once; the model as it was before is still known."""
    net, x = Net(), X
    assert extracted(net, x, tmp_path) == N
    EDITS[edit](net)
    assert extracted(net, x, tmp_path) == N
    assert extracted(net, x, tmp_path) == 0
    assert extracted(Net(), x, tmp_path) == 0


def test_a_hook_removed_is_a_change(tmp_path):
    net = Net()
    handle = net.conv.register_forward_hook(lambda module, args, output: output + 1)
    assert extracted(net, X, tmp_path) == N
    handle.remove()
    assert extracted(net, X, tmp_path) == N
    assert extracted(Net(), X, tmp_path) == 0


def test_a_global_hook_is_a_change(tmp_path):
    net = Net()
    assert extracted(net, X, tmp_path) == N

    def doubled(module, args, output):
        return output * 2 if isinstance(module, nn.Conv2d) else output

    handle = nn.modules.module.register_module_forward_hook(doubled)
    try:
        assert extracted(net, X, tmp_path) == N
    finally:
        handle.remove()
    assert extracted(net, X, tmp_path) == 0


def test_the_code_of_a_class_is_seen(tmp_path, monkeypatch):
    """A method that is put on the class, where no instance shows it; and the body of a function exchanged in place."""

    class Coded(Net):
        def forward(self, x):
            return self.head(helper(self.conv(x)).flatten(1))

    def helper(x):
        return x + 1

    def other(x):
        return x + 2

    net = Coded()
    assert extracted(net, X, tmp_path) == N
    monkeypatch.setattr(helper, "__code__", other.__code__)
    assert extracted(net, X, tmp_path) == N
    monkeypatch.setattr(Coded, "forward", lambda self, x: self.head(self.conv(x).flatten(1) * 3))
    assert extracted(net, X, tmp_path) == N
    monkeypatch.undo()
    assert extracted(net, X, tmp_path) == 0


def test_numeric_state_is_a_change(tmp_path):
    """What torch computes follows settings outside of any model."""
    net, before = Net(), torch.get_float32_matmul_precision()
    assert extracted(net, X, tmp_path) == N
    try:
        torch.set_float32_matmul_precision("medium" if before != "medium" else "high")
        assert extracted(net, X, tmp_path) == N
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", torch.bfloat16):
        assert extracted(net, X, tmp_path) == N
        assert extracted(net, X, tmp_path) == 0
    with torch.autocast("cpu", torch.float16):
        assert extracted(net, X, tmp_path) == N
    if torch.set_flush_denormal(True):
        try:
            assert extracted(net, X, tmp_path) == N
        finally:
            torch.set_flush_denormal(False)
    assert extracted(net, X, tmp_path) == 0


@pytest.mark.parametrize("name", ["drop", "norm"])
def test_a_frozen_part_set_to_train_is_refused(name, tmp_path):
    net = Net()
    extracted(net, X, tmp_path)
    getattr(net, name).train()
    with pytest.raises(ImpureTrunkError, match=name):
        ft.extract(net, X, tmp_path, progress=False)
    net.eval()
    assert extracted(net, X, tmp_path) == 0


def test_what_does_not_matter_in_a_model_computes_nothing(tmp_path):
    """Another head, a wrapper, a copy, the head's mode, what only training reads: the frozen part is the same."""

    class Wrapper(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.inside = net
            self.head = net.head

        def forward(self, images):
            return self.inside(images)

    net = Net()
    assert extracted(net, X, tmp_path) == N
    assert extracted(Net(classes=7), X, tmp_path) == 0
    assert extracted(Wrapper(Net()), X, tmp_path) == 0
    copy = Net()
    copy.load_state_dict(net.state_dict(), assign=True)
    copy.requires_grad_(False).head.requires_grad_(True)
    assert extracted(copy, X, tmp_path) == 0
    net.head.train().weight.data.add_(1)
    assert extracted(net, X, tmp_path) == 0
    assert extracted(net.double().float(), X, tmp_path) == 0
    net.norm.momentum, net.drop.p = 0.7, 0.9
    assert extracted(net, X, tmp_path) == 0


@pytest.mark.slow
def test_a_resnet_on_images_is_served_bit_for_bit(tmp_path):
    """A real trunk on a real folder of images: all rows of the same batches agree to the last bit, before and after."""
    root = images(tmp_path / "images", side=32)
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=CLASSES).eval().requires_grad_(False)
    net.head = net.fc = net.fc.requires_grad_(True)
    data, store = folder_of(root), tmp_path / "store"
    assert extracted(net, data, store) == N
    assert extracted(net, data, store) == 0
    for module in (net.layer3[0].bn1, net.bn1):
        module.running_var[0] = torch.nextafter(module.running_var[0], torch.tensor(9.0))
        assert extracted(net, data, store) == N
    data.transform = transforms.Compose([transforms.Resize(24), data.transform])
    assert extracted(net, data, store) == N
    assert extracted(net, data, store) == 0


# --- folders of images -------------------------------------------------------------------------------------------


def pixels(seed, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(seed, side=SIDE):
    """A PNG whose size does not depend on what it shows."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(file, "png", compress_level=0)
    return file.getvalue()


def images(root, side=SIDE, first=0):
    """N images in as many folders as there are classes."""
    for number in range(N):
        path = root / f"class{number % CLASSES}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(first + number, side))
    return root


def as_numbers(image):
    return TF.pil_to_tensor(image).float()


def folder_of(root, transform=as_numbers, **options):
    return ImageFolder(str(root), transform, **options)


def path_of(data, index):
    return Path(data.samples[index][0])


def overwrite(path, content):
    """Write into the very file: same inode, same size, and the time stamps that it had."""
    before = os.stat(path)
    assert before.st_size == len(content)
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


@case
def image_edited_in_place(folder):
    data = folder_of(images(folder / "images"))
    yield data, N
    overwrite(path_of(data, 4), encoded(100))
    yield data, 1
    overwrite(path_of(data, 4), encoded(101))  # at once: within the same tick of the clock, if it is coarse
    yield data, 1
    overwrite(path_of(data, 4), encoded(100))
    yield data, 0  # the store knows this one


@case
def image_edited_through_a_mapping(folder):
    data = folder_of(images(folder / "images"))
    raw = encoded(100)
    yield data, N
    path = path_of(data, 2)
    before = os.stat(path)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[:] = raw
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    yield data, 1


@case
def image_saved_over_another(folder):
    """As editors do: a new file is renamed over the old one, and its stamps are set back."""
    data = folder_of(images(folder / "images"))
    yield data, N
    path = path_of(data, 7)
    before = os.stat(path)
    new = path.with_suffix(".new")
    new.write_bytes(encoded(100))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)
    yield data, 1


@case
def image_of_another_size_and_time(folder):
    data = folder_of(images(folder / "images"))
    yield data, N
    Image.fromarray(pixels(100)).save(path_of(data, 0))
    yield data, 1


@case
def two_images_swapped(folder):
    data = folder_of(images(folder / "images"))
    yield data, N
    first, second = path_of(data, 1), path_of(data, 10)
    for path in (first, second):
        os.utime(path, ns=(0, 10**18))
    yield data, 0
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    yield data, 0
    yield folder_of(folder / "images"), 0


@case
def image_replaced_by_a_link_to_another(folder):
    data = folder_of(images(folder / "images"))
    (folder / "other.png").write_bytes(encoded(100))
    yield data, N
    path = path_of(data, 3)
    stamp = os.stat(path).st_mtime_ns
    os.utime(folder / "other.png", ns=(stamp, stamp))
    path.unlink()
    path.symlink_to(folder / "other.png")
    os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
    yield data, 1
    path.unlink()
    path.symlink_to(path_of(data, 5))
    yield data, 0


@case
def image_edited_behind_a_link(folder):
    """The data set's files are symlinks; the files they name are edited, and later the links are turned."""
    real = images(folder / "real")
    for path in sorted(real.rglob("*.png")):
        link = folder / "images" / path.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    data = folder_of(folder / "images")
    yield data, N
    overwrite(path_of(data, 6).resolve(), encoded(100))
    yield data, 1
    link = path_of(data, 0)
    before = os.lstat(link)
    target = os.readlink(path_of(data, 1))
    link.unlink()
    link.symlink_to(target)
    os.utime(link, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)
    yield data, 0


@case
def folder_link_turned(folder):
    """The root is a symlink, as in `data -> data-v2`."""
    images(folder / "v1")
    shutil.copytree(folder / "v1", folder / "v2", copy_function=shutil.copy2)
    changed = sorted((folder / "v2").rglob("*.png"))[5]
    overwrite(changed, encoded(100))
    (folder / "images").symlink_to(folder / "v1")
    data = folder_of(folder / "images")
    yield data, N
    (folder / "images").unlink()
    (folder / "images").symlink_to(folder / "v2")
    yield data, 1


@case
def image_edited_by_its_other_name(folder):
    data = folder_of(images(folder / "images"))
    os.link(path_of(data, 9), folder / "hard")
    yield data, N
    overwrite(folder / "hard", encoded(100))
    yield data, 1


@case
def folder_exchanged_for_another(folder):
    """Same names, sizes and time stamps; other pictures."""
    images(folder / "images")
    images(folder / "others", first=50)
    for path in folder.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    data = folder_of(folder / "images")
    yield data, N
    (folder / "images").rename(folder / "aside")
    (folder / "others").rename(folder / "images")
    yield data, N
    (folder / "images").rename(folder / "others")
    (folder / "aside").rename(folder / "images")
    yield data, 0


@case
def class_folder_exchanged(folder):
    data = folder_of(images(folder / "images"))
    yield data, N
    (folder / "images" / "class0").rename(folder / "aside")
    (folder / "images" / "class1").rename(folder / "images" / "class0")
    (folder / "aside").rename(folder / "images" / "class1")
    for path in sorted((folder / "images" / "class0").iterdir()):
        path.rename(path.with_name(f"{int(path.stem) - 1:02}.png"))
    for path in sorted((folder / "images" / "class1").iterdir()):
        path.rename(path.with_name(f"{int(path.stem) + 1:02}.png"))
    yield data, 0


@case
def images_touched_moved_and_renamed(folder):
    data = folder_of(images(folder / "images"))
    yield data, N
    for path in (folder / "images").rglob("*.png"):
        path.touch()
    yield data, 0
    (folder / "images").rename(folder / "moved")
    yield folder_of(folder / "moved"), 0
    for path in list((folder / "moved").rglob("*.png")):
        path.rename(path.with_name(f"x{99 - int(path.stem)}.png"))
    yield folder_of(folder / "moved"), 0
    shutil.copytree(folder / "moved", folder / "copied")
    yield folder_of(folder / "copied"), 0
    (folder / "copied" / "class0" / "new.png").write_bytes(encoded(100))
    yield folder_of(folder / "copied"), 1


@case
def images_relabelled(folder):
    """The same picture in another class: the served target changes, nothing is computed."""
    data = folder_of(images(folder / "images"))
    yield data, N
    path_of(data, 0).rename(folder / "images" / "class2" / "moved.png")
    yield folder_of(folder / "images"), 0
    data = folder_of(folder / "images")
    yield data, 0
    data.samples[3] = (data.samples[3][0], 2)
    yield data, 0
    data.target_transform = lambda target: 2 - target
    yield data, 0


@case
def samples_of_a_folder_changed_in_place(folder):
    data = folder_of(images(folder / "images"))
    yield data, N
    data.samples.reverse()
    yield data, 0
    data.samples[0] = data.samples[1]
    yield data, 0
    (folder / "new.png").write_bytes(encoded(100))
    data.samples.append((str(folder / "new.png"), 1))
    yield data, 1
    del data.samples[4:]
    yield data, 0


@case
def equal_images_computed_once(folder):
    root = images(folder / "images")
    for path in sorted(root.rglob("*.png"))[:6]:
        shutil.copy(path, path.with_name(f"copy{path.name}"))
    yield folder_of(root), N


@case
def overlapping_folders(folder):
    data, others = folder_of(images(folder / "images")), folder_of(images(folder / "others", first=8))
    yield data, N
    yield others, 8
    yield ConcatDataset([others, data, others]), 0
    overwrite(path_of(others, 0), encoded(100))
    yield ConcatDataset([others, data]), 1


@case
def orders_and_subsets(folder):
    data = folder_of(images(folder / "images"))
    part = Subset(data, [7, 3, 5])
    yield part, 3
    part.indices[1] = 4
    yield part, 1
    part.indices = [1, 2, 3, 4, 5]
    yield part, 2
    part.dataset = folder_of(images(folder / "others", first=50))
    yield part, 5
    both = ConcatDataset([data, part.dataset])
    yield both, 2 * N - 11
    both.datasets.reverse()
    yield both, 0


@case
def image_that_vanishes(folder):
    """It cannot be read any more; a data set without it can."""
    data = folder_of(images(folder / "images"))
    yield data, N
    path_of(data, 0).unlink()
    with pytest.raises(FileNotFoundError):
        ft.extract(Net(), data, store_of(folder), batch_size=BATCH, progress=False)
    yield folder_of(folder / "images"), 0


# --- transforms --------------------------------------------------------------------------------------------------


class Add:
    """A transform with a parameter, a table and a helper of its own."""

    step = 0

    def __init__(self, amount):
        self.amount = amount
        self.more = {"table": np.zeros(3, np.float32), "tensor": torch.zeros(3, 1, 1)}

    def __call__(self, image):
        table = torch.from_numpy(self.more["table"]).reshape(3, 1, 1)
        return as_numbers(image) + self.amount + table + self.more["tensor"] + self.step


@case
def parameter_of_a_transform(folder):
    data = folder_of(images(folder / "images"), Add(1))
    yield data, N
    data.transform.amount = 2
    yield data, N
    data.transform.more["table"][1] = 1
    yield data, N
    data.transform.more["tensor"][2] += 1
    yield data, N
    data.transform.more["tensor"].numpy()[2] += 1
    yield data, N
    yield folder_of(folder / "images", Add(1)), 0


@case
def class_of_a_transform(folder):
    class Local(Add):
        step = 0

        def __call__(self, image):
            return super().__call__(image)

    data = folder_of(images(folder / "images"), Local(1))
    yield data, N
    Local.step = 5
    yield data, N
    Local.__call__ = lambda self, image: as_numbers(image) * 2
    yield data, N


@case
def parameter_within_torchvision(folder):
    steps = [transforms.Resize(6), transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32),
             transforms.Normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])]  # fmt: skip
    data = folder_of(images(folder / "images"), transforms.Compose(steps))

    def wider(net):
        net.head = nn.Linear(36, 2)
        return net

    yield wider(Net()), data, N
    steps[3].mean[0] = 0.25
    yield wider(Net()), data, N
    steps[0].interpolation = transforms.InterpolationMode.NEAREST
    yield wider(Net()), data, N
    steps[2], steps[3] = steps[3], steps[2]
    steps[2], steps[3] = steps[3], steps[2]
    yield wider(Net()), data, 0
    data.transform.transforms.insert(0, transforms.RandomHorizontalFlip(1.0))
    yield wider(Net()), data, N


SOURCES = ["def t(image): return n(image) + {k}", "def t(image, k={k}): return n(image) + k", "K = {k}\ndef t(image): return n(image) + K",
           "def make(k):\n def t(image): return n(image) + k\n return t\nt = make({k})", "C = [1, {{'k': {k}}}]\ndef t(image): return n(image) + C[1]['k']",
           "def h(): return {k}\ndef t(image): return n(image) + h()", "t = lambda image: n(image) + {k}",
           "t = functools.partial(lambda k, image: n(image) + k, {k})", "import os\nos.environ['K'] = '{k}'\ndef t(image): return n(image) + float(os.environ['K'])",
           "import functools\n@functools.cache\ndef h(): return {k}\ndef t(image): return n(image) + h()",
           "class T:\n K = {k}\n def t(self, image): return n(image) + self.K\nt = T().t",
           "import numpy\nA = numpy.full(1, {k}, 'float32')\ndef t(image): return n(image) + A[0].item()",
           "def t(image): return n(image) + eval('{k}')", "mod.K = {k}\ndef t(image): return n(image) + mod.K",
           "mod.K = {k}\ndef t(image): return n(image) + getattr(mod, 'K')"]  # fmt: skip


@case
def code_of_a_transform(folder):
    """However the number gets into the function: the same names, another result."""
    data, outside = folder_of(images(folder / "images")), types.ModuleType("outside")

    def made(source, k):
        module = types.ModuleType("user_code")
        vars(module).update(n=as_numbers, functools=functools, mod=outside)
        exec(source.format(k=k), vars(module))
        return module.t

    for at, source in enumerate(SOURCES):
        for k in (3.0, 4.0):
            data.transform = made(source, k + 10 * at)
            yield data, N
    data.transform = made(SOURCES[0], 200.0)
    yield data, N
    data.transform.__code__ = made(SOURCES[0], 201.0).__code__
    yield data, N
    data.transform = made(SOURCES[13], 202.0)
    yield data, N
    outside.K = 203.0
    yield data, N
    data.transform = made(SOURCES[4], 204.0)
    yield data, N
    data.transform.__globals__["C"][1]["k"] = 205.0
    yield data, N


@case
def library_function_patched(folder):
    """What a transform calls is replaced inside a library, as patches and plugins do."""
    data = folder_of(images(folder / "images"), transforms.Compose([transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)]))  # fmt: skip
    yield data, N
    before = TF.convert_image_dtype
    TF.convert_image_dtype = lambda image, dtype: before(image, dtype) * 2
    try:
        yield data, N
    finally:
        TF.convert_image_dtype = before
    yield data, 0


@case
def side_file_read_at_each_call(folder):
    (folder / "add.json").write_text("1")

    def shifted(image):
        return as_numbers(image) + json.loads((folder / "add.json").read_text())

    data = folder_of(images(folder / "images"), shifted)
    yield data, N
    overwrite(folder / "add.json", b"2")
    yield data, N
    overwrite(folder / "add.json", b"1")
    yield data, 0


@case
def side_file_read_once_and_kept(folder):
    """What was kept counts, not what the file says; a new object reads it again."""
    (folder / "add.json").write_text("1")

    class Shifted:
        def __init__(self):
            self.add = json.loads((folder / "add.json").read_text())

        def __call__(self, image):
            return as_numbers(image) + self.add

    data = folder_of(images(folder / "images"), Shifted())
    yield data, N
    overwrite(folder / "add.json", b"2")
    yield data, 0
    data.transform = Shifted()
    yield data, N


@case
def side_file_kept_in_a_cache(folder):
    """Read when first needed, and kept where no attribute shows it."""
    (folder / "add.json").write_text("1")

    @functools.cache
    def added():
        return json.loads((folder / "add.json").read_text())

    data = folder_of(images(folder / "images"), lambda image: as_numbers(image) + added())
    yield data, N
    overwrite(folder / "add.json", b"2")
    yield data, 0
    added.cache_clear()
    yield data, N


@case
def side_file_for_one_sample(folder):
    """A transform that looks up something else for one sample in twelve: a few samples read again need not show it."""
    (folder / "add.json").write_text("1")
    total = int(pixels(4).sum())

    def shifted(image):
        numbers = as_numbers(image)
        return numbers + json.loads((folder / "add.json").read_text()) if numbers.sum() == total else numbers

    data = folder_of(images(folder / "images"), shifted)
    yield data, N
    overwrite(folder / "add.json", b"2")
    yield data, 1


@case
def loader_of_a_folder(folder):
    """`loader=` may read anything: another file beside the one that is named."""
    root = images(folder / "images")
    images(folder / "depth", first=30)

    def beside(path):
        return Image.blend(*(Image.open(p).convert("RGB") for p in (path, path.replace("/images/", "/depth/"))), 0.5)

    data = folder_of(root, loader=beside)
    yield data, N
    overwrite(Path(data.samples[2][0].replace("/images/", "/depth/")), encoded(100))
    yield data, 1
    data.loader = lambda path: Image.open(path).convert("L").convert("RGB")
    yield data, N


# --- data sets of one's own --------------------------------------------------------------------------------------


class Own(Dataset):
    """Reads `side * side * 3` bytes for each sample from somewhere."""

    def __init__(self, folder):
        self.folder = folder
        for number in range(N):
            (folder / f"{number:02}.raw").write_bytes(raw_of(number))

    def __len__(self):
        return N

    def path(self, index):
        return self.folder / f"{index:02}.raw"

    def __getitem__(self, index):
        return as_tensor(self.read(index)), index % CLASSES


def raw_of(seed):
    return pixels(seed).tobytes()


def as_tensor(raw):
    return torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(SIDE, SIDE, 3).copy()).permute(2, 0, 1).float()


LIBC = ctypes.CDLL(None)
LIBC.fopen.restype = ctypes.c_void_p
LIBC.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
LIBC.fread.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
LIBC.fclose.argtypes = [ctypes.c_void_p]


def read_in_c(path):
    """As cv2 and other C libraries do: Python sees no file being opened."""
    buffer = ctypes.create_string_buffer(SIDE * SIDE * 3)
    file = LIBC.fopen(os.fsencode(path), b"rb")
    LIBC.fread(buffer, 1, len(buffer), file)
    LIBC.fclose(file)
    return buffer.raw


def read_by_descriptor(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, SIDE * SIDE * 3, 0)
    finally:
        os.close(descriptor)


READERS = {
    "open": lambda path: open(path, "rb").read(),  # noqa: SIM115
    "pathlib": lambda path: path.read_bytes(),
    "a C library": read_in_c,
    "os.open": read_by_descriptor,
    "np.fromfile": lambda path: np.fromfile(path, np.uint8).tobytes(),
    "np.memmap": lambda path: np.memmap(path, np.uint8, "r").tobytes(),
    "torch.from_file": lambda path: torch.from_file(str(path), size=SIDE * SIDE * 3, dtype=torch.uint8).numpy().tobytes(),
    "another process": lambda path: subprocess.run(["cat", path], capture_output=True, check=True).stdout,
}  # fmt: skip


def own_reader(name):
    def files_of_ones_own(folder):
        class Files(Own):
            def read(self, index):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    return READERS[name](self.path(index))

        data = Files(folder)
        yield data, N
        overwrite(data.path(5), raw_of(100))
        yield data, 1
        os.replace(data.path(5), data.path(6))
        data.path(5).write_bytes(raw_of(101))
        yield data, 1

    return files_of_ones_own


CASES |= {f"read by {name}": own_reader(name) for name in READERS}


def replaced_whole(write, read):
    """A case of one file that holds all samples and is written anew, in place, with the size and stamps it had."""

    def one_file(folder):
        class One(Own):
            def __init__(self):
                self.path = folder / "all"
                self.put()

            def put(self, **changed):
                rows = [raw_of(changed.get(f"row{number}", number)) for number in range(N)]
                if not self.path.exists():
                    write(self.path, rows)
                    return
                write(folder / "new", rows)
                overwrite(self.path, (folder / "new").read_bytes())
                (folder / "new").unlink()

            def read(self, index):
                return read(self.path, index)

        data = One()
        yield data, N
        data.put(row3=100)
        yield data, 1
        data.put(row3=100, row11=101)
        yield data, 1
        data.put()
        yield data, 0

    return one_file


def as_array(rows):
    return np.stack([np.frombuffer(row, np.uint8) for row in rows])


def write_npz(path, rows):
    with open(path, "wb") as file:
        np.savez(file, rows=as_array(rows))


def write_zip(path, rows):
    with zipfile.ZipFile(path, "w") as archive:
        for number, row in enumerate(rows):
            archive.writestr(zipfile.ZipInfo(f"{number}"), row)


def read_zip(path, index):
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{index}")


def write_npy(path, rows):
    with open(path, "wb") as file:
        np.save(file, as_array(rows))


def write_tar(path, rows):
    import tarfile

    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(rows):
            info = tarfile.TarInfo(f"{number}")
            info.size = len(row)
            archive.addfile(info, io.BytesIO(row))


def read_tar(path, index):
    import tarfile

    with tarfile.open(path) as archive:
        return archive.extractfile(f"{index}").read()


CASES |= {
    "np.load": replaced_whole(write_npy, lambda path, index: np.load(path)[index].tobytes()),
    "np.load mapped": replaced_whole(write_npy, lambda path, index: np.load(path, mmap_mode="r")[index].tobytes()),
    "np.load of an archive": replaced_whole(write_npz, lambda path, index: np.load(path)["rows"][index].tobytes()),
    "torch.load": replaced_whole(
        lambda path, rows: torch.save(torch.from_numpy(as_array(rows)), path, _use_new_zipfile_serialization=False),
        lambda path, index: torch.load(path, weights_only=True)[index].numpy().tobytes(),
    ),
    "torch.load mapped": replaced_whole(
        lambda path, rows: torch.save({"all": torch.from_numpy(as_array(rows))}, Path(path).parent / "new" if path.name == "new" else path),
        lambda path, index: torch.load(path, weights_only=True, mmap=True)["all"][index].numpy().tobytes(),
    ),
    "zipfile": replaced_whole(write_zip, read_zip),
    "tarfile": replaced_whole(write_tar, read_tar),
}  # fmt: skip


@case
def sqlite(folder):
    class Rows(Own):
        def __init__(self):
            with sqlite3.connect(folder / "rows.db") as base:
                base.execute("create table samples (number integer primary key, raw blob)")
                base.executemany("insert into samples values (?, ?)", [(n, raw_of(n)) for n in range(N)])
            base.close()

        def read(self, index):
            base = sqlite3.connect(folder / "rows.db")
            try:
                return base.execute("select raw from samples where number = ?", (index,)).fetchone()[0]
            finally:
                base.close()

    data = Rows()
    yield data, N
    before = os.stat(folder / "rows.db")
    base = sqlite3.connect(folder / "rows.db")
    with base:
        base.execute("update samples set raw = ? where number = 7", (raw_of(100),))
    base.close()
    os.utime(folder / "rows.db", ns=(before.st_atime_ns, before.st_mtime_ns))
    yield data, 1


@case
def memory_map_that_stays_open(folder):
    """Nothing is opened when samples are read: the array shows what the file holds now."""
    as_array([raw_of(n) for n in range(N)]).tofile(folder / "all")

    class Mapped(Own):
        def __init__(self):
            self.rows = np.memmap(folder / "all", np.uint8, "r", shape=(N, SIDE * SIDE * 3))

        def read(self, index):
            return self.rows[index].tobytes()

    data = Mapped()
    yield data, N
    overwrite(folder / "all", b"".join(raw_of(n if n != 8 else 100) for n in range(N)))
    yield data, 1


@case
def tensor_over_a_memory_map(folder):
    """Tensors in memory, as torch sees it; another program writes into the file behind them."""
    floats = np.stack([np.frombuffer(raw_of(n), np.uint8) for n in range(N)]).astype(np.float32)
    floats.tofile(folder / "all")
    tensor = torch.from_numpy(np.memmap(folder / "all", np.float32, "r+", shape=(N, 3, SIDE, SIDE)))
    yield tensor, N
    floats[3, 7] += 1
    overwrite(folder / "all", floats.tobytes())
    yield tensor, 1


@case
def descriptor_that_stays_open(folder):
    """One file for all, opened once; in the end its name is given to another file."""
    as_array([raw_of(n) for n in range(N)]).tofile(folder / "all")

    class Held(Own):
        def __init__(self):
            self.file = open(folder / "all", "rb", buffering=0)  # noqa: SIM115

        def read(self, index):
            return os.pread(self.file.fileno(), SIDE * SIDE * 3, index * SIDE * SIDE * 3)

    data = Held()
    yield data, N
    overwrite(folder / "all", b"".join(raw_of(n if n != 8 else 100) for n in range(N)))
    yield data, 1
    (folder / "all").rename(folder / "old")
    (folder / "all").write_bytes(b"".join(raw_of(50 + n) for n in range(N)))
    yield data, 0
    data.file.close()


@case
def targets_from_a_side_file(folder):
    """Labels of today, whatever is stored: read at each call, and read when the data set is made."""
    (folder / "labels").write_text("0" * N)
    root = folder / "raw"
    root.mkdir()

    class Labelled(Own):
        def __init__(self, root):
            super().__init__(root)
            self.kept = (folder / "labels").read_text()

        def __getitem__(self, index):
            raw = as_tensor(self.path(index).read_bytes())
            return raw, torch.tensor([int((folder / "labels").read_text()[index]), int(self.kept[index])])

    data = Labelled(root)
    yield data, N
    overwrite(folder / "labels", b"0120120120" + b"12")
    yield data, 0
    data.kept = "2" * N
    yield data, 0
    yield Labelled(root), 0


class Plain(Dataset):
    """Everything in attributes, where everyone can change it."""

    scale = 1.0

    def __init__(self, rows):
        self.rows = rows
        self.offset = 0.0
        self.deep = {"list": [0.0, [0.0]]}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index] * self.scale + self.offset + self.deep["list"][1][0], index


@case
def attributes_of_a_data_set(folder):
    class Changed(Plain):
        pass

    data = Changed(X.clone())
    yield data, N
    data.offset = 1.0
    yield data, N
    data.deep["list"][1][0] = 2.0
    yield data, N
    Changed.scale = 2.0
    yield data, N
    data.rows[4] += 1
    yield data, 1
    data.rows.numpy()[5] += 1
    yield data, 1
    data.rows = list(data.rows)
    yield data, 0
    data.rows[0], data.rows[1] = data.rows[1], data.rows[0]
    yield data, 0
    data.rows.append(X[0] + 1000)
    yield data, 1
    Changed.__getitem__ = lambda self, index: (self.rows[index] * 5, index)
    yield data, N + 1


@case
def tensors_in_memory(folder):
    x, labels = X.clone(), torch.arange(N)
    yield (x, labels), N
    x[3, 0, 0, 0] += 1
    yield (x, labels), 1
    x.numpy()[4, 0, 0, 0] += 1
    yield (x, labels), 1
    x.data[5, 0, 0, 0] += 1
    yield (x, labels), 1
    for at, byte in enumerate(np.float32(777).tobytes()):  # past every counter of versions
        x.untyped_storage()[at] = byte
    yield (x, labels), 1
    ctypes.memmove(x.data_ptr() + 4 * x.stride(0), np.float32(778).tobytes(), 4)  # sample 1
    yield (x, labels), 1
    labels[0] = 7
    yield (x, labels), 0
    yield (x.flip(0), labels), 0
    yield TensorDataset(x, labels), 0
    yield (x.clone().to(memory_format=torch.channels_last), labels), 0
    x[2] = -0.0
    x[6] = 0.0
    yield (x, labels), 2  # zeros of two signs are two inputs


@case
def list_of_samples(folder):
    data = [(X[number].clone(), number) for number in range(N)]
    yield data, N
    data[3][0].add_(1)
    yield data, 1
    data[4] = (data[4][0] + 1, 7)
    yield data, 1
    data.insert(0, (X[0] + 500, 3))
    yield data, 1
    data.sort(key=lambda sample: -sample[1])
    yield data, 0


@case
def array_behind_a_closure(folder):
    rows = X.numpy().copy()
    scale = [1.0]

    class Closed(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return torch.from_numpy(rows[index] * scale[0]), 0

    data = Closed()
    yield data, N
    rows[3] += 1
    yield data, 1
    scale[0] = 2.0
    yield data, N


@case
def iterables_and_loaders(folder):
    class Stream(IterableDataset):
        def __init__(self, rows):
            self.rows = rows

        def __iter__(self):
            return iter(self.rows)

    stream = Stream(list(X.clone()))
    yield stream, N
    stream.rows[2] = stream.rows[2] + 1
    yield stream, 1
    yield DataLoader(stream.rows, shuffle=True, batch_size=4, drop_last=True), 0

    def doubled(samples):
        return torch.stack(samples) * factor[0]

    factor = [2.0]
    loader = DataLoader(stream.rows, batch_size=4, collate_fn=doubled)
    yield loader, N
    factor[0] = 3.0
    yield loader, N


@case
def environment_that_a_data_set_reads(folder):
    os.environ["NEVER_STALE"] = "1"

    class Shifted(Plain):
        def __getitem__(self, index):
            return self.rows[index] + float(os.environ["NEVER_STALE"]), index

    data = Shifted(X)
    try:
        yield data, N
        os.environ["NEVER_STALE"] = "2"
        yield data, N
    finally:
        del os.environ["NEVER_STALE"]


@case
def seed_of_a_fixed_augmentation(folder):
    """Noise that follows from a seed and the index is no chance; another seed is another data set."""

    class Noisy(Plain):
        seed = 0

        def __getitem__(self, index):
            generator = torch.Generator().manual_seed(1000 * self.seed + index)
            return self.rows[index] + torch.randint(9, (3, SIDE, SIDE), generator=generator), index

    data = Noisy(X)
    yield data, N
    data.seed = 1
    yield data, N
    data.seed = 0
    yield data, 0


@pytest.mark.parametrize("name", CASES)
def test_what_changed_is_computed_and_nothing_else(name, begun):
    """After each step of the case: right rows, right targets, and not one row more than is new."""
    steps, step, store = begun[name]
    at = 0
    try:
        while step is not None:
            model, dataset, rows = unfolded(step)
            assert extracted(model, dataset, store) == rows, f"step {at}"
            assert extracted(model, dataset, store) == 0, f"step {at}, asked again"
            step, at = next(steps, None), at + 1
    finally:
        steps.close()
    assert at > 0


# --- what is no step of a case -----------------------------------------------------------------------------------


def test_relative_paths_mean_other_files_in_another_folder(tmp_path, monkeypatch):
    """The same names, sizes and time stamps; another working directory."""
    images(tmp_path / "here" / "images")
    images(tmp_path / "there" / "images", first=50)
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    for path in tmp_path.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    monkeypatch.chdir(tmp_path / "here")
    data = folder_of("images")
    time.sleep(REST_S)
    for name, rows in (("here", N), ("here", 0), ("there", N), ("there", 0), ("copy", 0), ("here", 0)):
        monkeypatch.chdir(tmp_path / name)
        assert extracted(Net(), data, tmp_path / "store") == rows


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_size_workers_and_segments_compute_nothing(workers, tmp_path):
    data, store, net = folder_of(images(tmp_path / "images")), tmp_path / "store", Net()
    assert extracted(net, data, store, num_workers=workers, segment_rows=4) == N
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"segment_rows": 1}, {"num_workers": 2 - workers}):
        assert ft.extract(net, data, store, progress=False, **options).report.rows_computed == 0
    overwrite(path_of(data, 4), encoded(100))
    assert extracted(net, data, store, num_workers=workers) == 1
    moved = tmp_path / "moved"
    store.rename(moved)
    assert extracted(net, data, moved, num_workers=workers) == 0


PROCESS = """
import sys; sys.path.insert(0, sys.argv[1])
from test_never_stale import *
torch.set_num_threads(1)
print(extracted(Net(), folder_of(sys.argv[2]), sys.argv[3]))
"""


@pytest.mark.slow
def test_another_process_sees_what_changed_and_computes_nothing_else(tmp_path):
    """In another working directory, too; edits between and by another process."""

    def told():
        code = [sys.executable, "-c", PROCESS, Path(__file__).parent, tmp_path / "images", tmp_path / "store"]
        return int(subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)

    data = folder_of(images(tmp_path / "images"))
    assert extracted(Net(), data, tmp_path / "store") == N
    assert told() == 0
    overwrite(path_of(data, 4), encoded(100))
    assert told() == 1
    assert extracted(Net(), data, tmp_path / "store") == 0
    assert told() == 0


class Coarse:
    """The state of a file, its times told in whole seconds."""

    def __init__(self, state):
        self._state = state

    def __getattr__(self, name):
        value = getattr(self._state, name)
        if name in ("st_mtime_ns", "st_ctime_ns", "st_atime_ns"):
            return value // 10**9 * 10**9
        return float(int(value)) if name in ("st_mtime", "st_ctime", "st_atime") else value

    def __getitem__(self, at):
        return self._state[at]


def test_edits_within_a_tick_of_the_clock_are_seen(tmp_path, monkeypatch):
    """On a disk that tells whole seconds: written, extracted and edited, all within one, so that no stamp differs."""
    for name in ("stat", "lstat", "fstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, **options: Coarse(real(*args, **options)))
    data, store = folder_of(images(tmp_path / "images")), tmp_path / "store"
    extracted(Net(), data, store)
    for turn in range(3):
        time.sleep(1.05 - time.time() % 1)  # just after a second has begun
        overwrite(path_of(data, 4), encoded(100 + 2 * turn))
        assert extracted(Net(), data, store) == 1
        overwrite(path_of(data, 4), encoded(101 + 2 * turn))
        assert extracted(Net(), data, store) == 1
        assert extracted(Net(), data, store) == 0


# An audit hook cannot be taken away: it looks here whom to call.
OPENED = [lambda path: None]


def on_open(event, arguments):
    if event == "open":
        OPENED[0](arguments[0])


sys.addaudithook(on_open)


@pytest.mark.parametrize("edited", [0, 6, 11])
@pytest.mark.parametrize("time_opened", [1, 2, 3, 4])
def test_an_edit_while_extraction_runs_is_not_kept(edited, time_opened, tmp_path):
    """An image changes when some image is opened, for the first, second, ... time, with size and stamps kept.

    The call at hand may give either picture, or refuse a data set that changes as it is read; the next one sees it.
    """
    data, store = folder_of(images(tmp_path / "images")), tmp_path / "store"
    trigger, times = str(path_of(data, 7)), 0

    def opened(path):
        nonlocal times
        if str(path) == trigger:
            times += 1
            if times == time_opened:
                overwrite(path_of(data, edited), encoded(100))

    OPENED[0] = opened
    try:
        ft.extract(Net(), data, store, batch_size=BATCH, progress=False)
    except RandomDatasetError:
        pass
    finally:
        OPENED[0] = lambda path: None
    extracted(Net(), data, store)
    assert extracted(Net(), data, store) == 0


@pytest.mark.slow
def test_edits_by_somebody_else_at_any_moment_are_not_kept(tmp_path):
    """A thread edits images all the while, keeping size and stamps; when it rests, everything served is right."""
    data, store, net = folder_of(images(tmp_path / "images")), tmp_path / "store", Net()
    for turn in range(15):
        running = True

        def edit(seed=1000 * turn):
            rng = np.random.default_rng(seed)
            while running:  # noqa: B023
                overwrite(path_of(data, int(rng.integers(N))), encoded(int(rng.integers(200))))

        thread = threading.Thread(target=edit)
        thread.start()
        try:
            ft.extract(net, data, store, batch_size=BATCH, progress=False)
        except (ForethoughtError, OSError, SyntaxError):
            pass  # a picture that is half written, or another each time
        finally:
            running = False
            thread.join()
        extracted(net, data, store)
        assert extracted(net, data, store) == 0
