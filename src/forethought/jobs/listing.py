"""What a folder or a table lists: files and, by name, what is known of each."""

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forethought.errors import DataError, EmptyDatasetError
from forethought.jobs.pictures import SUFFIXES as PICTURES
from forethought.jobs.sounds import SUFFIXES as SOUNDS

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABEL = "label"


@dataclass(frozen=True)
class Listing:
    """Files in an order, and columns beside them.

    Attributes:
        source: The folder or table.
        kind: "pictures" or "sounds".
        paths: Of the files.
        columns: What is known of each, by name: the class of a file in a folder, the other columns of a table.
        lines: Where each stands in a table; empty for a folder.
        splits: "train", "val" or "test" for each file, where folders of these names hold the classes; else None.
        left_alone: Files that are neither pictures nor sounds, or in no class's folder.
    """

    source: str
    kind: str
    paths: Sequence[str]
    columns: dict[str, list[Any]]
    lines: Sequence[int] = ()
    splits: list[str] | None = None
    left_alone: Sequence[str] = ()

    def column(self, name: str) -> list[Any]:
        """Give a column.

        Raises:
            DataError: there is none of this name.
        """
        if name in self.columns:
            return self.columns[name]
        if not self.columns:
            raise DataError(
                f"Cannot find targets in '{self.source}': expected one folder a class, got files in one folder. Sort "
                "them into folders, or list them in a CSV with columns 'path' and 'label'"
            )
        close = difflib.get_close_matches(name, self.columns, n=1)
        raise DataError(
            f"Cannot find the column '{name}' in '{self.source}': expected one of {', '.join(self.columns)}. "
            f"Pass --target {close[0] if close else next(iter(self.columns))}"
        )


def list_folder(folder: Path, kind: str | None = None) -> Listing:
    """List a folder of one folder a class, however deep; or of train, val and test, which hold these; or of files.

    Args:
        folder: It.
        kind: "pictures" or "sounds", where the model says so; by default, what there are most of.

    Raises:
        EmptyDatasetError: there are no pictures and no sounds in it.
    """
    found = sorted(_files(folder))
    kind = kind or _most(found)
    suffixes = PICTURES if kind == "pictures" else SOUNDS
    chosen = [path for path in found if _suffix(path) in suffixes and not _is_hidden(path)]
    if not chosen:
        raise EmptyDatasetError(
            f"Cannot read '{folder}': expected {kind} ({', '.join(sorted(suffixes))}) in it or in folders below, got "
            f"{f'{len(found)} other files' if found else 'no files'}. Check the path"
        )
    parts = {path: Path(path).relative_to(folder).parts for path in chosen}
    tops = {part[0] for part in parts.values() if len(part) > 1}
    splits = None
    if {_SPLITS.get(top.lower()) for top in tops} >= {"train"} and all(top.lower() in _SPLITS for top in tops):
        chosen = [path for path in chosen if len(parts[path]) > 1]
        splits = [_SPLITS[parts[path][0].lower()] for path in chosen]
        parts = {path: parts[path][1:] for path in chosen}
    nested = [path for path in chosen if len(parts[path]) > 1]
    columns: dict[str, list[Any]] = {}
    if nested:
        kept = [len(parts[path]) > 1 for path in chosen]
        splits = None if splits is None else [split for split, keep in zip(splits, kept, strict=True) if keep]
        chosen = nested
        columns[LABEL] = [parts[path][0] for path in chosen]
    ours = set(chosen)
    return Listing(
        str(folder),
        kind,
        chosen,
        columns,
        splits=splits,
        left_alone=sorted((path for path in found if path not in ours), key=_is_hidden),
    )


def _files(folder: Path) -> list[str]:
    paths: list[str] = []
    for here, inner, names in os.walk(folder, followlinks=True):
        above = os.path.realpath(os.path.dirname(here))
        if os.path.islink(here) and f"{above}/".startswith(f"{os.path.realpath(here)}/"):
            inner.clear()  # a link to a folder that holds it would never end
            continue
        paths += [os.path.join(here, name) for name in names]
    return paths


def _most(paths: Sequence[str]) -> str:
    counts = Counter("pictures" if _suffix(path) in PICTURES else "sounds" for path in paths if is_known(path))
    return counts.most_common(1)[0][0] if counts else "pictures"


def is_known(path: str) -> bool:
    """Say whether a file is named as pictures or sounds are."""
    return _suffix(path) in PICTURES | SOUNDS


def kind_of(path: str) -> str | None:
    """Say what a file is by its name."""
    return "pictures" if _suffix(path) in PICTURES else "sounds" if _suffix(path) in SOUNDS else None


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def chosen(listing: Listing, keep: Sequence[int]) -> Listing:
    """Give some of the files."""
    return replace(
        listing,
        paths=[listing.paths[at] for at in keep],
        columns={name: [cells[at] for at in keep] for name, cells in listing.columns.items()},
        lines=[listing.lines[at] for at in keep] if listing.lines else (),
        splits=None if listing.splits is None else [listing.splits[at] for at in keep],
    )


def merged(listings: Mapping[str, Listing]) -> Listing:
    """Put listings of parts together; a single one is given as it is.

    Raises:
        DataError: they are of different kinds, or have different columns.
    """
    first, *others = listings.values()
    if not others:
        return first
    odd = next((each for each in others if each.kind != first.kind or set(each.columns) != set(first.columns)), None)
    if odd is not None:
        raise DataError(
            f"Cannot put '{first.source}' and '{odd.source}' together: expected {first.kind} with "
            f"columns {', '.join(first.columns) or 'none'}, "
            f"got {odd.kind} with {', '.join(odd.columns) or 'none'}. Name them alike"
        )
    each = list(listings.items())
    return Listing(
        " + ".join(listing.source for _, listing in each),
        first.kind,
        [path for _, listing in each for path in listing.paths],
        {name: [cell for _, listing in each for cell in listing.columns[name]] for name in first.columns},
        splits=[part for part, listing in each for _ in listing.paths],
        left_alone=[path for _, listing in each for path in listing.left_alone],
    )
