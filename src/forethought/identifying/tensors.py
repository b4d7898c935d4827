"""The bytes of tensors, and their hash at the speed of memory."""

import os
from collections.abc import Iterator
from typing import Any

import blake3
import numpy as np
import torch
from torch import Tensor

from forethought.errors import IdentityError

KEY_BYTES = 16
BLOCK_BYTES = 1 << 24  # the most that is copied of a tensor at a time
_ALONE_BYTES = 1 << 20  # less is hashed faster by one thread
_UNSIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Give a tensor's raw bytes in row-major order.

    Raises:
        IdentityError: the tensor is sparse or quantized.
    """
    blocks = list(_blocks(tensor))
    return blocks[0] if len(blocks) == 1 else memoryview(b"".join(blocks))


def as_numbers(tensor: Tensor) -> Tensor:
    """Give the same numbers in a type that torch compares and calculates with, which it does not with every type.

    Complex numbers become pairs, as a last axis; floats of 8 bits float32; unsigned ones wider, but those of 64 bits
    signed ones with the same bits.
    """
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        return tensor.float()
    if tensor.dtype == torch.uint64:
        return tensor.view(torch.int64)
    return tensor.to(_UNSIGNED[tensor.dtype]) if tensor.dtype in _UNSIGNED else tensor


class TensorHash:
    """Hashes tensors, large ones with the threads that torch may use, without a copy of a whole one."""

    def __init__(self) -> None:
        self._many: Any = None  # made when first needed: it may begin threads of its own

    def __call__(self, head: bytes, tensor: Tensor | None) -> bytes:
        """Hash a text and, after it, a tensor's bytes."""
        is_large = tensor is not None and tensor.numel() * tensor.element_size() >= _ALONE_BYTES
        digest = self._threads() if is_large and torch.get_num_threads() > 1 else blake3.blake3()
        digest.update(head)
        for block in () if tensor is None else _blocks(tensor):
            digest.update(block)
        return bytes(digest.digest())

    def _threads(self) -> Any:
        if self._many is None:
            threads = torch.get_num_threads()
            self._many = blake3.blake3(max_threads=blake3.blake3.AUTO if threads >= (os.cpu_count() or 1) else threads)
        self._many.reset()
        return self._many


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """Give a tensor's raw bytes in order: in place if they lie so on the CPU, else copied a block at a time."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise IdentityError(
            f"Cannot establish the identity of a {tensor.layout} tensor: expected a dense one. Use tensor.to_dense()."
        )
    is_in_place = tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    if is_in_place or tensor.nbytes <= BLOCK_BYTES:
        flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data
    elif tensor.is_contiguous() and tensor.ndim > 1:
        yield from _blocks(tensor.reshape(-1))
    else:
        rows = max(1, len(tensor) * BLOCK_BYTES // tensor.nbytes)
        for part in tensor.split(rows):
            yield from _blocks(part[0] if len(part) == 1 else part)


def row_keys(columns: list[Tensor], extra: bytes = b"") -> np.ndarray:
    """Give the identity of each row of several tensors.

    Args:
        columns: Tensors (B, ...), the same B.
        extra: Whatever else the rows depend on.

    Returns:
        (B, 16) bytes: keyed BLAKE3 over the bytes of each column's row; the key is that of dtypes, shapes and extra.
    """
    batch = len(columns[0])
    head = extra + "".join(f"{c.dtype} {tuple(c.shape[1:])};" for c in columns).encode()
    views = [np.frombuffer(tensor_bytes(c), np.uint8).reshape(batch, -1) for c in columns]
    rows = views[0] if len(views) == 1 else np.concatenate(views, axis=1)
    size, raw, hashed = rows.shape[1], rows.reshape(-1).data, blake3.blake3
    key = hashed(head).digest()
    at = range(0, batch * size, size) if size else [0] * batch
    digests = b"".join([hashed(raw[i : i + size], key=key).digest(length=KEY_BYTES) for i in at])
    return np.frombuffer(bytearray(digests), np.uint8).reshape(batch, KEY_BYTES)
