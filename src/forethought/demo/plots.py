"""The demo's picture: answers against the truth, and a glissando through the anchors."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forethought.demo.crepe import CENTS, CENTS_PER_BIN

Array = NDArray[np.float64]


def draw(path: Path, truth: Array, answers: Array, winner: str, sweep: Array, swept: Mapping[str, Array]) -> None:
    """Write the picture.

    Args:
        path: A PNG file.
        truth: Pitch of the test frames in cents, (N,).
        answers: The winner's answers, (N,).
        winner: Its name.
        sweep: Pitch along the glissando in cents, (M,).
        swept: Answers along it by name, (M,) each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), dpi=110)
    left.plot([truth.min(), truth.max()], [truth.min(), truth.max()], color="0.6", lw=1, zorder=1)
    left.scatter(truth, answers, s=5, alpha=0.5, color="#1f6f8b", zorder=2, linewidths=0)
    left.set(
        xlabel="true pitch, cents above 10 Hz",
        ylabel="answer, cents",
        title=f"Test notes, {len(truth):,} frames\n{winner}",
    )
    middle = len(sweep) // 2
    span = slice(max(0, middle - 80), middle + 80)
    for anchor in CENTS[(sweep[span].min() <= CENTS) & (sweep[span].max() >= CENTS)].tolist():
        right.axhline(anchor, color="0.88", lw=0.8, zorder=0)
    styles = [("#d1495b", 1.2), ("#1f6f8b", 2.0), ("#e9a03b", 1.4)]
    for (name, values), (color, width) in zip(swept.items(), styles, strict=False):
        right.plot(sweep[span], values[span], color=color, lw=width, label=name)
    right.plot(sweep[span], sweep[span], color="0.4", lw=0.8, ls=":", label="truth")
    right.set(
        xlabel="true pitch, cents above 10 Hz",
        ylabel="answer, cents",
        title=f"A glissando through the classes\n(grey lines: anchors, {CENTS_PER_BIN:.0f} cents apart)",
        ylim=(sweep[span].min() - 30, sweep[span].max() + 30),
    )
    right.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
