"""`AnchorRegressor`: the heads as a scikit-learn estimator, from features to values or class labels to values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from forethought.errors import FitError, MissingExtraError
from forethought.heads import (
    AnchorSpline,
    CornHead,
    CumulativeLink,
    Head,
    HistogramHead,
    MLPHead,
    PartialMonotone,
    conformalize,
)

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as err:
    raise MissingExtraError(
        f"Cannot import AnchorRegressor: expected scikit-learn, got {err}. pip install 'forethought[sklearn]'"
    ) from err

Array = NDArray[np.float64]
_FEW = 20  # distinct targets up to which each is an anchor


class AnchorRegressor(RegressorMixin, BaseEstimator):
    """A head on standardised features, trained by L-BFGS in float64 on all rows at once.

    Args:
        head: "pwl", "rqs", "cumulative", "corn", "histogram", "partial" or "mlp".
        anchors: Values that the classes stand for; a mapping from class labels, when y holds labels; None: the distinct
            targets, if there are 20 or fewer, else the least and the greatest.
        hidden: Hidden sizes; (): one linear layer.
        monotonic_cst: -1, 0 or 1 a feature, or {name: sign}: for head="partial".
        alpha: Penalty on the squared weights, over standardised features.
        max_iter: Steps of L-BFGS at most.
        random_state: Seed of the weights.

    Attributes:
        head_: The trained head; it takes standardised features.
        anchors_: The anchors, ascending.
        certificate_: What is proved of the head.
        n_features_in_: How many features.
        n_iter_: Steps that were taken.

    Example:
        >>> x = np.arange(20.0)[:, None]
        >>> reg = AnchorRegressor(anchors=[0.0, 9.5, 19.0]).fit(x, x[:, 0])
        >>> bool(np.abs(reg.predict(x) - x[:, 0]).max() < 0.1)
        True
    """

    def __init__(
        self,
        head: str = "pwl",
        anchors: Sequence[float] | Mapping[Any, float] | None = None,
        *,
        hidden: Sequence[int] = (),
        monotonic_cst: Any = None,
        alpha: float = 1e-4,
        max_iter: int = 200,
        random_state: int | None = None,
    ) -> None:
        self.head = head
        self.anchors = anchors
        self.hidden = hidden
        self.monotonic_cst = monotonic_cst
        self.alpha = alpha
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "AnchorRegressor":
        """Train on features (N, D) and values, or class labels that `anchors` gives values, (N,)."""
        if isinstance(self.anchors, Mapping):
            y = _valued(y, self.anchors)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True)
        features, targets = np.asarray(X, np.float64), np.asarray(y, np.float64)
        self.mean_, spread = features.mean(0), features.std(0)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        self.anchors_ = _anchors(self.anchors, targets)
        x, t = torch.from_numpy(self._standardised(features)), torch.from_numpy(targets.copy())
        seed = np.random.RandomState(self.random_state).randint(2**31 - 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            self.head_ = self._made(features.shape[1])
        if isinstance(self.head_, PartialMonotone):
            self.head_.place(x)
        self.n_iter_ = _trained(self.head_, x, t, self.alpha, self.max_iter)
        self.certificate_ = self.head_.eval().certify()
        return self

    def predict(self, X: Any) -> Array:
        """Return values (N,)."""
        features = self._features(X)
        with torch.no_grad():
            answers: Array = self.head_(features).double().numpy()
        return answers

    def predict_weights(self, X: Any) -> Array:
        """Return class weights (N, K), for heads that have them: "cumulative", "corn", "histogram".

        Not called predict_proba, as scikit-learn's regressors may have no such method.
        """
        features, weigh = self._features(X), getattr(self.head_, "predict_proba", None)
        if weigh is None:
            raise FitError(f"Cannot give classes' weights: head {self.head!r} has none. Pass head='cumulative'")
        with torch.no_grad():
            weights: Array = weigh(features).double().numpy()
        return weights

    def conformalize(self, X: Any, y: Any, confidence_level: float = 0.9) -> "AnchorRegressor":
        """Make intervals from rows that trained nothing, and return self."""
        y = _valued(y, self.anchors) if isinstance(self.anchors, Mapping) else np.asarray(y, np.float64)
        self.intervals_ = conformalize(self.head_, self._features(X), torch.from_numpy(y), confidence_level)
        return self

    def predict_interval(self, X: Any) -> tuple[Array, Array]:
        """Return values (N,) and their intervals (N, 2)."""
        check_is_fitted(self, "intervals_")
        with torch.no_grad():
            low, y, high = self.intervals_(self._features(X))
        return y.double().numpy(), torch.stack([low, high], 1).double().numpy()

    def _features(self, X: Any) -> torch.Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return torch.from_numpy(self._standardised(np.asarray(X, np.float64)))

    def _standardised(self, features: Array) -> Array:
        standardised: Array = (features - self.mean_) / self.scale_
        return standardised

    def _made(self, width: int) -> Head:
        shared: dict[str, Any] = {"dtype": torch.float64}
        hidden = tuple(self.hidden)
        if self.head in ("pwl", "rqs"):
            latent = "mlp" if hidden else "linear"
            between = "rational" if self.head == "rqs" else "linear"
            return AnchorSpline(width, self.anchors_, latent, hidden=hidden, between=between, **shared)
        if self.head == "cumulative":
            return CumulativeLink(width, self.anchors_, "mlp" if hidden else "linear", hidden=hidden, **shared)
        if self.head == "partial":
            names = list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
            signs = self.monotonic_cst if isinstance(self.monotonic_cst, Mapping) else list(self.monotonic_cst or [])
            return PartialMonotone(width, self.anchors_, signs, names=names, hidden=hidden, **shared)
        kinds: dict[str, Any] = {"corn": CornHead, "histogram": HistogramHead, "mlp": MLPHead}
        if self.head not in kinds:
            raise FitError(
                "Cannot fit: expected head to be 'pwl', 'rqs', 'cumulative', 'corn', 'histogram', 'partial' or 'mlp', "
                f"got {self.head!r}. Pass head='pwl'"
            )
        made: Head = kinds[self.head](width, self.anchors_, hidden=hidden, **shared)
        return made


def _valued(y: Any, anchors: Mapping[Any, float]) -> Array:
    labels = np.asarray(y).tolist()
    unknown = [label for label in labels if label not in anchors]
    if unknown:
        raise FitError(f"Cannot fit: expected labels among {list(anchors)[:8]}, got {unknown[0]!r}. anchors={{...}}")
    return np.array([float(anchors[label]) for label in labels])


def _anchors(given: Any, targets: Array) -> list[float]:
    if isinstance(given, Mapping):
        return sorted({float(value) for value in given.values()})
    if given is not None:
        return [float(value) for value in given]
    distinct = np.unique(targets)
    if len(distinct) == 1:
        return [float(distinct[0]) - 0.5, float(distinct[0]) + 0.5]
    return [float(value) for value in (distinct if len(distinct) <= _FEW else distinct[[0, -1]])]


def _trained(head: Head, x: torch.Tensor, targets: torch.Tensor, alpha: float, steps: int) -> int:
    """Minimise the head's loss with a penalty on its matrices; return the steps taken."""
    matrices = [p for p in head.parameters() if p.ndim > 1]
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=steps, tolerance_grad=1e-8, tolerance_change=1e-11, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = head.loss(x, targets) + alpha * torch.stack([p.square().sum() for p in matrices]).sum()
        loss.backward()
        return loss

    nn.Module.train(head)
    optimizer.step(closure)
    return int(optimizer.state[next(iter(head.parameters()))].get("n_iter", steps))
