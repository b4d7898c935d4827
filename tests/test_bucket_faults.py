"""A bucket that fails: at any call, in any way, with real extractions. What was committed reads back bit for bit or a typed
error names the fault; no row is wrong, none that was committed is lost, and the next run goes on."""

import errno
import os
import random
import time
import warnings

import fsspec
import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import ForethoughtError, StoreError
from forethought.housekeeping import find_garbage, inventory, verify_store
from forethought.store import Claims, DamagedSegmentWarning, NotKeptWarning, Store, bucket

ROWS, HALF, BATCH = 48, 20, 4
CALLS = ("ls", "find", "info", "cat_file", "pipe_file", "rm_file")
ERRORS = {
    "denied": lambda: PermissionError("Access Denied"),
    "timeout": lambda: TimeoutError("no answer"),
    "cut": lambda: OSError(errno.EIO, "the wire was cut"),
    "driver": lambda: RuntimeError("An error occurred (SlowDown): reduce your request rate"),
    "no bucket": lambda: FileNotFoundError("The specified bucket does not exist"),
}
INPUTS = torch.randint(0, 100, (ROWS, 12), generator=torch.Generator().manual_seed(0)).float()


class Faulty:
    """The memory as fsspec shows it, but for a fault: which calls, of which number on, how many, and what they do.

    Ways: "before" fails and does nothing; "after" does its work and fails to say so; "partial" takes half of the bytes and
    fails; "torn" gives or takes half of them and says that all is well; "slow" waits; "late" leaves segments out of lists.
    """

    def __init__(self, calls=(), first=0, count=1, way="before", error="cut"):
        self.files = fsspec.filesystem("memory")
        self.calls, self.first, self.last, self.way, self.error = calls, first, first + count, way, error
        self.seen = self.hits = 0
        self.fresh = {}

    def __getattr__(self, name):
        real = getattr(self.files, name)
        return (lambda *args, **options: self._call(name, real, args, options)) if name in CALLS else real

    def _call(self, name, real, args, options):
        if name not in self.calls or self.way == "none":
            return real(*args, **options)
        at, self.seen = self.seen, self.seen + 1
        if not self.first <= at < self.last:
            return real(*args, **options)
        self.hits += 1
        if self.way == "slow":
            time.sleep(0.005)
            return real(*args, **options)
        if self.way in ("partial", "torn"):
            return self._part(name, real, args, options)
        if self.way == "late" and name in ("ls", "find"):
            found = real(*args, **options)
            kept = [key for key in found if not key.endswith(".safetensors") or hash(key) % 2]
            return {key: found[key] for key in kept} if isinstance(found, dict) else kept
        if self.way in ("after", "late"):
            found = real(*args, **options)
            if self.way == "late":
                return found
        raise ERRORS[self.error]()

    def _part(self, name, real, args, options):
        if name == "cat_file":
            raw = real(*args, **options)
            if self.way == "partial":
                raise ERRORS[self.error]()
            return raw[: len(raw) // 2]
        if name == "pipe_file":
            real(args[0], args[1][: len(args[1]) // 2], *args[2:], **options)
            if self.way == "partial":
                raise ERRORS[self.error]()
            return None
        return real(*args, **options)


@pytest.fixture
def faulty(monkeypatch):
    """Have all buckets of this test behind a fault, which may be changed."""
    now = [Faulty(way="none")]

    class Current:
        def __getattr__(self, name):
            return getattr(now[0], name)

    monkeypatch.setattr(bucket, "_connected", lambda protocol: Current())
    # A claim whose release failed holds others up until it is stale: they wait here as long as it takes to show.
    monkeypatch.setattr(Claims.take, "__kwdefaults__", {"stale_s": 0.3})

    def change(**options):
        now[0] = Faulty(**options) if options else Faulty(way="none")
        return now[0]

    return change


def model():
    """Sums of whole numbers are exact in any order: rows are judged to the last bit."""
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(96).reshape(8, 12) % 7 - 3)
        net[0].bias.fill_(2)
    return ft.freeze(net, until="1")


def live(inputs):
    with torch.no_grad():
        return model()[:2](inputs).numpy()


def extract(url, cache, rows):
    return ft.extract(
        model(), list(INPUTS[:rows]), Store(url, cache=cache), batch_size=BATCH, segment_rows=8,
        progress=False,
    )  # fmt: skip


def attempt(url, cache):
    """Extract all with the fault; return the rows computed, or the error, which must be one of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedSegmentWarning)
        warnings.simplefilter("ignore", NotKeptWarning)
        try:
            features = extract(url, cache, ROWS)
            assert np.array_equal(features.numpy(), live(INPUTS)), "a wrong row was served"
            return features.report.rows_computed
        except ForethoughtError as err:
            return err


def committed(url, cache):
    """Count the sound rows in the bucket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedSegmentWarning)
        store = Store(url, cache=cache, readonly=True)
        return sum(store.table(key).rows for key in store.tables())


def plans(count):
    draw = random.Random(0)
    for _ in range(count):
        calls = draw.choice([(name,) for name in CALLS] + [CALLS] * 3 + [("ls", "find"), ("cat_file", "info")])
        way = draw.choice(["before", "before", "after", "partial", "partial", "slow", "late"])
        length = draw.choice([1, 1, 2, 5, 1000])
        yield {"calls": calls, "first": draw.choice([0, 1, 2, 3, 5, 8, 13, 21]), "count": length, "way": way,
               "error": draw.choice(list(ERRORS))}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("other_machine", [False, True], ids=["same machine", "another machine"])
def test_faults_of_a_bucket_lose_no_row_and_serve_no_wrong_one(faulty, tmp_path, other_machine):
    """Half is stored; then each call may fail in each way while the rest is: an error of ours or the right rows. After the
    fault what was committed is there, and the next run computes the others, and only those."""
    met = failed = 0
    for number, plan in enumerate(plans(50)):
        url, cache = f"memory://{os.urandom(8).hex()}", tmp_path / str(number)
        faulty()
        extract(url, cache, HALF)
        elsewhere = tmp_path / f"{number}-other" if other_machine else cache
        fault = faulty(**plan)
        outcome = attempt(url, elsewhere)
        met += bool(fault.hits)
        failed += isinstance(outcome, ForethoughtError) and str(outcome).startswith("Cannot")
        faulty()
        there = committed(url, tmp_path / f"{number}-third")
        assert there >= HALF, f"{plan}: {HALF - there} committed rows are lost"
        if not isinstance(outcome, ForethoughtError):
            assert there == ROWS, f"{plan}: rows were served that are not there"
            if plan["way"] != "late":  # no answer is not the answer that there is nothing
                assert outcome == ROWS - HALF, f"{plan}: {outcome} rows were computed"
        again = attempt(url, elsewhere)
        assert again == ROWS - there, f"{plan}: {again} instead of {ROWS - there}"
        assert attempt(url, tmp_path / f"{number}-last") == 0, plan
        fsspec.filesystem("memory").rm(url, recursive=True)
    assert met > 25
    assert failed > 8


def test_torn_objects_are_named_and_computed_again(faulty, tmp_path):
    """An upload that a bucket says it took and cut: never served; named, and computed by who asks next."""
    for first in range(1, 12, 2):
        url = f"memory://{os.urandom(8).hex()}"
        faulty()
        extract(url, tmp_path / "a", HALF)
        fault = faulty(calls=("pipe_file",), first=first, way="torn")
        attempt(url, tmp_path / "a")
        faulty()
        assert attempt(url, tmp_path / f"{first}") in range(ROWS - HALF + 1)
        assert attempt(url, tmp_path / f"{first}-again") == 0
        assert fault.hits
        fsspec.filesystem("memory").rm(url, recursive=True)


def test_torn_downloads_are_fetched_again(faulty, tmp_path):
    """Half of the bytes came, once, and nobody said so: a second copy is whole, and nothing is computed or named."""
    url = f"memory://{os.urandom(8).hex()}"
    extract(url, tmp_path / "a", ROWS)
    faulty()
    calls = faulty(calls=("cat_file",), first=10**6)
    assert attempt(url, tmp_path / "count") == 0
    for first in range(1, calls.seen):
        faulty(calls=("cat_file",), first=first, way="torn")
        assert attempt(url, tmp_path / str(first)) in (0, ROWS)


@pytest.mark.parametrize("error", ERRORS)
def test_bucket_that_goes_away_in_the_middle_is_an_error(faulty, tmp_path, error):
    """From some call on nothing answers: a StoreError that says so, at once, and nothing is believed to be gone."""
    url = f"memory://{os.urandom(8).hex()}"
    features = extract(url, tmp_path / "a", ROWS)
    for first in (3, 8, 15):
        faulty(calls=CALLS, first=first, count=10**6, error=error)
        outcome = attempt(url, tmp_path / f"b{first}")
        assert outcome == 0 or isinstance(outcome, ForethoughtError)
    faulty(calls=CALLS, first=0, count=10**6, error=error)
    assert np.array_equal(features.numpy(), live(INPUTS))  # what is open here stays
    with pytest.raises(StoreError):
        Store(url, cache=tmp_path / "c", readonly=True)
    faulty()
    assert attempt(url, tmp_path / "d") == 0


@pytest.mark.parametrize("error", ["denied", "timeout", "cut", "driver"])
def test_housekeeping_says_what_it_could_not_see(faulty, tmp_path, error):
    """`ls`, `verify` and `gc` of a bucket that fails at any call: an error, or what is so; never that a row may go."""
    url = f"memory://{os.urandom(8).hex()}"
    extract(url, tmp_path / "a", ROWS)
    for first in range(0, 30, 3):
        for look in (inventory, verify_store, lambda store: find_garbage(store, unreachable=True)):
            faulty()
            store = Store(url, cache=tmp_path / "a", readonly=True)
            faulty(calls=CALLS, first=first, count=1000, error=error)
            try:
                found = look(store)
            except ForethoughtError:
                continue
            for piece in getattr(found, "pieces", ()):
                assert piece.kind not in ("table", "damaged segment", "repeated segment"), piece
    faulty()
    assert committed(url, tmp_path / "b") == ROWS
