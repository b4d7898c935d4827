"""Split a model where its frozen part ends: no edits to the model, the same numbers to the last bit."""

import torch
from torch import nn

import forethought as ft

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
)
ft.freeze(model, until="1")  # convolution and normalisation; what follows without weights is frozen with them

split = ft.split(model, torch.randn(2, 3, 32, 32))
print(split)
print("trains:", [name for name, _ in split.head.named_parameters()])

images = torch.randn(16, 3, 32, 32)
values = split.trunk(images)
print(f"{images[0].numel():,} numbers in, {values[0].numel()} cross the frontier, for each image")
print("head(trunk(x)) equals model(x), bit for bit:", torch.equal(split.head(values), model(images)))
