"""What the commands are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        more: Folders or tables of other parts, "val" and "test".
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
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, str]:
        """Folders and tables by the part that they are of."""
        return {"train": self.data, **self.more}


@dataclass(frozen=True)
class AskedFit:
    """What `fit` is asked for beside an extraction.

    Attributes:
        heads: As they are typed; none: a few.
        sweeps: What is tried with them, as it is typed.
        targets: Names of columns; none: the only one there is.
        task: "classes" or "numbers"; None: as the columns look.
        val: A share of the files, or a folder or table of its own.
        test: Likewise.
        split: The column that names the part of each file.
        seed: Of the division, and of the heads.
        epochs, patience: Of training.
        head_batch: Rows a step; None: by the number of rows.
        out: Folder for what comes out.
        save: Whether to save the assembled model, too.
    """

    heads: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    task: str | None = None
    val: str = "0.2"
    test: str = "0.1"
    split: str | None = None
    seed: int = 0
    epochs: int = 50
    patience: int = 10
    head_batch: int | None = None
    out: str = "forethought-fit"
    save: bool = False
