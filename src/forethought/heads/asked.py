"""What the scikit-learn estimator is asked for: its options, and labels or targets as values; and what it refuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.errors import FitError
from forethought.heads.reach import are_labels

Array = NDArray[np.float64]
NO_INTERVALS = (
    "Cannot give intervals: expected their width to be set on rows that trained nothing, got none. "
    "reg.conformalize(X_held_out, y_held_out)"
)
_FEW = 20  # distinct targets up to which each is an anchor


def check_options(head: str, monotonic_cst: Any, period: float | None, rows: Any) -> None:
    """Refuse what a head would leave aside without a word.

    Raises:
        FitError: signs or a period for a head that has none, or names of columns that have no names.
    """
    signs = monotonic_cst.values() if isinstance(monotonic_cst, Mapping) else monotonic_cst
    is_asked = signs is not None and any(signs)
    if is_asked != (head == "partial"):
        raise FitError(
            "Cannot fit: expected monotonic_cst, not all 0, with head='partial' and with no other, got "
            f"head={head!r}, monotonic_cst={monotonic_cst!r:.60}. "
            "AnchorRegressor('partial', monotonic_cst={'carat': 1})"
        )
    if (
        isinstance(monotonic_cst, Mapping)
        and not hasattr(rows, "columns")
        and any(isinstance(k, str) for k in monotonic_cst)
    ):
        raise FitError(
            f"Cannot fit: expected a DataFrame, whose columns monotonic_cst names, got a {type(rows).__name__}. "
            "Give positions: monotonic_cst={0: 1}"
        )
    if period is not None and head != "circular":
        raise FitError(f"Cannot fit: expected period= with head='circular' only, got head={head!r}. period=None")


def period_of(period: float | None) -> float:
    """Return the period of a circle, which there must be."""
    if period is None:
        raise FitError(
            "Cannot fit a circle: expected after how much values come round, got None. "
            "AnchorRegressor('circular', anchors, period=360.0)"
        )
    return float(period)


def valued(y: Any, anchors: Mapping[Any, float]) -> Array:
    """Return the values (N,) of class labels (N,)."""
    labels = np.asarray(y).tolist()
    unknown = [label for label in labels if label not in anchors]
    if unknown:
        raise FitError(
            f"Cannot fit: expected labels among {list(anchors)[:8]}, got {unknown[0]!r}. "
            f"Give it a value: anchors={{{unknown[0]!r}: 60.0, ...}}"
        )
    return np.array([float(anchors[label]) for label in labels])


def check_values(y: Array, anchors: Sequence[float], given: Any) -> None:
    """Refuse class labels (N,) for values: they would teach a head that answers from 60 to 67 to answer from 0 to 4.

    Args:
        y: Targets.
        anchors: Of the head.
        given: The anchors as they were given: values by label are no question.
    """
    if given is None or isinstance(given, Mapping) or not np.issubdtype(y.dtype, np.integer):
        return
    if are_labels(torch.from_numpy(np.unique(y).astype(np.int64)), torch.tensor(anchors, dtype=torch.float64)):
        raise FitError(
            f"Cannot fit: expected targets in the unit of the anchors, from {min(anchors):g} to {max(anchors):g}, got "
            f"whole numbers from {y.min()} to {y.max()}, as class labels are. "
            "Give labels values, anchors={0: 60.0, 1: 62.0}, or y.astype(float), if values is what they are"
        )


def anchors_for(given: Any, targets: Array) -> list[float]:
    """Return the anchors: as given, of the labels, the distinct targets where these are few, else their ends."""
    if isinstance(given, Mapping):
        return sorted({float(value) for value in given.values()})
    if given is not None:
        return [float(value) for value in given]
    distinct = np.unique(targets)
    if len(distinct) == 1:
        return [float(distinct[0]) - 0.5, float(distinct[0]) + 0.5]
    return [float(value) for value in (distinct if len(distinct) <= _FEW else distinct[[0, -1]])]
