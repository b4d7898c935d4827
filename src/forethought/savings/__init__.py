"""What stored rows save, against a counterfactual that is measured: epochs without the store, really run, in turn.

sample -> Comparison -> Saving
"""

from forethought.savings.comparison import Comparison, Gain, Side, read_comparison
from forethought.savings.intervals import Estimate, break_even
from forethought.savings.measuring import measure_saving
from forethought.savings.sampling import sample
from forethought.savings.saving import Balance, Saving

__all__ = [
    "Balance",
    "Comparison",
    "Estimate",
    "Gain",
    "Saving",
    "Side",
    "break_even",
    "measure_saving",
    "read_comparison",
    "sample",
]
