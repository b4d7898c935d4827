"""Small heads that turn frozen features (B, D) into one number per sample, in the anchors' units.

    features (B, D) -> latent (B,) in class units -> curve through the anchors -> y (B,)      AnchorSpline
    features (B, D) -> one logit per class -> expectation over the anchors -> y (B,)          HistogramHead
    features (B, D) -> free network -> rescaled to the anchors' range -> y (B,)               MLPHead

A head never sees the model that its features came from.
"""

from forethought.heads.calibrator import AnchorCalibrator
from forethought.heads.certificate import Certificate, Claim
from forethought.heads.circular import CircularSpline
from forethought.heads.conformal import Conformal, Coverage, conformalize
from forethought.heads.conversion import as_regressor
from forethought.heads.corn import CornHead
from forethought.heads.cumulative import CumulativeLink
from forethought.heads.exporting import Exported, export, exported_program, onnx_runtime
from forethought.heads.falsification import Counterexample, Falsification
from forethought.heads.folding import fold_standardisation
from forethought.heads.histogram import HistogramHead
from forethought.heads.interface import Head
from forethought.heads.means import ClassMean, class_means
from forethought.heads.mlp import MLPHead
from forethought.heads.multi import MultiHead
from forethought.heads.partial import PartialMonotone
from forethought.heads.prototypes import PrototypeExact, class_prototypes
from forethought.heads.registry import from_config
from forethought.heads.spline import AnchorSpline

__all__ = [
    "AnchorCalibrator",
    "AnchorSpline",
    "Certificate",
    "CircularSpline",
    "Claim",
    "ClassMean",
    "Conformal",
    "CornHead",
    "Counterexample",
    "Coverage",
    "CumulativeLink",
    "Exported",
    "Falsification",
    "Head",
    "HistogramHead",
    "MLPHead",
    "MultiHead",
    "PartialMonotone",
    "PrototypeExact",
    "as_regressor",
    "class_means",
    "class_prototypes",
    "conformalize",
    "export",
    "exported_program",
    "fold_standardisation",
    "from_config",
    "onnx_runtime",
]
