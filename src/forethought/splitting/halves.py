"""The two halves of a split: `Trunk` runs what is frozen, `Head` what trains."""

import copy
import operator
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode, _pop_mode_temporarily

from forethought import nesting
from forethought.errors import InvisibleOperationError, ReplayDriftError, ShapeError, SplitError
from forethought.identifying.fingerprint import fingerprint_of
from forethought.probing.generators import Elsewhere, Redraws, generators_of
from forethought.splitting.inputs import batch_of, plain
from forethought.splitting.plan import Plan
from forethought.splitting.reasons import by_chance, by_values, decides
from forethought.splitting.running import run_head, run_trunk
from forethought.splitting.shell import Follower, modules_of, shell

Values = Tensor | tuple[Tensor, ...]


class Owner(Protocol):
    """What both halves share: the model, and the paths recorded of it."""

    model: nn.Module

    @property
    def plan(self) -> Plan:
        """The path recorded on the example inputs, of the model as it is now."""
        ...

    def renew(self) -> None:
        """Record the model as it is now."""
        ...

    def plans_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Plan]:
        """Find the recorded paths for inputs of this form."""
        ...

    def record_as_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        """Record one path more: that of this very batch."""
        ...

    @property
    def redraws(self) -> Redraws:
        """What Python drew for the values that the trunk gave."""
        ...

    def remember(self, values: tuple[Tensor, ...], plan: Plan, batch: int) -> None:
        """Note which path made these values."""
        ...

    def plans_of(self, values: tuple[Tensor, ...]) -> list[tuple[Plan, int]]:
        """Find the path, and the batch size, that made these values; or several, that make values of these shapes."""
        ...


class Trunk(nn.Module):
    """The frozen half of a split: maps the model's inputs to the frontier's tensors. Builds no graph."""

    has_shell = True

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner = [owner]  # in a list: the split is no submodule
        self.rebuild()

    def rebuild(self) -> None:
        """Have a new shell of the model as it is now."""
        self._follower = Follower(self._owner[0].model)
        self.body = self._follower.root
        self.modes = modules_of(self.body)

    @property
    def fingerprint(self) -> str:
        """What this trunk computes, as hex: the same in every process, another after any change that matters."""
        self._owner[0].renew()
        return fingerprint_of(self._owner[0].plan)

    def follow(self) -> set[str]:
        """Take over what has changed on the model since the last look; name it."""
        return self._follower.follow()

    def train(self, mode: bool = True) -> "Trunk":
        """Keep the modes of the model: what is frozen does not follow the `train()` of whoever holds the trunk."""
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Trunk":
        return self  # frozen: nothing of it changes

    def __reduce__(self) -> Any:
        return operator.attrgetter("trunk"), (self._owner[0],)

    def forward(self, *args: Any, **kwargs: Any) -> Values:
        """Run the frozen part: (B, ...) inputs to one tensor (B, ...), or a tuple of several."""
        if _get_current_function_mode() is None:
            return self._values(*args, **kwargs)
        with _pop_mode_temporarily() as mode:  # whoever watches sees one operation
            return mode.__torch_function__(self._values, (), args, kwargs)  # type: ignore[no-any-return]

    def _values(self, *args: Any, **kwargs: Any) -> Values:
        args, kwargs = nesting.replace((args, kwargs), plain)
        owner = self._owner[0]
        plans = owner.plans_for(args, kwargs)
        for plan in plans:
            try:
                with _undone_on_error(self.body, plan):
                    return self._run(plan, args, kwargs)
            except (ReplayDriftError, ShapeError):
                continue  # this batch takes another path
        plan = owner.record_as_given(args, kwargs)
        try:
            return self._run(plan, args, kwargs)
        except (ReplayDriftError, ShapeError) as err:
            if plan.told:
                raise by_chance(owner.model, plan.told) from err
            if not plan.redraws:
                raise
            raise ReplayDriftError(
                f"Cannot run the trunk of {type(owner.model).__name__}: expected its forward to take a path that was "
                "recorded, got another one, as it draws random numbers in Python (random, numpy) before the frontier. "
                "Call model.eval(), or ft.freeze(model, until=...)"
            ) from err

    def _run(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values:
        began = Elsewhere(own for _, own in generators_of(self.body.named_modules())).states() if plan.redraws else None
        values = run_trunk(shell(self.body) if plan.keeps_state else self.body, plan, args, kwargs)
        if plan.redraws:
            self._owner[0].redraws.note(values, began)
        self._owner[0].remember(values, plan, batch_of(nesting.tensors((args, kwargs))))
        return values[0] if len(values) == 1 else values


class _undone_on_error:  # noqa: N801  (a context manager, read as an adjective)
    """Put random states, and buffers where asked, back if a run along the wrong path ends in an error."""

    def __init__(self, body: nn.Module, plan: Plan, with_buffers: bool = False) -> None:
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in body.buffers()] if with_buffers else []
        self._elsewhere = Elsewhere(own for _, own in generators_of(body.named_modules())) if plan.redraws else None
        self._states = None if self._elsewhere is None else self._elsewhere.states()
        self._chance = torch.get_rng_state()
        devices = {p.device.index or 0 for p in body.parameters() if p.is_cuda} if with_buffers or plan.draws else ()
        self._chances = {device: torch.cuda.get_rng_state(device) for device in devices}

    def __enter__(self) -> None:
        pass

    def __exit__(self, error: Any, *_: object) -> None:
        if error is None:
            return
        torch.set_rng_state(self._chance)
        for device, state in self._chances.items():
            torch.cuda.set_rng_state(state, device)
        if self._elsewhere is not None and self._states is not None:
            self._elsewhere.put_back(self._states)
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)


class Head(nn.Module):
    """The half of a split that trains: maps the frontier's tensors to the model's output.

    Its parameters are the model's own objects, so that training the head trains the model. A deep copy has
    parameters of its own and shares everything frozen.
    """

    has_shell = True

    def __init__(self, owner: Owner, body: nn.Module | Follower) -> None:
        super().__init__()
        self._follower = body if isinstance(body, Follower) else None  # a copy follows nobody
        self.body: nn.Module = body.root if isinstance(body, Follower) else body
        self._owner = [owner]

    def forward(self, values: Values) -> Any:
        """Run what trains on (B, ...) features; returns what the model returns."""
        values = (values,) if isinstance(values, Tensor) else tuple(values)
        *others, last = self._owner[0].plans_of(values)
        for plan, batch in others:
            try:
                with _undone_on_error(self.body, plan, with_buffers=True):
                    return self._run(plan, values, batch)
            except ReplayDriftError:
                continue  # these samples take another path
        return self._run(last[0], values, last[1])

    def _run(self, plan: Plan, values: tuple[Tensor, ...], batch: int) -> Any:
        if self._follower is not None:
            self._follower.follow(plan.paths_of_head)
        body = shell(self.body) if plan.keeps_state else self.body
        try:
            with self._owner[0].redraws.again(values, body) if plan.redraws else nullcontext():
                return run_head(body, plan, values, batch)
        except (ReplayDriftError, InvisibleOperationError) as err:
            if plan.told:
                raise by_chance(self._owner[0].model, plan.told) from err
            if (decision := decides(plan.recording.operations)) is not None:
                raise by_values(self._owner[0].model, decision) from err
            raise

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Name the parameters that train; frozen ones are not the head's to give to an optimizer."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if parameter.requires_grad:
                yield name, parameter

    def tensors_in(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the parameters and buffers of a whole model by this head's names for them.

        Args:
            model: The model that was split, or another one like it.

        Raises:
            SplitError: what is frozen here is not in the model, or is not the same there.
        """
        body = shell(model)
        named = [*body.named_parameters(remove_duplicate=False), *body.named_buffers(remove_duplicate=False)]
        found = {f"body.{name}": tensor for name, tensor in named}
        for name, own in self.body.named_parameters():
            there = found.get(f"body.{name}")
            if own.requires_grad or there is own:
                continue
            if there is None or there.shape != own.shape or not torch.equal(own, there.to(own.device)):
                got = "nothing of this name" if there is None else "another one"
                raise SplitError(
                    f"Cannot put a head back into {type(model).__name__}: expected the frozen {name!r} that it was "
                    f"trained behind, got {got}. Pass the model that was split, or split this one and train its head: "
                    "ft.split(model, inputs).head"
                )
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Head":
        buffers = {id(buffer) for buffer in self.body.buffers()}
        copies: dict[int, Tensor] = {}

        def own(tensor: Tensor) -> Tensor:
            if id(tensor) in buffers or (tensor.requires_grad and tensor.is_leaf):
                if id(tensor) not in copies:
                    copies[id(tensor)] = copy.deepcopy(tensor)
                return copies[id(tensor)]
            return tensor

        return Head(self._owner[0], shell(self.body, own))
