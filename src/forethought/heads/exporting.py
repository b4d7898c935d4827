"""Heads in other runtimes: ONNX and `torch.export`, written together with what was proved, and run to compare."""

import copy
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import BundleError, FitError, MissingExtraError
from forethought.heads.conformal import Conformal
from forethought.heads.interface import Head
from forethought.heads.layers import dtype_of, in_evaluation

_ROWS = (1, 2, 3, 17, 1000)  # batches that an exported head is run on: the number of rows must be free
_TRACED = 1013
_TOLERANCE = 1e-5  # of the range of the answers: a product of matrices is summed in another order elsewhere


@dataclass(frozen=True)
class Exported:
    """A head in a file, and how far its answers there are from the head's.

    Attributes:
        path: The file.
        format: "onnx" or "pt2".
        largest_difference: Between the file's answers and the head's, in the anchors' unit.
        rows: How many were compared.
    """

    path: Path
    format: str
    largest_difference: float
    rows: int


def export(head: Head | Conformal, path: str | os.PathLike[str], example: Tensor | None = None) -> Exported:
    """Write a head for another runtime, run it there, and compare the answers.

    The number of rows is left free. The file carries the head's description and certificate, as JSON under
    "forethought". What the certificate says of eager PyTorch is seen to hold there too by
    `head.certify(through=heads.onnx_runtime)`.

    Args:
        head: As it is; it is exported in evaluation mode. What `conformalize` made has three outputs: "lower", "y" and
            "upper".
        path: "head.onnx", or "head.pt2" for `torch.export`.
        example: Features (B, D) to compare on; None: drawn from a normal distribution.

    Raises:
        FitError: another ending, or no example for a head that takes what only its own module knows.
        BundleError: the answers differ.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> from forethought.heads import AnchorSpline
        >>> folder = tempfile.mkdtemp()
        >>> export(AnchorSpline(4, [60.0, 62.0, 67.0]), f"{folder}/head.pt2").largest_difference
        0.0
    """
    path = Path(path)
    if not isinstance(head, Head | Conformal):
        raise FitError(
            f"Cannot export: expected a head of forethought, or what conformalize made, got a {type(head).__name__}. "
            "Of an assembled model: heads.export(full.heads['head'], path)"
        )
    features = _example(head) if example is None else example.detach()
    about = _about(head)
    with in_evaluation(head):
        baked = _baked(head)
        if path.suffix == ".onnx":
            program = _onnx_program(baked, features)
            program.model.metadata_props["forethought"] = json.dumps(about)
            program.save(path)
            run = _session(path.read_bytes())
        elif path.suffix == ".pt2":
            exported = _exported(baked, features)
            torch.export.save(exported, path, extra_files={"forethought": json.dumps(about)})
            run = exported.module()
        else:
            raise FitError(
                f"Cannot export head to '{path}': expected .onnx or .pt2 at its end. export(head, 'head.onnx')"
            )
        difference, rows = _compared(head, run, features)
    return Exported(path, path.suffix[1:], difference, rows)


def onnx_runtime(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a module as ONNX Runtime runs it on the CPU: for `head.certify(through=heads.onnx_runtime)`.

    Args:
        module: With inputs like its own in `module.example`.
    """
    example = module.get_buffer("example")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.onnx"
        _onnx_program(module, example).save(path)
        return _session(path.read_bytes())


def exported_program(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a module as `torch.export` traces it: for `head.certify(through=heads.exported_program)`."""
    run: Callable[[Tensor], Tensor] = _exported(module, module.get_buffer("example")).module()
    return run


def _exported(module: nn.Module, example: Tensor) -> Any:
    return torch.export.export(module, (_traced(example),), dynamic_shapes=({0: torch.export.Dim("rows")},))


def _onnx_program(module: nn.Module, example: Tensor) -> Any:
    try:
        import onnxscript  # noqa: F401
    except ImportError as err:
        raise _missing("onnx and onnxscript", err) from err
    with torch.no_grad():
        return torch.onnx.export(
            module,
            (_traced(example),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            input_names=["features"],
            output_names=["lower", "y", "upper"] if isinstance(module, Conformal) else ["y"],
            verbose=False,
        )


def _session(model: bytes) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ImportError as err:
        raise _missing("onnxruntime", err) from err
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as err:  # of kinds that it keeps to itself
        raise FitError(
            f"Cannot export head: expected operations that ONNX Runtime has for the head's dtype, got {err}. "
            "Pass the head in float32: heads.export(head.float(), path)"
        ) from err

    def run(features: Tensor) -> Tensor:
        made = session.run(None, {"features": features.detach().cpu().numpy()})
        return _as_one([torch.from_numpy(each) for each in made])

    return run


def _missing(what: str, err: ImportError) -> MissingExtraError:
    return MissingExtraError(f"Cannot export to ONNX: expected {what}, got {err}. pip install 'forethought[export]'")


def _traced(example: Tensor) -> Tensor:
    """Return the example in as many rows as no layer is wide: torch.export takes 1 row, or as many rows as a layer has
    units, for a constant.
    """
    return example[torch.arange(_TRACED, device=example.device) % len(example)]


def _about(head: Head | Conformal) -> dict[str, Any]:
    """Return what the file says of a head; of intervals, what their head is and how they were made."""
    if not isinstance(head, Conformal):
        return {"certificate": json.loads(head.certify().to_json()), "config": _config(head)}
    made = {"radius": float(head.radius), "confidence": head.confidence, "rows": head.rows, "within": head.within}
    if not isinstance(head.head, Head):
        raise FitError(
            f"Cannot export intervals: expected them around a head of forethought, got a {type(head.head).__name__}. "
            "Export that module by itself, and add y - radius and y + radius"
        )
    return {**_about(head.head), "intervals": made}


def _baked(head: Head | Conformal) -> nn.Module:
    if isinstance(head, Head):
        return head.baked()
    assert isinstance(head.head, Head)
    made, baked = copy.copy(head), head.head.baked()
    made._modules = {"head": baked}
    return made


def _as_one(outputs: Any) -> Tensor:
    """Return outputs as one tensor, several as columns."""
    if isinstance(outputs, list | tuple):
        return torch.as_tensor(outputs[0]) if len(outputs) == 1 else torch.stack(list(outputs), -1)
    return torch.as_tensor(outputs)


def _example(head: nn.Module) -> Tensor:
    widths = [getattr(part, "in_features", None) for part in head.modules()]
    width = next((width for width in widths if isinstance(width, int)), 1)
    draw = torch.Generator().manual_seed(0)
    device = next((tensor.device for tensor in head.state_dict().values()), torch.device("cpu"))
    dtype = torch.promote_types(dtype_of(head), torch.float32)
    return torch.randn(max(_ROWS), width, generator=draw, dtype=torch.float64, device="cpu").to(device, dtype)


def _config(head: Head) -> dict[str, Any] | None:
    try:
        return head.config()
    except FitError:
        return None


def _compared(head: Head | Conformal, run: Callable[[Tensor], Any], features: Tensor) -> tuple[float, int]:
    worst, rows = 0.0, 0
    with torch.no_grad():
        expected = _as_one(head(features))
        if not expected.isfinite().all():
            raise BundleError(
                "Cannot export head: expected finite answers to the example, got some that are not. "
                "Give features like those it will see: export(head, path, example=features)"
            )
        scale = float((expected.max() - expected.min()).abs()) or 1.0
        for size in _ROWS:
            batch = features[torch.arange(size) % len(features)]
            y = _as_one(run(batch)).to(expected.device)
            wanted = _as_one(head(batch))
            if y.shape != wanted.shape:
                raise BundleError(
                    f"Cannot export head: expected answers {tuple(wanted.shape)} for {size} rows, got "
                    f"{tuple(y.shape)}. Give features like those it will see: export(head, path, example=features)"
                )
            off = float((y.double() - wanted.double()).abs().max())
            if not off <= _TOLERANCE * scale:
                raise BundleError(
                    f"Cannot export head: expected its own answers from the file, got others, by {off:.3g}. "
                    "This runtime computes it otherwise: do not use the file"
                )
            worst, rows = max(worst, off), rows + size
    return worst, rows
