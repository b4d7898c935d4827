"""Feed stored rows as batches, at memory speed.

    Order -> Source -> Courier -> Feed
    which rows come when; where they lie; how they reach the device; the batches, and where they stand

An exact shuffle is of all rows. Where memory cannot hold them, blocks of neighbouring rows are shuffled instead, and as
many blocks as fit are mixed with one another: `Mixing` says how well.
"""

from forethought.feed.columns import Brings, Brought, Column
from forethought.feed.iterator import Feed, Request
from forethought.feed.memory import available_bytes, bytes_of
from forethought.feed.opening import Rows
from forethought.feed.orders import Mixing, Shard, exact
from forethought.feed.sources import Source
from forethought.feed.uneven import InputSizes, count_entries, evened

__all__ = [
    "Brings",
    "Brought",
    "Column",
    "Feed",
    "InputSizes",
    "Mixing",
    "Request",
    "Rows",
    "Shard",
    "Source",
    "available_bytes",
    "bytes_of",
    "count_entries",
    "evened",
    "exact",
]
