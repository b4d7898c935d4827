"""What it took to have the features of a data set."""

from dataclasses import dataclass

from forethought.extracting.precision import PrecisionReport
from forethought.extracting.ways import SpeedReport


@dataclass(frozen=True)
class ExtractionReport:
    """What it took to have the features.

    Attributes:
        rows: Samples in the data set.
        rows_computed: Rows that this call computed and stored. Trial runs do not count.
        rows_reused: Rows that were there, or equal another sample of the data set.
        size_bytes: Bytes of the features, as stored.
        time_s: Seconds, from the call to its return.
        energy_j: Joules; None where they were not measured.
        energy_source: What measured them, or why nothing did.
        precision: What storing them smaller saves and costs; None if they are exact.
        avoided_s: Seconds that the reused rows would have taken, at what such rows took on this machine; None if they
            never did here.
        avoided_j: Joules, likewise; None where they were not measured.
        avoided_source: Where these come from, or why there are none.
        speed: Ways to run the frozen part that were measured, and the one that was taken; None if none was asked for.
    """

    rows: int
    rows_computed: int
    rows_reused: int
    size_bytes: int
    time_s: float
    energy_j: float | None
    energy_source: str
    precision: PrecisionReport | None = None
    avoided_s: float | None = None
    avoided_j: float | None = None
    avoided_source: str = ""
    speed: SpeedReport | None = None

    def __str__(self) -> str:
        energy = "energy not measured" if self.energy_j is None else f"{self.energy_j:,.0f} J"
        stored = f" as {self.precision.dtype}" if self.precision else ""
        return (
            f"{self.rows_computed:,} rows computed, {self.rows_reused:,} reused, "
            f"{self.size_bytes / 1e6:,.1f} MB{stored}, {self.time_s:.1f} s, {energy}"
            + (f"\n{self.speed}" if self.speed else "")
        )
