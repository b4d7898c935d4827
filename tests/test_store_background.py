"""Writing while the next rows are computed: nothing waits that need not, nothing is lost that would not be otherwise."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count

import numpy as np
import pytest

from forethought.errors import StoreError
from forethought.store import Column, Ragged, Store
from forethought.store.task import Task

COLUMNS = [Column("0", "F32", (3,)), Column("1", "I16", (None,))]
ROWS = 24
KEYS = np.random.default_rng(0).integers(0, 256, (ROWS, 16), dtype=np.uint8)
FIXED = np.random.default_rng(1).integers(0, 256, (ROWS, 12), dtype=np.uint8)
WORDS = Ragged(np.arange(ROWS * (ROWS - 1), dtype=np.uint8), np.arange(ROWS)[:, None])


def append(writer, start, stop):
    rows = slice(start, stop)
    writer.append(KEYS[rows], [FIXED[rows], WORDS.select(rows)])


def count_right(store):
    """Return how many rows are there in a fresh look at the store, having compared every byte of each."""
    table = store.table("ab", COLUMNS)
    places = table.locate(KEYS).tolist()
    for i, (number, row) in enumerate(places):
        if number >= 0:
            assert bytes(table.segment(number).column("0")[row]) == bytes(FIXED[i])
            words = table.segment(number).column("1").select(np.array([row]))
            assert bytes(words.values) == bytes(WORDS.select(np.array([i])).values)
    assert not table.damaged
    return sum(number >= 0 for number, _ in places)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def _no_thread_left():
    before = threading.active_count()
    yield
    wait_for_thread()
    assert threading.active_count() == before


@pytest.fixture
def gate(monkeypatch):
    """Hold every flush of a file that another thread than this one makes, until the gate is set."""
    gate, fsync, here = threading.Event(), os.fsync, threading.get_ident()

    def wait(descriptor):
        if threading.get_ident() != here:
            assert gate.wait(20)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    yield gate
    gate.set()


def test_append_does_not_wait_for_the_disk(store, gate):
    """The next buffer fills while the last one is being written; flush returns when all is durable."""
    writer = store.table("ab", COLUMNS).writer(segment_rows=8)
    append(writer, 0, 2)
    append(writer, 2, 4)  # full: handed over
    append(writer, 4, 6)
    assert writer.rows_written == count_right(store) == 0
    gate.set()
    writer.flush()
    assert writer.rows_written == count_right(store) == 6
    writer.close()


def test_only_two_buffers_are_there_at_once(store, gate):
    """A disk that is slower than the trunk makes it wait: rows do not pile up in memory."""
    writer = store.table("ab", COLUMNS).writer(segment_rows=8)
    for start in (0, 2, 4):
        append(writer, start, start + 2)
    late = []
    gate_keeper = threading.Timer(0.2, lambda: (late.append(count_right(store)), gate.set()))
    gate_keeper.start()
    append(writer, 6, 8)
    gate_keeper.join()
    assert late == [0]
    assert writer.rows_written == 4
    writer.close()
    assert count_right(store) == 8


@pytest.mark.parametrize(("segment_rows", "at_once"), [(1, 1), (2, 1), (3, 1), (6, 2), (7, 2), (8, 3), (8, 5), (5, 8)])
def test_a_kill_costs_at_most_the_rows_of_a_segment(store, monkeypatch, segment_rows, at_once):
    """At any moment at most `segment_rows` of the rows whose append returned are not durable."""
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.003), fsync(descriptor)))
    with store.table("ab", COLUMNS).writer(segment_rows=segment_rows) as writer:
        for start in range(0, ROWS, at_once):
            append(writer, start, start + at_once)
            assert min(start + at_once, ROWS) - count_right(store) <= segment_rows
            assert writer.rows_written <= count_right(store)
    assert count_right(store) == writer.rows_written == ROWS
    most = max(segment_rows // 2, segment_rows if at_once > segment_rows // 2 else 0)
    table = store.table("ab")
    table.refresh()
    rows = [table.segment(number).rows for number in range(len(list(table.path.glob("*.safetensors"))))]
    assert max(rows) <= most
    assert at_once > segment_rows // 2 or all(each % at_once == 0 for each in rows), "a batch was torn"


def test_where_nothing_can_be_halved_rows_are_written_at_once(store):
    """An append of a segment or more is durable when it returns."""
    with store.table("ab", COLUMNS).writer(segment_rows=1) as writer:
        for start in range(3):
            append(writer, start, start + 1)
            assert writer.rows_written == count_right(store) == start + 1


def test_commits_are_told_in_the_thread_of_the_caller(store):
    """The table is touched, and may warn, where the writer is used."""
    table, told = store.table("ab", COLUMNS), []
    admit = table._admit_committed
    table._admit_committed = lambda name: (told.append(threading.get_ident()), admit(name))
    with table.writer(segment_rows=4) as writer:
        for start in range(ROWS):
            append(writer, start, start + 1)
    assert told == [threading.get_ident()] * (ROWS // 2)
    assert table.rows == ROWS


@contextmanager
def full_disk(monkeypatch, fails):
    """Let those flushes fail whose number, counted from 0, is in `fails`."""
    fsync, numbers = os.fsync, count()

    def fail(descriptor):
        if not os.path.isdir(f"/proc/self/fd/{descriptor}") and next(numbers) in fails:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


def wait_for_thread():
    for thread in threading.enumerate():
        if thread.name == "forethought":
            thread.join(20)


def go_on(writer, call):
    if call in ("flush", "close"):
        getattr(writer, call)()
    append(writer, 4, 6)
    if call == "filling append":
        append(writer, 6, 8)


@pytest.mark.parametrize("call", ["append", "filling append", "flush", "close"])
def test_error_in_the_background_is_raised_at_the_next_call(store, monkeypatch, call):
    """Once, as the StoreError it is; the rows of that buffer are given up, and no others."""
    writer = store.table("ab", COLUMNS).writer(segment_rows=8)
    with full_disk(monkeypatch, {0}):
        append(writer, 0, 2)
        append(writer, 2, 4)
        if call != "filling append":
            wait_for_thread()
        with pytest.raises(StoreError, match=r"4 rows .*Nothing of it.*df -h") as caught:
            go_on(writer, call)
    assert isinstance(caught.value.__cause__, OSError)
    writer.close()
    assert count_right(store) == writer.rows_written
    assert (store.table("ab").locate(KEYS[:4]) == -1).all()


@pytest.mark.parametrize("fails", [{0}, {1}, {0, 1}])
def test_close_commits_what_it_can_and_tells_every_loss(store, monkeypatch, fails):
    """A failure in the background does not keep the last rows from the disk, and neither hides the other."""
    writer = store.table("ab", COLUMNS).writer(segment_rows=8)
    with full_disk(monkeypatch, fails), pytest.raises(StoreError, match="Cannot write") as caught:
        append_and_close(writer, monkeypatch)
    assert len(getattr(caught.value, "__notes__", [])) == len(fails) - 1
    assert count_right(store) == 5 - 4 * (0 in fails) - 1 * (1 in fails)


def append_and_close(writer, monkeypatch):
    """Fill one buffer and half of the other, and hold back the thread until both are there."""
    gate, run = threading.Event(), Task._run
    monkeypatch.setattr(Task, "_run", lambda task: (gate.wait(20), run(task)))
    with writer:
        append(writer, 0, 4)
        append(writer, 4, 5)
        gate.set()


def test_forked_child_does_not_wait_for_a_thread_it_does_not_have(store, gate):
    """It commits on its own what its parent was still writing; the parent goes on as if nothing was."""
    writer = store.table("ab", COLUMNS).writer(segment_rows=8)
    for start in (0, 2, 4):
        append(writer, start, start + 2)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            writer.close()
            os._exit(0 if writer.rows_written == count_right(store) == 6 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert writer.rows_written == 0
    gate.set()
    writer.close()
    assert writer.rows_written == count_right(store) == 6


def test_without_threads_the_writer_writes(store, monkeypatch):
    """A process that may start none, or that is ending, loses nothing."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with store.table("ab", COLUMNS).writer(segment_rows=4) as writer:
        for start in range(ROWS):
            append(writer, start, start + 1)
    assert count_right(store) == ROWS


LATE = """
import sys, time, os
sys.path[:0] = {path!r}
from test_store_background import COLUMNS, Store, append
fsync = os.fsync
os.fsync = lambda descriptor: (time.sleep(0.3), fsync(descriptor))
writer = Store({folder!r}).table("ab", COLUMNS).writer(segment_rows=8)
append(writer, 0, 4)
append(writer, 4, 6)
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "os.kill(os.getpid(), 2)"])
def test_interpreter_that_exits_completes_what_is_being_written(store, end):
    """Exit waits for the thread and does not hang; rows of a writer that nobody closed are lost, as ever."""
    code = LATE.format(path=[os.path.dirname(__file__), *sys.path], folder=str(store.path)) + end
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert done.returncode == (0 if "kill" not in end else -2), done.stderr
    assert count_right(store) == 4
    assert not list(store.path.rglob("*.tmp"))


class Interrupts:
    """Raises KeyboardInterrupt at the given line, as counted, of what an append and a close run in this thread."""

    NAMES = (
        "append",
        "take",
        "_take_values",
        "_hand_over",
        "_settle",
        "_first_turn",
        "start",
        "result",
        "clear",
        "_count",
    )

    def __init__(self, line):
        self.left = line

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _trace(self, frame, event, _):
        if frame.f_code.co_name not in self.NAMES or "forethought" not in frame.f_code.co_filename:
            return None
        self.left -= event == "line"
        if self.left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self._trace


def test_interrupt_at_any_line_loses_no_row_and_leaves_no_thread(store):
    """Rows whose append returned are there after the `with` block, whatever line an interrupt hit."""
    for line in count(1):
        table = store.table(f"{line:x}", COLUMNS)
        appended = 0
        interrupts = Interrupts(line)
        with suppress(KeyboardInterrupt), table.writer(segment_rows=4) as writer, interrupts:
            for start in range(9):
                append(writer, start, start + 1)
                appended += 1
        wait_for_thread()
        fresh = store.table(f"{line:x}", COLUMNS)
        there = fresh.locate(KEYS[:9])[:, 0] >= 0
        assert there[:appended].all(), line
        assert there.sum() <= appended + 1
        for (number, row), fixed in zip(fresh.locate(KEYS[:9]).tolist(), FIXED, strict=False):
            assert number < 0 or bytes(fresh.segment(number).column("0")[row]) == bytes(fixed)
        assert not fresh.damaged
        if interrupts.left > 0:
            break
    assert line > 100


def test_task_runs_once():
    """In the background, or where its result is asked for first; an error is raised to who asks."""
    calls = []
    task = Task(lambda: calls.append(1))
    assert not task.is_done
    task.result()
    task.start()
    wait_for_thread()
    assert calls == [1]
    failing = Task(lambda: 1 / 0)
    failing.start()
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert failing.is_done
