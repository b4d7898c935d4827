"""Train many heads in one pass over the features.

    features -> batch -> every head's step -> ... -> validation -> ranking -> Results

A batch is fetched once and given to every head. Each head has its own copy of the module, its own optimiser
and its own random numbers, so it ends up the same whether it trains alone or in company.
"""

from forethought.fitting.loop import fit
from forethought.fitting.results import EpochMetrics, HeadResult, Results
from forethought.fitting.rows import Batches

__all__ = ["Batches", "EpochMetrics", "HeadResult", "Results", "fit"]
