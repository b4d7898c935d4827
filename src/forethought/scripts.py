"""What a scripted module computes, the same in every process: its code, and all that the code reads."""

import re
from typing import Any

import torch
from torch import Tensor

# Files, addresses, and counts of this process.
_PLACES = re.compile(r"\s+# \S+:\d+:\d+$| object at 0x[0-9a-f]+|___torch_mangle_\d+\.?", re.MULTILINE)
_READ = re.compile(r'prim::GetAttr\[name="([^"]+)"\]')


def contents(module: torch.jit.ScriptModule) -> list[Any]:
    """List the code of a scripted module with those below it, and the tensors and values that the code reads.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     scripted = torch.jit.script(torch.nn.Linear(2, 1, bias=False))
        >>> [name for name, value in contents(scripted)[1:]]
        ['weight']
    """
    code = _PLACES.sub("", module._c.dump_to_str(True, False, False))
    names = sorted(set(_READ.findall(code)))
    read = []
    for path, inner in module.named_modules():
        held = getattr(inner, "_c", None)
        for name in names:
            value = held.getattr(name) if held is not None and held.hasattr(name) else None
            if isinstance(value, Tensor | bool | int | float | str | list | tuple | dict):
                read.append((f"{path}.{name}" if path else name, value))
    return [code, *read]
