"""Any data set as batches of (what the model is given, targets).

A tuple's first element is the model's input and the rest are targets; of a dictionary, the keys that the model's
`forward` names are inputs and the rest are targets, and so are `labels`; `inputs=` overrides.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from forethought import nesting
from forethought.account import parts_of
from forethought.errors import DataError, EmptyDatasetError, RandomDatasetError
from forethought.identity import Digest, row_keys
from forethought.reading import Collated, RandomStatesKept, Reader, Stream, load
from forethought.watching import Seen

_TARGET_NAMES = ("labels", "label")  # forwards name them to compute a loss; they are no input of a frozen part
_PROBED = 32  # samples read twice: a transform that acts on one sample in ten escapes once in 600 data sets


@dataclass(frozen=True)
class Batch:
    """One batch: the model's arguments, and whatever else the data set holds for these samples."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the model is given."""
        return nesting.tensors((self.args, self.kwargs))

    @property
    def rows(self) -> int:
        """How many samples it holds."""
        return len(self.tensors[0])

    def row_keys(self) -> np.ndarray:
        """Identify each sample by what the model is given: (B, 16) bytes."""
        rest = Digest().add(nesting.outline((self.args, self.kwargs)))
        return row_keys(self.tensors, rest.hex().encode())

    def select(self, rows: Tensor) -> "Batch":
        """Take some of the samples; targets are left out."""
        args, kwargs = nesting.replace((self.args, self.kwargs), lambda tensor: tensor[rows])
        return Batch(args, kwargs, None)

    def copied_to(self, device: torch.device) -> "Batch":
        """Copy what the model is given to a device: a forward may write into it, and it is the user's."""
        args, kwargs = nesting.replace((self.args, self.kwargs), lambda t: t.to(device, non_blocking=True, copy=True))
        return Batch(args, kwargs, None)

    def to(self, device: torch.device) -> "Batch":
        """Move what the model is given to a device."""
        args, kwargs = nesting.replace((self.args, self.kwargs), lambda t: t.to(device, non_blocking=True))
        return Batch(args, kwargs, self.targets)


class Samples:
    """A data set, seen as batches in its own order.

    Args:
        dataset: A map-style or iterable data set, a DataLoader (lends its data set, collate function and workers, not
            its sampler), a tensor or array (N, ...), or a tuple or dictionary of these.
        model: Whose `forward` names the keys that are inputs.
        inputs: Positions or keys of the elements that the model is given.
        collate_fn: Joins samples into a batch; torch's default otherwise.
        batch_size: Samples a batch.
        num_workers: Processes that read.

    Raises:
        EmptyDatasetError: no samples.
        DataError: no element that the model can be given.
    """

    def __init__(
        self,
        dataset: Any,
        model: nn.Module,
        *,
        inputs: Sequence[str | int] | str | int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        self._lent: dict[str, Any] = {}
        if isinstance(dataset, DataLoader):
            if dataset.batch_sampler is None:
                raise DataError(
                    "Cannot read this DataLoader: expected one that makes batches, got batch_size=None, whose items "
                    "are batches already. Pass its data set, or an iterable of single samples."
                )
            collate_fn = collate_fn or dataset.collate_fn
            batch_size = batch_size or dataset.batch_size
            num_workers = dataset.num_workers if num_workers is None else num_workers
            self._lent = {
                "worker_init_fn": dataset.worker_init_fn,
                "multiprocessing_context": dataset.multiprocessing_context if num_workers else None,
            }
            dataset = dataset.dataset
        if batch_size is not None and batch_size < 1:
            raise DataError(f"Cannot read batches of {batch_size}: expected at least 1. ft.extract(..., batch_size=64)")
        if isinstance(dataset, Iterator):
            raise DataError(
                f"Cannot extract from a {type(dataset).__name__}: expected an iterable that can be read again, got an "
                "iterator, which can be read once. Pass the data set itself, or list(...)."
            )
        self._columns = _columns(dataset) if collate_fn in (None, default_collate) else None
        if self._columns is None and type(dataset) is tuple and dataset and all(isinstance(t, Tensor) for t in dataset):
            dataset = TensorDataset(*dataset)
        self._dataset = dataset
        self._inputs = (inputs,) if isinstance(inputs, str | int) else inputs
        self._collate = collate_fn or default_collate
        self._batch_size = batch_size or 64
        self._workers = num_workers or 0
        self._parameters = _parameters(model)
        self._draw: tuple[int, int] | None = None
        self._probed = Seen()
        self.is_indexed = self._columns is not None or (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))
        if not self.is_indexed and not isinstance(dataset, Iterable):
            raise DataError(
                f"Cannot read a {type(dataset).__name__}: expected a data set, a DataLoader, tensors or an iterable."
            )
        if self.is_indexed and len(self) == 0:
            raise EmptyDatasetError(
                "Cannot extract features: expected a data set with samples, got an empty one. Check its path or filter."
            )

    @property
    def batch_size(self) -> int:
        """Samples a batch; the last may hold fewer."""
        return self._batch_size

    def __len__(self) -> int:
        if self._columns is not None:
            return len(nesting.tensors(self._columns)[0])
        return len(self._dataset)

    @property
    def name(self) -> str:
        """What kind of data set it is, to people."""
        return type(self._dataset).__name__

    def view(self, view: int, seed: int) -> "Samples":
        """Give the same data set with each sample drawn from (seed, view, index)."""
        if not self.is_indexed:
            raise DataError(
                f"Cannot draw views of a {self.name}: expected a data set with samples by index, got "
                "an iterable. Give it __getitem__ and __len__, or leave views out."
            )
        drawn = copy.copy(self)
        drawn._draw = (seed, view)
        return drawn  # what is opened is told by all together: a file may be read for one view and kept for the next

    def account(self) -> dict[str, str] | None:
        """Identify the data set, part by part, without reading a sample; None where it does not show its content."""
        if not self.is_indexed or self._columns is not None or self._lent.get("worker_init_fn") is not None:
            return None
        size = None if self._collate is default_collate else self._batch_size
        return parts_of(self._dataset, self._collate, (self._inputs, self._parameters, size, self._draw, len(self)))

    def fetch(self, indices: Sequence[int]) -> Batch:
        """Read these samples here and now, and leave every random state as it was."""
        with RandomStatesKept():
            return self._fetched(indices)

    def _fetched(self, indices: Sequence[int]) -> Batch:
        if self._columns is not None:
            return self._batch(self._rows(torch.as_tensor(indices)))
        reader = Reader(self._dataset, self._draw, watches=True)
        samples = []
        for index in indices:
            sample, seen = reader[int(index)]
            samples.append(sample)
            self._probed.add(seen)
        return self._batch(Collated(self._collate)(samples))

    @property
    def probed(self) -> Seen:
        """What was opened by `fetch`, `some` and `check_repeats`, in this process."""
        return self._probed

    def some(self, count: int) -> Batch:
        """Read a few samples, spread over the data set; of an iterable, the first."""
        if self.is_indexed:
            return self.fetch(spread(len(self), count))
        samples = []
        for sample in self._dataset:
            samples.append(sample)
            if len(samples) == count:
                break
        if not samples:
            raise EmptyDatasetError(
                "Cannot extract features: expected an iterable that gives samples, got none. "
                "An iterator can be read once only: pass the iterable itself."
            )
        return self._batch(Collated(self._collate)(samples))

    def read(self, indices: np.ndarray | None = None) -> Iterator[tuple[Batch, list[Seen]]]:
        """Read all in order, or the samples at these indices; give batches and what was opened for each sample."""
        if self._columns is not None:
            whole = np.arange(len(self)) if indices is None else indices
            for start in range(0, len(whole), self._batch_size):
                part = whole[start : start + self._batch_size]
                together = part[-1] - part[0] == len(part) - 1
                chosen = slice(int(part[0]), int(part[-1]) + 1) if together else torch.from_numpy(part)
                yield self._batch(self._rows(chosen)), []
        elif self.is_indexed:
            whole = np.arange(len(self)) if indices is None else indices
            batches = [whole[at : at + self._batch_size].tolist() for at in range(0, len(whole), self._batch_size)]
            is_plain = self._draw is None and self._lent.get("worker_init_fn") is not None
            source = self._dataset if is_plain else Reader(self._dataset, self._draw, watches=True)
            yield from self._loaded(source, batches, self._workers, self._lent)
        elif isinstance(self._dataset, IterableDataset):
            yield from self._loaded(self._dataset, self._batch_size, self._workers, self._lent)
        else:  # each worker would read all of a plain iterable
            yield from self._loaded(Stream(self._dataset), self._batch_size, 0, {})

    def _loaded(
        self, source: Any, batches: Any, workers: int, lent: dict[str, Any]
    ) -> Iterator[tuple[Batch, list[Seen]]]:
        for collated, seen in load(source, self._collate, batches, workers, lent):
            yield self._batch(collated), seen

    def check_repeats(self) -> dict[int, bytes]:
        """Read some samples twice and compare.

        Returns:
            The keys of the samples read, by index.

        Raises:
            RandomDatasetError: the same index gave different inputs.
        """
        if not self.is_indexed or self._columns is not None:
            return {}
        indices = spread(len(self), _PROBED)
        with RandomStatesKept():  # around both: the second reading must draw other numbers than the first
            first, second = self._keys_at(indices), self._keys_at(indices)
        for index in indices:
            if first[index] != second[index]:
                raise RandomDatasetError(_changed(index, "got two different inputs", self._draw is not None))
        return first

    def check_probed(self, keys: np.ndarray, indices: Sequence[int] | np.ndarray, probed: dict[int, bytes]) -> None:
        """Compare what is read with what was read before.

        Raises:
            RandomDatasetError: a sample is another than a moment ago.
        """
        for index, key in zip(indices, keys, strict=True) if probed else ():
            if probed.get(int(index), key.tobytes()) != key.tobytes():
                raise RandomDatasetError(
                    _changed(int(index), "got another input than a moment ago", self._draw is not None)
                )

    def _keys_at(self, indices: Sequence[int]) -> dict[int, bytes]:
        return {index: self._fetched([index]).row_keys()[0].tobytes() for index in indices}

    def _rows(self, indices: Tensor | slice) -> Any:
        return nesting.replace(self._columns, lambda tensor: tensor[indices])

    def _batch(self, collated: Any) -> Batch:
        args, kwargs, targets = self._parted(collated)
        batch = Batch(args, kwargs, targets)
        if not batch.tensors:
            raise DataError(
                f"Cannot give the model a {type(collated).__name__}: expected tensors among its inputs, got none. "
                "Convert samples to tensors (a transform), or pass collate_fn=."
            )
        sizes = {len(tensor) if tensor.ndim else 0 for tensor in batch.tensors}
        if len(sizes) != 1 or 0 in sizes:
            raise DataError(
                f"Cannot tell samples apart: expected every input to have the batch as its first axis, got sizes "
                f"{sorted(sizes)}. Pass collate_fn= that stacks samples along the first axis."
            )
        return batch

    def _parted(self, collated: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Part a batch into positional inputs, keyword inputs and targets."""
        if isinstance(collated, Mapping):
            return self._parted_mapping(collated)
        if not isinstance(collated, tuple | list):
            return (collated,), {}, None
        chosen = self._inputs if self._inputs is not None else (0,)
        if any(not isinstance(at, int) or not 0 <= at < len(collated) for at in chosen):
            raise DataError(
                f"Cannot choose inputs {tuple(chosen)}: expected positions from 0 to {len(collated) - 1}, since "
                f"samples are tuples of {len(collated)}. ft.extract(..., inputs=0)"
            )
        given = [collated[int(at)] for at in chosen]
        rest = tuple(item for at, item in enumerate(collated) if at not in chosen)
        targets = None if not rest else rest[0] if len(rest) == 1 else rest
        if len(given) == 1 and isinstance(given[0], Mapping):
            return (), dict(given[0]), targets
        if len(given) == 1 and isinstance(given[0], tuple | list):
            return tuple(given[0]), {}, targets
        return tuple(given), {}, targets

    def _parted_mapping(self, collated: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        named = [key for key in collated if key in self._parameters and key not in _TARGET_NAMES]
        chosen = self._inputs if self._inputs is not None else named
        missing = [key for key in chosen if key not in collated]
        if missing or not chosen:
            wanted = f"{missing[0]!r}" if missing else f"keys that forward({', '.join(self._parameters)}) names"
            raise DataError(
                f"Cannot find the model's inputs: expected {wanted}, got {list(collated)}. "
                "Name them: ft.extract(..., inputs=['<key>'])"
            )
        rest = {key: item for key, item in collated.items() if key not in chosen}
        targets = None if not rest else next(iter(rest.values())) if len(rest) == 1 else rest
        if all(key in self._parameters for key in chosen):
            return (), {str(key): collated[key] for key in chosen}, targets  # type: ignore[index]
        return tuple(collated[key] for key in chosen), {}, targets  # type: ignore[index]


def spread(total: int, count: int) -> list[int]:
    """Choose at most `count` of `total` indices, spread evenly, the first and the last among them."""
    count = min(count, total)
    return sorted({round(at * (total - 1) / max(count - 1, 1)) for at in range(count)})


def _changed(index: int, got: str, is_drawn: bool) -> str:
    fix = (
        "Its chance comes from elsewhere than torch, numpy and random: draw it from these."
        if is_drawn
        else "Store seeded draws of it, ft.extract(..., views=8), or use the evaluation transform for the features."
    )
    return (
        f"Cannot store features of this data set: expected sample {index} to be the same each time it is read, {got}. "
        + fix
    )


def _columns(dataset: Any) -> Any:
    """See tensors held in memory as columns, which need no reading sample by sample."""
    if type(dataset) is TensorDataset:
        dataset = dataset.tensors if len(dataset.tensors) > 1 else dataset.tensors[0]
    parts = list(dataset.values()) if type(dataset) is dict else list(dataset) if type(dataset) is tuple else [dataset]
    if not parts or not all(isinstance(part, Tensor | np.ndarray) for part in parts):
        return None
    sizes = {len(part) if part.ndim else 0 for part in parts}
    if len(sizes) != 1:
        raise DataError(f"Cannot use tensors as a data set: expected one length, got {sorted(sizes)}.")
    tensors = [part if isinstance(part, Tensor) else _tensor(part) for part in parts]
    if type(dataset) is dict:
        return dict(zip(dataset, tensors, strict=True))
    return tuple(tensors) if type(dataset) is tuple else tensors[0]


def _tensor(array: np.ndarray) -> Tensor:
    """See an array as a tensor; one that torch cannot share is copied."""
    if array.dtype.kind not in "biufc":
        raise DataError(
            f"Cannot use an array of {array.dtype} as a column: expected numbers. Encode it, or pass a list of samples."
        )
    if not array.flags.writeable or not array.dtype.isnative or any(step < 0 for step in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def _parameters(model: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return []
