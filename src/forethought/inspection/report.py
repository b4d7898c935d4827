"""A model as a table of its parts, with what each costs, where the frozen part ends, and where else it could."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from forethought import nesting
from forethought.inspection.clock import INSTRUMENT, Times, measure
from forethought.inspection.recorded import Recorded, recorded
from forethought.loading import NamedModel
from forethought.shapes.forms import FrontierTensor
from forethought.splitting.candidates import Candidate, find_candidates
from forethought.splitting.recording import Call, Label


@dataclass(frozen=True)
class ModulePart:
    """One module of a model, with all that is inside it.

    Attributes:
        path: Its name; empty for the model itself.
        type: Its class.
        depth: How many modules it lies in.
        parameters: Numbers in its parameters, each counted once.
        trainable_parameters: Those that train.
        state: "frozen", "trainable" or "mixed", by its parameters; None if it has none.
        side: "trunk" if its operations lie before the frontier, "head" if after it, "both"; None if it is not run.
        share: Fraction of the measured time of the forward; None if it is not run.
        calls: How often the forward calls it.
        outputs: Shapes of what it last gave, of one sample where they grow with the batch.
    """

    path: str
    type: str
    depth: int
    parameters: int
    trainable_parameters: int
    state: str | None
    side: str | None
    share: float | None
    calls: int
    outputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Inspection:
    """What `forethought inspect` found.

    Attributes:
        name: The model, as it was asked for.
        weights: Where its weights come from.
        inputs: Shape (with the batch) and dtype of each input.
        modules: Every module, in the order of the tree; the first is the model.
        frontier: What crosses where the frozen part ends; None if the model cannot be split there.
        frozen_share: Fraction of the measured time of the forward that is frozen.
        candidates: Where else it could be cut, in order of execution.
        assumption: What was taken to be frozen; None for the model as it is.
        refusal: Why it cannot be split where its frozen part ends.
        times: What was measured.
    """

    name: str
    weights: str
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    modules: tuple[ModulePart, ...]
    frontier: tuple[FrontierTensor, ...] | None
    frozen_share: float
    candidates: tuple[Candidate, ...]
    assumption: str | None
    refusal: str | None
    times: Times

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows. The keys are stable."""
        whole = self.modules[0]
        return {
            "model": self.name,
            "type": whole.type,
            "weights": self.weights,
            "inputs": [{"shape": list(shape), "dtype": dtype} for shape, dtype in self.inputs],
            "assumption": self.assumption,
            "refusal": self.refusal,
            "parameters": whole.parameters,
            "trainable_parameters": whole.trainable_parameters,
            "frozen_share": round(self.frozen_share, 6),
            "frontier": None if self.frontier is None else [_tensor(tensor) for tensor in self.frontier],
            "modules": [_module(part) for part in self.modules],
            "candidates": [
                {
                    "at": one.path,
                    "size_bytes": one.size_bytes,
                    "share": round((one.share or 0.0) * self.frozen_share, 6),
                    "share_of_frozen": round(one.share or 0.0, 6),
                    "tensors": [_tensor(tensor) for tensor in one.tensors],
                }
                for one in self.candidates
            ],
            "measured": {
                "instrument": INSTRUMENT,
                "device": self.times.device,
                "threads": self.times.threads,
                "runs": self.times.runs,
                "forward_s": self.times.forward_s,
                "operations_s": sum(self.times.operations_s),
            },
        }


def inspect_model(named: NamedModel, until: str | None = None) -> Inspection:
    """Look at a model: run it, time it, and foretell where it could be cut. The model is not changed.

    Args:
        named: The model and its inputs.
        until: Path of a module: see the model as if everything up to it were frozen.

    Raises:
        ModelError: the model does not run on these inputs.
        SplitError: there is no such path, or nothing can be told of the model at all.
    """
    model = named.model
    if type(model).__name__ == "OptimizedModule":  # torch.compile's wrapper hides what runs
        model = cast(nn.Module, model._orig_mod)
    with recorded(model, named.args, named.kwargs, until) as seen:
        times = measure(seen.model, seen.recording, named.args, named.kwargs)
        modules = tuple(_parts(seen, times))
    operations = seen.recording.operations
    frozen_s = sum(times.operations_s[op.ordinal] for op in operations if op.label is Label.FROZEN)
    total_s = sum(times.operations_s[op.ordinal] for op in operations if op.label is not Label.CONSTANT)
    found = find_candidates(seen.recording, seen.larger, seen.batch, seen.more, times.operations_s)
    return Inspection(
        name=named.name,
        weights=named.weights,
        inputs=tuple(
            (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in nesting.tensors((named.args, named.kwargs))
        ),
        modules=modules,
        frontier=seen.frontier,
        frozen_share=frozen_s / total_s if total_s else 0.0,
        candidates=found,
        assumption=seen.assumption,
        refusal=seen.refusal,
        times=times,
    )


def _parts(seen: Recorded, times: Times) -> list[ModulePart]:
    calls: dict[str, list[Call]] = {}
    for call in seen.recording.root.walk():
        calls.setdefault(call.path, []).append(call)
    larger: dict[str, list[Call]] = {}
    for call in seen.larger.root.walk() if seen.larger else ():
        larger.setdefault(call.path, []).append(call)
    total_s = sum(times.operations_s)
    parts = []
    for path, module in seen.model.named_modules():
        mine = calls.get(path, [])
        operations = [op for call in _outermost(mine) for inner in call.walk() for op in inner.operations]
        labels = {op.label for op in operations} - {Label.CONSTANT}
        spent_s = sum(times.operations_s[op.ordinal] for op in operations)
        parameters, trainable, state = _count(module)
        parts.append(
            ModulePart(
                path=path,
                type=type(module).__name__,
                depth=path.count(".") + 1 if path else 0,
                parameters=parameters,
                trainable_parameters=trainable,
                state=state,
                side=_side(labels) if mine else None,
                share=(spent_s / total_s if total_s else 0.0) if mine else None,
                calls=len(mine),
                outputs=_outputs(mine[-1], larger.get(path, [None])[-1], seen) if mine else (),
            )
        )
    return parts


def _outermost(calls: Sequence[Call]) -> list[Call]:
    """Leave out calls inside another one of the same module."""
    known = {id(call) for call in calls}
    return [call for call in calls if not any(id(outer) in known for outer in _around(call))]


def _around(call: Call) -> list[Call]:
    found = []
    while call.parent is not None:
        call = call.parent
        found.append(call)
    return found


def _side(labels: set[Label]) -> str | None:
    if not labels:
        return None
    return "both" if len(labels) == 2 else "head" if Label.TRAINABLE in labels else "trunk"


def _count(module: nn.Module) -> tuple[int, int, str | None]:
    """Count the numbers in a module's parameters, those that train, and say whether these are all or none of them."""
    parameters = [(p.numel(), p.requires_grad) for p in module.parameters()]
    total = sum(size for size, _ in parameters)
    trainable = sum(size for size, trains in parameters if trains)
    if not parameters:
        return 0, 0, None
    trains = {trains for _, trains in parameters}
    return total, trainable, "mixed" if len(trains) == 2 else "trainable" if True in trains else "frozen"


def _outputs(call: Call, larger: Call | None, seen: Recorded) -> tuple[tuple[int, ...], ...]:
    """Give the shapes of what a call gave, without the batch."""
    others = larger.made if larger is not None and len(larger.made) == len(call.made) else call.made
    shapes = []
    for made, other in zip(call.made, others, strict=True):
        is_row = bool(made.shape) and made.shape[0] == seen.batch and other.shape[:1] == (seen.batch + seen.more,)
        shapes.append(made.shape[1:] if is_row else made.shape)
    return tuple(shapes)


def _tensor(tensor: FrontierTensor) -> dict[str, Any]:
    has_rows = tensor.row_axis is not None
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "size_bytes": tensor.size_bytes if has_rows else None,
    }


def _module(part: ModulePart) -> Mapping[str, Any]:
    return {
        "path": part.path,
        "type": part.type,
        "parameters": part.parameters,
        "trainable_parameters": part.trainable_parameters,
        "state": part.state,
        "side": part.side,
        "share": None if part.share is None else round(part.share, 6),
        "calls": part.calls,
        "outputs": [list(shape) for shape in part.outputs],
    }
