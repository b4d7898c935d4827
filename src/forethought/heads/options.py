"""Named options, checked where they are given."""

from collections.abc import Sequence

from forethought.errors import FitError


def check_option(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise FitError(
            f"Cannot build head: expected {name} to be one of {listed}, got {value!r}. Pass {name}={choices[0]!r}"
        )
