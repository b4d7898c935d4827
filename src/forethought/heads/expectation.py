"""Expectations over classes as functions of the weights above each class, and what is proved of them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from forethought.heads.anchors import Anchors
from forethought.heads.certificate import AT_VERTICES, EXCEEDANCE, MONOTONE, RANGE, Claim
from forethought.heads.falsification import Hit, Walk
from forethought.heads.latents import exceedance_claim, exceedance_walk, exceedances_of
from forethought.heads.proofs import not_rising
from forethought.heads.steady import total

Function = Callable[[Tensor], Tensor]


def from_exceedances(c: Tensor, support: Tensor, scale: Anchors) -> Tensor:
    """Return v_0 + the sum of c_j (v_{j+1} - v_j), which is the sum of p_k v_k, held to the anchors' range.

    Args:
        c: P(class > j), (*, S - 1).
        support: The values (S,) of all classes, ascending.
        scale: The anchors.

    Returns:
        y (*), with the anchors' sign.
    """
    values = support.to(torch.promote_types(c.dtype, support.dtype))
    y = values[0] + total(c * values.diff())
    return torch.clamp(y, scale.values[0], scale.values[-1]) * scale.sign


def weights_of(c: Tensor) -> Tensor:
    """Return class weights (*, S) from P(class > j) (*, S - 1). Undoes `exceedances_of`."""
    one = torch.ones_like(c[..., :1])
    return -torch.cat([one, c, torch.zeros_like(one)], -1).diff(dim=-1)


def vertices(classes: int, pad: int, like: Tensor) -> Tensor:
    """Return the exceedances (K, K + 2 * pad - 1) of all weight on each class."""
    width = classes + 2 * pad
    return torch.ones(width, width - 1).tril(-1)[pad : pad + classes].to(like)


def expectation_claims(function: Function, support: Tensor, scale: Anchors, pad: int) -> list[Claim]:
    """Return the claims of an expectation.

    Args:
        function: Exceedances (N, S - 1) to y (N,).
        support: (S,), the values of all classes, ascending, in the dtype that the head runs in.
        scale: The anchors; the first is support[pad].
        pad: Classes beyond each end.
    """
    against = not_rising("values", support)
    scope = f"every {str(support.dtype).removeprefix('torch.')} exceedance"
    low, high = scale.ends
    claim = Claim(MONOTONE, EXCEEDANCE, "", scope, against is None, against or "")
    sums = "each exceedance times a gap, which is not negative, summed in a fixed order: monotone under rounding"
    says = f"y stays between {low!r} and {high!r}"
    return [
        exceedance_claim(claim, len(support), sums),
        Claim(RANGE, EXCEEDANCE, says, scope, against is None, against or "clamped"),
        at_vertices(function, vertices(len(scale), pad, support), scale, EXCEEDANCE, against),
    ]


def at_vertices(function: Function, at: Tensor, scale: Anchors, variable: str, against: str | None) -> Claim:
    """Return the claim of how far y is from each anchor where all weight is on its class, by running it there."""
    with torch.no_grad():
        off = (function(at).double() - scale.given.double()).abs().max().item()
    holds, bound = against is None and math.isfinite(off), off if math.isfinite(off) else None
    says = (
        f"y is within {off:.3g} of the anchor where all weight is on its class, which a trained head only comes near to"
    )
    return Claim(AT_VERTICES, variable, says, f"{len(scale)} one-hot weights", holds, against or "run at each", bound)


def vertex_hit(function: Function, at: Tensor, scale: Anchors, variable: str, claim: Claim) -> Hit:
    """Return the same as `falsify` checks it."""
    return Hit(AT_VERTICES, variable, function, at, scale.given.to(at.dtype), claim.bound or 0.0)


def expectation_trials(
    function: Function, support: Tensor, scale: Anchors, pad: int, claim: Claim
) -> tuple[list[Walk], list[Hit]]:
    """Return the walk along the exceedances, and the one-hot weights."""
    walk = exceedance_walk(function, scale.sign, len(support), support.detach(), scale.ends)
    return [walk], [vertex_hit(function, vertices(len(scale), pad, support.detach()), scale, EXCEEDANCE, claim)]


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
