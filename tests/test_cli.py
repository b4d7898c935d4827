"""The command line: data on stdout, talk on stderr, errors in one line, and a demo that can be interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import forethought as ft
from forethought import cli, store_cli
from forethought.demo import pitch
from forethought.demo.notes import Frames, Splits
from forethought.errors import MissingExtraError

torch.set_num_threads(1)

COMMANDS = ("demo", "doctor")
MAIN = "from forethought.cli import main; main()"
# Fewer epochs, pairs of timings and frames of the picture: what is shown is the same.
QUICK = f"""
import dataclasses
import forethought.demo.pitch as p
p.EPOCHS["tiny"], p.PAIRS["tiny"] = 2, 1
whole = p.glissando
def glissando():
    sweep = whole()
    return dataclasses.replace(sweep, audio=sweep.audio[:100], cents=sweep.cents[:100])
p.glissando = glissando
{MAIN}
"""


def call(*arguments, monkeypatch, capfd):
    """Run the command line in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["forethought", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capfd.readouterr()
    return SimpleNamespace(code=left.value.code or 0, out=out, err=err)


def test_the_package_runs_as_its_script():
    """`python -m forethought` works where the script is not on the path."""
    made = subprocess.run(
        [sys.executable, "-m", "forethought", "--version"], capture_output=True, text=True, check=True
    )
    assert metadata.version("forethought") in made.stdout


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command line in this process."""
    return lambda *arguments: call(*arguments, monkeypatch=monkeypatch, capfd=capfd)


def start(*arguments, code=MAIN):
    """Run the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def strict(text):
    """Read JSON as every other language reads it: without NaN and Infinity."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def is_one_line(text):
    return text.count("\n") == 1 and text.startswith("Error: ") and "Traceback" not in text


# ------------------------------------------------------------------------------------------------------- small commands


def test_the_command_is_installed():
    """`forethought` on the path is this `main`."""
    (entry,) = [e for e in metadata.entry_points(group="console_scripts") if e.name == "forethought"]
    assert entry.load() is cli.main


def test_help_lists_every_command(run):
    """Every command with what it does."""
    result = run("--help")
    assert result.code == 0
    assert "Think once, train many" in result.out
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", result.out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(run, command):
    """Each help text shows how it is called."""
    result = run(command, "--help")
    assert result.code == 0
    assert f"Example: forethought {command}" in result.out


def test_version_is_that_of_the_package(run):
    """One line, nothing else."""
    result = run("--version")
    assert (result.code, result.out, result.err) == (0, f"forethought {ft.__version__}\n", "")
    assert ft.__version__ == metadata.version("forethought")


def test_nothing_shows_help(run):
    """Without a command: help, and the status of misuse."""
    result = run()
    assert result.code == 2
    assert "Commands" in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "nope"),
        (["demo", "--nope"], "--nope"),
        (["demo", "--tiny", "--full"], "--tiny or --full"),
        (["doctor", "extra"], "extra"),
        (["--nope"], "--nope"),
    ],
)
def test_misuse_exits_with_2(run, arguments, says, tmp_path, monkeypatch):
    """Unknown words are named on stderr; nothing is made, nothing is printed."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.code == 2
    assert says in result.err
    assert result.out == ""
    assert not list(tmp_path.iterdir())


def test_doctor_is_for_people(run, tmp_path):
    """Sections, and the store that was asked for; nothing is made."""
    result = run("doctor", "--store", tmp_path / "none")
    assert (result.code, result.err) == (0, "")
    for section in ("versions", "machine", "devices", "energy", "store"):
        assert section in result.out.splitlines()
    assert not list(tmp_path.iterdir())


def test_doctor_json_is_json_and_nothing_else():
    """In a process of its own: stdout is one JSON object, stderr is empty."""
    process = start("doctor", "--json")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert strict(out)["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', "\x00"])
def test_doctor_outlives_a_broken_store(run, tmp_path, content):
    """A diagnosis says what is wrong instead of failing."""
    (tmp_path / "forethought.json").write_text(content)
    result = run("doctor", "--store", tmp_path, "--json")
    assert result.code == 0
    assert "format" in strict(result.out)["store"]


# --------------------------------------------------------------------------------------------- errors, in one line


def noise(rows):
    number = torch.arange(rows)
    return Frames(torch.randn(rows, 1024), 4000 + 100 * torch.rand(rows), number, number, number % 2, ("a", "b"))


@pytest.fixture
def toy(monkeypatch):
    """The demo on a model of two layers and noise: the same steps, in a second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 360)).eval()
    model[0].requires_grad_(False)
    monkeypatch.setattr(pitch, "load_crepe", lambda _: model)
    monkeypatch.setattr(pitch, "_notes", lambda *_: Splits(noise(40), noise(20), noise(20), noise(20)))


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_demo_into_a_file_is_one_line(run, tmp_path, place):
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    try:
        result = run("demo", "--tiny", "--out", tmp_path / place)
    except NotADirectoryError as err:
        raise FileExistsError from err
    assert result.code == 1
    assert is_one_line(result.err)


def test_demo_on_a_store_of_a_newer_format_is_one_line(run, tmp_path, toy):
    """What a newer forethought wrote is not touched; the way out is said."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "forethought.json").write_text('{"format": 99}')
    result = run("demo", "--tiny", "--json", "--out", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert is_one_line(result.err)
    assert "pip install --upgrade forethought" in result.err
    assert (tmp_path / "store" / "forethought.json").read_text() == '{"format": 99}'


def refuse(*_, **__):
    raise MissingExtraError("Cannot load CREPE: expected torchcrepe. pip install 'forethought[demo]'")


def test_a_missing_extra_is_one_line(run, tmp_path, monkeypatch):
    """The command that installs it."""
    monkeypatch.setattr(pitch, "load_crepe", refuse)
    result = run("demo", "--tiny", "--json", "--out", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert is_one_line(result.err)
    assert "pip install" in result.err


def test_debug_shows_where_an_error_came_from(run, tmp_path, monkeypatch):
    """FORETHOUGHT_DEBUG=1 lets the error through."""
    monkeypatch.setattr(pitch, "load_crepe", refuse)
    monkeypatch.setenv("FORETHOUGHT_DEBUG", "1")
    with pytest.raises(MissingExtraError):
        run("demo", "--tiny", "--json", "--out", tmp_path)


def test_fresh_empties_the_store(run, tmp_path, monkeypatch):
    """--fresh forgets rows and costs, and nothing else in the folder."""
    (tmp_path / "store").mkdir()
    for name in ("store/old", "costs.json", "mine.txt"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(pitch, "load_crepe", refuse)
    run("demo", "--tiny", "--fresh", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupt_is_explained(run, tmp_path, monkeypatch):
    """Ctrl-C: status 130, and one line that says what is kept."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pitch, "run", interrupt)
    result = run("demo", "--tiny", "--out", tmp_path)
    assert result.code == 130
    assert result.err == "Interrupted. Rows that were stored are kept: run the same command again to go on.\n"


# ------------------------------------------------------------------------------------------------- store ls, verify, gc

TRAIN = """
import torch
from torch import nn
import forethought as ft


def model():
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ft.freeze(made, until="1")
    print("built")
    return made


def dataset():
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40)
"""
LIVE = ("--live", "10", "--model", "train.py:model", "--data", "train.py:dataset")


@pytest.fixture
def thoughts(tmp_path, monkeypatch):
    """A folder with a script, and a store of what its model says of its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    names = {}
    exec(TRAIN, names)
    ft.extract(names["model"](), names["dataset"](), tmp_path / "thoughts", segment_rows=10, batch_size=10)
    return tmp_path / "thoughts"


def damage(store):
    path = min(store.glob("tables/*/*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


@pytest.fixture
def terminal(monkeypatch):
    """Somebody sits there and gives this answer."""

    def answer(text):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.confirm", lambda *_, **__: text == "y")

    return answer


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_help_of_a_store_command_has_an_example(run, command):
    """Each help text shows how it is called."""
    result = run("store", command, "--help")
    assert result.code == 0
    assert f"Example: forethought store {command} " in result.out


def test_store_ls_says_what_is_there(run, thoughts, capfd):
    """For people, and as JSON the same as Python gives."""
    capfd.readouterr()
    result = run("store", "ls", "thoughts")
    assert (result.code, result.err) == (0, "")
    for part in ("Sequential", "data: tuple of 40", "40 rows of 0:F32[8]", "4 segments", "1 table, 40 rows"):
        assert part in result.out
    told = strict(run("store", "ls", "thoughts", "--json").out)
    assert told == [json.loads(json.dumps(held.to_dict())) for held in ft.inventory(ft.Store(thoughts))]


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_store_commands_make_no_store(run, tmp_path, command):
    """A path that is no store is an error in one line, and stays as it is."""
    result = run("store", command, tmp_path / "none")
    assert (result.code, result.out) == (1, "")
    assert is_one_line(result.err)
    assert not list(tmp_path.iterdir())


def test_store_verify_is_silent_success(run, thoughts, capfd):
    """A sound store: status 0, and how much was read."""
    capfd.readouterr()
    result = run("store", "verify", "thoughts")
    assert (result.code, result.err) == (0, "")
    assert "every byte is as it was written" in result.out
    assert strict(run("store", "verify", "thoughts", "--json").out)["is_sound"] is True


def test_store_verify_names_what_is_damaged(run, thoughts):
    """Status 1, the file and what to do, on stdout."""
    path = damage(thoughts)
    result = run("store", "verify", "thoughts")
    assert result.code == 1
    assert str(path) in result.out
    assert "forethought extract DATA" in result.out
    found = strict(run("store", "verify", "thoughts", "--json").out)
    assert [fault["path"] for fault in found["faults"]] == [str(path)]


def test_store_verify_live_compares_with_the_model(run, thoughts, capfd):
    """What the model prints is talk; a model that says something else is wrong, with status 1."""
    capfd.readouterr()
    result = run("store", "verify", "thoughts", *LIVE)
    assert result.code == 0
    assert result.err.startswith("built")
    assert "live: right: 10 of 10 rows" in result.out
    told = strict(run("store", "verify", "thoughts", *LIVE, "--json").out)["live"]["exact"]
    assert (told["rows"], told["is_right"]) == (10, True)
    (thoughts.parent / "train.py").write_text(TRAIN.replace("manual_seed(1)", "manual_seed(2)"))
    other = run("store", "verify", "thoughts", *LIVE)
    assert (other.code, "got none" in other.err) == (1, True)


@pytest.mark.parametrize("options", [LIVE[:2], LIVE[2:], LIVE[:4], ("--live", "0", *LIVE[2:])])
def test_store_verify_live_needs_model_and_data(run, thoughts, options):
    """All three or none."""
    assert run("store", "verify", "thoughts", *options).code == 2


def test_store_gc_asks_before_it_removes(run, thoughts, terminal):
    """Without --yes and without a terminal: one line, and nothing is gone; at a terminal the answer decides."""
    size = ft.Store(thoughts).size_bytes
    result = run("store", "gc", "thoughts", "--max-size", "0kB")
    assert result.code == 1
    assert is_one_line(result.err)
    assert "--yes" in result.err
    terminal("n")
    assert run("store", "gc", "thoughts", "--max-size", "0kB").code == 1
    assert run("store", "gc", "thoughts", "--max-size", "0kB", "--dry-run").code == 0
    assert ft.Store(thoughts).size_bytes == size
    terminal("y")
    result = run("store", "gc", "thoughts", "--max-size", "0kB")
    assert result.code == 0
    assert f"Freed {size - ft.Store(thoughts).size_bytes:,} bytes" in result.out
    assert ft.inventory(ft.Store(thoughts)) == ()


def test_store_gc_json_says_what_went(run, thoughts, capfd):
    """stdout is one JSON object; a dry run frees nothing."""
    path = damage(thoughts)
    capfd.readouterr()
    shown = run("store", "gc", "thoughts", "--json", "--dry-run")
    assert (shown.code, shown.err, strict(shown.out)["freed_bytes"]) == (0, "", 0)
    told = strict(run("store", "gc", "thoughts", "--json", "--yes").out)
    assert told["freed_bytes"] == told["size_bytes"] > 0
    assert [piece["files"] for piece in told["pieces"]] == [[str(path.relative_to(thoughts))]]
    assert not path.exists()
    assert strict(run("store", "gc", "thoughts", "--json", "--yes").out)["pieces"] == []


def test_store_gc_leaves_what_is_young_and_small_enough(run, thoughts):
    """Limits that are met remove nothing, and need no answer."""
    result = run("store", "gc", "thoughts", "--older-than", "1d", "--max-size", "1.5GiB")
    assert (result.code, "Nothing to remove" in result.out) == (0, True)


@pytest.mark.parametrize(
    "options", [("--max-size", "big"), ("--max-size", "-1"), ("--older-than", "30"), ("--older-than", "d"), ("--nope",)]
)
def test_store_gc_refuses_limits_that_are_none(run, thoughts, options):
    """Misuse is status 2, and nothing is removed."""
    size = ft.Store(thoughts).size_bytes
    assert run("store", "gc", "thoughts", *options, "--yes").code == 2
    assert ft.Store(thoughts).size_bytes == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("7", 7), ("7b", 7), ("2TiB", 2**41)],
)
def test_sizes_are_read_as_they_are_written(text, size):
    """Powers of 1000, and of 1024 with an i."""
    assert store_cli._size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("1.5w", 907_200), ("5m", 300)])
def test_ages_are_read_as_they_are_written(text, seconds):
    """Minutes, hours, days and weeks."""
    assert store_cli._age(text) == seconds


# ------------------------------------------------------------------------------------ the demo, from Ctrl-C to all hits


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Three runs in one folder: interrupted after the first side, again as it is, and again as JSON."""
    for package in ("torchcrepe", "pretty_midi", "matplotlib"):
        if not metadata.packages_distributions().get(package):
            pytest.skip(f"{package} is not installed: pip install 'forethought[demo]'")
    out = tmp_path_factory.mktemp("demo")
    runs = {}
    process = start("demo", "--tiny", "--out", out)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("   train") and "computed" in line:
            process.send_signal(signal.SIGINT)
            break
    rest, err = process.communicate(timeout=120)
    runs["interrupted"] = SimpleNamespace(code=process.returncode, out="".join(seen) + rest, err=err)
    for name, options in (("shown", []), ("again", ["--json"])):
        process = start("demo", "--tiny", *options, "--out", out, code=QUICK)
        text, err = process.communicate(timeout=200)
        report = (out / "report.json").read_text() if process.returncode == 0 else ""
        runs[name] = SimpleNamespace(code=process.returncode, out=text, err=err, report=report)
    return SimpleNamespace(folder=out, **runs)


@pytest.mark.slow
def test_demo_interrupted_exits_with_130(demo):
    """No traceback, the status of SIGINT, and the first side is stored."""
    assert demo.interrupted.code == 130
    assert "Traceback" not in demo.interrupted.err
    assert "4. Train many" not in demo.interrupted.out
    assert re.search(r"train +400 rows: 400 computed, 0 reused", demo.interrupted.out)


@pytest.mark.slow
def test_demo_resumes(demo):
    """What was stored before Ctrl-C is not computed again; the rest is."""
    assert demo.shown.code == 0, demo.shown.err
    assert re.search(r"train +400 rows: 0 computed, 400 reused", demo.shown.out)
    sides = re.findall(r"(?:validation|test|unseen) +80 rows: (\d+) computed, (\d+) reused", demo.shown.out)
    assert len(sides) == 3
    assert all(int(computed) + int(reused) == 80 for computed, reused in sides)
    assert any(int(computed) for computed, _ in sides)


@pytest.mark.slow
def test_demo_shows_what_it_promises(demo):
    """Frontier, all hits, a ranking of twelve heads or more, baselines, ratio, energy, files as the last lines."""
    out, lines = demo.shown.out, demo.shown.out.splitlines()
    assert "crosses the frontier" in out
    assert re.search(r"reshape +\(256,\) +float32 +1,024", out)
    assert re.search(r"99\.\d% of 7\d million operations a frame are frozen", out)
    again = out.split("and the same again:")[1].splitlines()[1]
    assert "0 computed, 400 reused" in again
    places = re.findall(r"^ +(\d+)  \w.*(?:peak|mean|monotone|free) *$", out, re.MULTILINE)
    assert [int(place) for place in places] == list(range(1, len(places) + 1))
    assert len(places) >= 12
    assert out.count("CREPE, argmax") == out.count("CREPE, weighted average") == 2
    assert re.search(r"[\d,]+ times faster \([\d,]+ to [\d,]+ over the pairs\)", out)
    assert re.search(r"^   energy: .*\(.+\)", out, re.MULTILINE)
    assert "bit for bit" in out
    assert [line.split()[0] for line in lines[-4:]] == ["model", "picture", "store", "report"]
    for line in lines[-4:]:
        assert os.path.exists(line.split(maxsplit=1)[1])


@pytest.mark.slow
def test_demo_errors_fall_with_rank(demo):
    """The ranking is in order."""
    errors = [float(e) for e in re.findall(r"^ +\d+  \w[\w .-]*?  +([\d.]+)  +\d+ ", demo.shown.out, re.MULTILINE)]
    assert len(errors) >= 12
    assert errors == sorted(errors)


@pytest.mark.slow
def test_demo_writes_no_escape_codes_into_a_pipe(demo):
    """Colours are for terminals; nothing is said on stderr where nobody watches."""
    assert "\x1b" not in demo.shown.out
    assert demo.shown.err == ""


@pytest.mark.slow
def test_demo_json_is_the_report_and_nothing_else(demo):
    """stdout is one strict JSON object, the same as report.json."""
    assert (demo.again.code, demo.again.err) == (0, "")
    assert strict(demo.again.out) == strict(demo.again.report)


@pytest.mark.slow
def test_demo_again_is_all_hits(demo):
    """The third run computes no row."""
    extraction = strict(demo.again.out)["extraction"]
    assert set(extraction) == {"train", "validation", "test", "unseen", "train again"}
    assert [side["rows_computed"] for side in extraction.values()] == [0] * 5
    assert all(side["rows"] == side["rows_reused"] for side in extraction.values())


@pytest.mark.slow
def test_demo_report_is_consistent(demo):
    """Numbers in the report agree with each other and with what is on disk."""
    report = strict(demo.again.out)
    assert report["size"] == "tiny"
    assert report["classes"] == 360
    assert report["frontier"] == [{"name": "reshape", "shape": [256], "dtype": "torch.float32", "size_bytes": 1024}]
    assert 0.99 < report["frozen_share_of_flops"] < 1
    rows = {"train": 400, "validation": 80, "test": 80, "unseen": 80, "train again": 400}
    assert {name: side["rows"] for name, side in report["extraction"].items()} == rows
    for side in report["extraction"].values():
        assert side["size_bytes"] == side["rows"] * 1024
    names = [head["name"] for head in report["heads"]]
    assert len(names) == len(set(names)) >= 12
    ranked = [head["validation_mean_cents"] for head in report["heads"]]
    assert ranked == sorted(ranked)
    assert report["savings"]["head"] == names[0]
    for side in ("test", "unseen"):
        for scores in report["scores"][side].values():
            assert scores["rows"] == 80
            assert scores["within"]["50"] >= scores["within"]["25"] >= scores["within"]["10"] >= 0
    ratio = report["savings"]["ratio"]
    assert ratio[1] <= ratio[0] <= ratio[2]
    assert ratio[0] == pytest.approx(
        report["savings"]["uncached_epoch_s"] / report["savings"]["cached_epoch_s"], rel=0.01
    )
    better = all(
        by["winner"]["mean_cents"] < by[who]["mean_cents"] and by["winner"]["within"]["10"] > by[who]["within"]["10"]
        for by in report["scores"].values()
        for who in ("argmax", "weighted average")
    )
    assert report["beats_baselines"] is better
    assert all(os.path.exists(path) for path in report["files"].values())


@pytest.mark.slow
def test_demo_report_says_what_the_screen_says(demo):
    """The run that was shown: ranking, scores and savings, number by number."""
    report, out = strict(demo.shown.report), demo.shown.out
    for head in report["heads"]:
        numbers = f"{head['validation_mean_cents']:.1f} +{head['best_epoch']} +{head['parameters']:,}"
        assert re.search(rf"{re.escape(head['name'])} +{numbers} ", out)
    for by in report["scores"].values():
        for scores in by.values():
            assert f"{scores['mean_cents']:.1f}" in out
            assert f"{scores['within']['10']:.1%}" in out
    assert f"{report['savings']['ratio'][0]:,.0f} times faster" in out
    assert f"{report['frozen_share_of_flops']:.1%} of" in out
    assert ("It beats both" in out) is report["beats_baselines"]


@pytest.mark.slow
def test_demo_model_loads_elsewhere(demo):
    """What the demo wrote is a model that anyone can load into a fresh CREPE."""
    from forethought.demo.crepe import CENTS, load_crepe

    full = ft.load(demo.folder / "model.safetensors", load_crepe("tiny"))
    answers = full(torch.randn(2, 1024))
    assert set(answers) == {"pitch", "monotone"}
    assert all(CENTS[0] - 100 <= value <= CENTS[-1] + 100 for value in answers["monotone"].tolist())


@pytest.mark.slow
def test_demo_picture_is_a_png(demo):
    """A picture of a size to look at."""
    content = (demo.folder / "pitch.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width > 800
    assert height > 400
