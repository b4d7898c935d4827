"""What kinds of torch functions there are, seen from a function mode: which read shapes, and which read values."""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from forethought.errors import SplitError

# Attribute reads that give a tensor: operations like any other. All other reads (shape, dtype, ...) are not counted:
# their number may differ between a first and a later run, because models cache by shape or device.
_TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "real", "imag", "data"}

# Methods and functions that tell about a tensor without reading its values.
_ABOUT = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "is_floating_point",
    "is_complex", "is_signed", "is_same_size", "get_device", "element_size", "is_pinned", "is_shared", "has_names",
    "is_inference", "is_conj", "is_neg", "is_tensor", "is_storage", "result_type", "can_cast", "__len__", "dim_order",
    "is_coalesced", "sparse_dim", "dense_dim", "__hash__", "register_hook", "retain_grad",
    "is_distributed", "names", "requires_grad_",
}  # fmt: skip

# Functions whose result depends on the shape, dtype and device of their first argument, not on its values.
_LIKE = {
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided",
}  # fmt: skip

# Methods by which code that no mode sees gets a way into a tensor's memory.
_OPENS = {
    "numpy", "__array__", "__dlpack__", "to_dlpack", "untyped_storage", "storage", "_typed_storage", "data_ptr",
}  # fmt: skip

# Methods whose second argument only lends its shape or type.
_SHAPED_BY_OTHER = {"expand_as", "view_as", "reshape_as", "type_as"}

_COUNTS = {"unbind", "__iter__", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "split_with_sizes"}
# Functions that draw random numbers.
_DRAWS = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "normal",
    "multinomial", "poisson", "uniform", "random", "exponential", "cauchy", "log_normal", "geometric", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "rrelu",
    "standard_gamma", "_standard_gamma", "_sample_dirichlet", "gumbel_softmax",
}  # fmt: skip
_SIZES = {"shape", "size", "numel", "nelement", "__len__", "stride", "nbytes", "is_same_size"}
# Python asks the operand of the more special class first, with the comparison turned round: `a < p` becomes `p > a`.
_TURNED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}

_OWNERS = {"TensorBase": "Tensor", "torch._C._nn": "torch.nn.functional"}
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

Function = Callable[..., Any]

# Kinds of functions that live as long as torch does: what is remembered of one keeps no model alive.
_LASTING = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType)


def name_of(func: Function) -> str:
    """Name a torch function, the same in every process: `torch.nn.functional.linear`, `Tensor.add_`."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"torch.ops.{func}"  # its module and name are those of the binding, which depend on the compiler
    owner = getattr(func, "__self__", None)
    if func_name(func) == "__get__" and owner is not None:
        return f"Tensor.{owner.__name__}"
    module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__name__", None)
    name = getattr(func, "__qualname__", func_name(func))
    return f"{module or 'torch'}.{func_name(func) if '<locals>' in name else name}"  # F.max_pool2d is a local function


def shown_name(func: Function) -> str:
    """Name a torch function as its user calls it: `torch.rand`, `Tensor.item`."""
    kind, _, name = name_of(func).rpartition(".")
    owner = kind.removesuffix(".TensorBase").removesuffix("._VariableFunctionsClass").replace("torch._tensor.", "")
    return f"{_OWNERS.get(owner, owner)}.{name}"


def code_of(func: Function) -> Any:
    """Give what a function computes with that its name does not tell: a script, or functions in Python.

    Those are behind a `torch.library.custom_op`, or are functions of the user's that torch dispatches as its own.
    """
    owner = getattr(func, "__self__", None)
    if isinstance(func, torch.jit.ScriptFunction) or isinstance(owner, torch.jit.ScriptModule):
        return owner or func
    if getattr(type(owner), "has_shell", False):  # the trunk of a split inside this model has a fingerprint of its own
        return None
    if isinstance(func, types.FunctionType | types.MethodType | functools.partial):
        module = getattr(func, "__module__", "") or ""
        return None if module.split(".")[0] == "torch" else func
    if not isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return None
    name = func._schema.name if isinstance(func, torch._ops.OpOverload) else func._qualified_op_name
    made = torch._library.custom_ops.OPDEFS.get(name)
    return None if made is None else [made._init_fn, made._backend_fns]


def check_unpatched(func: Function) -> None:
    """Refuse a function that somebody put in the place of a method of tensors that is made in C.

    A mode is given that function by torch, and so runs it around a call that it makes itself: its effect comes twice.

    Raises:
        SplitError: it is one.
    """
    if not isinstance(func, types.FunctionType) or str(func.__globals__.get("__name__")).startswith("torch."):
        return
    for name, item in vars(Tensor).items():
        if item is func and hasattr(torch._C.TensorBase, name):
            raise SplitError(
                f"Cannot watch torch.Tensor.{name}: expected torch's own, got a function in its place, which torch "
                "runs twice where operations are watched. Put its own back: "
                f"torch.Tensor.{name} = torch._C.TensorBase.{name}"
            )


def check_alone() -> None:
    """Refuse to watch operations beside a function mode of the user's: two modes give each other other functions.

    Raises:
        SplitError: such a mode is on. Those of torch (`with torch.device(...)`) are no harm.
    """
    for mode in _get_current_function_mode_stack():
        kind = type(mode)
        if not f"{kind.__module__}.".startswith(("torch.", "forethought.")):
            raise SplitError(
                f"Cannot watch operations: expected no TorchFunctionMode beside torch's own, got {kind.__qualname__}. "
                "Split outside of its `with` block."
            )


@dataclass(frozen=True, slots=True)
class Traits:
    """What the name of a torch function tells about it."""

    asks: bool | None  # only about shape, dtype or place; None for `type`, which may convert
    asks_size: bool
    counts: bool
    draws: bool
    is_iterator: bool
    opens: bool  # gives code that no mode sees a way into the memory
    shape_only: int | None
    is_lasting: bool  # made in C: nobody has put it in the place of another


def traits_of(func: Function) -> Traits:
    """Give all of that at once: what is watched asks for it at each operation."""
    return _known_traits(func) if isinstance(func, _LASTING) else _traits(func)


def _traits(func: Function) -> Traits:
    is_iterator, opens, is_lasting = (
        func_name(func) == "__iter__",
        func_name(func) in _OPENS,
        isinstance(func, _LASTING),
    )
    return Traits(
        _asks(func), asks_size(func), counts(func), draws(func), is_iterator, opens, shape_only(func), is_lasting
    )


_known_traits = functools.lru_cache(maxsize=2048)(_traits)


def func_name(func: Function) -> str:
    """Give the bare name of a torch function."""
    return getattr(func, "__name__", type(func).__name__)


def is_turned(func: Function, other: Function) -> bool:
    """Say whether one function is the other comparison read from right to left."""
    return _TURNED.get(func_name(func).strip("_")) == func_name(other).strip("_")


def is_about(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> bool:
    """Say whether a call only asks about shape, dtype or place, so that a placeholder can answer it."""
    asks = traits_of(func).asks if isinstance(func, _LASTING) else _asks(func)
    return asks if asks is not None else len(args) == 1 and not kwargs


def _asks(func: Function) -> bool | None:
    """Say whether a function only asks about a tensor; None for `type`, which may convert it."""
    name = func_name(func)
    if name == "type":
        return None
    if name in {"__get__", "__set__", "__delete__"}:
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        return not (name == "__get__" and attribute in _TENSOR_ATTRIBUTES)
    return name in _ABOUT


def asks_size(func: Function) -> bool:
    """Say whether a call tells Python a size."""
    return getattr(getattr(func, "__self__", None), "__name__", func_name(func)) in _SIZES


def counts(func: Function) -> bool:
    """Say whether the size of a tensor decides how many tensors a function gives."""
    return func_name(func) in _COUNTS


def draws(func: Function) -> bool:
    """Say whether a function may draw random numbers."""
    return func_name(func).rstrip("_") in _DRAWS


def is_native(func: Function) -> bool:
    """Say whether a function is torch's own, or torchvision's: what decides the sizes that it gives is known."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(func).partition(".")[0] in {"aten", "prims", "torchvision", "quantized"}
    owner = getattr(func, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        return False  # a scripted module, seen as one operation
    place = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__module__", None)
    return place is None or str(place).partition(".")[0] in {"torch", "_thread", "builtins"}


def shape_only(func: Function) -> int | None:
    """Give the position, among the tensors of a call, of one that lends its shape but not its values."""
    return _shaped_by(func_name(func))


_shaped_by = (dict.fromkeys(_LIKE, 0) | dict.fromkeys(_SHAPED_BY_OTHER, 1)).get


def packed(func: Function, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give attention its inputs without gaps: torch transposes them, and multiplies such ones several times slower.

    The numbers are the same but for rounding, shapes and strides of what it gives are the same.
    """
    if func is not functional.multi_head_attention_forward:
        return args
    dense = {id(tensor): tensor.contiguous() for tensor in args[:3]}
    return (*(dense[id(tensor)] for tensor in args[:3]), *args[3:])  # one tensor given thrice stays one


def stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """Make a real tensor of a placeholder's shape, strides, dtype and device; its values are never read."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def bare(tensor: torch.Tensor) -> torch.Tensor:
    """Give the tensor inside the wrappers that `torch.func` puts around it (vmap, grad)."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
