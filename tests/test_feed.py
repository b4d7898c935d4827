"""The laws of the feed: every row once with its own target, in whatever tier, share, selection, or life it is fed."""

import dataclasses
import gc
import json
import pickle
import random
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import forethought as ft
from forethought.errors import DataError, StoreError
from forethought.feed.ahead import Ahead
from forethought.feed.columns import Column, Slot
from forethought.feed.couriers import ByHand, ByLane
from forethought.feed.memory import available_bytes, bytes_of
from forethought.feed.orders import Mixing, Shard, batches_of, by_blocks, exact, in_order
from forethought.feed.sources import OnDevice, hold
from forethought.feed.tiers import TIERS, Facts, choose

N = 203
CASES = settings(max_examples=40, deadline=None, database=None)


class Two(nn.Module):
    """Two tensors of two sizes and types cross the frontier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8).requires_grad_(False), nn.Linear(4, 3).requires_grad_(False).double()
        self.head, self.gain = nn.Linear(8, 3), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.head(self.a(x)) * self.gain + self.b(x.double()) * self.gain


def make_x(n=N):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("feed") / "store"


@pytest.fixture(scope="module", params=[None, torch.float16, "int8"], ids=["exact", "float16", "int8"])
def features(request, store):
    return ft.extract(Two(), (make_x(), torch.arange(N)), store, batch_size=8, segment_rows=16, dtype=request.param)


@pytest.fixture(scope="module")
def plain(store):
    return ft.extract(Two(), (make_x(), torch.arange(N)), store, batch_size=8, segment_rows=16)


def ids_of(batches):
    return torch.cat([batch[1] for batch in batches] or [torch.empty(0, dtype=torch.int64)]).tolist()


def values_of(batches):
    """All values in the order of the targets, as one list of tensors."""
    batches = list(batches)
    order = torch.cat([targets for _, targets in batches]).argsort()
    return [torch.cat(parts)[order] for parts in zip(*[values for values, _ in batches], strict=True)]


# --- tiers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True, "block"])
@pytest.mark.parametrize("tier", ["ram", "mapped", "streamed"])
def test_every_tier_feeds_the_same_values(tier, shuffle, features):
    """A row's values do not depend on where it is kept: equal to the last bit, with their own targets."""
    wanted = values_of(features.batches(N))
    feed = features.batches(17, shuffle=shuffle, seed=3, tier=tier, memory=4000)
    found = values_of(feed)
    assert feed.tier == tier
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_one_seed_is_one_order_in_every_tier_that_shuffles_exactly(plain):
    """The order follows from seed and epoch, not from where rows are."""
    orders = {tuple(ids_of(plain.batches(9, True, 5, epoch=2, tier=tier))) for tier in ("ram", "mapped")}
    assert orders == {tuple(ids_of(plain.batches(9, "exact", 5, epoch=2)))}


def test_rows_that_are_shuffled_often_are_copied_into_one_piece(plain):
    """From the third shuffled epoch on, and fed as before; what was said to stay mapped does."""
    features = plain.select(slice(None))
    tiers = [features.batches(9, shuffle=True, seed=0).tier for _ in range(4)]
    assert tiers == ["mapped", "mapped", "ram", "ram"]
    assert features.batches(9, shuffle=True, tier="mapped").tier == "mapped"
    assert ids_of(features.batches(9, True, 1)) == ids_of(plain.select(slice(None)).batches(9, True, 1))


@CASES
@given(
    st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 20), st.integers(1, 20_000),
    st.sampled_from([False, "block", True]), st.data(),
)  # fmt: skip
def test_streamed_rows_come_once_with_their_targets(plain, batch_size, seed, epoch, memory, shuffle, data):
    """Whatever the memory, the batch and the selection: each row once, with its own values and target."""
    at = data.draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=80))
    chosen, x = plain.select(at), make_x()
    feed = chosen.batches(batch_size, shuffle=shuffle, seed=seed, epoch=epoch, tier="streamed", memory=memory)
    model, seen = Two(), []
    for (a, b), targets in feed:
        torch.testing.assert_close(a, model.a(x[targets]))
        torch.testing.assert_close(b, model.b(x[targets].double()))
        seen += targets.tolist()
    assert sorted(seen) == sorted(at)
    assert shuffle or seen == at


def test_a_device_holds_rows_as_the_head_is_given_them(features):
    """Chosen on the device, by the same order, as copies."""
    rows = features._of(0)
    source = OnDevice(rows.mapped.columns(), N, torch.device("cpu"))
    wanted = values_of(features.batches(N))
    for order in (exact(N, 1, 0), in_order(N)):
        cuts = batches_of(N, 10, Shard(), False)
        for (start, stop), got in zip(cuts, source.serve(order, cuts, ByHand("cpu")), strict=True):
            for all_rows, some in zip(wanted, got, strict=True):
                assert torch.equal(some, all_rows[order.part(start, stop)])
                some.zero_()  # a copy


FACTS = Facts(size_bytes=1000, fed_bytes=2000, files=4, available=3000, device_free=None, is_on_host=True)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, "mapped"),
        ({"available": None}, "mapped"),
        ({"available": 999}, "streamed"),
        ({"shuffled": 2}, "ram"),
        ({"shuffled": 2, "files": 1}, "mapped"),
        ({"shuffled": 2, "available": 1500}, "mapped"),
        ({"is_on_host": False, "device_free": 4000}, "device"),
        ({"is_on_host": False, "device_free": 3999}, "mapped"),
        ({"is_on_host": False, "device_free": 10, "available": 10}, "streamed"),
    ],
)
def test_the_tier_is_chosen_by_what_there_is(change, wanted):
    """The fastest one that has room."""
    assert choose(None, dataclasses.replace(FACTS, **change)) == wanted


def test_the_tier_may_be_said(plain):
    """What was asked for is used or refused, never another."""
    for tier in ("ram", "mapped", "streamed"):
        assert choose(tier, FACTS) == tier
    with pytest.raises(DataError, match="device='cuda'"):
        plain.batches(8, tier="device").tier  # noqa: B018
    with pytest.raises(DataError, match=", ".join(TIERS)):
        next(plain.batches(8, tier="disk"))
    with pytest.raises(DataError, match="'block'"):
        plain.batches(8, shuffle="exact", tier="streamed")
    with pytest.raises(DataError, match="'exact' or 'block'"):
        plain.batches(8, shuffle="all")


def test_little_memory_streams_and_says_how_well_it_mixes(plain):
    """Rows that memory cannot hold are mixed block by block; an exact shuffle can be insisted on."""
    feed = plain.batches(8, shuffle=True, seed=0, memory=2000)
    assert (feed.tier, feed.mixing.kind) == ("streamed", "block")
    assert "blocks" in str(feed.mixing)
    insisted = plain.batches(8, shuffle="exact", seed=0, memory=2000)
    assert (insisted.tier, insisted.mixing.kind) == ("mapped", "exact")
    assert (plain.batches(8, shuffle=True).mixing.kind, plain.batches(8).mixing.kind) == ("exact", "none")


def test_streaming_keeps_to_its_memory(tmp_path):
    """What lies in memory at a time is at most what was allowed, however large the store."""
    allowed, held, most = 400_000, [], 0
    model = nn.Sequential(nn.Linear(2, 256), nn.Linear(256, 1))
    model[0].requires_grad_(False)
    features = ft.extract(model, torch.randn(4000, 2), tmp_path / "store", batch_size=500)
    empty = np.empty

    def counting(shape, dtype=float, **options):
        made = empty(shape, dtype, **options)
        held.append((weakref.ref(made), made.nbytes))
        return made

    from forethought.feed import streams

    class Numpy:
        def __getattr__(self, name):
            return counting if name == "empty" else getattr(np, name)

    streams.np = Numpy()
    try:
        for _ in features.batches(100, shuffle=True, seed=0, memory=allowed, tier="streamed"):
            most = max(most, sum(size for alive, size in held if alive() is not None))
    finally:
        streams.np = np
    assert allowed / 4 < most <= allowed * 1.1


def test_damage_in_a_stream_is_named(tmp_path):
    """Rows whose bytes are not what was written are never served; the error says what to do."""
    features = ft.extract(Two(), make_x(), tmp_path / "store", segment_rows=50)
    copy = pickle.loads(pickle.dumps(features))
    victim = sorted((tmp_path / "store").glob("tables/*/*.safetensors"))[1]
    raw = bytearray(victim.read_bytes())
    raw[-40] ^= 1
    victim.write_bytes(raw)
    with pytest.raises(StoreError, match=r"ft\.extract"):
        list(copy.batches(10, tier="streamed"))


def test_a_store_in_a_bucket_is_fetched_several_files_at_a_time(monkeypatch):
    """A remote store is fetched ahead, not file by file when a batch needs it; it streams whole files."""
    features = ft.extract(Two(), (make_x(), torch.arange(N)), "memory://feed", segment_rows=20)
    copy = ft.extract(Two(), (make_x(), torch.arange(N)), ft.Store("memory://feed"), segment_rows=20)
    wanted = values_of(features.batches(N))
    for options in ({}, {"tier": "streamed", "memory": 3000, "shuffle": True, "seed": 0}):
        assert all(torch.equal(a, b) for a, b in zip(wanted, values_of(copy.batches(9, **options)), strict=True))
    assert copy.batches(9, shuffle="block", seed=0).mixing.block_rows >= 18


# --- orders ------------------------------------------------------------------------------------------------------


@CASES
@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**40), st.integers(0, 9))
def test_a_block_shuffle_is_a_permutation(rows, block_rows, window_rows, seed, epoch):
    """Each row once, another order each epoch, whatever the sizes."""
    order = by_blocks(np.arange(rows), seed, epoch, block_rows, window_rows)
    assert sorted(order.at.tolist()) == list(range(rows))
    again = by_blocks(np.arange(rows), seed, epoch, block_rows, window_rows)
    assert (again.at == order.at).all()
    assert order.window_rows <= max(window_rows, block_rows)


def test_a_block_shuffle_mixes_as_well_as_it_says():
    """How often neighbours meet, and how much a batch's mean varies in the worst case, lie within what is said."""
    rows, block, window, batch = 4096, 16, 512, 64
    label = np.repeat(np.random.default_rng(0).permutation(rows // block) % 2, block).astype(float)
    met, means, exact_means = 0, [], []
    for epoch in range(60):
        order = by_blocks(np.arange(rows), 0, epoch, block, window)
        batches = order.at.reshape(-1, batch)
        where = np.empty(rows, np.int64)
        where[order.at] = np.arange(rows) // batch
        met += int((where[:-1] == where[1:]).sum())
        means += label[batches].mean(1).tolist()
        exact_means += label[exact(rows, 0, epoch).at.reshape(-1, batch)].mean(1).tolist()
    by_chance = 60 * (rows - 1) * (batch - 1) / (rows - 1)
    assert met / by_chance == pytest.approx(order.mixing.neighbours_meet, rel=0.1)
    ratio = np.var(means) / np.var(exact_means)
    assert 1.2 < ratio < order.mixing.worst_variance(batch) * 1.15
    assert Mixing("exact", rows, 1, rows).worst_variance(batch) == Mixing("exact", rows, 1, rows).neighbours_meet == 1


@CASES
@given(st.integers(1, 300), st.integers(1, 50), st.integers(1, 7), st.booleans())
def test_shares_are_equal_and_whole(rows, batch_size, world, drop_last):
    """Processes are fed equally many batches, and every row once among them; drop_last leaves full batches only."""
    if rows < world and not drop_last:
        with pytest.raises(DataError, match="fewer processes"):
            batches_of(rows, batch_size, Shard(0, world), drop_last)
        return
    shares = [batches_of(rows, batch_size, Shard(rank, world), drop_last) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    fed = sorted(at for share in shares for start, stop in share for at in range(start, stop))
    sizes = {stop - start for share in shares for start, stop in share}
    if drop_last:
        assert sizes <= {batch_size}
        assert fed == list(range(rows - rows % (batch_size * world)))
    else:
        assert fed == list(range(rows))
        assert max(sizes) <= batch_size + (batch_size == 1)
        assert world == 1 or max(sizes) - min(sizes) <= 1


def test_ranks_share_an_epoch(plain, monkeypatch):
    """By number, or as torch.distributed says; a shuffle needs one seed for all."""
    both = [ids_of(plain.batches(8, True, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert sorted(both[0] + both[1]) == list(range(N))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert ids_of(plain.batches(8, True, seed=1)) == both[1]
    with pytest.raises(DataError, match="seed=0"):
        plain.batches(8, True)
    with pytest.raises(DataError, match="world_size"):
        plain.batches(8, rank=0)
    with pytest.raises(DataError, match="rank 2 of 2"):
        plain.batches(8, rank=2, world_size=2)


# --- taken up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"shuffle": True}, {"shuffle": True, "seed": 4, "epoch": 3}, {"shuffle": True, "memory": 3000},
    {"shuffle": True, "seed": 1, "rank": 1, "world_size": 3}, {"memory": 3000}, {"drop_last": True, "shuffle": "block"},
], ids=str)  # fmt: skip
def test_a_feed_goes_on_where_it_stood(options, plain):
    """What came before a stop, and what comes after it in another life, are together what would have come."""
    torch.manual_seed(3)
    whole = [targets.tolist() for _, targets in plain.batches(10, **options)]
    for stop in range(len(whole) + 1):
        torch.manual_seed(3)
        feed = plain.batches(10, **options)
        before = [next(feed)[1].tolist() for _ in range(stop)]
        state = json.loads(json.dumps(feed.state_dict()))
        feed.close()
        torch.manual_seed(random.randrange(2**30))
        other = pickle.loads(pickle.dumps(plain))
        memory = {"memory": 2500} if "memory" in options else {}  # another machine: the order is the old one
        after = [targets.tolist() for _, targets in other.batches(10, **options | memory, resume=state)]
        assert before + after == whole


def test_a_feed_of_other_batches_is_not_gone_on_with(plain):
    """Otherwise rows would be fed twice, and others never."""
    state = plain.batches(10, shuffle=True, seed=0).state_dict()
    for change in ({"batch_size": 11}, {"shuffle": False}, {"drop_last": True}):
        with pytest.raises(DataError, match="resume="):
            plain.batches(**{"batch_size": 10, "shuffle": True, "seed": 0, "resume": state} | change)
    with pytest.raises(DataError, match="rows=203"):
        plain.select(slice(50)).batches(10, shuffle=True, seed=0, resume=state)


def test_a_feed_that_is_left_ends_its_threads(plain):
    """Nobody reads ahead for a loop that was left."""
    before = threading.active_count()
    for _ in range(5):
        for _ in plain.batches(4, shuffle=True, memory=1500):
            break
    feed = plain.batches(4, shuffle=True, memory=1500)
    next(feed)
    feed.close()
    del feed
    gc.collect()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_ahead_hands_on_what_went_wrong():
    """An error in the thread is the user's to see, after the items before it."""

    def items():
        yield 1
        raise KeyError("x")

    ahead = iter(Ahead(items()))
    assert next(ahead) == 1
    with pytest.raises(KeyError):
        next(ahead)


# --- beside the rows ---------------------------------------------------------------------------------------------


def test_weights_come_with_their_rows(plain):
    """Every batch brings the weights of its samples; a selection keeps them."""
    weighted = plain.weighted(torch.arange(N) / 2)
    for _, targets, weights in weighted.select(slice(0, N, 3)).batches(7, shuffle=True):
        assert torch.equal(weights, targets / 2)
    assert len(next(plain.batches(7))) == 2
    for wrong in (torch.ones(N - 1), torch.full((N,), -1.0), torch.full((N,), float("nan"))):
        with pytest.raises(DataError, match=r"features\.weighted"):
            plain.weighted(wrong)


@pytest.mark.parametrize("which", [
    slice(10, 50, 3), range(5, 20), [3, 1, -1, 3], np.array([7, 0]), torch.tensor([7, 0]), torch.arange(N) % 3 == 0,
    (np.arange(N) % 3 == 0).tolist(), lambda t: t > 100, lambda t: (t > 100).nonzero().squeeze(1), [], torch.zeros(N, dtype=torch.bool),
], ids=range(11))  # fmt: skip
def test_a_selection_is_what_indexing_gives(which, plain):
    """By number, slice, mask or condition: the rows and targets that numpy would choose, in that order."""
    asked = which(torch.arange(N)) if callable(which) else which
    wanted = np.arange(N)[asked if isinstance(asked, slice) else np.asarray(asked, dtype=None if len(asked) else int)]
    chosen = plain.select(which)
    assert chosen.targets.tolist() == wanted.tolist()
    assert len(chosen) == len(wanted)
    if len(wanted):
        assert chosen.verify(5).is_right
        assert torch.equal(chosen[0][0][0], plain[int(wanted[0])][0][0])
        assert chosen.select([0]).numbers.tolist() == [wanted[0]]


@pytest.mark.parametrize(
    "which", [[N], [-N - 1], [0.5], "all", torch.ones(N - 1, dtype=torch.bool), [[1, 2]], None, lambda t: None]
)
def test_what_is_no_selection_is_refused(which, plain):
    """Never a silent other choice."""
    with pytest.raises(DataError, match=r"features\.select"):
        plain.select(which)


@CASES
@given(st.integers(2, 8), st.integers(0, 2**40), st.integers(1, 6))
def test_folds_hold_every_sample_once(plain, k, seed, labels):
    """Each sample is held out once; labels are spread within one of even, groups stay together."""
    kinds = torch.arange(N) % labels
    for options in ({}, {"stratify": kinds}, {"groups": torch.arange(N) // 5}):
        folds = plain.folds(k, seed=seed, **options)
        assert sorted(at for _, held in folds for at in held.targets.tolist()) == list(range(N))
        for train, held in folds:
            assert sorted(train.targets.tolist() + held.targets.tolist()) == list(range(N))
            if "stratify" in options:
                counts = torch.bincount(kinds[held.targets], minlength=labels)
                whole = torch.bincount(kinds, minlength=labels)
                assert (counts >= whole // k - 1).all()
                assert (counts <= whole // k + 2).all()
            if "groups" in options:
                assert not set((train.targets // 5).tolist()) & set((held.targets // 5).tolist())
        again = plain.folds(k, seed=seed, **options)
        assert [held.targets.tolist() for _, held in again] == [held.targets.tolist() for _, held in folds]


def test_folds_that_cannot_be_made_are_refused(plain):
    """Too few, too vague, or labels that are numbers."""
    for options in ({"k": 1}, {"k": N + 1}, {"k": 3, "groups": torch.zeros(N)}, {"k": 3, "stratify": torch.rand(N)},
                    {"k": 3, "stratify": "label"}, {"k": 3, "stratify": True, "groups": True}, {"k": 3, "stratify": [1]}):  # fmt: skip
        with pytest.raises(DataError):
            plain.folds(**options)
    labelled = dataclasses.replace(
        plain, drawn=tuple(dataclasses.replace(v, targets={"y": torch.arange(N) % 2}) for v in plain.drawn)
    )
    assert len(labelled.folds(3, stratify="y")) == len(labelled.folds(3, stratify=True)) == 3


# --- torch's DataLoader ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_data_loader_fetches_batches_at_once(method, plain):
    """With and without its own collate, in workers of either kind: the rows and targets of the feed."""
    wanted = values_of(plain.batches(N))
    workers = {"num_workers": 1 + (method == "fork"), "multiprocessing_context": method} if method else {}
    for collate in (plain.collate, None)[: 1 if method == "spawn" else 2]:
        loader = DataLoader(plain, batch_size=16, shuffle=True, collate_fn=collate, **workers)
        found = values_of([(tuple(values), targets) for values, targets in loader])
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_samples_fetched_together_equal_those_fetched_alone(plain):
    """`__getitems__` gives what `__getitem__` gives, weights too."""
    for some in (plain, plain.weighted(torch.rand(N))):
        fetched = some.__getitems__([5, 0, 5])
        for index, sample in zip([5, 0, 5], fetched, strict=True):
            alone = some[index]
            assert len(sample) == len(alone)
            assert all(torch.equal(a, b) for a, b in zip(sample[0], alone[0], strict=True))
            assert all(torch.equal(a, b) for a, b in zip(sample[1:], alone[1:], strict=True))


# --- copies that nobody waits for --------------------------------------------------------------------------------


class SlowLane:
    """A device whose copies happen as late as they may: any memory that is filled too early spoils them."""

    def __init__(self):
        self.lock, self.sent, self.received = threading.Lock(), 0, 0

    def pinned(self, shape, dtype):
        return torch.empty(shape, dtype=dtype)

    def send(self, work):
        self.sent += 1
        ticket = {"work": work, "made": None}
        holder = _Late(ticket)
        return holder, ticket

    def receive(self, tensors, ticket):
        self.received += 1
        self.wait(ticket)

    def wait(self, ticket):
        time.sleep(random.random() / 1000)
        with self.lock:
            if ticket["made"] is None:
                ticket["made"] = tuple(tensor.clone() for tensor in ticket["work"]())


class _Late(tuple):
    def __new__(cls, ticket):
        made = super().__new__(cls)
        made.ticket = ticket
        return made


@pytest.mark.parametrize("tier", ["ram", "streamed"])
def test_no_memory_is_filled_before_it_has_been_copied(tier, features, monkeypatch):
    """Pinned memory is used again only once what was in it has arrived; batches arrive in order."""
    lane = SlowLane()
    rows = features._of(0)
    source = hold(rows.mapped.columns(), N) if tier == "ram" else rows.open("streamed", torch.device("cpu"))
    order = by_blocks(rows.by_place, 0, 0, 4, 30)
    cuts = batches_of(N, 7, Shard(), False)
    wanted = values_of(features.batches(N))
    for (start, stop), late in zip(cuts, source.serve(order, cuts, ByLane(torch.device("cpu"), lane)), strict=True):
        for all_rows, some in zip(wanted, late.ticket["made"], strict=True):
            assert torch.equal(some, all_rows[order.part(start, stop)])
    assert lane.sent == lane.received == len(cuts)


def test_copies_are_a_batch_ahead(plain):
    """While a batch is used, the next one travels."""
    lane, cuts = SlowLane(), batches_of(N, 50, Shard(), False)
    source = hold(plain._of(0).mapped.columns(), N)
    for number, _ in enumerate(source.serve(in_order(N), cuts, ByLane(torch.device("cpu"), lane))):
        assert lane.sent == min(number + 2, len(cuts))


def test_an_error_while_gathering_for_a_device_is_seen():
    """A thread that fails ends the feed with its error."""

    class Broken:
        slot = Slot("0", torch.float32, (2,))

        def gather(self, at, out):
            raise StoreError("gone")

    courier = ByLane(torch.device("cpu"), SlowLane())
    with pytest.raises(StoreError, match="gone"):
        list(courier.carry(lambda: [Column([Broken()], None)], [slice(0, 3)]))


# --- memory ------------------------------------------------------------------------------------------------------


def test_sizes_are_read_as_people_write_them():
    """Bytes, or text with a unit."""
    assert [bytes_of(size) for size in (1, "2GB", "1.5 MiB", "512kb", "7 b")] == [1, 2 * 10**9, 3 * 2**19, 512_000, 7]
    for wrong in (0, -1, "lots", "5 parsecs", True, "0"):
        with pytest.raises(DataError, match="memory='2GB'"):
            bytes_of(wrong)


@pytest.mark.parametrize(
    ("own", "limits", "wanted"),
    [
        ("0::/\n", {}, 8_000_000 * 1024),
        ("0::/\n", {"": ("1000", "400", "inactive_file 100\n")}, 700),
        ("0::/a/b\n", {"": ("max", "0", ""), "a": ("5000", "1000", ""), "a/b": ("max", "10", "")}, 4000),
        ("0::/a\n", {"a": ("10", "400", "")}, 0),
        ("12:memory:/x\n", {}, 8_000_000 * 1024),
    ],
)
def test_available_memory_is_the_least_of_what_is_there_and_allowed(own, limits, wanted, tmp_path):
    """The machine's, and that of each control group above the process; cached files count as free."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000000 kB\n")
    (proc / "self" / "cgroup").write_text(own)
    for folder, (most, used, stat) in limits.items():
        (groups / folder).mkdir(parents=True, exist_ok=True)
        for name, text in (("memory.max", most), ("memory.current", used), ("memory.stat", stat)):
            (groups / folder / name).write_text(text)
    assert available_bytes(proc, groups) == wanted
    assert available_bytes(tmp_path / "none", groups / "none") is None
