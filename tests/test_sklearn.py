"""The heads as an estimator: scikit-learn's own checks, monotone, with labels or values."""

import warnings

import numpy as np
import pytest

from forethought.errors import FitError

pytest.importorskip("sklearn")
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from forethought.sklearn import AnchorRegressor


@parametrize_with_checks([AnchorRegressor(max_iter=50), AnchorRegressor(head="histogram", max_iter=30)])
def test_estimator_keeps_scikit_learns_rules(estimator, check):
    """Every check of check_estimator, for the default head and one with weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn's own making
        check(estimator)


def _rows(number=300, seed=0):
    random = np.random.RandomState(seed)
    x = random.randn(number, 4)
    return x, 10 + 3 * np.tanh(x[:, 0]) + 0.5 * x[:, 1] + 0.1 * random.randn(number)


@pytest.mark.parametrize("head", ["pwl", "rqs", "cumulative", "corn", "histogram", "mlp"])
def test_every_head_learns(head):
    """Better than the mean by far; certified, but for the free one."""
    x, y = _rows()
    hidden = (8,) if head == "mlp" else ()
    reg = AnchorRegressor(head, anchors=[5.0, 8.0, 10.0, 12.0, 15.0], hidden=hidden, random_state=0).fit(x, y)
    assert reg.score(*_rows(seed=1)) > 0.8
    assert reg.certificate_.holds == (head != "mlp")


def test_named_features_are_monotone():
    """By the DataFrame's names, or by position."""
    pandas = pytest.importorskip("pandas")
    x, y = _rows()
    frame = pandas.DataFrame(x, columns=list("abcd"))
    for data, cst in ((frame, {"a": 1}), (x, [1, 0, 0, 0])):
        reg = AnchorRegressor("partial", hidden=(8,), monotonic_cst=cst, random_state=0).fit(data, y)
        assert reg.certificate_.holds
        assert reg.score(data, y) > 0.8
    with pytest.raises(FitError, match="signs"):
        AnchorRegressor("partial").fit(x, y)


def test_labels_are_given_values():
    """y holds labels, anchors say what they stand for; weights by class sum to 1."""
    x, y = _rows()
    labels = np.where(y < 9, "low", np.where(y < 11, "middle", "high"))
    reg = AnchorRegressor("cumulative", anchors={"low": 8.0, "middle": 10.0, "high": 12.5}, random_state=0).fit(
        x, labels
    )
    assert np.corrcoef(reg.predict(x), y)[0, 1] > 0.9
    assert reg.anchors_ == [8.0, 10.0, 12.5]
    np.testing.assert_allclose(reg.predict_weights(x).sum(1), 1)
    with pytest.raises(FitError, match="'other'"):
        reg.fit(x, np.where(y < 9, "low", "other"))
    with pytest.raises(FitError, match="has none"):
        AnchorRegressor().fit(x, y).predict_weights(x)


def test_intervals_cover():
    """The verbs of MAPIE; coverage on rows that nothing saw."""
    reg = AnchorRegressor(random_state=0).fit(*_rows(400, 0)).conformalize(*_rows(400, 1))
    x, y = _rows(4000, 2)
    points, bounds = reg.predict_interval(x)
    np.testing.assert_array_equal(points, reg.predict(x))
    assert 0.86 < np.mean((bounds[:, 0] <= y) & (y <= bounds[:, 1])) < 0.94


def test_estimator_works_in_pipelines_and_searches():
    """Cross-validation, grids and pipelines, as any other."""
    x, y = _rows()
    assert cross_val_score(make_pipeline(StandardScaler(), AnchorRegressor()), x, y, cv=3).mean() > 0.6
    search = GridSearchCV(AnchorRegressor(random_state=0), {"head": ["pwl", "histogram"], "alpha": [1e-4, 1.0]}, cv=2)
    assert search.fit(x, y).best_params_["alpha"] == 1e-4


def test_the_same_seed_gives_the_same_estimator():
    """And the global generators are left alone."""
    import torch

    x, y = _rows()
    state = torch.get_rng_state()
    a, b = (AnchorRegressor("mlp", hidden=(5,), random_state=3, max_iter=20).fit(x, y).predict(x) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_heads_are_refused():
    """A FitError lists them."""
    with pytest.raises(FitError, match="'pwl', 'rqs'"):
        AnchorRegressor("tree").fit(*_rows())
