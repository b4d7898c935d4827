"""A model as it stands is hashed once an extraction, unless the extraction's own runs leave something on it."""

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.extracting import standing
from forethought.extracting.standing import _Marks
from forethought.store import Store

DATA = torch.randn(12, 4)


def _model():
    return ft.freeze(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval(), until="1")


CHANGES = {
    "a number": lambda m: vars(m[0]).update(seen=1),
    "a weight": lambda m: m[0].weight.detach().mul_(2),
    "another weight": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach().clone())),
    "other numbers": lambda m: setattr(m[0].weight, "data", torch.zeros(8, 4)),
    "a counter": lambda m: m[1].num_batches_tracked.add_(1),
    "a buffer": lambda m: m[1].register_buffer("more", torch.zeros(1)),
    "a hook": lambda m: m[2].register_forward_hook(lambda *_: None),
    "a mode": lambda m: m[1].train(),
    "a module": lambda m: m.append(nn.ReLU()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_run_may_leave_is_seen(name):
    """Attributes, modules, hooks, tensors and the numbers in them: each change of one is one."""
    model = ft.thaw(_model())
    marks = _Marks(model)
    assert not marks.is_changed()
    CHANGES[name](model)
    assert marks.is_changed()


def test_what_does_not_count_its_writes_is_always_taken_as_changed():
    """A tensor of inference mode cannot say that nobody wrote into it."""
    model = nn.Linear(2, 2)
    with torch.inference_mode():
        model.register_buffer("scale", torch.ones(1))
    assert _Marks(model).is_changed()


@pytest.mark.parametrize("is_split", [False, True])
def test_a_model_is_hashed_once_an_extraction_and_no_note_is_written_twice(monkeypatch, tmp_path, is_split):
    """Nothing is left on it, so what was known before the rows were computed is known after, too."""
    hashed, written = [], []
    state_of, write_note = standing.state_of, Store.write_note
    monkeypatch.setattr(standing, "state_of", lambda *given: hashed.append(1) or state_of(*given))
    monkeypatch.setattr(
        Store, "write_note", lambda self, *given: written.append(repr(given)) or write_note(self, *given)
    )
    model = _model()
    ft.extract(ft.split(model, DATA[:2]) if is_split else model, DATA, tmp_path)
    assert len(hashed) == 1
    assert len(set(written)) == len(written)
    assert ft.extract(model, DATA, tmp_path).report.rows_computed == 0
