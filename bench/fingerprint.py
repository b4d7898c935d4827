"""What a fingerprint costs: about 1 GB of frozen weights hashed, against reading and copying the same memory."""

import torch
from torch import nn

import forethought as ft
from forethought.identifying.fingerprint import fingerprint_of
from forethought.identifying.identity import Digest

WIDTH, LAYERS = 4096, 16  # 16 layers of 64 MiB


class Wide(nn.Module):
    """Frozen layers that cost memory but little time, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)).requires_grad_(False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Read every weight: a sample and its transform."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def measure() -> list[str]:
    """Compare with the threads that torch has, and with one; then weights that do not lie in order."""
    before = torch.get_num_threads()
    model = Wide()
    split = ft.split(model, torch.randn(2, WIDTH))
    weights = [layer.weight for layer in model.layers]
    size = sum(weight.nbytes for weight in weights)
    there = torch.empty_like(weights[0])
    found = []
    try:
        for threads in sorted({1, before}):
            torch.set_num_threads(threads)
            read = ft.timing.alternate(
                lambda: fingerprint_of(split.plan), lambda: [weight.sum() for weight in weights], repeats=7
            )
            copied = ft.timing.alternate(
                lambda: fingerprint_of(split.plan), lambda: [there.copy_(weight) for weight in weights], repeats=7
            )
            found.append(f"fingerprint of {size / 1e9:.2f} GB, {threads} thread(s), against a sum: {read}")
            found.append(
                f"fingerprint of {size / 1e9:.2f} GB, {threads} thread(s), against a copy: {copied}, "
                f"{size / copied.a_median_s / 1e9:.1f} GB/s"
            )
    finally:
        torch.set_num_threads(before)
    turned = weights[0].T
    blocks = ft.timing.alternate(lambda: Digest().add(turned).hex(), turned.contiguous, repeats=7)
    followed = ft.timing.alternate(lambda: split.trunk.fingerprint, lambda: fingerprint_of(split.plan), repeats=3)
    found.append(f"split.trunk.fingerprint, which looks at the model anew, against hashing alone: {followed}")
    return [*found, f"one transposed weight of {turned.nbytes / 1e6:.0f} MB, against making it contiguous: {blocks}"]


if __name__ == "__main__":
    print(*measure(), sep="\n")
