"""A head of standardised features made into one of features as they are: centres and scales go into its first layer."""

import copy

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.interface import Head
from forethought.heads.partial import PartialMonotone
from forethought.heads.prototypes import PrototypeExact


def fold_standardisation(head: Head, mean: Tensor, scale: Tensor) -> Head:
    """Return a head whose answer to x is `head`'s to (x - mean) / scale, up to rounding: what to export.

    Args:
        head: Trained on standardised features; it is not changed. Its curve is kept to the last bit.
        mean: (D,).
        scale: (D,), above 0.

    Raises:
        FitError: no Linear comes first.

    Example:
        >>> from forethought.heads.spline import AnchorSpline
        >>> head = AnchorSpline(2, anchors=[0.0, 1.0])
        >>> raw, x = fold_standardisation(head, torch.ones(2), torch.full((2,), 4.0)), torch.randn(5, 2)
        >>> torch.allclose(raw(x), head((x - 1) / 4), atol=1e-6)
        True
    """
    made = copy.deepcopy(head)
    mean, scale = mean.detach().double(), scale.detach().double()
    if isinstance(made, PartialMonotone):
        exact = made.net.exact
        middle, spread = exact.get_buffer("middle"), exact.get_buffer("spread")
        with torch.no_grad():
            middle.copy_(mean + scale * middle)
            spread.copy_(scale * spread)
        return made
    if isinstance(made, PrototypeExact):
        return _moved(made, mean, scale)
    linear = next((m for m in made.modules() if not list(m.children()) and list(m.parameters(False))), None)
    if not isinstance(linear, nn.Linear) or linear.bias is None:
        raise FitError(
            f"Cannot fold standardisation into {type(head).__name__}: expected a Linear with a bias first, got "
            f"{type(linear).__name__}. Standardise before the head"
        )
    with torch.no_grad():
        weight = linear.weight.double() / scale
        linear.bias.copy_(linear.bias.double() - weight @ mean)
        linear.weight.copy_(weight)
    return made


def _moved(head: PrototypeExact, mean: Tensor, scale: Tensor) -> PrototypeExact:
    """Return the head whose prototypes are where the standardised ones came from, with the same plane."""
    dtype = head.direction.dtype
    points = (head.prototypes * scale + mean).to(dtype)
    made = PrototypeExact(head.in_features, head.anchors, points, extrapolate=head.extrapolate, dtype=dtype)
    with torch.no_grad():
        plane = head.plane()
        weights = plane[:-1] / scale
        whole = torch.cat([weights, (plane[-1] - weights @ mean)[None]])
        made.direction.copy_(whole / ((len(head.scale) - 1) / 2))
    made.classes = head.classes
    return made.train(head.training)
