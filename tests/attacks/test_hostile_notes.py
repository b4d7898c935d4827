"""Notes that say anything, under a valid seal: extraction takes them for unknown or refuses them, and serves no wrong row."""

import json
import os
import shutil
import tracemalloc

import pytest
import torch
from forgery import places_in, sealed, with_part
from torch import nn

import forethought as ft
from forethought.errors import ForethoughtError
from forethought.store import Column, Store

HOSTILE = [
    None,
    True,
    -1,
    0,
    2**70,
    1e300,
    "",
    "../../x",
    "ab",
    "a" * 100_000,
    [],
    {},
    [[[[]]]],
    {"a": None},
    [-1],
    [2**50],
    ["F32"],
]


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    return model


X = torch.arange(24.0).reshape(6, 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("notes") / "store"
    ft.extract(make_model(), X, path)
    return path


def notes_of(store):
    return sorted([*store.glob("notes/*/*.note"), *store.glob("tables/*/table.note")])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_sealed_note_that_says_anything_serves_no_wrong_row(store, tmp_path, which):
    """Each part of each note, replaced by five hostile values in turn."""
    path = notes_of(store)[which].relative_to(store)
    key = path.parent.name if path.name == "table.note" else path.stem
    note = json.loads((store / path).read_bytes().partition(b"\n")[2])
    model = make_model()
    right = torch.relu(model[0](X))
    for at, place in enumerate(places_in(note)):
        for part in (HOSTILE[(5 * at + i) % len(HOSTILE)] for i in range(5)):
            copy = shutil.copytree(store, tmp_path / "copy")
            (copy / path).write_bytes(
                sealed(key, json.dumps(with_part(note, place, part), separators=(",", ":")).encode())
            )
            try:
                features = ft.extract(make_model(), X, copy, progress=False)
            except ForethoughtError:
                pass
            else:
                assert torch.equal(torch.cat([values for values, _ in features.batches(6)]), right), (place, part)
            shutil.rmtree(copy)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["notes/ab/abcd.note", "tables/ab/table.note"])
def test_a_note_of_a_terabyte_is_a_miss(tmp_path, name):
    """A file that claims a huge size costs neither memory nor time."""
    store = Store(tmp_path / "store")
    store.write_note("abcd", {"a": 1})
    table = store.table("ab", [Column("0", "U8", (1,))])
    table.writer().close()
    os.truncate(store.path / name, 2**40)
    tracemalloc.start()
    try:
        said = store.note("abcd") if name.startswith("notes") else store.table("ab", table.columns).provenance
        assert not said
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
