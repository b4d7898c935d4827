"""Which samples: chosen by number, mask or a condition on their targets; dealt into folds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forethought import nesting
from forethought.errors import DataError

Which = Any
"""Numbers, a mask, a slice, or a function of the targets that gives one of these."""


def rows_of(which: Which, targets: Any, rows: int) -> NDArray[np.int64]:
    """Read a selection as the numbers of samples, in the order asked for.

    Args:
        which: A slice, numbers (negative ones count from the end), a mask (N,), or a function that is given the
            targets and returns one of these.
        targets: The data set's.
        rows: How many samples there are.

    Raises:
        DataError: it is none of these, or names samples that there are not.
    """
    if callable(which) and not isinstance(which, Tensor | np.ndarray):
        which = which(targets)
    if isinstance(which, slice):
        return np.arange(rows)[which]
    try:
        numbers = np.asarray(which.detach().cpu() if isinstance(which, Tensor) else which)
    except (TypeError, ValueError, RuntimeError):
        numbers = np.empty((), object)
    if numbers.size == 0 and numbers.ndim == 1:
        return np.empty(0, np.int64)
    if numbers.dtype == bool and numbers.shape == (rows,):
        return np.flatnonzero(numbers)
    if numbers.dtype == bool or numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise DataError(
            f"Cannot select samples: expected numbers, a slice, a mask of shape ({rows},), or a function of the "
            f"targets that gives one of these, got {_described(which, numbers)}. features.select(lambda t: t > 3)"
        )
    wrong = numbers[(numbers < -rows) | (numbers >= rows)]
    if len(wrong):
        raise DataError(f"Cannot select sample {wrong[0]}: expected one of {rows}. features.select(range({rows}))")
    return np.where(numbers < 0, numbers + rows, numbers).astype(np.int64)


def deal(rows: int, k: int, seed: int, labels: Any = None, groups: Any = None) -> NDArray[np.int64]:
    """Deal samples into k folds: give the fold of each, (N,).

    Args:
        rows: How many samples.
        k: Folds, at least 2.
        seed: Pins which sample comes where.
        labels: (N,): each label is spread over the folds as evenly as can be.
        groups: (N,): samples of one group stay in one fold, large groups dealt first.

    Raises:
        DataError: too few samples or groups, or not one label for each.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 2:
        raise DataError(f"Cannot make {k!r} folds: expected a whole number above 1. features.folds(5)")
    if labels is not None and groups is not None:
        raise DataError("Cannot make folds: expected stratify= or groups=, got both. Leave one out.")
    rng = np.random.default_rng(seed % 2**64)
    given = groups if groups is not None else labels
    kinds = np.zeros(rows, np.int64) if given is None else _numbered(given, rows)
    units = int(kinds.max()) + 1 if groups is not None else rows
    if units < k:
        raise DataError(
            f"Cannot make {k} folds: expected at least as many {'groups' if groups is not None else 'samples'}"
            f", got {units}. features.folds({max(units, 2)})"
        )
    folds = np.empty(rows, np.int64)
    if groups is not None:
        return _deal_groups(kinds, k, rng)
    order = rng.permutation(rows)
    order = order[np.argsort(kinds[order], kind="stable")]  # label by label, each in a random order, dealt in turn
    folds[order] = np.arange(rows) % k
    return folds


def _deal_groups(kinds: NDArray[np.int64], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    sizes = np.bincount(kinds)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of, filled = np.empty(len(sizes), np.int64), np.zeros(k, np.int64)
    for group in order.tolist():
        fold_of[group] = int(np.argmin(filled))
        filled[fold_of[group]] += sizes[group]
    return fold_of[kinds]


def labels_of(which: Any, targets: Any, rows: int) -> Any:
    """Find the labels that are meant: given, named by key or position among the targets, or (True) the targets."""
    if which is None or which is False:
        return None
    if which is True:
        found = nesting.tensors(targets) if not isinstance(targets, list) else [targets]
        if len(found) == 1:
            return found[0]
    elif isinstance(which, str | int):
        try:
            is_column = isinstance(targets, Tensor) and targets.ndim == 2 and isinstance(which, int)
            return targets[:, which] if is_column else targets[which]
        except (LookupError, TypeError):
            pass
    else:
        return which
    raise DataError(
        f"Cannot find labels {which!r}: expected one column of targets, its key or position, or one label a sample, "
        f"got targets of type {type(targets).__name__}. features.folds(5, stratify=labels)"
    )


def _numbered(labels: Any, rows: int) -> NDArray[np.int64]:
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (rows,):
        raise DataError(
            f"Cannot make folds: expected one label a sample, shape ({rows},), got {array.shape}. Give as many."
        )
    if array.dtype.kind == "f":
        distinct = len(np.unique(array))
        if distinct > max(2, rows // 2):
            raise DataError(
                f"Cannot stratify by numbers: expected labels that repeat, got {distinct} different ones in {rows} "
                "samples. Bin them: features.folds(5, stratify=(values * 10).long())"
            )
    return np.unique(array, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _described(which: Any, numbers: NDArray[Any]) -> str:
    shape = f" of shape {numbers.shape} and {numbers.dtype}" if numbers.dtype != object else ""
    return f"a {type(which).__name__}{shape}"
