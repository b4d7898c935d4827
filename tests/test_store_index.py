"""The laws of the index: it is a dictionary of keys in which the first place stays, however the keys look."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.store import index as index_module
from forethought.store.index import Index

laws = settings(max_examples=150, deadline=None, database=None)

# Halves that tie in their first bits, in all of them, or not at all, at either end of the range.
halves = st.sampled_from([0, 1, 2, 2**32, 2**40 + 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1])
keys = st.lists(st.tuples(halves, halves), max_size=12).map(
    lambda pairs: np.array(pairs, np.uint64).reshape(-1, 2).view(np.uint8).reshape(-1, 16)
)


def look_up(model, asked):
    return [list(model.get(bytes(key), (-1, -1))) for key in asked]


@laws
@given(st.lists(st.lists(keys, max_size=3), max_size=5), keys)
def test_index_is_a_dictionary_in_which_the_first_place_stays(steps, asked):
    """Any keys, in any division into segments and merges; an index that was there before stays as it was."""
    index, model, number, before = Index(), {}, 0, []
    for pieces in steps:
        numbered = list(enumerate(pieces, number))
        before.append((index, dict(model)))
        for segment, piece in numbered:
            for row, key in enumerate(piece):
                model.setdefault(bytes(key), (segment, row))
        number += len(pieces)
        index = index.merged(iter(numbered), number)
        assert index.segments == number
        assert len(index) == len(model)
    everything = np.concatenate([asked, *(piece for pieces in steps for piece in pieces)])
    for each, known in [*before, (index, model)]:
        assert each.find(everything).tolist() == look_up(known, everything)


def make_keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def crowded(half):
    """Keys that differ in one half only."""
    keys = make_keys(20_000)
    keys[:, 8 * half : 8 * half + 8] = 7
    return keys


@pytest.mark.parametrize("keys", [make_keys(20_000), crowded(0), crowded(1)], ids=["digests", "first", "second"])
def test_many_keys_are_found_where_they_are(keys):
    """Digests, and keys chosen to tie in either half: each is found, its neighbours are not."""
    index = Index().merged([(5, keys[:8000]), (7, keys[8000:15_000])], 8)
    places = index.find(keys)
    assert places[:8000].tolist() == [[5, row] for row in range(8000)]
    assert places[8000:15_000].tolist() == [[7, row] for row in range(7000)]
    assert (places[15_000:] == -1).all()


def test_segments_that_come_one_by_one_are_sorted_few_times(monkeypatch):
    """What is in order is not sorted again for each new segment, and a look-up still searches few runs."""
    sort, sorted_rows = index_module._sorted, []
    monkeypatch.setattr(index_module, "_sorted", lambda words, rows: sorted_rows.append(len(rows)) or sort(words, rows))
    index, keys = Index(), make_keys(600)
    for number in range(300):
        index = index.merged([(number, keys[2 * number : 2 * number + 2])], number + 1)
        lengths = [len(run) for run in index._runs]
        assert len(lengths) <= 9
        assert all(first >= 2 * second for first, second in pairwise(lengths))
    assert sum(sorted_rows) < 12 * len(keys)
    assert index.find(keys).tolist() == [[row // 2, row % 2] for row in range(600)]


def test_a_segment_of_known_keys_adds_no_run():
    """Rows that somebody wrote again cost nothing."""
    keys = make_keys(100)
    index = Index().merged([(0, keys)], 1).merged([(1, keys[::-1].copy())], 2)
    assert [len(run) for run in index._runs] == [100]
    assert (index.find(keys)[:, 0] == 0).all()


def test_rows_beyond_32_bits_keep_their_places():
    """More than 2**32 rows need wider numbers, and get them."""
    keys = make_keys(10)
    index = Index(_firsts=np.array([2**32 - 5])).merged([(0, keys[:5])], 1).merged([(1, keys[5:])], 2)
    assert index.find(keys).tolist() == [[row // 5, row % 5] for row in range(10)]
    assert index._runs[-1].rows.max() == 2**32 + 4


def test_memory_is_bounded():
    """20 bytes a row when it is there, and 64 at any time on the way, with the keys that were read."""
    rows = 2**19
    tracemalloc.start()
    try:
        index = Index().merged(((number, make_keys(rows // 32, number)) for number in range(32)), 32)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == rows
    assert size < 21 * rows
    assert peak < 64 * rows


def test_keys_in_any_memory_are_found():
    """Not aligned to words, or not contiguous when they were given to the table: their bytes are what counts."""
    keys = make_keys(50)
    raw = np.zeros(50 * 16 + 1, np.uint8)
    shifted = raw[1:].reshape(50, 16)
    shifted[:] = keys
    index = Index().merged([(0, shifted)], 1)
    assert index.find(keys)[:, 1].tolist() == list(range(50))
    assert np.array_equal(index.find(shifted), index.find(keys))
