"""The laws of a row's company: which row a sample has follows from it and the model, never from what lies beside it."""

import tempfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_padding import CASES, LENGTHS, TEXTS, WORDS, Listed, N, Once, Recurrent, compared, without_lengths
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import forethought as ft
from forethought import nesting
from forethought.errors import DataError, EmptyDatasetError, StoreError
from forethought.store import DamagedSegmentWarning

EVEN = [at for at, length in enumerate(LENGTHS) if length == 16]
NAMES = ["bert, tokens, head", "recurrent", "packed", "sound", "pooled", "pooled in the head", "llama, left"]
# Values decide the shapes of what is packed: where samples never differ in size, it has no rows.
EVEN_TOO = [name for name in NAMES if name != "packed"]


HEAVY = {"bert, tokens, head", "pooled in the head"}


def over(names):
    return pytest.mark.parametrize(
        "case", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in names]
    )


def chosen(dataset, numbers):
    return Listed([dataset[at] for at in numbers])


def of_length(*lengths):
    return [at for at, length in enumerate(LENGTHS) if length in lengths]


class Counted:
    """Counts the samples that a model is run on."""

    def __init__(self, model):
        self.model, self.rows = model, 0

    def __enter__(self):
        self.hook = self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def _count(self, module, args, kwargs):
        self.rows += len(nesting.tensors((args, kwargs))[0])

    def __exit__(self, *_):
        self.hook.remove()


def is_live(features, count):
    """Whether rows are the model's, and the head gives of them what the model gives."""
    return features.verify(count).is_right


@over(NAMES)
def test_samples_of_one_size_are_found_among_those_that_differ(case, tmp_path):
    """One sample, or some that all have one size, of a stored data set: nothing is computed, and the model not run."""
    make, dataset, collate = CASES[case]
    ft.extract(make(), dataset, tmp_path, batch_size=4, collate_fn=collate)
    for numbers in ([3], EVEN, of_length(2), of_length(5)[:1] * 3):
        model = make()
        features = ft.extract(model, chosen(dataset, numbers), ft.Store(tmp_path, readonly=True), collate_fn=collate)
        assert features.report.rows_computed == 0
        assert is_live(features, len(numbers))


@over(EVEN_TOO)
def test_an_even_data_set_extended_by_a_sample_of_another_size(case, tmp_path):
    """Rows that were stored when all samples had one size are there when others come: only these are computed."""
    make, dataset, collate = CASES[case]
    first = of_length(9)
    ft.extract(make(), chosen(dataset, first), tmp_path, collate_fn=collate)
    more = [*first, 0]
    features = ft.extract(make(), chosen(dataset, more), tmp_path, collate_fn=collate)
    assert features.report.rows_computed == 1
    assert is_live(features, len(more))
    features = ft.extract(make(), dataset, tmp_path, batch_size=4, collate_fn=collate)
    assert features.report.rows_computed == N - len(more)
    assert is_live(features, N)


@over(EVEN_TOO)
def test_samples_of_one_size_are_fed_as_ever(case, tmp_path):
    """Wherever their rows lie, samples of one size have one shape: one array, any tier, what a store of theirs gives."""
    make, dataset, collate = CASES[case]
    numbers = [3, 8, 3]
    even = chosen(dataset, numbers)
    apart = ft.extract(make(), even, tmp_path / "apart", collate_fn=collate)
    ft.extract(make(), dataset, tmp_path / "among", batch_size=4, collate_fn=collate)
    among = ft.extract(make(), even, tmp_path / "among", collate_fn=collate)
    assert among.report.rows_computed == 0
    one, other = ([*nesting.tensors(each.numpy(), (np.ndarray,))] for each in (apart, among))
    if len(one) == len(other):  # a batch without padding may take another path, by which another mask crosses
        assert [a.shape for a in one] == [b.shape for b in other]
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True) if a.dtype == np.float32)
    assert all(isinstance(array, np.ndarray) for array in other)
    live = make()
    fed = [
        [value.clone() for values, _ in among.batches(2, tier=tier) for value in nesting.tensors(values)]
        for tier in ("ram", "mapped", None)
    ]
    assert all(torch.equal(a, b) for each in fed[1:] for a, b in zip(fed[0], each, strict=True))
    if any(tensor.among for tensor in among.frontier):
        with pytest.raises(DataError, match="stream"):
            next(among.batches(2, tier="streamed"))
        assert among.batches(2, memory=1).tier == "mapped"
    values, targets = next(among.batches(3))
    given = targets if isinstance(targets, dict) else torch.arange(3)
    by_place = {"labels": given["labels"], "number": torch.arange(3)} if isinstance(given, dict) else given
    assert compared(among, live, collate, even, values, by_place) < 1e-6


@pytest.mark.parametrize("case", ["bert, tokens, layer", "sound"])
def test_explaining_and_verifying_find_rows_wherever_they_lie(case, tmp_path):
    """What `explain` counts as stored is what `extract` does not compute, and a store's rows are verified for any part."""
    make, dataset, collate = CASES[case]
    even, more = chosen(dataset, [3, 8]), chosen(dataset, [3, 8, 1])
    ft.extract(make(), even, tmp_path, collate_fn=collate)
    assert ft.explain(make(), even, ft.Store(tmp_path), collate_fn=collate).stored == 2
    stored = ft.explain(make(), more, ft.Store(tmp_path), collate_fn=collate).stored
    assert ft.extract(make(), more, tmp_path, collate_fn=collate).report.rows_computed == 3 - stored
    assert ft.explain(make(), chosen(dataset, [1]), ft.Store(tmp_path), collate_fn=collate).stored == 1


class Taps:
    """Counts the samples that a model's rows are computed of, by its report, and compares them with those that are new."""

    def __init__(self, case, place):
        self.make, self.dataset, self.collate = CASES[case]
        self.place, self.stored = place, set()

    def extract(self, numbers, **options):
        features = ft.extract(
            self.make(), chosen(self.dataset, numbers), self.place, collate_fn=self.collate, **options
        )
        assert features.report.rows_computed == len(set(numbers) - self.stored), (numbers, self.stored)
        self.stored |= set(numbers)
        return features


parts = st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=7), min_size=2, max_size=5)


@pytest.mark.parametrize("case", ["pooled", pytest.param("recurrent", marks=pytest.mark.slow)])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=parts, sizes=st.lists(st.integers(1, 5), min_size=5, max_size=5))
def test_as_many_rows_are_computed_as_there_are_new_samples(case, parts, sizes, tmp_path):
    """Whatever parts of a data set come one after the other, in whatever order and batches: only new samples are run."""
    taps = Taps(case, tempfile.mkdtemp(dir=tmp_path))
    even = [at for at, length in enumerate(LENGTHS) if length == LENGTHS[parts[0][0]]]
    for numbers, size in zip([*parts, even, range(N)], [*sizes, 3, 4], strict=False):
        features = taps.extract(list(numbers), batch_size=size)
    assert features.verify(N).is_right


def shaped(*shapes):
    return Listed([torch.randn(3, h, w, generator=torch.Generator().manual_seed(100 * h + w)) for h, w in shapes])


class Seeing(nn.Module):
    def __init__(self, keeps_map=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False)
        self.head, self.keeps_map = nn.Conv2d(4, 2, 1), keeps_map

    def forward(self, pictures):
        return self.head(self.body(pictures)).mean((2, 3))


@pytest.mark.parametrize("order", [1, -1])
def test_pictures_that_differ_along_fewer_axes(order, tmp_path):
    """Heights alone, widths alone, both, neither, squares: in any order, a picture's row is computed once."""
    shapes = [(12, 30), (14, 30), (12, 20), (15, 22), (12, 12), (16, 16)]
    groups = [shapes, shapes[:1], shapes[:2], [shapes[0], shapes[2]], shapes[4:], shapes[1::-1]]
    stored = set()
    for group in groups[::order]:
        features = ft.extract(Seeing(), shaped(*group), tmp_path, batch_size=1)
        assert features.report.rows_computed == len(set(group) - stored)
        assert features.verify(len(group)).is_right
        stored |= set(group)
    features = ft.extract(Seeing(), shaped(*[shapes[0]] * 3), tmp_path, batch_size=3)
    assert features.report.rows_computed == 0
    assert features.numpy().shape == (3, 4, 10, 28)
    live = Seeing().body(torch.stack([shaped(shapes[0])[0]] * 3)).detach().numpy()
    assert np.allclose(features.numpy(), live, atol=1e-6)
    assert np.allclose(next(features.batches(2, tier="ram"))[0].detach().numpy(), live[:2], atol=1e-6)


def test_tensors_in_memory_are_found_among_texts(tmp_path):
    """What a tokenizer gives for one text, as tensors, has the row that the text has in the corpus."""
    make, dataset, collate = CASES["llama, left"]
    ft.extract(make(), dataset, tmp_path, batch_size=4, collate_fn=collate)
    one = {"input_ids": TEXTS[5][None], "attention_mask": torch.ones_like(TEXTS[5])[None]}
    features = ft.extract(make(), one, ft.Store(tmp_path, readonly=True))
    assert features.report.rows_computed == 0
    assert features.verify(1).is_right
    two = {name: torch.cat([each, torch.where(each == TEXTS[5][2], 3, each)]) for name, each in one.items()}
    features = ft.extract(make(), two, tmp_path)
    assert features.report.rows_computed == 1
    assert features.verify(2).is_right


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("first", [range(N), [3, 8]])
def test_rows_stored_smaller_are_shared_too(dtype, first, tmp_path):
    """Rounding to a shorter float does not depend on company either."""
    make, dataset, collate = CASES["recurrent"]
    ft.extract(make(), chosen(dataset, first), tmp_path, collate_fn=collate, dtype=dtype)
    for numbers in ([3, 8], range(N)):
        features = ft.extract(make(), chosen(dataset, numbers), tmp_path, collate_fn=collate, dtype=dtype)
        assert features.report.rows_computed == len(set(numbers) - set(first))
        assert features.verify(N).is_right
        first = [*first, *numbers]


def test_another_model_shares_nothing(tmp_path):
    """What another model, or the same one with another weight, has of these samples is no row of this one."""
    make, dataset, collate = CASES["recurrent"]
    ft.extract(make(), dataset, tmp_path, collate_fn=collate)
    other = make()
    other.layer.weight_ih_l0.data[0, 0] += 1e-3
    for numbers, new in (([3, 8], 2), ([3, 8, 0], 1), ([3], 0)):
        features = ft.extract(other, chosen(dataset, numbers), tmp_path, collate_fn=collate)
        assert features.report.rows_computed == new
        assert features.verify(3).is_right
    assert ft.extract(make(), chosen(dataset, [3]), tmp_path, collate_fn=collate).report.rows_computed == 0


def kin_notes(store):
    return {key: note for key in store.notes() if "kinds" in (note := store.note(key) or {})}


def lies(note):
    """Forms that are none, or others': each field of a note set to what it must not be."""
    whole = note["kinds"]
    yield []
    yield "nothing"
    yield [7, None, [], {}, {"pattern": 3}, {"pattern": [[None]], "precedent": None}]
    yield [each | {"pattern": [[-1] * len(shape) for shape in each["pattern"]]} for each in whole]
    for each in whole:
        if each["precedent"] is not None:
            told = each["precedent"]
            yield [each | {"precedent": told | {"sources": []}}]
            yield [each | {"precedent": told | {"sources": [["item", 0, 10**9, 1]]}}]
            yield [each | {"precedent": told | {"sources": [["run me", 0, 1, 1]]}}]
            yield [each | {"precedent": told | {"leaves": [[[[1, 0]], True, [["0x1p-1"]], 0]]}}]
            yield [
                each | {"precedent": told | {"leaves": [[[[1, 0]], not leaf[1], [9], None] for leaf in told["leaves"]]}}
            ]
            yield [each] * 5000


def test_a_note_that_lies_costs_no_row_its_truth(tmp_path):
    """Whatever the note says, of whatever model it is: rows are those of the model, and errors are none."""
    make, dataset, collate = CASES["recurrent"]
    ft.extract(make(), chosen(dataset, [3, 8]), tmp_path, collate_fn=collate)
    ft.extract(make(), chosen(dataset, range(12)), tmp_path, collate_fn=collate)
    store = ft.Store(tmp_path)
    ((key, note),) = kin_notes(store).items()
    for at, lie in enumerate(lies(note)):
        store.write_note(key, {"kinds": lie})
        for numbers in ([3], [3, 8], [3, 12 + at % 10]):
            features = ft.extract(make(), chosen(dataset, numbers), tmp_path, collate_fn=collate)
            assert features.verify(2).is_right


def test_a_damaged_row_is_not_lent(tmp_path):
    """A flipped byte in another table is found before its row is copied: it is computed."""
    make, dataset, collate = CASES["recurrent"]
    first = ft.extract(make(), chosen(dataset, [3, 8]), tmp_path, collate_fn=collate)
    (path,) = first.table.path.glob("*.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.warns(DamagedSegmentWarning):
        features = ft.extract(make(), chosen(dataset, [3, 8, 0]), tmp_path, collate_fn=collate)
    assert features.report.rows_computed == 3
    assert features.verify(3).is_right


class Spectral(nn.Module):
    """Complex numbers go in, and cross the frontier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.turn = nn.Parameter(torch.randn(3, dtype=torch.complex64), requires_grad=False)
        self.head = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, signal):
        return (signal[..., None] * self.turn * self.head).abs()


def joined_pairs(items):
    return tuple(pad_sequence([item[at] for item in items], batch_first=True) for at in (0, 1))


def test_complex_numbers_of_differing_size(tmp_path):
    """Complex inputs, rows and targets of differing size come back to the bit, in parts of one size, too."""
    signals = [torch.randn(n, dtype=torch.complex64, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    dataset = Listed([(signal, signal.conj().resolve_conj()) for signal in signals])
    for numbers, new in ((range(N), len(set(LENGTHS))), ([3, 8, 3], 0), ([0], 0)):
        part = chosen(dataset, numbers)
        features = ft.extract(Spectral(), part, tmp_path, collate_fn=joined_pairs, batch_size=4)
        assert features.report.rows_computed == new
        assert features.verify(N).is_right
        values, targets = next(features.batches(3))
        inputs, wanted = joined_pairs([part[at] for at in range(min(3, len(part)))])
        assert values.dtype == torch.complex64
        assert torch.equal(targets, wanted)
        assert torch.allclose(features.head(values), Spectral()(inputs))


class Looked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, 4).requires_grad_(False), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.head(self.words(tokens))


def texts_of(*lengths):
    made = [torch.randint(3, WORDS, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    return Listed([(text, at) for at, text in enumerate(made)])


@pytest.mark.parametrize("order", [1, -1])
def test_empty_texts_alone_and_among_others(order, tmp_path):
    """A text of nothing has a row of nothing: alone, with its like, and beside others, computed once."""
    stored = set()
    for lengths in [[0, 0, 0], [0, 3, 5], [0], [5, 0, 3, 3]][::order]:
        features = ft.extract(Looked(), texts_of(*lengths), tmp_path, collate_fn=without_lengths)
        assert features.report.rows_computed == len(set(lengths) - stored)
        assert [row.shape for row in features.numpy()] == [(length, 4) for length in lengths]
        assert features.verify(4).is_right
        stored |= set(lengths)


def test_a_data_set_of_empty_texts_that_a_model_refuses(tmp_path):
    """Where all samples are empty and the model takes none, the error is typed, and says so."""
    with pytest.raises(
        EmptyDatasetError, match=r"hold something, got empty ones of shapes \[\(0,\)\], of which it says"
    ):
        ft.extract(Recurrent(), texts_of(0, 0), tmp_path, collate_fn=without_lengths)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_and_streams_of_any_company(how, tmp_path):
    """Rows are shared whatever reads the samples: workers, begun either way, or an iterable; and fed by workers."""
    make, dataset, collate = CASES["recurrent"]
    parts = [([3, 8, 3], 2), (range(N), N - 2), ([3], 0), ([7, 7], 0)]
    for numbers, new in parts if how == "fork" else parts[:1]:  # a worker that is spawned imports everything anew
        loader = DataLoader(
            chosen(dataset, numbers),
            batch_size=2,
            num_workers=1 + (how == "fork"),
            collate_fn=collate,
            multiprocessing_context=how,
        )
        features = ft.extract(make(), loader, tmp_path)
        assert features.report.rows_computed == new
        again = ft.extract(make(), Once([dataset[at] for at in numbers]), tmp_path, collate_fn=collate, batch_size=3)
        assert again.report.rows_computed == 0
        fed = DataLoader(
            features, batch_size=2, num_workers=1, collate_fn=features.collate, multiprocessing_context=how
        )
        for (values, _), (others, _) in zip(fed, again.batches(2), strict=True):
            assert torch.equal(values, others)


def test_a_store_that_is_only_read_refuses_a_data_set_that_lies_half_in_each_form(tmp_path):
    """Copies of its rows could not be kept: it is said, and once they were made where they can be, all are served."""
    make, dataset, collate = CASES["recurrent"]
    even, odd = EVEN[:4], of_length(*sorted(set(LENGTHS) - {16}))[:4]
    for numbers in (even, odd):
        ft.extract(make(), chosen(dataset, numbers), tmp_path, collate_fn=collate)
    readonly = ft.Store(tmp_path, readonly=True)
    with pytest.raises(StoreError, match="writable"):
        ft.extract(make(), chosen(dataset, even + odd), readonly, collate_fn=collate)
    assert ft.extract(make(), chosen(dataset, even + odd), tmp_path, collate_fn=collate).report.rows_computed == 0
    assert ft.extract(make(), chosen(dataset, even + odd), readonly, collate_fn=collate).report.rows_computed == 0
