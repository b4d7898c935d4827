"""Where files lie: what a bucket adds to the laws of every place, what only a folder can show, and claims' clock."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from contextlib import nullcontext
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn

import forethought as ft
from forethought.errors import MissingExtraError, StoreError, StorePathError
from forethought.housekeeping import find_garbage, remove_garbage
from forethought.store import Column, DamagedSegmentError, DamagedSegmentWarning, Store
from forethought.store.claims import Claims
from forethought.testing import FaultyPlace, make_rows, read_rows, write_rows
from forethought.testing.places import COLUMNS, segments_of


@pytest.fixture
def url():
    return f"memory://{os.urandom(8).hex()}/store"


@pytest.fixture
def fetched(monkeypatch):
    """Names of the objects that were read whole."""
    names, read = [], MemoryFileSystem.cat_file

    def note(files, path, *args, **options):
        names.append(path)
        return read(files, path, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", note)
    return names


def segments_in(names):
    return [name for name in names if name.endswith(".safetensors")]


def copies_in(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.suffix == ".safetensors")


# --------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://me:hunter2@bucket/x", "without credentials"),
        ("s3://bucket/x?secret=hunter2", "without credentials"),
        ("ftp://me:hunter2@host/x", "expected a folder or a URL with s3://, gs://, memory://"),
        ("https://host/x", "expected a folder or a URL"),
        ("memory://", "plain name"),
        ("memory://a/../b", "plain name"),
        ("s3://bucket//x", "plain name"),
        (Path("s3://bucket/x"), "Pass it as a str"),
    ],
)
def test_address_that_cannot_be_a_store_is_refused(address, told):
    """The message says what an address looks like, and repeats no secret of this one."""
    with pytest.raises(StorePathError, match=told) as caught:
        Store(address)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_one_store_has_one_url(url):
    """Slashes at the end and capitals in the protocol name the same store."""
    store = Store(url)
    store.write_note("ab", {"rows": 1})
    again = Store(url.replace("memory", "MEMORY") + "/")
    assert again.note("ab") == {"rows": 1}
    assert (again.url, repr(again), repr(again.place)) == (url, f"Store('{url}')", f"Bucket('{url}')")
    with pytest.raises(StoreError, match="Use its url"):
        _ = store.path
    with pytest.raises(StoreError, match="Use its url"):
        _ = store.table("ab", COLUMNS).path


def test_missing_driver_is_named_with_its_command(monkeypatch):
    """An optional package is missed when it is needed, not before."""

    def refuse(protocol, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    with pytest.raises(MissingExtraError, match=r"expected s3fs.*pip install 'forethought\[remote\]'"):
        Store("s3://bucket/prefix")


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_error_of_a_driver_is_ours_and_tells_no_secret(url, monkeypatch, kind):
    """Whatever a driver raises is a StoreError; addresses in it are shown without what may be a key."""
    store = Store(url)
    writer = store.table("ab", COLUMNS).writer()
    writer.append(*make_rows(range(3)))

    def fail(*args, **options):
        raise kind("Cannot reach https://me:hunter2@host/x?X-Amz-Signature=hunter2&a=b today")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    with pytest.raises(StoreError, match=r"3 rows .*memory://.*reach https://...host/x... today") as caught:
        writer.flush()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


# ------------------------------------------------------------------------------------------------------- cache


def test_what_was_written_here_is_not_fetched(url, tmp_path, fetched):
    """A copy is kept of what was uploaded; another machine fetches each segment once, and then has it."""
    write_rows(Store(url, cache=tmp_path / "a").table("ab", COLUMNS), range(9))
    assert read_rows(Store(url, cache=tmp_path / "a").table("ab"), range(9)) == set(range(9))
    assert segments_in(fetched) == []
    for expected in (3, 3):
        assert read_rows(Store(url, cache=tmp_path / "b").table("ab"), range(9)) == set(range(9))
        assert len(segments_in(fetched)) == expected


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
def test_harmed_copy_is_fetched_again(url, tmp_path, harm):
    """A copy that fails its checks is no fault of the store: nobody is warned, and every row is served."""
    write_rows(Store(url, cache=tmp_path).table("ab", COLUMNS), range(9))
    for _ in range(2):
        for at, path in enumerate(copies_in(tmp_path)):
            raw = path.read_bytes()
            where = (-1, 20, 8 + int.from_bytes(raw[:8], "little"))[at % 3]
            flipped = bytearray(raw)
            flipped[where] ^= 1
            path.write_bytes({"flip": flipped, "cut": raw[:-3], "empty": b"", "remove": b""}[harm])
            if harm == "remove":
                path.unlink()
        table = Store(url, cache=tmp_path).table("ab")
        assert read_rows(table, range(9)) == set(range(9))
        assert table.damaged == {}


@pytest.mark.parametrize("harmed", ["0", "1"])
def test_segment_that_is_damaged_where_it_lies_is_fetched_twice(harmed, url, tmp_path, fetched):
    """The second copy shows that the first one was right to be refused; there is no third."""
    store = Store(url, cache=tmp_path / "a")
    write_rows(store.table("ab", COLUMNS), range(4))
    path = f"tables/ab/{segments_of(store.place)[0]}"
    raw = store.place.get(path, 2**20)
    at = len(raw) - {"0": 4 * 2 + 1, "1": 1}[harmed]
    store.place.put(path, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    fetched.clear()
    table = Store(url, cache=tmp_path / "b").table("ab")
    segment = table.segment(int(table.locate(make_rows(range(4))[0])[0, 0]))
    for name in ("0", "0", "1"):
        with pytest.raises(DamagedSegmentError) if name == harmed else nullcontext():
            segment.column(name)
    with pytest.warns(DamagedSegmentWarning, match="delete it from the bucket"):
        assert read_rows(table, range(4)) == set()
    assert len(segments_in(fetched)) == 2


def test_copies_that_nobody_uses_are_deleted_and_objects_stay(url, tmp_path, fetched):
    """Using any remote store deletes copies not used for a month, of all stores; used ones and foreign files stay."""
    others = f"{url}-other"
    for each, rows in ((url, 9), (others, 6)):
        write_rows(Store(each, cache=tmp_path).table("ab", COLUMNS), range(rows))
    kept = copies_in(tmp_path)[0]
    foreign = [tmp_path / "photo.jpg", kept.with_name("notes.txt"), tmp_path / ("a" * 32)]
    for path in foreign[:2]:
        path.write_bytes(b"mine")
    (tmp_path / "elsewhere").mkdir()
    foreign[2].symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / ("b" * 32)).write_bytes(b"mine")
    long_ago = time.time() - 40 * 86400
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != f"{kept.name}.used":
            os.utime(path, (long_ago, long_ago))
    kept.with_name(f"{kept.name}.used").touch()
    fetched.clear()
    assert read_rows(Store(f"{url}-third", cache=tmp_path).table("ab", COLUMNS), range(1)) == set()
    write_rows(Store(f"{url}-third", cache=tmp_path).table("ab", COLUMNS), range(1))  # the first use of a copy
    left = [path for path in copies_in(tmp_path) if path.stat().st_mtime < time.time() - 86400]
    assert left == [kept]
    assert all(path.exists() for path in (*foreign, tmp_path / "elsewhere" / ("b" * 32)))
    for each, rows in ((url, 9), (others, 6)):
        assert read_rows(Store(each, cache=tmp_path).table("ab"), range(rows)) == set(range(rows))
    assert len(segments_in(fetched)) == 4  # of five


def test_using_a_copy_is_noted_beside_it(url, tmp_path):
    """A copy's own times stay what they were when it was checked: reading is no reason to check again."""
    write_rows(Store(url, cache=tmp_path).table("ab", COLUMNS), range(3))
    (copy,) = copies_in(tmp_path)
    was = copy.stat()
    assert read_rows(Store(url, cache=tmp_path).table("ab"), range(3)) == set(range(3))
    assert copy.with_name(f"{copy.name}.used").exists()
    assert (copy.stat().st_mtime_ns, copy.stat().st_ctime_ns) == (was.st_mtime_ns, was.st_ctime_ns)
    store = Store(url, cache=tmp_path)
    store.place.remove(f"tables/ab/{segments_of(store.place)[0]}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_cache_may_be_deleted_at_any_time(url, tmp_path):
    """What is mapped stays; what is asked for next is fetched again."""
    write_rows(Store(url, cache=tmp_path).table("ab", COLUMNS), range(9))
    table = Store(url, cache=tmp_path).table("ab")
    keys, parts = make_rows(range(9))
    places = table.locate(keys)
    mapped = table.segment(int(places[0, 0])).column("0")
    shutil.rmtree(next(tmp_path.iterdir()))
    assert bytes(mapped[places[0, 1]]) == bytes(parts[0][0])
    assert read_rows(table, range(9)) == set(range(9))


def test_stores_share_a_cache_folder(tmp_path):
    """Each has a folder of its own in it, also where files have the same names."""
    stores = [Store(f"memory://{os.urandom(8).hex()}", cache=tmp_path) for _ in range(2)]
    write_rows(stores[0].table("ab", COLUMNS), range(4))
    write_rows(stores[1].table("ab", COLUMNS), range(4, 8))
    first, second = (f"tables/ab/{segments_of(store.place)[0]}" for store in stores)
    stores[1].place.put(first, stores[1].place.get(second, 2**20))
    stores[1].place.remove(second)
    assert read_rows(Store(stores[0].url, cache=tmp_path).table("ab"), range(9)) == set(range(4))
    assert read_rows(Store(stores[1].url, cache=tmp_path).table("ab"), range(9)) == set(range(4, 8))


def test_cache_lies_with_the_users_other_caches(tmp_path, monkeypatch):
    """Where XDG_CACHE_HOME says, or in ~/.cache; a memory store leaves nothing anywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = Store(f"memory://{os.urandom(8).hex()}").place
    place.put("a.b", b"raw", keep=True)
    assert not (tmp_path / "xdg").exists()
    assert len(list(tmp_path.iterdir())) == 1
    del place
    assert list(tmp_path.iterdir()) == []
    from forethought.store import bucket

    assert bucket._user_cache() == tmp_path / "xdg" / "forethought"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert bucket._user_cache() == tmp_path / "home" / ".cache" / "forethought"


@pytest.mark.parametrize("error", [TimeoutError("no answer"), OSError(5, "the wire was cut")])
def test_fetch_that_fails_blames_no_segment(url, error):
    """Rows that cannot be reached now are not absent: they must not be computed again."""
    write_rows(Store(url).table("ab", COLUMNS), range(4))
    table = Store.on(FaultyPlace(Store(url).place, 4, error)).table("ab")
    with pytest.raises(StoreError, match="Cannot fetch segment"):
        table.locate(make_rows(range(4))[0])
    assert read_rows(table, range(9)) == set(range(4))
    assert table.damaged == {}


def test_table_whose_columns_cannot_be_read_now_is_not_taken_for_a_new_one(url):
    """No answer is not the answer that there is no such table: its note would be written over."""
    write_rows(Store(url).table("ab", COLUMNS), range(4))
    other = [Column("0", "F64", ())]
    store = Store.on(FaultyPlace(Store(url).place, 1, TimeoutError("no answer")))
    with pytest.raises(StoreError, match=r"expected to read its table\.note, got no answer"):
        store.table("ab", other)
    with pytest.raises(StoreError, match="on disk"):
        store.table("ab", other)
    assert read_rows(Store(url).table("ab"), range(9)) == set(range(4))


# --------------------------------------------------------------------------------------------------- processes


def test_memory_of_another_process_is_said_to_be_one(url):
    """A worker that was started afresh has other memory: an empty store would be a lie."""
    table = Store(url).table("ab", COLUMNS)
    write_rows(table, range(4))
    script = "import pickle, sys; table = pickle.load(sys.stdin.buffer); print(table); table.rows"
    run = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(table), capture_output=True, timeout=120)
    assert url in run.stdout.decode()
    assert "StoreError" in run.stderr.decode()
    assert "another process" in run.stderr.decode()


def test_forked_child_leaves_the_copies_of_its_parent(url):
    """It has a copy of the memory, and its end takes nothing from the parent."""
    table = Store(url).table("ab", COLUMNS)
    write_rows(table, range(4))
    keys, _ = make_rows(range(4))
    table.locate(keys)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if read_rows(table, range(9)) == set(range(4)) else 2
            weakref.finalize._exitfunc()  # what ends a process that returns from main
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert len(copies_in(table._place._copies)) == 1


# ---------------------------------------------------------------------------------------------------- writable


def test_extraction_works_on_a_bucket(url, monkeypatch):
    """Run once, served ever after; also by who may not write there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ft.freeze(model, until="1")
    x = torch.randn(20, 4)
    first = ft.extract(model, x, url)
    assert first.report.rows_computed == 20
    memory = MemoryFileSystem.pipe_file

    def deny(*args, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", deny)
    store = Store(url)
    assert not store.is_writable
    again = ft.extract(model, x, store)
    assert again.report.rows_computed == 0
    assert np.array_equal(again.numpy(), first.numpy())
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", memory)
    assert store.is_writable


def test_store_that_vanished_is_not_writable_and_stays_gone(url):
    """What was deleted does not come back half."""
    store = Store(url)
    table = store.table("ab", COLUMNS)
    write_rows(table, range(4))
    for path, _ in list(store.place.files("")):
        store.place.remove(path)
    assert not store.is_writable
    for write in (table.writer, lambda: store.write_note("ab", {}), lambda: store.write_manifest("ab", b"")):
        with pytest.raises(StoreError, match="The store is gone"):
            write()
    claim = store.claims.take("ab")
    assert claim.refresh()
    assert list(store.place.files("")) == []


def test_folder_that_vanished_is_not_writable_and_stays_gone(tmp_path):
    """As of a bucket; and a folder that this user may not write to is not writable either."""
    store = Store(tmp_path / "store")
    assert store.is_writable
    (tmp_path / "store").rename(tmp_path / "moved")
    assert not store.is_writable
    with pytest.raises(StoreError, match="folder is gone"):
        store.write_manifest("ab", b"")
    assert store.claims.take("ab") is not None
    assert not store.path.exists()


def test_notes_that_cannot_be_listed_are_an_error(tmp_path):
    """A folder that is out of reach must not pass for an empty one."""
    store = Store(tmp_path / "store")
    store.write_note("ab", {})
    place = FaultyPlace(store.place, 1, OSError(5, "Input/output error"))
    with pytest.raises(StoreError, match=r"Cannot list .*notes"):
        Store.on(place).notes()


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "torn", "elsewhere"])
def test_hostile_manifest_says_nothing(tmp_path, kind):
    """What is no file of ours at its own place is no manifest; listing stops at nothing."""
    store = Store(tmp_path / "store")
    store.write_manifest("abcd", b"keys")
    folder = store.path / "manifests" / "ab"
    path = folder / "abce.manifest"
    if kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "torn":
        path.write_bytes(b"a" * 64)
    else:
        (store.path / "manifests" / "cd").mkdir()
        (folder / "abcd.manifest").rename(store.path / "manifests" / "cd" / "abcd.manifest")
    assert store.read_manifest("abce") is None
    assert set(store.manifests()) <= {"abcd", "abce"}
    assert store.read_manifest("abcd") == (None if kind == "elsewhere" else b"keys")
    assert ("abcd" in store.manifests()) == (kind != "elsewhere")


def test_manifest_of_monstrous_size_is_not_read(tmp_path, monkeypatch):
    """A file without end in place of a manifest fills no memory; nobody writes one that cannot be read."""
    from forethought.store import notes

    monkeypatch.setitem(notes.MOST_BYTES, "manifests", 100)
    store = Store(tmp_path / "store")
    store.write_manifest("ab", b"x" * 35)
    assert store.read_manifest("ab") == b"x" * 35
    with pytest.raises(StoreError, match="expected at most 100 bytes, got 101"):
        store.write_manifest("ab", b"x" * 36)
    with open(store.path / "manifests" / "ab" / "ab.manifest", "ab") as file:
        file.truncate(2**40)
    assert store.read_manifest("ab") is None


# ------------------------------------------------------------------------------------------------------- claims


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def age(store, key, seconds):
    """Make a claim as old as that, by the clock of the files."""
    path = store.path / "claims" / key
    changed = path.stat().st_mtime
    os.utime(path, (changed - seconds, changed - seconds))


def test_claim_of_the_dead_goes_stale(store):
    """Kill -9 releases nothing, so age does."""
    assert store.claims.take("ab") is not None
    age(store, "ab", 50)
    assert store.claims.take("ab") is None
    age(store, "ab", 70)
    assert store.claims.take("ab") is not None
    assert store.claims.take("ab") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_claim_of_a_process_that_ended_is_free_at_once(tmp_path):
    """Whoever was killed holds nobody up; whoever lives is not robbed."""
    store = Store(tmp_path / "store")
    program = f"from forethought.store import Store; Store({str(tmp_path / 'store')!r}).claims.take('ab'); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert store.claims.take("ab") is None
        other.kill()
        other.wait()
        assert store.claims.take("ab") is not None
        assert store.claims.take("ab") is None, "ours, now"


def test_refreshed_claim_stays_fresh(store):
    """As long as somebody is at it."""
    claim = store.claims.take("ab")
    age(store, "ab", 100)
    assert claim.refresh()
    assert store.claims.take("ab") is None


def test_claim_that_came_meanwhile_is_kept(url, monkeypatch):
    """Between the look and the write another may take it: the server decides, by a conditional write."""
    place = Store(url).place
    assert place.put_new("claims/ab", b"1")
    monkeypatch.setattr(type(place), "stamp", lambda self, path: None)
    assert not place.put_new("claims/ab", b"2")
    assert place.get("claims/ab", 9) == b"1"


@pytest.mark.parametrize("shift_s", [-1e6, 1e6])
def test_claims_tell_the_time_by_files(store, monkeypatch, shift_s):
    """A machine whose clock is days off neither robs the living nor waits for the dead."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + shift_s)
    mine = store.claims.take("ab")
    assert Store(store.path).claims.take("ab") is None
    age(store, "ab", 70)
    assert Store(store.path).claims.take("ab") is not None
    assert not mine.refresh()


def test_claim_from_the_future_is_no_reason_to_wait(store):
    """A clock was set back; the work must be done all the same."""
    store.claims.take("ab")
    age(store, "ab", -1000)
    assert store.claims.take("ab") is not None


def test_claims_of_long_ago_are_swept(store):
    """Who takes a claim first removes those of the dead, and leaves those of the living."""
    for key in ("ab", "cd"):
        store.claims.take(key)
    age(store, "ab", 90_000)
    (store.path / "claims" / ".x.tmp").write_bytes(b"")
    Store(store.path).claims.take("ef")
    assert sorted(path.name for path in (store.path / "claims").iterdir()) == [".x.tmp", "cd", "ef"]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "empty"])
def test_hostile_claim_holds_nobody_up(store, kind):
    """Whatever lies in its place, work goes on when it is old, and nothing outside is touched."""
    outside = store.path.parent / "outside"
    outside.write_bytes(b"mine")
    store.claims.take("00")
    path = store.path / "claims" / "ab"
    {
        "link": lambda: path.symlink_to(outside),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "empty": path.touch,
    }[kind]()
    assert store.claims.take("ab") is None
    claim = store.claims.take("ab", stale_s=-1)
    assert claim is not None
    claim.refresh()
    claim.release()
    assert outside.read_bytes() == b"mine"


def test_claim_that_cannot_be_kept_is_given_to_everybody(store, monkeypatch):
    """A full disk divides no work, and stops none."""
    place = FaultyPlace(store.place, 0, OSError(28, "No space left on device"))
    for claims in (Claims(place, is_kept=True), Claims(store.place, is_kept=False)):
        with claims.take("ab") as claim:
            assert claim.refresh()
    assert not (store.path / "claims" / "ab").exists()


def test_claims_are_made_afresh_in_a_pickled_store(store):
    """Another machine's clock is not ours."""
    store.claims.take("ab")
    assert store.claims.take("ab") is None
    again = pickle.loads(pickle.dumps(store))
    assert again.claims._clock is None
    assert again.claims.take("ab") is None


# ---------------------------------------------------------------------------------------------- copies of what is gone


def test_gc_drops_copies_of_what_is_gone_from_the_bucket(url, tmp_path):
    """Whoever removed it, and however long ago: a copy that belongs to nothing goes; the others, and all rows, stay."""
    store = Store(url, cache=tmp_path / "a")
    write_rows(store.table("ab", COLUMNS), range(9))
    assert read_rows(Store(url, cache=tmp_path / "b").table("ab"), range(9)) == set(range(9))
    gone = segments_of(store.place)[0]
    Store(url, cache=tmp_path / "b").place.remove(f"tables/ab/{gone}")  # another machine's cache does not hear of it
    foreign = copies_in(tmp_path / "a")[0].with_name("notes.txt")
    foreign.write_bytes(b"mine")
    assert not find_garbage(store, max_size_bytes=2**40).pieces
    garbage = find_garbage(store, unreachable=True)
    assert {piece.kind for piece in garbage.pieces} == {"local copy"}
    assert len(copies_in(tmp_path / "a")) == 3
    size = garbage.size_bytes
    assert remove_garbage(store, garbage) == size > 0
    assert (len(copies_in(tmp_path / "a")), foreign.read_bytes()) == (2, b"mine")
    assert not find_garbage(store, unreachable=True).pieces
    assert len(read_rows(Store(url, cache=tmp_path / "a").table("ab"), range(9))) in (5, 8)


def test_gc_of_a_bucket_that_does_not_answer_drops_no_copy(url, tmp_path, monkeypatch):
    """An empty answer to a listing is one thing, none is another: what cannot be listed is not gone."""
    store = Store(url, cache=tmp_path)
    write_rows(store.table("ab", COLUMNS), range(9))

    def fail(*args, **options):
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFileSystem, "find", fail)
    with pytest.raises(StoreError, match="Cannot list"):
        find_garbage(store, unreachable=True)
    assert len(copies_in(tmp_path)) == 3
