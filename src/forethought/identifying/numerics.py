"""The settings outside any model that change what torch computes."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack


def numeric_state(device: str) -> tuple[Any, ...]:
    """Give the settings outside any model that change what torch computes.

    Rows are the same on all devices, so what is set for another device counts, too.

    Args:
        device: Kind of device whose autocast counts.
    """
    backends: Any = torch.backends
    cuda = backends.cuda.matmul
    precisions = [_precision(place) for place in (backends, backends.mkldnn.matmul, backends.mkldnn.conv, cuda)]
    reduced = [
        getattr(cuda, f"allow_{name}", False)
        for name in ("fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction", "fp16_accumulation")
    ]
    return (
        str(torch.get_default_dtype()),
        torch.is_autocast_enabled(device),
        str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
        _legacy(torch.get_float32_matmul_precision),
        [*precisions, _precision(backends.cudnn.conv), _precision(backends.cudnn.rnn)],
        _legacy(lambda: (cuda.allow_tf32, backends.cudnn.allow_tf32)),
        [str(setting) for setting in reduced],
        sys.float_info.min / 2 == 0,  # torch.set_flush_denormal
        *_modes(),
    )


def _modes() -> list[Any]:
    """List the modes of the user's that are on: they may change what any operation gives."""
    known = ("torch.", "forethought.")  # those of torch choose a device, or count
    stacks = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    modes = [mode for mode in stacks if not f"{type(mode).__module__}.".startswith(known)]
    own = vars(TorchDispatchMode()).keys() if modes else ()
    return [(type(mode), {name: held for name, held in vars(mode).items() if name not in own}) for mode in modes]


def _precision(place: Any) -> str:
    """Read a float32 precision; not set is the exact one, which torch writes so once it was set and put back."""
    precision = str(getattr(place, "fp32_precision", "none"))
    return "ieee" if precision == "none" and place is not getattr(torch.backends.cudnn, "conv", None) else precision


def _legacy(read: Callable[[], Any]) -> Any:
    """Read an old setting; torch refuses to tell it once the new ones were used, which then count."""
    try:
        return read()
    except RuntimeError:
        return "superseded"
