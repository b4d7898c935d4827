"""What the head makes of rows that the feed padded, against those that were padded live."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import PaddingError
from forethought.extracting.layouts import Layouts, Padded
from forethought.probing.purity import bound_of, distance
from forethought.shapes.padding import Layout, cut, put_back

_STIRRED = 0.1  # how much the weights of a copy are changed, so that zeros hide nothing


def check_head(rows: Padded, layouts: Layouts) -> None:
    """Check that nothing that the head makes of a sample's own places depends on what padding holds.

    A copy of the head is run, with its weights stirred, in evaluation mode and in training mode.

    Args:
        rows: The rows of an example.
        layouts: How they differ in size.

    Raises:
        PaddingError: it does.
    """
    if not any(layout is not None and layout.stairs is not None for layout in layouts):
        return
    head = copy.deepcopy(rows.split.head).eval()
    _stir(head)
    fed = [
        row if layout is None else _fed(row, layout, rows.sizes)
        for row, layout in zip(rows.whole, layouts, strict=True)
    ]
    sizes = rows.sizes[rows.able].tolist()
    alone = [_run(rows, head, each, own) for each, own in zip(rows.alone, sizes, strict=True)]
    for mode, when in ((False, ""), (True, "in training mode ")):
        head.train(mode)
        live, again = (_run(rows, head, each, rows.shape) for each in (rows.whole, fed))
        for at, output in enumerate(live):
            _compare(rows, output, again[at], [each[at] for each in alone], when)


def _fed(row: Tensor, layout: Layout, own: Tensor) -> Tensor:
    """Cut padding off, and pad anew."""
    shape = [row.shape[axis] for axis in layout.axes]
    even = cut(row, layout.axes, layout.sizes(own), layout.at_end)
    return put_back(even, layout.axes, shape, layout.fill, layout.at_end)


def _run(rows: Padded, head: nn.Module, given: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
    values = tuple(tensor.from_rows(row).clone() for tensor, row in zip(rows.split.frontier, given, strict=True))
    rows.split.note_sizes(values[0], tuple(shape))
    devices = [values[0].device] if values[0].is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        output = head(values[0] if len(values) == 1 else values)
    return nesting.tensors(output)


def _compare(rows: Padded, live: Tensor, fed: Tensor, alone: Sequence[Tensor], when: str = "") -> None:
    """Compare what is a sample's own in an output; all of it, where it has no places that come from padding."""
    if live.shape == fed.shape and live.ndim and len(live) == rows.batch.rows and alone[0].ndim == live.ndim:
        axes = [axis for axis in range(1, live.ndim) if any(one.shape[axis] != live.shape[axis] for one in alone)]
        if axes:
            sizes = torch.tensor([[one.shape[axis] for axis in axes] for one in alone])
            both = live[rows.able], fed[rows.able]
            parts = [[cut(each, axes, sizes, end).values for each in both] for end in (False, True)]
            apart = min(distance(a, b) for a, b in parts)
        else:
            apart = distance(live, fed)
    else:
        apart = distance(live, fed)
    if apart > bound_of(live.dtype, 0.0):
        raise PaddingError(
            f"Cannot feed the head of '{type(rows.split.model).__name__}' rows of differing size: expected what it "
            f"gives {when}not to depend on what padding holds, got a change of {apart:.3g} units in the last place: "
            "it reads padding (a mean over all places? batch statistics?). Let it use the mask, or pad all samples to "
            "one size in the data set."
        )


def _stir(head: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
            scale = parameter.abs().mean() if parameter.numel() else 0.0
            parameter.add_(noise * (_STIRRED * scale + _STIRRED * 0.1))
