"""Sizes that Python is told: of tensors that the head does not compute, but whose size decides what it computes."""

import odd_models
import pytest
import torch
import torch.nn.functional as F
from odd_models import Base, rows
from torch import nn

import forethought as ft
from forethought.errors import ShapeError, SplitError
from forethought.splitting.sizes import _BY_VALUES

MODELS = {}


def _sized(size, inner=False):
    """Enter a model whose head divides by a size: `size(h, x)`, computed by the forward or by a module of its own."""

    class Inner(nn.Module):
        def forward(self, h, x):
            return size(h, x)

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            h = self.body(x)
            seen = self.inner(h, x) if inner else size(h, x)
            return self.head(h) / (1 + (seen if isinstance(seen, int) else seen.numel()))

    return Model


def _positive(x):
    return int((x[0] > 0).sum())


BY_VALUES = {
    "nonzero": lambda h, x: (x[:, 0] > 0).nonzero(),
    "argwhere": lambda h, x: torch.argwhere(x > 0),
    "where": lambda h, x: torch.where(x > 0)[0],
    "mask": lambda h, x: h[x[:, 0] > 0],
    "masked_select": lambda h, x: x.masked_select(x > 0),
    "repeat_interleave": lambda h, x: h.repeat_interleave((x[:, 0] > 0).long() + 1, 0),
    "bincount": lambda h, x: torch.bincount((x[:, 0].abs() * 4).long()),
    "one_hot": lambda h, x: F.one_hot((x[:, 0].abs() * 4).long()),
    "unique": lambda h, x: x[:, 0].sign().unique(),
    "sparse": lambda h, x: x.relu().to_sparse().coalesce().values(),
    "slice by a number": lambda h, x: h[:, : _positive(x)],
    "slice by a tensor": lambda h, x: h[:, : (x[0] > 0).sum()],
    "slice by numpy": lambda h, x: x[:, : int((x[0].numpy() > 0).sum())],
    "zeros by a list": lambda h, x: x.new_zeros(1 + sum((x[0] > 0).tolist()), 2) + x[0, 0],
    "pieces by a number": lambda h, x: h.split([_positive(x), 8 - _positive(x)], 1)[0],
    "shape lent": lambda h, x: torch.ones_like(h[x[:, 0] > 0]),
    "a loop over rows": lambda h, x: sum(1 for _ in (x[:, 0] > 0).nonzero()),
    "added into": lambda h, x: h.index_add(0, torch.arange(len(h)), h)[x[:, 0] > 0],
    "followed": lambda h, x: (h[x[:, 0] > 0] * 2).relu().sum(1),
}
BY_THE_BATCH = {
    "first five": lambda h, x: h[:5],
    "five at most": lambda h, x: h[: min(5, len(h))],
    "all but five": lambda h, x: h[5:],
    "padded to eight": lambda h, x: F.pad(h, (0, 0, 0, -len(h) % 8)),
    "pieces of five": lambda h, x: len(h.split(5)),
    "pairs": lambda h, x: (h[:, None] * h[None]).flatten(0, 1),
    "triangle": lambda h, x: h[torch.triu_indices(len(h), len(h), 1)[0]],
}
INNER = [name for name in BY_VALUES | BY_THE_BATCH if name not in {"a loop over rows", "pieces of five"}]


def _check(size, seed, inner=False):
    torch.manual_seed(seed)
    model = _sized(size, inner)()
    feeds = [rows(batch) for batch in (3, 3, 5, 9)]
    parts = ft.split(model, *feeds[0])
    for args, kwargs in feeds[1:]:
        odd_models._same(model, parts, (args, kwargs), f"batch {len(args[0])}, seed {seed}")


@pytest.mark.parametrize("name", BY_VALUES | BY_THE_BATCH)
def test_sizes_are_the_models_own(name):
    """The head is told the size that the model is told, whatever the recorded runs had in common by accident."""
    for seed in range(4):
        _check((BY_VALUES | BY_THE_BATCH)[name], seed)


@pytest.mark.parametrize("name", INNER)
def test_sizes_made_inside_a_frozen_module_are_the_models_own(name):
    for seed in range(4):
        _check((BY_VALUES | BY_THE_BATCH)[name], seed, inner=True)


def test_as_many_tensors_as_a_number_says_are_right_or_refused():
    for seed in range(8):
        for inner in (False, True):
            try:
                _check(lambda h, x: torch.cat([h] * (1 + _positive(x))), seed, inner)
            except SplitError:
                continue


def test_what_grows_with_the_batch_up_to_a_limit_is_no_row():
    """Rows stored of small batches would be too many for the head of a large one."""

    class Model(Base):
        def forward(self, x):
            return self.head(self.body(x)[:5])

    parts = ft.split(Model(), torch.randn(3, 6))
    values = torch.cat([parts.trunk(torch.randn(4, 6)) for _ in range(3)])
    with pytest.raises(ShapeError):
        parts.head(values)
    assert [tensor.row_axis for tensor in parts.frontier] == [None]


@pytest.mark.parametrize("cut", [lambda f: f.chunk(2), lambda f: (f[: len(f) // 2], f[len(f) // 2 :])])
def test_two_pictures_of_a_sample_run_as_one_batch_still_give_rows(cut):
    class Model(Base):
        def forward(self, x, y):
            a, b = cut(self.body(torch.cat([x, y])))
            return self.head(a).view(a.shape[0], -1) + self.head(b)

    model = Model()
    parts = ft.split(model, (torch.randn(3, 6), torch.randn(3, 6)))
    assert all(tensor.row_axis == 0 for tensor in parts.frontier)
    x, y = torch.randn(9, 6), torch.randn(9, 6)
    assert torch.equal(parts.head(parts.trunk(x, y)), model(x, y))


def test_every_operator_whose_size_values_decide_is_known():
    """Torch marks its operators: none of them is missing here."""
    tag = torch.Tag.dynamic_output_shape
    names = set()
    for name in {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}:
        packet, _, overload = name.removeprefix("aten::").partition(".")
        if tag in getattr(getattr(torch.ops.aten, packet), overload or "default").tags:
            names.add(packet)
    names.discard("_ctc_loss")  # what it gives to its caller has the size of the batch
    judged_by_arguments = {"index", "one_hot", "repeat_interleave"}
    assert {name.strip("_").removesuffix("2") for name in names} <= _BY_VALUES | judged_by_arguments
