"""One batch of samples, parted into what the model is given and its targets."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import DataError
from forethought.identifying.identity import Digest
from forethought.identifying.tensors import KEY_BYTES, row_keys
from forethought.samples.columns import Column, Columns
from forethought.shapes.padding import Leaf, Padding

_TARGET_NAMES = ("labels", "label")  # forwards name them to compute a loss; they are no input of a frozen part
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Batch:
    """One batch: the model's arguments, and whatever else the data set holds for these samples.

    Attributes:
        args: Arguments by position.
        kwargs: Arguments by name, in the order of the model's signature.
        targets: The rest.
        order: Names that positions of the model's `forward` have.
        padding: How samples differ in size; None if they do not.
        sizes: (B, K): the sizes of each sample, by each measure of `padding`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    order: tuple[str, ...] = ()
    padding: Padding | None = None
    sizes: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the model is given."""
        return nesting.tensors((self.args, self.kwargs))

    @property
    def rows(self) -> int:
        """How many samples it holds."""
        return len(self.tensors[0])

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The size of the batch by each measure of its samples; None if they do not differ in size."""
        return None if self.padding is None else self.padding.sizes_in(self.tensors)

    @property
    def leaves(self) -> Sequence[Leaf]:
        """How each tensor that the model is given differs in size among samples."""
        return [Leaf()] * len(self.tensors) if self.padding is None else self.padding.leaves

    def row_keys(self) -> np.ndarray:
        """Identify each sample by what the model is given, without padding: (B, 16) bytes."""
        rest = Digest().add(self._outline()).hex().encode()
        if self.sizes is None:
            return row_keys(self.tensors, rest)
        keys = np.empty((self.rows, KEY_BYTES), np.uint8)
        for _, rows in self.by_size():
            keys[rows] = row_keys(self.cropped(torch.tensor(rows)).tensors, rest)
        return keys

    def by_size(self) -> list[tuple[tuple[int, ...], list[int]]]:
        """Give the sizes that samples have by each measure, and which samples have them."""
        if self.sizes is None:
            return [((), list(range(self.rows)))]
        alike: dict[tuple[int, ...], list[int]] = {}
        for row, sizes in enumerate(self.sizes.tolist()):
            alike.setdefault(tuple(sizes), []).append(row)
        return list(alike.items())

    def of_sizes(self, padding: Padding, sizes: Sequence[Sequence[int]]) -> "Batch":
        """Give samples that differ in size, of these sizes (B, K)."""
        return replace(self, padding=padding, sizes=torch.tensor(sizes, dtype=torch.long))

    def cropped(self, rows: Tensor) -> "Batch":
        """Take samples of one size, without padding."""
        assert self.padding is not None
        assert self.sizes is not None
        chosen = self.select(rows)
        tensors = iter(self.padding.cropped(chosen.tensors, self.sizes[rows[0]].tolist()))
        return chosen.with_tensors(lambda _: next(tensors))

    def shortened(self) -> "Batch":
        """Cut off padding that even the largest sample has."""
        assert self.padding is not None
        assert self.sizes is not None
        tensors = iter(self.padding.cropped(self.tensors, self.sizes.amax(0).tolist()))
        return self.with_tensors(lambda _: next(tensors))

    def _outline(self) -> Any:
        """Tell what the tensors are given as, the same whether by position or by name."""
        args, kwargs = nesting.outline((self.args, self.kwargs))
        by_place = list(args)
        for name in self.order[len(args) :]:
            if name not in kwargs:
                break
            by_place.append(kwargs.pop(name))
        return tuple(by_place), kwargs

    def select(self, rows: Tensor) -> "Batch":
        """Take some of the samples; targets are left out."""
        chosen = self.with_tensors(lambda tensor: tensor[rows])
        return chosen if self.sizes is None else replace(chosen, sizes=self.sizes[rows])

    def copied_to(self, device: torch.device) -> "Batch":
        """Copy what the model is given to a device: a forward may write into it, and it is the user's."""
        return self.with_tensors(lambda tensor: tensor.to(device, non_blocking=True, copy=True))

    def to(self, device: torch.device) -> "Batch":
        """Move what the model is given to a device."""
        return replace(self.with_tensors(lambda tensor: tensor.to(device, non_blocking=True)), targets=self.targets)

    def with_tensors(self, new: Any) -> "Batch":
        """Put others in the place of what the model is given; targets are left out."""
        args, kwargs = nesting.replace((self.args, self.kwargs), new)
        return replace(self, args=args, kwargs=kwargs, targets=None)


class Parting:
    """Parts what a data set gives into inputs and targets, the same way for each batch.

    Args:
        model: Whose `forward` names the keys that are inputs.
        inputs: Positions or keys of the elements that the model is given, where its names do not say.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[str | int] | str | int | None) -> None:
        self.inputs = (inputs,) if isinstance(inputs, str | int) else inputs
        try:
            parameters = inspect.signature(model.forward).parameters
        except (TypeError, ValueError):
            parameters = {}  # type: ignore[assignment]
        self.parameters = tuple(parameters)
        kinds = {parameter.kind for parameter in parameters.values()}
        # A wrapper hands on what it is given: several inputs in the order of a list would be others to what is inside.
        self._hands_on = kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        self._order = tuple(name for name, parameter in parameters.items() if parameter.kind in _POSITIONAL)

    @property
    def rule(self) -> Any:
        """All that decides how a batch is parted, plain values."""
        return self.inputs, self.parameters, self._order

    def of_columns(self, columns: Columns) -> tuple[list[tuple[str, Column]], Any]:
        """Part the columns of a data set as each batch of it is: inputs, named, in the order of a batch; targets."""
        args, kwargs, targets = self._parted(columns)
        named = [(str(at), column) for at, column in enumerate(args)]
        return [*named, *self._in_order(kwargs).items()], targets

    def _in_order(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        place = {name: at for at, name in enumerate(self.parameters)}
        return dict(sorted(kwargs.items(), key=lambda item: place.get(item[0], len(place))))

    def part(self, collated: Any) -> Batch:
        """Make a batch of what a collate function gave.

        Raises:
            DataError: it holds nothing that the model can be given.
        """
        args, kwargs, targets = self._parted(collated)
        batch = Batch(args, self._in_order(kwargs), targets, self._order)
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
        chosen = self.inputs if self.inputs is not None else (0,)
        size = len(collated)
        if any(not isinstance(at, int) or not -size <= at < size for at in chosen):
            raise DataError(
                f"Cannot choose inputs {tuple(chosen)}: expected positions from 0 to {size - 1}, since "
                f"samples are tuples of {size}. ft.extract(..., inputs=0)"
            )
        places = [int(at) % size for at in chosen]
        given = [collated[at] for at in places]
        rest = tuple(item for at, item in enumerate(collated) if at not in places)
        targets = None if not rest else rest[0] if len(rest) == 1 else rest
        if len(given) == 1 and isinstance(given[0], Mapping):
            return (), dict(given[0]), targets
        if len(given) == 1 and isinstance(given[0], tuple | list):
            return tuple(given[0]), {}, targets
        return tuple(given), {}, targets

    def _parted_mapping(self, collated: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        named = [key for key in collated if key in self.parameters and key not in _TARGET_NAMES]
        chosen = self.inputs if self.inputs is not None else named
        missing = [key for key in chosen if key not in collated]
        if missing or not chosen:
            wanted = f"{missing[0]!r}" if missing else f"keys that forward({', '.join(self.parameters)}) names"
            raise DataError(
                f"Cannot find the model's inputs: expected {wanted}, got {list(collated)}. "
                "Name them: ft.extract(..., inputs=['<key>'])"
            )
        rest = {key: item for key, item in collated.items() if key not in chosen}
        targets = None if not rest else next(iter(rest.values())) if len(rest) == 1 else rest
        if all(key in self.parameters for key in chosen) or (self._hands_on and len(chosen) > 1):
            return (), {str(key): collated[key] for key in chosen}, targets  # type: ignore[index]
        return tuple(collated[key] for key in chosen), {}, targets  # type: ignore[index]
