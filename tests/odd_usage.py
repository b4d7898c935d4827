"""Small models as users write them: caches, packed and nested inputs, sparse and complex layers, losses in the forward.

`USAGE` is the table; a case is one of `odd_models`, and the same laws hold.
"""

import contextlib
import functools
import math
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from odd_models import Base, Case, frozen, ids, images, rows, tokens
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

USAGE: list[Case] = []


def usage(feed=rows, **promise):
    """Enter a module class, or a function that builds a module, into the table, in both modes unless told."""

    def enter(make):
        modes = (promise.pop("train"),) if "train" in promise else (False, True)
        name = make.__name__.strip("_")
        USAGE.extend(Case(f"{name}{'-train' * train}", make, feed, train=train, **promise) for train in modes)
        return make

    return enter


# Caches ---------------------------------------------------------------------------------------------------------------


@usage(tokens)
class RotaryCache(nn.Module):
    """Angles kept by length in a dict, as plain tensors, made when first asked for."""

    def __init__(self):
        super().__init__()
        self.body, self.query, self.head = frozen(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Linear(8, 3)
        self.cache = {}

    def angles(self, x):
        key = (x.shape[1], x.dtype)
        if key not in self.cache:
            t = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / torch.arange(1, 5, dtype=x.dtype)
            self.cache[key] = t.cos(), t.sin()
        return self.cache[key]

    def forward(self, x):
        h = self.body(x)
        cos, sin = self.angles(x)
        a, b = self.query(h).chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        return self.head(turned + h)


@usage(tokens)
class MaskCacheOnClass(Base):
    """A causal mask kept on the class, grown when a longer text comes."""

    mask = torch.zeros(0, 0)

    def forward(self, x):
        n = x.shape[1]
        if type(self).mask.shape[0] < n:
            type(self).mask = torch.full((n, n), float("-inf")).triu(1)
        h = self.body(x)
        scores = h @ h.transpose(1, 2) + type(self).mask[:n, :n]
        return self.head(scores.softmax(-1) @ h)


@functools.lru_cache(maxsize=8)
def _grid(height, width):
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y])


@usage(images)
class CoordConv(nn.Module):
    """Coordinates from a cached function beside the picture."""

    def __init__(self):
        super().__init__()
        self.body, self.mid, self.head = frozen(nn.Conv2d(5, 6, 3, padding=1)), nn.Conv2d(8, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        grid = _grid(*x.shape[-2:]).expand(x.shape[0], -1, -1, -1)
        h = self.body(torch.cat([x, grid], 1))
        return self.head(self.mid(torch.cat([h, grid], 1)).mean((2, 3)))


@usage()
class LazyBuffer(Base):
    """A buffer that is None until the first forward fills it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", None, persistent=False)

    def forward(self, x):
        if self.scale is None:
            self.scale = torch.linspace(1, 2, 8, device=x.device)
        return self.head(self.body(x) * self.scale)


# Reshaping ------------------------------------------------------------------------------------------------------------


@usage(images)
class Patches(nn.Module):
    """Unfold, fold, einsum and pixel shuffles by hand."""

    def __init__(self):
        super().__init__()
        self.body = frozen(nn.Conv2d(3, 4, 1))
        self.mix = nn.Parameter(torch.randn(4, 4) / 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        b, _, h, w = x.shape
        y = self.body(x)
        p = y.unfold(2, 4, 4).unfold(3, 4, 4)
        p = torch.einsum("bchwij,cd->bdhwij", p, self.mix)
        p = self.head(p.reshape(b, 4, -1, 16)).view(b, 4, h // 4, w // 4, 2, 2)
        q = p.permute(0, 1, 2, 4, 3, 5).reshape(b, 4, h // 2, w // 2)
        return F.fold(F.unfold(F.pixel_shuffle(q, 2), 2), (h, w), 2) + y[:, :1]


@usage(tokens)
class TimeFolded(nn.Module):
    """(B, T, D) run as (B * T, D), and groups of a batch compared."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = frozen(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        b, t = x.shape[:2]
        h = self.body(x.flatten(0, 1)).relu()
        return self.head(self.norm(h)).unflatten(0, (b, t)).transpose(0, 1)


@usage(images)
class SqueezeAll(nn.Module):
    """`squeeze()` without an axis, as many write it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = frozen(nn.Conv2d(3, 8, 8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x).squeeze())


# Hooks ----------------------------------------------------------------------------------------------------------------


@usage()
def _hooks_change_inputs_and_outputs():
    model = Base()
    model.body[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.body[2].register_forward_hook(lambda module, args, output: output + args[0].mean())
    model.head.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))
    return model


@usage()
def _hooks_with_keywords():
    model = Base()
    model.body.register_forward_hook(lambda m, args, kwargs, output: output * 1.5, with_kwargs=True)
    model.head.register_forward_hook(lambda m, args, kwargs, output: (output, args[0]), with_kwargs=True)
    return model


@usage()
def _hook_always_called():
    model = Base()
    model.body.register_forward_hook(lambda m, args, output: output.clone(), always_call=True, prepend=True)
    return model


@usage()
class HookOnFrontierKeepsFeatures(Base):
    """A hook puts what it sees into a dict that the forward reads: the usual way of taking features."""

    def __init__(self):
        super().__init__()
        self.seen = {}
        self.body[0].register_forward_hook(functools.partial(self._keep, "first"))
        self.body[2].register_forward_hook(functools.partial(self._keep, "last"))

    def _keep(self, name, module, args, output):
        self.seen[name] = output

    def forward(self, x):
        self.body(x)
        y = self.head(self.seen["last"] + self.seen["first"].relu())
        self.seen.clear()
        return y


@usage()
class TensorHooks(Base):
    def forward(self, x):
        h = self.body(x)
        y = self.head(h)
        if y.requires_grad:
            y.register_hook(lambda grad: grad * 2)
        return y


# Constants of the batch ----------------------------------------------------------------------------------------------


@usage()
class WhereOnPosition(Base):
    def forward(self, x):
        h = self.body(x)
        even = torch.arange(x.shape[0]) % 2 == 0
        return torch.where(even[:, None], self.head(h), self.head(-h))


@usage()
class MixupByFlip(Base):
    def forward(self, x):
        h = self.body(x)
        return self.head(0.7 * h + 0.3 * h.flip(0))


@usage()
class Contrastive(Base):
    """Logits of all against all, with labels made from the batch."""

    def forward(self, x):
        z = F.normalize(self.head(self.body(x)), dim=-1)
        logits = z @ z.T
        return F.cross_entropy(logits, torch.arange(x.shape[0])), logits


# Texts ----------------------------------------------------------------------------------------------------------------


@usage(ids)
class PaddedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = frozen(nn.Embedding(10, 8, padding_idx=0))
        self.own = nn.Embedding(10, 8, padding_idx=0)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        mask = (ids != 0).unsqueeze(-1)
        h = self.embed(ids) + self.own(ids)
        return self.head((h * mask).sum(1) / mask.sum(1).clamp(min=1))


def _lengths(batch):
    return (torch.randn(batch, 5, 6), torch.randint(1, 6, (batch,))), {}


@usage(_lengths)
class PackedLSTM(nn.Module):
    """Frozen LSTM over packed texts, another one that trains after it."""

    def __init__(self):
        super().__init__()
        self.body = frozen(nn.LSTM(6, 8, batch_first=True, bidirectional=True))
        self.own = nn.LSTM(16, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True, total_length=x.shape[1])
        packed = rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.own(packed)[1][0][-1])


@usage(_lengths)
class PackedToLongest(PackedLSTM):
    """Padded to the longest text of the batch, not to all."""

    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True)
        return self.head(self.own(h)[0]).mean(1) / h.shape[1]


@usage(tokens)
class CellsInALoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.cell, self.head = frozen(nn.GRU(6, 8, batch_first=True)), nn.GRUCell(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h, last = self.body(x)
        state = last[0]
        for t in range(h.size(1)):
            state = self.cell(h[:, t], state)
        return self.head(state)


@usage(ids)
class TiedDecoder(nn.Module):
    """The frozen embedding is the output layer too, behind what trains."""

    def __init__(self):
        super().__init__()
        self.embed = frozen(nn.Embedding(10, 8))
        self.mid = nn.Linear(8, 8)
        self.out = nn.Linear(8, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(self.mid(self.embed(ids)).relu())


@usage(ids)
class TiedAndTrained(TiedDecoder):
    """The embedding trains, as the output layer does: nothing of it is frozen but a path beside it."""

    def __init__(self):
        super().__init__()
        self.embed.weight.requires_grad_(True)
        self.side = frozen(nn.Embedding(10, 8))

    def forward(self, ids):
        return self.out(self.mid(self.side(ids).relu()) + self.embed(ids))


# Which layers run -----------------------------------------------------------------------------------------------------


@usage()
class SkipsLayersInTraining(Base):
    """Stochastic depth by Python's choice, in training only; it draws from torch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x):
        h = self.body(x)
        for layer in self.layers:
            if self.training and torch.rand(()) < 0.5:
                continue
            h = h + layer(h)
        return self.head(h)


@usage()
class MaskedAutoencoder(nn.Module):
    """Random tokens are left out by what is frozen; the decoder that trains is told which, and asks of the rest."""

    def __init__(self):
        super().__init__()
        self.body, self.empty = frozen(nn.Linear(3, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x):
        x = x.view(len(x), 2, 3)
        order = torch.rand(x.shape[:2]).argsort(1)
        kept = torch.gather(x, 1, order[:, :1, None].expand(-1, -1, 3))
        h = torch.cat([self.body(kept), self.empty.expand(len(x), -1, -1)], 1)
        h = torch.gather(h, 1, order.argsort(1)[..., None].expand(-1, -1, 8))
        return (self.head(h) - x).square().mean(-1) * (order > 0), order


@usage()
class NoisyFeatures(Base):
    """Noise on what is frozen, made in three ways, and dropout after it."""

    def forward(self, x):
        h = self.body(x)
        h = h + torch.randn(8) + torch.randn_like(h) * h.new_empty(h.shape).bernoulli_(0.5)
        return F.dropout(self.head(h), 0.5, self.training)


@usage()
class EarlyExit(Base):
    """Which of the heads answers is decided by how many samples there are."""

    def __init__(self):
        super().__init__()
        self.small = nn.Linear(8, 3)

    def forward(self, x):
        h = self.body(x)
        return self.small(h) if x.shape[0] > 4 else self.head(h)


@usage()
class StateInALoop(Base):
    """A list on the model that the forward fills, reads and empties."""

    def __init__(self):
        super().__init__()
        self.states = []
        self.depth = 0

    def forward(self, x):
        self.states.clear()
        for layer in self.body:
            x = layer(x)
            self.states.append(x)
        self.depth = len(self.states)
        return self.head(sum(s for s in self.states if s.shape[-1] == 8)) / self.depth


@usage()
class Ensemble(nn.Module):
    """Frozen members, weighed by what trains."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList([frozen(nn.Linear(6, 3)) for _ in range(3)])
        self.weights = nn.Parameter(torch.zeros(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        votes = torch.stack([member(x).softmax(-1) for member in self.members], -1)
        return votes @ self.weights.softmax(0)


@usage(train=False)
class Mixture(Base):
    """Experts picked by a router that trains; which of them run depends on the values."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Linear(8, 3), frozen(nn.Linear(8, 3)), nn.Linear(8, 3)])

    def forward(self, x):
        h = self.body(x)
        weights, picked = self.router(h).softmax(-1).max(-1)
        out = h.new_zeros(x.shape[0], 3)
        for at, expert in enumerate(self.experts):
            chosen = (picked == at).nonzero().flatten()
            if chosen.numel():
                out = out.index_add(0, chosen, expert(h[chosen]) * weights[chosen, None])
        return out


# Checkpoints, functional calls, transforms ----------------------------------------------------------------------------


@usage()
class CheckpointedBlocks(Base):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])

    def forward(self, x):
        h = self.body(x)
        return self.head(checkpoint_sequential(self.blocks, 2, h, use_reentrant=False))


@usage()
class CheckpointWithDropout(Base):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        h = self.body(x)
        return self.head(checkpoint(lambda t: self.drop(t) * 2, h * self.head.weight.sum(), use_reentrant=False))


@usage()
class FunctionalCallWithNewWeights(Base):
    def __init__(self):
        super().__init__()
        self.hyper = nn.Linear(8, 24)

    def forward(self, x):
        h = self.body(x)
        weight = self.hyper(h.mean(0)).view(3, 8)
        return torch.func.functional_call(self.head, {"weight": weight}, (h,))


@usage()
class GradOfTheInput(Base):
    """A gradient penalty: the head's own derivative."""

    def forward(self, x):
        h = self.body(x)
        y = self.head(h).sin()
        if not torch.is_grad_enabled():
            return y, y.sum() * 0
        z = h.detach().requires_grad_()
        grad = torch.autograd.grad(self.head(z).sin().sum(), z, create_graph=True)[0]
        return y, grad.square().sum()


@usage()
class AsksForGradients(Base):
    """What crosses is made to require gradients by the forward itself."""

    def forward(self, x):
        h = self.body(x)
        h.requires_grad_()
        return self.head(h)


@usage()
class Jacobian(Base):
    """`torch.func` over the part that trains."""

    def forward(self, x):
        h = self.body(x)
        jac = torch.func.vmap(torch.func.jacrev(lambda t: F.linear(t, self.head.weight).sin()))(h)
        return self.head(h) + jac.sum(-1)


# Kinds of tensors -----------------------------------------------------------------------------------------------------


@usage(tokens)
class Fourier(nn.Module):
    """Frozen mixing by FFT, complex weights that train."""

    def __init__(self):
        super().__init__()
        self.body = frozen(nn.Linear(6, 8))
        self.filter = nn.Parameter(torch.randn(3, 8, dtype=torch.cfloat))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        f = torch.fft.rfft(self.body(x), dim=1)
        y = torch.fft.irfft(f * self.filter[: f.shape[1]], n=x.shape[1], dim=1)
        return self.head(y) + f.abs().mean()


@usage()
class SparseAdjacency(Base):
    """A graph layer: a constant sparse matrix, made from edges kept as a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 3, 7], [1, 2, 3, 4, 0]]))

    def forward(self, x):
        h = self.body(x)
        adjacency = torch.sparse_coo_tensor(self.edges, torch.ones(5), (8, 8))
        h = torch.sparse.mm(adjacency, h.T).T
        return self.head(torch.sparse.mm(adjacency, self.head.weight.T @ self.head(h).T).T)


@usage()
class NestedTensors(Base):
    """Texts of several lengths as one nested tensor."""

    def forward(self, x):
        h = self.body(x)
        nested = torch.nested.nested_tensor([h[:2], h[2:]], layout=torch.jagged)
        return torch.cat(list((nested * 2).unbind())) @ self.head.weight.T


@usage()
class Quantised(Base):
    """Rounded codes of frozen values, looked up in a table that trains."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 3)

    def forward(self, x):
        h = self.body(x)
        codes = ((h.sigmoid() * 15).round()).to(torch.uint8)
        return self.table(codes.long()).sum(1) + self.head(codes.float())


@usage()
class HalfPrecisionPart(Base):
    def __init__(self):
        super().__init__()
        self.low = frozen(nn.Linear(8, 8)).bfloat16()

    def forward(self, x):
        h = self.low(self.body(x).bfloat16())
        return self.head(h.float()) + h[:, :3]


@usage()
class AutocastAroundTheHead(Base):
    def forward(self, x):
        h = self.body(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.head(h)
            with torch.autocast("cpu", enabled=False):
                z = self.head(h)
        return y.float() + z


# What goes in and out -------------------------------------------------------------------------------------------------


@dataclass
class Output:
    loss: Tensor | None = None
    logits: Tensor | None = None
    states: tuple[Tensor, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


Pair = namedtuple("Pair", "logits hidden")


def _labelled(batch):
    return (), {"x": torch.randn(batch, 6), "labels": torch.randint(0, 3, (batch,))}


@usage(_labelled)
class LossInForward(Base):
    def forward(self, *, x, labels=None):
        h = self.body(x)
        logits = self.head(h)
        loss = None if labels is None else F.cross_entropy(logits, labels, label_smoothing=0.1)
        return Output(loss, logits, (h, h * 2), {"count": x.shape[0], "none": None})


@usage(lambda b: ((), {"x": torch.randn(b, 6), "labels": None}))
class NoLabels(LossInForward):
    pass


@usage(lambda b: (({"x": [torch.randn(b, 6), torch.randn(b, 6)], "meta": {"w": torch.rand(b)}},), {}))
class NestedInput(Base):
    def forward(self, batch):
        a, b = (self.body(x) for x in batch["x"])
        return Pair(self.head(a * batch["meta"]["w"][:, None]), {"b": b, "none": (None, [b.mean()])})


@usage()
class NoneAndFlags(Base):
    def forward(self, x, mask=None, return_all=True):
        h = self.body(x)
        return (self.head(h), None, [h, None], {"mask": mask}) if return_all else self.head(h)


@usage(lambda b: ((torch.randn(b, 6),), {"weights": torch.rand(b), "ignore": torch.rand(b) > 0.5}))
class WeighedLoss(Base):
    def forward(self, x, weights, ignore):
        y = self.head(self.body(x))
        kept = y[~ignore]
        return (y.square().mean(1) * weights).sum(), kept.sum()


# Writing in place ----------------------------------------------------------------------------------------------------


@usage()
class InPlaceAfterFrontier(Base):
    """ReLU in place on the very tensor that crosses, which the output gives back as well."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x):
        h = self.body(x)
        y = h + self.bias
        F.relu_(h)
        return self.head(y) + self.head(h), h


@usage()
class ViewsSharedAcross(Base):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x):
        h = self.body(x)
        left, right = h[:, :4], h[:, 4:]
        right.mul_(2)
        y = h + self.bias
        left.zero_()
        return self.head(y), self.head(h), left, right


@usage()
class ResidualInPlace(Base):
    """`x += f(x)` where f trains."""

    def __init__(self):
        super().__init__()
        self.mid = nn.Linear(8, 8)

    def forward(self, x):
        h = self.body(x)
        h += self.mid(h * 1)
        h[:, 0] = 1
        return self.head(h.clone())


@usage()
class MemoryBank(Base):
    """Frozen features compared with a buffer of earlier ones."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.randn(16, 8))

    def forward(self, x):
        h = self.body(x)
        keys = F.normalize(h, dim=1)
        return self.head(h) + (keys @ self.bank.T).mean(1, keepdim=True)


@usage(train=True)
class MovingAverage(Base):
    """An average of frozen features, kept in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(8))

    def forward(self, x):
        h = self.body(x)
        y = self.head(h - self.center)
        if self.training:
            self.center = self.center * 0.9 + h.detach().mean(0) * 0.1
        return y


# Python that is not only tensors -------------------------------------------------------------------------------------


@usage()
class GeneratorForward(Base):
    def parts(self, x):
        for layer in self.body:
            x = layer(x)
            yield x

    def forward(self, x):
        *_, last = self.parts(x)
        return self.head(last)


@usage()
class ContextManagers(Base):
    @contextlib.contextmanager
    def scaled(self, factor):
        self.factor = factor
        try:
            yield
        finally:
            del self.factor

    def forward(self, x):
        with self.scaled(2.0):
            h = self.body(x) * self.factor
        with torch.no_grad():
            low = h.min()
        return self.head(h - low)


@usage()
class DecoratedForward(Base):
    @staticmethod
    def _twice(function):
        @functools.wraps(function)
        def run(self, *args, **kwargs):
            return function(self, *args, **kwargs) + function(self, *args, **kwargs)

        return run

    def forward(self, x):
        return self.answer(self.body(x))

    def answer(self, h):
        return self.head(h)


DecoratedForward.answer = DecoratedForward._twice(DecoratedForward.answer)


@usage()
class PropertyModules(Base):
    """Layers reached through properties and __getattr__."""

    @property
    def last(self):
        return self.body[-1]

    def forward(self, x):
        h = x
        for name in ("0", "1"):
            h = getattr(self.body, name)(h)
        return self.head(self.last(h)) * self.last.weight.norm()


@usage()
class ModuleDictByKey(Base):
    def __init__(self):
        super().__init__()
        self.tasks = nn.ModuleDict({"a": nn.Linear(8, 3), "b": frozen(nn.Linear(8, 3))})

    def forward(self, x):
        h = self.body(x)
        return {name: task(h) for name, task in self.tasks.items()}


@usage()
class ParameterListAndDict(Base):
    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(8)) for _ in range(2)])
        self.shifts = nn.ParameterDict({"a": nn.Parameter(torch.rand(8), requires_grad=False)})

    def forward(self, x):
        h = self.body(x) + self.shifts["a"]
        for scale in self.scales:
            h = h * scale
        return self.head(h)


@usage(tokens)
class AttentionByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.qkv, self.out = frozen(nn.Linear(6, 8)), nn.Linear(8, 24), nn.Linear(8, 3)
        self.register_buffer("mask", torch.ones(16, 16).tril().view(1, 1, 16, 16).bool())

    def forward(self, x):
        b, t, _ = x.size()
        h = self.body(x)
        q, k, v = self.qkv(h).split(8, dim=2)
        q, k, v = (part.view(b, t, 2, 4).transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(~self.mask[:, :, :t, :t], float("-inf")).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).contiguous().view(b, t, 8))


@usage(tokens)
class CrossAttention(nn.Module):
    """Queries that train look at frozen keys: a small head of its own kind."""

    def __init__(self):
        super().__init__()
        self.body = frozen(nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True))
        self.queries = nn.Parameter(torch.randn(1, 2, 6))
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        h = self.body(x)
        return self.attend(self.queries.expand(len(x), -1, -1), h, h, average_attn_weights=False)


@usage(lambda b: ((torch.randn(b, 2, 5, 6),), {}))
class ManyViews(nn.Module):
    """Two views of a sample through one frozen body, compared without a gradient on one side."""

    def __init__(self):
        super().__init__()
        self.body, self.project, self.predict = frozen(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        a, b = (self.project(self.body(view).mean(1)) for view in x.unbind(1))
        return -(F.cosine_similarity(self.predict(a), b.detach()) + F.cosine_similarity(self.predict(b), a.detach()))


@usage()
class StopGradients(Base):
    """Straight-through rounding, and a detached branch."""

    def forward(self, x):
        y = self.head(self.body(x))
        rounded = y + (y.round() - y).detach()
        return rounded + y.detach().mean()


@usage(train=True)
class BatchStatisticsOfFrozen(nn.Module):
    """BatchNorm that trains right behind what is frozen, with no running averages."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = (
            frozen(nn.Linear(6, 8)),
            nn.BatchNorm1d(8, track_running_stats=False),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


@usage()
class Parametrized(Base):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.orthogonal(self.head)
        nn.utils.parametrizations.weight_norm(self.body[0])
        frozen(self.body)


@usage(tokens)
class Positions(nn.Module):
    """Learned positions that train, added to frozen tokens."""

    def __init__(self):
        super().__init__()
        self.body, self.positions, self.head = frozen(nn.Linear(6, 8)), nn.Embedding(12, 8), nn.Linear(8, 3)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x):
        h = self.body(x)
        h = torch.cat([self.cls.expand(h.shape[0], -1, -1), h], dim=1)
        return self.head(h + self.positions(torch.arange(h.shape[1], device=h.device)))[:, 0]
