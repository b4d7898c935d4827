"""Several processes that fill one table at once divide the work, and wait for nobody who is gone."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
from forethought.extracting.division import Division
from forethought.extracting.manifest import name_of
from forethought.samples.dataset import Samples
from forethought.store import Store

ROWS = 512
PROGRAM = """
import sys, time, torch, forethought as ft
sys.path.insert(0, sys.argv[1])
from test_division import make_net, make_data
net = make_net(float(sys.argv[3]))
print("ready", flush=True)
input()
made = ft.extract(net, make_data(), sys.argv[2], batch_size=16, progress=False, segment_rows=32)
print(made.report.rows_computed, made.numpy().sum(), flush=True)
"""


class Slow(nn.Module):
    """Takes its time for each sample."""

    def __init__(self, pause_s):
        super().__init__()
        self.inner = nn.Linear(8, 4)
        self.pause_s = pause_s

    def forward(self, x):
        if self.pause_s:
            time.sleep(self.pause_s * len(x))
        return self.inner(x)


def make_net(pause_s=0.0):
    torch.manual_seed(0)
    net = nn.Sequential(Slow(pause_s), nn.ReLU(), nn.Linear(4, 2))
    return ft.freeze(net, until="1")


def make_data():
    return torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1))


def start(folder, pause_s):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(folder), str(pause_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_processes_divide_the_rows_and_agree(tmp_path):
    """Three at once: each computes a part, hardly a row twice, and all end with the same features."""
    Store(tmp_path / "store")
    programs = [start(tmp_path / "store", 0.002) for _ in range(3)]
    for each in programs:
        assert each.stdout.readline() == "ready\n"
    for each in programs:
        each.stdin.write("\n")
        each.stdin.flush()
    told = [each.communicate(timeout=100)[0].split() for each in programs]
    computed = [int(rows) for rows, _ in told]
    assert len({total for _, total in told}) == 1
    assert ROWS <= sum(computed) <= 1.3 * ROWS
    assert sorted(computed)[1] > 0, "nobody shared"
    again = ft.extract(make_net(0.002), make_data(), tmp_path / "store", batch_size=64, progress=False)
    assert again.report.rows_computed == 0


def test_the_killed_hold_nobody_up(tmp_path):
    """A claim of a process that was killed is taken over at once, and what it had stored is used."""
    Store(tmp_path / "store")
    other = start(tmp_path / "store", 0.01)
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("\n")
    other.stdin.flush()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "store").rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    other.kill()
    other.communicate()
    made = ft.extract(make_net(0.01), make_data(), tmp_path / "store", batch_size=16, progress=False)
    assert 0 < made.report.rows_computed < ROWS
    assert not list((tmp_path / "store" / "claims").glob("[!.]*")), "claims were left"


def test_threads_divide_the_rows(tmp_path):
    """One store object, one model each."""
    store, computed = Store(tmp_path / "store"), []
    nets = [make_net(0.002) for _ in range(2)]  # drawing numbers in another thread looks like chance in the model
    work = lambda net: computed.append(  # noqa: E731
        ft.extract(net, make_data(), store, batch_size=16, progress=False).report.rows_computed
    )
    threads = [threading.Thread(target=work, args=(net,)) for net in nets]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert ROWS <= sum(computed) <= 1.3 * ROWS


def test_a_living_claim_is_waited_for_and_a_stale_one_is_not(tmp_path, monkeypatch):
    """Rows that somebody else is at are left to him; when he gives up, they are computed."""
    store = Store(tmp_path / "store")
    table = ft.extract(make_net(), make_data()[:1], store, progress=False).table
    name = name_of(Samples(make_data(), make_net()).account())
    mine = Division(store, (table.fingerprint, name), ROWS, 64)
    assert mine.mine(np.arange(64)).all()
    done = []
    net = make_net()
    thread = threading.Thread(target=lambda: done.append(ft.extract(net, make_data(), store, progress=False)))
    thread.start()
    thread.join(1.5)
    assert thread.is_alive(), "did not wait"
    mine.release()
    thread.join(30)
    assert done[0].report.rows_computed == ROWS - 1


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 10_000, None])
def test_stretches_cover_all_samples(rows, tmp_path):
    """Every sample belongs to one stretch, which one division has."""
    store = Store(tmp_path / "store")
    one, other = (Division(store, ("a",), rows, 48) for _ in range(2))
    indices = np.arange(rows or 100_000)
    first = one.mine(indices[::2])
    assert first.all()
    assert not other.mine(indices[::2]).any()
    one.release()
    other.release()  # it looks anew
    assert other.mine(indices).all()


def test_a_readonly_store_and_a_full_disk_divide_nothing_and_stop_nothing(tmp_path):
    """Where no claim can be kept, everybody computes."""
    Store(tmp_path / "store")
    (tmp_path / "store" / "claims").write_text("in the way")
    made = ft.extract(make_net(), make_data(), tmp_path / "store", progress=False)
    assert made.report.rows_computed == ROWS
