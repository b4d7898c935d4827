"""A table of text: what every way to show a report draws."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table: a title, columns, and rows of text.

    Attributes:
        title: What it is about.
        columns: Names; those in `numbers` are flush right.
        numbers: Positions of columns of numbers.
        rows: Cells. One that begins with two spaces lies within the row above.
        note: What is said below; "" for nothing.
        last_is_sum: Whether the last row is the sum of those before.
    """

    title: str
    columns: tuple[str, ...]
    numbers: frozenset[int]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    last_is_sum: bool = False
