"""Ways to run the frozen part that give nearly the same rows sooner: what each is, and what measuring them showed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from forethought.errors import DataError
from forethought.identifying.identity import Digest

VERSION = 1
TOLERANCE = 0.02


@dataclass(frozen=True)
class Way:
    """One way to run the frozen part.

    Attributes:
        folded: As a graph of plain operations, batch norms folded into the convolutions before them.
        channels_last: Images and filters with their channels side by side in memory.
        bfloat16: Products in bfloat16, as by autocast.
        compiled: By `torch.compile`.
        batch_size: Samples a batch; None for what was asked for.
        threads: Of the CPU; None for torch's setting.
    """

    folded: bool = False
    channels_last: bool = False
    bfloat16: bool = False
    compiled: bool = False
    batch_size: int | None = None
    threads: int | None = None

    @property
    def is_exact(self) -> bool:
        """Whether it runs the very operations of the model: batches and threads are as free then as always."""
        return not (self.folded or self.channels_last or self.bfloat16 or self.compiled)

    @property
    def name(self) -> str:
        """What it is called in reports."""
        parts = [
            name.replace("_", " ")
            for name in ("folded", "channels_last", "bfloat16", "compiled")
            if getattr(self, name)
        ]
        parts += [f"batches of {self.batch_size:,}"] if self.batch_size else []
        parts += [f"{self.threads} threads" if self.threads > 1 else "1 thread"] if self.threads else []
        return " + ".join(parts) or "exact"

    def table_id(self, fingerprint: str) -> str:
        """Identify what the frozen part gives when it is run like this: never what it gives otherwise."""
        if self.is_exact:
            return fingerprint
        return Digest().add("forethought way", VERSION, fingerprint, sorted(asdict(self).items())).hex()


@dataclass(frozen=True)
class WayTried:
    """What trying a way showed.

    Attributes:
        way: The way.
        rows_per_s: Samples a second; None where it could not be run.
        times_faster: Than the exact way: timed in turn with the way that it builds on, times that one's own number,
            so that it matters little if the machine gets busier meanwhile; None likewise.
        error: Largest distance of a row from the exact one, beside that one's length (Euclidean); None likewise.
        reason: Why it was not taken; "" for the one that was.
    """

    way: Way
    rows_per_s: float | None
    times_faster: float | None
    error: float | None
    reason: str = ""


@dataclass(frozen=True)
class SpeedReport:
    """Ways that were measured on a few batches, and the one that was chosen.

    Attributes:
        way: The fastest whose error is within the tolerance.
        tried: All of them, in the order of trying.
        tolerance: The largest error allowed.
        noise: The same measure for the exact way against itself, with the samples in other batches; None if that
            tells nothing.
        rows: Samples that errors were measured on.
        device: Where.
        threads: Torch's setting at that time.
        time_s: Seconds that choosing took; it is done once for a store, model, device and tolerance.
        is_remembered: Whether the choice was made by an earlier call.
    """

    way: Way
    tried: tuple[WayTried, ...]
    tolerance: float
    noise: float | None
    rows: int
    device: str
    threads: int
    time_s: float
    is_remembered: bool = False

    @property
    def chosen(self) -> WayTried:
        """What was measured of the chosen way."""
        return next(each for each in self.tried if each.way == self.way)

    def __str__(self) -> str:
        """The table: a line a way."""
        lines = [f"{'way':<52} {'rows/s':>9} {'faster':>7} {'error':>8}"]
        for each in self.tried:
            numbers = " ".join(
                text.rjust(width)
                for text, width in (
                    (_shown(each.rows_per_s, ",.0f"), 9),
                    (_shown(each.times_faster, ".2f"), 7),
                    (_shown(each.error, ".1e"), 8),
                )
            )
            lines.append(f"{each.way.name:<52} {numbers}  {each.reason or 'chosen'}".rstrip())
        when = "chosen before" if self.is_remembered else f"chosen in {self.time_s:.1f} s"
        lines.append(
            f"{when} on {self.device}, errors of {self.rows} rows; tolerance {self.tolerance:g}; in other batches the "
            f"exact way differs from itself by {_shown(self.noise, '.1e')}"
        )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Write as plain values: the argument of `from_json`."""
        return {"version": VERSION, **asdict(self)}

    @staticmethod
    def from_json(written: Mapping[str, Any]) -> "SpeedReport | None":
        """Read what `to_json` wrote, as of an earlier call; None if it is anything else."""
        try:
            if written["version"] != VERSION:
                return None
            plain = {field.name: written[field.name] for field in fields(SpeedReport)}
            tried = tuple(WayTried(**{**each, "way": _way(each["way"])}) for each in plain["tried"])
            made = SpeedReport(**plain | {"tried": tried, "way": _way(plain["way"]), "is_remembered": True})
            return made if any(each.way == made.way for each in tried) else None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


def _way(written: Mapping[str, Any]) -> Way:
    way = Way(**written)
    for field in fields(Way):
        value = getattr(way, field.name)
        is_count = field.name in ("batch_size", "threads")
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not ((value is None or whole) if is_count else isinstance(value, bool)):
            raise ValueError(field.name)
    return way


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def check_speed(speed: str, tolerance: float) -> float | None:
    """Give the tolerance for `speed="fast"`; None for "exact".

    Raises:
        DataError: there is no such speed or tolerance.
    """
    if speed not in ("exact", "fast"):
        raise DataError(f"Cannot extract at speed {speed!r}: expected 'exact' or 'fast'. ft.extract(..., speed='fast')")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise DataError(f"Cannot extract with tolerance {tolerance!r}: expected a number from 0 to 1. tolerance=0.02")
    return float(tolerance) if speed == "fast" else None
