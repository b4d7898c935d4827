"""What a fit is written down as: the heads, and how many stored rows they were really fed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from forethought.extracting.writethrough import WriteThrough
from forethought.fitting.results import HeadResult
from forethought.ledger import Phase, phase_in
from forethought.store import Table


def phase_for(train: Any) -> Phase:
    """Measure a fit, for the ledger around it and that of the store whose rows it is fed."""
    table = getattr(train, "table", None)
    return phase_in(table.place, "fit", readonly=table.readonly) if isinstance(table, Table) else phase_in(None, "fit")


def facts_of(results: Sequence[HeadResult], passes: int, train: Any, val: Any) -> dict[str, Any]:
    """Say what was trained, and which rows were fed: a pass counts once, however many heads shared it.

    Args:
        results: Of the heads.
        passes: Over training and validation rows, that were really made.
        train: Training rows.
        val: Validation rows.
    """
    fed: Counter[str] = Counter()
    for features in (train, val):
        table = getattr(features, "table", None)
        if isinstance(table, Table):
            is_written = isinstance(features, WriteThrough)  # its first rows were computed, not read
            fed[table.fingerprint] += features.rows_from_store if is_written else passes * len(features)
    heads = [
        {
            "name": result.name,
            "score": result.score,
            "metric": result.metric,
            "is_higher_better": result.is_higher_better,
            "epochs": len(result.metrics),
            "parameters": result.parameters,
            "time_s": result.time_s,
            "failed": result.failed,
        }
        for result in results
    ]
    return {"epochs": passes, "rows_fed": passes * (len(train) + len(val)), "fed": dict(fed), "heads": heads}
