"""A classifier that keeps its fine scale: what is trained beside its logits varies slowly from class to class."""

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.layers import build_mlp


class Corrected(nn.Module):
    """Logits of a frozen network plus a linear correction of them that is smooth from class to class.

    (B, D) -> (B, K). The correction is made at places `width` classes apart and spread over the classes between by
    Gaussians of that width. It can tell one neighbourhood from another, such as a note from its octave, and hardly
    moves a peak within its neighbourhood. It starts at 0: before training the logits are the network's own.

    Args:
        net: (B, D) -> (B, K); its parameters are frozen.
        in_features: D.
        classes: K.
        width: In classes.
        dtype: Of the correction.
    """

    spread: Tensor

    def __init__(
        self, net: nn.Module, in_features: int, classes: int, width: float, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.net, self.width = net.requires_grad_(False), width
        places = torch.arange(0, classes - 1 + width, width, dtype=torch.float64)
        index = torch.arange(classes, dtype=torch.float64)[:, None]
        shares = torch.softmax(-((index - places) ** 2) / (2 * width**2), -1)
        self.coarse = build_mlp(in_features, (), len(places), dtype=dtype)
        self.coarse.to(next(net.parameters()).device)
        for parameter in self.coarse.parameters():
            nn.init.zeros_(parameter)
        like = next(self.coarse.parameters())
        self.register_buffer("spread", shares.to(like), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the corrected logits (B, K).

        Raises:
            FitError: several tensors, which a linear correction does not take.
        """
        if not isinstance(features, Tensor):
            raise FitError(
                f"Cannot correct logits: expected one tensor of features, got a {type(features).__name__}. "
                "Leave correction= out"
            )
        own: Tensor = self.net(features)
        correction: Tensor = self.coarse(features)
        return own + correction @ self.spread.T
