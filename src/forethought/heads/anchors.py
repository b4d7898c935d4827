"""The values that the classes stand for, checked once and kept exact."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import AnchorError
from forethought.heads.curve import interpolate

_REORDER = (
    "Put the anchors, and the classes with them, in order: order = sorted(range(len(anchors)), key=anchors.__getitem__)"
    "; as_regressor does that itself for values by class: anchors=dict(enumerate(anchors))"
)


class Anchors(nn.Module):
    """The anchors of K ordered classes, as a buffer that is never rounded below float32.

    `values` (K,) always ascends: descending anchors are negated here, and `sign` is put back at the head's
    output. Negation is exact, so an anchor keeps its bits.

    Args:
        anchors: K >= 2 distinct finite numbers, ascending or descending, in any unit; spacing is free.
        dtype: Of the head; anchors of a half-precision head stay in float32.

    Raises:
        AnchorError: fewer than 2, not finite, out of order, or equal once rounded to the dtype.
    """

    values: Tensor

    def __init__(self, anchors: Sequence[float] | Tensor, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        exact = _as_vector(anchors)
        self.sign = -1.0 if exact[0] > exact[-1] else 1.0
        _check_order(exact * self.sign, exact)
        values = (exact * self.sign).to(dtype)
        _check_distinct(values, exact)
        self.register_buffer("values", values)
        self._exact = exact * self.sign
        self._is_rounded = bool(self.rounding)  # not looked up in a forward: a compiler could not follow

    def __len__(self) -> int:
        return self.values.numel()

    @property
    def given(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.values * self.sign

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest anchor."""
        low, high = sorted((self.given[0].item(), self.given[-1].item()))
        return low, high

    @property
    def gap(self) -> Tensor:
        """Mean distance between neighbouring anchors, a scalar."""
        return (self.values[-1] - self.values[0]) / (len(self) - 1)

    @property
    def rounding(self) -> float | None:
        """How far the anchors as held are from the numbers given, at most; None where others were loaded since."""
        off = (self.values.detach().cpu().double() - self._exact).abs()
        is_rounding = bool((off <= self._exact.abs() * torch.finfo(torch.float32).eps).all())
        return off.max().item() if is_rounding else None

    @property
    def numbers(self) -> list[float]:
        """The anchors in the order of the classes as they were given, before any rounding; as held, if loaded since."""
        given = self.values.detach().cpu().double() if self.rounding is None else self._exact
        listed: list[float] = (given * self.sign).tolist()
        return listed

    def as_held(self, number: float) -> float:
        """Round a number to float32 if the anchors were, so that it keeps its place among them."""
        return torch.tensor(number, dtype=torch.float32).item() if self._is_rounded else number

    def position(self, y: Tensor) -> Tensor:
        """Return where values lie on the line of classes, (*) -> (*): k at anchor k, between them in proportion."""
        dtype = torch.promote_types(y.dtype, self.values.dtype)
        index = torch.arange(len(self), dtype=dtype, device=y.device)
        return interpolate(y.to(dtype) * self.sign, self.values.to(dtype), index)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # `.half()` must not move an anchor (440.1 is 440.0 in float16, and neighbours can collide), so the
        # values from before the change come back on the device that was asked for.
        before = self.values
        super()._apply(fn, recurse)
        if torch.promote_types(self.values.dtype, torch.float32) != self.values.dtype:
            self.values = before.to(self.values.device)
        self._look()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._look()

    def _look(self) -> None:
        if not self.values.is_meta:
            self._is_rounded = bool(self.rounding)


def _as_vector(anchors: Sequence[float] | Tensor) -> Tensor:
    try:
        vector = torch.as_tensor(anchors, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as err:
        raise AnchorError(
            f"Cannot use anchors: expected one number per class, got {anchors!r:.80}. "
            "Pass a list: anchors=[60.0, 61.0, 62.0]"
        ) from err
    if vector.ndim != 1 or vector.numel() < 2:
        raise AnchorError(
            f"Cannot use anchors: expected at least 2 numbers in one row, got shape {tuple(vector.shape)}. "
            "Pass one number per class: anchors=[60.0, 61.0]"
        )
    bad = [i for i, value in enumerate(vector.tolist()) if not math.isfinite(value)]
    if bad:
        raise AnchorError(
            f"Cannot use anchors: expected finite numbers, got {vector[bad[0]].item()} at position {bad[0]}. "
            "Keep only classes with a known value: anchors = [a for a in anchors if math.isfinite(a)]"
        )
    return vector


def _check_order(rising: Tensor, exact: Tensor) -> None:
    """Raise at the first neighbour that does not continue the direction given by the two ends."""
    stuck = (rising.diff() <= 0).nonzero().flatten().tolist()
    if not stuck:
        return
    before, here = exact[stuck[0]].item(), exact[stuck[0] + 1].item()
    if before == here:
        raise AnchorError(
            f"Cannot use anchors: expected distinct numbers, got {here} at positions {stuck[0]} and "
            f"{stuck[0] + 1}. Merge the classes that share a value: anchors = sorted(set(anchors))"
        )
    raise AnchorError(
        "Cannot use anchors: expected them all ascending or all descending, "
        f"got {here} after {before} at position {stuck[0] + 1}. {_REORDER}"
    )


def _check_distinct(values: Tensor, exact: Tensor) -> None:
    """Raise when rounding to the head's dtype made two anchors equal or their distance infinite."""
    gaps = values.diff()
    # A gap whose reciprocal is not finite has no slope.
    bad = ((gaps <= 0) | ~gaps.isfinite() | ~gaps.reciprocal().isfinite()).nonzero().flatten().tolist()
    if bad or not (values[-1] - values[0]).isfinite():
        i = bad[0] if bad else 0
        raise AnchorError(
            f"Cannot use anchors: expected them distinct and their range finite in {values.dtype}, "
            f"got {exact[i].item()!r} and {exact[i + 1].item()!r}. "
            "Shift and scale them: anchors = [(a - anchors[0]) / scale for a in anchors], "
            "or pass dtype=torch.float64"
        )
