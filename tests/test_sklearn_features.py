"""The frozen part of a model as a scikit-learn transformer: its rules, the model's own rows, each computed once."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import forethought as ft

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from forethought.sklearn import FrozenFeatures


class Pooled(nn.Module):
    """Takes rows of any width, as scikit-learn's checks give them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)
        self.inner.requires_grad_(False)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool1d(x[:, None], 4)[:, 0]
        return self.head(torch.tanh(self.inner(x)))


STORE = ft.Store("memory://sklearn-checks")


# It compares hashes of pickles, and the pickles of a module and of its untouched copy differ.
NOT_FOR_MODULES = {"check_estimators_overwrite_params": "joblib.hash(module) != joblib.hash(deepcopy(module))"}


@parametrize_with_checks([FrozenFeatures(Pooled(), STORE)], expected_failed_checks=lambda _: NOT_FOR_MODULES)
def test_transformer_keeps_scikit_learns_rules(estimator, check):
    """Every check of check_estimator that a module as a parameter can pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn's own making
        check(estimator)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))


@pytest.fixture
def images():
    return torch.rand(30, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def computed(store):
    return sum(table.rows for table in ft.inventory(ft.Store(store, readonly=True)))


@pytest.mark.parametrize("kind", ["array", "double", "list", "tensor", "dataset", "loader"])
def test_features_are_the_models(tmp_path, model, images, kind):
    """Whatever samples come as, their rows are what the module says of them, joined into one axis."""
    given = {
        "array": images.numpy(),
        "double": images.double().numpy(),
        "list": images.tolist(),
        "tensor": images,
        "dataset": TensorDataset(images, torch.arange(30)),
        "loader": DataLoader(TensorDataset(images, torch.arange(30)), batch_size=30),
    }[kind]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = FrozenFeatures(model, str(tmp_path / "s"), at="2", batch_size=30).fit_transform(given)
    with torch.no_grad():
        assert np.array_equal(rows, model[:3](images).flatten(1).numpy())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model.modules()] == [True] * 6


def test_what_is_frozen_decides_and_weights_count(tmp_path, model, images):
    """Of a model with a frozen part its frontier is given; another weight gives other rows from the same store."""
    ft.freeze(model, until="0")
    features = FrozenFeatures(model, str(tmp_path / "s"))
    first = features.fit_transform(images)
    assert first.shape == (30, 16)  # what needs no parameter is frozen, too
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert not np.array_equal(features.transform(images), first)


def test_a_frozen_copy_does_not_go_stale(tmp_path, model, images):
    """A model that trains on after fit is not what the transformer was fitted with, until it is fitted again."""
    features = FrozenFeatures(model, str(tmp_path / "s"), at="1")
    first = features.fit_transform(images)
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert np.array_equal(features.transform(images), first)
    assert not np.array_equal(features.fit_transform(images), first)


def test_a_search_computes_each_sample_once(tmp_path, model, images):
    """Folds and candidates of a search read the same rows; the model is shared by clones."""
    labels = (images[:, 0].mean((1, 2)) > images[:, 0].mean()).long().numpy()
    pipe = make_pipeline(FrozenFeatures(model, str(tmp_path / "s"), at="3"), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipe, {"logisticregression__C": [0.1, 1.0, 10.0]}, cv=3).fit(images.numpy(), labels)
    assert search.best_score_ > 0.5
    assert computed(tmp_path / "s") == 30
    assert search.best_estimator_[0].model is model
    cut = GridSearchCV(pipe, {"frozenfeatures__at": ["0", "3"]}, cv=3).fit(images.numpy(), labels)
    assert cut.best_params_["frozenfeatures__at"] in ("0", "3")
    assert cross_val_score(pipe.set_params(logisticregression=Ridge()), images.numpy(), labels, cv=3).shape == (3,)


def test_rows_are_not_copied(tmp_path, model, images):
    """What an estimator is given lies in the store's mapped file, and cannot be written to."""
    features = FrozenFeatures(model, str(tmp_path / "s"), at="3").fit(images)
    rows = features.transform(images)
    base = rows
    while isinstance(getattr(base, "base", None), np.ndarray):
        base = base.base
    assert not rows.flags.owndata
    assert not rows.flags.writeable
    assert isinstance(base, np.memmap) or not base.flags.owndata


def test_clones_pickles_and_names(tmp_path, model, images):
    """A clone is a transformer anew; a pickled one gives the same rows; features have names."""
    features = FrozenFeatures(model, str(tmp_path / "s"), at="3").fit(images)
    assert clone(features).model is model
    assert not hasattr(clone(features), "n_features_out_")
    again = pickle.loads(pickle.dumps(features))
    assert np.array_equal(again.transform(images), features.transform(images))
    assert list(features.get_feature_names_out())[:2] == ["frozenfeatures0", "frozenfeatures1"]
    assert len(features.get_feature_names_out()) == 16


def test_token_ids_stay_whole(tmp_path):
    """A model with an embedding is given whole numbers as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    ids = np.arange(18).reshape(6, 3) % 9
    rows = FrozenFeatures(model, str(tmp_path / "s"), at="1").fit_transform(ids)
    with torch.no_grad():
        assert np.array_equal(rows, model[:2](torch.from_numpy(ids)).numpy())


@pytest.mark.parametrize("model", [None, "resnet18"])
def test_no_model_is_said(model, tmp_path):
    """Without a model there is nothing to transform by."""
    with pytest.raises(ft.ForethoughtError, match="expected a"):
        FrozenFeatures(model, str(tmp_path)).fit(np.ones((4, 3)))


def test_other_samples_are_refused(tmp_path, model, images):
    """Samples with another number of features than in fit are refused, as by every transformer."""
    features = FrozenFeatures(model, str(tmp_path / "s"), at="0").fit(images)
    with pytest.raises(ValueError, match="expecting 3 features"):
        features.transform(torch.rand(4, 2, 12, 12))
    with pytest.raises(ft.ForethoughtError, match="as in fit"):
        features.transform(torch.rand(4, 3, 14, 14))
