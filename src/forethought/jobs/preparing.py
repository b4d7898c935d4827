"""A data set and a model as the commands take them: what `forethought extract` stores is what others ask about."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import forethought as ft
from forethought.devices import present
from forethought.errors import DataError, DeviceError, ModelError, SplitError
from forethought.jobs import pictures, sounds
from forethought.jobs.asked import Asked
from forethought.jobs.listing import LABEL, Listing, chosen, list_folder, merged
from forethought.jobs.models import Ready, full_name, is_function, make_ready
from forethought.jobs.samples import FileSamples
from forethought.jobs.sheets import SUFFIXES, list_sheet
from forethought.loading import load_dataset, load_model, said


@dataclass(frozen=True)
class Prepared:
    """What the frozen part is run on, and how that was made.

    Attributes:
        ready: The model, frozen.
        samples: What it is given.
        listing: The files.
        absent: (path, reason) of each file that was left out, as it is not there.
        reading: How files become the model's input, in words.
        cut: What is frozen, in words.
    """

    ready: Ready
    samples: FileSamples
    listing: Listing
    absent: tuple[tuple[str, str], ...]
    reading: str
    cut: str


def prepare(asked: Asked, say: Callable[[str], None], check: Callable[[Listing], None] = lambda _: None) -> Prepared:
    """List files, and make the model and what it is given of them. Nothing is computed, and no file read.

    Args:
        asked: For what.
        say: Is given lines for people, as they become known.
        check: Is given the listing, to refuse it.

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
    return Prepared(ready, samples, listing, tuple(absent), reading, cut)


def model_and_samples(asked: Asked) -> tuple[nn.Module, Any]:
    """Give the model and the data set that `extract` would be given: files by a folder or table, or a function's.

    Raises:
        ForethoughtError: something cannot be used as it is; the message says what, and what to do.
    """
    if ":" not in asked.data or os.path.exists(asked.data):
        prepared = prepare(asked, lambda _: None)
        return prepared.ready.model, prepared.samples
    name = full_name(asked.model)
    if is_function(name) and asked.weights == "default":
        return load_model(name), load_dataset(asked.data)  # in the mode that it has: both are as a program has them
    ready = make_ready(name, asked.weights, download=asked.download)
    return ready.model, load_dataset(asked.data)


def described(listing: Listing) -> str:
    """Say in a line what there is."""
    counts = Counter(listing.columns.get(LABEL, [])) if not listing.lines else Counter()
    classes = f" of {count_of(len(counts), 'class', 'classes')}: " + ", ".join(
        f"{name} {counts[name]:,}" for name in sorted(counts)[:8]
    ) if counts else ""  # fmt: skip
    classes += " ..." if len(counts) > 8 else ""
    alone = f"; {count_of(len(listing.left_alone), 'other file')} left alone" if listing.left_alone else ""
    alone += (
        f" ({os.path.basename(listing.left_alone[0])}{' ...' if len(listing.left_alone) > 1 else ''})" if alone else ""
    )
    kind = listing.kind if len(listing.paths) > 1 else listing.kind[:-1]
    return f"{listing.source}: {len(listing.paths):,} {kind}{classes}{alone}"


def _check_device(device: str | None) -> None:
    """Refuse a device that is not there, before anything is made for it."""
    try:
        present(device or "cpu")
    except DeviceError as err:
        reason = said(err.__cause__ or err)
        raise ModelError(
            f"Cannot run on '{device}': expected a device of this machine, got {reason}. Leave --device out"
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
            f"Cannot read {count_of(len(absent), 'file')} of {len(listing.paths):,} in '{listing.source}': expected "
            f"files that are there, got {some_of(absent)}{line}. Mend it, or leave them out: --skip-bad"
        )
    keep = [at for at in range(len(listing.paths)) if at not in why]
    if not keep:
        raise DataError(f"Cannot use '{listing.source}': expected files that are there, got {some_of(absent)}.")
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


def some_of(bad: Sequence[tuple[str, str]]) -> str:
    """Name a few of (path, reason)."""
    named = "; ".join(f"'{path}' ({reason})" for path, reason in bad[:3])
    return named + (f" and {len(bad) - 3:,} more" if len(bad) > 3 else "")


def count_of(number: int, thing: str, things: str | None = None) -> str:
    """Say how many there are, in the singular or plural."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
