"""What the store costs and saves, measured: real uncached steps against real cached ones, in turn, in one run."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import forethought as ft


def measure(
    winner: ft.HeadResult, lr: float, features: ft.Features, model: nn.Module, *, batch: int, seconds: float
) -> ft.Saving:
    """Compare training steps of the winning head from the store with those of a careful person without one.

    Args:
        winner: Copies of its head are trained.
        lr: Step size.
        features: The training rows.
        model: CREPE.
        batch: Rows a step.
        seconds: To measure.
    """
    return ft.measure_saving(features, winner.head, batch_size=batch, lr=lr, trunk=by_hand(model), seconds=seconds)


def by_hand(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Give CREPE's frozen layers as its users write them out: (B, 1024) to (B, D), under `no_grad`."""

    def embedded(audio: Tensor) -> Tensor:
        with torch.no_grad():
            x = model.embed(audio)  # type: ignore[operator]
            x = model.layer(x, model.conv6, model.conv6_BN)  # type: ignore[operator]
            return x.permute(0, 2, 1, 3).reshape(-1, model.in_features)  # type: ignore[no-any-return]

    return embedded


def frozen_share(model: nn.Module, trunk: nn.Module, audio: Tensor) -> tuple[float, int]:
    """Count floating point operations a frame: the share that is frozen, and all of them."""
    counts = []
    for part in (trunk, model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part(audio)
        counts.append(counter.get_total_flops())
    return counts[0] / counts[1], counts[1] // len(audio)
