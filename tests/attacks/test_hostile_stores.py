"""Hostile and broken stores: whatever lies in the folder, no wrong row is served and nothing crashes.

Segments are forged here from docs/format.md alone, with valid digests and seals: a checksum is no signature,
so the structure must hold by itself.
"""

import json
import os
import socket
import tracemalloc
import warnings

import numpy as np
import pytest
from blake3 import blake3

from forethought.errors import StoreError
from forethought.store import Column, DamagedSegmentError, DamagedSegmentWarning, Ragged, Store

COLUMNS = [Column("0", "F32", (2,)), Column("1", "BF16", (3,))]
ROWS = 3
KEYS = np.random.default_rng(0).integers(0, 256, (ROWS, 16), dtype=np.uint8)
PARTS = [
    np.random.default_rng(i + 1).integers(0, 256, (ROWS, c.row_bytes), dtype=np.uint8) for i, c in enumerate(COLUMNS)
]


def digest(raw):
    return blake3(raw).hexdigest()


def frame(text):
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def plain_tree():
    parts = [KEYS, *PARTS]
    ends = np.cumsum([part.nbytes for part in parts]).tolist()
    names, dtypes, shapes = ["keys", "0", "1"], ["U8", "F32", "BF16"], [[16], [2], [3]]
    metadata = {"format": "1", "fingerprint": "ab"}
    metadata |= {f"blake3.{name}": digest(part.tobytes()) for name, part in zip(names, parts, strict=True)}
    tree = {"__metadata__": metadata | {"seal": "0" * 64}}
    for name, dtype, shape, part, end in zip(names, dtypes, shapes, parts, ends, strict=True):
        tree[name] = {"dtype": dtype, "shape": [ROWS, *shape], "data_offsets": [end - part.nbytes, end]}
    return tree


def forge(tree, content=None, edit=lambda text: text):
    """Return the bytes of a segment with a valid seal over whatever `tree` and `edit` say."""
    text = edit(json.dumps(tree, separators=(",", ":")).encode())
    unsealed = frame(text)
    sealed = unsealed.replace(b'"seal":"' + b"0" * 64, b'"seal":"' + digest(unsealed).encode())
    return sealed + (b"".join(p.tobytes() for p in [KEYS, *PARTS]) if content is None else content)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.table("ab", COLUMNS).writer().close()
    return store


@pytest.fixture
def sound(store, tmp_path):
    """The bytes of a sound segment."""
    table = Store(tmp_path / "sound").table("ab", COLUMNS)
    with table.writer() as writer:
        writer.append(KEYS, PARTS)
    return next(table.path.glob("*.safetensors")).read_bytes()


def serve(store):
    """Read every row as a careful caller does. Returns the rows served and what was named as damaged."""
    table = store.table("ab", COLUMNS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        places = table.locate(KEYS).tolist()
        served = {}
        for i, (number, row) in enumerate(places):
            if number < 0:
                continue
            try:
                segment = table.segment(number)
                served[i] = [bytes(segment.column(column.name)[row]) for column in COLUMNS]
            except DamagedSegmentError as err:
                table.drop(number, err)
        table.refresh()
        assert table.rows <= ROWS
    assert all(issubclass(each.category, DamagedSegmentWarning) for each in said)
    assert [str(each.message) for each in said] == list(table.damaged.values())
    return served, table.damaged


RIGHT = {i: [bytes(part[i]) for part in PARTS] for i in range(ROWS)}


def plant(store, raw, name="x.safetensors"):
    path = store.path / "tables" / "ab" / name
    path.write_bytes(raw)
    return path


def assert_missed(store, name="x.safetensors"):
    served, damaged = serve(store)
    assert served == {}
    assert list(damaged) == [name]
    assert name in damaged[name]


def test_forged_segment_of_the_specification_is_served(store, sound):
    """What docs/format.md says is enough to write a segment; else the forgeries below prove nothing."""
    assert forge(plain_tree()) == sound
    plant(store, sound)
    assert serve(store) == (RIGHT, {})


def test_flipped_byte_anywhere_is_detected(store, sound):
    """Length, header, padding, checksums, keys, data: an altered file serves nothing that was altered."""
    regions = {"header": 0, "keys": 0, "data": 0}
    start = len(sound) - sum(part.nbytes for part in [KEYS, *PARTS])
    for position in range(len(sound)):
        raw = bytearray(sound)
        raw[position] ^= (0x01, 0x20, 0xFF)[position % 3]
        plant(store, raw)
        assert_missed(store)
        regions["header" if position < start else "keys" if position < start + KEYS.nbytes else "data"] += 1
    assert all(regions.values())


def test_truncated_or_longer_file_is_detected(store, sound):
    """A torn copy is a miss at any length, and so is one with something after it."""
    for length in [*range(0, len(sound), 7), len(sound) - 1]:
        plant(store, sound[:length])
        assert_missed(store)
    plant(store, sound + b"\0")
    assert_missed(store)


def changed(**changes):
    """Return a forger that sets tree paths, written with __ between the steps."""

    def make():
        tree = plain_tree()
        for path, value in changes.items():
            *steps, last = path.split("__")
            place = tree
            for step in steps:
                place = place[{"meta": "__metadata__", "c0": "0", "c1": "1"}.get(step, step)]
            place[last] = value
        return forge(tree)

    return make


def without(name):
    def make():
        tree = plain_tree()
        del tree[name]
        return forge(tree)

    return make


def reordered():
    tree = plain_tree()
    tree["1"], tree["0"] = tree["0"] | {}, tree["1"] | {}
    return forge(tree)


def swapped_columns():
    """Two columns of one type, each described at the other's bytes, digests and all."""
    tree = plain_tree()
    tree["0"], tree["1"] = tree.pop("1"), tree.pop("0")
    return forge(tree)


def edited(old, new):
    return lambda: forge(plain_tree(), edit=lambda text: text.replace(old, new))


BIG = 2**62
HOSTILE = {
    "length of 2**64 - 1": lambda: b"\xff" * 8 + b"{}" * 100,
    "length of 2**63": lambda: (2**63).to_bytes(8, "little") + b"{}" * 100,
    "length of 0": lambda: bytes(200),
    "empty object": lambda: frame(b"{}"),
    "array": lambda: frame(b"[]"),
    "nested deep": lambda: frame(b"[" * 100_000),
    "nested deep in objects": lambda: frame(b'{"a":' * 100_000),
    "not utf-8": lambda: frame(b"\xff\xfe{}"),
    "number of many digits": lambda: frame(b'{"keys":' + b"9" * 10_000 + b"}"),
    "header of many megabytes": lambda: frame(b"[" + b"[]," * 1_000_000 + b"[]]"),
    "no keys": without("keys"),
    "no column": without("1"),
    "no metadata": without("__metadata__"),
    "metadata is a list": lambda: forge(plain_tree() | {"__metadata__": []}),
    "metadata is not text": changed(meta__fingerprint=["ab"]),
    "huge N": changed(keys__shape=[BIG, 16], c0__shape=[BIG, 2], c1__shape=[BIG, 3]),
    "huge N in keys only": changed(keys__shape=[BIG, 16]),
    "N of 0": lambda: forge(
        plain_tree()
        | {
            "keys": {"dtype": "U8", "shape": [0, 16], "data_offsets": [0, 0]},
            "0": {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]},
            "1": {"dtype": "BF16", "shape": [0, 3], "data_offsets": [0, 0]},
        },
        b"",
    ),
    "negative N": changed(keys__shape=[-3, 16]),
    "N as float": edited(b"[3,", b"[3.0,"),
    "N as true": lambda: forge(plain_tree(), edit=lambda text: text.replace(b"[3,", b"[true,")),
    "N as text": changed(keys__shape=["3", 16]),
    "N is NaN": edited(b"[3,16]", b"[NaN,16]"),
    "N is infinite": edited(b"[3,16]", b"[1e999,16]"),
    "shape is no list": changed(keys__shape=3),
    "shape is empty": changed(keys__shape=[]),
    "keys of 15 bytes": changed(keys__shape=[3, 15]),
    "keys of another dtype": changed(keys__dtype="I8"),
    "rows differ by column": changed(c0__shape=[2, 2]),
    "another dtype of that width": changed(c0__dtype="I32"),
    "unknown dtype": changed(c0__dtype="F128"),
    "dtype is a list": changed(c0__dtype=["F32"]),
    "another shape of that size": changed(c0__shape=[3, 1, 2]),
    "overlapping offsets": changed(c1__data_offsets=[48, 66]),
    "offsets into the keys": changed(c0__data_offsets=[0, 24]),
    "hole": changed(c1__data_offsets=[76, 94]),
    "negative offsets": changed(c0__data_offsets=[-24, 0]),
    "offsets backwards": changed(c0__data_offsets=[72, 48]),
    "offsets beyond the file": changed(c1__data_offsets=[BIG, BIG + 18]),
    "offsets missing": changed(c0={"dtype": "F32", "shape": [3, 2]}),
    "columns in another order": reordered,
    "columns described at each other's bytes": swapped_columns,
    "column named twice": edited(b',"1":{', b',"0":{'),
    "column with a hostile name": edited(b'"1"', b'"../1"'),
    "one column more": lambda: forge(plain_tree() | {"2": {"dtype": "U8", "shape": [3, 0], "data_offsets": [90, 90]}}),
    "fact more in metadata": changed(meta__more="1"),
    "rows of another trunk": changed(meta__fingerprint="abcd"),
    "fingerprint is no hex": changed(meta__fingerprint="../ab"),
    "fingerprint is a number": changed(meta__fingerprint=171),
    "another format": changed(meta__format="2"),
    "digest is a number": edited(b'"blake3.0":"', b'"blake3.0":1,"x":"'),
    "digest in capitals": lambda: forge(
        plain_tree(), edit=lambda text: text.replace(digest(PARTS[0]).encode(), b"A" * 64)
    ),
    "digest of other bytes": lambda: forge(
        plain_tree(), edit=lambda text: text.replace(digest(PARTS[0].tobytes()).encode(), b"a" * 64)
    ),
    "space inside": edited(b'","', b'", "'),
    "escape inside": edited(b'"fingerprint":"ab"', b'"fingerprint":"\\u0061b"'),
    "tab as padding": lambda: forge(plain_tree(), edit=lambda text: text + b"\t"),
    "more padding": lambda: forge(plain_tree(), edit=lambda text: text + b" " * 64),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_is_a_named_miss(store, name):
    """A header that says anything but what it must serves nothing, and allocates next to nothing."""
    raw = HOSTILE[name]()
    assert raw != forge(plain_tree())
    plant(store, raw)
    del raw
    tracemalloc.start()
    try:
        assert_missed(store)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_keys_of_another_segment_do_not_attach_to_rows(store, sound):
    """Valid keys beside valid rows that are not theirs: the seal joins them, so this is a miss."""
    others = KEYS[::-1].copy()
    content = b"".join(part.tobytes() for part in PARTS)
    plant(store, sound.replace(KEYS.tobytes() + content, others.tobytes() + content))
    assert_missed(store)
    plant(
        store,
        sound.replace(KEYS.tobytes() + content, others.tobytes() + content).replace(
            digest(KEYS.tobytes()).encode(), digest(others.tobytes()).encode()
        ),
    )
    assert_missed(store)


def test_segment_of_another_table_is_foreign(store, sound, tmp_path):
    """A segment copied to another fingerprint, or to a table of other columns, serves nothing there."""
    other = Store(tmp_path / "other").table("cd", COLUMNS)
    other.writer().close()
    (other.path / "x.safetensors").write_bytes(sound)
    with pytest.warns(DamagedSegmentWarning, match="expected rows of cd, got rows of ab"):
        assert other.rows == 0
    narrow = Store(tmp_path / "narrow").table("ab", COLUMNS[:1])
    narrow.writer().close()
    (narrow.path / "x.safetensors").write_bytes(sound)
    with pytest.warns(DamagedSegmentWarning, match=r"expected columns \(0:F32\[2\]\)"):
        assert narrow.rows == 0


def test_damaged_segment_does_not_spoil_its_neighbours(store, sound):
    """One bad file among good ones: the good rows are all served, the bad one is named once."""
    plant(store, sound, "good.safetensors")
    plant(store, sound[:-1], "bad.safetensors")
    served, damaged = serve(store)
    assert served == RIGHT
    assert list(damaged) == ["bad.safetensors"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "dangling link", "link to itself", "device"])
def test_segment_that_is_no_file_is_a_named_miss(store, kind):
    """Opening it neither hangs nor crashes."""
    path = store.path / "tables" / "ab" / "x.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            before = os.getcwd()
            os.chdir(path.parent)  # a socket's path is short
            try:
                server.bind(path.name)
            finally:
                os.chdir(before)
    else:
        path.symlink_to({"dangling link": "nowhere", "link to itself": path.name, "device": "/dev/zero"}[kind])
    assert_missed(store)


def test_segment_that_may_not_be_read_is_a_named_miss(store, sound, monkeypatch):
    """Another user's private file is not ours to serve, and no reason to stop."""
    from forethought.store import segment

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    plant(store, sound)
    monkeypatch.setattr(segment, "open_regular", refuse)
    assert_missed(store)


@pytest.mark.parametrize("after", ["header", "keys"])
@pytest.mark.parametrize("harm", ["cut", "flip", "replace"])
def test_segment_harmed_after_it_was_opened_is_a_miss(store, sound, harm, after):
    """Bytes are checked when they are first read, not when the table was opened."""
    path = plant(store, sound)
    table = store.table("ab", COLUMNS)
    table.refresh()
    if after == "keys":
        assert table.rows == ROWS
    raw = bytearray(sound)
    raw[-2] ^= 1
    path.write_bytes({"cut": sound[:-20], "flip": raw, "replace": b"x" * len(sound)}[harm])
    with pytest.raises(DamagedSegmentError, match=r"x\.safetensors") as caught:
        table.segment(0).column("1")
    with pytest.warns(DamagedSegmentWarning):
        table.drop(0, caught.value)
    assert (table.locate(KEYS) == -1).all()


@pytest.mark.parametrize("after", ["header", "keys"])
def test_segment_removed_after_it_was_opened_is_no_damage(store, sound, after):
    """Somebody may remove a segment at any time: its rows are absent, nobody is told to delete it, nothing is named."""
    path = plant(store, sound)
    table = store.table("ab", COLUMNS)
    table.refresh()
    if after == "keys":
        assert table.rows == ROWS
    path.unlink()
    if after == "header":
        assert table.rows == 0
    else:
        with pytest.raises(DamagedSegmentError, match="somebody removed it") as caught:
            table.segment(0).column("1")
        assert "rm " not in str(caught.value)
        table.drop(0, caught.value)
    assert (table.locate(KEYS) == -1).all()
    assert table.damaged == {}
    with pytest.raises(DamagedSegmentError, match="somebody removed it"):
        table.segment(0)
    assert table.verify() == {}


def test_damage_found_twice_warns_once(store, sound):
    """Two columns damaged, found by many callers: one segment, one warning."""
    plant(store, sound[:-60] + bytes(60))
    table = store.table("ab", COLUMNS)
    table.refresh()
    segment = table.segment(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name in ("0", "1", "0"):
            with pytest.raises(DamagedSegmentError) as caught:
                segment.column(name)
            table.drop(0, caught.value)
        assert table.rows == 0
        table.refresh()
    assert len(said) == 1


def test_verify_names_every_damaged_segment(store, sound):
    """Verifying reads every byte, also of what was served before."""
    path = plant(store, sound, "a.safetensors")
    plant(store, sound, "b.safetensors")
    table = store.table("ab", COLUMNS)
    assert table.verify() == {}
    table.segment(0).column("0")
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.warns(DamagedSegmentWarning, match=r"a\.safetensors"):
        assert list(table.verify()) == ["a.safetensors"]
    assert table.rows == ROWS
    assert set(table.locate(KEYS)[:, 0].tolist()) == {1}


def test_warnings_as_errors_leave_a_whole_table(store, sound):
    """Where a warning raises, the next call goes on as if it had not."""
    for name in ("a", "b"):
        plant(store, sound[:-1], f"{name}.safetensors")
    plant(store, sound, "c.safetensors")
    table = store.table("ab", COLUMNS)
    for name in ("a", "b"):
        with pytest.raises(DamagedSegmentWarning, match=f"{name}.safetensors"):
            table.refresh()
    assert table.rows == ROWS


@pytest.mark.parametrize("name", [".x.safetensors", ".x.safetensors.0.tmp", "x.safetensors.part", "README"])
def test_other_files_are_ignored(store, sound, name):
    """Temporary, hidden and unrelated files are no segments and no reason to warn."""
    plant(store, sound[:-1], name)
    assert serve(store) == ({}, {})


def seal_note(key, body):
    return digest(key + b"\n" + body).encode() + b"\n" + body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"{}",
        b'{"columns": []}',
        seal_note(b"ab", b"[]"),
        seal_note(b"ab", b"{}"),
        seal_note(b"ab", b"[" * 100_000),
        seal_note(b"ab", b'{"columns":7,"provenance":{}}'),
        seal_note(b"ab", b'{"columns":[7],"provenance":{}}'),
        seal_note(b"ab", b'{"columns":[{"name":"../0","dtype":"F32","shape":[]}],"provenance":{}}'),
        seal_note(b"ab", b'{"columns":[{"name":"0","dtype":"F32","shape":[-1]}],"provenance":{}}'),
        seal_note(b"ab", b'{"columns":[],"provenance":[1]}'),
        seal_note(b"cd", b'{"columns":[],"provenance":{}}'),
    ],
)
def test_hostile_table_note_says_nothing(store, sound, raw):
    """A table's note is believed only when whole, sealed, its own and of the right form."""
    (store.path / "tables" / "ab" / "table.note").write_bytes(raw)
    plant(store, sound)
    with pytest.raises(StoreError, match="Pass columns"):
        store.table("ab")
    assert serve(store) == (RIGHT, {})


def test_flipped_byte_in_a_note_is_detected(store):
    """A note is what was written or None."""
    store.write_note("abcd", {"rows": 100, "keys": ["00ff"]})
    path = store.path / "notes" / "ab" / "abcd.note"
    raw = path.read_bytes()
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        assert store.note("abcd") is None
        path.write_bytes(raw[:position])
        assert store.note("abcd") is None
    (path.parent / "abce.note").write_bytes(raw)
    assert store.note("abce") is None
    path.unlink()
    os.mkfifo(path)
    assert store.note("abcd") is None


def test_folders_that_are_files_are_errors_of_the_store(store):
    """A store whose inner folders are something else says so in its own words."""
    (store.path / "notes").write_text("x")
    assert store.note("ab") is None
    with pytest.raises(StoreError, match="Cannot write a note"):
        store.write_note("ab", {})
    (store.path / "tables" / "cd").write_text("x")
    table = store.table("cd", COLUMNS)
    with pytest.raises(StoreError, match="Cannot list"):
        _ = table.rows
    with pytest.raises(StoreError, match="Cannot write"):
        table.writer()


def test_marker_that_is_no_file_is_refused(store):
    """A pipe in place of the marker does not hang the reader."""
    path = store.path / "forethought.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="not a regular file"):
        Store(store.path)


RAGGED = [Column("0", "F32", (None, 2)), Column("1", "BF16", (3,))]
SIZES = np.array([[1, 2], [0, 2], [2, 2]], "<i8")
VALUES = np.arange(24, dtype=np.uint8)


def ragged_parts(sizes=SIZES, values=VALUES):
    return {"keys": KEYS.tobytes(), "0.sizes": sizes.tobytes(), "0": values.tobytes(), "1": PARTS[1].tobytes()}


def ragged_tree(parts, sizes=SIZES):
    dtypes = {"keys": "U8", "0.sizes": "I64", "0": "F32", "1": "BF16"}
    shapes = {"keys": [ROWS, 16], "0.sizes": list(sizes.shape), "0": [len(parts["0"]) // 4], "1": [ROWS, 3]}
    metadata = {"format": "2", "fingerprint": "ab"} | {f"blake3.{name}": digest(raw) for name, raw in parts.items()}
    tree, end = {"__metadata__": metadata | {"seal": "0" * 64}}, 0
    for name, raw in parts.items():
        tree[name] = {"dtype": dtypes[name], "shape": shapes[name], "data_offsets": [end, end + len(raw)]}
        end += len(raw)
    return tree


def forge_ragged(sizes=SIZES, values=VALUES, edit=lambda text: text):
    """Return a segment with valid digests and seal over whatever sizes, values and `edit` say."""
    parts = ragged_parts(sizes, values)
    return forge(ragged_tree(parts, sizes), b"".join(parts.values()), edit)


@pytest.fixture
def ragged_store(tmp_path):
    store = Store(tmp_path / "ragged")
    store.table("ab", RAGGED).writer().close()
    return store


def serve_ragged(store):
    """Read every row as a careful caller does. Returns the values of the rows served and what was named."""
    table = store.table("ab", RAGGED)
    served = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i, (number, row) in enumerate(table.locate(KEYS).tolist()):
            if number >= 0 and not table.damaged:
                try:
                    served[i] = bytes(table.segment(number).column("0").select(np.array([row])).values)
                except DamagedSegmentError as err:
                    table.drop(number, err)
    assert [str(each.message) for each in said] == list(table.damaged.values())
    return served, table.damaged


def test_forged_ragged_segment_of_the_specification_is_served(ragged_store):
    """Else the forgeries below prove nothing."""
    table = ragged_store.table("ab", RAGGED)
    with table.writer() as writer:
        writer.append(KEYS, [Ragged(VALUES, SIZES), PARTS[1]])
    path = next(table.path.glob("*.safetensors"))
    assert path.read_bytes() == forge_ragged()
    assert serve_ragged(ragged_store) == ({0: bytes(VALUES[:8]), 1: b"", 2: bytes(VALUES[8:])}, {})


def replaced(old, new):
    return lambda: forge_ragged(edit=lambda text: text.replace(old, new))


def sized(*rows):
    return lambda: forge_ragged(np.array(rows, "<i8"))


HOSTILE_RAGGED = {
    "negative sizes": sized([-1, -2], [0, 2], [2, 2]),
    "negative size that adds up": sized([-1, 2], [2, 2], [2, 2]),
    "one element too few": sized([1, 2], [0, 2], [1, 2]),
    "one element too many": sized([1, 2], [1, 2], [2, 2]),
    "another size than the table's": sized([2, 1], [0, 2], [2, 2]),
    "another size in an empty row": sized([1, 2], [0, 3], [2, 2]),
    "product that wraps to the right one": sized([2**63 + 1 - 2**64, 2], [0, 2], [2, 2]),
    "sum that wraps to the right one": sized([2**62, 2], [2**62, 2], [3, 2]),
    "huge size beside a zero": sized([1, 2], [2**62, 0], [2, 2]),
    "values of half an element": lambda: forge_ragged(values=VALUES[:-2]),
    "more values than sizes": lambda: forge_ragged(values=np.arange(32, dtype=np.uint8)),
    "no values": lambda: forge_ragged(values=VALUES[:0]),
    "sizes of fewer dimensions": lambda: forge_ragged(SIZES[:, :1].copy()),
    "sizes of more dimensions": lambda: forge_ragged(np.repeat(SIZES, 2, axis=1)),
    "sizes of fewer rows": lambda: forge_ragged(SIZES[:2]),
    "sizes as U64": replaced(b'"0.sizes":{"dtype":"I64"', b'"0.sizes":{"dtype":"U64"'),
    "billions of dimensions": replaced(b'"dtype":"I64","shape":[3,2]', b'"dtype":"I64","shape":[3,%d]' % 2**62),
    "negative dimensions": replaced(b'"dtype":"I64","shape":[3,2]', b'"dtype":"I64","shape":[3,-2]'),
    "dimensions as true": lambda: forge_ragged(
        SIZES[:, :1].copy(), edit=lambda text: text.replace(b'"I64","shape":[3,1]', b'"I64","shape":[3,true]')
    ),
    "huge number of elements": replaced(b'"F32","shape":[6]', b'"F32","shape":[%d]' % 2**62),
    "negative number of elements": replaced(b'"F32","shape":[6]', b'"F32","shape":[-6]'),
    "number of elements as text": replaced(b'"F32","shape":[6]', b'"F32","shape":["6"]'),
    "values in rows": replaced(b'"F32","shape":[6]', b'"F32","shape":[3,2]'),
    "null in a shape": replaced(b'"F32","shape":[6]', b'"F32","shape":[3,null]'),
    "as format 1": replaced(b'"format":"2"', b'"format":"1"'),
    "a format to come": replaced(b'"format":"2"', b'"format":"3"'),
    "format as a number": replaced(b'"format":"2"', b'"format":2'),
    "format as a list": replaced(b'"format":"2"', b'"format":["2"]'),
    "sizes without values": replaced(b'"0.sizes"', b'"7.sizes"'),
}


@pytest.mark.parametrize("name", HOSTILE_RAGGED)
def test_hostile_sizes_are_a_named_miss(ragged_store, name):
    """Sizes that lie, under valid digests and a valid seal: no row is served, and next to nothing is allocated."""
    raw = HOSTILE_RAGGED[name]()
    assert raw != forge_ragged()
    plant(ragged_store, raw)
    tracemalloc.start()
    try:
        served, damaged = serve_ragged(ragged_store)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert served == {}
    assert list(damaged) == ["x.safetensors"]
    with pytest.warns(DamagedSegmentWarning):
        assert list(ragged_store.table("ab", RAGGED).verify()) == ["x.safetensors"]


def test_flipped_byte_of_a_ragged_segment_is_detected(ragged_store):
    """Header, keys, sizes, values: whatever is altered serves nothing that was altered."""
    sound = forge_ragged()
    for position in range(len(sound) - PARTS[1].nbytes):
        raw = bytearray(sound)
        raw[position] ^= (0x01, 0x20, 0xFF)[position % 3]
        plant(ragged_store, raw)
        assert serve_ragged(ragged_store)[0] == {}
    for length in range(0, len(sound), 7):
        plant(ragged_store, sound[:length])
        assert serve_ragged(ragged_store)[0] == {}


def test_segment_of_a_later_format_says_how_to_read_it(ragged_store):
    """It is left out by name; the way out is not to delete it."""
    plant(ragged_store, HOSTILE_RAGGED["a format to come"]())
    with pytest.warns(
        DamagedSegmentWarning, match=r"x\.safetensors.*expected format 1 or 2, got format '3'.*pip install"
    ):
        assert ragged_store.table("ab", RAGGED).rows == 0


def test_ragged_segment_in_a_fixed_table_is_foreign(store):
    """Rows of a size are not rows of any size, whatever their fingerprint."""
    plant(store, forge_ragged())
    assert_missed(store)
