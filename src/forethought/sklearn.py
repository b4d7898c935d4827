"""For scikit-learn: `FrozenFeatures`, a model's frozen part as a transformer, and `AnchorRegressor`, the heads."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import forethought as ft
from forethought.errors import FitError, MissingExtraError, ModelError
from forethought.heads import (
    AnchorSpline,
    CircularSpline,
    CornHead,
    CumulativeLink,
    Head,
    HistogramHead,
    MLPHead,
    PartialMonotone,
    PrototypeExact,
    class_prototypes,
    conformalize,
    fold_standardisation,
)
from forethought.heads.asked import NO_INTERVALS, Array, anchors_for, check_options, check_values, period_of, valued
from forethought.heads.penalised import train_penalised

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, RegressorMixin, TransformerMixin
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as err:
    raise MissingExtraError(
        f"Cannot import forethought.sklearn: expected scikit-learn, got {err}. pip install 'forethought[sklearn]'"
    ) from err


class FrozenFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The frozen part of a model as a transformer: each sample is computed once, and known again from then on.

    Searches and cross-validation ask for the same samples again and again; all but the first time they are read from
    the store. Nothing is learned from the data, so nothing of a test fold can leak. The model is not changed, and
    clones share it.

    Args:
        model: A model with something frozen, whose features are what crosses to the rest of it; or one in which
            everything trains, of which a frozen copy is taken: its features are its output, or that of the module `at`.
        store: Where features are kept: a path, an address, or an `ft.Store`.
        at: A module's path: cut there, although more is frozen after it.
        batch_size: Samples a batch; None: 64, or the DataLoader's.
        num_workers: Processes that read a data set.
        dtype: How features are stored, as in `ft.extract`; None: exactly.
        device: Where to run.

    Attributes:
        n_features_in_: Size of the second axis of the samples, as scikit-learn counts; not there for data sets.
        n_features_out_: Numbers a sample.
        report_: What it took to compute those of `fit`.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[:2].requires_grad_(False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(FrozenFeatures(model, folder).fit_transform(np.ones((5, 4))).shape)
        (5, 8)
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        store: Any = "thoughts",
        at: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.store = store
        self.at = at
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.dtype = dtype
        self.device = device

    def fit(self, X: Any, y: Any = None) -> "FrozenFeatures":
        """Compute and store the features of samples, so that `transform` finds them."""
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: Any, y: Any = None, **_: Any) -> Any:
        """Give features of samples, as `transform` does, after `fit`."""
        given = self._given(X, is_first=True)
        assert self.model is not None
        self._frozen = _with_frozen(self.model)
        features = self._extracted(given)
        rows = _as_rows(features)
        self.n_features_out_ = self._n_features_out = rows.shape[1]
        self.report_ = features.report
        return rows

    def transform(self, X: Any) -> Any:
        """Give features (N, D), in the order of the samples; axes of a sample are joined into one.

        Args:
            X: Arrays or tensors (N, ...), given to the model in its own floating type (whole numbers as they are, if it
                has an embedding); or a data set or DataLoader, of which the targets are left out.

        Returns:
            A read-only array. It lies in the store's file, without a copy, if one segment holds the rows in this order.
        """
        check_is_fitted(self, "n_features_out_")
        rows = _as_rows(self._extracted(self._given(X, is_first=False)))
        if rows.shape[1] != self.n_features_out_:
            raise FitError(
                f"Cannot transform: expected samples with {self.n_features_out_} features each, as in fit, got "
                f"{rows.shape[1]}. Give samples of one shape"
            )
        return rows

    def _given(self, X: Any, is_first: bool) -> Any:
        """Check samples as scikit-learn does, and bring arrays to the model's type."""
        if not isinstance(self.model, nn.Module):
            raise ModelError(
                f"Cannot extract features: expected a torch.nn.Module, got a {type(self.model).__name__}. "
                "FrozenFeatures(model, 'thoughts')"
            )
        if isinstance(X, Dataset | DataLoader):
            return X
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().numpy()
        X = validate_data(self, X, dtype="numeric", allow_nd=True, reset=is_first)
        wanted = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        takes_numbers = any(isinstance(module, nn.Embedding) for module in self.model.modules())
        samples = torch.from_numpy(np.ascontiguousarray(X))
        return samples if takes_numbers and not samples.is_floating_point() else samples.to(wanted)

    def _extracted(self, given: Any) -> ft.Features:
        return ft.extract(
            self._frozen, given, self.store, at=self.at, batch_size=self.batch_size, num_workers=self.num_workers,
            dtype=self.dtype, device=self.device, progress=False,
        )  # fmt: skip

    def __sklearn_clone__(self) -> "FrozenFeatures":
        """Clone the parameters; the model is the same one, as it is never changed."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        """Say that samples may have any axes, and that features have the model's type."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        tags.requires_fit = True
        return tags


def _with_frozen(model: nn.Module) -> nn.Module:
    """Give the model, or a frozen copy of one in which everything trains."""
    parameters = list(model.parameters())
    if not parameters or not all(parameter.requires_grad for parameter in parameters):
        return model
    return ft.freeze(copy.deepcopy(model))


def _as_rows(features: ft.Features) -> Any:
    """Give one array (N, D), without a copy where there is one tensor a row."""
    found = features.numpy()
    arrays = found if isinstance(found, tuple) else (found,)
    if any(isinstance(array, list) for array in arrays):
        raise FitError(
            "Cannot give features as an array: expected rows of one size, got some that differ. Pad or crop the samples"
        )
    flat = [np.reshape(array, (len(array), -1)) for array in arrays]
    rows = flat[0] if len(flat) == 1 else np.concatenate(flat, 1)
    rows.flags.writeable = False
    return rows


class AnchorRegressor(RegressorMixin, BaseEstimator):
    """A head on standardised features, trained by L-BFGS in float64 on all rows at once.

    Args:
        head: "pwl", "rqs", "cumulative", "corn", "histogram", "prototype" (met at the mean features of the rows nearest
            to each anchor), "partial", "circular" (with `period`) or "mlp".
        anchors: Values that the classes stand for; a mapping from class labels, when y holds labels; None: the distinct
            targets, if there are 20 or fewer, else the least and the greatest.
        hidden: Hidden sizes; (): one linear layer.
        monotonic_cst: -1, 0 or 1 a feature, or {name: sign}: for head="partial".
        keypoints: Pieces of each feature's broken line: for head="partial".
        period: After how much values come round: for head="circular".
        start: Least value of a circle.
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
        keypoints: int = 16,
        period: float | None = None,
        start: float = 0.0,
        alpha: float = 1e-4,
        max_iter: int = 200,
        random_state: int | None = None,
    ) -> None:
        self.head = head
        self.anchors = anchors
        self.hidden = hidden
        self.monotonic_cst = monotonic_cst
        self.keypoints = keypoints
        self.period = period
        self.start = start
        self.alpha = alpha
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "AnchorRegressor":
        """Train on features (N, D) and values, or class labels that `anchors` gives values, (N,).

        Args:
            X: Features (N, D).
            y: Targets (N,).
            sample_weight: (N,), what each row counts, as if it were there so many times; None: all the same.
        """
        check_options(self.head, self.monotonic_cst, self.period, X)
        if isinstance(self.anchors, Mapping):
            y = valued(y, self.anchors)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True)
        features, targets = np.asarray(X, np.float64), np.asarray(y, np.float64)
        weights, counted = None, None
        if sample_weight is not None:
            counted = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            kept = counted > 0
            features, targets, counted = features[kept], targets[kept], counted[kept]
            if not len(targets):
                raise FitError("Cannot fit: expected a sample_weight above 0, got none. sample_weight=None")
            weights = torch.from_numpy(counted)
        self.mean_ = np.average(features, 0, counted)
        spread = np.sqrt(np.average(np.square(features - self.mean_), 0, counted))
        self.scale_ = np.where(spread > 1e-12 * np.abs(self.mean_), spread, 1.0)
        self.anchors_ = anchors_for(self.anchors, targets)
        check_values(y, self.anchors_, self.anchors)
        x, t = torch.from_numpy(self._standardised(features)), torch.from_numpy(targets.copy())
        seed = np.random.RandomState(self.random_state).randint(2**31 - 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            self.head_ = self._made(x, t, weights)
        if isinstance(self.head_, PartialMonotone):
            self.head_.place(x)
        self.n_iter_ = train_penalised(self.head_, x, t, weights, self.alpha, self.max_iter)
        self.certificate_ = self.head_.eval().certify()
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R^2 of the values; `y` may hold class labels, where `anchors` gives them values."""
        y = valued(y, self.anchors) if isinstance(self.anchors, Mapping) else y
        return float(super().score(X, y, sample_weight))

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
        y = valued(y, self.anchors) if isinstance(self.anchors, Mapping) else np.array(y, np.float64)
        self.intervals_ = conformalize(self.head_, self._features(X), torch.from_numpy(y), confidence_level)
        return self

    def predict_interval(self, X: Any) -> tuple[Array, Array]:
        """Return values (N,) and their intervals (N, 2)."""
        check_is_fitted(self)
        check_is_fitted(self, "intervals_", msg=NO_INTERVALS)
        with torch.no_grad():
            low, y, high = self.intervals_(self._features(X))
        return y.double().numpy(), torch.stack([low, high], 1).double().numpy()

    def raw_head(self) -> Head:
        """Return the head with the standardisation in its first layer: it takes features as they are, for export.

        Certify it again: its weights are others.
        """
        check_is_fitted(self)
        return fold_standardisation(self.head_, torch.from_numpy(self.mean_), torch.from_numpy(self.scale_)).eval()

    def _features(self, X: Any) -> torch.Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return torch.from_numpy(self._standardised(np.asarray(X, np.float64)))

    def _standardised(self, features: Array) -> Array:
        standardised: Array = (features - self.mean_) / self.scale_
        return standardised

    def _made(self, x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> Head:
        shared: dict[str, Any] = {"dtype": torch.float64}
        width, hidden = x.shape[1], tuple(self.hidden)
        if self.head == "circular":
            latent = "mlp" if hidden else "linear"
            period = period_of(self.period)
            return CircularSpline(
                width, self.anchors_, period, start=self.start, latent=latent, hidden=hidden, **shared
            )
        if self.head == "prototype":
            nearest = (targets[:, None] - torch.tensor(self.anchors_, dtype=x.dtype)).abs().argmin(1)
            means = class_prototypes(x, nearest, len(self.anchors_), weights)
            return PrototypeExact(width, self.anchors_, means, **shared)
        if self.head in ("pwl", "rqs"):
            latent = "mlp" if hidden else "linear"
            between = "rational" if self.head == "rqs" else "linear"
            return AnchorSpline(width, self.anchors_, latent, hidden=hidden, between=between, **shared)
        if self.head == "cumulative":
            return CumulativeLink(width, self.anchors_, "mlp" if hidden else "linear", hidden=hidden, **shared)
        if self.head == "partial":
            names = list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
            signs = self.monotonic_cst if isinstance(self.monotonic_cst, Mapping) else list(self.monotonic_cst or [])
            shared |= {"keypoints": self.keypoints, "free_keypoints": self.keypoints}
            return PartialMonotone(width, self.anchors_, signs, names=names, hidden=hidden, **shared)
        kinds: dict[str, Any] = {"corn": CornHead, "histogram": HistogramHead, "mlp": MLPHead}
        if self.head not in kinds:
            raise FitError(
                "Cannot fit: expected head to be 'pwl', 'rqs', 'cumulative', 'corn', 'histogram', 'prototype', "
                f"'partial', 'circular' or 'mlp', got {self.head!r}. Pass head='pwl'"
            )
        made: Head = kinds[self.head](width, self.anchors_, hidden=hidden, **shared)
        return made
