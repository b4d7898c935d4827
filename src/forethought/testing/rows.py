"""Laws of rows: they come back bit for bit, from one store or from many, and damaged ones do not."""

import copy
import threading
import warnings

import numpy as np
import pytest

from forethought.errors import StoreError, StoreFormatError, StorePathError
from forethought.store import Column, DamagedSegmentWarning, Store
from forethought.store.column import DTYPES
from forethought.testing.places import (
    COLUMNS,
    MOST_BYTES,
    OpenPlace,
    copy_tree,
    make_rows,
    read_rows,
    segments_of,
    write_rows,
)


class RowLaws:
    """The part of `StoreContract` about rows."""

    @pytest.mark.parametrize("segment_rows", [1, 3, 100])
    def test_rows_come_back_bit_for_bit(self, open_place: OpenPlace, segment_rows: int) -> None:
        """Of any dtype and shape, sizes of zero too, in any division into segments."""
        shapes: list[tuple[int, ...]] = [(), (3,), (2, 0), (0,), (2, 1, 2)]
        columns = [Column(str(at), dtype, shapes[at % len(shapes)]) for at, dtype in enumerate(DTYPES)]
        store = Store.on(open_place("store"))
        write_rows(store.table("ab", columns), range(7), segment_rows)
        again = Store.on(open_place("store"), readonly=True)
        for table in (store.table("ab"), again.table("ab", columns)):
            assert read_rows(table, range(9)) == set(range(7))
            assert table.rows == 7
        assert again.tables() == ["ab"]

    def test_places_of_rows_stay_valid(self, open_place: OpenPlace, store: Store) -> None:
        """What others commit is seen after `refresh`, and moves nothing that was located, twice written or not."""
        write_rows(store.table("ab", COLUMNS), range(6))
        mine = store.table("ab")
        keys, _ = make_rows(range(12))
        before = mine.locate(keys)
        write_rows(Store.on(open_place("store")).table("ab"), range(12), segment_rows=5)
        assert np.array_equal(mine.locate(keys), before)
        mine.refresh()
        assert np.array_equal(mine.locate(keys)[:6], before[:6])
        assert read_rows(mine, range(12)) == set(range(12))
        assert mine.rows == 12

    def test_many_writers_share_a_store(self, open_place: OpenPlace) -> None:
        """At once, made by all of them at once, the same rows and others: all are there and counted once."""
        failures: list[BaseException] = []

        def write(start: int) -> None:
            try:
                table = Store.on(open_place("store")).table("ab", COLUMNS)
                write_rows(table, range(start, start + 9), segment_rows=2)
            except BaseException as err:
                failures.append(err)

        threads = [threading.Thread(target=write, args=(4 * each,)) for each in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        table = Store.on(open_place("store")).table("ab")
        assert read_rows(table, range(30)) == set(range(21))
        assert (table.rows, table.damaged) == (21, {})

    def test_interrupted_writer_keeps_whole_rows(self, open_place: OpenPlace, store: Store) -> None:
        """What was appended whole before an exception is there; the exception is what the caller sees."""
        writer = store.table("ab", COLUMNS).writer(segment_rows=4)
        with pytest.raises(KeyboardInterrupt), writer:  # noqa: PT012  (what is interrupted is the block)
            writer.append(*make_rows(range(6)))
            raise KeyboardInterrupt
        assert read_rows(Store.on(open_place("store")).table("ab"), range(9)) == set(range(6))

    def test_pickled_table_reads_what_was_located(self, store: Store) -> None:
        """Numbers of segments hold in a pickled table; nothing is opened before it is asked."""
        table = store.table("ab", COLUMNS)
        write_rows(table, range(9), segment_rows=2)
        keys, _ = make_rows(range(9))
        places = table.locate(keys)
        again, same = copy.deepcopy((table, store))  # as pickles are made and read
        write_rows(table, range(9, 12))
        assert np.array_equal(again.locate(keys), places)
        assert read_rows(again, range(12)) == set(range(12))
        assert (same.url, same.tables()) == (store.url, ["ab"])

    def test_any_history_agrees_with_a_simple_model(self, open_place: OpenPlace) -> None:
        """Commits, copies, removals and reopenings in any order serve exactly the rows that are in sound segments."""
        for seed in range(4):
            self._live(open_place, f"store{seed}", np.random.default_rng(seed))

    def _live(self, open_place: OpenPlace, name: str, rng: np.random.Generator) -> None:
        place = open_place(name)
        table = Store.on(place).table("ab", COLUMNS)
        segments: dict[str, set[int]] = {}
        for _ in range(12):
            act = rng.choice(["write", "write", "reopen", "copy", "remove", "damage"])
            path = f"tables/ab/{rng.choice(sorted(segments))}" if segments else ""
            if act == "write":
                numbers = [int(number) for number in rng.choice(40, 3, replace=False)]
                before = set(place.names("tables/ab"))
                write_rows(table, numbers)
                made = {each for each in set(place.names("tables/ab")) - before if each.endswith(".safetensors")}
                assert len(made) == 1
                segments[made.pop()] = set(numbers)
            elif act == "reopen":
                table = Store.on(open_place(name)).table("ab", COLUMNS)
            elif path:
                raw = place.get(path, MOST_BYTES) or b""
                if act == "copy":
                    copy = f"{rng.integers(2**60):x}.safetensors"
                    place.put(f"tables/ab/{copy}", raw)
                    segments[copy] = segments[path.rpartition("/")[2]]
                else:
                    at = int(rng.integers(len(raw)))
                    place.remove(path)
                    if act == "damage":
                        place.put(path, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
                    del segments[path.rpartition("/")[2]]
                table = Store.on(open_place(name)).table("ab", COLUMNS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DamagedSegmentWarning)
                assert read_rows(table, range(40)) == set().union(*segments.values())

    @pytest.mark.parametrize(
        "harm", ["flip in the header", "flip in the keys", "flip in a row", "cut", "longer", "void"]
    )
    def test_damaged_segment_is_named_and_left_out(self, open_place: OpenPlace, store: Store, harm: str) -> None:
        """One bad file serves nothing and is named once; its neighbours and its copies are served."""
        write_rows(store.table("ab", COLUMNS), range(4))
        name = segments_of(store.place)[0]
        write_rows(store.table("ab"), range(3, 8))
        raw = store.place.get(f"tables/ab/{name}", MOST_BYTES) or b""
        start = 8 + int.from_bytes(raw[:8], "little")
        at = {"flip in the header": 20, "flip in the keys": start + 1, "flip in a row": len(raw) - 1}.get(harm)
        if at is not None:
            bad = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
        else:
            bad = {"cut": raw[:-1], "longer": raw + b"\0", "void": b""}[harm]
        store.place.put(f"tables/ab/{name}", bad)
        table = Store.on(open_place("store")).table("ab")
        with pytest.warns(DamagedSegmentWarning, match=name):
            served = read_rows(table, range(8))
        assert served == set(range(3, 8))
        assert table.verify().keys() == {name}

    def test_verify_reads_what_lies_there_now(self, store: Store) -> None:
        """Damage that came after the rows were read is found by who asks for it."""
        table = store.table("ab", COLUMNS)
        write_rows(table, range(4))
        assert read_rows(table, range(4)) == set(range(4))
        path = f"tables/ab/{segments_of(store.place)[0]}"
        raw = store.place.get(path, MOST_BYTES) or b""
        store.place.put(path, raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.warns(DamagedSegmentWarning):
            assert table.verify().keys() == {path.rpartition("/")[2]}

    def test_foreign_names_are_ignored(self, open_place: OpenPlace, store: Store) -> None:
        """Temporary, hidden and unrelated files serve nothing and disturb nobody, a folder named as a segment too."""
        write_rows(store.table("ab", COLUMNS), range(4))
        place = store.place
        for name in (".x.safetensors", ".x.safetensors.0.tmp", "x.safetensors.part", "README", "x y.txt"):
            place.put(f"tables/ab/{name}", b"half")
        place.make_folder("tables/ab/f.safetensors")
        place.put("tables/ab/f.safetensors/x.safetensors", b"deep")
        place.make_folder("tables/UP")
        place.put("tables/UP/x.safetensors", b"no table")
        again = Store.on(open_place("store"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedSegmentWarning)
            assert read_rows(again.table("ab"), range(9)) == set(range(4))
        assert again.tables() == ["ab"]

    def test_place_of_other_things_is_refused(self, open_place: OpenPlace) -> None:
        """It is left as it is; so is a store of another format."""
        place = open_place("full")
        place.make_folder("")
        place.put("thesis.txt", b"mine")
        with pytest.raises(StoreFormatError, match="thesis"):
            Store.on(place)
        place.put("forethought.json", b'{"format": 99}\n')
        with pytest.raises(StoreFormatError, match="pip install --upgrade"):
            Store.on(place)
        assert sorted(path for path, _ in place.files("")) == ["forethought.json", "thesis.txt"]

    def test_copied_files_are_a_store(self, open_place: OpenPlace, store: Store) -> None:
        """Copy the files anywhere and they are the same store; copy one store into another and it has both."""
        write_rows(store.table("ab", COLUMNS), range(6))
        store.write_note("ab", {"rows": 6})
        store.write_manifest("cd", b"keys")
        copy_tree(store.place, open_place("copy"))
        copy = Store.on(open_place("copy"))
        assert read_rows(copy.table("ab"), range(9)) == set(range(6))
        assert (copy.note("ab"), copy.read_manifest("cd")) == ({"rows": 6}, b"keys")
        other = Store.on(open_place("other"))
        write_rows(other.table("ab", COLUMNS), range(4, 12))
        write_rows(other.table("cd", COLUMNS), range(20, 22))
        copy_tree(copy.place, other.place)
        merged = Store.on(open_place("other"))
        assert read_rows(merged.table("ab"), range(20)) == set(range(12))
        assert read_rows(merged.table("cd"), range(30)) == {20, 21}
        assert merged.size_bytes == sum(stamp.size_bytes for _, stamp in merged.place.files(""))

    def test_readonly_store_serves_and_writes_nothing(self, open_place: OpenPlace, store: Store) -> None:
        """Everything is served, every write is refused, and no file changes."""
        write_rows(store.table("ab", COLUMNS), range(4))
        store.write_note("ab", {"rows": 4})
        before = dict(store.place.files(""))
        readonly = Store.on(open_place("store"), readonly=True)
        assert read_rows(readonly.table("ab"), range(4)) == set(range(4))
        assert readonly.note("ab") == {"rows": 4}
        assert not readonly.is_writable
        for write in (
            lambda: readonly.table("ab").writer(),
            lambda: readonly.write_note("ab", {}),
            lambda: readonly.write_manifest("ab", b""),
            lambda: readonly.remove_manifest("ab"),
        ):
            with pytest.raises(StoreError, match="readonly=True"):
                write()
        claim = readonly.claims.take("ab")
        assert claim is not None
        assert claim.refresh()
        claim.release()
        assert dict(store.place.files("")) == before
        with pytest.raises(StorePathError, match="got none"):
            Store.on(open_place("nowhere"), readonly=True)
        assert store.is_writable
