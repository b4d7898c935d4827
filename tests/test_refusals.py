"""What `ft.split` refuses: the table in docs/split.md, each cause of it tried with a model that is refused for it."""

import re
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_models import Base, frozen
from torch import nn

import forethought as ft
from forethought import errors

X = torch.linspace(-1, 1, 18).view(3, 6)
CAUSES: dict[str, tuple[str, object, str]] = {}
"""Cause, as the docs have it -> (error, what to do, what the message must say)."""


def refused(error, cause, says):
    """Enter a model, or a function that meets the refusal, under its cause."""

    def enter(made):
        run = (lambda: ft.split(made(), X)) if isinstance(made, type) else made
        CAUSES[cause] = error, run, says
        return made

    return enter


@refused("NothingFrozenError", "the first operation on the input already trains", r"ft\.freeze\(model, until=")
class Trains(Base):
    def forward(self, x):
        return self.head(self.body(nn.functional.linear(x, self.head.weight[:, :6].repeat(2, 1))))


@refused(
    "FrozenBranchError",
    "Python reads a number made from what trains, before the last frozen value is made",
    r"Tensor\.__float__ in the model's own forward.*at=<an earlier module>",
)
class ReadsTrainable(Base):
    def forward(self, x):
        h = self.body(x)
        y = self.head(h)
        return y + self.head(self.body[2](h) * float(y.detach().sum()))


@refused(
    "InvisibleOperationError",
    "frozen values go through numpy on their way to a trainable operation",
    r"functional\.linear in head.*numpy",
)
class ThroughNumpy(Base):
    def forward(self, x):
        return self.head(torch.from_numpy(np.tanh(self.body(x).numpy())))


@refused("InvisibleOperationError", "they are put into another tensor's `.data` there", r"\.data in.*t = value")
class OtherData(Base):
    def forward(self, x):
        h = self.body(x)
        held = torch.zeros_like(h)
        held.data = h
        return self.head(held * 2)


@refused("InvisibleOperationError", "through a vmapped function", r"functional\.linear in head, got.*vmap")
class ThroughVmap(Base):
    def forward(self, x):
        return self.head(torch.vmap(torch.sin)(self.body(x)))


@refused("InvisibleOperationError", "through a scripted one, outside of a scripted module", "a scripted function")
class ThroughScript(Base):
    def __init__(self):
        super().__init__()
        self.multiply = torch.jit.script(_multiply)

    def forward(self, x):
        return self.multiply(self.body(x), self.head.weight)


def _multiply(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return h @ weight.t()


@refused(
    "ReplayDriftError",
    "the head draws random numbers before or between draws of what is frozen (dropout in training mode on both sides)",
    r"draws random numbers \(torch\.dropout in the model's own forward\).*model\.eval",
)
class DrawsTooEarly(Base):
    def forward(self, x):
        noise = torch.rand(3)
        return self.head(torch.dropout(self.body(x), 0.5, True)) + noise


@refused(
    "ReplayDriftError",
    "random numbers choose the frozen path (layers skipped by chance)",
    r"Tensor\.__bool__.*layerdrop",
)
def _skips():
    class Skips(Base):
        def forward(self, x):
            h = self.body(x)
            for _ in range(8):
                h = self.body[2](h) if torch.rand(()) < 0.5 else h
            return self.head(h)

    for seed in range(9):
        parts = ft.split(Skips(), X)
        torch.manual_seed(seed)
        parts.head(parts.trunk(X))


@refused(
    "ReplayDriftError",
    "how many frozen steps are run depends on values, outside of a frozen module, and a batch takes more than the trunk's",
    r"Tensor\.__bool__ in the model's own forward.*module of their own",
)
def _iterates():
    class Iterates(Base):
        def forward(self, x):
            h = z = self.body(x)
            for _ in range(20):
                old, z = z, torch.tanh(self.body[2](z) + h)
                if (z - old).abs().max() < 1e-3:
                    break
            return self.head(z)

    parts = ft.split(Iterates(), X)
    for _ in range(9):
        parts.head(parts.trunk(torch.randn(3, 6)))


@refused("ReplayDriftError", "values go a way that cannot be seen", "cannot be seen.*at=")
class ThroughTheBack(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(self.body[2](h)) * (2 if type(h) is torch.Tensor else 3)


@refused("ShapeError", "features of another shape than any the split has seen", r"\(B, 8\).*\(3, 9\)")
def _other_shape():
    ft.split(Base(), X).head(torch.randn(3, 9))


@refused("ShapeError", "features of shapes that cannot be told apart", "Make one split for each")
def _alike():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = frozen(nn.Conv1d(1, 4, 3)), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x).mean(-1)) * x.shape[-1]

    parts = ft.split(Pooled(), torch.randn(3, 1, 16))
    parts.trunk(torch.randn(3, 1, 20))
    parts.head(torch.randn(3, 4))


@refused(
    "SplitError",
    "the model gives something else in a later run, from attributes that it changes",
    r"attributes that it reads \(SimpleNamespace\.seen\)",
)
class Counts(Base):
    """Counts its calls on an object that it holds."""

    def __init__(self):
        super().__init__()
        self.notes = types.SimpleNamespace(seen=0)

    def forward(self, x):
        self.notes.seen += 1
        return self.head(self.body(x)) * self.notes.seen


@refused("SplitError", "it keeps such a state where it cannot be seen", "got two outputs. It keeps a state")
class CountsOnItsClass(Base):
    seen = 0

    def forward(self, x):
        CountsOnItsClass.seen += 1
        return self.head(self.body(x)) * self.seen


@refused("SplitError", "no such module", "Cannot cut at 'bodi'.*'body'")
def _no_such_module():
    ft.split(Base(), X, at="bodi")


@refused("SplitError", "what trains comes before it", r"Cannot cut at 'head'.*ft\.freeze\(model, until='head'\)")
def _after_what_trains():
    ft.split(Base(), X, at="head")


@refused("SplitError", "no cut within so many bytes", r"got 32 at 'body'.*at=32")
def _too_few_bytes():
    ft.split(Base(), X, at=3)


@refused("SplitError", "`at` is none of these", r"got a Sequential.*at='body'")
def _a_module_as_cut():
    model = Base()
    ft.split(model, X, at=model.body)


@refused("SplitError", "the model has other modules now", "Split it again")
def _other_modules():
    model = Base()
    parts = ft.split(model, X)
    model.body[0] = frozen(nn.Linear(6, 8))
    parts.trunk(X)


@refused("SplitError", "a frozen parameter trains now", "Split it again")
def _thawed():
    model = Base()
    parts = ft.split(model, X)
    model.body[0].weight.requires_grad_(True)
    parts.trunk(X)


@refused("SplitError", "lazy layers have not run", r"'0\.weight' of a lazy module.*model\(x\)")
def _lazy():
    ft.split(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), X)


@refused("SplitError", "weights are on the meta device", r"'body\.0\.weight'.*to_empty")
def _meta():
    ft.split(Base().to("meta"), X)


@refused("SplitError", "weights are sharded over processes", r"'the model' sharded.*Split it before it is sharded")
def _sharded():
    ft.split(type("FullyShardedDataParallel", (Base,), {"__module__": "torch.distributed.fsdp"})(), X)


@refused("SplitError", "inputs are nested, or sparse otherwise than by coordinates", r"to_sparse_coo\(\)")
def _sparse_by_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a beta
        x = X.to_sparse_csr()
    ft.split(Base(), x)


@refused("SplitError", "arguments of `forward` are missing, or too many", r"forward\(x\).*'x'")
def _no_arguments():
    ft.split(Base(), ())


@refused("SplitError", "no tensor is among the inputs", "Pass some")
def _no_tensor():
    ft.split(Base(), "text")


@refused("SplitError", "none is among the outputs", "return tensors, got generator without any")
class Generates(Base):
    def forward(self, x):
        h = self.body(x)
        return (self.head(h * scale) for scale in range(3))


@refused("SplitError", "inputs hold themselves", "holds itself")
def _input_holds_itself():
    given = [X]
    given.append(given)

    class Model(Base):
        def forward(self, given):
            return self.head(self.body(given[0]))

    ft.split(Model(), (given,))


@refused("SplitError", "outputs do", "holds itself")
class HoldsItself(Base):
    def forward(self, x):
        given = [self.head(self.body(x))]
        given.append(given)
        return given


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_refused_by_its_error_with_its_reason(cause):
    """A model that is refused for a cause gets the error of that row, naming the place and what to do."""
    error, run, says = CAUSES[cause]
    torch.manual_seed(0)
    with pytest.raises(errors.SplitError if error != "ShapeError" else errors.ShapeError) as raised:
        run()
    assert re.search(says, str(raised.value), re.DOTALL), raised.value
    assert error in {"SplitError", type(raised.value).__name__}


def test_the_table_of_refusals_lists_these_causes():
    """What docs/split.md says is refused is what was tried here, under the same error."""
    text = (Path(__file__).parent.parent / "docs" / "split.md").read_text()
    rows = re.findall(r"^\| `(\w+Error)` \| (.+) \|$", text, re.MULTILINE)
    listed = {cause: error for error, causes in rows for cause in causes.split("; ")}
    assert listed == {cause: error for cause, (error, _, _) in CAUSES.items()}
