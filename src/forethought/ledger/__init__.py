"""What work cost: written down as it happens, and kept with the rows that it bought.

Ledger -> Phase -> rows      JSON lines beside the store, one row a phase and component
record_run -> read_ledger    a note by each table: what its rows cost, wherever they are used again
"""

from forethought.ledger.phases import Ledger, Phase, active_ledger, phase_in
from forethought.ledger.prices import DAY_S, Entry, last_used, price_of_reuse, read_ledger, record_run, run_facts

__all__ = [
    "DAY_S",
    "Entry",
    "Ledger",
    "Phase",
    "active_ledger",
    "last_used",
    "phase_in",
    "price_of_reuse",
    "read_ledger",
    "record_run",
    "run_facts",
]
