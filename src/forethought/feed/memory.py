"""How much memory there is to hold rows in."""

import re
from pathlib import Path

import torch

from forethought.errors import DataError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def bytes_of(memory: int | str) -> int:
    """Read a size in bytes: a number, or a text such as "2GB" or "512 MiB".

    Raises:
        DataError: it is no size above 0.

    Example:
        >>> bytes_of("1.5 GB"), bytes_of(4096)
        (1500000000, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(memory))
    size = int(float(found[1]) * _UNITS.get(found[2].lower(), 0)) if found and not isinstance(memory, bool) else 0
    if size < 1:
        raise DataError(f"Cannot use memory={memory!r}: expected bytes above 0, or a text. memory='2GB'")
    return size


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Say how much memory this process may still fill, cached files that can be let go counted as free.

    The least of what Linux says is available, and of what the process's control group allows. None elsewhere.
    """
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(proc / "meminfo"))
    sizes = [int(found[1]) * 1024] if found else []
    own = re.search(r"^0::(/.*)$", _text(proc / "self/cgroup"), re.MULTILINE)
    folder = groups / own[1].lstrip("/") if own else groups
    for group in [group for group in (folder, *folder.parents) if group.is_relative_to(groups)]:
        limit = _text(group / "memory.max").strip()
        if limit.isdigit():
            cached = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            used = int(_text(group / "memory.current") or 0) - (int(cached[1]) if cached else 0)
            sizes.append(max(int(limit) - used, 0))
    return min(sizes) if sizes else None


def free_on(device: torch.device) -> int | None:
    """Say how much memory is free on a device; None where it does not say."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
