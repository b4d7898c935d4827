import copy
import itertools
import json
import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from forethought import fit
from forethought.errors import AnchorError, BundleError, FitError, ShapeError
from forethought.heads import (
    AnchorSpline,
    CornHead,
    CumulativeLink,
    Head,
    HistogramHead,
    MLPHead,
    PartialMonotone,
    PrototypeExact,
    as_regressor,
    from_config,
)
from forethought.heads.curve import interpolate, piece_of
from forethought.heads.line import AnchorCurve
from forethought.heads.soft_targets import hl_gauss

RISING = [60.0, 61.5, 62.0, 67.25, 67.5]
FALLING = [9.0, 4.0, 3.5, -20.0]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Batches this small gain nothing from threads and wait long for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _heads(anchors):
    """One of every kind and variant."""
    spline = {"linear": {}, "mlp": {}, "classifier": {}}
    yield from (AnchorSpline(6, anchors, latent) for latent in spline)
    yield AnchorSpline(6, anchors, "classifier", hidden=(5,), activation="sigmoid")
    yield AnchorSpline(6, anchors, "mlp", hidden=(7,), knots="trainable", extrapolate="linear", dropout=0.2)
    yield AnchorSpline(6, anchors, dtype=torch.float64)
    yield AnchorSpline(6, anchors, "mlp", between="rational", knots="trainable")
    for objective, decode in itertools.product(("coral", "likelihood"), ("remap", "expectation")):
        yield CumulativeLink(6, anchors, objective=objective, decode=decode)
    yield CumulativeLink(6, anchors, "mlp", hidden=(7,), between="rational", extrapolate="linear", dropout=0.2)
    yield CornHead(6, anchors)
    yield CornHead(6, anchors, hidden=(7,), dtype=torch.float64)
    yield PartialMonotone(6, anchors, [1, 0, 0, -1, 0, 0])
    yield PartialMonotone(6, anchors, {2: 1}, hidden=(), keypoints=3, extrapolate="linear", dtype=torch.float64)
    yield PrototypeExact(6, anchors, torch.randn(len(anchors), 6))
    yield PrototypeExact(6, anchors, torch.randn(len(anchors), 6), extrapolate="linear", dtype=torch.float64)
    for targets, activation, decode in itertools.product(
        ("two-hot", "hl-gauss", "blur"), ("softmax", "sigmoid"), ("mean", "local")
    ):
        yield HistogramHead(6, anchors, targets=targets, activation=activation, decode=decode, window=1)
    yield HistogramHead(6, anchors, hidden=(8,), targets="hl-gauss", sigma=1.25, pad=1)
    yield MLPHead(6, anchors)
    yield MLPHead(6, anchors, hidden=(), dtype=torch.float64)


torch.manual_seed(0)
HEADS = [*_heads(RISING), *_heads(FALLING)]
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda h: f"{h.kind}-{HEADS.index(h)}")


def _targets(head, rows):
    low, high = head.anchors.min(), head.anchors.max()
    return low + (high - low) * torch.rand(rows)


def _steps(values):
    """Each number and its next 64 neighbours: (N, 65)."""
    out = [values]
    for _ in range(64):
        out.append(torch.nextafter(out[-1], torch.full_like(values, math.inf)))
    return torch.stack(out, 1)


@every_head
def test_head_gives_one_number_per_row(head):
    """Features (B, D) give (B,), finite and repeatable, B = 0 and 1 included."""
    head.eval()
    for rows in (0, 1, 7):
        x = torch.randn(rows, 6)
        assert head(x).shape == (rows,)
        assert head(x).isfinite().all()
        assert torch.equal(head(x), head(x))
    assert isinstance(head, Head)


@every_head
def test_rows_do_not_depend_on_their_batch(head):
    """A row's prediction is the same number alone and among others, up to the matmul's rounding."""
    head.eval()
    x = torch.randn(9, 6)
    alone = torch.cat([head(row[None]) for row in x])
    torch.testing.assert_close(head(x), alone, rtol=1e-5, atol=1e-5)


@every_head
def test_head_stays_in_range(head):
    """Curves and expectations never leave the anchors' range, however extreme the features."""
    if isinstance(head, MLPHead) or getattr(head, "extrapolate", "") == "linear":
        pytest.skip("promises no range")
    y = head(torch.randn(500, 6) * 1e4)
    assert y.min() >= head.anchors.min()
    assert y.max() <= head.anchors.max()


@every_head
def test_config_rebuilds_head_through_json(head):
    """from_config(config) and load_state_dict give the same bits."""
    again = from_config(json.loads(json.dumps(head.config(), allow_nan=False)))
    assert type(again) is type(head)
    again.load_state_dict(head.state_dict())
    assert again.config() == head.config()
    x = torch.randn(5, 6)
    assert torch.equal(again.eval()(x), head.eval()(x))
    assert torch.equal(again.anchors, head.anchors)


@every_head
def test_loss_is_scalar_with_finite_gradients(head):
    """Also for huge features and for targets at, between and beyond the anchors."""
    head = copy.deepcopy(head).train()
    for scale in (0.0, 1.0, 1e4, 1e30):
        head.zero_grad()
        targets = _targets(head, 32)
        targets[:4] = torch.stack([head.anchors[0], head.anchors[-1], targets.min() - 50, targets.max() + 50])
        features = torch.randn(32, 6) * scale
        loss = head.loss(features, targets)
        assert loss.shape == ()
        assert loss.isfinite()
        loss.backward()
        if scale < 1e30:
            assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
        assert not head(features).isnan().any()


@every_head
def test_weights_count_as_rows(head):
    """A row of weight 3 is a row that is there three times, and one of weight 0 is not there."""
    head = copy.deepcopy(head).double().eval()
    x, y = torch.randn(5, 6, dtype=torch.float64), _targets(head, 5).double()
    times = torch.tensor([3, 1, 0, 2, 1])
    repeated = head.loss(x.repeat_interleave(times, 0), y.repeat_interleave(times))
    torch.testing.assert_close(head.loss(x, y, times.double()), repeated)
    torch.testing.assert_close(head.loss(x, y, torch.full((5,), 0.5)), head.loss(x, y))
    with pytest.raises(FitError, match="weights of shape"):
        head.loss(x, y, torch.ones(5, 1))


@every_head
def test_head_learns(head):
    """A hundred steps on its own loss take away a fifth of the error; for most heads, nearly all."""
    torch.manual_seed(1)
    head = copy.deepcopy(head).train()
    x = torch.randn(64, 6, dtype=next(head.parameters()).dtype)
    low, high = head.anchors.min(), head.anchors.max()
    targets = low + (high - low) * torch.sigmoid(x[:, 0] * 2)
    before = (head.eval()(x) - targets).abs().mean()
    optimizer = torch.optim.Adam(head.train().parameters(), lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        head.loss(x, targets).backward()
        optimizer.step()
    # Prototypes drawn at random ask for other values than these targets: there it can only come closer.
    least = 1.0 if isinstance(head, PrototypeExact) else 0.8
    assert (head.eval()(x) - targets).abs().mean() < before * least


@every_head
def test_equal_heads_run_stacked(head):
    """Three heads of one form run as one under vmap, outputs and gradients of the loss: nothing branches on numbers."""
    heads = [copy.deepcopy(head).eval() for _ in range(3)]
    for other in heads[1:]:
        for parameter in other.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    parameters, buffers = torch.func.stack_module_state(heads)
    x, targets = torch.randn(7, 6), _targets(head, 7)

    def loss(p, b, run):
        return torch.func.functional_call(
            _Method(heads[0], run), ({f"head.{k}": v for k, v in (p | b).items()},), (x, targets)
        )

    y = torch.func.vmap(lambda p, b: loss(p, b, "forward"))(parameters, buffers)
    for one, other in zip(heads, y, strict=True):
        torch.testing.assert_close(other, one(x), rtol=1e-4, atol=1e-3)
    gradients = torch.func.vmap(torch.func.grad(lambda p, b: loss(p, b, "loss")))(parameters, buffers)
    for i, one in enumerate(heads):
        one.loss(x, targets).backward()
        for name, parameter in one.named_parameters():
            torch.testing.assert_close(gradients[name][i], parameter.grad, rtol=1e-3, atol=1e-4)


class _Method(nn.Module):
    """A head of which another method than forward is called."""

    def __init__(self, head, method):
        super().__init__()
        self.head, self.method = head, method

    def forward(self, x, targets):
        return self.head(x) if self.method == "forward" else self.head.loss(x, targets)


@every_head
def test_half_precision_features_are_upcast(head):
    """float16 and bfloat16 features give float32 or wider, under autocast too."""
    x = torch.randn(4, 6)
    for dtype in (torch.float16, torch.bfloat16):
        y = head.eval()(x.to(dtype))
        assert torch.promote_types(y.dtype, torch.float32) == y.dtype
        torch.testing.assert_close(y, head(x.to(dtype).float()), rtol=1e-6, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x), head(x))
        under = head(x)
    assert torch.equal(under, head(x))


@every_head
def test_half_precision_module_keeps_anchors(head):
    """`.half()` and back does not move an anchor, and a head in bfloat16 still answers in float32 or wider."""
    narrow = copy.deepcopy(head).bfloat16().eval()
    assert torch.equal(narrow.anchors.double(), head.anchors.double())
    y = narrow(torch.randn(3, 6))
    assert y.isfinite().all()
    assert torch.promote_types(y.dtype, torch.float32) == y.dtype
    assert from_config(narrow.config()).load_state_dict(narrow.state_dict())


@every_head
def test_wrong_features_and_targets_are_refused(head):
    """Shapes that would broadcast, and integers, are errors with a fix."""
    with pytest.raises(ShapeError, match=r"in_features=5"):
        head(torch.randn(3, 5))
    with pytest.raises(ShapeError, match=r"flatten\(1\)"):
        head(torch.randn(3, 2, 3))
    with pytest.raises(FitError, match=r"features\.float\(\)"):
        head(torch.ones(3, 6, dtype=torch.long))
    with pytest.raises(FitError, match=r"torch\.as_tensor\(features\)"):
        head(torch.ones(3, 6).numpy())
    with pytest.raises(FitError, match=r"squeeze\(1\)"):
        head.loss(torch.randn(3, 6), torch.randn(3, 1))


# ------------------------------------------------------------------------------------------- ordinal models


def _labels(rows, classes, seed=0):
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


def test_cumulative_losses_are_the_published_ones():
    """On class labels: CORAL's sum of cross-entropies, and minus the log of the class's probability."""
    x, k = torch.randn(40, 6, dtype=torch.float64), _labels(40, 5)
    for objective in ("coral", "likelihood"):
        head = CumulativeLink(6, RISING, objective=objective, dtype=torch.float64)
        q = torch.sigmoid(head.rank_logits(head.latent(x)))
        if objective == "coral":
            above = (k[:, None] > torch.arange(4)).double()
            expected = -(above * q.log() + (1 - above) * (1 - q).log()).sum(1).mean()
        else:
            bounds = torch.cat([torch.ones(40, 1), q, torch.zeros(40, 1)], 1)
            expected = -(bounds[torch.arange(40), k] - bounds[torch.arange(40), k + 1]).log().mean()
        torch.testing.assert_close(head.loss(x, head.anchors[k]), expected)


def test_corn_loss_is_the_published_one():
    """On class labels: each question asked of the samples that reach it, the mean over questions asked."""
    x, k = torch.randn(40, 6, dtype=torch.float64), _labels(40, 5)
    head = CornHead(6, RISING, dtype=torch.float64)
    z, total, asked = head.rank_logits(x), 0.0, 0
    for j in range(4):
        reached = k >= j
        total = total + nn.functional.binary_cross_entropy_with_logits(
            z[reached, j], (k[reached] > j).double(), reduction="sum"
        )
        asked += int(reached.sum())
    torch.testing.assert_close(head.loss(x, head.anchors[k]), total / asked)


def test_ordinal_losses_agree_with_coral_pytorch():
    """The authors' own code, where it is installed."""
    losses = pytest.importorskip("coral_pytorch.losses")
    data = pytest.importorskip("coral_pytorch.dataset")
    x, k = torch.randn(40, 6), _labels(40, 5)
    head = CumulativeLink(6, RISING)
    levels = data.levels_from_labelbatch(k, 5)
    torch.testing.assert_close(
        head.loss(x, head.anchors[k]), losses.coral_loss(head.rank_logits(head.latent(x)), levels)
    )
    head = CornHead(6, RISING)
    torch.testing.assert_close(head.loss(x, head.anchors[k]), losses.corn_loss(head.rank_logits(x), k, 5))


@pytest.mark.parametrize("weights", [None, torch.zeros(0)], ids=["plain", "weighted"])
def test_no_rows_cost_nothing(weights):
    """The loss of no rows is 0 and its gradients are 0, not NaN, which one step would spread to every weight."""
    made = [
        AnchorSpline(6, RISING), AnchorSpline(6, RISING, "classifier"), CumulativeLink(6, RISING), CornHead(6, RISING),
        HistogramHead(6, RISING), HistogramHead(6, RISING, activation="sigmoid"), MLPHead(6, RISING),
    ]  # fmt: skip
    for head in made:
        loss = head.loss(torch.zeros(0, 6), torch.zeros(0), weights)
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is None or not p.grad.any() for p in head.parameters())
        assert head(torch.zeros(0, 6)).shape == (0,)


@pytest.mark.parametrize("between", ["linear", "rational"])
@pytest.mark.parametrize("knots", ["fixed", "trainable", "centres", "placed"])
def test_what_losses_are_made_of_is_the_curve_that_goes_straight_on(knots, between):
    """In value and in every gradient, up to rounding: inside, far beyond, and for values that are not finite."""
    curve = AnchorCurve([50.0, 9.0, 8.5, -3.0], knots=knots, between=between, dtype=torch.float64)
    with torch.no_grad():
        for parameter in curve.parameters():
            parameter.add_(torch.linspace(-0.3, 0.4, parameter.numel(), dtype=torch.float64).view_as(parameter))
    if knots == "placed":
        curve.place(torch.tensor([-2.0, 0.1, 0.3, 4.0]))
    s = torch.cat(
        [torch.linspace(-7.013, 9.02, 999, dtype=torch.float64), torch.tensor([1e30, -1e30])]
    ).requires_grad_()
    leaves = [s, *curve.parameters()]
    made = []
    for way in (curve.straight, curve.continued):
        y = way(s)
        made.append([y, *torch.autograd.grad(y[:999].sum(), leaves, allow_unused=True)])
    for straight, continued in zip(*made, strict=True):
        torch.testing.assert_close(continued, straight)
    odd = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    torch.testing.assert_close(curve.continued(odd), curve.straight(odd), equal_nan=True)


def test_saturated_losses_still_teach():
    """Far on the wrong side the gradient is that of a straight line, not 0 as of a clamped logarithm."""
    for head in (CumulativeLink(1, RISING, objective="likelihood"), CumulativeLink(1, RISING), CornHead(1, RISING)):
        x = torch.tensor([[1e4]], requires_grad=True)
        with torch.no_grad():
            for parameter in (head.net if isinstance(head, CornHead) else head.latent_net).parameters():
                parameter.fill_(1.0)
        head.loss(x, head.anchors[:1]).backward()
        assert x.grad.isfinite().all()
        assert x.grad.abs() > 0.1


@pytest.mark.parametrize("anchors", [RISING, FALLING, [1.0, 2.0]], ids=str)
def test_expectations_are_the_sum_of_weights_and_anchors(anchors):
    """Both ordinal models: y is the sum of p_k v_k, p in order and of sum 1, classes by the authors' rules."""
    x = torch.randn(50, 6) * 3
    for head in (CumulativeLink(6, anchors, decode="expectation"), CornHead(6, anchors)):
        p = head.predict_proba(x)
        torch.testing.assert_close(head(x), p @ head.anchors, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(p.sum(1), torch.ones(50))
        assert (p > -1e-6).all()
        expected = (1 - p.cumsum(1)[:, :-1] > 0.5).sum(1)
        assert (head.predict_class(x) == expected).float().mean() > 0.95  # equal but for rounding at a half


@pytest.mark.parametrize("objective", ["coral", "likelihood"])
def test_labels_and_values_train_together(objective):
    """Labels alone leave the shape between the anchors open; a few values between them fix it, and labels stay labels."""
    torch.manual_seed(0)
    x = torch.rand(1200, 1)
    y = 20 * x.squeeze(1).square()  # bends: evenly spaced thresholds in x are not in y
    anchors = torch.tensor([0.0, 5.0, 10.0, 15.0, 20.0])
    labels = anchors[(y / 5).round().long()]
    some = torch.arange(1200) % 20 == 0
    errors = {}
    for name, targets in (("labels", labels), ("both", torch.where(some, y, labels))):
        torch.manual_seed(1)
        head = CumulativeLink(1, anchors, "mlp", hidden=(16,), objective=objective, value_weight=20.0)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            head.loss(x, targets).backward()
            optimizer.step()
        errors[name] = (head(x) - y).abs().mean().item()
        assert (head.predict_class(x) == (y / 5).round()).float().mean() > 0.9
    assert errors["both"] < 0.85 * errors["labels"]


def test_remapped_links_hit_their_anchors_at_the_centres():
    """Half way between thresholds, wherever they went, y is the anchor to the last bit; between them it does not bend."""
    for seed in range(40):
        torch.manual_seed(seed)
        anchors = torch.randn(2 + seed % 9).sort(descending=bool(seed % 2)).values
        head = CumulativeLink(3, anchors)
        with torch.no_grad():
            head.line.steps.normal_(0, 2)
            head.line.start.normal_()
        t, k = head.thresholds, head.line.knots
        assert (k[1:-1] - (t[1:] + t[:-1]) / 2).abs().max() < 1e-4 if len(t) > 1 else True
        assert torch.equal(head.curve(k), head.anchors)
        assert torch.equal(head.inverse(head.anchors), k)
        assert ((k[:-1] < t) & (t < k[1:])).all()


def test_the_plain_expectation_does_not_reach_its_ends():
    """Why there is a remap: at the end classes' centres the expectation is a third of a class away."""
    head = CumulativeLink(1, torch.arange(11.0), decode="expectation")
    with torch.no_grad():
        head.sharpness_raw.fill_(math.log(math.expm1(2 - 1e-3)))
    y = head.curve(torch.arange(11.0))
    assert 0.3 < y[0] < 0.4
    assert 9.6 < y[-1] < 9.7
    assert (y[3:8] - torch.arange(3.0, 8.0)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ([1.0], "at least 2"),
        ([], "at least 2"),
        ([[1.0, 2.0]], "at least 2"),
        ([1.0, 3.0, 2.0], "2.0 after 3.0 at position 2"),
        ([3.0, 1.0, 2.0], "2.0 after 1.0 at position 2"),
        ([1.0, 2.0, 2.0], "distinct"),
        ([2.0, 2.0], "distinct"),
        ([1.0, math.nan], "finite numbers, got nan at position 1"),
        ([1.0, math.inf], "finite numbers"),
        ([1e9, 1e9 + 1], "float32"),
        ([-3e38, 3e38], "range finite"),
        ([0.0, 1e60], "range finite"),
        (["a", "b"], "one number per class"),
    ],
)
@pytest.mark.parametrize("kind", [AnchorSpline, HistogramHead, MLPHead])
def test_anchors_that_cannot_be_used_are_refused(kind, anchors, message):
    """AnchorError says where and what to do, and is a ValueError."""
    with pytest.raises(AnchorError, match=message) as err:
        kind(3, anchors)
    assert isinstance(err.value, ValueError)


def test_anchors_equal_in_float32_work_in_float64():
    """The fix that the message names is one."""
    head = AnchorSpline(3, [1e9, 1e9 + 1], dtype=torch.float64)
    assert head.curve(torch.tensor([0.5])).item() == 1e9 + 0.5


def _random_curves(number):
    """Spline heads with random anchors over many magnitudes, half of them with random trainable knots."""
    for seed in range(number):
        torch.manual_seed(seed)
        classes = int(torch.randint(2, 40, ()))
        anchors = torch.randn(classes).mul(10.0 ** float(torch.randint(-3, 7, ()))).sort().values.unique()
        anchors = anchors.flip(0) if seed % 3 == 0 else anchors
        if len(anchors) < 2:
            continue
        head = AnchorSpline(2, anchors, knots=("fixed", "trainable")[seed % 2], extrapolate="clamp")
        if seed % 2:
            head.line.steps.data.normal_(0, 4)
            head.line.start.data.normal_(0, 10)
        yield head


def test_curve_is_monotone_at_every_neighbouring_float():
    """Over 500,000 steps from one float32 to the next, at and around knots: no step goes the wrong way."""
    steps = 0
    for head in _random_curves(120):
        knots = head.knots.detach()
        inside = knots[0] + (knots[-1] - knots[0]) * torch.rand(40)
        below = knots - 32 * torch.finfo(torch.float32).eps * knots.abs().clamp(min=0.01)
        walk = _steps(torch.cat([inside, knots, below]))
        for extrapolate in ("clamp", "linear"):
            head.line.extrapolate = extrapolate
            change = head.curve(walk).detach().diff(dim=1) * head.scale.sign
            assert (change >= 0).all()
            steps += change.numel()
    assert steps > 500_000


def test_curve_is_monotone_over_wide_gaps():
    """Any order of latents, infinities included, comes out in order."""
    for head in _random_curves(60):
        s = torch.cat([torch.randn(400) * 50, torch.tensor([-math.inf, math.inf])]).sort().values
        y = head.curve(s).detach()
        assert (y.diff() * head.scale.sign >= 0).all()
        assert y[0] == head.anchors[0]
        assert y[-1] == head.anchors[-1]


def test_curve_hits_anchors_bitwise():
    """A(t_k) is v_k exactly, and the inverse gives t_k back exactly, in every variant."""
    for head in _random_curves(120):
        for extrapolate in ("clamp", "linear"):
            head.line.extrapolate = extrapolate
            assert torch.equal(head.curve(head.knots), head.anchors)
            assert torch.equal(head.inverse(head.anchors), head.knots)


def test_unclamped_piece_would_overshoot():
    """The clamp is there for a reason: without it some value just below a knot exceeds the knot's value."""
    generator = torch.Generator().manual_seed(0)
    (low, high), (left, right) = torch.randn(2, 2, 50_000, generator=generator).sort(1).values
    below = torch.nextafter(right, left)
    share = (below - left) / (right - left)
    assert (low + (high - low) * share > high).any()
    for i in (low + (high - low) * share > high).nonzero().flatten()[:20].tolist():
        y = interpolate(below[[i]], torch.stack([left[i], right[i]]), torch.stack([low[i], high[i]]))
        assert y <= high[i]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-2000, 2000), min_size=2, max_size=12, unique=True),
    st.lists(st.floats(-5, 15, width=32), min_size=1, max_size=20),
)
def test_curve_and_inverse_agree_with_float64_interpolation(anchors, latents):
    """A(s) is the broken line through the anchors; the inverse undoes it inside."""
    head = AnchorSpline(2, sorted(map(float, anchors)))
    s, last = torch.tensor(latents, dtype=torch.float32), len(anchors) - 1
    inside = s.double().clamp(0, last)
    k = inside.floor().clamp(max=last - 1).long()
    v = head.anchors.double()
    expected = v[k] + (v[k + 1] - v[k]) * (inside - k)
    torch.testing.assert_close(head.curve(s).double(), expected, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(head.inverse(head.curve(s)).double(), inside, rtol=0, atol=1e-2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40, unique=True), st.data())
def test_piece_of_is_a_right_sided_search(knots, data):
    """Bisection gives what searchsorted(right=True) - 1 gives, the last knot belonging to the last piece."""
    knots = torch.tensor(sorted(knots), dtype=torch.float32).unique()
    if len(knots) < 2:
        return
    at = st.one_of(st.sampled_from(knots.tolist()), st.floats(knots[0].item(), knots[-1].item(), width=32))
    x = torch.tensor(data.draw(st.lists(at, min_size=1, max_size=20)), dtype=torch.float32)
    expected = (torch.searchsorted(knots, x, right=True) - 1).clamp(max=len(knots) - 2)
    assert torch.equal(piece_of(x, knots), expected)


def test_unit_knots_give_the_same_piece_and_value():
    """The short cut for knots 0..K-1 changes no bit."""
    values = torch.randn(50).sort().values
    knots = torch.arange(50.0)
    x = torch.cat([torch.rand(5000) * 49, knots, torch.tensor([-1.0, 60.0, -0.0])])
    assert torch.equal(interpolate(x, knots, values), interpolate(x, knots, values, is_unit=True))


def test_nan_features_give_nan():
    """Not a number in, not a number out: no index error, no plausible value."""
    for head in _random_curves(8):
        assert head.curve(torch.tensor([math.nan, 0.0]))[0].isnan()
        assert head(torch.full((1, 2), math.nan)).isnan().all()


def test_infinite_latents_have_finite_gradients():
    """Clamped before the formula: neither the knots nor the latent get a NaN from 0 * inf."""
    for knots in ("fixed", "trainable"):
        head = AnchorSpline(2, RISING, knots=knots)
        s = torch.tensor([-math.inf, 1e38, 0.5, math.inf], requires_grad=True)
        head.curve(s).sum().backward()
        assert s.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in (head.line.start, head.line.steps) if p is not None)


def test_predict_class_is_the_nearest_anchor():
    """With even and uneven anchors, inside and beyond the ends."""
    for anchors in (RISING, FALLING):
        head = AnchorSpline(2, anchors)
        head.latent_net = _First()
        x = torch.rand(300, 2) * 8 - 2
        distance = (head(x)[:, None] - head.anchors).abs()
        picked = distance.gather(1, head.predict_class(x)[:, None]).squeeze(1)
        torch.testing.assert_close(picked, distance.min(1).values, rtol=0, atol=1e-4)


class _First(nn.Module):
    def forward(self, x):
        return x[:, :1]


def test_custom_latent_is_used_but_not_described():
    """A module of one's own works, (B, 1) or (B,); config says that it cannot describe it."""
    head = AnchorSpline(2, [0.0, 10.0, 30.0], latent=_First())
    assert head(torch.tensor([[1.5, 0.0]])).item() == 20.0
    with pytest.raises(FitError, match="_First"):
        head.config()
    with pytest.raises(FitError, match=r"nn\.Linear\(\.\.\., 1\)"):
        AnchorSpline(2, [0.0, 1.0], latent=nn.Identity())(torch.zeros(3, 2))


def test_clamped_sample_still_learns():
    """The loss has a gradient beyond the end anchors, where the output is flat."""
    head = AnchorSpline(2, [0.0, 1.0, 2.0])
    head.latent_net.net[-1].bias.data.fill_(50.0)
    head.loss(torch.zeros(4, 2), torch.ones(4)).backward()
    assert head.latent_net.net[-1].bias.grad > 0


@pytest.mark.parametrize("anchors", [RISING, FALLING])
def test_two_hot_targets_have_the_target_as_mean(anchors):
    """Exact for uneven anchors; beyond the ends: the end anchor."""
    head = HistogramHead(2, anchors, dtype=torch.float64)
    targets = _targets(head, 200).double()
    soft = head.soft_targets(targets)
    torch.testing.assert_close(soft @ head.anchors, targets)
    assert ((soft > 0).sum(1) <= 2).all()
    torch.testing.assert_close(head.soft_targets(head.anchors), torch.eye(len(anchors), dtype=torch.float64))
    assert (head.soft_targets(torch.tensor([-1e9, 1e9]).double()).max(1).values == 1).all()


@pytest.mark.parametrize(("targets", "sigma"), [("hl-gauss", 0.75), ("hl-gauss", 2.0), ("blur", 1.25)])
def test_padding_keeps_the_mean_of_smooth_targets_at_the_ends(targets, sigma):
    """With it the mean is right to 0.01 class; without it, the end is off by the 0.37 that heads.md computed."""
    head = HistogramHead(2, list(range(11)), targets=targets, sigma=sigma, dtype=torch.float64)
    soft = head.soft_targets(torch.tensor([0.0, 0.3, 5.0, 9.6, 10.0]).double())
    torch.testing.assert_close(soft.sum(1), torch.ones(5).double())
    torch.testing.assert_close(
        soft @ head.support, torch.tensor([0.0, 0.3, 5.0, 9.6, 10.0]).double(), rtol=0, atol=0.01
    )
    if (targets, sigma) == ("hl-gauss", 0.75):
        bare = hl_gauss(torch.zeros(1).double(), 11, sigma)
        assert abs((bare @ torch.arange(11.0).double()).item() - 0.37) < 0.01


@pytest.mark.parametrize("sigma", [0.3, 0.75, 2.0])
def test_smooth_targets_are_the_mass_of_a_normal_distribution(sigma):
    """Farebrother et al.: differences of its distribution function at the cells' edges, over their sum; to 1e-14."""
    places = torch.tensor([-1.0, 0.0, 0.3, 2.5, 6.0], dtype=torch.float64)
    below = [[NormalDist(place, sigma).cdf(k - 0.5) for k in range(8)] for place in places.tolist()]
    mass = torch.tensor(below, dtype=torch.float64).diff(dim=1)
    torch.testing.assert_close(hl_gauss(places, 7, sigma), mass / mass.sum(1, keepdim=True), rtol=0, atol=1e-14)


def test_classes_of_ordinal_models_are_by_the_authors_rule():
    """CORAL: how many sigmoids are above a half; CORN: how many products of them are."""
    x = torch.randn(2000, 6, dtype=torch.float64)
    link, chain = CumulativeLink(6, RISING, dtype=torch.float64), CornHead(6, RISING, dtype=torch.float64)
    above = link.rank_logits(link.latent(x)).sigmoid()
    passed = chain.rank_logits(x).sigmoid()
    for j in range(1, passed.shape[1]):
        passed[:, j] *= passed[:, j - 1]
    assert torch.equal(link.predict_class(x), (above > 0.5).sum(1))
    assert torch.equal(chain.predict_class(x), (passed > 0.5).sum(1))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 7), st.integers(1, 40), st.integers(0, 19), st.integers(0, 1000))
def test_what_is_trimmed_is_what_scipy_leaves_out(classes, rows, cut, seed):
    """With weights that are shares of rows, y is scipy's trimmed mean of the rows' anchors."""
    stats = pytest.importorskip("scipy.stats")
    draw = torch.Generator().manual_seed(seed)
    anchors = torch.rand(classes, generator=draw, dtype=torch.float64).cumsum(0)
    labels = torch.randint(classes, (40 * rows,), generator=draw)
    p = torch.bincount(labels, minlength=classes).double() / len(labels)
    head = HistogramHead(classes, anchors, net=nn.Identity(), pad=0, trim=cut / 40, dtype=torch.float64)
    expected = stats.trim_mean(anchors[labels].numpy(), (cut + 1e-9) / 40)
    y = head.from_exceedances(1 - p.cumsum(0)[:-1])
    assert y.item() == pytest.approx(expected, abs=1e-9)


def test_a_second_peak_that_is_trimmed_does_not_pull():
    """A tenth of the weight an octave away moves the mean by 1.2 semitones, a trimmed mean by less than its own width."""
    index = torch.arange(60.0)
    logits = torch.logaddexp(-((index - 30.3) ** 2) / 2 + math.log(0.9), -((index - 42.3) ** 2) / 2 + math.log(0.1))
    plain, trimmed = (HistogramHead(60, index, net=nn.Identity(), pad=0, trim=trim) for trim in (0.0, 0.25))
    assert plain(logits[None]).item() == pytest.approx(31.5, abs=0.01)
    assert trimmed(logits[None]).item() == pytest.approx(30.3, abs=0.2)
    sure = torch.tensor([[0.2, 0.75, 0.05], [0.0, 0.2, 0.8]])
    met = HistogramHead(3, [60.0, 62.0, 67.0], net=nn.Identity(), pad=0, trim=0.25)
    assert met(sure.log()).tolist() == [62.0, 67.0]  # where one class has the rest, to the last bit


def test_expectation_never_falls_when_weight_moves_up():
    """decode='mean' respects first-order stochastic dominance; decode='local' does not (heads.md, trap 2)."""
    anchors = [float(v) for v in range(20)]
    head = HistogramHead(20, anchors, net=nn.Identity(), pad=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(500, 20, generator=generator).double().softmax(1)
    low = torch.randint(0, 19, (500,), generator=generator)
    moved, rows = p.clone(), torch.arange(500)
    moved[rows, low] -= p[rows, low] / 2
    moved[rows, low + 1] += p[rows, low] / 2
    assert (head(moved.log()) >= head(p.log())).all()
    local = HistogramHead(20, anchors, net=nn.Identity(), pad=0, decode="local", window=2, dtype=torch.float64)
    p = torch.full((20,), 0.01).double()
    p[18], p[5], p[6] = 0.30, 0.29, 0.0
    up = p.clone()
    up[4], up[5] = 0.0, 0.31
    assert local(up.log()[None]) < local(p.log()[None])


def test_local_decoding_averages_around_the_peak():
    """Equal to the sum over the window divided by its weight, cut off at the ends."""
    head = HistogramHead(6, [0.0, 1.0, 2.0, 4.0, 8.0, 9.0], net=nn.Identity(), pad=0, decode="local", window=1)
    p = torch.tensor([[0.1, 0.5, 0.2, 0.1, 0.05, 0.05], [0.6, 0.2, 0.05, 0.05, 0.05, 0.05]])
    expected = torch.tensor([(0.5 + 0.4) / 0.8, 0.2 / 0.8])
    torch.testing.assert_close(head(p.log()), expected)


def _two_peaks(rows, seed, places):
    """Rows of a fine classifier of 60 classes that cannot tell two peaks apart, and a feature that can."""
    draw = torch.Generator().manual_seed(seed)
    place = places[torch.randint(len(places), (rows,), generator=draw)]
    other = torch.where(place < 30, place + 30, place - 30)
    index, wins = torch.arange(60.0), torch.rand(rows, 1, generator=draw) - 0.5
    peaks = [8 - (index - one[:, None]) ** 2 / 2 + sign * wins for one, sign in ((place, 1), (other, -1))]
    return torch.cat([torch.maximum(*peaks).clamp(min=-4), (place < 30).float()[:, None] - 0.5], 1), place


def test_a_correction_moves_between_neighbourhoods_and_leaves_the_fine_scale():
    """From labels at every fifth class it learns which peak is right; between them peaks stay where they were."""
    classifier = nn.Linear(61, 60)
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(60, 61))
        classifier.bias.zero_()
    common = {"targets": "blur", "sigma": 1.0, "activation": "sigmoid", "decode": "local", "window": 3}
    labelled = _two_peaks(600, 0, torch.arange(5.0, 56, 5))
    x, place = _two_peaks(400, 1, torch.linspace(4, 56, 521))
    torch.manual_seed(0)
    heads = {
        "corrected": as_regressor(classifier, range(60), "histogram", correction=10.0, **common),
        "refitted": as_regressor(classifier, range(60), "histogram", **common),
    }
    before = heads["corrected"](x)
    torch.testing.assert_close(before, heads["refitted"](x))
    near = (before - place).abs() < 15
    assert 0.3 < near.float().mean() < 0.7
    fitted = fit(labelled, labelled, heads, epochs=60, lr=3e-2, batch_size=100, seed=0, progress=False)
    off = {result.name: (result.head(x) - place).abs().detach() for result in fitted}
    fine = {name: errors[errors < 15].mean() for name, errors in off.items()}
    assert (off["corrected"] > 15).float().mean() < 0.05
    assert fine["corrected"] < (before - place).abs()[near].mean() < fine["refitted"] / 2
    head = fitted["corrected"].head
    assert torch.equal(head.net.net[0].weight[3:-3], classifier.weight)  # padded, and not trained
    assert [name for name, p in head.named_parameters() if p.requires_grad] == [
        "net.coarse.0.weight",
        "net.coarse.0.bias",
    ]


def test_a_corrected_head_is_described_and_saved():
    """Its description rebuilds it, frozen part and all; a plain head's description does not speak of it."""
    head = as_regressor(nn.Linear(5, 7), range(7), "histogram", correction=2, trim=0.2)
    nn.init.normal_(head.net.coarse[0].weight)
    again = from_config(json.loads(json.dumps(head.config())))
    again.load_state_dict(head.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(again(x), head(x))
    assert again.certify() == head.certify().raise_if_failed()
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in head.parameters()]
    assert not {"correction", "trim"} & as_regressor(nn.Linear(5, 7), range(7), "histogram").config().keys()
    several = as_regressor(_OfTwo(), range(7), "histogram", correction=2, example=(x, x))
    with pytest.raises(FitError, match="one tensor of features, got a tuple"):
        several((x, x))


class _OfTwo(nn.Module):
    """A classifier of two tensors."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 7)

    def forward(self, features):
        return self.fc(features[0] + features[1])


def test_sigmoid_weights_survive_underflow():
    """Every sigmoid 0 in float32: still a finite expectation, the most likely class leading."""
    head = HistogramHead(3, [0.0, 1.0, 2.0], net=nn.Identity(), pad=0, activation="sigmoid")
    assert head(torch.tensor([[-500.0, -400.0, -500.0]])).item() == 1.0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("anchors", [[float(v) for v in range(60, 67)], [3.0, 2.0, 1.5, 1.0, 0.2, 0.1, -4.0]])
def test_warm_start_equals_the_classifier(activation, anchors):
    """Histogram: the classifier's expectation. Pwl: the curve at its expected class. Before any training."""
    torch.manual_seed(0)
    classifier = nn.Linear(5, 7)
    before = copy.deepcopy(classifier.state_dict())
    x = torch.randn(50, 5)
    p = classifier(x).softmax(1) if activation == "softmax" else classifier(x).sigmoid()
    p = p / p.sum(1, keepdim=True)
    histogram = as_regressor(classifier, anchors, "histogram", activation=activation)
    torch.testing.assert_close(histogram(x), p @ torch.tensor(anchors), rtol=1e-5, atol=1e-5)
    pwl = as_regressor(classifier, anchors, activation=activation)
    expected = pwl.curve(p @ torch.arange(7.0))
    torch.testing.assert_close(pwl(x), expected, rtol=1e-5, atol=1e-5)
    if anchors[0] == 60:
        torch.testing.assert_close(pwl(x), histogram(x), rtol=1e-5, atol=1e-5)
    padded = as_regressor(classifier, anchors, "histogram", activation=activation, targets="hl-gauss")
    torch.testing.assert_close(padded(x), p @ torch.tensor(anchors), rtol=1e-3, atol=2e-2)
    for head in (histogram, pwl, padded):
        head.loss(x, torch.ones(50)).backward()
        assert from_config(head.config()).load_state_dict(head.state_dict())
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert classifier.weight.grad is None


@pytest.mark.parametrize(("kind", "latent"), [("pwl", "linear"), ("mlp", "classifier")])
def test_closed_form_warm_start_follows_the_classifier(kind, latent):
    """Fitted to 300 unlabelled rows, the head explains most of the classifier's expectation on other rows."""
    torch.manual_seed(0)
    classifier = nn.Linear(8, 5)
    with torch.no_grad():
        direction = torch.randn(8)
        classifier.weight.copy_(torch.arange(-2.0, 3.0)[:, None] * direction)
        classifier.bias.copy_(-(torch.arange(-2.0, 3.0) ** 2))
    fitted, held_out = torch.randn(300, 8), torch.randn(300, 8)
    anchors = [10.0, 20.0, 30.0, 40.0, 50.0]
    head = as_regressor(classifier, anchors, kind, latent=latent, features=fitted)
    wanted = classifier(held_out).softmax(1) @ torch.tensor(anchors)
    assert (head(held_out) - wanted).square().mean() < 0.15 * wanted.var()
    assert from_config(head.config()).load_state_dict(head.state_dict())
    with pytest.raises(FitError, match="features="):
        as_regressor(classifier, anchors, kind, latent=latent)


def test_as_regressor_takes_deeper_classifiers():
    """A Sequential keeps its layers; a plain one can be described, one with dropout works undescribed."""
    x = torch.randn(20, 5)
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    mixed = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3, bias=False)).eval()
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    for classifier in (plain, mixed, normed):
        wanted = classifier(x).softmax(1) @ torch.tensor([1.0, 2.0, 3.0])
        for kind in ("pwl", "histogram"):
            head = as_regressor(classifier, [1.0, 2.0, 3.0], kind)
            torch.testing.assert_close(head.eval()(x), wanted)
            assert all(p.requires_grad for p in head.parameters())
    assert as_regressor(plain, [1.0, 2.0, 3.0], "pwl").config()["hidden"] == [4]
    with pytest.raises(FitError, match="Sequential"):
        as_regressor(mixed, [1.0, 2.0, 3.0], "histogram").config()


def test_as_regressor_refuses_what_it_cannot_convert():
    """Wrong number of anchors names both numbers; squashed logits and missing Linears name the fix."""
    with pytest.raises(AnchorError, match="each of its 3 classes, got 4 anchors"):
        as_regressor(nn.Linear(5, 3), [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(FitError, match=r"classifier\[:-1\]"):
        as_regressor(nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)), [1.0, 2.0, 3.0])
    with pytest.raises(FitError, match=r"nn\.Linear"):
        as_regressor(nn.Conv1d(2, 3, 1), [1.0, 2.0, 3.0])
    for wrong in ({"kind": "spline"}, {"latent": "x"}, {"activation": "relu"}):
        with pytest.raises(FitError, match="expected"):
            as_regressor(nn.Linear(5, 2), [1.0, 2.0], **wrong)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "os.system"},
        {"kind": ["pwl"]},
        {"kind": "pwl", "in_features": 3, "anchors": [0, 1], "net": "x"},
        {"kind": "mlp", "in_features": 3, "anchors": [0, 1], "dtype": "int8"},
    ],
)
def test_from_config_refuses_what_it_does_not_know(config):
    """A closed list of kinds and options: a description imports and builds nothing else."""
    with pytest.raises(BundleError):
        from_config(config)


def test_unknown_options_are_refused():
    """FitError lists what there is."""
    for build in (
        lambda: AnchorSpline(3, [0, 1], "quadratic"),
        lambda: AnchorSpline(3, [0, 1], knots="free"),
        lambda: HistogramHead(3, [0, 1], targets="one-hot"),
        lambda: HistogramHead(3, [0, 1], decode="argmax"),
        lambda: HistogramHead(3, [0, 1], trim=0.5),
        lambda: HistogramHead(3, [0, 1], correction=0.5),
        lambda: HistogramHead(3, [0, 1], correction=float("nan")),
        lambda: HistogramHead(3, [0, 1], trim=-0.1),
        lambda: HistogramHead(3, [0, 1], trim=float("nan")),
        lambda: HistogramHead(3, [0, 1], trim=0.2, decode="local"),
        lambda: HistogramHead(3, [0, 1], sigma=0.0),
        lambda: HistogramHead(3, [0, 1], window=-1),
        lambda: HistogramHead(3, [0, 1, 2], pad=-1),
        lambda: HistogramHead(3, [0, 1], pad=0.5),
    ):
        with pytest.raises(FitError, match="expected"):
            build()
