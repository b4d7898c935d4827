"""What one tensor of a row is on disk: a name, a dtype name and a shape. No framework is imported here."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.errors import StoreError

Bytes = NDArray[np.uint8]

# Bytes per element, and numpy's name where numpy has the type. The names are those of safetensors.
DTYPES: Mapping[str, tuple[int, str | None]] = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "U16": (2, "uint16"),
    "I16": (2, "int16"),
    "U32": (4, "uint32"),
    "I32": (4, "int32"),
    "U64": (8, "uint64"),
    "I64": (8, "int64"),
    "F16": (2, "float16"),
    "F32": (4, "float32"),
    "F64": (8, "float64"),
    "C64": (8, "complex64"),
    "BF16": (2, None),
    "F8_E4M3": (1, None),
    "F8_E5M2": (1, None),
    "F8_E4M3FNUZ": (1, None),
    "F8_E5M2FNUZ": (1, None),
    "F8_E8M0": (1, None),
}
KEYS = "keys"
KEY_BYTES = 16

# Together these keep every header below header.MAX_HEADER_BYTES.
MAX_COLUMNS, MAX_DIMENSIONS, MAX_ROW_BYTES = 1000, 32, 2**48
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True)
class Column:
    """One tensor of a row: `shape` is that of one row, without the rows' axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name) or self.name == KEYS:
            raise StoreError(
                f"Cannot name a column {self.name!r}: expected 1 to 64 of A-Z a-z 0-9 _ . -, a letter or "
                f"digit first, not {KEYS!r}. Number the columns: '0', '1', ..."
            )
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise StoreError(
                f"Cannot store column {self.name!r}: expected a dtype of {', '.join(DTYPES)}, got "
                f"{self.dtype!r}. Convert it first, complex128 for example with torch.view_as_real."
            )
        object.__setattr__(self, "shape", _plain_shape(self.name, self.shape))
        if self.row_bytes >= MAX_ROW_BYTES:
            raise StoreError(
                f"Cannot store column {self}: expected rows of less than 2**48 bytes, got {self.row_bytes}. Split it."
            )

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype][0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.item_bytes * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}{list(self.shape)}"

    def as_bytes(self, array: NDArray[Any], rows: int) -> Bytes:
        """View rows of this column as uint8 of shape (rows, row_bytes); only non-contiguous ones are copied.

        Takes the column's own shape and numpy type, or the bytes themselves as uint8 (rows, row_bytes). A
        dtype that numpy lacks is also taken from any type of its width that is no number of another kind
        (uint16, ml_dtypes).
        """
        if array.dtype == np.uint8 and array.shape == (rows, self.row_bytes):
            return array
        numpy_name = DTYPES[self.dtype][1]
        fits = (
            array.dtype == np.dtype(numpy_name)
            if numpy_name
            else array.itemsize == self.item_bytes and array.dtype.kind in "uV"
        )
        if not fits or array.shape != (rows, *self.shape):
            raise StoreError(
                f"Cannot append column {self}: expected {numpy_name or 'raw bytes'} of shape "
                f"{(rows, *self.shape)} or uint8 of shape {(rows, self.row_bytes)}, got {array.dtype} of "
                f"shape {array.shape}. Pass the rows as they were declared to store.table(...)."
            )
        items = self.row_bytes // self.item_bytes
        return np.ascontiguousarray(array).reshape(rows, items).view(np.uint8)


def _plain_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Turn `shape` into plain ints: torch.Size would drag torch into every pickle, and True is not a size."""
    try:
        if any(isinstance(size, bool) for size in shape):
            raise TypeError("a bool is not a size")
        plain = tuple(operator.index(size) for size in shape)
    except TypeError as err:
        raise StoreError(
            f"Cannot store column {name!r}: expected a shape of ints, got {shape!r}. Pass a tuple."
        ) from err
    if len(plain) > MAX_DIMENSIONS or any(not 0 <= size < MAX_ROW_BYTES for size in plain):
        raise StoreError(
            f"Cannot store column {name!r}: expected at most {MAX_DIMENSIONS} sizes from 0 to 2**48, got "
            f"{plain}. Flatten it."
        )
    return plain


def check_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Return `columns` as a tuple, refusing a repeated name and more than a header holds."""
    names = [column.name for column in columns]
    if len(set(names)) < len(names) or len(names) > MAX_COLUMNS:
        raise StoreError(
            f"Cannot make a table: expected at most {MAX_COLUMNS} columns of different names, got {names[:20]}."
        )
    return tuple(columns)


def as_keys(keys: NDArray[Any]) -> Bytes:
    """Return `keys` contiguous; refuse anything but uint8 of shape (N, 16)."""
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise StoreError(
            f"Cannot use keys: expected uint8 of shape (N, {KEY_BYTES}), got {keys.dtype} of shape "
            f"{keys.shape}. Cut each row's digest to {KEY_BYTES} bytes."
        )
    return np.ascontiguousarray(keys)
