"""Live against stored: right rows are right to the bit or within the model's own noise, wrong ones are named."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import forethought as ft
from forethought.errors import DataError, ImpureTrunkError, StoreError
from forethought.extracting.verification import spread
from forethought.housekeeping import verify_live
from forethought.store import Store

N = 103


def make_model(width=32):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 3))
    ft.freeze(model, until="2")
    return model


def make_inputs(n=N):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(2))


class Items(Dataset):
    """A map-style data set that can be changed."""

    def __init__(self, n=N):
        self.inputs = make_inputs(n)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], index


class Stream(IterableDataset):
    """The same, one after the other."""

    def __iter__(self):
        return iter(zip(make_inputs(), range(N), strict=True))


class Sentences(IterableDataset):
    """Samples of several lengths."""

    def __iter__(self):
        return (torch.arange(1 + index * 7 % 5) + index for index in range(40))


def pad(samples):
    return nn.utils.rnn.pad_sequence(samples, batch_first=True)


class Reader(nn.Module):
    """Adds words up: those of the padding, too, unless they are nothing."""

    def __init__(self, padding=0):
        super().__init__()
        torch.manual_seed(3)
        self.words = nn.Embedding(64, 8, padding_idx=padding).requires_grad_(False)
        self.head = nn.Linear(8, 2)

    def forward(self, words):
        return self.head(self.words(words).sum(1))


# ------------------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("batch_size", [1, 7, 32, 64, N])
@pytest.mark.parametrize("data", [lambda: (make_inputs(), torch.arange(N)), Items, Stream])
def test_verify_all_rows_in_their_own_batches_is_exact(tmp_path, batch_size, data):
    """The batches in which rows were computed give them again to the last bit, whatever the kind of data set."""
    features = ft.extract(make_model(), data(), tmp_path, batch_size=batch_size)
    found = features.verify(10**6)
    assert (found.rows, found.exact_rows, found.difference, found.is_right, found.worst) == (N, N, 0.0, True, None)
    assert str(found) == f"right: {N} of {N} rows equal the model's to the last bit"


@pytest.mark.parametrize("n", [1, 2, 5, 15, 16, 17, 64, N])
def test_verify_some_rows_is_right_within_noise(tmp_path, n):
    """A row of another batch lies within the bound that extraction has, on a complete hit too."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32 * 64, 300))
    model.append(nn.Linear(300, 2))
    ft.freeze(model, until="4")
    images = torch.randn(N, 3, 12, 12)
    for seed in range(3):
        found = ft.extract(model, images, tmp_path, batch_size=48).verify(n, seed=seed)
        assert (found.rows, found.is_right) == (n, True), str(found)


@settings(max_examples=50, deadline=None, database=None)
@given(st.integers(1, 500), st.integers(1, 600), st.integers(-5, 2**70))
def test_spread_takes_one_sample_of_each_stretch(rows, n, seed):
    """Rising, without repetition, one in each of n equal stretches, the same for the same seed."""
    numbers = spread(rows, n, seed)
    assert numbers == sorted(set(numbers)) == spread(rows, n, seed)
    assert len(numbers) == min(n, rows)
    assert all(at * rows // n - 1 <= number <= (at + 1) * rows // n for at, number in enumerate(numbers) if n < rows)
    assert 0 <= numbers[0] <= numbers[-1] < rows


def test_spread_reaches_every_sample():
    """No sample is safe from being looked at: other seeds choose others."""
    assert set().union(*(spread(50, 7, seed) for seed in range(200))) == set(range(50))


def test_verify_reads_padded_samples_in_the_batch_that_they_came_in(tmp_path):
    """A sample is looked up however far its batch was padded; where its row depends on that, there is none."""
    features = ft.extract(Reader(), Sentences(), tmp_path, batch_size=8, collate_fn=pad)
    for n in (1, 6, 40):
        assert features.verify(n).is_right
    with pytest.raises(ImpureTrunkError, match="padded"):
        ft.extract(Reader(padding=None), Sentences(), tmp_path, batch_size=8, collate_fn=pad)


def test_verify_leaves_chance_and_model_as_they_were(tmp_path):
    """No generator moves, no buffer or mode changes, nothing is written."""
    model = make_model().insert(1, nn.BatchNorm1d(32).eval().requires_grad_(False))
    features = ft.extract(model, DataLoader(Items(), 16), tmp_path)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = sorted(tmp_path.rglob("*"))
    assert features.verify(20).is_right
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == states[1:]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "int8"])
def test_verify_knows_rows_that_are_stored_smaller(tmp_path, dtype):
    """Rounded rows are right within a step of their rounding, to the last bit in their own batches; wrong stays wrong."""
    model = make_model()
    features = ft.extract(model, make_inputs(), tmp_path, dtype=dtype, batch_size=32)
    found = features.verify(N)
    assert (found.is_right, found.exact_rows, found.rows) == (True, N, N), str(found)
    assert found.difference > 1e-6
    for n in (1, 5, 40):
        assert features.verify(n).is_right
    assert verify_live(Store(tmp_path, readonly=True), make_model(), make_inputs(), dtype=dtype).is_right
    with torch.no_grad():
        model[0].weight[3] *= 1.5
    assert not features.verify(N).is_right


class Noisy(Dataset):
    """A random transform."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return make_inputs(30)[index] + torch.randn(16)


def test_verify_draws_a_view_again(tmp_path):
    """Seeded draws are the same when they are drawn again."""
    features = ft.extract(make_model(), Noisy(), tmp_path, views=3, seed=5)
    assert features.verify(8).is_right
    assert features.verify(30).exact_rows == 30


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_verify_sees_a_changed_weight(tmp_path):
    """A frozen weight that was changed after the extraction gives other rows, and this is said."""
    model = make_model()
    features = ft.extract(model, make_inputs(), tmp_path)
    assert features.split
    with torch.no_grad():
        model[0].weight[3] *= 1.001
    found = features.verify(8)
    assert not found.is_right
    assert found.worst in range(N)
    assert str(found).startswith(f"wrong, at sample {found.worst} most: ")


def with_rows(features, path, change):
    """Copy a table into another store, its rows changed under their old keys: what no checksum can see."""
    source = features.table
    table = Store(path).table(source.fingerprint, source.columns, source.provenance)
    with table.writer() as writer:
        for number in range(len(source._segments)):
            segment = source.segment(number)
            rows = segment.column("0").copy()
            change(rows.view(np.float32), number)
            writer.append(segment.keys, [rows])


@settings(max_examples=15, deadline=None, database=None)
@given(st.integers(0, N - 1), st.integers(0, 31), st.sampled_from([1e-2, 1.0, -3.0, float("inf"), float("nan")]))
def test_verify_names_the_row_that_is_wrong(tmp_path_factory, row, column, step):
    """One value of one row that is off by more than rounding is found, and its sample is named."""
    folder = tmp_path_factory.mktemp("wrong")
    model, inputs = make_model(), make_inputs()

    def change(rows, _):
        rows[row, column] += step

    with_rows(ft.extract(model, inputs, folder / "a"), folder / "b", change)
    wrong = ft.extract(model, inputs, folder / "b")
    assert wrong.report.rows_computed == 0
    found = wrong.verify(N)
    assert (found.is_right, found.exact_rows, found.worst) == (False, N - 1, row)
    assert "difference" in found.to_dict()


def test_verify_takes_an_ulp_for_noise_and_counts_it(tmp_path):
    """A last bit is within what batches explain; it is counted all the same."""
    model, inputs = make_model(), make_inputs()

    def change(rows, _):
        rows[5] = np.nextafter(rows[5], np.float32(10))

    with_rows(ft.extract(model, inputs, tmp_path / "a"), tmp_path / "b", change)
    found = ft.extract(model, inputs, tmp_path / "b").verify(N)
    assert (found.is_right, found.exact_rows, found.worst) == (True, N - 1, 5)
    assert 0 < found.difference < 1e-6
    assert 0 < found.difference_ulps < 16


def test_verify_allows_more_for_rows_of_another_machine_and_says_so(tmp_path):
    """Rows that another device or version of torch began may be rounded otherwise: more is allowed, wrong stays wrong."""
    model, inputs = make_model(), make_inputs()
    provenance = ft.extract(model, inputs, tmp_path / "a").table.provenance

    def changed_by(step, path):
        features = ft.extract(model, inputs, tmp_path / "a")
        features.table.provenance = provenance | {"device": "cuda"}
        with_rows(features, path, lambda rows, _: np.multiply(rows, np.float32(1 + step), out=rows))
        return ft.extract(model, inputs, path).verify(N)

    near, far = changed_by(2e-5, tmp_path / "b"), changed_by(1e-2, tmp_path / "c")
    assert near.is_right
    assert "device cuda" in near.remark
    assert "device cuda" in str(near)
    assert not far.is_right


# ----------------------------------------------------------------------------------------------- what cannot be verified


def test_verify_refuses_changed_data(tmp_path):
    """A sample that is not what it was is no proof against its row: the error names it and the fix."""
    data = Items()
    features = ft.extract(make_model(), data, tmp_path)
    data.inputs[17, 0] += 1
    with pytest.raises(DataError, match=r"sample 17: .* ft.extract"):
        features.verify(N)


def test_verify_refuses_a_pickled_copy(tmp_path):
    """A pickle carries neither model nor data."""
    features = pickle.loads(pickle.dumps(ft.extract(make_model(), Items(), tmp_path)))
    with pytest.raises(DataError, match="pickled copy"):
        features.verify()


@pytest.mark.parametrize("n", [0, -1, 2.5, None, True])
def test_verify_refuses_a_number_that_is_none(tmp_path, n):
    """A whole number above 0."""
    with pytest.raises(DataError, match="verify"):
        ft.extract(make_model(), Items(), tmp_path).verify(n)


# ------------------------------------------------------------------------------------------------- from the store alone


@pytest.mark.parametrize("data", [make_inputs, Items, Stream])
def test_verify_live_compares_what_is_stored_and_counts_the_rest(tmp_path, data):
    """Half of the data set is stored: that half is compared, nothing is computed into the store."""
    model = make_model()
    ft.extract(model, make_inputs(50), tmp_path)
    files = sorted(tmp_path.rglob("*"))
    found = verify_live(Store(tmp_path, readonly=True), make_model(), data(), n=N)
    assert (found.rows, found.absent_rows, found.is_right) == (50, N - 50, True)
    assert f"{N - 50} samples have no row" in str(found)
    assert sorted(tmp_path.rglob("*")) == files


def test_verify_live_refuses_where_nothing_is_stored(tmp_path):
    """Another model's rows are no rows of this one."""
    ft.extract(make_model(), make_inputs(), tmp_path)
    with pytest.raises(StoreError, match="got none"):
        verify_live(Store(tmp_path, readonly=True), make_model(width=33), make_inputs())


def test_verify_live_sees_wrong_rows(tmp_path):
    """Rows that are not what the model gives are found from a fresh process' view, too."""
    model, inputs = make_model(), make_inputs()

    def change(rows, _):
        rows[:] = rows[::-1].copy()

    with_rows(ft.extract(model, inputs, tmp_path / "a"), tmp_path / "b", change)
    assert not verify_live(Store(tmp_path / "b", readonly=True), model, inputs, n=10).is_right
