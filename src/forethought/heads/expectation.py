"""Expectations over classes as functions of the weights above each class, and what is proved of them."""

import dataclasses
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


def from_exceedances(c: Tensor, support: Tensor, scale: Anchors, trim: float = 0.0) -> Tensor:
    """Return v_0 + the sum of c_j (v_{j+1} - v_j), which is the sum of p_k v_k, held to the anchors' range.

    Without the lowest and the highest `trim` of the weight, each c_j is (c_j - trim) / (1 - 2 trim), held to 0 and 1:
    the mean of the quantiles from `trim` to 1 - `trim`.

    Args:
        c: P(class > j), (*, S - 1).
        support: The values (S,) of all classes, ascending.
        scale: The anchors.
        trim: Share of the weight that is left out at each end, from 0 to below 1/2.

    Returns:
        y (*), with the anchors' sign.
    """
    values = support.to(torch.promote_types(c.dtype, support.dtype))
    if trim:
        inner = ((c - trim) / (1 - 2 * trim)).clamp(0, 1)
        # Not left to how a quotient of two rounded numbers rounds: from here on all is above.
        c = torch.where(c >= 1 - trim, torch.ones_like(inner), inner)
    y = values[0] + total(c * values.diff())
    return torch.clamp(y, scale.values[0], scale.values[-1]) * scale.sign


def weights_of(c: Tensor) -> Tensor:
    """Return class weights (*, S) from P(class > j) (*, S - 1). Undoes `exceedances_of`."""
    one = torch.ones_like(c[..., :1])
    return -torch.cat([one, c, torch.zeros_like(one)], -1).diff(dim=-1)


def vertices(classes: int, pad: int, like: Tensor, trim: float = 0.0) -> Tensor:
    """Return the exceedances (K, K + 2 * pad - 1) of all weight on each class, or of all but `trim` on either side."""
    width = classes + 2 * pad
    return torch.ones(width, width - 1).tril(-1)[pad : pad + classes].to(like).clamp(trim, 1 - trim)


def expectation_claims(function: Function, support: Tensor, scale: Anchors, pad: int, trim: float = 0.0) -> list[Claim]:
    """Return the claims of an expectation.

    Args:
        function: Exceedances (N, S - 1) to y (N,).
        support: (S,), the values of all classes, ascending, in the dtype that the head runs in.
        scale: The anchors; the first is support[pad].
        pad: Classes beyond each end.
        trim: Share of the weight that is left out at each end.
    """
    against = not_rising("values", support)
    scope = f"every {str(support.dtype).removeprefix('torch.')} exceedance"
    low, high = scale.ends
    claim = Claim(MONOTONE, EXCEEDANCE, "", scope, against is None, against or "")
    sums = f"each exceedance less {trim:g}, divided by {1 - 2 * trim:g} and held to 0 and 1, then " if trim else ""
    sums += "each exceedance times a gap, which is not negative, summed in a fixed order: monotone under rounding"
    says = f"y stays between {low!r} and {high!r}"
    return [
        exceedance_claim(claim, len(support), sums),
        Claim(RANGE, EXCEEDANCE, says, scope, against is None, against or "clamped"),
        at_vertices(function, vertices(len(scale), pad, support, trim), scale, EXCEEDANCE, against, trim),
    ]


def at_vertices(
    function: Function, at: Tensor, scale: Anchors, variable: str, against: str | None, trim: float = 0.0
) -> Claim:
    """Return the claim of how far y is from each anchor where all weight is on its class, by running it there."""
    with torch.no_grad():
        off = (function(at).double() - scale.given.double()).abs().max().item()
    holds, bound = against is None and math.isfinite(off), off if math.isfinite(off) else None
    says, scope, why = f"y is within {off:.3g} of the anchor where ", f"{len(scale)} one-hot weights", "run at each"
    if trim:
        says += f"no more than {trim:g} of the weight is below its class, and no more above"
        scope, why = f"{len(scale)} classes", f"{why}; all such weights are held to the same 0 and 1"
    else:
        says += "all weight is on its class, which a trained head only comes near to"
    return Claim(AT_VERTICES, variable, says, scope, holds, against or why, bound)


def vertex_hit(function: Function, at: Tensor, scale: Anchors, variable: str, claim: Claim) -> Hit:
    """Return the same as `falsify` checks it."""
    return Hit(AT_VERTICES, variable, function, at, scale.given.to(at.dtype), claim.bound or 0.0)


def expectation_trials(
    function: Function, support: Tensor, scale: Anchors, pad: int, claim: Claim, trim: float = 0.0
) -> tuple[list[Walk], list[Hit]]:
    """Return the walk along the exceedances, and the weights at which anchors are hit."""
    like = support.detach()
    walk = exceedance_walk(function, scale.sign, len(support), like, scale.ends)
    edges = [vertices(len(scale), pad, like, share) for share in ((0.0, trim / 2, trim) if trim else (0.0,))]
    if trim:
        near = [edge + sign * torch.finfo(like.dtype).eps for edge in edges[-1:] for sign in (1, -1)]
        walk = dataclasses.replace(walk, places=torch.cat([walk.places, *edges, *near]).clamp(0, 1))
    return [walk], [vertex_hit(function, at, scale, EXCEEDANCE, claim) for at in edges]


def local_claims(function: Function, support: Tensor, scale: Anchors, pad: int, window: int) -> list[Claim]:
    """Return the claims of an average near the peak: its range and its anchors, but not that it never steps back."""
    low, high = scale.ends
    against = not_rising("values", support)
    return [
        _local_claim(function, scale.sign, support, window),
        Claim(RANGE, EXCEEDANCE, f"y stays between {low!r} and {high!r}", "every weight", True, "clamped"),
        at_vertices(function, vertices(len(scale), pad, support), scale, EXCEEDANCE, against),
    ]


def _local_claim(function: Function, sign: float, support: Tensor, window: int) -> Claim:
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
