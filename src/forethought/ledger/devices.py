"""Accelerators, as far as an account needs them: wait until they are done, and which of them are ours."""

import torch


def synchronize() -> None:
    """Wait until every accelerator that this process uses has done what was asked of it. Starts none."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in _used():
            torch.cuda.synchronize(device)
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def _used() -> list[int]:
    """CUDA devices on which this process has begun anything: waiting for another would begin there."""
    count = torch.cuda.device_count()
    has_context = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    return [at for at in range(count) if has_context(at)] if has_context else [torch.cuda.current_device()]


def visible_gpus() -> list[str] | None:
    """UUIDs of the GPUs that this process may use; None, all of the machine, while it has not begun to use any."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    found = [getattr(torch.cuda.get_device_properties(at), "uuid", None) for at in range(torch.cuda.device_count())]
    known = [str(uuid) for uuid in found if uuid is not None]
    return known if len(known) == len(found) else None
