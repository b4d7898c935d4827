"""Soft class targets: a number on the line of classes becomes weights over the classes.

Positions are in class units, so that one width suits any unit and any spacing of the anchors. Near an end the
kernel of a smooth target is cut off and its mean is pushed inward (by 0.37 classes at the end itself for a
width of 0.75), so the caller pads the classes by three widths on both sides.
"""

import math

import torch
from torch import Tensor


def two_hot(position: Tensor, classes: int) -> Tensor:
    """Return weights (B, classes) on the two neighbours of each position, whose mean is the position."""
    low = position.floor().clamp(0, classes - 2)
    share = (position - low)[:, None]
    weights = position.new_zeros(position.shape[0], classes)
    index = low.long()[:, None]
    return weights.scatter(1, index, 1 - share).scatter(1, index + 1, share)


def hl_gauss(position: Tensor, classes: int, sigma: float) -> Tensor:
    """Return weights (B, classes) that sum to 1: a Gaussian's mass in each class's cell [k - 1/2, k + 1/2].

    HL-Gauss (Imani and White 2018; Farebrother et al. 2024, arXiv:2403.03950).
    """
    edges = torch.arange(classes + 1, dtype=position.dtype, device=position.device) - 0.5
    below = torch.special.erf((edges - position[:, None]) / (sigma * math.sqrt(2)))
    mass: Tensor = below.diff(dim=1) / (below[:, -1:] - below[:, :1])
    return mass


def blur(position: Tensor, classes: int, sigma: float) -> Tensor:
    """Return weights (B, classes), a Gaussian of height 1 at each position: for sigmoid classifiers.

    CREPE (Kim et al. 2018, arXiv:1802.06182) uses a width of 25 cents on classes of 20 cents: sigma=1.25.
    """
    index = torch.arange(classes, dtype=position.dtype, device=position.device)
    return torch.exp(-0.5 * ((index - position[:, None]) / sigma) ** 2)
