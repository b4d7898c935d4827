"""Where batches come from: anything with `batches`, or a pair of tensors; and which target a head is given."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from forethought.errors import FitError
from forethought.extracting.live import Live
from forethought.extracting.writethrough import WriteThrough
from forethought.features import Features
from forethought.nesting import tensors


@runtime_checkable
class Batches(Protocol):
    """What `fit` needs of features: a length, and batches of (values, targets), or (values, targets, weights)."""

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
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (values, targets): each a tensor (B, ...) or a tuple of them, every row once."""


Batch = tuple[Any, Any, Tensor | None]
"""Values, targets, and weights of the rows where there are any."""


class TensorRows:
    """A pair of tensors in memory as `Batches`; or three, with a weight for each row."""

    def __init__(self, values: Tensor, targets: Any, weights: Tensor | None = None) -> None:
        self.values, self.targets, self.weights = values, targets, weights

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
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (values, targets); shuffled, in the order that seed and epoch give."""
        parts = [self.values, self.targets, *([] if self.weights is None else [self.weights])]
        if not shuffle:
            for pieces in zip(*(part.split(batch_size) for part in parts), strict=True):
                yield tuple(piece.to(device) for piece in pieces)
            return
        # Two draws, so that seed 0 in epoch 1 and seed 1 in epoch 0 are different orders.
        mixer = torch.Generator().manual_seed(seed or 0)
        mixer.manual_seed(int(torch.randint(2**62, (1,), generator=mixer)) + (epoch or 0))
        for at in torch.randperm(len(self), generator=mixer).split(batch_size):
            yield tuple(part.index_select(0, at.to(part.device)).to(device) for part in parts)


def as_batches(rows: object, name: str) -> Batches:
    """Return rows as `Batches`.

    Raises:
        FitError: no `batches`, not a pair of tensors of one length, or no rows.
    """
    if isinstance(rows, tuple) and len(rows) == 2 and isinstance(rows[0], Features):
        rows = _with_targets(*rows, name)
    if isinstance(rows, tuple) and any(isinstance(part, np.ndarray) for part in rows):
        rows = tuple(torch.tensor(part) if isinstance(part, np.ndarray) else part for part in rows)
    if isinstance(rows, tuple) and len(rows) in (2, 3) and all(isinstance(part, Tensor) for part in rows):
        odd = next((part for part in rows[1:] if len(part) != len(rows[0])), None)
        if odd is not None:
            what = "weights" if len(rows[1]) == len(rows[0]) else "targets"
            raise FitError(
                f"Cannot fit heads: expected as many {what} as rows in {name}=, got {len(odd)} {what} for "
                f"{len(rows[0])} rows. Pass {name}=(values[:n], targets[:n])"
            )
        _check_weights(rows[2] if len(rows) == 3 else None, name)
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


def _with_targets(rows: Features, targets: Any, name: str) -> Features:
    """Give features other targets than those of their data set."""
    targets = torch.tensor(targets) if isinstance(targets, np.ndarray | list) else targets
    found = tensors(targets)
    odd = next((part for part in found if not part.ndim or len(part) != len(rows)), None)
    if odd is not None or not found:
        got = "none" if odd is None else f"shape {tuple(odd.shape)}"
        raise FitError(
            f"Cannot fit heads: expected a target for each of the {len(rows)} rows of {name}=, got {got}. "
            f"Pass {name}=(features, targets) with a tensor ({len(rows)},)"
        )
    drawn = tuple(replace(view, targets=targets) for view in rows.drawn)
    return replace(rows, drawn=drawn, _rows={}, _sources={}, _epochs=0, _shuffled=0)


def _check_weights(weights: Tensor | None, name: str) -> None:
    """Raise unless weights are one finite number a row, none below 0 and not all 0."""
    if weights is None or (weights.ndim == 1 and _is_weight(weights)):
        return
    got = f"shape {tuple(weights.shape)}" if weights.ndim != 1 else f"{weights.min().item()} to {weights.max().item()}"
    raise FitError(
        f"Cannot fit heads: expected weights of the rows of {name}= to be one finite number each, none below 0 and not "
        f"all 0, got {got}. Pass {name}=(values, targets, weights.clamp(min=0))"
    )


def _is_weight(weights: Tensor) -> bool:
    return bool((weights >= 0).all() and weights.double().isfinite().all() and (weights > 0).any())


def fed(rows: Batches, batch_size: int, device: torch.device, **options: Any) -> Iterator[Batch]:
    """Feed rows. Every process of a distributed job that fits heads fits them on all rows."""
    if isinstance(rows, Features):
        options |= {"rank": 0, "world_size": 1}
    for batch in rows.batches(batch_size, device=device, **options):
        if len(batch) not in (2, 3):
            raise FitError(
                f"Cannot fit heads: expected batches of (values, targets) or (values, targets, weights), got "
                f"{len(batch)} parts. Yield (values, targets)"
            )
        yield batch[0], batch[1], batch[2] if len(batch) == 3 else None


def known_targets(rows: Batches) -> Any:
    """Give the targets of all rows, where they are known before any is fed; else None."""
    return rows.targets if isinstance(rows, Features | Live | WriteThrough) or type(rows) is TensorRows else None


def all_targets(rows: Batches) -> Any:
    """Give the targets of all rows, read for that if need be; None where they come with the batches alone."""
    return rows.read_targets() if isinstance(rows, Live | WriteThrough) else known_targets(rows)


def rows_in(batch: Batch) -> int:
    """Count the rows of a batch by its targets."""
    found = tensors(batch[1])
    if not found:
        raise FitError(
            f"Cannot read targets: expected tensors, got {_listed(batch[1])}. Extract from a data set with targets"
        )
    return len(found[0])


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
    if isinstance(found, list) and found and all(isinstance(item, str) for item in found):
        raise FitError(
            f"Cannot read targets: expected numbers, got text such as {found[0]!r}. Number the classes, and fit "
            "(features, labels): names = sorted(set(texts)); labels = torch.tensor([names.index(t) for t in texts])"
        )
    if not isinstance(found, Tensor):
        raise FitError(
            f"Cannot read targets: expected a tensor (B, ...), got {_listed(targets)}. "
            + ("Pass target=0, or a dict by head name" if targets else "Extract from a data set with targets")
        )
    return found


def check_targets(targets: Any, target: int | str | None, where: str, batch: int | None = None) -> None:
    """Raise unless every target is there, and a number.

    Args:
        targets: Of all rows, or of a batch.
        target: Which of them.
        where: What to call the rows.
        batch: Its number, if it is one.
    """
    place = "" if batch is None else f" of batch {batch}"
    column = targets if isinstance(targets, list) and target is None else None
    if column is not None:
        absent = [at for at, item in enumerate(column) if item is None or (isinstance(item, float) and item != item)]
        if absent:
            raise _missing(len(absent), f"{absent[0]}{place}", len(column), where, "targets are missing")
    found = pick_target(targets, target)
    if found.is_floating_point() or found.is_complex():
        bad = ~found.isfinite().flatten(1).all(1) if found.ndim > 1 else ~found.isfinite()
        if bool(bad.any()):
            first = f"{int(bad.nonzero()[0])}{place}"
            raise _missing(int(bad.sum()), first, len(found), where, "targets are not finite numbers")


def _missing(count: int, first: str, rows: int, where: str, what: str) -> FitError:
    return FitError(
        f"Cannot fit heads: expected a target for every row of {where}=, got {count} of {rows} whose {what}, the first "
        f"in row {first}. Leave them out: {where}={where}.select(lambda targets: targets.isfinite())"
    )


def _listed(targets: Any) -> str:
    """Describe targets for a message."""
    if isinstance(targets, Mapping):
        return f"the keys {list(targets)}"
    if isinstance(targets, tuple | list):
        return f"{len(targets)} targets, numbered from 0"
    return f"columns of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"{targets!r:.60}"
