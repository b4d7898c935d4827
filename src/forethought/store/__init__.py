"""The store: rows as bytes with a shape and a dtype name, in immutable segments that check themselves.

    Store -> Table -> Segment    a tree of files; all rows of one trunk; an immutable file of rows and keys
          |        -> Writer     commits segments, whole or not at all
          -> Place               where the files lie: a Folder, a Bucket
          -> Claims              who works on what

It never imports torch and knows nothing of models. What lies on disk: docs/format.md.
"""

from forethought.store.bucket import Bucket
from forethought.store.claims import Claim, Claims
from forethought.store.column import Column
from forethought.store.folder import Folder
from forethought.store.notes import NotKeptWarning, warn_not_kept
from forethought.store.place import Place, Stamp
from forethought.store.ragged import Ragged
from forethought.store.root import Store
from forethought.store.segment import DamagedSegmentError, DamagedSegmentWarning, Segment
from forethought.store.table import Table
from forethought.store.writer import Writer

__all__ = [
    "Bucket",
    "Claim",
    "Claims",
    "Column",
    "DamagedSegmentError",
    "DamagedSegmentWarning",
    "Folder",
    "NotKeptWarning",
    "Place",
    "Ragged",
    "Segment",
    "Stamp",
    "Store",
    "Table",
    "Writer",
    "warn_not_kept",
]
