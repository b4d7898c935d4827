"""Writers that are killed, race or are forked: what was committed is right, and nothing else appears.

The killing happens in a fresh interpreter (this file, run as a script) that forks its writers: it has no
threads to lose.
"""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from forethought.store import Column, Store

COLUMNS = [Column("0", "U8", (16,)), Column("1", "F32", (5,))]
SEGMENT_ROWS = 7


KEYS = np.random.default_rng(0).integers(0, 256, (2003, 16), dtype=np.uint8)


def make_rows(numbers):
    """Rows whose content follows from their key, so that any row found can be judged alone."""
    keys = KEYS[list(numbers)]
    return keys, [keys, keys[:, :5].astype(np.float32)]


def count_right(table, numbers):
    """Return how many of the rows are there, having looked at every byte of each."""
    keys, parts = make_rows(numbers)
    found = 0
    for i, (number, row) in enumerate(table.locate(keys).tolist()):
        if number >= 0:
            for column, part in zip(COLUMNS, parts, strict=True):
                assert bytes(table.segment(number).column(column.name)[row]) == part[i].tobytes()
            found += 1
    return found


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Everything that needs a fresh interpreter, done in one: starting it takes longer than all the rest."""
    folder = tmp_path_factory.mktemp("writers")
    table = Store(folder / "spawned").table("ab", COLUMNS)
    keys, parts = make_rows(range(30))
    with table.writer(segment_rows=4) as writer:
        writer.append(keys, parts)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This process", __file__, folder],
        input=pickle.dumps((table, table.locate(keys))),
        capture_output=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def test_killed_writers_lose_at_most_their_unfinished_segment(reports):
    """kill -9 at random moments: what a writer had been told is committed is there, whole and right."""
    assert len(reports["kill_at_random"]) == 12
    for name, acknowledged, found, rows in reports["kill_at_random"]:
        assert rows == found, name
        assert found >= acknowledged, name
    assert sum(acknowledged for _, acknowledged, _, _ in reports["kill_at_random"]) > 0


def test_killed_at_every_line_of_a_commit_leaves_a_whole_store(reports):
    """Whatever the moment of death, the segment is whole or absent; the next writer goes on."""
    assert {found for found, _ in reports["kill_at_each_line"]} == {0, SEGMENT_ROWS}
    assert any(left for _, left in reports["kill_at_each_line"]), "no death hit the middle of a commit"


def test_processes_write_one_store_at_once(reports):
    """Same rows, different rows, the store itself made by all at once: every row is there and right."""
    assert reports["race"] == (130, 130, {}, [])


def test_spawned_reader_serves_pickled_places(reports):
    """A worker of a fresh interpreter reads the rows that its parent located, by the parent's numbers."""
    assert reports["serve"] == make_rows(range(30))[1][1].tobytes()


def test_threads_share_a_table(tmp_path):
    """Readers and writers in threads of one process: places stay valid while segments arrive."""
    table = Store(tmp_path / "store").table("ab", COLUMNS)
    keys, parts = make_rows(range(60))
    failures = []

    def write(start):
        with table.writer(segment_rows=3) as writer:
            for i in range(start, 60, 3):
                writer.append(keys[i : i + 1], [part[i : i + 1] for part in parts])

    def read():
        try:
            while any(writer.is_alive() for writer in writers):
                table.refresh()
                count_right(table, range(60))
        except BaseException as err:
            failures.append(err)
            raise

    writers = [threading.Thread(target=write, args=(start,)) for start in range(3)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in (*writers, *readers):
        thread.join()
    assert not failures
    assert count_right(table, range(60)) == table.rows == 60


def fork(work, *arguments):
    """Run `work` in a forked child, which never returns from here."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def kill_at_random(folder):
    reports, rng = [], random.Random(0)
    for i in range(12):
        store = Store(Path(folder) / f"random{i}")
        reader, pipe = os.pipe()
        child = fork(write_forever, store, pipe, (SEGMENT_ROWS, 20)[i % 2])  # 20: in the background
        os.close(pipe)
        first = os.read(reader, 1) if i % 3 else b""  # most die with something to lose, on a slow disk too
        time.sleep(0.002 + rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = sum(first + os.read(reader, 65536))
        os.close(reader)
        table = Store(store.path).table("ab", COLUMNS)
        found = count_right(table, range(2000))
        assert not table.damaged
        with Store(store.path).table("ab", COLUMNS).writer() as writer:
            keys, parts = make_rows(range(2000, 2003))
            writer.append(keys, parts)
        reports.append((store.path.name, acknowledged, found, table.rows))
    return reports


def write_forever(store, pipe, segment_rows):
    keys, parts = make_rows(range(2000))
    with store.table("ab", COLUMNS).writer(segment_rows=segment_rows) as writer:
        told = 0
        for i in range(0, 2000, 5):
            writer.append(keys[i : i + 5], [part[i : i + 5] for part in parts])
            if writer.rows_written > told:
                os.write(pipe, bytes([writer.rows_written - told]))
                told = writer.rows_written
        time.sleep(60)


def kill_at_each_line(folder):
    reports = []
    for line in range(1, 30):
        store = Store(Path(folder) / f"line{line}")
        child = fork(die_at_line, store, line)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            return reports
        left = [path.name for path in store.path.rglob("*.tmp")]
        table = Store(store.path).table("ab", COLUMNS)
        found = count_right(table, range(SEGMENT_ROWS))
        assert found == table.rows
        assert not table.damaged
        with table.writer() as writer:
            keys, parts = make_rows(range(SEGMENT_ROWS))
            writer.append(keys, parts)
        assert count_right(Store(store.path).table("ab"), range(SEGMENT_ROWS)) == SEGMENT_ROWS
        reports.append((found, left))
    raise AssertionError("the commit has more lines than this test kills at")


def die_at_line(store, line):
    writer = store.table("ab", COLUMNS).writer()
    keys, parts = make_rows(range(SEGMENT_ROWS))
    writer.append(keys, parts)
    passed = 0

    def count(frame, event, _):
        nonlocal passed
        if frame.f_code.co_name not in ("write_whole", "sync_folder"):
            return None
        if event == "line":
            passed += 1
            if passed == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)
    writer.flush()


def race(folder):
    path = Path(folder) / "race"
    reader, gate = os.pipe()
    children = [fork(race_once, path, reader, i) for i in range(6)]
    os.write(gate, b"x" * 6)
    os.close(gate)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    table = Store(path).table("ab")
    left = [each.name for each in path.rglob("*.tmp")]
    return count_right(table, range(130)), table.rows, table.damaged, left


def race_once(path, gate, number):
    os.read(gate, 1)
    own = range(10 + 20 * number, 30 + 20 * number)
    keys, parts = make_rows([*range(10), *own])
    table = Store(path).table("ab", COLUMNS)
    with table.writer(segment_rows=3) as writer:
        for i in range(0, 30, 2):
            writer.append(keys[i : i + 2], [part[i : i + 2] for part in parts])
            table.refresh()
            count_right(table, range(130))


def serve():
    table, places = pickle.load(sys.stdin.buffer)
    rows = (table.segment(number).column("1")[row].tobytes() for number, row in places.tolist())
    return b"".join(rows)


if __name__ == "__main__":
    works = [kill_at_random, kill_at_each_line, race]
    done = {"serve": serve()} | {work.__name__: work(sys.argv[1]) for work in works}
    sys.stdout.buffer.write(pickle.dumps(done))
