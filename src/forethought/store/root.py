"""The store: one folder of tables and notes, shared by runs, processes and machines."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forethought.errors import StoreError, StoreFormatError, StorePathError
from forethought.store.bucket import Bucket, is_url
from forethought.store.claims import Claims
from forethought.store.column import Column, check_columns
from forethought.store.files import TEMPORARY, writing
from forethought.store.folder import Folder
from forethought.store.header import FORMAT, is_hex
from forethought.store.notes import (
    MANIFESTS,
    MOST_BYTES,
    NOTES,
    check_hex,
    keys_of,
    path_of,
    read_note,
    read_sealed,
    write_note,
    write_sealed,
)
from forethought.store.place import MARKER, Place, Stamp, where
from forethought.store.table import NOTE, Table, check_same, listing_failed, local_folder, read_description

TABLES = "tables"
LEDGER = "ledger"  # what was spent on it, written beside it
_MOST_MARKER_BYTES = 4096


class Store:
    """A place for features. Made if it is not there, unless `readonly`.

    No lock and no database: any number of processes and threads may use one store at once. Bytes, shapes and
    dtype names only; it knows nothing of models. Pickles as its address and opens nothing until asked.

    Args:
        path: A folder that is a store, is empty, or does not exist yet; or the URL of a prefix in a bucket that is one
            or is empty: 's3://bucket/prefix', 'gs://bucket/prefix', 'memory://name'.
        readonly: Write nothing, ever. A store that merely cannot be written also serves everything it has.
        cache: Where copies of a remote store's segments are kept, a folder of its own inside this one; None for
            ~/.cache/forethought ($XDG_CACHE_HOME). A local store needs none.

    Raises:
        StorePathError: the path is a file, or cannot be made, or does not exist and `readonly` is set; or the URL is
            none that can hold a store.
        StoreFormatError: another format version, or a folder of other things, which is left as it is.
        MissingExtraError: the URL needs a driver that is not installed.

    Example:
        >>> store = ft.Store("memory://example")
        >>> store.write_note("ab", {"rows": 3})
        >>> store.note("ab"), store.notes()
        ({'rows': 3}, ['ab'])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._open(Bucket(os.fspath(path), cache) if is_url(path) else Folder(Path(os.path.abspath(path))), readonly)

    @classmethod
    def on(cls, place: Place, *, readonly: bool = False) -> "Store":
        """Open the store that lies in a `Place` of any kind. Raises as `Store` does."""
        store = cls.__new__(cls)
        store._open(place, readonly)
        return store

    def _open(self, place: Place, readonly: bool) -> None:
        self._settle(place, readonly)
        if not self._has_marker():
            self._create()

    def _settle(self, place: Place, readonly: bool) -> None:
        self.place = place
        self.readonly = readonly
        # Kept together, as they tell the time by the files that they write.
        self.claims = Claims(place, is_kept=not readonly)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.place, self.readonly)

    def __repr__(self) -> str:
        return f"Store('{self.url}')"

    @property
    def url(self) -> str:
        """The path of a local store, the URL of a remote one; without credentials."""
        return self.place.url

    @property
    def path(self) -> Path:
        """The folder of a local store.

        Raises:
            StoreError: the store is remote: it has a `url`.
        """
        return local_folder(self.place)

    @property
    def is_writable(self) -> bool:
        """Whether something can be written now: not where it is readonly, forbidden or gone. Never raises."""
        return not self.readonly and self.place.is_writable()

    def table(
        self,
        fingerprint: str,
        columns: Sequence[Column] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Table:
        """Open a table; nothing is written before its first `writer`.

        Args:
            fingerprint: Lowercase hex: what the rows are rows of.
            columns: One for each tensor of a row. None opens a table that exists.
            provenance: JSON facts kept with a new table; for one that exists, those on disk are what counts.

        Raises:
            StoreError: the columns differ from those on disk, or there is nothing to open.
        """
        check_hex(fingerprint)
        folder = f"{TABLES}/{fingerprint}"
        on_disk = read_description(self.place, folder, fingerprint)
        if on_disk is not None:
            check_same(fingerprint, on_disk[0] if columns is None else check_columns(columns), on_disk[0])
            return Table(self.place, folder, fingerprint, *on_disk, readonly=self.readonly)
        if columns is None:
            raise StoreError(
                f"Cannot open table '{fingerprint}': expected one of {self.tables()[:8]} with a whole "
                f"{NOTE}, got none in '{self.url}'. Pass columns=[Column(name, dtype, shape), ...]."
            )
        columns = check_columns(columns)
        return Table(self.place, folder, fingerprint, columns, provenance or {}, readonly=self.readonly)

    def tables(self) -> list[str]:
        """Return the fingerprints of the tables that are there, sorted."""
        try:
            return sorted(name for name in self.place.names(TABLES) if is_hex(name))
        except OSError as err:
            raise listing_failed(self.place, TABLES, err) from err

    def note(self, key: str) -> dict[str, Any] | None:
        """Return the fact last written under a hex key; None if it is absent, torn, altered or out of reach."""
        path = path_of(NOTES, key)
        try:
            return read_note(self.place, path, key)
        except OSError:
            return None

    def write_note(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a small JSON fact under a hex key, whole or not at all; the last writer wins. Read by `note`.

        Raises:
            StoreError: it is not JSON, or the store cannot be written.
        """
        with self._writing("a note", path_of(NOTES, key)) as path:
            write_note(self.place, path, key, value)

    def notes(self) -> list[str]:
        """Return the keys of all notes, whole or not, sorted."""
        return self._keys(NOTES)

    def read_manifest(self, key: str) -> bytes | None:
        """Return the bytes last written under a hex key; None as `note`. Read into memory whole."""
        path = path_of(MANIFESTS, key)
        try:
            return read_sealed(self.place, path, key, MOST_BYTES[MANIFESTS])
        except OSError:
            return None

    def write_manifest(self, key: str, *parts: bytes) -> None:
        """Keep bytes, one part after the other, under a hex key; as `write_note`. Read by `read_manifest`.

        Raises:
            StoreError: more than 4 GiB, or the store cannot be written.
        """
        with self._writing("a manifest", path_of(MANIFESTS, key)) as path:
            write_sealed(self.place, path, key, *parts, most_bytes=MOST_BYTES[MANIFESTS])

    def remove_manifest(self, key: str) -> None:
        """Remove the manifest under a hex key, if there is one.

        Raises:
            StoreError: the store cannot be written.
        """
        path = path_of(MANIFESTS, key)
        self._check_writable("remove a manifest from")
        try:
            self.place.remove(path)
        except OSError as err:
            raise StoreError(
                f"Cannot remove '{where(self.place, path)}': expected permission to, got {err.strerror or err}. "
                "Run again as a user who may write there."
            ) from err

    def manifests(self) -> list[str]:
        """Return the keys of all manifests, whole or not, sorted."""
        return self._keys(MANIFESTS)

    def stamp(self, path: str) -> Stamp | None:
        """Return bytes and time of change of a file by its path in the store; None if it is absent.

        Args:
            path: As in docs/format.md: 'notes/ab/abcd.note', 'tables/ab/table.note'.
        """
        try:
            return self.place.stamp(path)
        except OSError as err:
            raise listing_failed(self.place, path, err) from err

    @property
    def size_bytes(self) -> int:
        """Bytes of all files in the store, damaged and temporary ones included."""
        try:
            return sum(stamp.size_bytes for _, stamp in self.place.files(""))
        except OSError as err:
            raise listing_failed(self.place, "", err) from err

    def _keys(self, kind: str) -> list[str]:
        try:
            return keys_of(self.place, kind)
        except OSError as err:
            raise listing_failed(self.place, kind, err) from err

    def _check_writable(self, what: str) -> None:
        if self.readonly:
            raise StoreError(
                f"Cannot {what} '{self.url}': expected a writable store, got readonly=True. Open it with Store(path)."
            )

    @contextmanager
    def _writing(self, thing: str, path: str) -> Iterator[str]:
        """Make the folders of a file that is about to be written."""
        self._check_writable(f"write {thing} to")
        folder = path.rpartition("/")[0]
        with writing(thing, self.place, folder):
            self.place.make_folder(folder.rpartition("/")[0])
            self.place.make_folder(folder)
            yield path

    def _has_marker(self) -> bool:
        """Say whether this is a store of our format; refuse one of another."""
        try:
            raw = self.place.get(MARKER, _MOST_MARKER_BYTES)
            if raw is None:
                return False
            version = json.loads(raw)["format"]
        except OSError as err:
            fix = "Give this user the right to read it (chmod -R u+rX)."
            raise StorePathError(
                f"Cannot open store '{self.url}': expected a readable {MARKER}, got {err.strerror or err}. "
                f"{fix if self.place.folder is not None else 'Check the address, the network and the credentials.'}"
            ) from err
        except (ValueError, LookupError, TypeError, RecursionError):
            version = None
        if type(version) is int and version == FORMAT:
            return True
        newer = type(version) is int and version > FORMAT
        raise StoreFormatError(
            f"Cannot open store '{self.url}': expected format {FORMAT}, got {version} in {MARKER}. "
            + ("Run: pip install --upgrade forethought" if newer else _restore_marker(self.place))
        )

    def _got(self) -> str:
        """Say what lies where no store is, and what to do: it may be one that was copied in part."""
        try:
            is_part = TABLES in self.place.names("")
        except OSError:
            is_part = False
        return f"no {MARKER} yet. {_restore_marker(self.place)}" if is_part else "none. Make it with Store(path)."

    def _create(self) -> None:
        """Make the place a store, unless it holds other things."""
        folder = self.place.folder
        if folder is not None and folder.exists() and not folder.is_dir():
            raise StorePathError(
                f"Cannot open store '{folder}': expected a folder, got a file. Name a folder: "
                f"Store('{folder.with_name(folder.name + '.store')}')"
            )
        if self.readonly:
            raise StorePathError(f"Cannot open store '{self.url}': expected a store to read, got {self._got()}")
        try:
            self.place.make_folder("")
            others = [name for name in self.place.names("") if not _is_ours(name)]
            if self._has_marker():  # another process was quicker
                return
            if others:
                raise StoreFormatError(
                    f"Cannot make a store in '{self.url}': expected an empty folder, got one with "
                    f"{others[0]!r} in it and no {MARKER}. Name a new one: "
                    f"Store('{where(self.place, 'thoughts')}'). {_restore_marker(self.place)}"
                )
            self.place.put(MARKER, json.dumps({"format": FORMAT}).encode("ascii") + b"\n")
        except StoreError:
            raise
        except OSError as err:
            raise StorePathError(
                f"Cannot make a store in '{self.url}': expected a folder that can be written, got "
                f"{err.strerror or err}. Name one that you may write to: Store(path)."
            ) from err


def _reopen(place: Place, readonly: bool) -> Store:
    """Give a store that was pickled, without a look at it."""
    store = Store.__new__(Store)
    store._settle(place, readonly)
    return store


def _is_ours(name: str) -> bool:
    """Say whether a file was left by a store being made: its marker, whole or not yet renamed; or is a ledger."""
    return name in (MARKER, LEDGER) or (name.startswith(f".{MARKER}.") and name.endswith(TEMPORARY))


def _restore_marker(place: Place) -> str:
    return f"If it is a store that lost it: echo '{{\"format\": {FORMAT}}}' > '{where(place, MARKER)}'"
