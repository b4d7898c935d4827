"""Draw what each head does between its anchors: docs/pictures/*.svg, which docs/heads.md shows.

    python bench/pictures.py

Run by hand when a head changes. The files are small, hold no script, and follow the reader's light or dark setting.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from forethought import heads

OUT = Path(__file__).parent.parent / "docs" / "pictures"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 270, 44, 12, 34, 40
ANCHORS = torch.tensor([60.0, 62.0, 67.0, 68.0])
LINE = torch.linspace(-0.75, 3.75, 181)
STYLE = """
text{font:12px system-ui,sans-serif;fill:#333}.axis{stroke:#999;stroke-width:1;fill:none}
.grid{stroke:#999;stroke-width:.6;stroke-dasharray:2 3}
.line{fill:none;stroke-width:2}
.a{stroke:#0969da}.b{stroke:#bc4c00;stroke-dasharray:6 3}.c{stroke:#8250df;stroke-dasharray:2 3}
.ta{fill:#0969da}.tb{fill:#bc4c00}.tc{fill:#8250df}.dot{fill:#333}.row{fill:#999;opacity:.5}
@media(prefers-color-scheme:dark){text,.dot{fill:#ddd}.a{stroke:#58a6ff}.b{stroke:#f0883e}.c{stroke:#bc8cff}
.ta{fill:#58a6ff}.tb{fill:#f0883e}.tc{fill:#bc8cff}}
""".replace("\n", "")


def draw(
    name: str,
    across: str,
    curves: Mapping[str, tuple[Tensor, Tensor]],
    dots: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor] | None = None,
    heights: tuple[float, float] = (58.5, 69.5),
) -> None:
    """Write one picture: up to three curves by label, the anchors as dots, samples as faint rows."""
    low = min(float(x.min()) for x, _ in curves.values())
    high = max(float(x.max()) for x, _ in curves.values())

    def at(x: float, y: float) -> tuple[float, float]:
        share = (min(max(y, heights[0]), heights[1]) - heights[0]) / (heights[1] - heights[0])
        return (
            round(LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">',
        f"<style>{STYLE}</style>",
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{across}</text>',
    ]
    for y in (dots[1].unique() if len(dots[1]) else torch.tensor([60.0, 64.0, 68.0])).tolist():
        _, height = at(low, y)
        parts.append(f'<path class="grid" d="M{LEFT} {height}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4}" text-anchor="end">{y:g}</text>')
    for x, y in zip(*(one.tolist() for one in rows), strict=True) if rows else ():
        parts.append('<circle class="row" cx="{}" cy="{}" r="1.6"/>'.format(*at(x, y)))
    for place, (label, (xs, ys)) in enumerate(curves.items()):
        points = (at(x, y) for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        parts.append(f'<path class="line {"abc"[place]}" d="{path}"/>')
        parts.append(f'<text class="t{"abc"[place]}" x="{LEFT + 128 * place}" y="20">{label}</text>')
    for x, y in zip(*(one.tolist() for one in dots), strict=True):
        parts.append('<circle class="dot" cx="{}" cy="{}" r="3.5"/>'.format(*at(x, y)))
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.svg").write_text("\n".join([*parts, "</svg>\n"]))


def _spline() -> None:
    straight, smooth = heads.AnchorSpline(1, ANCHORS), heads.AnchorSpline(1, ANCHORS, between="rational")
    on = heads.AnchorSpline(1, ANCHORS, extrapolate="linear")
    labels = {"straight": straight, "rational": smooth, "extrapolate": on}
    curves = {label: (LINE, head.curve(LINE)) for label, head in labels.items()}
    draw("spline", "latent, in classes", curves, (straight.knots, ANCHORS))


def _cumulative() -> None:
    thresholds = torch.arange(3) + 0.5

    def expected(sharpness: float) -> Tensor:
        return ANCHORS[0] + (torch.sigmoid(sharpness * (LINE[:, None] - thresholds)) * ANCHORS.diff()).sum(-1)

    remap = heads.CumulativeLink(1, ANCHORS)
    curves = {
        "remap (default)": (LINE, remap.curve(LINE)),
        "expectation, 2": (LINE, expected(2)),
        "expectation, 12": (LINE, expected(12)),
    }
    draw("cumulative", "latent, in classes; a number is how sharp the link is", curves, (remap.line.knots, ANCHORS))


def _histogram() -> None:
    def decoded(sharpness: float, **options: object) -> Tensor:
        head = heads.HistogramHead(4, ANCHORS, window=0, **options)
        logits = -sharpness * (torch.arange(4) - LINE[:, None]).square()
        return _read(head, logits)

    curves = {
        "mean": (LINE, decoded(1.0)),
        "trim=0.25": (LINE, decoded(1.0, trim=0.25)),
        "local, window 0": (LINE, decoded(1.0, decode="local")),
    }
    draw("histogram", "where the weights are centred, in classes", curves, (torch.arange(4.0), ANCHORS))


def _read(head: heads.HistogramHead, logits: Tensor) -> Tensor:
    """Return the answers to these logits: the identity as the head's network."""
    linear = head.net[-1]
    with torch.no_grad():
        linear.weight.copy_(torch.eye(4))
        linear.bias.zero_()
        return head(logits)


def _corn() -> None:
    def passed(sharpness: float) -> Tensor:
        odds = torch.sigmoid(sharpness * (LINE[:, None] - torch.arange(3) - 0.5))
        return ANCHORS[0] + (odds.cumprod(-1) * ANCHORS.diff()).sum(-1)

    curves = {"broad": (LINE, passed(3.0)), "sharp": (LINE, passed(12.0))}
    draw("corn", "a latent that all rank logits share, in classes", curves, (torch.arange(4.0), ANCHORS))


def _prototype() -> None:
    torch.manual_seed(1)
    points = torch.randn(4, 6)
    path = torch.cat([points[k] + (points[k + 1] - points[k]) * torch.linspace(0, 1, 41)[:, None] for k in range(3)])
    head = heads.PrototypeExact(6, ANCHORS, points, dtype=torch.float64)
    beside = path + 0.5 * torch.randn(6)
    across = torch.linspace(0, 3, len(path))
    with torch.no_grad():
        curves = {"at prototypes": (across, head(path.double())), "beside them": (across, head(beside.double()))}
    draw("prototype", "a walk from prototype to prototype", curves, (torch.arange(4.0), ANCHORS))


def _partial() -> None:
    torch.manual_seed(5)
    head = heads.PartialMonotone(2, [60.0, 68.0], [1, 0], hidden=(8,)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.6 * torch.randn_like(parameter))
    named = torch.linspace(-2.5, 2.5, 181)
    curves = {}
    for label, other in (("other = -2", -2.0), ("other = 0", 0.0), ("other = 2", 2.0)):
        with torch.no_grad():
            curves[label] = (named, head(torch.stack([named, torch.full_like(named, other)], 1)))
    draw("partial", "the named feature, in deviations", curves, (torch.empty(0), torch.tensor([])))


def _calibrator() -> None:
    torch.manual_seed(0)
    labels = torch.arange(120) % 4
    scores = torch.tensor([0.0, 0.9, 1.4, 3.0])[labels] + 0.16 * torch.randn(120)
    head = heads.AnchorCalibrator(ANCHORS).calibrate(scores[:, None], labels)
    across = torch.linspace(-0.6, 3.6, 181)
    rows = (scores, ANCHORS[labels] + 0.25 * torch.randn(120))
    draw("calibrator", "any frozen score", {"read off": (across, head.curve(across))}, (head.line.knots, ANCHORS), rows)


def _circular() -> None:
    hours = torch.tensor([3.0, 9.0, 14.0, 20.0])
    head = heads.CircularSpline(1, hours, 24.0)
    turn = torch.linspace(0, 4, 401)
    y = head.curve(turn)
    seam = int(y.diff().argmin()) + 1
    curves = {"before the seam": (turn[:seam], y[:seam]), "after it": (turn[seam:], y[seam:])}
    draw("circular", "place on the circle of classes", curves, (torch.arange(4.0), hours), heights=(-1.0, 25.0))


def _mlp() -> None:
    torch.manual_seed(3)
    x = torch.cat([k + 0.12 * torch.randn(6) for k in range(4)])
    y = ANCHORS[torch.arange(4).repeat_interleave(6)]
    head = heads.MLPHead(1, ANCHORS, hidden=(64, 64))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(600):
        optimizer.zero_grad()
        head.loss(x[:, None], y).backward()
        optimizer.step()
    with torch.no_grad():
        curves = {"free network, trained on labels": (LINE, head(LINE[:, None]))}
    draw("mlp", "a feature; samples of four classes", curves, (torch.arange(4.0), ANCHORS), (x, y))


PICTURES: tuple[Callable[[], None], ...] = (
    _spline, _cumulative, _histogram, _corn, _prototype, _partial, _calibrator, _circular, _mlp,
)  # fmt: skip


if __name__ == "__main__":
    for picture in PICTURES:
        with torch.no_grad() if picture is not _mlp else torch.enable_grad():
            picture()
