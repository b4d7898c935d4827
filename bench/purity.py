"""Purity on the models that people use: no trunk is refused as it is, and every trunk with a planted fault is.

    python bench/purity.py                              the models of the docs' table
    python bench/purity.py 'timm/*' 'transformers/b*'   others, by name

Each model is cut after a sixth, a half and five sixths of its layers, in the order in which they run. Into a layer in
the middle of the frozen part a fault is planted, one after the other: what it gives is changed a little by chance, by
the samples beside, by their number, by the place among them, or by how often it ran.
"""

import fnmatch
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from cuts import execute
from torch import Tensor, nn
from torch.nn import functional
from zoo import Specimen, specimens

import forethought as ft
from forethought.errors import ForethoughtError, ImpureTrunkError
from forethought.probing.purity import probe
from forethought.samples.batch import Batch

ROWS = 6
MODELS = (
    "torchvision/alexnet", "torchvision/densenet121", "torchvision/efficientnet_b0", "torchvision/googlenet",
    "torchvision/mobilenet_v3_small", "torchvision/regnet_y_400mf", "torchvision/resnet18", "torchvision/swin_t",
    "torchvision/vgg11_bn", "torchvision/shufflenet_v2_x0_5", "timm/convnext.test_convnext",
    "timm/vision_transformer.test_vit", "timm/edgenext.edgenext_xx_small", "timm/nfnet.test_nfnet",
    "timm/byobnet.test_byobnet", "timm/maxxvit.test_coatnet", "timm/coat.coat_tiny",
    "transformers/bert.SequenceClassification", "transformers/distilbert.SequenceClassification",
    "transformers/deberta.SequenceClassification", "transformers/convbert.SequenceClassification",
    "transformers/fnet.SequenceClassification", "transformers/llama.SequenceClassification",
    "transformers/mixtral.CausalLM", "transformers/mamba.CausalLM", "transformers/t5.Seq2SeqLM",
)  # fmt: skip
_runs = [0]


def _count(given: Tensor) -> Tensor:
    _runs[0] += 1
    return given * (1 + 1e-5 * _runs[0])


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout of 1 %": lambda given: functional.dropout(given, 0.01),
    "a 10,000th of the batch's mean": lambda given: given - 1e-4 * given.mean(0, keepdim=True),
    "attention over the batch": lambda given: given + 1e-3 * _attended(given.flatten(1)).view_as(given),
    "batch statistics": lambda given: (given - given.mean(0)) / (given.std(0) + 0.01),
    "number of samples": lambda given: given * (1 + 0.01 * len(given)),
    "place in the batch": lambda given: given * (1 + 0.01 * torch.arange(len(given)).view(-1, *[1] * (given.ndim - 1))),
    "a count of runs": _count,
}


def _attended(rows: Tensor) -> Tensor:
    return functional.normalize(rows) @ functional.normalize(rows).T @ rows


@dataclass
class Found:
    """What was seen of one model.

    Attributes:
        pure: Trunks that were probed as they are.
        moved_ulps: How far a row of theirs moved at most.
        refused: Those of them that were refused, and why: none should be.
        planted: Trunks with a fault.
        missed: Those of them that were not refused.
    """

    pure: int = 0
    moved_ulps: float = 0.0
    refused: list[str] = field(default_factory=list)
    planted: int = 0
    missed: list[str] = field(default_factory=list)


def examine(specimen: Specimen, cuts: tuple[float, ...] = (1 / 6, 1 / 2, 5 / 6), faults: tuple[str, ...] = ()) -> Found:
    """Probe one model's trunks, and the same with faults."""
    found = Found()
    for share in cuts:
        torch.manual_seed(0)
        model, (args, kwargs) = specimen.make().eval(), specimen.feed(ROWS)
        layers = execute(model, args, kwargs).layers
        frozen = {name for layer in layers[: max(1, round(share * len(layers)))] for name in layer.parameters}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.is_floating_point() and name not in frozen)
        try:
            split = ft.split(model, args, kwargs)
        except ForethoughtError:
            continue  # what does not split is no matter of purity
        if any(tensor.row_axis is None for tensor in split.frontier):
            continue
        found.pure += 1
        try:
            found.moved_ulps = max(found.moved_ulps, probe(split, Batch(args, kwargs, None)).moved_ulps)
        except ImpureTrunkError as err:
            found.refused.append(f"{specimen.name} at {share:.2f}: {err}")
            continue
        place = _middle(model, frozen, split, args, kwargs)
        for fault in faults or FAULTS:
            with _planted(place, FAULTS[fault]) as is_planted:
                found.planted += is_planted
                if is_planted and not _is_refused(model, args, kwargs):
                    found.missed.append(f"{specimen.name} at {share:.2f}: {fault}")
    return found


def _is_refused(model: nn.Module, args: Any, kwargs: Any) -> bool:
    try:
        probe(ft.split(model, args, kwargs), Batch(args, kwargs, None))
    except ForethoughtError:
        return True
    return False


def _middle(model: nn.Module, frozen: set[str], split: ft.Split, args: Any, kwargs: Any) -> nn.Module | None:
    """Find the layer nearest to the middle of the frozen part that gives a row a sample, and on which features depend.

    Random weights often start with a branch multiplied by zero, or nearly so: what happens there reaches nobody.
    """
    given: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _, __, result, name=name: given.setdefault(name, result))
        for name, module in model.named_modules()
        if f"{name}.weight" in frozen and isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d)
    ]
    model(*args, **kwargs)
    for handle in handles:
        handle.remove()
    rows = [name for name, result in given.items() if isinstance(result, Tensor) and result.shape[0] == ROWS]
    before = split.rows(args, kwargs)
    for name in sorted(rows, key=lambda name: abs(rows.index(name) - len(rows) // 2)):
        module = model.get_submodule(name)
        with _planted(module, lambda given: given * 1.01):
            after = ft.split(model, args, kwargs).rows(args, kwargs)
        if any(_change(a, b) > 1e-4 for a, b in zip(before, after, strict=True)):
            return module
    return None


def _change(before: Tensor, after: Tensor) -> float:
    return float((before.double() - after.double()).norm() / before.double().norm().clamp(min=1e-30))


class _planted:  # noqa: N801  (a context manager, read as an adjective)
    """Change what a module gives."""

    def __init__(self, module: nn.Module | None, fault: Callable[[Tensor], Tensor]) -> None:
        self._module = module
        self._fault = fault

    def __enter__(self) -> bool:
        if self._module is None:
            return False
        fault, kind = self._fault, type(self._module)
        self._kind = kind

        class Faulty(kind):  # type: ignore[valid-type,misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return fault(super().forward(*args, **kwargs))

        self._module.__class__ = Faulty
        return True

    def __exit__(self, *_: object) -> None:
        if self._module is not None:
            self._module.__class__ = self._kind


def measure() -> list[str]:
    """Examine the models of the docs' table."""
    return list(_report([specimens(name.partition("/")[0])[name] for name in MODELS]))


def _report(chosen: list[Specimen]) -> Iterator[str]:
    total = Found()
    for specimen in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's models warn
            found = examine(specimen)
        total.pure += found.pure
        total.planted += found.planted
        total.refused += found.refused
        total.missed += found.missed
        yield (
            f"{specimen.name}: {found.pure} trunks, moved by up to {found.moved_ulps:.0f} ulps, {len(found.refused)} "
            f"refused; {found.planted} with a fault, {len(found.missed)} not refused"
        )
        yield from found.refused + found.missed
    yield (
        f"{len(chosen)} models, {total.pure} trunks, {len(total.refused)} refused; {total.planted} with a fault, "
        f"{len(total.missed)} not refused"
    )


if __name__ == "__main__":
    patterns = sys.argv[1:] or MODELS
    for line in _report([one for name, one in specimens().items() if any(fnmatch.fnmatch(name, p) for p in patterns)]):
        print(line, flush=True)
