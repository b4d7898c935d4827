"""Train many heads in one pass over the features.

    heads -> candidates -> groups        features -> batch -> every group's step -> ... -> scores -> ranking -> Results

A batch is fetched once and given to every head. Heads of one shape are one computation (a `Stack`); any other is a
group of its own (a `Single`); those whose steps need all rows wait for the end of the epoch (a `FullBatch`). Each head
has its own weights, step size and random numbers, so it ends up the same whether it trains alone or in company.
"""

from forethought.fitting.results import EpochMetrics, HeadResult, Results, Trial
from forethought.fitting.rows import Batches
from forethought.fitting.timesheet import Entry
from forethought.fitting.training import fit

__all__ = ["Batches", "Entry", "EpochMetrics", "HeadResult", "Results", "Trial", "fit"]
