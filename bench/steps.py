"""What replaying costs: a step of the split's own head against the bare layer, forward and backward, batch 4,096."""

import torch
from torch import nn

import forethought as ft
from forethought.demo.crepe import load_crepe


def measure() -> list[str]:
    """Compare on models whose forward calls modules, and on one whose forward calls functions."""
    import torchvision

    resnet = ft.freeze(torchvision.models.resnet18(weights=None), until="avgpool")
    vit = ft.freeze(torchvision.models.vit_b_16(weights=None), until="encoder")
    return [
        _compare("ResNet-18, fc", resnet, resnet.fc, torch.randn(2, 3, 64, 64)),
        _compare("ViT-B/16, heads", vit, vit.heads, torch.randn(2, 3, 224, 224)),
        _compare("CREPE tiny, classifier", crepe := load_crepe("tiny"), crepe.classifier, torch.randn(2, 1024)),
    ]


def _compare(name: str, model: nn.Module, bare: nn.Module, example: torch.Tensor) -> str:
    split = ft.split(model, example)
    tensor = split.frontier[0]
    values = tensor.from_rows(torch.randn(4096, *tensor.shape))

    def step(module: nn.Module, features: torch.Tensor) -> None:
        for _ in range(5):
            module(features).square().mean().backward()

    given = values[:, 0] if values.ndim == 3 else values
    found = ft.timing.alternate(lambda: step(split.head, values), lambda: step(bare, given), repeats=9)
    return f"{name}: {found}, 5 steps"
