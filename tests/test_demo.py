"""The parts of the demo: heads, scores, verdicts, costs, screen and picture."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from torch import nn

import forethought as ft
from forethought.demo import contest, costs, pitch, plots
from forethought.demo.contest import PROMISES, Scores, answers, entries, score
from forethought.demo.costs import Savings, build_cost, frozen_share, measure_epochs
from forethought.demo.crepe import CENTS, argmax_cents, cents_to_hz, hz_to_cents, weighted_cents
from forethought.demo.notes import Frames
from forethought.demo.screen import Screen

torch.set_num_threads(1)

cents = st.lists(st.integers(0, 40_000).map(lambda n: n / 4), min_size=1, max_size=20)


class Crepe(nn.Module):
    """CREPE's form, small: `embed`, `layer`, `conv6`, and the classifier over 8 features."""

    in_features = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, (64, 1), (256, 1))
        self.conv6, self.conv6_BN = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 360)
        self.requires_grad_(False).eval()
        self.classifier.requires_grad_(True)

    def embed(self, x):
        return self.conv(x[:, None, :, None]).mean(2, keepdim=True)

    def layer(self, x, conv, norm):
        return norm(conv(x).relu())

    def forward(self, x):
        x = self.layer(self.embed(x), self.conv6, self.conv6_BN)
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, self.in_features)))


def frames(rows):
    """Noise of random pitch."""
    number = torch.arange(rows)
    return Frames(torch.randn(rows, 1024), 4000 + 100 * torch.rand(rows), number, number, number, ("a",))


@pytest.fixture
def features(tmp_path):
    """Features of noise."""
    some = frames(40)
    return ft.extract(Crepe(), (some.audio, some.cents), tmp_path / "store", batch_size=10)


# ------------------------------------------------------------------------------------------------------------ contest


def test_contest_has_a_dozen_heads_of_every_promise(features):
    """Twelve or more, every promise kept by someone, every head a regressor of the features."""
    made = entries(features)
    assert len(made) >= 12
    assert {entry.promise for entry in made.values()} == set(PROMISES)
    values = torch.rand(3, 8)
    for entry in made.values():
        assert entry.lr > 0
        assert entry.head(values).shape == (3,)
        assert entry.head.loss(values, torch.full((3,), 5000.0)).ndim == 0


def test_contest_warm_heads_start_from_the_classifier(features):
    """Those named 'crepe' begin near CREPE's own answers, those named 'new' do not know them."""
    own = weighted_cents(answers(features.head, features))
    made = entries(features)
    near = (answers(made["crepe mean two-hot"].head, features) - own).abs().mean()
    assert near < 4000
    assert torch.isfinite(near)


def test_contest_entries_do_not_share_weights(features):
    """Training one head changes no other, nor the classifier."""
    made = entries(features)
    held = [p.data_ptr() for entry in made.values() for p in entry.head.parameters() if p.numel()]
    held += [p.data_ptr() for p in features.head.parameters()]
    assert len(held) == len(set(held))


def test_monotone_entries_keep_their_promise(features):
    """A higher latent never lowers the answer, over the whole line of classes."""
    line = torch.linspace(-3, 362, 4001)
    for name, entry in entries(features).items():
        if entry.promise == "monotone":
            assert (entry.head.curve(line).diff() >= 0).all(), name


def test_answers_are_in_the_order_of_the_rows(features):
    """One answer a row, without a graph."""
    head = contest.entries(features)["new spline linear"].head
    given = answers(head, features)
    assert not given.requires_grad
    assert torch.equal(given[7:9], head(torch.tensor(features.numpy()[7:9])).detach())


@given(cents, st.floats(-500, 500))
def test_score_of_answers_all_off_by_the_same(truth, by):
    """Mean and median are that distance; the shares are all or nothing."""
    truth = torch.tensor(truth, dtype=torch.float64)
    scored = score(truth + by, truth)
    assert scored.rows == len(truth)
    assert scored.mean_cents == pytest.approx(abs(by), abs=1e-6)
    assert scored.median_cents == pytest.approx(abs(by), abs=1e-6)
    assert set(scored.within.values()) <= {0.0, 1.0}
    assert scored.within["50"] >= scored.within["25"] >= scored.within["10"]


def test_score_in_single_precision_does_not_round():
    """Float32 cents near 10,000 are 0.001 apart; the arithmetic is in double."""
    assert score(torch.full((3,), 9_000.5), torch.full((3,), 9_000.0)).mean_cents == 0.5


def test_score_refuses_answers_of_another_shape():
    """A head that forgot to drop its last axis must not be scored on all pairs."""
    with pytest.raises((ValueError, RuntimeError)):
        score(torch.zeros(3, 1), torch.tensor([0.0, 100.0, 200.0]))


def scores(mean, within):
    return Scores(mean, mean, {"50": 1.0, "25": 1.0, "10": within}, 80)


def test_verdicts_need_both_measures_on_both_sides():
    """Better everywhere is a win; one tie anywhere is not, and it is named."""
    base = {"argmax": scores(10.0, 0.7), "weighted average": scores(8.0, 0.8)}
    win = base | {"winner": scores(7.0, 0.9)}
    assert pitch._verdicts({"test": win, "unseen": win})[1] == ""
    for worse, what in ((scores(8.0, 0.9), "mean error"), (scores(7.0, 0.8), "share within 10 cents")):
        failure = pitch._verdicts({"test": win, "unseen": base | {"winner": worse}})[1]
        assert failure == f"It does not beat: {what} on unseen against weighted average."
    everything = pitch._verdicts({"test": base | {"winner": scores(99.0, 0.0)}})[1]
    assert everything.count(" on test against ") == 4


# -------------------------------------------------------------------------------------------------------------- crepe


@given(cents)
def test_cents_and_hz_undo_each_other(values):
    """A round trip is exact to a millionth of a cent."""
    values = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(hz_to_cents(cents_to_hz(values)), values, rtol=0, atol=1e-6)


def test_readings_of_a_certain_classifier_are_its_class():
    """Argmax and weighted average agree where one class takes everything, at both ends too."""
    outputs = torch.eye(360, dtype=torch.float64)
    assert torch.equal(argmax_cents(outputs), CENTS)
    torch.testing.assert_close(weighted_cents(outputs), CENTS)


# -------------------------------------------------------------------------------------------------------------- costs


def report(computed, reused=0, time_s=1.0, energy_j=None):
    return ft.ExtractionReport(computed + reused, computed, reused, 0, time_s, energy_j, "nothing")


def test_build_cost_is_that_of_the_runs_that_computed(tmp_path):
    """First run: its seconds. Later runs reuse, and the seconds stay."""
    assert build_cost(tmp_path, "a", [report(10, time_s=2.0), report(5, time_s=1.0)]) == 3.0
    for _ in range(3):
        assert build_cost(tmp_path, "a", [report(0, 10, time_s=0.1), report(0, 5, time_s=0.1)]) == 3.0


def test_build_cost_adds_up_over_runs(tmp_path):
    """A run that adds rows adds its seconds."""
    build_cost(tmp_path, "a", [report(10, time_s=2.0)])
    assert build_cost(tmp_path, "a", [report(6, 10, time_s=1.5)]) == 3.5


def test_build_cost_is_unknown_where_a_run_was_not_measured(tmp_path):
    """Rows that some other run computed: not known, which is not nothing."""
    assert build_cost(tmp_path, "a", [report(0, 15)]) is None
    assert build_cost(tmp_path, "b", [report(5, 10)]) is None


def test_build_cost_keeps_trunks_apart(tmp_path):
    """Another trunk, another bill."""
    build_cost(tmp_path, "a", [report(10, time_s=2.0)])
    assert build_cost(tmp_path, "b", [report(10, time_s=7.0)]) == 7.0
    assert build_cost(tmp_path, "a", [report(0, 10)]) == 2.0


@pytest.mark.parametrize("content", ["", "{", "\x00", '{"a": '])
def test_build_cost_outlives_a_broken_note(tmp_path, content):
    """A note that cannot be read is no note."""
    (tmp_path / "costs.json").write_text(content)
    assert build_cost(tmp_path, "a", [report(10, time_s=2.0)]) == 2.0


@pytest.mark.parametrize("content", ["[]", "3", '{"a": 3}'])
def test_build_cost_outlives_another_json(tmp_path, content):
    """JSON of another form is no note either."""
    (tmp_path / "costs.json").write_text(content)
    assert build_cost(tmp_path, "a", [report(10, time_s=2.0)]) == 2.0


def test_build_cost_of_a_store_that_was_deleted_and_built_again(tmp_path):
    """`rm -r store`, then the demo again: building took as long as one build, not two."""
    build_cost(tmp_path, "a", [report(10, time_s=2.0)])
    assert build_cost(tmp_path, "a", [report(10, time_s=2.2)]) == pytest.approx(2.2)


def test_frozen_share_counts_operations():
    """A trunk of 8 x 8 and a head of 8 x 2: four fifths are frozen."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    x = torch.randn(3, 8)
    assert frozen_share(model, ft.split(model, x).trunk, x) == (0.8, 2 * 8 * 10)


def test_measured_epochs_leave_head_and_model_as_they_were(features):
    """Timing trains copies; times and ratios are positive and agree."""
    model, head = Crepe(), entries(features)["new spline linear"].head
    before = {name: t.clone() for part in (model, head) for name, t in part.state_dict().items()}
    modes = [m.training for part in (model, head) for m in part.modules()]
    saved = measure_epochs("x", head, 1e-3, features, frames(40), model, batch=16, pairs=2)
    after = {name: t for part in (model, head) for name, t in part.state_dict().items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [m.training for part in (model, head) for m in part.modules()] == modes
    assert (saved.rows, saved.sampled_rows) == (40, 40)
    assert saved.uncached_epoch_s > 0
    assert saved.cached_epoch_s > 0
    assert saved.ratio[1] <= saved.ratio[0] <= saved.ratio[2]


def test_the_uncached_step_computes_what_the_trunk_computes(features):
    """Both sides of the comparison do the same work: the hand-written frozen layers give the stored features."""
    some = torch.randn(5, 1024)
    torch.testing.assert_close(costs.embedded(Crepe(), some), features.split.trunk(some))


class Winner:
    name = "new mlp 128"
    head = nn.Linear(8, 1)


def test_energy_of_a_run_that_computed_nothing_is_not_the_energy_to_build(features, tmp_path, monkeypatch):
    """All hits: what it took to build is not known to this run."""
    saved = Savings("x", 40, 40, 1.0, 0.1, (10.0, 9.0, 11.0), None, None, None, "")
    monkeypatch.setattr(pitch, "measure_epochs", lambda *_, **__: saved)
    reports = [report(0, 40, energy_j=0.5)] * 4
    everything = dict.fromkeys(pitch.SIDES, features)
    measured = pitch._measure(
        Winner(), entries(features), everything, reports, pitch.Splits(*[frames(40)] * 4), Crepe(), features.split,
        "tiny", tmp_path,
    )  # fmt: skip
    assert measured.energy_j is None


# ------------------------------------------------------------------------------------------------------------- screen


def shown(savings, capsys):
    Screen().savings(savings)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"build_s": 3.2, "break_even_epochs": 2.2},
            r"building it took 3\.2 s: it had paid for itself after 2\.2 epochs",
        ),
        ({"build_s": None}, r"not known.*--fresh"),
        ({"build_s": 3.2, "break_even_epochs": None}, r"never here"),
        ({"energy_j": 1234.5, "energy_source": "nvml"}, r"energy: 1,23[45] J to build \(nvml\)"),
        ({"energy_j": None, "energy_source": "no meter"}, r"energy: not measured on this machine \(no meter\)"),
    ],
)
def test_savings_are_said_in_words(changes, says, capsys):
    """Known, unknown and never are told apart; joules name their instrument."""
    fields = {
        "head": "x", "rows": 400, "sampled_rows": 400, "uncached_epoch_s": 1.5, "cached_epoch_s": 0.05,
        "ratio": (30.0, 20.0, 40.0), "build_s": None, "break_even_epochs": None, "energy_j": None, "energy_source": "",
    }  # fmt: skip
    text = shown(Savings(**fields | changes), capsys)
    assert re.search(says, text)
    assert "30 times faster (20 to 40 over the pairs)" in text


def test_a_reason_in_brackets_is_not_taken_for_markup(capsys):
    """Why nothing was measured is said as it is, whatever characters are in it."""
    fields = {"build_s": None, "break_even_epochs": None, "energy_j": None, "energy_source": "no file [red]/sys[/red]"}
    saved = Savings("x", 1, 1, 1.0, 1.0, (1.0, 1.0, 1.0), **fields)
    assert "[red]" in shown(saved, capsys)


def test_a_folder_with_brackets_is_shown_as_it_is(capsys):
    """--out 'run[1]' is a path, not markup."""
    Screen().say(f"store    {escape('/tmp/[bold]x/run[/bold]')}")
    assert "[bold]" in capsys.readouterr().out


def test_a_quiet_screen_is_silent(capsys):
    """--json: nothing but JSON."""
    screen = Screen(quiet=True)
    screen.step(1, "x")
    screen.say("y")
    screen.scores("z", [("w", scores(1.0, 0.5))])
    assert capsys.readouterr() == ("", "")


def test_scores_are_shown_side_by_side(capsys):
    """One row each, shares in percent."""
    Screen().scores("test", [("CREPE", scores(67.7, 0.65)), ("winner", scores(3.4, 0.9))])
    out = capsys.readouterr().out
    assert re.search(r"CREPE +67\.7 +67\.7 +100\.0% +100\.0% +65\.0%", out)
    assert re.search(r"winner +3\.4", out)


# ------------------------------------------------------------------------------------------------------------ picture


def test_the_picture_is_a_png(tmp_path):
    """Drawn without a display, and no figure stays open."""
    plt = pytest.importorskip("matplotlib.pyplot")
    truth = np.linspace(2000, 8000, 50)
    sweep = np.linspace(4000, 4400, 300)
    path = tmp_path / "picture.png"
    plots.draw(path, truth, truth + 5, "winner", sweep, {"a": sweep + 1, "b": sweep - 1})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


# --------------------------------------------------------------------------------------------------------- all of it


def test_demo_on_a_toy(tmp_path, monkeypatch):
    """The whole run on noise: files, and a report that JSON can hold, the same as returned."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pitch, "load_crepe", lambda _: Crepe())
    monkeypatch.setattr(pitch, "_notes", lambda *_: pitch.Splits(frames(40), frames(20), frames(20), frames(20)))
    monkeypatch.setattr(pitch, "glissando", lambda: frames(30))
    monkeypatch.setitem(pitch.EPOCHS, "tiny", 1)
    monkeypatch.setitem(pitch.PAIRS, "tiny", 1)
    report = pitch.run("tiny", tmp_path / "out", quiet=True)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "costs.json", "model.safetensors", "pitch.png", "report.json", "store",
    }  # fmt: skip
    assert [side["rows_computed"] for side in report["extraction"].values()] == [40, 20, 20, 20, 0]
    assert report["savings"]["build_s"] > 0
