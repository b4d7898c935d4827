"""The laws of the manifest: it saves reading samples, and never serves what reading them would not."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset

import forethought as ft
from forethought.extracting.manifest import Manifest, OpenedFiles
from forethought.identifying.account import parts_of
from forethought.samples import watching
from forethought.samples.watching import UNPROVEN, Seen, Watch

torchvision = pytest.importorskip("torchvision")
from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

ROWS = 30


def picture(seed):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
    for at in range(ROWS):
        picture(at).save(tmp_path / "images" / ("cat", "dog")[at % 2] / f"{at:02}.png")
    time.sleep(0.15)  # what changed within the last tick of the file system's clock proves nothing
    return tmp_path / "images"


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    return ft.freeze(net, until="2")


@pytest.fixture
def reads(monkeypatch):
    """The files that PIL opens, in order."""
    found, whole = [], PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file, *rest, **more: found.append(file) or whole(file, *rest, **more))
    return found


TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def make_data(folder, **options):
    return ImageFolder(str(folder), **({"transform": TO_TENSOR} | options))


def is_live(features, net, data):
    """Whether each row, and each label, is what the data set gives now."""
    with torch.no_grad():
        live = net[:3](torch.stack([data[at][0] for at in range(len(data))]))
    labels = torch.tensor([data[at][1] for at in range(len(data))])
    return torch.allclose(torch.tensor(features.numpy()), live, atol=1e-6) and torch.equal(features.targets, labels)


def extract(net, data, store, **options):
    return ft.extract(net, data, store, batch_size=4, progress=False, **options)


FEW = 6 + 8  # the example of the model, and the samples that are read to check


def test_a_complete_hit_reads_a_few_samples_only(folder, net, tmp_path, reads):
    """A second call, with another object, in another order of calls: nothing is decoded but what checks the manifest."""
    first = extract(net, make_data(folder), tmp_path / "store")
    reads.clear()
    again = extract(net, make_data(folder), tmp_path / "store")
    assert first.report.rows_computed == ROWS
    assert again.report.rows_computed == 0
    assert len(reads) <= FEW
    assert is_live(again, net, make_data(folder))


def test_another_model_reads_once_and_believes_the_keys(folder, net, tmp_path):
    """Keys belong to samples, not to models: another trunk computes all rows under the same keys."""
    extract(net, make_data(folder), tmp_path / "store")
    other = ft.freeze(nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 2)), until="1")
    made = extract(other, make_data(folder), tmp_path / "store")
    assert made.report.rows_computed == ROWS
    assert len(ft.Store(tmp_path / "store").manifests()) == 1


def edit_in_place(path, image):
    """Write other bytes of the same length into a file, and put its times back."""
    was = path.stat()
    raw = path.read_bytes()
    image.save(path)
    new = path.read_bytes()[: len(raw)].ljust(len(raw), b"\0")
    path.write_bytes(new)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)


def swap(folder):
    one, other, aside = folder / "cat" / "00.png", folder / "cat" / "02.png", folder / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def replace_by_link(folder):
    (folder / "cat" / "00.png").unlink()
    (folder / "cat" / "00.png").symlink_to(folder / "cat" / "02.png")


EDITS = {
    "in place": (lambda folder: edit_in_place(folder / "cat" / "00.png", picture(99)), 1),
    "anew": (lambda folder: picture(99).save(folder / "cat" / "00.png"), 1),
    "moved over": (lambda folder: (picture(99).save(folder / "n.png"), (folder / "n.png").rename(folder / "cat" / "00.png")), 1),
    "swapped": (swap, 0),
    "a link": (replace_by_link, 0),
    "touched": (lambda folder: os.utime(folder / "cat" / "00.png"), 0),
    "renamed": (lambda folder: (folder / "cat" / "00.png").rename(folder / "cat" / "01.png"), 0),
    "more": (lambda folder: picture(99).save(folder / "cat" / "99.png"), 1),
    "fewer": (lambda folder: (folder / "cat" / "00.png").unlink(), 0),
    "another class": (lambda folder: (folder / "cat" / "00.png").rename(folder / "dog" / "99.png"), 0),
    "the folder": (lambda folder: (folder.rename(folder.parent / "old"), shutil.copytree(folder.parent / "old", folder)), 0),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_computes_what_changed_and_nothing_else(edit, folder, net, tmp_path):
    """Whatever happens to the files, rows and labels are those of now."""
    change, new = EDITS[edit]
    extract(net, make_data(folder), tmp_path / "store")
    change(folder)
    for computed in (new, 0):
        made = extract(net, make_data(folder), tmp_path / "store")
        assert made.report.rows_computed == computed
        assert is_live(made, net, make_data(folder))


@pytest.mark.parametrize("later_ms", [1, 90])
def test_an_edit_within_the_tick_of_the_clock_is_seen(later_ms, folder, net, tmp_path, monkeypatch):
    """A file that was written just before it was read may change again without a change of its times."""
    path = folder / "cat" / "00.png"
    was = os.stat(path)
    with monkeypatch.context() as patch:  # it is read a moment after it was written ...
        patch.setattr(watching.time, "time_ns", lambda: was.st_ctime_ns + later_ms * 10**6)
        extract(net, make_data(folder), tmp_path / "store")
    content = path.read_bytes()
    picture(97).save(path)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0")[: len(content)])
    real = os.stat
    with monkeypatch.context() as patch:  # ... and written once more in the same moment
        patch.setattr(os, "stat", lambda p, *a, **k: was if os.fspath(p) == str(path) else real(p, *a, **k))
        made = extract(net, make_data(folder), tmp_path / "store")
    assert is_live(made, net, make_data(folder))


def half(image):
    return TO_TENSOR(image) / 2


def third(image):
    return TO_TENSOR(image) / 3


@pytest.mark.parametrize(
    "options",
    [{"transform": half}, {"transform": v2.Compose([TO_TENSOR, v2.Resize(8), v2.GaussianBlur(3, 0.5)])},
     {"target_transform": lambda label: 1 - label}],
)  # fmt: skip
def test_another_transform_is_another_data_set(options, folder, net, tmp_path):
    """Of inputs or of labels: what it gives now is served."""
    extract(net, make_data(folder), tmp_path / "store")
    data = make_data(folder, **options)
    for _ in range(2):
        assert is_live(extract(net, data, tmp_path / "store"), net, data)


def test_the_code_of_a_transform_counts(folder, net, tmp_path, monkeypatch):
    """The same name, the same file, other code."""
    extract(net, make_data(folder, transform=half), tmp_path / "store")
    monkeypatch.setattr(half, "__code__", third.__code__)
    made = extract(net, make_data(folder, transform=half), tmp_path / "store")
    assert made.report.rows_computed == ROWS
    assert is_live(made, net, make_data(folder, transform=third))


class Scaled:
    """Reads a number from a file, each time or once."""

    def __init__(self, path, keeps):
        self.path = path
        self.keeps = keeps
        self.factor = None

    def __call__(self, image):
        factor = self.factor
        if factor is None:
            with open(self.path) as file:
                factor = float(file.read())
            if self.keeps:
                self.factor = factor
        return TO_TENSOR(image) * factor


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_side_file_counts(keeps, workers, folder, net, tmp_path):
    """A file that a transform reads, for each sample or once, is a part of every sample."""
    side = tmp_path / "side.txt"
    side.write_text("1.0")
    time.sleep(0.15)
    make = lambda: make_data(folder, transform=Scaled(str(side), keeps))  # noqa: E731
    extract(net, make(), tmp_path / "store", num_workers=workers)
    side.write_text("2.0")
    made = extract(net, make(), tmp_path / "store", num_workers=workers)
    assert made.report.rows_computed == ROWS
    assert is_live(made, net, make())


class Raw(Dataset):
    """Rows of bytes, read from files in one of many ways."""

    def __init__(self, paths, how):
        self.paths = paths
        self.how = how

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, at):
        return torch.tensor(list(self.how(self.paths[at])), dtype=torch.float32).reshape(3, 8, 8) / 255, at % 2


def by_open(path):
    with open(path, "rb") as file:
        return file.read()


def by_pathlib(path):
    return Path(path).read_bytes()


def by_numpy(path):
    return np.fromfile(path, np.uint8)


def by_memmap(path):
    return np.array(np.memmap(path, np.uint8, "r"))


def by_descriptor(path):
    number = os.open(path, os.O_RDONLY)
    try:
        return os.read(number, 192)
    finally:
        os.close(number)


def by_c(path):
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(path.encode(), b"rb")
    buffer = ctypes.create_string_buffer(192)
    libc.fread(buffer, 1, 192, ctypes.c_void_p(file))
    libc.fclose(ctypes.c_void_p(file))
    return buffer.raw


def by_process(path):
    return subprocess.run(["cat", path], capture_output=True, check=True).stdout


def by_torchvision(path):
    return torchvision.io.read_file(path)


def by_torch(path):
    return torch.from_file(path, size=192, dtype=torch.uint8)


WAYS = [by_open, by_pathlib, by_numpy, by_memmap, by_descriptor, by_c, by_process, by_torchvision, by_torch]


@pytest.mark.filterwarnings("ignore:.*TorchVision are deprecated:DeprecationWarning")
@pytest.mark.parametrize("how", WAYS)
def test_every_way_to_read_a_file_is_seen_or_not_believed(how, net, tmp_path):
    """Edited in place with size and time put back, whatever opened it."""
    paths = [tmp_path / f"{at}.raw" for at in range(40)]
    for at, path in enumerate(paths):
        path.write_bytes(np.random.default_rng(at).integers(0, 256, 192, np.uint8).tobytes())
    time.sleep(0.15)
    names = [str(path) for path in paths]
    extract(net, Raw(names, how), tmp_path / "store")
    was = paths[17].stat()
    paths[17].write_bytes(bytes(192))
    os.utime(paths[17], ns=(was.st_atime_ns, was.st_mtime_ns))
    made = extract(net, Raw(names, how), tmp_path / "store")
    assert made.report.rows_computed == 1
    assert is_live(made, net, Raw(names, by_open))


def test_data_sets_made_of_others_are_known(folder, net, tmp_path, reads):
    """Parts and joins of known data sets are known, too, and share rows."""
    data = make_data(folder)
    extract(net, data, tmp_path / "store")
    for made_of in (lambda: Subset(make_data(folder), [5, 1, 7]), lambda: ConcatDataset([make_data(folder)] * 2)):
        made = extract(net, made_of(), tmp_path / "store")
        assert made.report.rows_computed == 0
        reads.clear()
        assert extract(net, made_of(), tmp_path / "store").report.rows_computed == 0
        assert len(reads) <= FEW
        assert is_live(made, net, made_of())


def test_another_directory_is_other_files(folder, net, tmp_path, monkeypatch):
    """Relative paths mean what they mean where they are used."""
    shutil.copytree(folder, tmp_path / "other" / "images")
    picture(99).save(tmp_path / "other" / "images" / "cat" / "00.png")
    monkeypatch.chdir(tmp_path)
    extract(net, make_data("images"), tmp_path / "store")
    monkeypatch.chdir(tmp_path / "other")
    made = extract(net, make_data("images"), tmp_path / "store")
    assert made.report.rows_computed == 1
    assert is_live(made, net, make_data("images"))


def test_another_process_believes_it(folder, net, tmp_path):
    """With another hash seed, too: the parts of a data set do not depend on the process."""
    program = (
        "import sys; from torchvision.datasets import ImageFolder; from torchvision.transforms import v2; import torch;"
        "from torch.utils.data import default_collate; from forethought.identifying.account import parts_of;"
        "print(sorted(parts_of(ImageFolder(sys.argv[1], transform=v2.Compose([v2.ToImage(), "
        "v2.ToDtype(torch.float32, scale=True)])), default_collate, 1).items()))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {str(sorted(parts_of(make_data(folder), torch.utils.data.default_collate, 1).items())) + "\n"}


@pytest.mark.parametrize("damage", ["torn", "flipped", "foreign", "empty"])
def test_a_damaged_manifest_is_none(damage, folder, net, tmp_path):
    """The samples are read, nothing is computed, and the next manifest is whole."""
    extract(net, make_data(folder), tmp_path / "store")
    (path,) = (tmp_path / "store" / "manifests").rglob("*.manifest")
    raw = path.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 1
    path.write_bytes({"torn": raw[:-9], "flipped": bytes(flipped), "foreign": b"x" * 400, "empty": b""}[damage])
    made = extract(net, make_data(folder), tmp_path / "store")
    assert made.report.rows_computed == 0
    assert is_live(made, net, make_data(folder))
    assert path.read_bytes()[:64] != path.read_bytes()[64:128]


def test_a_readonly_store_is_believed_and_not_written(folder, net, tmp_path, reads):
    """A hit works where nothing can be written."""
    extract(net, make_data(folder), tmp_path / "store")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*"))
    reads.clear()
    made = extract(net, make_data(folder), ft.Store(tmp_path / "store", readonly=True))
    assert is_live(made, net, make_data(folder))
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")) == before


class Several(Dataset):
    """Targets of many kinds."""

    def __init__(self, paths, kind):
        self.paths = paths
        self.kind = kind

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, at):
        with open(self.paths[at], "rb") as file:
            x = torch.tensor(list(file.read()[:192]), dtype=torch.float32).reshape(3, 8, 8)
        targets = {
            "none": (), "int": (at,), "text": (f"name {at}",), "two": (at, torch.tensor([at / 3, float("nan")])),
            "dict": ({"a": at, "b": f"{at}"},), "float": (at / 7,),
        }  # fmt: skip
        return (x, *targets[self.kind]) if targets[self.kind] else x


@pytest.mark.parametrize("kind", ["none", "int", "text", "two", "dict", "float"])
def test_targets_come_back_as_they_were(kind, folder, net, tmp_path):
    """To the last bit and of the same kind, from the manifest as from the samples."""
    paths = sorted(map(str, folder.rglob("*.png")))
    first = extract(net, Several(paths, kind), tmp_path / "store")
    again = extract(net, Several(paths, kind), tmp_path / "store")
    assert repr(first.targets) == repr(again.targets)
    assert again.report.rows_computed == 0


stamps = st.tuples(*[st.integers(0, 2**63 - 1)] * 4)
names = st.text(st.characters(exclude_characters="\0"), min_size=1)  # halves of surrogates too: bytes no encoding has
plain = st.recursive(st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
                     lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner))  # fmt: skip


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.tuples(names, stamps), min_size=1, max_size=4, unique_by=lambda pair: pair[0]),
    st.integers(1, 5), st.booleans(), st.data(),
)  # fmt: skip
def test_a_manifest_comes_back_as_it_was_written(files, rows, paired, data):
    """Any names of files, any plain targets."""
    keys = np.random.default_rng(rows).integers(0, 256, (rows, 16), np.uint8)
    targets = ([data.draw(plain) for _ in range(rows)], {"x": torch.arange(rows)})
    file_of = np.array([at % len(files) for at in range(rows)]) if paired else None
    was = Manifest(keys, targets, tuple(files), file_of, (0,), {"name": "x"})
    again = Manifest.from_bytes(was.to_bytes())
    assert repr((again.keys, again.targets, again.files, again.shared, again.facts)) == repr(
        (was.keys, was.targets, was.files, was.shared, was.facts)
    )
    assert (again.file_of is None) == (file_of is None)
    assert file_of is None or (again.file_of == file_of).all()


@settings(max_examples=60, deadline=None, database=None)
@given(st.binary(max_size=300), st.integers(0, 10**6))
def test_no_bytes_make_a_manifest_but_those_of_one(noise, at):
    """Anything else is none, and no error."""
    raw = bytearray(Manifest(np.zeros((2, 16), np.uint8), None, (), None, (), {}).to_bytes())
    raw[at % len(raw) :] = noise
    made = Manifest.from_bytes(bytes(raw))
    assert made is None or made.keys.shape == (len(made.keys), 16)


def test_a_file_that_changes_while_samples_are_read_proves_nothing():
    """Two stamps of one file in one reading: neither is believed."""
    files = OpenedFiles(2, None)
    files.note([0, 1], [Seen({"a": (1, 2, 3, 4)}), Seen({"a": (1, 2, 3, 5)})])
    made = files.manifest(np.zeros((2, 16), np.uint8), None, {})
    assert made.files == (("a", UNPROVEN),)
    assert not made.believed(made.changed_files()).any()


def test_what_is_written_or_opened_elsewhere_does_not_count(tmp_path):
    """A watch sees what is read within it."""
    with open(tmp_path / "before", "w"), Watch() as seen, open(tmp_path / "log", "w") as log:
        log.write("x")
    (tmp_path / "after").write_text("x")
    assert seen == Seen()
