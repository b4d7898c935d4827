"""The laws of rows that differ in size: they come back bit for bit, never padded, and nothing else does."""

import json
import pickle
import tempfile
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from forethought.errors import StoreError
from forethought.store import Column, Ragged, Store
from forethought.store.column import DTYPES
from forethought.store.ragged import item_offsets

MEMORY = Path("/dev/shm")  # the laws make many stores; a disk would only slow them down
WORDS = Column("0", "F32", (None, 3))
laws = settings(max_examples=40, deadline=None, database=None)


def make_keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def make_part(column, n, seed=0, most=4):
    """Random rows of a column, ragged or not."""
    rng = np.random.default_rng(seed)
    if not column.is_ragged:
        return rng.integers(0, 256, (n, column.row_bytes), dtype=np.uint8)
    sizes = [[rng.integers(0, most) if size is None else size for size in column.shape] for _ in range(n)]
    sizes = np.array(sizes, np.int64).reshape(n, len(column.shape))
    values = rng.integers(0, 256, int(sizes.prod(axis=1).sum()) * column.item_bytes, dtype=np.uint8)
    return Ragged(values, sizes)


def rows_of(part):
    """Each row as (sizes, bytes), worked out the slow way."""
    if not isinstance(part, Ragged):
        return [bytes(row) for row in part]
    items = [int(np.prod(sizes, dtype=object)) for sizes in part.sizes.tolist()]
    width = len(part.values) // max(sum(items), 1)
    ends = np.cumsum([0, *items]) * width
    pieces = [bytes(part.values[start:end]) for start, end in pairwise(ends.tolist())]
    return list(zip(part.sizes.tolist(), pieces, strict=True))


def some(part, rows):
    return part.select(rows) if isinstance(part, Ragged) else part[rows]


def read_rows(table, keys, name="0"):
    found = []
    for number, row in table.locate(keys).tolist():
        part = table.segment(number).column(name) if number >= 0 else None
        found.append(None if part is None else rows_of(some(part, np.array([row])))[0])
    return found


def write_rows(table, keys, parts, **options):
    with table.writer(**options) as writer:
        writer.append(keys, parts)
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


shapes = st.lists(st.none() | st.integers(0, 3), max_size=3).map(tuple)
column_lists = st.lists(st.tuples(st.sampled_from(list(DTYPES)), shapes), min_size=1, max_size=4).map(
    lambda items: [Column(str(i), dtype, shape) for i, (dtype, shape) in enumerate(items)]
)


@laws
@given(
    column_lists,
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(1, 400),
)
def test_store_returns_ragged_rows_bit_for_bit(columns, appends, segment_rows, segment_bytes):
    """Any dtype, known and unknown sizes (zero too), division into appends and into segments reads back the same."""
    n = sum(appends)
    keys, parts = make_keys(n), [make_part(column, n, seed) for seed, column in enumerate(columns)]
    with new_store() as store:
        table = store.table("ab", columns)
        with table.writer(segment_rows=segment_rows, segment_bytes=segment_bytes) as writer:
            for start, end in pairwise([0, *np.cumsum(appends).tolist()]):
                rows = slice(start, end)
                writer.append(keys[rows], [some(part, rows) for part in parts])
        assert writer.rows_written == n
        assert writer.bytes_written == sum(path.stat().st_size for path in segment_paths(table))
        for reader in (table, Store(store.path, readonly=True).table("ab", columns)):
            assert reader.rows == n
            assert reader.size_bytes == writer.bytes_written
            for column, part in zip(columns, parts, strict=True):
                assert read_rows(reader, keys, column.name) == rows_of(part)
        assert table.verify() == {}


@laws
@given(st.integers(1, 12), st.integers(0, 99), st.data())
def test_select_gives_the_rows_asked_for(n, seed, data):
    """Any rows, in any order and number, or a slice; the sizes go with them."""
    part = make_part(Column("0", "I16", (None, 2, None)), n, seed)
    rows = rows_of(part)
    wanted = data.draw(st.lists(st.integers(-n, n - 1), max_size=15))
    assert rows_of(part.select(np.array(wanted, int))) == [rows[row] for row in wanted]
    piece = data.draw(st.slices(n))
    assert rows_of(part.select(piece)) == rows[piece]
    assert len(part.select(piece)) == len(rows[piece])


def test_select_copies_nothing_where_rows_lie_together():
    """A batch in the order of the store is a view of the mapped file."""
    part = make_part(WORDS, 9)
    assert np.shares_memory(part.select(slice(2, 7)).values, part.values)
    assert np.shares_memory(part.select(np.arange(3, 9)).values, part.values)
    assert not np.shares_memory(part.select(np.array([5, 4, 8, 1])).values, part.values)
    with pytest.raises(IndexError):
        part.select(np.array([9]))


GOLDEN_HEADER = (
    b'{"__metadata__":{"format":"2","fingerprint":"ab",'
    b'"blake3.keys":"%s","blake3.0.sizes":"%s","blake3.1":"%s","blake3.0":"%s","seal":"%s"},'
    b'"keys":{"dtype":"U8","shape":[2,16],"data_offsets":[0,32]},'
    b'"0.sizes":{"dtype":"I64","shape":[2,2],"data_offsets":[32,64]},'
    b'"1":{"dtype":"F32","shape":[2,1],"data_offsets":[64,72]},'
    b'"0":{"dtype":"BF16","shape":[3],"data_offsets":[72,78]}}'
)
GOLDEN_DIGESTS = (
    b"e528e95798037df410543d9f31e396ecdd458d71b157d6014398bae32fb56c65",
    b"89a8bee7293e2fff000bd3f4a4d2f1f8a087ad34c77851c208362ad99ec3fa59",
    b"54847fa2028a3457068a78ba8e6a086cccf672def025d7e4cb2761b538edbf3f",
    b"1e532c462de1f472b7169708ae320c8a011cc9fbc804761e62274d159a4106dd",
    b"02e49394fd1cf70e5cdb1890e19f2359a7ab58ae6a10ce876ed95ef14d633023",
)


def golden_table(store):
    table = store.table("ab", [Column("0", "BF16", (1, None)), Column("1", "F32", (1,))])
    keys = np.arange(32, dtype=np.uint8).reshape(2, 16)
    words = np.array([0x3F80, 0x4000, 0x4040], np.uint16).view(np.uint8)
    write_rows(table, keys, [Ragged(words, np.array([[1, 2], [1, 1]])), np.array([[1.0], [-2.0]], np.float32)])
    return table


def test_ragged_segment_bytes_are_the_golden_ones(store):
    """The format is what docs/format.md says, to the byte: a change here is a new format number."""
    table = golden_table(store)
    header = GOLDEN_HEADER % GOLDEN_DIGESTS
    header += b" " * (-(8 + len(header)) % 64)
    sizes = b"".join(size.to_bytes(8, "little") for size in (1, 2, 1, 1))
    content = bytes(range(32)) + sizes + b"\0\0\x80\x3f\0\0\0\xc0" + b"\x80\x3f\0\x40\x40\x40"
    assert segment_paths(table)[0].read_bytes() == len(header).to_bytes(8, "little") + header + content
    note = json.loads((table.path / "table.note").read_bytes().split(b"\n")[1])
    assert note["columns"][0] == {"name": "0", "dtype": "BF16", "shape": [1, None]}
    assert store.table("ab").columns == table.columns
    assert b'"shape":[1,null]' in (table.path / "table.note").read_bytes()


def test_ragged_segment_is_read_by_the_safetensors_library(store):
    """Values, flat, and the shape of each row; every tensor lies at a multiple of its element size."""
    columns = [Column(str(i), dtype, (None, 1)[: i % 3]) for i, dtype in enumerate(DTYPES)]
    table = store.table("ab", columns)
    parts = [make_part(column, 5, seed) for seed, column in enumerate(columns)]
    write_rows(table, make_keys(5), parts)
    with safe_open(segment_paths(table)[0], framework="np") as file:
        for column, part in zip(columns, parts, strict=True):
            stored = table.segment(0).column(column.name)
            if not column.is_ragged:
                assert stored.ctypes.data % column.item_bytes == 0
                continue
            assert stored.values.ctypes.data % column.item_bytes == 0
            assert np.array_equal(file.get_tensor(f"{column.name}.sizes"), part.sizes)
            assert file.get_slice(column.name).get_shape() == [len(part.values) // column.item_bytes]
            if DTYPES[column.dtype][1]:
                assert file.get_tensor(column.name).tobytes() == part.values.tobytes()


def test_ragged_values_are_mapped(store):
    """Serving a segment copies no values, and what is written there stays in the process."""
    table = golden_table(store)
    ragged = table.segment(0).column("0")
    assert str(segment_paths(table)[0]) in Path("/proc/self/maps").read_text()
    assert table.segment(0).column("0") is ragged
    ragged.values[:] = 0
    other = store.table("ab")
    other.refresh()
    assert bytes(other.segment(0).column("0").values) == b"\x80\x3f\0\x40\x40\x40"


def test_reader_in_the_format_page_reads_a_ragged_segment(store):
    """The page's own reader agrees with ours, and refuses any flipped byte."""
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    columns = [
        Column("a", "BF16", (None,)),
        Column("b", "F64", ()),
        Column("c", "F64", (2, None)),
        Column("d", "U8", (0,)),
    ]
    table = store.table("ab", columns)
    keys, parts = make_keys(3), [make_part(column, 3, seed) for seed, column in enumerate(columns)]
    write_rows(table, keys, parts)
    raw, declared = segment_paths(table)[0].read_bytes(), [(c.name, c.dtype, list(c.shape)) for c in columns]
    expected = {"keys": keys.tobytes()}
    for column, part in zip(columns, parts, strict=True):
        expected[column.name] = part.values.tobytes() if column.is_ragged else part.tobytes()
        expected |= {f"{column.name}.sizes": part.sizes.tobytes()} if column.is_ragged else {}
    assert names["read_segment"](raw, "ab", declared) == expected
    for position in range(len(raw)):
        with pytest.raises((ValueError, LookupError)):
            names["read_segment"](raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :], "ab", declared)


SIX = np.zeros(24, np.uint8)


@pytest.mark.parametrize(
    "part",
    [
        Ragged(SIX, np.array([[1, 3]])),
        Ragged(SIX, np.array([[1, 3], [2, 3]])),
        Ragged(SIX, np.array([[1, 2], [2, 2]])),
        Ragged(SIX, np.array([[-1, 3], [3, 3]])),
        Ragged(SIX, np.array([[2**32, 3], [2**32, 3]])),
        Ragged(SIX, np.array([[1, 3], [1, 3]], np.int32)),
        Ragged(SIX, np.array([3, 3])),
        Ragged(SIX[:-1], np.array([[1, 3], [1, 3]])),
        Ragged(SIX.view(np.float32), np.array([[1, 3], [1, 3]])),
        Ragged(np.zeros(48, np.uint8)[::2], np.array([[1, 3], [1, 3]])),
        np.zeros((2, 3), np.float32),
    ],
)
def test_append_refuses_ragged_rows_that_do_not_fit_and_takes_nothing(store, part):
    """Sizes that do not add up, another type or count: an error, not a wrong row."""
    table = store.table("ab", [WORDS])
    with table.writer() as writer, pytest.raises(StoreError, match=r"Cannot append column 0:F32\[None, 3\]"):
        writer.append(make_keys(2), [part])
    assert segment_paths(table) == []


def test_a_fixed_column_refuses_ragged_rows(store):
    """Rows of one size are given as an array."""
    table = store.table("ab", [Column("0", "F32", (1, 3))])
    with table.writer() as writer, pytest.raises(StoreError, match="expected an array, got Ragged"):
        writer.append(make_keys(2), [Ragged(SIX, np.array([[1, 3], [1, 3]]))])


def test_names_of_sizes_are_kept_free():
    """A column could be taken for the sizes of another; tables without ragged rows may use any name, as before."""
    with new_store() as store:
        names = ("0", "0.sizes")
        with pytest.raises(StoreError, match=r"\.sizes"):
            store.table("ab", [Column(name, "I64", (None,)) for name in names])
        with pytest.raises(StoreError, match=r"\.sizes"):
            store.table("ab", [WORDS, Column("1.sizes", "I64", (1,))])
        columns = [Column(name, "I64", (1,)) for name in names]
        table = store.table("cd", columns)
        parts = [make_part(column, 3) for column in columns]
        write_rows(table, make_keys(3), parts)
        assert read_rows(store.table("cd"), make_keys(3), "0.sizes") == rows_of(parts[1])


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [
        (1, [[1, 1, 50], [400], [1], [1000], [3, 3, 3], [90, 0], [0]]),  # halves of 150 bytes, one written meanwhile
        (12, [[1, 1, 50], [400], [1], [1000], [3, 3, 3, 90, 0, 0]]),
    ],
)
def test_segment_bytes_bound_a_ragged_segment_too(at_once, expected):
    """Rows of very different length: no segment passes the limit, but for a row that is larger on its own."""
    lengths = [1, 1, 50, 400, 1, 1000, 3, 3, 3, 90, 0, 0]
    values = np.random.default_rng(0).integers(0, 256, sum(lengths), dtype=np.uint8)
    part = Ragged(values, np.array(lengths)[:, None])
    with new_store() as store:
        table = store.table("ab", [Column("0", "U8", (None,))])
        with table.writer(segment_bytes=300) as writer:
            for start in range(0, 12, at_once):
                rows = slice(start, start + at_once)
                writer.append(make_keys(12)[rows], [part.select(rows)])
        sizes = [table.segment(number).column("0").sizes[:, 0].tolist() for number in range(len(segment_paths(table)))]
        assert sizes == expected
        assert read_rows(table, make_keys(12)) == rows_of(part)


@pytest.mark.parametrize(
    "sizes",
    [
        np.array([[2**40, 2**40]]),
        np.array([[2**32, 2**32, 2**32]]),
        np.array([[2**47, 2], [0, 5]]),
        np.full((2**17, 1), 2**47),  # adds up to 2**64
        np.full((2**16 + 1, 1), 2**47),
        np.array([[2**48, 0]]),
        np.array([[0, -1]]),
    ],
)
def test_sizes_that_overflow_are_refused(sizes):
    """What wraps around in 64 bits is never taken for what it wraps to."""
    with pytest.raises(ValueError, match=r"2\*\*48|more than"):
        item_offsets(sizes, 2**47)


def test_places_of_ragged_rows_survive_pickling(store):
    """Tables pickle as paths, ragged columns and all."""
    table = store.table("ab", [WORDS])
    part = make_part(WORDS, 6)
    write_rows(table, make_keys(6), [part])
    again = pickle.loads(pickle.dumps(table))
    assert read_rows(again, make_keys(6)) == rows_of(part)
    assert len(pickle.dumps(again)) < 2000
