"""Search for a counterexample to what a certificate claims. It knows none of the proofs: it runs the function.

Every way of looking makes ladders: inputs, each one no lower than the one before in what may rise, whose outputs must
not step the wrong way. Ladders of neighbouring floats, of random steps of all sizes, along gradients that point the
wrong way, and around the closest calls so far. A ladder is run as one batch in shuffled order, so that a function whose
rows depend on their place in the batch gives itself away too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.heads.certificate import MONOTONE, RANGE

_LADDER = 17  # inputs in a ladder
_CHUNK = 4096  # ladders run at once
_CLIMBERS = 64


@dataclass(frozen=True)
class Walk:
    """What may be varied, and which way the output must then go.

    Attributes:
        variable: Its name in the certificate.
        function: (N, V) -> (N,).
        places: (M, V), where to look first.
        signs: (V,): 1 where a rise may not lower the output, -1 where it may not raise it, 0 where nothing is said.
        low, high: What the inputs are held to.
        within: What the outputs must stay in, or None.
    """

    variable: str
    function: Callable[[Tensor], Tensor]
    places: Tensor
    signs: Tensor
    low: float = -math.inf
    high: float = math.inf
    within: tuple[float, float] | None = None


@dataclass(frozen=True)
class Hit:
    """Inputs (K, V) at which the function must give the values (K,), within the bound."""

    what: str
    variable: str
    function: Callable[[Tensor], Tensor]
    at: Tensor
    values: Tensor
    bound: float


@dataclass(frozen=True)
class Counterexample:
    """Two inputs whose outputs are in the wrong order, or one whose output is wrong.

    Attributes:
        what: The property that it breaks, as in `Claim.what`.
        variable: As in `Claim.variable`.
        before, after: Inputs; the same one twice, where one is enough.
        y_before, y_after: Their outputs; for one input, what was expected and what came.
        how: How it was found.
    """

    what: str
    variable: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    y_before: float
    y_after: float
    how: str

    def __str__(self) -> str:
        moved = [i for i, (a, b) in enumerate(zip(self.before, self.after, strict=True)) if a != b]
        if not moved:
            at = _shown(self.before[:4]) + (" ..." if len(self.before) > 4 else "")
            return f"{self.variable} {at} gives {self.y_after!r}, not {self.y_before!r} ({self.how})"
        place = "" if len(self.before) == 1 else f" at {moved[:4]}"
        a, b = (_shown(tuple(x[i] for i in moved[:4])) for x in (self.before, self.after))
        return f"{self.variable}{place} {a} gives {self.y_before!r}, {b} gives {self.y_after!r} ({self.how})"


@dataclass(frozen=True)
class Falsification:
    """What a search found: `tries` inputs were run; no counterexample is no proof."""

    tries: int
    counterexamples: tuple[Counterexample, ...]

    @property
    def found(self) -> bool:
        """Whether any claim was broken."""
        return bool(self.counterexamples)


def search(walks: Sequence[Walk], hits: Sequence[Hit], tries: int = 1_000_000, seed: int = 0) -> Falsification:
    """Look for a counterexample, at most one a property, in about `tries` inputs a walk."""
    found: list[Counterexample] = []
    run = 0
    for hit in hits:
        run += len(hit.at)
        found += _miss(hit)
    for walk in walks:
        hunt = _Hunt(walk, torch.Generator().manual_seed(seed))
        hunt.go(tries)
        run += hunt.run
        found += hunt.found.values()
    return Falsification(run, tuple(found))


def ladders(walk: Walk, inputs: int, seed: int = 0) -> Tensor:
    """Return inputs (about `inputs`, V) of the kinds that a search would run."""
    hunt = _Hunt(walk, torch.Generator().manual_seed(seed))
    rows = max(1, inputs // (2 * _LADDER))
    made = [hunt.neighbours(hunt.starts(rows)), hunt.jumps(hunt.starts(rows))] if len(hunt.moving) else []
    return torch.cat([ladder.flatten(0, 1) for ladder in made] or [hunt.starts(inputs)])


def _miss(hit: Hit) -> Iterator[Counterexample]:
    some = torch.arange(0, len(hit.at), 1 + len(hit.at) // 32)
    with torch.no_grad():
        together, alone = hit.function(hit.at), torch.cat([hit.function(hit.at[[k]]) for k in some.tolist()])
    for y, where, how in ((together, torch.arange(len(hit.at)), "in one batch"), (alone, some, "alone")):
        off = ~((y.double() - hit.values[where.to(y.device)].double()).abs() <= hit.bound)
        for k in where[off.cpu()].tolist()[:1]:
            at = tuple(hit.at[k].tolist())
            yield Counterexample(
                hit.what, hit.variable, at, at, hit.values[k].item(), y[where.tolist().index(k)].item(), how
            )
            return


class _Hunt:
    """One walk, looked at in every way until something is found of each kind or the tries are spent."""

    def __init__(self, walk: Walk, random: torch.Generator) -> None:
        self.walk, self.random = walk, random
        self.run = 0
        self.found: dict[str, Counterexample] = {}
        self.device, self.dtype = walk.places.device, walk.places.dtype
        self.signs = walk.signs.to(self.device, self.dtype)
        self.moving = walk.signs.nonzero().flatten()
        self.closest = walk.places[:1].expand(_CLIMBERS, -1)

    def go(self, tries: int) -> None:
        ways = [
            (self.neighbours, "neighbouring floats"),
            (self.jumps, "random steps"),
            (self._uphill, "along a gradient"),
            (self._climb, "near the closest call"),
        ]
        if not len(self.moving):  # nothing is said of the order: only the outputs are looked at
            ways = [(lambda start: start[None], "at and near the places")]
        while self.run < tries:
            most = max(1, _CHUNK * 16 // (16 + len(self.signs)))  # wide inputs in smaller chunks: memory
            rows = max(1, min(most, (tries - self.run) // (_LADDER * len(ways)) + 1)) if len(self.moving) else most
            for way, name in ways:
                self._check(way(self.starts(rows)), name)
            if MONOTONE in self.found and (self.walk.within is None or RANGE in self.found):
                return

    def starts(self, rows: int) -> Tensor:
        """Draw inputs: places, with changes of every size, and numbers of every size."""
        picked = self.walk.places[self._integers(len(self.walk.places), rows)]
        size = 10.0 ** (self._uniform(rows, 1) * 14 - 12)
        start = picked + picked.abs().clamp(min=1.0) * size * self._normal(picked.shape)
        still = self._uniform(rows, 1) < 0.25
        start = torch.where(still | ~start.isfinite(), picked, start)
        tiny = self._uniform(rows, 1) < 0.1
        anywhere = self._normal(picked.shape).sign() * 10.0 ** (self._uniform(*picked.shape) * 60 - 40)
        return torch.where(tiny, anywhere, start).clamp(self.walk.low, self.walk.high)

    def neighbours(self, start: Tensor) -> Tensor:
        """Step one input at a time from one float to the next, beginning just below."""
        ladder = [self._nudged(start, 6, -1)]
        mask = self._one_coordinate(len(start))
        for _ in range(_LADDER - 1):
            ladder.append(torch.where(mask, self._nudged(ladder[-1], 1, 1), ladder[-1]))
        return torch.stack(ladder)

    def _nudged(self, x: Tensor, steps: int, way: int) -> Tensor:
        far = torch.where(self.signs * way < 0, -math.inf, math.inf).to(x).expand_as(x)
        for _ in range(steps):
            x = torch.where(self.signs != 0, torch.nextafter(x, far), x)
        return x.clamp(self.walk.low, self.walk.high)

    def jumps(self, start: Tensor) -> Tensor:
        rows = len(start)
        size = 10.0 ** (self._uniform(rows, 1) * 10 - 8)
        mask = torch.where(self._uniform(rows, 1) < 0.5, self._one_coordinate(rows), self.signs != 0)
        steps = self._uniform(_LADDER, *start.shape) * size * start.abs().clamp(1.0, 1e6)
        steps[0] = 0
        return self._bounded(start + (steps * mask * self.signs).cumsum(0))

    def _uphill(self, start: Tensor) -> Tensor:
        """Follow the coordinate whose gradient points the most the wrong way."""
        x = torch.where(start.isfinite(), start, torch.zeros_like(start)).requires_grad_()
        try:
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.walk.function(x).sum(), x, allow_unused=True)
        except RuntimeError:  # weights that were made in inference mode: the other ways of looking need no gradient
            slope = None
        slope = torch.zeros_like(x) if slope is None else slope
        wrong = torch.where(self.signs != 0, (slope * self.signs).nan_to_num(0.0), math.inf).argmin(1)
        step = torch.zeros_like(start).scatter(1, wrong[:, None], 1.0) * self.signs
        sizes = torch.cat([torch.zeros(1), 10.0 ** torch.linspace(-7, 1, _LADDER - 1)]).to(start)
        return self._bounded(x.detach() + sizes[:, None, None] * step)

    def _climb(self, start: Tensor) -> Tensor:
        """Look again around the inputs whose outputs came closest to the wrong order."""
        near = self.closest[self._integers(len(self.closest), len(start))]
        size = 10.0 ** (self._uniform(len(start), 1) * 8 - 8)
        moved = self._bounded(near + near.abs().clamp(min=1e-3) * size * self._normal(near.shape))
        near = torch.where(near.isfinite(), moved, near)
        return self.jumps(near) if self._uniform(1).item() < 0.5 else self.neighbours(near)

    def _check(self, ladder: Tensor, how: str) -> None:
        rungs, rows, width = ladder.shape
        flat = ladder.reshape(-1, width)
        order = torch.randperm(len(flat), generator=self.random).to(self.device)
        with torch.no_grad():
            y = torch.empty_like(self.walk.function(flat[:1])).expand(len(flat)).clone()
            y[order] = self.walk.function(flat[order])
        self.run += len(flat)
        y = y.reshape(rungs, rows)
        if self.walk.within is not None:
            outside = ~((y >= self.walk.within[0]) & (y <= self.walk.within[1]))
            self._note_range(ladder, y, outside, how)
        if not len(self.moving):
            return
        change = y[1:].double() - y[:-1].double()
        wrong = (change < 0) | y[1:].isnan()
        if wrong.any() and MONOTONE not in self.found:
            i, j = wrong.nonzero()[0].tolist()
            before, after = tuple(ladder[i, j].tolist()), tuple(ladder[i + 1, j].tolist())
            self.found[MONOTONE] = Counterexample(
                MONOTONE, self.walk.variable, before, after, y[i, j].item(), y[i + 1, j].item(), how
            )
        least = torch.where(change > 0, change, math.inf).min(0)
        best = least.values.argsort()[: _CLIMBERS // 4]
        self.closest = torch.cat([ladder[least.indices[best], best], self.closest])[:_CLIMBERS]

    def _note_range(self, ladder: Tensor, y: Tensor, outside: Tensor, how: str) -> None:
        if outside.any() and RANGE not in self.found and self.walk.within is not None:
            i, j = outside.nonzero()[0].tolist()
            at, low, high = tuple(ladder[i, j].tolist()), *self.walk.within
            nearest = low if y[i, j] < low else high
            self.found[RANGE] = Counterexample(RANGE, self.walk.variable, at, at, nearest, y[i, j].item(), how)

    def _bounded(self, ladder: Tensor) -> Tensor:
        return ladder.clamp(self.walk.low, self.walk.high)

    def _one_coordinate(self, rows: int) -> Tensor:
        """Return a mask (rows, V) of one input a row, of those of which something is said."""
        picked = self.moving.to(self.device)[self._integers(len(self.moving), rows)]
        return torch.zeros(rows, len(self.signs), dtype=torch.bool, device=self.device).scatter(
            1, picked[:, None], True
        )

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random, dtype=torch.float64).to(self.device, self.dtype)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64).to(self.device, self.dtype)

    def _integers(self, below: int, rows: int) -> Tensor:
        return torch.randint(below, (rows,), generator=self.random).to(self.device)


def _shown(numbers: tuple[float, ...]) -> str:
    return repr(numbers[0]) if len(numbers) == 1 else repr(list(numbers))
