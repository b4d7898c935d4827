"""CREPE, the pitch classifier of the demo, and the two ways in which its classes are turned into a pitch.

CREPE (Kim, Salamon, Li and Bello 2018, arXiv 1802.06182) sorts 64 ms of sound into 360 classes, 20 cents
apart. Model and trained weights come with the `torchcrepe` package; nothing is downloaded.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from forethought.errors import DataError, MissingExtraError

BINS = 360
CENTS_PER_BIN = 20.0
CENTS = 1997.3794084376191 + CENTS_PER_BIN * torch.arange(BINS, dtype=torch.float64)
"""The pitch of each class in cents above 10 Hz, (360,): from 31.7 to 2005.5 Hz."""


def load_crepe(capacity: str = "tiny") -> nn.Module:
    """Load CREPE with its trained weights, in eval mode, frozen up to its last layer.

    Only `classifier` trains: a linear layer over 256 ("tiny") or 2048 ("full") features.

    Returns:
        A module from frames (B, 1024) at 16 kHz, rows of mean 0 and deviation 1, to (B, 360) in [0, 1].

    Raises:
        DataError: no such capacity.
        MissingExtraError: torchcrepe is not installed.
    """
    if capacity not in ("tiny", "full"):
        raise DataError(f"Cannot load CREPE: expected capacity 'tiny' or 'full', got {capacity!r}. load_crepe('tiny')")
    try:
        import torchcrepe  # on use: it imports librosa, scipy and torchaudio
    except ImportError as err:
        raise MissingExtraError(
            f"Cannot load CREPE: expected torchcrepe, which ships its weights, got {err}. "
            "pip install 'forethought[demo]'"
        ) from err
    weights = Path(torchcrepe.__file__).parent / "assets" / f"{capacity}.pth"
    model: nn.Module = torchcrepe.Crepe(capacity)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.requires_grad_(False).eval()
    model.get_submodule("classifier").requires_grad_(True)
    return model


def argmax_cents(outputs: Tensor) -> Tensor:
    """Take the pitch of the strongest class, one of 360: (B, 360) to cents (B,)."""
    return CENTS.to(outputs)[outputs.argmax(dim=1)]


def weighted_cents(outputs: Tensor) -> Tensor:
    """Average the pitch of the strongest class and its four neighbours on each side: (B, 360) to cents (B,).

    CREPE's own reading (`to_local_average_cents` of its authors' code), weighted by the sigmoid outputs
    themselves. `torchcrepe.decode.weighted_argmax` passes them through a second sigmoid, which flattens the
    weights, and adds up to 20 cents of random dither once per process; neither is done here.
    """
    peak = outputs.argmax(dim=1, keepdim=True)
    near = (torch.arange(BINS, device=outputs.device) - peak).abs() <= 4
    weights = outputs * near
    return (weights * CENTS.to(outputs)).sum(dim=1) / weights.sum(dim=1)


def hz_to_cents(hz: Tensor) -> Tensor:
    """Give cents above 10 Hz, CREPE's scale. Undone by `cents_to_hz`."""
    return 1200 * torch.log2(hz / 10)


def cents_to_hz(cents: Tensor) -> Tensor:
    """Undo `hz_to_cents`."""
    return 10 * 2 ** (cents / 1200)
