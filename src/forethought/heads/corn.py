"""CornHead: one conditional question a class, is it higher still?"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from forethought.heads.anchors import Anchors
from forethought.heads.certificate import MONOTONE, RANGE, Claim
from forethought.heads.expectation import at_vertices, vertex_hit, weights_of
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.layers import (
    at_least_tiny,
    build_mlp,
    check_features,
    check_targets,
    check_weights,
    dtype_name,
    dtype_of,
    run_in_full,
)
from forethought.heads.proofs import not_rising
from forethought.heads.steady import sigmoid

RANK_LOGITS = "rank logits"


class CornHead(Head):
    """Conditional ordinal regression read as a regressor: P(class > j) = the product of sigmoid(z_i), i <= j.

    y = v_0 + the sum of P(class > j) (v_{j+1} - v_j). The probabilities are in order whatever the logits are, and each
    class has weights of its own. `certify` proves y monotone in every rank logit. It is *not* monotone along one
    direction of the features, as the logits share none, and reaches the end anchors only where logits are infinite.

    CORN (Shi, Cao and Raschka 2021, arXiv:2111.08851).

    Args:
        in_features: D.
        anchors: One value per class, K >= 2, ascending or descending, evenly spaced or not.
        hidden: Hidden sizes before the K - 1 logits; none: one Linear, whose fit is K - 1 convex problems.
        dropout: Between hidden layers.
        dtype: Of the parameters; y is computed in float32 or wider.

    Raises:
        AnchorError: unusable anchors.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> head = CornHead(in_features=4, anchors=[60.0, 62.0, 67.0])
        >>> head.from_logits(torch.tensor([[0.0, 0.0], [50.0, -50.0]])).tolist()
        [62.25, 62.0]
    """

    kind: ClassVar[str] = "corn"

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        *,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = Anchors(anchors, dtype)
        self.in_features, self.hidden, self.dropout = in_features, tuple(hidden), dropout
        self.net = build_mlp(in_features, hidden, len(self.scale) - 1, dropout=dropout, dtype=dtype)

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    def rank_logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, K-1) of P(class > j | class >= j), float32 or wider."""
        check_features(features, self.in_features)
        return run_in_full(self.net, features)

    def from_logits(self, z: Tensor) -> Tensor:
        """Return y (B,) in the anchors' units from rank logits (B, K-1)."""
        gaps, (low, high) = self.scale.values.diff(), self.scale.values[[0, -1]]
        y = low + _climb(sigmoid(z.to(torch.promote_types(z.dtype, gaps.dtype))), gaps)
        return torch.clamp(y, low, high) * self.scale.sign

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        return self.from_logits(self.rank_logits(features))

    def predict_proba(self, features: Tensor) -> Tensor:
        """Return class weights (B, K) that sum to 1."""
        return weights_of(self.rank_logits(features).sigmoid().cumprod(-1))

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the class: how many classes are more likely passed than not."""
        return self.numbered((self.rank_logits(features).sigmoid().cumprod(-1) > 0.5).sum(-1))

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the conditional cross-entropy against targets (B,) in the anchors' units, a scalar.

        A target on an anchor is a class label; one between two anchors counts for both, in proportion. Question j is
        asked of the samples that are of class j or higher; the mean is over questions asked.
        """
        check_targets(targets, features.shape[0])
        z = self.rank_logits(features)
        index = torch.arange(z.shape[1], dtype=z.dtype, device=z.device)
        position = self.scale.position(targets).to(z.dtype)[:, None]
        asked, above = (position - index + 1).clamp(0, 1), (position - index).clamp(0, 1)
        cost = above * F.logsigmoid(z) + (asked - above) * F.logsigmoid(-z)
        if weights is not None:
            check_weights(weights, len(z))
            cost, asked = cost * weights.to(z)[:, None], asked * weights.to(z)[:, None]
        return -cost.sum() / at_least_tiny(asked.sum())

    def runs_in(self) -> torch.dtype:
        """Return the floating type of y."""
        return torch.promote_types(dtype_of(self.net), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return what is proved of y as a function of the rank logits."""
        against = not_rising("anchors", self.scale.values)
        scope = f"every {str(self.runs_in()).removeprefix('torch.')} rank logit, infinities included"
        why = "a sigmoid, products and sums of what is not negative, in a fixed order: each monotone under rounding"
        low, high = self.scale.ends
        way, holds = "rises" if self.scale.sign > 0 else "falls", against is None
        says = f"y never steps back as any rank logit rises: it {way}"
        return [
            Claim(MONOTONE, RANK_LOGITS, says, scope, holds, against or why),
            Claim(RANGE, RANK_LOGITS, f"y stays between {low!r} and {high!r}", scope, holds, against or "clamped"),
            at_vertices(self.from_logits, self._certain(), self.scale, RANK_LOGITS, against),
        ]

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: y along the rank logits, and where they are certain."""
        certain = self._certain()
        places = torch.cat([certain, certain.clamp(-9, 9), certain.clamp(-1, 1), torch.zeros_like(certain[:1])])
        signs = torch.full((certain.shape[1],), self.scale.sign)
        walk = Walk(RANK_LOGITS, self.from_logits, places, signs, within=self.scale.ends)
        return [walk], [vertex_hit(self.from_logits, certain, self.scale, RANK_LOGITS, self.claims()[-1])]

    def _certain(self) -> Tensor:
        """Return the rank logits (K, K-1) that say class k for sure."""
        classes = len(self.scale)
        below = torch.ones(classes, classes - 1).tril(-1)
        return torch.where(below == 1, torch.inf, -torch.inf).to(self.scale.values.device, self.runs_in())

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types."""
        return {
            "kind": self.kind,
            **self.numbering(),
            "in_features": self.in_features,
            "anchors": self.scale.numbers,
            "hidden": list(self.hidden),
            "dropout": self.dropout,
            "dtype": dtype_name(self),
        }


def _climb(q: Tensor, gaps: Tensor) -> Tensor:
    """Return the sum over j of gaps_j * q_0 * ... * q_j, (*, J) -> (*).

    Neighbours are joined by halves: passing both is the product of the two, and the height of both is that of the first
    plus, if it was passed, that of the second. Nothing is negative, so each step rises with every q.
    """
    passed, height = q, q * gaps
    while passed.shape[-1] > 1:
        even = passed.shape[-1] // 2 * 2
        first, second = passed[..., 0:even:2], passed[..., 1:even:2]
        joined = height[..., 0:even:2] + first * height[..., 1:even:2]
        height = torch.cat([joined, height[..., even:]], -1)
        passed = torch.cat([first * second, passed[..., even:]], -1)
    return height.squeeze(-1)
