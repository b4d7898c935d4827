"""`forethought store`: it sees what `forethought extract` stored, says what to type next, and only reads."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
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

class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, at):
        return tensors()[at] + torch.randn(3, 16, 16)

noisy = Noisy()

def frozen():
    import forethought as ft
    made = model().eval()
    ft.freeze(made, until="4")
    return made
"""
MINE = ("--transform", "job.py:transform")


@pytest.fixture
def run(run_here, tmp_path):
    """Run the command line in a folder with a script in it."""
    (tmp_path / "job.py").write_text(JOB)
    return run_here


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


def test_verify_on_the_command_line_draws_views_again(run, tmp_path):
    """Each view is compared with the same draws, by its number; other draws have no row, and that is an error."""
    (tmp_path / "fill.py").write_text(
        "import forethought as ft, job\nft.extract(job.frozen(), job.noisy, 'store', views=2, seed=7, progress=False)\n"
    )
    subprocess.run([sys.executable, "fill.py"], cwd=tmp_path, check=True, timeout=120)
    live = ("--live", 10, "--model", "job.py:frozen", "--data", "job.py:noisy")
    found = run("store", "verify", "store", *live, "--views", 2, "--views-seed", 7)
    assert found.code == 0, found.err
    for view in (0, 1):
        assert f"live, as exact, view {view}: right: 10 of 10 rows" in found.out
    other = run("store", "verify", "store", *live, "--views", 2, "--views-seed", 8)
    assert other.code == 1
    assert "got none" in other.err
    assert "--views with --live" in run("store", "verify", "store", "--views", 2).err


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_what_is_no_store_is_said_with_a_command(run, command):
    """Somebody at a shell is told what to type there."""
    said = run("store", command, "nothing").err
    assert "got none. Check the path (ls), or fill it: forethought extract DATA" in said
    assert "Store(" not in said


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_store_without_its_marker_is_said_to_be_one(run, tmp_path, command):
    """A copy that is not done, or a lost file: the command that makes it whole, and nothing about making another."""
    (tmp_path / "copied" / "tables" / "ab").mkdir(parents=True)
    said = run("store", command, "copied").err
    assert "got no forethought.json yet." in said
    assert "echo '{\"format\": 1}' >" in said
    assert "Store(" not in said
    assert "forethought extract" not in said


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


# ------------------------------------------------------------------------------------- rights, interrupts, half-written


def tree(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in folder.rglob("*")}


COMMANDS = {
    "ls": ("ls", "thoughts"),
    "verify": ("verify", "thoughts"),
    "gc": ("gc", "thoughts", "--dry-run"),
    "explain": ("explain", "job.py:tensors", "job.py:frozen"),
    "live": ("verify", "thoughts", "--live", 8, "--model", "job.py:frozen", "--data", "job.py:tensors"),
}


@pytest.fixture
def thoughts(tmp_path):
    """A store of what the script's model says of its data, and of another table that a kill left half-written."""
    scope = {}
    exec(JOB, scope)
    ft.extract(scope["frozen"](), scope["tensors"](), tmp_path / "thoughts", segment_rows=10, progress=False)
    (table,) = (tmp_path / "thoughts" / "tables").iterdir()
    half = table.with_name("ab" * 16)
    half.mkdir()
    (half / f".{'0' * 32}.safetensors.1234.tmp").write_bytes(b"x" * 100)
    return tmp_path / "thoughts"


NOBODY = """
import contextlib, io, json, os, sys
from forethought.cli import main

def run(arguments, store):
    sys.argv = ["forethought", "store", *(store if word == "thoughts" else word for word in arguments)]
    sys.argv += ["--store", store] * (arguments[0] == "explain")
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            code = left.code
    return code, out.getvalue(), err.getvalue()

commands = json.loads(sys.argv[1])
for command in commands:  # what is imported on the way is root's to read
    run(command, "warm")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(json.dumps([run(command, "thoughts") for command in commands]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_commands_serve_a_user_who_may_only_read(thoughts):
    """As an unprivileged user on another's store: an answer as text and as JSON, and not a write; gc says whom to be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for store in ("thoughts", "warm"):
            shutil.copytree(thoughts, folder / store)
        (folder / "job.py").write_text(JOB)
        before = tree(folder / "thoughts")
        asked = [[*map(str, command), *form] for command in COMMANDS.values() for form in ([], ["--json"])]
        asked.append(["gc", "thoughts", "--max-size", "0", "--yes"])
        environment = {**os.environ, "HOME": "/nonexistent", "PYTHONPATH": str(Path(ft.__file__).parents[1])}
        command = [sys.executable, "-B", "-W", "error", "-c", NOBODY, json.dumps(asked)]
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        *looks, last = json.loads(ran.stdout)
        for arguments, (code, out, err) in zip(asked, looks, strict=False):
            assert (code or 0, err) == (0, ""), arguments
            assert json.loads(out) if "--json" in arguments else out
        assert "40 of 40 rows are stored" in looks[6][1]
        assert last[0] == 1
        assert "Cannot remove" in last[2]
        assert "Run it as the user who owns the store." in last[2]
        assert tree(folder / "thoughts") == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_in_the_middle_is_said_and_changes_nothing(run, thoughts, monkeypatch, command):
    """At any call that looks at a file, now or later: status 130, one line, and the store as it was."""
    from forethought.store import Folder

    (thoughts.parent / "job.py").write_text(JOB)
    before, real = tree(thoughts), Folder.get
    for at in (0, 1, 3, 6):
        left = [at]

        def get(self, path, most_bytes, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(self, path, most_bytes)

        monkeypatch.setattr(Folder, "get", get)
        ended = run("store", *COMMANDS[command])
        monkeypatch.setattr(Folder, "get", real)
        assert ended.code in (0, 130)
        assert ended.code == 0 or ended.err.splitlines()[-1] == "Interrupted. Nothing was changed."
        assert ended.code == 130 or at > 0
        assert tree(thoughts) == before


def test_an_interrupted_gc_is_gone_on_with(run, thoughts, monkeypatch):
    """What went is gone, the rest is there, and the next run takes it; rows that stay are right all the time."""
    from forethought.housekeeping import garbage

    (thoughts.parent / "job.py").write_text(JOB)
    real, left = garbage.remove, [2]

    def remove(store, path):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(store, path)

    monkeypatch.setattr(garbage, "remove", remove)
    ended = run("store", "gc", "thoughts", "--max-size", "0", "--yes")
    assert (ended.code, ended.err.splitlines()[-1]) == (
        130, "Interrupted. What was removed by then is gone; run it again for the rest.",
    )  # fmt: skip
    assert run("store", "verify", "thoughts").code == 0
    monkeypatch.setattr(garbage, "remove", real)
    assert run("store", "gc", "thoughts", "--max-size", "0", "--yes").code == 0
    assert not list(thoughts.glob("tables/*/*.safetensors"))


# -------------------------------------------------------------------------------------------- what explain must name


CHANGES = {
    "a weight": ("    return made", "    made[0].weight.data[0, 0, 0, 0] += 1e-7\n    return made", "0.weight"),
    "a statistic": ("    return made", "    made[1].running_var[3] *= 1.0000001\n    return made", "1.running_var"),
    "a mode": ("    return made", "    torch.backends.cudnn.allow_tf32 = made is None\n"
               "    torch.set_float32_matmul_precision('high')\n    return made", "numeric settings"),
    "the forward": ("nn.ReLU()", "nn.GELU()", "operations"),
    "an attribute": ("    return made", "    made[1].eps = 0.5\n    return made", "operations"),
    "the head alone": ("nn.Linear(32, 7)", "nn.Linear(32, 9)", None),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_explain_names_what_changed_of_the_model(run, thoughts, change):
    """On the command line, in a word that is in the model's own names; a change of the head alone is none."""
    old, new, named = CHANGES[change]
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    text = JOB if old == "    return made" else JOB.replace(old, new)
    head, _, tail = text.rpartition("    return made")
    (thoughts.parent / "job.py").write_text(head + (new if old == "    return made" else "    return made") + tail)
    try:
        said = json.loads(run("store", "explain", "job.py:tensors", "job.py:frozen", "--json").out)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    if named is None:
        assert said["stored"] == 40
    else:
        assert said["stored"] == 0
        assert named in said["trunk"]["changed"]
        assert abs(said["trunk"]["since"] - time.time()) < 600


def test_explain_names_a_version_of_torch(run, thoughts, monkeypatch):
    """Rows of another version of torch, where that separates rows."""
    (thoughts.parent / "job.py").write_text(JOB)
    monkeypatch.setattr(torch, "__version__", "3.0.1")
    said = json.loads(run("store", "explain", "job.py:tensors", "job.py:frozen", "--json").out)
    assert (said["stored"], said["trunk"]["changed"]) == (0, ["torch"])


def test_explain_names_a_file_that_was_edited_with_its_size_and_time_kept(run, pictures):
    """By its content's other time of change; its row alone would be computed."""
    assert run("extract", pictures, "--model", "job.py:model", *MINE).code == 0
    edited = pictures / "odd" / "grey.png"
    was, raw = edited.stat(), bytearray(edited.read_bytes())
    Image.new("L", (30, 20), 7).save(edited)
    changed = edited.read_bytes()
    edited.write_bytes(changed[: len(raw)].ljust(len(raw), b"\0"))
    os.utime(edited, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (edited.stat().st_size, edited.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    said = json.loads(run("store", "explain", pictures, "job.py:model", *MINE, "--json").out)
    assert (said["stored"], said["files"]) == (7, [str(edited)])


def test_explain_names_a_parameter_of_a_transform_and_its_code(run, pictures):
    """A number in it, or what its function does: the transform is named, the model is as it was."""
    text = JOB.replace(
        "T.ToTensor()])", "T.ToTensor(), as_it_is])\n\ndef as_it_is(picture):\n    return picture * 1.0\n"
    )
    (pictures.parent / "job.py").write_text(text)
    assert run("extract", pictures, "--model", "job.py:model", *MINE).code == 0
    for old, new in (("T.Resize(16)", "T.Resize(17)"), ("picture * 1.0", "picture * 0.5")):
        (pictures.parent / "job.py").write_text(text.replace(old, new))
        said = json.loads(run("store", "explain", pictures, "job.py:model", *MINE, "--json").out)
        assert said["trunk"]["is_known"]
        assert not said["data"]["is_known"]
        assert any("prepare" in part or "transform" in part for part in said["data"]["changed"]), said["data"]
        assert said["stored"] < 8
