"""`as_regressor`: a classifier over ordered classes becomes a regressor, from its own last layer on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forethought import heads, nesting
from forethought.assembly import Assembled, assemble
from forethought.errors import FitError, SplitError
from forethought.features import Features
from forethought.heads.logits import Anchored, UpTo, check_anchored, in_place, logits_path, watched
from forethought.splitting.recording import Position
from forethought.splitting.replay import Split, split

_FITTED = ("cumulative", "corn", "prototype", "calibrator", "mlp")  # made from rows, beside the classifier
_ROWS = 2000  # and that many are enough


def as_regressor(
    classifier: nn.Module | Split | Features,
    anchors: Anchored,
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
              classifier's last Linear. Of Features, rows serve what is fitted on rows, and whole numbers among
              their targets as labels, unless `features=` and `labels=` are given;
            - a whole model with something frozen, with `args`: the result is a whole model again, an `Assembled`
              over the same frozen trunk. Train its head on features: `reg.heads["head"]`.
        anchors: The K classes' values in the order of the classes, None for a class that has none; or values by class.
        kind: 'pwl' (piecewise linear through the anchors, monotone in its latent), 'rqs' (the same, smooth),
            'cumulative', 'corn', 'histogram', 'prototype', 'calibrator', 'circular' or 'mlp'.
        args: Example inputs of a whole model.
        kwargs: Example keyword inputs.
        **options: Of `forethought.heads.as_regressor`: latent, activation, features, labels, and options of the head.

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
    check_anchored(anchors)
    if isinstance(classifier, Split | Features):
        owner = classifier if isinstance(classifier, Split) else classifier.split
        if isinstance(classifier, Features) and "features" not in options and not {"labels", "example"} & set(options):
            options |= _fitted_on(classifier, kind, options)
        return _head_of(owner, anchors, kind, options)
    if args is not None or kwargs:
        owner = split(classifier, args if args is not None else (), kwargs)
        made: Assembled = assemble(owner, _head_of(owner, anchors, kind, options))
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


def _fitted_on(features: Features, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Give some of the rows, evenly spread, and their labels where the targets are such, to what is fitted on rows."""
    if (kind not in _FITTED and options.get("latent") != "linear") or len(features.frontier) != 1:
        return {}
    some = features.select(slice(0, len(features), max(1, len(features) // _ROWS)))
    labels = some.targets
    is_labels = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    return {"features": some} | ({"labels": labels} if is_labels else {})


def _head_of(owner: Split, anchors: Anchored, kind: str, options: dict[str, Any]) -> nn.Module:
    """Make a head for a split's features out of the layer that gives the logits: alone, if they go straight into it.

    Raises:
        SplitError: no Linear runs after the frontier.
    """
    plan = owner.plan
    args, kwargs = nesting.replace(plan.arguments, lambda position: owner.example[position.at], Position)
    values = owner.trunk(*args, **kwargs)
    given: list[tuple[nn.Module, Any]] = []
    linears = [m for m in owner.head.modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_pre_hook(lambda module, args: given.append((module, args[0]))) for m in linears]
    try:
        with watched(owner.head) as calls, torch.no_grad():
            output = owner.head(values)
    finally:
        for handle in handles:
            handle.remove()
    if not given:
        raise SplitError(
            "Cannot make a regressor: expected a trainable nn.Linear after the frontier, which gives the classes' "
            f"logits, got {in_place(owner.model)}"
        )
    classes = None if isinstance(anchors, Mapping) else len(anchors)
    path = logits_path(type(owner.model).__name__, output, calls, squashed=True, classes=classes)
    linear = owner.head.get_submodule(path)
    seen = [value for module, value in given if module is linear]
    if len(seen) == 1 and isinstance(values, Tensor) and seen[0].is_set_to(values):
        return heads.as_regressor(linear, anchors, kind, **options)
    return heads.as_regressor(UpTo(owner.head, path), anchors, kind, example=values, **options)
