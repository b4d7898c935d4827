"""Parts that several heads share: plain networks, checked inputs, a robust loss."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError, ShapeError
from forethought.heads.anchors import Anchors


def build_mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    *,
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Return Linear layers with ReLU (and dropout) between them; no hidden sizes: one Linear."""
    layers: list[nn.Module] = []
    sizes = [in_features, *hidden]
    for narrow, wide in pairwise(sizes):
        layers += [nn.Linear(narrow, wide, dtype=dtype), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    layers.append(nn.Linear(sizes[-1], out_features, dtype=dtype))
    return nn.Sequential(*layers)


def hidden_of(net: nn.Module) -> tuple[int, ...] | None:
    """Return the hidden sizes when `build_mlp` without dropout makes this very network, else None."""
    layers = list(net) if isinstance(net, nn.Sequential) else [net]
    linears, between = layers[::2], layers[1::2]
    is_plain = (
        len(layers) % 2 == 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in linears)
        and all(type(layer) is nn.ReLU for layer in between)
    )
    return tuple(int(layer.out_features) for layer in linears[:-1]) if is_plain else None  # type: ignore[arg-type]


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of the module's first floating parameter, or the default dtype."""
    floating = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


def dtype_name(module: nn.Module) -> str:
    """Return the module's dtype as JSON can hold it: 'float32'."""
    return str(dtype_of(module)).removeprefix("torch.")


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off: eight bits of mantissa cannot tell neighbouring classes of 360 apart."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


Given = Tensor | tuple[Tensor, ...] | list[Tensor]


def run_in_full(net: nn.Module, features: Given) -> Tensor:
    """Run a head's network in its own dtype whatever autocast says; return float32 or wider.

    Several tensors are left in theirs: they go to a part of a model, which has dtypes of its own.
    """
    with without_autocast(first_of(features).device):
        out: Tensor = net(features.to(dtype_of(net)) if isinstance(features, Tensor) else features)
    return out.to(torch.promote_types(out.dtype, torch.float32))


def first_of(features: Given) -> Tensor:
    """Return the features, or the first of several tensors of them: all have as many rows."""
    return features if isinstance(features, Tensor) else features[0]


@contextlib.contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and each part of it back in its own at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def as_rows(features: Any) -> Tensor:
    """Take features for a tensor (N, D): a tensor, an array, or what `ft.extract` gives.

    Raises:
        FitError: they are several tensors, or rows that differ in size.
    """
    if isinstance(features, Tensor):
        return features
    rows = features.numpy() if hasattr(features, "numpy") else features
    if hasattr(features, "numpy") and isinstance(rows, tuple | list):
        raise FitError(
            f"Cannot take features for rows of one tensor: expected (N, D), got {len(rows)} "
            f"{'tensors a sample' if isinstance(rows, tuple) else 'rows that differ in size'}. Make one row of each: "
            "torch.stack([pool(values) for values, _ in features])"
        )
    return torch.tensor(rows) if isinstance(rows, np.ndarray) else torch.as_tensor(rows)  # a store's cannot be written


def check_features(features: Tensor, in_features: int) -> None:
    """Raise unless features are floating point and (B, in_features)."""
    if not isinstance(features, Tensor):
        raise FitError(
            f"Cannot run head: expected features as a tensor (B, {in_features}), got a {type(features).__name__}. "
            "Pass torch.as_tensor(features)"
        )
    if features.ndim != 2 or features.shape[1] != in_features:
        width = features.shape[1:].numel()
        fixes = {1: "Pass features[None]", 2: f"Build the head with in_features={width}"}
        raise ShapeError(
            f"Cannot run head: expected features of shape (B, {in_features}), got {tuple(features.shape)}. "
            + fixes.get(features.ndim, f"Pass features.flatten(1), {width} wide")
        )
    if not features.is_floating_point():
        raise FitError(
            f"Cannot run head: expected floating-point features, got {features.dtype}. Pass features.float()"
        )


def check_targets(targets: Tensor, rows: int) -> None:
    """Raise unless there is exactly one target per row: (B, 1) against (B,) would broadcast to (B, B)."""
    if targets.shape != (rows,):
        fix = "targets.squeeze(1)" if targets.shape == (rows, 1) else "one number per sample"
        raise FitError(
            f"Cannot compute loss: expected targets of shape ({rows},), got {tuple(targets.shape)}. Pass {fix}"
        )


def check_weights(weights: Tensor, rows: int) -> None:
    """Raise unless there is exactly one weight per row."""
    if weights.shape != (rows,):
        raise FitError(
            f"Cannot compute loss: expected weights of shape ({rows},), got {tuple(weights.shape)}. "
            "Pass one number per sample"
        )


def mean_cost(costs: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of costs (B,), a scalar; with weights (B,), the weighted mean, 0 where all of them are 0.

    No rows cost 0, as rows that do not count do: their mean would be 0 / 0, and a step by it would end the head.

    Raises:
        FitError: not one weight per row.
    """
    if weights is None:
        return costs.mean() if len(costs) else costs.sum()
    check_weights(weights, len(costs))
    weights = weights.to(costs)
    return (weights * costs).sum() / at_least_tiny(weights.sum())


def at_least_tiny(total: Tensor) -> Tensor:
    """Return a sum of weights as a divisor: a batch in which none counts costs nothing, not 0 / 0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)


def robust_loss(y: Tensor, targets: Tensor, scale: Anchors, weights: Tensor | None = None) -> Tensor:
    """Return the mean Huber loss (Huber 1964) of y against targets, both (B,), in half-ranges of the anchors.

    Quadratic below one mean gap between anchors, linear above with slope 1 per half-range, so that the same
    learning rate suits anchors in Hz, cents or years.
    """
    check_targets(targets, y.shape[0])
    errors = (y - targets.to(y.dtype)) / scale.gap
    costs = F.huber_loss(errors, torch.zeros_like(errors), reduction="none")
    return mean_cost(costs, weights) * (2 / (len(scale) - 1))
