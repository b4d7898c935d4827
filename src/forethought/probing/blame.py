"""Which module of a model does something that it should not: found by running the model and watching its calls."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.identifying.identity import Digest
from forethought.probing.dispatch import DispatchMode
from forethought.splitting.shell import active, shell
from forethought.splitting.untouched import untouched

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class _Seen:
    where: str
    given: list[str]
    gave: list[str]


class _Calls:
    """Sees each call of a module: what rows of some samples it was given and gave, and what was drawn inside.

    Args:
        batch: How many samples there are.
        rows: Those of which the rows count.
    """

    def __init__(self, batch: int, rows: Tensor) -> None:
        self.seen: list[_Seen] = []  # in the order in which the calls ended
        self.open: list[str] = []
        self._batch = batch
        self._rows = rows

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See one call."""
        given = self._images((args, kwargs))
        self.open.append(f"{type(module).__name__} '{path}'" if path else "the model's own forward")
        try:
            result = module._call_impl(*args, **kwargs)
        finally:
            where = self.open.pop()
        self.seen.append(_Seen(where, given, self._images(result)))
        return result

    def _images(self, value: Any) -> list[str]:
        return [self._image(tensor.detach()) for tensor in nesting.tensors(value)]

    def _image(self, tensor: Tensor) -> str:
        """Tell what a tensor holds of the samples, where its rows show; a sample may have several."""
        if tensor.ndim > 1 and tensor.shape[1] == self._batch and tensor.shape[0] != self._batch:
            tensor = tensor.movedim(1, 0)
        if not tensor.ndim or not tensor.numel() or tensor.shape[0] % self._batch or not len(self._rows):
            return ""
        return Digest().add(tensor.reshape(self._batch, -1)[self._rows.to(tensor.device)]).hex()


def first_to_differ(body: nn.Module, a: Arguments, b: Arguments, batch: int, rows: Tensor) -> str | None:
    """Name the first module that gives other rows of some samples in a second run, given the same ones.

    Args:
        body: The model, or a shell of it; it is left as it is.
        a: What it is given, for `batch` samples.
        b: What it is given in the second run.
        batch: How many samples there are.
        rows: Those of which the rows are to be the same.
    """
    seen: list[list[_Seen]] = []
    own = shell(body)
    with untouched(own), torch.inference_mode(False), torch.enable_grad():
        for args, kwargs in (a, b):
            calls = _Calls(batch, rows)
            with active(calls):
                own(*args, **kwargs)
            seen.append(calls.seen)
    for one, other in zip(seen[0], seen[1], strict=False):
        if one.where == other.where and one.given == other.given and one.gave != other.gave:
            return one.where
    return None


def where_runs(kernel: str, body: nn.Module, given: Arguments) -> str | None:
    """Name the first module inside of which a kernel runs.

    Args:
        kernel: As torch calls it, with its overload.
        body: The model, or a shell of it; it is left as it is.
        given: What it is given.
    """
    body, calls = shell(body), _Calls(1, torch.empty(0, dtype=torch.long))
    with (
        untouched(body),
        torch.inference_mode(False),
        torch.enable_grad(),
        active(calls),
        _Kernel(kernel, calls) as seen,
    ):
        body(*given[0], **given[1])
    found: str | None = seen.where
    return found


class _Kernel(DispatchMode):
    """Notes where a kernel runs for the first time."""

    def __init__(self, kernel: str, calls: _Calls) -> None:
        super().__init__()
        self.where: str | None = None
        self._kernel = kernel
        self._calls = calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.where is None and str(func) == self._kernel:
            self.where = self._calls.open[-1]
        return func(*args, **(kwargs or {}))
