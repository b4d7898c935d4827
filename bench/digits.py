"""Rotated digits: a classifier of 24 angles, 15 degrees apart, becomes a regressor of any angle, round the circle.

scikit-learn's digits 3, 4 and 7, which turned are no other digit; whole pictures are dealt to training and test.
Training pictures are turned by multiples of 15 degrees only, test pictures by angles at least 3 degrees from those. A
classifier of our own (64, 128, 64, 24) learns the angle's class; all methods get its 64 features, or its answers. Ten
deals.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import rotate
from scores import table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from forethought import heads

SEEDS, TURNS, TESTS = 10, 12, 8
ANCHORS = torch.arange(24) * 15.0


def measure() -> list[str]:
    """Measure every method on every deal."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        (images, degrees), (held, truth) = _deal(np.random.default_rng(seed))
        labels = (degrees / 15).round().long() % 24
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 24))
        _trained(net, _crossing(net, images, labels), len(images))
        net.eval().requires_grad_(False)
        trunk, classifier = net[:4], net[4]
        x, x_held = trunk(images), trunk(held)
        for name, answer in _methods(classifier, x, degrees).items():
            with torch.no_grad():
                off = torch.remainder(answer(x_held) - truth + 180, 360) - 180
            found[name]["mean, degrees"].append(off.abs().mean().item())
            found[name]["median"].append(off.abs().median().item())
            found[name]["within 5, %"].append((off.abs() <= 5).double().mean().item() * 100)
    return table(found, {"mean, degrees": 2, "median": 2, "within 5, %": 1})


def _crossing(net: nn.Module, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda at: F.cross_entropy(net(images[at]), labels[at])


def _deal(random: np.random.Generator) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    pictures, digits = load_digits(return_X_y=True)
    pictures = pictures[np.isin(digits, (3, 4, 7))].reshape(-1, 8, 8)
    order = random.permutation(len(pictures))
    cut = len(order) * 7 // 10
    steps = random.integers(0, 24, (cut, TURNS)) * 15.0
    others = random.integers(0, 24, (len(order) - cut, TESTS)) * 15.0 + random.uniform(3, 12, (len(order) - cut, TESTS))
    return _turned(pictures[order[:cut]], steps), _turned(pictures[order[cut:]], others)


def _turned(pictures: np.ndarray, degrees: np.ndarray) -> tuple[Tensor, Tensor]:
    turned = [
        rotate(picture, angle, reshape=False, order=1)
        for picture, angles in zip(pictures, degrees, strict=True)
        for angle in angles
    ]
    return torch.from_numpy(np.stack(turned)).float().flatten(1) / 16, torch.from_numpy(degrees).float().flatten()


def _trained(
    module: nn.Module, loss: Callable[[Tensor], Tensor], rows: int, epochs: int = 30, lr: float = 3e-3
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for at in torch.randperm(rows).split(128):
            optimizer.zero_grad()
            loss(at).backward()
            optimizer.step()
        schedule.step()


def _methods(classifier: nn.Linear, x: Tensor, degrees: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    from sklearn.linear_model import RidgeCV

    point = torch.stack([(degrees * torch.pi / 180).cos(), (degrees * torch.pi / 180).sin()], 1)
    ridge = RidgeCV(alphas=[10.0**k for k in range(-3, 4)]).fit(x.numpy(), point.numpy())
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    _trained(network, lambda at: F.mse_loss(network(x[at]), point[at]), len(x))
    ours = {
        "CircularSpline, untrained": heads.as_regressor(classifier, ANCHORS, "circular", period=360.0),
        "CircularSpline, classifier, trained": heads.as_regressor(classifier, ANCHORS, "circular", period=360.0),
        "CircularSpline, linear": heads.CircularSpline(64, ANCHORS, 360.0),
        "CircularSpline, mlp": heads.CircularSpline(64, ANCHORS, 360.0, latent="mlp"),
    }
    for name, head in ours.items():
        lr = 3e-2 if "linear" in name else 3e-3
        if "untrained" not in name:
            _trained(head, lambda at, head=head: head.loss(x[at], degrees[at]), len(x), lr=lr)
        head.eval().certify().raise_if_failed()
    return {
        "peer: argmax": lambda rows: ANCHORS[classifier(rows).argmax(-1)],
        "peer: expectation over softmax, seam and all": lambda rows: classifier(rows).softmax(-1) @ ANCHORS,
        "peer: ridge on sin, cos": lambda rows: _angle(torch.from_numpy(ridge.predict(rows.numpy()))),
        "peer: MLP 64 on sin, cos": lambda rows: _angle(network(rows)),
        **ours,
    }


def _angle(point: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(point[:, 1], point[:, 0])).float()
