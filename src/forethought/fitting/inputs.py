"""What each head is given of a batch: values in its precision, maybe standardised; its target; weights of the rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forethought.errors import FitError
from forethought.fitting.introduction import check_range
from forethought.fitting.nonfinite import cause_in
from forethought.fitting.rows import Batch, Batches, all_targets, fed, pick_target
from forethought.fitting.standardizing import Standard, learn_standard
from forethought.fitting.trainee import Trainee


class Preparation:
    """What was learned from the training rows before training: how to standardise, and how much each class counts.

    Args:
        standard: Of the features; None if no head wants it.
        class_weights: (C,) by the name of the head that wants them.
    """

    def __init__(self, standard: Standard | None, class_weights: Mapping[str, Tensor]) -> None:
        self.standard, self._class_weights = standard, dict(class_weights)

    def of(self, batch: Batch) -> "Inputs":
        """Prepare a batch."""
        return Inputs(batch, self.standard, self._class_weights)


class Inputs:
    """One batch, as each head is given it. Values are cast at most once for each precision.

    Several tensors are left alone: they go to a head that is part of a model and has its own dtypes.
    """

    def __init__(self, batch: Batch, standard: Standard | None, class_weights: Mapping[str, Tensor]) -> None:
        self._values, self._targets, self._weights = batch
        self._standard, self._class_weights = standard, class_weights
        self._cast: dict[tuple[torch.dtype | None, bool], Any] = {}
        self._versions = [tensor._version for tensor in self._tensors()]

    def to(self, trainee: Trainee, *, training: bool = True) -> tuple[Any, Tensor, Tensor | None]:
        """Give values, target and weights; in training, classes count as they are weighed."""
        options = trainee.options
        target = pick_target(self._targets, options.target)
        weights = self._weights
        classes = self._class_weights.get(trainee.name) if training else None
        if classes is not None:
            check_range(trainee.name, target, len(classes), "a batch")
            own = classes.to(target.device)[target.long()]
            weights = own if weights is None else own * weights
        return self._as(trainee.dtype, options.standardize), target, weights

    def check(self, name: str) -> None:
        """See that a head left the values as they were: the other heads are given the same ones."""
        if self._versions != [tensor._version for tensor in self._tensors()]:
            raise FitError(
                f"Cannot train head {name!r}: expected it to leave its input as it is, got it written into, and all "
                "heads share it. Use inplace=False in its first layer, or clone the input in its forward."
            )

    def _tensors(self) -> list[Tensor]:
        values = self._values if isinstance(self._values, tuple | list) else (self._values,)
        return [tensor for tensor in (*values, *self._cast.values()) if isinstance(tensor, Tensor)]

    def _as(self, dtype: torch.dtype | None, is_standard: bool) -> Any:
        """Return the values in a dtype, if that loses nothing."""
        values = self._values
        key = (dtype, is_standard)
        if key in self._cast:
            return self._cast[key]
        is_narrower = (
            isinstance(values, Tensor)
            and dtype is not None
            and values.is_floating_point()
            and values.dtype != dtype == torch.promote_types(values.dtype, dtype)
        )
        if is_standard:
            assert self._standard is not None
            made = self._standard.apply(self._as(dtype, False))
        elif is_narrower and dtype is not None:
            made = values.to(dtype)
        else:
            return values
        self._cast[key] = made
        self._versions.append(made._version)
        return made


def prepare(trainees: Sequence[Trainee], train: Batches, batch_size: int, device: torch.device) -> Preparation:
    """Learn from the training rows what heads want to know before they are trained."""
    standard = None
    if any(trainee.options.standardize for trainee in trainees):
        try:
            standard = learn_standard(fed(train, batch_size, device, epoch=0))
        except FitError as err:
            cause = cause_in(train, "train", batch_size, device, 0)
            if cause is None:
                raise
            raise FitError(f"Cannot standardise features: expected finite values, got others: {cause}") from err
    wanted = {t.name: t for t in trainees if t.options.class_weight is not None}
    counted: dict[Any, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, trainee in wanted.items():
        given = trainee.options.class_weight
        if isinstance(given, str):
            target = trainee.options.target
            if target not in counted:
                counted[target] = _count(trainee, train, batch_size, device)
            counts = counted[target]
            # As scikit-learn balances: rows / (classes * rows of the class).
            given = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
        weights[name] = torch.as_tensor(given, dtype=torch.float32).to(device)
    return Preparation(standard, weights)


def _count(trainee: Trainee, train: Batches, batch_size: int, device: torch.device) -> Tensor:
    """Count the rows of each class."""
    known = all_targets(train)
    parts = [known] if known is not None else (batch[1] for batch in fed(train, batch_size, device, epoch=0))
    counts = torch.zeros(0, dtype=torch.float64)
    for part in parts:
        target = pick_target(part, trainee.options.target)
        if target.is_floating_point() or target.ndim != 1 or bool((target < 0).any()):
            raise FitError(
                f"Cannot balance classes for head {trainee.name!r}: expected class indices from 0 up, shape (N,), got "
                f"{target.dtype} of shape {tuple(target.shape)}. Leave class_weight out, or pass target.long()"
            )
        more = torch.bincount(target.cpu().long(), minlength=len(counts)).double()
        more[: len(counts)] += counts
        counts = more
    return counts
