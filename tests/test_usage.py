"""`split` on models as users write them: the laws of replay, in evaluation and in training mode."""

import odd_models
import pytest
import torch
from odd_models import Base
from odd_usage import USAGE
from torch import nn

import forethought as ft
from forethought.errors import ReplayDriftError


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of what is used here a prototype
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in USAGE])
def test_laws_of_the_split(case):
    """The halves give what the model gives, to the bit, with its gradients, and leave no trace."""
    odd_models.check(case, ft.split)


def test_a_head_that_begins_to_write_into_features_says_so():
    """What the recorded runs never wrote into is handed over as it is; another run that does must not be silent."""

    class Model(Base):
        careless = False

        def forward(self, x):
            h = self.body(x)
            return self.head(h.relu_() * 1 if self.careless and x.shape[0] > 4 else h)

    model = Model()
    model.careless = True
    parts, x = ft.split(model, torch.randn(3, 6)), torch.randn(7, 6)
    with pytest.raises(ReplayDriftError, match="written in place"):
        parts.head(parts.trunk(x))


def test_features_keep_their_flags():
    """A forward that asks for gradients of what crosses does not set that on the stored tensors."""

    class Model(Base):
        def forward(self, x):
            return self.head(self.body(x).requires_grad_())

    parts = ft.split(Model(), torch.randn(3, 6))
    values = parts.trunk(torch.randn(5, 6))
    parts.head(values).sum().backward()
    assert not values.requires_grad
    assert values.grad is None


def test_gradients_reach_features_that_ask_for_them():
    model = nn.Sequential(odd_models.frozen(nn.Linear(6, 8)), nn.Linear(8, 3))
    parts = ft.split(model, torch.randn(3, 6))
    values = parts.trunk(torch.randn(5, 6)).requires_grad_()
    parts.head(values).sum().backward()
    assert torch.allclose(values.grad, model[1].weight.sum(0).expand(5, 8))
