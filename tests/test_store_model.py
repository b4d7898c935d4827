"""A store against a simple model of it: whatever is done to it in whatever order, and whatever is done to its files.

The model knows the files that were ever committed, with the rows in each (read by the safetensors library, past the
store), and which of them were harmed. The laws: a row that is located is exactly right; a committed row with one
unharmed file is always found; a harmed file is named, never served; nothing else is ever named.
"""

import os
import pickle
import secrets
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from safetensors.numpy import load

from forethought.errors import StoreError
from forethought.store import Column, DamagedSegmentError, DamagedSegmentWarning, Store

COLUMNS = [Column("0", "U8", (16,)), Column("1", "F64", (3,)), Column("2", "I16", ())]
KEYS = np.random.default_rng(0).integers(0, 256, (60, 16), dtype=np.uint8)
KEYS[1] = KEYS[0]
KEYS[1, 15] ^= 1  # keys that differ in the last byte only, and keys of zeros at the end
KEYS[2] = 0
KEYS[3] = 0
KEYS[3, 15] = 1
NUMBER_OF = {key.tobytes(): number for number, key in enumerate(KEYS)}
NEVER = range(50, 60)  # keys that nobody writes

numbers = st.lists(st.integers(0, 49), min_size=1, max_size=12)
which_one = st.sampled_from(range(60))  # evenly, where st.integers() likes the small ones
somewhere = st.sampled_from(range(997)).map(lambda part: part / 997)
# Where the system has a file system in memory: hypothesis runs this hundreds of times, and each commit is flushed.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def rows_of(wanted):
    keys = KEYS[list(wanted)]
    return keys, [keys[:, ::-1].copy(), keys[:, :3] / 7.0, keys[:, :2].copy().view(np.int16)[:, 0]]


def row_bytes(number):
    return [part[0].tobytes() for part in rows_of([number])[1]]


class StoreMachine(RuleBasedStateMachine):
    """One store that changes; handles, writers and places that live on while it does."""

    def __init__(self):
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=MEMORY))
        self.path = self.home / "store0"
        self.moves = 0
        self.files = {}  # name to the numbers of the rows in it
        self.harmed = set()  # names; removed ones, too
        self.removed = set()  # names
        self.tables = []
        self.writers = []  # (writer, numbers appended and not yet surely committed)
        self.held = []  # (table, number, place), to be read later
        self.notes = {}  # key to what was written, or to None where the file was harmed

    @initialize()
    def make(self):
        other = Store(self.home / "other").table("ab", COLUMNS)
        with other.writer(segment_rows=9) as writer:
            writer.append(*rows_of(range(0, 50, 2)))
        self.others = sorted(other.path.glob("*.safetensors"))
        self.open_handle(readonly=False)
        with self.tables[0].writer(segment_rows=6) as writer:
            writer.append(*rows_of([*range(15), *range(9)]))
        self.see_files()

    def teardown(self):
        try:
            if self.tables:
                self.open_handle(readonly=True)
                self.look(len(self.tables) - 1, list(range(60)))
                self.verify(len(self.tables) - 1)
        finally:
            shutil.rmtree(self.home)

    # --- what users do ---

    @rule(readonly=st.booleans())
    def open_handle(self, readonly):
        readonly = readonly and (self.path / "forethought.json").exists()
        self.tables.append(Store(self.path, readonly=readonly).table("ab", COLUMNS))
        del self.tables[:-4]

    @precondition(lambda self: len(self.writers) < 3)
    @rule(which=which_one, segment_rows=st.integers(1, 8))
    def open_writer(self, which, segment_rows):
        table = self.tables[which % len(self.tables)]
        if table.readonly:
            with pytest.raises(StoreError, match="readonly"):
                table.writer()
        else:
            self.writers.append((table.writer(segment_rows=segment_rows), []))

    @precondition(lambda self: self.writers)
    @rule(which=which_one, wanted=numbers)
    def append(self, which, wanted):
        writer, pending = self.writers[which % len(self.writers)]
        writer.append(*rows_of(wanted))
        pending.extend(wanted)
        self.see_files()

    @precondition(lambda self: self.writers)
    @rule(which=which_one, close=st.booleans())
    def flush(self, which, close):
        writer, pending = self.writers[which % len(self.writers)]
        with self.watched():
            writer.close() if close else writer.flush()
        committed = self.see_files()
        assert set(pending) <= committed | self.rows_in(self.files), "flushed, and not on the disk"
        assert writer.rows_written >= len(pending)
        if close:
            self.writers.remove((writer, pending))
            with pytest.raises(StoreError, match="closed"):
                writer.append(*rows_of([0]))

    @precondition(lambda self: self.writers)
    @rule(which=which_one)
    def kill_writer(self, which):
        """What was not committed may be absent, and never wrong: nothing is asked of it."""
        self.writers.pop(which % len(self.writers))
        (self.path / "tables" / "ab" / f".{secrets.token_hex(16)}.safetensors.0.tmp").write_bytes(b"half")

    @rule(which=which_one)
    def refresh(self, which):
        with self.watched():
            self.tables[which % len(self.tables)].refresh()

    @rule(which=which_one, wanted=st.lists(st.integers(0, 59), min_size=1, max_size=30))
    def look(self, which, wanted):
        """Read as a careful caller does: what is damaged is dropped, and another copy is asked for."""
        table = self.tables[which % len(self.tables)]
        self.see_files()
        sound = self.rows_in(self.files.keys() - self.harmed)
        with self.watched():
            table.refresh()
            places = table.locate(KEYS[wanted])
            while self.read_all(table, wanted, places):
                places = table.locate(KEYS[wanted])
            found = {number for number, (segment, _) in zip(wanted, places.tolist(), strict=True) if segment >= 0}
            assert sound & set(wanted) <= found, "a committed row in an unharmed file is not found"
            assert found.isdisjoint(NEVER)
            assert len(sound) <= table.rows <= len(self.rows_in(self.files))
            assert table.size_bytes >= 0
        self.held += [(table, number, place) for number, place in zip(wanted, places.tolist(), strict=True)]
        del self.held[:-20]

    def read_all(self, table, wanted, places):
        """Check every byte of the rows; drop what is damaged, and say whether anything was."""
        damaged = False
        for number, (segment, row) in zip(wanted, places.tolist(), strict=True):
            if segment < 0:
                continue
            try:
                read = [bytes(table.segment(segment).column(column.name)[row]) for column in COLUMNS]
            except DamagedSegmentError as err:
                table.drop(segment, err)
                with pytest.raises(DamagedSegmentError):  # or the same damage would be found for ever
                    table.segment(segment)
                damaged = True
                break
            else:
                assert read == row_bytes(number), "a wrong row was served"
        return damaged

    @rule()
    def read_held(self):
        """Places stay valid, whatever was committed, dropped or pickled since."""
        for table, number, (segment, row) in self.held:
            if segment >= 0:
                try:
                    read = [bytes(table.segment(segment).column(column.name)[row]) for column in COLUMNS]
                except DamagedSegmentError:
                    assert self.harmed
                else:
                    assert read == row_bytes(number)

    @rule(which=which_one)
    def verify(self, which):
        """Every byte is read: what is harmed is named, and nothing else."""
        table = self.tables[which % len(self.tables)]
        self.see_files()
        with self.watched():
            named = table.verify()
        there = {name for name in self.harmed if (table.path / name).exists()}
        assert there <= named.keys()
        assert {name: why for name, why in named.items() if name not in self.harmed} == {}

    @rule(which=which_one)
    def pickle_table(self, which):
        """A copy by pickle serves the same places by the same numbers."""
        table = self.tables[which % len(self.tables)]
        copy = pickle.loads(pickle.dumps(table))
        self.tables.append(copy)
        self.held += [(copy, number, place) for each, number, place in self.held if each is table]
        del self.tables[:-4], self.held[:-20]

    @rule(key=st.sampled_from(["ab", "abcd", "0" * 128]), value=st.integers())
    def write_note(self, key, value):
        Store(self.path).write_note(key, {"value": value})
        self.notes[key] = value

    @rule(key=st.sampled_from(["ab", "abcd", "0" * 128, "ef"]))
    def read_note(self, key):
        note, wanted = Store(self.path).note(key), self.notes.get(key)
        assert note == (None if wanted is None else {"value": wanted})

    # --- what happens to files ---

    def choose(self, which):
        """Choose a file that is there and whole: a second flip might undo the first."""
        there = [
            name for name in self.files if name not in self.harmed and (self.path / "tables" / "ab" / name).exists()
        ]
        return self.path / "tables" / "ab" / there[which % len(there)] if there else None

    @rule(which=which_one, at=somewhere, bit=st.integers(0, 7), in_place=st.booleans())
    def flip(self, which, at, bit, in_place):
        def flipped(raw):
            raw[int(at * len(raw))] ^= 1 << bit

        self.harm(which, flipped, in_place)

    @rule(which=which_one, at=somewhere, in_place=st.booleans())
    def truncate(self, which, at, in_place):
        def cut(raw):
            del raw[int(at * len(raw)) :]

        self.harm(which, cut, in_place)

    @rule(which=which_one, garbage=st.binary(min_size=1, max_size=100), in_place=st.booleans())
    def append_garbage(self, which, garbage, in_place):
        self.harm(which, lambda raw: raw.extend(garbage), in_place)

    @rule(which=which_one, start=somewhere, size=st.integers(1, 600), in_place=st.booleans())
    def zero(self, which, start, size, in_place):
        """As after a power failure on some file systems."""

        def zeroed(raw):
            begin = int(start * len(raw))
            part = slice(begin, min(begin + size, len(raw)))
            raw[part] = bytes(part.stop - part.start)

        self.harm(which, zeroed, in_place)

    def harm(self, which, change, in_place):
        path = self.choose(which)
        if path is None:
            return
        raw = bytearray(path.read_bytes())
        if not raw:
            return
        before = bytes(raw)
        change(raw)
        if bytes(raw) == before:
            return
        if in_place:  # nobody may have it mapped: docs/format.md
            self.forget()
            path.write_bytes(raw)
            self.open_handle(readonly=False)
        else:
            path.with_name("new").write_bytes(raw)
            path.with_name("new").replace(path)
        self.harmed.add(path.name)

    @rule(which=which_one)
    def remove(self, which):
        path = self.choose(which)
        if path is not None:
            path.unlink()
            self.harmed.add(path.name)
            self.removed.add(path.name)

    @rule(which=which_one, name=st.sampled_from([None, "copy.safetensors", "b" * 32 + ".safetensors"]))
    def merge(self, which, name):
        """Copy a segment of another store in, under its own name or another."""
        source = self.others[which % len(self.others)]
        target = self.path / "tables" / "ab" / (name or source.name)
        if target.parent.exists() and target.name not in self.files:
            shutil.copy(source, target)
            self.see_files()

    @precondition(lambda self: self.files)
    @rule(which=which_one)
    def put_into_a_wrong_table(self, which):
        """Rows of one trunk in the folder of another: named, and not served."""
        path = self.choose(which)
        if path is not None:
            folder = self.path / "tables" / "cd"
            folder.mkdir(exist_ok=True)
            shutil.copy(path, folder / path.name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DamagedSegmentWarning)
                table = Store(self.path).table("cd", COLUMNS)
                assert table.rows == 0
                assert path.name in table.damaged

    @rule(how=st.sampled_from(["copy", "move"]))
    def go_elsewhere(self, how):
        """Copy or move the whole tree and go on there. Writers that were open are killed by it."""
        self.forget()
        self.moves += 1
        new = self.home / f"store{self.moves}"
        if how == "move":
            self.path.rename(new)
        else:
            shutil.copytree(self.path, new)
        self.path = new
        self.open_handle(readonly=False)

    @rule(harm=st.sampled_from(["flip", "cut", "remove"]))
    def harm_table_note(self, harm):
        """The note of a table is no loss: who names the columns is served, and the next writer writes it anew."""
        path = self.path / "tables" / "ab" / "table.note"
        if path.exists():
            self.spoil(path, harm)

    @precondition(lambda self: any(value is not None for value in self.notes.values()))
    @rule(which=which_one, harm=st.sampled_from(["flip", "cut", "remove"]))
    def harm_note(self, which, harm):
        keys = sorted(key for key, value in self.notes.items() if value is not None)
        key = keys[which % len(keys)]
        self.spoil(self.path / "notes" / key[:2] / f"{key}.note", harm)
        self.notes[key] = None

    def spoil(self, path, harm):
        raw = path.read_bytes()
        if harm == "remove":
            path.unlink()
        else:
            path.write_bytes(raw[:-1] if harm == "cut" else bytes([raw[0] ^ 1]) + raw[1:])

    def forget(self):
        """Let go of every handle, with its mappings, and of every writer."""
        self.tables, self.writers, self.held = [], [], []

    # --- the model ---

    def see_files(self):
        """Learn of new files, past the store; give the rows in them."""
        new = {}
        for path in (self.path / "tables" / "ab").glob("*.safetensors"):
            if path.name not in self.files and not path.name.startswith("."):
                new[path.name] = [NUMBER_OF[key.tobytes()] for key in load(path.read_bytes())["keys"]]
        # In an order that does not hang on their names, which are random.
        self.files |= {name: set(rows) for name, rows in sorted(new.items(), key=lambda item: item[1])}
        return set().union(*new.values())

    def rows_in(self, names):
        return set().union(*(self.files[name] for name in names))

    @contextmanager
    def watched(self):
        """Every warning names a file that was harmed and is there, and is of the one kind."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield
        for each in said:
            assert each.category is DamagedSegmentWarning
            assert any(name in str(each.message) for name in self.harmed - self.removed), each.message

    @invariant()
    def only_harmed_files_are_named(self):
        assert all(set(table.damaged) <= self.harmed for table in self.tables)


def test_a_store_behaves_like_its_model():
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
