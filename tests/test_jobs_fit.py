"""`forethought fit`: from files to ranked, saved heads; what cannot be learned is named before anything is computed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_jobs import MINE, folder, picture, run, save_wav  # noqa: F401  (a fixture)

import forethought as ft
from forethought.jobs.asked import Asked, AskedFit
from forethought.jobs.columns import read_target
from forethought.jobs.fitting import fit_files
from forethought.jobs.listing import Listing
from forethought.jobs.parts import dealt_parts
from forethought.jobs.saving import load_head
from forethought.jobs.wanted import read_heads

QUICK = ("--epochs", "3")


def listing(cells, name="y"):
    """A table with a column of targets."""
    return Listing(
        "t.csv", "pictures", [f"{at}.png" for at in range(len(cells))], {name: cells}, lines=range(2, len(cells) + 2)
    )


def timeless(told):
    """What was told of the targets, but for how long it took."""
    return [
        one | {"heads": [{k: v for k, v in head.items() if k != "time_s"} for head in one["heads"]]}
        for one in told["targets"]
    ]


def table(tmp_path, rows=24):
    """Pictures whose brightness is a number, listed with a number, a class, a part and holes."""
    (tmp_path / "p").mkdir()
    lines = ["path,light,kind,part,holes,words"]
    for at in range(rows):
        picture((at * 8, at * 8, at * 8)).save(tmp_path / "p" / f"{at}.png")
        part = ("train", "train", "val", "test")[at % 4]
        lines.append(
            f"p/{at}.png,{500 + at * 8.5},{('dark', 'light')[at >= rows // 2]},{part},{at if at % 5 else ''},{at}?"
        )
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("cells", "task", "classes", "values"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        (["10", "9", "10"], None, ("9", "10"), [1, 0, 1]),
        (["1.5", "2", "3"], None, None, [1.5, 2, 3]),
        (["1.0", "2.0", "1.0"], None, ("1.0", "2.0"), [0, 1, 0]),
        (["1", "2", "1"], "numbers", None, [1, 2, 1]),
        (["1.5", "2", "1.5"], "classes", ("1.5", "2"), [0, 1, 0]),
        ([True, False, True], None, ("False", "True"), [1, 0, 1]),
        ([0.25, 1.0, 2.0], None, None, [0.25, 1, 2]),
    ],
)
def test_read_target_sees_what_a_column_is(cells, task, classes, values):
    """Text and few whole numbers are classes in their natural order, numbers with fractions are numbers."""
    found = read_target(listing(cells), "y", task)
    assert found.classes == classes
    assert found.values.tolist() == values


@pytest.mark.parametrize(
    ("cells", "task", "says"),
    [
        (["1.5", "", "2"], None, "none for 1, first in line 3"),
        (["1.5", "NaN", "nan"], None, "none for 2, first in line 3"),
        (["1.5", "inf", "2"], None, "inf in line 3"),
        (["1.5", "two", "2"], None, "'two' in line 3"),
        (["1.5", "two", "2"], "numbers", "'two' in line 3"),
        ([str(at) for at in range(30)] * 2, None, "--task classes, or --task numbers"),
        (["a", "a"], None, "two classes"),
        (["a", "b", "c"], None, "that repeat"),
    ],
)
def test_read_target_says_what_is_wrong_in_which_line(cells, task, says):
    """A target that is missing, no number, or could be read in two ways is refused."""
    with pytest.raises(ft.ForethoughtError, match=says):
        read_target(listing(cells), "y", task)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.floats(0, 0.5), st.floats(0, 0.4), st.integers(0, 9))
def test_dealt_parts_are_a_division(labels, val, test, seed):
    """Every file is in one part; each class trains; equal files are in one part; the same seed deals the same."""
    labels = np.array(labels)
    units = np.arange(len(labels)) // 2 * 2  # neighbours are equal
    labels = labels[units]
    parts = dealt_parts(units, labels, {"val": val, "test": test}, seed)
    everything = np.concatenate(list(parts.values()))
    assert sorted(everything.tolist()) == list(range(len(labels)))
    assert set(labels[parts["train"]].tolist()) == set(labels.tolist())
    owner = {at: name for name, rows in parts.items() for at in rows.tolist()}
    assert all(owner[at] == owner[units[at]] for at in range(len(labels)))
    again = dealt_parts(units, labels, {"val": val, "test": test}, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


# --------------------------------------------------------------------------------------------------- heads


def test_read_heads_puts_options_where_they_belong():
    """What is tried goes to the heads that take it; a head's own option is its own."""
    heads = read_heads(["linear", "mlp:width=8,dropout=0.1", "ridge"], ["width=4,16", "lr=1e-3,0.1", "seed=0,1"], False)
    assert heads["linear"] == {"kind": "linear", "lr": [1e-3, 0.1], "seed": [0, 1]}
    assert heads["mlp:width=8,dropout=0.1"]["width"] == 8
    assert heads["mlp:width=8,dropout=0.1"]["lr"] == [1e-3, 0.1]
    assert "lr" not in heads["ridge"]
    assert heads["ridge"]["seed"] == [0, 1]


@pytest.mark.parametrize(
    ("heads", "sweeps", "is_classes", "says"),
    [
        (["liner"], [], True, "Did you mean linear"),
        (["ridge"], [], True, "--head logistic"),
        (["mlp:widht=3"], [], True, "Did you mean width"),
        (["mlp:width"], [], True, "mlp:width=64"),
        (["linear"], ["width=3"], True, "Cannot try 'width'"),
        (["linear"], ["lr"], True, "--sweep lr"),
        (["pwl"], [], True, "expected numbers"),
        (["pwl"], [], False, "--head 'pwl:anchors=0"),
    ],
)
def test_read_heads_says_what_is_wrong(heads, sweeps, is_classes, says):
    """A head or option that there is not is refused, with what is close."""
    with pytest.raises(ft.ForethoughtError, match=says):
        read_heads(heads, sweeps, is_classes)


# ----------------------------------------------------------------------------------------------------- fit


def test_fit_makes_heads_of_a_folder(run, tmp_path):  # noqa: F811
    """Classes in folders become a ranking beside one answer for all, a saved head, a report, and all numbers."""
    folder(tmp_path / "p", each=12)
    result = run("fit", "p", *MINE, *QUICK, "--head", "linear", "--head", "mlp:width=8", "--sweep", "lr=0.01,0.1")
    assert result.code == 0, result.err
    assert result.err == ""
    for part in (
        "target 'label': 3 classes",
        "one answer for all: cat",
        "linear[lr=0.1]",
        "on test, which chose nothing",
    ):
        assert part in result.out
    out = tmp_path / "forethought-fit"
    assert sorted(path.name for path in out.iterdir()) == ["head.safetensors", "report.md", "results.json"]
    told = json.loads((out / "results.json").read_text())
    target = told["targets"][0]
    assert target["heads"][0]["name"] == target["best"]
    assert {head["val_accuracy"] <= target["val"] for head in target["heads"]} == {True}
    head, about = load_head(out / "head.safetensors")
    assert about["classes"] == ["cat", "dog", "owl"]
    again = run(
        "fit", "p", *MINE, *QUICK, "--head", "linear", "--head", "mlp:width=8", "--sweep", "lr=0.01,0.1", "--json"
    )
    assert timeless(json.loads(again.out)) == timeless(told)
    assert json.loads(again.out)["extract"]["rows_computed"] == 0
    assert head(torch.zeros(2, 32)).shape == (2, 3)


@pytest.mark.parametrize("heads", [["linear", "ridge"], ["mlp:width=4"], ["pwl:anchors=500|600|700"]])
def test_a_saved_head_scores_what_was_told(run, tmp_path, heads):  # noqa: F811
    """The head in the file, run on the stored features of val, has the error that the table says, in the target's units."""
    table(tmp_path)
    wanted = AskedFit(tuple(heads), ("lr=0.05",) if "ridge" not in heads else (), ("light",), split="part", epochs=30)
    fitted = fit_files(
        Asked("t.csv", "mine.py:model", transform="mine.py:transform", progress=False), wanted, lambda _: None
    )
    best = fitted.ranked["light"].heads[0]
    for part, told in (("val", best["val_mae"]), ("test", fitted.ranked["light"].test)):
        at = fitted.parts[part]
        values = torch.from_numpy(np.array(fitted.extracted.features.numpy()[at]))
        answers = fitted.best["light"](values)
        assert (answers - fitted.targets[0].values[at]).abs().mean().item() == pytest.approx(told, rel=1e-3)
    assert best["val_mae"] < 200


def test_a_head_that_learned_nothing_is_called_so(run, tmp_path):  # noqa: F811
    """Where no head is better than one answer for all files, the last line says so."""
    folder(tmp_path / "p", each=8)
    (tmp_path / "t.csv").write_text(
        "path,coin\n" + "".join(f"p/{kind}/0.jpg,{'ab'[at % 2]}\n" for at, kind in enumerate(["cat", "dog"] * 20))
    )
    result = run(
        "fit", "t.csv", *MINE, "--target", "coin", "--head", "linear:lr=1e-12", "--epochs", "1", "--val", "p.csv"
    )
    assert "nothing of this name" in result.err
    (tmp_path / "p.csv").write_text("path,coin\np/owl/0.jpg,a\np/owl/0.jpg,b\n")
    result = run(
        "fit", "t.csv", *MINE, "--target", "coin", "--head", "linear:lr=1e-12", "--epochs", "1", "--val", "p.csv"
    )
    assert result.code == 0, result.err
    assert "No better than one answer for all" in result.out


def test_fit_learns_several_columns_and_saves_the_model(run, tmp_path):  # noqa: F811
    """Each column has a ranking and a head of its own; the assembled model gives what head and trunk give."""
    table(tmp_path)
    options = ("--target", "light", "--target", "kind", "--head", "linear", "--split", "part", "--save", "--json")
    result = run("fit", "t.csv", *MINE, *QUICK, *options)
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert [(one["name"], one["task"], one["metric"]) for one in told["targets"]] == [
        ("light", "numbers", "mae"),
        ("kind", "classes", "accuracy"),
    ]
    assert told["files"] == {"train": 12, "val": 6, "test": 6}
    names = {}
    exec((tmp_path / "mine.py").read_text(), names)
    heads = {f"target {at}": load_head(tmp_path / "forethought-fit" / f"head-{name}.safetensors")[0]
             for at, name in enumerate(("light", "kind"))}  # fmt: skip
    full = ft.load(tmp_path / "forethought-fit" / "model.safetensors", names["model"]().eval(), heads)
    assert full(torch.rand(2, 3, 24, 24))["target 1"].shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--target", "lihgt"), "Pass --target light"),
        ((), "Pass --target light"),
        (("--target", "holes"), "none for 5, first in line 2"),
        (("--target", "words"), "that repeat"),
        (("--target", "kind", "--split", "words"), "expected train, val or test"),
        (("--target", "kind", "--val", "0.8", "--test", "0.5"), "leave a rest"),
        (("--target", "kind", "--val", "0"), "files in 'val'"),
        (("--target", "kind", "--val", "nowhere"), "nothing of this name"),
        (("--target", "kind", "--head", "liner"), "Did you mean linear"),
        (("--target", "kind", "--device", "abacus"), "Leave --device out"),
        (("--target", "kind", "--out", "t.csv"), "--out FOLDER"),
    ],
)
def test_fit_says_in_one_line_what_is_wrong(run, tmp_path, options, says):  # noqa: F811
    """What cannot be learned is refused in one line, and leaves no head behind."""
    table(tmp_path)
    result = run("fit", "t.csv", *MINE, *QUICK, *options)
    assert result.code == 1
    assert says in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "forethought-fit" / "head.safetensors").exists()


def test_fit_leaves_out_what_has_no_target_when_asked(run, tmp_path):  # noqa: F811
    """Files without a target are counted and left out, and nothing else is."""
    table(tmp_path)
    (tmp_path / "p" / "3.png").write_text("no picture")
    options = ("--target", "holes", "--task", "numbers", "--head", "ridge", "--skip-bad")
    result = run("fit", "t.csv", *MINE, *options)
    assert result.code == 0, result.err
    assert "5 files without a target left out" in result.out
    assert sum(json.loads((tmp_path / "forethought-fit" / "results.json").read_text())["files"].values()) == 18


def test_equal_files_do_not_choose_what_they_trained(run, tmp_path):  # noqa: F811
    """Copies of one picture are in one part; where folders say otherwise, it is said."""
    root = folder(tmp_path / "p", each=4)
    for name in ("cat", "dog", "owl"):
        for at in range(3):
            (root / name / f"copy{at}.jpg").write_bytes((root / name / "0.jpg").read_bytes())
    fitted = fit_files(
        Asked("p", "mine.py:model", transform="mine.py:transform", progress=False),
        AskedFit(("linear",), epochs=1), lambda _: None,
    )  # fmt: skip
    owner = {at: name for name, rows in fitted.parts.items() for at in rows.tolist()}
    paths = fitted.extracted.listing.paths
    same = [owner[at] for at, path in enumerate(paths) if "cat/copy" in path or "cat/0" in path]
    assert len(set(same)) == 1
    told = []
    fit_files(
        Asked("p", "mine.py:model", transform="mine.py:transform", progress=False),
        replace(AskedFit(("linear",), epochs=1), val="p", test="0"), told.append,
    )  # fmt: skip
    assert "21 of val and test are the same to the model as some that train" in " ".join(told)


def test_fit_on_sounds(run, tmp_path):  # noqa: F811
    """Sounds are learned as pictures are."""
    for name, pitch in (("low", 20), ("high", 3)):
        (tmp_path / "s" / name).mkdir(parents=True)
        for at in range(8):
            save_wav(tmp_path / "s" / name / f"{at}.wav", np.sin(np.arange(1000) / (pitch + at / 9)))
    result = run("fit", "s", "--model", "mine.py:voice", "--head", "logistic", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["targets"][0]["val"] == 1.0


def test_fit_on_feature_maps(run, tmp_path):  # noqa: F811
    """A cut at a convolution gives maps; a head on them is saved, too, and takes them as they are stored."""
    folder(tmp_path / "p", each=6)
    result = run("fit", "p", *MINE, *QUICK, "--at", "1", "--head", "linear")
    assert result.code == 0, result.err
    head, about = load_head(tmp_path / "forethought-fit" / "head.safetensors")
    assert about["at"] == "1"
    assert head(torch.zeros(2, 8, 5, 5)).shape == (2, 3)


def test_an_interrupted_fit_goes_on_to_the_same_result(run, tmp_path):  # noqa: F811
    """Ctrl-C while heads train keeps the best epochs; the same command again ends as if there had been none."""
    folder(tmp_path / "p", each=12)
    command = ("fit", "p", *MINE, "--head", "linear", "--sweep", "lr=0.01", "--epochs", "12", "--patience", "12")
    script = f"""
import sys
import forethought.fitting.loop as loop
from forethought.cli import main
save, seen = loop.Loop._save, []
def stop(self, position):
    save(self, position)
    seen.append(0)
    if len(seen) == 4:
        raise KeyboardInterrupt
loop.Loop._save = stop
sys.argv = {["forethought", *command]!r}
main()
"""
    stopped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
                             env=os.environ | {"PYTHONPATH": str(Path(ft.__file__).parents[1])})  # fmt: skip
    assert stopped.returncode == 130, stopped.stderr
    assert "Interrupted" in stopped.stdout
    assert (tmp_path / "forethought-fit" / "head.safetensors").exists()
    first = json.loads(run(*command, "--json").out)
    assert not list((tmp_path / "forethought-fit").glob("unfinished*"))
    whole = json.loads(run(*command, "--json", "--out", "other").out)
    assert timeless(first) == timeless(whole)


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\0\0\0\0\0\0\0{}      "])
def test_load_head_refuses_what_is_none(tmp_path, content):
    """A file that fit did not write is refused by name."""
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ft.ForethoughtError, match="Cannot load the head"):
        load_head(tmp_path / "a.safetensors")
