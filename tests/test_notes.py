"""Plain objects that modules share: found where a forward may leave values, and nothing of torch's own among them."""

from collections import OrderedDict

import pytest
from torch import nn

import forethought as ft
from forethought.splitting.notes import Noted, notes_of


class Note:
    def __init__(self):
        self.seen = 0


class Names(OrderedDict):
    """Has attributes of its own."""


@pytest.mark.parametrize("hold", [lambda n: n, lambda n: [n], lambda n: (n, 1), lambda n: {"a": n}])
def test_notes_are_found_where_a_module_holds_them(hold):
    """An object among a module's attributes, or in a list, tuple or dictionary there, is watched and put back."""
    module, note = nn.Linear(2, 2), Note()
    module.held = hold(note)
    assert notes_of([module]) == [note]
    noted = Noted([note])
    note.seen = 1
    assert noted.is_changed()
    noted.put_back()
    assert note.seen == 0


def test_what_torch_keeps_on_every_module_is_no_note():
    """Each call compares all notes, so dictionaries of hooks, a dozen a module, would cost calls times modules."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU()) for _ in range(20)])
    model[0].register_forward_hook(lambda *_: None)
    model[1].names = OrderedDict(a=1)
    assert notes_of(model.modules()) == []
    model[1].names = Names()
    assert len(notes_of(model.modules())) == 1


def test_what_freeze_leaves_on_modules_is_no_note():
    """It is on every frozen module, and no forward writes to it."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.Dropout()) for _ in range(20)])
    ft.freeze(model, until="18")
    assert notes_of(model.modules()) == []
