"""Small models, each odd in one way, as a table: what a splitter meets in other people's code.

`CASES` is the table. A case says how to build the model (its frozen part already frozen), what to feed it for a batch
of any size, and what is promised of it: `None` (the laws of `ft.split` hold) or the error that it may be
refused with. `check` demands the promise.
"""

import collections
import functools
import types
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from forethought.errors import ForethoughtError, NothingFrozenError


@dataclass
class Case:
    """One model of the table.

    Attributes:
        name: Unique.
        make: Builds the model.
        feed: batch size -> (args, kwargs).
        refusal: None, or the error that the promise allows instead of the laws.
        train: The mode to run it in.
        at: The cut asked for.
        sizes: Batch sizes: the first for the split, the rest for later runs.
    """

    name: str
    make: Callable[[], nn.Module]
    feed: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]
    refusal: type[Exception] | None = None
    train: bool = False
    at: str | None = None
    sizes: tuple[int, ...] = (3, 3, 5)


CASES: list[Case] = []


def rows(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Feed (B, 6)."""
    return (torch.randn(batch, 6),), {}


def images(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Feed (B, 3, 8, 8)."""
    return (torch.randn(batch, 3, 8, 8),), {}


def tokens(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Feed (B, 5, 6)."""
    return (torch.randn(batch, 5, 6),), {}


def ids(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Feed token numbers (B, 5)."""
    return (torch.randint(0, 10, (batch, 5)),), {}


def odd(feed: Callable = rows, **promise: Any) -> Callable:
    """Enter a module class, or a function that builds a module, into the table."""

    def enter(make):
        name = promise.pop("name", make.__name__)
        CASES.append(Case(name, make, feed, **promise))
        return make

    return enter


def frozen(module: nn.Module) -> nn.Module:
    """Freeze a module's parameters."""
    return module.requires_grad_(False)


class Base(nn.Module):
    """A frozen body (6 -> 8) and a trainable head (8 -> 3), for the models below to combine oddly."""

    def __init__(self):
        super().__init__()
        self.body = frozen(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Net(nn.Module):
    """A frozen trunk with a bit of everything, and a head called `head`."""

    def __init__(self, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8).eval().requires_grad_(False)
        self.act = nn.ReLU()
        self.scale = 2.0
        self.register_buffer("shift", torch.ones(8))
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.act(self.norm(self.layer(x)) * self.scale + self.shift))


# Ways of passing values -----------------------------------------------------------------------------------------------


@odd(images)
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = frozen(nn.Conv2d(3, 4, 3, 2, 1)), frozen(nn.Conv2d(4, 8, 3, 2, 1))
        self.up2, self.up1 = nn.ConvTranspose2d(8, 4, 2, 2), nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        return self.up1(torch.cat([self.up2(b), a], 1)) + x.mean(1, keepdim=True)


def _two(batch):
    return (torch.randn(batch, 6),), {"other": torch.randn(batch, 6), "scale": 2.0, "nothing": None}


@odd(_two)
class KeywordInputs(Base):
    def forward(self, x, other=None, scale=1.0, nothing=None, **more):
        y = self.body(x) * scale + self.body(other)
        return self.head(y) if nothing is None and not more else y


@odd(lambda b: (({"x": torch.randn(b, 6), "mask": torch.rand(b, 8) > 0.5, "tags": ["a", "b"]},), {}))
class DictInput(Base):
    def forward(self, batch):
        return self.head(self.body(batch["x"]).masked_fill(batch["mask"], 0.0))


@odd()
class TupleOutput(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(h), h, x, 7, "text", None


@odd()
class DictOutput(Base):
    def forward(self, x):
        h = self.body(x)
        return OrderedDict(logits=self.head(h), hidden={"h": [h, h + 1]}, n=x.shape[0])


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor
    note: str = "note"


@dataclass(slots=True)
class SlottedAnswer:
    logits: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class FrozenAnswer:
    logits: Tensor
    hidden: Tensor


class NamedAnswer(NamedTuple):
    logits: Tensor
    hidden: Tensor


class ObjectAnswer:
    def __init__(self, logits, hidden):
        self.logits, self.parts = logits, [hidden]


class SlotsAnswer:
    __slots__ = ("hidden", "logits")

    def __init__(self, logits, hidden):
        self.logits, self.hidden = logits, hidden


class _Answers(Base):
    kind: Any = None

    def forward(self, x):
        h = self.body(x)
        return self.kind(self.head(h), h * 2)


for _kind in (Answer, FrozenAnswer, NamedAnswer, ObjectAnswer, SlottedAnswer, SlotsAnswer):
    odd()(type(f"Output{_kind.__name__}", (_Answers,), {"kind": staticmethod(_kind)}))


@odd()
class DistributionOutput(Base):
    def forward(self, x):
        h = self.body(x)
        return torch.distributions.Normal(self.head(h), h[:, :3].exp())


@odd()
class DequeOutput(Base):
    def forward(self, x):
        h = self.body(x)
        return collections.deque([self.head(h), h])


# In-place operations and views ----------------------------------------------------------------------------------------


@odd()
class InPlaceBefore(Base):
    def forward(self, x):
        h = self.body(x)
        h.relu_()
        h += 1
        return self.head(h)


@odd()
class InPlaceAfterCrossing(Base):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x):
        h = self.body(x)
        y = h + self.bias
        h.mul_(3)
        return self.head(y) + self.head(h)


@odd()
class InPlaceOnHot(Base):
    def forward(self, x):
        y = self.head(self.body(x))
        y[:, 0] = x[:, 0]
        y += 1
        return y.relu_()


@odd()
class HotIntoFrozen(Base):
    def forward(self, x):
        h = self.body(x)
        h[:, :3] = self.head(h * 1)
        return h


@odd(refusal=ForethoughtError)
class HotIntoFrozenAndView(Base):
    def forward(self, x):
        h = self.body(x).clone()
        view = h[:, 0]
        h[:, 0] = self.head(h * 1)[:, 0]
        return h, view * 2


@odd()
class ViewsCrossTwice(Base):
    def forward(self, x):
        h = self.body(x)
        left, right = h[:, :4], h[:, 4:]
        return self.head.weight[:, :4] @ left.T + (self.head.weight[:, 4:] @ right.T), self.head(h.view(-1, 8))


@odd()
class FrozenIntoConstant(Base):
    def forward(self, x):
        h = self.body(x)
        out = torch.zeros(x.shape[0], 2, 8)
        out[:, 0] = h
        out[:, 1].copy_(h * 2)
        return self.head(out)


@odd()
class FrozenIntoConstantView(Base):
    def forward(self, x):
        h = self.body(x)
        out = torch.zeros(x.shape[0], 2, 8)
        out.view(-1, 16)[:, :8] = h
        out.narrow(1, 1, 1).add_(h[:, None])
        return self.head(out)


@odd()
class HotIntoConstant(Base):
    def forward(self, x):
        h = self.body(x)
        out = torch.zeros(x.shape[0], 4)
        out[:, 1:] = self.head(h)
        return out * h[:, :4]


@odd()
class OutArgument(Base):
    def forward(self, x):
        h = self.body(x)
        out = torch.empty_like(h)
        torch.add(h, 1, out=out)
        return self.head(out)


@odd()
class ReluInPlaceModules(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
        )
        frozen(self[0])
        frozen(self[2])


@odd()
class InPlaceInput(Base):
    def forward(self, x):
        x.mul_(2)
        return self.head(self.body(x)) + x[:, :3]


@odd()
class DataWrites(Base):
    def forward(self, x):
        h = self.body(x)
        h.data.clamp_(min=0)
        return self.head(h)


# How modules are held and called --------------------------------------------------------------------------------------


@odd()
class TiedWeights(Base):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(8, 3)
        self.again.weight = self.head.weight

    def forward(self, x):
        h = self.body(x)
        return self.head(h) + self.again(h.relu())


@odd()
class TiedFrozen(Base):
    """The trunk's weight is used again after what trains."""

    def __init__(self):
        super().__init__()
        self.mid = nn.Linear(8, 8)

    def forward(self, x):
        h = self.mid(self.body(x))
        return F.linear(h, self.body[2].weight) + self.body[2](h)


@odd()
class PlainListsOfModules(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [frozen(nn.Linear(6, 8)), frozen(nn.BatchNorm1d(8)), nn.Linear(8, 8)]
        self.named = {"act": nn.ReLU(), "out": {"last": nn.Linear(8, 3)}}

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.named["out"]["last"](self.named["act"](x))


@odd(train=True, name="PlainListsOfModulesTraining")
def _plain_training():
    return PlainListsOfModules()


@odd()
class BoundMethods(Base):
    def __init__(self):
        super().__init__()
        self.first = self.body.forward
        self.act = functools.partial(F.leaky_relu, negative_slope=0.3)
        self.last = functools.partial(self.finish, bias=1.0)

    def finish(self, h, bias):
        return self.head(h) + bias

    def forward(self, x):
        return self.last(self.act(self.first(x)))


@odd()
class CalledTwice(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(h) + self.head(self.body(x * 2))


@odd()
class CalledByForward(Base):
    def forward(self, x):
        return self.head.forward(self.body.forward(x))


@odd()
class CallAroundForward(Base):
    def __call__(self, x, *, scale=2.0):
        h = self.body(x * scale)
        return {"sum": super().__call__(x / 3) + super().__call__(h[:, :6])}


@odd()
class CallInsteadOfForward(Base):
    def __call__(self, x):
        return self.head(self.body(x).tanh())


@odd(name="ForwardReplaced")
def _forward_replaced():
    model = Base()

    def forward(self, x):
        return self.head(self.body(x).relu()) * 2

    model.forward = types.MethodType(forward, model)
    return model


@odd(name="ForwardClosure")
def _forward_closure():
    model = Base()
    model.forward = lambda x: model.head(model.body(x).relu()) * 2
    return model


@odd()
class WeakParent(Base):
    def __init__(self):
        super().__init__()
        self.body.owner = weakref.ref(self)

    def forward(self, x):
        return self.head(self.body.owner().body(x))


Pair = namedtuple("Pair", "one two")


@odd()
class NamedTupleOfModules(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = Pair(frozen(nn.Linear(6, 8)), nn.Linear(8, 3))

    def forward(self, x):
        return self.pair.two(self.pair.one(x))


# Hooks, caches, counters ----------------------------------------------------------------------------------------------


@odd()
class HookCaptures(Base):
    def __init__(self):
        super().__init__()
        self.seen = {}
        self.body[1].register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.seen["h"] = output

    def forward(self, x):
        y = self.body(x)
        return self.head(y) + self.head(self.seen["h"])


@odd(name="HookCapturesInClosure")
def _hook_closure():
    seen = {}

    class Model(Base):
        def forward(self, x):
            y = self.body(x)
            return self.head(y) + self.head(seen["h"])

    model = Model()
    model.body[1].register_forward_hook(lambda m, a, out: seen.__setitem__("h", out))
    return model


class _Appends(Base):
    clears_last = False

    def __init__(self):
        super().__init__()
        self.seen = []
        for at in (0, 2):
            self.body[at].register_forward_hook(lambda m, a, out: self._keep(out))

    def _keep(self, out):
        self.seen.append(out)

    def forward(self, x):
        if not self.clears_last:
            self.seen.clear()
        self.body(x)
        y = self.head(torch.stack(self.seen).sum(0))
        if self.clears_last:
            self.seen.clear()
        return y


@odd()
class AppendsClearsFirst(_Appends):
    pass


@odd()
class AppendsClearsLast(_Appends):
    clears_last = True


@odd()
class AttributeListClearsLast(Base):
    """Frozen submodules hand their values on through a list that the forward empties at its end."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        for layer in self.body:
            x = layer(x)
            self.seen.append(x)
        y = self.head(self.seen[0] + self.seen[-1])
        self.seen.clear()
        return y


@odd(name="HookChangesOutput")
def _hook_changes():
    model = Base()
    model.body[0].register_forward_hook(lambda m, a, out: out * 2)
    model.body.register_forward_pre_hook(lambda m, a: (a[0] + 1,))
    model.head.register_forward_hook(lambda m, a, k, out: out - 1, with_kwargs=True)
    return model


@odd()
class BackwardHook(Base):
    def __init__(self):
        super().__init__()
        self.mid = nn.Linear(8, 8)
        self.head.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,))

    def forward(self, x):
        return self.head(self.mid(self.body(x)))


@odd()
class CachesByShape(Base):
    def __init__(self):
        super().__init__()
        self.cache, self.last = {}, None

    def positions(self, x):
        key = (x.shape, x.device)
        if key not in self.cache:
            self.cache[key] = torch.linspace(0, 1, x.shape[0])[:, None] + x.new_zeros(8)
        if self.last is None or self.last.shape[0] != x.shape[0]:
            self.last = torch.arange(x.shape[0], device=x.device).float()[:, None]
        return self.cache[key] + self.last

    def forward(self, x):
        h = self.body(x)
        return self.head(h + self.positions(x)) * self.positions(x)[:, :3]


@odd()
class RegistersMask(Base):
    """Keeps a mask as a buffer and makes it anew for another size, as many transformers do."""

    def mask(self, n):
        if getattr(self, "kept", None) is None or self.kept.shape[0] < n:
            self.register_buffer("kept", torch.ones(n, n).tril(), persistent=False)
        return self.kept[:n, :n]

    def forward(self, x):
        h = self.body(x)
        return self.head(self.mask(x.shape[0]) @ h)


@odd()
class ReplacesBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.head(self.body(x))
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return y - self.mean


@odd()
class CountsInPython(Base):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.log = collections.defaultdict(list)

    def forward(self, x):
        self.calls += 1
        self.log["shape"].append(tuple(x.shape))
        return self.head(self.body(x))


@odd()
class CountsInBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x))


@odd()
class CountsInPlainTensor(Base):
    def __init__(self):
        super().__init__()
        self.calls = torch.zeros(())

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x))


_GAIN = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])


@functools.lru_cache
def _ramp(size):
    return torch.linspace(0, 1, size)


@odd(name="ConstantsOutside")
def _constants_outside():
    _ramp.cache_clear()  # as in a process that begins

    class Model(Base):
        def forward(self, x):
            return self.head(self.body(x) * _ramp(8) * _GAIN)

    return Model()


@odd()
class ConstantHandedDown(Base):
    """A frozen parameter is an argument of frozen modules, and of the head, as relative positions are."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = frozen(nn.Linear(6, 8))

        def forward(self, x, table):
            return self.net(x) + table[0:3].sum(0)

    def __init__(self):
        super().__init__()
        self.body, self.table = self.Inner(), frozen(nn.Embedding(3, 8))

    def forward(self, x):
        table = self.table.weight
        return self.head(self.body(x, table)) @ table


def _channels(batch):
    """Feed images, those of odd batches above 3 in channels-last order."""
    x = torch.randn(batch, 3, 8, 8)
    return (x.to(memory_format=torch.channels_last) if batch > 3 else x,), {}


def _graph(batch):
    return (torch.randn(batch, 6), (torch.rand(batch, batch) < 0.5).float()), {}


def _sparse_graph(batch):
    return (torch.randn(batch, 6), (torch.rand(batch, batch) < 0.5).float().to_sparse()), {}


class _Convolves(Base):
    """The rows of its inputs are the nodes of one graph: two of them, without the others, are none."""

    def forward(self, x, edges):
        return self.head(edges @ torch.relu(edges @ self.body(x)))


odd(feed=_graph, name="Graph")(_Convolves)
odd(feed=_sparse_graph, name="SparseGraph")(_Convolves)


@odd(feed=tokens)
class AttentionOfConstants(nn.Module):
    """A decoder's own attention reads nothing but frozen queries: torch has a faster kernel for it, unwatched."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 6), requires_grad=False)
        self.layer = frozen(nn.TransformerDecoderLayer(6, 2, 12, batch_first=True).eval())
        self.layer.norm3.requires_grad_(True)

    def forward(self, x):
        return self.layer(self.queries.expand(len(x), 4, 6), x)


@odd(_channels)
class ContiguousAlias(nn.Module):
    """`contiguous` gives the tensor itself or a copy, by the strides of the input; then one of the two is written."""

    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.Conv2d(3, 4, 1)), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        h = self.body(x)
        y = h.contiguous()
        y.mul_(2)
        return self.head(h) + self.head(y) * 3


class Notes:
    """A plain object on a model, for values that submodules share."""


@odd()
class SharedNotes(Base):
    def __init__(self):
        super().__init__()
        self.notes = Notes()

    def forward(self, x):
        self.notes.hidden = self.body(x)
        return self.head(self.notes.hidden)


class PatchShape(nn.Module):
    """Leaves the shape that it saw on itself."""

    def __init__(self):
        super().__init__()
        self.embed = frozen(nn.Conv2d(3, 8, 2, 2))

    def forward(self, x):
        y = self.embed(x)
        self.grid = y.shape[-2:]
        return y.flatten(2).transpose(1, 2)


@odd(images)
class ReadsShapeFromFrozen(nn.Module):
    """As patch embeddings do: the frozen part notes its grid, the head unfolds by it."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = PatchShape(), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        y = self.patches(x)
        return self.head(y.transpose(1, 2).unflatten(2, self.patches.grid))


# Constants, folds, layouts --------------------------------------------------------------------------------------------


@odd()
class BatchConstants(Base):
    def forward(self, x):
        n = x.shape[0]
        h = self.body(x) + torch.arange(n)[:, None] / n
        h = torch.cat([h, torch.zeros(n, 1)], 1)[:, :8]
        return self.head(h) * torch.ones(n, 1).cumsum(0)


@odd(tokens)
class SequenceFirst(Base):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 1, 8))

    def forward(self, x):
        h = self.body(x.transpose(0, 1))
        return self.head(h + self.position).mean(0)


@odd(images)
class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.Linear(3, 8)), nn.Linear(8, 3)

    def forward(self, x):
        b, c, h, w = x.shape
        y = x.view(b, c, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(b * 4, 16, c)
        y = self.head(self.body(y))
        return y.view(b, 2, 2, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


@odd(sizes=(4, 4, 8))
class HalvesOfABatch(Base):
    """Two views of each sample in one batch, as in contrastive learning."""

    def forward(self, x):
        a, b = self.body(x).chunk(2)
        return self.head(a) @ self.head(b).T


@odd(sizes=(4, 4, 8))
class EvenBatches(Base):
    def forward(self, x):
        if x.shape[0] % 2:
            raise ValueError("expected pairs")
        h = self.body(x).view(x.shape[0] // 2, 2, 8)
        return self.head(h.mean(1))


@odd()
class AllPairs(Base):
    def forward(self, x):
        h = self.body(x)
        pairs = (h[:, None] - h[None]).flatten(0, 1)
        return self.head(pairs) / pairs.shape[0]


@odd()
class PairsCountedOnly(Base):
    """Only the number of pairs reaches the head: it is not linear in the batch."""

    def forward(self, x):
        h = self.body(x)
        pairs = (h[:, None] * h[None]).flatten(0, 1)
        return self.head(h) / pairs.shape[0]


@odd()
class PooledOverBatch(Base):
    """What crosses the frontier has no batch axis, yet the head needs the batch size."""

    def forward(self, x):
        h = self.body(x).mean(0, keepdim=True)
        return self.head(h).expand(x.shape[0], -1) / x.shape[0]


@odd(lambda b: ((torch.randn(b, 6, dtype=torch.float64),), {}), name="Float64")
def _float64():
    return Base().double()


@odd(lambda b: ((torch.randn(b, 6, dtype=torch.bfloat16),), {}), name="BFloat16")
def _bfloat16():
    return Base().bfloat16()


@odd(lambda b: ((torch.randn(b, 6, dtype=torch.complex64),), {}), name="Complex")
def _complex():
    return nn.Sequential(
        frozen(nn.Linear(6, 8, dtype=torch.complex64)), nn.Tanh(), nn.Linear(8, 3, dtype=torch.complex64)
    )


@odd()
class ComplexInside(Base):
    def forward(self, x):
        h = torch.fft.rfft(self.body(x))
        return self.head(torch.fft.irfft(h * h.conj()))


@odd()
class AutocastInside(Base):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.body(x))


@odd()
class AutocastInHalfOfIt(Base):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = self.body(x)
            with torch.autocast("cpu", enabled=False):
                h = h.float() * 2
            return self.head(h)


@odd(lambda b: ((torch.randn(b, 6), torch.tensor(1.5), 3, True, None), {"tag": "z"}))
class ScalarInputs(Base):
    def forward(self, x, t, n, flag, nothing, tag):
        h = self.body(x) * t
        return self.head(h) * n if flag and nothing is None and tag == "z" else h


# Layers ---------------------------------------------------------------------------------------------------------------


@odd(tokens)
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.LSTM(6, 8, batch_first=True)), nn.GRU(8, 4)

    def forward(self, x):
        h, _ = self.body(x)
        y, last = self.head(h.transpose(0, 1))
        return y, last


@odd(tokens)
class PackedSequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.LSTM(6, 8, batch_first=True)), nn.Linear(8, 4)

    def forward(self, x):
        lengths = [5 - i % 3 for i in range(x.shape[0])]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = nn.utils.rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True)
        return self.head(h)


def _transformer(batch_first, frozen_layers=1, layers=2):
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=batch_first, dropout=0.0)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for at in range(frozen_layers):
        frozen(model.layers[at])
    return model


@odd(tokens, name="TransformerBatchFirst")
def _batch_first():
    return _transformer(True)


@odd(tokens, name="TransformerSequenceFirst")
def _sequence_first():
    return _transformer(False)


@odd(tokens, name="TransformerFrozenThenLinear")
def _frozen_transformer():
    return nn.Sequential(_transformer(True, 2), nn.Linear(6, 2))


@odd(lambda b: ((torch.randn(b, 5, 6),), {"mask": torch.arange(5)[None] >= 5 - torch.arange(b)[:, None] % 3}))
class TransformerPadded(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = _transformer(True), nn.Linear(6, 2)

    def forward(self, x, mask):
        return self.head(self.body(x, src_key_padding_mask=mask))


@odd(tokens)
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = frozen(nn.MultiheadAttention(6, 2, batch_first=True))
        self.head = nn.MultiheadAttention(6, 2)

    def forward(self, x):
        h, w = self.body(x, x, x)
        return self.head(h, x, h)[0], w


@odd(images)
class Norms(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.Conv2d(4, 4, 3), nn.GroupNorm(4, 4), nn.InstanceNorm2d(4), nn.Flatten(), nn.LazyLinear(2),
        )  # fmt: skip
        for at in range(4):
            frozen(self[at])
        self.eval()(torch.zeros(2, 3, 8, 8))


@odd(lambda b: ((torch.randint(0, 10, (b * 4,)), torch.arange(0, b * 4, 4)), {}))
class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.EmbeddingBag(10, 8)), nn.Linear(8, 3)

    def forward(self, ids, offsets):
        return self.head(self.body(ids, offsets))


@odd(ids)
class TokenIds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block = frozen(nn.Embedding(10, 6)), _transformer(True, 1, 2)
        self.head = nn.Linear(6, 10, bias=False)

    def forward(self, ids):
        return self.head(self.block(self.embed(ids), mask=torch.full((5, 5), -1e9).triu(1)))


@odd(name="WeightNorms")
def _weight_norms():
    p = nn.utils.parametrizations
    model = nn.Sequential(
        p.weight_norm(nn.Linear(6, 8)), p.spectral_norm(nn.Linear(8, 8)), p.weight_norm(nn.Linear(8, 8)),
        p.spectral_norm(nn.Linear(8, 3)), p.orthogonal(nn.Linear(3, 3)),
    )  # fmt: skip
    frozen(model[0])
    frozen(model[1])
    return model


@odd(name="SpectralNormTraining", train=True)
def _spectral_training():
    return _weight_norms()


@odd(name="OldSpectralNorm", train=True)
def _old_spectral():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(8, 3)))
    frozen(model[0])
    return model


@odd(name="BatchNormInHead", train=True)
def _norm_in_head():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    frozen(model[0])
    return model


@odd(train=True)
class BatchNormBeforeLateFrozen(nn.Module):
    """A trainable BatchNorm runs before the last frozen branch does: its counters must move once."""

    def __init__(self):
        super().__init__()
        self.a, self.b = frozen(nn.Linear(6, 8)), frozen(nn.Linear(6, 8))
        self.norm, self.head = nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3)

    def forward(self, x):
        y = self.norm(self.a(x))
        return self.head(y + self.b(x))


@odd(name="FrozenBatchNormTraining", train=True)
def _frozen_norm_training():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    frozen(model[0])
    frozen(model[1])
    return model


@odd(name="DropoutInHead", train=True)
def _dropout():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    frozen(model[0])
    return model


@odd(name="DropoutAtFrontier", train=True)
def _dropout_frontier():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    frozen(model[0])
    return model


@odd(train=True)
class NoiseThenDropout(Base):
    """Noise in the frozen part and chance in the head: drawn in the order of the live model."""

    def forward(self, x):
        h = self.body(x)
        h = h + torch.randn_like(h)
        return F.dropout(self.head(h), 0.5, self.training)


@odd(tokens, train=True)
class RandomMaskUsedTwice(Base):
    """As masked autoencoders do: one random mask, read by the frozen encoder and by the decoder."""

    def forward(self, x):
        mask = torch.rand(x.shape[:2]) > 0.5
        h = self.body(x * mask[..., None])
        return self.head(h) * ~mask[..., None]


# What trains, and how ------------------------------------------------------------------------------------------------


@odd()
class SingleParameter(Base):
    def __init__(self):
        super().__init__()
        frozen(self.head)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.head(self.body(x) * self.scale)


@odd()
class LowRank(Base):
    def __init__(self):
        super().__init__()
        frozen(self.head)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x):
        h = self.body[:2](x)
        return self.head(self.body[2](h) + self.up(self.down(h)))


@odd()
class FrozenAfterTrainable(Base):
    def __init__(self):
        super().__init__()
        self.last = frozen(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))

    def forward(self, x):
        return self.last(self.head(self.body(x)))


@odd()
class LateFrozenBranch(Base):
    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Linear(8, 8), frozen(nn.Linear(6, 8))

    def forward(self, x):
        h = self.early(self.body(x)).relu()
        return self.head(h + self.late(x))


@odd()
class NoGradBlock(Base):
    def forward(self, x):
        with torch.no_grad():
            h = self.body(x)
        return self.head(h.detach())


@odd()
class InferenceModeBlock(Base):
    def forward(self, x):
        with torch.inference_mode():
            h = self.body(x)
        return self.head(h.clone())


@odd()
class DetachedHot(Base):
    def forward(self, x):
        y = self.head(self.body(x))
        with torch.no_grad():
            scale = y.abs().mean(0)
        return y / (1 + scale.detach() + y.data.abs())


@odd()
class HotDecision(Base):
    def __init__(self):
        super().__init__()
        self.table = frozen(nn.Embedding(3, 8))

    def forward(self, x):
        y = self.head(self.body(x))
        return y + self.head(self.table(y.argmax(-1)))


@odd()
class ShapeLentToHead(Base):
    """What trains asks a frozen tensor for its shape and type only."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 8)

        def forward(self, y, like):
            y = self.net(y) + torch.zeros_like(like) + like.new_ones(like.shape)
            return y.view_as(like).expand_as(like).type_as(like) * like.size(0) / len(like)

    def __init__(self):
        super().__init__()
        self.mid, self.last = nn.Linear(8, 8), self.Last()

    def forward(self, x):
        h = self.body(x)
        return self.head(self.last(self.mid(h), h))


@odd()
class AllInOne(nn.Module):
    """The trainable parameter sits in the root, the only other module is frozen."""

    def __init__(self):
        super().__init__()
        self.net, self.w = frozen(nn.Linear(6, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return torch.einsum("bi,ij->bj", self.net(x), self.w)


@odd(refusal=NothingFrozenError)
class NothingFrozen(Base):
    def __init__(self):
        super().__init__()
        self.body.requires_grad_(True)


@odd()
class BufferOfFrozen(Base):
    """A running mean of frozen features: every half moves it once, or not at all."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        h = self.body(x)
        self.mean.mul_(0.5).add_(0.5 * h.mean(0))
        return self.head(h - self.mean)


@odd()
class BufferOfHot(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.head(self.body(x))
        self.mean.lerp_(y.detach().mean(0), 0.1)
        return y - self.mean


@odd(sizes=(4, 4, 9))
class FirstFive(Base):
    """Only the number of rows kept reaches the head: it grows with the batch, and then no more."""

    def forward(self, x):
        h = self.body(x)
        return self.head(h) / h[:5].shape[0]


@odd(lambda b: ((torch.randint(0, 10, (b,)),), {}), sizes=(4, 4, 4, 4))
class DistinctTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.Embedding(10, 8)), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.body(ids)) / torch.unique(ids).numel()


def _lengths(batch):
    lengths = torch.randint(1, 6, (batch,))
    return (torch.randn(batch, 5, 6), (torch.arange(5)[None] < lengths[:, None]).float()), {}


@odd(_lengths)
class LongestReturned(Base):
    """A text encoder that says how long its longest sample is."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = frozen(nn.Linear(6, 8))

        def forward(self, x, mask):
            return self.net(x) * mask[..., None], int(mask.sum(1).max())

    def __init__(self):
        super().__init__()
        self.body = self.Inner()

    def forward(self, x, mask):
        h, longest = self.body(x, mask)
        return self.head(h).sum(1) / longest


@odd()
class FrozenViewWritten(Base):
    def forward(self, x):
        h = self.body(x)
        y = self.head(h.clone())
        h[:, :4].mul_(2)
        view = h[:, 4:]
        view.add_(1)
        return self.head(h) + y


# Python that looks at values -----------------------------------------------------------------------------------------


@odd(refusal=ForethoughtError)
class BranchOnFrozen(Base):
    def forward(self, x):
        h = self.body(x)
        if h.mean() > 0:
            h = h * 2
        return self.head(h)


@odd()
class ScalarFromFrozen(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(h) * h.abs().max().item()


@odd()
class BranchInsideFrozen(Base):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = frozen(nn.Linear(6, 8))

        def forward(self, x):
            h = self.net(x)
            return h * 2 if bool(h.mean() > 0) else h / h.abs().max().item()

    def __init__(self):
        super().__init__()
        self.body = self.Inner()


def _signs(batch):
    """Feed rows with a negative mean if the batch is even, with a positive one if it is odd."""
    return ((torch.rand(batch, 6) + 0.1) * (1 if batch % 2 else -1),), {}


@odd(_signs, sizes=(3, 3, 4, 5))
class DecisionScalesFrozen(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(h * 2 if x.mean() > 0 else h * 3)


@odd(_signs, refusal=ForethoughtError, sizes=(3, 3, 4, 5))
class DecisionPicksValue(Base):
    def forward(self, x):
        a, b = self.body(x), self.body(x + 1)
        return self.head(a if x.mean() > 0 else b)


@odd(_signs, sizes=(3, 3, 4, 5))
class DecisionPicksEncoder(Base):
    def __init__(self):
        super().__init__()
        self.other = frozen(nn.Linear(6, 8))

    def forward(self, x):
        h = self.body(x) if x.mean() > 0 else self.other(x)
        return F.linear(h, self.head.weight)


@odd(_signs, refusal=ForethoughtError, sizes=(3, 3, 4, 5))
class DecisionPicksLinear(Base):
    """Both ways run the same functions: once as a module's, once as the forward's own."""

    def __init__(self):
        super().__init__()
        self.other, self.w = frozen(nn.Linear(6, 8, bias=False)), frozen(nn.Linear(6, 8))

    def forward(self, x):
        h = F.linear(x, self.w.weight) if x.mean() > 0 else self.other(x)
        return F.linear(h, self.head.weight)


@odd(_signs, refusal=ForethoughtError, sizes=(3, 3, 4, 5))
class DecisionPicksHead(Base):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 3)

    def forward(self, x):
        h = self.body(x)
        return (self.head if x.mean() > 0 else self.other)(h)


@odd(_signs, sizes=(3, 3, 4, 5))
class DecisionSkipsFrozen(Base):
    def forward(self, x):
        h = self.body(x)
        if x.mean() > 0:
            h = h.relu()
        return self.head(h)


@odd(_signs, sizes=(3, 3, 4, 5))
class DecisionPicksMemory(Base):
    """The slice that is written depends on values; its shape does not."""

    def forward(self, x):
        h = self.body(x).clone()
        k = 0 if x.mean() > 0 else 4
        h[:, k : k + 4] *= 2
        return self.head(h) + h[:, k : k + 3]


@odd(_signs, refusal=ForethoughtError, sizes=(3, 3, 4, 5))
class HotDecisionPicksFrozen(Base):
    """What trains decides which frozen value is read; the example shows one way."""

    def forward(self, x):
        a, b = self.body(x), self.body(x + 1)
        y = self.head(a)
        picked = a if float(x.mean()) > 0 else b
        return y + self.head(picked)


@odd()
class ListOfNumbers(Base):
    """Lengths leave as a list of Python numbers."""

    def forward(self, x):
        h = self.body(x)
        steps = (x[:, 0] > 0).long().tolist()
        return torch.stack([self.head(row) * (1 + n) for row, n in zip(h, steps, strict=True)])


class _Returns(nn.Module):
    """A frozen module that hands a number, read from its values, to Python."""

    def __init__(self):
        super().__init__()
        self.net, self.peak = frozen(nn.Linear(6, 8)), 1.0

    def forward(self, x):
        h = self.net(x)
        self.peak = round(float(h.abs().max()), 2)
        return h, self.peak


@odd()
class NumberReturned(Base):
    def __init__(self):
        super().__init__()
        self.body = _Returns()

    def forward(self, x):
        h, peak = self.body(x)
        return self.head(h) / peak


@odd()
class NumberOnAttribute(Base):
    def __init__(self):
        super().__init__()
        self.body = _Returns()

    def forward(self, x):
        h, _ = self.body(x)
        return self.head(h) / self.body.peak


class _Flags(nn.Module):
    """A frozen module that leaves a decision from its values on itself."""

    def __init__(self):
        super().__init__()
        self.net, self.loud = frozen(nn.Linear(6, 8)), False

    def forward(self, x):
        h = self.net(x)
        self.loud = bool(x.max() > 50)
        return h


def _loud_later(batch):
    """Quiet in batches of three, as when it is split; loud in others."""
    return (torch.randn(batch, 6) * (1 if batch == 3 else 100),), {}


@odd(_loud_later, sizes=(3, 3, 4))
class FlagOnAttribute(Base):
    """A decision that no example showed."""

    def __init__(self):
        super().__init__()
        self.body = _Flags()

    def forward(self, x):
        h = self.body(x)
        return self.head(h) * (10 if self.body.loud else 1)


@odd()
class NumberPicksRows(Base):
    """How many rows remain depends on values, and only their number reaches the head."""

    def forward(self, x):
        h = self.body(x)
        kept = (x[:, 0] > 0).nonzero()
        return self.head(h) / (1 + kept.shape[0])


@odd()
class ValuesPickRows(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(h[x[:, 0] > 0])


@odd()
class HotNumberIntoFrozen(Base):
    """What trains decides, by a Python number, what is computed from frozen values."""

    def forward(self, x):
        h = self.body(x)
        y = self.head(h)
        k = int(y.detach().abs().sum() * 1000) % 7
        return y + self.head(h * (k + 1))


@odd()
class HotIndexIntoFrozen(Base):
    def forward(self, x):
        h = self.body(x)
        y = self.head(h)
        k = int(y.detach().abs().sum() * 1000) % 7
        return y * h[:, k : k + 1]


@odd()
class BranchOnHot(Base):
    def forward(self, x):
        y = self.head(self.body(x))
        if y.mean() > 0:
            y = y * 2
        return y


@odd()
class NumpyInsideFrozen(Base):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = frozen(nn.Linear(6, 8))

        def forward(self, x):
            h = self.net(x)
            return h + torch.from_numpy(np.tanh(h.numpy()))

    def __init__(self):
        super().__init__()
        self.body = self.Inner()


@odd(refusal=ForethoughtError)
class NumpyBeforeHead(Base):
    def forward(self, x):
        h = torch.from_numpy(np.tanh(self.body(x).numpy()))
        return self.head(h)


@odd(refusal=ForethoughtError)
class NumpyOverBatch(Base):
    """What numpy makes is the same for any order of the rows, and so looks like a constant."""

    def forward(self, x):
        h = self.body(x)
        peak = torch.from_numpy(h.numpy().max(0))
        return self.head(h) * peak[:3]


@odd(refusal=ForethoughtError)
class NumpyOverBatchInside(Base):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = frozen(nn.Linear(6, 8))

        def forward(self, x):
            h = self.net(x)
            return h, torch.from_numpy(h.numpy().max(0))

    def __init__(self):
        super().__init__()
        self.body = self.Inner()

    def forward(self, x):
        h, peak = self.body(x)
        return self.head(h) * peak[:3]


@odd(refusal=ForethoughtError)
class TypeOfTensor(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(h if type(h) is Tensor else h * 2)


# Code that torch functions do not show --------------------------------------------------------------------------------


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * 2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x * 4


class Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return (grad @ w if ctx.needs_input_grad[0] else None), grad.T @ x


@odd()
class CustomFunctionInTrunk(Base):
    def forward(self, x):
        return self.head(Twice.apply(self.body(x)))


@odd()
class CustomFunctionInHead(Base):
    def forward(self, x):
        return Twice.apply(self.head(self.body(x)))


@odd()
class CustomFunctionAtFrontier(Base):
    def forward(self, x):
        return Matmul.apply(self.body(x), self.head.weight)


@odd()
class CheckpointInHead(Base):
    def __init__(self):
        super().__init__()
        self.mid = nn.Linear(8, 8)

    def forward(self, x):
        h = self.mid(self.body(x))
        return self.head(checkpoint(lambda h: h.relu() * 2, h, use_reentrant=False))


@odd()
class CheckpointAtFrontier(Base):
    def forward(self, x):
        return checkpoint(self.head, self.body(x), use_reentrant=False)


@odd()
class CheckpointAcrossFrontier(Base):
    def __init__(self):
        super().__init__()
        self.mid = nn.Linear(8, 8)

    def forward(self, x):
        h = self.body(x)
        return self.head(checkpoint(lambda a: self.mid(a) + h, self.mid(h), use_reentrant=False))


@odd(refusal=ForethoughtError)
class VmapInTrunk(Base):
    def forward(self, x):
        return self.head(torch.vmap(lambda row: row.sin() * 2)(self.body(x)))


@odd()
class VmapInHead(Base):
    def forward(self, x):
        return torch.vmap(lambda row: row.sin() * 2)(self.head(self.body(x)))


@odd(refusal=ForethoughtError)
class VmapAtFrontier(Base):
    def forward(self, x):
        return torch.vmap(self.head)(self.body(x))


@odd()
class FunctionalCall(Base):
    def forward(self, x):
        h = self.body(x)
        doubled = {name: value * 2 for name, value in self.head.named_parameters()}
        return torch.func.functional_call(self.head, doubled, (h,))


@odd()
class RawOperators(Base):
    def forward(self, x):
        h = torch.ops.aten.relu(self.body(x))
        return torch.ops.aten.add.Tensor(self.head(h), h[:, :3])


# The laws -------------------------------------------------------------------------------------------------------------


class LawError(AssertionError):
    """A law of the split does not hold."""


def leaves(value: Any) -> list[Any]:
    """Flatten any value into tensors and plain values, types of containers included."""
    if isinstance(value, Tensor) or value is None or isinstance(value, bool | int | float | str):
        return [value]
    if isinstance(value, dict):
        inside = [part for key, item in value.items() for part in [key, *leaves(item)]]
    elif isinstance(value, list | tuple | collections.deque):
        inside = [part for item in value for part in leaves(item)]
    else:
        names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__slots__", ())]
        inside = [
            part for name in sorted(names) if hasattr(value, name) for part in [name, *leaves(getattr(value, name))]
        ]
    return [type(value), *inside]


def compare(wanted: Any, got: Any, what: str) -> None:
    """Demand the same types, the same plain values, and bit-equal tensors."""
    a, b = leaves(wanted), leaves(got)
    if len(a) != len(b):
        raise LawError(f"{what}: {len(a)} parts, then {len(b)}")
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            if type(x) is not type(y):
                raise LawError(f"{what}: a {type(x).__name__}, then a {type(y).__name__}")
            if x.dtype != y.dtype or x.shape != y.shape or x.device != y.device:
                raise LawError(f"{what}: {x.dtype} {tuple(x.shape)}, then {y.dtype} {tuple(y.shape)}")
            x, y = x.detach(), y.detach()  # of complex numbers, `nan_to_num` has no derivative
            if not torch.equal(x.isnan(), y.isnan()) or not torch.equal(x.nan_to_num(), y.nan_to_num()):
                raise LawError(f"{what}: off by {(x.double() - y.double()).abs().max():.3g}")
        elif isinstance(x, Tensor) or isinstance(y, Tensor) or type(x) is not type(y) or x != y:
            raise LawError(f"{what}: {x!r}, then {y!r}")


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything that a split must leave as it is, by name."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in {"_parameters", "_buffers"}:
                for inner, tensor in value.items():
                    found[f"{name}.{inner}"] = _trace(tensor)
            elif isinstance(value, dict) and key.startswith("_"):
                found[f"{name}.{key}"] = [(k, id(v)) for k, v in value.items()]
            else:
                found[f"{name}.{key}"] = _trace(value)
        found[f"{name} is"] = type(module)
    found["torch random state"] = torch.get_rng_state().tolist()
    found["modes"] = list(torch.overrides._get_current_function_mode_stack())
    found["grad"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    found["global hooks"] = [len(getattr(nn.modules.module, f"_global_{k}_hooks")) for k in ("forward", "forward_pre")]
    return found


def _trace(value: Any) -> Any:
    if isinstance(value, Tensor):
        ungraded = not value.is_leaf or value.grad is None  # torch warns of whoever asks a tensor that is no leaf
        return id(value), value.requires_grad, ungraded, value.detach().clone().flatten().tolist()
    if isinstance(value, Notes):
        return {key: _trace(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return [(repr(key), _trace(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_trace(item) for item in value]
    return repr(value) if isinstance(value, bool | int | float | str) or value is None else id(value)


def demand_untouched(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    """Demand that nothing was left behind."""
    changed = sorted(
        key for key in before.keys() | after.keys() if before.get(key, "absent") != after.get(key, "absent")
    )
    if changed:
        key = changed[0]
        raise LawError(
            f"{what} left something behind: {changed[:4]}; {key} was {str(before.get(key, 'absent'))[:60]}, "
            f"is {str(after.get(key, 'absent'))[:60]}"
        )


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def _loss(output: Any) -> Tensor | None:
    parts = [t for t in leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in parts]
    if not parts:
        return None
    return sum((part * torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).view_as(part)).sum() for part in parts)


def _grads(model: nn.Module, output: Any) -> dict[str, Tensor | None]:
    for parameter in model.parameters():
        parameter.grad = None
    loss = _loss(output)
    if loss is not None:
        loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    return found


def check(case: Case, split: Callable) -> None:
    """Demand every law of the split from one case.

    Raises:
        LawError: a law does not hold: numbers differ, or something is left behind.
        ForethoughtError: the case is refused.
    """
    torch.manual_seed(0)
    model = case.make().train(case.train)
    feeds = [case.feed(size) for size in case.sizes]
    before = traces(model)
    try:
        parts = split(model, *_copied(feeds[0]), at=case.at)
    finally:
        demand_untouched(before, traces(model), "the split")
    wanted = [id(p) for p in model.parameters() if p.requires_grad]
    if sorted(wanted) != sorted(id(p) for p in parts.head.parameters()):
        raise LawError("head.parameters() are not the model's trainable ones")
    for size, feed in zip(case.sizes[1:], feeds[1:], strict=True):
        _same(model, parts, feed, f"batch {size}")


def _put_back(held: list[tuple[dict, dict]], buffers: dict[str, Tensor], model: nn.Module) -> None:
    """Let the model have the buffers, and the numbers in them, that it had."""
    for now, before in held:
        now.clear()
        now.update(before)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _same(model: nn.Module, parts: Any, feed: Any, what: str) -> None:
    buffers, held = _buffers(model), [(m._buffers, dict(m._buffers)) for m in model.modules()]

    def live():
        args, kwargs = _copied(feed)
        return model(*args, **kwargs)

    def halves():
        args, kwargs = _copied(feed)
        values = parts.trunk(*args, **kwargs)
        for value in values if isinstance(values, tuple) else (values,):
            if value.requires_grad or value.grad_fn is not None:
                raise LawError(f"{what}: the trunk built a graph")
        return parts.head(values)

    results = []
    for run in (live, halves, live):
        with torch.no_grad():
            _put_back(held, buffers, model)
        torch.manual_seed(1)
        output = run()
        grads = _grads(model, output)  # a graph may be walked once
        results.append((output, grads, _buffers(model)))
    for title, (output, grads, after) in zip(("head(trunk(x))", "the model afterwards"), results[1:], strict=True):
        compare(results[0][0], output, f"{what}, {title}")
        compare(results[0][1], grads, f"{what}, gradients of {title}")
        compare(results[0][2], after, f"{what}, buffers after {title}")


def _copied(feed: Any) -> Any:
    """Copy the tensors of a feed: a model may write into its inputs."""
    if isinstance(feed, Tensor):
        return feed.clone()
    if isinstance(feed, dict):
        return {key: _copied(value) for key, value in feed.items()}
    if isinstance(feed, list | tuple):
        return type(feed)(_copied(value) for value in feed)
    return feed
