"""What every head promises."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class Head(nn.Module, ABC):
    """Map features (B, D) to one number per sample, (B,), in the anchors' units.

    All state is in parameters and buffers; `config` holds the rest, as JSON, so that
    `from_config(head.config())` followed by `load_state_dict` gives the same head without pickle.
    """

    kind: ClassVar[str]

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Predict (B,) from features (B, D)."""

    @abstractmethod
    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the head's natural training loss, a scalar.

        Args:
            features: (B, D).
            targets: (B,), in the anchors' units.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return what rebuilds this head, as JSON types. Undone by `from_config`."""
