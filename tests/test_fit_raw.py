"""`fit` on raw data: stored, live and write-through are one thing to the heads."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import FitError, ForethoughtError
from forethought.extracting.frozen import FrozenPart
from forethought.fitting.weights import tensors_of
from forethought.ledger.journal import read_journal
from forethought.samples.dataset import Samples

N, N_VAL = 333, 90
RUNS = ("stored", "live", "write-through")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(width=8):
    """A small convolutional classifier, frozen but for its last layer."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, width, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(width * 4, 3),
    )  # fmt: skip
    body.eval()
    for module in list(body)[:-1]:
        module.requires_grad_(False)
    return body


def data_of(rows, seed=1):
    mixer = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 10, 10, generator=mixer)
    return images, (images.mean((1, 2, 3)) > 0).long() + (images[:, 0].mean((1, 2)) > 0.05).long()


class Listed(torch.utils.data.Dataset):
    """Samples by index, which count how often they are read."""

    def __init__(self, rows, seed=1):
        self.images, self.labels = data_of(rows, seed)
        self.reads = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.images[index], int(self.labels[index])


class Counting(nn.Module):
    """Counts the samples that its frozen part is run on."""

    def __init__(self):
        super().__init__()
        self.body = model_of()
        self.rows = 0

    def forward(self, x):
        return self.body(x)


def run_it(how, folder, model=None, data=None, val=None, heads=None, **options):
    model, data, val = model or model_of(), data or data_of(N), val or data_of(N_VAL, 2)
    store = None if how == "live" else folder / how
    heads = heads or {
        "own": {"kind": "linear", "lr": [1e-2, 3e-2]},
        "mlp": {"kind": "mlp", "width": 8, "dropout": 0.2},
        "narrow": {"kind": "mlp", "width": 4, "seed": [0, 1]},
    }
    options = {"epochs": 3, "batch_size": 50, "progress": False} | options
    return ft.fit(model, data, heads, val=val, run=how, store=store, **options)


def furthest(one, other):
    """How far weights of two results lie apart, beside their size."""
    worst = 0.0
    for result in one:
        a, b = (
            torch.cat([t.detach().flatten().double() for t in tensors_of(each.head).values()])
            for each in (result, other[result.name])
        )
        worst = max(worst, float((a - b).norm() / a.norm()))
    return worst


def trunk_rows(monkeypatch):
    """Count the samples that frozen parts are run on, trial runs aside."""
    counted = []
    real = FrozenPart._run_there
    monkeypatch.setattr(FrozenPart, "_run_there", lambda self, batch: counted.append(batch.rows) or real(self, batch))
    return counted


@pytest.mark.parametrize(
    "options", [{}, {"standardize": True}, {"optimizer": "sgd", "momentum": 0.9, "class_weight": "balanced"}]
)
@pytest.mark.parametrize("kind", [data_of, Listed])
def test_heads_are_the_same_however_they_are_run(tmp_path, kind, options):
    """Weights after three epochs within 1e-5 of their size, scores of every epoch within 1e-5."""
    results = [run_it(how, tmp_path, data=kind(N), val=kind(N_VAL, 2), **options) for how in RUNS]
    for other in results[1:]:
        assert [r.name for r in results[0]] == [r.name for r in other]
        assert furthest(results[0], other) < 1e-5
        for result in results[0]:
            scores = [[m.val_score for m in each[result.name].metrics] for each in (results[0], other)]
            assert np.allclose(*scores, rtol=1e-5)


@pytest.mark.parametrize(("how", "passes"), [("live", 3), ("stored", 1), ("write-through", 1)])
def test_frozen_part_is_run_once_a_sample_and_pass(tmp_path, monkeypatch, how, passes):
    """Live: once a sample, epoch and side, for all heads together. With a store: once a sample."""
    counted = trunk_rows(monkeypatch)
    run_it(how, tmp_path)
    glance = 0 if how == "stored" else 2
    assert sum(counted) == passes * (N + N_VAL) + glance


def test_write_through_fills_the_store(tmp_path):
    """Afterwards `extract` finds every row, reads no file twice and computes nothing; rows equal the model's."""
    model, data = model_of(), Listed(N)
    run_it("write-through", tmp_path, model, data)
    features = ft.extract(model, data, tmp_path / "write-through", progress=False)
    assert features.report.rows_computed == 0
    assert features.verify(N).is_right
    assert features.targets.tolist() == data.labels.tolist()
    exact = ft.extract(model, data, tmp_path / "other", progress=False)
    assert np.allclose(features.numpy(), exact.numpy(), atol=1e-6)


def test_another_seed_is_another_fit(tmp_path):
    """The law above is no empty one."""
    assert furthest(run_it("live", tmp_path), run_it("live", tmp_path, seed=5)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, "int8"])
def test_rounded_rows_are_fed_as_they_are_stored(tmp_path, dtype):
    """With dtype=, the first epoch of write-through is given what later ones read."""
    one, other = (run_it(how, tmp_path, dtype=dtype) for how in ("stored", "write-through"))
    assert furthest(one, other) < 1e-5


class Interrupting(Listed):
    """Is broken off, as by Ctrl-C, when so many samples were read."""

    after = None

    def __getitem__(self, index):
        if self.after is not None:
            self.after -= 1
            if self.after < 0:
                raise KeyboardInterrupt
        return super().__getitem__(index)


def own_head():
    torch.manual_seed(3)
    return {"own": nn.Linear(32, 3)}


OWN = {"loss": "cross_entropy", "metric": "accuracy"}


def test_write_through_that_is_broken_off_leaves_a_right_store_and_goes_on(tmp_path, monkeypatch):
    """What was computed is not computed again; the heads are those of an undisturbed run, and so are the rows."""
    counted = trunk_rows(monkeypatch)
    model, data, val = model_of(), Interrupting(N), data_of(N_VAL, 2)
    whole = run_it("write-through", tmp_path / "a", model, data, val, own_head(), **OWN)
    reads, computed = len(data.reads), sum(counted)
    assert computed == N + N_VAL
    data.after = 250  # probes and the first looks among them
    broken = run_it("write-through", tmp_path / "b", model, data, val, own_head(), **OWN)
    assert broken.interrupted
    assert broken["own"].score is None
    done = sum(counted) - computed
    assert N_VAL < done < N + N_VAL
    data.after = None
    again = run_it("write-through", tmp_path / "b", model, data, val, own_head(), **OWN)
    assert sum(counted) == 2 * (N + N_VAL)
    assert furthest(whole, again) < 1e-5
    features = ft.extract(model, data, tmp_path / "b" / "write-through", progress=False)
    assert features.report.rows_computed == 0
    assert features.verify(N).is_right
    assert reads > N


def test_write_through_epochs_after_the_first_read_the_store(tmp_path):
    """A sample is read once for the rows, beside the few that are looked at; never again."""
    data = Listed(N)
    run_it("write-through", tmp_path, data=data, heads=own_head(), **OWN)
    assert len(data.reads) < N + 150


def test_write_through_serves_what_is_stored(tmp_path, monkeypatch):
    """Samples that were stored before, and such as come twice, are computed once."""
    model, (images, labels) = model_of(), data_of(N)
    run_it("stored", tmp_path / "x", model, (images[:100], labels[:100]))
    counted = trunk_rows(monkeypatch)
    twice = torch.cat([images, images[:50]]), torch.cat([labels, labels[:50]])
    store = tmp_path / "x" / "stored"
    ft.fit(
        model,
        twice,
        own_head(),
        val=data_of(N_VAL, 2),
        run="write-through",
        store=store,
        epochs=2,
        batch_size=40,
        progress=False,
        **OWN,
    )
    assert sum(counted) == N - 100 - 0
    features = ft.extract(model, twice, store, progress=False)
    assert features.report.rows_computed == 0
    assert features.verify(N + 50).is_right


def test_damaged_rows_are_computed_again(tmp_path, recwarn):
    """Bytes that are not what was written are never fed, in write-through either."""
    model, data = model_of(), data_of(N)
    ft.extract(model, (data[0][:200], data[1][:200]), tmp_path / "write-through", progress=False)
    segment = max((tmp_path / "write-through").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    raw = bytearray(segment.read_bytes())
    raw[-5] ^= 255
    segment.chmod(0o644)
    segment.write_bytes(raw)
    with pytest.warns(Warning, match="amaged"):
        results = run_it("write-through", tmp_path, model, data)
    assert furthest(results, run_it("live", tmp_path, model, data)) < 1e-5


@pytest.mark.parametrize("how", RUNS)
def test_own_head_is_trained_where_none_is_given(tmp_path, how):
    """A copy of what trains in the model; written back, the model itself gives what the head gave."""
    model, (images, labels) = model_of(), data_of(N)
    before = copy.deepcopy(model.state_dict())
    store = None if how == "live" else tmp_path / how
    results = ft.fit(
        model,
        (images, labels),
        val=data_of(N_VAL, 2),
        run=how,
        store=store,
        epochs=2,
        batch_size=64,
        lr=0.05,
        progress=False,
        **OWN,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    results.best.apply_to(model)
    assert not torch.equal(model[-1].weight, before["7.weight"])
    correct = (model(data_of(N_VAL, 2)[0]).argmax(1) == data_of(N_VAL, 2)[1]).float().mean()
    assert float(correct) == pytest.approx(results.best.score)


@pytest.mark.parametrize("how", RUNS)
def test_samples_that_differ_in_size(tmp_path, how):
    """Padded for the head as it would have been live: the same heads, whichever way."""
    torch.manual_seed(0)

    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, 8, padding_idx=0)
            self.last = nn.Linear(8, 2)

        def forward(self, ids):
            values = self.words(ids)
            return self.last(values).masked_fill((ids == 0)[..., None], 0).sum(1)

    model = Texts()
    model.words.requires_grad_(False)
    mixer = torch.Generator().manual_seed(0)
    texts = [
        torch.randint(1, 50, (int(size),), generator=mixer) for size in torch.randint(3, 9, (120,), generator=mixer)
    ]
    data = [(text, int(text[0] % 2)) for text in texts]

    def collate(samples):
        ids = nn.utils.rnn.pad_sequence([ids for ids, _ in samples], batch_first=True)
        return ids, torch.tensor([label for _, label in samples])

    options = {
        "collate_fn": collate,
        "val": data[:40],
        "epochs": 2,
        "batch_size": 30,
        "progress": False,
        "lr": 0.1,
        **OWN,
    }
    stored = ft.fit(model, data, run="stored", store=tmp_path / "s", **options)
    store = None if how == "live" else tmp_path / how
    assert furthest(stored, ft.fit(model, data, run=how, store=store, **options)) < 1e-5


class Noisy(Listed):
    """A transform draws anew each time."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.randn(image.shape) * 0.1, label


def test_random_transforms_may_be_live_only(tmp_path):
    """Live draws anew each epoch, the same for the same seed; what is kept must repeat itself."""
    one, other = (run_it("live", tmp_path, data=Noisy(N), heads=own_head(), **OWN) for _ in range(2))
    assert furthest(one, other) == 0
    with pytest.raises(ForethoughtError, match="the same each time"):
        run_it("write-through", tmp_path, data=Noisy(N), heads=own_head(), **OWN)


@pytest.mark.parametrize("how", RUNS)
def test_a_frozen_part_that_draws_is_refused(tmp_path, how):
    """Whichever way it is run: its rows would not be those of another way."""
    model = nn.Sequential(model_of()[:-1], nn.Dropout(0.5), nn.Linear(32, 3))
    model[:2].requires_grad_(False)
    model.train()
    with pytest.raises(ForethoughtError, match="Cannot store features"):
        run_it(how, tmp_path, model, heads=own_head(), **OWN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": None}, "expected samples to rank them on"),
        ({"run": "stored"}, "expected a store"),
        ({"run": "live", "store": "s"}, "expected no store"),
        ({"run": "live", "dtype": torch.float16}, "expected rows as the model gives them"),
        ({"run": "sideways"}, "expected run= to be one of"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    """Before anything runs, with the fix."""
    with pytest.raises(FitError, match=message):
        ft.fit(model_of(), data_of(20), own_head(), **{"val": data_of(10), **options})


@pytest.mark.parametrize("how", RUNS[1:])
def test_an_iterable_has_no_order_to_train_in(tmp_path, how):
    """Live and write-through shuffle: they need samples by index, and say what to do."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(image, int(label)) for image, label in zip(*data_of(20), strict=True)])

    with pytest.raises(ForethoughtError, match="samples by index"):
        run_it(how, tmp_path, data=Stream(), heads=own_head(), **OWN)


@pytest.mark.parametrize("how", ["live", "write-through"])
def test_a_checkpoint_goes_on(tmp_path, how):
    """Broken off in a later epoch, the same call ends as if it had not been; another model is another fit."""
    calls, path = [], tmp_path / "fit.safetensors"

    def loss(output, target):
        calls.append(len(calls))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, target)

    options = {"heads": own_head(), "epochs": 4, "loss": loss, "metric": "accuracy"}
    assert run_it(how, tmp_path / "b", checkpoint=path, **options).interrupted
    again = run_it(how, tmp_path / "b", checkpoint=path, **options)
    whole = run_it(how, tmp_path / "a", **options)
    assert len(again["own"].metrics) == 4
    assert not whole.interrupted
    assert furthest(whole, again) < 1e-5
    model = model_of()
    model[0].bias.data += 1
    with pytest.raises(FitError, match="expected train rows as before"):
        run_it(how, tmp_path / "b", model, checkpoint=path, **options)


def test_rows_chosen_in_any_order_come_in_that_order():
    """A run of numbers whose ends are as far apart as it is long may still be none."""
    images, labels = data_of(30)
    samples = Samples((images, labels), model_of(), batch_size=4)
    order = np.array([2, 9, 0, 5, 7, 6, 4, 10, 1, 3])
    batches = [batch for batch, _ in samples.read(order)]
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), images[order])
    assert torch.equal(torch.cat([batch.targets for batch in batches]), labels[order])


def test_ledger_tells_rows_that_were_really_read(tmp_path):
    """Of write-through, the first pass over training rows was none from the store."""
    run_it("write-through", tmp_path, epochs=3)
    rows = read_journal(ft.Store(tmp_path / "write-through").place).rows
    fits = [row for row in rows if row.phase == "fit"]
    assert [sum(row.facts["fed"].values()) for row in fits] == [2 * N + 3 * N_VAL]
    stored = [row for row in rows if row.phase == "extract" and row.facts["rows"] == N]
    assert [(row.facts["rows_reused"], row.facts["avoided_s"]) for row in stored] == [(0, None)]


def test_workers_read_in_order(tmp_path):
    """Processes that read samples change nothing."""
    one, other = (
        run_it("live", tmp_path, data=Listed(N), num_workers=workers, heads=own_head(), **OWN) for workers in (0, 2)
    )
    assert furthest(one, other) == 0
