"""Which heads are trained as one computation: those of one shape, as many as memory holds at a time."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import FitError
from forethought.fitting.batched import Batched, is_batchable
from forethought.fitting.chains import read_chain
from forethought.fitting.fullbatch import FullBatch
from forethought.fitting.groups import Group
from forethought.fitting.introduction import Introduced
from forethought.fitting.inturn import InTurn
from forethought.fitting.measures import has_own_loss
from forethought.fitting.options import NAMES
from forethought.fitting.single import Single
from forethought.fitting.stack import Stack, UnlikeError, is_out_of_memory, said_of
from forethought.fitting.trainee import Trainee
from forethought.fitting.weights import Body
from forethought.heads import Head

_MOST_BYTES = 2**26  # of what the widest layers of a group give for one batch: more would not stay in any cache
_LEAST_BATCHED = 4  # heads that vmap must run to be worth its own time; measured, docs/benchmarks.md
_APART = ("lr", "weight_decay", "patience", "higher_is_better", "seed", "epochs")  # each head of a group has its own


def make_groups(
    trainees: Sequence[Trainee],
    introduced: Sequence[Introduced],
    batch: Callable[[Trainee], tuple[Any, Tensor, Tensor | None]],
) -> tuple[list[Group], list[str]]:
    """Divide heads into groups.

    Args:
        trainees: The heads.
        introduced: What is known of each.
        batch: Gives the first batch as a head is given it: values, target, weights.

    Returns:
        The groups, in the order of their first heads, and notes on heads of one shape that are trained in turn after
        all.
    """
    groups: list[Group] = []
    notes: list[str] = []
    draws = [each.draws for each in introduced]
    for trainee, is_random in zip(trainees, draws, strict=True):
        if is_random and trainee.options.is_full_batch:
            raise FitError(
                f"Cannot train head {trainee.name!r} with L-BFGS: expected a loss that stays the same, got a head "
                "that draws random numbers. Leave its dropout out, or use optimizer='adamw'"
            )
    for alike in _alike(trainees, draws):
        values, target, weights = batch(alike[0])
        body = _body_of(alike[0], values, len(alike))
        parts = _parts(alike, body, values)
        if alike[0].options.is_full_batch:
            groups += [FullBatch(part, body or InTurn(part[0].head)) for part in parts]
        elif body is None:
            groups += map(Single, alike)
        else:
            made, said = _proven(parts, body, values, target, weights)
            groups += made
            notes += said
    order = {id(trainee): at for at, trainee in enumerate(trainees)}
    return sorted(groups, key=lambda group: min(order[id(trainee)] for trainee in group.trainees)), notes


def _proven(
    parts: list[list[Trainee]], body: Body, values: Any, target: Tensor, weights: Tensor | None
) -> tuple[list[Group], list[str]]:
    """Make heads that are run as one, where that is what each of them is alone and memory suffices."""
    groups: list[Group] = []
    notes: list[str] = []
    while parts:
        part = parts.pop(0)
        is_too_large = False
        try:
            stack = Stack(part, body)
            stack.prove(values, target, weights)
            groups.append(stack)
        except UnlikeError as err:
            notes.append(f"{len(part)} heads trained in turn: {err}")
            groups += map(Single, part)
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            is_too_large = len(part) > 1
            groups += [] if is_too_large else [Single(part[0])]
        if is_too_large:  # out of the handler, which holds on to the tensors of what failed
            middle = len(part) // 2
            parts = [part[:middle], part[middle:], *parts]
            notes.append(said_of(part, middle))
    return groups, notes


def _alike(trainees: Sequence[Trainee], draws: Sequence[bool]) -> list[list[Trainee]]:
    """Divide heads into those of one shape, sorted by what an optimizer steps at once."""
    kinds: list[list[Trainee]] = []
    firsts: list[tuple[Trainee, bool]] = []
    for trainee, is_random in zip(trainees, draws, strict=True):
        for (first, is_too), kind in zip(firsts, kinds, strict=True):
            if is_random == is_too and _is_like(trainee, first, is_random):
                kind.append(trainee)
                break
        else:
            firsts.append((trainee, is_random))
            kinds.append([trainee])
    return [sorted(kind, key=lambda t: (t.options.lr, t.options.weight_decay)) for kind in kinds]


def _is_like(one: Trainee, other: Trainee, is_random: bool) -> bool:
    a, b = one.options, other.options
    if not isinstance(a.optimizer, str) or not one.parameters or not other.parameters:
        return False
    is_same = all(_is_same(getattr(a, field), getattr(b, field)) for field in NAMES if field not in _APART)
    if not is_same or (is_random and a.seed != b.seed) or (a.schedule is not None and a.epochs != b.epochs):
        return False
    return one.device == other.device and is_same_shape(one.head, other.head)


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))


def is_same_shape(one: nn.Module, other: nn.Module) -> bool:
    """Say whether modules do the same with their parameters: one class and structure, equal attributes, no hooks."""
    if type(one) is not type(other) or _has_hooks(one) or _has_hooks(other):
        return False
    for a, b in ((one._parameters, other._parameters), (one._buffers, other._buffers)):
        if list(a) != list(b) or not all(map(_is_same_form, a.values(), b.values())):
            return False
    mine, its = _plain(one), _plain(other)
    if nesting.tensors(mine) or nesting.tensors(its) or not nesting.is_same_plain(mine, its):
        return False
    children, others = one._modules, other._modules
    return list(children) == list(others) and all(
        a is b is None or (a is not None and b is not None and is_same_shape(a, b))
        for a, b in zip(children.values(), others.values(), strict=True)
    )


def _is_same_form(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.shape, a.dtype, a.requires_grad) == (b.shape, b.dtype, b.requires_grad)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}


def _has_hooks(module: nn.Module) -> bool:
    return any(value for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, dict))


def _body_of(trainee: Trainee, values: Any, heads: int) -> Body | None:
    """Say how heads like this are run as one; None if they are not."""
    head = trainee.head
    is_tied = len(list(head.parameters())) < sum(1 for _ in head.named_parameters(remove_duplicate=False))
    if (
        heads < 2
        or not isinstance(trainee.options.optimizer, str)
        or is_tied
        or getattr(type(head), "has_shell", False)
    ):
        return None
    if not has_own_loss(trainee.options.loss, head) and isinstance(values, Tensor):
        chain = read_chain(head, tuple(values.shape[1:]))
        if chain is not None:
            return chain
    return Batched(head) if heads >= _LEAST_BATCHED and is_batchable(head, (Head,)) else None


def _parts(alike: list[Trainee], body: Body | None, values: Any) -> list[list[Trainee]]:
    """Divide heads so that what the widest layer of each part gives for one batch is not too large."""
    rows = len(nesting.tensors(values)[0])
    widest = max((tensor.shape[0] for tensor in alike[0].head.parameters() if tensor.ndim), default=1)
    most = max(1, _MOST_BYTES // max(rows * widest * 4, 1)) if body is not None else len(alike)
    count = -(-len(alike) // most)
    edges = [len(alike) * part // count for part in range(count + 1)]
    return [alike[start:stop] for start, stop in pairwise(edges)]


def regroup(trainees: Sequence[Trainee], values: Any, kind: str) -> Group:
    """Make one group again, of the kind that it was."""
    if kind == "Single":
        return Single(trainees[0])
    body = _body_of(trainees[0], values, max(len(trainees), _LEAST_BATCHED)) or InTurn(trainees[0].head)
    return FullBatch(trainees, body) if kind == "FullBatch" else Stack(trainees, body)
