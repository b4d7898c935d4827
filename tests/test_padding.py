"""The laws of samples that differ in size: stored without padding, fed as the head was given them, never by guess."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stretching import WORDS, make_hf
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

import forethought as ft
from forethought import nesting
from forethought.errors import DataError, ImpureTrunkError, PaddingError, UnequalShapesError
from forethought.shapes.padding import Layout, Stairs, cut, outside, put_back

N = 22
LENGTHS = [3, 9, 5, 16, 1, 7, 12, 4, 16, 2, 11, 6, 3, 14, 8, 5, 10, 13, 2, 9, 6, 4]
_generator = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(3, WORDS, (length,), generator=_generator) for length in LENGTHS]
SOUNDS = [torch.randn(37 * length + 60, generator=_generator) for length in LENGTHS]
IMAGES = [torch.randn(3, 12 + length, 30 - length, generator=_generator) for length in LENGTHS]
WIDTHS = {
    "longest": max,
    "fixed": lambda lengths: 20,
    "multiple": lambda lengths: -(-max(lengths) // 8) * 8,
}


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, at):
        return self.items[at]


class Once(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def padded(rows, width, value=0, at_end=False):
    out = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    for row, own in zip(out, rows, strict=True):
        row[width - len(own) :] = own if at_end else row[width - len(own) :]
        if not at_end:
            row[: len(own)] = own
    return out


class Collate:
    """Joins token lists as a tokenizer's collator does: numbers, mask and labels padded to one width."""

    def __init__(self, width="longest", at_end=False):
        self.width, self.at_end = width, at_end

    def __call__(self, items):
        rows = [torch.as_tensor(item["input_ids"]) for item in items]
        width = WIDTHS[self.width]([len(row) for row in rows])
        return {
            "input_ids": padded(rows, width, 0, self.at_end),
            "attention_mask": padded([torch.ones_like(row) for row in rows], width, 0, self.at_end),
            "labels": padded([row % 3 for row in rows], width, -100, self.at_end),
            "number": torch.tensor([item["number"] for item in items]),
        }


TOKENS = Listed([{"input_ids": text.tolist(), "number": at} for at, text in enumerate(TEXTS)])


def with_lengths(items):
    rows = [row for row, _ in items]
    lengths = torch.tensor([len(row) for row in rows])
    return (pad_sequence(rows, batch_first=True), lengths), torch.tensor([number for _, number in items])


def without_lengths(items):
    (rows, _), numbers = with_lengths(items)
    return rows, numbers


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 8).requires_grad_(False)
        self.layer = nn.GRU(8, 6, batch_first=True).requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.words(tokens))[0])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.layer = nn.GRU(8, 6, batch_first=True, bidirectional=True)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.words(tokens), lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


class Packed(nn.Module):
    """Values decide how far the frozen part pads what it gives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = Encoder().requires_grad_(False), nn.Linear(12, 3)

    def forward(self, tokens, lengths):
        return self.head(self.encoder(tokens, lengths))


class Sound(nn.Module):
    """Strided convolutions, and a mean over the frames that are the sound's own."""

    def __init__(self, padding=0, is_normed=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv1d(1, 8, 10, stride=5), nn.GELU(), nn.Conv1d(8, 8, 3, stride=2, padding=padding)
        ).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8) if is_normed else nn.Identity()
        self.head = nn.Linear(8, 3)
        self.padding = padding

    def forward(self, sound, lengths):
        frames = self.norm(self.layers(sound[:, None]))
        own = ((lengths - 10) // 5 + 1 + 2 * self.padding - 3) // 2 + 1
        mask = (torch.arange(frames.shape[2])[None] < own[:, None]).float()
        return (torch.tanh(self.head(frames.mT)) * mask[..., None]).sum(1) / own[:, None]


class Images(nn.Module):
    def __init__(self, keeps_map=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()).requires_grad_(False)
        self.last = nn.Conv2d(8, 4, 1) if keeps_map else nn.Identity()
        self.head = nn.Linear(4 if keeps_map else 8, 2)

    def forward(self, image):
        return self.head(self.last(self.body(image)).mean((2, 3)))


class Pooled(nn.Module):
    """Mean over tokens in the frozen part: of the text's own, or of all."""

    def __init__(self, is_masked=True):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, 8).requires_grad_(False), nn.Linear(8, 3)
        self.is_masked = is_masked

    def forward(self, input_ids, attention_mask):
        words, mask = self.words(input_ids), attention_mask[..., None].float()
        return self.head((words * mask).sum(1) / mask.sum(1) if self.is_masked else words.mean(1))


class PooledInHead(nn.Module):
    """Mean over tokens in the part that trains."""

    def __init__(self, is_masked=True):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Sequential(nn.Embedding(WORDS, 8), nn.Linear(8, 8), nn.Tanh()).requires_grad_(False)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.is_masked = is_masked

    def forward(self, input_ids, attention_mask):
        words, mask = self.mix(self.words(input_ids)), attention_mask[..., None].float()
        return self.head((words * mask).sum(1) / mask.sum(1) if self.is_masked else words.mean(1))


def words_of(values):
    """The one tensor of several whose rows are those of words."""
    return next(value for value in values if value.ndim == 3 or (value.ndim == 2 and value.shape[1] == 8))


def words_in(features, view=0):
    """Arrays of all rows of words."""
    arrays = features.numpy(view=view)
    return arrays[[tensor.stored_shape for tensor in features.frontier].index((None, 8))]


def numbered(items):
    return Listed([(item, at) for at, item in enumerate(items)])


def hf(name, kind, first):
    return lambda: make_hf(name, kind, first)


# A model, its data set, what joins samples.
CASES = {
    "bert, tokens, head": (hf("bert", "TokenClassification", "classifier"), TOKENS, Collate()),
    "bert, tokens, layer": (hf("bert", "TokenClassification", "layer.1"), TOKENS, Collate()),
    "bert, fixed": (hf("bert", "TokenClassification", "layer.1"), TOKENS, Collate("fixed")),
    "distilbert, multiple": (hf("distilbert", "SequenceClassification", "layer.1"), TOKENS, Collate("multiple")),
    "llama, right": (hf("llama", "CausalLM", "layers.1"), TOKENS, Collate()),
    "llama, left": (hf("llama", "CausalLM", "layers.1"), TOKENS, Collate(at_end=True)),
    "pooled": (Pooled, TOKENS, Collate("multiple")),
    "pooled in the head": (PooledInHead, TOKENS, Collate()),
    "recurrent": (Recurrent, numbered(TEXTS), without_lengths),
    "packed": (Packed, numbered(TEXTS), with_lengths),
    "sound": (Sound, numbered(SOUNDS), with_lengths),
}
HEAVY = {"bert, tokens, head", "distilbert, multiple", "llama, right"}
every_case = pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in CASES]
)


def run_live(model, collate, dataset, numbers):
    """What the model gives for these samples, and which places of it are theirs."""
    joined = collate([dataset[number] for number in numbers])
    if isinstance(joined, dict):
        mask = joined["attention_mask"].bool()
        return model(joined["input_ids"], attention_mask=joined["attention_mask"]), mask, joined
    given = joined[0] if isinstance(joined[0], tuple) else (joined[0],)
    own = torch.tensor([len(dataset[number][0]) for number in numbers])
    return model(*given), torch.arange(given[0].shape[1])[None] < own[:, None], joined


def own_places(output, mask):
    """The entries of an output that are the samples' own."""
    return output[mask] if output.ndim > 2 and output.shape[1] == mask.shape[1] else output


def compared(features, model, collate, dataset, values, targets):
    """How far what the head makes of fed values lies from what the model gives of the same batch."""
    numbers = (targets["number"] if isinstance(targets, dict) else targets).tolist()
    live, mask, joined = run_live(model, collate, dataset, numbers)
    if isinstance(targets, dict):
        assert torch.equal(targets["labels"], joined["labels"])
    pairs = list(zip(nesting.tensors(features.head(values)), nesting.tensors(live), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((own_places(a, mask) - own_places(b, mask)).detach().abs().max()) for a, b in pairs)


# --- fed as live -------------------------------------------------------------------------------------------------


@every_case
def test_the_head_gives_what_the_model_gives_whatever_the_batch(case, tmp_path):
    """head(values) is model(batch) for batches of any size and order: to the bit for those that were computed."""
    make, dataset, collate = CASES[case]
    model = make()
    features = ft.extract(model, dataset, tmp_path, batch_size=4, collate_fn=collate, segment_rows=8)
    assert features.report.rows_computed == N
    for values, targets in features.batches(4):
        assert compared(features, model, collate, dataset, values, targets) == 0.0
    for size in (1, 5, N):
        for values, targets in features.batches(size, shuffle=True, seed=size):
            assert compared(features, model, collate, dataset, values, targets) < 1e-6
    assert features.verify(N).exact_rows == N
    assert features.verify(3).is_right
    copied = next(pickle.loads(pickle.dumps(features)).batches(4))
    assert compared(features, model, collate, dataset, *copied) == 0.0


@every_case
def test_neither_batch_size_nor_order_nor_padding_is_a_reason_to_compute(case, tmp_path):
    """A row's key and what is stored do not depend on how far its batch was padded."""
    make, dataset, collate = CASES[case]
    model = make()
    ft.extract(model, dataset, tmp_path, batch_size=4, collate_fn=collate)
    turned = Listed([dataset[at] for at in torch.randperm(N, generator=_generator).tolist()])
    part = Listed([dataset[at] for at in (13, 2, 17, 4, 1)])
    for other, size in ((dataset, 1), (dataset, 7), (turned, 5), (part, 3)):
        assert ft.extract(model, other, tmp_path, batch_size=size, collate_fn=collate).report.rows_computed == 0
    assert ft.extract(make(), dataset, tmp_path, batch_size=N, collate_fn=collate).report.rows_computed == 0
    assert ft.explain(model, dataset, ft.Store(tmp_path), collate_fn=collate, batch_size=3).stored == N


def test_collates_that_pad_differently_share_rows(tmp_path):
    """The same samples padded to the longest, to a multiple or to a width are the same rows."""
    model = Pooled()
    computed = [
        ft.extract(model, TOKENS, tmp_path, batch_size=4, collate_fn=Collate(width)).report.rows_computed
        for width in ("multiple", "longest", "fixed")
    ]
    assert computed == [N, 0, 0]
    other = PooledInHead()
    for width in WIDTHS:
        features = ft.extract(other, TOKENS, tmp_path, batch_size=4, collate_fn=Collate(width))
        values, targets = next(features.batches(3))
        assert values[0].shape[1] == WIDTHS[width](LENGTHS[:3])
        assert compared(features, other, Collate(width), TOKENS, values, targets) < 1e-6
    assert features.report.rows_reused == N


def test_only_places_of_samples_are_stored(tmp_path):
    """The store holds as many entries as the samples have places, however far they are padded."""
    sizes = {
        width: ft.extract(
            PooledInHead(), TOKENS, tmp_path / width, batch_size=N, collate_fn=Collate(width)
        ).report.size_bytes
        for width in WIDTHS
    }
    assert len(set(sizes.values())) == 1
    assert sizes["longest"] < 0.6 * N * 16 * (8 * 4 + 8)
    files = sum(file.stat().st_size for file in (tmp_path / "fixed").rglob("*.safetensors"))
    assert files < sizes["fixed"] + N * 16 + 4096


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Once, Listed])
def test_any_kind_of_data_set_and_workers(kind, workers, tmp_path):
    """Iterables, lists and workers give the same rows."""
    items = TOKENS.items if kind is Listed or not workers else TOKENS.items[:1] * 0 + TOKENS.items
    dataset = kind(items)
    if kind is Once and workers:
        pytest.skip("each worker would read all of it")
    features = ft.extract(PooledInHead(), dataset, tmp_path, batch_size=4, collate_fn=Collate(), num_workers=workers)
    values, targets = next(features.batches(5))
    assert compared(features, PooledInHead(), Collate(), TOKENS, values, targets) < 1e-6
    again = ft.extract(PooledInHead(), DataLoader(TOKENS, 3, collate_fn=Collate()), tmp_path)
    assert again.report.rows_computed == 0


# --- what it is not guessed from ---------------------------------------------------------------------------------


def characters(items, collate):
    """Samples are texts: only joining makes numbers of them."""
    return collate([{"input_ids": [3 + ord(c) % 30 for c in text], "number": at} for text, at in items])


@pytest.mark.parametrize("width", ["longest", "multiple"])
@pytest.mark.parametrize("is_masked", [True, False])
def test_texts_that_are_joined_from_strings(is_masked, width, tmp_path):
    """Where samples have no numbers of their own, the mask tells what is theirs, or what they are alone."""
    texts = Listed([("ab" * length, at) for at, length in enumerate(LENGTHS)])

    def collate(items):
        joined = characters(items, Collate(width))
        return joined if is_masked else (joined["input_ids"], joined["number"])

    model = PooledInHead() if is_masked else Recurrent()
    features = ft.extract(model, texts, tmp_path, batch_size=4, collate_fn=collate)
    for values, targets in features.batches(5, shuffle=True, seed=0):
        numbers = (targets["number"] if is_masked else targets).tolist()
        joined = collate([texts[number] for number in numbers])
        live = model(joined["input_ids"], joined["attention_mask"]) if is_masked else model(joined[0])
        own = torch.tensor([2 * LENGTHS[number] for number in numbers])
        mask = torch.arange(live.shape[1])[None] < own[:, None]
        fed = features.head(values)
        assert fed.shape == live.shape
        assert (own_places(fed, mask) - own_places(live, mask)).abs().max() < 1e-6
    assert ft.extract(model, texts, tmp_path, batch_size=1, collate_fn=collate).report.rows_computed == 0


def test_a_tensor_of_zeros_and_ones_that_is_no_mask(tmp_path):
    """Segment numbers look like a mask and are none: what the samples hold decides."""

    class Segments(PooledInHead):
        def forward(self, input_ids, token_type_ids, attention_mask):
            return super().forward((input_ids + token_type_ids) % WORDS, attention_mask)

    def collate(items):
        joined = Collate()(items)
        halves = [torch.tensor([0] * (len(i["input_ids"]) // 2) + [1] * (-(-len(i["input_ids"]) // 2))) for i in items]
        return joined | {"token_type_ids": padded(halves, joined["input_ids"].shape[1])}

    features = ft.extract(Segments(), TOKENS, tmp_path, batch_size=4, collate_fn=collate)
    assert (None, 8) in [tensor.stored_shape for tensor in features.frontier]
    assert [len(row) for row in words_in(features)] == LENGTHS


def test_samples_of_another_size_that_are_met_late(tmp_path):
    """Sizes that the samples looked at first do not have are met later, and nothing is lost or wrong."""
    same = [item for item in TOKENS.items if len(item["input_ids"]) == 9] * 30
    items = [dict(item, number=at) for at, item in enumerate(same)]
    items[27]["input_ids"] = [5, 6, 7]
    items[29]["input_ids"] = [*range(3, 15)]
    dataset = Listed(items)
    for workers in (0, 1):
        features = ft.extract(
            PooledInHead(), dataset, tmp_path / str(workers), batch_size=8, collate_fn=Collate(), num_workers=workers
        )
        for values, targets in features.batches(8):
            assert compared(features, PooledInHead(), Collate(), dataset, values, targets) == 0.0
        assert [len(row) for row in words_in(features)[26:30]] == [9, 3, 9, 12]


@pytest.mark.parametrize("lengths", [[4, 1, 2, 3, 4], [3, 5, 0, 7, 2, 9, 4], [0, 3, 5, 7]], ids=str)
def test_short_and_empty_texts(lengths, tmp_path):
    """However short texts are, the head gives what the model gives; an empty one is a row of nothing."""
    model = make_hf("bert", "TokenClassification", "layer.1")
    dataset = Listed([{"input_ids": torch.arange(3, 3 + n), "number": at} for at, n in enumerate(lengths)])
    features = ft.extract(model, dataset, tmp_path, batch_size=3, collate_fn=Collate())
    assert len(features) == len(lengths)
    for values, _ in features.batches(len(lengths), shuffle=False):
        output, mask, _ = run_live(model, Collate(), dataset, range(len(lengths)))
        torch.testing.assert_close(features.head(values).logits[mask], output.logits[mask])


class AveragedFrames(nn.Module):
    """Frames are counted by Python inside the frozen part, in numbers that no line foretells."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv1d(1, 4, 5, stride=3).requires_grad_(False), nn.Linear(4, 3)

    def forward(self, sound, lengths):
        frames = torch.relu(self.layer(sound[:, None]))
        own = torch.arange(frames.shape[-1])[None] < ((lengths - 5) // 3 + 1)[:, None]
        return self.head((frames * own[:, None]).sum(-1) / own.sum(-1, keepdim=True))


def sounds(lengths):
    made = [torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in lengths]
    return Listed([(sound, at) for at, sound in enumerate(made)])


def test_which_samples_are_looked_at_does_not_tell_trunks_apart(tmp_path):
    """A data set in another order, or with longer samples, has its rows under the trunk that they had."""
    model = AveragedFrames()
    lengths = [*range(6, 20), *range(7, 15)]
    ft.extract(model, sounds(lengths), tmp_path, batch_size=4, collate_fn=with_lengths)
    for other, new in ((lengths[::-1], 0), (lengths[3:9], 0), ([*lengths, 40, 55], 2)):
        again = ft.extract(AveragedFrames(), sounds(other), tmp_path, batch_size=3, collate_fn=with_lengths)
        assert again.report.rows_computed == new
        assert again.verify(len(other)).is_right


@pytest.mark.parametrize("longest", [9, 10, 45])
def test_the_head_is_told_sizes_beyond_those_that_were_looked_at(longest, tmp_path):
    """Few short samples show how convolutions with strides shrink them, and so what they make of longer ones."""
    model = AveragedFrames()
    dataset = sounds([9, 7, 8, 6, 9, 8, 9, 8, 7, 6, 9, 8, 7, longest, 9])
    features = ft.extract(model, dataset, tmp_path, batch_size=5, collate_fn=with_lengths)
    for values, targets in features.batches(5, shuffle=False):
        given = with_lengths([dataset[number] for number in targets])[0]
        torch.testing.assert_close(features.head(values), model(*given))


class Averaged(nn.Module):
    """Padding is part of what it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv1d(1, 4, 5, stride=3).requires_grad_(False), nn.Linear(4, 3)

    def forward(self, sound):
        return self.head(torch.relu(self.layer(sound[:, None])).mean(-1))


class Flat(nn.Module):
    """Takes inputs of one size only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(40, 4).requires_grad_(False), nn.Linear(4, 3)

    def forward(self, sound):
        return self.head(torch.relu(self.layer(sound)))


def to_forty(items):
    return torch.stack([nn.functional.pad(item[0], (0, 40 - len(item[0]))) for item in items]), [i[1] for i in items]


@pytest.mark.parametrize("make", [Averaged, Flat])
@pytest.mark.parametrize("lengths", [[*range(6, 26)], [12] * 20], ids=["differing", "alike"])
def test_padding_to_one_size_may_be_part_of_samples(make, lengths, tmp_path):
    """Where each batch is padded to one size, a model that sees padding has rows all the same: of what it is given."""
    model, dataset = make(), sounds(lengths)
    features = ft.extract(model, dataset, tmp_path, batch_size=4, collate_fn=to_forty)
    given = to_forty(dataset.items)[0]
    for values, targets in features.batches(7, shuffle=True):
        torch.testing.assert_close(features.head(values), model(given[[*targets]]))
    again = ft.extract(make(), Listed(dataset.items[::-1]), tmp_path, batch_size=5, collate_fn=to_forty)
    assert again.report.rows_computed == 0
    assert again.verify(20).is_right
    split = ft.split(make(), given[:4])
    assert ft.extract(split, dataset, tmp_path, batch_size=4, collate_fn=to_forty).report.rows_computed == 0
    told = ft.explain(make(), dataset, ft.Store(tmp_path), collate_fn=to_forty)
    assert (told.rows, told.stored) == (20, 20)


def test_padding_to_one_size_at_first_is_none_for_all(tmp_path):
    """Samples that come in another size after all are refused, as they are if they come first."""

    def collate(items):
        width = 40 if all(len(item[0]) < 30 for item in items) else 60
        return torch.stack([nn.functional.pad(item[0], (0, width - len(item[0]))) for item in items])

    dataset = sounds([*[12, 14, 9] * 8, 50, *[12] * 7])
    with pytest.raises((ImpureTrunkError, UnequalShapesError), match="padded"):
        ft.extract(Averaged(), dataset, tmp_path, batch_size=4, collate_fn=collate)


def test_targets_alone_may_differ_in_size(tmp_path):
    """Targets that are padded beside inputs of one size come back as they were padded."""
    items = [(torch.randn(6), torch.arange(1, 1 + at % 4)) for at in range(9)]

    def collate(items):
        return torch.stack([item[0] for item in items]), pad_sequence([item[1] for item in items], batch_first=True)

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    for batch_size in (1, 4):
        features = ft.extract(model, Listed(items), tmp_path, batch_size=batch_size, collate_fn=collate)
        for at, (values, targets) in enumerate(features.batches(3, shuffle=False)):
            inputs, padded_targets = collate(items[3 * at : 3 * at + 3])
            torch.testing.assert_close(features.head(values), model(inputs))
            assert targets.equal(padded_targets)


# --- refused -----------------------------------------------------------------------------------------------------


def refusals():
    sorts = lambda items: Collate()(sorted(items, key=lambda item: -len(item["input_ids"])))  # noqa: E731

    def repeats(items):
        width = max(len(row) for row, _ in items)
        return torch.stack([row.repeat(width)[:width] for row, _ in items]), torch.tensor([at for _, at in items])

    return {
        "a mean over padding in the frozen part": (Pooled(False), TOKENS, Collate(), ImpureTrunkError, "padded"),
        "a mean over padding in the head": (PooledInHead(False), TOKENS, Collate(), PaddingError, "reads padding"),
        "a convolution that sees beyond the end": (
            Sound(1), numbered(SOUNDS), with_lengths, ImpureTrunkError, "padded",
        ),
        "statistics of a batch with its padding": (
            Sound(is_normed=True), numbered(SOUNDS), with_lengths, PaddingError, "training mode",
        ),
        "positions counted from the padding": (
            make_hf("bert", "TokenClassification", "layer.1"), TOKENS, Collate(at_end=True), ImpureTrunkError, "padded",
        ),
        "samples sorted by length": (PooledInHead(), TOKENS, sorts, DataError, "keep their order"),
        "padding by repetition": (Recurrent(), numbered(TEXTS), repeats, UnequalShapesError, "one value"),
        "several at a time, unpadded": (Images(), numbered(IMAGES), None, UnequalShapesError, "batch_size=1"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_padding_that_is_part_of_what_the_model_sees_is_refused(case, tmp_path):
    """Where a row or the head depends on padding there is no row: the message says of what, and what to do."""
    model, dataset, collate, error, said = refusals()[case]
    with pytest.raises(error, match=said):
        ft.extract(model, dataset, tmp_path, batch_size=4, collate_fn=collate)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_batch_that_is_padded_otherwise_is_refused(tmp_path):
    """Padding by another value than in the samples looked at is seen in any batch."""

    def collate(items):
        joined = Collate()(items)
        if any(item["number"] == 9 for item in items) and len(items) == 4:
            joined["input_ids"][joined["attention_mask"] == 0] = 7
        return joined

    with pytest.raises(UnequalShapesError, match="padding of 0"):
        ft.extract(PooledInHead(), TOKENS, tmp_path, batch_size=4, collate_fn=collate)


# --- one at a time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps_map", [True, False])
def test_images_of_any_size_one_at_a_time(keeps_map, tmp_path):
    """Samples that come unpadded are stored and fed so; rows of one size are fed together."""
    model = Images(keeps_map).eval()
    features = ft.extract(model, numbered(IMAGES), tmp_path, batch_size=1)
    for size in (1,) if keeps_map else (1, 5, N):
        for values, numbers in features.batches(size, shuffle=True, seed=0):
            live = torch.cat([model(IMAGES[number][None]) for number in numbers.tolist()])
            assert (features.head(values) - live).abs().max() < (1e-9 if size == 1 else 1e-6)
    assert features.verify(N).exact_rows == N
    assert ft.extract(model, numbered(IMAGES), tmp_path, batch_size=1).report.rows_computed == 0
    if keeps_map:
        with pytest.raises(PaddingError, match=r"batches\(1\)"):
            next(features.batches(4))
        assert features[3][0].shape == (8, *((size + 1) // 2 for size in IMAGES[3].shape[1:]))
        assert features.numpy()[3].shape == features[3][0].shape


# --- what else features do ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    store = tmp_path_factory.mktemp("uneven")
    return ft.extract(PooledInHead(), TOKENS, store, batch_size=4, collate_fn=Collate(), segment_rows=6)


def test_rows_one_by_one_and_as_arrays(features):
    """features[i] and numpy() give rows at their own size; targets too."""
    arrays = words_in(features)
    live = PooledInHead()
    for at, length in enumerate(LENGTHS):
        values, targets = features[at]
        expected = live.words(TEXTS[at][None])[0]
        assert words_of(values).shape == (length, 8)
        assert torch.allclose(words_of(values), expected, atol=1e-6)
        assert np.array_equal(arrays[at], words_of(values).numpy())
        assert torch.equal(targets["labels"], TEXTS[at] % 3)
    assert not arrays[0].flags.writeable
    assert "(*, 8)" in repr(features)
    assert [len(row) for row in features.targets["labels"]] == LENGTHS


def test_a_loader_with_workers_feeds_them(features):
    """A DataLoader's workers give the batches that features.batches gives."""
    batches = list(features.batches(4))
    for workers in (0, 2):
        loader = DataLoader(features, 4, collate_fn=features.collate, num_workers=workers)
        for (values, targets), (others, labels) in zip(loader, batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(values, others, strict=True))
            assert torch.equal(targets["labels"], labels["labels"])


def test_selections_and_other_tiers(features):
    """A part of the samples is fed alike; rows that differ in size stay where they lie."""
    some = features.select([3, 9, 4])
    values, targets = next(some.batches(3))
    assert targets["number"].tolist() == [3, 9, 4]
    assert compared(features, PooledInHead(), Collate(), TOKENS, values, targets) < 1e-6
    assert features.batches(4).tier == "mapped"
    with pytest.raises(DataError, match="mapped"):
        next(features.batches(4, tier="ram"))
    order = [targets["number"].tolist() for _, targets in features.batches(4, shuffle="block", seed=1)]
    assert sorted(number for numbers in order for number in numbers) == list(range(N))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "int8"])
def test_rows_of_differing_size_are_stored_smaller(dtype, features, tmp_path):
    """`dtype=` takes fewer bytes and errs by no more than its step; places that are padding are none of it."""
    small = ft.extract(PooledInHead(), TOKENS, tmp_path, batch_size=4, collate_fn=Collate(), dtype=dtype)
    rounded = small.batches(4)
    report = small.report.precision
    assert report.exact_bytes == sum(LENGTHS) * (8 * 4 + 4) + N * 4
    assert report.size_bytes < 0.8 * report.exact_bytes
    assert small.report.size_bytes < features.report.size_bytes
    for (values, _), (others, _) in zip(features.batches(4), rounded, strict=True):
        assert [value.dtype for value in values] == [other.dtype for other in others]
        assert (words_of(values) - words_of(others)).abs().max() <= report.largest_error * 1.5 + 1e-6
    assert report.output_error < 0.05
    assert small.verify(N).exact_rows == N
    again = ft.extract(PooledInHead(), TOKENS, tmp_path, batch_size=7, collate_fn=Collate(), dtype=dtype)
    assert again.report.rows_computed == 0


class Random(Dataset):
    """Texts of random length, each time."""

    def __len__(self):
        return 10

    def __getitem__(self, at):
        length = int(torch.randint(2, 9, ()))
        return {"input_ids": torch.randint(3, WORDS, (length,)).tolist(), "number": at}


def test_views_of_texts_of_random_length(tmp_path):
    """Each draw of a sample has a size of its own."""
    drawn = ft.extract(PooledInHead(), Random(), tmp_path, batch_size=4, collate_fn=Collate(), views=3, seed=5)
    lengths = [[len(row) for row in words_in(drawn, view)] for view in range(3)]
    assert len({tuple(each) for each in lengths}) == 3
    for epoch in range(3):
        for values, targets in drawn.batches(4, epoch=epoch):
            words = words_of(values)
            assert words.shape[1] == max(lengths[epoch][at] for at in targets["number"].tolist())
            assert torch.equal(words[..., 0] != 0, targets["labels"] != -100)
    again = ft.extract(PooledInHead(), Random(), tmp_path, batch_size=5, collate_fn=Collate(), views=3, seed=5)
    assert again.report.rows_computed == 0


class StopError(Exception):
    pass


def test_interrupted_work_is_taken_up(tmp_path):
    """What was committed before an end is not computed again."""
    seen = []

    class Ends(Collate):
        def __call__(self, items):
            seen.append(len(items))
            if len(items) == 4 and seen.count(4) > 3:
                raise StopError
            return super().__call__(items)

    with pytest.raises(StopError):
        ft.extract(PooledInHead(), TOKENS, tmp_path, batch_size=4, collate_fn=Ends(), segment_rows=4)
    features = ft.extract(PooledInHead(), TOKENS, tmp_path, batch_size=4, collate_fn=Collate(), segment_rows=4)
    assert 0 < features.report.rows_computed < N
    for values, targets in features.batches(5):
        assert compared(features, PooledInHead(), Collate(), TOKENS, values, targets) < 1e-6


def test_a_changed_sample_is_computed_and_only_that(tmp_path):
    """One token more, another one, or one less: one row."""
    ft.extract(PooledInHead(), TOKENS, tmp_path, batch_size=4, collate_fn=Collate())
    for change in (lambda own: [*own, 5], lambda own: [*own[:-1], own[-1] ^ 1], lambda own: own[:-1]):
        items = [dict(item) for item in TOKENS.items]
        items[3]["input_ids"] = change(items[3]["input_ids"])
        features = ft.extract(PooledInHead(), Listed(items), tmp_path, batch_size=4, collate_fn=Collate())
        assert features.report.rows_computed == 1
        values, targets = next(features.batches(5))
        assert compared(features, PooledInHead(), Collate(), Listed(items), values, targets) < 1e-6


def test_heads_are_fitted_on_rows_of_differing_size(tmp_path):
    """`fit` trains on padded values as on any."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 1)

        def forward(self, values):
            words = words_of(values)
            return self.last(words.sum(1) / (words.abs().sum(2) > 0).sum(1, keepdim=True))

    def collate(items):
        joined = Collate()(items)
        return {key: joined[key] for key in ("input_ids", "attention_mask")} | {"y": joined["number"].float()[:, None]}

    features = ft.extract(PooledInHead(), TOKENS, tmp_path, batch_size=4, collate_fn=collate)
    results = ft.fit(features, features, {"a": Mean()}, epochs=2, batch_size=5)
    assert all(np.isfinite(each.train_loss) for each in results["a"].metrics)


# --- cutting and putting back ------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, database=None)
@given(st.data())
def test_putting_back_undoes_cutting(data):
    """What is cut from a padded batch and put back is the batch, whatever axes, sides and sizes."""
    rank = data.draw(st.integers(1, 3))
    shape = data.draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank))
    axes = tuple(data.draw(st.permutations(range(1, rank + 1)))[: data.draw(st.integers(1, min(2, rank)))])
    rows = data.draw(st.integers(1, 4))
    sizes = torch.tensor([[data.draw(st.integers(0, shape[axis - 1])) for axis in axes] for _ in range(rows)])
    at_end, fill = data.draw(st.booleans()), data.draw(st.sampled_from([0.0, -7.0, float("nan")]))
    batch = torch.randn(rows, *shape)
    uneven = cut(batch, axes, sizes, at_end)
    assert len(uneven.values) == int(sizes.prod(1).sum())
    whole = put_back(uneven, axes, [shape[axis - 1] for axis in axes], fill, at_end)
    rest = outside(whole, axes, sizes, at_end)
    assert whole.shape == batch.shape
    assert bool(((rest == fill) | rest.isnan()).all())
    assert torch.equal(cut(whole, axes, sizes, at_end).values, uneven.values)
    order = torch.randperm(rows)
    chosen = uneven.select(order)
    assert all(torch.equal(chosen.row(at), uneven.row(number)) for at, number in enumerate(order.tolist()))


@pytest.mark.parametrize("fill", [0, -1, True, 0.5, float("-inf"), float("nan")])
def test_a_layout_comes_back_from_json(fill):
    """What a store keeps of a layout is the layout; anything else is refused."""
    layout = Layout((1, 2), (Stairs(0), Stairs(1, 1, -10, 5)), True, fill)
    written = json.loads(json.dumps(layout.to_json()))
    again = Layout.from_json(written)
    assert repr(again) == repr(layout)
    for wrong in ({"axes": [0, 1]}, {"stairs": [{"measure": 0, "rise": 1, "offset": 0, "run": 0}]}, {"fill": "x"}):
        with pytest.raises((ValueError, TypeError)):
            Layout.from_json(written | wrong)
