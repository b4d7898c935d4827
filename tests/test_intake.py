"""What a person hands in first, before reading: taken as it is meant, or refused with what to hand in instead."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import forethought as ft
from forethought import heads
from forethought.errors import DataError, DeviceError, FitError, InputError

ROWS = 40
DRAW = torch.Generator().manual_seed(0)
X, Z, LABELS = torch.randn(ROWS, 6, generator=DRAW), torch.randn(ROWS, 2, generator=DRAW), torch.arange(ROWS) % 3


class Two(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(8, 5).requires_grad_(False), nn.Linear(5, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Join and classify."""
        return self.out(torch.tanh(self.body(torch.cat([x, z], 1))))


def one() -> nn.Sequential:
    """Give a classifier with a frozen layer."""
    return nn.Sequential(nn.Linear(6, 5).requires_grad_(False), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize(
    "data",
    [
        ((X, Z), LABELS),
        ([X, Z], LABELS),
        ({"x": X, "z": Z}, LABELS),
        ({"z": Z, "x": X}, LABELS),
        ((X.numpy(), Z.numpy()), LABELS.numpy()),
        ((X, Z), LABELS, LABELS.tolist()),
    ],
)
def test_inputs_within_a_tuple_are_columns(data: tuple[object, ...], tmp_path: Path) -> None:
    """Several inputs in one first element are the model's inputs, with the rows and targets of a flat data set."""
    torch.manual_seed(0)
    model = Two()
    flat = ft.extract(model, {"x": X, "z": Z, "label": LABELS}, tmp_path)
    nested = ft.extract(model, data, tmp_path)
    assert nested.report.rows_computed == 0
    assert len(nested) == ROWS
    assert np.array_equal(flat.numpy(), nested.numpy())
    first = nested.targets[0] if isinstance(nested.targets, tuple) else nested.targets
    assert torch.equal(first, LABELS)


@pytest.mark.parametrize(
    "data",
    [
        (list(X), LABELS),  # samples beside a column
        ((X, Z[:-1]), LABELS),
        ({"x": X, "y": Z}, LABELS),  # no such input: which of forward's this is would be a guess
        ([X, LABELS]),
    ],
)
def test_what_is_no_data_set_is_not_taken_for_two_samples(data: object, tmp_path: Path) -> None:
    """Columns that do not fit are refused with how to pass them, never read as samples."""
    with pytest.raises(DataError, match=r"targets\)|list\(zip|one length"):
        ft.extract(Two(), data, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_two_samples_stay_two_samples(tmp_path: Path) -> None:
    """A tuple or list of samples is one, however few there are."""
    model = one()
    for data in (tuple(zip(X[:2], LABELS[:2], strict=True)), list(zip(X[:2], LABELS[:2], strict=True)), list(X[:2])):
        assert len(ft.extract(model, data, tmp_path)) == 2


def test_lists_of_unequal_length_name_their_key(tmp_path: Path) -> None:
    """Tokenised texts without a collate function are refused by key and lengths, with the collator to pass."""
    texts = [{"input": list(range(n)), "label": 0} for n in (3, 5, 4, 6)]
    with pytest.raises(DataError, match=r"'input' of 3 to 6.*collate_fn="):
        ft.extract(one(), texts, tmp_path)
    with pytest.raises(DataError, match=r"collate_fn="):
        ft.extract(one(), [(text["input"], 0) for text in texts], tmp_path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (X.double(), r"float64 \(\d, 6\), in Linear\(in_features=6.*tensor.to\(torch.float32\)"),
        (X.double().numpy(), r"array.astype.'float32'"),
        ((X * 9).long(), r"tensor.to.torch.float32"),
        (X[:, :5], r"Linear.in_features=6.*cannot be multiplied"),
    ],
)
def test_what_the_model_does_not_take_is_said_with_the_module(data: object, says: str, tmp_path: Path) -> None:
    """Inputs that the model's own forward does not take name its module, their type and shape, and the fix."""
    with pytest.raises(InputError, match=says) as caught:
        ft.extract(one(), (data, LABELS), tmp_path)
    assert isinstance(caught.value, RuntimeError)
    assert type(caught.value.__cause__) is RuntimeError


def test_an_error_of_the_users_own_passes_as_it_is() -> None:
    """What a forward raises on purpose, of any other class, is not put into our words."""

    class Mine(RuntimeError):
        pass

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise Mine("not today")

    with pytest.raises(Mine, match=r"not today"):
        ft.split(Picky(), X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A missing device is refused by name, by extract, feed and fit alike, and the model stays where it was."""
    model = one()
    with pytest.raises(DeviceError, match=r"'cuda'.*device='cpu'"):
        ft.extract(model, (X, LABELS), tmp_path, device="cuda")
    assert next(model.parameters()).device.type == "cpu"
    train = ft.extract(model, (X, LABELS), tmp_path)
    for asks in (
        lambda: next(iter(train.batches(8, device="cuda"))),
        lambda: ft.fit(train, train, {"a": "linear"}, device="cuda"),
        lambda: ft.fit(train, train, {"a": "linear"}, device="gpu"),
    ):
        with pytest.raises(DeviceError):
            asks()


@pytest.mark.parametrize("kind", ["mlp", "cumulative", "corn", "prototype", "calibrator", "pwl"])
def test_features_serve_what_is_fitted_on_rows(kind: str, tmp_path: Path) -> None:
    """A head made from features is the one made with their rows and labels passed by hand."""
    torch.manual_seed(0)
    model = one()
    labels = model(X).argmax(-1)  # scores rise with the class, as a calibrator needs
    train = ft.extract(model, (X, labels), tmp_path)
    anchors = [0.0, 1.0, 5.0]
    by_hand = {} if kind == "pwl" else {"features": torch.tensor(train.numpy())}
    by_hand |= {"labels": labels} if kind in ("prototype", "calibrator") else {}
    torch.manual_seed(1)
    mine = ft.as_regressor(train.split, anchors, kind, **by_hand)
    torch.manual_seed(1)
    head = ft.as_regressor(train, anchors, kind)
    rows = torch.tensor(train.numpy())
    assert torch.equal(head(rows), mine(rows))
    again = ft.as_regressor(train, anchors, kind, **({"features": train} | by_hand if kind != "pwl" else {}))
    assert again(rows).shape == (ROWS,)


def test_what_measures_heads_takes_features(tmp_path: Path) -> None:
    """Intervals, class means and prototypes are the same from features as from their tensor."""
    torch.manual_seed(0)
    train = ft.extract(one(), (X, LABELS), tmp_path)
    head, rows = ft.as_regressor(train, [0.0, 1.0, 5.0]), torch.tensor(train.numpy())
    values = head.values_of(LABELS)
    intervals = heads.conformalize(head, train, values)
    assert torch.equal(intervals.radius, heads.conformalize(head, rows, values).radius)
    assert intervals.coverage(train, values) == intervals.coverage(rows, values)
    assert heads.class_means(head, train, LABELS) == heads.class_means(head, rows, LABELS)
    assert torch.equal(heads.class_prototypes(train, LABELS, 3), heads.class_prototypes(rows, LABELS, 3))


def test_features_train_on_other_targets(tmp_path: Path) -> None:
    """(features, targets) trains as the tensors do, to the last bit; arrays do, too; the features keep their own."""
    torch.manual_seed(0)
    train = ft.extract(one(), (X, LABELS), tmp_path)
    head, rows = ft.as_regressor(train, [0.0, 1.0, 5.0]), torch.tensor(train.numpy())
    with pytest.raises(FitError, match=r"ft.fit\(\(train, head.values_of\(train.targets\)\)"):
        ft.fit(train, train, {"head": head}, epochs=1)
    values = head.values_of(train.targets)
    results = [
        ft.fit(side, side, {"head": head}, epochs=3, batch_size=ROWS)
        for side in ((train, values), (rows, values), (rows.numpy(), values.numpy()))
    ]
    assert len({each.best.score for each in results}) == 1
    assert torch.equal(train.targets, LABELS)
    for wrong in (values[:-1], values.sum(), None):
        with pytest.raises(FitError, match=r"a target for each of the 40 rows"):
            ft.fit((train, wrong), (train, values), {"head": head}, epochs=1)


def test_text_for_targets_says_how_to_number_it(tmp_path: Path) -> None:
    """Targets that are text are refused with the lines that number them."""
    train = ft.extract(one(), (X, ["cat", "dog"] * (ROWS // 2)), tmp_path)
    with pytest.raises(FitError, match=r"text such as 'cat'.*names.index"):
        ft.fit(train, train, {"a": "linear"}, epochs=1)


def test_only_heads_are_exported(tmp_path: Path) -> None:
    """Anything else is refused with where its head is."""
    train = ft.extract(one(), (X, LABELS), tmp_path)
    full = ft.assemble(train.split, ft.as_regressor(train, [0.0, 1.0, 5.0]))
    with pytest.raises(FitError, match=r"Assembled.*heads.export"):
        heads.export(full, tmp_path / "full.onnx")  # type: ignore[arg-type]


def test_a_kind_of_head_that_needs_one_tensor_names_those_that_cross(tmp_path):
    """Whoever gets several learns which, and what to pass."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(torch.cat([self.left(x).relu() * self.head.bias, self.right(x)], 1))

    model = ft.freeze(Two(), all_but="head")
    features = ft.extract(model, (torch.randn(8, 4), torch.randn(8)), tmp_path, progress=False)
    with pytest.raises(FitError, match=r"got 2: \(3,\) float32, \(5,\) float32\. Pass a module"):
        ft.fit(features, features, {"a": "linear"}, progress=False)
