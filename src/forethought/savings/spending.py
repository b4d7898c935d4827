"""What the rows of a table cost on one machine, and how often they were fed: the two sides of its balance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forethought.energy.amounts import Amount
from forethought.ledger.rows import number_of
from forethought.ledger.spans import Span

# Whatever is done for the sake of stored rows, aborted runs included, is paid by them.
CHARGED = ("extract", "verify", "measure")
FED = "fit"


@dataclass(frozen=True)
class Spending:
    """What is known of a table on a machine.

    Attributes:
        time_s: Seconds spent on it.
        amount: Joules, likewise.
        fed_rows: Rows fed to heads, a pass over the data counted once.
        spans: What was charged.
        elsewhere: What other machines spent on it: told, never added.
    """

    time_s: float
    amount: Amount
    fed_rows: int
    spans: tuple[Span, ...]
    elsewhere: tuple[Span, ...]


def by_table(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Sort spans by the tables that they worked on, or fed."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        fed, table = span.facts.get("fed") if span.phase == FED else None, span.facts.get("table")
        names = [table, *(fed if isinstance(fed, dict) else ())]
        for name in dict.fromkeys(name for name in names if isinstance(name, str)):
            found.setdefault(name, []).append(span)
    return found


def spent_on(table: str, machine: str, spans: Iterable[Span]) -> Spending:
    """Add up what was spent on a table."""
    spans = list(spans)
    charged = [span for span in spans if span.phase in CHARGED and span.facts.get("table") == table]
    here = [span for span in charged if span.machine == machine]
    return Spending(
        time_s=sum(span.time_s for span in here),
        amount=Amount.total(span.amount for span in here) if here else Amount.unknown("nothing was spent here"),
        fed_rows=fed_rows(table, [span for span in spans if span.machine == machine]),
        spans=tuple(here),
        elsewhere=tuple(span for span in charged if span.machine != machine),
    )


def fed_rows(table: str, spans: Sequence[Span]) -> int:
    """Count the rows of a table that were really fed to heads."""
    counts = [span.facts.get("fed") for span in spans if span.phase == FED]
    return sum(int(number_of(fed.get(table)) or 0) for fed in counts if isinstance(fed, dict))
