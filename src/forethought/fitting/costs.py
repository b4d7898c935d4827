"""What a fit is written down as: the heads, and how many stored rows they were really fed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from forethought.fitting.measures import name_of
from forethought.fitting.trainee import Trainee
from forethought.ledger import Phase, phase_in
from forethought.store import Table


def phase_for(train: Any) -> Phase:
    """Measure a fit, for the ledger around it and that of the store whose rows it is fed."""
    table = getattr(train, "table", None)
    return phase_in(table.place, "fit", readonly=table.readonly) if isinstance(table, Table) else phase_in(None, "fit")


def facts_of(trainees: Sequence[Trainee], train: Any, val: Any) -> dict[str, Any]:
    """Say what was trained, and which rows were fed: a pass counts once, however many heads shared it."""
    epochs = max((len(trainee.metrics) for trainee in trainees), default=0)
    fed: Counter[str] = Counter()
    for features in (train, val):
        table = getattr(features, "table", None)
        if isinstance(table, Table):
            fed[table.fingerprint] += epochs * len(features)
    results = [(trainee, trainee.result()) for trainee in trainees]
    heads = [
        {
            "name": result.name,
            "score": result.score,
            "metric": name_of(trainee.options.metric),
            "is_higher_better": trainee.options.is_higher_better,
            "epochs": len(result.metrics),
            "parameters": result.parameters,
            "time_s": result.time_s,
            "failed": result.failed,
        }
        for trainee, result in results
    ]
    return {"epochs": epochs, "rows_fed": epochs * (len(train) + len(val)), "fed": dict(fed), "heads": heads}
