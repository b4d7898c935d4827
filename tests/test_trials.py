"""What a split costs in samples run, and when one sample may stand for two."""

from collections import defaultdict

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.splitting.variations import is_alike


class Counted(nn.Module):
    """Notes how many samples each of its runs was given; `mixes` lets every sample see the others."""

    def __init__(self, body, mixes=False, squeezes=False):
        super().__init__()
        self.body = body
        self.head = nn.Linear(8, 3)
        self.mixes = mixes
        self.squeezes = squeezes

    def forward(self, x):
        RUNS.append(len(x))
        if self.squeezes:
            x = x.squeeze(0) if len(x) == 1 else x
        h = self.body(x)
        if self.mixes:
            h = h - h.mean(0)
        return self.head(h.mean(-2))


RUNS = []


def _runs_of_a_split(model, batch):
    ft.freeze(model.eval(), until="body")
    x = torch.randn(batch, 5, 8)
    RUNS.clear()
    parts = ft.split(model, x)
    runs = list(RUNS)
    other = torch.randn(7, 5, 8)
    assert torch.equal(parts.head(parts.trunk(other)), model(other))
    return runs


def _attention():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@pytest.mark.parametrize("batch", [2, 3])
def test_few_samples_are_run(batch):
    """Three and two are recorded, and both halves run on the two: the frozen part sees seven samples."""
    assert _runs_of_a_split(Counted(nn.Linear(8, 8)), batch) == [3, 2, 2, 2]


def test_fast_attention_is_compared_on_one_sample():
    """Torch takes other kernels where nobody watches: the whole model runs once more, on as little as shows it."""
    assert _runs_of_a_split(Counted(_attention()), 2) == [3, 2, 1, 1, 1]


@pytest.mark.parametrize("given", [{"mixes": True}, {"squeezes": True}], ids=lambda g: next(iter(g)))
def test_one_sample_does_not_stand_for_two_where_the_model_makes_it_special(given):
    """What looks at the whole batch may be nothing for a batch of one."""
    assert _runs_of_a_split(Counted(_attention(), **given), 2)[-3:] == [2, 2, 2]


def test_two_equal_samples_are_varied():
    """One sample that was recorded already would show nothing: its entries are turned round, and two compared."""
    assert _runs_of_a_split(Counted(_attention()), 1)[-3:] == [2, 2, 2]


@pytest.mark.parametrize(
    ("alone", "expected"),
    [
        ([torch.tensor([[3.0, 4.0]])], True),
        ([torch.tensor([[3.0, 4.01]])], True),
        ([torch.tensor([[3.0, 4.2]])], False),
        ([torch.tensor([[1.0, 2.0]])], False),
        ([torch.tensor([3.0, 4.0])], False),
        ([torch.tensor([[3.0, float("nan")]])], False),
        ([torch.tensor([[3.0, 4.0]]), torch.tensor(1.0)], False),
        ([], False),
    ],
)
def test_a_sample_is_alike_if_it_gives_what_the_second_of_several_gave(alone, expected):
    """Up to the noise of other kernels; what has no rows says nothing."""
    company = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(1.0)][: max(len(alone), 1)]
    assert is_alike(alone, company) is expected


class Littering(nn.Module):
    """Leaves something on its own module in each run, which changes nothing that it gives."""

    def __init__(self, leave):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.leave = leave
        self.inside = {"a": [0]}
        self.counts = defaultdict(int)
        self.parts = nn.ModuleList([nn.Identity()])
        body = self.body
        self.shaped = lambda: body.weight.shape

    def forward(self, x):
        if self.leave is not None:
            self.leave(self)
        return self.head(self.body(x))


def _leave_inside(module):
    module.inside["a"].append(len(module.inside["a"]))


def _leave_a_count(module):
    module.counts["runs"] += 1


def _leave_an_attribute(module):
    module.left = True


def _leave_a_module(module):
    if len(module.parts) < 9:
        module.parts.append(nn.ReLU())


def _leave_a_hook(module):
    module.body.register_full_backward_hook(lambda *_: None)


def _leave_a_function_attribute(module):
    module.shaped.seen = True


@pytest.mark.parametrize(
    "leave",
    [
        None,
        _leave_inside,
        _leave_a_count,
        _leave_an_attribute,
        _leave_a_module,
        _leave_a_hook,
        _leave_a_function_attribute,
    ],
)
def test_what_trial_runs_leave_on_their_shell_is_not_on_that_of_a_half(leave):
    """Either half begins as the model is, however often the model was tried."""
    model = Littering(leave)
    model.body.requires_grad_(False)
    parts = ft.split(model, torch.randn(3, 4))
    for half in (parts.trunk, parts.head):
        body = half.body
        assert body.inside == {"a": [0]}
        assert body.counts == {}
        assert not hasattr(body, "left")
        assert len(body.parts) == 1
        assert not body.body._backward_hooks
        assert not vars(body.shaped)
        assert body is not model
        assert body.inside is not model.inside
    x = torch.randn(5, 4)
    assert torch.equal(parts.head(parts.trunk(x)), model(x))
