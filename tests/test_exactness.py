"""The benchmark of exactness: a sample of it, and that it would see a difference."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))  # at the end: its modules must hide no package

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")

import verdict  # noqa: E402
from cuts import CUTS, CutImpossibleError, cut, execute  # noqa: E402
from verdict import DiffersError, Subject, compare, judge  # noqa: E402
from zoo import Specimen, specimens  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's models warn


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small wait longer for a second thread than they gain by it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Model -> cases that are exact.
EXACT = {
    "torchvision/resnet18": ["few train", "parameter eval"],
    "torchvision/shufflenet_v2_x0_5": ["middle train", "adapter eval"],
    "torchvision/lraspp_mobilenet_v3_large": ["classifier eval"],
    "timm/vision_transformer.test_vit": ["few train", "inside eval", "parameter eval", "island eval"],
    "timm/efficientnet.test_efficientnet": ["middle train", "adapter eval", "block part"],
    "transformers/bert.SequenceClassification": ["classifier eval", "inside train", "adapter part", "island eval"],
    "transformers/llama.CausalLM": ["few eval", "middle eval", "adapter train"],
    "transformers/t5.Seq2SeqLM": ["block eval", "island eval"],
    "transformers/vit.ImageClassification": ["few train", "parameter eval"],
    "transformers/wav2vec2.AudioClassification": ["few eval", "middle eval"],
    "transformers/clip.ZeroShotImageClassification": ["classifier eval", "block eval"],
}
EXACT_SLOW = {
    "torchvision/lraspp_mobilenet_v3_large": ["block train", "few part"],
    "torchvision/raft_small": ["few eval", "middle eval"],
    "timm/swin_transformer.swin_tiny_patch4_window7_224": ["few eval", "block train"],
}
# Not exact everywhere: never silently wrong, and never an error that is not a refusal.
HONEST = {
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn": ["few eval"],
    "transformers/llava.ImageTextToText": ["few eval"],
    "transformers/longformer.SequenceClassification": ["middle eval"],
    "transformers/vit_mae.PreTraining": ["few eval", "classifier train"],
}
HONEST_SLOW = {
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn": ["middle train", "island eval"],
    "torchvision/ssdlite320_mobilenet_v3_large": ["classifier eval", "middle train"],
}


def _cases(fast, slow):
    """Name every case, the slow ones marked."""
    for table, marks in ((fast, ()), (slow, pytest.mark.slow)):
        for name, cases in table.items():
            for case in cases:
                yield pytest.param(name, *case.split(), marks=marks, id=f"{name} {case}")


@functools.lru_cache(maxsize=2)
def _subject(name):
    return Subject(specimens(name.partition("/")[0])[name])


@pytest.mark.parametrize(("name", "kind", "mode"), list(_cases(EXACT, EXACT_SLOW)))
def test_judge_finds_exact(name, kind, mode):
    """These models split exactly, in these places and modes."""
    found = judge(_subject(name), kind, mode)
    assert found.outcome == "exact", f"{found.outcome}: {found.message}"
    assert (found.error, found.gradient_error) == (0.0, 0.0)


@pytest.mark.parametrize(("name", "kind", "mode"), list(_cases(HONEST, HONEST_SLOW)))
def test_judge_finds_nothing_wrong(name, kind, mode):
    """A model that cannot be split is refused, with a reason."""
    found = judge(_subject(name), kind, mode)
    assert found.outcome == "exact" or found.outcome.startswith("refused"), f"{found.outcome}: {found.message}"


class Backwards(nn.Module):
    """Registers its layers in another order than it runs them, and reads one parameter itself."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.first(x) * self.scale)


def test_execute_orders_layers_by_execution():
    """Not by registration; what the forward does not read is no layer."""
    run = execute(Backwards(), (torch.randn(2, 3),), {})
    assert [(layer.name, layer.is_loose) for layer in run.layers] == [
        ("first", False),
        ("scale", True),
        ("last", False),
    ]


def test_cut_leaves_only_its_parameters_trainable():
    """Every cut trains what it names, and an adapter changes what the model says."""
    model = Backwards()
    run = execute(model, (torch.randn(2, 3),), {})
    assert cut(model, "classifier", run) == ["last.bias", "last.weight"]
    assert cut(model, "parameter", run) == cut(model, "island", run) == ["scale"]
    assert not model.last.weight.requires_grad
    with pytest.raises(CutImpossibleError, match="no module holds several layers"):
        cut(model, "block", run)
    assert set(CUTS) >= {"classifier", "block", "few", "middle", "inside", "adapter", "island", "parameter"}


def test_compare_sees_a_difference():
    """In a value, a type, a key, a dtype; and not-a-number is itself."""
    nan = torch.tensor([float("nan"), 1.0])
    compare({"a": (nan, 1)}, {"a": (nan.clone(), 1)}, "")
    for other in ({"a": [nan, 1]}, {"b": (nan, 1)}, {"a": (nan + 1e-6, 1)}, {"a": (nan.double(), 1)}, {"a": (nan, 2)}):
        with pytest.raises(DiffersError):
            compare({"a": (nan, 1)}, other, "")


def test_judge_sees_a_split_that_is_wrong(monkeypatch):
    """A head that is off by little is found out."""
    honest = verdict.ft.split

    def split(*args, **kwargs):
        parts = honest(*args, **kwargs)
        head = parts.head
        parts.head = lambda values: head(values) * (1 + 1e-6)
        return parts

    monkeypatch.setattr(verdict.ft, "split", split)
    subject = Subject(Specimen("own/backwards", Backwards, lambda batch: ((torch.randn(batch, 3),), {})))
    found = judge(subject, "classifier", "eval")
    assert (found.outcome, found.error > 0) == ("wrong", True)


@pytest.mark.slow
def test_runner_goes_on_where_it_stopped(tmp_path):
    """A second run does what is left, and a case is one line."""
    out = tmp_path / "exactness.jsonl"
    command = [sys.executable, BENCH / "exactness.py", "--out", out, "--models", "timm/resnet.*", "--modes", "eval"]
    for cuts in (["few"], ["few", "island"]):
        done = subprocess.run([*command, "--cuts", *cuts], capture_output=True, text=True, check=True)
    assert [json.loads(line)["cut"] for line in out.read_text().splitlines()] == ["few", "island"]
    assert "2 of 2 cases, 1 models; exact 2 of 2 judged" in done.stdout
