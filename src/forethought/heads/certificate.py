"""What is proved of a head, as data: claims, the weights and the arithmetic that they hold for.

A certificate speaks of the function as it runs in floating point, not of its formula. It rests on the stored weights,
compared and divided exactly (as rational numbers), and on the order of operations in this library's own code; so it
names both, and it is void for other weights.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from forethought.errors import BundleError, CertificateError

MONOTONE, RANGE, CODE = "monotone", "range", "code"
AS_FUNCTION, AT_PROTOTYPES, AT_VERTICES = (
    "anchors as a function",
    "anchors at prototypes",
    "anchors at one-hot vertices",
)
LATENT, EXCEEDANCE = "latent", "exceedance"
EAGER = "eager PyTorch: IEEE 754, round to nearest"
FLUSHED = "eager PyTorch: round to nearest, subnormal numbers taken for 0"


@dataclass(frozen=True)
class Claim:
    """One property, proved or not.

    Attributes:
        what: "monotone", "range", "anchors as a function", "anchors at prototypes", "anchors at one-hot vertices"; or
            "code", when that is not the one that was proved.
        variable: What is varied: "latent", "exceedance", "rank logits", a feature's name.
        says: The property in words.
        scope: For which values of the variable.
        holds: Whether it is proved.
        why: The proof in a line, or what stands against it.
        bound: Of anchors: the greatest distance from one, in their unit; 0.0 means to the last bit.
        violation: The first case found that breaks it, in words.
    """

    what: str
    variable: str
    says: str
    scope: str
    holds: bool
    why: str
    bound: float | None = None
    violation: str | None = None

    def refuted(self, violation: str) -> "Claim":
        """Return the claim as one that does not hold."""
        return dataclasses.replace(self, holds=False, violation=self.violation or violation)


@dataclass(frozen=True)
class Certificate:
    """The claims about one head with the weights that it had.

    Attributes:
        kind: Of the head.
        claims: Proved or not, each says.
        dtype: In which the claims hold; "" where the code is not known.
        device: On which the numbers were read.
        arithmetic: Under which the claims hold.
        weights: BLAKE3 of every tensor and option of the head, hex.
        made_with: Versions.
    """

    kind: str
    claims: tuple[Claim, ...]
    dtype: str
    device: str
    arithmetic: str
    weights: str
    made_with: str

    @property
    def holds(self) -> bool:
        """Whether something is claimed and every claim is proved."""
        return bool(self.claims) and all(claim.holds for claim in self.claims)

    def claim(self, what: str, variable: str | None = None) -> Claim | None:
        """Return the first claim of a property (and variable), or None."""
        found = (c for c in self.claims if c.what == what and variable in (None, c.variable))
        return next(found, None)

    def raise_if_failed(self) -> "Certificate":
        """Return the certificate, or raise at the first claim that is not proved.

        Raises:
            CertificateError: names the claim and its first violation.
        """
        if not self.claims:
            raise CertificateError(
                f"Cannot certify head of kind '{self.kind}': expected something that can be proved of it, got none. "
                "Use a head with a guarantee: heads.AnchorSpline(in_features, anchors)"
            )
        for claim in self.claims:
            if not claim.holds:
                raise CertificateError(
                    f"Cannot certify head of kind '{self.kind}': expected {claim.says} ({claim.scope}), got: "
                    f"{claim.violation or claim.why}. Read the whole of it: print(head.certify())"
                )
        return self

    def confirm(self, now: "Certificate") -> None:
        """See that a certificate made later is for the same weights and proves at least as much.

        Raises:
            CertificateError: it does not.
        """
        proved = {claim.says for claim in now.claims if claim.holds}
        lost = [claim.says for claim in self.claims if claim.holds and claim.says not in proved]
        if now.weights != self.weights or lost:
            raise CertificateError(
                f"Cannot confirm certificate of head of kind '{self.kind}': expected "
                + (f"to prove again that {lost[0]}" if lost else f"the weights {self.weights[:16]}")
                + f", got {now.kind}, weights {now.weights[:16]}. The head changed: certify and save it again"
            )

    def to_json(self) -> str:
        """Write as JSON. Undone by `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Certificate":
        """Read what `to_json` wrote.

        Raises:
            BundleError: it is something else.
        """
        try:
            held: dict[str, Any] = json.loads(text)
            return Certificate(**{**held, "claims": tuple(Claim(**claim) for claim in held["claims"])})
        except (ValueError, TypeError, KeyError) as err:
            raise BundleError(
                f"Cannot read certificate: expected what to_json wrote, got {text[:60]!r} ({err}). "
                "Make it again: head.certify()"
            ) from err

    def __str__(self) -> str:
        lines = [f"{self.kind}: {'certified' if self.holds else 'not certified'}, {self.dtype} on {self.device}"]
        for claim in self.claims:
            lines.append(f"  {'proved ' if claim.holds else 'NOT    '} {claim.says}")
            lines.append(f"           for {claim.scope}: {claim.why}")
            lines += [f"           {claim.violation}"] if claim.violation else []
        return "\n".join([*lines, f"  {self.arithmetic}; weights {self.weights[:16]}; {self.made_with}"])


def digest_of(head: nn.Module, options: Mapping[str, Any]) -> str:
    """Hash every tensor of a head, with names, dtypes and shapes, and its options."""
    state = blake3(json.dumps(options, sort_keys=True).encode())
    for name, tensor in sorted(head.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().flatten()
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(flat.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
