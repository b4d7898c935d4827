"""What Python draws, by `random`, numpy or a generator of a module: in both halves as in the whole model, or refused."""

import random

import numpy as np
import pytest
import torch
from odd_models import Base, frozen
from torch import nn

import forethought as ft
from forethought.errors import ImpureTrunkError, ReplayDriftError

DRAWS = {
    "random": lambda model: random.random(),
    "numpy": lambda model: float(np.random.rand()),
    "own random": lambda model: model.chance.random(),
    "own numpy": lambda model: float(model.numbers.random()),
}


class Chance(Base):
    """Has generators of its own, and draws in its forward."""

    def __init__(self, draw):
        super().__init__()
        self.chance, self.numbers, self.draw = random.Random(0), np.random.default_rng(0), draw


class Both(Chance):
    """One number for what is frozen and what trains, one more for what trains."""

    def forward(self, x):
        scale = self.draw(self)
        y = self.head(self.body(x) * scale) * scale
        return y + self.draw(self)


class Picks(Chance):
    """A number that decides a frozen step."""

    def forward(self, x):
        h = self.body(x)
        return self.head(h if self.draw(self) < 0.5 else h * 2)


class Noisy(nn.Module):
    """A frozen module that draws."""

    def forward(self, x):
        return x * random.random()


def seeded(model, seed, run):
    """Run from a seed; give the output and the states in which it left all generators."""
    random.seed(seed)
    np.random.seed(seed)
    model.chance.seed(seed)
    model.numbers.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    output = run()
    states = (
        random.getstate(),
        str(np.random.get_state()),
        model.chance.getstate(),
        str(model.numbers.bit_generator.state),
    )
    return output, states


@pytest.fixture(autouse=True)
def _random_states_stay():
    states = random.getstate(), np.random.get_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])


@pytest.mark.parametrize("draw", DRAWS)
def test_both_halves_draw_what_the_model_draws(draw):
    """A number that Python draws for both halves is one number, and chance goes on as after the whole model."""
    torch.manual_seed(0)
    model, x = Both(DRAWS[draw]), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    for seed in range(4):
        live, ended = seeded(model, seed, lambda: model(x))
        again, ended_again = seeded(model, seed, lambda: parts.head(parts.trunk(x)))
        assert torch.equal(live, again)
        assert ended == ended_again


@pytest.mark.parametrize("draw", DRAWS)
def test_a_frozen_step_picked_by_chance_is_exact_or_refused(draw):
    """What a number drawn in Python decides is never another thing in the head than in the trunk."""
    torch.manual_seed(0)
    model, x, exact = Picks(DRAWS[draw]), torch.randn(5, 6), 0
    parts = ft.split(model, torch.randn(3, 6))
    for seed in range(12):
        live, _ = seeded(model, seed, lambda: model(x))
        try:
            again, _ = seeded(model, seed, lambda: parts.head(parts.trunk(x)))
        except ReplayDriftError:
            continue
        exact += 1
        assert torch.equal(live, again)
    assert exact


def test_frozen_modules_that_draw_draw_once():
    """What a frozen module draws is the trunk's; the head goes on with the next number."""

    class Model(Chance):
        def __init__(self):
            super().__init__(None)
            self.noise = Noisy()

        def forward(self, x):
            return self.head(self.noise(self.body(x))) + random.random()

    model, x = Model(), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    live, ended = seeded(model, 3, lambda: model(x))
    again, ended_again = seeded(model, 3, lambda: parts.head(parts.trunk(x)))
    assert torch.equal(live, again)
    assert ended == ended_again


def test_draws_in_frozen_modules_and_between_them_are_refused():
    """The head would have to draw some of them again and not the others."""

    class Model(Chance):
        def __init__(self):
            super().__init__(None)
            self.noise, self.late = Noisy(), frozen(nn.Linear(8, 8))

        def forward(self, x):
            return self.head(self.late(self.noise(self.body(x)) * random.random()))

    with pytest.raises(ReplayDriftError, match=r"drawn in one half.*model\.eval"):
        ft.split(Model(), torch.randn(3, 6))


def test_a_second_head_on_the_same_values_draws_the_same_and_turns_no_clock_back():
    """Values carry the numbers that were drawn for them; the process goes on with its own."""
    model, x = Both(DRAWS["random"]), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    values = parts.trunk(x)
    first = parts.head(values)
    before = random.getstate()
    assert torch.equal(parts.head(values), first)
    assert random.getstate() == before


def test_values_of_which_nobody_knows_what_was_drawn_are_refused():
    """A copy of the trunk's values does not tell the numbers."""
    parts = ft.split(Both(DRAWS["numpy"]), torch.randn(3, 6))
    with pytest.raises(ReplayDriftError, match=r"very values.*model\.eval"):
        parts.head(parts.trunk(torch.randn(5, 6)).clone())


@pytest.mark.parametrize("draw", DRAWS)
def test_no_rows_of_numbers_drawn_in_python(draw, tmp_path):
    """Rows that chance decides are refused by name, whoever draws."""
    with pytest.raises((ImpureTrunkError, ReplayDriftError), match="random numbers"):
        ft.extract(Both(DRAWS[draw]), torch.randn(20, 6), ft.Store(tmp_path / "s"))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_generator_of_torch_that_a_module_holds(is_frozen, tmp_path):
    """Drawn for what is frozen: exact in the halves, refused as rows. Drawn for what trains: rows are stored."""

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator()

        def forward(self, x):
            h = self.body(x)
            noise = torch.randn(len(x), 8 if is_frozen else 3, generator=self.generator)
            return self.head(h + noise) if is_frozen else self.head(h) + noise

    model, x = Model(), torch.randn(20, 6)
    parts = ft.split(model, torch.randn(3, 6))
    model.generator.manual_seed(1)
    live = model(x)
    model.generator.manual_seed(1)
    assert torch.equal(parts.head(parts.trunk(x)), live)
    if is_frozen:
        with pytest.raises(ImpureTrunkError, match=r"random numbers drawn by .*randn"):
            ft.extract(model, x, ft.Store(tmp_path / "s"))
    else:
        assert ft.extract(model, x, ft.Store(tmp_path / "s")).report.rows_computed == 20


class DrawnForTheHead(Base):
    """Random numbers of torch's that only the head reads, drawn before what is frozen: by functions and in place."""

    def forward(self, x):
        noise = torch.rand(len(x), 3).mul(2)
        more = torch.empty(3).uniform_(-1, 1)
        picked = torch.randperm(3)
        return self.head(self.body(x))[:, picked] + noise * more


class DrawnForBoth(Base):
    """First for what is frozen, then for the head, then more that is frozen."""

    def __init__(self):
        super().__init__()
        self.late = frozen(nn.Linear(8, 8))

    def forward(self, x):
        h = self.body(x) * torch.rand(8)
        noise = torch.rand(3)
        return self.head(self.late(h)) + noise


@pytest.mark.parametrize("kind", [DrawnForTheHead, DrawnForBoth])
def test_numbers_that_only_the_head_reads_are_drawn_by_the_head(kind):
    """Where the model draws them matters to nobody: halves and model are equal, and chance goes on alike."""
    torch.manual_seed(0)
    model, x = kind(), torch.randn(5, 6)
    parts = ft.split(model, torch.randn(3, 6))
    for seed in range(3):
        ends = []
        for run in (model, lambda x: parts.head(parts.trunk(x))):
            torch.manual_seed(seed)
            ends.append((run(x), torch.get_rng_state()))
        assert torch.equal(ends[0][0], ends[1][0])
        assert torch.equal(ends[0][1], ends[1][1])


def test_rows_do_not_depend_on_what_the_head_draws(tmp_path):
    """A trunk that draws nothing is no trunk of chance, wherever the model draws."""
    features = ft.extract(DrawnForTheHead(), torch.randn(20, 6), ft.Store(tmp_path / "s"))
    assert len(features) == 20


def test_a_frozen_part_that_draws_too_late_is_named():
    """The refusal names the operation that draws for what is frozen, and the module."""

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.frozen = frozen(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Dropout(0.0)))

        def forward(self, x):
            noise = torch.rand(3)
            return self.head(self.frozen(x)) + noise

    model = Model()
    with pytest.raises(ReplayDriftError, match=r"functional\.dropout in frozen\.1.*model\.eval"):
        ft.split(model, torch.randn(3, 6))
    model.eval()
    ft.split(model, torch.randn(3, 6))


class LayersSkipped(Base):
    """Frozen layers that are left out by chance."""

    def __init__(self, rate):
        super().__init__()
        self.layers, self.rate = frozen(nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])), rate

    def forward(self, x):
        h = self.body(x)
        for layer in self.layers:
            if not torch.rand(()) < self.rate:
                h = layer(h)
        return self.head(h)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_what_python_decides_by_numbers_of_torch_is_exact_or_refused(rate):
    """A frozen layer picked by a random number is what the model picks, or refused for that very reason."""
    torch.manual_seed(0)
    model, x, exact = LayersSkipped(rate), torch.randn(5, 6), 0
    for seed in range(12):
        try:
            parts = ft.split(model, torch.randn(3, 6))
            torch.manual_seed(seed)
            live = model(x)
            torch.manual_seed(seed)
            again = parts.head(parts.trunk(x))
        except ReplayDriftError as refused:
            assert "reading a random number that torch drew (Tensor.__bool__" in str(refused)  # noqa: PT017
            continue
        exact += 1
        assert torch.equal(live, again)
    assert exact == 12 or rate
