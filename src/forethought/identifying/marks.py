"""Plain values as bytes: each with its type and its length, so that two different ones never have the same image."""

import types
from collections import OrderedDict, defaultdict
from typing import Any

import torch

from forethought.identifying.sources import qualified

SCALARS = {bool, int, float, complex, str}
NAMED_BY_STR = {torch.dtype, torch.layout, torch.memory_format, torch.device, range}
CONTAINERS = {dict, OrderedDict, defaultdict, types.MappingProxyType, list, tuple, set, frozenset, torch.Size, object}
PLAIN = {dict, OrderedDict, list, tuple, torch.Size}


def scalar_mark(value: Any) -> bytes:
    """Write a plain value with its type and length."""
    kind = type(value)
    text = value.hex() if kind is float else f"{value:x}" if kind is int else repr(value)
    raw = text.encode()
    return b"%b:%d:%b" % (kind.__name__.encode(), len(raw), raw)


def flat_mark(value: Any) -> bytes | None:
    """Write a container of plain values at once, which is faster than to remember it; None for any other."""
    is_mapping = isinstance(value, dict)
    parts = [part for item in value.items() for part in item] if is_mapping else value
    if not all(part is None or type(part) in SCALARS for part in parts):
        return None
    kind, size = qualified(type(value)).encode(), str(len(parts)).encode()
    end = [scalar_mark(None)] if is_mapping else []  # a mapping's default_factory
    return b"".join([b"container %b:%d:%b" % (kind, len(size), size), *map(scalar_mark, parts), *end])
