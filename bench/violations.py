"""Steps the wrong way between neighbouring floats and on random walks: published curves against ours.

Each method is a function of one number, written as its paper or library has it, through 12 random anchors at random
knots, 100 draws; 40,000 neighbouring float32 pairs and 40,000 random steps a draw, near knots and between them. The
last column is how many of 12 anchors are not met to the last bit. Monotone trees on named columns: `make bench
ARGS=diamonds`.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from forethought.heads import AnchorCalibrator
from forethought.heads.line import AnchorCurve

DRAWS, CLASSES, PLACES, NEIGHBOURS = 100, 12, 2_500, 16
Curve = Callable[[Tensor], Tensor]


def measure() -> list[str]:
    """Count for every method."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    worst: dict[str, float] = defaultdict(float)
    for seed in range(DRAWS):
        random = torch.Generator().manual_seed(seed)
        anchors = (torch.rand(CLASSES, generator=random) + 0.01).cumsum(0) * 50
        knots = (torch.rand(CLASSES, generator=random) + 0.05).cumsum(0)
        near, far = _steps(knots, random)
        for name, curve in _curves(knots, anchors).items():
            with torch.no_grad():
                falls = [(before - after).clamp(min=0) for before, after in map(_ends(curve), (near, far))]
            count = counts[name]
            for place, fall in enumerate(falls):
                count[place] += int((fall > 0).sum())
            count[2] += near[0].numel() + far[0].numel()
            worst[name] = max(worst[name], *(float(fall.max() / anchors[-1]) for fall in falls))
            with torch.no_grad():
                count[3] += int((curve(knots).float() != anchors).sum())
    lines = [
        "| | falls between neighbours | on random steps | worst, of the range | anchors missed |",
        "|---|---|---|---|---|",
    ]
    for name, (close, wide, steps, missed) in counts.items():
        lines.append(
            f"| {name} | {close:,} of {steps // 2:,} | {wide:,} | {worst[name]:.1g} | "
            f"{missed:,} of {DRAWS * CLASSES:,} |"
        )
    return lines


def _steps(knots: Tensor, random: torch.Generator) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return pairs of neighbouring floats and pairs of random ones, half of them at the knots."""
    free = knots[0] + (knots[-1] - knots[0]) * torch.rand(PLACES // 2, generator=random)
    at = knots[torch.randint(CLASSES, (PLACES - len(free),), generator=random)]
    here = torch.cat([free, at])
    for _ in range(NEIGHBOURS // 2):
        here = torch.nextafter(here, torch.tensor(-torch.inf))
    walk = [here]
    for _ in range(NEIGHBOURS):
        walk.append(torch.nextafter(walk[-1], torch.tensor(torch.inf)))
    low = here.repeat_interleave(NEIGHBOURS)
    size = 10.0 ** (-7 * torch.rand(len(low), generator=random))
    return (torch.cat(walk[:-1]), torch.cat(walk[1:])), (low, low + size)


def _ends(curve: Curve) -> Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    return lambda pair: (curve(pair[0]), curve(pair[1]))


def _curves(knots: Tensor, anchors: Tensor) -> dict[str, Curve]:
    from scipy.interpolate import PchipInterpolator
    from sklearn.isotonic import IsotonicRegression

    pchip = PchipInterpolator(knots.numpy(), anchors.numpy())
    slopes = torch.from_numpy(pchip.derivative()(knots.numpy())).float()
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(knots.numpy(), anchors.numpy())
    thresholds = (knots[1:] + knots[:-1]) / 2
    smooth, straight = (_placed(knots, anchors, between) for between in ("rational", "linear"))
    calibrator = AnchorCalibrator(anchors).calibrate(knots[:, None], torch.arange(CLASSES))
    return {
        "peer: softmax expectation, logits from one latent": lambda s: _softmax(s, knots, anchors),
        "peer: cumulative link expectation (CORAL)": lambda s: (
            anchors[0] + (torch.sigmoid(4 * (s[:, None] - thresholds)) * anchors.diff()).sum(-1)
        ),
        "peer: straight pieces without a clamp": lambda s: _pieces(s, knots, anchors),
        "peer: rational quadratic spline (Durkan 2019)": lambda s: _durkan(s, knots, anchors, slopes),
        "peer: cubic Hermite, PCHIP's slopes": lambda s: _hermite(s, knots, anchors, slopes),
        "peer: SciPy PchipInterpolator, answers in float32": lambda s: torch.from_numpy(
            pchip(s.clamp(knots[0], knots[-1]).numpy()).astype(np.float32)
        ),
        "peer: scikit-learn IsotonicRegression": lambda s: torch.from_numpy(isotonic.predict(s.numpy())),
        "AnchorSpline, straight": straight,
        "AnchorSpline, rational": smooth,
        "AnchorCalibrator": calibrator.curve,
    }


def _placed(knots: Tensor, anchors: Tensor, between: str) -> AnchorCurve:
    line = AnchorCurve(anchors, knots="placed", between=between)
    line.place(knots)
    return line


def _softmax(s: Tensor, knots: Tensor, anchors: Tensor) -> Tensor:
    """Weights exp(a_k s + b_k) with a_k ascending, largest at their own knots: monotone in exact arithmetic."""
    return (-20 * (knots * knots - 2 * knots * s[:, None])).softmax(-1) @ anchors


def _found(s: Tensor, knots: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
    k = (torch.searchsorted(knots, s.contiguous(), right=True) - 1).clamp(0, CLASSES - 2)
    h, rise = knots[k + 1] - knots[k], anchors[k + 1] - anchors[k]
    return k, h, rise, ((s - knots[k]) / h).clamp(0, 1)


def _pieces(s: Tensor, knots: Tensor, anchors: Tensor) -> Tensor:
    k, h, rise, _ = _found(s, knots, anchors)
    inside = s.clamp(knots[0], knots[-1])
    return anchors[k] + rise * (inside - knots[k]) / h


def _durkan(s: Tensor, knots: Tensor, anchors: Tensor, slopes: Tensor) -> Tensor:
    """Neural Spline Flows, equation 4, in float32."""
    k, h, rise, z = _found(s, knots, anchors)
    m, low, high = rise / h, slopes[k], slopes[k + 1]
    return anchors[k] + rise * (m * z**2 + low * z * (1 - z)) / (m + (low + high - 2 * m) * z * (1 - z))


def _hermite(s: Tensor, knots: Tensor, anchors: Tensor, slopes: Tensor) -> Tensor:
    k, h, _, z = _found(s, knots, anchors)
    ends = anchors[k] * (2 * z**3 - 3 * z**2 + 1) + anchors[k + 1] * (3 * z**2 - 2 * z**3)
    return ends + h * (slopes[k] * (z**3 - 2 * z**2 + z) + slopes[k + 1] * (z**3 - z**2))
