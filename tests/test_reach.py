"""Targets in the unit of the anchors: labels are not taken for values, and values out of reach are said."""

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import FitError
from forethought.heads import (
    AnchorSpline,
    CircularSpline,
    CornHead,
    CumulativeLink,
    HistogramHead,
    MLPHead,
    MultiHead,
    PartialMonotone,
)

ANCHORS = [60.0, 62.0, 67.0]
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3


def _made(**options):
    return {
        "spline": AnchorSpline(4, ANCHORS, **options),
        "corn": CornHead(4, ANCHORS),
        "link": CumulativeLink(4, ANCHORS),
        "histogram": HistogramHead(4, ANCHORS),
        "partial": PartialMonotone(4, ANCHORS, [1, 0, 0, 0]),
    }


def _fitted(heads, targets, **options):
    return ft.fit((X, targets), (X, targets), heads, epochs=1, progress=False, **options)


@pytest.mark.parametrize("name", _made())
@pytest.mark.parametrize("labels", [LABELS, LABELS.to(torch.uint8), LABELS > 0], ids=["int64", "uint8", "bool"])
def test_labels_are_not_taken_for_values(name, labels):
    """A head from 60 to 67 is not taught to answer 0, 1 and 2; the error says what to pass, and that works."""
    head = _made()[name]
    with pytest.raises(FitError, match=f"Cannot fit head '{name}'.*from 60 to 67.*head.values_of"):
        _fitted({name: head}, labels)
    assert _fitted({name: head}, head.values_of(LABELS)).notes == ()


def test_labels_behind_other_layers_and_in_columns_are_seen():
    """The last module of a Sequential, and each head of several, are asked for theirs."""
    with pytest.raises(FitError, match="as class labels are"):
        _fitted({"a": nn.Sequential(nn.Linear(4, 4), AnchorSpline(4, ANCHORS))}, LABELS)
    both = MultiHead({"a": AnchorSpline(4, ANCHORS), "b": AnchorSpline(4, [0.0, 1.0, 2.0])})
    with pytest.raises(FitError, match="as class labels are"):
        _fitted({"both": both}, torch.stack([LABELS, LABELS], 1))


@pytest.mark.parametrize("targets", [60 + LABELS, LABELS.float(), LABELS * 30, 60 + 7 * torch.rand(30)])
def test_values_are_values(targets):
    """Whole numbers elsewhere, floats, and numbers above the last class are targets as they come."""
    assert _fitted({"a": AnchorSpline(4, ANCHORS, extrapolate="linear")}, targets).notes == ()
    assert _fitted({"a": AnchorSpline(4, [0.0, 1.0, 2.0], extrapolate="linear")}, LABELS).notes == ()


def test_one_value_that_is_no_label_speaks_for_all_rows():
    """A few small whole numbers to validate on are no labels, where those to train on are none."""
    decades = {"a": AnchorSpline(4, [10.0 * k for k in range(8)])}
    ages = torch.arange(30) * 2
    assert ft.fit((X, ages), (X[:3], torch.tensor([1, 2, 3])), decades, epochs=1, progress=False).notes == ()


def test_targets_out_of_reach_are_counted_and_said():
    """In one line for all heads with the same anchors, in the notes and under the table; never of other heads."""
    targets = torch.linspace(55, 65, 30)
    free = {"line": nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), "mlp": MLPHead(4, ANCHORS)}
    free["circle"] = CircularSpline(4, ANCHORS, 24.0, start=50.0)
    free["on"] = AnchorSpline(4, ANCHORS, extrapolate="linear")
    assert _fitted(free, targets).notes == ()
    results = ft.fit((X, targets), (X[:5], targets[-5:]), free | _made(), epochs=1, progress=False)
    (note,) = results.notes
    assert note.startswith(
        "15 of 30 targets of train= are beyond 60 to 67, the anchors of 'spline', 'corn', 'link' and 2"
    )
    assert note in results.table()
    both = MultiHead({"a": AnchorSpline(4, ANCHORS), "b": AnchorSpline(4, [0.0, 99.0])})
    (note,) = _fitted({"both": both}, torch.stack([targets, targets], 1)).notes
    assert note.startswith("15 of 30 targets of train=, 15 of 30 targets of val= are beyond")
