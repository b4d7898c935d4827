"""From a trained classifier to a regressor that makes sense before any training."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import FitError
from forethought.heads.calibrator import AnchorCalibrator
from forethought.heads.circular import CircularSpline
from forethought.heads.corn import CornHead
from forethought.heads.correction import Corrected
from forethought.heads.cumulative import CumulativeLink
from forethought.heads.histogram import HistogramHead, padding
from forethought.heads.interface import Head
from forethought.heads.latents import ExpectedClass, class_weights, exceedances_of
from forethought.heads.layers import as_rows, dtype_of, hidden_of, in_evaluation, run_in_full
from forethought.heads.logits import Anchored, Classifier, anchored_classes, check_anchored, classifier_of
from forethought.heads.mlp import MLPHead
from forethought.heads.options import check_option
from forethought.heads.prototypes import PrototypeExact, class_prototypes
from forethought.heads.spline import AnchorSpline

_RIDGE = 1e-4  # of the features' mean variance: enough to invert, too little to shrink what the data say
_SUREST = 8.0  # logits that a fit asks for at most: what is certain has infinite ones
KINDS = ("pwl", "rqs", "cumulative", "corn", "histogram", "prototype", "calibrator", "circular", "mlp")


def as_regressor(
    classifier: nn.Module,
    anchors: Anchored,
    kind: str = "pwl",
    *,
    latent: str = "classifier",
    activation: str = "softmax",
    features: Tensor | None = None,
    labels: Tensor | None = None,
    example: Any = None,
    **options: Any,
) -> Head:
    """Turn a K-way classifier of features into a regressor head, warm-started from its weights.

    Before any training: kind='histogram' is the classifier's expectation over the anchors; kind='pwl' with
    latent='classifier' is the anchors' curve at the classifier's expected class, which for evenly spaced
    anchors is the same number. Neither falls when weight moves to higher classes; neither is monotone in
    single logits. latent='linear' fits one direction of feature space to the expected class in closed form
    (ridge): with it, before and after training, y is monotone along every straight line of feature space, in
    exact arithmetic. So do 'cumulative' and 'prototype'; 'corn' fits its conditional logits, 'mlp' takes the
    classifier as its first layers and fits its last one. 'calibrator' trains nothing: it reads the expected
    class off against the anchors. 'circular' reads the mean direction of the classes around a circle.

    Args:
        classifier: nn.Linear, nn.Sequential, or a module from features to logits. The layer that gives the K
            logits is found by running it. It is copied, never changed; the copy is trainable throughout.
        anchors: The K classes' values in the order of the classes, None for a class that has none; or values
            by class, {class: value}, in any order. Classes without a value are left out.
        kind: 'pwl' or 'rqs' (AnchorSpline, straight or smooth), 'cumulative', 'corn', 'histogram',
            'prototype', 'calibrator', 'circular' (give period=) or 'mlp'.
        latent: For 'pwl' and 'rqs': 'classifier' or 'linear'.
        activation: What the classifier was trained with, 'softmax' or 'sigmoid'; give it the logits' layer.
        features: (N, D), a few hundred rows, for what is fitted in closed form: latent='linear', 'cumulative',
            'corn', 'mlp', 'prototype', 'calibrator'.
        labels: (N,) class indices of these rows, for 'prototype' and 'calibrator'.
        example: Features to run the classifier on, where they are not one tensor (B, D).
        **options: Of the head, such as knots='trainable' or targets='hl-gauss'.

    Returns:
        A new head on the classifier's device, in its dtype. Train it on values, on class labels
        (head.values_of(labels)), or on both. Where classes were left out or given in another order, `head.classes`
        says which class each anchor is of; `predict_class` and `values_of` number classes as the classifier does.

    Raises:
        AnchorError: unusable anchors, or not one per class.
        FitError: no Linear to start from, or features or labels missing.

    Example:
        >>> classifier = torch.nn.Linear(4, 3)
        >>> head = as_regressor(classifier, anchors=[60.0, 61.0, 62.0])
        >>> expectation = classifier(torch.ones(1, 4)).softmax(-1) @ torch.tensor([60.0, 61.0, 62.0])
        >>> torch.allclose(head(torch.ones(1, 4)), expectation)
        True
    """
    check_option("kind", kind, KINDS)
    check_option("latent", latent, ("classifier", "linear"))
    check_option("activation", activation, ("softmax", "sigmoid"))
    check_anchored(anchors)
    features, labels = (None if given is None else as_rows(given) for given in (features, labels))
    example = features[:2] if example is None and features is not None else example
    found = classifier_of(classifier, example, None if isinstance(anchors, Mapping) else len(anchors))
    total = found.linear.out_features
    kept, values = anchored_classes(anchors, total)
    found.keep(kept)
    if kind == "rqs":
        options["between"] = "rational"
    source = _Source(found, values, kept, total, activation, features, labels, options)
    plain: Callable[[_Source], Head] = _straight if latent == "linear" else _expected
    makers = {
        "pwl": plain, "rqs": plain, "cumulative": _cumulative, "corn": _corn, "histogram": _histogram,
        "prototype": _prototype, "calibrator": _calibrator, "circular": _circular, "mlp": _mlp,
    }  # fmt: skip
    head = makers[kind](source).to(found.linear.weight.device)
    head.classes = source.numbers
    return head


class _Source:
    """What a head is made from."""

    def __init__(
        self,
        found: Classifier,
        anchors: list[float],
        kept: list[int],
        total: int,
        activation: str,
        features: Tensor | None,
        labels: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        self.net, self.found, self.anchors, self.activation, self.options = (
            found.net,
            found,
            anchors,
            activation,
            options,
        )
        self._kept, self._total, self._features, self._labels = kept, total, features, labels

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """Which class each anchor is of, or None where these are all, in order."""
        return None if self._kept == list(range(self._total)) else tuple(self._kept)

    @property
    def width(self) -> int:
        return self.found.width

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.found.linear)

    def features(self, what: str) -> Tensor:
        """Return the rows to fit on, as the classifier takes them."""
        given = self._features
        if given is None or given.ndim != 2 or len(given) < 2:
            got = None if given is None else tuple(given.shape)
            raise FitError(
                f"Cannot convert classifier to {what}: expected features (N, D) to fit it on, got {got}. "
                "Pass some of yours: as_regressor(classifier, anchors, ..., features=features[:1000])"
            )
        if not given.isfinite().all():
            raise FitError(
                f"Cannot convert classifier to {what}: expected finite features, got some that are not. "
                "features=features[features.isfinite().all(1)]"
            )
        weight = self.found.linear.weight
        return given.detach().to(weight.device, weight.dtype)

    def labelled(self, what: str) -> tuple[Tensor, Tensor]:
        """Return the rows whose class has an anchor, and their places among these."""
        features = self.features(what)
        if self._labels is None or self._labels.shape != features.shape[:1] or self._labels.is_floating_point():
            got = None if self._labels is None else f"{self._labels.dtype} {tuple(self._labels.shape)}"
            raise FitError(
                f"Cannot convert classifier to {what}: expected labels ({len(features)},) of its features, got {got}. "
                "as_regressor(classifier, anchors, ..., features=features, labels=labels)"
            )
        labels = self._labels.detach().to(features.device)
        strange = labels[(labels < 0) | (labels >= self._total)]
        if len(strange):
            raise FitError(
                f"Cannot convert classifier to {what}: expected labels from 0 to {self._total - 1}, as the classifier "
                f"numbers its classes, got {strange[0].item()}. Leave these rows out: labels[labels >= 0]"
            )
        places = torch.full((self._total,), -1, device=features.device)
        places[self._kept] = torch.arange(len(self._kept), device=features.device)
        mine = places[labels]
        return features[mine >= 0], mine[mine >= 0]

    def weights(self, features: Tensor) -> Tensor:
        """Return the classifier's weights (N, K) of the classes that have an anchor."""
        with in_evaluation(self.net), torch.no_grad():
            return class_weights(run_in_full(self.net, features), self.activation)

    def values(self, features: Tensor) -> Tensor:
        """Return the classifier's expected anchor (N,), float64."""
        return self.weights(features).double() @ torch.tensor(self.anchors, dtype=torch.float64, device=features.device)

    def spanning(self, features: Tensor) -> Tensor:
        """Return the classifier's expected class (N,), scaled to -1..1."""
        half = (len(self.anchors) - 1) / 2
        return (exceedances_of(self.weights(features)).sum(-1) - half) / half


def _expected(source: _Source) -> Head:
    hidden, latent = hidden_of(source.net), ExpectedClass(source.net, source.activation)
    if hidden is None:
        return AnchorSpline(source.width, source.anchors, latent, dtype=source.dtype, **source.options)
    shared = {"hidden": hidden, "activation": source.activation, "dtype": source.dtype, **source.options}
    head = AnchorSpline(source.width, source.anchors, "classifier", **shared)
    head.latent_net = latent
    return head


def _straight(source: _Source) -> Head:
    """Fit the linear latent to the expected class."""
    features = source.features("latent='linear'")
    head = AnchorSpline(features.shape[1], source.anchors, "linear", dtype=features.dtype, **source.options)
    _fit_ridge(_only_linear(head.latent_net), features, source.spanning(features))
    return head


def _cumulative(source: _Source) -> Head:
    features = source.features("kind='cumulative'")
    head = CumulativeLink(features.shape[1], source.anchors, dtype=features.dtype, **source.options)
    _fit_ridge(_only_linear(head.latent_net), features, source.spanning(features))
    return head


def _corn(source: _Source) -> Head:
    """Fit each question's logits to the classifier's odds of passing it."""
    features = source.features("kind='corn'")
    head = CornHead(features.shape[1], source.anchors, dtype=features.dtype, **source.options)
    above = exceedances_of(source.weights(features)).clamp(0, 1)
    reached = torch.cat([torch.ones_like(above[:, :1]), above[:, :-1]], 1)
    odds = above.log() - (reached - above).clamp(min=0).log()
    _fit_ridge(_only_linear(head.net), features, odds.nan_to_num(0.0).clamp(-_SUREST, _SUREST))
    return head


def _histogram(source: _Source) -> Head:
    options = dict(source.options)
    pad = options.pop("pad", None)
    pad = padding(options.get("targets", "two-hot"), options.get("sigma", 0.75)) if pad is None else pad
    if pad:
        source.found.widen(pad)
    hidden, shared = hidden_of(source.net), {"activation": source.activation, "pad": pad, **options}
    if hidden is None:
        return HistogramHead(source.width, source.anchors, net=source.net, dtype=source.dtype, **shared)
    head = HistogramHead(source.width, source.anchors, hidden=hidden, dtype=source.dtype, **shared)
    if isinstance(head.net, Corrected):
        head.net = Corrected(source.net, source.width, len(head.support), head.net.width, source.dtype)
    else:
        head.net = source.net
    return head


def _prototype(source: _Source) -> Head:
    """Meet the anchors at the class means, and follow the classifier in all other directions."""
    features, labels = source.labelled("kind='prototype'")
    means = class_prototypes(features, labels, len(source.anchors))
    head = PrototypeExact(features.shape[1], source.anchors, means, dtype=features.dtype, **source.options)
    head.follow(features, exceedances_of(source.weights(features)).sum(-1))
    return head


def _calibrator(source: _Source) -> Head:
    features, labels = source.labelled("kind='calibrator'")
    score = ExpectedClass(source.net, source.activation)
    head = AnchorCalibrator(source.anchors, score, dtype=source.dtype, **source.options)
    head.classes = source.numbers
    return head.to(features.device).calibrate(features, head.numbered(labels))


def _circular(source: _Source) -> Head:
    shared = {"latent": "classifier", "activation": source.activation, "dtype": source.dtype, **source.options}
    if "period" not in shared:
        raise FitError(
            "Cannot convert classifier to kind='circular': expected after how much the values come round, got none. "
            "as_regressor(classifier, anchors, 'circular', period=360.0)"
        )
    hidden = hidden_of(source.net)
    if hidden is None:
        return CircularSpline(source.width, source.anchors, net=source.net, **shared)
    head = CircularSpline(source.width, source.anchors, hidden=hidden, **shared)
    head.net = source.net
    return head


def _mlp(source: _Source) -> Head:
    features, hidden = source.features("kind='mlp'"), hidden_of(source.net)
    if hidden is None:
        raise FitError(
            f"Cannot convert classifier to kind 'mlp': expected Linear layers with ReLU between them, "
            f"got {type(source.net).__name__}. Use kind='pwl' or kind='histogram'"
        )
    body = nn.Sequential(*source.net.children(), nn.ReLU())
    classes = len(source.anchors)
    head = MLPHead(source.width, source.anchors, hidden=(*hidden, classes), dtype=features.dtype, **source.options)
    ends = head.scale.values[[0, -1]].double()  # its output -1..1 spans the anchors' range, evenly spaced or not
    wanted = (source.values(features).cpu() * head.scale.sign - ends.mean()) / (ends.diff() / 2)
    final = nn.Linear(classes, 1, dtype=features.dtype, device=features.device)
    _fit_ridge(final, run_in_full(body, features).detach(), wanted)
    head.net = nn.Sequential(*body, final)
    return head


def _only_linear(net: nn.Module) -> nn.Linear:
    (linear,) = (module for module in net.modules() if isinstance(module, nn.Linear))
    return linear


def _fit_ridge(layer: nn.Linear, x: Tensor, wanted: Tensor) -> None:
    """Set a Linear (D -> O) to the ridge regression of wanted (N,) or (N, O) on x (N, D), in float64."""
    x, y = x.double().cpu(), wanted.double().cpu().reshape(len(x), -1)
    mean, middle = x.mean(0), y.mean(0)
    x, y = x - mean, y - middle
    penalty = _RIDGE * x.square().sum() / x.shape[1] + torch.finfo(torch.float64).tiny
    if x.shape[0] < x.shape[1]:
        w = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype), y)
    else:
        w = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    with torch.no_grad():
        layer.weight.copy_(w.T)
        layer.bias.copy_(middle - mean @ w)
