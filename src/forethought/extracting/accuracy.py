"""What storing features smaller costs: measured on some samples, on the features and on what the head makes of them."""

import copy
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.extracting.calibration import Trial
from forethought.extracting.precision import PrecisionReport, Stored
from forethought.shapes.forms import Rows, entries_of, some
from forethought.splitting.replay import Split

_SIZES = {"dtype", "size_bytes", "exact_bytes"}


def measure(stored: Stored, trial: Trial, split: Split, device: torch.device) -> dict[str, Any]:
    """Compare rows as they will be fed with the exact ones, and what the model's head makes of both.

    Args:
        stored: How the rows are stored.
        trial: The samples.
        split: Whose head to run. It runs as a copy, in evaluation mode, from the same random state for both.
        device: Where the model is.

    Returns:
        The fields of a `PrecisionReport` beside the sizes, as JSON values. Undone by `report_of`.

    Raises:
        PrecisionError: a sample cannot be stored so.
    """
    stored.check(trial.rows, trial.indices)
    chosen = trial.telling if stored.dtype == "int8" else trial.rows
    starts = range(0, len(chosen[0]), trial.batch_size)
    batches = [[some(part, slice(start, start + trial.batch_size)) for part in chosen] for start in starts]
    pairs = [(exact, stored.decode(stored.encode(exact))) for exact in batches]
    measured = {"samples": len(chosen[0]), "measured_on": datetime.now(UTC).isoformat(timespec="minutes")}
    measured |= _feature_errors(stored, pairs)
    try:
        return measured | _output_errors(stored, pairs, split, device)
    except Exception as err:  # the head is the user's, and features are good without it
        reason = str(err).partition("\n")[0]
        return measured | {"reason": f"the head's output was not compared: {type(err).__name__}: {reason}"}


def report_of(stored: Stored, entries: Sequence[int], measured: Any) -> PrecisionReport:
    """Make the report from what `measure` found, which may be lost or of another version; `entries` as of `Stored`."""
    known = PrecisionReport.__dataclass_fields__.keys() - _SIZES
    if not isinstance(measured, dict) or not measured.keys() <= known:
        measured = {"reason": "errors are not known: the store has lost its note of them"}
    return PrecisionReport(stored.dtype, stored.size_bytes(entries), stored.exact_bytes(entries), **measured)


_Pairs = Sequence[tuple[Sequence[Rows], Sequence[Rows]]]


def _feature_errors(stored: Stored, pairs: _Pairs) -> dict[str, float]:
    """Compare all values that are stored smaller; in double precision, where subnormal numbers divide well too."""
    largest = largest_relative = total = total_relative = 0.0
    count = 0
    for batch in pairs:
        for coding, exact, fed in zip(stored.codings, *batch, strict=True):
            if coding is not None and entries_of(exact).numel():
                values = entries_of(exact).double()
                error = (entries_of(fed).double() - values).abs()
                relative = torch.where(error == 0, error, error / values.abs())
                largest, total = max(largest, float(error.max())), total + float(error.sum())
                largest_relative = max(largest_relative, float(relative.max()))
                total_relative += float(relative.sum())
                count += values.numel()
    return {
        "largest_error": largest,
        "mean_error": total / max(count, 1),
        "largest_relative_error": largest_relative,
        "mean_relative_error": total_relative / max(count, 1),
    }


def _output_errors(stored: Stored, pairs: _Pairs, split: Split, device: torch.device) -> dict[str, Any]:
    """Compare the first tensor of the head's output that has an entry for each sample."""
    head = copy.deepcopy(split.head).eval()
    spread, largest, same, rows = _Spread(), 0.0, 0, 0
    is_scores = True
    for batch in pairs:
        exact, fed = (_output(head, stored, values, device) for values in batch)
        if exact is None or fed is None:
            return {"reason": "the head gives no floating-point tensor with an entry for each sample"}
        same_value = (exact == fed) | (exact.isnan() & fed.isnan())
        difference = torch.where(same_value, 0.0, (exact - fed).abs())
        largest = max(largest, float(torch.where(difference.isnan(), math.inf, difference).max()))
        spread.add(exact)
        is_scores &= exact.ndim == 2 and exact.shape[1] > 1
        same += int((exact.argmax(1) == fed.argmax(1)).sum()) if is_scores else 0
        rows += len(exact)
    if not math.isfinite(largest):
        return {"reason": "the head's output is not finite, or no more so, with features that are stored smaller"}
    return {
        "output_error": largest,
        "output_spread": spread.value,
        "same_argmax": same / rows if is_scores else None,
    }


def _output(head: nn.Module, stored: Stored, rows: Sequence[Rows], device: torch.device) -> Tensor | None:
    pairs = zip(stored.frontier, rows, strict=True)
    values = tuple(tensor.from_rows(tensor.padded(part).to(device)) for tensor, part in pairs)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        output = head(values)
    for tensor in nesting.tensors(output):
        if tensor.ndim and len(tensor) == len(rows[0]) and tensor.is_floating_point() and tensor.numel():
            return torch.as_tensor(tensor.detach().cpu().double())
    return None


class _Spread:
    """How much outputs vary from sample to sample, batch after batch (Chan's update of mean and squares)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, outputs: Tensor) -> None:
        """Take the outputs (B, ...) of one batch."""
        count, mean = len(outputs), outputs.mean(0)
        shift, total = mean - self._mean, self._count + count
        self._squares = (
            self._squares + (outputs - mean).square().sum(0) + shift.square() * (self._count * count / total)
        )
        self._mean = self._mean + shift * (count / total)
        self._count = total

    @property
    def value(self) -> float:
        """The root of the mean variance of an entry; entries that are not finite throughout do not count."""
        variances = torch.as_tensor(self._squares / self._count)
        finite = variances[variances.isfinite()]
        return math.sqrt(float(finite.mean())) if finite.numel() else 0.0
