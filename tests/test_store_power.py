"""Power fails: from every moment, every state that a disk may then be in, a store comes back with all it had promised.

What writers do below the store is recorded, call by call, in a fresh interpreter (this file, run as a script under the
shim of system_calls.py). `Disk` plays the record and says what may be left when the power fails, as badly as POSIX allows:

- bytes not yet flushed by fsync of their file may be there, be lost, or be zeros, each 512 of them on their own, and
  the size of the file may be the old or the new one;
- a name that was made, moved or removed may or may not be so, each on its own, until its folder is flushed.
"""

import itertools
import os
import pickle
import random
import shutil
import signal
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from system_calls import KILL, Call, Calls, fork, read_record, run_script

from forethought.errors import StoreError
from forethought.store import Column, Store

COLUMNS = [Column("0", "U8", (16,)), Column("1", "F32", (100,))]
KEYS = np.random.default_rng(0).integers(0, 256, (400, 16), dtype=np.uint8)
SECTOR = 512
STATES = 40  # looked at after each call


def rows_of(numbers):
    keys = KEYS[list(numbers)]
    return keys, [keys, np.repeat(keys[:, :1], 100, axis=1).astype(np.float32)]


# --- the disk ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class File:
    """Bytes as the system shows them, as they are on the disk for sure, and the sectors that may differ."""

    now: bytearray = field(default_factory=bytearray)
    sure: bytes = b""
    touched: set[int] = field(default_factory=set)

    def write(self, offset, content):
        self.now.extend(bytes(max(0, offset + len(content) - len(self.now))))
        self.now[offset : offset + len(content)] = content
        self.touched |= set(range(offset // SECTOR, (offset + len(content) - 1) // SECTOR + 1))

    def truncate(self, size):
        self.touched |= set(range(min(size, len(self.now)) // SECTOR, max(size, len(self.now)) // SECTOR + 1))
        self.now = self.now[:size] + bytes(max(0, size - len(self.now)))

    def flush(self):
        self.sure = bytes(self.now)
        self.touched.clear()

    def left(self, rng):
        """Give one state that a crash may leave: all, nothing, zeros, a torn tail, or sectors by chance."""
        if not self.touched:
            return self.sure
        how = rng.choice(["all", "nothing", "zeros", "torn", "mixed"])
        if how == "all":
            return bytes(self.now)
        if how == "nothing":
            return self.sure
        size = rng.choice([len(self.now), max(len(self.sure), rng.randrange(0, len(self.now) + SECTOR, SECTOR))])
        left = bytearray(self.sure[:size].ljust(size, b"\0"))
        cut = rng.choice(sorted(self.touched))
        for sector in self.touched:
            is_there = {"zeros": False, "torn": sector < cut, "mixed": rng.random() < 0.5}[how]
            part = slice(sector * SECTOR, min((sector + 1) * SECTOR, size))
            if is_there and part.start < size:
                left[part] = self.now[part].ljust(part.stop - part.start, b"\0")
        return bytes(left)


@dataclass(eq=False)
class Folder:
    """Names as the system shows them, as they are for sure, and the changes that may or may not be there."""

    now: dict = field(default_factory=dict)
    sure: dict = field(default_factory=dict)
    open: list = field(default_factory=list)

    def change(self, change):
        """`change` maps names to what they stand for from now on, None for nothing: all of it or none."""
        _apply(self.now, change)
        self.open.append(change)

    def flush(self):
        self.sure = dict(self.now)
        self.open.clear()


def _apply(names, change):
    for name, what in change.items():
        if what is None:
            names.pop(name, None)
        else:
            names[name] = what


class Disk:
    """What lies below a folder that was there and empty when the record begins."""

    def __init__(self, root):
        self.root = root
        self.top = Folder()
        self.opened = {}

    def play(self, call: Call):
        kind = call.kind
        if kind == "o":
            what = self.at(call.path)
            if what is None:
                assert call.at & os.O_CREAT, call
                what = File()
                folder, name = self.parent(call.path)
                folder.change({name: what})
            elif call.at & os.O_TRUNC:
                what.truncate(0)
            self.opened[call.id] = what
        elif kind == "w":
            self.opened[call.id].write(call.at, call.content)
        elif kind == "t":
            self.opened[call.id].truncate(call.at)
        elif kind == "f":
            self.opened[call.id].flush()
        elif kind == "m":
            folder, name = self.parent(call.path)
            folder.change({name: Folder()})
        elif kind == "u":
            folder, name = self.parent(call.path)
            folder.change({name: None})
        elif kind in "nl":
            (source, old), (target, new) = self.parent(call.path), self.parent(call.other)
            assert source is target or kind == "l", "a move between folders: teach it to this disk"
            target.change({new: source.now[old]} | ({old: None} if kind == "n" else {}))

    def parent(self, path):
        folder, _, name = path.rpartition("/")
        return self.at(folder), name

    def at(self, path):
        what = self.top
        for name in Path(path).relative_to(self.root).parts:
            what = what.now.get(name)
            if what is None:
                return None
        return what

    def tree(self):
        """Give all files as the system shows them."""
        return dict(_files(self.top, "", lambda folder: folder.now, lambda file: bytes(file.now)))

    def left(self, rng):
        """Give one state that a crash may leave: all files, by path."""
        how = rng.choice(["sure", "all", "mixed", "mixed"])

        def names(folder):
            left = dict(folder.sure)
            for change in folder.open:
                if how == "all" or (how == "mixed" and rng.random() < 0.5):
                    _apply(left, change)
            return left

        return dict(_files(self.top, "", names, lambda file: file.left(rng)))

    @property
    def is_open(self):
        """Say whether anything may be lost."""
        return any(_unsure(self.top))


def _files(folder, path, names, content):
    for name, what in names(folder).items():
        if isinstance(what, File):
            yield f"{path}{name}", content(what)
        else:
            yield f"{path}{name}/", None
            yield from _files(what, f"{path}{name}/", names, content)


def _unsure(folder):
    yield bool(folder.open)
    for what in {*folder.now.values(), *folder.sure.values()}:
        if isinstance(what, File):
            yield bool(what.touched)
        else:
            yield from _unsure(what)


def lay(tree, folder):
    """Put files where a store can be opened on them. A folder's own line has no bytes."""
    folder.mkdir()
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).write_bytes(content)
    return folder


def states(record, root):
    """Yield every distinct state that a crash may leave, with what had been promised by then."""
    disk, promised, rng, seen = Disk(root), (0, 0), random.Random(0), set()
    for call in record:
        if call.kind == "#":
            promised = tuple(map(int, call.path.split()))
        else:
            disk.play(call)
        for _ in range(STATES if disk.is_open else 1):
            left = disk.left(rng)
            mark = hash((promised, tuple(sorted(left.items(), key=lambda item: item[0]))))
            if mark not in seen:
                seen.add(mark)
                yield promised, left


# --- what must hold ----------------------------------------------------------------------------------------------


def broken(promised, folder):
    """Open what a crash left; say which law it breaks, or nothing."""
    rows, note = promised
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            store = Store(folder)
            table = store.table("ab", COLUMNS)
            keys, parts = rows_of(range(len(KEYS)))
            places = table.locate(keys).tolist()
            for i, (number, row) in enumerate(places):
                if number >= 0:
                    segment = table.segment(number)
                    read = [bytes(segment.column(column.name)[row]) for column in COLUMNS]
                    if read != [part[i].tobytes() for part in parts]:
                        return f"row {i} is wrong"
            there = sum(number >= 0 for number, _ in places[:rows])
        except StoreError as err:
            return f"it cannot be read: {err}"
        if there < rows:
            return f"{rows - there} of {rows} committed rows are gone"
        if said or table.verify():
            return f"damaged: {[str(each.message) for each in said]}"
        if note and (store.note("abcd") or {"number": -1})["number"] < note:
            return f"note {note} is gone: {store.note('abcd')}"
        with table.writer() as writer:
            writer.append(*rows_of([399]))
        return "" if (Store(folder).table("ab").locate(KEYS[399:]) >= 0).all() else "the next writer's row is not there"


def looked_at(promised, left, scratch):
    try:
        return broken(promised, lay(left, scratch / "left") / "store").replace(str(scratch), "")
    finally:
        shutil.rmtree(scratch / "left")


def broken_states(record, root, scratch):
    """Give the laws that are broken, by state, and how many states there were."""
    told, count = {}, 0
    for promised, left in states(record, root):
        count += 1
        why = looked_at(promised, left, scratch)
        if why:
            told.setdefault(why, (promised, list(left)))
    return told, count


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("power")
    return run_script(__file__, folder), folder


def test_the_record_is_complete(recorded):
    """Playing it gives the very files that are there: nothing was written past the shim."""
    told, folder = recorded
    for name in told:
        disk = Disk(str(folder / name))
        for call in read_record(folder / f"{name}.record"):
            disk.play(call)
        there = {
            f"{path.relative_to(folder / name)}{'/' if path.is_dir() else ''}": None
            if path.is_dir()
            else path.read_bytes()
            for path in (folder / name).rglob("*")
        }
        assert disk.tree() == there


def test_a_power_failure_at_any_moment_loses_nothing_committed(recorded, tmp_path):
    """Segments, notes and the store itself: what a writer had been told is committed is there and right."""
    _, folder = recorded
    told, count = broken_states(read_record(folder / "plain.record"), str(folder / "plain"), tmp_path)
    assert count > 100
    assert told == {}


def test_a_store_that_made_its_own_folder_survives_too(recorded, tmp_path):
    """The name of the store in its parent folder is flushed as well, or all below it is gone."""
    _, folder = recorded
    told, _ = broken_states(read_record(folder / "fresh.record"), str(folder / "fresh"), tmp_path)
    assert told == {}


@pytest.mark.slow
def test_a_power_failure_after_another_writer_was_killed_loses_nothing_committed(recorded, tmp_path):
    """One is killed at each of its calls; the next finds folders that were made but not flushed, and must see to it."""
    recordings, folder = recorded
    names = [name for name in recordings if name.startswith("killed")]
    assert len(names) > 20
    told = {}
    for name in names:
        # What the killed one may lose is seen in the plain record; here what the other was promised counts.
        record = read_record(folder / f"{name}.record")
        promised = tuple(map(int, [call.path for call in record if call.kind == "#"][-1].split()))
        disk = Disk(str(folder / name))
        for call in record:
            disk.play(call)
        rng = random.Random(0)
        for _ in range(STATES if disk.is_open else 1):
            left = disk.left(rng)
            why = looked_at(promised, left, tmp_path)
            if why:
                told.setdefault(why, (name, list(left)))
    assert told == {}


BAD = {
    "renamed before it is flushed": lambda temporary, final, content: [
        ("open", temporary), ("write", temporary, content), ("rename", temporary, final), ("flush", final),
        ("flush", "."),
    ],
    "never flushed": lambda temporary, final, content: [
        ("open", temporary), ("write", temporary, content), ("rename", temporary, final), ("flush", "."),
    ],
    "folder not flushed": lambda temporary, final, content: [
        ("open", temporary), ("write", temporary, content), ("flush", temporary), ("rename", temporary, final),
    ],
    "written in place": lambda temporary, final, content: [
        ("open", final), ("write", final, content), ("flush", final), ("flush", "."),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", [*BAD, "right"])
def test_the_disk_catches_each_mistake(name):
    """Every wrong order of calls leaves some state in which a promised file is torn or gone; the right one none."""

    def right(temporary, final, content):
        return [("open", temporary), ("write", temporary, content), ("flush", temporary), ("rename", temporary, final),
                ("flush", ".")]  # fmt: skip

    content, disk, ids = os.urandom(3000), Disk("/s"), {".": 0}
    disk.opened[0] = disk.top
    rng, bad = random.Random(0), False
    for number, step in enumerate(BAD.get(name, right)("t", "f", content), 1):
        if step[0] == "open":
            ids[step[1]] = number
            disk.play(Call("o", number, os.O_CREAT, f"/s/{step[1]}", "", b""))
        elif step[0] == "write":
            disk.play(Call("w", ids[step[1]], 0, "", "", step[2]))
        elif step[0] == "flush":
            disk.play(Call("f", ids[step[1]], 0, "", "", b""))
        else:
            ids[step[2]] = ids[step[1]]
            disk.play(Call("n", 0, 0, f"/s/{step[1]}", f"/s/{step[2]}", b""))
        bad |= any(disk.left(rng).get("f", content) != content for _ in range(50))
    bad |= any(disk.left(rng).get("f") != content for _ in range(50))
    assert bad == (name != "right")


def test_a_torn_sector_leaves_every_other_one():
    """All mixtures of written and unwritten sectors are met, so that no lucky order hides a mistake."""
    file = File()
    file.write(0, b"x" * 3 * SECTOR)
    rng = random.Random(0)
    met = {file.left(rng) for _ in range(2000)}
    full = {b"".join(part) for part in itertools.product([b"x" * SECTOR, bytes(SECTOR)], repeat=3)}
    assert full <= met
    assert b"" in met


# --- the script --------------------------------------------------------------------------------------------------


def write(calls, folder):
    """Make a store and fill it, saying after each step what was promised: rows, and the number of the note."""
    promised = [0, 0]

    def promise(at, number):
        promised[at] = number
        calls.mark(f"{promised[0]} {promised[1]}")

    store = Store(folder / "store")
    with store.table("ab", COLUMNS, {"model": "net"}).writer(segment_rows=10) as writer:
        for start in range(0, 25, 5):
            keys, parts = rows_of(range(start, start + 5))
            writer.append(keys, parts)
            promise(0, writer.rows_written)
    promise(0, 25)
    for number in (1, 2):
        store.write_note("abcd", {"number": number, "text": "x" * 1500})
        promise(1, number)
    table = Store(folder / "store").table("ab")
    with table.writer() as writer:
        writer.append(*rows_of(range(25, 30)))
    promise(0, 30)


def killed_then_write(calls, folder, number):
    calls.arm(KILL, number, kinds="owfnm")
    write(calls, folder)


def main(folder):
    done = []
    for number in range(-1, 60):
        name = {-1: "fresh", 0: "plain"}.get(number, f"killed{number}")
        (folder / name).mkdir()
        calls = Calls(folder / name)
        with calls.recorded(folder / f"{name}.record"):
            if number >= 0:
                (folder / name / "store").mkdir()
                sync(folder / name)
            if number > 0 and fork(killed_then_write, calls, folder / name, number) != signal.SIGKILL:
                break
            calls.mark("0 0")
            write(calls, folder / name)
        done.append(name)
    sys.stdout.buffer.write(pickle.dumps(done))


def sync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
