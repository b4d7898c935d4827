"""The laws of housekeeping: what is said of a store is so, and what goes is what was named and nothing else."""

import json
import multiprocessing
import os
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import forethought as ft
from forethought.errors import StoreError
from forethought.extracting import extraction
from forethought.housekeeping import files, find_garbage, garbage, inventory, remove_garbage, verify_store
from forethought.ledger import DAY_S, last_used, prices, read_ledger, record_run
from forethought.store import Column, DamagedSegmentWarning, Store

MEMORY = Path("/dev/shm")
COLUMNS = [Column("0", "F32", (3,)), Column("1", "I64", ())]
laws = settings(max_examples=40, deadline=None, database=None)


def make_model(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ft.freeze(model, until="1")
    return model


def make_inputs(n=40):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


@contextmanager
def new_store():
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Store(Path(folder) / "store")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def keys_of(numbers):
    """One key for each number, the same each time."""
    keys = np.zeros((len(numbers), 16), np.uint8)
    keys.view(np.uint64)[:, 0] = numbers
    return keys


def rows_of(numbers):
    """The rows that belong to these keys."""
    numbers = np.asarray(list(numbers), np.int64)
    return [np.repeat(numbers[:, None], 3, 1).astype(np.float32), numbers]


def fill(store, fingerprint, *segments):
    """Write a table of segments, numbers each."""
    table = store.table(fingerprint, COLUMNS)
    for numbers in segments:
        with table.writer() as writer:
            writer.append(keys_of(list(numbers)), rows_of(numbers))
    return table


def check_reads_back(store, fingerprint, numbers):
    """Every one of these rows is there, to the last bit."""
    table = Store(store.path).table(fingerprint, COLUMNS)
    places = table.locate(keys_of(list(numbers)))
    assert (places[:, 0] >= 0).all()
    for number, (segment, row) in zip(numbers, places.tolist(), strict=True):
        expected = [part.tobytes() for part in rows_of([number])]
        assert [bytes(table.segment(segment).column(name)[row]) for name in ("0", "1")] == expected


def segments_of(store, fingerprint):
    return sorted((store.path / "tables" / fingerprint).glob("*.safetensors"))


def tree(store):
    """Every file with its bytes."""
    return {path: path.read_bytes() for path in sorted(store.path.rglob("*")) if path.is_file()}


def age(path, seconds):
    """Make a file, or all in a folder, older."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if not each.is_symlink():
            os.utime(each, (time.time() - seconds,) * 2)


def use(store, fingerprint, seconds_ago):
    """Have a table last used so long ago."""
    age(store.path / "tables" / fingerprint, seconds_ago)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(content)


def clean(store, **options):
    """Find and remove; what was promised is what was freed, and what is gone from the disk."""
    before = store.size_bytes
    found = find_garbage(store, **options)
    freed = remove_garbage(store, found)
    assert freed == found.size_bytes == before - store.size_bytes
    assert found.store_bytes == before
    return found


# --------------------------------------------------------------------------------------------------------- what it holds


def test_inventory_says_what_extraction_knew(store):
    """Model, data, columns, rows, bytes, times, cost, version and device of one table, as JSON too."""
    before = datetime.now(UTC)
    data = TensorDataset(make_inputs(), torch.arange(40))
    features = ft.extract(make_model(), DataLoader(data, 10), store, segment_rows=10)
    ft.extract(make_model(), Subset(data, range(7)), store)
    (held,) = ft.inventory(Store(store.path, readonly=True))
    assert held.fingerprint == features.table.fingerprint
    assert (held.models, held.columns, held.rows, held.segments) == (("Sequential",), ("0:F32[8]",), 40, 4)
    assert held.datasets[0] == "TensorDataset of 40"
    assert held.size_bytes == sum(path.stat().st_size for path in features.table.path.iterdir())
    assert (held.rows_accounted, held.time_s, held.damaged) == (40, features.report.time_s, ())
    assert (held.energy_j, held.energy_source) == (features.report.energy_j, features.report.energy_source)
    assert (held.torch, held.devices) == ((str(torch.__version__),), ("cpu",))
    assert before.timestamp() - 1 <= held.created.timestamp() <= held.last_used.timestamp() <= time.time() + 1
    told = json.loads(json.dumps(held.to_dict(), allow_nan=False))
    assert datetime.fromisoformat(told["last_used"]) == held.last_used.replace(microsecond=0)


def test_inventory_of_rows_without_a_ledger_says_so(store):
    """Rows that were copied here, or written by hand: what was not recorded is None or empty, never 0."""
    fill(store, "ab", range(5), range(3, 8))
    (held,) = inventory(store)
    assert (held.rows, held.segments, held.models, held.datasets) == (8, 2, (), ())
    assert (held.time_s, held.energy_j, held.energy_source, held.rows_accounted) == (None, None, None, 0)
    assert held.created is not None


def test_inventory_is_sorted_by_use_and_leaves_out_what_has_no_rows(store):
    """The table used last comes first; a table without segments holds nothing."""
    for fingerprint, ago in (("aa", 50), ("bb", 10), ("cc", 90)):
        fill(store, fingerprint, range(3))
        use(store, fingerprint, ago)
    store.table("dd", COLUMNS).writer().close()
    assert [held.fingerprint for held in inventory(store)] == ["bb", "aa", "cc"]
    assert inventory(Store(store.path.with_name("empty"))) == ()


def test_inventory_reads_columns_from_segments_where_the_note_is_lost(store):
    """Segments say all that is needed."""
    fill(store, "ab", range(5))
    (store.path / "tables" / "ab" / "table.note").unlink()
    (held,) = inventory(store)
    assert held.rows == 5
    assert set(held.columns) == {"0:F32[3]", "1:I64[]"}


def test_inventory_names_damaged_segments_in_the_result(store):
    """A flipped key is told in the result; no warning, no error."""
    fill(store, "ab", range(5), range(5, 10))
    path = segments_of(store, "ab")[0]
    flip(path, 8 + int.from_bytes(path.read_bytes()[:8], "little"))  # the first byte after the header: a key
    (held,) = inventory(store)
    assert (held.rows, held.segments, len(held.damaged)) == (5, 2, 1)
    assert str(path) in held.damaged[0]


# ------------------------------------------------------------------------------------------------------------ the ledger


def record_many(path, count):
    for number in range(count):
        record_run(Store(path), "ab", {"rows_computed": 1 + number, "time_s": 0.5, "energy_j": None})


@pytest.mark.slow
def test_ledger_loses_nothing_when_processes_write_at_once(store):
    """Each run keeps its own note."""
    workers = [
        multiprocessing.get_context("spawn").Process(target=record_many, args=(store.path, 25)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    entries = read_ledger(store, "ab")
    assert sorted(entry.rows_computed for entry in entries) == sorted([*range(1, 26)] * 3)
    assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)


def test_ledger_keeps_runs_that_end_at_the_same_moment(store, monkeypatch):
    """A clock of coarse steps, or two machines: no run overwrites another."""
    monkeypatch.setattr(prices.time, "time_ns", lambda: 10**18)
    for number in range(5):
        record_run(store, "ab", {"rows_computed": 1 + number})
    assert sorted(entry.rows_computed for entry in read_ledger(store, "ab")) == [1, 2, 3, 4, 5]


def test_ledger_sums_what_runs_cost(store):
    """Seconds add up; joules only if every run measured them."""
    fill(store, "ab", range(10))
    record_run(store, "ab", {"rows_computed": 4, "time_s": 1.5, "energy_j": 20.0, "energy_source": "x"})
    record_run(store, "ab", {"rows_computed": 6, "time_s": 2.0, "energy_j": 30.0, "energy_source": "x"})
    (held,) = inventory(store)
    assert (held.rows_accounted, held.time_s, held.energy_j, held.energy_source) == (10, 3.5, 50.0, "x")
    record_run(store, "ab", {"rows_computed": 1, "time_s": 2.0, "energy_j": None})
    assert inventory(store)[0].energy_j is None


def test_ledger_records_a_hit_once_a_day(store, monkeypatch):
    """A hit of today adds to the journal only; one of another day writes one note, over the last one."""

    def notes_and_rows():
        return {path: raw for path, raw in tree(store).items() if path.parent.name != "ledger"}

    model, inputs = make_model(), make_inputs()
    fingerprint = ft.extract(model, inputs, store).table.fingerprint
    ft.extract(model, inputs, store)
    before = notes_and_rows()
    ft.extract(model, inputs, store)
    assert notes_and_rows() == before
    for days in (1.5, 3.0):
        clock = time.time() + days * DAY_S
        monkeypatch.setattr(prices.time, "time", lambda clock=clock: clock)
        ft.extract(model, inputs, store)
        monkeypatch.undo()
        assert last_used(store, fingerprint) == pytest.approx(clock)
        assert len(notes_and_rows()) == len(before) + 1
        assert inventory(store)[0].last_used.timestamp() == pytest.approx(clock)


def test_ledger_writes_nothing_to_a_readonly_store(store):
    """A complete hit leaves it as it is, however long ago the last use was."""
    model, inputs = make_model(), make_inputs()
    ft.extract(model, inputs, store)
    for path in (store.path / "notes").rglob("*.note"):
        if len(path.stem) == 64:
            path.unlink()
    before = tree(store)
    ft.extract(model, inputs, Store(store.path, readonly=True))
    record_run(Store(store.path, readonly=True), "ab", {"rows_computed": 3})
    assert tree(store) == before


def test_a_ledger_that_cannot_be_written_costs_no_rows(store, monkeypatch):
    """The account of a run is worth less than its rows."""

    def refuse(*_):
        raise StoreError("full")

    monkeypatch.setattr(extraction, "record_run", refuse)
    assert ft.extract(make_model(), make_inputs(), store).report.rows_computed == 40


@laws
@given(
    st.dictionaries(
        st.sampled_from(["rows_computed", "time_s", "energy_j", "energy_source", "model", "dataset", "torch", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2),
    )
    | st.integers()
    | st.none()
)
def test_whatever_a_ledger_says_it_is_read(run):
    """Notes come from any machine and any version: what is of another type was not said."""
    with new_store() as store:
        fill(store, "ab", range(3))
        record_run(store, "ab", {"rows_computed": 3, "time_s": 1.0})
        (path,) = (store.path / "notes").rglob("*.note")
        value = {"table": "ab", "time": 1e9, "run": run}
        try:
            store.write_note(path.stem, value)
        except StoreError:
            return
        (held,) = inventory(store)
        assert held.rows == 3
        json.dumps(held.to_dict(), allow_nan=False)


# --------------------------------------------------------------------------------------------------------- is it sound


def test_verify_store_reads_every_byte_and_changes_nothing(store):
    """A sound store is said to be sound, from bytes read and not from names."""
    ft.extract(make_model(), make_inputs(), store, segment_rows=10)
    fill(store, "ab", range(5))
    before, seen = tree(store), []
    found = verify_store(Store(store.path, readonly=True), seen.append)
    assert (found.is_sound, found.tables, found.segments) == (True, 2, 5)
    assert found.size_bytes == sum(
        len(content)
        for path, content in before.items()
        if path.suffix in (".safetensors", ".manifest") or "notes" in path.parts
    )
    assert sum(seen) == sum(len(content) for path, content in before.items() if path.suffix == ".safetensors")
    assert tree(store) == before


@laws
@given(st.data())
def test_verify_store_names_the_file_in_which_a_byte_was_flipped(data):
    """Any byte of any segment or note; and no other file."""
    with new_store() as store:
        ft.extract(make_model(), make_inputs(), store, segment_rows=20)
        paths = [path for path in tree(store) if path.name != "forethought.json"]
        path = paths[data.draw(st.integers(0, len(paths) - 1))]
        flip(path, data.draw(st.integers(0, 2**20)))
        (fault,) = verify_store(store).faults
        assert fault.path == str(path)
        assert fault.reason.startswith("expected ")
        assert fault.fix


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_named_and_never_removed(store, make):
    """A folder, a pipe or a dangling link with a segment's name: a disk that refuses says nothing of the bytes."""
    fill(store, "ab", range(5))
    path = store.path / "tables" / "ab" / "x.safetensors"
    make(path)
    assert [fault.path for fault in verify_store(store).faults] == [str(path)]
    found = clean(store, unreachable=True)
    assert (found.pieces, len(found.left_alone)) == ((), 1)
    assert os.path.lexists(path)
    check_reads_back_despite_damage(store)


def check_reads_back_despite_damage(store):
    with pytest.warns(DamagedSegmentWarning):
        check_reads_back(store, "ab", range(5))


# ------------------------------------------------------------------------------------------------------- what may go


@laws
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10**6)), min_size=1, max_size=5),
    st.floats(0, 1.2),
)
def test_gc_by_size_takes_whole_tables_least_recently_used_first(tables, share):
    """Until the store fits; those that stay were used later than those that went, and read back bit for bit."""
    with new_store() as store:
        names = [f"{at:02x}" for at in range(len(tables))]
        for name, (rows, ago) in zip(names, tables, strict=True):
            fill(store, name, range(rows))
            use(store, name, ago)
        limit = int(store.size_bytes * share)
        found = clean(store, max_size_bytes=limit)
        gone = {piece.name for piece in found.pieces}
        kept = [name for name in names if name not in gone]
        ages = dict(zip(names, (ago for _, ago in tables), strict=True))
        assert {held.fingerprint for held in inventory(store)} == set(kept)
        assert all(ages[old] >= ages[new] for old in gone for new in kept)
        assert store.size_bytes <= limit or not kept
        if gone:  # and not one more than needed
            last = min(gone, key=lambda name: (ages[name], [-ord(letter) for letter in name]))
            back = next(piece.size_bytes for piece in found.pieces if piece.name == last)
            assert store.size_bytes + back > limit
        for name in kept:
            check_reads_back(store, name, range(dict(zip(names, tables, strict=True))[name][0]))
        assert verify_store(store).is_sound


def test_gc_by_age_goes_by_use_and_not_by_writing(store):
    """A table that was read yesterday stays, however old its files are; its notes go with one that goes."""
    models = [make_model(seed) for seed in range(3)]
    tables = [ft.extract(model, make_inputs(), store).table.fingerprint for model in models]
    for path in (store.path / "notes").rglob("*.note"):
        path.unlink()
    age(store.path / "tables", 40 * DAY_S)
    ft.extract(models[1], make_inputs(), store)
    found = clean(store, unused_s=30 * DAY_S)
    assert {piece.name for piece in found.pieces} == {tables[0], tables[2]}
    assert [held.fingerprint for held in inventory(store)] == [tables[1]]
    assert store.tables() == [tables[1]]
    assert ft.extract(models[1], make_inputs(), store).report.rows_computed == 0
    assert ft.extract(models[0], make_inputs(), store).report.rows_computed == 40


def test_gc_of_a_table_takes_the_notes_that_are_about_it(store):
    """Nothing of a table that went is left behind but its own note, while a writer may still be at work there.

    What is known of the data set and of the form of its samples is not of the table, but of no use once no table has rows.
    """
    ft.extract(make_model(), make_inputs(), store)
    clean(store, max_size_bytes=0)

    def left():
        return [path.name for path in tree(store) if path.parent.name != "ledger"]  # what was spent stays told

    forms = [f"{key}.note" for key in store.notes() if "kinds" in (store.note(key) or {})]
    about_samples = [name for name in left() if name.endswith(".manifest") or name in forms]
    assert [name for name in left() if name not in about_samples] == ["forethought.json", "table.note"]
    age(store.path, 2 * DAY_S)
    clean(store, unreachable=True)
    assert left() == ["forethought.json"]
    assert store.tables() == []


@pytest.mark.parametrize("options", [{"max_size_bytes": 0}, {"unused_s": 0.0}, {"unreachable": True}])
def test_gc_looks_at_each_table_and_each_note_a_fixed_number_of_times(store, monkeypatch, options):
    """Twice the tables and notes are twice the work, not four times."""
    asked = {"tables": 0, "about": 0, "pieces": 0}
    listed, about, once = Store.tables, files.Note.tables.fget, garbage._once

    def counted(name, amount=1):
        asked[name] += amount

    monkeypatch.setattr(Store, "tables", lambda self: counted("tables") or listed(self))
    monkeypatch.setattr(files.Note, "tables", property(lambda self: counted("about") or about(self)))
    monkeypatch.setattr(garbage, "_once", lambda pieces, *seen: counted("pieces", len(pieces)) or once(pieces, *seen))
    counts = []
    for tables in (10, 20):
        for number in range(tables - 10, tables):
            fill(store, f"{number:04x}", range(3))
            store.write_note(f"aa{number:04x}", {"table": f"{number:04x}"})
        use(store, "0000", 2 * DAY_S)
        asked.update(dict.fromkeys(asked, 0))
        find_garbage(store, **options)
        counts.append(dict(asked))
    assert counts[1]["tables"] == counts[0]["tables"]
    assert counts[1]["about"] <= 2 * counts[0]["about"]
    assert counts[1]["pieces"] <= 2 * counts[0]["pieces"]


@laws
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True), min_size=1, max_size=6), st.data())
def test_gc_of_repeated_and_damaged_segments_loses_no_row(segments, data):
    """Every row that could be served before is served after, and no segment stays all of whose rows others hold."""
    with new_store() as store:
        fill(store, "ab", *segments)
        number = data.draw(st.none() | st.integers(0, len(segments) - 1))
        damaged = None if number is None else segments_of(store, "ab")[number]
        if damaged is not None:
            flip(damaged, data.draw(st.integers(0, 2**20)))
        held = {}
        for path in segments_of(store, "ab"):
            if path != damaged:
                keys = path.read_bytes()
                start = 8 + int.from_bytes(keys[:8], "little")
                rows = json.loads(keys[8:start])["keys"]["shape"][0]
                numbers = np.frombuffer(keys[start : start + 16 * rows], np.uint64)[::2]
                held[path] = set(numbers.tolist())
        every = sorted(set().union(*held.values()))
        found = clean(store, unreachable=True)
        assert (damaged is None) is all(piece.kind != "damaged segment" for piece in found.pieces)
        check_reads_back(store, "ab", every)
        kept = [held[path] for path in segments_of(store, "ab")]
        for at, own in enumerate(kept):
            assert own - set().union(*kept[:at], *kept[at + 1 :])
        assert not clean(store, unreachable=True).pieces


def test_gc_takes_temporary_files_of_the_dead_only(store):
    """A temporary file of today may have a living writer."""
    fill(store, "ab", range(5))
    for folder in ("", "tables/ab", "notes/ab"):
        (store.path / folder).mkdir(parents=True, exist_ok=True)
        for name, seconds in (("old", 2 * DAY_S), ("new", 60)):
            path = store.path / folder / f".{name}.0123.tmp"
            path.write_bytes(b"x" * 10)
            age(path, seconds)
    found = clean(store, unreachable=True)
    assert sorted(piece.name for piece in found.pieces) == [
        ".old.0123.tmp",
        "notes/ab/.old.0123.tmp",
        "tables/ab/.old.0123.tmp",
    ]
    check_reads_back(store, "ab", range(5))


def test_gc_takes_torn_notes_and_those_of_tables_that_are_gone(store):
    """A note of today may come before the first row of its table; one of yesterday has none any more."""
    fill(store, "ab", range(5))
    store.write_note("01", {"table": "ab"})
    store.write_note("02", {"trunk": "cd"})
    store.write_note("03", {"trunk": "cd"})
    store.write_note("04", {"something": "else"})
    store.write_note("05", {"table": "ab"})
    age(store.path / "notes" / "02" / "02.note", 2 * DAY_S)
    age(store.path / "notes" / "04" / "04.note", 2 * DAY_S)
    flip(store.path / "notes" / "05" / "05.note", 70)
    found = clean(store, unreachable=True)
    assert sorted(piece.name for piece in found.pieces) == ["notes/02/02.note", "notes/05/05.note"]
    assert [store.note(key) is None for key in ("01", "02", "03", "04")] == [False, True, False, False]


def test_gc_leaves_alone_what_a_link_points_to(store, tmp_path):
    """A table that is a link to some other folder: nothing out there is touched."""
    fill(store, "ab", range(5))
    elsewhere = tmp_path / "models"
    elsewhere.mkdir()
    (elsewhere / "precious.safetensors").write_bytes(b"weights")
    age(elsewhere, 100 * DAY_S)
    (store.path / "tables" / "cd").symlink_to(elsewhere)
    for options in ({"unreachable": True}, {"max_size_bytes": 0}, {"unused_s": 0.0}):
        found = find_garbage(store, **options)
        assert "cd" in found.left_alone[0]
        remove_garbage(store, found)
    assert (elsewhere / "precious.safetensors").read_bytes() == b"weights"
    piece = garbage.Piece("table", "cd", "", tuple(files.files_in(store, "tables/cd")))
    with pytest.raises(StoreError, match="outside the store"):
        remove_garbage(store, garbage.Garbage((piece,), 0))
    assert (elsewhere / "precious.safetensors").read_bytes() == b"weights"


def test_finding_changes_nothing_and_a_readonly_store_loses_nothing(store):
    """Looking is free; removing needs a store that may be written."""
    ft.extract(make_model(), make_inputs(), store)
    before = tree(store)
    found = find_garbage(Store(store.path, readonly=True), max_size_bytes=0, unused_s=0.0, unreachable=True)
    assert tree(store) == before
    assert found.pieces
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(StoreError, match="readonly"):
        remove_garbage(Store(store.path, readonly=True), found)
    assert tree(store) == before


@pytest.mark.parametrize("name", ["scandir", "listdir"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(store, monkeypatch, name):
    """A table whose notes cannot be read must not pass for one that nobody uses."""
    fill(store, "ab", range(5))
    record_run(store, "ab", {"rows_computed": 5})
    whole = getattr(os, name)

    def refuse(path):
        if "notes" in str(path):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        with pytest.raises(StoreError, match="Permission denied"):
            find_garbage(store, unused_s=0.0)


def test_removing_goes_on_after_what_cannot_be_removed_and_says_so(store, monkeypatch):
    """The rest is gone, the message says how much; what somebody else removed is no error."""
    fill(store, "ab", range(5), range(5, 10), range(10, 15))
    found = find_garbage(store, max_size_bytes=0)
    first, second, third = segments_of(store, "ab")
    third.unlink()

    def refuse(store, path):
        if path.endswith(first.name):
            raise PermissionError(1, "Operation not permitted")
        return files.remove(store, path)

    monkeypatch.setattr(garbage, "remove", refuse)
    size = second.stat().st_size
    with pytest.raises(StoreError, match=f"{first.name}.*not permitted.*{size:,} bytes were freed"):
        remove_garbage(store, found)
    assert segments_of(store, "ab") == [first]


# ------------------------------------------------------------------------- manifests, claims, smaller rows, and buckets


class Items(Dataset):
    """Samples of which nothing has to be read to know them again."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((4,), float(index)), index


def test_manifests_are_read_too_and_go_when_no_row_of_theirs_is_left(store):
    """A torn one at once, one of a data set without rows after a day; one that still saves reading stays."""
    ft.extract(make_model(), Items(), store)
    (manifest,) = (store.path / "manifests").rglob("*.manifest")
    assert not clean(store, unreachable=True).pieces
    age(store.path / "manifests", 2 * DAY_S)
    assert not clean(store, unreachable=True).pieces
    whole = manifest.read_bytes()
    flip(manifest, 500)
    assert [fault.path for fault in verify_store(store).faults] == [str(manifest)]
    assert [(piece.kind, piece.files[0].path) for piece in find_garbage(store, unreachable=True).pieces] == [
        ("manifest", str(manifest.relative_to(store.path)))
    ]
    manifest.write_bytes(whole)
    clean(store, max_size_bytes=0)
    assert manifest.exists()
    assert not clean(store, unreachable=True).pieces
    age(store.path / "manifests", 2 * DAY_S)
    assert [piece.kind for piece in clean(store, unreachable=True).pieces] == ["manifest"]


def test_claims_of_the_dead_go(store):
    """A claim of today may be held."""
    store.claims.take("01")
    store.claims.take("02")
    age(store.path / "claims" / "01", 2 * DAY_S)
    assert [(piece.kind, piece.name) for piece in clean(store, unreachable=True).pieces] == [("claim", "claims/01")]


def test_notes_of_a_trunk_stay_while_smaller_rows_of_it_are_there(store):
    """Rows stored as float16 have a table of their own; what the store knows of the trunk is of use to them."""
    ft.extract(make_model(), make_inputs(), store, dtype=torch.float16)
    age(store.path, 2 * DAY_S)
    assert not clean(store, unreachable=True).pieces
    (held,) = inventory(store)
    assert held.columns == ("0:F16[8]",)


def test_housekeeping_of_a_bucket(tmp_path):
    """The same for a store that is no folder: what it holds, whether it is sound, what may go."""
    url = f"memory://housekeeping-{time.time_ns()}"
    model, inputs = make_model(), make_inputs()
    store = Store(url, cache=tmp_path / "cache")
    expected = ft.extract(model, inputs, store, segment_rows=10).numpy().copy()
    (held,) = inventory(store)
    assert (held.models, held.rows, held.segments) == (("Sequential",), 40, 4)
    assert held.datasets == ("Tensor of 40",)
    found = verify_store(store)
    assert (found.is_sound, found.segments) == (True, 4)
    assert not find_garbage(store, unreachable=True).pieces

    segment = next(path for path, _ in store.place.files("tables") if path.endswith(".safetensors"))
    content = bytearray(store.place.get(segment, 2**20))
    content[-1] ^= 1
    store.place.put(segment, bytes(content))
    (fault,) = verify_store(store).faults
    assert fault.path == f"{url}/{segment}"
    found = clean(store, unreachable=True)
    assert [(piece.kind, piece.name) for piece in found.pieces] == [("damaged segment", segment)]
    again = ft.extract(model, inputs, store)
    assert again.report.rows_computed == 10
    assert np.array_equal(again.numpy(), expected)

    for _ in range(2):  # the same rows once more
        table = store.table(held.fingerprint)
        table.refresh()
        with table.writer() as writer:
            number, row = table.locate(table.segment(0).keys[:1])[0].tolist()
            writer.append(table.segment(number).keys[[row]], [table.segment(number).column("0")[[row]]])
    assert [piece.kind for piece in clean(store, unreachable=True).pieces] == ["repeated segment"] * 2
    assert [piece.kind for piece in clean(store, max_size_bytes=0).pieces] == ["table"]
    assert inventory(store) == ()
    assert ft.extract(model, inputs, store).report.rows_computed == 40


# ------------------------------------------------------------------------------------------------ while others are at it


def test_gc_harms_neither_a_reader_nor_a_writer(store):
    """What is mapped stays readable; what is committed meanwhile, before and after the removal, stays."""
    table = fill(store, "ab", range(5))
    mapped = table.segment(0).column("0")
    expected = mapped.copy()
    writer = table.writer()
    writer.append(keys_of([100]), rows_of([100]))
    found = find_garbage(store, max_size_bytes=0)
    fill(store, "ab", [200])
    remove_garbage(store, found)
    assert np.array_equal(mapped, expected)
    writer.close()
    check_reads_back(store, "ab", [100, 200])
    assert (Store(store.path).table("ab", COLUMNS).locate(keys_of(list(range(5))))[:, 0] < 0).all()


def test_features_outlive_a_gc_and_the_next_extraction_computes_what_went(store):
    """Rows that are being fed stay; asked for again they are computed again."""
    model, inputs = make_model(), make_inputs()
    features = ft.extract(model, inputs, store)
    expected = features.numpy().copy()
    clean(store, max_size_bytes=0)
    assert np.array_equal(features.numpy(), expected)
    again = ft.extract(model, inputs, store)
    assert again.report.rows_computed == 40
    assert np.array_equal(again.numpy(), expected)
