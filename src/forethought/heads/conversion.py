"""From a trained classifier to a regressor that makes sense before any training."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import AnchorError, FitError
from forethought.heads.histogram import HistogramHead, padding
from forethought.heads.interface import Head
from forethought.heads.latents import ExpectedClass
from forethought.heads.layers import dtype_of, hidden_of, run_in_full
from forethought.heads.mlp import MLPHead
from forethought.heads.options import check_option
from forethought.heads.spline import AnchorSpline

Anchored = Sequence[float] | Tensor

_PAD_GAP = 10.0  # nats by which a padding class starts behind its end class: 5e-5 of its weight
_RIDGE = 1e-4  # of the features' mean variance: enough to invert, too little to shrink what the data say


def as_regressor(
    classifier: nn.Module,
    anchors: Anchored,
    kind: str = "pwl",
    *,
    latent: str = "classifier",
    activation: str = "softmax",
    features: Tensor | None = None,
    **options: Any,
) -> Head:
    """Turn a K-way classifier of features into a regressor head, warm-started from its weights.

    Before any training: kind='histogram' is the classifier's expectation over the anchors; kind='pwl' with
    latent='classifier' is the anchors' curve at the classifier's expected class, which for evenly spaced
    anchors is the same number. Neither falls when weight moves to higher classes; neither is monotone in
    single logits. latent='linear' fits one direction of feature space to the expected class in closed form
    (ridge): with it, before and after training, y is monotone along every straight line of feature space, in
    exact arithmetic. kind='mlp' takes the classifier as its first layers and fits its last one the same way.

    Args:
        classifier: nn.Linear, nn.Sequential ending in one, or a module whose last nn.Linear gives the K
            logits. Takes features (B, D). It is copied, never changed; the copy is trainable throughout.
        anchors: The K classes' values, in the order of the classes.
        kind: 'pwl' (AnchorSpline), 'histogram' (HistogramHead) or 'mlp' (MLPHead).
        latent: For 'pwl': 'classifier' or 'linear'.
        activation: What the classifier was trained with, 'softmax' or 'sigmoid'; give it the logits' layer.
        features: (N, D), a few hundred rows, no labels; needed by latent='linear' and kind='mlp'.
        **options: Of the head, such as knots='trainable' or targets='hl-gauss'.

    Returns:
        A new head on the classifier's device, in its dtype.

    Raises:
        AnchorError: unusable anchors, or not one per class.
        FitError: no Linear to start from, or features missing.

    Example:
        >>> classifier = torch.nn.Linear(4, 3)
        >>> head = as_regressor(classifier, anchors=[60.0, 61.0, 62.0])
        >>> expectation = classifier(torch.ones(1, 4)).softmax(-1) @ torch.tensor([60.0, 61.0, 62.0])
        >>> torch.allclose(head(torch.ones(1, 4)), expectation)
        True
    """
    check_option("kind", kind, ("pwl", "histogram", "mlp"))
    check_option("latent", latent, ("classifier", "linear"))
    check_option("activation", activation, ("softmax", "sigmoid"))
    net = _copied(classifier, len(anchors))
    device = _last_linear(net).weight.device
    if kind == "histogram":
        head = _histogram(net, anchors, activation, options)
    elif kind == "mlp":
        head = _mlp(net, anchors, *_distilled(net, activation, features, "kind='mlp'"), options)
    elif latent == "linear":
        head = _linear(anchors, *_distilled(net, activation, features, "latent='linear'"), options)
    else:
        head = _expected(net, anchors, activation, options)
    return head.to(device)


def _last_linear(net: nn.Module) -> nn.Linear:
    """Return the Linear that makes the logits: the last one, with nothing that squashes them after it."""
    leaves = [module for module in net.modules() if next(module.children(), None) is None]
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise FitError(
            f"Cannot convert classifier: expected an nn.Linear in it, got {type(net).__name__} without one. "
            "Pass the layer that makes the logits: as_regressor(model.fc, anchors)"
        )
    if isinstance(leaves[-1], nn.Softmax | nn.LogSoftmax | nn.Sigmoid):
        raise FitError(
            "Cannot convert classifier: expected it to end at the logits, "
            f"got {type(leaves[-1]).__name__} last. "
            "Pass it without: as_regressor(classifier[:-1], anchors, activation='softmax' or 'sigmoid')"
        )
    return linears[-1]


def _check_classes(outputs: int, anchors: int) -> None:
    if outputs != anchors:
        raise AnchorError(
            f"Cannot convert classifier: expected one anchor for each of its {outputs} classes, "
            f"got {anchors} anchors. Pass anchors=[...] with {outputs} numbers"
        )


def _copied(classifier: nn.Module, anchors: int) -> nn.Module:
    """Return a trainable copy whose logits have a bias, checked to give one logit per anchor."""
    net = copy.deepcopy(classifier)
    given = {id(parameter) for parameter in classifier.parameters()}
    for parameter in net.parameters():
        if id(parameter) not in given:  # what a copy shares with the original is the original's to train
            parameter.requires_grad_(True)
    last = _last_linear(net)
    _check_classes(last.out_features, anchors)
    if getattr(last, "bias", None) is None:
        last.bias = nn.Parameter(last.weight.new_zeros(last.out_features))
    return nn.Sequential(net) if isinstance(net, nn.Linear) else net


def _histogram(net: nn.Module, anchors: Anchored, activation: str, options: dict[str, Any]) -> Head:
    pad = options.pop("pad", None)
    pad = padding(options.get("targets", "two-hot"), options.get("sigma", 0.75)) if pad is None else pad
    if pad:
        _widen(_last_linear(net), pad)
    hidden, shared = hidden_of(net), {"activation": activation, "pad": pad, **options}
    if hidden is None:
        return HistogramHead(_width_of(net), anchors, net=net, dtype=dtype_of(net), **shared)
    head = HistogramHead(_width_of(net), anchors, hidden=hidden, dtype=dtype_of(net), **shared)
    head.net = net
    return head


def _widen(last: nn.Linear, pad: int) -> None:
    """Add `pad` classes beyond each end, starting as copies of the end class, far less likely."""
    rows = torch.arange(-pad, last.out_features + pad, device=last.weight.device)
    inside = rows.clamp(0, last.out_features - 1)
    with torch.no_grad():
        last.weight = nn.Parameter(last.weight[inside])
        last.bias = nn.Parameter(last.bias[inside] - _PAD_GAP * (rows != inside))
    last.out_features = len(rows)


def _expected(net: nn.Module, anchors: Anchored, activation: str, options: dict[str, Any]) -> Head:
    hidden, dtype = hidden_of(net), dtype_of(net)
    latent = ExpectedClass(net, activation)
    if hidden is None:
        return AnchorSpline(_width_of(net), anchors, latent, dtype=dtype, **options)
    shared = {"hidden": hidden, "activation": activation, "dtype": dtype, **options}
    head = AnchorSpline(_width_of(net), anchors, "classifier", **shared)
    head.latent_net = latent
    return head


def _linear(anchors: Anchored, features: Tensor, wanted: Tensor, options: dict[str, Any]) -> Head:
    """Fit the linear latent to the wanted output, -1..1 over the classes."""
    head = AnchorSpline(features.shape[1], anchors, "linear", dtype=features.dtype, **options)
    _fit_ridge(_last_linear(head.latent_net), features, wanted)
    return head


def _mlp(net: nn.Module, anchors: Anchored, features: Tensor, wanted: Tensor, options: dict[str, Any]) -> Head:
    hidden = hidden_of(net)
    if hidden is None:
        raise FitError(
            f"Cannot convert classifier to kind 'mlp': expected Linear layers with ReLU between them, "
            f"got {type(net).__name__}. Use kind='pwl' or kind='histogram'"
        )
    body = nn.Sequential(*net.children(), nn.ReLU())
    hidden = (*hidden, len(anchors))
    head = MLPHead(_width_of(net), anchors, hidden=hidden, dtype=features.dtype, **options)
    final = nn.Linear(len(anchors), 1, dtype=features.dtype, device=features.device)
    _fit_ridge(final, run_in_full(body, features).detach(), wanted)
    head.net = nn.Sequential(*body, final)
    return head


def _distilled(net: nn.Module, activation: str, features: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    """Return features (N, D) as the classifier takes them, and its expected class (N,) scaled to -1..1."""
    if features is None or features.ndim != 2 or len(features) < 2:
        got = None if features is None else tuple(features.shape)
        raise FitError(
            f"Cannot convert classifier to {what}: expected features (N, D) to fit it on, got {got}. "
            "Pass some of yours: as_regressor(classifier, anchors, ..., features=features[:1000])"
        )
    weight = _last_linear(net).weight
    features = features.detach().to(weight.device, weight.dtype)
    was_training = net.training
    with torch.no_grad():
        index = ExpectedClass(net.eval(), activation)(features)
    net.train(was_training)
    half = (_last_linear(net).out_features - 1) / 2
    return features, (index - half) / half


def _fit_ridge(layer: nn.Linear, x: Tensor, wanted: Tensor) -> None:
    """Set a Linear (D -> 1) to the ridge regression of wanted (N,) on x (N, D), in float64."""
    x, y = x.double().cpu(), wanted.double().cpu()
    mean, middle = x.mean(0), y.mean()
    x, y = x - mean, y - middle
    penalty = _RIDGE * x.square().sum() / x.shape[1] + torch.finfo(torch.float64).tiny
    if x.shape[0] < x.shape[1]:
        w = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype), y)
    else:
        w = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    with torch.no_grad():
        layer.weight.copy_(w[None])
        layer.bias.copy_((middle - mean @ w)[None])


def _width_of(net: nn.Module) -> int:
    return next(module.in_features for module in net.modules() if isinstance(module, nn.Linear))
