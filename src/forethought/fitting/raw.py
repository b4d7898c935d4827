"""`fit` on raw data: a model and a data set, whose features are stored first, computed as they are fed, or both."""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, Protocol, get_args, overload

import torch
from torch import nn

from forethought.errors import FitError
from forethought.extracting.extraction import gather
from forethought.extracting.frozen import FrozenPart
from forethought.extracting.live import Live
from forethought.extracting.precision import Dtype
from forethought.extracting.writethrough import WriteThrough
from forethought.features import Features
from forethought.fitting.results import Results
from forethought.samples.dataset import Samples
from forethought.splitting.replay import At, Split
from forethought.store import Store

P = ParamSpec("P")
Run = Literal["stored", "live", "write-through"]


class Fit(Protocol[P]):
    """`fit`, of features and of raw data."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Results: ...
    @overload
    def __call__(
        self,
        model: nn.Module | Split,
        dataset: Any,
        heads: Any = None,
        *,
        val: Any,
        test: Any = None,
        run: Run | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        inputs: Sequence[str | int] | str | int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int | None = None,
        trunk_batch_size: int | None = None,
        at: At = None,
        dtype: Dtype = None,
        **options: Any,
    ) -> Results: ...


def accepts_raw(fit: Callable[P, Results]) -> Fit[P]:
    """Let `fit` take a model and raw data in the place of training and validation features."""

    @wraps(fit)
    def either(*args: Any, **options: Any) -> Results:
        if "model" in options or (args and isinstance(args[0], nn.Module | Split)):
            return _fit_raw(fit, *args, **options)
        return fit(*args, **options)

    return either


def _fit_raw(
    fit: Callable[..., Results],
    model: nn.Module | Split,
    dataset: Any,
    heads: Any = None,
    *,
    val: Any = None,
    test: Any = None,
    run: Run | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    inputs: Sequence[str | int] | str | int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int | None = None,
    trunk_batch_size: int | None = None,
    at: At = None,
    dtype: Dtype = None,
    **options: Any,
) -> Results:
    if val is None:
        raise FitError(
            "Cannot fit heads: expected samples to rank them on, got none. Hold some out: "
            "ft.fit(model, dataset, heads, val=held_out)"
        )
    how = run or ("live" if store is None else "stored")
    _check(how, store, dtype)
    reading = {"inputs": inputs, "collate_fn": collate_fn, "num_workers": num_workers, "batch_size": trunk_batch_size}
    asked = {"train": dataset, "val": val} | ({} if test is None else {"test": test})
    source = _Source(model, at, dtype, device, reading)
    if how == "live":
        rows: dict[str, Any] = {
            side: data if isinstance(data, Features) else source.live(data) for side, data in asked.items()
        }
    else:
        folder = store if isinstance(store, Store) else Store(store)  # type: ignore[arg-type]
        rows = {
            side: asked[side]
            if isinstance(asked[side], Features)
            else source.stored(asked[side], folder, progress, is_first=how != "stored" and side == "train")
            for side in reversed(asked)  # training rows last: those that they share with others are stored by then
        }
    heads = {"head": rows["train"].head} if heads is None else heads
    told = {"device": source.home if device is None else device, "progress": progress}
    return fit(rows["train"], rows["val"], heads, test=rows.get("test"), **told, **options)


class _Source:
    """A model, and how its data sets are read.

    Args:
        model: A model with something frozen, or a Split.
        at: As of `extract`, and so the others.
        dtype: How rows are stored.
        device: Where to run.
        reading: How samples are read.
    """

    def __init__(
        self, model: nn.Module | Split, at: At, dtype: Dtype, device: str | torch.device | None, reading: Any
    ) -> None:
        self._model, self._at, self._dtype, self._device, self._reading = model, at, dtype, device, reading

    @property
    def home(self) -> torch.device:
        """Where the model is."""
        module = self._model.model if isinstance(self._model, Split) else self._model
        return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def live(self, dataset: Any) -> Live:
        """Give rows that are computed as they are fed. The split of the first data set serves the others, too."""
        rows = Live(*self._begun(dataset))
        self._model = rows.split
        return rows

    def stored(self, dataset: Any, store: Store, progress: bool, *, is_first: bool) -> Features | WriteThrough:
        """Give rows that are stored: now, or as they are first fed."""
        trunk, samples = self._begun(dataset)
        if is_first:
            return WriteThrough(trunk, samples, store, dataset)
        return gather(trunk, [samples], store, dataset, progress=progress)

    def _begun(self, dataset: Any) -> tuple[FrozenPart, Samples]:
        trunk = FrozenPart(self._model, self._at, self._device, self._dtype)
        return trunk, Samples(dataset, trunk.model, **self._reading)


def _check(how: str, store: Any, dtype: Dtype) -> None:
    if how not in get_args(Run):
        raise FitError(f"Cannot fit heads: expected run= to be one of {get_args(Run)}, got {how!r}. run='live'")
    if how != "live" and store is None:
        raise FitError(f"Cannot run {how}: expected a store, got none. ft.fit(..., store='thoughts')")
    if how == "live" and store is not None:
        raise FitError("Cannot run live: expected no store, as nothing is kept, got one. Leave store= out")
    if how == "live" and dtype is not None:
        raise FitError(
            "Cannot run live: expected rows as the model gives them, got dtype=. Leave it out, or keep a store"
        )
