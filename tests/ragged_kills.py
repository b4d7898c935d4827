"""Kill -9 at random moments of the extraction of samples that differ in size, as often as wanted.

    python tests/ragged_kills.py --rounds 5 --seed 0

Each round begins a store and kills extractions of texts into it, a few times in a row, at moments that are drawn: of all
texts, of those of one length, which have a table of their own, and of both one after the other, so that rows are copied
from one table to another while they are killed. After each kill every row of every segment is compared with the live one,
and what was committed before must be there; then all texts are extracted to the end, and what is computed without need
is counted.
"""

import argparse
import os
import pickle
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from kills import fork, outcome, segments
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import forethought as ft
from forethought.housekeeping import verify_store
from forethought.housekeeping.files import open_table

TEXTS, WORDS, WIDTH, BATCH, SEGMENT_ROWS = 120, 40, 6, 6, 12
PAUSE_S = 0.001  # a text: so that kills find work that is not done


class Slow(torch.utils.data.Dataset):
    """Texts of whole numbers."""

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        time.sleep(PAUSE_S)
        return self.texts[index]


class Sums(nn.Module):
    """Sums of what stands before each word, in whole numbers: exact in any company."""

    def __init__(self, weight):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH, _weight=weight), nn.Linear(WIDTH, 2)
        self.words.requires_grad_(False)

    def forward(self, tokens):
        return self.head(self.words(tokens).cumsum(1))


def table_of_words():
    return np.random.default_rng(7).integers(-9, 10, (WORDS, WIDTH)).astype(np.float32)


def model():
    return Sums(torch.from_numpy(table_of_words()))


def collate(texts):
    return pad_sequence(texts, batch_first=True)


def texts_of(seed):
    draw = np.random.default_rng(seed)
    lengths = np.where(draw.random(TEXTS) < 0.4, 7, draw.integers(1, 12, TEXTS))
    return [torch.from_numpy(draw.integers(1, WORDS, length)) for length in lengths]


def live(text):
    return table_of_words()[text.numpy()].cumsum(0)


def extract(store, texts):
    features = ft.extract(
        model(), Slow(texts), store, batch_size=BATCH, segment_rows=SEGMENT_ROWS, collate_fn=collate, progress=False
    )
    fed = features.numpy()
    assert all(np.array_equal(row, live(text)) for row, text in zip(fed, texts, strict=True)), "a wrong row was fed"
    return features.report.rows_computed


def of_one_length(store, texts):
    return extract(store, [text for text in texts if len(text) == 7])


def one_after_the_other(store, texts):
    return of_one_length(store, texts) + extract(store, texts)


def backwards(store, texts):
    return extract(store, texts[::-1]) + of_one_length(store, texts[::-1])


WORKS = (extract, of_one_length, one_after_the_other, backwards)


def keys_of(texts):
    """Say which text has which key."""
    features = ft.extract(model(), Slow(texts), "memory://keys-of-texts", collate_fn=collate, progress=False)
    return {key.tobytes(): text for key, text in zip(features._keys(range(len(texts))), texts, strict=True)}


def served(store, by_key):
    """Give the keys of all rows, by table; fail on a row that is not the live one."""
    opened, found = ft.Store(store, readonly=True), {}
    for path in segments(store):
        table = open_table(opened, path.parent.name)
        assert table is not None
        segment = table._segment(path.name)
        column, keys = segment.column("0"), segment.keys
        starts = np.zeros(len(keys) + 1, np.int64)
        is_ragged = table.columns[0].is_ragged
        if is_ragged:
            starts[1:] = np.cumsum(column.sizes.prod(1))
        for at, key in enumerate(keys):
            values = column.values.view(np.float32)[starts[at] : starts[at + 1]] if is_ragged else column[at]
            assert values.tobytes() == live(by_key[key.tobytes()]).tobytes(), f"a wrong row in {path.name}"
            found.setdefault(path.parent.name, set()).add(key.tobytes())
    return found


def kill_once(work, store, texts, draw):
    """Kill a work at a moment that is drawn; say whether it had not ended before."""
    child, pipe = fork(work, store, texts)
    wanted, until = len(segments(store)) + draw.randint(0, 5), time.monotonic() + 3
    while len(segments(store)) < wanted and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.1))
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    end, _ = outcome(child, pipe)
    assert end in (0, signal.SIGKILL), f"{work.__name__} failed"
    return end == signal.SIGKILL


def run_round(store, draw, kills):
    """Kill works on one store; return what was counted."""
    texts = texts_of(draw.randrange(2**30))
    by_key, count, known = keys_of(texts), Counter(), {}
    ft.Store(store)
    for _ in range(kills):
        count["kills"] += kill_once(draw.choice(WORKS), store, texts, draw)
        found = served(store, by_key)
        assert all(keys <= found.get(table, set()) for table, keys in known.items()), "committed rows are lost"
        assert all(fault.path.endswith(".jsonl") for fault in verify_store(ft.Store(store)).faults)
        known = found
        count["rows"] += sum(map(len, found.values()))
    end, raw = outcome(*fork(extract, store, texts))
    assert end == 0, "the next run failed"
    anywhere = set().union(*known.values()) if known else set()
    count["needless"] += pickle.loads(raw) - len(by_key.keys() - anywhere)
    count["rows"] += sum(map(len, served(store, by_key).values()))
    return count


def run_rounds(rounds, seed, kills=6):
    """Run so many rounds; return what was counted."""
    draw, total = random.Random(seed), Counter()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="ragged-kills-") as folder:
            total.update(run_round(Path(folder) / "store", draw, kills))
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=6, help="Of each store.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    counted = run_rounds(asked.rounds, asked.seed, asked.kills)
    print(f"0 wrong of {counted['rows']} rows, {counted['kills']} kills, no committed row lost, "
          f"{counted['needless']} rows computed without need")  # fmt: skip
