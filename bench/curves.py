"""How the time of an epoch grows with rows, width, heads and cores, and a picture of it: docs/pictures/growth.svg.

An epoch feeds stored float16 rows, shuffled, batch 4,096, to linear heads in `ft.fit`. `python bench/curves.py` draws,
`make bench ARGS=curves` only measures.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import forethought as ft

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "growth.svg"
ROWS, WIDTH = 100_000, 256
PANEL, HEIGHT, LEFT, TOP, BOTTOM = 230, 210, 46, 30, 40
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#333}.axis{stroke:#999;fill:none}.line{stroke:#0969da;stroke-width:2;"
    "fill:none}.dot{fill:#0969da}@media(prefers-color-scheme:dark){text{fill:#ddd}.line{stroke:#58a6ff}.dot{fill:"
    "#58a6ff}}"
)
Curve = list[tuple[int, float]]


def measure() -> list[str]:
    """Measure the four curves."""
    return [_said(name, curve) for name, curve in _curves().items()]


def _curves() -> dict[str, Curve]:
    curves: dict[str, Curve] = {"rows": [], "width": [], "heads": [], "cores": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for rows in (10**4, 10**5, 10**6, 10**7):
            curves["rows"].append((rows, _epoch(_stored(folder, rows, 64))))
        for width in (64, 256, 1024, 4096):
            curves["width"].append((width, _epoch(_stored(folder, ROWS, width))))
        features = _stored(folder, ROWS, WIDTH)
        for heads in (1, 4, 16, 64, 256):
            curves["heads"].append((heads, _epoch(features, heads)))
        threads = torch.get_num_threads()
        for cores in range(1, threads + 1):
            torch.set_num_threads(cores)
            curves["cores"].append((cores, _epoch(features, 16)))
        torch.set_num_threads(threads)
    return curves


def _stored(folder: str, rows: int, width: int) -> ft.Features:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 1)).half()
    model[0].requires_grad_(False)
    data = torch.randn(rows, 8).half(), torch.randn(rows)
    return ft.extract(model, data, folder, batch_size=8192, progress=False)


def _epoch(features: ft.Features, heads: int = 1) -> float:
    """Give the seconds of an epoch: what three epochs take beyond one, halved; the median of three."""
    width = features[0][0].shape[0]
    made = {f"h{at}": nn.Sequential(_Float(), nn.Linear(width, 1), nn.Flatten(0)) for at in range(heads)}
    few = next(features.batches(256))

    def fit(epochs: int) -> float:
        started = time.perf_counter()
        ft.fit(features, few, made, epochs=epochs, batch_size=4096, progress=False)
        return time.perf_counter() - started

    fit(1)
    return statistics.median((fit(3) - fit(1)) / 2 for _ in range(3))


class _Float(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Cast to float32."""
        return x.float()


def _said(name: str, curve: Curve) -> str:
    points = ", ".join(f"{size:,}: {seconds:.3g} s" for size, seconds in curve)
    return f"{name}: {points}; slope of the last step {_slope(curve[-2:]):.2f}"


def _slope(curve: Sequence[tuple[int, float]]) -> float:
    """Give the power by which time grows: 1 is in proportion."""
    (a, s), (b, t) = curve[0], curve[-1]
    return math.log(max(t, 1e-9) / max(s, 1e-9)) / math.log(b / a)


def _panel(at: int, name: str, curve: Curve) -> str:
    low, high = (math.log10(edge) for edge in (min(t for _, t in curve) / 1.5, max(t for _, t in curve) * 1.5))
    first, last = math.log10(curve[0][0]), math.log10(curve[-1][0])

    def place(size: int, seconds: float) -> tuple[float, float]:
        x = LEFT + (math.log10(size) - first) / (last - first) * (PANEL - LEFT - 24)
        return at * PANEL + x, HEIGHT - BOTTOM - (math.log10(seconds) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    places = [place(size, max(seconds, 10**low)) for size, seconds in curve]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/><text x="{x:.1f}" y="{y - 7:.1f}" '
        f'text-anchor="middle">{seconds:.2g}</text><text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" '
        f'text-anchor="middle">{_short(size)}</text>'
        for (x, y), (size, seconds) in zip(places, curve, strict=True)
    )
    left, right, bottom = at * PANEL + LEFT - 14, (at + 1) * PANEL - 10, HEIGHT - BOTTOM
    return (
        f'<path class="axis" d="M{left} {TOP}V{bottom}H{right}"/><polyline class="line" points="{line}"/>{dots}'
        f'<text x="{(left + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{name}</text>'
    )


def _short(size: int) -> str:
    return f"{size // 10**6}M" if size >= 10**6 else f"{size // 1000}k" if size >= 10**4 else str(size)


def draw(curves: dict[str, Curve]) -> None:
    """Write the picture: four panels, both axes logarithmic."""
    panels = "".join(_panel(at, name, curve) for at, (name, curve) in enumerate(curves.items()))
    told = "; ".join(_said(name, curve) for name, curve in curves.items())
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {4 * PANEL} {HEIGHT}" role="img"><title>Seconds of an '
        f"epoch against rows, width, heads and cores</title><desc>{told}</desc><style>{STYLE}</style>"
        f'<text x="8" y="16">seconds of an epoch, both axes logarithmic</text>{panels}</svg>\n'
    )


if __name__ == "__main__":
    found = _curves()
    print("\n".join(_said(name, curve) for name, curve in found.items()))
    draw(found)
