"""The store: rows as bytes with a shape and a dtype name, in immutable segments that check themselves.

    Store -> Table -> Segment    a folder; all rows of one trunk; an immutable file of rows and keys
                   -> Writer     commits segments, whole or not at all

It never imports torch and knows nothing of models. What lies on disk: docs/format.md.
"""

from forethought.store.column import Column
from forethought.store.root import Store
from forethought.store.segment import DamagedSegmentError, DamagedSegmentWarning, Segment
from forethought.store.table import Table
from forethought.store.writer import Writer

__all__ = [
    "Column",
    "DamagedSegmentError",
    "DamagedSegmentWarning",
    "Segment",
    "Store",
    "Table",
    "Writer",
]
