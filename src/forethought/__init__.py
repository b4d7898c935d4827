"""forethought: think once, train many.

    model -> frontier -> split -> extract -> store -> feed -> heads -> assemble

When part of a model is frozen, its output for a sample never changes. `extract` runs it once per sample and keeps the
result; `fit` trains any number of heads from it; `assemble` puts the model back together.
"""

from forethought import energy, heads, timing  # isort: skip
from forethought.freezing import freeze, thaw  # isort: skip
from forethought.splitting.halves import Head, Trunk  # isort: skip
from forethought.splitting.replay import Split, split  # isort: skip
from forethought.store import Store  # isort: skip
from forethought.ledger import Ledger  # isort: skip
from forethought.extracting.extraction import extract  # isort: skip
from forethought.extracting.outcome import ExtractionReport  # isort: skip
from forethought.features import Features  # isort: skip
from forethought.extracting.verification import Verification  # isort: skip
from forethought import housekeeping  # isort: skip
from forethought.housekeeping import inventory  # isort: skip
from forethought.extracting.explanation import Explanation, explain  # isort: skip
from forethought.fitting import HeadResult, Results, fit  # isort: skip
from forethought.savings import Saving, measure_saving  # isort: skip
from forethought.regress import as_regressor  # isort: skip
from forethought.assembly import Assembled, assemble, load  # isort: skip
from forethought.errors import ForethoughtError  # isort: skip

__version__ = "0.1.0"

__all__ = [
    "Assembled",
    "Explanation",
    "ExtractionReport",
    "Features",
    "ForethoughtError",
    "Head",
    "HeadResult",
    "Ledger",
    "Results",
    "Saving",
    "Split",
    "Store",
    "Trunk",
    "Verification",
    "as_regressor",
    "assemble",
    "energy",
    "explain",
    "extract",
    "fit",
    "freeze",
    "heads",
    "housekeeping",
    "inventory",
    "load",
    "measure_saving",
    "split",
    "thaw",
    "timing",
]
