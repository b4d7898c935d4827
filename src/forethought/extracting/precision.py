"""How rows are stored smaller than the head receives them, and what that costs in accuracy.

    encode: rows of floats (B, *shape) -> what lies in the store      decode: back, in the type that the head expects

Only floating-point tensors that get smaller are touched. Nothing is ever clipped: a value that a precision cannot hold
is refused, with the sample that has it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from forethought.errors import PrecisionError
from forethought.identifying.identity import Digest
from forethought.shapes.forms import FrontierTensor, Rows, entries_of
from forethought.shapes.padding import Uneven

VERSION = 1
Dtype = torch.dtype | str | None
"""How features are stored: None (as they are), torch.float16, torch.bfloat16 or "int8"."""

Part = tuple[str, torch.dtype, tuple[int | None, ...]]
"""What one column of the store holds of a tensor: the end of its name, its type, and the shape of one row.

None stands for a size that differs from row to row. Then each entry along these axes is coded as if it were a row.
"""

LEAST_SCALE = torch.finfo(torch.float32).smallest_normal
_MOST = 127  # of int8; -128 is left out, so that both signs reach equally far
_HEADROOM = 1.25  # measured: 13% less error than 1, on CREPE; 1.5 and 2 are worse
_POWERS = torch.tensor([2.0**power for power in range(256)], dtype=torch.float64)  # exact, as exp2 need not be
_MOST_POWER = 120  # of two, that any type here holds


class Coding(Protocol):
    """How one tensor's rows are stored."""

    @property
    def limit(self) -> float:
        """The largest magnitude that can be stored."""
        ...

    def parts(self, shape: tuple[int | None, ...]) -> tuple[Part, ...]:
        """Say what is stored of rows of this shape."""
        ...

    def encode(self, rows: Tensor) -> list[Tensor]:
        """Turn rows (B, *shape), on the CPU, into what is stored: one tensor for each part. Undone by `decode`."""
        ...

    def decode(self, parts: Sequence[Tensor], device: str | torch.device) -> Tensor:
        """Turn what is stored, on the CPU, into rows (B, *shape) of the tensor's own type, in memory of their own."""
        ...

    def identify(self, digest: Digest) -> None:
        """Write all that tells these rows from others."""
        ...


@dataclass(frozen=True)
class Rounded:
    """Rows rounded to a shorter float: to nearest, ties to even. Undone but for the rounding.

    Attributes:
        dtype: Type that the head receives.
        stored: float16 or bfloat16.
    """

    dtype: torch.dtype
    stored: torch.dtype

    @property
    def limit(self) -> float:
        """The largest number of the stored type: nothing is rounded down to it, and nothing up to infinity."""
        return torch.finfo(self.stored).max

    def parts(self, shape: tuple[int | None, ...]) -> tuple[Part, ...]:
        """One column, of the stored type."""
        return (("", self.stored, shape),)

    def encode(self, rows: Tensor) -> list[Tensor]:
        """Round."""
        return [rows.to(self.stored)]

    def decode(self, parts: Sequence[Tensor], device: str | torch.device) -> Tensor:
        """Widen, on the device: fewer bytes travel there."""
        return parts[0].to(device, non_blocking=True).to(self.dtype)

    def identify(self, digest: Digest) -> None:
        """Write the stored type."""
        digest.add(self.stored)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Rows as int8: value = q * scales[channel] * 2**power[row], with the least power >= 0 that makes the row fit.

    A value is off by at most half a step, `scales[channel] * 2**power[row] / 2`, and by the rounding of `dtype`. No row
    is ever clipped, whatever rows the scales come from. A channel is an entry of the last axis of rows of one or two
    axes, and of the first axis of rows of three or more.

    Attributes:
        dtype: Type that the head receives.
        scales: (C,) float32, each at least the smallest normal number.
    """

    dtype: torch.dtype
    scales: Tensor

    @property
    def limit(self) -> float:
        """Half of the largest number: what is read back is at most twice as large as what was stored."""
        return min(torch.finfo(self.dtype).max, torch.finfo(torch.float32).max) / 2

    def parts(self, shape: tuple[int | None, ...]) -> tuple[Part, ...]:
        """A column of int8, and one of powers."""
        return ("", torch.int8, shape), (".power", torch.uint8, shape[: shape.count(None)])

    def encode(self, rows: Tensor) -> list[Tensor]:
        """Choose each row's power, and round to whole steps."""
        rows = rows.to(self._work)
        laid = by_channel(rows)
        peaks, scales = laid.abs().amax(dim=(1, 3)).double(), self.scales.double()
        fraction, exponent = torch.frexp((peaks / (scales * _MOST)).amax(dim=1))  # fraction in [1/2, 1): exact
        powers = (exponent - (fraction == 0.5).to(exponent.dtype)).clamp(min=0)
        steps = (scales * _POWERS[powers.long()][:, None]).to(self._work)  # infinite where all of a channel rounds to 0
        quotients = (laid / steps[:, None, :, None]).round_().to(torch.int8)
        return [quotients.reshape(rows.shape), powers.to(torch.uint8)]

    def decode(self, parts: Sequence[Tensor], device: str | torch.device) -> Tensor:
        """Multiply, on the device: fewer bytes travel there."""
        quotients, left = parts[0], parts[1].long()
        values = quotients.to(device, non_blocking=True).to(self._work)
        by_channel(values).mul_(self.scales.to(self._work).to(device)[:, None])
        while bool(left.any()):  # not at all if each row fits its scales; more than once if a power is out of range
            powers = left.clamp(max=_MOST_POWER)
            values.view(len(values), -1).mul_(_POWERS[powers].to(self._work).to(device)[:, None])
            left = left - powers
        return values.to(self.dtype)

    def identify(self, digest: Digest) -> None:
        """Write the scales."""
        digest.add("int8", self.scales)

    @property
    def _work(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def by_channel(rows: Tensor) -> Tensor:
    """View contiguous rows (B, *shape) as (B, outer, C, inner)."""
    shape = rows.shape[1:]
    if len(shape) < 3:
        return rows.reshape(len(rows), math.prod(shape[:-1]), shape[-1] if shape else 1, 1)
    return rows.reshape(len(rows), 1, shape[0], math.prod(shape[1:]))


def channels_of(tensor: FrontierTensor) -> int:
    """Count the channels of a tensor's rows."""
    shape = tuple(size for size in tensor.stored_shape if size is not None)
    return by_channel(torch.empty((1, *shape), device="meta")).shape[2]


def scales_of(rows: Tensor) -> Tensor:
    """Choose the scale of each channel from some rows (B, *shape): (C,) float32.

    Steps are a quarter wider than these rows need: rows to come exceed them in one channel or another, and a row that
    does pays with half of its precision in all of them. For the same reason a channel that is zero throughout gets the
    middle one of the others' scales.
    """
    peaks = by_channel(rows.abs()).amax(dim=(0, 1, 3)).double()
    scales = (peaks * (_HEADROOM / _MOST)).float().clamp(min=LEAST_SCALE)
    met = scales[peaks > 0]
    unmet = met.median() if len(met) else torch.ones(())
    return torch.where(peaks > 0, scales, unmet)


@dataclass(frozen=True)
class Stored:
    """How the rows of one trunk are stored.

    Attributes:
        dtype: "exact", "float16", "bfloat16" or "int8".
        frontier: The tensors of a row.
        codings: One for each tensor; None where it is stored exactly.
    """

    dtype: str
    frontier: tuple[FrontierTensor, ...]
    codings: tuple[Coding | None, ...]

    @property
    def is_exact(self) -> bool:
        """Whether nothing gets smaller: these are the exact rows."""
        return all(coding is None for coding in self.codings)

    @property
    def parts(self) -> list[tuple[Part, ...]]:
        """What is stored of each tensor."""
        return [parts_of(tensor, coding) for tensor, coding in zip(self.frontier, self.codings, strict=True)]

    @property
    def scales(self) -> list[list[float] | None]:
        """The scales of each tensor, None where it has none: with them its rows can be read by anybody."""
        return [coding.scales.tolist() if isinstance(coding, Scaled) else None for coding in self.codings]

    def size_bytes(self, entries: Sequence[int]) -> int:
        """Bytes of rows as stored: of so many of each tensor, or entries along the axes where rows differ in size."""
        return sum(
            count * dtype.itemsize * math.prod(size for size in shape if size is not None)
            for count, parts in zip(entries, self.parts, strict=True)
            for _, dtype, shape in parts
        )

    def exact_bytes(self, entries: Sequence[int]) -> int:
        """Bytes of rows as the head receives them, but for padding."""
        exact = Stored("exact", self.frontier, (None,) * len(self.frontier))
        return exact.size_bytes(entries)

    def table_id(self, fingerprint: str) -> str:
        """Identify the table of a trunk's rows stored like this: never that of its exact rows."""
        if self.is_exact:
            return fingerprint
        digest = Digest().add("forethought stored", VERSION, fingerprint)
        for coding in self.codings:
            if coding is None:
                digest.add("exact")
            else:
                coding.identify(digest)
        return digest.hex()

    def encode(self, rows: Sequence[Rows], indices: Sequence[int] | np.ndarray | None = None) -> list[Rows]:
        """Turn each tensor's rows into what is stored of them.

        Args:
            rows: (B, *shape) of each tensor of the frontier, on the CPU, without padding where they differ in size.
            indices: Which sample of the data set each row is of.

        Raises:
            PrecisionError: a value is not finite, or too large.
        """
        self.check(rows, indices)
        encoded: list[Rows] = []
        for coding, part in zip(self.codings, rows, strict=True):
            if coding is None:
                encoded.append(part)
            elif isinstance(part, Uneven):
                encoded += [replace(part, values=values) for values in coding.encode(part.values.contiguous())]
            else:
                encoded += coding.encode(part.contiguous())
        return encoded

    def check(self, rows: Sequence[Rows], indices: Sequence[int] | np.ndarray | None = None) -> None:
        """Refuse what cannot be stored like this; arguments and errors as for `encode`."""
        for tensor, coding, part in zip(self.frontier, self.codings, rows, strict=True):
            values = entries_of(part)
            if coding is None or not values.numel():
                continue
            least, most = torch.aminmax(values)
            if not (-coding.limit <= float(least) and float(most) <= coding.limit):  # so NaN is refused too
                raise self._refused(tensor, coding.limit, part, indices)

    def _refused(
        self, tensor: FrontierTensor, limit: float, rows: Rows, indices: Sequence[int] | np.ndarray | None
    ) -> PrecisionError:
        values = entries_of(rows)
        flat = values.reshape(len(values), -1)
        is_bad = ~(flat.double().abs() <= limit)
        at = int(is_bad.any(dim=1).nonzero()[0])
        value = float(flat[at][is_bad[at]][0])
        if isinstance(rows, Uneven):
            at = int((rows.sizes.prod(1).cumsum(0) <= at).sum())
        where = f"row {at} of its batch" if indices is None else f"sample {int(indices[at])}"
        wider = abs(value) <= torch.finfo(torch.bfloat16).max and self.dtype != "bfloat16"
        return PrecisionError(
            f"Cannot store '{tensor.name}' as {self.dtype}: expected finite values of magnitude {limit:g} at most, got "
            f"{value:g} in {where}. " + ("Use dtype=torch.bfloat16, or leave" if wider else "Leave") + " dtype out: "
            "ft.extract(model, dataset, store)"
        )

    def decode(self, encoded: Sequence[Rows]) -> list[Rows]:
        """Give rows as they will be fed, but for padding. Undoes `encode`, but for the error."""
        given, rows = iter(encoded), []
        for coding, parts in zip(self.codings, self.parts, strict=True):
            own = [next(given) for _ in parts]
            rows.append(own[0] if coding is None else decoded(coding, own, "cpu"))
        return rows


def decoded(coding: Coding, parts: Sequence[Rows], device: str | torch.device) -> Rows:
    """Turn what is stored into rows, on a device."""
    first = parts[0]
    rows = coding.decode([entries_of(part) for part in parts], device)
    return replace(first, values=rows) if isinstance(first, Uneven) else rows


def name_of(dtype: Dtype) -> str | None:
    """Name what was asked for.

    Raises:
        PrecisionError: it is no way to store features.
    """
    if dtype is None or dtype == "int8":
        return dtype
    if dtype in (torch.float16, torch.bfloat16):
        return str(dtype).removeprefix("torch.")
    raise PrecisionError(
        f"Cannot store features as {dtype!r}: expected None (exactly), torch.float16, torch.bfloat16 or 'int8'. "
        "ft.extract(..., dtype=torch.float16)"
    )


def gets_smaller(tensor: FrontierTensor, dtype: str) -> bool:
    """Say whether a tensor's rows take fewer bytes in this precision."""
    size = 1 if dtype == "int8" else 2
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize > size and 0 not in tensor.shape


def parts_of(tensor: FrontierTensor, coding: Coding | None) -> tuple[Part, ...]:
    """Say what is stored of a tensor."""
    shape = tensor.stored_shape
    return (("", tensor.dtype, shape),) if coding is None else coding.parts(shape)


@dataclass(frozen=True)
class PrecisionReport:
    """What storing features smaller saves, and what it costs.

    What was not measured is None. Errors are those of values read back, against the exact ones, over all floating-
    point values that are stored smaller; a relative error is that of one value (0 for zeros).

    Attributes:
        dtype: "float16", "bfloat16" or "int8".
        size_bytes: Bytes of the features, as stored.
        exact_bytes: Bytes that they take exactly.
        samples: On how many samples of a data set the errors were measured.
        measured_on: When: date and time, UTC.
        largest_error: Largest absolute error.
        mean_error: Mean absolute error.
        largest_relative_error: Largest relative error.
        mean_relative_error: Mean relative error.
        output_error: Largest absolute difference that it makes to what the model's own head gives.
        output_spread: How much that output varies from sample to sample: the root of its mean variance.
        same_argmax: Share of samples, 0 to 1, whose largest output is the same one; None if it is no (B, C).
        reason: Why something was not measured, else empty.
    """

    dtype: str
    size_bytes: int
    exact_bytes: int
    samples: int | None = None
    measured_on: str | None = None
    largest_error: float | None = None
    mean_error: float | None = None
    largest_relative_error: float | None = None
    mean_relative_error: float | None = None
    output_error: float | None = None
    output_spread: float | None = None
    same_argmax: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        share = self.size_bytes / self.exact_bytes if self.exact_bytes else 1.0
        said = [
            f"{self.dtype}: {self.size_bytes / 1e6:,.1f} MB, {share:.0%} of the exact {self.exact_bytes / 1e6:,.1f}"
        ]
        if self.largest_error is not None:
            said.append(f"features off by at most {self.largest_error:.2g}, on average {self.mean_error:.2g}")
            said.append(f"relative at most {self.largest_relative_error:.2g} and {self.mean_relative_error:.2g}")
        if self.output_error is not None:
            said.append(
                f"the head's output by at most {self.output_error:.2g}, where it spreads {self.output_spread:.2g}"
            )
        if self.same_argmax is not None:
            said.append(f"argmax kept in {self.same_argmax:.1%}")
        if self.samples is not None:
            said.append(f"measured on {self.samples:,} samples, {self.measured_on}")
        return "; ".join([*said, *filter(None, [self.reason])])
