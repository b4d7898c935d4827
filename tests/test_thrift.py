"""What crosses the frontier is minimal: no view, copy, square of a mask or enlarged picture is stored beside its source."""

import pytest
import torch
import torch.nn.functional as F
from odd_models import frozen
from torch import nn

import forethought as ft
from forethought.errors import SplitError


class Small(nn.Module):
    """A frozen convolution, and whatever a test does with what it gives."""

    def __init__(self, do):
        super().__init__()
        self.body = frozen(nn.Conv2d(3, 4, 3, padding=1))
        self.head, self.linear = nn.Conv2d(4, 2, 1), nn.Linear(4, 3)
        self.do = do
        self.up = nn.Upsample(scale_factor=4)

    def forward(self, x):
        return self.do(self, self.body(x))


def _square(m, h):
    keep = h.flatten(1)[:, :64] > 0
    return m.linear((keep[:, None, :] & keep[:, :, None]).float()[..., :4])


H = 4 * 8 * 8 * 4  # bytes of what the convolution gives
CASES = {
    "enlarged by a function": (lambda m, h: m.head(F.interpolate(h, scale_factor=4.0)), H),
    "enlarged by a module": (lambda m, h: m.head(m.up(h)), H),
    "two views": (lambda m, h: (m.linear(h.flatten(2).transpose(1, 2)), m.head(h)), H),
    "views only": (lambda m, h: (m.linear(h.flatten(2).mT), m.head(h[:, :, :2]), m.head(h.transpose(2, 3))), H),
    "copies": (lambda m, h: m.head(h.clone()) + m.head(h) + m.head(h.detach()), H),
    "repeated": (lambda m, h: m.linear(torch.cat([h, h], 2).flatten(2).mT), H),
    "expanded": (lambda m, h: m.head(h.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8)), 4 * 4),
    "one-hot": (lambda m, h: m.linear(F.one_hot(h.flatten(1).argmax(1) % 4, 4).float()), 8),
    "a constant beside": (lambda m, h: m.head(h) + m.linear(torch.arange(4.0)).sum(), H),
    "the square of a mask": (_square, 64),
    "written in place": (lambda m, h: m.head(h.transpose(2, 3).relu_()), H),
    "a view written by what trains": (lambda m, h: m.head(h.clone().mul_(m.linear.weight.mean())), H),
    "a later view after a write": (lambda m, h: (m.head(h), m.head(h.clone().add_(1)[:, :, :3])), H + 4 * 3 * 8 * 4),
    "given back": (lambda m, h: (m.head(h), h.mT), H),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fewest_bytes_are_stored(name):
    do, size_bytes = CASES[name]
    model, x = Small(do), torch.randn(5, 3, 8, 8)
    parts = ft.split(model, torch.randn(3, 3, 8, 8))
    stored = parts.trunk(x)
    before = [value.clone() for value in ((stored,) if isinstance(stored, torch.Tensor) else stored)]
    wanted, got = model(x), parts.head(stored)
    wanted, got = ((given,) if isinstance(given, torch.Tensor) else given for given in (wanted, got))
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert parts.size_bytes <= size_bytes
    after = (stored,) if isinstance(stored, torch.Tensor) else stored
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the head wrote into what is stored"


def test_the_inputs_alone_are_never_stored():
    """A cast or an enlarged input is cheap, but then nothing would be left to think once about."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = frozen(nn.Embedding(9, 4)), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.body(ids))

    parts = ft.split(Model(), torch.randint(9, (3, 5)))
    assert [tensor.shape for tensor in parts.frontier] == [(5, 4)]


def test_a_frozen_block_is_opened_only_for_much_less():
    class Body(nn.Sequential):
        def forward(self, x):
            return F.interpolate(super().forward(x), scale_factor=8, mode="bilinear")

    model = nn.Sequential(frozen(Body(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))), nn.Conv2d(4, 2, 1))
    parts, x = ft.split(model, torch.randn(3, 3, 8, 8)), torch.randn(4, 3, 8, 8)
    assert parts.size_bytes == 4 * 4 * 4 * 4
    assert torch.equal(parts.head(parts.trunk(x)), model(x))
    flat = nn.Sequential(frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())), nn.Linear(144, 2))
    assert [tensor.name for tensor in ft.split(flat, torch.randn(2, 3, 8, 8)).frontier] == ["0"]


# Cuts that are asked for ----------------------------------------------------------------------------------------------


def _chain():
    return nn.Sequential(
        frozen(nn.Conv2d(3, 8, 3)), nn.ReLU(), frozen(nn.Conv2d(8, 2, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    )


@pytest.mark.parametrize(
    ("at", "name"), [("0", "0"), (["2", "0"], "0"), (("1",), "1"), (2 * 16 * 4, "4"), (8 * 36 * 4, "4"), (None, "4")]
)
def test_a_cut_by_name_names_or_bytes(at, name):
    model, x = _chain(), torch.randn(4, 3, 8, 8)
    parts = ft.split(model, torch.randn(2, 3, 8, 8), at=at)
    assert [tensor.name for tensor in parts.frontier] == [name]
    assert torch.equal(parts.head(parts.trunk(x)), model(x))


def test_too_few_bytes_are_refused_with_what_would_do():
    with pytest.raises(SplitError, match=r"at=128"):
        ft.split(_chain(), torch.randn(2, 3, 8, 8), at=100)


def test_features_cut_within_bytes_are_found_again(tmp_path):
    model, x = _chain(), torch.randn(6, 3, 8, 8)
    first = ft.extract(model, x, tmp_path, at=128, progress=False)
    again = ft.extract(model, x, tmp_path, at=128, progress=False)
    assert (first.report.rows_computed, again.report.rows_computed) == (6, 0)
    assert first.numpy().shape == (6, 32)
