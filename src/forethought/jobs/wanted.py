"""Heads as they are typed: `linear`, `mlp:width=64,dropout=0.1`; and what is to be tried with them: `lr=1e-3,1e-2`."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from forethought.errors import FitError
from forethought.fitting.kinds import is_kind, options_of
from forethought.fitting.options import NAMES
from forethought.heads.registry import KINDS

PLAIN = ("linear", "mlp", "ridge", "logistic")
_CONVEX = {"ridge": {"alpha": [0.1, 10.0, 1000.0]}, "logistic": {"C": [0.001, 0.1, 10.0]}}  # and what is tried
_TRIED = {"lr": [1e-3, 1e-2]}
_NOT_TYPED = {"metric", "higher_is_better", "target", "standardize", "epochs"}


def default_heads(is_classes: bool) -> list[str]:
    """Name the heads that are tried where nobody named any."""
    return ["linear", "mlp", "logistic" if is_classes else "ridge"]


def read_heads(texts: Sequence[str], sweeps: Sequence[str], is_classes: bool) -> dict[str, dict[str, Any]]:
    """Read heads and what is tried with them.

    Args:
        texts: KIND or KIND:OPTION=VALUE,...
        sweeps: OPTION=VALUE,VALUE: tried with each head that takes it. Without any, a few step sizes are.
        is_classes: Whether they are to tell classes.

    Returns:
        What `ft.fit` takes as heads, by name.

    Raises:
        FitError: no such kind or option.
    """
    tried = _sweeps(sweeps)
    heads: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for text in texts or default_heads(is_classes):
        kind, _, rest = text.partition(":")
        spec = _kind(kind, is_classes)
        own = {name: _value(name, value, text) for name, value in _pairs(rest, text)}
        fits = {name for name in tried if name in _known(kind, own)}
        default: dict[str, list[Any]] = _CONVEX.get(kind, _TRIED)
        _check(own, kind)
        used |= fits
        name = text if text not in heads else f"{text} ({len(heads) + 1})"
        if not tried:
            spec = {**{key: value for key, value in default.items() if key in _known(kind, own)}, **spec}
        heads[name] = {**spec, **{name: tried[name] for name in fits}, **own}
    idle = [name for name in tried if name not in used]
    if idle:
        raise FitError(
            f"Cannot try '{idle[0]}': expected an option of {', '.join(heads)}, got one that none of them has. "
            f"{_meant(idle[0], {name for text in heads for name in _known(text.partition(':')[0], {})})}"
        )
    return heads


def _kind(kind: str, is_classes: bool) -> dict[str, Any]:
    if kind in _CONVEX:
        if (kind == "logistic") != is_classes:
            raise FitError(
                f"Cannot fit a head of kind '{kind}': expected {'numbers' if is_classes else 'classes'} as targets, "
                f"got {'classes' if is_classes else 'numbers'}. --head {'logistic' if is_classes else 'ridge'}"
            )
        return {"kind": kind}
    if not is_kind(kind, {}):
        raise FitError(
            f"Cannot fit a head of kind '{kind}': expected one of {', '.join([*PLAIN, *KINDS])}. "
            f"{_meant(kind, {*PLAIN, *KINDS})}"
        )
    if is_classes and kind in KINDS and kind != "mlp":
        raise FitError(f"Cannot fit a head of kind '{kind}': expected numbers as targets, got classes. --head mlp")
    return {"kind": kind}


def _known(kind: str, own: Mapping[str, Any]) -> set[str]:
    if not is_kind(kind, own):
        return set()
    return options_of(kind, own) | ({"seed"} if kind in _CONVEX else set(NAMES) - _NOT_TYPED)


def _check(own: Mapping[str, Any], kind: str) -> None:
    _check_whole(own, kind)
    known = _known(kind, own)
    odd = next((name for name in own if name not in known), None)
    if odd is not None:
        raise FitError(
            f"Cannot fit a head of kind '{kind}': expected options among {', '.join(sorted(known))}, got '{odd}'. "
            f"{_meant(odd, known)}"
        )


def _check_whole(own: Mapping[str, Any], kind: str) -> None:
    """Refuse a kind without an option that it cannot be made without."""
    if kind not in KINDS or (kind == "mlp" and "anchors" not in own):
        return
    options = inspect.signature(KINDS[kind].__init__).parameters.values()
    needed = [one.name for one in options if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    absent = [name for name in needed if name not in ("self", "in_features", *own)]
    if absent:
        raise FitError(
            f"Cannot fit a head of kind '{kind}': expected its option {absent[0]}, got none. "
            f"--head '{kind}:{absent[0]}=0|10|20'"
        )


def _sweeps(texts: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.strip() or not values.strip():
            raise FitError(f"Cannot try '{text}': expected OPTION=VALUE,VALUE. --sweep lr=1e-3,1e-2")
        found[name.strip()] = [_value(name.strip(), value, text) for value in values.split(",")]
    return found


def _pairs(text: str, whole: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise FitError(
                f"Cannot read the head '{whole}': expected KIND:OPTION=VALUE,..., got '{part}'. mlp:width=64"
            )
        pairs.append((name.strip(), value))
    return pairs


def _value(name: str, text: str, whole: str) -> Any:
    """Read a value: a number, yes or no, sizes such as 64x32, numbers such as 0|10|20, or a word."""
    text = text.strip()
    if text.lower() in ("true", "yes", "false", "no", "none"):
        return {"true": True, "yes": True, "false": False, "no": False, "none": None}[text.lower()]
    if "|" in text or name == "anchors":
        numbers = [_number(part) for part in text.split("|")]
        if None in numbers:
            raise FitError(f"Cannot read '{whole}': expected numbers such as 0|10|20, got '{text}'. {name}=0|10|20")
        return numbers
    sizes = text.lower().split("x")
    if name == "hidden" and all(size.isdigit() for size in sizes):
        return tuple(map(int, sizes))
    number = _number(text)
    return text if number is None else number


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None


def _meant(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"There are {', '.join(sorted(known))}."
