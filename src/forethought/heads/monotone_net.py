"""A network that is monotone in named features, whatever its weights become."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.heads.exact import Exact
from forethought.heads.proofs import not_at_least
from forethought.heads.steady import dot, softsign

_FARTHEST = 1e6  # spreads: beyond it a feature counts as that far, so that no product or sum is infinite
_LARGEST = 1e20  # weights above it could make one all the same


class MonotoneNet(nn.Module):
    """Features (B, D) to a number (B,) that rises with each feature of sign 1 and falls with each of sign -1.

    A monotone feature is first bent by a rising broken line of its own. It then meets only weights that cannot be
    negative (a softplus of what is trained) and rising activations; free features meet any weights, and join it at
    every layer. In evaluation the sums run in a fixed order, element by element (steady.py), as in a matrix product two
    equal rows of a batch may come out different; in training they are matrix products, for speed.

    Args:
        signs: One of -1, 0, 1 a feature, not all 0.
        hidden: Sizes of the layers in which features interact; none: a sum of one term a feature.
        keypoints: Corners of the broken line of each monotone feature.
        dtype: Of the parameters, float32 or float64.
    """

    def __init__(self, signs: Sequence[int], hidden: Sequence[int], keypoints: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.signs, self.hidden = tuple(signs), tuple(hidden)
        named = [i for i, sign in enumerate(signs) if sign]
        free = [i for i, sign in enumerate(signs) if not sign]
        self.named, self.others = named, free
        self.is_baked = False
        start = torch.linspace(-2, 2, keypoints + 1, dtype=torch.promote_types(dtype or torch.float32, torch.float32))
        self.exact = Exact(
            middle=torch.zeros(len(signs), dtype=start.dtype),
            spread=torch.ones(len(signs), dtype=start.dtype),
            corners=start.repeat(len(named), 1),
        )
        self.heights = nn.Parameter(torch.full((len(named), keypoints), _unsoft(1 / keypoints), dtype=dtype))
        self.tails = nn.Parameter(torch.full((len(named),), _unsoft(0.05), dtype=dtype))
        self.straight = nn.Parameter(torch.zeros(1, len(free), dtype=dtype)) if free else None
        self.bias = nn.Parameter(torch.full((), -0.5 * len(named), dtype=dtype))
        beside = hidden[0] if hidden and free else 0
        self.embed: nn.Parameter | None = None
        self.embed_bias: nn.Parameter | None = None
        if beside:
            self.embed = nn.Parameter(torch.randn(beside, len(free), dtype=dtype) / len(free) ** 0.5)
            self.embed_bias = nn.Parameter(torch.zeros(beside, dtype=dtype))
        sizes = [len(named), *hidden, 1] if hidden else []
        # Twice an average, so that units bend from the start: near 0 they would all be straight, and add up to a sum.
        self.rising = nn.ParameterList(
            nn.Parameter(_unsoft((2 if i < len(hidden) else 1) / narrow) + 0.5 * torch.randn(wide, narrow, dtype=dtype))
            for i, (narrow, wide) in enumerate(pairwise(sizes))
        )
        self.beside = nn.ParameterList(
            nn.Parameter(torch.randn(wide, beside, dtype=dtype) / beside**0.5) for wide in hidden if beside
        )
        # Units turn within reach of what comes in: from 0 to 1 at first, from -1 to 1 between layers.
        self.offsets = nn.ParameterList(
            nn.Parameter(
                (torch.rand(wide, dtype=dtype) - (1 if i == 0 else 0.5)) * F.softplus(self.rising[i].detach()).sum(1)
            )
            for i, wide in enumerate(hidden)
        )

    def place(self, features: Tensor) -> None:
        """Centre and scale every feature, and put the corners of the named ones at their quantiles: (N, D).

        A constant feature is only centred.
        """
        x = features.detach().double().cpu()
        middle, spread = x.mean(0), x.std(0, unbiased=False)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        self.exact.get_buffer("middle").copy_(middle)
        self.exact.get_buffer("spread").copy_(spread)
        corners = self.exact.get_buffer("corners")
        at = torch.linspace(0, len(x) - 1, corners.shape[1], dtype=torch.float64).round().long()
        for row, i in enumerate(self.named):
            values = ((x[:, i] - middle[i]) / spread[i]) * self.signs[i]
            corners[row].copy_(_apart(values.sort().values[at]))

    def forward(self, features: Tensor) -> Tensor:
        """Return a number (B,) for each row."""
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        middle, spread = (self.exact.get_buffer(name).to(dtype) for name in ("middle", "spread"))
        x = ((features.to(dtype) - middle) / spread).clamp(-_FARTHEST, _FARTHEST)
        signs = torch.tensor([self.signs[i] for i in self.named], dtype=dtype, device=x.device)
        m, f = self._bent(x[:, self.named] * signs), x[:, self.others]
        s = self._sum(m, torch.ones(1, len(self.named), dtype=dtype, device=m.device)) + self.bias.to(dtype)
        if self.straight is not None:
            s = s + self._sum(f, self.straight.to(dtype))
        if not self.hidden:
            return s.squeeze(-1)
        return (s + self._sum(self._layers(m, f), self._positive(self.rising[-1], dtype))).squeeze(-1)

    def _layers(self, h: Tensor, f: Tensor) -> Tensor:
        """Return the last layer's units (B, H) from the bent named features and the free ones."""
        e = None
        if self.embed is not None and self.embed_bias is not None:
            e = softsign(self._sum(f, self.embed.to(f.dtype)) + self.embed_bias.to(f.dtype))
        for i, offset in enumerate(self.offsets):
            z = self._sum(h, self._positive(self.rising[i], h.dtype)) + offset.to(h.dtype)
            h = softsign(z if e is None else z + self._sum(e, self.beside[i].to(h.dtype)))
        return h

    def _bent(self, x: Tensor) -> Tensor:
        """Return the rising broken line of each named feature, (B, M) -> (B, M)."""
        corners = self.exact.get_buffer("corners").to(x.dtype)
        share = ((x.unsqueeze(-1) - corners[:, :-1]) / corners.diff(dim=1)).clamp(0, 1)
        heights, tails = (self._positive(p, x.dtype) for p in (self.heights, self.tails))
        y = x * tails
        for part, height in zip(share.unbind(-1), heights.unbind(-1), strict=True):
            y = y + part * height
        return y

    def bake(self, dtype: torch.dtype) -> None:
        """Hold what is computed from parameters as numbers: another runtime would compute it with other last bits."""
        with torch.no_grad():
            for parameter in (self.heights, self.tails, *self.rising):
                parameter.copy_(self._positive(parameter, dtype))
        self.is_baked = True

    def _positive(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Return weights that cannot be negative."""
        return parameter.to(dtype) if self.is_baked else F.softplus(parameter.to(dtype))

    def _sum(self, x: Tensor, weights: Tensor) -> Tensor:
        return F.linear(x, weights) if self.training else dot(x, weights)

    def matrices(self) -> list[Tensor]:
        """Return the weights that meet what comes in, as they act: what a penalty on size is about."""
        acting = [self._positive(p, p.dtype) for p in (self.heights, *self.rising)]
        return acting + [p for p in (self.straight, self.embed, *self.beside) if p is not None]

    def against(self) -> str | None:
        """Say which condition of the proof the stored numbers break, or None."""
        rising = [("heights", self.heights), ("tails", self.tails)]
        rising += [(f"rising[{i}]", p) for i, p in enumerate(self.rising)]
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        for name, parameter in rising:
            found = not_at_least(name, self._positive(parameter, dtype), 0.0)
            if found is not None:
                return found
        corners = self.exact.get_buffer("corners").to(dtype)
        tiny = torch.finfo(dtype).tiny
        return (
            not_at_least("steps between corners", corners.diff(dim=1), tiny)
            or not_at_least("spread", self.exact.get_buffer("spread").to(dtype), tiny)
            or self._too_large()
        )

    def _too_large(self) -> str | None:
        for name, tensor in self.state_dict().items():
            if not bool((tensor.abs() <= _LARGEST).all()):
                return f"a number of '{name}' is not finite, or above {_LARGEST:g}"
        return None


def _unsoft(height: float) -> float:
    """Return what softplus makes `height` of."""
    return math.log(math.expm1(height))


def _apart(corners: Tensor) -> Tensor:
    """Return quantiles made strictly ascending: where many samples share a value, corners stand close together."""
    least = max(float(corners[-1] - corners[0]), 1e-3) * 1e-3
    steps = corners.diff().clamp(min=least)
    return torch.cat([corners[:1], corners[:1] + steps.cumsum(0)])
