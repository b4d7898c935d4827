"""What the commands are asked for."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What `extract` is asked for; the options of the command.

    Attributes:
        data: A folder, or a table of files.
        model: By name.
        store: Path or address.
        weights, transform, download: See `make_ready`.
        at: Where to cut, if not where the frozen part ends.
        dtype: How features are stored; None: exactly.
        batch_size, workers, device: Of the extraction; None: by default.
        paths_in: The column of a table that holds the paths.
        seconds: How much of each sound to take.
        skip_bad: Whether files that cannot be read are left out rather than refused.
        progress: Whether to show a bar.
    """

    data: str
    model: str
    store: str = "thoughts"
    weights: str = "default"
    transform: str | None = None
    download: bool = False
    at: str | None = None
    dtype: Any = None
    batch_size: int | None = None
    workers: int | None = None
    device: str | None = None
    paths_in: str | None = None
    seconds: float | None = None
    skip_bad: bool = False
    progress: bool = True
