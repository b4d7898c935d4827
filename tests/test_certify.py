"""What is certified holds at every float; what does not hold is never certified, and is named."""

import copy
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from forethought.errors import BundleError, CertificateError, ForethoughtError
from forethought.heads import (
    AnchorCalibrator,
    AnchorSpline,
    Certificate,
    CircularSpline,
    CornHead,
    CumulativeLink,
    HistogramHead,
    MLPHead,
    MultiHead,
    PartialMonotone,
    PrototypeExact,
    from_config,
    steady,
)
from forethought.heads.falsification import Walk, search
from forethought.heads.rational import bend, gentle_slopes, unbend

RISING = [60.0, 61.5, 62.0, 67.25, 67.5]
FALLING = [9.0, 4.0, 3.5, -20.0]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Batches this small gain nothing from threads and wait long for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _certifiable():
    """Every kind and variant of which something is proved, trained ones too."""
    for anchors in (RISING, FALLING):
        for between in ("linear", "rational"):
            for knots in ("fixed", "trainable"):
                yield AnchorSpline(6, anchors, between=between, knots=knots)
            yield AnchorSpline(6, anchors, "classifier", between=between)
            yield AnchorSpline(6, anchors, "mlp", between=between, extrapolate="linear", dtype=torch.float64)
        yield CumulativeLink(6, anchors)
        yield CumulativeLink(6, anchors, "mlp", between="rational", extrapolate="linear", objective="likelihood")
        yield CumulativeLink(6, anchors, decode="expectation")
        yield CumulativeLink(6, anchors[:2], decode="expectation", dtype=torch.float64)
        yield CornHead(6, anchors)
        yield CornHead(6, anchors, hidden=(4,), dtype=torch.float64)
        yield PartialMonotone(6, anchors, [1, 0, 0, -1, 1, 0], hidden=())
        yield PartialMonotone(6, anchors, {1: -1}, hidden=(5, 4), keypoints=3, between="rational")
        yield PartialMonotone(6, anchors, {1: -1}, hidden=(4,), free_keypoints=4)
        yield PartialMonotone(6, anchors, [1, -1, 1, 1, 1, 1], hidden=(3,), extrapolate="linear", dtype=torch.float64)
        yield PrototypeExact(6, anchors, torch.randn(len(anchors), 6))
        yield PrototypeExact(6, anchors, torch.randn(len(anchors), 6) * 50 + 900, dtype=torch.float64)
        yield MultiHead({"a": AnchorSpline(6, anchors), "b": CornHead(6, anchors[:3])})
        yield CircularSpline(6, anchors, 99.0, start=-30.0)
        yield CircularSpline(6, [x / 60 for x in anchors], 2 * math.pi, start=-1.0, latent="classifier")
        yield HistogramHead(6, anchors)
        yield HistogramHead(6, anchors, targets="hl-gauss", activation="sigmoid")
        yield HistogramHead(6, anchors, trim=0.25)
        yield HistogramHead(6, anchors, targets="hl-gauss", trim=0.49, dtype=torch.float64)


torch.manual_seed(0)
HEADS = list(_certifiable())
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda h: f"{h.kind}-{HEADS.index(h)}")


def _shaken(head, size):
    """The head with noise of the given size on every parameter: any weights must be certified, not only fresh ones."""
    head = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return head


# --------------------------------------------------------------------------------------------- what holds


@every_head
def test_what_is_certified_is_not_falsified(head):
    """For fresh and for shaken weights, in a hundred thousand inputs each."""
    for size in (0.0, 0.3, 3.0):
        shaken = _shaken(head, size)
        certificate = shaken.certify().raise_if_failed()
        assert certificate.holds
        assert shaken.falsify(60_000, seed=int(size * 10)).counterexamples == ()
        assert (certificate.claim("monotone") is None) == isinstance(head, CircularSpline)


SPIKES = [1e-45, 1e-38, 1e-20, 1e10, -1e10, 1e18, -1e30, 3e38, -3e38]


def _spiked(seed):
    """A head of any kind, over anchors of any size, with some weights of any size, cast and loaded by chance."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    classes = draw.choice([2, 3, 12])
    anchors = (torch.rand(classes).double() + 0.1).cumsum(0) * 10 ** draw.uniform(-6, 6) + draw.choice([0, -7.0])
    beyond = {"extrapolate": draw.choice(["clamp", "linear"]), "between": draw.choice(["linear", "rational"])}
    made = {
        "spline": lambda: AnchorSpline(4, anchors, knots="trainable", **beyond),
        "link": lambda: CumulativeLink(4, anchors, **beyond),
        "chain": lambda: CornHead(4, anchors),
        "histogram": lambda: HistogramHead(4, anchors, targets="hl-gauss"),
        "prototype": lambda: PrototypeExact(classes + 2, anchors, torch.randn(classes, classes + 2)),
        "partial": lambda: PartialMonotone(4, anchors, [1, -1, 0, 0], hidden=draw.choice([(), (4,)]), **beyond),
        "circle": lambda: CircularSpline(
            4, anchors, 2 * float(anchors[-1] - anchors[0]), start=float(anchors[0].float())
        ),
    }
    head = made[draw.choice(list(made))]()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(draw.choice([0, 1, 30]) * torch.randn_like(parameter))
            if parameter.numel() and draw.random() < 0.2:
                parameter.view(-1)[draw.randrange(parameter.numel())] = draw.choice(SPIKES)
    head = draw.choice([lambda h: h, torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])(head)
    if draw.random() < 0.5:
        again = from_config(head.config())
        again.load_state_dict(head.state_dict())
        head = again
    return head.eval()


def test_what_is_certified_of_spiked_weights_is_not_falsified():
    """Weights from 1e-45 to 3e38, in any dtype, cast and loaded: what is still certified is never refuted."""
    held = 0
    for seed in range(80):
        head = _spiked(seed)
        if head.certify().holds:
            held += 1
            assert head.falsify(1500, seed).counterexamples == (), seed
    assert held > 40


@pytest.mark.slow
@pytest.mark.parametrize("between", ["linear", "rational"])
def test_millions_of_neighbouring_floats_keep_their_order(between):
    """Random curves over many magnitudes, three million inputs: no step from a float to the next goes the wrong way."""
    for seed in range(30):
        torch.manual_seed(seed)
        anchors = torch.randn(2 + seed).mul(10.0 ** (seed % 9 - 3)).sort().values
        head = _shaken(AnchorSpline(2, anchors, knots="trainable", between=between), 4.0)
        assert head.certify().holds
        assert head.falsify(100_000, seed).counterexamples == ()


@every_head
def test_certificate_names_weights_dtype_and_scope(head):
    """It says of which weights, in which arithmetic and for which inputs, and survives JSON."""
    certificate = head.certify()
    runs_in = torch.float64 if isinstance(head, PrototypeExact) else next(head.parameters()).dtype
    assert certificate.dtype == str(runs_in).removeprefix("torch.")
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert json.loads(certificate.to_json())["weights"] == certificate.weights
    assert all(claim.scope and claim.says and claim.why for claim in certificate.claims)
    assert certificate.weights in str(certificate) or certificate.weights[:16] in str(certificate)


@every_head
def test_certificate_is_for_these_weights_and_options(head):
    """The same head is known again after a trip through config and state; a changed weight, anchor or option is not."""
    certificate = head.certify()
    again = from_config(head.config())
    again.load_state_dict(head.state_dict())
    assert again.certify() == certificate
    changed = _shaken(head, 1e-3)
    assert changed.certify().weights != certificate.weights
    if not isinstance(head, MultiHead):
        other = from_config({**head.config(), "anchors": [x * 0.9 for x in head.config()["anchors"]]})
        assert other.certify().weights != certificate.weights


@every_head
def test_certified_again_after_a_cast(head):
    """half, bfloat16, double: float32 or wider is what runs, and what is certified."""
    for cast in (torch.float16, torch.bfloat16, torch.float64):
        narrow = _shaken(head, 0.1).to(cast)
        certificate = narrow.certify().raise_if_failed()
        assert certificate.dtype in ("float32", "float64")
        assert narrow.falsify(3_000).counterexamples == ()


def test_anchors_are_hit_to_the_last_bit_and_the_certificate_says_so():
    """bound == 0.0 for curves; for an expectation, how far it is where all weight is on one class."""
    for anchors in (RISING, FALLING, torch.randn(50).sort().values):
        claim = AnchorSpline(3, anchors, between="rational").certify().claim("anchors as a function", "latent")
        assert claim.holds
        assert claim.bound == 0.0
        claim = HistogramHead(3, anchors).certify().claim("anchors at one-hot vertices")
        assert claim.holds
        assert claim.bound < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_a_cast_did_to_the_anchors_is_said(dtype):
    """A certificate says how far anchors as held are from the numbers given; of those held exactly it says nothing."""
    anchors = [440.1, 441.2, 443.3]
    for head in (AnchorSpline(3, anchors, dtype=torch.float64), CumulativeLink(3, anchors, dtype=torch.float64)):
        assert "numbers given" not in str(head.certify())
        claim = head.to(dtype).certify().raise_if_failed().claim("anchors as a function")
        off = (head.anchors.double() - torch.tensor(anchors, dtype=torch.float64)).abs().max().item()
        assert (
            f"held in {str(head.anchors.dtype)[6:]}, within {off:.3g} of" in claim.why
            if off
            else "given" not in claim.why
        )
    head.double().load_state_dict(CumulativeLink(3, [1.0, 2.0, 3.0], dtype=torch.float64).state_dict())
    assert "numbers given" not in str(head.certify())  # others were loaded: nothing is known of what these were


def test_weights_that_are_not_there_are_not_certified():
    """On the meta device there is nothing to prove."""
    with pytest.raises(CertificateError, match=r"'line\.scale\.values' on the meta device"):
        AnchorSpline(3, [1.0, 2.0]).to("meta").certify()


def test_certifying_leaves_the_head_as_it_was():
    """Modes, gradients and the global random state stay."""
    head = AnchorSpline(6, RISING, "mlp", dropout=0.5).train()
    state = torch.get_rng_state()
    head.certify()
    head.falsify(2_000)
    assert all(module.training for module in head.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in head.parameters())


# ---------------------------------------------------------------------------------------- what does not hold


class _Bent(AnchorSpline):
    """A subclass whose curve dips by one unit in the last place at one float."""

    def curve(self, s):
        y = super().curve(s)
        return torch.where(s == 1.25, torch.nextafter(y, torch.zeros_like(y)), y)


def _replace_curve(head):
    whole = head.curve
    head.curve = lambda s: whole(-s)


def _scatter_anchors(head):
    head.scale.values[[1, 2]] = head.scale.values[[2, 1]]


def _break(change, make=lambda: AnchorSpline(3, RISING, knots="trainable")):
    head = make()
    with torch.no_grad():
        change(head)
    return head


BROKEN = {
    "a subclass": lambda: _Bent(3, RISING),
    "a method of the instance": lambda: _break(_replace_curve),
    "a method of its line": lambda: _break(lambda h: setattr(h.line, "straight", lambda s: -s)),
    "another line": lambda: _break(lambda h: setattr(h, "line", _Line(RISING))),
    "anchors out of order": lambda: _break(_scatter_anchors),
    "an anchor that is no number": lambda: _break(lambda h: h.scale.values.fill_(math.nan)),
    "equal anchors": lambda: _break(lambda h: h.scale.values.fill_(1.0)),
    "an infinite anchor": lambda: _break(lambda h: h.scale.values[-1:].fill_(math.inf)),
    "a network that is not a number": lambda: _break(
        lambda h: h.latent_net.net[0].weight.view(-1)[:1].fill_(math.nan), lambda: AnchorSpline(3, RISING)
    ),
    "knots that are no numbers": lambda: _break(lambda h: h.line.steps.fill_(math.nan)),
    "infinite knots": lambda: _break(lambda h: h.line.start.fill_(math.inf)),
    "knots that rounding makes equal": lambda: _break(lambda h: h.line.start.fill_(1e9)),
    "a sign that is none": lambda: _break(lambda h: setattr(h.scale, "sign", math.nan)),
    "a hook": lambda: _break(lambda h: h.register_forward_hook(lambda m, a, y: -y)),
    "a hook before": lambda: _break(lambda h: h.register_forward_pre_hook(lambda m, a: (-a[0],))),
    "a hook on the line": lambda: _break(lambda h: h.line.register_forward_hook(lambda m, a, y: -y)),
    "slopes that are no numbers": lambda: _break(
        lambda h: h.line.bends.fill_(math.nan), lambda: AnchorSpline(3, RISING, knots="trainable", between="rational")
    ),
    "infinite slopes": lambda: _break(
        lambda h: h.line.bends.fill_(math.inf), lambda: AnchorSpline(3, RISING, knots="trainable", between="rational")
    ),
    "averages near the peak": lambda: HistogramHead(3, range(40), decode="local"),
    "a link that falls": lambda: _break(
        lambda h: h.sharpness_raw.fill_(math.nan), lambda: CumulativeLink(3, RISING, decode="expectation")
    ),
    "thresholds that are no numbers": lambda: _break(
        lambda h: h.line.start.fill_(math.nan), lambda: CumulativeLink(3, RISING)
    ),
    "thresholds at infinity": lambda: _break(
        lambda h: h.line.start.fill_(math.inf), lambda: CumulativeLink(3, RISING, decode="expectation")
    ),
    "the classes of a chain out of order": lambda: _break(_scatter_anchors, lambda: CornHead(3, RISING)),
    "the classes of a histogram out of order": lambda: _break(_scatter_anchors, lambda: HistogramHead(3, RISING)),
    "named features with a weight that is no number": lambda: _break(
        lambda h: h.net.rising[1].fill_(math.nan), lambda: PartialMonotone(3, RISING, [1, 0, 0])
    ),
    "free features with infinite weights": lambda: _break(
        lambda h: h.net.straight.fill_(math.inf), lambda: PartialMonotone(3, RISING, [1, 0, 0])
    ),
    "weights so large that sums overflow": lambda: _break(
        lambda h: h.net.offsets[0].fill_(3e38), lambda: PartialMonotone(3, RISING, [1, 0, 0])
    ),
    "corners of a named feature out of order": lambda: _break(
        lambda h: h.net.exact.corners.copy_(h.net.exact.corners.flip(1)), lambda: PartialMonotone(3, RISING, [1, 0, 0])
    ),
    "corners of a free feature that are one": lambda: _break(
        lambda h: h.net.exact.free_corners.fill_(0.0), lambda: PartialMonotone(3, RISING, [1, 0, 0], free_keypoints=3)
    ),
    "lines and layers so steep that their product overflows": lambda: _break(
        lambda h: [p.fill_(9e19) for p in (h.net.tails, *h.net.rising)], lambda: PartialMonotone(3, RISING, [1, -1, 0])
    ),
    "lines and sums of free features so steep that their product overflows": lambda: _break(
        lambda h: [p.fill_(9e19) for p in (h.net.bends, h.net.straight)],
        lambda: PartialMonotone(3, RISING, [1, 0, 0], free_keypoints=3),
    ),
    "a negative spread": lambda: _break(
        lambda h: h.net.exact.spread.neg_(), lambda: PartialMonotone(3, RISING, [1, 0, 0])
    ),
    "another network": lambda: _break(
        lambda h: setattr(h, "net", nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))),
        lambda: PartialMonotone(3, RISING, [1, 0, 0]),
    ),
    "a network's own method": lambda: _break(
        lambda h: setattr(h.net, "_bent", lambda x: -x), lambda: PartialMonotone(3, RISING, [1, 0, 0])
    ),
    "moved prototypes": lambda: _break(
        lambda h: h.exact.prototypes.add_(0.1), lambda: PrototypeExact(6, RISING, torch.eye(5, 6))
    ),
    "constraints that were trained away": lambda: _break(
        lambda h: (h.exact.basis.zero_(), h.direction.fill_(0.1)), lambda: PrototypeExact(6, RISING, torch.eye(5, 6))
    ),
    "weights so large that no prototype is near its knot": lambda: _break(
        lambda h: h.direction.copy_(torch.randn(7) * 1e15), lambda: PrototypeExact(6, RISING, torch.eye(5, 6))
    ),
    "a classifier whose expected class is turned round by a hook": lambda: _break(
        lambda h: h.latent_net.register_forward_hook(lambda m, a, y: 4 - y),
        lambda: AnchorSpline(3, RISING, "classifier"),
    ),
    "a classifier whose expected class is another": lambda: _break(
        lambda h: setattr(h.latent_net, "forward", lambda x: -x[:, 0]), lambda: AnchorSpline(3, RISING, "classifier")
    ),
    "ends so flat that infinity times their slope is no number": lambda: _break(
        lambda h: h.line.steps.fill_(1e20),
        lambda: AnchorSpline(3, [0.0, 6e-39], knots="trainable", extrapolate="linear"),
    ),
    "weights that float16 made infinite": lambda: _break(
        lambda h: h.net.bends.fill_(-1e5), lambda: PartialMonotone(3, RISING, [1, 0, 0], free_keypoints=3)
    ).half(),
    "one of several": lambda: MultiHead({"a": AnchorSpline(3, RISING), "b": BROKEN["anchors out of order"]()}),
    "a calibrator out of order": lambda: _break(lambda h: h.line.places.neg_(), lambda: AnchorCalibrator(RISING)),
    "a circle out of order": lambda: _break(_scatter_anchors, lambda: CircularSpline(3, RISING, 99.0)),
    "a free network": lambda: MLPHead(3, RISING),
}


class _Line(nn.Module):
    """Has what a line has, and goes the wrong way."""

    def __init__(self, anchors):
        super().__init__()
        self.real = AnchorSpline(1, anchors).line

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("real", "forward") else getattr(self.real, name)

    def forward(self, s):
        return -self.real(s)


def test_weights_that_multiply_up_to_infinity_are_refused_by_the_proof_and_not_only_by_the_search():
    """Two named features that go to opposite infinities add up to no number: the claim says why, without an example."""
    for name in ("lines and layers so steep that their product overflows", "weights so large that sums overflow"):
        assert "above 1e+09" in str(BROKEN[name]().net.against())


def test_flat_ends_are_refused_by_the_proof_and_not_only_by_the_search():
    """A slope that underflows to 0 is named, whatever the search happens to try."""
    (against, *_) = BROKEN["ends so flat that infinity times their slope is no number"]().claims()
    assert against.why == "slopes of the ends[0] is 0.0"


def test_what_is_said_of_a_broken_latent_is_only_what_rests_on_it():
    """The curve is still proved along whatever latent there is; that y rises with a class's weight is not."""
    claims = BROKEN["a classifier whose expected class is turned round by a hook"]().certify().claims
    assert [(c.what, c.variable) for c in claims if not c.holds] == [("monotone", "exceedance")]


def test_a_certificate_says_when_subnormal_numbers_are_taken_for_zero():
    """Under flush_denormal it names that arithmetic, holds there, and is for the same weights."""
    head = CumulativeLink(3, [0.0, 2e-38, 7e-38], extrapolate="linear")
    usual = head.certify()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        flushed = head.certify()
        found = head.falsify(20_000).found
    finally:
        torch.set_flush_denormal(False)
    assert (flushed.holds, found, flushed.weights) == (True, False, usual.weights)
    assert "subnormal" in flushed.arithmetic
    assert "subnormal" not in usual.arithmetic


@pytest.mark.parametrize("make", [AnchorSpline, CumulativeLink, CornHead, HistogramHead])
def test_modes_of_the_caller_change_no_certificate(make):
    """In inference mode, made there or before, and under another default device: the same claims, none broken."""
    head = make(3, RISING)
    usual = head.certify()
    with torch.inference_mode():
        assert head.certify() == usual
        assert not head.falsify(2_000).found
        assert make(3, RISING).certify().holds
    with torch.device("meta"):
        assert head.certify() == usual
        assert not head.falsify(2_000).found


@pytest.mark.parametrize("name", BROKEN)
def test_no_broken_head_is_certified(name):
    """Broken weights, code, hooks and kinds: the certificate says that it does not hold, and what is the matter."""
    head = BROKEN[name]()
    certificate = head.certify()
    assert not certificate.holds
    with pytest.raises(CertificateError, match="Cannot certify head"):
        certificate.raise_if_failed()
    assert all(claim.violation or claim.why for claim in certificate.claims if not claim.holds)
    assert Certificate.from_json(certificate.to_json()) == certificate


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("anchors out of order", r"anchors\[2\] = 61.5 is not above anchors\[1\] = 62.0"),
        ("knots that are no numbers", r"knots\[1\] is nan"),
        ("knots that rounding makes equal", r"knots\[1\] = 1000000000.0 is not above"),
        ("a method of the instance", "'curve' was replaced on this AnchorSpline"),
        ("a subclass", "whose code was not proved"),
        ("a hook", "hook"),
        ("averages near the peak", "give 38"),
        ("a free network", "something that can be proved"),
    ],
)
def test_the_first_violation_is_named(name, says):
    """The error tells which number, method or case it is."""
    with pytest.raises(CertificateError, match=says):
        BROKEN[name]().certify().raise_if_failed()


def test_averages_near_the_peak_jump_and_the_case_is_shown():
    """Weight moves up, the strongest class changes, y falls by far more than rounding."""
    head = HistogramHead(3, range(40), decode="local")
    claim, stays, met = head.certify().claims
    assert head.falsify(20_000).found
    assert (stays.what, stays.holds) == ("range", True)
    assert (met.what, met.holds, met.bound) == ("anchors at one-hot vertices", True, 0.0)
    before, after = (float(part.split()[0].strip(",")) for part in claim.violation.split(" give ")[1:])
    assert after < before - 1


def test_a_broken_function_put_on_the_class_is_seen(monkeypatch):
    """Code from elsewhere in place of a method of ours."""
    monkeypatch.setattr(AnchorSpline, "curve", lambda self, s: -self.line(s))
    assert "'curve'" in AnchorSpline(3, RISING).certify().claims[0].why


def test_a_hook_on_every_module_is_seen():
    """Global hooks may change what any module gives."""
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: y)
    try:
        assert not AnchorSpline(3, RISING).certify().holds
    finally:
        handle.remove()
    assert AnchorSpline(3, RISING).certify().holds


def test_other_text_is_no_certificate():
    """from_json refuses what to_json did not write."""
    for text in ("", "[]", "{}", "null", '{"claims": [1]}', AnchorSpline(3, RISING).certify().to_json()[:-9]):
        with pytest.raises(BundleError, match="Cannot read certificate"):
            Certificate.from_json(text)


# ------------------------------------------------------------------------------------- the search itself


def _walk(function, signs=(1.0,), places=None, dtype=torch.float32, **options):
    width = len(signs)
    places = torch.zeros(1, width, dtype=dtype) if places is None else places
    return Walk("x", function, places, torch.tensor(signs), **options)


PLANTED = {
    "falls everywhere": lambda x: -x[:, 0],
    "falls in the far": lambda x: torch.where(x[:, 0] > 1e6, -x[:, 0], x[:, 0]),
    "falls between small numbers": lambda x: torch.where(x[:, 0].abs() < 1e-20, -x[:, 0], x[:, 0]),
    "falls slightly, somewhere": lambda x: x[:, 0] + 0.5 * torch.sin(3 * x[:, 0]),
    "a dip of one float at the place": lambda x: torch.where(x[:, 0] == 0, torch.full_like(x[:, 0], -1e-30), x[:, 0]),
    "overshoots before a knot": lambda x: torch.where(x[:, 0] < 1, x[:, 0] * (1 + 2**-22), x[:, 0]),
    "gives no number": lambda x: torch.where(x[:, 0] > 2, math.nan, x[:, 0]),
    "depends on the place in the batch": lambda x: x[:, 0] + 1e-6 * (torch.arange(len(x)) % 2),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_wrong_step_is_found(name):
    """The search finds wrong steps of every size in a hundred thousand inputs."""
    walk = _walk(PLANTED[name], places=torch.tensor([[0.0], [1.0]]))
    result = search([walk], [], 100_000)
    (case,) = result.counterexamples
    assert case.what == "monotone"
    assert result.found
    assert not case.y_after >= case.y_before
    assert str(case)


def test_only_what_may_rise_is_walked():
    """A variable of which nothing is said is held; one that may not rise is walked downwards."""
    assert search([_walk(lambda x: x[:, 0] - 5 * x[:, 1], (1.0, 0.0))], [], 50_000).counterexamples == ()
    assert search([_walk(lambda x: x[:, 0] - 5 * x[:, 1], (1.0, -1.0))], [], 50_000).counterexamples == ()
    (case,) = search([_walk(lambda x: x[:, 0] - 5 * x[:, 1], (1.0, 1.0))], [], 50_000).counterexamples
    assert case.before[0] == case.after[0] or case.before[1] < case.after[1]


def test_values_out_of_range_are_found():
    """Where a range is claimed, one output beyond it is enough."""
    (case,) = search([_walk(lambda x: x[:, 0].clamp(max=3.5), within=(-math.inf, 3.0))], [], 50_000).counterexamples
    assert (case.what, case.y_before) == ("range", 3.0)


def test_the_search_repeats_itself():
    """The same seed, the same case."""
    walk = _walk(PLANTED["falls slightly, somewhere"])
    assert search([walk], [], 20_000, 3) == search([walk], [], 20_000, 3)


# ------------------------------------------------------------------------------------ steady functions

finite32 = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=300, deadline=None)
@given(finite32, st.sampled_from([torch.float32, torch.float64]))
def test_steady_functions_never_step_back(x, dtype):
    """exp, sigmoid, softsign: from any float to the next."""
    here = torch.tensor([x], dtype=dtype)
    following = torch.nextafter(here, torch.tensor([math.inf], dtype=dtype))
    for function in (steady.exp, steady.sigmoid, steady.softsign):
        assert function(following) >= function(here)


def test_steady_functions_are_what_they_are_called():
    """Within a few units in the last place of torch's own, gradients too; NaN stays NaN."""
    for dtype, off in ((torch.float32, 3e-7), (torch.float64, 2e-15)):
        x = torch.linspace(-30, 30, 2001, dtype=dtype, requires_grad=True)
        for ours, theirs in ((steady.sigmoid, torch.sigmoid), (steady.softsign, nn.functional.softsign)):
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=off)
            mine, reference = (torch.autograd.grad(f(x).sum(), x)[0] for f in (ours, theirs))
            torch.testing.assert_close(mine, reference, rtol=0, atol=2 * off)
        small = x[(x > -10) & (x < 10)].detach()
        torch.testing.assert_close(steady.exp(small), small.exp(), rtol=10 * off, atol=0)
        assert steady.sigmoid(torch.tensor([math.nan, -math.inf, math.inf], dtype=dtype)).isnan().tolist() == [
            True, False, False,
        ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(0, 10_000))
def test_total_is_a_sum_in_the_same_order_for_every_row(width, rows, seed):
    """The same row gives the same bits in any batch, and is never lower for a higher term."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    torch.testing.assert_close(steady.total(x), x.sum(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(steady.total(x[:1]), steady.total(x)[:1])
    if width:
        up = x.clone()
        up[:, seed % width] = torch.nextafter(x[:, seed % width], torch.tensor(math.inf))
        assert (steady.total(up) >= steady.total(x)).all()
    weights = torch.randn(3, width, generator=generator)
    torch.testing.assert_close(steady.dot(x, weights), x @ weights.T, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- smooth pieces


def _random_points(seed):
    generator = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(2, 12, (), generator=generator))
    knots = (torch.rand(classes, generator=generator, dtype=torch.float64) + 0.05).cumsum(0)
    values = torch.randn(classes, generator=generator, dtype=torch.float64).sort().values * 10.0 ** (seed % 5 - 2)
    return knots, values, generator


def test_smooth_pieces_are_the_textbook_ones():
    """The monotone way of writing them changes no value: Gregory and Delbourgo's quotient, any slopes."""
    for seed in range(100):
        k, v, generator = _random_points(seed)
        slopes = torch.randn(len(k), generator=generator, dtype=torch.float64).exp() * (v.diff() / k.diff()).mean()
        x = k[0] + (k[-1] - k[0]) * torch.rand(200, generator=generator, dtype=torch.float64)
        i = (torch.searchsorted(k, x, right=True) - 1).clamp(max=len(k) - 2)
        h, height = k.diff()[i], v.diff()[i]
        m, z = height / h, (x - k[i]) / h
        d, e, q = slopes[i], slopes[i + 1], z * (1 - z)
        expected = v[i] + height * (m * z * z + d * q) / (m + (d + e - 2 * m) * q)
        y = bend(x, k, v, slopes)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12 * float(v.abs().max()))
        torch.testing.assert_close(bend(unbend(y, k, v, slopes), k, v, slopes), y, rtol=1e-12, atol=1e-13)
        assert torch.equal(unbend(v, k, v, slopes), k)
        assert torch.equal(bend(k, k, v, slopes), v)


def test_default_slopes_are_those_of_pchip():
    """SciPy's PCHIP derivative at the knots, ends included."""
    interpolate = pytest.importorskip("scipy.interpolate")
    for seed in range(100):
        k, v, _ = _random_points(seed)
        if len(k) > 2:
            expected = interpolate.PchipInterpolator(k.numpy(), v.numpy()).derivative()(k.numpy())
            torch.testing.assert_close(gentle_slopes(k, v), torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def test_smooth_pieces_have_no_corner():
    """The slope on both sides of a knot is the same; of the broken line it is not."""
    for between, tolerance in (("rational", 0.02), ("linear", None)):
        head = AnchorSpline(1, [0.0, 1.0, 5.0, 6.0], between=between, dtype=torch.float64)
        x = torch.tensor([1 - 1e-4, 1 + 1e-4, 2 - 1e-4, 2 + 1e-4], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(head.curve(x).sum(), x)
        jumps = (slope[1::2] - slope[::2]).abs().max()
        assert jumps < tolerance if tolerance else jumps > 1


def test_even_anchors_give_a_straight_line_either_way():
    """PCHIP's slopes of a straight line are its slope."""
    x = torch.linspace(-1, 5, 301, dtype=torch.float64)
    heads = [AnchorSpline(1, [0.0, 2.0, 4.0, 6.0, 8.0], between=b, dtype=torch.float64) for b in ("linear", "rational")]
    torch.testing.assert_close(heads[0].curve(x), heads[1].curve(x))


def test_gradients_are_finite_at_and_beyond_every_knot():
    """Smooth pieces with trained slopes: no NaN from 0 * inf at knots, ends and infinities."""
    for seed in range(20):
        torch.manual_seed(seed)
        head = _shaken(AnchorSpline(2, RISING, knots="trainable", between="rational"), 3.0)
        s = torch.cat([head.knots.detach(), torch.tensor([-math.inf, math.inf, 1e38, 0.3])]).requires_grad_()
        head.curve(s).sum().backward()
        assert s.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in head.line.parameters())


def test_unknown_pieces_are_refused():
    """A typed error names the choices."""
    with pytest.raises(ForethoughtError, match="'linear', 'rational'"):
        AnchorSpline(3, RISING, between="cubic")
