"""What a piece of work cost in joules, measured, or honestly unknown.

    find_meters -> Meter -> Window -> Reading

Nothing here starts a thread, touches the network, or knows what a model is, and no process is started but the command
that a user names as a wall meter.
"""

from forethought.energy.discovery import find_meters
from forethought.energy.load import Load
from forethought.energy.meters import AllMeters, DeclaredMeter, Limit, Meter, MeterReport, NoMeter
from forethought.energy.ownership import Ownership
from forethought.energy.wall import WallMeter
from forethought.energy.window import Reading, Window

__all__ = [
    "AllMeters",
    "DeclaredMeter",
    "Limit",
    "Load",
    "Meter",
    "MeterReport",
    "NoMeter",
    "Ownership",
    "Reading",
    "WallMeter",
    "Window",
    "find_meters",
]
