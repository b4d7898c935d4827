"""What a store holds, whether it is sound, and what may go.

inventory                        what it holds, what that cost, when it was last of use
verify_store                     every byte read; each damaged file named
verify_live, verify_live_each    rows of some samples against the model itself, stored in one way or in each
find_garbage -> remove_garbage   what may go and why, then its removal
"""

from forethought.housekeeping.garbage import Garbage, find_garbage, remove_garbage
from forethought.housekeeping.holdings import Holding, inventory
from forethought.housekeeping.liveness import verify_live, verify_live_each
from forethought.housekeeping.soundness import Fault, Findings, verify_store
from forethought.housekeeping.unreachable import Piece

__all__ = [
    "Fault",
    "Findings",
    "Garbage",
    "Holding",
    "Piece",
    "find_garbage",
    "inventory",
    "remove_garbage",
    "verify_live",
    "verify_live_each",
    "verify_store",
]
