"""The heads with a promise of their own: prototypes, named features, calibration, circles, several targets."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import forethought as ft
from forethought.errors import AnchorError, FitError, ShapeError
from forethought.heads import (
    AnchorCalibrator,
    AnchorSpline,
    CircularSpline,
    CornHead,
    MultiHead,
    PartialMonotone,
    PrototypeExact,
    class_prototypes,
    from_config,
    quick,
)
from forethought.heads.calibrator import pool
from forethought.heads.corners import corners_at

ANCHORS = [60.0, 61.5, 62.0, 67.25]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Batches this small gain nothing from threads and wait long for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------- prototypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prototypes_get_their_anchors_to_the_last_bit_after_training(dtype):
    """Whatever is trained, alone, in any batch and in any order."""
    for seed in range(12):
        torch.manual_seed(seed)
        width, classes = 5 + 40 * (seed % 3), 2 + seed % 4
        anchors = torch.randn(classes).sort(descending=bool(seed % 2)).values * 100
        prototypes = torch.randn(classes, width, dtype=dtype) * 10.0 ** (seed % 4 - 1) + seed
        head = PrototypeExact(width, anchors, prototypes, dtype=dtype)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
        x, targets = torch.randn(64, width, dtype=dtype), torch.randn(64) * 100
        for _ in range(20):
            optimizer.zero_grad()
            head.loss(x, targets).backward()
            optimizer.step()
        assert head.direction.abs().max() > 0.1
        order = torch.randperm(classes)
        batch = torch.cat([x, prototypes[order], x])
        assert torch.equal(head(batch)[64 : 64 + classes], head.anchors[order].to(head.scale.values))
        assert all(head(prototypes[[k]]) == head.anchors[k] for k in range(classes))
        claim = head.certify().raise_if_failed().claim("anchors at prototypes")
        assert claim.bound == 0.0
        assert head.falsify(5_000).counterexamples == ()


def test_prototypes_survive_casts_and_their_state():
    """They are not rounded by .half(), and come back with the state."""
    prototypes = torch.randn(4, 9) * 7
    head = PrototypeExact(9, ANCHORS, prototypes)
    torch.nn.init.normal_(head.direction)
    for narrow in (copy.deepcopy(head).half(), copy.deepcopy(head).bfloat16(), copy.deepcopy(head).double()):
        assert torch.equal(narrow.prototypes.float(), prototypes)
        assert torch.equal(narrow(prototypes).float(), torch.tensor(ANCHORS))
        assert narrow.certify().holds
        again = from_config(json.loads(json.dumps(narrow.config())))
        again.load_state_dict(narrow.state_dict())
        assert torch.equal(again(prototypes), narrow(prototypes))


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_prototypes_are_those_that_were_given(dtype, given):
    """A head of narrower weights meets its anchors at the numbers that it was given, not at rounded ones."""
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(given)
    head = PrototypeExact(6, [-0.1, 0.0, 1e-5, 0.1], points, dtype=dtype)
    assert torch.equal(head.prototypes, points.double())
    assert torch.equal(head(points), head.anchors)


@pytest.mark.parametrize("size", [1e-12, 1e5, 1e30, 1e150])
def test_prototypes_of_any_size_are_met_or_refused(size):
    """Never another library's error: a half-precision head took large ones for infinite."""
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size
    for dtype in (torch.float16, torch.float32):
        try:
            head = PrototypeExact(6, ANCHORS, points, dtype=dtype)
        except FitError:
            continue
        assert not head.certify().holds or torch.equal(head(points), head.anchors)


@pytest.mark.parametrize(
    ("prototypes", "says"),
    [
        (torch.ones(4, 6), "rank 1"),
        (torch.eye(4, 6)[[0, 1, 2, 2]], "rank 3; a plane comes within 0.5 classes"),
        (torch.randn(4, 2), "rank 3"),
        (torch.eye(3, 6), r"\(4, 6\), got \(3, 6\)"),
        (torch.full((4, 6), math.nan), "not finite"),
    ],
)
def test_prototypes_that_cannot_be_met_are_refused(prototypes, says):
    """Too few dimensions, one that is a mean of others, another shape: said, with how near a plane comes."""
    with pytest.raises(FitError, match=says):
        PrototypeExact(prototypes.shape[1], ANCHORS, prototypes)


def test_prototypes_are_class_means():
    """`class_prototypes` gives each class's mean, and names a class without samples."""
    features, labels = torch.randn(200, 5), torch.arange(200) % 4
    means = class_prototypes(features, labels, 4)
    torch.testing.assert_close(means[2], features[labels == 2].mean(0))
    head = PrototypeExact(5, ANCHORS, means)
    assert torch.equal(head(means), torch.tensor(ANCHORS))
    with pytest.raises(FitError, match="none of class 4"):
        class_prototypes(features, labels, 5)
    with pytest.raises(FitError, match="got class 3"):
        class_prototypes(features, labels, 3)


# ------------------------------------------------------------------------------------------------ named features


def _shaken(head, size=1.0):
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return head.eval()


@pytest.mark.parametrize(("hidden", "free"), [((), 0), ((6,), 0), ((8, 8), 0), ((), 3), ((8, 8), 5)])
def test_equal_rows_are_equal_wherever_they_stand(hidden, free):
    """In evaluation a row gives the same bits alone and anywhere in a batch, which a matrix product does not."""
    for seed in range(6):
        torch.manual_seed(seed)
        head = _shaken(PartialMonotone(26, ANCHORS, [1, -1] + [0] * 24, hidden=hidden, free_keypoints=free))
        x = torch.randn(1, 26).expand(1003, 26).contiguous()
        y = head.latent(x)
        assert (y == y[0]).all()
        assert torch.equal(head.latent(x[:1]), y[:1])
        assert torch.equal(head.latent(x[:7]), y[:7])


@pytest.mark.parametrize("free", [0, 4])
@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_training_and_evaluation_differ_by_rounding_only(hidden, free):
    """The fast sums of training and the ordered ones of evaluation are the same sums, infinities and all."""
    options = {"hidden": hidden, "free_keypoints": free, "dtype": torch.float64, "extrapolate": "linear"}
    for signs in ([1, 0, 0, -1, 0, 0], [1, 1, -1, 1, 1, 1]):
        x = torch.randn(100, 6, dtype=torch.float64) * torch.logspace(-3, 3, 6) + torch.arange(6) * 1e3
        head = PartialMonotone(6, ANCHORS, signs, **options).place(x)
        head = _shaken(head, 0.3)
        x[0] = math.inf
        x[1] = -math.inf
        x[2, ::2] = 1e300
        y = head.latent(x)
        torch.testing.assert_close(y, head.train().latent(x), rtol=1e-9, atol=1e-9)
        assert y.isfinite().all()
        head.loss(x, torch.zeros(100, dtype=torch.float64)).backward()
        assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(("rows", "free"), [(50, 4), (50, 0), (100, 0)])
def test_training_and_evaluation_have_the_same_gradients(rows, free):
    """In every weight and in the features, broken lines of both kinds included, few rows or many."""
    x = torch.randn(rows, 5, dtype=torch.float64) * torch.logspace(-2, 2, 5) + 3
    options = {"hidden": (4, 4), "free_keypoints": free, "dtype": torch.float64}
    head = PartialMonotone(5, ANCHORS, [1, -1, 0, 0, 0], **options).place(x)
    head = _shaken(head, 0.5)
    found = []
    for training in (True, False):
        given = x.clone().requires_grad_()
        head.train(training).zero_grad()
        head.latent(given).square().sum().backward()
        found.append([given.grad, *(p.grad for p in head.parameters() if p.grad is not None)])
    for trained, ordered in zip(*found, strict=True):
        torch.testing.assert_close(trained, ordered, rtol=1e-8, atol=1e-8)


def test_no_stored_number_can_be_broken_so_that_a_certificate_lies():
    """Each tensor of the head, its first number put to NaN, infinity, huge or subnormal: refused, or unbroken."""
    torch.manual_seed(0)
    options = {"hidden": (4,), "keypoints": 4, "free_keypoints": 3}
    head = _shaken(PartialMonotone(4, [0.0, 1.0, 3.0], [1, -1, 0, 0], **options).place(torch.randn(200, 4)))
    refused = 0
    for name in head.state_dict():
        for value in (math.nan, math.inf, -1e12, -1e-40):
            broken = copy.deepcopy(head)
            broken.state_dict()[name].view(-1)[0] = value
            certificate = broken.certify()
            refused += not certificate.holds
            assert not certificate.holds or not broken.falsify(1_000).found, (name, value)
    assert refused > 2 * len(head.state_dict())


class _Large(TorchDispatchMode):
    """Counts tensors of at least `numel` numbers that operations allocate."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.made = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.numel and not func.is_view:
            name = func.overloadpacket.__name__
            self.made += [] if name.endswith("_") and not name.startswith("_") else [name]
        return out


@pytest.mark.parametrize(("odd", "made"), [(None, []), (3e6, ["sub"]), (math.nan, ["sub"])])
def test_a_step_on_wide_features_makes_no_tensor_of_their_size(odd, made):
    """What costs on 768 columns is passes over them: the product reads them as they are, unless a value is too far."""
    head = PartialMonotone(768, ANCHORS, {0: 1, 700: -1}).train()
    x, y = torch.randn(512, 768), torch.rand(512)
    if odd is not None:
        x[77, 5] = odd
    with _Large(512 * 700) as seen:
        head.loss(x, y).backward()
    assert seen.made == made


_KINDS = {
    "usual": lambda draw: torch.randn(200, generator=draw),
    "constant": lambda draw: torch.full((200,), 0.1),
    "constant, large": lambda draw: torch.full((200,), 12345.678),
    "far middle": lambda draw: 1e5 + torch.randn(200, generator=draw),
    "tiny": lambda draw: 1e-25 * torch.randn(200, generator=draw),
    "tiny about one": lambda draw: 1 + 1e-4 * torch.randn(200, generator=draw),
    "huge": lambda draw: 1e15 * torch.randn(200, generator=draw),
    "nearly dead": lambda draw: (torch.arange(200) == 3).float(),
    "vanishing": lambda draw: 1e-42 * torch.randn(200, generator=draw),
}


@settings(deadline=None, max_examples=80)
@drawn(
    st.lists(st.sampled_from(sorted(_KINDS)), min_size=3, max_size=12),
    st.lists(st.sampled_from([math.inf, -math.inf, 3e38, -1e30, 2e6, math.nan]), max_size=3),
    st.sampled_from([(), (4,), (9, 5)]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([3, 200]),
    st.integers(0, 99),
)
def test_odd_features_train_as_they_are_evaluated(kinds, odd, hidden, dtype, rows, seed):
    """Whatever features are like: the same numbers up to rounding, and infinities give no NaN, in value or gradient."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.stack([_KINDS[kind](draw) for kind in kinds], 1).to(dtype).nan_to_num(posinf=6e4, neginf=-6e4)
    head = PartialMonotone(len(kinds), ANCHORS, {0: 1, 1: -1}, hidden=hidden, extrapolate="linear").place(x)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _shaken(head, 0.3)
    x = x[:rows].clone()
    for value in odd:
        x[int(torch.randint(rows, (), generator=draw)), int(torch.randint(len(kinds), (), generator=draw))] = value
    evaluated, trained = head.latent(x).detach(), head.train().latent(x)
    middle, spread = (head.net.exact.get_buffer(name) for name in ("middle", "spread"))
    size = ((x.float() - middle) / spread).abs().clamp(max=1e6).nan_to_num().amax(1)
    is_known = ~x.isnan().any(1)
    assert (trained.isnan() == evaluated.isnan()).all()
    assert trained[is_known].isfinite().all()
    assert ((trained - evaluated).abs() <= 3e-5 * (64 + size))[is_known].all()
    head.loss(x[is_known], torch.zeros(int(is_known.sum()))).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    assert head.eval().certify().holds
    assert not head.falsify(2_000).found


def test_softsign_of_training_has_its_derivatives():
    """The first and the second, at 0 and far out too."""
    x = torch.tensor([-1e3, -2.0, -1e-9, 1e-9, 0.5, 40.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(quick.softsign(x), torch.nn.functional.softsign(x))
    assert torch.autograd.gradcheck(quick.softsign, x[1:].detach()[[0, 3, 4]].requires_grad_())
    assert torch.autograd.gradgradcheck(quick.softsign, x[1:].detach()[[0, 3, 4]].requires_grad_())
    (quick_slope,) = torch.autograd.grad(quick.softsign(x).sum(), x)
    (slope,) = torch.autograd.grad(torch.nn.functional.softsign(x).sum(), x)
    torch.testing.assert_close(quick_slope, slope)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_an_ensemble_the_compiler_and_autocast_train_the_same_sums():
    """Whether features may be multiplied as they are is no question where nothing can be asked of them."""
    torch.manual_seed(0)
    x = torch.randn(100, 9) + torch.arange(9)
    held = [PartialMonotone(9, ANCHORS, {0: 1}).place(x).train() for _ in range(3)]
    single = torch.stack([head.latent(x) for head in held])
    tensors, buffers = torch.func.stack_module_state(held)
    call = torch.func.vmap(lambda p, b: torch.func.functional_call(held[0], (p, b), (x,)))
    torch.testing.assert_close(call(tensors, buffers), torch.stack([head(x) for head in held]))
    compiled = torch.compile(held[0].latent, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), single[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(held[0].latent(x), single[0])


def test_many_features_are_made_into_few_units():
    """Where they would take the time: more than 64 free ones; what is asked for goes first, and is rebuilt."""
    for free, given, units in ((64, None, 32), (65, None, 3), (65, 20, 20), (0, 5, 0)):
        head = PartialMonotone(free + 1, ANCHORS, {0: 1}, free_units=given)
        assert head.net.free_units == units
        assert (head.net.embed is None) == (units == 0)
        again = from_config(json.loads(json.dumps(head.config())))
        again.load_state_dict(head.state_dict())
    assert PartialMonotone(99, ANCHORS, {0: 1}, hidden=(2,)).net.free_units == 2
    assert PartialMonotone(99, ANCHORS, {0: 1}, hidden=(), free_units=9).net.free_units == 0


@pytest.mark.parametrize("value", [0.1, 12345.678, 1e-42, 3.3e30])
def test_a_constant_feature_is_not_magnified(value):
    """The rounding of its mean is no spread: another value later counts as that much more, not a million times."""
    x = torch.stack([torch.randn(1000), torch.full((1000,), value)], 1)
    assert PartialMonotone(2, ANCHORS, {0: 1}).place(x).net.exact.spread[1] == 1


@settings(deadline=None, max_examples=100)
@drawn(
    st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)), min_size=1, max_size=60),
    st.integers(2, 40),
)
def test_corners_are_distinct_quantiles_and_the_ends(values, count):
    """Any values give `count` corners that ascend in float32 too, the least and greatest at the ends, none beyond."""
    given = torch.tensor(values, dtype=torch.float64)
    corners = corners_at(given, count)
    assert len(corners) == count
    assert (corners.diff() > 0).all()
    if given.std(unbiased=False) > 0:
        assert (corners[0], corners[-1]) == (given.min(), given.max())
    if (spread := given.std(unbiased=False)) > 0:
        held = (given - given.mean()) / spread
        assert (corners_at(held, count).float().diff() > torch.finfo(torch.float32).tiny).all()


def test_every_grade_gets_a_corner():
    """Values that repeat take one corner each, wherever there are as many corners as values, and not ten."""
    grades = torch.tensor([0.0] * 90 + [1.0] * 5 + [2.0] * 4 + [7.0])
    corners = corners_at(grades, 65).tolist()
    assert {0.0, 1.0, 2.0, 7.0} <= set(corners)
    assert torch.tensor(corners).diff().min() > 0.01


def test_broken_lines_of_free_features_bend_any_way_and_are_certified():
    """A free feature's own line learns what no straight one does, and the named ones stay proved."""
    torch.manual_seed(0)
    x = torch.rand(1000, 2)
    y = 5 * x[:, 0] + 4 * (6 * x[:, 1]).sin()
    errors = {}
    for free in (0, 12):
        head = PartialMonotone(2, [-5.0, 10.0], [1, 0], hidden=(), free_keypoints=free).place(x)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            head.loss(x, y).backward()
            optimizer.step()
        errors[free] = (head.eval()(x) - y).abs().mean().item()
        assert head.certify().holds
        assert not head.falsify(20_000).found
        again = from_config(json.loads(json.dumps(head.config())))
        again.load_state_dict(head.state_dict())
        assert torch.equal(again.eval()(x), head(x))
    assert errors[12] < 0.2
    assert errors[12] < errors[0] / 5


def test_named_features_rise_and_fall_as_asked():
    """By name, by position, by sequence; falling anchors change nothing about what y does."""
    names = ["carat", "colour", "clarity"]
    for monotone, given in (({"carat": 1, "clarity": -1}, names), ({0: 1, 2: -1}, None), ([1, 0, -1], None)):
        for anchors in (ANCHORS, ANCHORS[::-1]):
            head = _shaken(PartialMonotone(3, anchors, monotone, names=given, extrapolate="linear"), 0.5)
            x = torch.randn(1, 3).repeat(50, 1)
            x[:, 0] = torch.linspace(-3, 3, 50)
            assert (head(x).diff() >= 0).all()
            assert head(x)[-1] > head(x)[0]
            x[:, 0] = 0.0
            x[:, 2] = torch.linspace(-3, 3, 50)
            assert (head(x).diff() <= 0).all()
            assert head(x)[-1] < head(x)[0]
            (claim, *_) = head.certify().raise_if_failed().claims
            assert ("carat" in claim.says) == (given is not None)


def test_corners_follow_the_data_and_constants_do_no_harm():
    """`place` centres, scales and spreads the corners over quantiles; constant and tied features are fine."""
    x = torch.stack([torch.rand(500) ** 4 * 100, torch.full((500,), 7.0), torch.randint(3, (500,)).float()], 1)
    head = PartialMonotone(3, ANCHORS, [1, 1, -1]).place(x)
    assert head.net.exact.corners[0].diff().min() < 0.1 * head.net.exact.corners[0].diff().max()
    assert head(x).isfinite().all()
    assert _shaken(head).certify().holds
    with pytest.raises(FitError, match="finite features"):
        head.place(torch.full((3, 3), math.nan))
    with pytest.raises(ShapeError, match="in_features=2"):
        head.place(torch.zeros(3, 2))


def test_a_monotone_network_learns_an_interaction():
    """A product of two rising features, which no sum of terms is."""
    torch.manual_seed(0)
    x = torch.rand(2000, 2)
    y = 10 * x[:, 0] * x[:, 1]
    errors = {}
    for hidden in ((), (16, 16)):
        torch.manual_seed(1)
        head = PartialMonotone(2, [0.0, 10.0], [1, 1], hidden=hidden).place(x)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            head.loss(x, y).backward()
            optimizer.step()
        errors[hidden] = (head.eval()(x) - y).abs().mean().item()
        assert head.certify().holds
    assert errors[(16, 16)] < 0.2
    assert errors[(16, 16)] < errors[()] / 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"monotone": [0, 0, 0]}, "none but 0"),
        ({"monotone": [1, 0]}, "2 signs"),
        ({"monotone": [1, 0, 2]}, "got 2"),
        ({"monotone": {"x": 1}}, "'x'"),
        ({"monotone": {3: 1}}, "positions below 3"),
        ({"monotone": {"d": 1}, "names": ["a", "b", "c"]}, "names among"),
        ({"monotone": {"a": 1}, "names": ["a", "b"]}, "3 different names"),
        ({"monotone": [1, 0, 0], "keypoints": 0}, "sizes from 1 up"),
        ({"monotone": [1, 0, 0], "hidden": (0,)}, "sizes from 1 up"),
        ({"monotone": [1, 0, 0], "free_keypoints": -1}, "free_keypoints=-1"),
        ({"monotone": [1, 0, 0], "free_units": 0}, "free_units=0"),
    ],
)
def test_signs_that_make_no_sense_are_refused(options, says):
    """Unknown names, other signs, wrong lengths: a FitError with the fix."""
    with pytest.raises(FitError, match=says):
        PartialMonotone(3, ANCHORS, **options)


# --------------------------------------------------------------------------------------------------- calibration


def _scores(classes, rows=400, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    places = torch.rand(classes, generator=generator).cumsum(0) * 3
    return (places[labels] + noise * torch.randn(rows, generator=generator))[:, None], labels


@pytest.mark.parametrize("middle", ["median", "mean"])
@pytest.mark.parametrize("anchors", [ANCHORS, ANCHORS[::-1]], ids=["rising", "falling"])
def test_the_middle_of_a_class_gets_its_anchor(anchors, middle):
    """To the last bit, and certified."""
    scores, labels = _scores(4)
    head = AnchorCalibrator(anchors).calibrate(scores, labels, middle=middle)
    if middle == "mean":
        torch.testing.assert_close(head.knots[1], scores[labels == 1].mean())
    assert torch.equal(head(head.knots[:, None]), torch.tensor(anchors))
    assert head.certify().holds
    assert not head.falsify(10_000).found
    assert (head.missing, head.pooled) == ((), ())
    again = from_config(json.loads(json.dumps(head.config())))
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(scores), head(scores))


def test_classes_without_samples_lie_between_their_neighbours():
    """Inside in proportion to the anchors, outside by the nearest slope; and they are named."""
    scores, labels = _scores(5, noise=0.01)
    keep = (labels != 0) & (labels != 2)
    head = AnchorCalibrator([0.0, 1.0, 3.0, 4.0, 9.0]).calibrate(scores[keep], labels[keep])
    assert head.missing == (0, 2)
    k = head.knots
    torch.testing.assert_close(k[2], k[1] + (k[3] - k[1]) * 2 / 3)
    torch.testing.assert_close(k[0], k[1] - (k[3] - k[1]) / 3)


def test_classes_out_of_order_are_pooled_and_named():
    """Isotonic regression's blocks, side by side: still monotone, still exact at its knots."""
    scores = torch.tensor([0.0, 2.0, 1.9, 5.0])[:, None]
    head = AnchorCalibrator(ANCHORS).calibrate(scores, torch.arange(4))
    assert head.pooled == ((1, 2),)
    torch.testing.assert_close(head.knots[1:3].mean(), torch.tensor(1.95))
    assert (head.knots.diff() > 0).all()
    assert head.certify().holds


def test_targets_between_the_anchors_place_the_classes_too():
    """Where the isotonic regression of the targets on the scores takes an anchor's value, there is its knot."""
    torch.manual_seed(0)
    score = torch.rand(4000) * 4
    targets = 60 + score.square() / 2 + 0.05 * torch.randn(4000)
    head = AnchorCalibrator([60.5, 62.0, 64.0, 66.0]).calibrate(score[:, None], targets=targets)
    expected = (2 * (torch.tensor([60.5, 62.0, 64.0, 66.0]) - 60)).sqrt()
    torch.testing.assert_close(head.knots, expected, atol=0.05, rtol=0)
    falling = AnchorCalibrator([66.0, 64.0, 62.0, 60.5]).calibrate(-score[:, None], targets=targets)
    torch.testing.assert_close(falling.knots, -expected.flip(0), atol=0.05, rtol=0)


@settings(max_examples=100, deadline=None)
@drawn(st.lists(st.tuples(st.floats(-9, 9), st.integers(1, 5)), min_size=1, max_size=30))
def test_pooling_is_isotonic_regression(points):
    """scikit-learn's answer, block by block."""
    isotonic = pytest.importorskip("sklearn.isotonic")
    values, weights = [value for value, _ in points], [float(weight) for _, weight in points]
    mine = [value for block, value in pool(values, weights) for _ in block]
    theirs = isotonic.isotonic_regression(values, sample_weight=weights).tolist()
    assert mine == pytest.approx(theirs, abs=1e-9)


def test_several_columns_are_no_score():
    """A calibrator of bare scores says what to pass, where features came."""
    with pytest.raises(ShapeError, match=r"score=module"):
        AnchorCalibrator(ANCHORS).calibrate(torch.randn(30, 5), torch.arange(30) % 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_numbers_have_an_inverse(dtype):
    """In the head's own precision, on a line and on a circle."""
    for head in (AnchorSpline(2, [60.0, 62.0, 67.1], dtype=dtype), CircularSpline(2, [1.1, 5.0], 9.0, dtype=dtype)):
        for y in (head.anchors[-1].item(), float(head.anchors[0])):
            assert torch.equal(head.inverse(y), head.inverse(torch.tensor(y, dtype=dtype)))
        assert head.inverse(head.anchors.tolist()).tolist() == [float(k) for k in range(len(head.anchors))]


def test_a_module_gives_the_score():
    """Any frozen score: a classifier's expected class, here a linear layer."""
    score = nn.Linear(5, 1)
    x, labels = torch.randn(300, 5), None
    labels = (score(x).detach().squeeze(1) > 0).long() + (score(x).detach().squeeze(1) > 1).long()
    head = AnchorCalibrator([0.0, 5.0, 20.0], score).calibrate(x, labels)
    assert head(x).shape == (300,)
    assert (head.predict_class(x) == labels).float().mean() > 0.7
    assert head.loss(x, head.line.straight(head.latent(x)).detach()) < 1e-10
    assert head.certify().holds
    with pytest.raises(FitError, match="Linear"):
        head.config()


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        (torch.arange(4.0), torch.tensor([3, 2, 1, 0]), "rise"),
        (torch.zeros(4), torch.arange(4), "rise"),
        (torch.arange(4.0), torch.zeros(4, dtype=torch.long), "at least 2 classes"),
        (torch.arange(4.0), torch.tensor([0, 1, 2, 4]), "from 0 to 3"),
        (torch.arange(4.0), torch.tensor([0, 1, 2, -1]), "from 0 to 3"),
        (torch.arange(4.0), torch.arange(4.0), "targets="),
        (torch.arange(4.0), torch.arange(3), r"as many labels or targets, \(4,\), got \(3,\)"),
        (torch.full((4,), math.nan), torch.arange(4), "not finite"),
        (torch.zeros(0), torch.zeros(0, dtype=torch.long), "from 0 to 3"),
    ],
)
def test_scores_that_cannot_be_calibrated_are_refused(scores, labels, says):
    """Falling scores, one class, labels that are none: said, and the head is as it was."""
    head = AnchorCalibrator(ANCHORS)
    with pytest.raises(FitError, match=says):
        head.calibrate(scores[:, None], labels)
    assert torch.equal(head.knots, torch.arange(4.0))


# -------------------------------------------------------------------------------------------------------- circles


CIRCLES = [
    ([0.0, 90.0, 180.0, 270.0], 360.0, 0.0),
    ([10.0, 20.0, 200.0], 360.0, 0.0),
    ([350.0, 200.0, 20.0], 360.0, 0.0),
    ([-3.0, 0.0, 1.5], 2 * math.pi, -math.pi),
    ([-math.pi, 0.0, 1.5], 2 * math.pi, -math.pi),
    ([0.0, 1.0], 24.0, 0.0),
]


@pytest.mark.parametrize(("anchors", "period", "start"), CIRCLES, ids=str)
def test_circles_hit_their_anchors_and_close(anchors, period, start):
    """Every anchor to the last bit, no jump at the seam but by a whole period, the inverse undone; no monotonicity."""
    head = CircularSpline(3, anchors, period, start=start)
    knots = torch.arange(float(len(anchors)))
    assert torch.equal(head.curve(knots), head.anchors)
    assert torch.equal(head.curve(torch.tensor([float(len(anchors))])), head.anchors[:1])
    s = torch.linspace(0, len(anchors), 3001)
    y = head.curve(s)
    assert (y >= head.start).all()
    assert (y < head.start + period).all()
    assert head.distance(y[1:], y[:-1]).max() < 0.01 * period
    there = torch.remainder(head.inverse(y) - s + 1, len(anchors)) - 1
    assert there.abs().max() < 1e-3
    certificate = head.certify().raise_if_failed()
    assert certificate.claim("monotone") is None
    assert not head.falsify(20_000).found


@pytest.mark.parametrize(("before", "after"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_a_circle_survives_a_cast(before, after):
    """The start of a period is rounded as the anchor on it is, so that a cast puts no anchor a turn away."""
    anchors = [-180.1, -60.3, 60.2]
    head = CircularSpline(4, anchors, 360.0, start=-180.1, dtype=before).to(after)
    assert head.certify().raise_if_failed().claim("anchors as a function").bound == 0.0
    assert (head.anchors.double() - torch.tensor(anchors, dtype=torch.float64)).abs().max() < 1e-5
    again = from_config(head.config())
    again.load_state_dict(head.state_dict())
    assert again.certify() == head.certify()
    assert again.start == head.start


def test_a_circle_learns_across_its_seam():
    """Angles around 0 are learnt as well as any others; the straight way would average 359 and 1 to 180."""
    torch.manual_seed(0)
    angle = torch.rand(600) * 2 * math.pi
    x = torch.stack([angle.cos(), angle.sin(), torch.randn(600)], 1)
    targets = torch.rad2deg(angle)
    head = CircularSpline(3, [0.0, 90.0, 180.0, 270.0], 360.0)
    results = ft.fit(
        (x, targets), (x, targets), {"angle": head}, lr=0.05, epochs=40, batch_size=200, metric=head.distance,
        progress=False,
    )  # fmt: skip
    assert results["angle"].score < 2.0
    assert (results["angle"].head.predict_class(x[:4]) == (targets[:4] / 90).round().long() % 4).all()


def test_a_classifier_on_a_circle_is_read_by_its_mean_direction():
    """Half the weight on the last class and half on the first: the middle of the gap between them."""
    head = CircularSpline(4, [0.0, 90.0, 180.0, 270.0], 360.0, latent="classifier")
    with torch.no_grad():
        head.net[0].weight.copy_(20 * torch.eye(4))
        head.net[0].bias.zero_()
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(head(x), torch.tensor([315.0, 45.0, 180.0]), atol=1e-3, rtol=0)
    again = from_config(head.config())
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(x), head(x))


@pytest.mark.parametrize(
    ("anchors", "period", "error", "says"),
    [
        ([0.0, 180.0, 360.0], 360.0, AnchorError, "once only"),
        ([-10.0, 180.0], 360.0, AnchorError, "start=-10.0"),
        ([0.0, 180.0], 0.0, FitError, "period > 0"),
        ([0.0, 180.0], math.nan, FitError, "period > 0"),
    ],
)
def test_circles_that_do_not_close_are_refused(anchors, period, error, says):
    """The first class given twice, anchors outside one period, no period."""
    with pytest.raises(error, match=says):
        CircularSpline(3, anchors, period)


# -------------------------------------------------------------------------------------------------- several targets


def _several():
    return MultiHead({"pitch": AnchorSpline(4, ANCHORS), "age": CornHead(4, [9.0, 3.0, 0.0])})


def test_several_targets_are_columns():
    """Each column is its head's answer, the loss the sum of theirs."""
    head, x = _several(), torch.randn(7, 4)
    assert torch.equal(head(x), torch.stack([head.heads["pitch"](x), head.heads["age"](x)], 1))
    targets = torch.stack([torch.full((7,), 61.0), torch.full((7,), 3.0)], 1)
    expected = head.heads["pitch"].loss(x, targets[:, 0]) + head.heads["age"].loss(x, targets[:, 1])
    torch.testing.assert_close(head.loss(x, targets), expected)
    assert head.names == ("pitch", "age")
    with pytest.raises(FitError, match=r"one column for each of pitch, age, got \(7,\)"):
        head.loss(x, targets[:, 0])


def test_several_targets_are_certified_and_described_by_name():
    """Claims carry the target's name; the description rebuilds all."""
    head = _several()
    variables = {claim.variable for claim in head.certify().raise_if_failed().claims}
    assert variables == {"pitch: latent", "age: rank logits"}
    assert not head.falsify(10_000).found
    again = from_config(json.loads(json.dumps(head.config())))
    again.load_state_dict(head.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(again(x), head(x))


def test_several_targets_train_together():
    """In ft.fit, as any head."""
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    targets = torch.stack([63.0 + x[:, 0], 3.0 + x[:, 1]], 1)
    results = ft.fit(
        (x, targets), (x, targets), {"both": _several()}, lr=0.03, epochs=30, batch_size=64, progress=False
    )
    assert results["both"].score < 0.8


@pytest.mark.parametrize("heads", [{}, {"a": nn.Linear(3, 1)}, {"a": MultiHead({"b": AnchorSpline(3, [0.0, 1.0])})}])
def test_what_are_no_heads_is_refused(heads):
    """No head, a module without the interface, or heads of several targets."""
    with pytest.raises(FitError, match="of one target each, by target name"):
        MultiHead(heads)


@pytest.mark.parametrize("name", ["a.b", "items", "forward", ""])
def test_names_that_a_module_cannot_have_are_refused(name):
    """Targets are named by the user; torch keeps some names to itself."""
    with pytest.raises(FitError, match="target names"):
        MultiHead({name: AnchorSpline(3, [0.0, 1.0])})
