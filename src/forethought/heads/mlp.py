"""MLPHead: a free network, for comparison."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from forethought.heads.anchors import Anchors
from forethought.heads.certificate import Claim
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.layers import build_mlp, check_features, dtype_name, dtype_of, robust_loss, run_in_full


class MLPHead(Head):
    """A free network whose output -1..1 spans the anchors' range. Guarantees nothing, not even the range.

    Args:
        in_features: D.
        anchors: Only the two ends matter: they set the output's centre and scale.
        hidden: Hidden sizes.
        dropout: Between hidden layers.
        dtype: Of the parameters; the output is float32 or wider.

    Raises:
        AnchorError: unusable anchors.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> head = MLPHead(in_features=4, anchors=[60.0, 61.0, 62.0], hidden=(8,))
        >>> head(torch.zeros(2, 4)).shape
        torch.Size([2])
    """

    kind: ClassVar[str] = "mlp"

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        *,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = Anchors(anchors, dtype)
        self.in_features = in_features
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.net = build_mlp(in_features, hidden, 1, dropout=dropout, dtype=dtype)

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        check_features(features, self.in_features)
        values = self.scale.values
        half = (values[-1] - values[0]) / 2
        y = values[0] + half * (1 + run_in_full(self.net, features).squeeze(-1))
        return y * self.scale.sign

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the Huber loss against targets (B,) in the anchors' units, a scalar."""
        return robust_loss(self(features), targets, self.scale, weights)

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the output."""
        return torch.promote_types(dtype_of(self.net), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return nothing: no property of a free network is proved."""
        return []

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return nothing: there is no claim to break."""
        return [], []

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
