"""Ridge and logistic regression among the heads give scikit-learn's answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import forethought as ft

pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

torch.set_num_threads(1)


def features(rows, width, seed, spread=0.0):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.uniform(-spread, spread, width))
    return ((rng.normal(size=(rows, width)) + spread) * scale).astype(np.float32), rng


def fitted(x, y, spec, **options):
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    half = (x[: len(x) // 4], y[: len(x) // 4])  # what chooses must not matter
    return ft.fit((x, y), half, {"head": spec}, progress=False, batch_size=97, **options), x


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.integers(20, 300),
    st.integers(1, 30),
    st.sampled_from([0, 1, 3]),
)
def test_ridge_is_scikit_learns(seed, alpha, rows, width, outputs):
    """The same objective, so the same answers: for one number and for several, whatever the validation rows say."""
    x, rng = features(rows, width, seed)
    y = (x @ rng.normal(size=(width, max(outputs, 1))) + rng.normal(size=(rows, max(outputs, 1))) + 9).astype(
        np.float32
    )
    y = y if outputs else y[:, 0]
    results, given = fitted(x, y, {"kind": "ridge", "alpha": alpha})
    wanted = Ridge(alpha=alpha).fit(x.astype(np.float64), y.astype(np.float64)).predict(x.astype(np.float64))
    assert results.best.head(given).shape == torch.from_numpy(y).shape
    assert np.abs(results.best.head(given).detach().numpy() - wanted.reshape(y.shape)).max() < 1e-3 * max(
        wanted.std(), 1
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.01, 1.0]), st.integers(40, 300), st.integers(1, 20), st.integers(2, 4))
def test_logistic_is_scikit_learns(seed, strength, rows, width, classes):
    """Probabilities are those of scikit-learn, for two classes too, which share one vector there."""
    x, rng = features(rows, width, seed)
    y = np.argmax(x @ rng.normal(size=(width, classes)) + 2 * rng.gumbel(size=(rows, classes)), 1)
    y[:classes] = np.arange(classes)
    results, given = fitted(x, y, {"kind": "logistic", "C": strength}, metric="cross_entropy")
    exact = LogisticRegression(C=strength, max_iter=5000, tol=1e-9).fit(x.astype(np.float64), y)
    answers = torch.softmax(results.best.head(given), 1).detach().numpy()
    assert np.abs(answers - exact.predict_proba(x.astype(np.float64))).max() < 1e-3


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_standardize_is_a_scaler_before(kind):
    """On features of very different scales, the head takes them raw and answers as scikit-learn does behind a scaler."""
    x, rng = features(300, 25, 5, spread=3.0)
    signal = (x / x.std(0)) @ rng.normal(size=(25, 3)) + rng.normal(size=(300, 3))
    y = signal[:, 0].astype(np.float32) if kind == "ridge" else signal.argmax(1)
    results, given = fitted(x, y, {"kind": kind}, standardize=True)
    plain = Ridge() if kind == "ridge" else LogisticRegression(max_iter=5000, tol=1e-9)
    exact = make_pipeline(StandardScaler(), plain).fit(x.astype(np.float64), y)
    answers = results.best.head(given).detach()
    if kind == "ridge":
        assert np.abs(answers.numpy() - exact.predict(x.astype(np.float64))).max() < 1e-3 * y.std()
    else:
        assert np.abs(torch.softmax(answers, 1).numpy() - exact.predict_proba(x.astype(np.float64))).max() < 1e-3


def test_they_are_heads_among_others():
    """Kinds are tried beside each other, options of training do not touch them, and several alphas are ranked by val."""
    x, rng = features(120, 5, 1)
    y = (x @ rng.normal(size=5)).astype(np.float32)
    results, _ = fitted(
        x, y, {"kind": ["linear", "ridge"], "alpha": [0.1, 1e4]}, lr=0.5, epochs=1, patience=1, clip=0.1
    )
    assert results.best.tried["kind"] == "ridge"
    assert results.best.tried["alpha"] == 0.1
    assert len(results) == 3


@pytest.mark.parametrize(
    ("spec", "whole", "says"),
    [
        ({"kind": "ridge"}, True, "targets.float"),
        ({"kind": "logistic"}, False, "targets.long"),
        ({"kind": "ridge", "alpha": -1}, False, "alpha=1.0"),
        ({"kind": "logistic", "C": 0}, True, "C=1.0"),
        ({"kind": "logistic", "C": "much"}, True, "C=1.0"),
        ({"kind": "ridge", "C": 1.0}, False, "options among"),
        ({"kind": "linear", "keep": "first"}, False, "keep"),
    ],
)
def test_what_does_not_fit_is_refused(spec, whole, says):
    """Targets of the other sort, and numbers that are none, are refused with what to write."""
    x, _ = features(40, 3, 2)
    y = np.arange(40) % 3 if whole else np.arange(40, dtype=np.float32)
    with pytest.raises(ft.ForethoughtError, match=says):
        fitted(x, y, spec)


def test_keep_last_is_for_any_head():
    """A head that keeps its last weights has those of the last epoch, whatever the scores were."""
    x, _ = features(60, 4, 3)
    results, _ = fitted(x, x[:, 0].copy(), {"kind": "linear", "lr": 5.0, "keep": "last"}, epochs=4)
    assert results.best.best_epoch == 4
