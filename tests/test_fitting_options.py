"""The laws of what a fit may be asked for: sweeps, kinds, tasks, weights, standardisation, L-BFGS, checkpoints."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import forethought as ft
from forethought.errors import FitError, MissingExtraError
from forethought.fitting import fit
from forethought.fitting.checkpoints import Checkpoint
from forethought.fitting.lbfgs import Lbfgs
from forethought.fitting.rows import TensorRows
from forethought.fitting.standardizing import Standardized, folded, learn_standard
from forethought.heads import (
    AnchorSpline,
    CircularSpline,
    CornHead,
    CumulativeLink,
    HistogramHead,
    MLPHead,
    MultiHead,
    PartialMonotone,
    PrototypeExact,
)

D, N = 6, 240
G = torch.Generator().manual_seed(1)
X, X_VAL = torch.randn(N, D, generator=G), torch.randn(80, D, generator=G)
W = torch.randn(D, generator=G)
Y, Y_VAL = X @ W + 0.3, X_VAL @ W + 0.3
C, C_VAL = (Y > 0).long() + (Y > 1).long(), (Y_VAL > 0).long() + (Y_VAL > 1).long()
NUMBERS, CLASSES = ((X, Y), (X_VAL, Y_VAL)), ((X, C), (X_VAL, C_VAL))
QUICK = {"epochs": 2, "batch_size": 64, "progress": False}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _linear():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(D, 1), nn.Flatten(0))


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- sweeps ------------------------------------------------------------------------------------------------------


def test_a_list_of_values_becomes_many_heads():
    """Every combination is a head, named after what was tried, trained as if it had been asked for alone."""
    results = fit(*NUMBERS, {"a": _linear(), "b": _linear()}, lr=[0.1, 0.01], weight_decay={"a": [0.0, 0.1]}, **QUICK)
    names = {f"a[lr={lr}, weight_decay={wd}]" for lr, wd in itertools.product((0.1, 0.01), (0.0, 0.1))}
    assert {result.name for result in results} == names | {"b[lr=0.1]", "b[lr=0.01]"}
    one = results["a[lr=0.01, weight_decay=0.1]"]
    alone = fit(*NUMBERS, _linear(), lr=0.01, weight_decay=0.1, **QUICK).best
    assert one.score == pytest.approx(alone.score, rel=1e-5)
    assert one.tried == {"lr": 0.01, "weight_decay": 0.1}
    assert one.family == "a"


def test_a_dictionary_says_all_of_a_head():
    """A kind or module, its options, and those of fit; its own before everyone's."""
    spec = {
        "kind": "mlp",
        "hidden": [(4,), (8, 4)],
        "dropout": 0.1,
        "lr": [0.1, 0.2],
        "seed": range(2),
        "loss": "huber",
    }
    results = fit(*NUMBERS, {"mlp": spec, "lin": {"module": _linear, "lr": 0.5}}, lr=9.0, **QUICK)
    assert len(results) == 9
    assert {result.tried.get("hidden") for result in results} == {(4,), (8, 4), None}
    assert "lin" in {result.name for result in results}
    single = fit(*NUMBERS, {"kind": "linear"}, **QUICK)
    assert [result.name for result in single] == ["head"]


def test_kinds_are_sized_for_features_and_targets():
    """Numbers, several numbers, classes; flat features and maps; the loss follows the targets."""
    both = torch.stack([Y, -Y], 1)
    shapes = {
        "numbers": (NUMBERS, (2, D), (2,), "mae"),
        "several": (((X, both), (X_VAL, torch.stack([Y_VAL, -Y_VAL], 1))), (2, D), (2, 2), "mae"),
        "classes": (CLASSES, (2, D), (2, 3), "accuracy"),
        "maps": (((X.view(N, 2, 3), C), (X_VAL.view(80, 2, 3), C_VAL)), (2, 2, 3), (2, 3), "accuracy"),
    }
    for (train, val), given, wanted, metric in shapes.values():
        for kind in ("linear", "mlp"):
            best = fit(train, val, kind, **QUICK).best
            assert best.head(torch.zeros(given)).shape == wanted
            assert best.task == metric
    spline = fit(*NUMBERS, {"kind": "pwl", "anchors": [-3.0, 0.0, 3.0]}, **QUICK).best.head
    assert isinstance(spline, AnchorSpline)


def test_kinds_beside_each_other_take_the_options_they_know():
    """A linear head has no width: it comes once."""
    results = fit(*CLASSES, {"probe": {"kind": ["linear", "mlp"], "width": [4, 8]}}, **QUICK)
    assert {result.name for result in results} == {
        "probe[kind=linear]",
        "probe[kind=mlp, width=4]",
        "probe[kind=mlp, width=8]",
    }


def test_a_seed_is_first_weights_and_dropout():
    """The same seed is the same head, whatever was made before; another seed is another one."""
    spec = {"kind": "mlp", "width": 8, "dropout": 0.5}
    results = fit(*NUMBERS, {"a": spec | {"seed": [3, 4, 5]}, "b": spec | {"seed": 4}}, **QUICK)
    torch.manual_seed(99)
    alone = fit(*NUMBERS, {"c": spec | {"seed": 4}}, **QUICK)
    for name in ("b", "a[seed=4]"):
        assert alone["c"].score == pytest.approx(results[name].score, rel=1e-5)
    assert len({result.score for result in results}) >= 3
    with pytest.raises(FitError, match="lambda: nn"):
        fit(*NUMBERS, {"a": _linear()}, seed=[1, 2], **QUICK)
    made = fit(*NUMBERS, {"a": lambda: nn.Sequential(nn.Linear(D, 1), nn.Flatten(0))}, seed=[1, 2], **QUICK)
    assert len({result.score for result in made}) == 2


def test_uncertainty_is_over_seeds():
    """Ranked by the mean over seeds; a lucky seed of a bad setting does not win."""
    spec = {"kind": "mlp", "width": 8, "lr": [0.03, 1e-6], "seed": range(4)}
    results = fit(*NUMBERS, {"a": spec}, epochs=6, batch_size=32, progress=False)
    first, second = results.trials
    assert (first.name, len(first.heads)) == ("a[lr=0.03]", 4)
    scores = [head.score for head in first.heads]
    assert (first.mean, first.std) == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    assert first.mean < second.mean
    assert results.best is first.heads[0]
    assert scores == sorted(scores)
    assert "±" in results.table()
    assert "(4)" in results.table()
    assert fit(*NUMBERS, _linear(), **QUICK).trials[0].std is None


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"a": {"kind": "forest"}}, "'linear', 'logistic', 'mlp'"),
        ({"a": {"kind": "mlp", "depth": 3}}, "'depth'"),
        ({"a": {"kind": "mlp", "activation": "step"}}, "'relu'"),
        ({"a": {"lr": 0.1}}, "'kind' or 'module'"),
        ({"a": {"module": nn.Linear(D, 1), "width": 3}}, "lambda width"),
        ({"a": lambda: 3}, "got a int"),
        ({"a": {"kind": "linear", "lr": []}}, r"lr=\[\.\.\.\]"),
        ({"a": {"kind": "linear", "lr": [0.1, -1]}}, "above 0"),
    ],
)
def test_what_is_no_head_is_refused(heads, message):
    """With the fix, before anything is trained."""
    with pytest.raises(FitError, match=message):
        fit(*NUMBERS, heads, **QUICK)


# --- tasks, metrics, weights -------------------------------------------------------------------------------------


def test_tasks_share_one_pass():
    """Each head has its target, loss and metrics; each task its own ranking, and its own best on test rows."""
    both, both_val = {"kind": C, "size": Y}, {"kind": C_VAL, "size": Y_VAL}

    class Named(TensorRows):
        passes = 0

        def batches(self, *args, **kwargs):
            Named.passes += 1
            for values, at in super().batches(*args, **kwargs):
                yield values, {name: column[at] for name, column in self.named.items()}

    train, val = Named(X, torch.arange(N)), Named(X_VAL, torch.arange(80))
    train.named, val.named = both, both_val
    heads = {
        "kind": {"module": nn.Linear(D, 3), "target": "kind", "loss": "cross_entropy", "metric": ("accuracy", "cross_entropy")},
        "kind too": {"module": lambda: nn.Linear(D, 3), "target": "kind", "loss": "cross_entropy", "metric": ("accuracy", "cross_entropy")},
        "size": {"module": _linear(), "target": "size", "metric": ("rmse", "mae")},
    }  # fmt: skip
    results = fit(train, val, heads, epochs=3, batch_size=64, test=val, lr=0.05, progress=False)
    assert Named.passes == 3 + 3 + 1
    assert set(results.tasks) == {"accuracy of kind", "rmse of size"}
    assert results.tasks["accuracy of kind"].best.score == max(r.score for r in results if r.task == "accuracy of kind")
    exact = F.cross_entropy(results["kind"].head(X_VAL), C_VAL).item()
    assert results["kind"].scores["cross_entropy"] == pytest.approx(exact, rel=1e-5)
    assert results.test_scores["rmse of size"] == pytest.approx(results["size"].score)
    assert results["size"].scores["mae"] <= results["size"].scores["rmse"]
    with pytest.raises(FitError, match=r"results\.tasks"):
        results.best  # noqa: B018


def test_weights_are_repetitions():
    """A row of weight 2 is trained and scored like two rows of weight 1; one of weight 0 like none."""
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(N // 4)
    repeated = torch.arange(N).repeat_interleave(weights.long())
    val_weights = torch.arange(80) % 3
    again = torch.arange(80).repeat_interleave(val_weights)
    for targets, val_targets, head, options in (
        (Y, Y_VAL, _linear(), {}),
        (C, C_VAL, nn.Linear(D, 3), {"loss": "cross_entropy", "metric": ("accuracy", "cross_entropy")}),
    ):
        common = options | {"optimizer": "sgd", "lr": 0.1, "batch_size": 10**6, "epochs": 4, "progress": False}
        a = fit((X, targets, weights), (X_VAL, val_targets, val_weights.float()), {"a": head, "b": head}, **common)
        b = fit((X[repeated], targets[repeated]), (X_VAL[again], val_targets[again]), head, **common)
        for one, other in zip(a["a"].metrics, b.best.metrics, strict=True):
            assert (one.train_loss, one.val_score) == pytest.approx((other.train_loss, other.val_score), rel=1e-4)
    with pytest.raises(FitError, match="named loss"):
        fit((X, Y, weights), NUMBERS[1], _linear(), loss=lambda o, t: (o - t).square().mean(), **QUICK)
    own = fit(
        (X, Y, weights), NUMBERS[1], _linear(), loss=lambda o, t, w: (w * (o - t).square()).sum() / w.sum(), **QUICK
    )
    named = fit((X, Y, weights), NUMBERS[1], _linear(), loss="mse", **QUICK)
    assert own.best.score == pytest.approx(named.best.score, rel=1e-5)


def _family():
    anchors = [-2.0, 0.0, 1.0]
    return {
        "pwl": lambda: AnchorSpline(D, anchors),
        "histogram": lambda: HistogramHead(D, anchors),
        "blur": lambda: HistogramHead(D, anchors, targets="blur", activation="sigmoid"),
        "cumulative": lambda: CumulativeLink(D, anchors),
        "corn": lambda: CornHead(D, anchors),
        "partial": lambda: PartialMonotone(D, anchors, monotone={0: 1}),
        "prototype": lambda: PrototypeExact(D, anchors, torch.eye(3, D)),
        "mlp": lambda: MLPHead(D, anchors),
        "circular": lambda: CircularSpline(D, anchors, period=4.0, start=-2.0),
        "flattened": lambda: nn.Sequential(nn.Flatten(1), AnchorSpline(D, anchors)),
    }


@pytest.mark.parametrize("kind", _family())
@pytest.mark.parametrize("company", [1, 5])
def test_weights_are_repetitions_in_a_head_s_own_loss(kind, company):
    """A row of weight 2 is trained like two rows of weight 1 by every head's own loss, alone and in company."""
    torch.manual_seed(3)
    head = _family()[kind]()
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(N // 4)
    repeated = torch.arange(N).repeat_interleave(weights.long())
    common = {"optimizer": "sgd", "lr": 0.05, "batch_size": 10**6, "epochs": 3, "progress": False}
    for loss in (None, "own"):
        heads = {str(i): head for i in range(company)}
        a = fit((X, Y, weights), NUMBERS[1], heads, loss=loss, **common)["0"]
        b = fit((X[repeated], Y[repeated]), NUMBERS[1], head, loss=loss, **common).best
        plain = fit((X, Y), NUMBERS[1], head, loss=loss, **common).best
        for one, other in zip(a.metrics, b.metrics, strict=True):
            assert (one.train_loss, one.val_score) == pytest.approx((other.train_loss, other.val_score), rel=1e-4)
        assert a.metrics[0].train_loss != pytest.approx(plain.metrics[0].train_loss, rel=1e-3)


@pytest.mark.parametrize("head", [lambda: AnchorSpline(D, [-2.0, 2.0]), lambda: CornHead(D, [-2.0, 2.0]), _linear])
def test_a_batch_in_which_no_row_counts_costs_nothing(head):
    """Rows of weight 0 may fill a batch: it changes no weight, and is no 0 / 0."""
    torch.manual_seed(3)
    head = head()
    weights = (torch.arange(N) < 20).float()
    common = {"optimizer": "sgd", "lr": 0.05, "epochs": 2, "progress": False, "batch_size": 1}
    assert math.isfinite(fit((X, Y, weights), NUMBERS[1], head, **common).best.score)


@pytest.mark.parametrize("weights", [torch.zeros(N), -torch.ones(N), torch.full((N,), math.nan), torch.ones(N, 1)])
def test_weights_that_are_none_are_refused(weights):
    """Weights below 0, not finite, all 0 or of another shape are named before any training."""
    with pytest.raises(FitError, match="weights of the rows of train="):
        fit((X, Y, weights), NUMBERS[1], _linear(), **QUICK)


def test_a_frozen_classifier_is_not_given_other_features():
    """A correction's classifier takes features as they are, and cannot learn that they were standardised."""
    head = HistogramHead(D, [-2.0, 2.0], correction=2)
    with pytest.raises(FitError, match=r"'head': expected layers that train, .* standardize=False"):
        fit(*NUMBERS, head, standardize=True, **QUICK)
    assert math.isfinite(fit(*NUMBERS, head, **QUICK).best.score)


def test_an_own_loss_that_cannot_weigh_is_refused():
    """Weighted rows and a loss method without `weights` are refused, by default and by name; none is left out."""

    class Own(nn.Linear):
        def loss(self, x, t, scale=1.0):
            return scale * (self(x).squeeze(1) - t).square().mean()

    for loss in (None, "own"):
        with pytest.raises(FitError, match="own loss\\(values, targets, weights\\)"):
            fit((X, Y, torch.ones(N)), NUMBERS[1], Own(D, 1), loss=loss, **QUICK)


def test_a_circle_among_several_targets_is_ranked_around():
    """A head of several targets, of which one is a circle, is ranked by the distance around in that column."""
    head = MultiHead({"hue": CircularSpline(D, [0.0, 120.0, 240.0], 360.0), "size": AnchorSpline(D, [-2.0, 2.0])})
    targets, val = (torch.stack([y.mul(100).remainder(360), y], -1) for y in (Y, Y_VAL))
    fitted = fit((X, targets), (X_VAL, val), {"a": head, "b": nn.Linear(D, 2)}, **QUICK)
    for result in fitted:
        off = (result.head(X_VAL) - val).detach().abs()
        turned = torch.minimum(off[:, 0].remainder(360), 360 - off[:, 0].remainder(360))
        assert result.score == pytest.approx(((turned + off[:, 1]) / 2).mean().item(), rel=1e-5)
    assert "360" in fitted.table()


@pytest.mark.parametrize("weight", ["balanced", [1.0, 2.0, 3.0], torch.tensor([0.0, 1.0, 4.0])], ids=str)
def test_class_weights_are_those_of_torch(weight):
    """The weighted mean of torch's cross entropy; 'balanced' counts the training rows as scikit-learn does."""
    given = weight
    if isinstance(weight, str):
        counts = torch.bincount(C).double()
        given = (counts.sum() / (3 * counts)).tolist()
    head = nn.Linear(D, 3)
    options = {
        "loss": "cross_entropy",
        "optimizer": "sgd",
        "lr": 0.1,
        "batch_size": 10**6,
        "epochs": 1,
        "progress": False,
    }
    for heads in ({"a": head}, {"a": head, "b": head}):
        best = fit(*CLASSES, heads, class_weight=weight, **options)["a"]
        plain = F.cross_entropy(head(X), C, weight=torch.as_tensor(given, dtype=torch.float32))
        assert best.metrics[0].train_loss == pytest.approx(plain.item(), rel=1e-5)
    with pytest.raises(FitError, match="class_weight='balanced'"):
        fit(*CLASSES, head, class_weight="heavy", **options)
    with pytest.raises(FitError, match=r"from 0 to 1"):
        fit(*CLASSES, head, class_weight=[1.0, 2.0], **options)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_targets_that_are_missing_are_counted():
    """How many, and the first; in train, validation and test rows; known before or met on the way."""
    bad = Y.clone()
    bad[[17, 40, 99]] = math.nan
    with pytest.raises(FitError, match=r"3 of 240.*row 17.*train\.select"):
        fit((X, bad), NUMBERS[1], _linear(), **QUICK)
    with pytest.raises(FitError, match=r"3 of 240.*row 17.*val\.select"):
        fit(NUMBERS[0], (X, bad), _linear(), **QUICK)
    with pytest.raises(FitError, match=r"3 of 240.*test="):
        fit(*NUMBERS, _linear(), test=(X, bad), **QUICK)

    class Met(TensorRows):
        pass

    with pytest.raises(FitError, match="not finite numbers"):
        fit(Met(X, bad), NUMBERS[1], _linear(), **QUICK)


def test_more_classes_than_the_head_knows_are_refused():
    """The class, its row, how many, and what to do."""
    for heads in (nn.Linear(D, 2), {"a": nn.Linear(D, 2), "b": nn.Linear(D, 2)}):
        with pytest.raises(FitError, match=r"classes from 0 to 1.*class 2.*3 outputs"):
            fit(*CLASSES, heads, loss="cross_entropy", **QUICK)


def test_a_class_that_comes_late_is_refused_by_name(monkeypatch):
    """Known targets are looked through before the first step, whatever batch they are in."""
    late = torch.zeros(N, dtype=torch.long)
    late[-1] = 7
    with pytest.raises(FitError, match=r"class 7.*row 239"):
        fit((X, late), (X_VAL, torch.zeros(80, dtype=torch.long)), nn.Linear(D, 3), loss="cross_entropy", **QUICK)


# --- standardisation ---------------------------------------------------------------------------------------------


def test_standardisation_is_learned_on_train_alone_and_folded():
    """The head that comes back takes raw features and scores as it was scored; its class and names are its own."""
    scale = torch.tensor([1e-3, 1.0, 1e3, 5.0, 0.1, 0.0])
    shift = torch.tensor([5.0, -3.0, 1e4, 0.0, 1.0, 2.0])
    raw, raw_val = X * scale + shift, X_VAL * scale + shift + 1.0
    torch.manual_seed(0)
    heads = {
        "linear": _linear(), "mlp": nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)),
        "spline": AnchorSpline(D, [-3.0, 0.0, 3.0]), "norm": nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 1), nn.Flatten(0)),
        "unbiased": nn.Sequential(nn.Linear(D, 1, bias=False), nn.Flatten(0)), "raw": _linear(),
    }  # fmt: skip
    results = fit(
        (raw, Y), (raw_val, Y_VAL), heads, standardize={name: name != "raw" for name in heads}, lr=0.05, **QUICK
    )
    for result in results:
        score = (result.head(raw_val) - Y_VAL).abs().double().mean().item()
        assert score == pytest.approx(result.score, rel=1e-3), result.name
        assert isinstance(result.head, Standardized) == (result.name == "norm")
    module = _linear()
    results["linear"].apply_to(module)
    assert torch.equal(module(raw_val), results["linear"].head(raw_val))
    mean, std = raw.double().mean(0), raw.double().std(0, correction=0)
    learned = learn_standard(iter([(raw[:50], None), (raw[50:51], None), (raw[51:], None)]), torch.float64)
    torch.testing.assert_close(learned.mean, mean)
    torch.testing.assert_close(learned.std[:5], std[:5], rtol=1e-6, atol=1e-9)
    assert learned.std[5] == 1


def test_standardised_training_is_training_on_standardised_features():
    """To the bit what one would get by standardising the rows oneself."""
    mean, std = X.double().mean(0).float(), X.double().std(0, correction=0).float()
    shown = fit(*NUMBERS, _linear(), standardize=True, **QUICK).best
    by_hand = fit(((X - mean) / std, Y), ((X_VAL - mean) / std, Y_VAL), _linear(), **QUICK).best
    assert shown.score == pytest.approx(by_hand.score, rel=1e-6)
    assert folded(nn.Linear(D, 2), learn_standard(iter([(X, None)])), X).weight.shape == (2, D)
    with pytest.raises(FitError, match="finite"):
        fit((X / 0, Y), NUMBERS[1], _linear(), standardize=True, **QUICK)


# --- L-BFGS ------------------------------------------------------------------------------------------------------


def test_lbfgs_finds_the_minimum_of_convex_heads():
    """Least squares and logistic regression, each with its own decay: the gradient vanishes, as by Newton's method."""
    decays = [1e-4, 1e-2, 1.0]
    heads = {"ridge": nn.Linear(D, 1), "logistic": nn.Linear(D, 3)}
    ridge = fit(
        (X, Y[:, None]),
        (X_VAL, Y_VAL[:, None]),
        heads["ridge"],
        optimizer="lbfgs",
        weight_decay=decays,
        epochs=60,
        progress=False,
    )
    ones = torch.cat([X, torch.ones(N, 1)], 1).double()
    for result, decay in zip(sorted(ridge, key=lambda r: r.tried["weight_decay"]), decays, strict=True):
        penalty = torch.diag(torch.tensor([decay] * D + [0.0], dtype=torch.float64))
        exact = torch.linalg.solve(ones.T @ ones * 2 / N + penalty, ones.T @ Y.double() * 2 / N)
        last = fit(
            (X, Y[:, None]),
            (X, Y[:, None]),
            heads["ridge"],
            optimizer="lbfgs",
            weight_decay=decay,
            epochs=60,
            metric="mse",
            progress=False,
        ).best
        assert len(last.metrics) < 60, "it knows when it is done"
        del result
        final = last.metrics[-1].train_loss
        wanted = (ones @ exact - Y.double()).square().mean().item()
        assert final == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    noisy = (C + (torch.arange(N) % 5 == 0)) % 3
    fitted = fit((X, noisy), (X, noisy), heads["logistic"], loss="cross_entropy", metric="cross_entropy", optimizer="lbfgs",
                 weight_decay=0.01, epochs=80, progress=False).best  # fmt: skip
    exact = nn.Linear(D, 3)
    plain = torch.optim.LBFGS(exact.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        plain.zero_grad()
        loss = F.cross_entropy(exact(X), noisy) + 0.005 * exact.weight.square().sum()
        loss.backward()
        return loss

    plain.step(closure)
    assert fitted.metrics[-1].train_loss == pytest.approx(F.cross_entropy(exact(X), noisy).item(), rel=1e-3)


def test_lbfgs_does_not_depend_on_the_batches():
    """A step is taken from all rows, however they come."""
    scores = [
        [
            m.val_score
            for m in fit(*NUMBERS, _linear(), optimizer="lbfgs", epochs=6, batch_size=size, progress=False).best.metrics
        ]
        for size in (7, 64, 10**6)
    ]
    assert scores[0] == pytest.approx(scores[2], rel=1e-3, abs=1e-5)
    assert scores[1] == pytest.approx(scores[2], rel=1e-3, abs=1e-5)
    with pytest.raises(FitError, match="dropout"):
        fit(*NUMBERS, nn.Sequential(nn.Dropout(0.5), _linear()), optimizer="lbfgs", **QUICK)


def test_many_functions_are_minimised_at_once():
    """Each from its own start, none disturbed by another: quadratics of all conditions, and Rosenbrock's valley."""
    torch.manual_seed(0)
    curves = [torch.diag(torch.logspace(0, power, 5, dtype=torch.float64)) for power in range(6)]
    centres = torch.randn(6, 5, dtype=torch.float64)

    def evaluate(position):
        apart = position - centres
        gradients = torch.stack([curve @ a for curve, a in zip(curves, apart, strict=True)])
        return (apart * gradients).sum(1) / 2, gradients

    many = Lbfgs(torch.zeros(6, 5), tolerance=1e-10)
    alone = Lbfgs(torch.zeros(1, 5), tolerance=1e-10)
    for _ in range(120):
        many.tell(*evaluate(many.position))
        loss, gradient = evaluate(alone.position.expand(6, 5))
        alone.tell(loss[3:4], gradient[3:4])
        torch.testing.assert_close(alone.position[0], many.position[3])
    assert many.is_done.all()
    torch.testing.assert_close(many.position, centres, rtol=1e-4, atol=1e-4)
    valley = Lbfgs(torch.tensor([[-1.2, 1.0]]), tolerance=1e-9)
    for _ in range(200):
        at = valley.position.clone().requires_grad_()
        value = (1 - at[:, 0]).square() + 100 * (at[:, 1] - at[:, 0].square()).square()
        valley.tell(value.detach(), torch.autograd.grad(value.sum(), at)[0])
    torch.testing.assert_close(valley.position, torch.ones(1, 2, dtype=torch.float64), rtol=1e-4, atol=1e-4)


# --- precision, schedules ----------------------------------------------------------------------------------------


def test_bfloat16_is_near_and_weights_stay_as_they_are():
    """Products lose digits, targets and weights do not."""
    heads = {"a": _linear(), "b": _linear()}
    far = (X * 3, Y * 1000), (X_VAL * 3, Y_VAL * 1000)
    exact = fit(*far, heads, lr=0.5, epochs=20, batch_size=32, progress=False)
    half = fit(*far, heads, lr=0.5, epochs=20, batch_size=32, precision="bf16", progress=False)
    assert half["a"].score == pytest.approx(exact["a"].score, rel=0.05)
    assert next(half["a"].head.parameters()).dtype == torch.float32
    assert half["a"].score != exact["a"].score
    with pytest.raises(FitError, match="'bf16'"):
        fit(*NUMBERS, _linear(), precision="fp8", **QUICK)


def test_schedules_and_warmup_are_shares_of_the_step_size():
    """Rising over the warm-up, falling to nothing at the end; the same for one head and a group."""
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    fit(
        *NUMBERS,
        _linear(),
        optimizer=lambda p: Watched(p, lr=1.0),
        schedule="linear",
        warmup=1.0,
        epochs=4,
        batch_size=120,
        progress=False,
    )
    passed = [step / 2 for step in range(8)]
    assert seen == pytest.approx([min(p, 1.0) * (1 - p / 4) for p in passed])


# --- checkpoints -------------------------------------------------------------------------------------------------

HEADS = {
    "stacked": {"kind": "mlp", "width": 8, "dropout": 0.3, "lr": [0.01, 0.02], "patience": 3},
    "single": {"module": lambda: nn.Sequential(nn.Unflatten(1, (1, D)), nn.Conv1d(1, 2, 3), nn.Flatten(1), nn.Linear(8, 1), nn.Flatten(0))},
    "sgd": {"kind": "linear", "optimizer": "sgd", "momentum": 0.9, "lr": [0.01, 1e30]},
    "lbfgs": {"kind": "linear", "optimizer": "lbfgs", "weight_decay": [0.0, 0.1]},
    "custom": {"module": _linear, "optimizer": lambda p: torch.optim.RMSprop(p, lr=0.01)},
    "frozen": {"module": lambda: _linear().requires_grad_(False)},
}  # fmt: skip
LONG = {"epochs": 7, "batch_size": 50, "schedule": "cosine", "progress": False}


def assert_equal(one, other):
    assert [r.name for r in one] == [r.name for r in other]
    for a, b in zip(one, other, strict=True):
        assert repr((a.metrics, a.best_epoch, a.failed)) == repr((b.metrics, b.best_epoch, b.failed))
        assert _same(a.head, b.head)


@pytest.mark.parametrize("stop", [1, 2, 9, 13, 29])
def test_an_interrupted_fit_resumes_to_the_same_result(stop, tmp_path, monkeypatch):
    """Killed in any batch: the rest of the work gives, to the last bit, what all of it at once gives."""
    whole = fit(*NUMBERS, HEADS, **LONG)
    path, count = tmp_path / "fit.safetensors", 0
    monkeypatch.setattr(Checkpoint, "is_due", property(lambda self: stop % 2 == 1))  # in the middle of epochs, too

    batches = TensorRows.batches

    def killed(self, *args, **kwargs):
        nonlocal count
        for batch in batches(self, *args, **kwargs):
            count += 1
            if count == stop:
                raise SystemError("killed")
            yield batch

    monkeypatch.setattr(TensorRows, "batches", killed)
    with pytest.raises(SystemError):
        fit(*NUMBERS, HEADS, checkpoint=path, **LONG)
    monkeypatch.setattr(TensorRows, "batches", batches)
    assert_equal(fit(*NUMBERS, HEADS, checkpoint=path, **LONG), whole)
    assert_equal(fit(*NUMBERS, HEADS, checkpoint=path, **LONG), whole)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    """By what differs: other heads, options, rows."""
    path = tmp_path / "fit.safetensors"
    fit(*NUMBERS, {"a": _linear()}, checkpoint=path, **QUICK)
    other = Y.clone()
    other[3] += 1
    for change, word in (
        ({"lr": 0.5}, "lr"), ({"batch_size": 32}, "batch_size"), ({"seed": 3}, "seed"), ({"train": (X, other)}, "train rows"),
        ({"train": (X + 1, Y)}, "train rows"), ({"heads": {"b": _linear()}}, "'b'"), ({"heads": {"a": nn.Sequential(nn.Linear(D, 1, dtype=torch.float64), nn.Flatten(0))}}, "weights"),
    ):  # fmt: skip
        arguments = {"train": NUMBERS[0], "val": NUMBERS[1], "heads": {"a": _linear()}} | QUICK | change
        with pytest.raises(FitError, match=rf"{word}.*rm '"):
            fit(arguments.pop("train"), arguments.pop("val"), arguments.pop("heads"), checkpoint=path, **arguments)


@pytest.mark.parametrize("harm", [lambda raw: raw[:100], lambda raw: b"", lambda raw: raw[:-9], lambda raw: raw.replace(b'"fit"', b'"fot"'),
                                  lambda raw: raw.replace(b"position", b"positiom")], ids=range(5))  # fmt: skip
def test_a_damaged_checkpoint_is_named(harm, tmp_path):
    """Never gone on with, never a crash in words of a library."""
    path = tmp_path / "fit.safetensors"
    fit(*NUMBERS, {"a": _linear()}, checkpoint=path, **QUICK)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(FitError, match=r"Cannot go on with checkpoint.*rm '"):
        fit(*NUMBERS, {"a": _linear()}, checkpoint=path, **QUICK)
    with pytest.raises(FitError, match="Cannot write checkpoint"):
        fit(*NUMBERS, {"a": _linear()}, checkpoint=tmp_path / "no" / "fit", **QUICK)


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_fitting_options import NUMBERS, HEADS, fit
heads = {{name: head for name, head in HEADS.items() if name != "custom"}}
results = fit(*NUMBERS, heads, checkpoint={path!r}, epochs=150, batch_size=50, progress=False)
print([(r.name, [repr(m) for m in r.metrics][-3:]) for r in results if "lbfgs" not in r.name])
"""


@pytest.mark.slow
def test_a_fit_that_is_killed_at_any_moment_resumes(tmp_path):
    """SIGKILL, again and again, in another process each time: the same result as without."""
    tests = os.path.dirname(__file__)

    def run(path, kills=False):
        script = SCRIPT.format(tests=tests, path=str(path))
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        before = path.stat().st_mtime_ns if path.exists() else 0
        while kills and process.poll() is None:
            if path.exists() and path.stat().st_mtime_ns > before:
                time.sleep(random.random() / 5)
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        return process.communicate()[0]

    whole = run(tmp_path / "whole")
    for _ in range(2):
        assert run(tmp_path / "killed", kills=True) == ""
    assert run(tmp_path / "killed") == whole


def test_a_checkpoint_is_read_without_running_it(tmp_path):
    """A safetensors file with JSON beside the tensors: no pickle in it."""
    path = tmp_path / "fit.safetensors"
    fit(*NUMBERS, {"a": _linear()}, checkpoint=path, **QUICK)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["fit"])["format"] == "1"
    assert list(tmp_path.iterdir()) == [path]


# --- results -----------------------------------------------------------------------------------------------------


def test_records_hold_the_ranking(monkeypatch):
    """As plain values; as a data frame where pandas is; a word on how to have it where it is not."""
    results = fit(
        *NUMBERS, {"a": {"kind": "linear", "lr": [0.1, 0.01], "seed": [0, 1]}}, metric=("mae", "mse"), **QUICK
    )
    records = results.records()
    assert [record["name"] for record in records] == [result.name for result in results]
    assert {"lr", "seed", "val_mae", "val_mse", "std_over_seeds"} <= records[0].keys()
    assert json.loads(json.dumps(records)) == records
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        results.to_pandas()
    fake = types.SimpleNamespace(DataFrame=types.SimpleNamespace(from_records=lambda rows: ("frame", rows)))
    monkeypatch.setitem(sys.modules, "pandas", fake)
    assert results.to_pandas() == ("frame", records)
    whole = json.loads(results.to_json())
    assert whole["heads"][0]["tried"] == dict(results.ranked[0].tried)
    assert {entry["name"] for entry in whole["timesheet"]} == {"feed", "train", "validate"}


def test_a_timesheet_accounts_for_the_time():
    """What was fed, trained and scored, in rows and seconds; a row counts once, however many heads."""
    results = fit(
        *NUMBERS, {"a": _linear(), "b": _linear()}, epochs=3, batch_size=64, test=(X_VAL, Y_VAL), progress=False
    )
    rows = {entry.name: entry.rows for entry in results.timesheet}
    assert rows == {"feed": 3 * N + 4 * 80, "train": 3 * N, "validate": 3 * 80, "test": 80}
    assert sum(entry.time_s for entry in results.timesheet) <= results.time_s


def test_features_are_fitted_as_tensors_are(tmp_path):
    """Stored rows, a selection of them, and weights: what the same rows in memory give."""
    model = nn.Sequential(nn.Linear(3, D), nn.Linear(D, 2))
    model[0].requires_grad_(False)
    inputs = torch.randn(N, 3)
    train = ft.extract(model, (inputs, Y), tmp_path / "store")
    rows = torch.from_numpy(train.numpy().copy())
    some = train.select(slice(0, 150)).weighted(torch.arange(150.0))
    stored = fit(some, train.select(slice(150, None)), {"a": _linear(), "b": "mlp"}, standardize=True, **QUICK)
    held = fit(
        (rows[:150], Y[:150], torch.arange(150.0)),
        (rows[150:], Y[150:]),
        {"a": _linear(), "b": "mlp"},
        standardize=True,
        **QUICK,
    )
    assert {result.name for result in stored} == {result.name for result in held} == {"a", "b"}
    assert math.isfinite(stored["a"].score)
    assert (
        fit(
            train,
            train,
            train.head,
            loss=lambda o, t: (o[:, 0] - t).square().mean(),
            metric=lambda o, t: (o[:, 0] - t).abs(),
            **QUICK,
        ).best.score
        > 0
    )


def _angles(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    angle = 360 * torch.rand(rows, generator=generator)
    point = torch.stack([angle.deg2rad().cos(), angle.deg2rad().sin()], 1)
    return point + 0.02 * torch.randn(rows, 2, generator=generator), angle


def test_circles_are_ranked_by_the_distance_around():
    """359 and 1 degrees are close, for all that trains on the target, unless a metric is asked for."""
    anchors = [0.0, 90.0, 180.0, 270.0]
    heads = {
        "a": CircularSpline(2, anchors, 360.0),
        "b": CircularSpline(2, anchors, 360.0),
        "free": MLPHead(2, anchors),
    }
    options = {"epochs": 60, "lr": 0.05, "batch_size": 100, "progress": False}
    results = ft.fit(_angles(400, 0), _angles(200, 1), heads, **options)
    assert results.is_comparable
    assert results.metric == "distance around 360"
    assert results.best.name in ("a", "b")
    assert results.best.score < 3
    told = ft.fit(_angles(400, 0), _angles(200, 1), heads, metric="mae", **options | {"epochs": 1})
    assert told.metric == "mae"


def test_circles_of_two_periods_are_tasks_of_their_own():
    """Nothing is ranked by another's period; what is on no circle keeps the mean error."""
    heads = {
        "degrees": CircularSpline(2, [0.0, 180.0], 360.0),
        "hours": CircularSpline(2, [0.0, 12.0], 24.0),
        "free": MLPHead(2, [0.0, 360.0]),
    }
    results = ft.fit(_angles(100, 0), _angles(50, 1), heads, epochs=1, progress=False)
    assert {r.name: r.task for r in results} == {
        "degrees": "distance around 360", "hours": "distance around 24", "free": "mae",
    }  # fmt: skip
