"""Places of rows in a table, all of whose bytes are what was written."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.store import DamagedSegmentError, Table


def find_sound(table: Table, keys: NDArray[Any]) -> NDArray[np.int64]:
    """Find the place of each row, as `Table.locate`, in segments that were read whole and are not damaged."""
    places = table.locate(keys)
    while drop_damaged(table, places):
        places = table.locate(keys)
    return places


def drop_damaged(table: Table, places: NDArray[np.int64]) -> bool:
    """Read every segment that is to be served; leave out those whose bytes are not what was written."""
    damaged = False
    for number in np.unique(places[places[:, 0] >= 0, 0]):
        try:
            for column in table.columns:
                table.segment(int(number)).column(column.name)
        except DamagedSegmentError as err:
            table.drop(int(number), err)
            damaged = True
    return damaged
