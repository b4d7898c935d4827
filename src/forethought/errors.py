"""Every error that forethought raises on purpose.

A message says: cannot do what, expected what, got what, and the fix as code or command.

    ForethoughtError
     ├─ SplitError               also ValueError     the model cannot be split here
     │   ├─ NothingFrozenError                       no value is frozen before the first trainable one
     │   ├─ FrozenBranchError                        Python reads a frozen value to decide what to run
     │   ├─ InvisibleOperationError                  a value passes through code that cannot be replayed
     │   └─ ReplayDriftError                         the forward took another path than the recorded one
     ├─ ShapeError               also ValueError     inputs or features of a shape that this split never saw
     ├─ ImpureTrunkError         also ValueError     a frozen output depends on chance or on its batch
     ├─ DataError                also ValueError     the data set cannot be used as it is
     │   ├─ EmptyDatasetError
     │   ├─ RandomDatasetError                       the same index gives different inputs
     │   ├─ UnequalShapesError                       samples have different shapes, and nothing tells them from padding
     │   └─ PaddingError                             rows cannot be cut from a padded batch, or put back into one
     ├─ PrecisionError           also ValueError     features cannot be stored in the precision asked for
     ├─ SpeedError               also RuntimeError   the frozen part cannot be run here in the way that was chosen
     ├─ IdentityError            also TypeError      no identity can be established: nothing is stored
     ├─ StoreError               also OSError        the store cannot be read or written
     │   ├─ StoreFormatError                         made by another format version
     │   └─ StorePathError                           the path is not a folder that can hold a store
     ├─ AnchorError              also ValueError     anchors unsorted, too few, not finite
     ├─ CertificateError         also ValueError     a head does not have the property asked for
     ├─ FitError                 also ValueError     heads, targets or options that do not fit together
     ├─ BundleError              also ValueError     a saved model does not fit the one given
     ├─ ModelError               also ValueError     no model can be had by this name, or it does not run
     ├─ EnergyError              also ValueError     a meter, a factor or a ledger that cannot be used
     └─ MissingExtraError        also ImportError    an optional dependency is not installed
"""


class ForethoughtError(Exception):
    """Root of every error that forethought raises on purpose."""


class SplitError(ForethoughtError, ValueError):
    """The model cannot be split here."""


class NothingFrozenError(SplitError):
    """No value is frozen before the first trainable operation."""


class FrozenBranchError(SplitError):
    """Python reads a frozen value to decide what to run."""


class InvisibleOperationError(SplitError):
    """A value passes through code that cannot be seen, so it cannot be replayed."""


class ReplayDriftError(SplitError):
    """The forward took another path than the one recorded."""


class ShapeError(ForethoughtError, ValueError):
    """Inputs or features have a shape that this split never saw."""


class ImpureTrunkError(ForethoughtError, ValueError):
    """A frozen output depends on chance or on the rest of its batch."""


class DataError(ForethoughtError, ValueError):
    """The data set cannot be used as it is."""


class EmptyDatasetError(DataError):
    """The data set has no samples."""


class RandomDatasetError(DataError):
    """The same index gives different inputs."""


class UnequalShapesError(DataError):
    """Samples have different shapes, and nothing tells what is a sample and what padding."""


class PaddingError(DataError):
    """Rows cannot be cut from a padded batch, or cannot be put back into one as the head was given them."""


class PrecisionError(ForethoughtError, ValueError):
    """Features cannot be stored in the precision asked for: a value is not finite, or too large for it."""


class SpeedError(ForethoughtError, RuntimeError):
    """The frozen part cannot be run here in the way that was chosen for its rows."""


class IdentityError(ForethoughtError, TypeError):
    """No identity can be established, so nothing may be stored under one."""


class StoreError(ForethoughtError, OSError):
    """The store cannot be read or written."""


class StoreFormatError(StoreError):
    """The store was made by another format version."""


class StorePathError(StoreError):
    """The path is not a folder that can hold a store."""


class AnchorError(ForethoughtError, ValueError):
    """Anchors are unsorted, too few, or not finite."""


class CertificateError(ForethoughtError, ValueError):
    """A head does not have the property asked for, or it is not proved."""


class FitError(ForethoughtError, ValueError):
    """Heads, targets or options do not fit together."""


class BundleError(ForethoughtError, ValueError):
    """A saved model does not fit the one given."""


class ModelError(ForethoughtError, ValueError):
    """No model can be had by this name, or it does not run on the inputs given."""


class InputError(ModelError, RuntimeError):
    """The model's own forward does not run on the inputs that it was given."""


class DeviceError(ForethoughtError, RuntimeError):
    """A device was asked for that this machine does not have."""


class EnergyError(ForethoughtError, ValueError):
    """A meter, a factor or a ledger cannot be used as it is given."""


class MissingExtraError(ForethoughtError, ImportError):
    """An optional dependency is not installed."""
