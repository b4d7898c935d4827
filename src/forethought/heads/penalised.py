"""Train a small head on all rows at once, with a penalty on the size of its weights: what the estimator does."""

import torch
from torch import Tensor, nn

from forethought.heads.interface import Head
from forethought.heads.partial import PartialMonotone
from forethought.heads.prototypes import PrototypeExact


def _matrices(head: Head) -> list[Tensor]:
    """Return what is penalised: weights as they act, not what a softplus makes them of."""
    if isinstance(head, PartialMonotone):
        return head.net.matrices()
    if isinstance(head, PrototypeExact):
        return [head.plane()[:-1]]
    return [p for p in head.parameters() if p.ndim > 1]


def train_penalised(head: Head, x: Tensor, targets: Tensor, weights: Tensor | None, alpha: float, steps: int) -> int:
    """Minimise the head's loss with a penalty on its matrices; return the steps taken."""
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=steps, tolerance_grad=1e-8, tolerance_change=1e-11, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = head.loss(x, targets, weights) + alpha * torch.stack([m.square().sum() for m in _matrices(head)]).sum()
        loss.backward()
        return loss

    nn.Module.train(head)
    optimizer.step(closure)
    return int(optimizer.state[next(iter(head.parameters()))].get("n_iter", steps))
