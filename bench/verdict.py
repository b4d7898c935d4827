"""One case of the benchmark of exactness: a model, a cut and a mode in; what became of the split out.

The law: on new samples, in another number than the example's, `head(trunk(x))` is `model(x)`: the same values to the
bit (not-a-number equal to itself), the same nested types, the same gradient of every parameter that trains, the same
buffers afterwards; and the split leaves the model as it was.

Modes, set before the split, one split for each:

    eval    everything in evaluation mode
    part    evaluation mode; training mode for what begins at or after the first layer that trains
    train   training mode; evaluation mode for what ends before the first layer that trains, as `ft.freeze` has it

Both sides start from the same seed and the same buffers. In training mode a frozen part may still draw random numbers
(a frozen branch, or a function in a module that goes on after the first layer that trains). The trunk draws before the
head, where the model may take turns: such a case is not exact, nor meant to be. It is tried once more with every rate
of dropout at zero, and that is its outcome; `with_dropout` keeps the first.
"""

import copy
import dataclasses
import random
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from cuts import CutImpossibleError, Execution, cut, execute
from torch import Tensor, nn
from zoo import Inputs, Specimen

import forethought as ft
from forethought import nesting
from forethought.errors import ForethoughtError
from forethought.probing.purity import probe
from forethought.samples.batch import Batch

MODES = ("eval", "part", "train")
_EXAMPLES, _NEW, _PROBED = 2, 3, 6  # samples
_CHANCE = "the trunk draws random numbers: "


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one case.

    Attributes:
        outcome: `exact`, `refused:<error>`, `wrong`, `crashed:<error>` or `skipped`.
        message: Why, unless exact.
        error: Largest difference of an output; None where none could be taken.
        gradient_error: The same of a gradient.
        cacheable: Of an exact split: `yes`, `refused:<error>`, `crashed:<error>`, or `unprobed` where the inputs are
            not rows.
        cacheable_message: Why not.
        split_s: Seconds that the split took.
        forward_s: Seconds of one forward on the same inputs.
        split_forwards: Their ratio.
        trainable: Parameters that train.
        frontier: Tensors that cross.
        with_dropout: The first outcome, where this one is of the model without dropout.
    """

    outcome: str
    message: str = ""
    error: float | None = None
    gradient_error: float | None = None
    cacheable: str = ""
    cacheable_message: str = ""
    split_s: float | None = None
    forward_s: float | None = None
    split_forwards: float | None = None
    trainable: int = 0
    frontier: int = 0
    with_dropout: str = ""


class DiffersError(Exception):
    """Two results that should be one are not."""

    def __init__(self, message: str, error: float | None = None, what: str = "output") -> None:
        super().__init__(message)
        self.error = error
        self.what = what


class Subject:
    """One model of the zoo, built once, as copies that no earlier case has touched."""

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self._pristine: nn.Module | None = None
        self._runs: dict[str, Execution] = {}

    def model(self) -> nn.Module:
        """Give the model as it was built."""
        if self._pristine is None:
            _seed(0)
            self._pristine = self.specimen.make().float()
        try:
            return copy.deepcopy(self._pristine)
        except Exception:  # holds what cannot be copied: the same seed builds the same
            _seed(0)
            return self.specimen.make().float()

    def run(self, mode: str) -> Execution:
        """Tell the order of execution in `eval` or `train`."""
        if mode not in self._runs:
            _seed(1)
            args, kwargs = self.specimen.feed_in(mode, _EXAMPLES)
            self._runs[mode] = execute(self.model().train(mode == "train"), args, kwargs)
        return self._runs[mode]


def judge(subject: Subject, kind: str, mode: str) -> Verdict:
    """Try one case.

    Args:
        subject: The model.
        kind: A key of `cuts.CUTS`.
        mode: One of `MODES`.
    """
    verdict = _judged(subject, kind, mode, with_dropout=True)
    is_chance = verdict.outcome == "wrong" and verdict.message.startswith(_CHANCE)
    if mode == "eval" or not (is_chance or verdict.outcome.startswith("refused")):
        return verdict
    calm = _judged(subject, kind, mode, with_dropout=False)
    said = f"{verdict.outcome}: {verdict.message}"
    return dataclasses.replace(calm, with_dropout=said) if calm.outcome != verdict.outcome else verdict


def _judged(subject: Subject, kind: str, mode: str, with_dropout: bool) -> Verdict:
    try:
        model = subject.model()
        names = cut(model, kind, subject.run("eval"))
        _set_mode(model, names, subject.run("train" if mode == "train" else "eval"), mode)
    except CutImpossibleError as err:
        return Verdict("skipped", str(err))
    except Exception as err:
        return Verdict("skipped", f"the model itself fails: {_said(err)}")
    if not with_dropout:
        _calm(model)
    _seed(2)
    example, new = (subject.specimen.feed_in(mode, rows) for rows in (_EXAMPLES, _NEW))
    verdict, parts = _examined(model, example, new)
    if verdict.outcome == "exact":
        state, why = _probed(parts, subject.specimen.feed_in(mode, _PROBED))
        verdict = dataclasses.replace(verdict, cacheable=state, cacheable_message=why)
    elif verdict.outcome.startswith(("refused", "crashed")):
        reason = _own_failure(model, new)
        verdict = Verdict("skipped", reason) if reason else verdict
    return dataclasses.replace(verdict, trainable=len(names))


def _examined(model: nn.Module, example: Inputs, new: Inputs) -> tuple[Verdict, Any]:
    parts: Any = None
    facts: dict[str, Any] = {}
    try:
        before = _traces(model)
        args, kwargs = _copied(example)
        started = time.perf_counter()
        parts = ft.split(model, args, kwargs)
        facts["split_s"] = time.perf_counter() - started
        _demand_untouched(before, _traces(model))
        facts |= {"frontier": len(parts.frontier), "forward_s": _forward_s(model, example)}
        facts["split_forwards"] = facts["split_s"] / max(facts["forward_s"], 1e-9)
        facts |= _compared(model, parts, new)
    except ForethoughtError as err:
        place = "" if parts is None else "when run: "
        return Verdict(f"refused:{type(err).__name__}", f"{place}{err}", **facts), parts
    except DiffersError as err:
        errors = (0.0, err.error) if err.what == "gradients" else (err.error, None)
        return Verdict("wrong", str(err), *errors, **facts), parts
    except CutImpossibleError as err:
        return Verdict("skipped", str(err), **facts), parts
    except Exception as err:
        place = "when split" if parts is None else "when run"
        return Verdict(f"crashed:{type(err).__name__}", f"{place}: {_said(err)}", **facts), parts
    return Verdict("exact", **facts), parts


def _set_mode(model: nn.Module, names: list[str], run: Execution, mode: str) -> None:
    layers = [layer for layer in run.layers if any(_holds(layer.name, name) for name in names)]
    first = min((layer.start for layer in layers), default=0)
    owners = {name.rpartition(".")[0] for name in names} if mode != "eval" else set()
    model.train(mode == "train")
    for path, module in model.named_modules():
        if path not in run.begins:
            module.training = module.training or path in owners
        elif mode == "part":
            module.training = path in owners or run.begins[path] >= first
        elif mode == "train" and run.ends.get(path, first) < first:
            module.eval()


def _calm(model: nn.Module) -> None:
    """Set every rate of dropout, of a module or in a configuration, to zero."""
    for module in model.modules():
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth"
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if isinstance(value, float) and ("drop" in name or (is_dropout and name == "p")):
                    setattr(holder, name, 0.0)


def _holds(layer: str, parameter: str) -> bool:
    return parameter == layer or parameter.startswith(f"{layer}.")


# One run against the other --------------------------------------------------------------------------------------------


def _compared(model: nn.Module, parts: Any, new: Inputs) -> dict[str, float]:
    """Compare the halves with the model.

    Raises:
        DiffersError: they are not the same.
    """
    drew = False

    def halves(*args: Any, **kwargs: Any) -> Any:
        nonlocal drew
        before = torch.get_rng_state()
        values = parts.trunk(*args, **kwargs)
        drew = not torch.equal(before, torch.get_rng_state())
        return parts.head(values)

    start = _buffers(model)
    live = _result(model, model, new, start)
    split = _result(model, halves, new, start)
    try:
        for what, one, other in zip(("output", "gradients", "buffers"), live, split, strict=True):
            compare(one, other, what)
    except DiffersError as differs:
        try:
            for one, other in zip(live, _result(model, model, new, start), strict=True):
                compare(one, other, "")
        except DiffersError as err:
            raise CutImpossibleError(f"the model does not repeat itself under one seed: {err}") from err
        raise DiffersError(f"{_CHANCE if drew else ''}{differs}", differs.error, what) from None
    return {"error": 0.0, "gradient_error": 0.0}


def _result(model: nn.Module, function: Callable, inputs: Inputs, start: dict[str, Tensor]) -> tuple[Any, Any, Any]:
    """Give the output, every gradient and the buffers afterwards of one run."""
    _reset(model, start)
    for parameter in model.parameters():
        parameter.grad = None
    args, kwargs = _copied(inputs)
    _seed(3)
    output = function(*args, **kwargs)
    kept = copied_output(output)
    losses = [_loss(t) for t in nesting.tensors(output) if t.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return kept, gradients, _buffers(model)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def _reset(model: nn.Module, start: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in start and not torch.equal(buffer, start[name]):
                buffer.copy_(start[name])


def copied_output(output: Any) -> Any:
    """Detach what a model gave, keeping whether it had a graph."""
    return nesting.replace(output, lambda t: t.detach().clone().requires_grad_(t.requires_grad))


def _loss(tensor: Tensor) -> Tensor:
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    weights = torch.linspace(0.5, 1.5, parts.numel(), dtype=parts.dtype).view(parts.shape)
    return (parts * weights).nansum().to(torch.float64)


def compare(one: Any, other: Any, where: str) -> None:
    """Demand that two results are the same, types included.

    Raises:
        DiffersError: they are not; the message names the place.
    """
    if type(one) is not type(other):
        raise DiffersError(f"{where}: expected {type(one).__name__}, got {type(other).__name__}")
    if isinstance(one, Tensor):
        _compare_tensors(one, other, where)
    elif isinstance(one, Mapping):
        if list(one) != list(other):
            raise DiffersError(f"{where}: expected the keys {list(one)}, got {list(other)}")
        for key in one:
            compare(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            raise DiffersError(f"{where}: expected {len(one)} items, got {len(other)}")
        for at, pair in enumerate(zip(one, other, strict=True)):
            compare(*pair, f"{where}[{at}]")
    elif isinstance(one, bool | int | str):
        if one != other:
            raise DiffersError(f"{where}: expected {one!r}, got {other!r}")
    elif nesting.tensors(one):
        compare(dict(nesting._items(one)), dict(nesting._items(other)), f"{where}.{type(one).__name__}")


def _compare_tensors(one: Tensor, other: Tensor, where: str) -> None:
    for fact in ("shape", "dtype", "requires_grad"):
        if getattr(one, fact) != getattr(other, fact):
            raise DiffersError(f"{where}: expected {fact} {getattr(one, fact)}, got {getattr(other, fact)}")
    one, other = one.detach(), other.detach()
    same = (one == other) | (one.isnan() & other.isnan()) if one.is_floating_point() else one == other
    if not bool(same.all()):
        error = float((one.nan_to_num().double() - other.nan_to_num().double()).abs().max())
        scale = float(one.nan_to_num().double().abs().max())
        raise DiffersError(
            f"{where}: {int((~same).sum())} of {same.numel()} differ by {error:.3g} (max {scale:.3g})", error
        )


def _forward_s(model: nn.Module, example: Inputs) -> float:
    """Time one forward; buffers come back to where they were."""
    start, times = _buffers(model), []
    for _ in range(2):
        args, kwargs = _copied(example)
        started = time.perf_counter()
        model(*args, **kwargs)
        times.append(time.perf_counter() - started)
    _reset(model, start)
    return statistics.median(times)


# What else is asked of a split ----------------------------------------------------------------------------------------


def _probed(parts: Any, inputs: Inputs) -> tuple[str, str]:
    """Say whether rows of this trunk may be stored."""
    batch = Batch(*inputs, None)
    if any(not tensor.ndim or tensor.shape[0] != _PROBED for tensor in batch.tensors):
        return "unprobed", "an input is no tensor with one row a sample"
    try:
        probe(parts, batch)
    except ForethoughtError as err:
        return f"refused:{type(err).__name__}", str(err)
    except Exception as err:
        return f"crashed:{type(err).__name__}", _said(err)
    return "yes", ""


def _own_failure(model: nn.Module, new: Inputs) -> str:
    """Say how the model fails by itself on these inputs, if it does."""
    try:
        for _ in range(2):
            _result(model, model, new, _buffers(model))
    except Exception as err:
        return f"the model itself fails: {_said(err)}"
    return ""


def _traces(model: nn.Module) -> dict[str, Any]:
    """Note everything that a split must leave as it is."""
    found: dict[str, Any] = {"random state": torch.get_rng_state()}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{path}.{key}"] = value if isinstance(value, bool | int | float | str) else id(value)
            if isinstance(value, Mapping):
                found[f"{path}.{key}{{}}"] = [(str(name), id(item)) for name, item in value.items()]
            elif isinstance(value, list):
                found[f"{path}.{key}[]"] = [id(item) for item in value]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"{name} trains"] = tensor.requires_grad
        found[f"{name} is"] = tensor.detach().clone()
    return found


def _demand_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in [*before, *(after.keys() - before.keys())]:
        one, other = before.get(key, "absent"), after.get(key, "absent")
        if isinstance(one, Tensor):
            compare(one, other, f"the split changed {key}")
        elif one != other:
            raise DiffersError(f"the split changed {key or 'the model'}: it was {str(one)[:80]}, is {str(other)[:80]}")


def _copied(inputs: Inputs) -> Inputs:
    return nesting.replace(inputs, lambda tensor: tensor.clone())


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def _said(err: BaseException) -> str:
    places = [
        f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno}"
        for frame in traceback.extract_tb(err.__traceback__)
    ]
    return f"{type(err).__name__}: {str(err)[:600]} [{' < '.join(reversed(places[-4:]))}]"
