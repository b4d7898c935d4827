"""Which files train, which choose, which are only scored at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.errors import DataError
from forethought.jobs.listing import Listing

NAMES = ("train", "val", "test")
_MEANT = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"} | {
    "test": "test"
}
Parts = dict[str, NDArray[np.int64]]


def given_parts(cells: Sequence[Any], what: str) -> Parts:
    """Take the parts that a column, or folders, name.

    Raises:
        DataError: a name that is none.
    """
    found = [_MEANT.get(str(cell).strip().lower()) for cell in cells]
    if None in found:
        raise DataError(
            f"Cannot divide the files by {what}: expected train, val or test, got {cells[found.index(None)]!r}."
        )
    return {name: np.array([at for at, one in enumerate(found) if one == name], np.int64) for name in NAMES}


def dealt_parts(
    units: NDArray[np.int64], labels: NDArray[np.int64] | None, shares: Mapping[str, float], seed: int
) -> Parts:
    """Deal files at random, each class by itself; equal ones go together.

    Args:
        units: (N,): equal numbers for files that are the same to the model.
        labels: (N,): classes; None for numbers.
        shares: Of val and test, from 0 to 1.
        seed: Pins who goes where.

    Raises:
        DataError: shares that leave nothing to train on.
    """
    if not all(0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        told = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise DataError(
            f"Cannot divide the files: expected shares from 0 to 1 that leave a rest, got {told}. --val 0.2"
        )
    rng = np.random.default_rng(seed)
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    kinds = np.zeros(len(first), np.int64) if labels is None else labels[first]
    part_of = np.zeros(len(first), np.int64)
    for kind in np.unique(kinds):
        order = rng.permutation(np.flatnonzero(kinds == kind))
        counts = [round(shares[name] * len(order)) for name in NAMES[1:]]
        if len(order) > sum(share > 0 for share in shares.values()):
            counts = [max(count, int(shares[name] > 0)) for count, name in zip(counts, NAMES[1:], strict=True)]
        counts = [0, 0] if sum(counts) >= len(order) else counts  # what is rare trains
        part_of[order[: counts[0]]] = 1
        part_of[order[counts[0] : sum(counts)]] = 2
    return {name: np.flatnonzero(part_of[unit] == at) for at, name in enumerate(NAMES)}


def hold_out(parts: Parts, labels: NDArray[np.int64] | None, shares: Mapping[str, float], seed: int) -> Parts:
    """Where files come in parts without one to choose by, take it from those that train."""
    if len(parts["val"]):
        return parts
    train = parts["train"]
    dealt = dealt_parts(train, None if labels is None else labels[train], {"val": shares["val"], "test": 0.0}, seed)
    return {"train": train[dealt["train"]], "val": train[dealt["val"]], "test": parts["test"]}


def check_parts(parts: Parts, listing: Listing, labels: Mapping[str, tuple[NDArray[np.int64], Sequence[str]]]) -> None:
    """Refuse parts that nothing can be learned or chosen by.

    Raises:
        DataError: no files to train on or to choose by, or a class of which none trains.
    """
    for name in NAMES[:2]:
        if not len(parts[name]):
            raise DataError(
                f"Cannot fit heads on '{listing.source}': expected files in '{name}', got none of "
                f"{len(listing.paths):,}. Add files, or change the shares: --val 0.2 --test 0"
            )
    for target, (numbers, classes) in labels.items():
        absent = set(range(len(classes))) - set(numbers[parts["train"]].tolist())
        if absent:
            raise DataError(
                f"Cannot learn '{target}': expected every class among those that train, got none of "
                f"'{classes[min(absent)]}'. Move some of its files there"
            )
