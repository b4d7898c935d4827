"""Whatever the system refuses, and whenever it kills: committed rows are right and are there, no other is served.

Every call to the system below the store is counted and, one after another, killed at or failed, in children forked from
a fresh interpreter (this file, run as a script under the shim of system_calls.py). What cannot be simulated is done:
a disk that is full, a quota, a user without rights, a folder that vanishes and comes back.
"""

import errno
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from system_calls import CHANGING, FAIL, HALF, KILL, LOOKING, STICKY, Calls, fork, run_script
from torch import nn
from torch.utils.data import Dataset

import forethought as ft
from forethought.errors import StoreError
from forethought.extracting.frozen import FrozenPart
from forethought.store import Column, DamagedSegmentError, Store

ROWS, BATCH, SEGMENT_ROWS = 24, 4, 8
COLUMNS = [Column("0", "U8", (16,)), Column("1", "F32", (300,))]
SEGMENT_BYTES = SEGMENT_ROWS * (16 + 16 + 1200) + 1024
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EMFILE, errno.ENOMEM,
          errno.ESTALE, errno.EINTR]  # fmt: skip
OF_THE_MOMENT = (errno.EMFILE, errno.ENOMEM)  # the process ran out of something: never the fault of a file


# --- rows that can be judged alone -------------------------------------------------------------------------------

KEYS = np.random.default_rng(0).integers(0, 256, (1000, 16), dtype=np.uint8)


def rows_of(numbers):
    keys = KEYS[list(numbers)]
    return keys, [keys, np.repeat(keys[:, :1], 300, axis=1).astype(np.float32)]


def count_right(table, numbers):
    """Count the rows that are there, having looked at every byte of each; drop what is damaged, as a caller does."""
    keys, parts = rows_of(numbers)
    found = 0
    for i, (number, row) in enumerate(table.locate(keys).tolist()):
        if number < 0:
            continue
        try:
            segment = table.segment(number)
            read = [bytes(segment.column(column.name)[row]) for column in COLUMNS]
        except DamagedSegmentError as err:
            table.drop(number, err)
            continue
        assert read == [part[i].tobytes() for part in parts], "a wrong row was served"
        found += 1
    return found


def temporary_bytes(folder):
    """Bytes of the largest file that a writer began and did not finish."""
    return max([path.stat().st_size for path in Path(folder).rglob(".*")], default=0)


# --- a real extraction, exact in every batch ---------------------------------------------------------------------


class Net(nn.Module):
    """Small whole numbers only: sums are exact, so every batch size gives the same bits."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 300).requires_grad_(False)
        self.layer.weight.data = (torch.arange(1200) % 7 - 3.0).reshape(300, 4)
        self.layer.bias.data = torch.arange(300.0) % 5
        self.head = nn.Linear(300, 2)

    def forward(self, x):
        return self.head(torch.relu(self.layer(x)))


INPUTS = torch.stack([torch.arange(4.0) + 3 * i for i in range(ROWS)])


def live_rows():
    net = Net()
    return torch.relu(net.layer(INPUTS))


class Counted(Dataset):
    """Counts its reads in memory that a parent shares."""

    def __init__(self, counter):
        self.counter = counter

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        self.counter[0] += 1
        return INPUTS[index]


def extract(store, data=INPUTS):
    return ft.extract(Net(), data, store, batch_size=BATCH, segment_rows=SEGMENT_ROWS, progress=False)


def are_right(features):
    return torch.equal(torch.cat([values for values, _ in features.batches(5)]), live_rows())


def committed(path):
    """Count the rows that a fresh look at a store finds; fail on anything damaged."""
    if not (path / "forethought.json").exists():
        return 0
    store = Store(path)
    tables = [store.table(each) for each in store.tables() if (path / "tables" / each / "table.note").exists()]
    assert all(table.verify() == {} for table in tables)
    return sum(table.rows for table in tables)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """All that needs the shim, done in one fresh interpreter: starting it takes longer than most of the rest."""
    return run_script(__file__, tmp_path_factory.mktemp("faults"), timeout_s=900)


# --- killed at every call ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_call_of_an_extraction_loses_nothing_committed(reports):
    """Before each call that changes a file, and in the middle of each write: what was renamed stays, the rest is
    computed again, and no more than the segments under way was computed in vain."""
    for how in ("before", "within"):
        told = reports[f"killed {how}"]
        assert len(told) > (30 if how == "before" else 8)
        assert {0, ROWS - SEGMENT_ROWS} <= {each["committed"] for each in told}
        for each in told:
            assert each["computed"] == ROWS - each["committed"], each
            assert each["right"], each
            assert each["read"] - each["committed"] <= 2 * SEGMENT_ROWS + BATCH, each
            assert each["temporary"] <= SEGMENT_BYTES, each


# --- every call fails --------------------------------------------------------------------------------------------


def broken(told):
    """List the cases that broke a law."""
    return [each for each in told if each["wrong"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["store", "extraction", "complete hit"])
def test_each_failing_call_is_survived_or_an_error_of_the_store(reports, where):
    """One call fails, any call, with any error: a StoreError that says what to do, or success; no harm either way."""
    told = reports[f"failing {where}"]
    assert len(told) > 100
    assert broken(told) == []
    assert any(each["raised"] for each in told)
    assert any(not each["raised"] for each in told)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["disk full", "disk read-only", "mount gone", "no descriptors"])
def test_a_lasting_failure_is_survived(reports, what):
    """From some call on all of a kind fail: the error is the store's, and when the fault is over the work resumes."""
    told = reports[what]
    assert len(told) > 5
    assert broken(told) == []
    assert any(each["raised"] for each in told)


# --- real faults -------------------------------------------------------------------------------------------------


def in_a_process(code, **options):
    """Run code of this module in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"from test_store_faults import *\n{code}"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_keeps_what_was_committed(small_disk):
    """Rows are written until the disk is full: the error names the command to run, and space freed is used again."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(100_000))
    store = Store(small_disk / "store")
    table, done = store.table("ab", COLUMNS), 0
    writer = table.writer(segment_rows=SEGMENT_ROWS)
    keys, parts = rows_of(range(1000))
    with pytest.raises(StoreError, match=r"df -h"):  # noqa: PT012
        for done in range(0, 1000, SEGMENT_ROWS):
            some = slice(done, done + SEGMENT_ROWS)
            writer.append(keys[some], [part[some] for part in parts])
    assert done > 3 * SEGMENT_ROWS
    assert temporary_bytes(small_disk) == 0
    with pytest.raises(StoreError, match="df -h"):
        store.write_note("abcd", {"text": "x" * 100_000})
    for each in (table, Store(store.path).table("ab")):
        assert count_right(each, range(1000)) == each.rows == done
    with pytest.raises(StoreError, match="df -h"):
        extract(store.path)
    ballast.unlink()
    features = extract(store.path)
    assert are_right(features)
    assert count_right(Store(store.path).table("ab"), range(done)) == done


def test_a_full_disk_has_room_for_no_store(small_disk):
    """Not even the marker fits: the error says so, and nothing half stays that keeps a store from being made."""
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(10**6))
    with pytest.raises(StoreError, match="No space left"):
        Store(small_disk / "store")
    ballast.unlink()
    assert are_right(extract(small_disk / "store"))


def test_a_quota_of_file_size_is_an_error_of_the_store(tmp_path):
    """The system refuses files beyond a size: EFBIG, not death by a signal; smaller segments go through."""
    path = tmp_path / "store"
    extract(path)
    code = f"""
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
table = Store({str(path)!r}).table("ab", COLUMNS)
keys, parts = rows_of(range(SEGMENT_ROWS))
try:
    with table.writer(segment_rows=SEGMENT_ROWS) as writer:
        writer.append(keys, parts)
except StoreError as err:
    assert "df -h" in str(err)
else:
    raise AssertionError("written beyond the quota")
assert temporary_bytes({str(path)!r}) == 0
with table.writer(segment_rows=2) as writer:
    writer.append(keys, parts)
assert count_right(Store({str(path)!r}).table("ab"), range(20)) == SEGMENT_ROWS
"""
    in_a_process(code)
    assert are_right(extract(path))
    assert count_right(Store(path).table("ab"), range(20)) == SEGMENT_ROWS


@pytest.fixture
def shared():
    """A folder that other users may enter; not pytest's, which each new run of pytest closes to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        if closed := [str(parent) for parent in folder.parents if not parent.stat().st_mode & 0o001]:
            pytest.skip(f"{closed[0]} may not be entered by others")
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_user_without_rights_is_served_what_may_be_read(shared):
    """As an unprivileged user: a store that may be read serves; what may not be written or read is a StoreError."""
    path = shared / "store"
    extract(path)
    (table,) = path.glob("tables/*")
    segment = next(table.glob("*.safetensors"))
    (shared / "closed").mkdir(mode=0o700)

    def append():
        with Store(path).table(table.name).writer() as writer:
            writer.append(KEYS[:1], [np.zeros((1, 1200), np.uint8)])

    assert fork(as_nobody, lambda: (are_right(extract(path)), extract(path).report.rows_computed)) == (True, 0)
    assert "readonly=True" in fork(as_nobody, append)
    assert "readonly=True" in fork(as_nobody, lambda: Store(path).write_note("abcd", {}))
    assert "readonly=True" in fork(as_nobody, lambda: Store(path).table("ab", COLUMNS).writer())
    assert "readonly=True" in fork(as_nobody, lambda: extract(path, INPUTS + 1))
    assert "that can be written" in fork(as_nobody, lambda: Store(shared / "new"))
    assert "right to read" in fork(as_nobody, lambda: Store(shared / "closed" / "new"))
    segment.chmod(0o000)
    rows, said = fork(as_nobody, lambda: warned(lambda: Store(path).table(table.name).rows))
    # A segment holds half of the rows that a kill may cost: the other half is written meanwhile.
    assert (rows, len(said)) == (ROWS - SEGMENT_ROWS // 2, 1)
    assert "Permission denied" in said[0]
    segment.chmod(0o644)
    table.chmod(0o711)
    assert "chmod" in fork(as_nobody, lambda: extract(path))
    table.chmod(0o755)
    path.chmod(0o700)
    assert "chmod" in fork(as_nobody, lambda: extract(path))
    path.chmod(0o755)
    assert fork(as_nobody, lambda: extract(path).report.rows_computed) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("closed", ["tables/*", "**/*"])
def test_who_may_not_write_is_told_before_anything_is_computed(shared, closed):
    """Rows that cannot be kept are not computed, nor samples read for them; what is there is served."""
    path = shared / "store"
    extract(path)
    for folder in (path, *path.rglob("*")):
        os.chown(folder, 65534, 65534)
    for folder in path.glob(closed):
        os.chown(folder, 0, 0)

    def more():
        ran = []
        FrozenPart.rows = lambda *_: ran.append(1)
        try:
            extract(path, INPUTS + 1)
        except StoreError as err:
            return str(err), len(ran)

    assert fork(as_nobody, lambda: (are_right(extract(path)), extract(path).report.rows_computed)) == (True, 0)
    said, ran = fork(as_nobody, more)
    assert "may only read" in said
    assert "cp -r" in said
    assert ran == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("closed", ["notes", "manifests", "claims"])
def test_what_only_saves_work_may_be_unwritable(shared, closed):
    """Rows are computed, kept and served where notes, manifests or claims cannot be written; a warning says so."""
    path = shared / "store"
    extract(path)
    for kind in ("notes", "manifests", "claims"):
        (path / kind).mkdir(exist_ok=True)
    for folder in (path, *path.rglob("*")):
        os.chown(folder, 65534, 65534)
    os.chown(path / closed, 0, 0)

    def more():
        features = extract(path, [*(INPUTS + 1)])
        return features.report.rows_computed, extract(path, [*(INPUTS + 1)]).report.rows_computed

    (computed, said) = fork(as_nobody, lambda: warned(more))
    assert computed == (ROWS, 0)
    assert all("No row is lost" in each and closed[:-1] in each for each in said)


def as_nobody(work):
    """Do something as a user without rights; give the text of the StoreError, or the result."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        return work()
    except StoreError as err:
        return str(err)


def warned(work):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = work()
    return result, [str(each.message) for each in said]


@pytest.mark.filterwarnings("ignore::forethought.store.DamagedSegmentWarning")
@pytest.mark.parametrize("at", [2, SEGMENT_ROWS + 2, ROWS - 1])
def test_a_store_that_vanishes_and_comes_back_resumes(tmp_path, at):
    """The folder is renamed away while an extraction runs: an error, no new folder in its place; then it goes on."""
    path, away, counter = tmp_path / "store", tmp_path / "away", [0]
    extract(tmp_path / "other", Counted(counter))
    before = counter[0] - ROWS

    class Vanishing(Counted):
        def __getitem__(self, index):
            if self.counter[0] == before + at:
                path.rename(away)
            return super().__getitem__(index)

    with pytest.raises(StoreError, match="gone"):
        extract(path, Vanishing([0]))
    assert not path.exists()
    away.rename(path)
    there = committed(path)
    assert there >= at // SEGMENT_ROWS * SEGMENT_ROWS - SEGMENT_ROWS
    features = extract(path)
    assert are_right(features)
    assert features.report.rows_computed == ROWS - there


# --- the script --------------------------------------------------------------------------------------------------


def kill(calls, folder, mode, kinds):
    told = []
    for number in range(1, 1000):
        path = folder / f"killed{mode}-{number}"
        counter = mmap.mmap(-1, 1)
        end = fork(extract_killed, calls, path, counter, mode, number, kinds)
        if end != signal.SIGKILL:
            # The pass over the data comes last: what was read before it, for probing, is known only now.
            before = counter[0] - ROWS
            return [each | {"read": max(each["read"] - before, 0)} for each in told]
        there, temporary = committed(path), temporary_bytes(path)
        told.append({"number": number, "committed": there, "read": counter[0], "temporary": temporary} | finish(path))
    raise AssertionError("no end of calls")


def extract_killed(calls, path, counter, mode, number, kinds):
    calls.arm(mode, number, kinds=kinds)
    extract(path, Counted(counter))


def finish(path):
    features = extract(path)
    again = extract(path)
    assert again.report.rows_computed == 0
    return {"computed": features.report.rows_computed, "right": are_right(features) and are_right(again)}


def fail_store(calls, folder):
    """Fail each call of a plain use of the store, with one error each, in turn."""
    before = folder / "before"
    with Store(before).table("ab", COLUMNS).writer(segment_rows=SEGMENT_ROWS) as writer:
        writer.append(*rows_of(range(2 * SEGMENT_ROWS)))
    Store(before).write_note("abcd", {"rows": 1})
    return fail_each(use_store, calls, before, 1)


def fail_each(use, calls, before, errors):
    told = []
    for number in range(1, 10_000):
        for code in (ERRORS[(number * 3 + i) % len(ERRORS)] for i in range(errors)):
            with copied(before) as path:
                each = use(calls, path, FAIL, number, code, "")
            if not each.pop("reached"):
                return told
            told.append(each)
    raise AssertionError("no end of calls")


@contextmanager
def copied(folder):
    path = Path(shutil.copytree(folder, folder.with_name("copy")))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def use_store(calls, path, mode, number, code, kinds):
    """Use a store while something fails; then look whether any law was broken."""
    wrong, raised, acknowledged = [], None, 2 * SEGMENT_ROWS
    calls.arm(mode, number, code, kinds)
    warnings.simplefilter("always")
    warnings.showwarning = lambda *_: None
    store = table = None
    try:
        store = Store(path)
        table = store.table("ab", COLUMNS)
        found = count_right(table, range(100))
        if found < acknowledged and not table.damaged and code != errno.ENOENT:
            wrong.append("rows missing, and nobody was told")
        if found < acknowledged and code in OF_THE_MOMENT:
            wrong.append("rows are called absent for lack of descriptors or memory")
        with table.writer(segment_rows=SEGMENT_ROWS) as writer:
            keys, parts = rows_of(range(acknowledged, 100))
            for start in range(0, 20, 5):
                writer.append(keys[start : start + 5], [part[start : start + 5] for part in parts])
                acknowledged = 2 * SEGMENT_ROWS + writer.rows_written
        acknowledged = 2 * SEGMENT_ROWS + 20
        store.write_note("abcd", {"rows": 2})
        store.note("abcd")
        table.verify()
        count_right(store.table("ab", COLUMNS), range(100))
        _ = table.size_bytes, store.size_bytes, store.tables()
    except StoreError as err:
        raised = str(err)
        if "expected" not in raised or "got" not in raised:
            wrong.append(f"an error without a fix: {raised}")
    except BaseException as err:
        wrong.append(f"an error that is not the store's: {type(err).__name__} in {place_of(err)}")
    reached = calls.count >= number
    calls.disarm()
    wrong += after(path, acknowledged)
    if store is not None:
        try:
            again = store.table("ab", COLUMNS)
            with again.writer() as writer:
                writer.append(*rows_of(range(60, 70)))
            if count_right(again, range(60, 70)) != 10 or count_right(store.table("ab"), range(60, 70)) != 10:
                wrong.append("the next writer's rows are not there")
        except Exception as err:
            wrong.append(f"the same store is of no use after it: {type(err).__name__}: {err}")
    return {"number": number, "code": errno.errorcode[code], "raised": raised, "wrong": wrong, "reached": reached}


def place_of(err):
    """Name the last line of forethought that an error passed."""
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if "forethought" in frame.filename]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else str(err)


def after(path, acknowledged):
    wrong = []
    table = Store(path).table("ab", COLUMNS)
    if count_right(table, range(acknowledged)) != acknowledged:
        wrong.append("committed rows are gone")
    if table.verify():
        wrong.append(f"damaged: {table.damaged}")
    if temporary_bytes(path) > SEGMENT_BYTES:
        wrong.append("a large temporary file stays")
    if (Store(path).note("abcd") or {}).get("rows") not in (1, 2):
        wrong.append("the note is gone")
    return wrong


def fail_extraction(calls, folder, rows, errors):
    """Fail each call of a real extraction, of which some rows are there."""
    before = folder / f"extracted{rows}"
    extract(before, INPUTS[:rows])
    return fail_each(use_extract, calls, before, errors)


def use_extract(calls, path, mode, number, code, kinds):
    wrong, raised = [], None
    warnings.simplefilter("always")
    warnings.showwarning = lambda *_: None
    before = committed(path)
    calls.arm(mode, number, code, kinds)
    try:
        features = extract(path)
        values = torch.cat([values for values, _ in features.batches(5)])
        if not torch.equal(values, live_rows()):
            wrong.append("wrong rows")
        if code in OF_THE_MOMENT and features.report.rows_computed > ROWS - before:
            wrong.append("computed again for lack of descriptors or memory")
    except StoreError as err:
        raised = str(err)
        if "expected" not in raised or "got" not in raised:
            wrong.append(f"an error without a fix: {raised}")
    except BaseException as err:
        wrong.append(f"an error that is not the store's: {type(err).__name__} in {place_of(err)}")
    reached = calls.count >= number
    calls.disarm()
    if temporary_bytes(path) > SEGMENT_BYTES:
        wrong.append("a large temporary file stays")
    there = committed(path)
    if there < before:
        wrong.append("committed rows are gone")
    features = extract(path)
    if features.report.rows_computed != ROWS - there or not are_right(features):
        wrong.append(f"the next run computed {features.report.rows_computed} with {there} rows there")
    return {"number": number, "code": errno.errorcode[code], "raised": raised, "wrong": wrong, "reached": reached}


def lasting(calls, folder, code, kinds):
    told = []
    for number in range(1, 10_000, 3):
        with copied(folder / "before") as path:
            each = use_store(calls, path, FAIL | STICKY, number, code, kinds)
        if not each.pop("reached"):
            return told
        told.append(each)
    raise AssertionError("no end of calls")


def main(folder):
    calls = Calls(folder)
    jobs = {
        "killed before": lambda: kill(calls, folder, KILL, CHANGING),
        "killed within": lambda: kill(calls, folder, KILL | HALF, "w"),
        "failing store": lambda: fail_store(calls, folder),
        "failing extraction": lambda: fail_extraction(calls, folder, SEGMENT_ROWS, 1),
        "failing complete hit": lambda: fail_extraction(calls, folder, ROWS, 2),
        "disk full": lambda: lasting(calls, folder, errno.ENOSPC, "owftmnl"),
        "disk read-only": lambda: lasting(calls, folder, errno.EROFS, "owtmnlu"),
        "mount gone": lambda: lasting(calls, folder, errno.ESTALE, CHANGING + LOOKING),
        "no descriptors": lambda: lasting(calls, folder, errno.EMFILE, "oid"),
    }
    done = {}
    for name, job in jobs.items():
        started = time.perf_counter()
        done[name] = job()
        print(f"{name}: {len(done[name])} cases, {time.perf_counter() - started:.1f} s", file=sys.stderr)
    sys.stdout.buffer.write(pickle.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
