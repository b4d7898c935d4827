"""The examples are short, run anywhere, write nowhere and print what they promise."""

import ast
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def ran(path, folder):
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder), "MPLCONFIGDIR": str(folder)}
    environment |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True, text=True, timeout=120, check=False, cwd=folder, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Every example run once, two at a time, each in an empty folder."""
    root = tmp_path_factory.mktemp("examples")
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda path: ran(path, root / path.stem), EXAMPLES)
        return {path.stem: (run, root / path.stem) for path, run in zip(EXAMPLES, runs, strict=True)}


def test_examples_are_numbered_from_one():
    """Their order is that of the flow."""
    assert [path.name.split("_")[0] for path in EXAMPLES] == [str(n + 1) for n in range(len(EXAMPLES))]
    assert len(EXAMPLES) >= 5


@every_example
def test_example_is_short_and_says_what_it_shows(path):
    """A docstring on the first line, less than 40 lines, only the public interface."""
    text = path.read_text()
    assert text.startswith('"""')
    assert ast.get_docstring(ast.parse(text)).endswith(".")
    assert len(text.splitlines()) < 40
    assert not re.search(r"forethought\.\w+ import|from forethought import|\._[a-z]", text)


@every_example
def test_example_runs(path, outputs):
    """No error, no warning, nothing on standard error, nothing left behind."""
    run, folder = outputs[path.stem]
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert list(folder.iterdir()) == []
    assert "False" not in run.stdout


def lines(outputs, name):
    return outputs[name][0].stdout.splitlines()


def test_split_is_exact(outputs):
    """1: equal to the last bit."""
    assert lines(outputs, "1_split")[-1].endswith("True")


def test_extraction_is_counted(outputs):
    """2: computed once, reused, extended; the head does not matter, a frozen weight does."""
    text = outputs["2_extract_and_reuse"][0].stdout
    assert re.findall(r"(\d+) computed, +(\d+) reused", text) == [("1500", "0"), ("0", "1500"), ("500", "1500")]
    assert re.search(r"another head: +0$", text, re.MULTILINE)
    assert re.search(r"one weight moved: +2000$", text, re.MULTILINE)


def test_heads_are_ranked(outputs):
    """3: four heads in a table, and the best of them."""
    text = outputs["3_many_heads"][0].stdout
    assert text.count("linear, lr") >= 2
    assert "best: mlp" in text


def test_regressor_beats_the_classifier(outputs):
    """4: sensible before training, better after."""
    strongest, before, after = (
        float(n) for n in re.findall(r"([\d.]+) degrees", "\n".join(lines(outputs, "4_classifier_to_regressor")))
    )
    assert after < before < strongest


def test_loaded_gives_the_same_bits(outputs):
    """5: three heads, three times the same bits."""
    assert outputs["5_assemble_save_load"][0].stdout.count("the same bits: True") == 3
