"""The laws of views: seeded draws of a random transform, the same anywhere, one fed an epoch."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

import forethought as ft
from forethought.errors import DataError, RandomDatasetError
from forethought.samples.dataset import Samples

SOURCES = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: np.random.rand(),
    "random": random.random,
}


class Noisy(Dataset):
    """Each sample is drawn anew at each reading; so is its target."""

    def __init__(self, source="torch", rows=20):
        self.source = source
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, at):
        noise = SOURCES[self.source]()
        return torch.full((4,), float(at)) + noise, torch.tensor(noise)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    return ft.freeze(net, until="1")


def extract(net, data, store, **options):
    return ft.extract(net, data, store, batch_size=8, progress=False, **options)


@pytest.mark.parametrize("source", SOURCES)
def test_each_view_is_a_draw_of_its_own_and_the_same_again(source, net, tmp_path):
    """Whatever draws, torch, numpy or Python; nothing is computed twice."""
    data = Noisy(source)
    first = extract(net, data, tmp_path / "store", views=3)
    again = extract(net, data, tmp_path / "store", views=3)
    assert (len(first), first.views, first.report.rows_computed, again.report.rows_computed) == (20, 3, 60, 0)
    for view in range(3):
        assert (first.numpy(view) == again.numpy(view)).all()
        assert not (first.numpy(view) == first.numpy((view + 1) % 3)).all()


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"batch_size": 3}])
def test_draws_do_not_depend_on_workers_or_batches(options, net, tmp_path):
    """A draw follows from seed, view and index alone."""
    data = Noisy()
    ft.extract(net, data, tmp_path / "store", views=2, seed=5, batch_size=8)
    made = ft.extract(net, data, tmp_path / "store", **({"views": 2, "seed": 5, "batch_size": 8} | options))
    assert made.report.rows_computed == 0


def test_more_views_compute_the_new_ones_only(net, tmp_path):
    """View k of a seed is the same, however many there are; another seed draws others."""
    data = Noisy()
    assert extract(net, data, tmp_path / "store", views=2).report.rows_computed == 40
    assert extract(net, data, tmp_path / "store", views=3).report.rows_computed == 20
    assert extract(net, data, tmp_path / "store", views=1, seed=1).report.rows_computed == 20


@pytest.mark.parametrize("parts", [[range(5)], [[7, 3, 11]], [range(19, -1, -1), [2, 0, 5]], [torch.tensor([4, 9])]])
def test_a_part_in_any_order_has_the_draws_of_the_whole(parts, net, tmp_path):
    """Samples keep theirs in a Subset, and in a Subset of one: nothing is computed anew."""
    whole = extract(net, Noisy(), tmp_path, views=2)
    part, places = Noisy(), np.arange(20)
    for indices in parts:
        part, places = Subset(part, indices), places[list(indices)]
    made = extract(net, part, tmp_path, views=2)
    assert made.report.rows_computed == 0
    for view in range(2):
        assert (made.numpy(view) == whole.numpy(view)[places]).all()


def test_a_sample_that_is_taken_twice_has_two_draws(net, tmp_path):
    """Who takes it twice wants it drawn twice; the first is the one that it has alone."""
    whole = extract(net, Noisy(), tmp_path, views=2).numpy(0)
    twice = extract(net, Subset(Noisy(), [6, 6, 19, 6, 2]), tmp_path, views=2).numpy(0)
    assert (twice[[0, 2]] == whole[[6, 19]]).all()
    assert len({row.tobytes() for row in twice}) == 5


def test_another_process_draws_the_same(net, tmp_path):
    """With its own random states and hash seed."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_views import Noisy; import torch, random;"
        "from forethought.samples.dataset import Samples; from torch import nn;"
        "print(Samples(Noisy(), nn.Linear(4, 1)).view(1, 7).fetch([0, 5]).args[0].tolist())"
    )
    here = Samples(Noisy(), net).view(1, 7).fetch([0, 5]).args[0].tolist()
    folder = str(__import__("pathlib").Path(__file__).parent)
    told = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(here)


def test_an_epoch_is_fed_one_view_with_its_own_targets(net, tmp_path):
    """Epoch e is fed view e modulo K; without a number, the next one."""
    made = extract(net, Noisy(), tmp_path / "store", views=3)

    def fed(**options):
        values, targets = zip(*made.batches(7, **options), strict=True)
        return torch.cat(values).numpy(), torch.cat(targets)

    for epoch in range(6):
        values, targets = fed(epoch=epoch)
        assert (values == made.numpy(epoch % 3)).all()
        assert torch.equal(targets, made.drawn[epoch % 3].targets)
    following = [fed()[0] for _ in range(4)]
    assert [next(v for v in range(3) if (each == made.numpy(v)).all()) for each in following] == [0, 1, 2, 0]
    shuffled, targets = fed(epoch=1, shuffle=True, seed=0)
    order = [int((made.drawn[1].targets == target).nonzero()) for target in targets]
    assert (shuffled == made.numpy(1)[order]).all()


def test_the_random_states_of_the_user_are_left_alone(net, tmp_path):
    """Drawing from seeds moves no generator of the process."""
    states = lambda: (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))  # noqa: E731
    before = states()
    extract(net, Noisy("numpy"), tmp_path / "store", views=2)
    assert states() == before


class Own(Noisy):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, at):
        return torch.full((4,), self.generator.random())


def test_chance_that_no_seed_reaches_is_refused(net, tmp_path):
    """A draw that is not the same twice cannot be stored; the message says where chance may come from."""
    with pytest.raises(RandomDatasetError, match="elsewhere than torch, numpy and random"):
        extract(net, Own(), tmp_path / "store", views=2)


def test_without_views_a_random_data_set_is_refused_and_views_are_offered(net, tmp_path):
    """The fix is in the message."""
    with pytest.raises(RandomDatasetError, match=r"views=8"):
        extract(net, Noisy(), tmp_path / "store")


@pytest.mark.parametrize("views", [0, -1, 1.5, True, "3"])
def test_a_number_of_views_that_is_none_is_refused(views, net, tmp_path):
    with pytest.raises(DataError, match="expected a whole number above 0"):
        extract(net, Noisy(), tmp_path / "store", views=views)


def test_an_iterable_has_no_views(net, tmp_path):
    with pytest.raises(DataError, match="expected a data set with samples by index"):
        extract(net, (torch.rand(4) for _ in range(3)).__class__ and _Stream(), tmp_path / "store", views=2)


class _Stream:
    def __iter__(self):
        return iter([torch.zeros(4)] * 5)


def test_fitting_meets_every_view_and_judges_on_one(net, tmp_path):
    """Training is fed view after view; scores are of the first."""
    made = extract(net, Noisy(), tmp_path / "store", views=2)
    seen = []

    class Recorded:
        def __len__(self):
            return len(made)

        def batches(self, size, **options):
            seen.append((options.get("shuffle", False), options["epoch"] % 2))
            return ((v, t[:, None].float()) for v, t in made.batches(size, **options))

    ft.fit(Recorded(), Recorded(), heads={"a": nn.Linear(3, 1)}, epochs=4, batch_size=8)
    assert {epoch for shuffle, epoch in seen if shuffle} == {0, 1}
    assert {epoch for shuffle, epoch in seen if not shuffle} == {0}
