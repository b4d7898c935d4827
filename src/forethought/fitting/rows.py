"""Where batches come from: anything with `batches`, or a pair of tensors."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from forethought.errors import FitError


@runtime_checkable
class Batches(Protocol):
    """What `fit` needs of features: a length, and batches of (values, targets)."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        epoch: int | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (values, targets): each a tensor (B, ...) or a tuple of them, every row once."""


class TensorRows:
    """A pair of tensors in memory as `Batches`."""

    def __init__(self, values: Tensor, targets: Tensor) -> None:
        self.values, self.targets = values, targets

    def __len__(self) -> int:
        return len(self.values)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        epoch: int | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (values, targets); shuffled, in the order that seed and epoch give."""
        if not shuffle:
            pairs = zip(self.values.split(batch_size), self.targets.split(batch_size), strict=True)
            yield from ((values.to(device), targets.to(device)) for values, targets in pairs)
            return
        # Two draws, so that seed 0 in epoch 1 and seed 1 in epoch 0 are different orders.
        mixer = torch.Generator().manual_seed(seed or 0)
        mixer.manual_seed(int(torch.randint(2**62, (1,), generator=mixer)) + (epoch or 0))
        order = torch.randperm(len(self), generator=mixer).to(self.values.device)
        for rows in order.split(batch_size):
            yield self.values[rows].to(device), self.targets[rows.to(self.targets.device)].to(device)


def as_batches(rows: object, name: str) -> Batches:
    """Return rows as `Batches`.

    Raises:
        FitError: no `batches`, not a pair of tensors of one length, or no rows.
    """
    if isinstance(rows, tuple) and len(rows) == 2 and all(isinstance(part, Tensor) for part in rows):
        if len(rows[0]) != len(rows[1]):
            raise FitError(
                f"Cannot fit heads: expected as many targets as rows in {name}=, got {len(rows[1])} targets for "
                f"{len(rows[0])} rows. Pass {name}=(values[:n], targets[:n])"
            )
        rows = TensorRows(*rows)
    if not isinstance(rows, Batches):
        raise FitError(
            f"Cannot fit heads: expected {name}= to be features with .batches(), or a pair of tensors, got "
            f"{type(rows).__name__}. Pass {name}=ft.extract(model, dataset, store), or {name}=(values, targets)"
        )
    if len(rows) == 0:
        raise FitError(
            f"Cannot fit heads: expected at least one row in {name}=, got 0. Extract features of a data set that "
            f"has samples: {name}=ft.extract(model, dataset, store)"
        )
    return rows


def pick_target(targets: Any, target: int | str | None) -> Tensor:
    """Return one tensor of targets (B, ...): an entry of a tuple or dict, or a column of a tensor (B, M)."""
    found = targets
    try:
        if target is not None:
            is_column = isinstance(targets, Tensor)
            found = targets[:, target] if is_column else targets[target]
        elif isinstance(targets, Mapping | tuple | list) and len(targets) == 1:
            found = next(iter(targets.values() if isinstance(targets, Mapping) else targets))
    except (KeyError, IndexError, TypeError) as err:
        raise FitError(
            f"Cannot pick target {target!r}: expected one of {_listed(targets)}. "
            "Pass target=... with one of them, or a dict of them by head name"
        ) from err
    if not isinstance(found, Tensor):
        raise FitError(
            f"Cannot read targets: expected a tensor (B, ...), got {_listed(targets)}. "
            + ("Pass target=0, or a dict by head name" if targets else "Extract from a data set with targets")
        )
    return found


def _listed(targets: Any) -> str:
    """Describe targets for a message."""
    if isinstance(targets, Mapping):
        return f"the keys {list(targets)}"
    if isinstance(targets, tuple | list):
        return f"{len(targets)} targets, numbered from 0"
    return f"columns of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"{targets!r:.60}"
