"""Kill -9 at random moments of what touches a store; `tests/kills.py` does so as often as wanted."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).with_name("kills.py")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_kills_lose_nothing_committed_and_repeat_nothing(tmp_path):
    """Every row that is served after a kill is the live one, what was committed is served, nothing is computed in vain."""
    scenes = ["three writers", "folder", "merge and extract", "gc and extract"]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(KILLS), "--rounds", "1", "--kills", "2", "--seed", "5", "--scene", *scenes],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    total = ast.literal_eval("{" + run.stdout.splitlines()[-1].partition("{")[2])
    assert total["kills"] >= 6
    assert total["rows compared"] > 500
    assert total["needless"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_kills_of_samples_that_differ_in_size(tmp_path):
    """Of rows of differing size, too, and of those that are copied from one table to another, none is wrong or lost."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(KILLS.with_name("ragged_kills.py")), "--rounds", "2", "--kills", "4"],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert re.fullmatch(
        r"0 wrong of \d{3,} rows, [3-8] kills, no committed row lost, 0 rows computed without need\n", run.stdout
    )
