"""A classifier becomes a regressor: sensible before training, over the same trunk, and the classifier is untouched."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import forethought as ft
from forethought import heads
from forethought.errors import AnchorError, BundleError, FitError, ForethoughtError, NothingFrozenError, SplitError

torch.set_num_threads(1)

ANCHORS = [10.0, 20.0, 30.0]
X = torch.linspace(-2, 2, 24).sin().reshape(6, 4)


def direct():
    """The features go straight into the last Linear."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


def deep():
    """Something trains between the features and the last Linear."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    return model


def skipped():
    """Two tensors cross the frontier."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.a.requires_grad_(False)
            self.b.requires_grad_(False)
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            early = self.a(x).relu()
            return self.c(self.b(early).tanh() + self.scale * early)

    torch.manual_seed(1)
    return Model()


class Reordered(nn.Module):
    """The layer that gives the logits is registered before one that runs earlier."""

    def __init__(self, middle):
        super().__init__()
        self.logits = nn.Linear(middle, 3)
        self.middle = nn.Linear(8, middle)
        self.a = nn.Linear(4, 8).requires_grad_(False)

    def forward(self, x):
        return self.logits(self.middle(self.a(x).relu()).relu())


class Unused(nn.Module):
    """A second classifier is registered and does not run, as auxiliary ones do in evaluation."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8).requires_grad_(False)
        self.logits = nn.Linear(8, 3)
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, x):
        return self.logits(self.a(x).relu())


every_model = pytest.mark.parametrize(
    "make",
    [
        direct,
        deep,
        skipped,
    ],
)
every_kind = pytest.mark.parametrize("kind", ["pwl", "histogram"])


def believed(model, x=X, anchors=ANCHORS):
    """What the classifier believes: the expectation of the anchors under its softmax."""
    return model(x).softmax(-1) @ torch.tensor(anchors)


def state(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    return tensors, flags, [p.grad is None for p in model.parameters()]


def is_untouched(model, before):
    after = state(model)
    return after[1:] == before[1:] and all(torch.equal(after[0][name], before[0][name]) for name in after[0])


# ---------------------------------------------------------------------------------------- sensible before training


@every_kind
@settings(max_examples=25, deadline=None)
@given(classes=st.integers(2, 9), width=st.integers(1, 6), start=st.integers(-99, 99), step=st.integers(1, 50))
def test_a_linear_layer_answers_with_what_it_believes(kind, classes, width, start, step):
    """Before training: the expectation over evenly spaced anchors, rising or falling."""
    layer, x = nn.Linear(width, classes), torch.randn(7, width)
    for sign in (1, -1):
        anchors = [float(sign * (start + step * k)) for k in range(classes)]
        torch.testing.assert_close(
            ft.as_regressor(layer, anchors, kind)(x), believed(layer, x, anchors), rtol=1e-4, atol=1e-3
        )


@every_kind
@every_model
def test_a_whole_model_answers_with_what_it_believes(make, kind):
    """A whole model with example inputs becomes a whole model."""
    model = make()
    expected = believed(model)
    regressor = ft.as_regressor(model, ANCHORS, kind, args=X)
    assert isinstance(regressor, ft.Assembled)
    torch.testing.assert_close(regressor(X), expected, rtol=1e-4, atol=1e-4)


@every_kind
@every_model
def test_a_split_answers_with_what_it_believes(make, kind):
    """A split gives a head for its features."""
    model = make()
    split, expected = ft.split(model, X), believed(model)
    head = ft.as_regressor(split, ANCHORS, kind)
    torch.testing.assert_close(head(split.trunk(X)), expected, rtol=1e-4, atol=1e-4)


def test_features_answer_with_what_the_classifier_believes(tmp_path):
    """Stored features give a head for them."""
    model = direct()
    features = ft.extract(model, (X, torch.zeros(6)), tmp_path / "store", batch_size=3)
    head = ft.as_regressor(features, ANCHORS)
    values = torch.cat([values for values, _ in features.batches(4)])
    torch.testing.assert_close(head(values), believed(model), rtol=1e-4, atol=1e-4)


@every_kind
def test_a_sequence_of_layers_answers_with_what_it_believes(kind):
    """A classifier of several layers over features, nothing frozen."""
    classifier = deep().requires_grad_(True)
    torch.testing.assert_close(
        ft.as_regressor(classifier, ANCHORS, kind)(X), believed(classifier), rtol=1e-4, atol=1e-4
    )


def test_keyword_inputs_are_taken():
    """Whole models with keyword inputs and a dict for an output."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3)

        def forward(self, *, x, scale=1.0):
            return {"logits": self.b(self.a(x) * scale)}

    model = Model()
    regressor = ft.as_regressor(model, ANCHORS, kwargs={"x": X, "scale": 2.0})
    expected = model(x=X, scale=2.0)["logits"].softmax(-1) @ torch.tensor(ANCHORS)
    torch.testing.assert_close(regressor(x=X, scale=2.0), expected, rtol=1e-4, atol=1e-4)


def test_anchors_are_met_where_the_classifier_is_certain():
    """Full belief in one class gives its anchor, evenly spaced or not."""
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(1000 * torch.eye(4))
    anchors = [1.0, 2.0, 10.0, 11.5]
    assert ft.as_regressor(layer, anchors)(torch.eye(4)).tolist() == anchors


def test_the_layer_of_the_logits_is_found_by_running():
    """Order of registration says nothing about order of execution."""
    model = Reordered(6)
    torch.testing.assert_close(ft.as_regressor(model, ANCHORS, args=X)(X), believed(model))


def test_a_hidden_layer_of_the_same_width_is_not_taken_for_the_logits():
    """With as many units as classes there is not even an error."""
    torch.manual_seed(0)
    model = Reordered(3)
    torch.testing.assert_close(ft.as_regressor(model, ANCHORS, args=X)(X), believed(model))


def test_a_layer_that_does_not_run_is_not_taken_for_the_logits():
    """An auxiliary classifier that evaluation skips."""
    model = Unused()
    torch.testing.assert_close(ft.as_regressor(model, ANCHORS, args=X)(X), believed(model))


class Keyed(nn.Module):
    """Logits in a dictionary, beside something else of their size."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8).requires_grad_(False)
        self.logits, self.more = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        values = self.a(x).relu()
        return {"logits": self.logits(values), "more": self.more(values)}


class Halved(nn.Module):
    """What it gives is not what its last layer gave."""

    def __init__(self):
        super().__init__()
        self.a, self.logits = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.logits(self.a(x).relu()) / 2


@every_kind
def test_logits_in_a_dictionary_are_found(kind):
    """Of two that could be the logits, the one that is called so."""
    model = Keyed()
    expected = model(X)["logits"].softmax(-1) @ torch.tensor(ANCHORS)
    torch.testing.assert_close(ft.as_regressor(model, ANCHORS, kind, args=X)(X), expected)
    whole = Keyed().requires_grad_(True)
    expected = whole(X)["logits"].softmax(-1) @ torch.tensor(ANCHORS)
    torch.testing.assert_close(ft.as_regressor(whole, ANCHORS, kind)(X), expected)


def test_logits_that_are_changed_afterwards_are_refused():
    """A temperature, a ReLU, a softmax behind the last Linear would be left out without a word."""
    with pytest.raises(FitError, match="more after its last Linear"):
        ft.as_regressor(Halved(), ANCHORS)
    with pytest.raises(FitError, match="ReLU last"):
        ft.as_regressor(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), ANCHORS)
    half = Halved()
    half.a.requires_grad_(False)
    with pytest.raises(FitError, match="more after its last Linear"):
        ft.as_regressor(half, ANCHORS, args=X)


@pytest.mark.parametrize("squash", [torch.sigmoid, lambda z: z.softmax(-1)], ids=["sigmoid", "softmax"])
def test_a_whole_model_may_end_in_its_own_probabilities(squash):
    """Its logits are clear: those that these are the probabilities of."""

    class Squashed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.logits = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3)

        def forward(self, x):
            return squash(self.logits(self.a(x).relu()))

    model = Squashed()
    expected = model.logits(model.a(X).relu()).softmax(-1) @ torch.tensor(ANCHORS)
    torch.testing.assert_close(ft.as_regressor(model, ANCHORS, args=X)(X), expected)


def test_a_module_of_ones_own_is_run_on_features_of_its_width():
    """Layers registered in another order than they run, with equal widths, and nothing frozen."""
    torch.manual_seed(0)
    model = Reordered(3).requires_grad_(True)
    torch.testing.assert_close(ft.as_regressor(model, ANCHORS)(X), believed(model))
    with pytest.raises(FitError, match="features="):
        ft.as_regressor(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 1, 2), nn.Linear(9, 3)), ANCHORS)


@every_kind
def test_classes_without_a_value_are_left_out(kind):
    """None in their place: the belief is shared out among the others."""
    layer = nn.Linear(4, 5)
    expected = layer(X)[:, [0, 2, 4]].softmax(-1) @ torch.tensor(ANCHORS)
    torch.testing.assert_close(ft.as_regressor(layer, [10.0, None, 20.0, None, 30.0], kind)(X), expected)


@every_kind
def test_anchors_by_class_may_come_in_any_order(kind):
    """As when folders are sorted by name: '10', '30', '9'."""
    layer = nn.Linear(4, 3)
    expected = layer(X).softmax(-1) @ torch.tensor([10.0, 30.0, 9.0])
    head = ft.as_regressor(layer, {0: 10.0, 1: 30.0, 2: 9.0}, kind)
    assert head.anchors.tolist() == [9.0, 10.0, 30.0]
    if kind == "histogram":
        torch.testing.assert_close(head(X), expected)
    certain = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        certain.weight.copy_(1000 * torch.eye(3))
    assert ft.as_regressor(certain, {0: 10.0, 1: 30.0, 2: 9.0}, kind)(torch.eye(3)).tolist() == [10.0, 30.0, 9.0]


NUMBERED = ["pwl", "rqs", "cumulative", "corn", "histogram", "prototype", "calibrator", "circular"]


@pytest.mark.parametrize("kind", NUMBERED)
@pytest.mark.parametrize("anchors", [{0: 10.0, 1: 30.0, 2: 9.0}, [10.0, None, 30.0], [10.0, 30.0, 90.0]], ids=str)
def test_classes_keep_the_classifiers_numbers(kind, anchors):
    """Left out or put in order, classes are numbered as the labels are, in what is predicted and in what is trained on."""
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    x = 4 * torch.eye(3, 6)[labels] + 0.01 * torch.randn(90, 6)
    classifier = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        classifier.weight.copy_(5 * torch.eye(3, 6))
    options = {"period": 100.0} if kind == "circular" else {}
    head = ft.as_regressor(classifier, anchors, kind, features=x, labels=labels, **options)
    value_of = anchors if isinstance(anchors, dict) else {k: v for k, v in enumerate(anchors) if v is not None}
    mine = torch.isin(labels, torch.tensor(list(value_of)))
    assert head.classes == (None if anchors == [10.0, 30.0, 90.0] else tuple(sorted(value_of, key=value_of.get)))
    assert head.values_of(labels[mine]).tolist() == [value_of[k] for k in labels[mine].tolist()]
    again = heads.from_config(json.loads(json.dumps(head.config()))) if kind != "calibrator" else copy.deepcopy(head)
    again.load_state_dict(head.state_dict())
    for each in (head, again, copy.deepcopy(head), head.baked()):
        assert each.predict_class(x[mine]).tolist() == labels[mine].tolist()
        means = heads.class_means(each, x[mine], labels[mine])
        assert {one.label: one.anchor for one in means} == value_of
        assert all(one.rows == 30 for one in means)
    if len(value_of) < 3:
        with pytest.raises(FitError, match=r"have an anchor, \[0, 2\], got 1"):
            head.values_of(labels)


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, -1]), torch.tensor([3]), torch.tensor([0.0]), torch.tensor([True])]
)
def test_labels_of_no_class_have_no_value(labels):
    """A number below 0, above the last class, or no whole number is refused and does not wrap around."""
    with pytest.raises(FitError, match="Cannot give labels values: expected"):
        heads.AnchorSpline(2, [1.0, 2.0, 4.0]).values_of(labels)


@pytest.mark.parametrize("classes", [[0, 0, 1], [0, 1], [0, 1, -1], ["a", "b", "c"], 3])
def test_a_description_with_other_numbers_is_refused(classes):
    """One different number an anchor, or the file is not ours."""
    config = heads.AnchorSpline(2, [1.0, 2.0, 4.0]).config()
    with pytest.raises(BundleError, match="expected classes to be 3 different numbers"):
        heads.from_config({**config, "classes": classes})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": torch.tensor([0, 1, -1, 2])}, "expected labels from 0 to 2, .* got -1"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "expected labels from 0 to 2, .* got 3"),
        ({"features": torch.full((4, 6), math.nan)}, "expected finite features"),
    ],
)
def test_rows_that_are_none_are_not_fitted_on(options, says):
    """A label below 0 would count from the end; a number that is none would be in every weight."""
    rows = {"features": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 0]), **options}
    with pytest.raises(FitError, match=says):
        ft.as_regressor(nn.Linear(6, 3), [1.0, 2.0, 4.0], "prototype", **rows)


def test_arrays_are_features_too():
    """NumPy's features, labels and class numbers are taken as tensors and whole numbers are."""
    x, labels = np.random.RandomState(0).randn(60, 6).astype("float32"), np.arange(60) % 3
    head = ft.as_regressor(
        nn.Linear(6, 3), {np.int64(k): float(k * k) for k in range(3)}, "calibrator", features=x, labels=labels
    )
    assert head.anchors.tolist() == [0.0, 1.0, 4.0]


FITTED = ["pwl", "rqs", "cumulative", "corn", "histogram", "prototype", "calibrator", "mlp"]


@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("descending", [False, True], ids=["rising", "falling"])
def test_every_kind_is_sensible_before_training(kind, descending):
    """A good ordinal classifier's answers are followed closely, evenly spaced or not, and the head is certified."""
    torch.manual_seed(0)
    x = torch.randn(600, 6)
    place = (3 * (x[:, 0] + 0.3 * x[:, 1]).sigmoid()).round().long()
    classifier = nn.Linear(6, 4)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x), place).backward()
        optimizer.step()
    anchors = sorted([1.0, 2.0, 4.0, 9.0], reverse=descending)
    head = ft.as_regressor(classifier, anchors, kind, features=x, labels=place)
    value = torch.tensor(anchors)[place]
    y = head(x).detach()
    # Held to class means, a plane is less free to follow.
    assert torch.corrcoef(torch.stack([y, value]))[0, 1] > (0.7 if kind == "prototype" else 0.85)
    assert (y - value).abs().mean() < 1.5
    assert (y - value).mean().abs() < (0.5 if kind == "prototype" else 0.2)
    assert kind == "mlp" or head.certify().raise_if_failed().holds


def test_a_prototype_head_follows_as_far_as_it_is_free():
    """No other plane through the prototypes is nearer to the classifier's expected class, in the mean square."""
    torch.manual_seed(0)
    x = torch.randn(400, 8, dtype=torch.float64) * torch.logspace(0, -2, 8)
    place = (x[:, 0] * 1.2 + 1.5 + 0.3 * torch.randn(400)).round().clamp(0, 3).long()
    classifier = nn.Linear(8, 4, dtype=torch.float64)
    head = ft.as_regressor(classifier, [1.0, 2.0, 4.0, 9.0], "prototype", features=x, labels=place)
    belief = classifier(x).softmax(-1) @ torch.arange(4.0, dtype=torch.float64)
    squares = (head.latent(x) - belief).square().mean()
    for _ in range(20):
        other = copy.deepcopy(head)
        with torch.no_grad():
            other.direction.add_(0.3 * torch.randn(9))
        assert squares <= (other.latent(x) - belief).square().mean() * 1.001


def test_a_prototype_head_meets_the_class_means():
    """From the classifier's features and labels alone; classes without an anchor are left out."""
    torch.manual_seed(0)
    x, labels = torch.randn(300, 6), torch.arange(300) % 4
    head = ft.as_regressor(nn.Linear(6, 4), [1.0, None, 4.0, 5.0], "prototype", features=x, labels=labels)
    means = torch.stack([x[labels == k].mean(0) for k in (0, 2, 3)])
    torch.testing.assert_close(head.prototypes.float(), means)
    assert head(head.prototypes).tolist() == [1.0, 4.0, 5.0]
    with pytest.raises(FitError, match="labels=labels"):
        ft.as_regressor(nn.Linear(6, 4), [1.0, 2.0, 4.0, 5.0], "prototype", features=x)


def test_a_classifier_of_angles_becomes_a_circle():
    """Its belief in the first and the last class is between these, not in the middle of all."""
    classifier = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        classifier.weight.copy_(20 * torch.eye(4))
    head = ft.as_regressor(classifier, [0.0, 90.0, 180.0, 270.0], "circular", period=360.0)
    torch.testing.assert_close(head(torch.tensor([[1.0, 0.0, 0.0, 1.0]])), torch.tensor([315.0]), atol=1e-3, rtol=0)
    with pytest.raises(FitError, match=r"period=360\.0"):
        ft.as_regressor(classifier, [0.0, 90.0, 180.0, 270.0], "circular")


# ------------------------------------------------------------------------------------------------ untouched, trainable


MARKED = [
    direct,
    deep,
    skipped,
]


@every_kind
@pytest.mark.parametrize("make", MARKED)
def test_the_classifier_is_untouched(make, kind):
    """No weight, mode, gradient or `requires_grad` changes; what was frozen stays frozen."""
    model = make()
    before = state(model)
    ft.as_regressor(model, ANCHORS, kind, args=X)
    ft.as_regressor(ft.split(model, X), ANCHORS, kind)
    assert is_untouched(model, before)


@pytest.mark.parametrize("make", MARKED)
def test_training_the_regressor_leaves_the_classifier_alone(make):
    """Three steps: the head learns, the classifier's weights and gradients stay."""
    model = make()
    before = state(model)
    regressor = ft.as_regressor(model, ANCHORS, args=X)
    head, targets = regressor.heads["head"], torch.linspace(12, 28, 6)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    values = regressor.trunk(X)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = head.loss(values, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert is_untouched(model, before)


@pytest.mark.parametrize("make", MARKED)
def test_the_regressor_trains_nothing_of_the_trunk(make):
    """No frozen tensor of the model is a parameter that the head gives to an optimizer."""
    model = make()
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    head = ft.as_regressor(ft.split(model, X), ANCHORS)
    assert not frozen & {id(p) for p in head.parameters() if p.requires_grad}


def test_the_head_is_a_copy():
    """Of a layer: equal numbers, memory of its own."""
    layer = nn.Linear(4, 3)
    before = state(layer)
    head = ft.as_regressor(layer, ANCHORS)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    assert is_untouched(layer, before)


@pytest.mark.parametrize("make", MARKED[:2])
def test_a_regressor_can_be_saved_and_loaded(make, tmp_path):
    """A whole regressor goes through a file, into a fresh classifier."""
    regressor = ft.as_regressor(make(), ANCHORS, args=X)
    given = None if make is direct else copy.deepcopy(regressor.heads["head"])  # it holds the classifier's own layers
    fresh = make()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(3)
    assert torch.equal(ft.load(regressor.save(tmp_path / "model"), fresh, given)(X), regressor.eval()(X))


def test_a_deep_copy_of_a_regressor_head_is_its_own():
    """`fit` trains copies: the copy's training does not reach the original."""
    head = ft.as_regressor(ft.split(direct(), X), ANCHORS)
    again = copy.deepcopy(head)
    values = torch.rand(5, 8)
    expected = head(values)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
    assert torch.equal(head(values), expected)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        (lambda: ft.as_regressor(nn.Linear(4, 3), [1.0, 2.0]), AnchorError, "3"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), [1.0, 1.0, 2.0]), AnchorError, "distinct"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), [1.0, 3.0, 2.0]), AnchorError, "Cannot"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), [1.0, float("nan"), 2.0]), AnchorError, "Cannot"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), None), AnchorError, "None"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), [None, None, None]), AnchorError, "at least 2 classes"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), [None, 2.0, None]), AnchorError, "at least 2 classes"),
        (lambda: ft.as_regressor(deep(), "abc", args=X), AnchorError, "'abc'"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), ANCHORS, "spline"), FitError, "'pwl'"),
        (lambda: ft.as_regressor(nn.Linear(4, 3), ANCHORS, "mlp"), FitError, "features="),
        (lambda: ft.as_regressor(nn.Conv2d(1, 3, 1), ANCHORS), FitError, "Linear"),
        (lambda: ft.as_regressor(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), ANCHORS), FitError, "Softmax"),
        (lambda: ft.as_regressor(deep(), ANCHORS), SplitError, "args="),
        (lambda: ft.as_regressor(deep().requires_grad_(True), ANCHORS, args=X), NothingFrozenError, "freeze"),
        (lambda: ft.as_regressor(direct().append(nn.ReLU()).append(nn.Conv1d(1, 1, 1)), ANCHORS), SplitError, "args="),
    ],
)
def test_errors_say_what_to_do(run, error, says):
    """Unusable anchors, kinds and classifiers are refused by name."""
    with pytest.raises(error, match="Cannot") as caught:
        run()
    assert says in str(caught.value)


def test_a_model_without_a_trainable_linear_is_refused():
    """A convolution gives the logits: said, with the way out."""
    model = nn.Sequential(nn.Conv1d(1, 4, 1), nn.ReLU(), nn.Conv1d(4, 3, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    model[0].requires_grad_(False)
    with pytest.raises(SplitError, match=r"got Conv1d '2' \(4 to 3 channels, kernel 1\)") as caught:
        ft.as_regressor(model, ANCHORS, args=torch.randn(2, 1, 5))
    fix = str(caught.value).partition("it is a Linear: ")[2].replace("model.2", "model[2]")
    space = {"nn": nn, "model": model, "as_regressor": ft.as_regressor, "anchors": ANCHORS}
    exec(fix.replace("as_regressor(", "head = as_regressor("), space)
    features = torch.randn(6, 4)
    expected = believed(space["linear"], features, ANCHORS)
    torch.testing.assert_close(space["head"](features), expected)
    torch.testing.assert_close(space["linear"](features)[..., None], model[2](features[..., None]))
    with pytest.raises(FitError, match=r"got Conv2d 'a' \(8 to 3 channels, kernel 3x3\). Begin anew"):
        heads.as_regressor(nn.ModuleDict({"a": nn.Conv2d(8, 3, 3)}), ANCHORS)


@pytest.mark.parametrize("classifier", [3, None, torch.ones(3, 4), lambda x: x])
def test_what_is_no_classifier_is_refused(classifier):
    """A number, a tensor or a function in the classifier's place."""
    with pytest.raises(ForethoughtError):
        ft.as_regressor(classifier, ANCHORS)


class Several(nn.Module):
    """Two answers of five classes and one of three, from one trunk."""

    def __init__(self, wrap):
        super().__init__()
        self.trunk = nn.Linear(7, 8).requires_grad_(False)
        self.a, self.b, self.c = nn.Linear(8, 5), nn.Linear(8, 5), nn.Linear(8, 3)
        self.wrap = wrap

    def forward(self, x):
        h = self.trunk(x).relu()
        return self.wrap(self.c(h), self.b(h), self.a(h))


def test_one_of_several_answers_is_not_chosen_silently():
    """Two outputs of as many classes as there are anchors: both are named. One of them: it is meant, wherever it stands."""
    torch.manual_seed(0)
    x, anchors = torch.randn(4, 7), [10.0, 12.0, 13.0, 20.0, 40.0]
    both = Several(lambda c, b, a: {"small": c, "quality": b, "pitch": a})
    with pytest.raises(FitError, match=r"several: \['quality'\] \(layer 'body.b'\), \['pitch'\] \(layer 'body.a'\)"):
        ft.as_regressor(both, anchors, args=x)
    with pytest.raises(FitError, match="several"):
        ft.as_regressor(both, dict(enumerate(anchors)), args=x)
    for wrap in (lambda c, b, a: (c, a), lambda c, b, a: {"logits": a, "small": [c]}):
        model = Several(wrap)
        reg = ft.as_regressor(model, anchors, "histogram", args=x)
        torch.testing.assert_close(reg(x), believed(model.a, model.trunk(x).relu(), anchors))
    assert ft.as_regressor(both, anchors[:3], args=x)(x).shape == (4,)


def test_an_answer_for_each_place_is_refused():
    """Logits (B, T, K) are no answer for the sample."""
    model = nn.Sequential(nn.Linear(7, 8), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    with pytest.raises(FitError, match=r"got \(2, 4, 3\)"):
        ft.as_regressor(model, [1.0, 2.0, 3.0], args=torch.randn(2, 4, 7))


def test_a_layer_without_weights_is_refused():
    """A lazy layer has none before it runs."""
    with pytest.raises(FitError, match="Run it once before"):
        ft.as_regressor(nn.LazyLinear(3), [1.0, 2.0, 3.0])
    with pytest.raises(FitError, match="on the meta device"):
        ft.as_regressor(nn.Linear(4, 3, device="meta"), [1.0, 2.0, 3.0])
