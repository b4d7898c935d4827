"""What is proved of an expectation over classes, as a function of the weights above each class."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from forethought.heads.anchors import Anchors
from forethought.heads.certificate import AT_VERTICES, EXCEEDANCE, MONOTONE, RANGE, Claim
from forethought.heads.falsification import Hit, Walk
from forethought.heads.latents import exceedance_claim, exceedance_walk, exceedances_of
from forethought.heads.proofs import not_rising

Function = Callable[[Tensor], Tensor]


def expectation_claims(function: Function, support: Tensor, scale: Anchors, pad: int) -> list[Claim]:
    """Return the claims of y = v_0 + sum of c_j (v_{j+1} - v_j), held to the anchors' range.

    Args:
        function: Exceedances (N, S - 1) to y (N,).
        support: (S,), the values of all classes, ascending, in the dtype that the head runs in.
        scale: The anchors; the first is support[pad].
        pad: Classes beyond each end.
    """
    against = not_rising("values", support)
    scope = f"every {str(support.dtype).removeprefix('torch.')} exceedance"
    ends = sorted((scale.given[0].item(), scale.given[-1].item()))
    claim = Claim(MONOTONE, EXCEEDANCE, "", scope, against is None, against or "")
    sums = "each exceedance times a gap, which is not negative, summed in a fixed order: monotone under rounding"
    return [
        exceedance_claim(claim, len(support), sums),
        Claim(
            RANGE, EXCEEDANCE, f"y stays between {ends[0]!r} and {ends[1]!r}", scope, against is None,
            against or "clamped",
        ),
        _at_vertices(function, support, scale, pad, against),
    ]  # fmt: skip


def _at_vertices(function: Function, support: Tensor, scale: Anchors, pad: int, against: str | None) -> Claim:
    with torch.no_grad():
        off = (function(vertices(len(scale), pad, support)).double() - scale.given.double()).abs().max().item()
    holds, bound = against is None and math.isfinite(off), off if math.isfinite(off) else None
    says = f"y is within {off:.3g} of the anchor where all weight is on its class, which a softmax only comes near to"
    why = against or "run at each"
    return Claim(AT_VERTICES, EXCEEDANCE, says, f"{len(scale)} one-hot weights", holds, why, bound)


def vertices(classes: int, pad: int, like: Tensor) -> Tensor:
    """Return the exceedances (K, K + 2 * pad - 1) of all weight on each class."""
    width = classes + 2 * pad
    return torch.ones(width, width - 1).tril(-1)[pad : pad + classes].to(like)


def expectation_trials(
    function: Function, support: Tensor, scale: Anchors, pad: int, bound: float
) -> tuple[list[Walk], list[Hit]]:
    """Return the walk along the exceedances, and the one-hot weights."""
    support = support.detach()
    hit = Hit(
        AT_VERTICES, EXCEEDANCE, function, vertices(len(scale), pad, support), scale.given.to(support.dtype), bound
    )
    return [exceedance_walk(function, scale.sign, len(support), support)], [hit]


def local_trials(function: Function, sign: float, support: Tensor) -> tuple[list[Walk], list[Hit]]:
    """Return the walk of a function that is known to step back."""
    return [exceedance_walk(function, sign, len(support), support.detach())], []


def local_claim(function: Function, sign: float, support: Tensor, window: int) -> Claim:
    """Return the claim, which does not hold, that an average near the peak never steps back, with a case against it.

    Two far classes are about equally likely; half of the higher one's weight moves further up, and the lower one leads.
    """
    classes = len(support)
    before, after = torch.zeros(classes), torch.zeros(classes)
    before[[0, classes - 2]] = torch.tensor([0.48, 0.52])
    after[[0, classes - 2, classes - 1]] = torch.tensor([0.48, 0.26, 0.26])
    with torch.no_grad():
        low, high = (function(exceedances_of(p[None]).to(support)).item() for p in (before, after))
    case = None
    if (high - low) * sign < 0:
        case = (
            f"weights 0.48 and 0.52 on classes 0 and {classes - 2} give {low!r}, "
            f"0.48, 0.26 and 0.26 on 0, {classes - 2} and {classes - 1} give {high!r}"
        )
    says = "y never steps back as weight moves to higher classes"
    why = f"only the {window} classes on each side of the most likely one count, and another may become that"
    return Claim(MONOTONE, EXCEEDANCE, says, "every weight", False, why, violation=case)
