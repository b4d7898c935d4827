"""What is known of tensors in a run: of the very tensor, and of the very memory, not of an address used again."""

import torch

from forethought.splitting.recording import Label
from forethought.splitting.tracker import Tracker


def test_an_address_that_is_used_again_is_not_mistaken():
    """Of a tensor that is gone nothing is known, whichever tensor is put where it was, and whatever memory it has."""
    tracker = Tracker([])
    met = set()
    for at in range(200):
        tensor = torch.zeros(3)
        met.add(id(tensor))
        assert tracker.read(tensor) == (Label.CONSTANT, None)
        tracker.note(tensor, Label.FROZEN, (at, 0))
        assert tracker.read(tensor) == (Label.FROZEN, (at, 0))
        del tensor
    assert len(met) < 200


def test_a_tensor_that_only_torch_holds_is_known_when_it_comes_back():
    """Python's object of a tensor may go while torch holds the tensor: what comes back is told by its memory."""
    tracker = Tracker([])
    leaf = torch.zeros(3, requires_grad=True)
    made = leaf * 2
    tracker.note(made, Label.FROZEN, (5, 0))
    result = made.exp()
    del made
    back = result.grad_fn._saved_result
    tracker.note(result, Label.FROZEN, (6, 0))
    assert tracker.read(back) == (Label.FROZEN, (6, 0))


def test_a_write_through_one_view_is_seen_through_every_other():
    """A memory into which something trainable was written is trainable, however it is looked at."""
    tracker = Tracker([])
    base = torch.zeros(4)
    tracker.note(base, Label.CONSTANT, None)
    view, other = base[:2], base[2:]
    tracker.note(view, Label.FROZEN, (0, 0))
    tracker.wrote(view, Label.FROZEN, (1, -1), 1)
    assert tracker.read(base)[0] is Label.FROZEN
    tracker.wrote(other, Label.TRAINABLE, (2, -1), 2)
    assert {tracker.read(each)[0] for each in (base, view, other)} == {Label.TRAINABLE}
