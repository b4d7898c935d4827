"""The laws of data sets: any kind is read whole, in its order, without changing it; what cannot be used says why."""

import collections
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

import forethought as ft
from forethought.errors import DataError, EmptyDatasetError, ForethoughtError, RandomDatasetError, UnequalShapesError
from forethought.samples.dataset import Samples

N = 20


def make_x():
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(1))


X, LABELS = make_x(), torch.arange(N)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer(x))


def same(row):
    return row


class Pairs(Dataset):
    def __init__(self, change=same, target=int):
        self.change, self.target = change, target

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.change(X[index]), self.target(index)


class Named(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"name": str(index), "x": X[index], "label": index}


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(X[i], i) for i in range(N)])


class Shards(IterableDataset):
    """As torch's documentation shards: each worker gives its own part."""

    def __iter__(self):
        worker = get_worker_info()
        at, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter([(X[i], i) for i in range(at, N, step)])


class ToShard(IterableDataset):
    at, step = 0, 1

    def __iter__(self):
        return iter([(X[i], i) for i in range(self.at, N, self.step)])


def shard(worker):
    data = get_worker_info().dataset
    data.at, data.step = worker, get_worker_info().num_workers


class Plain:
    """Any iterable that begins anew each time."""

    def __iter__(self):
        return ((X[i], i) for i in range(N))


class Doubled(TensorDataset):
    def __getitem__(self, index):
        x, label = super().__getitem__(index)
        return x * 2, label


class Batches(IterableDataset):
    def __iter__(self):
        return iter([X[i : i + 5] for i in range(0, N, 5)])


class BatchList(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[5 * index : 5 * index + 5]


def doubled(samples):
    x, label = default_collate(samples)
    return x * 2, label


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def values_of(features):
    return torch.cat([values for values, _ in features.batches(10**6)])


def assert_right(features, x=X):
    """Each row is the trunk's answer to its own sample, in order, none missing."""
    assert len(features) == len(x)
    torch.testing.assert_close(values_of(features), Net().layer(x))


# --- kinds -------------------------------------------------------------------------------------------------------

LABELLED = {
    "tuple": lambda: (X, LABELS),
    "dict": lambda: {"x": X, "label": LABELS},
    "arrays": lambda: (X.numpy(), LABELS.numpy()),
    "array and tensor": lambda: (X.numpy(), LABELS),
    "TensorDataset": lambda: TensorDataset(X, LABELS),
    "Dataset": Pairs,
    "list of samples": lambda: [(X[i], i) for i in range(N)],
    "tuple of samples": lambda: tuple((X[i], i) for i in range(N)),
    "list of dicts": lambda: [{"x": X[i], "label": i} for i in range(N)],
    "Subset": lambda: Subset(Pairs(), range(N)),
    "ConcatDataset": lambda: ConcatDataset([Subset(Pairs(), range(7)), Subset(Pairs(), range(7, N))]),
    "DataLoader": lambda: DataLoader(Pairs(), batch_size=6, shuffle=True, drop_last=True),
    "DataLoader with batch_sampler": lambda: DataLoader(
        Pairs(), batch_sampler=BatchSampler(RandomSampler(Pairs()), 3, drop_last=True)
    ),
    "DataLoader of a tuple of tensors": lambda: DataLoader(TensorDataset(X, LABELS), shuffle=True),
    "IterableDataset": Stream,
    "iterable": Plain,
    "DataLoader of an IterableDataset": lambda: DataLoader(Stream(), batch_size=3),
}


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_every_kind_is_read_whole_in_order_with_its_targets(kind, batch_size, store):
    features = ft.extract(Net(), LABELLED[kind](), store, batch_size=batch_size)
    assert_right(features)
    assert torch.equal(torch.as_tensor(features.targets), LABELS)
    assert ft.extract(Net(), LABELLED[kind](), store).report.rows_computed == 0


@pytest.mark.parametrize(
    "data",
    [lambda: X, lambda: X.numpy(), lambda: (X,), lambda: list(X), lambda: TensorDataset(X), lambda: {"x": X}],
    ids=["tensor", "array", "tuple of one", "list", "TensorDataset", "dict"],
)
def test_a_data_set_may_have_no_targets(data, store):
    features = ft.extract(Net(), data(), store)
    assert_right(features)
    assert features.targets is None
    assert all(targets is None for _, targets in features.batches(7))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: X.numpy()[::-1].copy()[::-1], id="backwards"),
        pytest.param(lambda: X.numpy().astype(">f4"), id="other byte order"),
        pytest.param(lambda: np.frombuffer(X.numpy().tobytes(), np.float32).reshape(N, 4), id="read-only"),
        pytest.param(lambda: (X, list(range(N))), id="tensor and list"),
        pytest.param(lambda: (X, np.array([str(i) for i in range(N)])), id="text labels"),
        pytest.param(lambda: {"x": X, "label": list(range(N))}, id="dict with a list"),
        pytest.param(lambda: collections.OrderedDict(x=X, label=LABELS), id="OrderedDict"),
        pytest.param(lambda: collections.UserDict(x=X, label=LABELS), id="UserDict"),
        pytest.param(lambda: collections.namedtuple("T", "x y")(X, X), id="named tuple"),
    ],
)
def test_columns_of_every_form_are_read_or_refused_in_words(data, store):
    try:
        features = ft.extract(Net(), data(), store)
    except ForethoughtError:
        return
    assert_right(features)
    assert_right(ft.extract(Net(), data(), store))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("data", [Pairs, Shards])
def test_workers_change_nothing_for_data_sets_that_know_them(data, workers, store):
    features = ft.extract(Net(), data(), store, num_workers=workers, batch_size=4)
    assert len(features) == N
    order = torch.as_tensor(features.targets)
    assert torch.equal(order.sort()[0], LABELS)
    torch.testing.assert_close(values_of(features), Net().layer(X[order]))


def test_a_plain_iterable_is_read_once_whatever_the_workers(store):
    assert_right(ft.extract(Net(), Plain(), store, num_workers=2))


def test_a_loader_that_shards_by_worker_init_fn_gives_each_row_once(store):
    loader = DataLoader(ToShard(), batch_size=4, num_workers=2, worker_init_fn=shard)
    assert sum(len(x) for x, _ in loader) == N
    features = ft.extract(Net(), loader, store)
    assert len(features) == N


def method_of(_):
    import multiprocessing

    return type(multiprocessing.current_process()).__name__


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), [("fork", "ForkProcess"), pytest.param("spawn", "SpawnProcess")])
def test_a_loader_lends_the_way_its_workers_start(method, name, store):
    loader = DataLoader(Pairs(target=method_of), batch_size=10, num_workers=1, multiprocessing_context=method)
    features = ft.extract(Net(), loader, store)
    assert_right(features)
    assert set(features.targets) <= {name, "Process"}
    if method == "spawn":
        assert set(features.targets) == {name}


# --- what a data set or a loader says is what the model is given -------------------------------------------------


def test_the_getitem_of_a_subclass_counts(store):
    assert_right(ft.extract(Net(), Doubled(X, LABELS), store), X * 2)


@pytest.mark.parametrize(
    "data",
    [
        lambda: DataLoader(Pairs(), collate_fn=doubled),
        lambda: DataLoader(TensorDataset(X, LABELS), collate_fn=doubled),
        lambda: DataLoader(TensorDataset(X, LABELS), collate_fn=doubled, batch_size=4),
    ],
)
def test_the_collate_function_of_a_loader_counts(data, store):
    assert_right(ft.extract(Net(), data(), store), X * 2)


@pytest.mark.parametrize("data", [Pairs, lambda: TensorDataset(X, LABELS)])
def test_a_collate_function_that_is_given_counts(data, store):
    assert_right(ft.extract(Net(), data(), store, collate_fn=doubled), X * 2)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(Batches, id="iterable"),
        pytest.param(BatchList, id="map"),
    ],
)
def test_a_loader_without_batching_of_its_own_loses_no_row(data, store):
    loader = DataLoader(data(), batch_size=None)
    assert sum(len(x) for x in loader) == N
    try:
        features = ft.extract(Net(), loader, store)
    except RandomDatasetError:
        raise
    except DataError as err:
        assert "batch" in str(err)  # noqa: PT017  (refusing in words is right too)
    else:
        assert_right(features)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ((X[i], i) for i in range(N)), id="generator"),
        pytest.param(lambda: iter([(X[i], i) for i in range(N)]), id="list iterator"),
        pytest.param(lambda: zip(X, range(N), strict=True), id="zip"),
        pytest.param(lambda: iter(DataLoader(Pairs(), batch_size=None)), id="loader"),
        pytest.param(lambda: iter([(X[i], i) for i in range(5)]), id="short"),
    ],
)
def test_what_can_be_read_once_is_refused_or_read_whole(make, store):
    try:
        features = ft.extract(Net(), make(), store)
    except DataError as err:
        assert "itera" in str(err)  # noqa: PT017
    else:
        assert_right(features)


def test_an_iterable_that_shuffles_keeps_rows_and_targets_together(store):
    class Shuffles:
        def __iter__(self):
            return ((X[i], int(i)) for i in torch.randperm(N))

    features = ft.extract(Net(), Shuffles(), store)
    torch.testing.assert_close(values_of(features), Net().layer(X[features.targets]))
    assert torch.equal(features.targets.sort()[0], LABELS)


# --- inputs and targets ------------------------------------------------------------------------------------------


def test_keys_that_forward_names_are_inputs(store):
    features = ft.extract(Net(), Named(), store)
    assert_right(features)
    assert set(features.targets) == {"name", "label"}
    assert features[3][1]["name"] == "3"
    assert next(iter(features.batches(5)))[1]["name"] == list("01234")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 2)

    def forward(self, left, right, weight=None):
        return self.head(self.layer(left) - self.layer(right) * (1 if weight is None else weight))


@pytest.mark.parametrize(
    ("data", "inputs"),
    [
        ((X, -X, LABELS), (0, 1)),
        ((LABELS, -X, X), (2, 1)),
        ({"left": X, "right": -X, "label": LABELS}, None),
        ({"a": X, "b": -X, "label": LABELS}, ("a", "b")),
        ({"right": -X, "label": LABELS, "left": X}, ("left", "right")),
        ([((X[i], -X[i]), i) for i in range(N)], None),
        ([({"left": X[i], "right": -X[i]}, i) for i in range(N)], None),
    ],
)
def test_several_inputs_go_where_they_belong(data, inputs, store):
    model = Two()
    features = ft.extract(model, data, store, inputs=inputs)
    got = values_of(features) if len(features.frontier) == 1 else None
    assert got is not None
    torch.testing.assert_close(got, model.layer(X) - model.layer(-X))
    assert torch.equal(features.targets, LABELS)


@pytest.mark.parametrize("inputs", [1, (1,), -1, "x"])
def test_inputs_overrides_and_leaves_the_rest_as_targets(inputs, store):
    data = Named() if inputs == "x" else [(i, X[i]) for i in range(N)]
    features = ft.extract(Net(), data, store, inputs=inputs)
    assert_right(features)
    if inputs != "x":
        assert torch.equal(torch.as_tensor(features.targets), LABELS)


@pytest.mark.parametrize(
    ("data", "inputs"),
    [
        (Pairs(), 5),
        (Pairs(), "x"),
        pytest.param(Named(), "nope"),
        pytest.param(Named(), 7),
    ],
)
def test_inputs_that_are_not_there_are_named(data, inputs, store):
    with pytest.raises(DataError, match=str(inputs)):
        ft.extract(Net(), data, store, inputs=inputs)


def test_a_dictionary_without_inputs_says_what_it_has(store):
    with pytest.raises(DataError, match=r"image.*inputs="):
        ft.extract(Net(), [{"image": X[0], "label": 1}], store)


TARGETS = {
    "int": (int, 7),
    "float": (float, 7.0),
    "str": (str, "7"),
    "bool": (lambda i: i % 2 == 0, False),
    "array": (lambda i: np.arange(i, i + 2), [7, 8]),
    "tensor": (lambda i: torch.tensor([i, i + 1]), [7, 8]),
    "list": (lambda i: [i, i + 1], (7, 8)),
    "tuple": (lambda i: (i, str(i)), (7, "7")),
    "nested": (lambda i: {"a": (i, {"b": str(i)}), "c": [float(i)]}, {"a": (7, {"b": "7"}), "c": (7.0,)}),
}


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return tuple(plain(item) for item in value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("batch_size", [1, 6])
def test_targets_of_every_kind_stay_with_their_sample(kind, batch_size, store):
    make, wanted = TARGETS[kind]
    features = ft.extract(Net(), Pairs(target=make), store, batch_size=batch_size)
    assert plain(features[7][1]) == wanted
    assert plain(features[-13][1]) == wanted


def listed(samples):
    return torch.stack([x for x, _ in samples]), [target for _, target in samples]


def tupled(samples):
    return torch.stack([x for x, _ in samples]), tuple(target for _, target in samples)


def arrayed(samples):
    return torch.stack([x for x, _ in samples]), np.array([target for _, target in samples])


@pytest.mark.parametrize("batch_size", [4, 6])
@pytest.mark.parametrize(
    ("target", "collate", "wanted"),
    [
        (int, listed, 7),
        (complex, listed, 7 + 0j),
        pytest.param(lambda i: torch.full((i % 3 + 1,), i), listed, [7, 7]),
        pytest.param(lambda i: {"id": i, "boxes": [i] * (i % 3)}, tupled, {"id": 7, "boxes": (7,)}),
        pytest.param(int, arrayed, 7),
    ],
)
def test_targets_that_a_collate_function_leaves_apart_stay_with_their_sample(
    target, collate, wanted, batch_size, store
):
    features = ft.extract(Net(), Pairs(target=target), store, collate_fn=collate, batch_size=batch_size)
    assert plain(features[7][1]) == wanted
    assert plain(features[19][1]) is not None


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        lambda: X[:0],
        lambda: X.numpy()[:0],
        list,
        tuple,
        dict,
        lambda: TensorDataset(X[:0], LABELS[:0]),
        lambda: Subset(Pairs(), []),
        lambda: DataLoader([], batch_size=2),
        lambda: type("Nothing", (), {"__iter__": lambda self: iter(())})(),
    ],
)
def test_an_empty_data_set_is_named(data, store):
    with pytest.raises(EmptyDatasetError):
        ft.extract(Net(), data(), store)


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        "text",
        Plain.__iter__,
        (X, LABELS[:-1]),
        {"x": X, "label": LABELS[1:]},
        ["a", "b"],
        torch.tensor(1.0),
        {1, 2},
        Pairs(target=lambda i: None),
    ],
)
def test_what_is_no_data_set_is_refused_in_words(data, store):
    with pytest.raises(DataError):
        ft.extract(Net(), data, store)


@pytest.mark.parametrize("workers", [0, 1])
def test_unequal_shapes_are_named(workers, store):
    with pytest.raises(UnequalShapesError, match=r"\(4,\).*collate_fn="):
        ft.extract(Net(), [X[0], X[1][:3], X[2]], store, num_workers=workers)
    late = Pairs()
    late.change = lambda row: row if not torch.equal(row, X[15]) else row[:3]
    with pytest.raises(UnequalShapesError):
        ft.extract(Net(), late, store, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_is_the_one_that_is_seen(workers, store):
    with pytest.raises(ZeroDivisionError):
        ft.extract(Net(), Pairs(target=lambda i: 1 / (15 - i)), store, num_workers=workers)


def test_texts_among_the_inputs_are_refused_in_words(store):
    class Reads(Net):
        def forward(self, x, name):
            return self.head(self.layer(x) * torch.tensor([float(len(text)) for text in name])[:, None])

    with pytest.raises(ForethoughtError):
        ft.extract(Reads(), Named(), store)


# --- chance ------------------------------------------------------------------------------------------------------

CHANCES = {
    "torch": lambda row: row + torch.rand(()),
    "numpy": lambda row: row + np.float32(np.random.rand()),
    "Python": lambda row: row + random.random(),
    "a flip in two": lambda row: row.flip(0) if torch.rand(()) < 0.5 else row,
    "a flip in ten": lambda row: row.flip(0) if torch.rand(()) < 0.1 else row,
}


@pytest.mark.parametrize("kind", CHANCES)
def test_a_random_transform_is_refused(kind, store):
    with pytest.raises(RandomDatasetError, match=r"random|same"):
        ft.extract(Net(), Pairs(CHANCES[kind]), store)


@pytest.mark.parametrize("kind", ["torch", "numpy", "Python"])
def test_reading_twice_sees_chance(kind):
    with pytest.raises(RandomDatasetError):
        Samples(Pairs(CHANCES[kind]), Net()).check_repeats()


def test_a_generator_of_its_own_is_seen(store):
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RandomDatasetError):
        ft.extract(Net(), Pairs(lambda row: row + torch.rand((), generator=generator)), store)


def states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()


@pytest.mark.parametrize(
    "data",
    [
        lambda: X,
        lambda: TensorDataset(X, LABELS),
        Pairs,
        Stream,
        lambda: Pairs(lambda row: (torch.rand(1), random.random(), np.random.rand(), row)[-1]),
    ],
)
def test_random_states_are_left_as_found(data, store):
    net, before = Net(), states()
    for _ in range(2):
        ft.extract(net, data(), store)
        after = states()
        assert torch.equal(before[0], after[0])
        assert before[1] == after[1]
        assert np.array_equal(before[2], after[2])


# --- images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    generator = np.random.default_rng(0)
    for index in range(12):
        folder = tmp_path / "images" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


class Eye(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).requires_grad_(False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x))


def test_a_folder_of_images(images, store, tmp_path):
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    data = ImageFolder(images, transforms.ToTensor())
    features = ft.extract(Eye(), data, store, num_workers=2, batch_size=5)
    assert features.targets.tolist() == data.targets
    torch.testing.assert_close(values_of(features), Eye().conv(torch.stack([x for x, _ in data])))

    moved = images.rename(tmp_path / "elsewhere")
    again = ImageFolder(moved, transforms.ToTensor())
    assert ft.extract(Eye(), again, store).report.rows_computed == 0

    import PIL.Image

    PIL.Image.new("RGB", (16, 16), "red").save(moved / "class0" / "0.png")
    PIL.Image.new("RGB", (16, 16), "blue").save(moved / "class1" / "new.png")
    assert ft.extract(Eye(), again, store).report.rows_computed == 1
    assert ft.extract(Eye(), ImageFolder(moved, transforms.ToTensor()), store).report.rows_computed == 1

    brighter = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    assert ft.extract(Eye(), ImageFolder(moved, brighter), store).report.rows_computed == 13

    flipping = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    with pytest.raises(RandomDatasetError):
        ft.extract(Eye(), ImageFolder(moved, flipping), store)


def test_images_without_a_transform_say_so(images, store):
    from torchvision.datasets import ImageFolder

    with pytest.raises(DataError, match="transform"):
        ft.extract(Eye(), ImageFolder(images), store)


def test_generated_images(store):
    from torchvision import transforms
    from torchvision.datasets import FakeData

    data = FakeData(10, (3, 16, 16), 3, transforms.ToTensor())
    features = ft.extract(Eye(), data, store)
    assert features.report.rows_computed == 10
    assert ft.extract(Eye(), data, store).report.rows_computed == 0


class HandsOn(nn.Module):
    """A wrapper of somebody's that names none of its inputs."""

    def __init__(self):
        super().__init__()
        self.inner = Skips()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 6).requires_grad_(False)
        self.head = nn.Linear(6, 2)

    def forward(self, first, unused=None, last=None):
        return self.head(self.trunk(first) + (0 if unused is None else 100) + self.trunk(last))


def test_several_inputs_chosen_by_name_reach_what_a_wrapper_hands_them_to(tmp_path):
    """Names that a wrapper does not name are those of what is inside, not places in the order in which they are listed."""
    model, first, last = HandsOn(), torch.randn(6, 4), torch.randn(6, 4)
    data = [{"first": a, "last": b} for a, b in zip(first, last, strict=True)]
    features = ft.extract(model, data, tmp_path, inputs=["first", "last"])
    values, _ = next(iter(features.batches(6)))
    assert torch.allclose(features.head(values), model(first=first, last=last), atol=1e-6)
