"""The laws of the store: what was committed comes back bit for bit, and nothing else does."""

import ast
import json
import os
import pickle
import resource
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import forethought.store
from forethought.errors import StoreError, StoreFormatError, StorePathError
from forethought.store import Column, DamagedSegmentError, DamagedSegmentWarning, Store
from forethought.store.column import DTYPES

MEMORY = Path("/dev/shm")  # the laws make many stores; a disk would only slow them down
FLOATS = Column("0", "F32", (3,))
laws = settings(max_examples=40, deadline=None, database=None)


def make_keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def make_rows(columns, n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (n, column.row_bytes), dtype=np.uint8) for column in columns]


def read_rows(table, keys, name="0"):
    """What a caller of the store does: locate, then gather. Absent rows come back as None."""
    return [
        None if number < 0 else bytes(table.segment(number).column(name)[row])
        for number, row in table.locate(keys).tolist()
    ]


def write_rows(table, keys, rows, **options):
    with table.writer(**options) as writer:
        writer.append(keys, rows)
    return writer


def segment_paths(table):
    return sorted(table.path.glob("*.safetensors"))


@contextmanager
def new_store():
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Store(Path(folder) / "store")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
column_lists = st.lists(st.tuples(st.sampled_from(list(DTYPES)), shapes), max_size=4).map(
    lambda items: [Column(str(i), dtype, shape) for i, (dtype, shape) in enumerate(items)]
)


@laws
@given(column_lists, st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 8))
def test_store_returns_committed_rows_bit_for_bit(columns, sizes, segment_rows):
    """Any dtype, shape (zero sizes too), division into appends and into segments reads back the same."""
    keys, rows = make_keys(sum(sizes)), make_rows(columns, sum(sizes))
    with new_store() as store:
        table = store.table("ab", columns)
        with table.writer(segment_rows=segment_rows) as writer:
            for start, end in pairwise([0, *np.cumsum(sizes).tolist()]):
                writer.append(keys[start:end], [part[start:end] for part in rows])
        assert writer.rows_written == sum(sizes)
        assert writer.bytes_written == sum(path.stat().st_size for path in segment_paths(table))
        for reader in (table, Store(store.path, readonly=True).table("ab", columns)):
            assert reader.rows == sum(sizes)
            assert reader.size_bytes == writer.bytes_written
            for column, part in zip(columns, rows, strict=True):
                assert read_rows(reader, keys, column.name) == [bytes(row) for row in part]


small_keys = st.lists(
    st.binary(min_size=16, max_size=16).map(lambda raw: bytes(b"\0\1\x20\xff"[byte % 4] for byte in raw)),
    max_size=30,
).map(lambda raws: np.array([list(raw) for raw in raws], np.uint8).reshape(-1, 16))


@laws
@given(small_keys, small_keys, st.integers(1, 5))
def test_locate_finds_exactly_what_was_written(written, asked, segment_rows):
    """A key is found if and only if it was written, however its bytes look; each row is the one of its key."""
    with new_store() as store:
        table = store.table("ab", [Column("0", "U8", (16,))])
        write_rows(table, written, [written], segment_rows=segment_rows)
        known = {bytes(key) for key in written}
        everything = np.concatenate([asked, written])
        expected = [bytes(key) if bytes(key) in known else None for key in everything]
        assert read_rows(table, everything) == expected
        assert table.rows == len(known)


@laws
@given(st.integers(1, 12), st.integers(1, 12))
def test_writing_a_row_twice_is_harmless(first, second):
    """Rows that several writers computed are counted once and served right."""
    keys, rows = make_keys(12), make_rows([FLOATS], 12)[0]
    with new_store() as store:
        table = store.table("ab", [FLOATS])
        for n in (first, second):
            write_rows(table, keys[:n], [rows[:n]], segment_rows=4)
        most = max(first, second)
        assert table.rows == most
        assert read_rows(table, keys) == [bytes(row) for row in rows[:most]] + [None] * (12 - most)


GOLDEN_HEADER = (
    b'{"__metadata__":{"format":"1","fingerprint":"ab",'
    b'"blake3.keys":"%s","blake3.1":"%s","blake3.0":"%s","seal":"%s"},'
    b'"keys":{"dtype":"U8","shape":[2,16],"data_offsets":[0,32]},'
    b'"1":{"dtype":"F32","shape":[2,1],"data_offsets":[32,40]},'
    b'"0":{"dtype":"BF16","shape":[2],"data_offsets":[40,44]}}'
)
GOLDEN_DIGESTS = (
    b"e528e95798037df410543d9f31e396ecdd458d71b157d6014398bae32fb56c65",
    b"54847fa2028a3457068a78ba8e6a086cccf672def025d7e4cb2761b538edbf3f",
    b"f242d6c6bf2c92e50f891c46ffd6ac636407dcb55a1d3eea6b10a7fa3ebba9d1",
    b"3a79c07b56190c7e8ad5242d8c24727be6582ed1407424df30089fc505125494",
)


def test_segment_bytes_are_the_golden_ones(store):
    """The format is what docs/format.md says, to the byte: a change here is a new format number."""
    table = store.table("ab", [Column("0", "BF16", ()), Column("1", "F32", (1,))])
    keys = np.arange(32, dtype=np.uint8).reshape(2, 16)
    write_rows(table, keys, [np.array([0x3F80, 0x4000], np.uint16), np.array([[1.0], [-2.0]], np.float32)])
    header = GOLDEN_HEADER % GOLDEN_DIGESTS
    header += b" " * (-(8 + len(header)) % 64)
    content = bytes(range(32)) + b"\0\0\x80\x3f\0\0\0\xc0" + b"\x80\x3f\0\x40"
    assert segment_paths(table)[0].read_bytes() == len(header).to_bytes(8, "little") + header + content
    assert (store.path / "forethought.json").read_bytes() == b'{"format": 1}\n'
    assert (table.path / "table.note").read_bytes() == (
        b"3c680b8e85c67ea665cb21cf77d978f55b7eaab7984bd001b09e6bb6293cec5c\n"
        b'{"columns":[{"name":"0","dtype":"BF16","shape":[]},{"name":"1","dtype":"F32","shape":[1]}],'
        b'"provenance":{}}'
    )


def test_segments_are_read_by_the_safetensors_library(store):
    """A segment needs no forethought to be read, and every column lies at a multiple of its element size."""
    columns = [Column(str(i), dtype, (3, 1)) for i, dtype in enumerate(DTYPES)]
    table = store.table("ab", columns)
    keys, rows = make_keys(5), make_rows(columns, 5)
    write_rows(table, keys, rows)
    with safe_open(segment_paths(table)[0], framework="np") as file:
        assert set(file.keys()) == {"keys", *(column.name for column in columns)}
        assert np.array_equal(file.get_tensor("keys"), keys)
        for column, part in zip(columns, rows, strict=True):
            assert file.get_slice(column.name).get_shape() == [5, 3, 1]
            assert table.segment(0).column(column.name).ctypes.data % column.item_bytes == 0
            if DTYPES[column.dtype][1]:
                assert file.get_tensor(column.name).tobytes() == part.tobytes()


@pytest.mark.parametrize("dtype", [name for name, (_, numpy_name) in DTYPES.items() if numpy_name])
def test_append_takes_the_columns_own_type(store, dtype):
    """Typed rows, also not contiguous ones, are stored as their bytes."""
    array = np.arange(24).reshape(4, 3, 2).astype(DTYPES[dtype][1]).transpose(0, 2, 1)
    table = store.table("ab", [Column("0", dtype, (2, 3))])
    write_rows(table, make_keys(4), [array])
    assert read_rows(table, make_keys(4)) == [row.tobytes() for row in array]


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        (make_keys(2), [np.zeros((2, 3), np.int32)]),
        (make_keys(2), [np.zeros((2, 3), ">f4")]),
        (make_keys(2), [np.zeros((3, 3), np.float32)]),
        (make_keys(2), [np.zeros((2, 4), np.float32)]),
        (make_keys(2), [np.zeros((2, 11), np.uint8)]),
        (make_keys(2), []),
        (make_keys(2)[:, :8], [np.zeros((2, 3), np.float32)]),
        (make_keys(2).astype(np.int64), [np.zeros((2, 3), np.float32)]),
    ],
)
def test_append_refuses_what_does_not_fit_and_takes_nothing(store, keys, rows):
    """An array of another type, shape or count is an error, not a wrong row."""
    table = store.table("ab", [FLOATS])
    with table.writer() as writer, pytest.raises(StoreError, match="Cannot"):
        writer.append(keys, rows)
    assert table.rows == 0
    assert segment_paths(table) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Column("keys", "F32", ()),
        lambda: Column("__metadata__", "F32", ()),
        lambda: Column("a/b", "F32", ()),
        lambda: Column("0", "C128", ()),
        lambda: Column("0", "F32", (-1,)),
        lambda: Column("0", "F32", (True,)),
        lambda: Column("0", "F32", (1.0,)),
        lambda: Column("0", "F32", (2**40, 2**40)),
    ],
)
def test_column_refuses_what_a_header_cannot_say(make):
    """Names, dtypes and shapes are checked where they are declared."""
    with pytest.raises(StoreError, match="Cannot"):
        make()


def test_table_refuses_other_columns_and_names_both(store):
    """One fingerprint has one set of columns; the message says which are there and which were asked for."""
    store.table("ab", [FLOATS]).writer().close()
    with pytest.raises(StoreError, match=r"0:F16\[3\].*0:F32\[3\]"):
        store.table("ab", [Column("0", "F16", (3,))])
    with pytest.raises(StoreError, match="different names"):
        store.table("cd", [FLOATS, FLOATS])


def test_table_made_meanwhile_with_other_columns_is_refused_by_the_writer(store):
    """Two processes that disagree do not mix their rows."""
    late = store.table("ab", [Column("0", "F16", (3,))])
    store.table("ab", [FLOATS]).writer().close()
    with pytest.raises(StoreError, match="on disk"):
        late.writer()


def test_table_opens_without_columns_and_keeps_its_provenance(store):
    """What made a table is kept with it; the first to write says it."""
    with pytest.raises(StoreError, match="Pass columns"):
        store.table("ab")
    write_rows(store.table("ab", [FLOATS], {"device": "cpu"}), make_keys(1), [np.zeros((1, 3), np.float32)])
    table = store.table("ab")
    assert (table.columns, table.provenance, table.rows) == ((FLOATS,), {"device": "cpu"}, 1)
    assert store.tables() == ["ab"]
    with pytest.raises(StoreError, match="JSON"):
        store.table("cd", [FLOATS], {"device": object()}).writer()


@pytest.mark.parametrize("name", ["", "..", "../ab", "AB", "a" * 129, "ab\n", 7])
def test_names_in_the_store_are_hex(store, name):
    """No name leaves the store's folder, on any file system."""
    for use in (
        lambda: store.table(name, [FLOATS]),
        lambda: store.note(name),
        lambda: store.write_note(name, {}),
    ):
        with pytest.raises(StoreError, match="lowercase hex"):
            use()


def test_refresh_shows_what_others_committed(store):
    """A table stays as it was until it is refreshed; places given before stay valid."""
    keys, rows = make_keys(6), make_rows([FLOATS], 6)[0]
    mine, other = store.table("ab", [FLOATS]), store.table("ab", [FLOATS])
    write_rows(mine, keys[:2], [rows[:2]])
    before = mine.locate(keys)
    write_rows(other, keys[2:], [rows[2:]])
    assert np.array_equal(mine.locate(keys), before)
    mine.refresh()
    assert np.array_equal(mine.locate(keys)[:2], before[:2])
    assert read_rows(mine, keys) == [bytes(row) for row in rows]


def test_first_committed_copy_of_a_row_stays_the_one_served(store):
    """A row that others write again keeps its place: what was located needs no second look."""
    keys, rows = make_keys(900), make_rows([FLOATS], 900)
    table = store.table("ab", [FLOATS])
    write_rows(table, keys, rows, segment_rows=300)
    before = table.locate(keys)
    write_rows(store.table("ab"), keys[::-1], [part[::-1] for part in rows], segment_rows=100)
    table.refresh()
    assert np.array_equal(table.locate(keys), before)


def test_segment_removed_while_it_is_listed_is_no_damage(store, monkeypatch):
    """Somebody may clean up at any time; nobody is warned of a file that is not there."""
    table = store.table("ab", [FLOATS])
    monkeypatch.setattr(table, "_names", lambda: {"gone.safetensors"})
    assert table.rows == 0
    assert table.damaged == {}


def test_folder_that_could_not_be_listed_is_listed_again(store, monkeypatch):
    """A failed look is an error and not an empty table, now or later."""
    write_rows(store.table("ab", [FLOATS]), make_keys(3), make_rows([FLOATS], 3))
    table = store.table("ab")
    with limited(resource.RLIMIT_NOFILE, 0), pytest.raises(StoreError, match="Too many open files"):
        table.locate(make_keys(3))
    assert table.rows == 3


def test_store_made_by_two_processes_at_once_is_one_store(tmp_path, monkeypatch):
    """Who comes second opens what the first one made, even if it saw the folder before the marker."""
    listdir = os.listdir

    def be_slow(path):
        monkeypatch.setattr(os, "listdir", listdir)
        write_rows(Store(path).table("ab", [FLOATS]), make_keys(3), make_rows([FLOATS], 3))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", be_slow)
    assert Store(tmp_path / "store").table("ab").rows == 3


def test_places_survive_pickling(store):
    """Segments keep their numbers in a pickled table, also after others committed; opening is lazy."""
    keys, rows = make_keys(40), make_rows([FLOATS], 40)[0]
    table = store.table("ab", [FLOATS])
    write_rows(table, keys[:20], [rows[:20]], segment_rows=2)
    places = table.locate(keys)
    raw = pickle.dumps((store, table))
    assert len(raw) < 2000
    write_rows(store.table("ab", [FLOATS]), keys[20:], [rows[20:]], segment_rows=2)
    _, again = pickle.loads(raw)
    assert [bytes(again.segment(n).column("0")[row]) for n, row in places[:20].tolist()] == [
        bytes(row) for row in rows[:20]
    ]
    assert np.array_equal(again.locate(keys)[:20], places[:20])
    assert read_rows(again, keys) == [bytes(row) for row in rows]
    shutil.rmtree(store.path)
    assert pickle.loads(raw)[0].path == store.path


def append_and_raise(writer, rows, error):
    with writer:
        writer.append(make_keys(len(rows)), [rows])
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_writer_keeps_what_was_appended_when_interrupted(store, error):
    """Rows that were appended whole are committed on the way out of any exception."""
    table, rows = store.table("ab", [FLOATS]), make_rows([FLOATS], 3)[0]
    writer = table.writer()
    with pytest.raises(error):
        append_and_raise(writer, rows, error())
    assert read_rows(store.table("ab"), make_keys(3)) == [bytes(row) for row in rows]
    with pytest.raises(StoreError, match="closed"):
        writer.append(make_keys(3), [rows])


@contextmanager
def interrupted_at(line):
    """Raise KeyboardInterrupt at the given line, as counted, of the writer's append."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if frame.f_code.co_name not in ("append", "_take"):
            return None
        passed += event == "line"
        if passed == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_interrupt_at_any_line_of_append_leaves_no_half_row(store):
    """Whatever line an interrupt hits, the rows committed on the way out are right."""
    rows = make_rows([FLOATS, Column("1", "U8", (2,))], 5)
    for line in range(1, 40):
        table = store.table(f"{line:x}", [FLOATS, Column("1", "U8", (2,))])
        with suppress(KeyboardInterrupt), table.writer(segment_rows=3) as writer, interrupted_at(line):
            writer.append(make_keys(5), rows)
        for name, part in zip("01", rows, strict=True):
            served = read_rows(table, make_keys(5), name)
            assert served == [bytes(row) for row in part[: table.rows]] + [None] * (5 - table.rows)


@contextmanager
def limited(kind, soft):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_full_disk_commits_nothing_and_says_so(store):
    """A segment that cannot be written whole is not there at all; what was committed stays readable."""
    table, rows = store.table("ab", [FLOATS]), make_rows([FLOATS], 4000)[0]
    write_rows(table, make_keys(10), [rows[:10]])
    writer = table.writer()
    writer.append(make_keys(4000), [rows])
    with limited(resource.RLIMIT_FSIZE, 20_000):
        with pytest.raises(StoreError, match=r"4000 rows \(0.1 MB\).*Nothing of it.*df -h") as caught:
            writer.flush()
        with pytest.raises(ValueError, match="mine") as hidden:
            append_and_raise(table.writer(), rows, ValueError("mine"))
    assert isinstance(caught.value.__cause__, OSError)
    assert "Nothing of it was committed" in hidden.value.__notes__[0]
    assert len(os.listdir(table.path)) == 2
    writer.append(make_keys(20), [rows[:20]])
    writer.close()
    assert read_rows(store.table("ab"), make_keys(20)) == [bytes(row) for row in rows[:20]]
    assert writer.rows_written == 20


def test_vanished_folder_is_an_error_at_write_time(store):
    """A store that was deleted does not come back half."""
    table, rows = store.table("ab", [FLOATS]), make_rows([FLOATS], 2)[0]
    writer = table.writer()
    writer.append(make_keys(2), [rows])
    shutil.rmtree(store.path)
    with pytest.raises(StoreError, match="folder is gone"):
        writer.flush()
    with pytest.raises(StoreError, match="folder is gone"):
        table.writer()
    with pytest.raises(StoreError, match="folder is gone"):
        store.write_note("ab", {})
    assert not store.path.exists()


@contextmanager
def nobody():
    """Root may write anywhere, so act as somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_store_without_write_permission_serves_everything():
    """Complete hits need no right to write; writing says what to do."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        store, rows = Store(Path(folder) / "store"), make_rows([FLOATS], 4)[0]
        write_rows(store.table("ab", [FLOATS]), make_keys(4), [rows])
        store.write_note("ab", {"rows": 4})
        paths = [Path(folder), *Path(folder).rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with nobody():
            store = Store(store.path)
            table = store.table("ab", [FLOATS])
            assert read_rows(table, make_keys(4)) == [bytes(row) for row in rows]
            assert store.note("ab") == {"rows": 4}
            assert store.table("cd", [FLOATS]).rows == 0
            with pytest.raises(StoreError, match="readonly=True"), table.writer() as writer:
                writer.append(make_keys(1), [rows[:1]])
            with pytest.raises(StoreError, match="readonly=True"):
                store.write_note("ab", {})
            with pytest.raises(StorePathError, match="may write"):
                Store(Path(folder) / "other")
        for path in paths:
            path.chmod(0o755)


def test_readonly_store_writes_nothing(store):
    """readonly=True is kept to the file: nothing appears, nothing changes, writing is refused."""
    write_rows(store.table("ab", [FLOATS]), make_keys(4), make_rows([FLOATS], 4))
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    reader = Store(store.path, readonly=True)
    assert reader.table("ab").rows == 4
    assert reader.table("cd", [FLOATS]).rows == 0
    for write in (reader.table("ab").writer, lambda: reader.write_note("ab", {})):
        with pytest.raises(StoreError, match="got readonly=True"):
            write()
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before
    with pytest.raises(StorePathError, match="got none"):
        Store(store.path / "none", readonly=True)


def test_store_refuses_a_path_that_is_a_file(tmp_path):
    """A file stays as it is, and so does a path under it."""
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StorePathError, match="Cannot"):
            Store(path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["photo.jpg", ".git", "tables"])
def test_store_does_not_litter_a_folder_of_other_things(tmp_path, name):
    """Somebody's folder is refused and left as it is; the message says how to go on."""
    (tmp_path / name).mkdir()
    with pytest.raises(StoreFormatError, match=r"empty folder.*thoughts"):
        Store(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_store_begun_by_a_killed_process_is_completed(tmp_path):
    """A half-made store is an empty folder."""
    (tmp_path / ".forethought.json.0123.tmp").write_bytes(b'{"for')
    assert Store(tmp_path).tables() == []


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('{"format": 2}', "expected format 1, got 2 .*pip install --upgrade forethought"),
        ('{"format": 0}', "expected format 1, got 0 .*echo"),
        ('{"format": true}', "expected format 1, got True"),
        ('{"format": 1', "expected format 1, got None"),
        ("[1]", "got None"),
        ("[" * 4000, "got None"),
        ("", "got None"),
    ],
)
def test_store_of_another_format_is_refused(store, marker, said):
    """Both numbers and the way out are said; nothing is guessed."""
    (store.path / "forethought.json").write_text(marker)
    with pytest.raises(StoreFormatError, match=said):
        Store(store.path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@laws
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_note_returns_what_was_written(value):
    """Notes come back equal, and the last writer wins."""
    with new_store() as store:
        assert store.note("ab12") is None
        store.write_note("ab12", {"old": 1})
        store.write_note("ab12", value)
        assert Store(store.path).note("ab12") == value
        assert store.note("ab") is None


@pytest.mark.parametrize("value", [{"x": {1}}, {"x": float("nan")}, {"x": np.float32(1)}])
def test_note_that_is_no_json_is_refused(store, value):
    """A note is JSON or an error, and then nothing is written."""
    with pytest.raises(StoreError, match="JSON"):
        store.write_note("ab", value)
    assert store.note("ab") is None


def test_columns_are_private_to_the_process(store):
    """Rows may be written over in memory (torch wants writable memory); the file never changes."""
    table, rows = store.table("ab", [FLOATS]), make_rows([FLOATS], 3)[0]
    write_rows(table, make_keys(3), [rows])
    column = table.segment(0).column("0")
    assert column.flags.writeable
    assert column.flags.aligned
    column[:] = 0
    assert read_rows(store.table("ab"), make_keys(3)) == [bytes(row) for row in rows]


def test_mapped_columns_keep_no_descriptor_and_give_memory_back(store):
    """A thousand segments fit under a limit of few descriptors; mappings end with the last array over them."""
    table, rows = store.table("ab", [FLOATS]), make_rows([FLOATS], 60)[0]
    write_rows(table, make_keys(60), [rows], segment_rows=1)
    held = len(os.listdir("/proc/self/fd"))
    table = store.table("ab")
    arrays = [table.segment(n).column("0") for n in range(table.rows)]
    assert len(os.listdir("/proc/self/fd")) == held
    mapped = Path("/proc/self/maps").read_text().count(str(table.path))
    assert mapped == 60
    last = arrays[-1]
    del arrays, table
    assert Path("/proc/self/maps").read_text().count(str(store.path)) == 1
    assert bytes(last[0]) in {bytes(row) for row in rows}


def test_running_out_of_descriptors_costs_no_rows(store):
    """A fault of the moment is an error, not a miss: the trunk must not run again for it."""
    write_rows(store.table("ab", [FLOATS]), make_keys(3), make_rows([FLOATS], 3))
    table = store.table("ab")
    assert table.rows == 3
    with limited(resource.RLIMIT_NOFILE, 0), pytest.raises(StoreError, match="ulimit -n") as caught:
        table.segment(0).column("0")
    assert not isinstance(caught.value, DamagedSegmentError)
    assert table.segment(0).column("0").shape == (3, 12)


def test_segment_numbers_are_checked(store):
    """-1 is no segment, and neither is one past the end."""
    table = store.table("ab", [FLOATS])
    write_rows(table, make_keys(1), make_rows([FLOATS], 1))
    for number in (-1, 1):
        with pytest.raises(StoreError, match="Leave out rows"):
            table.segment(number)
        with pytest.raises(StoreError, match="Leave out rows"):
            table.drop(number, DamagedSegmentError("no"))
    with pytest.raises(StoreError, match=r"expected one of \['0'\]"):
        table.segment(0).column("1")


def test_dropped_segment_gives_way_to_another_copy(store):
    """Rows of a damaged segment are found in another that holds them, and absent otherwise."""
    table, rows = store.table("ab", [FLOATS]), make_rows([FLOATS], 4)[0]
    write_rows(table, make_keys(4), [rows])
    write_rows(table, make_keys(4)[:3], [rows[:3]])
    number = table.locate(make_keys(4))[0, 0]
    with pytest.warns(DamagedSegmentWarning, match=table.segment(number).name):
        table.drop(number, DamagedSegmentError(f"Cannot use {table.segment(number).name}"))
    table.drop(number, DamagedSegmentError("a second time is harmless"))
    assert read_rows(table, make_keys(4)) == [*(bytes(row) for row in rows[:3]), None]
    assert len(table.damaged) == 1
    with pytest.raises(DamagedSegmentError):
        table.segment(number)


def test_writer_sweeps_only_dead_temporary_files(store):
    """What a killed writer left behind yesterday goes; what may be in use stays, and readers ignore both."""
    table = store.table("ab", [FLOATS])
    write_rows(table, make_keys(1), make_rows([FLOATS], 1))
    old, new = table.path / ".a.safetensors.0.tmp", table.path / ".b.safetensors.0.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert store.table("ab").rows == 1
    table.writer().close()
    assert not old.exists()
    assert new.exists()


def test_size_counts_every_file(store):
    """The store's size is what a disk-usage tool says of its files."""
    write_rows(store.table("ab", [FLOATS]), make_keys(9), make_rows([FLOATS], 9), segment_rows=2)
    assert store.size_bytes == sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())


def test_segment_limits_are_kept():
    """Rows and bytes both bound a segment; a row larger than the bound still gets one."""
    with new_store() as store:
        wide = store.table("ab", [Column("0", "F32", (100,))])
        keys, rows = make_keys(10), make_rows(wide.columns, 10)
        write_rows(wide, keys, rows, segment_bytes=3 * 416)
        assert [wide.segment(n).rows for n in range(4)] == [3, 3, 3, 1]
        tiny = store.table("cd", wide.columns)
        write_rows(tiny, keys, rows, segment_bytes=1)
        assert len(segment_paths(tiny)) == 10


def test_store_imports_no_framework():
    """The room sees bytes: neither torch nor any other part of forethought but its errors."""
    for path in Path(forethought.store.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                assert module.split(".")[0] != "torch"
                assert not module.startswith("forethought") or module.startswith(
                    ("forethought.errors", "forethought.store")
                )


def test_table_note_that_is_torn_is_written_anew(store):
    """The segments say what they hold; a lost description costs nothing but itself."""
    table = store.table("ab", [FLOATS])
    write_rows(table, make_keys(2), make_rows([FLOATS], 2))
    (table.path / "table.note").write_bytes(b"torn")
    assert store.table("ab", [FLOATS]).rows == 2
    store.table("ab", [FLOATS]).writer().close()
    assert store.table("ab").columns == (FLOATS,)
    assert json.loads((table.path / "table.note").read_bytes().split(b"\n")[1])["columns"]


def test_commit_makes_bytes_durable_before_their_name(store, monkeypatch):
    """Power loss: the file's bytes reach the disk before its name, and the name before the commit is told."""
    table, told = store.table("ab", [FLOATS]), []
    writer = table.writer()
    writer.append(make_keys(1), make_rows([FLOATS], 1))
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor):
        told.append(("fsync", os.path.isdir(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(path, target):
        told.append(("replace", target.name.endswith(".safetensors")))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    writer.flush()
    assert told == [("fsync", False), ("replace", True), ("fsync", True)]
    assert writer.rows_written == 1


def test_reader_in_the_format_page_reads_a_segment(store):
    """docs/format.md is enough to read a store: its own reader agrees with ours, and refuses any flipped byte."""
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    columns = [Column("a", "BF16", (2,)), Column("b", "F64", ()), Column("c", "I8", (0, 3))]
    table = store.table("ab", columns)
    keys, rows = make_keys(3), make_rows(columns, 3)
    write_rows(table, keys, rows)
    raw, declared = segment_paths(table)[0].read_bytes(), [(c.name, c.dtype, list(c.shape)) for c in columns]
    expected = {"keys": keys.tobytes()} | {c.name: part.tobytes() for c, part in zip(columns, rows, strict=True)}
    assert names["read_segment"](raw, "ab", declared) == expected
    for position in range(len(raw)):
        with pytest.raises((ValueError, LookupError)):
            names["read_segment"](raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :], "ab", declared)
