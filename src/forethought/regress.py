"""`as_regressor`: a classifier over ordered classes becomes a regressor, from its own last layer on."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from forethought import heads, nesting
from forethought.assembly import Assembled, assemble
from forethought.errors import FitError, SplitError
from forethought.features import Features
from forethought.halves import Head, Values
from forethought.recording import Position
from forethought.replay import Split, split


def as_regressor(
    classifier: nn.Module | Split | Features,
    anchors: Sequence[float] | Tensor,
    kind: str = "pwl",
    *,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Turn a classifier over ordered classes into a regressor with continuous output, warm-started from its weights.

    Before any training the result is already sensible: it answers with what the classifier believes.

    Args:
        classifier: One of
            - a layer over features, such as the `nn.Linear` that gives the K logits: the result is a head,
              (B, D) -> (B,);
            - a Split or Features of a classifier: the result is a head for its features, made from the
              classifier's last Linear;
            - a whole model with something frozen, with `args`: the result is a whole model again, an `Assembled`
              over the same frozen trunk. Train its head on features: `reg.heads["head"]`.
        anchors: The K classes' values, in the order of the classes.
        kind: 'pwl' (piecewise linear through the anchors, monotone in its latent), 'histogram' (expectation over the
            anchors) or 'mlp' (free).
        args: Example inputs of a whole model.
        kwargs: Example keyword inputs.
        **options: Of `forethought.heads.as_regressor`: latent, activation, features, and options of the head.

    Raises:
        AnchorError: unusable anchors, or not one for each class.
        FitError: no layer to start from.
        SplitError: a whole model without example inputs.

    Example:
        >>> classifier = nn.Linear(4, 3)
        >>> head = as_regressor(classifier, anchors=[60.0, 61.0, 62.0])
        >>> head(torch.zeros(5, 4)).shape
        torch.Size([5])
    """
    if isinstance(classifier, Split | Features):
        owner = classifier if isinstance(classifier, Split) else classifier.split
        return heads.as_regressor(_logits_of(owner), anchors, kind, **options)
    if args is not None or kwargs:
        owner = split(classifier, args if args is not None else (), kwargs)
        made: Assembled = assemble(owner, heads.as_regressor(_logits_of(owner), anchors, kind, **options))
        return made
    if not isinstance(classifier, nn.Module):
        raise FitError(
            f"Cannot make a regressor of a {type(classifier).__name__}: expected a module, a Split or Features. "
            "ft.as_regressor(model.fc, anchors)"
        )
    if any(not parameter.requires_grad for parameter in classifier.parameters()):
        raise SplitError(
            f"Cannot make a regressor of a {type(classifier).__name__}: expected example inputs, since part of it is "
            "frozen. ft.as_regressor(model, anchors, args=torch.randn(2, ...)), or give the split's features."
        )
    return heads.as_regressor(classifier, anchors, kind, **options)


class _Logits(nn.Module):
    """The part of a head up to the classifier's last Linear: features to logits."""

    def __init__(self, head: Head, linear: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self._name = next(name for name, module in head.named_modules() if module is linear)

    def forward(self, values: Values) -> Tensor:
        """Run the head; give what its last Linear gave, (B, K)."""
        found: list[Tensor] = []
        linear = self.head.get_submodule(self._name)
        handle = linear.register_forward_hook(lambda _module, _args, output: found.append(output))
        try:
            self.head(values)
        finally:
            handle.remove()
        return found[-1]


def _logits_of(owner: Split) -> nn.Module:
    """Find the layer that gives the logits: the last Linear itself, if the features go straight into it."""
    plan = owner.plan
    args, kwargs = nesting.replace(plan.arguments, lambda position: owner.example[position.at], Position)
    values = owner.trunk(*args, **kwargs)
    linear, seen = last_linear(owner.head, values)
    is_direct = len(seen) == 1 and isinstance(values, Tensor) and seen[0].is_set_to(values)
    return linear if is_direct else _Logits(owner.head, linear)


def last_linear(head: Head, values: Values) -> tuple[nn.Linear, list[Any]]:
    """Find the trainable Linear that runs last, and what it is given at each call.

    Raises:
        SplitError: none runs.
    """
    calls: list[tuple[nn.Linear, Any]] = []
    linears = [m for m in head.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    handles = [m.register_forward_pre_hook(lambda module, args: calls.append((module, args[0]))) for m in linears]
    try:
        head(values)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise SplitError(
            "Cannot make a regressor: expected a trainable nn.Linear that gives the classes' logits, got none after "
            "the frontier. Give it: ft.as_regressor(nn.Linear(...), anchors)"
        )
    last = calls[-1][0]
    return last, [given for module, given in calls if module is last]
