"""Opening a table in a fresh process and locating rows in it: 10 million keys, against a dictionary of them.

Each process reads and checks the keys of all segments, then locates 100,000 of them, shuffled; the dictionary is given
the same keys and maps each, as bytes, to its segment and row. Megabytes are what the process grew by at most.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from forethought.store import Column, Store

_ROWS = 10_000_000
_SEGMENT_ROWS = 2**17
_PAIRS = 5
_ASKED = 100_000

_PROCESS = """
import resource, sys, time
import numpy as np
from forethought.store import Store

def memory(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024

path, asked, rival = sys.argv[1], np.load(sys.argv[2]), sys.argv[3] == "rival"
before, started = memory("VmRSS"), time.perf_counter()
table = Store(path, readonly=True).table("ab")
if rival:
    table.refresh()
    places = {}
    for number, segment in enumerate(table._segments):
        for row, key in enumerate(map(bytes, segment.keys.view("V16")[:, 0].tolist())):
            places.setdefault(key, (number, row))
    located = [places.get(key.tobytes(), (-1, -1)) for key in asked]
else:
    located = table.locate(asked)
loaded = time.perf_counter() - started
print(loaded, memory("VmHWM") - before, len(located))
"""


def measure() -> list[str]:
    """Write both stores, then open them in fresh processes."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        asked = _write(Path(folder), "many", [Column("0", "U8", ())], _ROWS)
        runs: dict[str, list[tuple[float, float]]] = {"forethought": [], "rival": []}
        for _ in range(_PAIRS):
            for side, found in runs.items():
                found.append(_opened(Path(folder) / "many", asked, side))
        ours, rival = (_median(found) for found in runs.values())
        ratios = [b[0] / a[0] for a, b in zip(*runs.values(), strict=True)]
        lines.append(
            f"{_ROWS:,} rows: a dictionary takes {statistics.median(ratios):.1f} x ({min(ratios):.1f} to "
            f"{max(ratios):.1f}), {rival[0]:.2f} s against {ours[0]:.2f}; {rival[1]:,.0f} MB against {ours[1]:,.0f}"
        )
        asked = _write(Path(folder), "few", [Column("0", "F16", (512,))], 250_000)
        again = _median([_opened(Path(folder) / "few", asked, "forethought") for _ in range(_PAIRS)])
        lines.append(f"250,000 rows of 512 float16, all keys located: {again[0]:.3f} s, {again[1]:,.0f} MB")
    return lines


def _write(folder: Path, name: str, columns: list[Column], rows: int) -> Path:
    """Fill a store; return the file of the keys to ask for."""
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 256, (rows, 16), dtype=np.uint8)
    with Store(folder / name).table("ab", columns).writer(segment_rows=2 * _SEGMENT_ROWS) as writer:
        for start in range(0, rows, _SEGMENT_ROWS):
            some = keys[start : start + _SEGMENT_ROWS]
            writer.append(some, [np.zeros((len(some), column.row_bytes), np.uint8) for column in columns])
    asked = generator.permutation(rows)[: rows if rows < 10**6 else _ASKED]
    np.save(folder / f"{name}.npy", keys[asked])
    return folder / f"{name}.npy"


def _opened(store: Path, asked: Path, side: str) -> tuple[float, float]:
    """Return seconds and megabytes of one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, store, asked, side], capture_output=True, text=True, check=True
    )
    seconds, megabytes, _ = done.stdout.split()
    return float(seconds), float(megabytes)


def _median(found: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(seconds for seconds, _ in found), statistics.median(megabytes for _, megabytes in found)
