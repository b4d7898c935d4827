import copy
import json
import math
import os
import signal

import pytest
import torch
from torch import nn

from forethought.errors import FitError
from forethought.fitting import Batches, fit
from forethought.fitting.rows import TensorRows
from forethought.heads import AnchorSpline, HistogramHead, MLPHead, as_regressor

torch.manual_seed(0)
X = torch.randn(230, 4)
Y = X[:, 0] - X[:, 1] / 2
X_VAL = torch.randn(70, 4)
Y_VAL = X_VAL[:, 0] - X_VAL[:, 1] / 2
TRAIN, VAL = (X, Y), (X_VAL, Y_VAL)
ANCHORS = [-3.0, -1.0, 0.0, 2.0, 3.0]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Batches this small gain nothing from threads and wait long for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counted(TensorRows):
    """Rows that count how often batches of them were asked for and given."""

    def __init__(self, values, targets):
        super().__init__(values, targets)
        self.passes, self.given = [], 0

    def batches(self, batch_size, *, shuffle=False, seed=None, epoch=None, device=None):
        self.passes.append((shuffle, seed, epoch))
        for batch in super().batches(batch_size, shuffle=shuffle, seed=seed, epoch=epoch, device=device):
            self.given += 1
            yield batch


def _linear(*after):
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 1), nn.Flatten(0), *after)


def _noisy():
    """A head that draws random numbers in training."""
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))


def _normed():
    torch.manual_seed(9)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))


def _near(a, b, rtol=1e-5):
    return all(
        torch.allclose(x.double(), y.double(), rtol=rtol, atol=rtol / 10)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_fit_trains_heads_of_every_kind():
    """Our heads by their own loss, anyone's modules by mse; ranked, best first."""
    torch.manual_seed(0)
    heads = {
        "pwl": AnchorSpline(4, ANCHORS),
        "histogram": HistogramHead(4, ANCHORS),
        "mlp": MLPHead(4, ANCHORS, hidden=(16,)),
        "linear": _linear(),
    }
    results = fit(TRAIN, VAL, heads, lr=0.05, epochs=30, batch_size=64)
    scores = [result.score for result in results]
    assert scores == sorted(scores)
    assert results.best is results.ranked[0]
    assert results["pwl"].score < 0.2
    assert results["linear"].score < 0.01
    assert len(results) == 4
    for result in results:
        assert not result.head.training
        assert len(result.metrics) == 30
        assert result.score == min(m.val_score for m in result.metrics)
        assert result.metrics[result.best_epoch - 1].val_score == result.score
        assert result.parameters == sum(p.numel() for p in heads[result.name].parameters())
        assert (result.head(X_VAL) - Y_VAL).abs().double().mean().item() == pytest.approx(result.score, abs=1e-6)


def test_alone_or_in_company_is_the_same():
    """Neither the other heads nor their dropout nor the global random state change a head: to the last bit, and up to
    rounding where heads of one shape (a and d) are one computation."""
    heads = {"a": _noisy(), "b": _linear(), "c": _normed(), "d": _noisy()}
    options = {"lr": {"d": 0.1}, "epochs": {"b": 2, "c": 4, "a": 4, "d": 4}, "batch_size": 50, "seed": 3}
    together = fit(TRAIN, VAL, heads, **options)
    for ambient_seed, (name, head) in enumerate(heads.items()):
        torch.manual_seed(ambient_seed)
        alone = fit(
            TRAIN, VAL, head, lr=0.1 if name == "d" else 1e-3, epochs=options["epochs"][name], batch_size=50, seed=3
        )
        if name in ("b", "c"):
            assert _same(alone["head"].head, together[name].head)
            assert alone["head"].metrics == together[name].metrics
        else:
            assert _near(alone["head"].head, together[name].head)
            for one, other in zip(alone["head"].metrics, together[name].metrics, strict=True):
                assert one.val_score == pytest.approx(other.val_score, rel=1e-5)
    again = fit(TRAIN, VAL, heads, **options)
    assert all(_same(again[name].head, together[name].head) for name in heads)
    other = fit(TRAIN, VAL, heads, **{**options, "seed": 4})
    assert not _same(other["a"].head, together["a"].head)


def test_fit_changes_nothing_it_was_given():
    """Heads, their modes, their gradients, and the global random state stay."""
    heads = {"a": _noisy(), "b": _normed().eval()}
    before = copy.deepcopy(heads)
    state = torch.get_rng_state()
    results = fit(TRAIN, VAL, heads, epochs=2, batch_size=64)
    assert torch.equal(torch.get_rng_state(), state)
    for name, head in heads.items():
        assert _same(head, before[name])
        assert head.training == before[name].training
        assert all(p.grad is None for p in head.parameters())
        assert not _same(head, results[name].head)


def test_apply_to_copies_weights_back():
    """Into the module given to fit, or any with the same names; all or nothing."""
    head = _normed()
    result = fit(TRAIN, VAL, {"a": head}, epochs=3, batch_size=64)["a"]
    result.apply_to(head)
    assert _same(head, result.head)
    assert torch.equal(head.eval()(X_VAL), result.head(X_VAL))
    other = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2), nn.Flatten(0))
    before = copy.deepcopy(other)
    with pytest.raises(FitError, match=r"'3\.weight' of shape \(1, 16\)"):
        result.apply_to(other)
    assert _same(other, before)


def test_each_batch_is_fetched_once_for_all_heads():
    """Three heads cost one pass an epoch; order and view are pinned by seed and epoch."""
    train, val = Counted(*TRAIN), Counted(*VAL)
    fit(train, val, {"a": _linear(), "b": _linear(), "c": _linear()}, epochs=3, batch_size=100, seed=5)
    assert train.passes == [(True, 5, 0), (True, 5, 1), (True, 5, 2)]
    assert train.given == 9
    assert val.passes == [(False, None, 0)] * 3
    assert val.given == 3
    assert isinstance(train, Batches)


@pytest.mark.parametrize("metric", ["mae", "mse", "rmse", "own"])
def test_metrics_are_exact_over_uneven_batches(metric):
    """The mean over all rows, however they fall into batches."""
    head = _linear().requires_grad_(False)
    error = (head(X_VAL) - Y_VAL).double()
    exact = {
        "mae": error.abs().mean(),
        "mse": error.square().mean(),
        "rmse": error.square().mean().sqrt(),
        "own": (error.abs() > 1).double().mean(),
    }[metric]
    given = metric if metric != "own" else lambda output, target: (output - target).abs() > 1
    for batch_size in (1, 3, 64, 70, 500):
        result = fit(TRAIN, VAL, head, metric=given, batch_size=batch_size, epochs=1).best
        assert result.score == pytest.approx(exact.item(), rel=1e-6)


def test_accuracy_ranks_higher_first():
    """Class scores with cross_entropy; the greatest accuracy is best, and its best epoch the greatest."""
    classes, classes_val = (Y > 0).long(), (Y_VAL > 0).long()
    torch.manual_seed(0)
    heads = {"stuck": nn.Linear(4, 2).requires_grad_(False), "good": nn.Linear(4, 2)}
    results = fit(
        (X, classes), (X_VAL, classes_val), heads, loss="cross_entropy", metric="accuracy", lr=0.1, batch_size=64
    )
    assert [result.name for result in results] == ["good", "stuck"]
    assert results.best.score == max(m.val_score for m in results.best.metrics) > 0.9
    exact = (results.best.head(X_VAL).argmax(1) == classes_val).double().mean().item()
    assert results.best.score == pytest.approx(exact)


def test_own_metric_may_rank_higher_first():
    """higher_is_better turns the ranking round."""

    def closeness(output, target):
        return -(output - target).abs()

    heads = {"a": _linear().requires_grad_(False), "b": _linear()}
    results = fit(TRAIN, VAL, heads, metric=closeness, higher_is_better=True, lr=0.1, epochs=5, batch_size=64)
    assert results.best.name == "b"
    assert results.metric == "closeness"


def test_best_epoch_weights_are_restored():
    """A head that gets worse later comes back as it was at its best."""
    results = fit(TRAIN, VAL, {"wild": _normed()}, lr=0.3, epochs=12, batch_size=20)
    result = results["wild"]
    assert result.metrics[-1].val_score > result.score
    output = result.head(X_VAL)
    assert output.std() > 0.1
    assert (output - Y_VAL).abs().double().mean().item() == pytest.approx(result.score, rel=1e-6)


def test_batches_that_draw_random_numbers_are_the_same_for_any_company():
    """Heads with dropout do not disturb what the batches draw from torch's generator."""

    class Jittered(TensorRows):
        def batches(self, *args, **kwargs):
            for values, targets in super().batches(*args, **kwargs):
                yield values + torch.randn_like(values) / 10, targets

    alone = fit(Jittered(*TRAIN), VAL, {"a": _linear()}, epochs=3, batch_size=50)
    together = fit(Jittered(*TRAIN), VAL, {"a": _linear(), "b": _noisy()}, epochs=3, batch_size=50)
    assert _same(alone["a"].head, together["a"].head)


def test_a_head_that_fails_does_not_stop_the_others():
    """Not finite: stopped, named, ranked last; the others end up as if it had not been there."""
    heads = {"exploding": _linear(), "fine": _linear()}
    options = {"epochs": 6, "batch_size": 64, "loss": "mse"}
    results = fit(TRAIN, VAL, heads, lr={"exploding": 1e30, "fine": 1e-2}, optimizer="sgd", **options)
    alone = fit(TRAIN, VAL, {"fine": heads["fine"]}, lr=1e-2, optimizer="sgd", **options)
    assert results.best.name == "fine"
    assert _near(results["fine"].head, alone["fine"].head)
    failed = results.ranked[-1]
    assert failed.name == "exploding"
    assert "not finite" in failed.failed
    assert len(failed.metrics) < 6
    assert all(p.isfinite().all() for p in failed.head.parameters())
    assert "exploding: stopped in epoch" in str(results)
    assert json.loads(results.to_json())["heads"][1]["name"] == "exploding"
    with pytest.raises(FitError, match="lr=1e-4"):
        _ = fit(TRAIN, VAL, heads["exploding"], lr=1e30, optimizer="sgd", **options).best


@pytest.mark.parametrize("how", ["raise", "signal"])
def test_ctrl_c_returns_what_there_is(how):
    """After two epochs: their results, flagged; the test rows untouched; the random state as it was."""
    steps = 0

    def loss(output, target):
        nonlocal steps
        steps += 1
        if steps == 10:
            if how == "raise":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
        return (output - target).square().mean()

    heads = {"a": _linear(), "b": _noisy()}
    state = torch.get_rng_state()
    test = Counted(*VAL)
    results = fit(TRAIN, VAL, heads, loss={"a": loss}, batch_size=60, epochs=9, test=test)
    assert results.interrupted
    assert [len(result.metrics) for result in results] == [2, 2]
    assert test.given == 0
    assert results.test_score is None
    assert "interrupted" in results.table()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not result.head.training for result in results)


def test_ctrl_c_in_the_first_epoch_gives_no_score():
    """Nothing was scored, so nothing is best; the modules are there."""

    def loss(output, target):
        raise KeyboardInterrupt

    results = fit(TRAIN, VAL, {"a": _linear()}, loss=loss)
    assert results.interrupted
    assert results["a"].score is None
    assert json.loads(results.to_json())["interrupted"]
    assert results["a"].head(X_VAL).isfinite().all()
    with pytest.raises(FitError, match="no finished epoch"):
        _ = results.best


def test_test_rows_are_for_the_winner_once():
    """One pass over them, after the ranking."""
    test = Counted(X_VAL + 0.1, Y_VAL)
    results = fit(TRAIN, VAL, {"a": _linear(), "b": _noisy()}, lr=0.05, epochs=3, batch_size=50, test=test)
    assert test.passes == [(False, None, 0)]
    exact = (results.best.head(X_VAL + 0.1) - Y_VAL).abs().double().mean().item()
    assert results.test_score == pytest.approx(exact, rel=1e-6)
    assert f"test mae of {results.best.name}" in results.table()


def test_patience_stops_a_head_that_does_not_improve():
    """Counted in epochs since its best; other heads go on."""
    frozen = _linear()
    heads = {"still": frozen, "moving": _linear()}
    results = fit(TRAIN, VAL, heads, lr={"still": 1e-30}, patience={"still": 3}, epochs=8, batch_size=100)
    assert results["still"].best_epoch == 1
    assert len(results["still"].metrics) == 4
    assert len(results["moving"].metrics) == 8


def test_cosine_schedule_and_own_optimizer():
    """The step size falls from lr to nearly 0 over the epochs; a function of the parameters is used as it is."""
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    fit(TRAIN, VAL, _linear(), optimizer=lambda p: Watched(p, lr=0.2), schedule="cosine", epochs=4, batch_size=115)
    expected = [0.2 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_one_step_equals_plain_pytorch(optimizer):
    """One full batch through fit is one step of torch's own optimiser on the mean loss."""
    head = _linear()
    result = fit((X, Y), VAL, head, lr=0.1, weight_decay=0.01, optimizer=optimizer, epochs=1, batch_size=500).best
    plain = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer](
        head.parameters(), lr=0.1, weight_decay=0.01
    )
    loss = (head(X) - Y).square().mean()
    loss.backward()
    plain.step()
    assert result.metrics[0].train_loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(result.head[0].weight, head[0].weight)


def test_heads_for_several_targets_in_one_pass():
    """target= picks a column, a position or a key, by head; then there is no single best."""
    both, both_val = torch.stack([Y, -3 * Y], 1), torch.stack([Y_VAL, -3 * Y_VAL], 1)
    heads = {"first": _linear(), "second": _linear()}
    options = {"lr": 0.1, "epochs": 40, "batch_size": 64}
    columns = fit((X, both), (X_VAL, both_val), heads, target={"first": 0, "second": 1}, **options)

    class Pairs(TensorRows):
        def batches(self, *args, **kwargs):
            for values, targets in super().batches(*args, **kwargs):
                yield values, (targets[:, 0], targets[:, 1])

    class Named(TensorRows):
        def batches(self, *args, **kwargs):
            for values, targets in super().batches(*args, **kwargs):
                yield values, {"y": targets[:, 0], "z": targets[:, 1]}

    pairs = fit(Pairs(X, both), Pairs(X_VAL, both_val), heads, target={"first": 0, "second": 1}, **options)
    named = fit(Named(X, both), Named(X_VAL, both_val), heads, target={"first": "y", "second": "z"}, **options)
    for results in (columns, pairs, named):
        assert all(result.score < 0.05 for result in results)
        assert _same(results["second"].head, columns["second"].head)
        with pytest.raises(FitError, match="one metric and one target"):
            _ = results.best
    with pytest.raises(FitError, match="target=0"):
        fit(Pairs(X, both), Pairs(X_VAL, both_val), heads)
    with pytest.raises(FitError, match="'x'"):
        fit(Named(X, both), Named(X_VAL, both_val), heads, target="x")
    tested = fit(
        (X, both), (X_VAL, both_val), heads, target={"first": 0, "second": 1}, test=(X_VAL, both_val), **options
    )
    assert tested.test_score is None
    assert tested.test_scores == pytest.approx({result.task: result.score for result in tested})
    assert {name: task.best.name for name, task in tested.tasks.items()} == {"mae of 0": "first", "mae of 1": "second"}


def test_tuples_of_values_reach_the_head_as_they_are():
    """A frontier of several tensors is one argument, nothing cast; a single float16 tensor is widened."""
    seen = set()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, values):
            a, b = values
            seen.add((a.dtype, b.dtype))
            return self.linear(a.float() + b).squeeze(1)

    class Tuples(TensorRows):
        def batches(self, *args, **kwargs):
            for values, targets in super().batches(*args, **kwargs):
                yield (values.half(), values), targets

    fit(Tuples(*TRAIN), Tuples(*VAL), Two(), epochs=1)
    assert seen == {(torch.float16, torch.float32)}
    assert fit((X.half(), Y), (X_VAL.half(), Y_VAL), _linear(), epochs=1).best.score is not None


def test_frozen_head_is_scored_not_trained():
    """A baseline without trainable parameters takes part in the ranking, in eval mode throughout."""
    baseline = _normed().requires_grad_(False)
    results = fit(TRAIN, VAL, {"baseline": baseline, "linear": _linear()}, lr=0.1, epochs=5, batch_size=64)
    assert _same(results["baseline"].head, baseline)
    assert results["baseline"].parameters == 0
    assert len(results["baseline"].metrics) == 1


def test_warm_started_head_trains_in_fit():
    """as_regressor, fit, apply_to: the classifier's expectation, then better."""
    torch.manual_seed(0)
    classifier = nn.Linear(4, 5)
    head = as_regressor(classifier, ANCHORS)
    before = (head(X_VAL) - Y_VAL).abs().mean().item()
    result = fit(TRAIN, VAL, {"pwl": head}, lr=0.05, epochs=20, batch_size=64).best
    result.apply_to(head)
    assert (head(X_VAL) - Y_VAL).abs().mean().item() == pytest.approx(result.score, rel=1e-4)
    assert result.score < before / 3


def test_a_loss_attribute_is_not_a_loss_method():
    """`self.loss = nn.MSELoss()` on anyone's module is left alone; loss='own' then says what is missing."""

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.loss = _linear(), nn.MSELoss()

        def forward(self, x):
            return self.net(x)

    head = WithLoss()
    plain = fit(TRAIN, VAL, _linear(), epochs=2).best
    assert _same(fit(TRAIN, VAL, head, epochs=2).best.head, plain.head)
    with pytest.raises(FitError, match="loss='mse'"):
        fit(TRAIN, VAL, head, loss="own")


def test_table_and_json_hold_the_ranking():
    """One line a head, best first; JSON in the same order with every epoch."""
    results = fit(TRAIN, VAL, {"b": _linear(), "a": _normed()}, lr=0.05, epochs=3, batch_size=64)
    lines = results.table().splitlines()
    assert [line.split()[0] for line in lines] == ["head", *(result.name for result in results)]
    assert len({len(line) for line in lines}) == 1
    whole = json.loads(results.to_json())
    assert [entry["name"] for entry in whole["heads"]] == [result.name for result in results]
    assert whole["heads"][0]["metrics"][0]["epoch"] == 1
    assert whole["heads"][0]["score"] == results.best.score
    with pytest.raises(KeyError, match="no head named 'c'"):
        results["c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": {}}, "at least one module"),
        ({"heads": {"a": 3}}, "'a': int"),
        ({"heads": [nn.Linear(4, 1)]}, "list"),
        ({"train": (X[:0], Y[:0])}, "at least one row in train="),
        ({"val": (X[:0], Y[:0])}, "at least one row in val="),
        ({"test": (X[:0], Y[:0])}, "at least one row in test="),
        ({"train": (X, Y[:3])}, "3 targets for 230 rows"),
        ({"train": X}, r"ft\.extract"),
        ({"heads": nn.Linear(4, 1)}, r"nn\.Flatten\(0\)"),
        ({"heads": nn.Linear(4, 1), "loss": lambda o, t: (o.squeeze(1) - t).abs().mean()}, r"nn\.Flatten\(0\)"),
        ({"train": (X, Y[:, None])}, r"target\.squeeze\(-1\)"),
        ({"heads": nn.Linear(4, 3)}, "cross_entropy"),
        ({"heads": nn.Linear(4, 3), "loss": "cross_entropy", "metric": "accuracy"}, r"target\.long\(\)"),
        ({"optimizer": "adamx"}, "'adamw', 'adam', 'sgd'"),
        ({"loss": "mean"}, "cross_entropy"),
        ({"metric": "r2"}, "'accuracy'"),
        ({"schedule": "step"}, "'cosine'"),
        ({"lr": -1.0}, "lr to be a finite number above 0"),
        ({"lr": math.nan}, "lr to be a finite number"),
        ({"lr": {"b": 1.0}}, r"lr= to name heads among \['a'\], got 'b'"),
        ({"epochs": 0}, "epochs to be a whole number"),
        ({"patience": 0}, "patience to be a whole number"),
        ({"batch_size": 2.5}, "batch_size to be a whole number"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"loss": lambda o, t: (o - t).abs()}, r"loss\.mean\(\)"),
        ({"metric": lambda o, t: (o - t).abs().mean()}, "one number per sample"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    """Before or in the first step, with the fix."""
    arguments = {"train": TRAIN, "val": VAL, "heads": {"a": _linear()}, "epochs": 1, **change}
    with pytest.raises(FitError, match=message) as err:
        fit(arguments.pop("train"), arguments.pop("val"), arguments.pop("heads"), **arguments)
    assert isinstance(err.value, ValueError)
    assert str(err.value).startswith("Cannot ")


def test_missing_targets_are_refused():
    """Features of a data set without targets."""

    class Bare(TensorRows):
        def batches(self, *args, **kwargs):
            for values, _ in super().batches(*args, **kwargs):
                yield values, ()

    with pytest.raises(FitError, match="with targets"):
        fit(Bare(*TRAIN), Bare(*VAL), _linear())


def test_a_head_that_does_not_fit_the_features_is_named_with_both_shapes():
    """What it takes, what it got, and what to build it for, before anything is trained."""
    with pytest.raises(FitError, match=r"'narrow'.*in_features=3.*\(230, 4\).*\(B, 4\)"):
        fit(TRAIN, VAL, {"good": _linear(), "narrow": nn.Linear(3, 1)})


def test_an_error_in_a_head_names_the_head():
    """The exception is the head's own, with a note."""

    class Broken(nn.Module):
        def forward(self, x):
            raise OSError("no such thing")

    with pytest.raises(OSError, match="no such thing") as err:
        fit(TRAIN, VAL, {"good": _linear(), "broken": Broken()})
    assert "broken" in "".join(err.value.__notes__)


def test_shuffled_rows_are_each_given_once():
    """A new order each epoch, the same for the same seed."""
    rows = TensorRows(torch.arange(50), torch.arange(50))
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        given = torch.cat([values for values, _ in rows.batches(7, shuffle=True, seed=seed, epoch=epoch)])
        assert sorted(given.tolist()) == list(range(50))
        assert orders.setdefault((seed, epoch), given.tolist()) == given.tolist()
    assert len({tuple(order) for order in orders.values()}) == 3


def test_bar_shows_the_leaders(monkeypatch, capsys):
    """On a terminal the bar runs without disturbing the results."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    results = fit(TRAIN, VAL, {"a": _linear()}, epochs=2, batch_size=100)
    silent = fit(TRAIN, VAL, {"a": _linear()}, epochs=2, batch_size=100, progress=False)
    assert results["a"].metrics == silent["a"].metrics
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_alone_or_in_company_on_a_gpu():
    """The same law with CUDA's generator; no time per head is claimed."""
    heads = {"a": _noisy().cuda(), "b": _noisy().cuda()}
    state = torch.cuda.get_rng_state()
    together = fit(TRAIN, VAL, heads, epochs=3, batch_size=50)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    alone = fit(TRAIN, VAL, {"b": heads["b"]}, epochs=3, batch_size=50)
    assert _same(alone["b"].head, together["b"].head)
    assert together["b"].time_s is None
