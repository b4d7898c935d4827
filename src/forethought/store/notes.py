"""Notes: small JSON facts, one file each, whole or absent; the last writer wins.

Two lines: the BLAKE3 of the note's key, a newline and the second line; then the JSON. A flipped byte, a torn
file and a note copied to another key all read as None: a note only ever saves work.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from forethought.errors import StoreError
from forethought.store.files import open_regular, write_whole


def read_note(path: Path, key: str) -> dict[str, Any] | None:
    """Return what `write_note` last put there, or None for anything else."""
    try:
        with open_regular(path) as file:
            seal, _, body = file.readall().partition(b"\n")
        if seal != _seal(key, body):
            return None
        note = json.loads(body)
    except (OSError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None


def write_note(path: Path, key: str, value: Mapping[str, Any]) -> None:
    """Write `value` whole. Undone by `read_note`, except that tuples come back as lists.

    Raises:
        StoreError: `value` is not JSON.
        OSError: the file cannot be written.
    """
    try:
        body = json.dumps(dict(value), separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as err:
        raise StoreError(
            f"Cannot write note '{key}': expected a dict of JSON values, got {err}. Convert them to str, "
            "int, float, bool, None, list or dict."
        ) from err
    write_whole(path, _seal(key, body), b"\n", body)


def _seal(key: str, body: bytes) -> bytes:
    return blake3(key.encode("ascii") + b"\n" + body).hexdigest().encode("ascii")
