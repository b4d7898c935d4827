"""A head gives the same answers in another runtime, and what is proved of it is seen to hold there."""

import copy
import json

import pytest
import torch
from torch import nn

from forethought.errors import BundleError, FitError, MissingExtraError
from forethought.heads import (
    AnchorCalibrator,
    AnchorSpline,
    Certificate,
    CircularSpline,
    Conformal,
    CornHead,
    CumulativeLink,
    HistogramHead,
    MLPHead,
    MultiHead,
    PartialMonotone,
    PrototypeExact,
    conformalize,
    export,
    exported_program,
    from_config,
    onnx_runtime,
)
from forethought.heads.exporting import _compared

ANCHORS = [60.0, 61.5, 62.0, 67.25]
torch.manual_seed(0)
HEADS = {
    "spline": AnchorSpline(6, ANCHORS),
    "smooth": AnchorSpline(6, ANCHORS[::-1], "classifier", knots="trainable", between="rational"),
    "straight on": AnchorSpline(6, ANCHORS, "mlp", extrapolate="linear", dropout=0.3),
    "cumulative": CumulativeLink(6, ANCHORS),
    "expectation": CumulativeLink(6, ANCHORS, decode="expectation"),
    "corn": CornHead(6, ANCHORS),
    "histogram": HistogramHead(6, ANCHORS, targets="hl-gauss"),
    "trimmed": HistogramHead(6, ANCHORS, targets="hl-gauss", trim=0.25, correction=2),
    "local": HistogramHead(6, ANCHORS, decode="local", window=1),
    "prototype": PrototypeExact(6, ANCHORS, torch.randn(4, 6)),
    "partial": PartialMonotone(6, ANCHORS, [1, 0, 0, -1, 0, 0], hidden=(4,), keypoints=3),
    "partial, all bent": PartialMonotone(6, ANCHORS, [1, 0, 0, -1, 0, 0], hidden=(4,), keypoints=3, free_keypoints=2),
    "circle": CircularSpline(6, ANCHORS, 360.0),
    "calibrator": AnchorCalibrator(ANCHORS),
    "mlp": MLPHead(6, ANCHORS),
    "several": MultiHead({"a": AnchorSpline(6, ANCHORS), "b": CornHead(6, [3.0, 2.0, 0.0])}),
}
every_head = pytest.mark.parametrize("name", HEADS)


def test_what_is_no_head_is_not_exported(tmp_path):
    """An assembled model, or any other module, is told to give its head."""
    with pytest.raises(FitError, match=r"full\.heads\['head'\]"):
        export(nn.Linear(3, 1), tmp_path / "head.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [k for k in HEADS if k not in ("calibrator", "several")])
def test_half_precision_is_baked_without_rounding(kind, dtype):
    """What is computed in float32 from half-precision parameters is held in float32: the same bits as the head's."""
    head = copy.deepcopy(HEADS[kind]).to(dtype).eval()
    x = torch.randn(200, 6)
    assert torch.equal(head.baked()(x), head(x))


def test_answers_that_are_no_numbers_are_not_compared(tmp_path):
    """What the head gives for the example has to be finite, before a file is blamed."""
    with pytest.raises(BundleError, match="expected finite answers to the example"):
        export(AnchorSpline(3, ANCHORS), tmp_path / "head.pt2", example=torch.full((4, 3), torch.nan))


def test_the_number_of_rows_is_free_whatever_the_example(tmp_path):
    """An example of as many rows as a layer is wide, or of one, is no constant; nor where a proof is carried over."""
    head = PartialMonotone(4, ANCHORS, [1, -1, 0, 0], hidden=(4,), keypoints=3).eval()
    for rows in (1, 4):
        assert export(head, tmp_path / "head.pt2", example=torch.randn(rows, 4)).largest_difference == 0
    assert head.certify(through=exported_program, tries=500).holds


@every_head
def test_torch_export_gives_the_same_answers(name, tmp_path):
    """Any number of rows, from a file that also says what the head is and what is proved."""
    head = HEADS[name].train()
    report = export(head, tmp_path / "head.pt2")
    assert head.training
    held = {"forethought": ""}
    program = torch.export.load(report.path, extra_files=held).module()
    x = torch.randn(33, 1 if name == "calibrator" else 6)
    with torch.no_grad():
        assert torch.allclose(program(x), head.eval()(x), rtol=0, atol=1e-5)
    about = json.loads(held["forethought"])
    assert Certificate.from_json(json.dumps(about["certificate"])) == head.certify()
    assert type(from_config(about["config"])) is type(head)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "histogram", "prototype", "several"])
def test_onnx_gives_the_same_answers(name, tmp_path):
    """Any number of rows in ONNX Runtime; the certificate is in the file."""
    pytest.importorskip("onnxscript")
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    head = HEADS[name].eval()
    report = export(head, tmp_path / "head.onnx")
    session = runtime.InferenceSession(str(report.path))
    for rows in (1, 7, 200):
        x = torch.randn(rows, 1 if name == "calibrator" else 6)
        (y,) = session.run(None, {"features": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), head(x).detach(), rtol=0, atol=1e-4)
    about = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert json.loads(about["forethought"])["certificate"]["weights"] == head.certify().weights


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_intervals_are_exported_with_their_head(ending, tmp_path):
    """Three outputs, the same as here for any number of rows; the file says how the intervals were made."""
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    head = conformalize(HEADS["spline"], torch.randn(60, 6), 60 + 7 * torch.rand(60), 0.8, within=(60.0, 67.25))
    report = export(head, tmp_path / f"head.{ending}")
    assert report.largest_difference < 1e-4
    if ending == "pt2":
        held = {"forethought": ""}
        program = torch.export.load(tmp_path / "head.pt2", extra_files=held)
        about, x = json.loads(held["forethought"]), torch.randn(5, 6)
        assert all(map(torch.equal, program.module()(x), head(x)))
        assert about["intervals"] == {
            "radius": head.radius.item(),
            "confidence": 0.8,
            "rows": 60,
            "within": [60.0, 67.25],
        }
        assert about["config"] == HEADS["spline"].config()
    with pytest.raises(FitError, match="got a Linear"):
        export(Conformal(torch.nn.Linear(6, 1), 1.0, 0.9, 20), tmp_path / "head.pt2")


@every_head
def test_a_baked_head_is_the_same_head(name):
    """What is computed from parameters and held as numbers gives the same bits; the head itself stays as it was."""
    head = HEADS[name].eval()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    x = torch.randn(200, 1 if name == "calibrator" else 6)
    baked = head.baked()
    assert torch.equal(baked(x), head(x))
    assert before.keys() == head.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


@pytest.mark.parametrize("name", ["spline", "cumulative"])
def test_what_is_proved_is_seen_through_torch_export(name):
    """The same bits at knots, their neighbours and anywhere: the claims are carried over, and say how."""
    certificate = HEADS[name].certify(through=exported_program, tries=20_000).raise_if_failed()
    assert "exported_program" in certificate.arithmetic
    assert all("gave the same bits" in claim.why for claim in certificate.claims)
    assert certificate.weights == HEADS[name].certify().weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "corn"])
def test_what_is_proved_is_seen_through_onnx_runtime(name):
    """ONNX Runtime gives the same bits along every variable of a claim."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    HEADS[name].certify(through=onnx_runtime, tries=20_000).raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spline"])
def test_what_is_proved_is_seen_through_the_compiler(name):
    """torch.compile on this machine gives the same bits."""
    HEADS[name].certify(through=torch.compile, tries=20_000).raise_if_failed()


WRONG = {
    "rounds to half": lambda module: lambda x: module(x).half().float(),
    "one unit in the last place, once": lambda module: (
        lambda x: torch.where(x[:, 0] == 1, torch.nextafter(module(x), torch.zeros(())), module(x))
    ),
    "falls": lambda module: lambda x: -module(x),
    "another type": lambda module: lambda x: module(x).double(),
    "another shape": lambda module: lambda x: module(x)[:, None],
    "no numbers": lambda module: lambda x: module(x) * float("nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_computes_otherwise_is_not_certified(name):
    """A runtime that gives other bits loses the claims, and the first difference is named."""
    certificate = HEADS["spline"].certify(through=WRONG[name], tries=5_000)
    assert not certificate.holds
    assert all("<lambda>" in claim.violation for claim in certificate.claims)


def test_a_head_that_is_not_certified_is_not_carried_over():
    """What does not hold eagerly is not claimed of anything else."""
    assert not HEADS["mlp"].certify(through=exported_program).holds
    assert not HEADS["local"].certify(through=exported_program).holds


def test_a_file_with_other_answers_is_refused():
    """The comparison has teeth: an answer off by a ten-thousandth of the range, or another shape."""
    head, x = HEADS["spline"].eval(), torch.randn(1000, 6)
    _compared(head, head, x)
    with pytest.raises(BundleError, match="got others, by"):
        _compared(head, lambda batch: head(batch) + 1e-3, x)
    with pytest.raises(BundleError, match="for 2 rows"):
        _compared(head, lambda batch: head(batch)[:1], x)


def test_other_endings_and_lost_packages_are_named(tmp_path, monkeypatch):
    """A FitError lists the endings; a missing extra says what to install."""
    with pytest.raises(FitError, match=r"\.onnx or \.pt2"):
        export(HEADS["spline"], tmp_path / "head.pth")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"forethought\[export\]"):
        export(HEADS["spline"], tmp_path / "head.onnx")
    assert not (tmp_path / "head.onnx").exists()


def test_a_latent_of_ones_own_is_exported_with_an_example(tmp_path):
    """Features of any shape that it takes; its description is left out."""
    head = AnchorSpline(6, ANCHORS, latent=nn.Sequential(nn.Flatten(), nn.Linear(6, 1)))
    report = export(head, tmp_path / "head.pt2", example=torch.randn(4, 2, 3))
    held = {"forethought": ""}
    program = torch.export.load(report.path, extra_files=held).module()
    x = torch.randn(5, 2, 3)
    assert torch.equal(program(x), head(x))
    assert json.loads(held["forethought"])["config"] is None


def test_what_the_runtime_lacks_is_refused(tmp_path):
    """ONNX Runtime has no arctangent of float64: a FitError with the way out, which works."""
    pytest.importorskip("onnxruntime")
    head = CircularSpline(6, ANCHORS, 360.0, dtype=torch.float64)
    with pytest.raises(FitError, match=r"head\.float\(\)"):
        export(head, tmp_path / "head.onnx")
    export(head.float(), tmp_path / "head.onnx")
