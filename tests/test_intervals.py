"""Intervals hold as often as they say and stay monotone; the mean of a class is measured, with an interval of its own."""

import math

import pytest
import torch
from torch import nn

from forethought.errors import FitError
from forethought.heads import (
    AnchorCalibrator,
    AnchorSpline,
    CircularSpline,
    CornHead,
    MultiHead,
    class_means,
    conformalize,
)
from forethought.heads.means import student_t

ANCHORS = [0.0, 1.0, 4.0, 5.0]


def _rows(number, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(number, 1, generator=draw) * 3
    return x, AnchorSpline(1, ANCHORS).curve(x.squeeze(1)) + 0.5 * torch.randn(number, generator=draw)


HEAD = AnchorCalibrator(ANCHORS)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.99])
def test_intervals_hold_as_often_as_they_say(confidence):
    """Over many draws of calibration rows, the mean coverage of new rows is the confidence, to half a per cent."""
    x, y = _rows(20_000, seed=99)
    shares = []
    for seed in range(60):
        intervals = conformalize(HEAD, *_rows(200, seed), confidence)
        coverage = intervals.coverage(x, y)
        shares.append(coverage.share)
        assert coverage.low <= coverage.share <= coverage.high
        assert coverage.width == pytest.approx(2 * intervals.radius.item(), rel=1e-4)
    mean = sum(shares) / len(shares)
    assert confidence - 0.006 < mean < confidence + 1 / 201 + 0.006


def test_the_quantile_is_the_published_one():
    """The ceil((n + 1) c)-th smallest error: of 9 rows at 0.9 the largest, of 19 the second largest."""
    for rows, rank in ((9, 9), (19, 18), (39, 36), (10, 10)):
        x, y = _rows(rows)
        errors = (HEAD(x) - y).abs().sort().values
        assert conformalize(HEAD, x, y, 0.9).radius.item() == pytest.approx(errors[rank - 1].item(), rel=1e-5)


def test_intervals_stay_monotone_and_may_be_cut():
    """From float to float both ends follow the answer; cut only where told."""
    intervals = conformalize(HEAD, *_rows(99))
    x = torch.linspace(-1, 4, 20_001)[:, None]
    low, y, high = intervals(x)
    for end in (low, y, high):
        assert (end.diff() >= 0).all()
    assert (low < y).all()
    assert (y < high).all()
    assert low.min() < 0
    low, y, high = conformalize(HEAD, *_rows(99), within=(0.0, 5.0))(x)
    assert low.min() == 0
    assert high.max() == 5
    assert (low.diff() >= 0).all()


def test_intervals_are_a_module():
    """Saved and moved with the head; dropout sleeps while they are made."""
    head = AnchorSpline(1, ANCHORS, "mlp", dropout=0.9).train()
    intervals = conformalize(head, *_rows(99))
    assert all(part.training for part in head.modules())
    other = conformalize(AnchorSpline(1, ANCHORS, "mlp", dropout=0.9), *_rows(99, seed=5))
    other.load_state_dict(intervals.state_dict())
    x = torch.rand(5, 1)
    assert all(torch.equal(a, b) for a, b in zip(intervals.eval()(x), other.eval()(x), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_row_that_sets_the_radius_is_inside(dtype):
    """Rounding does not put it outside its own interval."""
    for seed in range(50):
        x, y = (values.to(dtype) for values in _rows(19, seed))
        y = y * 1e4
        head = AnchorCalibrator([a * 1e4 for a in ANCHORS], dtype=dtype)
        assert conformalize(head, x, y, 0.95).coverage(x, y).share == 1.0


@pytest.mark.parametrize(
    ("head", "rows", "options", "says"),
    [
        (HEAD, 8, {}, "at least 9 rows, got 8"),
        (HEAD, 98, {"confidence": 0.99}, "at least 99 rows"),
        (HEAD, 50, {"confidence": 1.0}, "0 < confidence < 1"),
        (HEAD, 50, {"confidence": 90}, "confidence=0.9"),
        (CircularSpline(1, [0.0, 9.0], 20.0), 50, {}, "head.distance"),
        (nn.Linear(1, 1), 50, {}, r"answers \(50, 1\)"),
    ],
)
def test_intervals_that_would_not_hold_are_refused(head, rows, options, says):
    """Too few rows for the confidence, a confidence that is none, a circle, another shape."""
    with pytest.raises(FitError, match=says):
        conformalize(head, *_rows(rows), **options)


def test_targets_that_do_not_match_are_refused():
    """(N, 1) would broadcast; NaN has no rank."""
    x, y = _rows(50)
    with pytest.raises(FitError, match=r"squeeze\(1\)"):
        conformalize(HEAD, x, y[:, None])
    with pytest.raises(FitError, match="not finite"):
        conformalize(HEAD, x, torch.where(y == y[0], math.nan, y))


def test_intervals_agree_with_mapie():
    """The same radius as the library's split conformal, where it is installed."""
    mapie = pytest.importorskip("mapie.regression")
    base = pytest.importorskip("sklearn.base")

    class Fitted(base.RegressorMixin, base.BaseEstimator):
        def fit(self, x, y):
            self.fitted_ = True
            return self

        def predict(self, x):
            return HEAD(torch.as_tensor(x)).double().numpy()

    x, y = (values.numpy() for values in _rows(150))
    theirs = mapie.SplitConformalRegressor(Fitted().fit(x, y), confidence_level=0.9, prefit=True).conformalize(x, y)
    _, bounds = theirs.predict_interval(x[:1])
    radius = (bounds[0, 1, 0] - bounds[0, 0, 0]) / 2
    assert conformalize(HEAD, *_rows(150)).radius.item() == pytest.approx(radius, rel=1e-4)


# ------------------------------------------------------------------------------------------------ means of classes


def test_intervals_of_class_means_hold_as_often_as_they_say():
    """Over many draws, the interval of a class's mean holds the true mean in 95 of 100."""
    held = total = 0
    for seed in range(150):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(4, (60,), generator=draw)
        scores = labels + 0.3 * torch.randn(60, generator=draw)
        for one in class_means(AnchorCalibrator([0.0, 1.0, 2.0, 3.0], extrapolate="linear"), scores[:, None], labels):
            if one.low is not None:
                held += one.low <= one.anchor <= one.high
                total += 1
    assert 0.93 < held / total < 0.97


def test_class_means_are_means():
    """Of the answers, by class; too few samples give no interval, none no mean; a biased head disagrees."""
    x, labels = torch.tensor([[0.0], [0.2], [1.0], [1.2], [1.1], [0.9]]), torch.tensor([0, 0, 1, 1, 1, 1])
    first, second, third = class_means(AnchorCalibrator([10.0, 20.0, 30.0]), x, labels)
    assert (first.mean, first.rows, first.low, first.agrees) == (pytest.approx(11.0), 2, None, None)
    assert second.low < second.mean < second.high
    assert (third.rows, third.mean, third.agrees) == (0, None, None)
    off = class_means(nn.Flatten(0), torch.rand(99, 1), torch.zeros(99, dtype=torch.long), torch.tensor([5.0, 6.0]))
    assert off[0].agrees is False


def test_quantiles_of_students_t():
    """Within one per cent of the table from three degrees of freedom up."""
    for freedom, expected in ((3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)):
        assert student_t(0.975, freedom) == pytest.approx(expected, rel=0.011)


def test_class_means_of_nonsense_are_refused():
    """Labels that are none, heads without anchors."""
    head, x = CornHead(1, ANCHORS), torch.rand(5, 1)
    for labels in (torch.full((5,), 4), torch.zeros(4, dtype=torch.long), torch.zeros(5), torch.full((5,), -1)):
        with pytest.raises(FitError, match="class indices"):
            class_means(head, x, labels)
    with pytest.raises(FitError, match="anchors=anchors"):
        class_means(nn.Flatten(0), x, torch.zeros(5, dtype=torch.long))
    with pytest.raises(FitError, match="confidence"):
        class_means(head, x, torch.zeros(5, dtype=torch.long), confidence=95)


def test_several_targets_get_their_intervals_one_by_one():
    """A head of several is told so; each of its heads has intervals."""
    head = MultiHead({"a": AnchorSpline(3, [0.0, 1.0])})
    with pytest.raises(FitError, match=r"one by one: conformalize\(head\.heads"):
        conformalize(head, torch.randn(50, 3), torch.rand(50))
    assert conformalize(head.heads["a"], torch.randn(50, 3), torch.rand(50)).rows == 50
