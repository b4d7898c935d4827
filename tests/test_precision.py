"""The laws of features stored smaller: never clipped, never mixed with exact rows, and off by what the report says."""

import json
import math
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset

import forethought as ft
from forethought.errors import ForethoughtError, PrecisionError, StoreError
from forethought.extracting.calibration import Trial
from forethought.extracting.precision import (
    LEAST_SCALE,
    Rounded,
    Scaled,
    Stored,
    by_channel,
    channels_of,
    gets_smaller,
    scales_of,
)
from forethought.samples.dataset import Samples
from forethought.shapes.forms import Form, FrontierTensor
from forethought.store import Store

DTYPES = [torch.float16, torch.bfloat16, "int8"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16", "int8"])
F32_MAX = torch.finfo(torch.float32).max


class Net(nn.Module):
    def __init__(self, width=8, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, width).requires_grad_(False)
        self.layer.weight.mul_(scale)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.layer(x).relu())


class Passed(nn.Module):
    """Stores its inputs as they are, so that a test chooses the features."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return (x + self.frozen.to(x.dtype)) * self.gain


class Mixed(nn.Module):
    """Floats, whole numbers and truths cross the frontier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3)

    def forward(self, x):
        y = self.layer(x)
        best, sign = y.argmax(1), (self.layer(-x) > y).any(1)
        return self.head(y) * sign[:, None] + best[:, None]


def make_x(rows=40, width=4, seed=1):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def values_of(features):
    return torch.cat([values for values, _ in features.batches(7)])


def exact_of(model, x):
    with torch.no_grad():
        return model.layer(x).relu()


def tensor_of(shape, dtype=torch.float32):
    """A tensor of a frontier, with rows of this shape."""
    form = Form(
        ((1, 0), *((0, size) for size in shape)), ((0, 1),) * (1 + len(shape)), dtype, torch.device("cpu"), True
    )
    return FrontierTensor("it", form, 2)


def half_step(coding, power):
    """Half of the distance between neighbours: (B, 1, C, 1), in double precision."""
    return (coding.scales.double() * 2.0 ** power.double()[:, None] / 2)[:, None, :, None]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def runs(monkeypatch):
    """Counts every call of every module."""
    seen = []
    call = nn.Module._call_impl

    def counted(self, *args, **kwargs):
        seen.append(type(self).__name__)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "_call_impl", counted)
    return seen


# --- encode and decode -------------------------------------------------------------------------------------------

floats = st.one_of(
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e30, -1e30, 1e-30, F32_MAX / 2, -F32_MAX / 2]),
    st.tuples(st.floats(-30, 30), st.sampled_from([-1, 1])).map(lambda it: it[1] * 10.0 ** it[0]),
)


@st.composite
def some_rows(draw):
    """Rows of any shape, magnitudes far apart within a row, and rows that the scales come from, of another kind."""
    shape = draw(st.lists(st.integers(1, 4), max_size=4))
    count, met = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    size = math.prod(shape)
    numbers = st.lists(floats, min_size=size * count, max_size=size * count)
    calibration = st.lists(floats, min_size=size * met, max_size=size * met)
    rows = torch.tensor(draw(numbers), dtype=torch.float64).float().reshape(count, *shape)
    return rows, torch.tensor(draw(calibration), dtype=torch.float64).float().reshape(met, *shape)


@settings(max_examples=400, deadline=None)
@given(some_rows())
@example((torch.tensor([[1e30, 1e-30, 0.0]]), torch.tensor([[1e-30, 1e30, 0.0]])))
@example((torch.full((1, 1), F32_MAX / 2), torch.zeros(1, 1)))
@example((torch.full((1, 1), 127.5), torch.full((1, 1), 127 / 1.25)))
def test_int8_is_off_by_half_a_step_whatever_the_scales_come_from(case):
    """No value is clipped, none overflows, and the power is the least that lets the row fit."""
    rows, met = case
    coding = Scaled(torch.float32, scales_of(met))
    assert bool((coding.scales >= LEAST_SCALE).all())
    quotients, power = coding.encode(rows)
    again = coding.decode([quotients, power], "cpu")
    assert (quotients.dtype, power.dtype, again.dtype) == (torch.int8, torch.uint8, torch.float32)
    assert again.shape == rows.shape
    error = by_channel((again.double() - rows.double()).abs())
    rounding = by_channel(rows.double().abs()) * 2**-22
    assert bool((error <= half_step(coding, power) * (1 + 2**-16) + rounding).all())
    reach = 127 * 2 * half_step(coding, power)
    laid = by_channel(rows.double().abs())
    assert bool((laid <= reach).all())
    fits_in_less = (laid <= reach / 2).flatten(1).all(1)
    assert bool(((power == 0) | ~fits_in_less).all())
    assert torch.equal(again[rows == 0], torch.zeros_like(again[rows == 0]))


@settings(max_examples=200, deadline=None)
@given(some_rows(), st.sampled_from([torch.float16, torch.bfloat16]))
def test_rounding_is_to_nearest_and_ties_go_to_even(case, stored):
    rows = case[0].clamp(-torch.finfo(stored).max, torch.finfo(stored).max)
    coding = Rounded(torch.float32, stored)
    (encoded,) = coding.encode(rows)
    again = coding.decode([encoded], "cpu")
    bits = encoded.view(torch.int16)
    for step in (-1, 1):  # neither neighbour is nearer; of two as near, the even one was taken
        other = (bits + step).view(stored).double()
        nearer = (other - rows.double()).abs() < (again.double() - rows.double()).abs()
        tied = (other - rows.double()).abs() == (again.double() - rows.double()).abs()
        is_number = other.isfinite() & (other.sign() * again.double().sign() >= 0)
        assert not bool((nearer & is_number).any())
        assert not bool((tied & is_number & (bits % 2 != 0) & (other != again)).any())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_every_number_of_a_shorter_float_comes_back_bit_for_bit(stored):
    """All 65,536 patterns but those that are refused; subnormal ones and negative zero too."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(stored)
    rows = every[every.isfinite()].float()[:, None]
    coding = Rounded(torch.float32, stored)
    again = coding.decode(coding.encode(rows), "cpu")
    assert torch.equal(again.view(torch.int32), rows.view(torch.int32))


@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (5, 2, 3), (5, 2, 1, 3)])
@pytest.mark.parametrize("power", [0, 1, 9])
def test_whole_steps_come_back_exactly(shape, power):
    """What int8 can represent it represents."""
    channels = channels_of(tensor_of(shape))
    scales = 2.0 ** torch.arange(-3.0, channels - 3)
    coding = Scaled(torch.float32, scales)
    steps = torch.randint(-127, 128, (6, *shape)).float()
    steps.view(6, -1)[:, 0] = 127
    by_channel(steps).mul_(scales[:, None] * 2.0**power)
    encoded = coding.encode(steps)
    assert set(encoded[1].tolist()) == {power}
    assert torch.equal(coding.decode(encoded, "cpu"), steps)


@pytest.mark.parametrize(("shape", "channels"), [((), 1), ((5,), 5), ((3, 5), 5), ((5, 2, 3), 5), ((5, 2, 1, 3), 5)])
def test_a_channel_is_an_entry_of_the_last_axis_and_of_the_first_from_three_on(shape, channels):
    """A loud channel does not touch the precision of the others."""
    assert channels_of(tensor_of(shape)) == channels
    rows = torch.rand(8, *shape) + 0.5
    rows = rows.clone()
    by_channel(rows)[:, :, 0] *= 1e6
    coding = Scaled(torch.float32, scales_of(rows))
    error = by_channel((coding.decode(coding.encode(rows), "cpu") - rows).abs())
    assert error[:, :, 1:].numel() == 0 or float(error[:, :, 1:].max()) < 0.01


def test_a_channel_never_met_gets_the_middle_scale_and_needs_no_power_of_its_own():
    rows = torch.tensor([[1.0, 0.0, 4.0, 16.0], [-2.0, 0.0, 1.0, 1.0]])
    scales = scales_of(rows)
    assert scales.tolist() == pytest.approx([1.25 * peak / 127 for peak in (2, 4, 4, 16)])
    assert scales_of(torch.zeros(3, 2)).tolist() == [1, 1]
    assert Scaled(torch.float32, scales).encode(torch.tensor([[0.0, 4.0, 0.0, 0.0]]))[1].tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_int8_takes_any_float_and_gives_it_back_in_its_own_type(dtype):
    rows = make_x(30, 6).to(dtype)
    coding = Scaled(dtype, scales_of(rows[:10]))
    encoded = coding.encode(rows)
    again = coding.decode(encoded, "cpu")
    assert again.dtype == dtype
    ulp = rows.double().abs() * torch.finfo(dtype).eps
    bound = by_channel(ulp) + half_step(coding, encoded[1]) * (1 + 2**-10)
    assert bool((by_channel((again.double() - rows.double()).abs()) <= bound).all())


@given(st.integers(1, 5), st.integers(1, 4))
def test_rows_do_not_depend_on_their_batch(count, width):
    """A row is encoded alone as in company, so that interrupted work gives the same bytes."""
    rows = make_x(count, width) * 10.0 ** torch.arange(count)[:, None]
    coding = Scaled(torch.float32, scales_of(rows[:1]))
    together = coding.encode(rows)
    for at in range(count):
        assert all(
            torch.equal(part[at], own[0]) for part, own in zip(together, coding.encode(rows[at : at + 1]), strict=True)
        )


# --- refusals ----------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [0, 5, 37])
def test_what_is_not_finite_is_refused_by_name_and_sample(dtype, bad, at, store):
    """Wherever it is: also where no probe looks, in the last batch."""
    x = make_x()
    x[at, 2] = bad
    with pytest.raises(
        PrecisionError, match=rf"expected finite values .* got {bad:g} in sample {at}\. Leave dtype out"
    ):
        ft.extract(Passed(), x, store, batch_size=8, dtype=dtype)
    assert values_of_any(ft.extract(Passed(), x, store, batch_size=8)).isfinite().logical_not().sum() == 1


def values_of_any(features):
    return torch.cat([values for values, _ in features.batches(100)])


@pytest.mark.parametrize(
    ("dtype", "value", "fix"),
    [
        (torch.float16, 65505.0, "Use dtype=torch.bfloat16, or leave dtype out"),
        (torch.float16, -1e30, "Use dtype=torch.bfloat16, or leave dtype out"),
        (torch.bfloat16, F32_MAX, "Leave dtype out"),
        ("int8", -2e38, "Use dtype=torch.bfloat16, or leave dtype out"),
    ],
)
def test_what_is_too_large_is_refused_in_any_batch_and_rows_before_it_stay(dtype, value, fix, store):
    """`ResNet` features of 70,000 must not become infinite in silence. 300 samples: most are in no trial."""
    x = make_x(700)
    x[619, 1] = value
    assert 619 not in Trial(Samples(x, Passed()), 1, lambda batch: []).indices
    with pytest.raises(PrecisionError, match=rf"got {value:g} in sample 619\. {fix}".replace("+", r"\+")):
        ft.extract(Passed(), x, store, batch_size=10, dtype=dtype)
    x[619, 1] = 0.0
    assert ft.extract(Passed(), x, store, batch_size=10, dtype=dtype).report.rows_reused == 610


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 65504.0), (torch.bfloat16, torch.finfo(torch.bfloat16).max)]
)
def test_the_largest_number_is_taken(dtype, value, store):
    x = make_x()
    x[3, 1] = value
    assert float(values_of_any(ft.extract(Passed(), x, store, dtype=dtype))[3, 1]) == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, "float16", "fp8", 16, np.float16])
def test_another_dtype_is_refused_with_those_that_there_are(dtype, store):
    with pytest.raises(PrecisionError, match=r"expected None \(exactly\), torch\.float16, torch\.bfloat16 or 'int8'"):
        ft.extract(Net(), make_x(), store, dtype=dtype)
    assert issubclass(PrecisionError, ForethoughtError | ValueError)


# --- identity ----------------------------------------------------------------------------------------------------


def test_each_precision_has_a_table_of_its_own_and_is_a_complete_hit_again(store, runs):
    """Exact and small rows never mix, and no second call runs the model."""
    model, x = Net(), make_x()
    tables = {}
    for dtype in [None, *DTYPES]:
        first = ft.extract(model, x, store, dtype=dtype)
        assert first.report.rows_computed == 40
        tables[dtype] = first.table.fingerprint
        runs.clear()
        again = ft.extract(model, x, store, dtype=dtype)
        assert (again.report.rows_computed, runs) == (0, [])
        assert again.table.fingerprint == first.table.fingerprint
        assert torch.equal(values_of(again), values_of(first))
        assert again.split.trunk.fingerprint == tables[None]
    assert len(set(tables.values())) == 4
    assert torch.equal(values_of(ft.extract(model, x, store)), exact_of(model, x))
    assert again.table.provenance["trunk"] == tables[None]
    assert again.table.provenance["stored"] == "int8"


@every_dtype
def test_a_complete_hit_needs_no_right_to_write(dtype, store):
    model, x = Net(), make_x()
    first = ft.extract(model, x, store, dtype=dtype)
    again = ft.extract(model, x, Store(store, readonly=True), dtype=dtype)
    assert again.report.rows_computed == 0
    assert again.report.precision == first.report.precision


@given(st.integers(0, 3), st.sampled_from([-1, 1]))
def test_a_changed_scale_is_another_table(at, direction):
    """One unit in the last place suffices; the same scales give the same table in another object."""
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])
    other = scales.clone()
    other[at] = torch.nextafter(other[at], torch.tensor(math.inf * direction))
    ids = [
        Stored("int8", (tensor_of((4,)),), (Scaled(torch.float32, s),)).table_id("ab")
        for s in (scales, scales.clone(), other)
    ]
    assert ids[0] == ids[1] != ids[2]
    kinds = [Rounded(torch.float32, torch.float16), Rounded(torch.float32, torch.bfloat16), None]
    ids += [Stored("it", (tensor_of((4,)),), (kind,)).table_id("ab") for kind in kinds]
    assert len(set(ids)) == 5
    assert ids[-1] == "ab"


def notes_with(store, word):
    return [path for path in Path(store).glob("notes/*/*.note") if word in json.loads(path.read_text().split("\n")[1])]


def test_scales_are_those_of_the_first_data_set_and_later_data_is_added_to_its_table(store):
    """A louder data set fits too: its rows have powers."""
    model, x = Net(), make_x()
    first = ft.extract(model, x, store, dtype="int8")
    louder = torch.cat([x, 100 * make_x(30, seed=2)])
    second = ft.extract(model, louder, store, dtype="int8")
    assert second.report.rows_reused == 40
    assert second.table.fingerprint == first.table.fingerprint
    exact = exact_of(model, louder)
    assert float(((values_of(second) - exact).abs() / exact.abs().amax(1, keepdim=True).clamp(min=1e-9)).max()) < 0.2


STRANGE = [[1.0], [1.0] * 7 + [-1.0], [1.0] * 7 + [1e-45], [1.0] * 7 + [1], "x", [None] * 8, {}]


@pytest.mark.parametrize(
    "note",
    [
        None,
        {},
        *({"samples": 40, "0": scales} for scales in STRANGE),
        {"samples": "40", "0": [1.0] * 8},
        {"0": [1.0] * 8},
    ],
)
def test_a_lost_or_strange_note_of_the_scales_costs_work_and_no_wrong_row(note, store):
    """Other scales are another table: old rows wait there, unread."""
    model, x = Net(), make_x()
    first = ft.extract(model, x, store, dtype="int8")
    (path,) = notes_with(store, "0")
    if note is None:
        path.unlink()
    else:
        Store(store).write_note(path.stem, note)
    other = ft.extract(model, 3 * x, store, dtype="int8")
    assert other.table.fingerprint != first.table.fingerprint
    assert torch.allclose(values_of(other), exact_of(model, 3 * x), atol=0.1)
    assert torch.allclose(values_of(ft.extract(model, x, store, dtype="int8")), exact_of(model, x), atol=0.1)


def test_scales_from_a_few_samples_give_way_once_there_are_twice_as_many(store):
    """A first try on a handful must not spoil what follows; it costs that handful again, and no more."""
    model, x = Net(), make_x(12000)
    handful = ft.extract(model, x[:10], store, dtype="int8")
    assert ft.extract(model, x[:19], store, dtype="int8").table.fingerprint == handful.table.fingerprint
    many = ft.extract(model, x[:20], store, dtype="int8")
    assert many.table.fingerprint != handful.table.fingerprint
    assert many.report.rows_computed == 20
    again = ft.extract(model, x[:10], store, dtype="int8")
    assert (again.table.fingerprint, again.report.rows_computed) == (many.table.fingerprint, 0)
    assert ft.extract(model, x[:5000], store, dtype="int8").report.rows_computed == 5000
    assert ft.extract(model, x, store, dtype="int8").report.rows_reused == 5000


def test_what_gets_no_smaller_is_the_exact_table(store):
    """Half-precision features are as short as float16 already."""
    model, x = Passed(), make_x().half()
    exact = ft.extract(model, x, store)
    same = ft.extract(model, x, store, dtype=torch.bfloat16)
    assert same.report.rows_computed == 0
    assert same.report.precision is None
    assert same.table.fingerprint == exact.table.fingerprint
    assert ft.extract(model, x, store, dtype="int8").report.precision.dtype == "int8"


@pytest.mark.parametrize(
    ("tensor", "smaller"),
    [
        (tensor_of((3,)), True),
        (tensor_of((), torch.float64), True),
        (tensor_of((3,), torch.bfloat16), False),
        (tensor_of((3, 0)), False),
        (tensor_of((3,), torch.int64), False),
    ],
)
def test_only_floats_with_longer_rows_get_smaller(tensor, smaller):
    assert gets_smaller(tensor, "float16") == smaller


@every_dtype
def test_whole_numbers_and_truths_are_stored_as_they_are(dtype, store):
    """Of a mixed frontier only floats get smaller."""
    model, x = Mixed(), make_x()
    exact, small = ft.extract(model, x, store), ft.extract(model, x, store, dtype=dtype)
    kinds = {tensor.dtype for tensor in small.frontier}
    assert kinds == {torch.float32, torch.int64, torch.bool}
    for a, b in zip(next(exact.batches(40))[0], next(small.batches(40))[0], strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=0.05) if a.is_floating_point() else torch.equal(a, b)
    assert small.report.size_bytes < exact.report.size_bytes
    assert small.report.precision.exact_bytes == exact.report.size_bytes
    assert small.report.precision.size_bytes == small.report.size_bytes
    (head_exact, head_small) = (f.head(next(f.batches(40))[0]) for f in (exact, small))
    assert torch.allclose(head_exact, head_small, atol=0.1)


# --- feeding -----------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("segment_rows", [None, 7])
def test_every_way_to_read_gives_the_same_rows_in_the_head_s_own_type(dtype, segment_rows, store):
    model, x = Net(), make_x()
    labels = torch.arange(40)
    features = ft.extract(model, (x, labels), store, batch_size=8, segment_rows=segment_rows, dtype=dtype)
    whole = features.numpy()
    assert (whole.dtype, whole.flags.writeable) == (np.float32, False)
    assert np.array_equal(values_of(features).numpy(), whole)
    assert all(np.array_equal(features[at][0].numpy(), whole[at]) for at in range(40))
    for copy in (pickle.loads(pickle.dumps(features)), features):
        for values, targets in copy.batches(9, shuffle=True, seed=1):
            assert np.array_equal(values.numpy(), whole[targets.numpy()])
            values.zero_()  # a copy of one's own
    loaded = [values for values, _ in DataLoader(features, 8, num_workers=0)]
    assert np.array_equal(torch.cat(loaded).numpy(), whole)
    assert np.array_equal(features.numpy(), whole)


@every_dtype
def test_rows_are_decoded_where_they_are_wanted(dtype, store):
    """They travel as they are stored. The meta device stands for any other."""
    features = ft.extract(Net(), 9 * make_x(600), store, dtype=dtype)
    for values, _ in features.batches(100, device="meta"):
        assert (values.device.type, values.dtype, values.shape) == ("meta", torch.float32, (100, 8))


@every_dtype
def test_order_and_company_of_samples_do_not_change_a_row(dtype, store):
    model, x = Net(), make_x()
    first = ft.extract(model, x, store, dtype=dtype)
    turned = ft.extract(model, x.flip(0), store, dtype=dtype, batch_size=3)
    assert turned.report.rows_computed == 0
    assert torch.equal(values_of(turned), values_of(first).flip(0))


@every_dtype
def test_any_kind_of_data_set_can_be_tried_out(dtype, store):
    """An iterable is tried on its first samples; it may not be begun a second time within the pass."""

    class Once:
        def __init__(self):
            self.open = 0

        def __iter__(self):
            assert self.open == 0, "read twice at once"
            self.open += 1
            try:
                yield from [(row, at) for at, row in enumerate(make_x())]
            finally:
                self.open -= 1

    model = Net()
    features = ft.extract(model, Once(), store, dtype=dtype, batch_size=8)
    assert torch.allclose(values_of(features), exact_of(model, make_x()), atol=0.05)
    assert features.report.precision.samples == 40
    one = ft.extract(model, make_x(1, seed=9), store, dtype=dtype)
    assert torch.allclose(values_of(one), exact_of(model, make_x(1, seed=9)), atol=0.05)


def test_exact_features_are_opened_as_before(store):
    """No decoding stands between a head and exact rows."""
    features = ft.extract(Net(), make_x(), store)
    assert features.codings == (None,)
    assert features._mapped(0)[0].coding is None
    assert features.report.precision is None


# --- the report --------------------------------------------------------------------------------------------------


def brute(model, exact, fed):
    """What the report must say, number by number."""
    error = [abs(a - b) for a, b in zip(exact.flatten().tolist(), fed.flatten().tolist(), strict=True)]
    relative = [e / abs(a) if e else 0.0 for e, a in zip(error, exact.flatten().tolist(), strict=True)]
    with torch.no_grad():
        out, out_fed = model.head(exact).double(), model.head(fed).double()
    return {
        "largest_error": max(error),
        "mean_error": sum(error) / len(error),
        "largest_relative_error": max(relative),
        "mean_relative_error": sum(relative) / len(relative),
        "output_error": float((out - out_fed).abs().max()),
        "output_spread": float(out.var(0, correction=0).mean().sqrt()),
        "same_argmax": sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(out, out_fed, strict=True)) / len(out),
    }


@every_dtype
@pytest.mark.parametrize("rows", [1, 2, 40, 300])
def test_the_report_is_what_a_brute_force_comparison_gives(dtype, rows, store):
    """On samples spread over the data; for int8 all, or those that set no scale where there are too many to try."""
    model, x = Net(), make_x(rows)
    features = ft.extract(model, x, store, dtype=dtype, batch_size=16)
    report = features.report.precision
    count = min(rows, 256)
    chosen = [round(at * (rows - 1) / max(count - 1, 1)) for at in range(count)]
    chosen = chosen[1::2] if dtype == "int8" and rows >= 256 else chosen
    assert report.samples == len(chosen)
    expected = brute(model, exact_of(model, x)[chosen], torch.from_numpy(features.numpy().copy())[chosen])
    assert {name: getattr(report, name) for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert report.size_bytes == features.report.size_bytes == rows * (8 * 2 if dtype != "int8" else 8 + 1)
    assert report.exact_bytes == rows * 32
    assert report.reason == ""
    again = ft.extract(model, x, store, dtype=dtype).report.precision
    assert again == report


def test_the_report_reads_well(store):
    report = ft.extract(Net(), make_x(), store, dtype=torch.float16).report
    assert " MB as float16, " in str(report)
    for said in (
        "float16: ",
        "50% of the exact",
        "at most",
        "spreads",
        "argmax kept in 100.0%",
        "measured on 40 samples",
    ):
        assert said in str(report.precision)


def test_a_lost_note_of_the_errors_leaves_them_unknown(store):
    """None, not zero; and no model is run for it."""
    model, x = Net(), make_x()
    ft.extract(model, x, store, dtype=torch.float16)
    (path,) = notes_with(store, "precision")
    for strange in (None, {"precision": 3}, {"precision": {"nonsense": 1}}):
        path.unlink() if strange is None else Store(store).write_note(path.stem, strange)
        report = ft.extract(model, x, store, dtype=torch.float16).report
        assert report.rows_computed == 0
        assert (report.precision.samples, report.precision.largest_error) == (None, None)
        assert "lost its note" in str(report.precision)


class Dropped(Net):
    """A head that trains with chance and statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.layer(x).relu())))


@every_dtype
def test_measuring_leaves_the_model_as_it_was(dtype, store):
    """The head is compared in evaluation mode, as a copy: no mode, statistic or random state of the user's moves."""
    model, x = Dropped(), make_x()
    ft.split(model, x[:4])  # what recording does is not measured here
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    report = ft.extract(model, x, store, dtype=dtype).report.precision
    assert report.output_error < 0.5
    assert model.training
    assert model.drop.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Odd(Net):
    """A head with an output of its own kind."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        return self.give(self.head(self.layer(x).relu()))


def broken(y):
    if y.shape[0] > 10:
        raise RuntimeError("not today\nnor tomorrow")
    return y


@pytest.mark.parametrize(
    ("give", "said", "argmax"),
    [
        (lambda y: {"loss": y.mean(), "logits": y}, "", 1.0),
        (lambda y: y[:, 0], "", None),
        (lambda y: (y[:, :, None], y), "", None),
        (lambda y: y.mean(), "no floating-point tensor", None),
        (lambda y: y * math.inf, "", 1.0),
        (lambda y: torch.where(y < 0, -math.inf, y), None, None),
        (broken, "RuntimeError: not today", None),
    ],
    ids=["dict", "one number", "first of two", "no rows", "infinite", "masked", "broken"],
)
def test_any_output_of_a_head_is_compared_or_named(give, said, argmax, store):
    report = ft.extract(Odd(give), make_x(), store, dtype=torch.float16).report.precision
    assert report.largest_error > 0
    if said is not None:
        assert said in report.reason
        assert (report.output_error is None) == bool(said)
        assert report.same_argmax == argmax
    str(report)


def test_an_output_that_stops_being_finite_is_said(store):
    """An error without bounds is no number for a report, and no silence either."""
    small = 2.0**-26  # rounded to zero by float16

    class Divides(Passed):
        def forward(self, x):
            return 1 / ((x + self.frozen) * self.gain)

    report = ft.extract(Divides(), torch.full((4, 2), small), store, dtype=torch.float16).report.precision
    assert report.output_error is None
    assert "not finite" in report.reason
    assert report.largest_relative_error == 1.0


# --- real models, and interruption -------------------------------------------------------------------------------


class Folder(Dataset):
    def __init__(self, path):
        self.paths = sorted(path.glob("*.pt"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return torch.load(self.paths[index], weights_only=True), index


@every_dtype
@pytest.mark.parametrize("at", ["layer3", "avgpool"])
def test_a_residual_network_keeps_its_answers(dtype, at, store, tmp_path):
    """Real features: (C, H, W) in the middle, (C, 1, 1) at the end, from a folder of files."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = ft.freeze(torchvision.models.resnet18(weights=None), until=at)
    (tmp_path / "data").mkdir()
    for index in range(12):
        torch.save(torch.randn(3, 64, 64), tmp_path / "data" / f"{index:02}.pt")
    data = Folder(tmp_path / "data")
    exact = ft.extract(model, data, store, batch_size=4)
    small = ft.extract(model, data, store, batch_size=4, dtype=dtype)
    share = small.report.size_bytes / exact.report.size_bytes
    assert share == pytest.approx(0.5 if dtype != "int8" else 0.25, abs=0.01)
    difference, scale = np.abs(small.numpy() - exact.numpy()), np.abs(exact.numpy()).max()
    assert difference.max() < {torch.float16: 1e-3, torch.bfloat16: 1e-2, "int8": 3e-2}[dtype] * scale
    assert next(small.batches(5))[0].stride() == next(exact.batches(5))[0].stride()
    report = small.report.precision
    assert report.output_error < 0.2 * report.output_spread
    assert ft.extract(model, data, store, batch_size=4, dtype=dtype).report.rows_computed == 0


@pytest.mark.slow
@every_dtype
def test_after_a_kill_the_same_call_goes_on_with_the_same_scales(dtype, store):
    code = """
    import os, signal, sys, torch, forethought as ft
    from torch import nn
    from torch.utils.data import Dataset
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(64, 4)
    reads = 0
    class Data(Dataset):
        def __len__(self):
            return 64
        def __getitem__(self, index):
            global reads
            reads += 1
            if reads > int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return x[index]
    features = ft.extract(model, Data(), sys.argv[1], batch_size=8, segment_rows=8, dtype=DTYPE)
    with torch.no_grad():
        off = (torch.from_numpy(features.numpy().copy()) - model[1](model[0](x))).abs().max()
    print(features.report.rows_reused, float(off), features.table.fingerprint)
    """
    code = textwrap.dedent(code).replace("DTYPE", repr(dtype))

    def run(folder, reads):
        command = [sys.executable, "-c", code, str(folder), str(reads)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = run(store.with_name("other"), 10**9).stdout.split()
    assert run(store, 64 + 64 + 6 + 40).returncode < 0
    reused, off, table = run(store, 10**9).stdout.split()
    assert 0 < int(reused) < 64
    assert (off, table) == (whole[1], whole[2])
    assert float(off) < 0.1


def test_a_read_only_store_says_so_before_anything_is_lost(store):
    Store(store)
    with pytest.raises(StoreError, match="readonly"):
        ft.extract(Net(), make_x(), Store(store, readonly=True), dtype="int8")


def test_measuring_reads_no_more_than_its_share_of_memory():
    """Large samples are fewer: 16 at least, 256 at most."""
    x = make_x(1000)
    counts = [len(Trial(Samples(x, Net()), size, lambda batch: []).indices) for size in (1, 2**20, 2**40)]
    assert counts == [256, 128, 16]
