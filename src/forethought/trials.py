"""Trial runs of a model: record it on an example and small variations of it, and check what the record promises.

Trials run on shells of the model, with buffers and random state put back afterwards.
"""

import random
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import (
    ForethoughtError,
    IdentityError,
    InvisibleOperationError,
    NothingFrozenError,
    ReplayDriftError,
    SplitError,
)
from forethought.frontier import Recorder
from forethought.identity import Digest
from forethought.plan import Plan, far_batch, make_plan
from forethought.recording import Position, Recording
from forethought.runs import Finished, HeadRun, TrunkRun, placeholders_for
from forethought.shell import active, shell

_HELD_ELSEWHERE = ("_parameters", "_modules")


def record_plan(model: nn.Module, at: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Record a model on small variations of its inputs and join what was seen."""
    inputs = inputs_of(args, kwargs)
    batch = batch_of(inputs)
    example = _resized(inputs, batch, max(batch, 2))
    try:
        return _joined(model, at, (args, kwargs), example, max(batch, 2))
    except NothingFrozenError:
        raise
    except ForethoughtError:
        if batch >= 2:
            raise
    except Exception:
        if batch >= 2:
            raise
    return _joined(model, at, (args, kwargs), inputs, batch)  # a model that takes one sample at a time


def _joined(model: nn.Module, at: Sequence[str], given: Any, example: list[Tensor], batch: int) -> Plan:
    try:
        return _compared(model, at, given, example, batch, other=_varied(_rolled(example, batch), batch))
    except ReplayDriftError:
        # Other rows may take another path, which is no fault as long as each batch is seen to take the recorded one.
        return _compared(model, at, given, example, batch, other=_rolled(example, batch))


def _compared(
    model: nn.Module, at: Sequence[str], given: Any, example: list[Tensor], batch: int, other: list[Tensor]
) -> Plan:
    """Record a model on an example, on other values of its shape, and on more samples."""
    arguments = nesting.outline(given, Position)
    kept: list[bool] = []

    def record(tensors: list[Tensor]) -> Recording:
        body = shell(model)
        before = _state_of(body)
        with torch.inference_mode(False), _untouched(body), eagerly():
            args, kwargs = nesting.replace(arguments, lambda position: tensors[position.at].clone(), Position)
            recording = Recorder(body, at).record(args, kwargs)
            kept.append(_state_of(body) != before)
            return recording

    first, second = record(example), record(other)
    larger = far = None
    try:
        if batch:
            larger = record(_resized(_rolled(example, batch), batch, batch + 1))
            far = record(_resized(_rolled(example, batch), batch, far_batch(batch)))
    except ForethoughtError:
        raise
    except Exception:  # whatever the model says of a batch that it cannot take
        larger = far = None
    return make_plan(first, second, larger, far, arguments, batch, keeps_state=any(kept))


def check_plan(model: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compare both halves with the whole model, on rows in another order and one more of them."""
    inputs = inputs_of(args, kwargs)
    batch = batch_of(inputs)
    inputs = _rolled(_resized(inputs, batch, plan.batch), plan.batch)
    size = plan.batch
    if plan.larger is not None:
        inputs, size = _resized(inputs, plan.batch, plan.batch + 1), plan.batch + 1

    def run(halves: bool) -> list[Tensor]:
        body = shell(model)
        with torch.inference_mode(False), _untouched(body), eagerly():
            args, kwargs = nesting.replace(plan.arguments, lambda position: inputs[position.at].clone(), Position)
            if not halves:
                return nesting.tensors(body(*args, **kwargs))
            values = run_trunk(body, plan, args, kwargs)
            return nesting.tensors(run_head(shell(model), plan, values, size))

    whole, joined = run(halves=False), run(halves=True)
    if _all_same(whole, joined):
        return
    if not _all_same(whole, run(halves=False)):
        raise ReplayDriftError(
            f"Cannot split {type(model).__name__}: expected it to equal itself on the same input and random state, got "
            "two outputs. It keeps a state, or draws numbers where torch does not see. Try model.eval() first."
        )
    raise ReplayDriftError(
        f"Cannot split {type(model).__name__}: expected head(trunk(x)) to equal model(x), got a difference. "
        "A value reached the head on a way that cannot be seen. Cut elsewhere: ft.split(model, x, at=...)"
    )


def run_trunk(body: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    inputs = nesting.tensors((args, kwargs))
    trainable = [parameter for parameter in body.parameters() if parameter.requires_grad]
    run = TrunkRun(plan, batch_of(inputs), trainable)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            run.begin(inputs)
            with active(run), run, eagerly():
                body(*args, **kwargs)
    except Finished:
        return run.values
    raise ReplayDriftError(
        "Cannot run the trunk: expected its forward to reach the frontier as it did when it was split, got its end. "
        "The forward took another path; split it again in the form in which it runs."
    )


def run_head(body: nn.Module, plan: Plan, values: tuple[Tensor, ...], batch: int) -> Any:
    run = HeadRun(plan, values, batch)
    args, kwargs = placeholders_for(plan, batch)
    try:
        with active(run), run, eagerly():
            result = body(*args, **kwargs)
    except RuntimeError as err:
        if "Cannot replay" not in str(err) or isinstance(err, ForethoughtError):
            raise
        raise InvisibleOperationError(  # the script interpreter wraps our own error in its own
            "Cannot replay: expected to see every operation on frozen values, got scripted code that computes with "
            "them. Cut after it: ft.split(model, x, at=<a later module>)"
        ) from err
    return run.output(result)


def _state_of(body: nn.Module) -> list[Any]:
    """Tell what the modules of a shell hold beside tensors in place: attributes, and what lies in containers."""
    return [
        (name, id(value), [id(part) for part in nesting.parts(value)] if isinstance(value, list | dict | set) else None)
        for module in body.modules()
        for name, value in vars(module).items()
        if name not in _HELD_ELSEWHERE
    ]


def eagerly() -> AbstractContextManager[Any]:
    """Run functions that `torch.compile` decorates as they are written. Where nothing compiles, this costs nothing."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _untouched:  # noqa: N801  (a context manager, read as an adjective)
    """Put back what a trial run may write into, and every random state. Inside, chance begins anew.

    Modules share their dictionaries of buffers with the model, so these are put back, too.
    """

    def __init__(self, body: nn.Module) -> None:
        modules = [module for module in body.modules() if not isinstance(module, torch.jit.ScriptModule)]
        self._dictionaries = [(held, dict(held)) for m in modules for held in (m._buffers, m._parameters)]
        held = [value for m in modules for name, value in vars(m).items() if name not in _HELD_ELSEWHERE]
        self._tensors = [(t, t.detach().clone()) for t in {id(t): t for t in nesting.tensors(held)}.values()]
        self._devices = sorted({p.device.index or 0 for p in body.parameters() if p.device.type == "cuda"})
        self._random = torch.random.fork_rng(self._devices)

    def __enter__(self) -> None:
        self._states = (random.getstate(), np.random.get_state())
        self._random.__enter__()
        torch.default_generator.manual_seed(0)
        for device in self._devices:
            torch.cuda.default_generators[device].manual_seed(0)
        random.seed(0)
        np.random.seed(0)

    def __exit__(self, *error: Any) -> None:
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        self._random.__exit__(*error)
        for held, before in self._dictionaries:
            if list(held) != list(before) or any(held[name] is not before[name] for name in held):
                held.clear()
                held.update(before)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor, was in self._tensors:
                if not _is_same(tensor, was):
                    tensor.copy_(was)


def plain(tensor: Tensor) -> Tensor:
    """Give a tensor without a graph, and with a version counter, which inference tensors lack."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def inputs_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    inputs = [plain(tensor) for tensor in nesting.tensors((args, kwargs))]
    if not inputs:
        raise SplitError(
            "Cannot split: expected example inputs with at least one tensor, got none. "
            "Pass some: ft.split(model, torch.randn(2, 3, 224, 224))"
        )
    return inputs


def batch_of(inputs: Sequence[Tensor]) -> int:
    """Take the first axis of the first tensor as the batch."""
    return next((tensor.shape[0] for tensor in inputs if tensor.ndim), 0)


def _resized(inputs: list[Tensor], batch: int, wanted: int) -> list[Tensor]:
    """Repeat rows until there are `wanted` samples."""
    if not batch or wanted == batch:
        return inputs
    rows = torch.arange(wanted) % batch
    return [t[rows.to(t.device)] if t.ndim and t.shape[0] == batch else t for t in inputs]


def _rolled(inputs: list[Tensor], batch: int) -> list[Tensor]:
    """Give the same rows in another order; where all are equal, with their entries reversed."""
    return [_roll(t) if t.ndim and t.shape[0] == batch else t for t in inputs]


def _roll(tensor: Tensor) -> Tensor:
    rolled = tensor.roll(1, 0)
    return tensor.flip(-1) if tensor.ndim > 1 and torch.equal(rolled, tensor) else rolled


def _varied(inputs: list[Tensor], batch: int) -> list[Tensor]:
    """Leave the last row out and the first one in twice: other values as a whole, each of them valid."""
    rows = torch.arange(batch)
    rows[-1:] = 0
    return [t[rows.to(t.device)] if t.ndim and t.shape[0] == batch else t for t in inputs]


def signature_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tell inputs apart by everything that the recorded path may depend on, but not by the batch size."""
    inputs = nesting.tensors((args, kwargs))
    batch = batch_of(inputs)
    forms = tuple(
        (tuple(t.shape[1:]) if t.ndim and t.shape[0] == batch else (None, *t.shape), t.dtype, t.device.type, _order(t))
        for t in inputs
    )
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    rest = nesting.outline((args, kwargs))
    try:
        others = Digest().add(rest).hex()
    except IdentityError:
        others = repr(rest)
    return forms, others, repr(autocast)


def _order(tensor: Tensor) -> bool:
    """Tell the layouts apart in which `contiguous()` gives the tensor itself, or a copy."""
    return tensor.is_contiguous()


def _all_same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(_is_same(x, y) for x, y in zip(a, b, strict=True))


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors, not-a-number equal to itself."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
