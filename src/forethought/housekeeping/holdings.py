"""What a store holds: for each table what its rows are rows of, how many, how large, and what they cost."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from forethought.housekeeping.files import files_in, folder_of, named_in_result, open_table
from forethought.ledger import last_used, read_ledger
from forethought.store import Store, Table

_MOST_NAMES = 20


@dataclass(frozen=True)
class Holding:
    """One table of a store. What was not recorded is None, or empty where it is a tuple.

    Attributes:
        fingerprint: The table's: the identity of the trunk that computed its rows.
        models: Classes of the models whose trunk it is.
        datasets: Class and length of the data sets that it was filled or read for.
        columns: Each tensor of a row: name, dtype and shape. Empty if no segment says them.
        rows: Rows that can be served, each key once.
        segments: Files of rows, damaged ones included.
        size_bytes: Bytes of all its files.
        damaged: What is wrong with each segment that cannot be served, as far as header and keys tell.
        created: When the first of it was written.
        last_used: When it was last filled or read, to the day.
        rows_accounted: Rows whose cost is recorded; fewer than `rows` if a run was killed or segments were copied here.
        time_s: Seconds that computing these took.
        energy_j: Joules that it took; None unless every run measured them.
        energy_source: What measured them, or why nothing did.
        torch: Versions of torch.
        devices: Types of device.
    """

    fingerprint: str
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    columns: tuple[str, ...]
    rows: int
    segments: int
    size_bytes: int
    damaged: tuple[str, ...]
    created: datetime | None
    last_used: datetime | None
    rows_accounted: int
    time_s: float | None
    energy_j: float | None
    energy_source: str | None
    torch: tuple[str, ...]
    devices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows; times in ISO 8601, UTC."""
        times = {"created": _written(self.created), "last_used": _written(self.last_used)}
        return asdict(self) | times


def inventory(store: Store) -> tuple[Holding, ...]:
    """Say what a store holds, most recently used first. Headers and keys are checked, rows are not (`verify_store`).

    Args:
        store: A store; read-only will do.

    Returns:
        One holding for each table that has segments.

    Raises:
        StoreError: the store cannot be read.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ft.extract(model, torch.randn(10, 4), folder)
        ...     (held,) = ft.inventory(ft.Store(folder))
        >>> held.models, held.datasets, held.columns, held.rows
        (('Sequential',), ('Tensor of 10',), ('0:F32[8]',), 10)
    """
    found = [_holding(store, fingerprint) for fingerprint in store.tables()]
    oldest = datetime.fromtimestamp(0, UTC)
    return tuple(
        sorted((each for each in found if each is not None), key=lambda held: held.last_used or oldest, reverse=True)
    )


def _holding(store: Store, fingerprint: str) -> Holding | None:
    files = files_in(store, folder_of(fingerprint))
    segments = [file for file in files if file.is_segment]
    if not segments:
        return None
    with named_in_result():
        table = open_table(store, fingerprint)
        rows = 0 if table is None else table.rows
    entries = read_ledger(store, fingerprint)
    computed = [entry for entry in entries if entry.rows_computed]
    told = table.provenance if table is not None else {}
    return Holding(
        fingerprint=fingerprint,
        models=_names([told.get("model"), *(entry.model for entry in entries)]),
        datasets=_names(entry.dataset for entry in entries),
        columns=() if table is None else tuple(map(str, table.columns)),
        rows=rows,
        segments=len(segments),
        size_bytes=sum(file.size_bytes for file in files),
        damaged=_damaged(table, len(segments)),
        created=_moment(min([file.time for file in files] + [entry.time - (entry.time_s or 0) for entry in entries])),
        last_used=_moment(used(store, fingerprint)),
        rows_accounted=sum(entry.rows_computed for entry in computed),
        time_s=_sum([entry.time_s for entry in computed]),
        energy_j=_sum([entry.energy_j for entry in computed]),
        energy_source="; ".join(_names(entry.energy_source for entry in computed)) or None,
        torch=_names([told.get("torch"), *(entry.torch for entry in entries)]),
        devices=_names([told.get("device"), *(entry.device for entry in entries)]),
    )


def used(store: Store, fingerprint: str) -> float:
    """Give when a table was last of use, in seconds since 1970; of one without a ledger, when it was last written."""
    files = files_in(store, folder_of(fingerprint))
    return max([last_used(store, fingerprint) or 0.0, *(file.time for file in files if file.is_segment)])


def _damaged(table: Table | None, segments: int) -> tuple[str, ...]:
    if table is None:
        return (f"{segments} segments: neither the table's note nor its segments agree on columns",)
    return tuple(table.damaged[name] for name in sorted(table.damaged))


def _names(values: Iterable[Any]) -> tuple[str, ...]:
    """Keep what are names, each once, the first ones first."""
    names = dict.fromkeys(value for value in values if isinstance(value, str) and value)
    return tuple(names)[:_MOST_NAMES]


def _sum(parts: Sequence[float | None]) -> float | None:
    """Add up what was measured; a sum of which a part is unknown is unknown."""
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # a date that no calendar has
        return None


def _written(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds")
