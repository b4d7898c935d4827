"""What was asked for, as heads: each a module with its options. A list of values to try becomes many heads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from forethought.errors import FitError
from forethought.fitting.kinds import Setting, build, fixed_by, is_kind, loss_for, options_of
from forethought.fitting.measures import last_of
from forethought.fitting.options import NAMES, Options
from forethought.fitting.randomness import random_state_kept
from forethought.fitting.results import shown_as
from forethought.heads.circular import Around, CircularSpline
from forethought.heads.histogram import HistogramHead
from forethought.heads.multi import Columns, MultiHead

_CPU = torch.device("cpu")
_WHOLE = ("class_weight", "metric", "anchors")  # a list is one value of these


@dataclass(frozen=True)
class Candidate:
    """One head to be trained.

    Attributes:
        name: Its name.
        module: The module; a copy of it is trained.
        options: What it is trained with.
        family: Name of what it came from.
        tried: What was tried with it that others of its family have otherwise.
    """

    name: str
    module: nn.Module
    options: Options
    family: str
    tried: Mapping[str, Any]


def expand(heads: Any, given: Mapping[str, Any], setting: Callable[[], Setting]) -> list[Candidate]:
    """Make heads of what was asked for.

    Args:
        heads: By name, or a single one: a module; a function that makes one; the name of a kind; or a dictionary of one
            of these ('kind', or 'module') with options of its own.
        given: Options of all heads: a value, a dictionary by head name, or a list of values to try.
        setting: What kinds are sized for, where there are any.

    Raises:
        FitError: something is no head, or an option cannot be used.
    """
    named = _named(heads)
    per_head = _spread(given, list(named))
    found = [
        candidate
        for name, spec in named.items()
        for candidate in _family(name, _as_spec(name, spec), per_head[name], setting)
    ]
    for candidate in found:
        candidate.options.check()
        _check_frozen(candidate)
    return _around_circles(found)


def _around_circles(candidates: list[Candidate]) -> list[Candidate]:
    """Rank circles, and what trains on the same target, by the distance around, where no metric was asked for.

    A mean error takes 359 and 1 degrees for far apart.
    """
    periods: dict[int | str | None, set[Around | Columns]] = {}
    for each in candidates:
        periods.setdefault(each.options.target, set()).update(_distance_of(each.module))

    def ranked(each: Candidate) -> Candidate:
        own = _distance_of(each.module) or periods[each.options.target]
        if each.options.metric is not None or each.options.metrics != ("mae",) or len(own) != 1:
            return each
        return replace(each, options=replace(each.options, metric=next(iter(own))))

    return [ranked(each) for each in candidates]


def _check_frozen(candidate: Candidate) -> None:
    head = last_of(candidate.module)
    if candidate.options.standardize and isinstance(head, HistogramHead) and head.correction is not None:
        raise FitError(
            f"Cannot standardize the features of head {candidate.name!r}: expected layers that train, got a classifier "
            f"that stays as it is (correction={head.correction:g}) and takes features as they are. standardize=False"
        )


def _distance_of(module: nn.Module) -> set[Around | Columns]:
    head = last_of(module)
    around = head.around if isinstance(head, CircularSpline | MultiHead) else None
    return set() if around is None else {around}


def _named(heads: Any) -> dict[str, Any]:
    """Give heads by name; a single one is named 'head'."""
    is_module = isinstance(heads, nn.Module) and not isinstance(heads, nn.ModuleDict)
    is_spec = isinstance(heads, Mapping) and isinstance(heads.get("kind"), str | list)
    if is_module or is_spec or isinstance(heads, str) or (callable(heads) and not isinstance(heads, nn.ModuleDict)):
        return {"head": heads}
    named = dict(heads.items()) if hasattr(heads, "items") else {}
    if not named or not all(isinstance(name, str) for name in named):
        got = "none" if hasattr(heads, "items") else type(heads).__name__
        raise FitError(
            f"Cannot fit heads: expected at least one module by name, got {got}. "
            "Pass heads={'linear': torch.nn.Linear(width, outputs)}"
        )
    return named


def _as_spec(name: str, head: Any) -> dict[str, Any]:
    """Write a head as a dictionary of what it is made of and its options."""
    if isinstance(head, nn.Module) or (callable(head) and not isinstance(head, str)):
        return {"module": head}
    if isinstance(head, str):
        return {"kind": head}
    if isinstance(head, Mapping) and ("kind" in head) != ("module" in head):
        return dict(head)
    raise FitError(
        f"Cannot fit heads: expected a module, a function that makes one, the name of a kind, or a dictionary of "
        f"'kind' or 'module' and options, got {name!r}: {type(head).__name__}. "
        "Pass heads={'linear': torch.nn.Linear(width, outputs)}"
    )


def _spread(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each head its options; a mapping holds values by head name, and heads that it omits keep the default."""
    per_head: dict[str, dict[str, Any]] = {name: {} for name in names}
    for option, value in given.items():
        by_name = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
        for name, single in by_name.items():
            if name not in per_head:
                raise FitError(
                    f"Cannot fit heads: expected {option}= to name heads among {list(names)}, got {name!r}. "
                    f"Pass {option}={{{names[0]!r}: ...}}"
                )
            per_head[name][option] = single
    return per_head


def _family(
    name: str, spec: dict[str, Any], options: Mapping[str, Any], setting: Callable[[], Setting]
) -> list[Candidate]:
    """Make the heads of one name: one for each combination of values to try."""
    whole = {**options, **spec}
    tried = {key: list(value) for key, value in whole.items() if _is_tried(key, value)}
    if any(not values for values in tried.values()):
        empty = next(key for key, values in tried.items() if not values)
        raise FitError(
            f"Cannot fit head {name!r}: expected {empty} to hold values to try, got none. Pass {empty}=[...]"
        )
    found: dict[str, Candidate] = {}
    for values in product(*tried.values()):
        chosen = whole | dict(zip(tried, values, strict=True))
        candidate = _candidate(name, chosen, tried, setting)
        found.setdefault(candidate.name, candidate)
    return list(found.values())


def _candidate(
    family: str, chosen: dict[str, Any], tried: Mapping[str, Any], setting: Callable[[], Setting]
) -> Candidate:
    own = {key: value for key, value in chosen.items() if key in NAMES}
    if isinstance(own.get("metric"), list):
        own["metric"] = tuple(own["metric"])
    rest = {key: value for key, value in chosen.items() if key not in NAMES and key not in ("kind", "module")}
    options = Options(**own)
    if "kind" in chosen:
        kind = chosen["kind"]
        if "kind" in tried and is_kind(kind, rest):  # kinds that are tried beside each other take what they know
            rest = {key: value for key, value in rest.items() if key in options_of(kind, rest)}
        own |= fixed_by(kind, rest, setting(), options.target)
        options = Options(**own)
        if options.loss is None and is_kind(kind, rest):
            options = Options(**own | {"loss": loss_for(kind, rest, setting(), options.target)})
        module = build(kind, rest, setting(), options.target, options.seed)
    else:
        module = _made(family, chosen["module"], rest, options.seed, "seed" in tried)
    shown = {key: chosen[key] for key in tried if key in ("kind", "module", *NAMES, *rest)}
    label = ", ".join(f"{key}={shown_as(value)}" for key, value in shown.items())
    return Candidate(f"{family}[{label}]" if label else family, module, options, family, shown)


def _made(name: str, module: Any, options: Mapping[str, Any], seed: int, seeds_are_tried: bool) -> nn.Module:
    """Give a module that was handed in, or make one by a function that was."""
    if isinstance(module, nn.Module):
        if options:
            raise FitError(
                f"Cannot fit head {name!r}: expected options of fit beside a module, got {next(iter(options))!r}. Pass "
                f"a function that takes it: {{'module': lambda {next(iter(options))}: ...}}"
            )
        if seeds_are_tried:
            raise FitError(
                f"Cannot try several seeds with head {name!r}: expected a way to make it with other first weights, got "
                f"a module, which has its own. Pass a kind, or a function: heads={{{name!r}: lambda: nn.Linear(8, 2)}}"
            )
        return module
    with random_state_kept(seed, _CPU):
        made = module(**options)
    if not isinstance(made, nn.Module):
        raise FitError(
            f"Cannot fit head {name!r}: expected the function to make a module, got a {type(made).__name__}. Return it"
        )
    return made


def _is_tried(key: str, value: Any) -> bool:
    """Whether a value is a list of values to try."""
    if key in _WHOLE:
        return isinstance(value, list) and bool(value) and key == "anchors" and not isinstance(value[0], int | float)
    return isinstance(value, list | range)
