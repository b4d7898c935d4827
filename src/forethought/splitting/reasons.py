"""Why two halves do not give what the model gives: what the user is told."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from forethought.errors import ReplayDriftError, SplitError
from forethought.splitting.operations import draws, func_name
from forethought.splitting.recording import Label, Operation

_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "rrelu"}


def differing(model: nn.Module, operations: Sequence[Operation], *, repeats: bool, draws: bool) -> ReplayDriftError:
    """Say why `head(trunk(x))` is not `model(x)`.

    Args:
        model: The model.
        operations: What a run of it did.
        repeats: Whether the whole model gives the same twice.
        draws: Whether the trunk draws random numbers.
    """
    name = type(model).__name__
    if not repeats:
        return ReplayDriftError(
            f"Cannot split {name}: expected it to equal itself on the same input and random state, got two "
            "outputs. It keeps a state, or draws numbers where torch does not see. Try model.eval() first."
        )
    if draws:
        return ReplayDriftError(
            f"Cannot split {name}: expected head(trunk(x)) to equal model(x), got a difference: the frozen part "
            f"draws random numbers{_where_frozen_draws(operations)}, and not before all that the head draws. Let it be "
            "in evaluation mode: ft.freeze(model, until=...), or model.eval()"
        )
    return ReplayDriftError(
        f"Cannot split {name}: expected head(trunk(x)) to equal model(x), got a difference. A value reached the "
        "head on a way that cannot be seen. Cut elsewhere: ft.split(model, x, at=...)"
    )


def by_chance(model: nn.Module, told: str) -> ReplayDriftError:
    """Say that Python reads a random number before the frontier, by this operation: it may choose what is frozen."""
    return ReplayDriftError(
        f"Cannot split {type(model).__name__}: expected Python to decide nothing by chance before the last frozen "
        f"value is made, got it reading a random number that torch drew ({told}). Call model.eval(), set that rate "
        "(layerdrop) to 0, or cut before it: ft.split(model, x, at=<an earlier module>)"
    )


def remembering(model: nn.Module, names: Collection[str]) -> SplitError:
    """Say that the forward reads in one call what it left on these attributes in another."""
    return SplitError(
        f"Cannot split {type(model).__name__}: expected it to give the same twice, got other outputs in a later run: "
        f"its forward changes attributes that it reads ({', '.join(sorted(names)[:4])}). Keep such a state in a "
        "buffer: self.register_buffer(name, tensor)"
    )


def by_values(model: nn.Module, decision: Operation) -> ReplayDriftError:
    """Say that Python decided, by values of this batch, to compute more of what is frozen than the trunk gave."""
    return ReplayDriftError(
        f"Cannot run the head of {type(model).__name__}: expected this batch to take the path of the trunk's values to "
        f"its end, got another one, as Python decides by frozen values how far it goes ({decision}). Put what decides "
        "and what it decides about into a frozen module of their own, or cut before it: "
        "ft.split(model, x, at=<an earlier module>)"
    )


def crossing_otherwise(model: nn.Module, verb: str, frontiers: Sequence[Sequence[str]], decision: Operation) -> str:
    """Say that batches cross different tensors because Python decides by their values how far the frozen part goes."""
    expected, got = frontiers
    return (
        f"Cannot {verb} {type(model).__name__}: expected every batch to cross the same frontier, {list(expected)}, got "
        f"one that crosses {list(got)}: Python decides by frozen values how much of what is frozen runs ({decision}). "
        "Put what decides and what it decides about into a frozen module of their own, whose output alone then "
        "crosses, or cut before it: ft.split(model, x, at=<an earlier module>)"
    )


def decides(operations: Sequence[Operation]) -> Operation | None:
    """Find the last operation by which Python reads a frozen value where both halves run."""
    return next((op for op in reversed(operations) if op.in_head and op.reads_values), None)


def _where_frozen_draws(operations: Sequence[Operation]) -> str:
    """Name the first operation that draws random numbers for what is frozen."""
    found = next((op for op in operations if op.label is Label.FROZEN and draws(op.func) and _is_on(op)), None)
    return f" ({found})" if found is not None else ""


def _is_on(op: Operation) -> bool:
    """Say whether an operation is no dropout that was told to drop nothing."""
    args, kwargs = op.arguments
    if func_name(op.func).rstrip("_") not in _DROPOUTS:
        return True
    told: tuple[Any, Any] = kwargs.get("training", args[2] if len(args) > 2 else True), kwargs.get("p", 1)
    return all(told)
