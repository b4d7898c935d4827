"""A tensor that one half of a model does not compute: its form, and nothing else."""

from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import InvisibleOperationError
from forethought.shapes.forms import Form
from forethought.splitting.operations import Function, stand_in
from forethought.splitting.recording import Value
from forethought.splitting.shell import is_run_active


class Placeholder(Tensor):
    """Stands for a tensor that this half does not compute."""

    value: Value | None
    bound: Tensor | None = None  # the real tensor, once the head has written into it
    again: Tensor | None = None  # what it stands for, where the head has done it again for what trains
    stored: Tensor | None = None  # its values, where it crosses the frontier: for a checkpoint that runs in backward
    run: Any = None  # the head's run that made it
    is_mixed: bool = False  # another view of a constant that frozen code wrote into
    is_unshaped: bool = False  # its shape depends on values that are not here

    @staticmethod
    def __new__(cls: Any, value: Value | None, form: Form, batch: int) -> "Placeholder":
        shape, stride = form.at(batch)
        made: Placeholder = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=stride or None, dtype=form.dtype, device=form.device
        )
        made.value = value
        return made

    @staticmethod
    def like(tensor: Tensor, value: Value | None = None) -> "Placeholder":
        """Stand for a real tensor; without a value, for one into whose memory frozen code would have written."""
        shape, stride = (tuple((0, n) for n in sizes) for sizes in (tensor.shape, tensor.stride()))
        made = Placeholder(value, Form(shape, stride, tensor.dtype, tensor.device, is_steady=True), 0)
        made.is_mixed = value is None
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse: whoever computes with a placeholder is code that cannot be seen, unless a checkpoint runs again."""
        held = nesting.tensors((args, kwargs or {}), Placeholder)
        if not is_run_active() and all(placeholder.stored is not None for placeholder in held):
            args, kwargs = nesting.replace((args, kwargs or {}), lambda placeholder: placeholder.stored, Placeholder)
            return func(*args, **kwargs)
        raise InvisibleOperationError(
            f"Cannot replay: expected to see every operation on frozen values, got '{func}' from code that torch "
            "functions do not show (scripted or compiled code, an extension, vmap). "
            "Put that code into a frozen module of its own, or cut after it: ft.split(model, x, at=<a later module>)"
        )

    def call_again(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer the call of a module that a checkpoint runs again, after the head's run has ended."""
        if self.run is None:
            return module._call_impl(*args, **kwargs)
        return self.run.call_again(module, path, args, kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Placeholder({tuple(self.shape)}, {self.dtype})"


def run_on(func: Function, args: Any, kwargs: Any, leaves: list[Tensor], hollow: int | None) -> Any:
    """Run an operation on these tensors; one that only lends its shape may be a placeholder."""
    if hollow is not None and hollow < len(leaves) and isinstance(leaves[hollow], Placeholder):
        leaves = [*leaves[:hollow], stand_in(leaves[hollow]), *leaves[hollow + 1 :]]
    real = iter(leaves)
    args, kwargs = nesting.replace((args, kwargs), lambda _: next(real))
    return func(*args, **kwargs)
