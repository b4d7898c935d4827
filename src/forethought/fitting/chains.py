"""Heads that are chains of known layers, many of one shape run as one.

All heads are given the same batch, so their first products are one: (B, D) by the weights of H heads, laid one below
the other as (H K, D). What follows is batched: shape letters are H heads, B rows, D features, K outputs of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.fitting.products import linear

_EACH = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU,
    nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """One layer of a chain.

    Attributes:
        layer: A module of that kind, without parameters that count.
        prefix: What the names of its parameters begin with.
    """

    layer: nn.Module
    prefix: str


class Chain:
    """Runs heads of one chain of layers.

    Args:
        links: The layers, in turn.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        first = next(at for at, link in enumerate(links) if type(link.layer) is nn.Linear)
        self._shared, self._links = links[:first], links[first:]

    def widest(self, tensors: Mapping[str, Tensor]) -> int:
        """Count the most numbers that a layer makes of one sample, for one head."""
        weights = [tensors[link.prefix + "weight"] for link in self._links if type(link.layer) is nn.Linear]
        return max(weight.shape[-2] for weight in weights)

    def outputs(self, tensors: Mapping[str, Tensor], x: Tensor, *, training: bool) -> Tensor:
        """Run H heads with these parameters, (H, ...) each, on one batch (B, D): their outputs, (H, B, ...)."""
        for link in self._shared:
            x = _masked(x, x.shape, link.layer.p, training) if isinstance(link.layer, nn.Dropout) else link.layer(x)
        first = self._links[0].prefix
        weight, bias = tensors[first + "weight"], tensors.get(first + "bias")
        heads, outputs, width = weight.shape
        product = linear(x, weight.reshape(heads * outputs, width), None if bias is None else bias.reshape(-1))
        out = product.view(len(x), heads, outputs).transpose(0, 1)
        for link in self._links[1:]:
            out = self._next(link, out, tensors, training)
        return out

    def losses(self, tensors: Mapping[str, Tensor], x: Any, target: Tensor, weights: Tensor | None) -> Tensor:
        """Chains have no losses of their own."""
        raise AssertionError("a chain of layers has no loss method")

    def _next(self, link: Link, out: Tensor, tensors: Mapping[str, Tensor], training: bool) -> Tensor:
        layer = link.layer
        if type(layer) is nn.Linear:
            weight, bias = tensors[link.prefix + "weight"].transpose(1, 2), tensors.get(link.prefix + "bias")
            return torch.bmm(out, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), out, weight)
        if isinstance(layer, nn.Dropout):
            return _masked(out, out.shape[1:], layer.p, training)
        if isinstance(layer, nn.LayerNorm):
            out = F.layer_norm(out, layer.normalized_shape, None, None, layer.eps)
            for name, apply in (("weight", torch.mul), ("bias", torch.add)):
                if link.prefix + name in tensors:
                    out = apply(out, tensors[link.prefix + name].unsqueeze(1))
            return out
        if isinstance(layer, nn.Flatten):
            return out.flatten(1) if layer.start_dim == 0 else out
        made: Tensor = layer(out)
        return made


def read_chain(head: nn.Module, features: tuple[int, ...]) -> Chain | None:
    """Read a head as a chain of layers; None if it is none that runs on features of this shape (without the batch)."""
    links = _links(head, "")
    first = next((at for at, link in enumerate(links or ()) if type(link.layer) is nn.Linear), None)
    if links is None or first is None:
        return None
    before, after = links[:first], links[first + 1 :]
    # What is shared must be left as it is, and be the same for all.
    if any(isinstance(link.layer, nn.LayerNorm) or getattr(link.layer, "inplace", False) for link in before):
        return None
    is_flat = len(features) == 1 or any(isinstance(link.layer, nn.Flatten) for link in before)
    ends = [at for at, link in enumerate(after) if isinstance(link.layer, nn.Flatten) and link.layer.start_dim == 0]
    if not is_flat or any(_is_of_all(link.layer) for link in before) or (ends and ends != [len(after) - 1]):
        return None
    return Chain(links)


def _links(head: nn.Module, prefix: str) -> list[Link] | None:
    kind: Any = type(head)
    if kind is nn.Sequential:
        found: list[Link] = []
        for name, child in head.named_children():
            links = _links(child, f"{prefix}{name}.")
            if links is None:
                return None
            found += links
        return found
    if kind is nn.Identity:
        return []
    if isinstance(head, nn.Flatten) and kind is nn.Flatten:
        return [Link(head, prefix)] if head.start_dim in (0, 1) and head.end_dim == -1 else None
    if kind is nn.LayerNorm:
        return [Link(head, prefix)] if len(head.normalized_shape) == 1 else None  # type: ignore[arg-type]
    return [Link(head, prefix)] if kind in (nn.Linear, nn.Dropout, *_EACH) else None


def _is_of_all(layer: nn.Module) -> bool:
    """Whether a layer joins samples."""
    return isinstance(layer, nn.Flatten) and layer.start_dim == 0


def _masked(values: Tensor, shape: Sequence[int], p: float, training: bool) -> Tensor:
    """Drop the same entries of every head, as each of them would alone: they have one seed."""
    if not training or not p:
        return values
    return values * F.dropout(torch.ones(shape, dtype=values.dtype, device=values.device), p)
