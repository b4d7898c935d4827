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
from forethought.store.ragged import MAX_SIZE, Ragged, item_offsets
from forethought.store.ragged import Bytes as Bytes

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
SIZES = ".sizes"  # after a column's name: the tensor of the sizes of its rows
SIZE_BYTES = 8

# Together these keep every header below header.MAX_HEADER_BYTES.
MAX_COLUMNS, MAX_DIMENSIONS, MAX_ROW_BYTES = 1000, 32, MAX_SIZE
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True)
class Column:
    """One tensor of a row: `shape` is that of one row, without the rows' axis; None stands for a size that differs.

    Example:
        >>> Column("tokens", "F32", (None, 768)).is_ragged
        True
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

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
        known = self.item_bytes * math.prod(size for size in self.shape if size is not None)
        if known >= MAX_ROW_BYTES:
            raise StoreError(
                f"Cannot store column {self}: expected rows of less than 2**48 bytes, got {known}. Split it."
            )

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype][0]

    @property
    def is_ragged(self) -> bool:
        """Whether rows differ in size."""
        return None in self.shape

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; where rows differ, those that each takes whatever is in it: of its sizes."""
        if self.is_ragged:
            return SIZE_BYTES * len(self.shape)
        return self.item_bytes * math.prod(size for size in self.shape if size is not None)

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

    def check_ragged(self, ragged: Ragged, rows: int) -> None:
        """Compare rows with what this column, a ragged one, says of them.

        Raises:
            ValueError: sizes that are negative, do not add up to the values, or differ from a size that is known.
        """
        values, sizes = ragged.values, ragged.sizes
        if values.dtype != np.uint8 or values.ndim != 1 or not values.flags.c_contiguous:
            raise ValueError(f"values of {values.dtype} with shape {values.shape}, not flat uint8")
        if sizes.dtype != np.int64 or sizes.shape != (rows, len(self.shape)):
            raise ValueError(f"sizes of {sizes.dtype} with shape {sizes.shape}, not int64 {(rows, len(self.shape))}")
        items = int(item_offsets(sizes, len(values) // self.item_bytes)[-1])
        if items * self.item_bytes != len(values):
            raise ValueError(f"{len(values)} bytes of values for {items} elements")
        for axis, size in enumerate(self.shape):
            if size is not None and (sizes[:, axis] != size).any():
                raise ValueError(f"rows with another size than {size} at dimension {axis}")

    def as_rows(self, array: NDArray[Any] | Ragged, rows: int) -> Bytes | Ragged:
        """Return rows as they are stored, checked: what `as_bytes` gives or, for a ragged column, `array` itself."""
        if isinstance(array, Ragged) != self.is_ragged:
            raise StoreError(
                f"Cannot append column {self}: expected {'a Ragged' if self.is_ragged else 'an array'}, got "
                f"{type(array).__name__}. Only a column with None in its shape holds rows that differ in size."
            )
        if not isinstance(array, Ragged):
            return self.as_bytes(array, rows)
        try:
            self.check_ragged(array, rows)
        except ValueError as err:
            raise StoreError(
                f"Cannot append column {self}: expected {rows} rows whose sizes and values agree, got {err}. Pass "
                "Ragged(values, sizes) with the shape of each row in sizes."
            ) from err
        return array


def _plain_shape(name: str, shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """Turn `shape` into plain ints: torch.Size would drag torch into every pickle, and True is not a size."""
    try:
        if any(isinstance(size, bool) for size in shape):
            raise TypeError("a bool is not a size")
        plain = tuple(None if size is None else operator.index(size) for size in shape)
    except TypeError as err:
        raise StoreError(
            f"Cannot store column {name!r}: expected a shape of ints and None, got {shape!r}. Pass a tuple."
        ) from err
    if len(plain) > MAX_DIMENSIONS or any(not 0 <= size < MAX_SIZE for size in plain if size is not None):
        raise StoreError(
            f"Cannot store column {name!r}: expected at most {MAX_DIMENSIONS} sizes from 0 to 2**48, got "
            f"{plain}. Flatten it."
        )
    return plain


def check_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Return `columns` as a tuple, refusing repeated names, names of sizes, and more than a header holds."""
    names = [column.name for column in columns]
    if len(set(names)) < len(names) or len(names) > MAX_COLUMNS:
        raise StoreError(
            f"Cannot make a table: expected at most {MAX_COLUMNS} columns of different names, got {names[:20]}."
        )
    if any(column.is_ragged for column in columns) and any(name.endswith(SIZES) for name in names):
        raise StoreError(
            f"Cannot make a table: expected no column whose name ends in {SIZES!r} beside one whose rows differ in "
            f"size, got {names[:20]}. Number the columns: '0', '1', ..."
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
