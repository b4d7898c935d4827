"""What a split costs: `ft.split` itself against one forward pass, and its trunk against the same frozen layers bare."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import forethought as ft


def measure() -> list[str]:
    """Time both on convolutional and on attention models."""
    return [*_splits(), *_trunks()]


def _splits() -> list[str]:
    import timm
    import torchvision

    def small(weights: None) -> nn.Module:
        return timm.create_model("efficientformerv2_s0")

    makers = {
        "ResNet-18": (torchvision.models.resnet18, "avgpool"),
        "ResNet-50": (torchvision.models.resnet50, "avgpool"),
        "ViT-B/16": (torchvision.models.vit_b_16, "encoder"),
        "EfficientFormerV2-S0, 416 modules": (small, "norm"),
    }
    lines = []
    for name, (make, until) in makers.items():
        model = ft.freeze(make(weights=None).eval(), until=until)
        for batch in (2, 8):
            x = torch.randn(batch, 3, 224, 224)
            lines.append(f"ft.split of {name}, batch {batch}: {_times(lambda: ft.split(model, x), lambda: model(x))}")  # noqa: B023
    return lines


def _times(ours: Callable[[], object], one: Callable[[], object]) -> str:
    """Give the median ratio of 9 pairs, each run once."""
    one()
    ratios = []
    for _ in range(9):
        started = time.perf_counter()
        one()
        between = time.perf_counter()
        ours()
        ratios.append((time.perf_counter() - between) / (between - started))
    return f"{median(ratios):.1f} forward passes ({min(ratios):.1f} to {max(ratios):.1f} in 9 pairs)"


class _VisionTrunk(nn.Module):
    """The frozen part of a ViT, called as its own forward calls it."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the class token (B, 768)."""
        tokens = self.vit._process_input(x)
        tokens = torch.cat([self.vit.class_token.expand(len(x), -1, -1), tokens], 1)
        return self.vit.encoder(tokens)[:, 0]


def _trunks() -> list[str]:
    import torchvision

    resnet = ft.freeze(torchvision.models.resnet18(weights=None).eval(), until="avgpool")
    vit = ft.freeze(torchvision.models.vit_b_16(weights=None).eval(), until="encoder")
    pairs = {
        "ResNet-18, batch 16": (resnet, nn.Sequential(*list(resnet.children())[:-1], nn.Flatten()), 16),
        "ViT-B/16, batch 2": (vit, _VisionTrunk(vit), 2),
    }
    lines = []
    for name, (model, bare, batch) in pairs.items():
        x = torch.randn(batch, 3, 224, 224)
        trunk = ft.split(model, x).trunk
        lines.append(f"trunk of {name}: {ft.timing.alternate(lambda: trunk(x), lambda: bare(x), repeats=9)}")  # noqa: B023
    return lines
