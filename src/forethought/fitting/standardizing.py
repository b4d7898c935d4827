"""Features brought to mean 0 and standard deviation 1, by the training rows alone; folded into the head at the end."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.fitting.weights import is_near


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of each feature, (D,) or the shape of a row.

    Attributes:
        mean: What is subtracted.
        std: What is divided by: 1 where a feature is constant.
    """

    mean: Tensor
    std: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Standardise values (B, ...)."""
        return (values - self.mean.to(values.dtype)) / self.std.to(values.dtype)


def learn_standard(batches: Iterator[Any], dtype: torch.dtype = torch.float32) -> Standard:
    """Learn mean and standard deviation from batches of (values, ...), in float64 (Chan et al. 1983).

    Raises:
        FitError: values are no single tensor of numbers.
    """
    rows, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for values, *_ in batches:
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise FitError(
                f"Cannot standardise features: expected one tensor of numbers, got {type(values).__name__}. "
                "Leave standardize out, or begin the head with a nn.LayerNorm"
            )
        wide = values.to("cpu" if values.device.type == "mps" else values.device, torch.float64)
        more, part = len(wide), wide.mean(0)
        shift = part - mean if rows else part
        between = squares + shift.square() * (rows * more / (rows + more)) if rows else 0
        squares = (wide - part).square().sum(0) + between
        mean = mean + shift * (more / (rows + more)) if rows else part
        rows += more
    if not rows:
        raise FitError("Cannot standardise features: expected at least one row, got none. Check len(features)")
    std = (squares / rows).sqrt()
    # Rounding leaves a constant feature a spread that is none.
    is_constant = std <= mean.abs() * 1e-7
    std = torch.where(is_constant, torch.ones_like(std), std)
    if not bool(mean.isfinite().all()) or not bool(std.isfinite().all()):
        raise FitError(
            "Cannot standardise features: expected finite values, got some that are not. Store them exactly, or select "
            "rows that are finite: train.select(mask)"
        )
    return Standard(mean.to(dtype), std.to(dtype))


class Standardized(nn.Module):
    """A head that standardises what it is given, where that cannot be folded into its first layer."""

    mean: Tensor
    std: Tensor

    def __init__(self, head: nn.Module, standard: Standard) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", standard.mean.clone())
        self.register_buffer("std", standard.std.clone())

    def forward(self, values: Tensor) -> Any:
        """Run the head on standardised values (B, ...)."""
        return self.head((values - self.mean) / self.std)


def folded(head: nn.Module, standard: Standard, values: Tensor) -> nn.Module:
    """Return a head for raw features that gives what `head` gives for standardised ones.

    Where one Linear alone sees the features, its weights take the scaling and its bias the shift, and the head keeps
    its class; else it is wrapped. Which it is, is found out on a batch of raw features (B, ...).
    """
    with torch.no_grad():
        given = standard.apply(values.float() if values.dtype.itemsize < 4 else values)
        wanted = head(given)
        made = copy.deepcopy(head)
        readers = _readers(made, given)
        if len(readers) == 1 and standard.mean.ndim == 1:
            _fold(readers[0], standard)
            if is_near([made(values.to(given.dtype))], [wanted]):
                return made
    return Standardized(copy.deepcopy(head), standard).eval()


def _fold(layer: nn.Linear, standard: Standard) -> None:
    weight = layer.weight.double() / standard.std.to(layer.weight.device).double()
    shift = weight @ standard.mean.to(weight.device).double()
    if getattr(layer, "bias", None) is None:
        layer.bias = nn.Parameter(torch.zeros(len(weight), dtype=layer.weight.dtype, device=layer.weight.device))
    layer.bias.copy_(layer.bias.double() - shift)
    layer.weight.copy_(weight)


def _readers(head: nn.Module, given: Tensor) -> list[nn.Linear]:
    """Find the Linears that are given the features as they are."""
    found: list[nn.Linear] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].data_ptr() == given.data_ptr():
            found.append(module)  # type: ignore[arg-type]

    handles = [layer.register_forward_pre_hook(note) for layer in head.modules() if isinstance(layer, nn.Linear)]
    try:
        head(given)
    finally:
        for handle in handles:
            handle.remove()
    return found
