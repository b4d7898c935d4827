"""forethought: think once, train many.

    model -> frontier -> split -> extract -> store -> feed -> heads -> assemble

When part of a model is frozen, its output for a sample never changes. `extract` runs it once per sample and keeps the
result; `fit` trains any number of heads from it; `assemble` puts the model back together.
"""

from forethought.freezing import freeze  # isort: skip
from forethought.replay import Head, Split, Trunk, split  # isort: skip
from forethought.store import Store  # isort: skip
from forethought.extraction import extract  # isort: skip
from forethought.features import ExtractionReport, Features  # isort: skip

__version__ = "0.1.0"

__all__ = ["ExtractionReport", "Features", "Head", "Split", "Store", "Trunk", "extract", "freeze", "split"]
