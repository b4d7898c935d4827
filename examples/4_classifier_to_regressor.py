"""A classifier of 9 temperatures becomes a thermometer: sensible at once, monotone, better after a few epochs."""

import tempfile

import torch
from torch import nn

import forethought as ft

torch.manual_seed(0)
anchors = torch.linspace(10, 30, 9)  # degrees, one for each class
truth = 10 + 20 * torch.rand(2_500)
sensors = torch.tanh((truth[:, None] - torch.linspace(8, 32, 8)) / 6) + 0.03 * torch.randn(2_500, 8)
old, new = slice(0, 2_000), slice(2_000, 2_500)


def show(title: str, answers: torch.Tensor) -> None:
    """Print how far answers for the new readings are from the truth."""
    print(f"{title:<28} {(answers - truth[new]).abs().mean():.3f} degrees")


classifier = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 9))
optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
for _ in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(classifier(sensors[old]), (truth[old, None] - anchors).abs().argmin(1)).backward()
    optimizer.step()
show("classifier, strongest class", anchors[classifier(sensors[new]).argmax(1)])

ft.freeze(classifier, until="1")
with tempfile.TemporaryDirectory() as folder:
    train, test = (ft.extract(classifier, (sensors[at], truth[at]), folder, batch_size=500) for at in (old, new))
    head = ft.as_regressor(train, anchors)
    show("regressor, before training", head(test.split.trunk(sensors[new])))
    best = ft.fit(train, test, {"spline": head}, lr=3e-3, epochs=20, batch_size=250).best.head
show("regressor, after 20 epochs", best(test.split.trunk(sensors[new])))
