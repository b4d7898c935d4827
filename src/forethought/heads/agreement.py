"""What is proved of a head's eager code, carried over to another way of running it: a compiler, an exporter.

How another runtime orders and fuses operations is not ours to prove. What can be seen is whether it gives the same
bits: the certified function is run both ways on the places where it is delicate (knots, their neighbouring floats,
numbers of every size), and any difference voids the claim.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from forethought.heads.certificate import Certificate, Claim
from forethought.heads.falsification import Hit, Walk, ladders

Through = Callable[[nn.Module], Callable[[Tensor], Any]]


class Along(nn.Module):
    """A certified function as a module of its own: inputs (N, V) to outputs (N,).

    Attributes:
        example: Inputs that it can be traced or exported with.
    """

    def __init__(self, head: object, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        super().__init__()
        self.head = head  # its parameters are this module's, too
        self.function = function
        self.register_buffer("example", example, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.function(x)


def carried_over(
    certificate: Certificate, given: "Certifiable", exported: "Certifiable", through: Through, tries: int
) -> Certificate:
    """Return a certificate for a head that is run another way: what stands, stands because the bits are the same.

    Args:
        certificate: Of the head.
        given: The head, in evaluation mode.
        exported: Its copy that is to be run the other way.
        through: The other way.
        tries: About how many inputs to compare for each variable.
    """
    name = getattr(through, "__name__", type(through).__name__)
    compared: dict[str, int] = {}
    differences: dict[str, str] = {}
    for (variable, function, inputs), (_, other, _) in zip(
        _delicate(given, tries), _delicate(exported, 0), strict=True
    ):
        run = through(Along(exported, other, inputs[:4]).eval())
        found = _difference(function, run, inputs)
        compared[variable] = compared.get(variable, 0) + len(inputs)
        if found is not None:
            differences.setdefault(variable, found)
    claims = [_carried(claim, name, compared, differences) for claim in certificate.claims]
    total = sum(compared.values())
    arithmetic = f"through {name}: compared with eager PyTorch, bit by bit, on {total:,} inputs"
    return dataclasses.replace(certificate, claims=tuple(claims), arithmetic=arithmetic)


class Certifiable(Protocol):
    """What has variables to be run along."""

    def trials(self) -> tuple[Sequence[Walk], Sequence[Hit]]:
        """Return walks and hits."""


def _delicate(head: Certifiable, tries: int) -> list[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """Return the functions with the inputs to compare them on: one entry a function."""
    walks, hits = head.trials()
    made = [(walk.variable, walk.function, torch.cat([walk.places, ladders(walk, tries)])) for walk in walks]
    return made + [(hit.variable, hit.function, hit.at) for hit in hits]


def _difference(function: Callable[[Tensor], Tensor], run: Callable[[Tensor], Any], inputs: Tensor) -> str | None:
    with torch.no_grad():
        expected, got = function(inputs), torch.as_tensor(run(inputs)).to(inputs.device)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"gives {got.dtype} {tuple(got.shape)}, not {expected.dtype} {tuple(expected.shape)}"
    other = ~((got == expected) | (got.isnan() & expected.isnan()))
    if not other.any():
        return None
    i = int(other.nonzero()[0])
    at, y, wanted = inputs[i].tolist()[:4], got[i].item(), expected[i].item()
    return f"{int(other.sum()):,} of {len(inputs):,} differ: at {at} it gives {y!r}, not {wanted!r}"


def _carried(claim: Claim, name: str, compared: dict[str, int], differences: dict[str, str]) -> Claim:
    if claim.variable in differences:
        return claim.refuted(f"{name}: {differences[claim.variable]}")
    if claim.variable not in compared:
        return claim.refuted(f"{name}: nothing to compare in '{claim.variable}'")
    return dataclasses.replace(
        claim, why=f"{claim.why}; {name} gave the same bits on {compared[claim.variable]:,} inputs"
    )
