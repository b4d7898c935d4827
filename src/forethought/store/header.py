"""The header of a segment: the one and only sequence of bytes that describes given rows (docs/format.md).

`decode` rebuilds the header from what it read and compares: overlapping offsets, holes, repeated names,
floats, other orders and other spacing all fail that one comparison.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from forethought.errors import StoreError
from forethought.store.column import KEY_BYTES, KEYS, Column

FORMAT = 1
MAX_ROWS = 2**24  # bounds what a reader allocates for keys, whatever a file claims
MAX_HEADER_BYTES = 2**20
LENGTH_BYTES = 8
ALIGNMENT = 64

_UNSEALED = "0" * 64
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{1,128}\Z")


def is_hex(text: object) -> bool:
    """Say whether `text` is 1 to 128 lowercase hex digits: safe as a file name on every file system."""
    return isinstance(text, str) and _FINGERPRINT.match(text) is not None


def layout(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Order columns by falling element size, so that each begins at a multiple of its own element size."""
    return tuple(sorted(columns, key=lambda column: -column.item_bytes))


@dataclass(frozen=True)
class Header:
    """What a segment holds: `columns` in layout order; `digests` of the keys, then of each column."""

    fingerprint: str
    columns: tuple[Column, ...]
    rows: int
    digests: tuple[str, ...]

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield (name, offset, bytes) of the keys and of each column, counted from the end of the header."""
        offset = 0
        sizes = [(KEYS, KEY_BYTES), *((column.name, column.row_bytes) for column in self.columns)]
        for name, row_bytes in sizes:
            yield name, offset, self.rows * row_bytes
            offset += self.rows * row_bytes

    @property
    def content_bytes(self) -> int:
        """Bytes after the header."""
        return self.rows * (KEY_BYTES + sum(column.row_bytes for column in self.columns))

    def encode(self) -> bytes:
        """Return the header with its length in front. Undone by `decode`."""
        seal = blake3(self._encode(_UNSEALED)).hexdigest()
        return self._encode(seal)

    def _encode(self, seal: str) -> bytes:
        names = [KEYS, *(column.name for column in self.columns)]
        metadata = {"format": str(FORMAT), "fingerprint": self.fingerprint}
        metadata |= {f"blake3.{name}": digest for name, digest in zip(names, self.digests, strict=True)}
        tree: dict[str, Any] = {"__metadata__": metadata | {"seal": seal}}
        types = [("U8", (KEY_BYTES,)), *((column.dtype, column.shape) for column in self.columns)]
        for (name, offset, size), (dtype, shape) in zip(self.spans(), types, strict=True):
            tree[name] = {
                "dtype": dtype,
                "shape": [self.rows, *shape],
                "data_offsets": [offset, offset + size],
            }
        text = json.dumps(tree, separators=(",", ":")).encode("ascii")
        text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text


def decode(raw: bytes) -> Header:
    """Read a header, its length in front. Undone by `Header.encode`.

    Raises:
        ValueError: `raw` is not exactly what `encode` writes for some header.
    """
    try:
        tree = json.loads(raw[LENGTH_BYTES:])
        metadata = tree.pop("__metadata__")
        rows = tree.pop(KEYS)["shape"][0]
        columns = tuple(Column(name, item["dtype"], tuple(item["shape"][1:])) for name, item in tree.items())
        digests = tuple(metadata[f"blake3.{name}"] for name in (KEYS, *tree))
        header = Header(metadata["fingerprint"], columns, rows, digests)
    # A hostile header may have any type anywhere and nest deeper than the stack.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, StoreError) as err:
        raise ValueError(f"a header that cannot be read ({type(err).__name__})") from err
    plain = type(rows) is int and 0 < rows <= MAX_ROWS and is_hex(header.fingerprint)
    if not plain or not all(isinstance(digest, str) and _DIGEST.match(digest) for digest in digests):
        raise ValueError("a header with rows, fingerprint or digests out of bounds")
    if header.encode() != raw:
        raise ValueError("a header that differs from the one its own content asks for")
    return header
