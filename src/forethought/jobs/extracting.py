"""`forethought extract`: the files of a folder or a table through the frozen part of a model by name."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import forethought as ft
from forethought.errors import DataError, ModelError, SplitError
from forethought.jobs import pictures, sounds
from forethought.jobs.asked import Asked
from forethought.jobs.listing import LABEL, Listing, chosen, list_folder, merged
from forethought.jobs.models import Ready, make_ready
from forethought.jobs.samples import FileSamples
from forethought.jobs.sheets import SUFFIXES, list_sheet
from forethought.loading import said

_MANY = 256  # files from which on several processes read them


@dataclass(frozen=True)
class Extracted:
    """What came of it.

    Attributes:
        features: Of the files that can be read, in their order; their targets say nothing.
        numbers: Which files of the listing these are.
        listing: All files.
        ready: The model.
        bad: (path, reason) of each file that cannot be read.
        facts: What was done, as plain values: what `--json` prints.
    """

    features: ft.Features
    numbers: NDArray[np.int64]
    listing: Listing
    ready: Ready
    bad: tuple[tuple[str, str], ...]
    facts: dict[str, Any]


def extract_files(
    asked: Asked, say: Callable[[str], None], check: Callable[[Listing], None] = lambda _: None
) -> Extracted:
    """List the files, make the model, and store the features of all files.

    Args:
        asked: For what.
        say: Is given lines for people, as they become known.
        check: Is given the listing before anything is computed, to refuse it.

    Raises:
        ForethoughtError: something cannot be used as it is; the message says what, and what to do.
    """
    _check_device(asked.device)
    for source in (asked.data, *asked.more.values()):
        _check_there(source)
    ready = make_ready(asked.model, asked.weights, asked.transform, asked.download)
    listing = merged({part: _listed(source, asked, ready.kind) for part, source in asked.sources.items()})
    check(listing)
    listing, absent = _there(listing, asked.skip_bad)
    samples, reading = _samples(listing, ready, asked)
    say(described(listing))
    say(f"model: {ready.name}, {ready.weights}")
    say(f"prepared: {reading}")
    cut = _frozen(ready, samples)
    say(f"frozen: {cut}" + (f"; cut at '{asked.at}'" if asked.at else ""))
    features = _extracted(
        ready.model, samples, asked.store, at=asked.at, dtype=asked.dtype, batch_size=asked.batch_size,
        num_workers=_workers(asked.workers, len(samples)), device=asked.device, progress=asked.progress,
    )  # fmt: skip
    is_read = np.asarray(features.targets)
    bad = [(listing.paths[at], samples.fault(at)) for at in np.flatnonzero(~is_read).tolist()]
    if bad and not asked.skip_bad:
        raise DataError(
            f"Cannot read {_count(len(bad), 'file')} of {len(listing.paths):,}: expected {listing.kind}, got "
            f"{_some(bad)}. All other rows are stored. Mend or remove the files, or leave them out: --skip-bad"
        )
    numbers = np.flatnonzero(is_read)
    if not len(numbers):
        raise DataError(f"Cannot use '{asked.data}': expected {listing.kind} that can be read, got none. {_some(bad)}")
    features = features if len(numbers) == len(is_read) else features.select(numbers)
    facts = _facts(asked, ready, listing, features, [*absent, *bad], (reading, cut))
    return Extracted(features, numbers, listing, ready, (*absent, *bad), facts)


def _extracted(*given: Any, **options: Any) -> ft.Features:
    """Extract; what a process that reads files says of one is said as if it had been read here."""
    try:
        return ft.extract(*given, **options)
    except DataError as err:
        lines = str(err).strip().splitlines()
        if len(lines) > 1 and lines[0].startswith("Caught DataError"):
            raise DataError(lines[-1].partition(": ")[2]) from err
        raise


def described(listing: Listing) -> str:
    """Say in a line what there is."""
    counts = Counter(listing.columns.get(LABEL, [])) if not listing.lines else Counter()
    classes = f" of {_count(len(counts), 'class', 'classes')}: " + ", ".join(
        f"{name} {counts[name]:,}" for name in sorted(counts)[:8]
    ) if counts else ""  # fmt: skip
    classes += " ..." if len(counts) > 8 else ""
    alone = f"; {_count(len(listing.left_alone), 'other file')} left alone" if listing.left_alone else ""
    alone += (
        f" ({os.path.basename(listing.left_alone[0])}{' ...' if len(listing.left_alone) > 1 else ''})" if alone else ""
    )
    kind = listing.kind if len(listing.paths) > 1 else listing.kind[:-1]
    return f"{listing.source}: {len(listing.paths):,} {kind}{classes}{alone}"


def _check_device(device: str | None) -> None:
    """Refuse a device that is not there, before anything is made for it."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as err:
        raise ModelError(
            f"Cannot run on '{device}': expected a device of this machine, got {said(err)}. Leave --device out"
        ) from err


def _check_there(data: str) -> None:
    """Refuse what is neither a folder nor a table, before a model is made for it."""
    path = Path(data)
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() in SUFFIXES):
        got = f"a file of another kind ({path.suffix or 'no suffix'})" if path.exists() else "nothing of this name"
        raise DataError(
            f"Cannot read '{data}': expected a folder, or a table ({', '.join(SUFFIXES)}) of files, got {got}. "
            "Check the path"
        )


def _listed(source: str, asked: Asked, kind: str | None) -> Listing:
    path = Path(source)
    listing = list_folder(path, kind) if path.is_dir() else list_sheet(path, asked.paths_in)
    if kind is not None and listing.kind != kind:
        raise DataError(
            f"Cannot run '{asked.model}' on '{source}': expected {kind}, got {listing.kind}. Choose another model"
        )
    return listing


def _there(listing: Listing, skip_bad: bool) -> tuple[Listing, list[tuple[str, str]]]:
    """Leave out, or refuse, files that are not there or may not be read."""
    why = {
        at: "no such file" if not os.path.exists(path) else "a folder" if os.path.isdir(path) else "may not be read"
        for at, path in enumerate(listing.paths)
        if not os.path.isfile(path) or not os.access(path, os.R_OK)
    }
    absent = [(listing.paths[at], reason) for at, reason in why.items()]
    if not absent:
        return listing, []
    first = next(iter(why))
    if not skip_bad:
        line = f" in line {listing.lines[first]}" if listing.lines else ""
        raise DataError(
            f"Cannot read {_count(len(absent), 'file')} of {len(listing.paths):,} in '{listing.source}': expected "
            f"files that are there, got {_some(absent)}{line}. Mend it, or leave them out: --skip-bad"
        )
    keep = [at for at in range(len(listing.paths)) if at not in why]
    if not keep:
        raise DataError(f"Cannot use '{listing.source}': expected files that are there, got {_some(absent)}.")
    return chosen(listing, keep), absent


def _samples(listing: Listing, ready: Ready, asked: Asked) -> tuple[FileSamples, str]:
    """Make the data set, and say how files become the model's input."""
    if listing.kind == "sounds":
        return _of_sounds(listing, ready, asked)
    if ready.prepare is None:
        raise ModelError(
            f"Cannot prepare pictures for '{ready.name}': expected a model that says how (torchvision, timm, "
            "transformers), got a function's. Name the transform: --transform resnet18 (that model's own), or "
            "--transform file.py:function (returns it)"
        )
    blank = Image.new("RGB", (64, 64))
    prepare, made = ready.prepare, None
    try:
        made = prepare(blank)
    except Exception as err:
        raise ModelError(
            f"Cannot prepare pictures: expected the transform to take a PIL image, got {said(err)}."
        ) from err
    if not isinstance(made, Tensor):
        raise ModelError(
            f"Cannot prepare pictures: expected the transform to return a tensor, got {type(made).__name__}. End it "
            "with torchvision.transforms.ToTensor()"
        )
    return FileSamples(listing.paths, pictures.read_picture, prepare, made), f"{pictures.HOW}; {ready.prepared}"


def _of_sounds(listing: Listing, ready: Ready, asked: Asked) -> tuple[FileSamples, str]:
    forms: dict[str, sounds.Form] = {}
    for path in listing.paths:
        try:
            forms[path] = sounds.form_of(path)
        except pictures.UnreadableError:
            continue  # told of with those whose content is damaged
    if not forms:
        raise DataError(
            f"Cannot use '{listing.source}': expected sounds that can be read, got {len(listing.paths):,} that cannot."
        )
    rate = sounds.one_rate(forms, ready.rate)
    clip = sounds.Clip(sounds.one_length(forms, rate, asked.seconds), ready.prepare)
    read = sounds.read_plain if all(form.is_plain for form in forms.values()) else sounds.read_any
    how = f"sounds as mono, {rate:,} samples a second, the first {clip.samples / rate:.3g} s of each, then silence"
    how += f"; {ready.prepared}" if ready.prepare is not None else "; nothing else"
    return FileSamples(listing.paths, read, clip, clip(np.zeros(clip.samples, np.float32))), how


def _frozen(ready: Ready, samples: FileSamples) -> str:
    """Freeze everything but the last layer of a model in which nothing is frozen, and say so."""
    model = ready.model
    if any(not parameter.requires_grad for parameter in model.parameters()):
        return "what was frozen in the model as it came"
    if not any(True for _ in model.parameters()):
        return "everything: the model has no parameters"
    last = last_layer(model, torch.stack([samples.blank, samples.blank]))
    try:
        ft.freeze(model, all_but=last)
    except SplitError:
        ft.freeze(model)
        return f"everything, as '{last}', the last layer, shares its weights"
    return f"everything but '{last}', the last layer with parameters, which heads are to replace"


def last_layer(model: nn.Module, batch: Tensor) -> str:
    """Name the last module to begin that has parameters of its own.

    Raises:
        ModelError: the model does not take these inputs.
    """
    begun: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: begun.append(path))
        for path, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        with torch.no_grad():
            model(batch.to(next(model.parameters()).device))
    except ft.ForethoughtError:
        raise
    except Exception as err:
        raise ModelError(
            f"Cannot run {type(model).__name__} on {tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}: "
            f"expected its forward to take what was prepared, got {said(err)}. Prepare it in another way: --transform"
        ) from err
    finally:
        for handle in handles:
            handle.remove()
    if not begun:
        raise ModelError(f"Cannot freeze {type(model).__name__}: expected a layer with parameters to run, got none.")
    return begun[-1].split(".parametrizations")[0]


def _workers(asked: int | None, files: int) -> int:
    if asked is not None or files < _MANY:
        return asked or 0
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _facts(
    asked: Asked, ready: Ready, listing: Listing, features: ft.Features, bad: Sequence[tuple[str, str]], how: Any
) -> dict[str, Any]:
    report, rows = features.report, features[0][0]
    rows = rows if isinstance(rows, tuple) else (rows,)
    return {
        "data": listing.source,
        "kind": listing.kind,
        "files": len(listing.paths),
        "left_alone": len(listing.left_alone),
        "bad": [{"path": path, "reason": reason} for path, reason in bad],
        "columns": list(listing.columns),
        "model": ready.name,
        "weights": ready.weights,
        "prepared": how[0],
        "frozen": how[1],
        "at": asked.at,
        "features": [
            {"name": tensor.name, "shape": list(row.shape), "dtype": str(row.dtype).removeprefix("torch.")}
            for tensor, row in zip(features.frontier, rows, strict=True)
        ],
        "store": asked.store,
        "rows": len(features),
        "rows_computed": report.rows_computed,
        "rows_reused": report.rows_reused,
        "size_bytes": report.size_bytes,
        "time_s": report.time_s,
        "energy_j": report.energy_j,
    }


def _some(bad: Sequence[tuple[str, str]]) -> str:
    named = "; ".join(f"'{path}' ({reason})" for path, reason in bad[:3])
    return named + (f" and {len(bad) - 3:,} more" if len(bad) > 3 else "")


def _count(number: int, thing: str, things: str | None = None) -> str:
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
