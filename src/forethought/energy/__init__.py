"""What a piece of work cost in joules, measured, or honestly unknown.

    find_meters -> Meter -> Window -> Reading

Nothing here starts a thread or a process, touches the network, or knows what a model is.
"""

from forethought.energy.discovery import find_meters
from forethought.energy.meters import AllMeters, Limit, Meter, MeterReport, NoMeter
from forethought.energy.window import Reading, Window

__all__ = ["AllMeters", "Limit", "Meter", "MeterReport", "NoMeter", "Reading", "Window", "find_meters"]
