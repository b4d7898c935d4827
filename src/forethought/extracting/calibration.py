"""Some samples of a data set, run ahead of the rest: they set the scales of int8, and show what a precision costs.

The scales are kept in the store as a note of the trunk: whoever stores rows of it as int8 later uses the same ones.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch

from forethought.extracting.precision import LEAST_SCALE, Rounded, Scaled, Stored, channels_of, gets_smaller, scales_of
from forethought.identifying.identity import Digest
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.shapes.forms import FrontierTensor, Rows, entries_of, joined, some
from forethought.store import Store

_MOST_SAMPLES, _FEWEST_SAMPLES = 256, 16
_MOST_BYTES = 128 * 2**20
_ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Trial:
    """Some samples, spread over a data set (the first ones of an iterable), and their rows.

    Args:
        samples: The data set.
        sample_bytes: What a sample or its row takes, the larger of both: about 128 MB are read at most.
        run: Gives the rows of a batch, on the CPU, for each tensor of the frontier: (B, *shape), or without padding.
    """

    def __init__(self, samples: Samples, sample_bytes: int, run: Callable[[Batch], list[Rows]]) -> None:
        self.batch_size = samples.batch_size
        self._samples = samples
        self._run = run
        self._most = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _MOST_BYTES // max(sample_bytes, 1)))

    @cached_property
    def rows(self) -> list[Rows]:
        """The rows (N, *shape) of each tensor of the frontier; computed when first asked for."""
        parts = [self._run(batch) for batch in self._batches()]
        return [joined(rows) for rows in zip(*parts, strict=True)]

    @property
    def setting(self) -> list[Rows]:
        """The rows that set scales: every second one, or all if there are no others in the data set."""
        return self.rows if self._is_whole else [some(part, slice(None, None, 2)) for part in self.rows]

    @property
    def telling(self) -> list[Rows]:
        """The rows that tell what scales do to rows: those that did not set them, or all."""
        return self.rows if self._is_whole else [some(part, slice(1, None, 2)) for part in self.rows]

    @property
    def count(self) -> int | None:
        """How many samples it has; None for an iterable, which tells only when it is read."""
        return min(self._most, len(self._samples)) if self._samples.is_indexed else None

    @cached_property
    def indices(self) -> list[int]:
        """Where in the data set the samples are."""
        if self.count is None:
            return list(range(len(self.rows[0])))
        last = len(self._samples) - 1
        return [round(at * last / max(self.count - 1, 1)) for at in range(self.count)]

    @property
    def _is_whole(self) -> bool:
        return (len(self.rows[0]) if self.count is None else len(self._samples)) < self._most

    def _batches(self) -> Iterator[Batch]:
        if self._samples.is_indexed:
            for start in range(0, len(self.indices), self.batch_size):
                yield from self._samples.fetch_apart(self.indices[start : start + self.batch_size])
        else:
            yield from self._samples.first(self._most)


def stored_alike(dtype: str | None, frontier: tuple[FrontierTensor, ...]) -> Stored:
    """Say how rows are stored whatever they are: exactly, or rounded to a shorter float."""
    if dtype is None or not any(gets_smaller(tensor, dtype) for tensor in frontier):
        return Stored("exact", frontier, (None,) * len(frontier))
    rounded = _ROUNDED[dtype]
    codings = [Rounded(t.dtype, rounded) if gets_smaller(t, dtype) else None for t in frontier]
    return Stored(dtype, frontier, tuple(codings))


def choose_stored(
    dtype: str | None, fingerprint: str, frontier: tuple[FrontierTensor, ...], store: Store, trial: Trial
) -> Stored:
    """Decide how a trunk's rows are stored: int8 with the scales that the store knows, or else with those of a trial.

    Raises:
        PrecisionError: a sample of the trial cannot be stored so.
    """
    stored = known_stored(dtype, fingerprint, frontier, store, trial.count)
    if stored is not None:
        return stored
    scales = _scales_from(trial, frontier)
    # Another process may have been quicker: its rows are worth sharing.
    stored = known_stored(dtype, fingerprint, frontier, store, trial.count)
    if stored is None:
        stored = _with_scales(scales, frontier, trial.count)
        assert stored is not None
        if not store.readonly:
            store.write_note(_key(fingerprint), scales)
    return stored


def known_stored(
    dtype: str | None, fingerprint: str, frontier: tuple[FrontierTensor, ...], store: Store, count: int | None
) -> Stored | None:
    """Say how a trunk's rows are stored, where that is known without a trial of `count` samples; else None."""
    if dtype == "int8" and any(gets_smaller(tensor, dtype) for tensor in frontier):
        return _with_scales(store.note(_key(fingerprint)), frontier, count)
    return stored_alike(None if dtype == "int8" else dtype, frontier)


def _key(fingerprint: str) -> str:
    return Digest().add("forethought scales", fingerprint).hex()


def _with_scales(note: dict[str, Any] | None, frontier: tuple[FrontierTensor, ...], count: int | None) -> Stored | None:
    """Read the scales that a note gives by the tensors' positions; anything unexpected means that they are unknown.

    So are those of a handful of samples where there are twice as many to set them now: a first try on a few must not
    cost all later rows their precision.
    """
    samples = (note or {}).get("samples")
    if not isinstance(samples, int) or (count is not None and count >= 2 * samples):
        return None
    codings: list[Scaled | None] = []
    for at, tensor in enumerate(frontier):
        if not gets_smaller(tensor, "int8"):
            codings.append(None)
            continue
        numbers = (note or {}).get(str(at))
        if not isinstance(numbers, list) or not all(isinstance(number, float) for number in numbers):
            return None
        scales = torch.tensor(numbers, dtype=torch.float32)
        if len(scales) != channels_of(tensor) or not bool(((scales >= LEAST_SCALE) & scales.isfinite()).all()):
            return None
        codings.append(Scaled(tensor.dtype, scales))
    return Stored("int8", frontier, tuple(codings))


def _scales_from(trial: Trial, frontier: tuple[FrontierTensor, ...]) -> dict[str, Any]:
    """Set scales from a trial; give the note that `_with_scales` reads."""
    codings = [Scaled(t.dtype, torch.ones(channels_of(t))) if gets_smaller(t, "int8") else None for t in frontier]
    Stored("int8", frontier, tuple(codings)).check(trial.rows, trial.indices)
    scales = {
        str(at): scales_of(entries_of(trial.setting[at])).tolist()
        for at, coding in enumerate(codings)
        if coding is not None
    }
    return {"samples": len(trial.rows[0]), **scales}
