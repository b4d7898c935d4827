"""Trial runs of a model: record it on an example and small variations of it, and check what the record promises.

Trials run on shells of the model, with buffers and random state put back afterwards.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import ForethoughtError, NothingFrozenError, ReplayDriftError, SplitError
from forethought.frontier import Recorder
from forethought.plan import Plan, make_plan
from forethought.recording import Position, Recording
from forethought.runs import Finished, HeadRun, TrunkRun, placeholders_for
from forethought.shell import active, shell


def record_plan(model: nn.Module, at: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """Record a model three times and join what was seen."""
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
    arguments = _template(given)

    def record(tensors: list[Tensor]) -> Recording:
        args, kwargs = nesting.replace(arguments, lambda position: tensors[position.at].clone(), Position)
        body = shell(model)
        with torch.inference_mode(False), _untouched(body):
            return Recorder(body, at).record(args, kwargs)

    first, second = record(example), record(_varied(example, batch))
    try:
        larger = record(_resized(_varied(example, batch), batch, batch + 1)) if batch else None
    except ForethoughtError:
        raise
    except Exception:  # whatever the model says of a batch that it cannot take
        larger = None
    return make_plan(first, second, larger, arguments, batch)


def check_plan(model: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compare both halves with the whole model, on rows in another order and one more of them."""
    inputs = inputs_of(args, kwargs)
    batch = batch_of(inputs)
    inputs = _varied(_resized(inputs, batch, plan.batch), plan.batch)
    size = plan.batch
    if plan.larger is not None:
        inputs, size = _resized(inputs, plan.batch, plan.batch + 1), plan.batch + 1

    def run(halves: bool) -> list[Tensor]:
        args, kwargs = nesting.replace(plan.arguments, lambda position: inputs[position.at].clone(), Position)
        body = shell(model)
        with torch.inference_mode(False), _untouched(body):
            torch.manual_seed(0)
            if not halves:
                return nesting.tensors(body(*args, **kwargs))
            values = run_trunk(body, plan, args, kwargs)
            return nesting.tensors(run_head(shell(model), plan, values, size))

    whole, joined = run(halves=False), run(halves=True)
    if _all_same(whole, joined):
        return
    if _all_same(whole, run(halves=False)):  # otherwise the model does not equal itself
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
            with active(run), run:
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
    with active(run), run:
        result = body(*args, **kwargs)
    return run.output(result)


class _untouched:  # noqa: N801  (a context manager, read as an adjective)
    """Put back every buffer and the random state after a trial run."""

    def __init__(self, body: nn.Module) -> None:
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in body.buffers()]
        self._devices = sorted({t.device.index or 0 for t in body.parameters() if t.device.type == "cuda"})
        self._random = torch.random.fork_rng(self._devices)

    def __enter__(self) -> None:
        self._random.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._random.__exit__(*error)
        with torch.no_grad():
            for buffer, before in self._buffers:
                if not _is_same(buffer, before):
                    buffer.copy_(before)


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


def _template(given: Any) -> Any:
    count = iter(range(1 << 30))
    return nesting.replace(given, lambda _: Position(next(count)))


def batch_of(inputs: Sequence[Tensor]) -> int:
    """Take the first axis of the first tensor as the batch."""
    return next((tensor.shape[0] for tensor in inputs if tensor.ndim), 0)


def _resized(inputs: list[Tensor], batch: int, wanted: int) -> list[Tensor]:
    """Repeat rows until there are `wanted` samples."""
    if not batch or wanted == batch:
        return inputs
    rows = torch.arange(wanted) % batch
    return [t[rows.to(t.device)] if t.ndim and t.shape[0] == batch else t for t in inputs]


def _varied(inputs: list[Tensor], batch: int) -> list[Tensor]:
    """Give other values that the model takes: rows in another order, or, of one row, its entries reversed."""
    return [_vary(t) if t.ndim and t.shape[0] == batch else t for t in inputs]


def _vary(tensor: Tensor) -> Tensor:
    rolled = tensor.roll(1, 0)
    return tensor.flip(-1) if tensor.ndim > 1 and torch.equal(rolled, tensor) else rolled


def signature_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tell inputs apart by everything that the recorded path may depend on, but not by the batch size."""
    inputs = nesting.tensors((args, kwargs))
    batch = batch_of(inputs)
    forms = tuple(
        (tuple(t.shape[1:]) if t.ndim and t.shape[0] == batch else (None, *t.shape), t.dtype, t.device.type)
        for t in inputs
    )
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return forms, repr(_template((args, kwargs))), repr(autocast)


def _all_same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(_is_same(x, y) for x, y in zip(a, b, strict=True))


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors, not-a-number equal to itself."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
