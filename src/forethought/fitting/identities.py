"""What a fit is, in plain values: a checkpoint of another one is not gone on with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from forethought.extracting.live import Live
from forethought.extracting.writethrough import WriteThrough
from forethought.features import Features
from forethought.fitting.rows import Batches, TensorRows, known_targets
from forethought.fitting.specs import Candidate
from forethought.nesting import tensors


def identify(candidates: Sequence[Candidate], sides: Mapping[str, Batches], order: tuple[int, int]) -> dict[str, Any]:
    """Say what decides how a fit ends.

    Args:
        candidates: The heads.
        sides: The rows.
        order: Batch size and seed.
    """
    found: dict[str, Any] = {"batch_size": order[0], "seed of the order": order[1]}
    for side, rows in sides.items():
        if side != "test":
            found[f"{side} rows"] = _rows(rows)
    for candidate in candidates:
        found[f"head {candidate.name!r}"] = {
            "class": type(candidate.module).__qualname__,
            "weights": digest(candidate.module.state_dict().values()),
            **{name: _plain(value) for name, value in asdict(candidate.options).items()},
        }
    return found


def digest(values: Any) -> str:
    """Hash tensors: their types, shapes and bytes."""
    hasher = blake3()
    for tensor in tensors(list(values)):
        hasher.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()[:32]


def _rows(rows: Batches) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": len(rows), "kind": type(rows).__qualname__}
    if isinstance(rows, TensorRows):
        found["values"] = digest([rows.values])
    if isinstance(rows, Features):
        found["fingerprint"] = rows.table.fingerprint
    if isinstance(rows, Live | WriteThrough):
        found["fingerprint"] = rows.fingerprint
        return found | {"targets": digest([rows.read_targets()])}
    return found | {"targets": digest([known_targets(rows)])}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return digest([value])
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else getattr(value, "__qualname__", "")
