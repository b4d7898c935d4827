"""A group whose steps are each taken from all rows: L-BFGS, for convex heads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forethought.fitting.lbfgs import Lbfgs
from forethought.fitting.together import Together, timed
from forethought.fitting.trainee import Trainee
from forethought.fitting.weights import Body


class FullBatch(Together):
    """Heads of one shape. An epoch is one evaluation of each: loss and gradient over all rows.

    The loss is the mean over all rows, plus `weight_decay / 2` times the squares of all weights that are not biases.

    Args:
        trainees: The heads.
        body: Runs them.
    """

    def __init__(self, trainees: Sequence[Trainee], body: Body) -> None:
        super().__init__(trainees, body)
        self._steps = 0
        self._lbfgs = Lbfgs(self._flat())
        device = trainees[0].device
        self._decays = torch.tensor([t.options.weight_decay for t in trainees], dtype=torch.float64, device=device)
        self._is_decayed = torch.cat(
            [
                torch.full(
                    (p[0].numel(),), float(name.rpartition(".")[2] != "bias"), dtype=torch.float64, device=device
                )
                for name, p in zip(self._weights.trainable, self._weights.params, strict=True)
            ]
        )
        self._gradient = torch.zeros_like(self._lbfgs.position)
        self._loss = torch.zeros_like(self._lbfgs.position[:, 0])
        self._amount = 0.0

    @property
    def steps(self) -> int:
        """Steps taken: one an epoch."""
        return self._steps

    def learn(self, values: Any, target: Tensor, weights: Tensor | None, passed: float) -> None:
        """Add a batch to the sums of losses and gradients."""
        with timed(self.trainees), self._work.at(training=True):
            losses, gradients, _ = self._weights.differentiate(values, target, weights)
            amount = float(len(target)) if weights is None else float(weights.sum())
            self._loss += losses.double() * amount
            self._gradient += torch.cat([g.flatten(1) for g in gradients], 1).double() * amount
            self._amount += amount
            self._sums.add_losses(losses, len(target), weights)

    def close_pass(self) -> None:
        """Move on from what all rows said. Heads that are at their minimum are done."""
        position = self._lbfgs.position
        decayed = position * self._is_decayed
        loss = self._loss / self._amount + self._decays / 2 * decayed.square().sum(1)
        gradient = self._gradient / self._amount + self._decays[:, None] * decayed
        self._lbfgs.tell(loss, gradient)
        self._steps += 1
        self._gradient.zero_()
        self._loss.zero_()
        self._amount = 0.0
        start = 0
        with torch.no_grad():
            for p in self._weights.params:
                count = p[0].numel()
                p.copy_(self._lbfgs.position[:, start : start + count].view_as(p))
                start += count
        for trainee, is_done in zip(self.trainees, self._lbfgs.is_done.tolist(), strict=True):
            trainee.is_done = is_done

    def state(self) -> dict[str, Tensor]:
        """Give weights, best weights, and what is known of the functions."""
        found = self._weights.state() | {f"lbfgs.{name}": tensor for name, tensor in self._lbfgs.state().items()}
        amount = torch.tensor([self._amount], dtype=torch.float64)
        return found | {"gradient": self._gradient, "loss": self._loss, "amount": amount, "sums": self._sums.values}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go to a state."""
        self._steps = steps
        self._weights.load(state)
        self._lbfgs.load({name.removeprefix("lbfgs."): t for name, t in state.items() if name.startswith("lbfgs.")})
        self._gradient, self._loss = (state[name].to(self._gradient.device).clone() for name in ("gradient", "loss"))
        self._amount = float(state["amount"][0])
        self._sums.values = state["sums"].to(self._sums.values)

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().flatten(1) for p in self._weights.params], 1)

    def _choose(self, positions: Sequence[int]) -> None:
        at = list(positions)
        self._weights.choose(at)
        self._lbfgs.choose(at)
        self.trainees = [self.trainees[position] for position in at]
        self._decays, self._gradient, self._loss = self._decays[at], self._gradient[at], self._loss[at]
        self._sums.choose(at)
