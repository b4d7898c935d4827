"""The heads as an estimator: scikit-learn's own checks, monotone, with labels or values."""

import warnings

import numpy as np
import pytest

from forethought.errors import FitError

pytest.importorskip("sklearn")
import torch
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
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


KINDS = ["pwl", "rqs", "cumulative", "corn", "histogram", "prototype", "partial", "circular", "mlp"]


def _fitted(head, x, y, **options):
    more = {"partial": {"monotonic_cst": [1, 0, 0, 0]}, "circular": {"period": 20.0}, "mlp": {"hidden": (5,)}}.get(
        head, {}
    )
    anchors = [6.0, 10.0, 14.0]
    return AnchorRegressor(head, anchors=anchors, random_state=0, **more, **options), x, y


@pytest.mark.parametrize("head", KINDS)
def test_the_raw_head_takes_features_as_they_are(head):
    """Centres and scales far from 0 and 1 are in its first layer: the same answers, and the curve is still proved."""
    x, y = _rows()
    x = x * [1e-3, 5.0, 1.0, 2e3] + [1.0, -40.0, 0.0, 1e4]
    reg, x, y = _fitted(head, x, y, max_iter=20)
    raw = reg.fit(x, y).raw_head()
    assert type(raw) is type(reg.head_)
    np.testing.assert_allclose(raw(torch.from_numpy(x)).detach().numpy(), reg.predict(x), atol=1e-6)
    assert raw.certify().holds == reg.certificate_.holds == (head != "mlp")
    assert not raw.falsify(2000).found


@pytest.mark.parametrize("head", [kind for kind in KINDS if kind != "partial"])
def test_sample_weights_count_as_rows(head):
    """Weights give what repeated rows give; a row of weight 0, however wild, is not there."""
    x, y = _rows(60)
    times = np.random.RandomState(0).randint(1, 4, 60)
    wild = np.full((1, 4), 1e6)
    reg, *_ = _fitted(head, x, y, max_iter=15, alpha=0.1)
    weighted = reg.fit(np.vstack([x, wild]), np.append(y, -1e6), np.append(times, 0)).predict(x)
    repeated = reg.fit(np.repeat(x, times, 0), np.repeat(y, times)).predict(x)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-4)


def test_weights_that_count_nothing_are_refused():
    """All 0, or below 0."""
    x, y = _rows()
    with pytest.raises(ValueError, match=r"above 0|non-zero"):  # scikit-learn itself says it, of late
        AnchorRegressor().fit(x, y, np.zeros(len(y)))
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        AnchorRegressor().fit(x, y, np.full(len(y), -1.0))


def test_a_penalty_makes_a_monotone_head_flat_and_not_steep():
    """It is about weights as they act: more of it never makes answers spread wider than the targets."""
    x, y = _rows()
    reg, *_ = _fitted("partial", x, y)
    spreads = [reg.set_params(alpha=alpha, hidden=(4,)).fit(x, y).predict(x).std() for alpha in (1e-4, 1e-2, 10.0)]
    assert spreads[2] < spreads[1] < spreads[0] * 1.01
    assert spreads[0] < 1.2 * y.std()
    assert reg.set_params(alpha=1e-2).fit(x, y).score(x, y) > 0.8


def test_a_circle_needs_its_period():
    """And with it learns across the seam."""
    random = np.random.RandomState(0)
    angle = random.uniform(0, 360, 500)
    x = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))], 1) + 0.01 * random.randn(500, 2)
    anchors = [0.0, 90.0, 180.0, 270.0]
    reg = AnchorRegressor("circular", anchors, period=360.0).fit(x, angle)
    off = np.abs((reg.predict(x) - angle + 180) % 360 - 180)
    assert off.mean() < 2
    with pytest.raises(FitError, match="period=360"):
        AnchorRegressor("circular", anchors).fit(x, angle)


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
    x, y = _rows()
    state = torch.get_rng_state()
    a, b = (AnchorRegressor("mlp", hidden=(5,), random_state=3, max_iter=20).fit(x, y).predict(x) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_heads_are_refused():
    """A FitError lists them."""
    with pytest.raises(FitError, match="'pwl', 'rqs'"):
        AnchorRegressor("tree").fit(*_rows())


def test_labels_are_scored_as_what_they_stand_for():
    """Searches and cross-validation of labels score values against values, whole numbers too."""
    x = np.random.RandomState(0).randn(90, 3)
    for labels in (np.where(x[:, 0] > 0, "high", "low"), (x[:, 0] > 0).astype(int)):
        anchors = dict(zip(sorted(set(labels.tolist())), (5.0, 2.0), strict=True))
        reg = AnchorRegressor("corn", anchors=anchors, random_state=0)
        values = np.array([anchors[label] for label in labels.tolist()])
        assert reg.fit(x, labels).score(x, labels) == r2_score(values, reg.predict(x))
        assert (cross_val_score(reg, x, labels, cv=3) > 0.5).all()


def test_labels_are_not_taken_for_values():
    """Whole numbers from 0 to K - 1 under other anchors are refused; as floats, or where they are anchors, they stand."""
    x, labels = np.random.RandomState(0).randn(60, 3), np.arange(60) % 3
    with pytest.raises(FitError, match="whole numbers from 0 to 2, as class labels are"):
        AnchorRegressor(anchors=[10.0, 20.0, 40.0]).fit(x, labels)
    AnchorRegressor(anchors=[10.0, 20.0, 40.0], max_iter=1).fit(x, labels.astype(float))
    AnchorRegressor(anchors=[0.0, 1.0, 2.0], max_iter=1).fit(x, labels)
    AnchorRegressor(anchors=[10.0, 20.0, 40.0], max_iter=1).fit(x, labels * 20)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"monotonic_cst": [1, 0, 0]}, "monotonic_cst, not all 0, with head='partial' and with no other"),
        ({"head": "partial"}, "got head='partial', monotonic_cst=None"),
        ({"head": "partial", "monotonic_cst": [0, 0, 0]}, "not all 0"),
        ({"head": "partial", "monotonic_cst": {"a": 1}}, "expected a DataFrame"),
        ({"period": 360.0}, "head='circular' only"),
    ],
)
def test_options_that_a_head_would_leave_aside_are_refused(options, says):
    """Asking a head for what it does not do is an error, not a promise."""
    x = np.random.RandomState(0).randn(60, 3)
    with pytest.raises(FitError, match=says):
        AnchorRegressor(**options).fit(x, x[:, 0])
    AnchorRegressor(monotonic_cst=[0, 0, 0], max_iter=1).fit(x, x[:, 0])


def test_intervals_need_rows_of_their_own():
    """Before `conformalize` the error names it; targets that cannot be written to are taken as they are."""
    x = np.random.RandomState(0).randn(60, 3)
    reg, targets = AnchorRegressor().fit(x, x[:, 0]), x[:, 0].copy()
    with pytest.raises(NotFittedError, match=r"reg\.conformalize"):
        reg.predict_interval(x)
    targets.flags.writeable = False
    assert reg.conformalize(x, targets).predict_interval(x)[1].shape == (60, 2)
