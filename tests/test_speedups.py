"""`extract(speed="fast")`: measured, within a tolerance, never served for anything else."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import forethought as ft
from forethought.errors import DataError, SpeedError
from forethought.extracting import speedups
from forethought.extracting.capturing import Runner
from forethought.extracting.speedups import row_error
from forethought.extracting.ways import SpeedReport, Way
from forethought.samples.dataset import Samples


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Compiling takes long, and is torch's: here it stands for running as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    monkeypatch.setattr(speedups, "_TURNS", 1)
    yield
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def convolutional():
    """Convolutions with batch norms that have seen something, a residual, and a head."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            return torch.relu(x + self.norm(self.conv(x)))

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Residual(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8 * 9, 5), nn.LayerNorm(5), nn.Linear(5, 2),
    )  # fmt: skip
    with torch.no_grad():
        model(torch.randn(64, 3, 8, 8) * 2 + 1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    model.eval().requires_grad_(False)
    model[-1].requires_grad_(True)
    return model


def attentive():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(16 * 5, 2)).eval().requires_grad_(False)
    model[-1].requires_grad_(True)
    return model


IMAGES = torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(1))
WORDS = torch.randn(90, 5, 16, generator=torch.Generator().manual_seed(1))
CASES = pytest.mark.parametrize(("make", "data"), [(convolutional, IMAGES), (attentive, WORDS)])
WAYS = [
    Way(folded=True), Way(folded=True, channels_last=True), Way(folded=True, bfloat16=True),
    Way(folded=True, channels_last=True, bfloat16=True), Way(channels_last=True), Way(bfloat16=True), Way(threads=2),
]  # fmt: skip


EXACT = Way()


def forced(monkeypatch, way):
    """Have a way look fastest."""
    real = speedups._Choosing.measure

    def measure(self, asked, base=EXACT):
        found = real(self, asked, base)
        return found and (1000.0 if asked == way else 1.0)

    monkeypatch.setattr(speedups._Choosing, "measure", measure)


FAST = Way(folded=True, channels_last=True, bfloat16=True)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@CASES
def test_every_way_gives_the_rows(make, data, way):
    """Up to what it rounds, whatever number of samples comes, and the model and its inputs stay as they are."""
    model = make()
    before = copy.deepcopy(model.state_dict())
    split = ft.split(model, data[:4])
    batch = next(Samples(data, model, batch_size=7).read())[0]
    runner = Runner(split, way, batch, 7)
    for rows in (7, 3, 1, 20):
        exact = split.rows((data[:rows].clone(),), {})
        given = next(Samples(data[:rows], model, batch_size=rows).read())[0]
        kept = given.tensors[0].clone()
        (fast,) = runner(given.copied_to(torch.device("cpu")))
        assert fast.dtype == exact[0].dtype
        assert row_error(exact[0], fast) < (0.02 if way.bfloat16 else 1e-5)
        assert torch.equal(given.tensors[0], kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_folding_leaves_no_norm():
    """Every batch norm of an eval model disappears into its convolution."""
    model = convolutional()
    split = ft.split(model, IMAGES[:4])
    batch = next(Samples(IMAGES, model, batch_size=8).read())[0]
    graph = Runner(split, Way(folded=True), batch, 8)._graph
    names = [str(node.target) for node in graph.graph.nodes]
    assert not any("norm" in name for name in names if "layer_norm" not in name)
    assert sum("convolution" in name for name in names) == 2


def test_the_choice_is_remembered_and_reported(tmp_path):
    """A second call measures nothing; the table names every way with speed and error, or why it has none."""
    model = convolutional()
    first = ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)
    again = ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)
    told, kept = first.report.speed, again.report.speed
    assert (first.report.rows_computed, again.report.rows_computed) == (90, 0)
    assert (told.is_remembered, kept.is_remembered) == (False, True)
    assert (kept.way, kept.tried) == (told.way, told.tried)
    assert told.chosen.reason == ""
    assert all(each.error <= told.tolerance for each in told.tried if each.reason == "")
    named = " ".join(each.way.name for each in told.tried)
    assert all(name in named for name in ("exact", "folded", "channels last", "bfloat16", "compiled", "batches of"))
    assert str(told) in str(first.report)
    assert "\n" not in repr(first)
    assert SpeedReport.from_json(told.to_json()).tried == told.tried
    more = ft.extract(model, torch.cat([IMAGES, IMAGES + 1]), tmp_path, speed="fast", progress=False)
    assert (more.report.rows_computed, more.report.speed.is_remembered) == (90, True)


@pytest.mark.parametrize("way", [FAST, Way(folded=True)])
def test_fast_rows_are_never_served_for_others(tmp_path, monkeypatch, way):
    """Exact rows, those of another way and those of another tolerance have tables of their own."""
    model = convolutional()
    with monkeypatch.context() as patch:
        forced(patch, way)
        fast = ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)
    assert fast.report.speed.way == way
    exact = ft.extract(model, IMAGES, tmp_path, progress=False)
    assert exact.report.rows_computed == 90
    assert exact.report.speed is None
    assert exact.verify(90).exact_rows == 90
    with monkeypatch.context() as patch:
        forced(patch, Way(folded=True, channels_last=True))
        other = ft.extract(model, IMAGES, tmp_path, speed="fast", tolerance=0.01, progress=False)
    assert other.report.rows_computed == 90
    assert len({each.table.fingerprint for each in (fast, exact, other)}) == 3
    assert not np.array_equal(fast.numpy(), exact.numpy())
    assert ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False).table.fingerprint == fast.table.fingerprint


def test_a_choice_that_is_exact_shares_the_exact_rows(tmp_path, monkeypatch):
    """Batch size and threads are as free as always."""
    model = convolutional()
    forced(monkeypatch, Way(batch_size=16))
    fast = ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)
    assert fast.report.speed.way == Way(batch_size=16)
    assert ft.extract(model, IMAGES, tmp_path, progress=False).report.rows_computed == 0


def test_nothing_beyond_the_tolerance_is_taken(tmp_path, monkeypatch):
    """However fast it looks."""
    forced(monkeypatch, FAST)
    features = ft.extract(convolutional(), IMAGES, tmp_path, speed="fast", tolerance=1e-4, progress=False)
    speed = features.report.speed
    assert not speed.way.bfloat16
    assert next(each for each in speed.tried if each.way == FAST).reason == "error above 0.0001"


def test_verify_judges_fast_rows_by_the_tolerance(tmp_path, monkeypatch):
    """Right within it, wrong beyond; the message says both."""
    forced(monkeypatch, FAST)
    model = convolutional()
    features = ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)
    found = features.verify(50)
    assert found.is_right
    assert "folded + channels last + bfloat16" in str(found)
    model[-2].bias.data += 0.2
    assert not features.verify(50).is_right


def test_without_a_compiler_that_way_is_unavailable(tmp_path, monkeypatch):
    """Listed with the reason; the others are measured."""

    def missing(graph, **_):
        raise RuntimeError("no C++ compiler was found\nset CXX")

    monkeypatch.setattr(torch, "compile", missing)
    speed = ft.extract(convolutional(), IMAGES, tmp_path, speed="fast", progress=False).report.speed
    compiled = [each for each in speed.tried if each.way.compiled]
    assert compiled
    assert {each.reason for each in compiled} == {"unavailable: RuntimeError: no C++ compiler was found"}
    assert not speed.way.compiled


def test_a_way_that_is_gone_is_refused(tmp_path, monkeypatch):
    """Chosen where there was a compiler, taken up where there is none: rows of another kind are not mixed in."""
    model = convolutional()
    with monkeypatch.context() as patch:
        forced(patch, Way(folded=True, channels_last=True, compiled=True))
        patch.setattr(speedups, "_GAIN", 0.0)
        chosen = ft.extract(model, IMAGES[:40], tmp_path, speed="fast", progress=False).report.speed.way

    def missing(graph, **_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", missing)
    assert chosen.compiled
    with pytest.raises(SpeedError, match=r"as it was chosen.*no compiler.*tolerance="):
        ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)


class Deciding(nn.Module):
    """Takes another path for other values."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 4).requires_grad_(False)
        self.last = nn.Linear(4, 2)

    def inner(self, x):
        return self.body(x) * (2 if bool((x > 1e9).any()) else 1)

    def forward(self, x):
        return self.last(self.inner(x.mean(1)))


def test_a_frozen_part_that_values_steer_is_not_captured(tmp_path):
    """A graph would hold what one batch decided: it stays exact, and the table says why."""
    features = ft.extract(Deciding(), WORDS, tmp_path, speed="fast", batch_size=32, progress=False)
    speed = features.report.speed
    assert speed.way.is_exact
    reasons = {each.reason for each in speed.tried if not each.way.is_exact}
    assert all(reason.startswith("unavailable: ") and "value" in reason for reason in reasons)
    assert features.verify(90).is_right


def test_samples_that_differ_in_size_stay_exact(tmp_path):
    """No graph is for all sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4, padding_idx=0), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    data = [torch.arange(1, 3 + at % 4) for at in range(40)]
    collate = lambda items: nn.utils.rnn.pad_sequence(items, batch_first=True)  # noqa: E731
    features = ft.extract(model, data, tmp_path, collate_fn=collate, speed="fast", progress=False)
    assert features.report.speed.way.is_exact
    assert "differ in size" in str(features.report)


def test_rounded_storing_and_iterables_go_together_with_it(tmp_path, monkeypatch):
    """int8 takes its scales from the rows as they are computed."""
    forced(monkeypatch, FAST)
    model = convolutional()
    small = ft.extract(model, IMAGES, tmp_path, speed="fast", dtype="int8", progress=False)
    exact = ft.extract(model, IMAGES, tmp_path, progress=False)
    assert row_error(*(torch.tensor(each.numpy()) for each in (exact, small))) < 0.05
    assert small.verify(40).is_right

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(IMAGES)

    streamed = ft.extract(model, Stream(), tmp_path / "b", speed="fast", progress=False)
    assert streamed.report.rows_computed == 90
    assert streamed.verify(40).is_right


@pytest.mark.parametrize(
    "options", [{"speed": "faster"}, {"speed": "fast", "tolerance": -1}, {"speed": "fast", "tolerance": math.nan}]
)
def test_no_such_speed_is_refused(tmp_path, options):
    """With the fix."""
    with pytest.raises(DataError, match="Cannot extract"):
        ft.extract(convolutional(), IMAGES, tmp_path, **options)


def test_a_graph_is_for_inputs_of_one_form():
    """Another type or size is refused, not run as if it were the first."""
    model = attentive()
    split = ft.split(model, WORDS[:4])
    batches = [next(Samples(data, model, batch_size=4).read())[0] for data in (WORDS, WORDS.double(), WORDS[:, :3])]
    runner = Runner(split, Way(folded=True), batches[0], 4)
    for batch in batches[1:]:
        with pytest.raises(SpeedError, match="in the form of the first ones"):
            runner(batch)


def test_a_changed_model_has_another_choice(tmp_path):
    """A weight more or less is another trunk: it is measured, and its rows are its own."""
    model = convolutional()
    first = ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)
    model[0].weight.data[0, 0, 0, 0] += 1
    other = ft.extract(model, IMAGES, tmp_path, speed="fast", progress=False)
    assert not other.report.speed.is_remembered
    assert other.table.fingerprint != first.table.fingerprint
    assert other.verify(90).is_right


@pytest.mark.slow
def test_compiled_rows_are_near(monkeypatch):
    """By the real compiler, where there is one."""
    monkeypatch.undo()
    model = convolutional()
    split = ft.split(model, IMAGES[:4])
    batch = next(Samples(IMAGES, model, batch_size=8).read())[0]
    try:
        runner = Runner(split, Way(folded=True, compiled=True), batch, 8)
    except SpeedError as err:
        pytest.skip(f"no compiler: {err}")
    exact = split.rows((IMAGES[:13].clone(),), {})
    assert row_error(exact[0], runner(next(Samples(IMAGES[:13], model, batch_size=13).read())[0])[0]) < 1e-5


def test_rows_that_are_no_numbers_anywhere_are_told_apart(tmp_path, monkeypatch):
    """A way that makes infinities is not taken; the choice can be kept nevertheless."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(16, 4).requires_grad_(False)
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.where(self.body(x.mean(1)) * 0 == 0, 1.0, 1.0) / 0.0)

    first = ft.extract(Large(), WORDS, tmp_path, speed="fast", batch_size=32, progress=False)
    assert ft.extract(Large(), WORDS, tmp_path, speed="fast", batch_size=32, progress=False).report.speed is not None
    assert first.report.speed.chosen.error == 0.0


def test_a_torn_note_is_no_choice():
    """What is not wholly understood is measured anew."""
    report = SpeedReport(Way(), (), 0.02, 0.0, 1, "cpu", 1, 0.0).to_json()
    assert SpeedReport.from_json({}) is None
    assert SpeedReport.from_json(report) is None
    assert SpeedReport.from_json(report | {"way": {"folded": "yes"}}) is None
