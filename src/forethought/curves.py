"""Numbers seen at several sizes of a model's inputs, as polynomials in these sizes with whole coefficients."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

Sizes = tuple[int | None, ...]
"""One size for each that differs; None where it is not known."""

Curve = tuple[int, ...]
"""Whole coefficients, one for each term."""


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
                if any(size is None for size, _ in powers):
                    return None
                total += coefficient * math.prod(size**power for size, power in powers if size is not None)
        return total

    def solve(self, curve: Curve, value: int) -> tuple[int, int] | None:
        """Find which size, and how much of it, gives this value; None unless the curve follows one size, evenly."""
        held = [(term, number) for term, number in zip(self._terms, curve, strict=True) if number and any(term)]
        if len(held) != 1 or sum(held[0][0]) != 1:
            return None
        term, slope = held[0]
        size, rest = divmod(value - curve[0], slope)
        return None if rest else (term.index(1), size)

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
