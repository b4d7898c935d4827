"""Laws of single files: a place's own, notes and manifests, claims."""

import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from forethought.errors import StoreError
from forethought.store import Store
from forethought.testing.places import COLUMNS, MOST_BYTES, OpenPlace


class FileLaws:
    """The part of `StoreContract` about single files."""

    def test_place_keeps_files_whole(self, open_place: OpenPlace) -> None:
        """What was put is what is got, by this object and by a new one, until it is replaced or removed."""
        place = open_place("store")
        Store.on(place)
        place.make_folder("notes")
        for parts in ([b"one"], [b"t", b"", np.arange(600, dtype=np.uint8)], [b"x"]):
            place.put("notes/a.b", *parts)
            raw = b"".join(bytes(part) for part in parts)
            for each in (place, open_place("store")):
                assert each.get("notes/a.b", len(raw)) == raw
                stamp = each.stamp("notes/a.b")
                assert stamp is not None
                assert stamp.size_bytes == len(raw)
                assert dict(each.files("notes")) == {"notes/a.b": stamp}
                assert each.names("notes") == ["a.b"]
                assert each.local("notes/a.b", anew=True).read_bytes() == raw
        with pytest.raises(OSError):
            place.get("notes/a.b", 0)
        for _ in range(2):
            place.remove("notes/a.b")
            assert (place.get("notes/a.b", 9), place.stamp("notes/a.b"), place.names("notes")) == (None, None, [])
        with pytest.raises(FileNotFoundError):
            place.local("notes/a.b", anew=True).read_bytes()

    def test_place_without_a_folder_has_nothing_in_it(self, open_place: OpenPlace) -> None:
        """What is absent is absent and no error."""
        place = open_place("store")
        Store.on(place)
        assert (place.names("no"), list(place.files("no")), place.get("no/a", 9)) == ([], [], None)
        assert sorted(place.names("")) == ["forethought.json"]

    def test_place_makes_a_file_new_once(self, open_place: OpenPlace) -> None:
        """The first to make a file made it, and the others know that they did not."""
        place = open_place("store")
        Store.on(place)
        place.make_folder("claims")
        assert [place.put_new("claims/a", raw) for raw in (b"1", b"2")] == [True, False]
        assert place.get("claims/a", 9) == b"1"

    def test_note_is_what_was_written_or_none(self, open_place: OpenPlace, store: Store) -> None:
        """The last writer wins; a torn, altered or foreign note says nothing."""
        assert store.note("abcd") is None
        for value in ({"rows": 1}, {"rows": 100, "of": ["a", None, 1.5]}):
            store.write_note("abcd", value)
            assert Store.on(open_place("store")).note("abcd") == value
        self._assert_sealed(store, "notes/ab/abcd.note", "notes/ab/abce.note", lambda key: store.note(key))
        assert store.notes() == ["abcd", "abce"]

    def test_manifest_is_what_was_written_or_none(self, open_place: OpenPlace, store: Store) -> None:
        """Any bytes, in any division; as a note otherwise."""
        assert (store.read_manifest("abcd"), store.manifests()) == (None, [])
        for parts in ([b""], [b"a\nb", b"", bytes(range(256))], [b"last\n"]):
            store.write_manifest("abcd", *parts)
            assert Store.on(open_place("store")).read_manifest("abcd") == b"".join(parts)
        store.write_manifest("0f", b"other")
        store.write_manifest("f", b"short")
        assert Store.on(open_place("store")).manifests() == ["0f", "abcd", "f"]
        stamp = store.stamp("manifests/ab/abcd.manifest")
        assert stamp is not None
        assert stamp.size_bytes == 65 + 5
        store.remove_manifest("f")
        store.remove_manifest("f")
        assert (store.read_manifest("f"), store.stamp("manifests/f/f.manifest")) == (None, None)
        read = store.read_manifest
        self._assert_sealed(store, "manifests/ab/abcd.manifest", "manifests/ab/abce.manifest", read)

    def _assert_sealed(self, store: Store, path: str, other: str, read: Callable[[str], Any]) -> None:
        raw = store.place.get(path, MOST_BYTES) or b""
        for at in (0, 5, 63, 64, 65, len(raw) - 1):
            store.place.put(path, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            assert read("abcd") is None
            store.place.put(path, raw[:at])
            assert read("abcd") is None
        store.place.put(path, raw + b"\n")
        assert read("abcd") is None
        store.place.put(other, raw)
        assert read("abce") is None

    @pytest.mark.parametrize("name", ["", "..", "../ab", "AB", "a" * 129, "ab\n", 7])
    def test_names_are_hex(self, store: Store, name: Any) -> None:
        """No name leaves the place, whatever it means by a path."""
        uses: list[Callable[[Any], Any]] = [
            store.note,
            store.read_manifest,
            store.remove_manifest,
            store.write_manifest,
            store.claims.take,
            lambda key: store.write_note(key, {}),
            lambda key: store.table(key, COLUMNS),
        ]
        for use in uses:
            with pytest.raises(StoreError, match="lowercase hex"):
                use(name)

    def test_claim_is_held_by_one(self, open_place: OpenPlace, store: Store) -> None:
        """Others get none until it is released, or left to go stale."""
        others = Store.on(open_place("store")).claims
        mine = store.claims.take("ab", stale_s=1e6)
        assert mine is not None
        assert others.take("ab", stale_s=1e6) is None
        assert others.take("cd", stale_s=1e6) is not None
        assert mine.refresh()
        mine.release()
        mine.release()
        with cast(Any, others.take("ab", stale_s=1e6)):
            assert store.claims.take("ab", stale_s=1e6) is None
        assert store.claims.take("ab", stale_s=1e6) is not None

    def test_stale_claim_is_taken_over(self, open_place: OpenPlace, store: Store) -> None:
        """Who was thought dead learns of it, and does not take the claim from who has it now."""
        first = store.claims.take("ab")
        second = Store.on(open_place("store")).claims.take("ab", stale_s=-1)
        assert first is not None
        assert second is not None
        assert not first.refresh()
        first.release()
        assert second.refresh()
        assert store.claims.take("ab", stale_s=1e6) is None

    def test_threads_divide_work_by_claims(self, open_place: OpenPlace, store: Store) -> None:
        """All is taken, nothing twice."""
        keys = [f"{number:02x}" for number in range(12)]
        taken: list[str] = []

        def work(start: int) -> None:
            claims = Store.on(open_place("store")).claims
            taken.extend(key for key in keys[start:] + keys[:start] if claims.take(key, stale_s=1e6) is not None)

        threads = [threading.Thread(target=work, args=(3 * each,)) for each in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == keys
