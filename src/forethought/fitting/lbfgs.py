"""L-BFGS for many smooth functions at once, each with a position of its own, asked one evaluation at a time.

A caller evaluates loss and gradient of every function at `position` and tells them to `tell`, which moves each position
on: a step along the quasi-Newton direction (Nocedal 1980; two-loop recursion, Nocedal and Wright 2006, algorithm 7.4),
or, where the loss did not fall enough (Armijo's condition), a shorter one by quadratic interpolation. All in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_ARMIJO = 1e-4
_LEAST_SHARE, _MOST_SHARE = 0.1, 0.5  # of a step that was too long
_CURVATURE = 1e-10  # least s.y relative to |s| |y|, for a pair that is remembered


class Lbfgs:
    """H functions of P numbers each.

    Args:
        start: (H, P).
        memory: Pairs of steps and differences of gradients that are remembered.
        tolerance: The largest entry of a gradient at which a function counts as minimised, relative to that at the
            start.
    """

    def __init__(self, start: Tensor, memory: int = 10, tolerance: float = 1e-6) -> None:
        heads, numbers = start.shape
        self.position = start.double().clone()
        self._memory, self._tolerance = memory, tolerance
        zeros = self.position.new_zeros
        self._base = self.position.clone()  # the last accepted point
        self._loss = zeros(heads) + torch.inf
        self._gradient, self._direction = zeros(heads, numbers), zeros(heads, numbers)
        self._length = zeros(heads) + 1.0
        self._steps, self._changes = zeros(heads, memory, numbers), zeros(heads, memory, numbers)
        self._known = torch.zeros(heads, memory, dtype=torch.bool, device=start.device)
        self._first = zeros(heads)  # largest entry of the gradient at the start
        self.is_done = torch.zeros(heads, dtype=torch.bool, device=start.device)

    def tell(self, loss: Tensor, gradient: Tensor) -> None:
        """Take in losses (H,) and gradients (H, P) at `position`, and move it on."""
        loss, gradient = loss.double(), gradient.double()
        is_new = self._loss.isinf()  # nothing was accepted yet
        slope = (self._gradient * self._direction).sum(1)
        is_lower = loss <= self._loss + _ARMIJO * self._length * slope
        is_accepted = (is_new | is_lower) & loss.isfinite() & gradient.isfinite().all(1)
        self._remember(is_accepted & ~is_new, gradient)
        self._first = torch.where(is_new, gradient.abs().amax(1), self._first)
        at = is_accepted[:, None]
        before = self._loss
        self._base = torch.where(at, self.position, self._base)
        self._gradient = torch.where(at, gradient, self._gradient)
        self._loss = torch.where(is_accepted, loss, before)
        # A minimum, or a step so short that rounding hides what it gains.
        is_flat = self._gradient.abs().amax(1) <= self._tolerance * self._first.clamp(min=1e-12)
        is_stuck = ~is_accepted & (
            self._length * self._direction.abs().amax(1) <= 1e-14 * (1 + self._base.abs().amax(1))
        )
        self.is_done |= (is_flat & ~is_new) | is_stuck | (is_new & (self._first == 0))
        direction = self._newton()
        first = 1 / self._gradient.abs().sum(1).clamp(min=1e-300)
        fresh = torch.where(self._known.any(1), torch.ones_like(first), first.clamp(max=1.0))
        shorter = self._shorter(loss, slope)
        self._direction = torch.where(at, direction, self._direction)
        self._length = torch.where(is_accepted, fresh, shorter)
        moved = self._base + self._length[:, None] * self._direction
        self.position = torch.where(self.is_done[:, None], self._base, moved)

    def _remember(self, is_accepted: Tensor, gradient: Tensor) -> None:
        """Push the last step of the functions that accepted it, if the function curved upwards along it."""
        step, change = self.position - self._base, gradient - self._gradient
        curvature = (step * change).sum(1)
        is_kept = is_accepted & (curvature > _CURVATURE * step.norm(dim=1) * change.norm(dim=1))
        for memory, new in ((self._steps, step), (self._changes, change)):
            memory[is_kept] = torch.cat([memory[is_kept, 1:], new[is_kept, None]], 1)
        more = torch.ones(int(is_kept.sum()), 1, dtype=torch.bool, device=step.device)
        self._known[is_kept] = torch.cat([self._known[is_kept, 1:], more], 1)

    def _newton(self) -> Tensor:
        """Give the direction -H g of each function, H being what the remembered pairs make of it."""
        direction = -self._gradient
        products = (self._steps * self._changes).sum(2)
        inverse = torch.where(self._known, 1 / products.where(self._known, torch.ones_like(products)), 0.0)
        shares = []
        for at in reversed(range(self._memory)):
            share = inverse[:, at] * (self._steps[:, at] * direction).sum(1)
            direction = direction - share[:, None] * self._changes[:, at]
            shares.append(share)
        squares = self._changes[:, -1].square().sum(1)
        scale = torch.where(self._known[:, -1], products[:, -1] / squares.clamp(min=1e-300), torch.ones_like(squares))
        direction = direction * scale[:, None]
        for at, share in zip(range(self._memory), reversed(shares), strict=True):
            back = inverse[:, at] * (self._changes[:, at] * direction).sum(1)
            direction = direction + (share - back)[:, None] * self._steps[:, at]
        newton: Tensor = direction
        return newton

    def _shorter(self, loss: Tensor, slope: Tensor) -> Tensor:
        """Give the length at which a parabola through what is known has its minimum."""
        gain = loss - self._loss - self._length * slope
        best = -slope * self._length.square() / (2 * gain)
        share = (best / self._length).nan_to_num(nan=_LEAST_SHARE).clamp(_LEAST_SHARE, _MOST_SHARE)
        shorter: Tensor = self._length * torch.where(loss.isfinite(), share, torch.full_like(share, _LEAST_SHARE))
        return shorter

    def choose(self, positions: Sequence[int]) -> None:
        """Go on with some of the functions."""
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor[list(positions)])

    def state(self) -> dict[str, Tensor]:
        """Give all of it, (H, ...) each."""
        return self._tensors()

    def load(self, state: dict[str, Tensor]) -> None:
        """Go to what `state` gave."""
        for name, tensor in self._tensors().items():
            setattr(self, name, state[name].to(tensor.device).clone())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
