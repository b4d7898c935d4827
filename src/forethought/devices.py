"""Devices that are asked for: there, or refused before anything is done for them."""

import torch

from forethought.errors import DeviceError


def present(device: str | torch.device) -> torch.device:
    """Give a device that this machine has.

    Raises:
        DeviceError: it has none of this name.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as err:
        reason = str(err).strip().partition("\n")[0]
        raise DeviceError(
            f"Cannot use device {str(device)!r}: expected one that this machine has, got none that answers "
            f"({reason:.120}). Leave device= out, or pass device='cpu'; forethought doctor lists what is here"
        ) from err
    return where
