"""Heads trained live, one run of the frozen part a batch for all of them, against one uncached training for each."""

import torch
import torchvision
from torch import nn

import forethought as ft

ROWS, BATCH, HEADS = 512, 64, 24


def measure() -> list[str]:
    """Compare an epoch of 24 linear heads behind ResNet-18, on pictures of 64 x 64."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    ft.freeze(model, until="avgpool")
    images, labels = torch.randn(ROWS, 3, 64, 64), torch.randint(10, (ROWS,))
    few = images[:BATCH], labels[:BATCH]
    heads = {f"h{at}": nn.Linear(512, 10) for at in range(HEADS)}
    frozen = nn.Sequential(*list(model.children())[:-1], nn.Flatten())

    def together() -> None:
        measured = {"loss": "cross_entropy", "metric": "accuracy"}
        ft.fit(
            model, (images, labels), heads, val=few, run="live", epochs=1, batch_size=BATCH, progress=False, **measured
        )

    def apart() -> None:
        for head in heads.values():
            _epoch(frozen, head, images, labels)
            with torch.no_grad():
                (head(frozen(few[0])).argmax(1) == few[1]).float().mean()

    found = ft.timing.alternate(apart, together, repeats=3)
    return [f"{HEADS} linear heads behind ResNet-18, one uncached training each against live together: {found}"]


def _epoch(frozen: nn.Module, head: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """A careful person's: the frozen layers under no_grad, then the head."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for at in torch.randperm(ROWS).split(BATCH):
        with torch.no_grad():
            values = frozen(images[at])
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(values), labels[at]).backward()
        optimizer.step()
