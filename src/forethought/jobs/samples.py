"""Files as a data set whose parts show their content, so that a store knows it again without reading the files."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

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
            OSError: the file cannot be opened.
        """
        try:
            content = self.read_one(self.paths[at])
        except UnreadableError:
            return self.blank.clone(), False
        return self.prepare(content), True

    def fault(self, at: int) -> str:
        """Say why a file cannot be read."""
        try:
            self.read_one(self.paths[at])
        except (UnreadableError, OSError) as err:
            return str(err)
        return "could not be read before, and can be now"
