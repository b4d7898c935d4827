"""`forethought store`: it sees what `forethought extract` stored, says what to type next, and only reads."""

import json
import os
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
from forethought import cli
from forethought.extracting import pace
from forethought.extracting.ways import SpeedReport, Way, WayTried
from forethought.housekeeping import verify_live_each

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")
torch.set_num_threads(1)

JOB = """
import torch
from torch import nn
from torchvision import transforms as T

def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(32, 7))

def transform():
    return T.Compose([T.Resize(16), T.CenterCrop(16), T.ToTensor()])

def tensors():
    import torch, forethought as ft
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))

def frozen():
    import forethought as ft
    made = model().eval()
    ft.freeze(made, until="4")
    return made
"""
MINE = ("--transform", "job.py:transform")


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Run the command line in this process, in a folder of its own with a script in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["forethought", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        return SimpleNamespace(code=left.value.code or 0, out=out, err=err)

    return call


@pytest.fixture
def pictures(tmp_path):
    """Pictures of each kind that libraries read otherwise than one another."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos" / "odd"
    folder.mkdir(parents=True)
    deep = rng.integers(0, 2**16, (20, 30), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "sixteen.png")
    flat = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    flat.save(folder / "turned.jpg", exif=exif)
    flat.quantize(16).save(folder / "palette.png")
    flat.quantize(16).save(folder / "palette_clear.png", transparency=3)
    Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)).save(folder / "alpha.png")
    flat.convert("L").save(folder / "grey.png")
    flat.convert("CMYK").save(folder / "cmyk.jpg")
    flat.convert("1").save(folder / "bits.png")
    time.sleep(0.15)
    return tmp_path / "photos"


def test_explain_and_verify_read_pictures_as_extract_does(run, pictures):
    """16 bits, turned by EXIF, palettes, alpha: what was stored a moment ago is found, and is right."""
    assert run("extract", pictures, "--model", "job.py:model", *MINE).code == 0
    for manifest in (pictures.parent / "thoughts").rglob("*.manifest"):
        manifest.unlink()  # so that samples are read
    told = run("store", "explain", pictures, "job.py:model", *MINE)
    assert "8 of 8 rows are stored; 0 would be computed." in told.out
    live = ("--live", 8, "--model", "job.py:model", "--data", pictures, *MINE)
    found = run("store", "verify", "thoughts", *live)
    assert (found.code, "live: right: 8 of 8 rows" in found.out) == (0, True)


def test_explain_of_a_table_and_other_options(run, pictures, tmp_path):
    """A CSV, a cut and a dtype: whatever `extract` was given is given to `explain`."""
    paths = sorted(str(path) for path in pictures.rglob("*.*"))
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{path},x\n" for path in paths))
    options = ("--at", "2", "--dtype", "float16")
    assert run("extract", "list.csv", "--model", "job.py:model", *MINE, *options).code == 0
    asked = ("store", "explain", "list.csv", "job.py:model", *MINE)
    assert "8 of 8 rows are stored" in run(*asked, *options).out
    exact = run(*asked, "--at", "2")
    assert "0 of 8 rows are stored; 8 would be computed." in exact.out
    assert "the frozen part: as it was recorded" in exact.out
    assert "stored as float16, for who asks for that: 8 rows" in exact.out
    told = json.loads(run(*asked, "--at", "2", "--json").out)
    assert (told["stored"], told["otherwise"]) == (0, [["float16", 8]])


@pytest.fixture
def folding(monkeypatch):
    """Have one way chosen, however fast it is here."""

    def choose(split, samples, device, tolerance, batch_size, room):
        way = Way(folded=True)
        tried = (WayTried(way, 1.0, 1.0, 0.0),)
        return SpeedReport(way, tried, tolerance, 0.0, 1, device.type, 1, 0.1)

    monkeypatch.setattr(pace, "choose", choose)


def conv(seed=0):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 2))
    return ft.freeze(made.eval(), until="3")


def test_verify_live_finds_rows_in_each_way_in_which_they_are_stored(tmp_path, folding):
    """Fast ones against what was allowed, rounded ones against their rounding, exact ones to the last bit."""
    data = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    store = ft.Store(tmp_path / "store")
    fast = ft.extract(conv(), data, store, speed="fast", progress=False)
    assert not fast.report.speed.way.is_exact
    ft.extract(conv(), data, store, dtype="int8", progress=False)
    alone = verify_live_each(ft.Store(store.path, readonly=True), conv(), data, 16)
    assert set(alone) == {fast.report.speed.way.name, "int8"}
    ft.extract(conv(), data, store, progress=False)
    found = verify_live_each(ft.Store(store.path, readonly=True), conv(), data, 16)
    assert set(found) == {"exact", fast.report.speed.way.name, "int8"}
    assert all(each.is_right and each.rows == 16 for each in found.values())
    assert found["exact"].exact_rows == 16
    other = ft.Store(tmp_path / "other")
    assert ft.extract(conv(), data, other, speed="fast", dtype=torch.float16, progress=False).report.rows == 40
    (way,) = verify_live_each(other, conv(), data, 16)
    assert way.endswith(", float16")


def test_verify_on_the_command_line_finds_fast_rows(run, folding, tmp_path):
    """The table of another way is named with its way, and counted; a wrong row in it is status 1."""
    scope = {}
    exec(JOB, scope)
    ft.extract(scope["frozen"](), scope["tensors"](), tmp_path / "store", speed="fast", progress=False)
    live = ("--live", 10, "--model", "job.py:frozen", "--data", "job.py:tensors")
    found = run("store", "verify", "store", *live)
    assert found.code == 0, found.err
    assert "live, as " in found.out
    assert "10 of 10" in found.out or "10 rows" in found.out


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_what_is_no_store_is_said_with_a_command(run, command):
    """Somebody at a shell is told what to type there."""
    said = run("store", command, "nothing").err
    assert "got none. Check the path (ls), or fill it: forethought extract DATA" in said
    assert "Store(" not in said


def test_explain_where_an_extraction_was_killed_before_its_first_row(run, pictures, tmp_path):
    """A table's folder without a note, or with a torn one, is no table yet: it is explained, not tripped over."""
    assert run("extract", pictures, "--model", "job.py:model", *MINE).code == 0
    (table,) = (tmp_path / "thoughts" / "tables").iterdir()
    empty, torn = (table.with_name(letter * 32) for letter in "ab")
    empty.mkdir()
    torn.mkdir()
    (torn / "table.note").write_bytes((table / "table.note").read_bytes()[:70])
    asked = ("store", "explain", pictures, "job.py:model", *MINE)
    assert "8 of 8 rows are stored" in run(*asked).out
    (table / "table.note").unlink()  # the rows say what they are
    assert "8 of 8 rows are stored" in run(*asked).out
    shutil.rmtree(table)
    table.mkdir()
    assert "0 of 8 rows are stored" in run(*asked).out


def test_commands_write_nothing_into_a_store_that_they_read(run, pictures, tmp_path):
    """Not a byte, not a time: ls, verify, explain, a dry gc, also with --live and of a changed model."""
    assert run("extract", pictures, "--model", "job.py:model", *MINE).code == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "thoughts").rglob("*")}
    (tmp_path / "job.py").write_text(JOB.replace("manual_seed(3)", "manual_seed(4)"))
    for options in (
        ("ls", "thoughts"), ("verify", "thoughts"), ("gc", "thoughts", "--dry-run"),
        ("gc", "thoughts", "--dry-run", "--max-size", "0"), ("explain", pictures, "job.py:model", *MINE),
        ("verify", "thoughts", "--live", 8, "--model", "job.py:model", "--data", pictures, *MINE),
    ):  # fmt: skip
        run("store", *options)
        run("store", *options, "--json")
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "thoughts").rglob("*")}
    assert after == before
    assert os.listdir(tmp_path / "thoughts")
