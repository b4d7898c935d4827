"""One draw of every sample of a data set, and samples that were fetched together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class View:
    """One draw of every sample.

    Attributes:
        places: (N, 2): segment and row of each sample.
        targets: Whatever the data set holds beside the inputs.
    """

    places: NDArray[np.int64]
    targets: Any


class Fetched(list[Any]):
    """Samples fetched together, one by one for torch's DataLoader; `batch` is all of them at once."""

    join: Callable[[], tuple[Any, ...]]

    @property
    def batch(self) -> tuple[Any, ...]:
        """All samples at once, as `batches` gives them."""
        return self.join()
