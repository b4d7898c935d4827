"""A network that is monotone in named features, whatever its weights become."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.heads import quick
from forethought.heads.corners import corners_at
from forethought.heads.exact import Exact
from forethought.heads.proofs import not_at_least
from forethought.heads.steady import dot, softsign

_FARTHEST = 1e6  # spreads: beyond it a feature counts as that far, so that no product or sum is infinite
_LEAST = 1e8  # of the tiniest number: a weight over a smaller spread could be infinite
_LARGEST = 1e20  # buffers above it could make one all the same
_MANY = 64  # free features: of more, a product with as many units as there are in a layer takes most of the time
_UNITS_OF_MANY = 3  # with the one of the sum four, as products go
_HEAVIEST = 1e9  # weights above it could: a line's slope, a layer and its sum multiply up


class MonotoneNet(nn.Module):
    """Features (B, D) to a number (B,) that rises with each feature of sign 1 and falls with each of sign -1.

    A monotone feature is first bent by a rising broken line of its own. It then meets only weights that cannot be
    negative (a softplus of what is trained) and rising activations; free features meet any weights, and join it at
    every layer. In evaluation the sums run in a fixed order, element by element (steady.py), as in a matrix product two
    equal rows of a batch may come out different; in training they are matrix products, for speed.

    Args:
        signs: One of -1, 0, 1 a feature, not all 0.
        hidden: Sizes of the layers in which features interact; none: a sum of one term a feature.
        keypoints: Pieces of the broken line of each monotone feature.
        free_keypoints: Pieces of the broken line, of any shape, of each free feature; 0: they come in straight.
        free_units: Units that all free features are made into, for the layers; None: what `units_for` says.
        dtype: Of the parameters, float32 or float64.
    """

    def __init__(
        self,
        signs: Sequence[int],
        hidden: Sequence[int],
        keypoints: int,
        free_keypoints: int = 0,
        free_units: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.signs, self.hidden = tuple(signs), tuple(hidden)
        named = [i for i, sign in enumerate(signs) if sign]
        free = [i for i, sign in enumerate(signs) if not sign]
        self.named, self.others = named, free
        self.columns = torch.tensor(free, dtype=torch.long, device="cpu")  # of others: made once, as that takes time
        self.free_units = units_for(hidden, len(free)) if free_units is None or not hidden or not free else free_units
        self.is_baked = False
        wide = torch.promote_types(dtype or torch.float32, torch.float32)
        lines = {"corners": torch.linspace(-2, 2, keypoints + 1, dtype=wide).repeat(len(named), 1)}
        self.bends: nn.Parameter | None = None
        if free and free_keypoints:
            lines["free_corners"] = torch.linspace(-2, 2, free_keypoints + 1, dtype=wide).repeat(len(free), 1)
            self.bends = nn.Parameter(torch.full((len(free), free_keypoints), 2 / free_keypoints, dtype=dtype))
        self.exact = Exact(
            middle=torch.zeros(len(signs), dtype=wide), spread=torch.ones(len(signs), dtype=wide), **lines
        )
        self.heights = nn.Parameter(torch.full((len(named), keypoints), _unsoft(1 / keypoints), dtype=dtype))
        self.tails = nn.Parameter(torch.full((len(named),), _unsoft(0.05), dtype=dtype))
        self.slopes = nn.Parameter(torch.full((1, len(named)), _unsoft(1), dtype=dtype))
        self.straight = nn.Parameter(torch.zeros(1, len(free), dtype=dtype)) if free else None
        self.bias = nn.Parameter(torch.full((), -0.5 * len(named), dtype=dtype))
        self._add_layers(dtype)

    def _add_layers(self, dtype: torch.dtype | None) -> None:
        """Draw the weights of the layers in which features interact."""
        named, free, hidden, beside = len(self.named), len(self.others), self.hidden, self.free_units
        self.embed: nn.Parameter | None = None
        self.embed_bias: nn.Parameter | None = None
        if beside:
            self.embed = nn.Parameter(torch.randn(beside, free, dtype=dtype) / free**0.5)
            self.embed_bias = nn.Parameter(0.3 * torch.randn(beside, dtype=dtype))
        sizes = [named, *hidden, 1] if hidden else []
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
        """Centre and scale every feature, and put the corners of broken lines at their quantiles: (N, D).

        A constant feature is only centred.
        """
        x = features.detach().double().cpu()
        middle, spread = x.mean(0), x.std(0, unbiased=False)
        least = torch.finfo(self.exact.get_buffer("spread").dtype).tiny * _LEAST
        # The mean of one value many times is off by rounding, which is no spread.
        is_constant = (x.amax(0) == x.amin(0)) | ~(spread > least)
        spread = torch.where(is_constant, torch.ones_like(spread), spread)
        self.exact.get_buffer("middle").copy_(middle)
        self.exact.get_buffer("spread").copy_(spread)
        lines = [("corners", self.named)] + ([] if self.bends is None else [("free_corners", self.others)])
        for name, columns in lines:
            corners = self.exact.get_buffer(name)
            for row, i in enumerate(columns):
                values = ((x[:, i] - middle[i]) / spread[i]) * (self.signs[i] or 1) * ~is_constant[i]
                corners[row].copy_(corners_at(values, corners.shape[1]))

    def forward(self, features: Tensor) -> Tensor:
        """Return a number (B,) for each row."""
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        m, beside = self._quick(features.to(dtype)) if self.training else self._ordered(features.to(dtype))
        s = self._sum(m, self._positive(self.slopes, dtype), self.bias.to(dtype))
        if beside is not None:
            s = s + beside[:, :1]
        if not self.hidden:
            return s.squeeze(-1)
        e = None
        if beside is not None and self.embed_bias is not None:
            e = self._squashed(beside[:, 1:] + self.embed_bias.to(dtype))
        return self._sum(self._layers(m, e), self._positive(self.rising[-1], dtype), s).squeeze(-1)

    def _ordered(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the bent named features (B, M), and what the free ones add (B, 1 + E), sums in a fixed order."""
        middle, spread = (self.exact.get_buffer(name).to(features.dtype) for name in ("middle", "spread"))
        x = ((features - middle) / spread).clamp(-_FARTHEST, _FARTHEST)
        f = self._bent_freely(x[:, self.others])
        sums = [dot(f, weights) for weights in self._free_weights(f.dtype)]
        return self._bent(x[:, self.named]), torch.cat(sums, 1) if sums else None

    def _quick(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the same by one matrix product over all columns, for training."""
        middle, spread = (self.exact.get_buffer(name).to(features.dtype) for name in ("middle", "spread"))
        m, weights = self._bent(_standardised(features, self.named, middle, spread)), self._free_weights(features.dtype)
        if not weights:
            return m, None
        narrow = torch.cat(weights)
        if self.bends is not None:
            return m, F.linear(self._bent_freely(_standardised(features, self.others, middle, spread)), narrow)
        return m, quick.product(features, narrow, self.columns.to(features.device), middle, spread, _FARTHEST).T

    def _free_weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Return what free features are multiplied by: for the sum (1, F), and for the layers (E, F)."""
        return [weights.to(dtype) for weights in (self.straight, self.embed) if weights is not None]

    def _layers(self, h: Tensor, e: Tensor | None) -> Tensor:
        """Return the last layer's units (B, H) from the bent named features and the free ones' units (B, E)."""
        for i, offset in enumerate(self.offsets):
            z = self._sum(h, self._positive(self.rising[i], h.dtype), offset.to(h.dtype))
            h = self._squashed(z if e is None else self._sum(e, self.beside[i].to(h.dtype), z))
        return h

    def _bent(self, x: Tensor) -> Tensor:
        """Return the rising broken line of each named feature, (B, M) -> (B, M)."""
        x = x * torch.tensor([self.signs[i] for i in self.named], dtype=x.dtype, device=x.device)
        heights, tails = (self._positive(p, x.dtype) for p in (self.heights, self.tails))
        return self._line(x, self.exact.get_buffer("corners"), heights, x * tails)

    def _bent_freely(self, x: Tensor) -> Tensor:
        """Return the broken line of each free feature, (B, F) -> (B, F), or the features where they have none."""
        if self.bends is None:
            return x
        return self._line(x, self.exact.get_buffer("free_corners"), self.bends.to(x.dtype), -torch.ones_like(x))

    def _line(self, x: Tensor, corners: Tensor, heights: Tensor, y: Tensor) -> Tensor:
        """Return y (B, V) plus, for each piece between corners (V, K + 1), its height (V, K) by how far x is in it."""
        corners = corners.to(x.dtype)
        left, width = corners[:, :-1], corners.diff(dim=1)
        if self.training:  # by features, as then each line is one product, forwards and backwards
            share = (x.T.unsqueeze(-1) - left.unsqueeze(1)).div_(width.unsqueeze(1)).clamp_(0, 1)
            return y + torch.bmm(share, heights.unsqueeze(-1)).squeeze(-1).T
        share = ((x.unsqueeze(-1) - left) / width).clamp(0, 1)
        for part, height in zip(share.unbind(-1), heights.unbind(-1), strict=True):
            y = y + part * height
        return y

    def bake(self, dtype: torch.dtype) -> None:
        """Hold what is computed from parameters as numbers: another runtime would compute it with other last bits."""
        with torch.no_grad():
            for parameter in (self.heights, self.tails, self.slopes, *self.rising):
                parameter.copy_(self._positive(parameter, dtype))
        self.is_baked = True

    def _positive(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """Return weights that cannot be negative."""
        return parameter.to(dtype) if self.is_baked else F.softplus(parameter.to(dtype))

    def _sum(self, x: Tensor, weights: Tensor, more: Tensor) -> Tensor:
        """Return x @ weights.T + more, (B, V) and (H, V) -> (B, H)."""
        if not self.training:
            return dot(x, weights) + more
        # Units before rows: products of few units with many rows are faster so, above all backwards.
        return torch.addmm(torch.atleast_2d(more).T, weights, x.T).T

    def _squashed(self, x: Tensor) -> Tensor:
        return quick.softsign(x) if self.training else softsign(x)

    def matrices(self) -> list[Tensor]:
        """Return the weights that meet what comes in, as they act: what a penalty on size is about."""
        acting = [self._positive(p, p.dtype) for p in (self.heights, self.slopes, *self.rising)]
        return acting + [p for p in (self.bends, self.straight, self.embed, *self.beside) if p is not None]

    def against(self) -> str | None:
        """Say which condition of the proof the stored numbers break, or None."""
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        tiny = torch.finfo(dtype).tiny
        layers = {f"rising[{i}]": p for i, p in enumerate(self.rising)}
        rising = {"heights": self.heights, "tails": self.tails, "slopes": self.slopes, **layers}
        exact = {name: held.to(dtype) for name, held in self.exact.named_buffers()}
        steps = {f"steps between {name}": exact[name].diff(dim=1) for name in exact if name.endswith("corners")}
        asked = [(name, self._positive(parameter, dtype), 0.0) for name, parameter in rising.items()]
        asked += [(name, held, tiny) for name, held in {**steps, "spread": exact["spread"]}.items()]
        return next(filter(None, (not_at_least(*each) for each in asked)), None) or self._too_large()

    def _too_large(self) -> str | None:
        for name, tensor in self.state_dict().items():
            most = _LARGEST if name.startswith("exact.") else _HEAVIEST
            if not bool((tensor.abs() <= most).all()):
                return f"a number of '{name}' is not finite, or above {most:g}"
        return None


def units_for(hidden: Sequence[int], free: int) -> int:
    """Return how many units free features are made into: as many as there are in the first layer, fewer of many."""
    most = _UNITS_OF_MANY if free > _MANY else math.inf
    return int(min(hidden[0], most)) if hidden and free else 0


def _standardised(features: Tensor, columns: list[int], middle: Tensor, spread: Tensor) -> Tensor:
    """Return columns (B, C) of features (B, D) as spreads from their middles, held within reach."""
    return ((features[:, columns] - middle[columns]) / spread[columns]).clamp(-_FARTHEST, _FARTHEST)


def _unsoft(height: float) -> float:
    """Return what softplus makes `height` of."""
    return math.log(math.expm1(height))
