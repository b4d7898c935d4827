"""The store: one folder of tables and notes, shared by runs, processes and machines."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forethought.errors import StoreError, StoreFormatError, StorePathError
from forethought.store.column import Column, check_columns
from forethought.store.files import TEMPORARY, make_folder, open_regular, write_whole, writing
from forethought.store.header import FORMAT, is_hex
from forethought.store.notes import read_note, write_note
from forethought.store.table import NOTE, Table, check_same, read_description

MARKER = "forethought.json"


class Store:
    """A folder of features. Made if it is not there, unless `readonly`.

    No lock and no database: any number of processes and threads may use one store at once. Bytes, shapes and
    dtype names only; it knows nothing of models. Pickles as its path and opens nothing until asked.

    Args:
        path: A folder that is a store, is empty, or does not exist yet.
        readonly: Write nothing, ever. A store that merely cannot be written also serves everything it has.

    Raises:
        StorePathError: the path is a file, or cannot be made, or does not exist and `readonly` is set.
        StoreFormatError: another format version, or a folder of other things, which is left as it is.
    """

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self.readonly = readonly
        if not self._has_marker():
            self._create()

    def __repr__(self) -> str:
        return f"Store('{self.path}')"

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
        _check_hex(fingerprint)
        folder = self.path / "tables" / fingerprint
        on_disk = read_description(folder, fingerprint)
        if on_disk is not None:
            check_same(fingerprint, on_disk[0] if columns is None else check_columns(columns), on_disk[0])
            return Table(folder, fingerprint, *on_disk, readonly=self.readonly)
        if columns is None:
            raise StoreError(
                f"Cannot open table '{fingerprint}': expected one of {self.tables()[:8]} with a whole "
                f"{NOTE}, got none in '{self.path}'. Pass columns=[Column(name, dtype, shape), ...]."
            )
        return Table(folder, fingerprint, check_columns(columns), provenance or {}, readonly=self.readonly)

    def tables(self) -> list[str]:
        """Return the fingerprints of the tables that are there, sorted."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path / "tables") if is_hex(entry.name))
        except FileNotFoundError:
            return []
        except OSError as err:
            raise StoreError(
                f"Cannot list the tables of '{self.path}': expected a readable folder, got {err.strerror}. "
                "Give this user the right to read it (chmod -R u+rX)."
            ) from err

    def note(self, key: str) -> dict[str, Any] | None:
        """Return the fact last written under a hex key; None if it is absent, torn, altered or foreign."""
        return read_note(self._note_path(key), key)

    def write_note(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a small JSON fact under a hex key, whole or not at all; the last writer wins. Read by `note`.

        Raises:
            StoreError: it is not JSON, or the store cannot be written.
        """
        path = self._note_path(key)
        if self.readonly:
            raise StoreError(
                f"Cannot write a note to '{self.path}': expected a writable store, got readonly=True. Open "
                "it with Store(path)."
            )
        with writing("a note", path.parent):
            make_folder(path.parent.parent)
            make_folder(path.parent)
            write_note(path, key, value)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files in the store, damaged and temporary ones included."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    continue  # a writer renamed or removed it meanwhile
        return total

    def _note_path(self, key: str) -> Path:
        _check_hex(key)
        return self.path / "notes" / key[:2] / f"{key}.note"

    def _has_marker(self) -> bool:
        """Say whether this is a store of our format; refuse one of another."""
        try:
            with open_regular(self.path / MARKER) as file:
                marker = json.loads(file.read(4096))
            version = marker["format"]
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as err:
            raise StorePathError(
                f"Cannot open store '{self.path}': expected a readable {MARKER}, got {err.strerror}. Give "
                "this user the right to read it (chmod -R u+rX)."
            ) from err
        except (ValueError, LookupError, TypeError, RecursionError):
            version = None
        if type(version) is int and version == FORMAT:
            return True
        newer = type(version) is int and version > FORMAT
        raise StoreFormatError(
            f"Cannot open store '{self.path}': expected format {FORMAT}, got {version} in {MARKER}. "
            + ("Run: pip install --upgrade forethought" if newer else _restore_marker(self.path))
        )

    def _create(self) -> None:
        """Make the folder a store, unless it holds other things."""
        if self.path.exists() and not self.path.is_dir():
            raise StorePathError(
                f"Cannot open store '{self.path}': expected a folder, got a file. Name a folder: "
                f"Store('{self.path.with_name(self.path.name + '.store')}')"
            )
        if self.readonly:
            raise StorePathError(
                f"Cannot open store '{self.path}': expected a store to read, got none. Make it with Store(path)."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = [name for name in os.listdir(self.path) if not _is_ours(name)]
            if self._has_marker():  # another process was quicker
                return
            if others:
                raise StoreFormatError(
                    f"Cannot make a store in '{self.path}': expected an empty folder, got one with "
                    f"{others[0]!r} in it and no {MARKER}. Name a new one: "
                    f"Store('{self.path / 'thoughts'}'). {_restore_marker(self.path)}"
                )
            write_whole(self.path / MARKER, json.dumps({"format": FORMAT}).encode("ascii") + b"\n")
        except StoreError:
            raise
        except OSError as err:
            raise StorePathError(
                f"Cannot make a store in '{self.path}': expected a folder that can be written, got "
                f"{err.strerror}. Name one that you may write to: Store(path)."
            ) from err


def _is_ours(name: str) -> bool:
    """Say whether a file was left by a store being made: its marker, whole or not yet renamed."""
    return name == MARKER or (name.startswith(f".{MARKER}.") and name.endswith(TEMPORARY))


def _restore_marker(path: Path) -> str:
    return f"If it is a store that lost it: echo '{{\"format\": {FORMAT}}}' > '{path / MARKER}'"


def _check_hex(text: str) -> None:
    if not is_hex(text):
        raise StoreError(
            f"Cannot use {text!r} as a name in the store: expected 1 to 128 lowercase hex digits. Use a "
            "digest: blake3(...).hexdigest()"
        )
