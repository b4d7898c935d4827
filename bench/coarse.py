"""A coarse classifier of pitch, trained on the nearest of 24 semitones, becomes a regressor: distance in cents.

Tones of random timbre and noise, as energies of 120 bands; a classifier of our own (120, 64, 24) learns the nearest
semitone; heads get its 64 features. `labels`: the same 3,000 labels and nothing else. `1 %`: the true pitch of 30 of
these tones besides. Ten draws of tones and classifiers, 2,000 test tones; fixed settings. Falls: of one clean tone
that rises through all classes in 2,000 steps. Nobody's labels say what lies between two semitones.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from scores import table
from torch import Tensor, nn
from torch.nn import functional as F

from forethought import heads

SEEDS, CLASSES, TRAIN, TEST, GLIDE, SHOWN = 10, 24, 3000, 2000, 2000, 30
ANCHORS = torch.arange(CLASSES) * 100.0
Answer = Callable[[Tensor], Tensor]


def measure() -> list[str]:
    """Measure both tasks."""
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        cents = torch.rand(TRAIN) * 2300
        labels = (cents / 100).round().long()
        trunk, classifier = _classifier(_tones(cents), labels)
        truth, rise = torch.rand(TEST) * 2300, torch.linspace(0, 2300, GLIDE)
        tests = [trunk(_tones(t, **how)) for t, how in ((truth, {}), (rise, {"clean": True}))]
        x = trunk(_tones(cents))
        for task, methods in (("labels", _of_labels(classifier, x, labels)), ("1 %", _of_few(classifier, x, cents))):
            for name, answer in methods.items():
                with torch.no_grad():
                    y, up = (answer(rows).double() for rows in tests)
                off = (y - truth).abs()
                between = ((truth / 100 - (truth / 100).round()).abs() > 0.25).nonzero()[:, 0]
                scores = found[task][name]
                scores["mean, cents"].append(off.mean().item())
                scores["between anchors"].append(off[between].mean().item())
                scores["within 10, %"].append((off <= 10).double().mean().item() * 100)
                scores["falls of 1,999"].append(float((up.diff() < 0).sum()))
    digits = {"mean, cents": 1, "between anchors": 1, "within 10, %": 1, "falls of 1,999": 0}
    return [line for task, rows in found.items() for line in (f"{task}:", *table(rows, digits))]


def _tones(cents: Tensor, clean: bool = False) -> Tensor:
    """Return log energies (N, 120) of harmonic tones: partials fall off by chance, noise and loudness vary."""
    rows = len(cents)
    centres = torch.linspace(-100, 6800, 120)
    slope = torch.full((rows, 1), 1.0) if clean else 0.5 + 1.5 * torch.rand(rows, 1)
    partials = torch.arange(1.0, 9.0)
    chance = 1.0 if clean else torch.rand(rows, 8) + 0.2
    heights = chance * partials.pow(-slope)
    places = cents[:, None] + 1200 * partials.log2()
    energy = (heights[:, :, None] * torch.exp(-(((places[:, :, None] - centres) / 70) ** 2) / 2)).sum(1)
    noise = 0.0 if clean else 0.05 * torch.rand(rows, 120)
    return (energy + noise + 0.02).log()


def _trained(module: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float = 3e-3) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def _classifier(x: Tensor, labels: Tensor) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    net = nn.Sequential(nn.BatchNorm1d(120), nn.Linear(120, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    _trained(net, lambda: F.cross_entropy(net(x), labels), 300, 1e-2)
    net.eval().requires_grad_(False)
    return net[:3], net[3]


def _of_labels(classifier: nn.Linear, x: Tensor, labels: Tensor) -> dict[str, Answer]:
    from coral_pytorch.layers import CoralLayer
    from coral_pytorch.losses import coral_loss, corn_loss

    coral, corn = CoralLayer(64, CLASSES), nn.Linear(64, CLASSES - 1)
    levels = (labels[:, None] > torch.arange(CLASSES - 1)).float()
    _trained(coral, lambda: coral_loss(coral(x), levels), 400, 3e-2)
    _trained(corn, lambda: corn_loss(corn(x), labels, CLASSES), 400, 3e-2)
    methods: dict[str, Answer] = {
        "peer: argmax": lambda rows: ANCHORS[classifier(rows).argmax(-1)],
        "peer: expectation over softmax": lambda rows: classifier(rows).softmax(-1) @ ANCHORS,
        "peer: CORAL, expectation": lambda rows: 100 * coral(rows).sigmoid().sum(-1),
        "peer: CORN, expectation": lambda rows: 100 * corn(rows).sigmoid().cumprod(-1).sum(-1),
        "AnchorSpline, untrained": heads.as_regressor(classifier, ANCHORS),
        "AnchorCalibrator": heads.as_regressor(classifier, ANCHORS, "calibrator", features=x, labels=labels),
    }
    for name, kind in (
        ("CumulativeLink", "cumulative"),
        ("CornHead", "corn"),
        ("HistogramHead, hl-gauss", "histogram"),
    ):
        options = {"targets": "hl-gauss", "sigma": 0.75} if kind == "histogram" else {"features": x}
        methods[name] = _head(heads.as_regressor(classifier, ANCHORS, kind, **options), x, ANCHORS[labels])
    spline = heads.as_regressor(classifier, ANCHORS, latent="linear", features=x)
    methods["AnchorSpline, linear"] = _head(spline, x, ANCHORS[labels])
    return methods


def _of_few(classifier: nn.Linear, x: Tensor, cents: Tensor) -> dict[str, Answer]:
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import RidgeCV

    few, true = x[:SHOWN], cents[:SHOWN]
    labels = (cents / 100).round() * 100
    mixed = torch.cat([true, labels[SHOWN:]])
    ridge = RidgeCV(alphas=[10.0**k for k in range(-3, 4)]).fit(few.numpy(), true.numpy())
    on_labels = RidgeCV(alphas=[10.0**k for k in range(-3, 4)]).fit(x.numpy(), mixed.numpy())
    believed = (classifier(few).softmax(-1) @ ANCHORS).numpy()
    bent = IsotonicRegression(out_of_bounds="clip").fit(believed, true.numpy())
    cumulative = heads.as_regressor(classifier, ANCHORS, "cumulative", features=x, value_weight=10.0)
    spline = heads.as_regressor(classifier, ANCHORS)
    histogram = heads.as_regressor(classifier, ANCHORS, "histogram", targets="hl-gauss", sigma=0.75)
    known = torch.ones(len(x)).index_fill_(0, torch.arange(SHOWN), 10.0)
    return {
        "peer: ridge on the 30": lambda rows: torch.from_numpy(ridge.predict(rows.numpy())),
        "peer: ridge on all": lambda rows: torch.from_numpy(on_labels.predict(rows.numpy())),
        "peer: isotonic on the expectation": lambda rows: torch.from_numpy(
            bent.predict((classifier(rows).softmax(-1) @ ANCHORS).numpy())
        ),
        "CumulativeLink": _head(cumulative, x, mixed),
        "HistogramHead, hl-gauss": _head(histogram, x, mixed, known),
        "AnchorSpline, classifier": _head(spline, x, mixed, known),
    }


def _head(head: heads.Head, x: Tensor, targets: Tensor, weights: Tensor | None = None) -> Answer:
    _trained(head.train(), lambda: head.loss(x, targets, weights), 400, 3e-3)
    head.eval().certify().raise_if_failed()
    return head
