"""What a store holds of some samples, against the model that is said to have computed it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import nn

from forethought.errors import StoreError
from forethought.extracting.frozen import FrozenPart, MistakenNoteError
from forethought.extracting.otherwise import ways_stored
from forethought.extracting.outcome import ExtractionReport
from forethought.extracting.precision import Dtype
from forethought.extracting.verification import Chosen, Verification, compare, elsewhere, spread
from forethought.features import Features
from forethought.samples.dataset import Samples
from forethought.samples.unevenness import UnforeseenSizesError
from forethought.splitting.replay import At, Split
from forethought.store import Store
from forethought.views import View


class _NoneStoredError(StoreError):
    """No row of the samples is stored so."""


def verify_live(
    store: Store,
    model: nn.Module | Split,
    dataset: Any,
    n: int = 64,
    seed: int = 0,
    *,
    at: At = None,
    dtype: Dtype = None,
) -> Verification:
    """Compare stored rows with what a model gives now for some samples of a data set. Nothing is stored.

    Args:
        store: A store; read-only will do.
        model: A model with something frozen, or a Split.
        dataset: Whatever `extract` takes.
        n: How many samples to look for, at most.
        seed: Of the choice.
        at: As it was given to `extract`.
        dtype: As it was given to `extract`.

    Returns:
        What differs. Samples that have no row are counted in `absent_rows`, and not computed.

    Raises:
        StoreError: no row of any of them is stored.
    """
    return _verified(FrozenPart(model, at, None, dtype), store, Samples(dataset, _model(model)), n, seed)


def _verified(trunk: FrozenPart, store: Store, samples: Samples, n: int, seed: int) -> Verification:
    while True:
        try:
            return _verify(trunk, store, samples, n, seed)
        except MistakenNoteError:
            trunk.mistake([samples])
        except UnforeseenSizesError:  # these samples are looked at now
            trunk.restart()


def verify_live_each(
    store: Store,
    model: nn.Module | Split,
    dataset: Any,
    n: int = 64,
    seed: int = 0,
    *,
    at: At = None,
    views: int | None = None,
    views_seed: int = 0,
) -> dict[str, Verification]:
    """Compare as `verify_live` does, in each way in which rows of this frozen part are stored. Nothing is stored.

    Args:
        store: A store; read-only will do.
        model: A model with something frozen, or a Split.
        dataset: Whatever `extract` takes.
        n: How many samples to look for, at most.
        seed: Of the choice.
        at: As it was given to `extract`.
        views: As it was given to `extract`: n samples of each view are looked for.
        views_seed: The `seed` that was given to `extract` with them.

    Returns:
        What differs, by the way: "exact", "float16", "folded + compiled", ...; with views, "exact, view 0", ... Ways in
        which none of these samples has a row are left out.

    Raises:
        StoreError: no row of any of them is stored in any way.
    """
    found: dict[str, Verification] = {}
    draws = [None] if views is None else list(range(views))
    for view in draws:
        for way in ways_stored(store, _fingerprint(store, model, _drawn(model, dataset, view, views_seed), at)):
            trunk = FrozenPart(model, at, None, way.dtype)
            trunk.pace.report = way.speed
            name = way.name if view is None else f"{way.name}, view {view}"
            with suppress(_NoneStoredError):
                found[name] = _verified(trunk, store, _drawn(model, dataset, view, views_seed), n, seed)
    if not found:  # which says so
        _verified(FrozenPart(model, at, None), store, _drawn(model, dataset, draws[0], views_seed), n, seed)
    return found


def _drawn(model: nn.Module | Split, dataset: Any, view: int | None, seed: int) -> Samples:
    samples = Samples(dataset, _model(model))
    return samples if view is None else samples.view(view, seed)


def _fingerprint(store: Store, model: nn.Module | Split, samples: Samples, at: At) -> str:
    """Identify the frozen part as it is run exactly."""
    trunk = FrozenPart(model, at, None)
    while True:
        try:
            trunk.meet(store, [samples])
            return trunk.table(store, samples)[0].fingerprint
        except UnforeseenSizesError:
            trunk.restart()


def _model(model: nn.Module | Split) -> nn.Module:
    return model.model if isinstance(model, Split) else model


def _verify(trunk: FrozenPart, store: Store, samples: Samples, n: int, seed: int) -> Verification:
    trunk.meet(store, [samples])
    table, frontier = trunk.table(store, samples)
    numbers = spread(_count(samples), n, seed)
    keys = _keys(samples, numbers)
    places = table.locate(keys)
    is_stored = places[:, 0] >= 0
    if not is_stored.any():
        raise _NoneStoredError(
            f"Cannot verify rows of {type(trunk.model).__name__}: expected some of {len(numbers)} samples in table "
            f"{table.fingerprint}, got none. See what is there with forethought store ls, or extract first: "
            "ft.extract(model, dataset, store)"
        )
    codings = trunk.stored.codings
    report = ExtractionReport(int(is_stored.sum()), 0, int(is_stored.sum()), 0, 0.0, None, "nothing was computed")
    stored = Features(table, (View(places[is_stored], None),), frontier, report, codings=codings)
    there = [number for number, there in zip(numbers, is_stored, strict=True) if there]
    chosen = Chosen(there, keys[is_stored], stored.rows_at, frontier)
    split = trunk.split_on(samples)()
    remark, absent = elsewhere(table.provenance, split), int((~is_stored).sum())
    return compare(split, samples, chosen, remark, codings, absent, speed=trunk.speed)


def _count(samples: Samples) -> int:
    return len(samples) if samples.is_indexed else sum(batch.rows for batch, _ in samples.read())


def _keys(samples: Samples, numbers: Sequence[int]) -> np.ndarray:
    """Identify samples, read as they are read together."""
    if not samples.is_indexed:
        return np.concatenate([batch.row_keys() for batch, _ in samples.read()])[list(numbers)]
    size = samples.batch_size
    parts = [samples.fetch_apart(numbers[start : start + size]) for start in range(0, len(numbers), size)]
    return np.concatenate([each.row_keys() for part in parts for each in part])
