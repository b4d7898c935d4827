"""Train many heads in one pass over the features, each as it would train alone, and take the best."""

import tempfile

import torch
from torch import nn

import forethought as ft

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
ft.freeze(model, until="1")

inputs = torch.randn(3_000, 20)
targets = (inputs[:, 0] * inputs[:, 1] + inputs[:, 2])[:, None]
heads = {f"linear, lr {lr:g}": nn.Linear(64, 1) for lr in (1e-3, 1e-2)}
heads |= {f"mlp {width}": nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 1)) for width in (16, 128)}

with tempfile.TemporaryDirectory() as folder:
    train = ft.extract(model, (inputs[:2_500], targets[:2_500]), folder, batch_size=500)
    held_out = ft.extract(model, (inputs[2_500:], targets[2_500:]), folder, batch_size=500)
    results = ft.fit(
        train,
        held_out,
        heads,
        lr={"linear, lr 0.001": 1e-3, "linear, lr 0.01": 1e-2, "mlp 16": 3e-3, "mlp 128": 3e-3},
        epochs=15,
        batch_size=250,
    )
print(results.table())
print("best:", results.best.name)
