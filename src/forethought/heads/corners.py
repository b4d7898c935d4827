"""Where the corners of a feature's broken line are put: at its quantiles, none twice."""

from itertools import pairwise

import torch
from torch import Tensor

_CLOSEST = 1e-5  # of the range: nearer corners would be one in float32


def corners_at(values: Tensor, count: int) -> Tensor:
    """Return `count` ascending corners for values (N,), finite: their distinct quantiles, the ends among them.

    Where values repeat, as grades do, there are fewer distinct quantiles than corners: the rest halve the widest gaps.
    """
    values = values.sort().values
    at = torch.linspace(0, len(values) - 1, count, dtype=torch.float64).round().long()
    first, last = float(values[0]), float(values[-1])
    if not last > first:
        first, last = first - 0.5, last + 0.5
    least = (last - first) * _CLOSEST
    corners = [first]
    for value in values[at].tolist():
        if corners[-1] + least <= value <= last - least:
            corners.append(value)
    corners = [*corners[: count - 1], last]
    while len(corners) < count:
        gaps = [after - before for before, after in pairwise(corners)]
        widest = gaps.index(max(gaps))
        corners.insert(widest + 1, corners[widest] + gaps[widest] / 2)
    return torch.tensor(corners, dtype=values.dtype)
