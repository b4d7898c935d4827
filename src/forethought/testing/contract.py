"""The laws of a store, whatever its files lie in."""

from contextlib import suppress

import pytest

from forethought.errors import StoreError
from forethought.store import Place, Store
from forethought.testing.files import FileLaws
from forethought.testing.places import COLUMNS, SEGMENT_ROWS, FaultyPlace, OpenPlace, make_rows, read_rows
from forethought.testing.rows import RowLaws


class StoreContract(FileLaws, RowLaws):
    """The laws of a store, whatever its files lie in. Inherit, and say in `open_place` how to have a place."""

    fault_step = 1  # every how many calls one fails: more where calls take long

    @pytest.fixture
    def open_place(self) -> OpenPlace:
        """Give a function from a plain name to a place, empty when the test begins.

        The same name gives the same files, in a new object that has kept nothing of what it saw.
        """
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_place: OpenPlace) -> Store:
        """A new store."""
        return Store.on(open_place("store"))

    @pytest.mark.parametrize("is_done", [False, True])
    def test_fault_at_any_call_is_an_error_and_loses_nothing(self, open_place: OpenPlace, is_done: bool) -> None:
        """No wrong row, no lost row that was told committed, no healthy segment blamed; the error is a StoreError."""
        for fail_at in range(0, 1000, self.fault_step):
            name = f"store{fail_at}"
            error = (OSError(5, "the wire was cut"), TimeoutError("no answer"))[fail_at // self.fault_step % 2]
            place = FaultyPlace(open_place(name), fail_at, error, is_done=is_done)
            told: list[int] = [0]
            with suppress(StoreError):
                self._work(place, told)
            table = Store.on(open_place(name)).table("ab", COLUMNS)
            served = read_rows(table, range(20))
            assert served >= set(range(told[0]))
            assert table.damaged == {}
            if not place.has_failed:
                assert served == set(range(10))
                return
        raise AssertionError("no end of calls")

    def _work(self, place: Place, told: list[int]) -> None:
        """Use all of a store; tell how many rows were committed as soon as that is known."""
        store = Store.on(place)
        table = store.table("ab", COLUMNS)
        writer = table.writer(segment_rows=SEGMENT_ROWS)
        try:
            for number in range(10):
                writer.append(*make_rows([number]))
            writer.close()
        finally:
            told[0] = writer.rows_written
        store.write_note("ab", {"rows": 10})
        assert store.note("ab") in ({"rows": 10}, None)
        store.write_manifest("ab", b"keys")
        assert store.read_manifest("ab") in (b"keys", None)
        for _ in range(2):
            claim = store.claims.take("ab", stale_s=1e6)
        if claim is not None:
            claim.refresh()
            claim.release()
        again = Store.on(place).table("ab")
        assert read_rows(again, range(20)) == set(range(10))
        assert again.verify() == {}
        store.remove_manifest("ab")
        _ = store.tables(), store.notes(), store.manifests(), store.size_bytes, store.is_writable, table.size_bytes
