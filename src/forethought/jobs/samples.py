"""Files as a data set whose parts show their content, so that a store knows it again without reading the files."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from forethought.errors import DataError
from forethought.jobs.pictures import UnreadableError


class FileSamples(Dataset[Any]):
    """What the model is given of each file, and whether the file could be read.

    A file that cannot be read gives zeros and False. So rows that are stored beside it stay in their places, and all
    such files are known after one reading, by the targets, which a store remembers.

    Args:
        paths: Of the files.
        read: Reads one.
        prepare: Turns what was read into the model's input; the same shape for each.
        blank: An input of that shape.
    """

    def __init__(
        self, paths: Sequence[str], read: Callable[[str], Any], prepare: Callable[[Any], Tensor], blank: Tensor
    ) -> None:
        self.paths = list(paths)
        self.read_one = read
        self.prepare = prepare
        self.blank = torch.zeros_like(blank)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> tuple[Tensor, bool]:
        """Give one file's input.

        Raises:
            DataError: the file cannot be opened, or its content cannot be prepared, or not as the others are.
        """
        try:
            content = self.read_one(self.paths[at])
        except UnreadableError:
            return self.blank.clone(), False
        except OSError as err:
            raise DataError(f"Cannot read '{self.paths[at]}': {err}. See that it is there and may be read") from err
        try:
            made = self.prepare(content)
        except Exception as err:
            words = " ".join(f"{type(err).__name__}: {err}".split())[:200]
            raise DataError(
                f"Cannot prepare '{self.paths[at]}': expected the transform to take it, got {words}. Mend the "
                "transform, or remove the file"
            ) from err
        if made.shape != self.blank.shape:
            raise DataError(
                f"Cannot prepare '{self.paths[at]}': expected {tuple(self.blank.shape)} as of other files, got "
                f"{tuple(made.shape)}. End the transform with one size: CenterCrop(224)"
            )
        return made, True

    def fault(self, at: int) -> str:
        """Say why a file cannot be read."""
        try:
            self.read_one(self.paths[at])
        except (UnreadableError, OSError) as err:
            return str(err)
        return "could not be read before, and can be now"
