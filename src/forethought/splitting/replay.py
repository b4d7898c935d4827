"""`Split`: a trunk and a head out of one unmodified model.

    head(trunk(x)) == model(x)      bit for bit, on the same device and batch

The trunk runs the model's own forward and stops at the frontier. The head runs the model's own forward again, with
placeholders for everything frozen and the trunk's tensors put in where they are first needed. Nothing is traced or
rewritten: control flow, modes, hooks and keyword arguments stay the model's, and the head's parameters are the
model's own objects.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from forethought import nesting
from forethought.errors import ShapeError, SplitError
from forethought.probing.generators import Redraws
from forethought.shapes.curves import Stairs
from forethought.shapes.forms import FrontierTensor
from forethought.shapes.padding import Padding
from forethought.splitting.candidates import find_candidates, within
from forethought.splitting.collecting import uncollected
from forethought.splitting.halves import Head, Trunk
from forethought.splitting.inputs import (
    batch_of,
    check_arguments,
    check_cut,
    filled_in,
    inputs_of,
    plain,
    signature_of,
)
from forethought.splitting.matching import fitting, is_same_geometry, shown_shape
from forethought.splitting.placement import check_in_one_piece, home_of, moved_along, placed
from forethought.splitting.plan import Plan
from forethought.splitting.reasons import crossing_otherwise, decides
from forethought.splitting.recording import Label
from forethought.splitting.shell import Follower, parameters_of
from forethought.splitting.stretching import Stretch
from forethought.splitting.trials import record_once, record_plan
from forethought.splitting.untouched import State
from forethought.splitting.variations import telling

_MOST_PATHS = 16  # remembered for inputs of one form
At = str | Sequence[str] | int | None
"""Where to cut earlier than the frontier that is found: a module's path, several, or the most bytes a sample."""


def split(model: nn.Module, args: Any, kwargs: dict[str, Any] | None = None, at: At = None) -> "Split":
    """Split a model where its frozen part ends. Undone by `assemble`.

    Args:
        model: Any eager model. It is not changed.
        args: Example inputs: a tensor, or a tuple of the positional arguments. The first axis of each tensor is the
            batch; two samples or more show the most.
        kwargs: Example keyword arguments.
        at: Path of a module whose output is to be the frontier, although more is frozen after it; or several paths,
            whichever is reached first on each way; or a whole number: cut as late as that many bytes a sample allow.

    Returns:
        The split. `split.head(split.trunk(x))` equals `model(x)`.

    Raises:
        NothingFrozenError: nothing is frozen before the first trainable operation.
        SplitError: the model cannot be split there; the message names the operation and what to do.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> parts = split(model, torch.randn(3, 4))
        >>> x = torch.randn(5, 4)
        >>> torch.equal(parts.head(parts.trunk(x)), model(x))
        True
        >>> [(tensor.name, tensor.shape) for tensor in parts.frontier]
        [('1', (8,))]
    """
    if not isinstance(model, nn.Module):
        raise SplitError(
            f"Cannot split a {type(model).__name__}: expected a torch.nn.Module. Wrap the function in a module."
        )
    args, kwargs = args if isinstance(args, tuple) else (args,), dict(kwargs or {})
    check_arguments(model, args, kwargs)
    check_cut(model, at)
    with placed(model, args, kwargs):
        if isinstance(at, int):
            return _within(model, args, kwargs, at)
        with uncollected():
            return Split(model, args, kwargs, (at,) if isinstance(at, str) else tuple(at or ()))


def _within(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], limit: int) -> "Split":
    """Cut as late as a number of bytes a sample allows."""
    natural = Split(model, args, kwargs, ())
    if all(tensor.row_axis is not None for tensor in natural.frontier) and natural.size_bytes <= limit:
        return natural
    plan = natural.plan
    candidates = list(find_candidates(plan.recording, plan.larger, plan.batch, plan.more))
    while (chosen := within(candidates, limit)) is not None:
        try:
            found = Split(model, args, kwargs, (chosen.path,))
        except SplitError:
            found = None
        if found is not None and found.size_bytes <= limit:
            return found
        candidates.remove(chosen)  # foretold, but not so: the next best
    sizes = sorted((one.size_bytes, one.path) for one in candidates if one.size_bytes is not None)
    raise SplitError(
        f"Cannot cut {type(model).__name__} within {limit:,} bytes a sample: expected a module that gives no more, "
        + (f"got {sizes[0][0]:,} at '{sizes[0][1]}' as the fewest. " if sizes else "got none that gives rows. ")
        + f"Allow more: ft.split(model, x, at={sizes[0][0] if sizes else natural.size_bytes})"
    )


class Split:
    """A model in two halves that share its tensors.

    Attributes:
        model: The model, as it was given.
        trunk: The frozen half: inputs -> the frontier's tensors.
        head: The half that trains: the frontier's tensors -> the model's output.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at: Sequence[str]) -> None:
        self.model = model
        self.at = tuple(at)
        self._frozen = [each for each in parameters_of(model) if not each.requires_grad]
        self._home = home_of(model)
        self._plans: dict[Any, list[Plan]] = {}
        self._paths: Stretch | None = None  # of inputs that differ in size
        self.sizes_told: WeakIdKeyDictionary = WeakIdKeyDictionary()  # the first tensor of features -> of their inputs
        self._made_by: WeakIdKeyDictionary = WeakIdKeyDictionary()  # the trunk's tensors -> plan and batch size
        self.redraws = Redraws()
        inputs = inputs_of(args, kwargs)
        check_in_one_piece(model)
        self.trunk = Trunk(self)
        follower = Follower(model)
        state = State(follower.root)
        plan = self._record(args, kwargs, lent=state)
        self.head = Head(self, follower if follower.is_seen and state.is_left() else Follower(model))
        few = filled_in(args, kwargs, telling(inputs, batch_of(inputs)))
        self._arguments = few if plan.of_few or self._runs_on(*few) else filled_in(args, kwargs, inputs)
        self.frontier: tuple[FrontierTensor, ...] = plan.frontier

    def __reduce__(self) -> Any:
        return _split_again, (self.model, *self._arguments, self.at)

    def __repr__(self) -> str:
        lines = [f"Split of {type(self.model).__name__}, {len(self.frontier)} tensor(s) across the frontier:"]
        lines += [
            f"  {tensor.name}: {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}, "
            f"{tensor.size_bytes:,} bytes a sample"
            for tensor in self.frontier
        ]
        return "\n".join(lines)

    @property
    def size_bytes(self) -> int:
        """Bytes that one sample's row takes."""
        return sum(tensor.size_bytes for tensor in self.frontier)

    @property
    def plan(self) -> Plan:
        """The path recorded on the example inputs, of the model as it is now."""
        return self.plans_for(*self._example())[0]

    @property
    def example(self) -> list[Tensor]:
        """The first samples of the example inputs."""
        return nesting.tensors(self._arguments)

    def trunk_tensors(self) -> dict[str, Tensor]:
        """Name the model's parameters and buffers that the trunk reads."""
        operations = [op for op in self.plan.recording.operations if op.label is not Label.TRAINABLE]
        used = {id(read.now()) for op in operations for read in op.reads if read.outside is not None}
        for call in self.plan.recording.root.walk():
            if call.opaque:  # its operations do not show all that it may read
                used |= {id(tensor) for tensor in nesting.tensors(call.module.state_dict(keep_vars=True))}
        named = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return {name: tensor for name, tensor in named.items() if id(tensor) in used}

    def rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Run the trunk; lay each tensor of the frontier out as rows (B, *shape).

        Raises:
            ShapeError: these inputs cross another frontier than the example.
        """
        values, plan = self._values(args, kwargs)
        if _names(plan.frontier) != _names(self.frontier):
            # A batch without padding may take another path than one with it: in company it takes the example's.
            batch = batch_of(nesting.tensors((args, kwargs)))
            company = iter(self._company(args, kwargs))
            args, kwargs = nesting.replace((args, kwargs), lambda tensor: _joined(tensor, next(company), batch))
            values, plan = self._values(args, kwargs)
            if _names(plan.frontier) != _names(self.frontier):
                if (decision := decides(plan.recording.operations)) is not None:
                    names = _names(self.frontier), _names(plan.frontier)
                    raise ShapeError(crossing_otherwise(self.model, "store features of", names, decision))
                wanted, given = len(self.example), len(nesting.tensors((args, kwargs)))
                raise ShapeError(
                    f"Cannot store features of {type(self.model).__name__}: expected inputs that cross the same "
                    f"frontier as the first ones, {_names(self.frontier)}, got another one, {_names(plan.frontier)}. "
                    + (
                        f"Give all {wanted} tensors of the split's example, not {given}: ft.extract(..., inputs=[...])"
                        if given != wanted
                        else "Give inputs of one form (all padded, or none)."
                    )
                )
            rows = [tensor.to_rows(value) for tensor, value in zip(plan.frontier, values, strict=True)]
            return [row[:batch] for row in rows]
        return [tensor.to_rows(value) for tensor, value in zip(plan.frontier, values, strict=True)]

    def _company(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Give the example's samples, of the size of these inputs."""
        sizes = None if self._paths is None else self._paths.padding.sizes_in(nesting.tensors((args, kwargs)))
        return self.example if sizes is None else self._paths.padding.resized(self.example, sizes)  # type: ignore[union-attr]

    def _values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Plan]:
        values = self.trunk(*args, **kwargs)
        values = (values,) if isinstance(values, Tensor) else values
        return values, self.plans_of(values)[0][0]

    def plans_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Plan]:
        """Find the recorded paths for inputs of this form, or record one."""
        self._follow()
        signature = self._signature(args, kwargs)
        if signature not in self._plans:
            if self._paths is not None and (stretched := self._paths.plans_for(args, kwargs, self._example())):
                return stretched
            self._record(args, kwargs)
        return self._plans[signature]

    def _runs_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Say whether the model takes these: two rows of a graph, or of another whole, may mean nothing."""
        try:
            record_once(self.model, self.at, args, kwargs)
        except Exception:  # whatever a model says of inputs that it cannot take
            return False
        return True

    def _example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the example inputs as they fit the model where it is now."""
        return nesting.replace(self._arguments, lambda tensor: moved_along(tensor, self._home, self.model))  # type: ignore[no-any-return]

    @property
    def is_stretched(self) -> bool:
        """Whether both halves take inputs of any size."""
        return self._paths is not None

    def stretch(self, padding: Padding | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let both halves take inputs of any size along some axes, by what is recorded at a few sizes.

        Args:
            padding: The axes; None to take this back.
            args: Example inputs, the largest there are, at least two of them of different sizes.
            kwargs: Example keyword inputs.

        Raises:
            ReplayDriftError: the model takes other steps for other sizes.
            SplitError: another frontier was found.
        """
        self._paths = None if padding is None else Stretch(self.model, self.at, padding)
        self._arguments = nesting.replace((args, kwargs), plain)
        self._plans.clear()
        self._check_frontier("these inputs of several sizes cross another one")
        self.frontier = self.plan.frontier

    def renew(self) -> None:
        """Record the model as it is now, whatever was recorded before.

        Raises:
            SplitError: another frontier was found.
        """
        self._follow()
        self.trunk.rebuild()
        self.forget()
        self._check_frontier(
            "the model has changed since, or what its forward reads: a file, a global, a variable of the environment"
        )

    def _check_frontier(self, why: str) -> None:
        names, known = _names(self.plan.frontier), _names(self.frontier)
        if names != known:
            if (decision := decides(self.plan.recording.operations)) is not None:
                raise SplitError(crossing_otherwise(self.model, "use this split of", (known, names), decision))
            raise SplitError(
                f"Cannot use this split of {type(self.model).__name__}: expected the frontier "
                f"{known}, as it was split, got {names}: {why}. Split it again: ft.split(model, x)"
            )

    def forget(self) -> None:
        """Forget what was recorded: it is recorded again when it is needed."""
        self._plans.clear()
        if self._paths is not None:
            self._paths.forget()

    def record_as_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        """Record one path more: that of this very batch."""
        if self._paths is not None and (plan := self._paths.record_as_given(args, kwargs)) is not None:
            return plan
        return self._record(args, kwargs, as_given=True)

    def _record(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], as_given: bool = False, lent: State | None = None
    ) -> Plan:
        check_in_one_piece(self.model)
        plan = record_plan(self.model, self.at, args, kwargs, as_given, lent)
        plans = self._plans.setdefault(self._signature(args, kwargs), [])
        plans.append(plan)
        del plans[1:-_MOST_PATHS]  # the first is the example's
        return plan

    def _signature(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return *signature_of(args, kwargs), tuple([module.training for module in self.trunk.modes])

    def _follow(self) -> None:
        """Forget what was recorded of a model that is another one now.

        Raises:
            SplitError: it cannot be followed: modules were put in place, or parameters thawed.
        """
        changed = self.trunk.follow()
        if "_modules" in changed or any(parameter.requires_grad for parameter in self._frozen):
            raise SplitError(
                f"Cannot run the trunk of {type(self.model).__name__}: expected the modules and the frozen parameters "
                "that were there when it was split, got others. Split it again: ft.split(model, x)"
            )
        known = [plan for plans in self._plans.values() for plan in plans]
        known += [] if self._paths is None else self._paths.plans
        if changed - {"training"} - {name for plan in known for name in plan.writes}:
            self.forget()

    def stairs_of(self, at: int, axis: int) -> Stairs | None:
        """Find how the size of rows (B, ...) of a tensor of the frontier along an axis follows from one size of inputs.

        None if it does not grow evenly, or by even steps.
        """
        return None if self._paths is None else self._paths.stairs_of(*self._example(), at, axis)

    def filled_up(self, rows: list[Tensor], inputs: Sequence[int]) -> list[Tensor]:
        """Pad rows with zeros, where values decide how far they are padded, as far as they might for such inputs."""
        return [
            self._filled_up(at, each, inputs) if self.frontier[at].open_axes else each for at, each in enumerate(rows)
        ]

    def _filled_up(self, at: int, rows: Tensor, inputs: Sequence[int]) -> Tensor:
        stairs = {axis: self.stairs_of(at, axis) for axis in range(1, rows.ndim)}
        sizes = [rows.shape[axis] if each is None else each.at(inputs[each.measure]) for axis, each in stairs.items()]
        made = rows.new_zeros((len(rows), *(max(pair) for pair in zip(sizes, rows.shape[1:], strict=True))))
        made[tuple(slice(size) for size in rows.shape)] = rows
        return made

    def note_sizes(self, value: Tensor, sizes: tuple[int, ...]) -> None:
        """Note the sizes that inputs had of which this is the first tensor of the features."""
        self.sizes_told[value] = sizes

    def remember(self, values: tuple[Tensor, ...], plan: Plan, batch: int) -> None:
        """Note which path made these values."""
        self._made_by[values[0]] = plan, batch

    def plans_of(self, values: tuple[Tensor, ...]) -> list[tuple[Plan, int]]:
        """Find the recorded path, and the batch size, that made features; or all that make features of such shapes."""
        made_by = self._made_by.get(values[0]) if values else None
        if made_by is not None:
            return [made_by]
        sizes = self.sizes_told.get(values[0]) if values else None
        if self._paths is not None and not self._paths.plans:
            self.plan  # noqa: B018  (recorded again, after a change)
        known = [] if self._paths is None else self._paths.plans_of(values, sizes)
        found = fitting(known, values) or fitting([plan for plans in self._plans.values() for plan in plans], values)
        if not found:
            raise ShapeError(
                f"Cannot run the head: expected tensors shaped {[shown_shape(t) for t in self.frontier]} (B the "
                f"batch), "
                f"got {[tuple(value.shape) for value in values]}. Give it what split.trunk(...) returned."
            )
        if len(found) > 1 and any(not is_same_geometry(found[0], other) for other in found[1:]):
            raise ShapeError(
                "Cannot run the head: expected the features' shape to tell which inputs they are of, got inputs of "
                "several shapes, or with several numbers or flags, that give features of one shape. "
                "Make one split for each: ft.split(model, x)"
            )
        return found


def _split_again(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at: tuple[str, ...]) -> Split:
    """Make a split of a copied or unpickled model: shells and recorded paths are made anew."""
    return Split(model, args, kwargs, at)


def _names(frontier: Sequence[FrontierTensor]) -> list[str]:
    return [tensor.name for tensor in frontier]


def _joined(tensor: Tensor, example: Tensor, batch: int) -> Tensor:
    """Add the example's samples after those of a batch."""
    fits = tensor.ndim and tensor.shape[0] == batch and tensor.shape[1:] == example.shape[1:]
    return torch.cat([tensor, example.to(tensor.device)]) if fits else tensor
