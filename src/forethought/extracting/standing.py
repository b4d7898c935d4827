"""A model as it stands: what identifies it without running it, and which tables of a store are its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from forethought import nesting
from forethought.errors import (
    EmptyDatasetError,
    ForethoughtError,
    IdentityError,
    ImpureTrunkError,
    InputError,
    PaddingError,
    ReplayDriftError,
    ShapeError,
)
from forethought.extracting.kinship import Kin, Lent
from forethought.extracting.precision import Stored
from forethought.identifying.fingerprint import key_in, state_of
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.samples.unevenness import UnforeseenSizesError
from forethought.store import Column, Store, Table


class Standing:
    """A model as it stands.

    Args:
        model: The model.
        cut: Where it is cut, as was asked for.
        device: Where it is to run.
    """

    def __init__(self, model: nn.Module, cut: tuple[Any, ...], device: torch.device) -> None:
        self._model, self._cut, self._device = model, cut, device
        self._state: str | None = None
        self._kin: Kin | None = None
        self._is_guided = True

    def forget(self) -> None:
        """Look at the model anew when it is asked of again."""
        self._state = None

    def meet(self, store: Store, drawn: Sequence[Samples], dtype: str | None, *, is_shared: bool) -> None:
        """Have samples taken to differ in size as those do among which their rows are.

        Args:
            store: Where rows are.
            drawn: The samples, of which nothing may have been read.
            dtype: How rows are stored.
            is_shared: Whether rows may lie in other tables than the one that such samples have.
        """
        self.forget()
        about = (type(self._model).__module__, type(self._model).__qualname__, self._cut, self._device.type)
        self._kin = Kin(store, about, self._key_in, dtype) if is_shared else None
        for samples in drawn:
            samples.heed(self._kin if self._is_guided else None)

    def leave_precedent(self, drawn: Sequence[Samples]) -> bool:
        """Have samples taken for what they seem from now on; say whether they were taken for something else."""
        self._is_guided = False
        left = [samples.leave_precedent() for samples in drawn]  # each of them
        return any(left)

    @contextmanager
    def precedent_left(self, samples: Samples) -> Iterator[None]:
        """Where samples cannot be run as others are that differ in size, take them for what they seem."""
        try:
            yield
        except ForethoughtError as err:
            if not self.leave_precedent([samples]):
                raise
            raise UnforeseenSizesError from err

    def key(self, example: Batch) -> str | None:
        """Identify the model on such inputs; None if something in it does not show its content."""
        pairs = zip(example.leaves, example.tensors, strict=True)
        forms = [(leaf.without_sizes(tensor.shape[1:]), str(tensor.dtype)) for leaf, tensor in pairs]
        return self._key_in(forms, nesting.outline((example.args, example.kwargs)))

    def _key_in(self, forms: Any, outline: Any) -> str | None:
        if self._state is None:
            try:
                self._state = state_of(self._model, self._device.type)
            except IdentityError:
                self._state = ""
        return key_in(self._state, self._cut, (forms, outline)) if self._state else None

    def opened(self, fingerprint: str, columns: Sequence[Column]) -> Table | None:
        """Give a table if it was opened to see whether samples are there: its index is in memory."""
        table = None if self._kin is None else self._kin.table(fingerprint)
        return table if table is not None and table.columns == tuple(columns) else None

    def note(self, example: Batch, samples: Samples, table: str) -> None:
        """Note in the store that a table may have rows of samples of this form.

        Raises:
            StoreError: the note cannot be written.
        """
        if self._kin is not None:
            self._kin.note(example, samples.precedent, table)

    def lent(self, keys: np.ndarray, batch: Batch, rows: np.ndarray, stored: Stored, table: str) -> Iterator[Lent]:
        """Find rows of a batch, whose keys are all given, that a table lacks in the model's other tables."""
        if self._kin is not None and self._kin.knows_others(batch):
            part = batch if len(rows) == batch.rows else batch.select(torch.from_numpy(rows))
            yield from self._kin.lend(keys[rows], part, stored, table)

    def held(self, keys: np.ndarray, batch: Batch, table: str) -> np.ndarray:
        """Say of which samples, of the form of a batch, the model's other tables have rows."""
        return np.zeros(len(keys), bool) if self._kin is None else self._kin.holds(keys, batch, table)


@contextmanager
def padding_tried(samples: Samples, note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Where rows depend on padding that all batches have alike, have it taken for part of the samples."""
    try:
        yield
    except (ImpureTrunkError, PaddingError, ReplayDriftError, ShapeError) as err:
        if samples.is_guided or not samples.take_as_joined():
            raise
        note()
        raise UnforeseenSizesError from err


@contextmanager
def emptiness_told(model: nn.Module, example: Batch) -> Iterator[None]:
    """Say so where a model cannot be run because all samples that were looked at are empty."""
    try:
        yield
    except Exception as err:  # whatever a model says of nothing
        is_ours = isinstance(err, ForethoughtError) and not isinstance(err, InputError)
        if is_ours or any(tensor.numel() for tensor in example.tensors):
            raise
        said = err.__cause__ or err
        raise EmptyDatasetError(
            f"Cannot run {type(model).__name__} on this data set: expected samples that hold something, got empty ones "
            f"of shapes {[tuple(tensor.shape[1:]) for tensor in example.tensors]}, of which it says: {said}. Leave "
            "them out, or add samples that are not empty."
        ) from err
