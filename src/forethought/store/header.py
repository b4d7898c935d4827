"""The header of a segment: the one and only sequence of bytes that describes given rows (docs/format.md).

`decode` rebuilds the header from what it read and compares: overlapping offsets, holes, repeated names,
floats, other orders and other spacing all fail that one comparison.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blake3 import blake3

from forethought.errors import StoreError
from forethought.store.column import DTYPES, KEY_BYTES, KEYS, MAX_DIMENSIONS, SIZES, Column
from forethought.store.ragged import MAX_SIZE

FORMAT = 1
SEGMENT_FORMATS = ("1", "2")  # without and with rows whose sizes differ
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
    """Return columns as a header says them.

    By falling element size, so that each begins at a multiple of its own element size; and of a ragged one only
    how many sizes its rows have.
    """
    said = (replace(c, shape=(None,) * len(c.shape)) if c.is_ragged else c for c in columns)
    return tuple(sorted(said, key=lambda column: -column.item_bytes))


class UnknownFormatError(ValueError):
    """A header of a format that is not known here, most likely of a later version."""


@dataclass(frozen=True)
class Header:
    """What a segment holds.

    Attributes:
        fingerprint: What the rows are rows of.
        columns: As `layout` gives them.
        rows: How many.
        items: For each ragged column, the elements of all its rows together.
        digests: One for each of `tensors`.
    """

    fingerprint: str
    columns: tuple[Column, ...]
    rows: int
    items: tuple[int, ...]
    digests: tuple[str, ...]

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield name, dtype and shape of all that follows the header: keys, sizes of ragged columns, columns."""
        yield KEYS, "U8", (self.rows, KEY_BYTES)
        for column in self.columns:
            if column.is_ragged:
                yield column.name + SIZES, "I64", (self.rows, len(column.shape))
        items = iter(self.items)
        for column in self.columns:
            known = tuple(size for size in column.shape if size is not None)
            yield column.name, column.dtype, (next(items),) if column.is_ragged else (self.rows, *known)

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield (name, offset, bytes) of each tensor, counted from the end of the header."""
        offset = 0
        for name, dtype, shape in self.tensors():
            size = DTYPES[dtype][0] * math.prod(shape)
            yield name, offset, size
            offset += size

    @property
    def content_bytes(self) -> int:
        """Bytes after the header."""
        return sum(size for _, _, size in self.spans())

    def encode(self) -> bytes:
        """Return the header with its length in front. Undone by `decode`."""
        seal = blake3(self._encode(_UNSEALED)).hexdigest()
        return self._encode(seal)

    def _encode(self, seal: str) -> bytes:
        metadata = {"format": SEGMENT_FORMATS[len(self.items) > 0], "fingerprint": self.fingerprint}
        metadata |= {f"blake3.{name}": each for (name, _, _), each in zip(self.tensors(), self.digests, strict=True)}
        tree: dict[str, Any] = {"__metadata__": metadata | {"seal": seal}}
        for (name, offset, size), (_, dtype, shape) in zip(self.spans(), self.tensors(), strict=True):
            tree[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
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
        header = _described(tree.pop("__metadata__"), tree)
    except UnknownFormatError:
        raise
    # A hostile header may have any type anywhere and nest deeper than the stack.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, StoreError) as err:
        raise ValueError(f"a header that cannot be read ({type(err).__name__})") from err
    plain = type(header.rows) is int and 0 < header.rows <= MAX_ROWS and is_hex(header.fingerprint)
    plain = plain and all(type(items) is int and 0 <= items < MAX_SIZE for items in header.items)
    if not plain or not all(isinstance(digest, str) and _DIGEST.match(digest) for digest in header.digests):
        raise ValueError("a header with rows, sizes, fingerprint or digests out of bounds")
    if header.encode() != raw:
        raise ValueError("a header that differs from the one its own content asks for")
    return header


def _described(metadata: dict[str, Any], tensors: dict[str, Any]) -> Header:
    """Take from a header's JSON what cannot be worked out, unchecked."""
    if metadata["format"] not in SEGMENT_FORMATS:
        raise UnknownFormatError(f"format {str(metadata['format'])[:20]!r}")
    digests = tuple(metadata[f"blake3.{name}"] for name in tensors)
    rows = tensors.pop(KEYS)["shape"][0]
    # No more dimensions than a column refuses: a hostile number of them would fill the memory here.
    dimensions = {
        name.removesuffix(SIZES): min(tensors.pop(name)["shape"][1], MAX_DIMENSIONS + 1)
        for name in list(tensors)
        if name.endswith(SIZES) and metadata["format"] == SEGMENT_FORMATS[1]
    }
    columns = tuple(
        Column(name, item["dtype"], (None,) * dimensions[name] if name in dimensions else tuple(item["shape"][1:]))
        for name, item in tensors.items()
    )
    items = tuple(tensors[column.name]["shape"][0] for column in columns if column.is_ragged)
    return Header(metadata["fingerprint"], columns, rows, items, digests)
