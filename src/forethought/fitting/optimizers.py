"""Optimizers of many heads at once: each parameter is a tensor (H, ...), and each head has a step size of its own."""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

BETAS = (0.9, 0.999)
EPS = 1e-8
_FUSED_FROM = 2**12  # numbers a head: below, several operations over all heads cost less than a fused one for each


class Optimizer(Protocol):
    """Takes steps for H heads, which began together."""

    state: list[Tensor]
    """What it remembers, (H, ...) each, in a fixed order."""
    steps: int
    """How many it has taken."""

    def step(self, gradients: Sequence[Tensor], share: float) -> None:
        """Change the parameters by their gradients, with `share` of each head's step size."""
        ...


class Sgd:
    """Gradient descent: p -= lr * b, where b = momentum * b + g + decay * p, as torch computes it."""

    def __init__(
        self, params: Sequence[Tensor], lrs: Sequence[float], decays: Sequence[float], momentum: float
    ) -> None:
        self._params, self._momentum, self.steps = list(params), momentum, 0
        self._lrs = [_each(lrs, p) for p in params]
        self._decays = [_each(decays, p) for p in params] if any(decays) else []
        self.state = [torch.zeros_like(p, requires_grad=False) for p in params] if momentum else []

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], share: float) -> None:
        """Take one step."""
        self.steps += 1
        for at, (p, g) in enumerate(zip(self._params, gradients, strict=True)):
            if self._decays:
                g = g + self._decays[at] * p
            if self._momentum:
                g = self.state[at].mul_(self._momentum).add_(g)
            p.sub_(self._lrs[at] * share * g)


class Adam:
    """Adam (Kingma and Ba 2015), or AdamW (Loshchilov and Hutter 2019), as torch computes them.

    Args:
        is_decoupled: AdamW: the decay shrinks parameters, rather than being part of their gradient.
    """

    def __init__(
        self, params: Sequence[Tensor], lrs: Sequence[float], decays: Sequence[float], *, is_decoupled: bool
    ) -> None:
        self._params, self._is_decoupled, self.steps = list(params), is_decoupled, 0
        self._lrs = [_each(lrs, p) for p in params]
        self._decays = [_each(decays, p) for p in params] if any(decays) else []
        zeros = [torch.zeros_like(p, requires_grad=False) for p in params]
        self.state = [*zeros, *(torch.zeros_like(z) for z in zeros)]
        self._runs = _runs(list(zip(lrs, decays, strict=True)))
        numbers = sum(p[0].numel() for p in params)
        is_plain = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
        self._is_fused = is_plain and (len(self._runs) == 1 or numbers >= _FUSED_FROM)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], share: float) -> None:
        """Take one step."""
        count = len(self._params)
        means, squares = self.state[:count], self.state[count:]
        if self._is_fused:
            for run, run_lr, run_decay in self._runs:
                self._fused(run, gradients, run_lr * share, run_decay)
            self.steps += 1
            return
        self.steps += 1
        for at, (p, g, mean, square) in enumerate(zip(self._params, gradients, means, squares, strict=True)):
            lr = self._lrs[at] * share
            if self._decays and self._is_decoupled:
                p.mul_(1 - lr * self._decays[at])
            elif self._decays:
                g = g + self._decays[at] * p
            mean.lerp_(g, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            root = square.sqrt().div_((1 - BETAS[1] ** self.steps) ** 0.5).add_(EPS)
            p.sub_(torch.div(mean, root, out=root).mul_(lr / (1 - BETAS[0] ** self.steps)))

    def _fused(self, at: slice, gradients: Sequence[Tensor], lr: float, decay: float) -> None:
        """Step heads of one step size and decay by torch's own kernel."""
        params = [p[at] for p in self._params]
        state = [tensor[at] for tensor in self.state]
        (adamw if self._is_decoupled else adam)(
            params,
            [g[at] for g in gradients],
            state[: len(params)],
            state[len(params) :],
            [],
            [torch.full((), self.steps, dtype=torch.float32, device=p.device) for p in params],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=decay,
            eps=EPS,
            maximize=False,
        )


def clip(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Scale each head's gradients, (H, ...) each, to a norm of at most `limit`, as `clip_grad_norm_` of torch does."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    shares = (limit / (norms + 1e-6)).clamp(max=1.0)
    return [g * shares.view(-1, *(1 for _ in g.shape[1:])) for g in gradients]


def _runs(values: list[tuple[float, float]]) -> list[tuple[slice, float, float]]:
    """Divide heads, in order, into runs that share step size and decay."""
    runs, start = [], 0
    for (lr, decay), same in groupby(values):
        stop = start + len(list(same))
        runs.append((slice(start, stop), lr, decay))
        start = stop
    return runs


def _each(per_head: Sequence[float], like: Tensor) -> Tensor:
    """Lay one number a head out so that it applies to a tensor (H, ...)."""
    numbers = torch.tensor(per_head, dtype=like.dtype, device=like.device)
    return numbers.view(-1, *(1 for _ in like.shape[1:]))
