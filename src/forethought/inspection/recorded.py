"""A recorded run of a model as it is, or as if more of it were frozen: nothing of this is left on the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import forethought as ft
from forethought import nesting
from forethought.errors import ModelError, NothingFrozenError, SplitError
from forethought.shapes.forms import FrontierTensor
from forethought.splitting.frontier import Recorder
from forethought.splitting.recording import Recording
from forethought.splitting.shell import active, shell


@dataclass(frozen=True)
class Recorded:
    """One run of a model, and under which assumption.

    Attributes:
        model: The model, or the frozen copy that stands for it.
        recording: What the run showed.
        larger: The same of more samples, if the model takes another number of them.
        batch: Samples in the recording.
        more: How many more there are in `larger`.
        frontier: What crosses the frontier; None if the model cannot be split there.
        assumption: In words, what was frozen in the copy; None for the model as it is.
        refusal: Why the model cannot be split where its frozen part ends; None if it can.
    """

    model: nn.Module
    recording: Recording
    larger: Recording | None
    batch: int
    more: int
    frontier: tuple[FrontierTensor, ...] | None
    assumption: str | None
    refusal: str | None


@contextmanager
def recorded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], until: str | None) -> Iterator[Recorded]:
    """Record a model; where nothing in it is frozen, a copy in which only the last layer trains.

    Raises:
        ModelError: it does not run.
        SplitError: there is no module `until`, or nothing can be told of the model.
    """
    copy = _copied(model)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            last = _run_once(model, args, kwargs)
            try:
                yield _record(model, copy, (args, kwargs), until, last)
            except ft.ForethoughtError:
                raise
            except Exception as err:
                raise ModelError(
                    f"Cannot inspect {type(model).__name__}: expected it to run again on variations of its inputs, got "
                    f"{_said(err)}. Give inputs that vary freely: return (model, args) from a function"
                ) from err
    finally:
        ft.thaw(copy)  # scripted modules have no copy


def _record(model: nn.Module, copy: nn.Module, given: Any, until: str | None, last: str) -> Recorded:
    args, kwargs = given
    if until is not None:
        ft.freeze(copy, until, args=args, kwargs=kwargs)
        return _split(copy, args, kwargs, f"Shown as if everything up to '{until}' were frozen.")
    parameters = list(model.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        why = "Nothing is frozen in this model: every parameter trains."
    else:
        try:
            return _split(model, args, kwargs, None if parameters else "This model has no parameters.")
        except NothingFrozenError:
            why = "Nothing is frozen before the first operation that trains."
    ft.freeze(copy)
    for parameter in copy.get_submodule(last).parameters():
        parameter.requires_grad_(True)
    choice = "Choose with --until PATH."
    try:
        all_but = f"everything but '{last}', the last layer with parameters,"
        return _split(copy, args, kwargs, f"{why} Shown as if {all_but} were frozen. {choice}")
    except NothingFrozenError:  # the last layer is the whole model, or shares its weights with the first one
        return _split(ft.freeze(copy), args, kwargs, f"{why} Shown as if everything were frozen. {choice}")


class _Begun:
    """Notes the last module of a shell to begin that has parameters of its own."""

    def __init__(self) -> None:
        self.last = ""

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See one call of a module."""
        if any(parameter is not None for parameter in module._parameters.values()):
            self.last = path
        return module._call_impl(*args, **kwargs)


def _run_once(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Run a model as it is; name the last layer with parameters.

    Raises:
        ModelError: it does not take these inputs.
    """
    begun = _Begun()
    try:
        with torch.no_grad(), active(begun):
            given, options = _fresh((args, kwargs))
            _copied(model)(*given, **options)
    except ft.ForethoughtError:
        raise
    except Exception as err:
        forms = ", ".join(f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in nesting.tensors((args, kwargs)))
        raise ModelError(
            f"Cannot run {type(model).__name__} on {forms}: expected its forward to take them, got {_said(err)}. "
            "Give the shape of one sample: --input 3x224x224, with --dtype int64 for whole numbers."
        ) from err
    return begun.last.split(".parametrizations")[0]


def _said(err: Exception) -> str:
    return " ".join(f"{type(err).__name__}: {err}".split())[:300]


def _fresh(values: Any) -> Any:
    """Copy inputs: a forward may write into them."""
    return nesting.replace(values, torch.clone)


def _copied(model: nn.Module) -> nn.Module:
    """Copy a model's modules over the same memory: parameters that can be frozen, buffers of their own."""
    parameters = {id(parameter) for parameter in model.parameters()}
    buffers = {id(buffer) for buffer in model.buffers()}
    copies: dict[int, Tensor] = {}

    def own(tensor: Tensor) -> Tensor:
        if id(tensor) in copies:
            return copies[id(tensor)]
        if id(tensor) in parameters:
            copies[id(tensor)] = nn.Parameter(tensor.detach(), tensor.requires_grad)
        elif id(tensor) in buffers:
            copies[id(tensor)] = tensor.detach().clone()
        else:
            return tensor
        return copies[id(tensor)]

    return shell(model, own)


def _split(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], assumption: str | None) -> Recorded:
    try:
        split = ft.split(model, args, kwargs)
    except NothingFrozenError:
        raise
    except SplitError as err:
        batch = next(t.shape[0] for t in nesting.tensors((args, kwargs)) if t.ndim)
        recording = Recorder(_copied(model)).record(*_fresh((args, kwargs)))
        larger = _of_one_more(model, args, kwargs, batch)
        return Recorded(model, recording, larger, batch, 1, None, assumption, str(err))
    plan = split.plan
    return Recorded(model, plan.recording, plan.larger, plan.batch, plan.more, split.frontier, assumption, None)


def _of_one_more(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int) -> Recording | None:
    """Record a model on one sample more; None if it does not take it."""

    def with_one_more(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[:1]]) if tensor.ndim and tensor.shape[0] == batch else tensor.clone()

    try:
        return Recorder(_copied(model)).record(*nesting.replace((args, kwargs), with_one_more))
    except Exception:  # whatever the model says of a batch that it cannot take
        return None
