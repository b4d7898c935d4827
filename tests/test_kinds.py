"""The laws of kinds of rows: whatever the head receives comes back to the last bit, or is refused by name."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
from forethought import nesting
from forethought.errors import DataError, SplitError

N = 20
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))


class Does(nn.Module):
    """A frozen layer, then what a test does with it on both sides of the frontier."""

    def __init__(self, frozen, head):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.frozen, self.head = frozen, head

    def forward(self, x):
        return self.head(self, self.frozen(self.layer(x).exp()))


def gained(m, v):
    return m.gain * v


def read(m, v):
    """Read numbers of a type that torch does not calculate with."""
    return m.last(v.float())


# What is frozen, what the head does, and the types of what crosses.
KINDS = {
    "float64": (lambda h: h.double(), gained, torch.float32),  # the head widens it itself: less is stored
    "float16": (lambda h: h.half(), gained, torch.float16),
    "bfloat16": (lambda h: h.bfloat16(), gained, torch.bfloat16),
    "float8": (lambda h: h.to(torch.float8_e4m3fn), read, torch.float8_e4m3fn),
    "float8, wide": (lambda h: h.to(torch.float8_e5m2), read, torch.float8_e5m2),
    "complex": (lambda h: torch.fft.fft(h), gained, torch.complex64),
    "conjugate": (lambda h: torch.fft.fft(h).conj(), gained, torch.complex64),
    "bool": (lambda h: h > 1, lambda m, v: torch.where(v, m.gain, -m.gain), torch.bool),
    "int64": (lambda h: h.argsort(1), gained, torch.int64),
    "int16": (lambda h: h.argsort(1).to(torch.int16), gained, torch.int16),
    "uint8": (lambda h: h.argsort(1).to(torch.uint8), gained, torch.uint8),
    "uint16": (lambda h: h.argsort(1).to(torch.uint16), read, torch.uint16),
    "a number a sample": (lambda h: h.sum(1), gained, torch.float32),
    "not a number, infinite": (lambda h: torch.where(h > 1, h / 0.0, (h - h) / 0.0), gained, torch.float32),
    "nothing in a row": (lambda h: h.cumsum(1)[:, :0].sin(), lambda m, v: m.gain * v.sum(1), torch.float32),
    "nested": (
        lambda h: {"a": [h.sin(), (h.cos(), None)], "b": 3},
        lambda m, v: {"z": (m.last(v["a"][0]), m.gain * v["a"][1][0]), "k": v["b"]},
        torch.float32,
    ),
}


@pytest.mark.parametrize("segment_rows", [None, 8], ids=["one segment", "several"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind_are_fed_as_they_were_live(kind, segment_rows, tmp_path):
    """What is fed is what the head was given live, to the last bit, in any order, in any process."""
    frozen, head, dtype = KINDS[kind]
    model = Does(frozen, head).eval()
    features = ft.extract(model, (X, torch.arange(N)), tmp_path, batch_size=4, segment_rows=segment_rows)
    assert {tensor.dtype for tensor in features.frontier} == {dtype}
    assert features.verify(N).exact_rows == N
    copy = pickle.loads(pickle.dumps(features))
    live = [one for at in range(0, N, 4) for one in _rows(_values(features.split.trunk(X[at : at + 4])))]
    for fed in (features, copy):
        for batch in (1, 3, 4, N):
            for values, numbers in fed.batches(batch, shuffle=True, seed=batch):
                for row, number in zip(_rows(_values(values)), numbers.tolist(), strict=True):
                    assert _bits(row) == _bits(live[number])
    for at, (values, _) in zip(range(0, N, 4), features.batches(4), strict=True):
        _demand_same(features.head(values), model(X[at : at + 4]))
    assert ft.extract(model, X.flip(0), tmp_path).report.rows_computed == 0


def _values(values):
    return values if isinstance(values, tuple) else (values,)


def _rows(values):
    return list(zip(*values, strict=True))


def _bits(row):
    return [(t.dtype, t.shape, t.resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist()) for t in row]


def _demand_same(a, b):
    pairs = zip(nesting.tensors(a), nesting.tensors(b), strict=True)
    assert all(torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in pairs)
    assert repr(nesting.outline(a)) == repr(nesting.outline(b))


@pytest.mark.parametrize("kind", ["complex", "int16", "uint16", "nested", "a number a sample"])
def test_numpy_gives_any_kind_that_it_has(kind, tmp_path):
    """numpy() has the bits that are fed."""
    frozen, head, _ = KINDS[kind]
    features = ft.extract(Does(frozen, head).eval(), X, tmp_path, batch_size=N)
    arrays = features.numpy()
    arrays = arrays if isinstance(arrays, tuple) else (arrays,)
    live = _values(features.split.trunk(X))
    assert [array.tobytes() for array in arrays] == [np.ascontiguousarray(t.numpy()).tobytes() for t in live]


@pytest.mark.parametrize("kind", ["bfloat16", "float8"])
def test_numpy_names_what_it_lacks(kind, tmp_path):
    """numpy() refuses a type that numpy has not, and says what to do."""
    features = ft.extract(Does(*KINDS[kind][:2]).eval(), X, tmp_path)
    with pytest.raises(DataError, match=f"numpy has no {kind}"):
        features.numpy()
    assert torch.cat([values.float() for values, _ in features.batches(7)]).shape == (N, 8)


def test_a_type_that_the_store_lacks_is_refused_by_name(tmp_path):
    """What safetensors cannot hold is refused before anything is stored."""
    model = Does(lambda h: torch.fft.fft(h.double()), gained).eval()
    with pytest.raises(SplitError, match=r"complex128.*view_as_real"):
        ft.extract(model, X, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "int8"])
@pytest.mark.parametrize("kind", ["complex", "bool", "float8", "int64"])
def test_only_floats_that_get_smaller_are_stored_smaller(kind, dtype, tmp_path):
    """`dtype=` leaves every other kind as it is, to the bit."""
    frozen, head, _ = KINDS[kind]
    model = Does(frozen, head).eval()
    features = ft.extract(model, X, tmp_path, batch_size=N, dtype=dtype)
    values = next(features.batches(N))[0]
    assert [_bits(row) for row in _rows(_values(values))] == [
        _bits(row) for row in _rows(_values(features.split.trunk(X)))
    ]
