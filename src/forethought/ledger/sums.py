"""Rows added up: each joule once, and nothing lost on the way."""

from collections.abc import Iterable

from forethought.energy.amounts import Amount
from forethought.ledger.rows import Row


def amount_of(rows: Iterable[Row]) -> Amount:
    """Add up rows of one span. What a wall meter has seen too is left out, as it is in the wall's row."""
    return Amount.total(
        Amount.of(row.energy_j, row.label, row.interval_j)
        if row.energy_j is not None
        else Amount.unknown(row.reason or "not measured")
        for row in rows
        if row.inside is None
    )
