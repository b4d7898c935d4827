"""Read samples, in this process or in workers: drawn from a seed where wanted, with the files that were opened."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import blake3
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Subset

from forethought import nesting
from forethought.errors import DataError, UnequalShapesError
from forethought.probing.chance import RandomStatesKept
from forethought.samples.measuring import Measure, Measured
from forethought.samples.watching import Seen, Watch

Collate = Callable[[list[Any]], Any]
_END = object()


class Reader:
    """A map-style data set that tells what its reading opened, and draws what is random from a seed.

    Each item is (sample, Seen). It goes to the workers of a DataLoader in the place of the data set.

    Args:
        dataset: What to read.
        draw: (seed, view): the draw of each sample depends on these and its place only. None leaves chance to itself.
        watches: Whether to look at what is opened.
        places: As of `places_in`.
    """

    def __init__(
        self,
        dataset: Any,
        draw: tuple[int, int] | None,
        watches: bool,
        places: NDArray[np.int64] | None = None,
    ) -> None:
        self._dataset = dataset
        self._places = places
        self._draw = draw
        self._watches = watches
        if draw is None and hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._many

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        """Give the data set's own: a worker_init_fn of the user's finds it where it looks for it."""
        if name.startswith("__") or "_dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, index: int) -> tuple[Any, Seen]:
        if self._draw is None:
            return self._read(index)
        with RandomStatesKept():
            _seed(*self._draw, *((index,) if self._places is None else self._places[index].tolist()))
            return self._read(index)

    def _read(self, index: int) -> tuple[Any, Seen]:
        if not self._watches:
            return self._dataset[index], Seen()
        with Watch() as seen:
            sample = self._dataset[index]
        return sample, seen

    def _many(self, indices: list[int]) -> list[tuple[Any, Seen]]:
        """Read several at once, where the data set can; then no file belongs to one of them alone."""
        if not self._watches:
            return [(sample, Seen()) for sample in self._dataset.__getitems__(indices)]
        with Watch() as seen:
            samples = self._dataset.__getitems__(indices)
        return [(sample, seen) for sample in samples]


def places_in(dataset: Any) -> NDArray[np.int64] | None:
    """Give the place of each sample in the data set that a `Subset` takes it from, so that its draws stay its own.

    Returns:
        (N, 2): the place, and how often it was taken before, as who takes a sample twice wants two draws; None where
        the data set is no `Subset`.
    """
    if type(dataset) is not Subset:
        return None
    places = np.arange(len(dataset))
    while type(dataset) is Subset:
        places = np.fromiter(map(int, dataset.indices), np.int64, len(dataset.indices))[places]
        dataset = dataset.dataset
        places = places % len(dataset) if hasattr(dataset, "__len__") and len(dataset) else places
    order = np.argsort(places, kind="stable")
    firsts = np.flatnonzero(np.diff(places[order], prepend=np.iinfo(np.int64).min))
    before = np.empty(len(places), np.int64)
    before[order] = np.arange(len(places)) - np.repeat(firsts, np.diff(firsts, append=len(places)))
    return np.stack([places, before], 1)


def _seed(seed: int, view: int, place: int, before: int = 0) -> None:
    """Set the random states of this process by content, so that a draw is the same anywhere."""
    text = f"{seed}/{view}/{place}/{before}" if before else f"{seed}/{view}/{place}"
    drawn = blake3.blake3(text.encode()).digest(length=8)
    number = int.from_bytes(drawn, "little") >> 1
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


class IndexLists:
    """Indices of batches as lists, each made when it is asked for: a DataLoader asks a few batches ahead."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[list[int]]:
        return (part.tolist() for part in self._parts)


def load(
    source: Any,
    collate: Collate,
    batches: Iterable[Sequence[int]] | int,
    workers: int,
    lent: dict[str, Any],
    measure: Measure | None = None,
) -> Iterator[tuple[Any, list[Seen], Measured | None]]:
    """Read batches with torch's DataLoader.

    Args:
        source: A Reader or another data set.
        collate: Joins samples into a batch.
        batches: The indices of each batch, or the size of a batch of an iterable.
        workers: Processes that read.
        lent: Further options of a DataLoader of the user's.
        measure: What tells how large each sample is, where they differ.

    Returns:
        (collated batch, what was opened for each sample, the samples' sizes); what was opened is empty where no Reader
        tells.
    """
    is_told = isinstance(source, Reader)
    how: dict[str, Any] = {"batch_size": batches} if isinstance(batches, int) else {"batch_sampler": batches}
    loader: DataLoader[Any] = DataLoader(
        source,
        num_workers=workers,
        collate_fn=_Joined(collate, is_told, measure),
        generator=torch.Generator(),  # the user's own is left as it is
        **how,
        **lent,
    )
    items: Iterator[Any] = iter(loader)
    while True:
        with RandomStatesKept() if not workers else nullcontext():
            item: Any = next(items, _END)
        if item is _END:
            return
        yield item


class _Joined:
    """Joins samples, or what a Reader gives, and measures them."""

    def __init__(self, collate: Collate, is_told: bool, measure: Measure | None) -> None:
        self._collate = Collated(collate)
        self._is_told = is_told
        self._measure = measure

    def __call__(self, items: list[Any]) -> tuple[Any, list[Seen], Measured | None]:
        samples = [sample for sample, _ in items] if self._is_told else items
        joined = self._collate(samples)
        measured = None if self._measure is None else self._measure(samples, joined)
        return joined, [seen for _, seen in items] if self._is_told else [], measured


class Collated:
    """Joins samples, and says what to do when their shapes differ."""

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return self._collate(samples)
        except TypeError as err:
            raise DataError(
                f"Cannot join samples into a batch: {str(err).splitlines()[0]}. Give the data set a "
                "transform that makes tensors (torchvision: transform=ToTensor()), or pass collate_fn=."
            ) from err
        except RuntimeError as err:
            if lists := _uneven_lists(samples):
                raise DataError(
                    f"Cannot join samples into a batch: expected lists of one length, got {lists}. Pad them: "
                    "ft.extract(..., collate_fn=transformers.DataCollatorWithPadding(tokenizer)), or a function of "
                    "yours that gives tensors and a mask"
                ) from err
            shapes = {tuple(tensor.shape) for sample in samples for tensor in nesting.tensors(sample)[:1]}
            if len(shapes) < 2:
                raise
            raise UnequalShapesError(
                f"Cannot join samples into a batch: expected one shape, got {sorted(shapes)[:4]}. Pad "
                "them: ft.extract(..., collate_fn=...), or give them one at a time: ft.extract(..., batch_size=1), or "
                "resize or crop them in the data set's transform."
            ) from err


def _uneven_lists(samples: list[Any]) -> str:
    """Name the lists of numbers among samples that differ in length; empty if there are none."""
    first = samples[0]
    keys = list(first) if isinstance(first, Mapping) else range(len(first)) if isinstance(first, tuple) else [None]
    for key in keys:
        found = [sample if key is None else sample[key] for sample in samples]
        if all(isinstance(each, list) for each in found) and len(sizes := {len(each) for each in found}) > 1:
            return f"{'' if key is None else f'{key!r} '}of {min(sizes)} to {max(sizes)}"
    return ""


class Stream(IterableDataset[Any]):
    """Any iterable, as torch's DataLoader wants it."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        return iter(self._source)
