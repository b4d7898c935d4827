"""Rebuild a head from its description: a closed list of our own kinds, nothing imported by name."""

from collections.abc import Mapping
from typing import Any

import torch

from forethought.errors import BundleError
from forethought.heads.calibrator import AnchorCalibrator
from forethought.heads.circular import CircularSpline
from forethought.heads.corn import CornHead
from forethought.heads.cumulative import CumulativeLink
from forethought.heads.histogram import HistogramHead
from forethought.heads.interface import Head
from forethought.heads.mlp import MLPHead
from forethought.heads.multi import MultiHead
from forethought.heads.partial import PartialMonotone
from forethought.heads.prototypes import PrototypeExact
from forethought.heads.spline import AnchorSpline

_ALL: tuple[type[Head], ...] = (
    AnchorCalibrator,
    AnchorSpline,
    CircularSpline,
    CornHead,
    CumulativeLink,
    HistogramHead,
    MLPHead,
    MultiHead,
    PartialMonotone,
    PrototypeExact,
)
KINDS: dict[str, type[Head]] = {kind.kind: kind for kind in _ALL}
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def from_config(config: Mapping[str, Any]) -> Head:
    """Build the head that `config` describes, with fresh weights. Undoes `Head.config`.

    Args:
        config: As returned by `head.config()`, also after a trip through JSON.

    Raises:
        BundleError: an unknown kind, dtype or option.
        AnchorError: anchors that no head could have had.

    Example:
        >>> head = AnchorSpline(in_features=4, anchors=[0.0, 1.0, 3.0])
        >>> again = from_config(head.config())
        >>> again.load_state_dict(head.state_dict())
        <All keys matched successfully>
    """
    options = dict(config)
    kind, dtype = options.pop("kind", None), options.pop("dtype", "float32")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BundleError(
            f"Cannot build head: expected kind to be one of {sorted(KINDS)}, got {kind!r}. "
            "Pass what head.config() returned"
        )
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise BundleError(
            f"Cannot build head: expected dtype to be one of {sorted(_DTYPES)}, got {dtype!r}. "
            "Pass what head.config() returned"
        )
    if kind == MultiHead.kind:
        return _several(options.get("heads"))
    classes = options.pop("classes", None)
    try:
        head = KINDS[kind](**options, dtype=_DTYPES[dtype])
    except TypeError as err:
        raise BundleError(
            f"Cannot build head of kind {kind!r}: expected its own options, got {sorted(options)} "
            f"({err}). Pass what head.config() returned"
        ) from err
    head.classes = None if classes is None else _numbers(classes, len(options["anchors"]))
    return head


def _numbers(classes: object, count: int) -> tuple[int, ...]:
    numbers = tuple(classes) if isinstance(classes, list | tuple) else ()
    if not all(type(k) is int and k >= 0 for k in numbers) or not len(set(numbers)) == len(numbers) == count:
        raise BundleError(
            f"Cannot build head: expected classes to be {count} different numbers from 0 up, got {classes!r:.60}. "
            "Pass what head.config() returned"
        )
    return numbers


def _several(heads: object) -> Head:
    if not isinstance(heads, Mapping) or not all(isinstance(config, Mapping) for config in heads.values()):
        raise BundleError(
            f"Cannot build head of kind 'multi': expected descriptions by target name, got {type(heads).__name__}. "
            "Pass what head.config() returned"
        )
    return MultiHead({str(name): from_config(config) for name, config in heads.items()})
