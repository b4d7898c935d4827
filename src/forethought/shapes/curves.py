"""Numbers seen at several sizes of a model's inputs, as polynomials in these sizes with whole coefficients."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Sizes = tuple[int | tuple[int, int] | None, ...]
"""One size for each that differs: itself, or the smallest and largest that it may be; None where nothing is known."""

Curve = tuple[int, ...]
"""Whole coefficients, one for each term."""

_STEPS = 8  # of a staircase that are looked at, at least
_GROWTH = 64  # times the largest size that there is


@dataclass(frozen=True)
class Stairs:
    """A number that grows with one size by steps, as what convolutions leave: floor((rise * n + offset) / run).

    Attributes:
        measure: Which size n is.
        rise: How much it grows by, if there are no steps.
        offset: What is added: a token in front, say.
        run: The width of a step: the strides of convolutions multiplied.

    Example:
        >>> [Stairs(0, offset=-10, run=5).at(n) for n in (60, 64, 65)]
        [10, 10, 11]
    """

    measure: int
    rise: int = 1
    offset: int = 0
    run: int = 1

    def at(self, size: Any) -> Any:
        """Evaluate at a whole number, or a tensor of them."""
        return (size * self.rise + self.offset) // self.run

    def sizes_at(self, height: int) -> int | tuple[int, int]:
        """Give the size, or the smallest and the largest one, at which it has a height."""
        first = -((self.offset - height * self.run) // self.rise)
        last = -((self.offset - (height + 1) * self.run) // self.rise) - 1
        return first if first == last else (first, last)


def climb(height: Callable[[int], int], largest: int, measure: int = 0) -> Stairs | None:
    """Find a staircase by its steps; None if it is none.

    Args:
        height: Gives the height at a size; raises anything at sizes that are too small or too large.
        largest: A size that there is. Most looks are at smaller ones; larger ones if it is only a few steps up.
        measure: Which size it is.

    Example:
        >>> climb(lambda n: (n - 10) // 5 + 1, 10_000)
        Stairs(measure=0, rise=1, offset=-5, run=5)
    """
    top = largest
    with suppress(Exception):  # whatever a model says of inputs that are too small
        while height(top // 2) >= _STEPS:
            top //= 2
    with suppress(Exception):  # or too large
        while height(top) < 2 * _STEPS and height(2 * top) > height(top) and top < _GROWTH * largest:
            top *= 2
    bottom = top // 2 + 1
    heights = height(bottom) + 1, height(top)
    first, last = (_begin(height, wanted, bottom, top) for wanted in heights)
    rises = heights[1] - heights[0]
    if rises < 1 or (last - first) % rises:
        return None
    run = (last - first) // rises
    stairs = Stairs(measure, 1, heights[1] * run - last, run) if run else None
    tried = {bottom, top, largest, *(bottom + (top - bottom) * part // 5 for part in range(1, 5))}
    return stairs if stairs and all(height(size) == stairs.at(size) for size in tried) else None


def _begin(height: Callable[[int], int], wanted: int, low: int, high: int) -> int:
    """Find the smallest size at which a staircase has a height."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if height(middle) >= wanted else (middle + 1, high)
    return low


class Curves:
    """Writes numbers that were seen at several points as polynomials with whole coefficients.

    Args:
        points: The sizes at each.

    Example:
        >>> curves = Curves([(8,), (7,), (6,), (5,)])
        >>> curve = curves.fit((80, 70, 60, 50))
        >>> curves.at(curve, (100,)), curves.fit((4, 3, 3, 2))
        (1000, None)
    """

    def __init__(self, points: Sequence[tuple[int, ...]]) -> None:
        self.points = tuple(points)
        count = len(self.points[0])
        terms: list[tuple[int, ...]] = []  # exponents of each size
        for degree in range(3):
            more = [term for term in itertools.product(range(3), repeat=count) if sum(term) == degree]
            if len(terms) + len(more) < len(self.points):  # one point more than coefficients: a fit is no accident
                terms += more
        self._terms = terms
        self._known: dict[tuple[int, ...], Curve | None] = {}

    def fit(self, seen: tuple[int, ...]) -> Curve | None:
        """Find the polynomial that gives what was seen at each point; None if there is no such one."""
        if seen not in self._known:
            self._known[seen] = self._fit(seen)
        return self._known[seen]

    def at(self, curve: Curve, sizes: Sizes) -> int | None:
        """Evaluate; None where that takes a size that is not known."""
        total = 0
        for coefficient, term in zip(curve, self._terms, strict=True):
            if coefficient:
                powers = [(size, power) for size, power in zip(sizes, term, strict=True) if power]
                exact = [size**power for size, power in powers if isinstance(size, int)]
                if len(exact) < len(powers):
                    return None
                total += coefficient * math.prod(exact)
        return total

    def line(self, curve: Curve) -> tuple[int, int, int] | None:
        """Write a curve that follows one size, evenly, as (which size, slope, value at 0); None for any other."""
        held = [(term, number) for term, number in zip(self._terms, curve, strict=True) if number and any(term)]
        if len(held) != 1 or sum(held[0][0]) != 1:
            return None
        return held[0][0].index(1), held[0][1], curve[0]

    def solve(self, curve: Curve, value: int) -> tuple[int, int] | None:
        """Find which size, and how much of it, gives this value; None unless the curve follows one size, evenly."""
        line = self.line(curve)
        if line is None:
            return None
        size, rest = divmod(value - line[2], line[1])
        return None if rest else (line[0], size)

    def _fit(self, seen: tuple[int, ...]) -> Curve | None:
        if len(set(seen)) == 1:
            return seen[0], *[0] * (len(self._terms) - 1)
        rows = [
            [
                *(Fraction(math.prod(s**p for s, p in zip(point, term, strict=True))) for term in self._terms),
                Fraction(y),
            ]
            for point, y in zip(self.points, seen, strict=True)
        ]
        solution = _solved(rows)
        if solution is None or any(number.denominator != 1 for number in solution):
            return None
        return tuple(int(number) for number in solution)


def _solved(rows: list[list[Fraction]]) -> list[Fraction] | None:
    """Solve linear equations, each its coefficients and its right side; None unless there is exactly one solution."""
    width = len(rows[0]) - 1
    for column in range(width):
        pivot = next((at for at in range(column, len(rows)) if rows[at][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        lead = [number / rows[column][column] for number in rows[column]]
        rows = [
            lead if at == column else [a - row[column] * b for a, b in zip(row, lead, strict=True)]
            for at, row in enumerate(rows)
        ]
    return None if any(row[-1] for row in rows[width:]) else [row[-1] for row in rows[:width]]
