"""What every head promises."""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forethought.errors import CertificateError, FitError
from forethought.heads.agreement import Through, carried_over
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import AS_FUNCTION, AT_PROTOTYPES, AT_VERTICES, CODE, Certificate, Claim
from forethought.heads.falsification import Falsification, Hit, Walk
from forethought.heads.layers import in_evaluation
from forethought.heads.proofs import altered, certificate_of, hunt, unaffected


class Head(nn.Module, ABC):
    """Map features (B, D) to one number per sample, (B,), in the anchors' units.

    All state is in parameters and buffers; `config` holds the rest, as JSON, so that
    `from_config(head.config())` followed by `load_state_dict` gives the same head without pickle.
    """

    kind: ClassVar[str]
    free: ClassVar[tuple[str, ...]] = ("net", "latent_net")  # parts of which the claims say nothing
    classes: tuple[int, ...] | None = None  # which class of a classifier each anchor is of; None: 0 to K - 1, in order

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Predict (B,) from features (B, D)."""

    @abstractmethod
    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the head's natural training loss, a scalar.

        Args:
            features: (B, D).
            targets: (B,), in the anchors' units.
            weights: (B,), what each row counts, not negative; None: all the same.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return what rebuilds this head, as JSON types. Undone by `from_config`."""

    @abstractmethod
    def claims(self) -> Sequence[Claim]:
        """Return what can be proved of this head from its weights as they are, and what cannot."""

    @abstractmethod
    def trials(self) -> tuple[Sequence[Walk], Sequence[Hit]]:
        """Return what `falsify` is to run: the variables of the claims, and the places of the anchors."""

    def values_of(self, labels: Tensor) -> Tensor:
        """Return the anchors (B,) of class labels (B,), as the classifier numbers them: targets to train on.

        Raises:
            FitError: labels that are no whole numbers, or of a class that has no anchor.
        """
        anchors = getattr(self, "anchors", None)
        if not isinstance(anchors, Tensor):
            raise FitError(
                f"Cannot give labels values: expected a head with one row of anchors, got a {type(self).__name__}. "
                "Ask each of its heads: head.heads['pitch'].values_of(labels)"
            )
        return anchors[places_of(labels, self.classes, len(anchors)).to(anchors.device)]

    def numbered(self, places: Tensor) -> Tensor:
        """Return the numbers (B,) of the classes at places (B,) among the anchors. Undone by `places_of`."""
        return places if self.classes is None else torch.tensor(self.classes, device=places.device)[places]

    def numbering(self) -> dict[str, Any]:
        """Return what `config` says of the classes' numbers: nothing where they are the anchors' places."""
        return {} if self.classes is None else {"classes": list(self.classes)}

    @abstractmethod
    def runs_in(self) -> torch.dtype:
        """Return the floating type in which the certified part runs, float32 or wider."""

    def certify(self, through: Through | None = None, tries: int = 100_000) -> Certificate:
        """Prove what holds for this head with the weights that it has now; say what does not.

        The proofs are by exact arithmetic on the stored weights and by the order of operations of the head's own
        code, under eager PyTorch's floating-point arithmetic. Do it again after any change: training, loading, a
        cast. Takes milliseconds.

        Args:
            through: Another way of running the head, such as `torch.compile` or `heads.onnx_runtime`: takes a module
                with inputs in `module.example`, and returns what to call in its place. What is proved of the eager
                code is then claimed of it where it gives the same bits.
            tries: About how many inputs to compare for each variable.

        Returns:
            A certificate; `certificate.raise_if_failed()` where it must hold.
        """
        with unaffected():
            certificate = self._certified()
            if through is None or not certificate.holds:
                return certificate
            with in_evaluation(self):
                return carried_over(certificate, self, self.baked(), through, tries)

    def baked(self) -> "Head":
        """Return a copy in which what is computed from parameters alone is held as numbers: what is exported.

        Tables made by softplus and sums would come out with other last bits in another runtime.
        """
        made = copy.deepcopy(self)
        for part in made.modules():
            bake = getattr(part, "bake", None)
            if bake is not None and type(part).__module__.startswith("forethought.heads."):
                _widen(part, self.runs_in())
                bake(self.runs_in())
        return made

    def _certified(self) -> Certificate:
        _check_weights(self)
        against = altered(self, self.free)
        if against is not None:  # what is not this library's code need not have what the proofs ask for
            claim = Claim(CODE, "", "the code to be the one that was proved", "every property", False, against)
            return certificate_of(self, {"kind": self.kind}, None, [claim], [], [])
        try:
            options = self.config()
        except FitError:  # it holds a module of the user's, whose tensors are in the digest all the same
            options = {"kind": self.kind}
        claims = [_of_rounded(claim, getattr(self, "scale", None)) for claim in self.claims()]
        return certificate_of(self, options, self.runs_in(), claims, *self.trials())

    def falsify(self, tries: int = 1_000_000, seed: int = 0) -> Falsification:
        """Search for a counterexample to the claims, in the same variables, by running the head.

        Args:
            tries: About how many inputs to run for each variable.
            seed: Of what is tried.

        Returns:
            The number of inputs run, and the counterexamples: finding none proves nothing, finding one refutes.
        """
        with unaffected():
            return hunt(self, *self.trials(), tries, seed)


def _widen(part: nn.Module, dtype: torch.dtype) -> None:
    """Bring a part's own parameters, in half precision, to the type in which it computes: no number changes."""
    lists = [child for child in part.children() if isinstance(child, nn.ParameterList)]
    for holder in (part, *lists):
        for parameter in holder.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, dtype))


def places_of(labels: Tensor, classes: Sequence[int] | None, count: int) -> Tensor:
    """Return the places (B,) among `count` anchors of class labels (B,), on the CPU.

    Args:
        labels: Whole numbers.
        classes: Which class each anchor is of; None: 0 to count - 1.
        count: How many anchors.

    Raises:
        FitError: labels that are no whole numbers, or of a class that has no anchor.
    """
    labels = torch.as_tensor(labels).detach().cpu()
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise FitError(
            f"Cannot give labels values: expected whole numbers, got {labels.dtype}. Pass labels.long(); values "
            "between the anchors are targets as they are"
        )
    known = torch.arange(count) if classes is None else torch.tensor(classes)
    most = int(known.max()) + 1
    places = torch.full((most + 1,), -1)
    places[known] = torch.arange(count)
    found = places[torch.where((labels >= 0) & (labels < most), labels, most).long()]
    if bool((found < 0).any()):
        raise FitError(
            f"Cannot give labels values: expected classes that have an anchor, {_listed(known)}, got "
            f"{labels[found < 0][0].item()}. Leave the others out: labels[torch.isin(labels, "
            f"torch.tensor({_listed(known)}))]"
        )
    return found


def _listed(known: Tensor) -> str:
    numbers = [str(number) for number in sorted(known.tolist())]
    return f"[{', '.join(numbers if len(numbers) < 9 else [*numbers[:3], '...', numbers[-1]])}]"


def _check_weights(head: nn.Module) -> None:
    """Raise if a tensor of the head is on the meta device."""
    missing = [name for name, tensor in head.state_dict().items() if isinstance(tensor, Tensor) and tensor.is_meta]
    if missing:
        raise CertificateError(
            f"Cannot certify head: expected weights, got {missing[0]!r} on the meta device, which holds none. "
            "Load them first: head.to_empty(device='cpu').load_state_dict(...)"
        )


def _of_rounded(claim: Claim, scale: object) -> Claim:
    """Say beside a claim about anchors how far these, as they are held, are from the numbers that were given."""
    if claim.what not in (AS_FUNCTION, AT_PROTOTYPES, AT_VERTICES) or not isinstance(scale, Anchors):
        return claim
    if not claim.holds or not scale.rounding:
        return claim
    held = str(scale.values.dtype).removeprefix("torch.")
    remark = f"the anchors are held in {held}, within {scale.rounding:.3g} of the numbers given"
    return dataclasses.replace(claim, why=f"{claim.why}; {remark}")
