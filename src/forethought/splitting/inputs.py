"""What a model is run on: its tensors, how many samples they hold, and what tells one form of inputs from another."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import IdentityError, InputError, SplitError
from forethought.identifying.identity import Digest
from forethought.shapes.padding import Padding


def plain(tensor: Tensor) -> Tensor:
    """Give a tensor without a graph, and with a version counter, which inference tensors lack."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def inputs_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """List the tensors among example inputs.

    Raises:
        SplitError: there are none.
    """
    inputs = [plain(tensor) for tensor in nesting.tensors((args, kwargs))]
    if not inputs:
        raise SplitError(
            "Cannot split: expected example inputs with at least one tensor, got none. "
            "Pass some: ft.split(model, torch.randn(2, 3, 224, 224))"
        )
    for tensor in inputs:
        if tensor.is_nested:
            raise SplitError(
                "Cannot split: expected example inputs of which samples can be chosen one by one, got a nested tensor. "
                "Pad it: x.to_padded_tensor(0.0), with a mask beside it"
            )
        if tensor.layout not in (torch.strided, torch.sparse_coo):
            raise SplitError(
                f"Cannot split: expected example inputs that are dense, or sparse by coordinates, got {tensor.layout}. "
                "Convert it: x.to_sparse_coo()"
            )
    return inputs


def filled_in(args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
    """Put copies of these tensors in the places of those among the arguments."""
    given = iter(tensors)
    return nesting.replace((args, kwargs), lambda _: next(given).clone())


def batch_of(inputs: Sequence[Tensor]) -> int:
    """Take the first axis of the first tensor as the batch."""
    return next((tensor.shape[0] for tensor in inputs if tensor.ndim), 0)


def signature_of(args: tuple[Any, ...], kwargs: dict[str, Any], padding: Padding | None = None) -> Any:
    """Tell inputs apart by everything that the recorded path may depend on, but not by the batch size.

    Args:
        args: The inputs.
        kwargs: Keyword inputs.
        padding: Which of their axes do not count either.
    """
    inputs = nesting.tensors((args, kwargs))
    batch = batch_of(inputs)
    shapes = [list(t.shape[1:]) if t.ndim and t.shape[0] == batch else [None, *t.shape] for t in inputs]
    for shape, leaf in zip(shapes, padding.leaves if padding else (), strict=False):
        for axis, measure in leaf.axes:
            shape[axis - 1] = (measure,)
    forms = tuple((tuple(shape), t.dtype, t.device.type, _order(t)) for shape, t in zip(shapes, inputs, strict=True))
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    rest = nesting.outline((args, kwargs))
    try:
        others = Digest().add(rest).hex()
    except IdentityError:
        others = repr(rest)
    return forms, others, repr(autocast)


def _order(tensor: Tensor) -> bool:
    """Tell the layouts apart in which `contiguous()` gives the tensor itself, or a copy."""
    return tensor.layout is torch.strided and tensor.is_contiguous()


def check_cut(model: nn.Module, at: Any) -> None:
    """Demand the path of a module, several, or a whole number.

    Raises:
        SplitError: it is something else.
    """
    paths = tuple(at) if isinstance(at, list | tuple | set | frozenset) else (at,)
    is_number = isinstance(at, int) and not isinstance(at, bool)
    if not (at is None or is_number or all(isinstance(path, str) for path in paths)):
        named = next((name for name, module in model.named_modules() if any(module is path for path in paths)), None)
        got = type(paths[0] if len(paths) == 1 else at).__name__
        raise SplitError(
            f"Cannot cut {type(model).__name__}: expected at= to be a module's path, several, or a whole number of "
            f"bytes, got a {got}. Name the module: ft.split(model, x, at={named or 'its path'!r})"
        )


def check_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Demand the arguments that `forward` takes, and that they end.

    Raises:
        SplitError: they do not fit.
    """
    nesting.replace((args, kwargs), lambda tensor: tensor)  # refuses what holds itself
    try:
        wanted = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return  # a forward that does not show what it takes
    try:
        wanted.bind(*args, **kwargs)
    except TypeError as err:
        raise SplitError(
            f"Cannot split {type(model).__name__}: expected the arguments of forward{wanted}, got others: {err}. "
            "Give all that it needs: ft.split(model, (x, ...), {'name': ...})"
        ) from err


def refused(model: nn.Module, inputs: Sequence[Tensor], err: RuntimeError) -> RuntimeError:
    """Say which of a model's modules did not take these inputs, and what to give; errors that say more stay."""
    if type(err) is not RuntimeError or "same device" in str(err):
        return err
    at, step = "", err.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not type(owner).__module__.startswith("forethought."):
            at = f", in {type(owner).__name__}({owner.extra_repr()})"
        step = step.tb_next
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    odd = next((t for t in inputs if t.is_floating_point() and t.dtype != wanted), None)
    if odd is None and ("dtype" in str(err) or "scalar type" in str(err)):
        odd = next((t for t in inputs if t.dtype != wanted), None)
    given = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in inputs[:4])
    fix = "Give it what its forward takes; it must take a batch of any size"
    if odd is not None:
        short = str(wanted).removeprefix("torch.")
        fix = f"Its parameters are {short}: tensor.to({wanted}), or array.astype('{short}')"
    said = str(err).strip().partition("\n")[0]
    refusal = InputError(f"Cannot run {type(model).__name__} on inputs such as {given}{at}: {said}. {fix}")
    refusal.__cause__ = err
    return refusal
