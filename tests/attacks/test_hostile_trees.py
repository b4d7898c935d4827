"""Trees and sealed facts that lie, through every command that looks at a store: an answer or an error of ours, no hang, no
other folder touched, and no wrong row."""

import json
import os
import shutil
import socket
import struct
import time
import warnings

import numpy as np
import pytest
import torch
from forgery import places_in, sealed, with_part
from torch import nn
from torch.utils.data import Dataset

import forethought as ft
from forethought.errors import ForethoughtError
from forethought.housekeeping import find_garbage, inventory, remove_garbage, verify_store
from forethought.report import gather, summarize
from forethought.store import DamagedSegmentWarning, Store

pytestmark = pytest.mark.timeout(120)  # a hang is what these look for

NASTY = [
    float("nan"), float("inf"), -1, 10**400, 1e308, 2**63, -(2**63), True, None, "", "\0", "a\0b", "../../x", "/etc/passwd",
    "\ud800", "é", "é", "\n", [], {}, [[]], [10**30], ["\0"], {"\0": 1}, [None], {"a": {"b": {"c": []}}},
]  # fmt: skip


class Files(Dataset):
    """Numbers in files, one a sample: what a manifest is kept of."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, at):
        with open(self.paths[at]) as file:
            return torch.tensor([float(word) for word in file.read().split()]), at


def model():
    torch.manual_seed(0)
    return ft.freeze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), until="1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of files, with all that a store can hold, and the files beside it."""
    folder = tmp_path_factory.mktemp("trees")
    for at in range(6):
        (folder / f"{at}.txt").write_text(f"{at} 1 2 3")
    time.sleep(0.15)
    ft.extract(model(), files_of(folder), folder / "store", progress=False)
    ft.extract(model(), files_of(folder), folder / "store", dtype="int8", progress=False)
    (folder / "store" / "claims").mkdir(exist_ok=True)
    (folder / "store" / "claims" / "00ff").write_bytes(b"x")
    assert list(folder.glob("store/manifests/*/*"))
    assert list(folder.glob("store/ledger/*"))
    return folder


def files_of(folder):
    return Files([str(folder / f"{at}.txt") for at in range(6)])


def looks(folder, store):
    """Ask everything that can be asked of a store; what is said must be said by us."""
    net = model()
    net[0].weight.data[0, 0] += 1
    asked = {
        "ls": lambda: [held.to_dict() for held in inventory(Store(store, readonly=True))],
        "verify": lambda: verify_store(Store(store, readonly=True)).to_dict(),
        "gc": lambda: find_garbage(Store(store, readonly=True), unreachable=True, max_size_bytes=0, unused_s=0.0).to_dict(),
        "explain": lambda: str(ft.explain(model(), files_of(folder), Store(store, readonly=True))),
        "explain another": lambda: str(ft.explain(net, files_of(folder), Store(store, readonly=True))),
"report": lambda: str(summarize(gather(store))),
    }  # fmt: skip
    for name, look in asked.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DamagedSegmentWarning)
                found = look()
        except ForethoughtError:
            continue
        except Exception as err:
            raise AssertionError(f"{name} failed with {type(err).__name__}: {err}") from err
        json.dumps(found, default=str)


def serves_right(folder, store):
    """Extract, and compare with the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            features = ft.extract(model(), files_of(folder), store, progress=False)
        except ForethoughtError:
            return
    with torch.no_grad():
        live = model()[:2](torch.stack([files_of(folder)[at][0] for at in range(6)]))
    assert np.array_equal(features.numpy(), live.numpy())
    assert list(features.targets) == list(range(6))


# ------------------------------------------------------------------------------------------------- what lies in the tree


def put(path, kind):
    """Have something else in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        before = os.getcwd()
        os.chdir(path.parent)
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name[:90])
        finally:
            os.chdir(before)
    elif kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(b"x")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "root": "/", "up": "..", "nowhere": "nowhere"}[kind])


KINDS = ["pipe", "socket", "folder", "file", "empty", "device", "loop", "up", "nowhere"]


@pytest.mark.parametrize("kind", KINDS)
def test_anything_in_the_place_of_any_file_or_folder(folder, tmp_path, kind):
    """Of the marker, notes, manifests, segments, claims and the ledger, and of the folders that hold them."""
    source = folder / "store"
    for at, path in enumerate(sorted(source.rglob("*"))):
        if (at + KINDS.index(kind)) % 3:  # each meets three kinds
            continue
        store = shutil.copytree(source, tmp_path / "copy", symlinks=True)
        put(store / path.relative_to(source), kind)
        looks(folder, store)
        serves_right(folder, store)
        shutil.rmtree(store)


def test_names_that_no_store_gives(folder, tmp_path):
    """Capitals, unicode in both forms, newlines, the longest names, links in circles: left alone, and nothing is thrown."""
    store = shutil.copytree(folder / "store", tmp_path / "copy")
    (table,) = [path for path in store.glob("tables/*") if len(list(path.iterdir())) > 1][:1]
    names = [table.name.upper(), "é", "é", "a\nb", ".hidden", "-rf", "x" * 250, "ab ", "0x1f", " ", "\udcff"]
    for name in names:
        shutil.copytree(table, store / "tables" / name, dirs_exist_ok=True)
        (store / "notes" / name).mkdir(exist_ok=True)
        (store / "manifests" / name).mkdir(exist_ok=True)
        (store / "notes" / name / f"{name[:100]}.note").write_bytes(b"x")
        shutil.copy(next(table.glob("*.safetensors")), table / f"{name[:200]}.safetensors")
    (store / "tables" / "aa").symlink_to(".")
    (store / "tables" / "bb").symlink_to("../tables")
    (store / "tables" / "cc").symlink_to(store.parent)
    (store / "notes" / "aa").symlink_to("..")
    looks(folder, store)
    serves_right(folder, store)


def test_removing_garbage_touches_nothing_outside(folder, tmp_path):
    """Links to other folders and hard links to other files: what they name stays, byte for byte."""
    outside = tmp_path / "outside"
    shutil.copytree(folder / "store" / "tables", outside / "tables")
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    store = shutil.copytree(folder / "store", tmp_path / "copy")
    for at, path in enumerate(sorted(outside.glob("tables/*"))):
        (store / "tables" / f"{at:02x}").symlink_to(path)
        for segment in path.glob("*.safetensors"):
            os.link(segment, store / "tables" / path.name / f"linked{at}.safetensors")
    shutil.rmtree(store / "notes")
    (store / "notes").symlink_to(outside)
    opened = Store(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({"unreachable": True}, {"max_size_bytes": 0}, {"unused_s": 0.0}):
            remove_garbage(opened, find_garbage(opened, **options))
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before
    serves_right(folder, store)


# ------------------------------------------------------------------------------------------------------ facts that lie


def written(value):
    return json.dumps(value, separators=(",", ":")).encode()


@pytest.mark.slow
def test_sealed_notes_that_say_anything(folder, tmp_path):
    """Each part of each note by some value that no program of ours writes: numbers that are none, names with a zero byte."""
    source, turn = folder / "store", 0
    for note in sorted([*source.glob("notes/*/*.note"), *source.glob("tables/*/table.note")]):
        key = note.parent.name if note.name == "table.note" else note.stem
        value = json.loads(note.read_bytes().partition(b"\n")[2])
        for place in places_in(value):
            turn += 1
            if len(place) > 2 and turn % 4:  # long lists are alike
                continue
            store = shutil.copytree(source, tmp_path / "copy")
            raw = written(with_part(value, place, NASTY[turn % len(NASTY)]))
            (store / note.relative_to(source)).write_bytes(sealed(key, raw))
            looks(folder, store)
            if turn % 4 == 0:
                serves_right(folder, store)
            shutil.rmtree(store)


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows":1,"rows":' + b"9" * 4000 + b"}",
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"when":' + b"9" * 5000 + b"}",
        b'{"when":1e400,"table":"ab","rows":-0.0}',
        b'{"columns":[],"provenance":{"parts":{},"when":1e300}}',
        b'{"\\u0000":{"\\ud800":"\\udfff"}}',
        b'{"when":"\\ud800","parts":{"\\ud800":"\\ud800"}}',
    ],
)
def test_sealed_notes_of_odd_json(folder, tmp_path, body):
    """Keys named twice, deep nesting, numbers of thousands of digits, halves of characters."""
    source = folder / "store"
    for note in sorted([*source.glob("notes/*/*.note"), *source.glob("tables/*/table.note")]):
        store = shutil.copytree(source, tmp_path / "copy")
        key = note.parent.name if note.name == "table.note" else note.stem
        (store / note.relative_to(source)).write_bytes(sealed(key, body))
        looks(folder, store)
        serves_right(folder, store)
        shutil.rmtree(store)


def test_sealed_manifests_that_say_anything(folder, tmp_path):
    """Paths with a zero byte, files that all samples share by numbers that are none, stamps of no file: not believed, or
    believed only for what the keys say; the rows are right for the samples as they were read."""
    source = folder / "store"
    (manifest,) = source.glob("manifests/*/*.manifest")
    raw = manifest.read_bytes()[65:]
    (length,) = struct.unpack("<Q", raw[:8])
    header, content = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    facts = json.loads(header["__metadata__"]["manifest"])
    turn = 0
    for place in places_in(facts):
        for part in (NASTY[(turn + step) % len(NASTY)] for step in (0, 11)):
            turn += 1
            plant(source, tmp_path, manifest, header, content, with_part(facts, place, part))
            looks(folder, tmp_path / "copy")
            if not place or place[0] != "targets":  # who can seal can say which labels there were
                serves_right(folder, tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")
    begin, end = header["paths"]["data_offsets"]
    for text in (
        ["\0"] * 6,
        ["a" * 10**5] * 6,
        ["\ud800"] * 6,
        ["/dev/zero"] * 6,
        [".."] * 6,
        [1] * 6,
        {},
        "x",
        ["~"] * 6,
    ):
        new = json.dumps(text).encode()[: end - begin].ljust(end - begin)
        plant(source, tmp_path, manifest, header, content[:begin] + new + content[end:], facts)
        looks(folder, tmp_path / "copy")
        serves_right(folder, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")


def plant(source, tmp_path, manifest, header, content, facts):
    store = shutil.copytree(source, tmp_path / "copy")
    text = json.dumps(header | {"__metadata__": {"manifest": json.dumps(facts)}}).encode()
    text += b" " * (-len(text) % 8)
    body = struct.pack("<Q", len(text)) + text + content
    (store / manifest.relative_to(source)).write_bytes(sealed(manifest.stem, body))
