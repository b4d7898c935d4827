"""The layer of a classifier that gives its logits: found by running it, in a copy that may be changed."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import AnchorError, FitError
from forethought.heads.layers import dtype_of, in_evaluation

Anchored = Sequence[float | None] | Mapping[int, float] | Tensor

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PAD_GAP = 10.0  # nats by which a padding class starts behind its end class: 5e-5 of its weight


@dataclass
class Classifier:
    """A trainable copy of a classifier of features, whose output is what its layer `path` gives.

    Attributes:
        net: The copy.
        path: Of the Linear in it.
        example: Features that it was run on, or None.
    """

    net: nn.Module
    path: str
    example: Any

    @property
    def linear(self) -> nn.Linear:
        """The layer that gives the logits, with a bias."""
        found = self.net.get_submodule(self.path)
        assert isinstance(found, nn.Linear)
        return found

    @property
    def width(self) -> int:
        """How many features a row has; where they are several tensors, how many the last layer is given."""
        if isinstance(self.example, Tensor):
            return self.example.shape[-1]
        return self.linear.in_features

    def keep(self, classes: Sequence[int]) -> None:
        """Leave only these classes, in this order."""
        if list(classes) != list(range(self.linear.out_features)):
            self._set(torch.tensor(classes), 0.0)

    def widen(self, pad: int) -> None:
        """Add `pad` classes beyond each end, starting as copies of the end class, far less likely."""
        rows = torch.arange(-pad, self.linear.out_features + pad)
        inside = rows.clamp(0, self.linear.out_features - 1)
        self._set(inside, _PAD_GAP * (rows != inside))

    def _set(self, rows: Tensor, behind: Tensor | float) -> None:
        linear, rows = self.linear, rows.to(self.linear.weight.device)
        if isinstance(behind, Tensor):
            behind = behind.to(linear.bias)
        with torch.no_grad():
            weight, bias = linear.weight[rows].clone(), linear.bias[rows] - behind
        for name in ("weight", "bias"):
            if nn.utils.parametrize.is_parametrized(linear, name):
                nn.utils.parametrize.remove_parametrizations(linear, name)
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
        linear.out_features = len(rows)


def classifier_of(module: nn.Module, example: Any = None, classes: int | None = None) -> Classifier:
    """Copy a classifier of features and find the layer of its logits.

    Args:
        module: Features to logits. It is left as it is.
        example: Features like those it takes; None: rows of a width that it runs on.
        classes: How many it is to have, where that is known.

    Raises:
        FitError: it does not run, no Linear runs in it, or its output is not what a Linear gave.
    """
    example, path, is_plain = _run(module, example, classes)
    net = copy.deepcopy(module)
    given = {id(parameter) for parameter in module.parameters()}
    for parameter in net.parameters():
        if id(parameter) not in given:  # what a copy shares with the original is the original's to train
            parameter.requires_grad_(True)
    if isinstance(net, nn.Linear):
        net, path = nn.Sequential(net), "0"
    elif not is_plain:
        net, path = UpTo(net, path), f"whole.{path}"
    found = Classifier(net, path, example)
    if getattr(found.linear, "bias", None) is None:
        found.linear.bias = nn.Parameter(found.linear.weight.detach().new_zeros(found.linear.out_features))
    return found


class UpTo(nn.Module):
    """A module whose output is what one of its layers gave last, such as the logits out of a dictionary."""

    def __init__(self, whole: nn.Module, path: str) -> None:
        super().__init__()
        self.whole = whole
        self._path = path

    def forward(self, features: Any) -> Tensor:
        """Run the whole; return what the layer gave."""
        found: list[Tensor] = []
        layer = self.whole.get_submodule(self._path)
        handle = layer.register_forward_hook(lambda _module, _args, output: found.append(output))
        try:
            self.whole(features)
        finally:
            handle.remove()
        return found[-1]


def check_anchored(anchors: object) -> None:
    """Raise unless there may be one anchor a class: a list, an array, a tensor or a mapping."""
    if not hasattr(anchors, "__len__") or isinstance(anchors, str):
        raise AnchorError(
            f"Cannot convert classifier: expected one anchor for each of its classes, got {anchors!r:.60}. "
            "Pass anchors=[60.0, 61.0, 62.0]"
        )


def anchored_classes(anchors: Anchored, classes: int) -> tuple[list[int], list[float]]:
    """Return the classes that have a value, in the order of their anchors, and these.

    Args:
        anchors: One value a class, None where there is none; or values by class, in any order.
        classes: How many there are.

    Raises:
        AnchorError: not one for each class, or of a class that there is not.
    """
    if isinstance(anchors, Mapping):
        unknown = [k for k in anchors if isinstance(k, bool) or not hasattr(k, "__index__") or not 0 <= k < classes]
        if unknown:
            raise AnchorError(
                f"Cannot convert classifier: expected anchors by class, from 0 to {classes - 1}, got {unknown[0]!r}. "
                "Pass anchors={0: 60.0, 1: 61.0}"
            )
        kept = sorted(anchors, key=lambda k: float(anchors[k]))
        return [int(k) for k in kept], [float(anchors[k]) for k in kept]
    if len(anchors) != classes:
        raise AnchorError(
            f"Cannot convert classifier: expected one anchor for each of its {classes} classes, "
            f"got {len(anchors)} anchors. Pass anchors=[...] with {classes} numbers, or by class: anchors={{0: 60.0}}"
        )
    if isinstance(anchors, Tensor):
        return list(range(classes)), anchors.tolist()
    kept = [k for k, value in enumerate(anchors) if value is not None]
    if len(kept) < 2:
        raise AnchorError(
            f"Cannot convert classifier: expected at least 2 classes with a value, got {len(kept)}. "
            "None leaves a class out: anchors=[60.0, None, 62.0]"
        )
    return kept, [value for value in anchors if value is not None]


def _run(module: nn.Module, example: Any, classes: int | None) -> tuple[Any, str, bool]:
    """Run a classifier in evaluation mode.

    Returns:
        What it was run on, the path of the Linear that gave its output, and whether that is all of the output.
    """
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise FitError(
            f"Cannot convert classifier: expected an nn.Linear that gives its logits, got {in_place(module)}"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        raise FitError(
            f"Cannot convert classifier: expected weights, got a {type(module).__name__} that has not seen its inputs. "
            "Run it once before: classifier(features)"
        )
    if any(parameter.is_meta for parameter in module.parameters()):
        raise FitError(
            f"Cannot convert classifier: expected weights, got a {type(module).__name__} on the meta device, which "
            "holds none. Load them first: classifier.to_empty(device='cpu').load_state_dict(...)"
        )
    tried = [example] if example is not None else _rows(linears)
    failure: Exception | None = None
    for features in tried:
        try:
            with watched(module) as calls, torch.no_grad(), torch.random.fork_rng(devices=[]):
                output = module(features)
        except Exception as err:  # whatever a module of the user's raises on a width that is not its own
            failure = err
            continue
        return features, logits_path(type(module).__name__, output, calls, classes=classes), isinstance(output, Tensor)
    raise FitError(
        f"Cannot convert classifier: expected {type(module).__name__} to run on features (B, D), got "
        f"{type(failure).__name__}: {failure}. Pass some: as_regressor(classifier, anchors, features=features[:2])"
    ) from failure


def in_place(module: nn.Module) -> str:
    """Say what stands where a Linear was expected, and what to do: a convolution over one place is a Linear."""
    found = [(name, m) for name, m in module.named_modules() if isinstance(m, _CONVOLUTIONS)]
    named = [each for each in found if any(p.requires_grad for p in each[1].parameters())] or found
    if not named:
        return (
            f"{type(module).__name__} without one. Pass the layer that makes the logits, as_regressor(model.fc, "
            "anchors), or begin anew on its features: heads.AnchorSpline(width, anchors)"
        )
    name, layer = named[-1]
    what = f"{type(layer).__name__} {name!r}" if name else f"a {type(layer).__name__}"
    got = (
        f"{what} ({layer.in_channels} to {layer.out_channels} channels, kernel {'x'.join(map(str, layer.kernel_size))})"
    )
    if layer.kernel_size != (1,) * len(layer.kernel_size) or layer.groups != 1:
        return f"{got}. Begin anew on the features before it: heads.AnchorSpline(width, anchors)"
    conv, bias = f"model.{name}" if name else "conv", layer.bias is not None
    fix = f"linear = nn.Linear({layer.in_channels}, {layer.out_channels}{'' if bias else ', bias=False'}); "
    fix += f"linear.weight.data = {conv}.weight.data.flatten(1); "
    fix += f"linear.bias.data = {conv}.bias.data; " if bias else ""
    return (
        f"{got}. Over one place, features (B, {layer.in_channels}), it is a Linear: {fix}as_regressor(linear, anchors)"
    )


def _rows(linears: Sequence[nn.Linear]) -> list[Tensor]:
    """Return rows of every width that a Linear takes: drawn, as what is 0 comes through too many layers unchanged."""
    widths, like = dict.fromkeys(linear.in_features for linear in linears), linears[0].weight
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(16, width, generator=draw, device="cpu").to(like.device, dtype_of(linears[0])) for width in widths
    ]


Calls = list[tuple[str, nn.Module, Any]]


@contextmanager
def watched(module: nn.Module) -> Iterator[Calls]:
    """Note every leaf that is called, in order, with what it gave; in evaluation mode; undone at the end."""
    calls: Calls = []
    leaves = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear) or _is_leaf(part)]

    def note(name: str) -> Any:
        return lambda part, _args, output: calls.append((name, part, output))

    handles = [part.register_forward_hook(note(name)) for name, part in leaves]
    try:
        with in_evaluation(module):
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def logits_path(name: str, output: Any, calls: Calls, *, squashed: bool = False, classes: int | None = None) -> str:
    """Return the path of the Linear whose output is the output of all, or the only part of it that fits.

    Args:
        name: Of what ran.
        output: What it gave.
        calls: Its leaves, in order, with what they gave.
        squashed: Whether the output may also be the softmax or the sigmoids of what the Linear gave.
        classes: How many there are, where it is known: of several outputs, those of as many are meant, and of several
            of these the one called 'logits'.

    Raises:
        FitError: no Linear ran, something was done to what it gave, or more than one output fits.
    """
    ran: dict[str, Tensor] = {path: given for path, part, given in calls if isinstance(part, nn.Linear)}
    if not ran:
        raise FitError(
            f"Cannot convert classifier: expected an nn.Linear to run in {name}, got none. "
            "Pass the layer that makes the logits: as_regressor(model.fc, anchors)"
        )
    made = [(label, _made_by(tensor, ran, squashed)) for label, tensor in _labelled(output)]
    found = {path: label for label, path in reversed(made) if path is not None}
    fitting = {path: label for path, label in found.items() if ran[path].shape[-1] == classes} or found
    fitting = {path: label for path, label in fitting.items() if label == "['logits']"} or fitting
    if not fitting:
        last = calls[-1][1]
        what = f"{type(last).__name__} last" if not isinstance(last, nn.Linear) else "more after its last Linear"
        raise FitError(
            f"Cannot convert classifier: expected {name} to end at the logits, got {what}. "
            "Pass it without: as_regressor(classifier[:-1], anchors, activation='softmax' or 'sigmoid')"
        )
    if len(fitting) > 1:
        several = ", ".join(f"{label} (layer {path!r})" for path, label in reversed(fitting.items()))
        raise FitError(
            f"Cannot convert classifier: expected one output of {name} to be the logits, got several: {several}. "
            "Pass the layer: as_regressor(model.fc, anchors), or a model that returns this output alone"
        )
    (path,) = fitting
    _check_rows(ran[path], name)
    return path


def _made_by(tensor: Tensor, ran: dict[str, Tensor], squashed: bool) -> str | None:
    """Return the path of the Linear that gave a tensor, the last one of several, or None."""
    for path, given in reversed(ran.items()):
        made = [given, given.softmax(-1), given.sigmoid()] if squashed else [given]
        if given is tensor or any(_is_same(one, tensor) for one in made):
            return path
    return None


def _check_rows(logits: Tensor, name: str) -> None:
    """Raise if there is an answer for each token or place of a sample, and not for the sample."""
    if logits.ndim > 2 and logits.shape[1:-1].numel() != 1:
        raise FitError(
            f"Cannot convert classifier: expected one row of logits for each sample, (B, {logits.shape[-1]}), got "
            f"{tuple(logits.shape)} from {name}. Average or choose among its places before the last layer"
        )


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())


def _labelled(output: Any, label: str = "") -> Iterator[tuple[str, Tensor]]:
    """Give the tensors of an output, each with what it is called there."""
    if isinstance(output, Tensor):
        yield label or "the output", output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _labelled(value, f"{label}[{key!r}]")
    elif isinstance(output, tuple | list):
        for place, value in enumerate(output):
            yield from _labelled(value, f"{label}[{place}]")
