"""Small models as papers have them: routing by value, packed text, filters in frequency, adapters without a library.

`WAYS` is the table; a case is one of `odd_models`, and the same laws hold.
"""

import math

import torch
import torch.nn.functional as F
from odd_models import Base, Case, frozen, ids, images, rows, tokens
from torch import nn

WAYS: list[Case] = []


def way(feed=rows):
    """Enter a module class into the table, in both modes."""

    def enter(make):
        WAYS.extend(Case(f"{make.__name__}{'-train' * train}", make, feed, train=train) for train in (False, True))
        return make

    return enter


def masked(batch):
    """Feed token numbers (B, 5) and which of them count."""
    lengths = torch.randint(1, 6, (batch, 1))
    return (torch.randint(0, 10, (batch, 5)),), {"mask": torch.arange(5) < lengths}


def graphs(batch):
    """Feed nodes (B, 4, 6) and who is whose neighbour (B, 4, 4)."""
    return (torch.randn(batch, 4, 6), (torch.rand(batch, 4, 4) > 0.5).float()), {}


@way(tokens)
class RoutedExperts(nn.Module):
    """The best two of three experts for each token, by a frozen router; an expert without tokens is not run."""

    def __init__(self):
        super().__init__()
        self.body, self.router = frozen(nn.Linear(6, 8)), frozen(nn.Linear(8, 3))
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        flat = self.body(x).flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2, -1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if token.numel():
                out.index_add_(0, token, expert(flat[token]) * weights[token, place, None])
        return self.head(out.view(*x.shape[:2], 8))


@way(tokens)
class ExpertsOfACapacity(nn.Module):
    """Each expert takes so many tokens of the batch; the rest pass it by."""

    def __init__(self):
        super().__init__()
        self.body, self.router = frozen(nn.Linear(6, 8)), frozen(nn.Linear(8, 3))
        self.weight, self.head = nn.Parameter(torch.randn(3, 8, 8)), nn.Linear(8, 2)

    def forward(self, x):
        h = self.body(x).flatten(0, 1)
        chosen = self.router(h).argmax(-1)
        one = F.one_hot(chosen, 3)
        place = (one.cumsum(0) * one).sum(-1) - 1
        capacity = math.ceil(len(h) / 3)
        kept = place < capacity
        taken = h.new_zeros(3, capacity, 8)
        taken[chosen[kept], place[kept]] = h[kept]
        out = torch.bmm(taken, self.weight)
        y = h.clone()
        y[kept] = out[chosen[kept], place[kept]]
        return self.head(y.view(*x.shape[:2], 8))


@way(masked)
class PackedTokens(nn.Module):
    """Padding is taken out before the layers and put back after them."""

    def __init__(self):
        super().__init__()
        self.words, self.body = frozen(nn.Embedding(10, 8)), frozen(nn.Linear(8, 8))
        self.late, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids, mask):
        at = mask.flatten().nonzero()[:, 0]
        h = self.late(self.body(self.words(ids).flatten(0, 1)[at]).tanh())
        out = h.new_zeros(mask.numel(), 8)
        out[at] = h
        return self.head(out.view(*ids.shape, 8))


@way(masked)
class CutToTheLongest(nn.Module):
    """A batch is cut to its longest text before anything else."""

    def __init__(self):
        super().__init__()
        self.words, self.head = frozen(nn.Embedding(10, 8)), nn.Linear(8, 2)

    def forward(self, ids, mask):
        return self.head(self.words(ids[:, : int(mask.sum(1).max())]))


@way(ids)
class StepByStep(nn.Module):
    """A decoder that keeps keys and values in lists and attends one token at a time."""

    def __init__(self):
        super().__init__()
        self.words, self.ask, self.key = frozen(nn.Embedding(10, 8)), frozen(nn.Linear(8, 8)), frozen(nn.Linear(8, 8))
        self.value, self.head = nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, ids):
        h, keys, values, out = self.words(ids), [], [], []
        for at in range(ids.shape[1]):
            keys.append(self.key(h[:, at]))
            values.append(self.value(h[:, at]))
            asked = self.ask(h[:, at : at + 1])
            out.append(F.scaled_dot_product_attention(asked, torch.stack(keys, 1), torch.stack(values, 1))[:, 0])
        return self.head(torch.stack(out, 1))


@way(images)
class FilterOfFrequencies(nn.Module):
    """Complex weights that train, between a transform and its inverse."""

    def __init__(self):
        super().__init__()
        self.body, self.filter = frozen(nn.Conv2d(3, 4, 1)), nn.Parameter(torch.randn(4, 8, 5, 2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.body(x)
        waves = torch.fft.rfft2(h, norm="ortho") * torch.view_as_complex(self.filter)
        return self.head(torch.fft.irfft2(waves, s=h.shape[-2:], norm="ortho").mean((2, 3)))


@way()
class OnlyBiases(nn.Module):
    """All weights frozen, every bias but the first trains."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("bias" in name and not name.startswith("net.0"))

    def forward(self, x):
        return self.net(x)


@way(tokens)
class Prefix(nn.Module):
    """Rows that train, before the keys of a frozen attention."""

    def __init__(self):
        super().__init__()
        self.body, self.prefix = frozen(nn.Linear(6, 8)), nn.Parameter(torch.randn(2, 8))
        self.attention, self.head = frozen(nn.MultiheadAttention(8, 2, batch_first=True)), nn.Linear(8, 3)

    def forward(self, x):
        h = self.body(x)
        keys = torch.cat([self.prefix.expand(len(h), -1, -1), h], 1)
        out, weights = self.attention(h, keys, keys, need_weights=False)
        return self.head(out + h), weights


@way()
class NearestCode(Base):
    """The nearest of frozen codes, straight through."""

    def __init__(self):
        super().__init__()
        self.codes = frozen(nn.Embedding(5, 8))

    def forward(self, x):
        h = self.body(x)
        nearest = torch.cdist(h, self.codes.weight).argmin(1)
        code = self.codes(nearest)
        return self.head(h + (code - h).detach()), nearest, F.mse_loss(code, h)


@way(graphs)
class Messages(nn.Module):
    """Messages along the edges that are there, summed at their ends."""

    def __init__(self):
        super().__init__()
        self.body, self.message, self.head = frozen(nn.Linear(6, 8)), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x, edges):
        size, nodes = x.shape[:2]
        h = self.body(x).flatten(0, 1)
        graph, start, end = edges.nonzero(as_tuple=True)
        start, end = start + graph * nodes, end + graph * nodes
        sent = self.message(torch.cat([h[start], h[end]], -1))
        return self.head(torch.zeros_like(h).index_add(0, end, sent).view(size, nodes, -1).mean(1))


@way()
class WeightsFromFeatures(Base):
    """What trains gives each sample weights, and a frozen layer reads the result."""

    def __init__(self):
        super().__init__()
        self.weights, self.late = nn.Linear(8, 16), frozen(nn.Linear(2, 3))

    def forward(self, x):
        h = self.body(x)
        return self.late(torch.bmm(h[:, None], self.weights(h).view(-1, 8, 2))[:, 0])
