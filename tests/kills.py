"""Kill -9 at random moments of everything that touches a store, as often as wanted.

    python tests/kills.py --rounds 20 --seed 0

Each round begins a store and kills works on it, a few times in a row, at moments that are drawn: extraction by one and by
three writers, `forethought extract` on a folder, write-through fitting, a merge by copying while one writes, `gc`,
`verify`. After each kill every row that is served is compared with the live one, whatever was committed before must be
served, and the store must be sound; then the work is done to its end, and the rows that it computes without need counted.
"""

import argparse
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import forethought as ft
from forethought.cli import app
from forethought.extracting import extraction
from forethought.housekeeping import find_garbage, remove_garbage, verify_store
from forethought.housekeeping.files import open_table
from forethought.store import Store

ROWS, WIDTH, SEGMENT_ROWS, BATCH = 240, 48, 32, 8
PAUSE_S = 0.001  # a sample: so that kills find work that is not done
SIDE = 4  # of a picture, whose bytes are the WIDTH numbers of a sample


class Slow(torch.utils.data.Dataset):
    """Samples of whole numbers: sums of them are exact in any order, so rows can be judged to the last bit."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        time.sleep(PAUSE_S)
        return torch.from_numpy(self.inputs[index]).float(), index % 3


def inputs_of(seed):
    return np.random.default_rng(seed).integers(0, 256, (ROWS, WIDTH), dtype=np.uint8)


def model():
    """A classifier whose frozen weights are small whole numbers."""
    weights = np.random.default_rng(7).integers(-3, 4, (16, WIDTH))
    net = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(weights))
        net[0].bias.fill_(5)
    net[0].requires_grad_(False)
    return net.eval()


def transform():
    """Pictures as samples, slowly."""
    return as_sample


def as_sample(picture):
    time.sleep(PAUSE_S)
    return torch.from_numpy(np.array(picture.resize((SIDE, SIDE)))).flatten().float()


def live_rows(inputs):
    """What the frozen part gives, by numpy."""
    weights = np.random.default_rng(7).integers(-3, 4, (16, WIDTH))
    return np.maximum(inputs.astype(np.int64) @ weights.T + 5, 0).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ works


def extract(store, inputs):
    features = ft.extract(
        model(), Slow(inputs), Store(store), batch_size=BATCH, segment_rows=SEGMENT_ROWS, progress=False
    )
    assert np.array_equal(features.numpy(), live_rows(inputs)), "a wrong row was fed"
    return features.report.rows_computed


def extract_folder(store, inputs):
    extraction.COMMIT_S = 0.05
    with redirected():
        app(
            ["extract", str(store.parent / "pictures"), "--model", f"{__file__}:model", "--transform",
             f"{__file__}:transform", "--store", str(store), "--batch-size", str(BATCH), "--workers", "0", "--json"],
            standalone_mode=False,
        )  # fmt: skip


def fit(store, inputs):
    data, labels = torch.from_numpy(inputs[:200]).float(), torch.arange(200) % 3
    kept = torch.from_numpy(inputs[200:]).float(), torch.arange(ROWS - 200) % 3
    ft.fit(
        model(), Slow(inputs[:200]), {"a": nn.Linear(16, 3)}, val=kept, run="write-through", store=Store(store),
        epochs=2, batch_size=BATCH, trunk_batch_size=BATCH, loss="cross_entropy", progress=False,
    )  # fmt: skip
    assert len(data) == len(labels)


def merge(store, inputs):
    """Copy the other store in, over and over: half copied files are what a kill leaves."""
    while True:
        shutil.copytree(store.parent / "other", store, dirs_exist_ok=True, copy_function=copy_slowly)


def copy_slowly(source, target):
    if os.path.exists(target) and os.path.getsize(target) == os.path.getsize(source):
        return target
    raw = Path(source).read_bytes()
    with Path(target).open("wb", buffering=0) as file:
        for start in range(0, len(raw), 512):
            file.write(raw[start : start + 512])
            time.sleep(PAUSE_S)
    return target


def collect(store, inputs):
    while True:
        opened = Store(store)
        remove_garbage(opened, find_garbage(opened, unreachable=True))


def verify(store, inputs):
    while True:
        verify_store(Store(store, readonly=True))
        time.sleep(0.003)


# Which works are done side by side, and which of them are killed; all of them are needed to the end but endless ones.
SCENES = {
    "extract": ((extract,), (0,)),
    "three writers": ((extract, extract, extract), (0, 1, 2)),
    "one of three writers": ((extract, extract, extract), (1,)),
    "folder": ((extract_folder,), (0,)),
    "write-through": ((fit,), (0,)),
    "merge": ((merge, extract), (0,)),
    "merge and extract": ((merge, extract), (0, 1)),
    "gc": ((collect, extract), (0,)),
    "gc and extract": ((collect, extract), (0, 1)),
    "verify": ((verify, extract), (0, 1)),
}


# ------------------------------------------------------------------------------------------------- the killer


@contextmanager
def redirected():
    with Path(os.devnull).open("w") as nothing:
        before, sys.stdout = sys.stdout, nothing
        try:
            yield
        finally:
            sys.stdout = before


def fork(work, *args):
    """Run a work in a child; its result comes through a pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        torch.set_num_threads(1)  # OpenMP waits for ever for the threads that a fork leaves behind
        try:
            result = work(*args)
            os.write(writer, pickle.dumps(result))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    return child, reader


def outcome(child, reader):
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    return os.waitpid(child, 0)[1], raw


def segments(store):
    return sorted(store.glob("tables/*/*.safetensors"))


def served(store, inputs):
    """Return which samples have a row, of all tables; fail on any that is not the live one."""
    live = {row.tobytes() for row in live_rows(inputs)}
    opened, found, damaged = Store(store, readonly=True), set(), []
    for fingerprint in opened.tables():
        table = open_table(opened, fingerprint)
        if table is None:  # killed before its first segment
            assert not [path for path in segments(store) if path.parent.name == fingerprint]
            continue
        for name in sorted(path.name for path in segments(store) if path.parent.name == fingerprint):
            segment = table._segment(name)
            try:
                keys, rows = segment.keys, segment.column("0")
            except ft.ForethoughtError:
                damaged.append(name)
                continue
            for key, row in zip(keys, rows, strict=True):
                assert row.tobytes() in live, f"a wrong row in {name}"
                found.add(key.tobytes())
        keys = np.frombuffer(b"".join(sorted(found)), np.uint8).reshape(-1, 16)
        assert (table.locate(keys)[:, 0] >= 0).all(), "a committed row is not found"
    return found, damaged


def wait_for_moment(store, draw):
    """Wait for a moment: any, or shortly after some more segments were committed."""
    if draw.random() < 0.3:
        time.sleep(draw.uniform(0.0, draw.choice([0.05, 0.5])))
        return
    wanted, until = len(segments(store)) + draw.randint(1, 4), time.monotonic() + 1.5
    while len(segments(store)) < wanted and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.05))


def kill_once(scene, store, inputs, draw):
    """Start a scene's works, kill some at a moment that is drawn; return what was committed before and what ended."""
    works, doomed = SCENES[scene]
    children = [fork(work, store, inputs) for work in works]
    wait_for_moment(store, draw)
    before = {path.name for path in segments(store)} if store.is_dir() else set()
    order = list(doomed)
    draw.shuffle(order)
    for number in order:
        with suppress(ProcessLookupError):
            os.kill(children[number][0], signal.SIGKILL)
        time.sleep(draw.choice([0.0, 0.0, 0.02]))
    for number, work in enumerate(works):  # what never ends by itself
        if work in (merge, collect, verify) and number not in doomed:
            os.kill(children[number][0], signal.SIGKILL)
    ends = [outcome(*child)[0] for child in children]
    for number, end in enumerate(ends):
        assert end in (0, signal.SIGKILL), f"{works[number].__name__} failed"
        assert number in doomed or works[number] in (merge, collect, verify) or end == 0
    return before, sum(end == signal.SIGKILL for end in ends)


def last_work(scene):
    return {"folder": extract_folder, "write-through": fit}.get(scene, extract)


def run_scene(scene, folder, draw, kills):
    """Kill a scene's works so often on one store; return what was counted."""
    folder = Path(folder)
    store, inputs = folder / "store", inputs_of(draw.randrange(2**30))
    if scene == "folder":
        for number, row in enumerate(inputs):
            path = folder / "pictures" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.reshape(SIDE, SIDE, 3)).save(path)
    if scene.startswith("merge"):
        assert outcome(*fork(extract, folder / "other", inputs[: ROWS // 2]))[0] == 0
    if len(SCENES[scene][0]) > 1:
        Store(store)  # a folder that has no marker yet is refused by who reads it or copies into it
    count, known = Counter(), set()
    for _ in range(kills):
        before, killed = kill_once(scene, store, inputs, draw)
        count["kills"] += killed
        if not (store / "forethought.json").is_file():
            continue
        (found, damaged) = served(store, inputs)
        is_torn = scene.startswith("merge")
        assert not damaged or is_torn, f"damaged: {damaged}"
        assert known <= found, f"{len(known - found)} rows that were served are lost"
        gone = before - {path.name for path in segments(store)}
        assert not gone or scene.startswith("gc"), f"segments are gone: {gone}"
        assert is_torn or all(fault.path.endswith(".jsonl") for fault in verify_store(Store(store)).faults)
        known = found
        count["rows compared"] += len(found)
    end, raw = outcome(*fork(last_work(scene), store, inputs))
    assert end == 0, f"{scene}: the next run failed"
    if scene not in ("folder", "write-through"):
        count["needless"] += pickle.loads(raw) - (ROWS - len(known))
    found, _ = served(store, inputs)
    assert known <= found
    assert len(found) == ROWS
    count["rows compared"] += len(found)
    left = list(store.rglob("*.tmp"))
    count["temporary files left"] += len(left)
    return count


def run_rounds(rounds, seed, scenes=tuple(SCENES), kills=3):
    """Run all scenes so often; return the counts by scene."""
    draw, told = random.Random(seed), {}
    for _ in range(rounds):
        for scene in scenes:
            with tempfile.TemporaryDirectory(prefix="kills-") as folder:
                told.setdefault(scene, Counter()).update(run_scene(scene, folder, draw, kills))
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=3, help="Of each store.")
    parser.add_argument("--scene", choices=SCENES, nargs="*", default=list(SCENES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    total = Counter()
    for name, counted in run_rounds(asked.rounds, asked.seed, asked.scene, asked.kills).items():
        print(f"{name:<22}", dict(counted), flush=True)
        total.update(counted)
    print(f"{'all':<22}", dict(total))
