"""`forethought extract`: the files of a folder or a table through the frozen part of a model by name."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import forethought as ft
from forethought.errors import DataError
from forethought.jobs.asked import Asked
from forethought.jobs.listing import Listing
from forethought.jobs.models import Ready
from forethought.jobs.preparing import count_of, prepare, some_of

_MANY = 256  # files from which on several processes read them


@dataclass(frozen=True)
class Extracted:
    """What came of it.

    Attributes:
        features: Of the files that can be read, in their order; their targets say nothing.
        numbers: Which files of the listing these are.
        listing: All files.
        ready: The model.
        bad: (path, reason) of each file that cannot be read.
        facts: What was done, as plain values: what `--json` prints.
    """

    features: ft.Features
    numbers: NDArray[np.int64]
    listing: Listing
    ready: Ready
    bad: tuple[tuple[str, str], ...]
    facts: dict[str, Any]


def extract_files(
    asked: Asked, say: Callable[[str], None], check: Callable[[Listing], None] = lambda _: None
) -> Extracted:
    """List the files, make the model, and store the features of all files.

    Args:
        asked: For what.
        say: Is given lines for people, as they become known.
        check: Is given the listing before anything is computed, to refuse it.

    Raises:
        ForethoughtError: something cannot be used as it is; the message says what, and what to do.
    """
    prepared = prepare(asked, say, check)
    ready, samples, listing, absent = prepared.ready, prepared.samples, prepared.listing, prepared.absent
    features = _extracted(
        ready.model, samples, asked.store, at=asked.at, dtype=asked.dtype, batch_size=asked.batch_size,
        num_workers=_workers(asked.workers, len(samples)), device=asked.device, progress=asked.progress,
    )  # fmt: skip
    is_read = np.asarray(features.targets)
    bad = [(listing.paths[at], samples.fault(at)) for at in np.flatnonzero(~is_read).tolist()]
    if bad and not asked.skip_bad:
        raise DataError(
            f"Cannot read {count_of(len(bad), 'file')} of {len(listing.paths):,}: expected {listing.kind}, got "
            f"{some_of(bad)}. All other rows are stored. Mend or remove the files, or leave them out: --skip-bad"
        )
    numbers = np.flatnonzero(is_read)
    if not len(numbers):
        raise DataError(
            f"Cannot use '{asked.data}': expected {listing.kind} that can be read, got none. {some_of(bad)}"
        )
    features = features if len(numbers) == len(is_read) else features.select(numbers)
    facts = _facts(asked, ready, listing, features, [*absent, *bad], (prepared.reading, prepared.cut))
    return Extracted(features, numbers, listing, ready, (*absent, *bad), facts)


def _extracted(*given: Any, **options: Any) -> ft.Features:
    """Extract; what a process that reads files says of one is said as if it had been read here."""
    try:
        return ft.extract(*given, **options)
    except DataError as err:
        lines = str(err).strip().splitlines()
        if len(lines) > 1 and lines[0].startswith("Caught DataError"):
            raise DataError(lines[-1].partition(": ")[2]) from err
        raise


def _workers(asked: int | None, files: int) -> int:
    if asked is not None or files < _MANY:
        return asked or 0
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _facts(
    asked: Asked, ready: Ready, listing: Listing, features: ft.Features, bad: Sequence[tuple[str, str]], how: Any
) -> dict[str, Any]:
    report, rows = features.report, features[0][0]
    rows = rows if isinstance(rows, tuple) else (rows,)
    return {
        "data": listing.source,
        "kind": listing.kind,
        "files": len(listing.paths),
        "left_alone": len(listing.left_alone),
        "bad": [{"path": path, "reason": reason} for path, reason in bad],
        "columns": list(listing.columns),
        "model": ready.name,
        "weights": ready.weights,
        "prepared": how[0],
        "frozen": how[1],
        "at": asked.at,
        "features": [
            {"name": tensor.name, "shape": list(row.shape), "dtype": str(row.dtype).removeprefix("torch.")}
            for tensor, row in zip(features.frontier, rows, strict=True)
        ],
        "store": asked.store,
        "rows": len(features),
        "rows_computed": report.rows_computed,
        "rows_reused": report.rows_reused,
        "size_bytes": report.size_bytes,
        "time_s": report.time_s,
        "energy_j": report.energy_j,
    }
