"""The laws of features: each row once, as the head was given it, from the disk and not from copies."""

import gc
import os
import pickle
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import forethought as ft
from forethought.errors import DataError, FitError, ForethoughtError
from forethought.feed import opening
from forethought.store import DamagedSegmentWarning, Segment, files

N = 23


def make_x(n=N):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)
        self.to(dtype)

    def forward(self, x):
        return self.head(self.layer(x))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture(scope="module", params=[None, 7], ids=["one segment", "segments of 7"])
def features(request, tmp_path_factory):
    store = tmp_path_factory.mktemp("features") / "store"
    return ft.extract(Net(), (make_x(), torch.arange(N)), store, batch_size=8, segment_rows=request.param)


def ids_of(batches):
    return torch.cat([targets for _, targets in batches]).tolist()


# --- feeding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, N - 1, N, N + 1, 10**9])
def test_every_row_comes_once_in_order(batch_size, features):
    batches = list(features.batches(batch_size))
    assert ids_of(batches) == list(range(N))
    assert [len(values) for values, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.array_equal(torch.cat([values for values, _ in batches]).numpy(), features.numpy())
    full = list(features.batches(batch_size, drop_last=True))
    assert ids_of(full) if full else True
    assert sum(len(values) for values, _ in full) == N - N % batch_size


@settings(max_examples=30, deadline=None, database=None)
@given(st.integers(1, 30), st.integers(0, 2**40), st.integers(0, 50))
def test_a_shuffled_epoch_feeds_every_row_with_its_own_target(store_of_23, batch_size, seed, epoch):
    features, rows = store_of_23
    seen = []
    for values, targets in features.batches(batch_size, shuffle=True, seed=seed, epoch=epoch):
        assert torch.equal(values, rows[targets])
        seen += targets.tolist()
    assert sorted(seen) == list(range(N))
    assert seen == ids_of(features.batches(batch_size, shuffle=True, seed=seed, epoch=epoch))
    assert seen == ids_of(features.batches(5, shuffle=True, seed=seed, epoch=epoch)), "the order is not the batch's"


@pytest.fixture(scope="module")
def store_of_23(tmp_path_factory):
    store = tmp_path_factory.mktemp("features") / "store"
    features = ft.extract(Net(), (make_x(), torch.arange(N)), store, segment_rows=5)
    return features, torch.from_numpy(features.numpy().copy())


def test_orders_differ_by_epoch_and_seed_and_follow_torch(features):
    def order(**options):
        return tuple(ids_of(features.batches(6, shuffle=True, **options)))

    assert len({order(seed=1, epoch=epoch) for epoch in range(20)}) == 20
    assert len({order(seed=seed) for seed in range(20)}) == 20
    assert order(seed=1) == order(seed=1)
    assert order() != order()
    torch.manual_seed(5)
    first = (order(), order())
    torch.manual_seed(5)
    assert (order(), order()) == first
    assert ids_of(features.batches(6, shuffle=False, seed=1)) == list(range(N))
    before = torch.get_rng_state()
    order(seed=3)
    ids_of(features.batches(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_epoch_of_one_seed_is_an_epoch_of_another(features):
    a = ids_of(features.batches(6, shuffle=True, seed=0, epoch=1_000_003))
    assert a != ids_of(features.batches(6, shuffle=True, seed=1, epoch=0))


@pytest.mark.parametrize("batch_size", [0, -3, 2.5, None])
def test_a_batch_size_that_is_none_is_refused(batch_size, features):
    with pytest.raises(DataError, match="batches"):
        next(features.batches(batch_size))


def test_a_wrong_batch_size_is_refused_at_the_call(features):
    with pytest.raises(DataError):
        features.batches(0)


def test_indexing(features):
    rows = features.numpy()
    for index in (0, 1, N - 1, -1, -N, np.int64(3)):
        values, target = features[index]
        assert np.array_equal(values.numpy(), rows[index])
        assert target == index % N
    for index in (N, -N - 1, 10**9):
        with pytest.raises(IndexError, match=str(N)):
            features[index]
    assert [int(target) for _, target in features] == list(range(N))
    assert len(features) == N
    assert str(N) in repr(features)


@pytest.mark.parametrize("index", [slice(1, 3), 1.5, "a", None])
def test_other_indices_are_a_type_error(index, features):
    with pytest.raises((TypeError, IndexError)):
        features[index]


def test_a_data_loader_may_feed_them(features):
    loader = DataLoader(features, batch_size=5, shuffle=True)
    seen = torch.cat([targets for _, targets in loader])
    assert sorted(seen.tolist()) == list(range(N))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_may_feed_them(method, features):
    rows = features.numpy()
    loader = DataLoader(features, batch_size=8, num_workers=2, multiprocessing_context=method)
    for values, targets in loader:
        assert np.array_equal(values.numpy(), rows[targets.numpy()])


def test_features_without_targets_may_be_fed_by_a_data_loader(store):
    """A row without targets is the row alone, and collates like any tensor."""
    features = ft.extract(Net(), make_x(), store)
    batches = list(DataLoader(features, batch_size=8))
    assert np.array_equal(torch.cat(batches).numpy(), features.numpy())


# --- what a row is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_values_equal_the_live_trunk_bit_for_bit_on_the_same_batch(dtype, store):
    model, x = Net(dtype), make_x().to(dtype)
    features = ft.extract(model, x, store, batch_size=8)
    trunk = ft.split(model, x[:2]).trunk
    for start, (values, _) in zip(range(0, N, 8), features.batches(8), strict=True):
        batch = x[start : start + 8]
        assert torch.equal(values, trunk(batch))
        assert values.stride() == trunk(batch).stride()
        assert torch.equal(features.head(values), model(batch))


def test_bfloat16_is_named_where_numpy_has_none(store):
    features = ft.extract(Net(torch.bfloat16), make_x().bfloat16(), store)
    with pytest.raises(DataError, match=r"bfloat16.*torch\.cat"):
        features.numpy()
    assert next(features.batches(5))[0].dtype == torch.bfloat16
    assert features[3][0].dtype == torch.bfloat16


class Several(nn.Module):
    """Two frozen tensors, of two shapes, and the input itself cross the frontier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 8).requires_grad_(False), nn.Linear(4, 3).requires_grad_(False)
        self.head = nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        ranks = self.two(x).argsort(1)
        return self.head(self.one(x)) + self.gain * self.two(x) + self.gain * x.sum(1, True) + self.gain * ranks


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.head = nn.GRU(2, 5).requires_grad_(False), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.gru(x.unflatten(1, (2, 2)).transpose(0, 1))[0]).mean(0)


class Folded(nn.Module):
    """Windows of a sample lie along the batch, as in Swin."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(2, 5).requires_grad_(False), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layer(x.reshape(-1, 2))).reshape(len(x), -1)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(1, 4, 1).requires_grad_(False), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.layer(x.reshape(-1, 1, 2, 2)).contiguous(memory_format=torch.channels_last)
        return self.head(y).flatten(1)


@pytest.mark.parametrize("make", [Several, SequenceFirst, Folded, ChannelsLast])
@pytest.mark.parametrize("segment_rows", [None, 3])
def test_every_form_of_frontier_comes_back_as_it_was(make, segment_rows, store):
    model, x = make(), make_x()
    features = ft.extract(model, (x, torch.arange(N)), store, batch_size=8, segment_rows=segment_rows)
    split = ft.split(model, x[:3])

    def each(values):
        return values if isinstance(values, tuple) else (values,)

    for (values, _), start in zip(features.batches(8), range(0, N, 8), strict=True):
        wanted = each(split.trunk(x[start : start + 8]))
        assert [(v.shape, v.dtype, v.stride()) for v in each(values)] == [
            (v.shape, v.dtype, v.stride()) for v in wanted
        ]
        assert all(torch.equal(a, b) for a, b in zip(each(values), wanted, strict=True))
        fresh = tuple(value.clone() for value in each(values))  # as torch allocates: see the test below
        assert torch.equal(features.head(fresh), model(x[start : start + 8]))
    for values, targets in features.batches(6, shuffle=True):
        torch.testing.assert_close(features.head(values), model(x[targets]))
    arrays = features.numpy()
    assert all(len(array) == N for array in (arrays if isinstance(arrays, tuple) else (arrays,)))
    again = ft.extract(model, (x, torch.arange(N)), store)
    assert again.report.rows_computed == 0
    assert torch.equal(again.head(next(again.batches(N))[0]), features.head(next(features.batches(N))[0]))


def test_the_head_gives_what_the_model_gives_bit_for_bit(store):
    model, x = Several(), make_x()
    features = ft.extract(model, x, store, batch_size=8)
    for (values, _), start in zip(features.batches(8), range(0, N, 8), strict=True):
        assert torch.equal(features.head(values), model(x[start : start + 8]))


def test_the_head_trains_from_features_as_from_inputs(store):
    a, b, x, y = Net(), Net(), make_x(), torch.randn(N, 2)
    features = ft.extract(a, (x, y), store, batch_size=N)
    for model in (a, b):
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            if model is a:
                values, targets = next(features.batches(N))
                loss = (features.head(values) - targets).square().mean()
            else:
                loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, Net().head.weight)


# --- copies ------------------------------------------------------------------------------------------------------


def test_batches_are_copies_in_memory_of_their_own_and_arrays_are_the_store(store):
    features = ft.extract(Net(), make_x(), store)
    values = [values for values, _ in features.batches(5)]
    assert len({each.untyped_storage().data_ptr() for each in values}) == len(values)
    assert np.shares_memory(features.numpy(), features.numpy())
    assert not np.shares_memory(features.numpy(), values[0].numpy())


@pytest.mark.parametrize("by", ["numpy", "batches", "a head in place", "targets"])
def test_writing_into_what_was_fed_does_not_change_the_features(by, store):
    features = ft.extract(Net(), (make_x(), torch.zeros(N)), store)
    wanted = features.numpy().copy()
    try:
        if by == "numpy":
            array = features.numpy()
            array -= array.mean(0)
        else:
            head = nn.Sequential(nn.Hardtanh(0, 0.1, inplace=True), nn.Linear(8, 2))
            for values, targets in features.batches(7):
                if by == "batches":
                    values.add_(1)
                elif by == "targets":
                    targets.add_(1)
                else:
                    head(values)
    except (ValueError, RuntimeError):
        pass  # refused: read-only
    assert np.array_equal(torch.cat([values for values, _ in features.batches(7)]).numpy(), wanted)
    assert features.targets.sum() == 0


def test_a_head_that_writes_in_place_changes_neither_another_head_nor_the_features(store):
    """All heads are given the same values: one that writes into them is refused by name, and nothing is changed."""
    x, y = make_x(), torch.randn(N, 1, generator=torch.Generator().manual_seed(2))
    train = ft.extract(Net(), (x, y), store)
    wanted = train.numpy().copy()

    def plain():
        torch.manual_seed(3)
        return nn.Linear(8, 1)

    clamps = nn.Sequential(nn.Hardtanh(-0.1, 0.1, inplace=True), nn.Linear(8, 1))
    with pytest.raises(FitError, match=r"head 'a'.*written into.*inplace=False"):
        ft.fit(train, train, heads={"a": clamps, "b": plain()}, epochs=2, batch_size=64, seed=0)
    assert np.array_equal(train.numpy(), wanted)
    together = ft.fit(
        train,
        train,
        heads={"a": nn.Sequential(nn.Hardtanh(-0.1, 0.1), plain()), "b": plain()},
        epochs=2,
        batch_size=64,
        seed=0,
    )
    after = ft.extract(Net(), (x, y), store)
    alone = ft.fit(after, after, heads={"b": plain()}, epochs=2, batch_size=64, seed=0)
    assert [m.val_score for m in together["b"].metrics] == [m.val_score for m in alone["b"].metrics]


def test_writing_into_what_was_fed_never_reaches_the_disk(store):
    features = ft.extract(Net(), make_x(), store)
    wanted = features.numpy().copy()
    for values, _ in features.batches(7):
        values.zero_()
    again = ft.extract(Net(), make_x(), store)
    assert again.report.rows_computed == 0
    assert np.array_equal(again.numpy(), wanted)


def anonymous_mb():
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def test_feeding_a_large_store_keeps_no_copy_of_it(store):
    model = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 1))
    model[0].requires_grad_(False)
    x = torch.randn(100_000, 2)
    ft.extract(model, x, store, batch_size=4096)
    before = anonymous_mb()
    features = ft.extract(model, x, store, batch_size=4096)
    assert (features.report.rows_computed, features.report.size_bytes) == (0, 100_000 * 512 * 4)
    for shuffle in (False, True):
        for values, _ in features.batches(4096, shuffle=shuffle):
            values[0].sum()
    assert anonymous_mb() - before < 80


# --- pickles, threads, lives -------------------------------------------------------------------------------------


def test_a_pickle_is_small_and_opens_the_store_anew(features):
    raw = pickle.dumps(features)
    copy = pickle.loads(raw)
    assert len(raw) < 20_000
    assert np.array_equal(copy.numpy(), features.numpy())
    assert ids_of(copy.batches(4)) == list(range(N))
    with pytest.raises(ForethoughtError, match="pickled"):
        copy.head  # noqa: B018


def test_a_pickle_of_rows_that_are_gone_says_so(store):
    features = ft.extract(Net(), make_x(), store)
    raw = pickle.dumps(features)
    for segment in store.glob("tables/*/*.safetensors"):
        segment.unlink()
    with pytest.raises(ForethoughtError, match=r"ft\.extract"):
        pickle.loads(raw).numpy()


def harm(path, how):
    """Change a file in place, or put another one in its place."""
    raw = bytearray(path.read_bytes())
    if how == "cut":
        os.truncate(path, len(raw) - 8)
    elif how == "flipped":
        raw[-1] ^= 1
        with path.open("r+b") as file:
            file.write(raw)
    elif how == "another":  # whole and sealed, but not the one that was located
        other = path.parent / "other"
        with (
            ft.Store(other)
            .table(path.parent.name, ft.Store(path.parents[2]).table(path.parent.name).columns)
            .writer() as w
        ):
            w.append(np.zeros((N, 16), np.uint8), [np.zeros((N, 8), np.float32)])
        next(other.glob("tables/*/*.safetensors")).replace(path)
        shutil.rmtree(other)
    else:
        path.write_bytes(b"")
        path.write_bytes(raw)
        if how == "copied over":
            os.utime(path, ns=(0, 0))


READERS = {
    "batches": lambda features: torch.cat([values for values, _ in features.batches(5)]),
    "streamed": lambda features: torch.cat([values for values, _ in features.batches(5, tier="streamed")]),
    "numpy": lambda features: torch.from_numpy(features.numpy().copy()),
    "items": lambda features: torch.stack([features[i][0] for i in range(N)]),
    "verify": lambda features: features.verify(4),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("how", ["flipped", "cut", "another"])
def test_a_file_that_changes_after_it_was_checked_is_not_fed(how, read, store):
    """A hit is right, or it is not a hit: also in the process that wrote the rows, checked them, and fed them before."""
    features = ft.extract(Net(), (make_x(), torch.arange(N)), store)
    read(features)
    (segment,) = store.glob("tables/*/*.safetensors")
    harm(segment, how)
    for _ in range(2):
        with pytest.raises(ForethoughtError, match=segment.name):
            read(features)
    # Another one is sound: it just has none of these rows.
    with pytest.warns(DamagedSegmentWarning) if how != "another" else nullcontext():
        again = ft.extract(Net(), (make_x(), torch.arange(N)), store)
    assert again.report.rows_computed == N
    assert torch.equal(READERS["batches"](again), Net().layer(make_x()))


@pytest.mark.parametrize("how", ["rewritten", "copied over", "removed", "all removed"])
def test_a_file_that_was_rewritten_as_it_was_or_removed_is_fed(how, store):
    """What is mapped stays, and what has the same bytes is the same: nobody is stopped."""
    features = ft.extract(Net(), (make_x(), torch.arange(N)), store, segment_rows=8)
    rows = READERS["batches"](features)
    for segment in store.glob("tables/*/*.safetensors"):
        segment.unlink() if "removed" in how else harm(segment, how)
    if how == "all removed":
        shutil.rmtree(store)
    for read in ("batches", "numpy", "items"):
        assert torch.equal(READERS[read](features), rows)


def test_a_file_that_changes_during_an_epoch_is_seen_in_it(store, monkeypatch):
    """A long epoch is looked after while it lasts."""
    features = ft.extract(Net(), (make_x(), torch.arange(N)), store)
    batches = features.batches(4)
    next(batches)
    harm(*store.glob("tables/*/*.safetensors"), "flipped")
    monkeypatch.setattr(opening, "_LOOK_S", -1.0)
    with pytest.raises(ForethoughtError, match="BLAKE3"):
        next(batches)


def test_looking_after_files_costs_one_question_each_and_no_second_check(store, monkeypatch):
    """An epoch of files that are as they were reads none of them."""
    features = ft.extract(Net(), (make_x(), torch.arange(N)), store, segment_rows=8)
    for segment in store.glob("tables/*/*.safetensors"):
        os.utime(segment, ns=(0, 0))
    monkeypatch.setattr(files, "_TICK_NS", -1)  # as if some time had passed
    rows = READERS["batches"](features)
    monkeypatch.setattr(Segment, "_check", lambda *_: pytest.fail("checked again"))
    assert torch.equal(READERS["batches"](features), rows)
    assert torch.equal(READERS["items"](features), rows)


def test_a_clock_that_runs_ahead_does_not_have_files_checked_again_and_again(store, monkeypatch):
    """Where files always seem to have changed just now, what was checked twice is settled."""
    features = ft.extract(Net(), (make_x(), torch.arange(N)), store)
    monkeypatch.setattr(files, "_TICK_NS", 10**18)
    checks = []
    check = Segment._check
    monkeypatch.setattr(Segment, "_check", lambda *args: checks.append(1) or check(*args))
    for _ in range(4):
        READERS["batches"](features)
    assert len(checks) <= 1


def test_features_outlive_their_model_and_the_store_object(store):
    features = ft.extract(Net(), make_x(), ft.Store(store))
    rows = features.numpy().copy()
    gc.collect()
    values, _ = next(features.batches(N))
    del features
    gc.collect()
    assert np.array_equal(values.numpy(), rows)


def test_threads_may_share_them(features):
    rows, failures = features.numpy().copy(), []

    def feed(seed):
        for values, targets in features.batches(3, shuffle=True, seed=seed):
            if not np.array_equal(values.numpy(), rows[targets.numpy()]):
                failures.append(seed)

    threads = [threading.Thread(target=feed, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_report_reads_as_a_line(features):
    text = str(features.report)
    assert f"{N} rows computed, 0 reused" in text
    assert "energy" in text or " J" in text
    assert features.report.time_s >= 0
