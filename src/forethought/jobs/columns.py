"""A column of a table as targets: classes or numbers, decided by what it holds, and said."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.jobs.listing import Listing
from forethought.jobs.sheets import is_missing

_FEW = 20  # whole numbers up to so many different ones are taken to be classes


@dataclass(frozen=True)
class Target:
    """What heads are to tell.

    Attributes:
        name: Of the column.
        values: (N,): numbers of classes, int64, or float32.
        classes: Their names in order; None for numbers.
        why: How this was decided, in words.
    """

    name: str
    values: Tensor
    classes: tuple[str, ...] | None
    why: str

    @property
    def described(self) -> str:
        """Say what it is, in a line."""
        if self.classes is None:
            low, high = float(self.values.min()), float(self.values.max())
            return f"target '{self.name}': numbers from {low:g} to {high:g} ({self.why})"
        counts = torch.bincount(self.values, minlength=len(self.classes)).tolist()
        named = ", ".join(f"{name} {count:,}" for name, count in list(zip(self.classes, counts, strict=True))[:8])
        more = " ..." if len(self.classes) > 8 else ""
        return f"target '{self.name}': {len(self.classes)} classes ({self.why}): {named}{more}"


def missing_in(listing: Listing, name: str) -> list[int]:
    """Say which files have no target."""
    return [at for at, cell in enumerate(listing.column(name)) if is_missing(cell)]


def read_target(listing: Listing, name: str, task: str | None) -> Target:
    """Read a column as targets.

    Args:
        listing: The files that are used.
        name: Of the column.
        task: "classes" or "numbers"; None: text, truth values and up to 20 whole numbers are classes, other numbers are
            numbers, and more than 20 different whole numbers are for the user to decide.

    Raises:
        DataError: cells are missing or mixed, or nobody can tell what they are.
    """
    cells = listing.column(name)
    absent = missing_in(listing, name)
    if absent:
        raise DataError(
            f"Cannot use '{name}' as a target: expected a value for each of {len(cells):,} files, got none for "
            f"{len(absent):,}, first {_place(listing, absent[0])}. Fill it in, or leave such files out: --skip-bad"
        )
    numbers = None if task == "classes" and _are_texts(cells) else _numbers(cells)
    if numbers is None and task == "numbers":
        at = next(at for at, cell in enumerate(cells) if _number(cell) is None)
        raise DataError(
            f"Cannot use '{name}' as numbers: expected a number for each file, got {cells[at]!r} "
            f"{_place(listing, at)}. Mend it, or leave --task out"
        )
    if numbers is None and task is None:
        _check_not_mixed(listing, name, cells)
    is_whole = numbers is not None and all(number.is_integer() for number in numbers)
    if numbers is not None and (task == "numbers" or not (is_whole or task)):
        odd = [at for at, number in enumerate(numbers) if not math.isfinite(number)]
        if odd:
            raise DataError(
                f"Cannot use '{name}' as a target: expected finite numbers, got {cells[odd[0]]} "
                f"{_place(listing, odd[0])}. Mend it"
            )
        why = "as --task says" if task else "they have fractions"
        return Target(name, torch.tensor(numbers, dtype=torch.float32), None, why)
    distinct = len(set(map(str, cells)))
    if task is None and numbers is not None and distinct > _FEW and not isinstance(cells[0], bool):
        raise DataError(
            f"Cannot tell what '{name}' is: expected text, numbers with fractions, or up to {_FEW} different whole "
            f"numbers, got {distinct}. Say whether they are classes or amounts: --task classes, or --task numbers"
        )
    return _as_classes(name, cells, numbers, "as --task says" if task else "whole numbers" if is_whole else "text")


def _check_not_mixed(listing: Listing, name: str, cells: Sequence[Any]) -> None:
    """Refuse a column of numbers with a few words in it: were it taken as text, each number would be a class."""
    words = [at for at, cell in enumerate(cells) if _number(cell) is None]
    if len(words) < len(cells) / 2:
        raise DataError(
            f"Cannot tell what '{name}' is: expected numbers or text, got {len(cells) - len(words):,} numbers and "
            f"{cells[words[0]]!r} {_place(listing, words[0])}. Mend it, or say that all are classes: --task classes"
        )


def _as_classes(name: str, cells: Sequence[Any], numbers: list[float] | None, why: str) -> Target:
    by_name = dict(zip(map(str, cells), numbers or [0.0] * len(cells), strict=True))
    classes = sorted(by_name, key=lambda one: (by_name[one], one))
    if len(classes) < 2:
        raise DataError(
            f"Cannot learn '{name}': expected at least two classes, got '{classes[0]}' only. Add files of another class"
        )
    if numbers is not None and len(set(numbers)) < len(classes):
        raise DataError(
            f"Cannot learn '{name}': expected each number to be written in one way, got {len(classes)} ways to write "
            f"{len(set(numbers))} numbers, {', '.join(classes[:4])} among them. Write them alike"
        )
    most = Counter(map(str, cells)).most_common(1)[0][1]
    if most == 1:
        raise DataError(
            f"Cannot learn '{name}': expected classes that repeat, got {len(classes):,} different values in "
            f"{len(cells):,} files. Choose another column: --target COLUMN"
        )
    number_of = {one: at for at, one in enumerate(classes)}
    return Target(name, torch.tensor([number_of[str(cell)] for cell in cells]), tuple(classes), why)


def _are_texts(cells: Sequence[Any]) -> bool:
    return any(_number(cell) is None for cell in cells)


def _numbers(cells: Sequence[Any]) -> list[float] | None:
    found = [_number(cell) for cell in cells]
    return None if None in found else [number for number in found if number is not None]


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _place(listing: Listing, at: int) -> str:
    return f"in line {listing.lines[at]}" if listing.lines else f"for '{listing.paths[at]}'"
