"""Sealed files: small JSON notes and binary manifests under a hex key, whole or absent; the last writer wins.

The first line is the BLAKE3 of the key, a newline and the body; then the body. A flipped byte, a torn file and a file
copied to another key all read as None: what is sealed only ever saves work.
"""

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from forethought.errors import StoreError
from forethought.store.header import is_hex
from forethought.store.place import Place

NOTES, MANIFESTS = "notes", "manifests"
_SUFFIXES = {NOTES: ".note", MANIFESTS: ".manifest"}
_SEAL_BYTES = 64
# What a reader takes into memory, whatever lies there.
MOST_BYTES = {NOTES: 2**24, MANIFESTS: 2**32}


class NotKeptWarning(UserWarning):
    """A note or manifest could not be written: no row is lost, but what it would have saved is done again."""


def warn_not_kept(error: StoreError) -> None:
    """Say that something could not be written that only saves work later."""
    warnings.warn(f"No row is lost, but the next run does some work again. {error}", NotKeptWarning, stacklevel=4)


def check_hex(text: str) -> None:
    """Refuse as a name what is no hex."""
    if not is_hex(text):
        raise StoreError(
            f"Cannot use {text!r} as a name in the store: expected 1 to 128 lowercase hex digits. Use a "
            "digest: blake3(...).hexdigest()"
        )


def path_of(kind: str, key: str) -> str:
    """Return where the note or manifest of a key lies."""
    check_hex(key)
    return f"{kind}/{key[:2]}/{key}{_SUFFIXES[kind]}"


def keys_of(place: Place, kind: str) -> list[str]:
    """Return the keys of all notes or manifests that are in their place, whole or not, sorted.

    Raises:
        OSError: they cannot be listed.
    """
    form = re.compile(rf"{kind}/[0-9a-f]{{1,2}}/([0-9a-f]{{1,128}}){re.escape(_SUFFIXES[kind])}\Z")
    matches = ((path, form.match(path)) for path, _ in place.files(kind))
    return sorted(match[1] for path, match in matches if match and path == path_of(kind, match[1]))


def read_sealed(place: Place, path: str, key: str, most_bytes: int) -> bytes | None:
    """Return the body that `write_sealed` last put there; None if it is absent, torn, altered or foreign.

    Raises:
        OSError: it cannot be read.
    """
    raw = place.get(path, most_bytes)
    if raw is None or raw[_SEAL_BYTES : _SEAL_BYTES + 1] != b"\n":
        return None
    body = memoryview(raw)[_SEAL_BYTES + 1 :]
    return bytes(body) if raw[:_SEAL_BYTES] == _seal(key, body) else None


def write_sealed(place: Place, path: str, key: str, *parts: Any, most_bytes: int) -> None:
    """Write buffers as one body, whole. Undone by `read_sealed`.

    Raises:
        StoreError: it is larger than what a reader takes.
        OSError: the file cannot be written.
    """
    size_bytes = _SEAL_BYTES + 1 + sum(memoryview(part).nbytes for part in parts)
    if size_bytes > most_bytes:
        raise StoreError(
            f"Cannot write '{path}': expected at most {most_bytes} bytes, got {size_bytes}. Divide it among more keys."
        )
    place.put(path, _seal(key, *parts), b"\n", *parts)


def read_note(place: Place, path: str, key: str) -> dict[str, Any] | None:
    """Return what `write_note` last put there, or None for anything else.

    Raises:
        OSError: it cannot be read.
    """
    body = read_sealed(place, path, key, MOST_BYTES[NOTES])
    try:
        note = json.loads(body) if body is not None else None
    except (ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None


def write_note(place: Place, path: str, key: str, value: Mapping[str, Any]) -> None:
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
    write_sealed(place, path, key, body, most_bytes=MOST_BYTES[NOTES])


def _seal(key: str, *parts: Any) -> bytes:
    digest = blake3(key.encode("ascii") + b"\n")
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode("ascii")
