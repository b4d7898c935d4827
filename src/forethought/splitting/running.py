"""Running one half of a model along a plan, on a shell of the model."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import ForethoughtError, InvisibleOperationError, ReplayDriftError
from forethought.splitting.head_run import HeadRun
from forethought.splitting.inputs import batch_of
from forethought.splitting.levels import FAST
from forethought.splitting.plan import Plan
from forethought.splitting.shell import active, modules_of, names_of, parameters_of
from forethought.splitting.trunk_run import Finished, TrunkRun
from forethought.splitting.untouched import kept


def run_trunk(body: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    inputs = nesting.tensors((args, kwargs))
    trainable: list[Tensor] = [each for each in parameters_of(body) if each.requires_grad]
    trainable += [tensor for tensor in (read.now() for read in plan.moving) if tensor is not None]
    run = TrunkRun(plan, batch_of(inputs), trainable)
    modules = modules_of(body) if plan.recording.replaces else ()
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _settings_kept(),
            kept(plan.constants_written(), modules, plan.recording.notes),
        ):
            run.begin(inputs)
            with active(run), run, eagerly():
                body(*args, **kwargs)
    except Finished:
        return run.values
    raise ReplayDriftError(
        "Cannot run the trunk: expected its forward to reach the frontier as it did when it was split, got its end. "
        "The forward took another path; split it again in the form in which it runs."
    )


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back what a forward sets for a part of itself, and does not come to put back where the trunk ends in it."""
    dtype, precision = torch.get_default_dtype(), _matmul_precision()
    try:
        yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if precision is not None and _matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)


def _matmul_precision() -> str | None:
    """Read the old setting; torch refuses to tell it once the new ones were used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def run_head(body: nn.Module, plan: Plan, values: tuple[Tensor, ...], batch: int) -> Any:
    run = HeadRun(plan, values, batch)
    args, kwargs = run.arguments()
    try:
        with kept(notes=plan.recording.notes), active(run), run, eagerly():
            result = body(*args, **kwargs)
    except RuntimeError as err:
        if "Cannot replay" not in str(err) or isinstance(err, ForethoughtError):
            raise
        raise InvisibleOperationError(  # the script interpreter wraps our own error in its own
            "Cannot replay: expected to see every operation on frozen values, got scripted code that computes with "
            "them. Cut after it: ft.split(model, x, at=<a later module>)"
        ) from err
    return run.output(result, body)


def eagerly() -> AbstractContextManager[Any]:
    """Run functions that `torch.compile` decorates as they are written. Where nothing compiles, this costs nothing."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def has_fast_path(model: nn.Module) -> bool:
    """Say whether torch may choose another kernel for a module when nobody watches."""
    return any(isinstance(module, FAST) for module in names_of(model))
