"""Where features are not finite, looked for once a loss is not."""

import math
from typing import Any

import torch
from torch import Tensor

from forethought.extracting.live import Live
from forethought.features import Features
from forethought.fitting.rows import Batches, fed
from forethought.nesting import tensors

BLAME = "as its features are not"


def cause_in(rows: Batches, where: str, batch_size: int, device: torch.device, epoch: int) -> str | None:
    """Name the first row of which a feature is not finite, and the fix; None if there is none.

    Reads rows until there is one. What would have to be computed for that, as in a live run, is left alone.

    Args:
        rows: Looked through in their order.
        where: What the user calls them: "train" or "val".
        batch_size: Rows at a time.
        device: Where.
        epoch: Whose view of the samples.
    """
    if isinstance(rows, Live):
        return None
    first = 0
    for values, targets, _ in fed(rows, batch_size, device, epoch=epoch):
        found = _first_in(values)
        if found is not None:
            return _said(rows, where, first + found[0], *found[1:])
        first += len(tensors(targets)[0])
    return None


def _first_in(values: Any) -> tuple[int, int, Tensor] | None:
    """Give the first row that has such a feature, in which tensor that is, and what it holds of that row."""
    given = tensors(values)
    bad = []
    for at, tensor in enumerate(given):
        if tensor.layout != torch.strided or not tensor.is_floating_point() or not tensor.ndim:
            continue
        rows = (~tensor.isfinite()).flatten(1).any(1) if tensor.ndim > 1 else ~tensor.isfinite()
        bad += [(int(rows.nonzero()[0]), at)] if bool(rows.any()) else []
    if not bad:
        return None
    row, at = min(bad)
    return row, at, given[at][row].detach()


def _said(rows: Batches, where: str, row: int, at: int, held: Tensor) -> str:
    flat = ~held.isfinite().flatten()
    place = torch.unravel_index(flat.nonzero()[0], held.shape) if held.ndim else ()
    column = ", ".join(str(int(index)) for index in place)
    value = float(held.flatten()[flat][0])
    name = f" of {rows.frontier[at].name!r}" if isinstance(rows, Features) else ""
    more = f", and {int(flat.sum()) - 1} more in that row" if int(flat.sum()) > 1 else ""
    number = "" if not isinstance(rows, Features) or rows.numbers is None else f", sample {int(rows.numbers[row])}"
    said = f"{where}[{row}]{number} has {value} in column {column or 0}{name}{more}"
    if math.isinf(value) and held.dtype == torch.float16:
        return f"{said}. float16 may be too narrow: ft.extract(..., dtype='float32')"
    if not isinstance(rows, Features):
        return f"{said}. Leave such rows out: values[values.isfinite().flatten(1).all(1)], and their targets"
    is_plain = len(rows.frontier) == 1 and held.ndim == 1
    mask = f"numpy.isfinite({where}.numpy()).all(1)" if is_plain else "mask"
    return f"{said}. Leave such rows out: {where}.select({mask})"
