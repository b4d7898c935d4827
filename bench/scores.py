"""Tables of what several methods score over several seeds: mean and standard deviation, and paired differences."""

import statistics
from collections.abc import Mapping, Sequence

Scores = Mapping[str, Sequence[float]]  # by column, one number a seed


def spread(values: Sequence[float], digits: int) -> str:
    """Write the mean and the standard deviation over seeds."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(rows: Mapping[str, Scores], digits: Mapping[str, int]) -> list[str]:
    """Return a table in Markdown: one line a method, one column a score."""
    lines = ["| | " + " | ".join(digits) + " |", "|---|" + "---|" * len(digits)]
    for name, scores in rows.items():
        cells = [spread(scores[column], places) if column in scores else "" for column, places in digits.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def paired(ours: Sequence[float], theirs: Sequence[float], digits: int) -> str:
    """Say by how much one is less than the other, seed by seed, and in how many seeds."""
    gains = [b - a for a, b in zip(ours, theirs, strict=True)]
    return f"{spread(gains, digits)} less, in {sum(gain > 0 for gain in gains)} of {len(gains)}"
