"""The laws of estimated rounding: as large as another order of adding up makes it, and nothing else is touched."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from forethought.probing import purity
from forethought.probing.rounding import Rounding


def err(run, seed=0):
    """How far a run moves, in units in the last place of a usual value."""
    before = run()
    with Rounding(seed):
        after = run()
    usual = before.double().square().mean().sqrt()
    return float((before.double() - after.double()).abs().max() / usual / torch.finfo(before.dtype).eps)


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [16, 256, 4096])
def test_the_error_of_a_sum_of_products_grows_with_the_root_of_its_length(length, dtype):
    x, weight = draw(8, length, dtype=dtype), draw(32, length, dtype=dtype)
    assert 0.4 * length**0.5 < err(lambda: F.linear(x, weight)) <= 0.6 * length**0.5 + 1


@pytest.mark.parametrize("length", [256, 4096])
def test_another_order_of_adding_up_moves_no_further(length):
    """What is allowed for is more than what really happens, in the worst order that a kernel takes: one after another."""
    x, weight = draw(4, length), draw(32, length)
    in_turn = torch.zeros(4, 32)
    for at in range(length):
        in_turn += x[:, at : at + 1] * weight[:, at]
    exact = (x.double() @ weight.double().T).float()
    usual = exact.double().square().mean().sqrt()
    real = float((in_turn.double() - exact.double()).abs().max() / usual / torch.finfo(torch.float32).eps)
    assert real < purity._TIMES * err(lambda: F.linear(x, weight))


NOT_ADDED_UP = {
    "relu": torch.relu,
    "a copy": torch.clone,
    "a view": lambda x: x.view(-1)[3:],
    "written in place": lambda x: x.clone().mul_(2),
    "joined": lambda x: torch.cat([x, x]),
    "whole numbers": lambda x: (x * 10).long() @ (x.T * 10).long(),
    "chosen": lambda x: x[x > 0],
}


@pytest.mark.parametrize("name", NOT_ADDED_UP)
def test_what_is_not_added_up_is_as_it_was(name):
    x = draw(8, 8)
    with Rounding(0):
        after = NOT_ADDED_UP[name](x)
    assert torch.equal(after, NOT_ADDED_UP[name](x))


ADDED_UP = {
    "convolution": nn.Conv2d(3, 4, 3),
    "transposed convolution": nn.ConvTranspose2d(3, 4, 3),
    "grouped convolution": nn.Conv2d(3, 6, 3, groups=3),
    "batch norm": nn.BatchNorm2d(3).eval(),
    "layer norm": nn.LayerNorm(16),
    "group norm": nn.GroupNorm(1, 3),
    "mean": lambda x: x.mean((2, 3)),
    "pooling": nn.AdaptiveAvgPool2d(2),
    "softmax": nn.Softmax(-1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "recurrent": lambda x: RECURRENT(x[:, 0])[0],
    "spectrum": lambda x: torch.fft.rfft(x).abs(),
    "norm": lambda x: x.norm(dim=-1),
    "product": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("bchw,bcwk->bchk", x, x),
}
torch.manual_seed(0)
RECURRENT = nn.LSTM(16, 8, batch_first=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADDED_UP)
def test_every_kernel_that_adds_up_errs(name, dtype):
    run = ADDED_UP[name]
    run = run.to(dtype) if isinstance(run, nn.Module) else run
    RECURRENT.to(dtype)
    if name == "spectrum" and dtype is torch.bfloat16:
        pytest.skip("torch has no spectrum of bfloat16")
    with torch.no_grad():
        assert 0 < err(lambda: run(draw(4, 3, 16, 16, dtype=dtype))) < 64


def test_errors_are_their_seeds_and_nobodys_generator_is_used():
    x = draw(8, 64)
    chance = torch.get_rng_state()
    given = []
    for seed in (0, 0, 1):
        with Rounding(seed):
            given.append(x @ x.T)
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])
    assert torch.equal(chance, torch.get_rng_state())


def test_infinite_and_missing_numbers_stay():
    x = draw(8, 64)
    x[0, 0], x[1, 0] = float("inf"), float("nan")
    with Rounding(0):
        after = x.sum(1)
    assert after[0].isinf()
    assert after[1].isnan()
    assert after[2:].isfinite().all()
