"""MultiHead: several targets, each with a head and anchors of its own."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.certificate import Claim
from forethought.heads.circular import Around
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.layers import dtype_of


class MultiHead(Head):
    """Heads side by side over the same features: (B, D) -> (B, T), one column a target, in the order given.

    Its loss is the sum of theirs. Its certificate holds every head's claims, whose variables carry the target's name:
    "pitch: latent".

    Args:
        heads: By target name.

    Raises:
        FitError: no head, or something else.

    Example:
        >>> from forethought.heads import AnchorSpline
        >>> head = MultiHead({"pitch": AnchorSpline(4, [60.0, 72.0]), "age": AnchorSpline(4, [0.0, 18.0, 99.0])})
        >>> head(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    kind: ClassVar[str] = "multi"
    free: ClassVar[tuple[str, ...]] = ("heads",)  # each is asked for itself

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        wrong = [name for name, head in heads.items() if not isinstance(head, Head) or isinstance(head, MultiHead)]
        if not heads or wrong:
            got = f"{type(heads[wrong[0]]).__name__} for {wrong[0]!r}" if wrong else "none"
            raise FitError(
                f"Cannot build head: expected heads of forethought, of one target each, by target name, got {got}. "
                "MultiHead({'pitch': heads.AnchorSpline(width, anchors)})"
            )
        unfit = [name for name in map(str, heads) if not name or "." in name or hasattr(nn.ModuleDict, name)]
        if unfit:
            raise FitError(
                "Cannot build head: expected target names that torch can give to parts, without a dot and no method "
                f"of nn.ModuleDict, got {unfit[0]!r}. Name it otherwise: 'the_target'"
            )
        self.heads = nn.ModuleDict(heads)

    @property
    def names(self) -> tuple[str, ...]:
        """The targets, in the order of the columns."""
        return tuple(self.heads)

    def forward(self, features: Tensor) -> Tensor:
        """Predict (B, T) in each target's own unit from features (B, D)."""
        return torch.stack([head(features) for head in self.heads.values()], -1)

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the sum of the heads' losses against targets (B, T), a scalar."""
        if targets.shape != (features.shape[0], len(self.heads)):
            raise FitError(
                f"Cannot compute loss: expected targets of shape ({features.shape[0]}, {len(self.heads)}), one column "
                f"for each of {', '.join(self.heads)}, got {tuple(targets.shape)}. torch.stack([a, b], -1)"
            )
        columns = zip(self._each(), targets.unbind(-1), strict=True)
        return torch.stack([head.loss(features, column, weights) for (_, head), column in columns]).sum()

    @property
    def around(self) -> "Columns | None":
        """The mean over targets of how far values are apart, on circles the shorter way round; None without circles."""
        periods = tuple(getattr(head, "period", None) for _, head in self._each())
        return Columns(periods) if any(period is not None for period in periods) else None

    def _each(self) -> Iterator[tuple[str, Head]]:
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            yield name, head

    def runs_in(self) -> torch.dtype:
        """Return the widest floating type of the heads."""
        return max((head.runs_in() for _, head in self._each()), key=lambda dtype: torch.finfo(dtype).bits)

    def claims(self) -> list[Claim]:
        """Return every head's claims, named by target."""
        return [
            dataclasses.replace(claim, variable=f"{name}: {claim.variable}", says=f"{name}: {claim.says}")
            for name, head in self._each()
            for claim in head.certify().claims
        ]

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what every head's `falsify` runs, named by target."""
        walks, hits = [], []
        for name, head in self._each():
            own_walks, own_hits = head.trials()
            walks += [dataclasses.replace(walk, variable=f"{name}: {walk.variable}") for walk in own_walks]
            hits += [dataclasses.replace(hit, variable=f"{name}: {hit.variable}") for hit in own_hits]
        return walks, hits

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types."""
        return {
            "kind": self.kind,
            "heads": {name: head.config() for name, head in self._each()},
            "dtype": str(dtype_of(self)).removeprefix("torch."),
        }


@dataclass(frozen=True)
class Columns:
    """How far several values are apart in the mean, (B, T) and (B, T) to (B,): on circles the shorter way round.

    Example:
        >>> Columns((360.0, None))(torch.tensor([[359.0, 5.0]]), torch.tensor([[1.0, 8.0]])).item()
        2.5
    """

    periods: tuple[float | None, ...]

    @property
    def __name__(self) -> str:
        """What tables call it."""
        circles = ", ".join("line" if period is None else f"{period:g}" for period in self.periods)
        return f"mean distance around {circles}"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distances."""
        target = target.to(output.dtype)
        apart = [
            (a - b).abs() if period is None else Around(period)(a, b)
            for period, a, b in zip(self.periods, output.unbind(-1), target.unbind(-1), strict=True)
        ]
        return torch.stack(apart, -1).mean(-1)
