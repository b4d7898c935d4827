"""What replaying costs: a step of the split's own head against the bare layers, forward and backward."""

from statistics import median

import torch
from torch import nn

import forethought as ft
from forethought.demo.crepe import load_crepe


def measure() -> list[str]:
    """Compare on models whose forward calls modules, and on one whose forward calls functions."""
    import torchvision

    resnet = ft.freeze(torchvision.models.resnet18(weights=None), until="avgpool")
    vit = ft.freeze(torchvision.models.vit_b_16(weights=None), until="encoder")
    linear, block = nn.Linear(512, 100), nn.TransformerEncoderLayer(768, 12, 1536, dropout=0.0, batch_first=True)
    return [
        _compare("linear, 4,096 x 512", _Behind(linear, 512), linear, torch.randn(2, 512)),
        _compare("attention block, 64 x 196 x 768", _Behind(block, 768), block, torch.randn(2, 196, 768), 64, 1),
        _compare("ResNet-18, fc", resnet, resnet.fc, torch.randn(2, 3, 64, 64)),
        _compare("ViT-B/16, heads", vit, vit.heads, torch.randn(2, 3, 224, 224)),
        _compare("CREPE tiny, classifier", crepe := load_crepe("tiny"), crepe.classifier, torch.randn(2, 1024)),
    ]


class _Behind(nn.Module):
    """A head behind frozen layers."""

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).requires_grad_(False)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run both."""
        return self.head(self.body(x))


def _compare(
    name: str, model: nn.Module, bare: nn.Module, example: torch.Tensor, batch: int = 4096, steps: int = 5
) -> str:
    split = ft.split(model, example)
    tensor = split.frontier[0]
    values = tensor.from_rows(torch.randn(batch, *tensor.shape))

    def step(module: nn.Module, features: torch.Tensor) -> None:
        for _ in range(steps):
            module(features).square().mean().backward()

    given = values[:, 0] if values.ndim == 3 and not isinstance(bare, nn.TransformerEncoderLayer) else values
    step(split.head, values)
    step(bare, given)
    found = ft.timing.alternate(lambda: step(split.head, values), lambda: step(bare, given), repeats=9)
    more = median(found.a_s) - median(found.b_s)
    return f"{name}: {found}, {steps} step(s); {more / steps * 1e3:+.2f} ms a step"
