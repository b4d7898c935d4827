"""`freeze` and `thaw`: make a part of a model frozen in every sense, keep it so, and undo exactly that.

What a module was before lies in its `__dict__`, beside the `train` that stands in for its own: copies and pickles of
the model keep both, `state_dict` has neither. Parameters are remembered by module and name, never by object, because
`load_state_dict(assign=True)` and copies put other objects in their place.
"""

import functools
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from forethought.errors import SplitError
from forethought.order import executed, registered
from forethought.parts import Part, Paths, own_parameters, part_around, part_below, part_of_size, part_until

_BEFORE = "_before_freeze"  # an attribute of a module; identities leave it out


def freeze(
    model: nn.Module,
    until: str | float | None = None,
    *,
    only: str | Sequence[str] | None = None,
    all_but: str | Sequence[str] | None = None,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Freeze a part of a model: up to a module, a fraction of it, some paths, or all but some. Undone by `thaw`.

    Its parameters stop training, and its modules stay in evaluation mode: `model.train()` does not undo it. What did
    not train before is left as it is, also by `thaw`. Without `until`, `only` and `all_but`, everything is frozen.

    Args:
        model: The model, changed in place.
        until: Path of the last module to freeze, in order of execution; or a fraction, from 0.0 to 1.0: the most that
            is at most this share of all numbers in the parameters, up to the end of some module.
        only: Paths of modules, with all that is below them, or of parameters.
        all_but: Paths of what is to train on. The modules around it keep their modes.
        args: Example inputs, for `until`. Given, the model runs once and the order is that of execution. Without them
            it is the order in which modules were registered, the same for most models, and parameters that the modules
            around `until` hold themselves (a class token, positions) are taken to come before it.
        kwargs: Example keyword arguments.

    Returns:
        The model.

    Raises:
        SplitError: no module or parameter has this path, the forward does not call it, a fraction is not between 0 and
            1, what is to train shares a parameter with the rest, or more than one way of choosing is given.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> model = freeze(model, until="1").train()
        >>> [module.training for module in model]
        [False, False, True]
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['2.weight', '2.bias']
    """
    _check_one_way(model, until, only, all_but, has_example=args is not None or bool(kwargs))
    if only is not None:
        part = part_below(Paths(model), _listed(only, "only"))
    elif all_but is not None:
        part = part_around(Paths(model), _listed(all_but, "all_but"))
    elif until is None or until == "" or until == 1.0:
        part = Part([model])
    else:
        part = _first(model, until, args, kwargs)
    for module in part.modules:
        _pin(module)
    for module, name in part.parameters:
        _hold(module, [name])
    return model


def thaw(model: nn.Module, path: str | Sequence[str] | None = None) -> nn.Module:
    """Undo `freeze`: what trained before trains again, in the mode of before, and follows `model.train()` again.

    What `freeze` found frozen stays frozen. A parameter that frozen and thawed modules share stays frozen until the
    last of them is thawed.

    Args:
        model: The model, changed in place.
        path: Path, or paths, of modules, with all that is below them, or of parameters; None thaws everything.

    Returns:
        The model.

    Raises:
        SplitError: no module or parameter has this path, or `freeze` froze nothing there.

    Example:
        >>> model = freeze(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
        >>> [parameter.requires_grad for parameter in thaw(model, "1").parameters()]
        [False, False, True, True]
    """
    part = Part([model]) if path is None else part_below(Paths(model), _listed(path, "path"))
    modules = list({id(m): m for top in part.modules for m in top.modules() if _BEFORE in vars(m)}.values())
    chosen = [(module, _before(module).trained) for module in modules]
    chosen += [(module, _before(module).trained & {name}) for module, name in part.parameters]
    thawed = [parameter for module, names in chosen for parameter in _own(module, names)]
    if path is not None and not modules and not thawed:
        raise SplitError(
            f"Cannot thaw {path!r}: expected something that ft.freeze froze, got nothing. What was frozen by hand is "
            "thawed by hand: module.requires_grad_(True)"
        )
    for module, name in part.parameters:
        _before(module).trained.discard(name)
    _unpin(model, modules)
    held = [(module, name) for module in model.modules() for name in _held(module)]
    shared = {id(p): one for one in held if one not in part.parameters for p in _own(one[0], [one[1]])}
    for parameter in thawed:
        if id(parameter) in shared:  # still frozen there, which now has to remember
            module, name = shared[id(parameter)]
            _before(module).trained.add(name)
        else:
            parameter.requires_grad = True
    return model


def _first(model: nn.Module, until: str | float, args: Any, kwargs: dict[str, Any] | None) -> Part:
    """Choose the first part of a model: up to a module, or a fraction of it."""
    last = Paths(model).module(until) if isinstance(until, str) else None
    if args is None and not kwargs:
        steps = registered(model)
    else:
        steps = executed(model, args if isinstance(args, tuple) else () if args is None else (args,), kwargs or {})
    if last is None:
        try:
            return part_of_size(model, steps, float(until) * Part([model]).size() * (1 + 1e-12))
        except ValueError as err:
            raise SplitError(
                "Cannot freeze a fraction: expected parameters of known sizes, got a lazy module that was never "
                "called. Run the model once first: model(x)"
            ) from err
    part = part_until(model, steps, last)
    if part is None:
        raise SplitError(
            f"Cannot freeze until '{until}': expected a module that the forward calls, got another one. "
            f"Without inputs the order is that of registration: ft.freeze(model, until={until!r})"
        )
    return part


def _check_one_way(model: Any, until: Any, only: Any, all_but: Any, has_example: bool) -> None:
    if not isinstance(model, nn.Module):
        raise SplitError(f"Cannot freeze a {type(model).__name__}: expected a torch.nn.Module. Give it the model.")
    given = [name for name, value in {"until": until, "only": only, "all_but": all_but}.items() if value is not None]
    if len(given) > 1:
        raise SplitError(
            f"Cannot freeze: expected one of until, only and all_but, got {' and '.join(given)}. "
            "Call ft.freeze once for each."
        )
    if has_example and given and given != ["until"]:
        raise SplitError(
            f"Cannot freeze: expected inputs only where the order counts, got them with {given[0]}. "
            f"Leave args and kwargs out: ft.freeze(model, {given[0]}=...)"
        )
    if until is None or isinstance(until, str) or (isinstance(until, float) and 0 <= until <= 1):
        return
    raise SplitError(
        f"Cannot freeze until {until!r}: expected the path of a module, or a fraction from 0.0 to 1.0. "
        "A module called by a number is given as text, a share as a fraction: "
        "ft.freeze(model, until='1'), ft.freeze(model, until=0.8)"
    )


def _listed(paths: Any, name: str) -> list[str]:
    listed = [paths] if isinstance(paths, str) else list(paths) if isinstance(paths, Iterable) else []
    if not listed or not all(isinstance(path, str) and path.removesuffix(".") for path in listed):
        raise SplitError(
            f"Cannot choose by {name}={paths!r}: expected the path of a module or a parameter, or several, got none. "
            "For the whole model: ft.freeze(model), ft.thaw(model)"
        )
    return listed


@dataclass
class _Before:
    """What a module was before it was frozen."""

    mode: bool | None = None  # None: its mode was left alone
    trained: set[str] = field(default_factory=set)  # its own parameters that trained


MARK = _Before
"""The class of what `freeze` leaves on every module that it froze: it holds no tensor, and no forward writes to it."""


def _before(module: nn.Module) -> _Before:
    return vars(module).get(_BEFORE) or _Before()


def _hold(module: nn.Module, names: Container[str]) -> None:
    """Stop some of a module's own parameters from training."""
    before = vars(module).setdefault(_BEFORE, _Before())
    for name, parameter in own_parameters(module).items():
        if name in names and parameter.requires_grad:
            before.trained.add(name)
            parameter.requires_grad = False  # the method is refused by parameters of lazy modules


def _pin(module: nn.Module) -> None:
    """Stop a module's parameters from training, and keep it, with all that is in it now, in evaluation mode."""
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    for inner, mode in modes:
        _hold(inner, own_parameters(inner))
        before = _before(inner)
        before.mode = mode if before.mode is None else before.mode
        inner.training = False
        vars(inner)["train"] = functools.partial(_stay, inner)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for `train` on a frozen module: what was added to it later, or thawed, goes along."""
    for child in module.children():
        child.train(mode)
    return module


def _unpin(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Give modules their own `train` and their former mode back; those that train in another way are told, too."""
    modes = {id(module): module.training for module in model.modules()}
    for module in modules:
        before = vars(module).pop(_BEFORE)
        if before.mode is not None:
            vars(module).pop("train", None)
            modes[id(module)] = before.mode
    for module in modules:
        if type(module).train is not nn.Module.train and "train" not in vars(module):
            module.train(modes[id(module)])
    for module in model.modules():
        module.training = modes[id(module)]


def _held(module: nn.Module) -> set[str]:
    """Name the parameters that are frozen here: all of a pinned module, or single ones."""
    before = _before(module)
    return before.trained | (set(own_parameters(module)) if before.mode is not None else set())


def _own(module: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Give a module's own parameters by name; those that were parametrized since lie one level deeper."""
    found: list[nn.Parameter] = []
    held, children = own_parameters(module), dict(module.named_children())
    for name in names:
        if name in held:
            found.append(held[name])
        elif "parametrizations" in children:
            moved = dict(children["parametrizations"].named_children())
            found += moved[name].parameters(recurse=False) if name in moved else []
    return found
