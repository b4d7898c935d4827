"""The laws of columns: tensors, arrays and lists beside each other are read as they lie, and never whole when not asked."""

import collections
import tracemalloc

import numpy as np
import pytest
import torch
from test_dataset import LABELS, N, Net, X, assert_right

import forethought as ft
from forethought.errors import DataError
from forethought.samples.batch import Batch
from forethought.samples.columns import columns_of, length_of, rows_of
from forethought.samples.dataset import Samples

NAMES = [f"label {at}" for at in range(N)]
Pair = collections.namedtuple("Pair", "x y")


class Table:
    """A column of a table, as pandas and others have them."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def to_numpy(self):
        return np.array(self.values)


READ = {
    "list of whole numbers": (lambda: (X, list(range(N))), LABELS),
    "list of fractions": (lambda: (X, [at / 3 for at in range(N)]), torch.arange(N, dtype=torch.float64) / 3),
    "list of text": (lambda: (X, NAMES), NAMES),
    "array of text": (lambda: (X.numpy(), np.array(NAMES)), NAMES),
    "array of objects": (lambda: (X, np.array(NAMES, object)), NAMES),
    "column of a table": (lambda: (X, Table(list(range(N)))), LABELS),
    "named tuple": (lambda: Pair(X, LABELS), LABELS),
    "dictionary with a list": (lambda: {"x": X, "label": NAMES}, NAMES),
    "ordered dictionary": (lambda: collections.OrderedDict(label=LABELS, x=X), LABELS),
    "a dictionary in another coat": (lambda: collections.UserDict(x=X, label=LABELS), LABELS),
}


@pytest.mark.parametrize("form", READ)
def test_columns_are_read_with_their_targets(form, tmp_path):
    """Whatever holds them: rows and targets are those that lie there, at first and again."""
    make, wanted = READ[form]
    for computed in (N, 0):
        features = ft.extract(Net(), make(), tmp_path)
        assert features.report.rows_computed == computed
        assert_right(features)
        assert features.targets == wanted if isinstance(wanted, list) else torch.equal(features.targets, wanted)
    assert next(targets for _, targets in features.batches(N)) is not None


REFUSED = {
    "dictionary of samples": lambda: {"a": (X[0], 1), "b": (X[1], 2)},
    "dictionary of data sets": lambda: {"train": [(X[0], 1)], "test": [(X[0], 1)]},
    "masked": lambda: np.ma.array(X.numpy(), mask=False),
    "dates": lambda: (X, np.zeros(N, "M8[s]")),
    "unequal": lambda: (X, list(range(N - 1))),
    "set": lambda: {1, 2},
    "one number": lambda: torch.tensor(1.0),
    "one array of one number": lambda: np.array(1.0),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_column_is_refused_in_words(form, tmp_path):
    """A DataError, not an error of torch or Python."""
    with pytest.raises(DataError):
        ft.extract(Net(), REFUSED[form](), tmp_path)


def test_a_file_that_is_mapped_is_not_read_whole(tmp_path):
    """A mapping may be larger than memory: a batch is all that is copied of it."""
    np.zeros((4096, 1024), np.float32).tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=(4096, 1024))
    tracemalloc.start()
    columns = columns_of((mapped, np.arange(4096)))
    assert length_of(columns) == 4096
    for at in range(0, 4096, 64):
        rows_of(columns, slice(at, at + 64))
    assert tracemalloc.get_traced_memory()[1] < mapped.nbytes / 8
    tracemalloc.stop()


@pytest.mark.parametrize("missing", [range(30, 60), [*range(20), *range(50, 100)], range(0, 100, 10), [99]])
def test_what_is_missing_is_read_in_the_batches_of_all_unless_scattered(missing):
    """Rows that are computed later round as those of an undisturbed run do, where that costs few batches more."""
    samples = Samples(torch.randn(100, 4), Net(), batch_size=10)
    indices = np.array(missing)
    batches = [batch.rows for batch, _ in samples.read(indices)]
    assert sum(batches) == len(indices)
    assert len(batches) <= 1 + 1.25 * len(indices) / 10
    whole = [len(part) for part in np.split(indices, np.flatnonzero(np.diff(indices // 10)) + 1)]
    assert batches == whole or len(whole) > 1 + 1.25 * len(indices) / 10


class Counted:
    """Counts the rows that are hashed one by one."""

    def __init__(self, monkeypatch):
        self.rows = 0
        row_keys = Batch.row_keys

        def counted(batch):
            self.rows += batch.rows
            return row_keys(batch)

        monkeypatch.setattr(Batch, "row_keys", counted)


def many(rows=200):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: x.numpy(), lambda x: (x, torch.arange(200)), lambda x: {"x": x}]
)
def test_columns_are_known_again_by_one_hash(form, tmp_path, monkeypatch):
    """A complete hit hashes the columns as a whole, and few rows; labels are those of now."""
    ft.extract(Net(), form(many()), tmp_path)
    counted = Counted(monkeypatch)
    assert ft.extract(Net(), form(many()), tmp_path).report.rows_computed == 0
    assert counted.rows <= 20
    again = ft.extract(Net(), (many(), torch.arange(200) * 2), tmp_path)
    assert torch.equal(again.targets, torch.arange(200) * 2)
    assert again.report.rows_computed == 0


@pytest.mark.parametrize("at", [0, 77, 199])
@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy(), lambda x: {"x": x, "y": list(range(200))}])
def test_one_bit_of_a_column_is_seen(form, at, tmp_path):
    """One row in many, written in place, between two calls."""
    x = many()
    data = form(x)
    ft.extract(Net(), data, tmp_path)
    x.view(torch.int32)[at, 3] ^= 1
    for computed in (1, 0):
        made = ft.extract(Net(), data, tmp_path)
        assert made.report.rows_computed == computed
        assert_right(made, x)


def test_columns_that_are_written_into_meanwhile_are_not_known_again(tmp_path, monkeypatch):
    """What was hashed as a whole must be what the rows were hashed from."""
    x, row_keys = many(), Batch.row_keys

    def writes(batch):
        x[150] = 7
        return row_keys(batch)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "row_keys", writes)
        ft.extract(Net(), x, tmp_path)
    for data in (many(), x, many()):
        assert_right(ft.extract(Net(), data, tmp_path), data)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy()])
def test_what_is_hashed_is_what_is_computed(form, tmp_path, monkeypatch):
    """Columns that are written into between the two: the row under a key is that of the content it was made from."""
    x, before, row_keys = many(), many(), Batch.row_keys

    def writes(batch):
        keys = row_keys(batch)
        if batch.rows == 64:
            x[:] = 7
        return keys

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "row_keys", writes)
        ft.extract(Net(), form(x), tmp_path)
    assert_right(ft.extract(Net(), before, tmp_path), before)
