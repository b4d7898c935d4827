"""Rows of tensors as the bytes of a table's columns."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forethought.errors import SplitError
from forethought.extracting.precision import Stored
from forethought.shapes.forms import Rows
from forethought.shapes.padding import OWN, Uneven
from forethought.store import Column, Ragged

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
}


def columns_of(stored: Stored, measures: int) -> list[Column]:
    """Give the columns of rows that are stored so, and of so many sizes of their samples.

    Raises:
        SplitError: a tensor is of a type that the store lacks.
    """
    unknown = [tensor for tensor in stored.frontier if tensor.dtype not in _DTYPES]
    if unknown:
        raise SplitError(
            f"Cannot store '{unknown[0].name}': expected a dtype that safetensors has, got {unknown[0].dtype}. "
            "Cut where the values are others: ft.extract(..., at=...), or let the model give torch.view_as_real(x)"
        )
    columns = [
        Column(f"{at}{end}", _DTYPES[dtype], shape)
        for at, parts in enumerate(stored.parts)
        for end, dtype, shape in parts
    ]
    return [*columns, Column(OWN, "I64", (measures,))] if measures else columns


def bytes_of(rows: Sequence[Rows], own: Tensor | None) -> list[np.ndarray | Ragged]:
    """Give what each column holds of rows on the CPU, and of the sizes (B, K) of their samples."""
    columns = [_ragged(part) if isinstance(part, Uneven) else _bytes(part) for part in rows]
    return columns if own is None else [*columns, _bytes(own)]


def _ragged(rows: Uneven) -> Ragged:
    rest = torch.tensor(rows.values.shape[1:], dtype=torch.long).expand(len(rows), -1)
    sizes = torch.cat([rows.sizes, rest], 1)
    return Ragged(_bytes(rows.values).reshape(-1), sizes.contiguous().numpy())


def _bytes(rows: Tensor) -> np.ndarray:
    return rows.reshape(len(rows), math.prod(rows.shape[1:])).contiguous().view(torch.uint8).numpy()
