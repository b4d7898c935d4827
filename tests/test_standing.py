"""What the store is told of a model as it stands: once, where nothing of it has changed."""

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.store import Store

DATA = torch.randn(12, 4)


@pytest.mark.parametrize("is_split", [False, True])
def test_no_note_is_written_twice(monkeypatch, tmp_path, is_split):
    """What was told of a model before its rows were computed is not told again after, if it is the same."""
    written = []
    write_note = Store.write_note
    monkeypatch.setattr(
        Store, "write_note", lambda self, *given: written.append(repr(given)) or write_note(self, *given)
    )
    model = ft.freeze(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval(), until="1")
    ft.extract(ft.split(model, DATA[:2]) if is_split else model, DATA, tmp_path)
    assert written
    assert len(set(written)) == len(written)
    assert ft.extract(model, DATA, tmp_path).report.rows_computed == 0
