"""`forethought fit`: heads trained on the features of files, ranked, saved and reported."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import forethought as ft
from forethought.errors import BundleError, DataError
from forethought.jobs.asked import Asked, AskedFit
from forethought.jobs.columns import Target, missing_in, read_target
from forethought.jobs.extracting import Extracted, extract_files
from forethought.jobs.listing import LABEL, Listing, chosen
from forethought.jobs.parts import NAMES, Parts, check_parts, dealt_parts, given_parts, hold_out
from forethought.jobs.scoring import Ranked, judge
from forethought.jobs.wanted import PLAIN, read_heads
from forethought.views import View

_STEPS = 16  # of an epoch


@dataclass(frozen=True)
class Fitted:
    """What came of it.

    Attributes:
        extracted: The features, and what they are of.
        targets: What was learned.
        parts: Which of the features train, choose, and are scored at the end.
        results: Of `ft.fit`; numbers in them are of targets brought to mean 0 and deviation 1, where `scales` says so.
        ranked: The heads of each target, best first, in its own units.
        best: The best head of each target, in its own units.
    """

    extracted: Extracted
    targets: tuple[Target, ...]
    parts: Parts
    results: ft.Results
    ranked: Mapping[str, Ranked]
    best: Mapping[str, nn.Module]


def fit_files(asked: Asked, wanted: AskedFit, say: Callable[[str], None]) -> Fitted:
    """Store the features of all files, train the heads on them, and judge these.

    Raises:
        ForethoughtError: something cannot be used as it is; the message says what, and what to do.
        KeyboardInterrupt: before any head finished an epoch.
    """
    shares, more = _sides(wanted)
    _make_folder(wanted.out)
    extracted = extract_files(
        replace(asked, more=more), say, check=lambda listing: _check_targets(listing, wanted, asked.skip_bad)
    )
    listing = chosen(extracted.listing, extracted.numbers.tolist())
    features = extracted.features
    names = _target_names(listing, wanted)
    absent = sorted({at for name in names for at in missing_in(listing, name)})
    if absent:
        keep = np.setdiff1d(np.arange(len(features)), absent)
        listing, features = chosen(listing, keep.tolist()), features.select(keep)
        say(f"{len(absent):,} files without a target left out")
    targets = tuple(read_target(listing, name, wanted.task) for name in names)
    labels = {each.name: (each.values.numpy(), each.classes) for each in targets if each.classes is not None}
    parts = _divided(listing, features, targets, wanted, shares)
    check_parts(parts, listing, labels)
    for each in targets:
        say(each.described)
    say(
        "files: "
        + ", ".join(f"{len(parts[name]):,} {name}" for name in NAMES if len(parts[name]))
        + _twins(features, parts)
    )
    heads = read_heads_of(targets, wanted)
    scales = {each.name: _scale(each, parts, heads) for each in targets}
    rows = _with_targets(features, targets, scales)
    sides = {name: rows.select(parts[name]) for name in NAMES if len(parts[name])}
    unfinished = _checkpoint(asked, wanted, listing)
    results = ft.fit(
        sides["train"], sides["val"], heads, test=sides.get("test"), seed=wanted.seed, epochs=wanted.epochs,
        patience=wanted.patience, batch_size=wanted.head_batch or _batch(len(parts["train"])), standardize=True,
        checkpoint=unfinished, progress=asked.progress, device=asked.device,
    )  # fmt: skip
    if not results.interrupted:
        unfinished.unlink(missing_ok=True)
    ranked = {each.name: judge(each, results, scales[each.name], parts) for each in targets}
    best = {
        name: _rescaled(one.best.head, *scales[name]) for name, one in ranked.items() if one.best is not None
    }  # fmt: skip
    return Fitted(replace(extracted, features=features, listing=listing), targets, parts, results, ranked, best)


def _make_folder(out: str) -> None:
    """Make the folder for what comes out, before anything is computed that it could not take."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise BundleError(f"Cannot write to '{out}': {err}. Choose a folder that can be written: --out FOLDER") from err


def _sides(wanted: AskedFit) -> tuple[dict[str, float], dict[str, str]]:
    """Tell shares of the files from folders and tables of their own."""
    shares: dict[str, float] = {}
    more: dict[str, str] = {}
    for name, given in (("val", wanted.val), ("test", wanted.test)):
        try:
            shares[name] = float(given)
        except ValueError:
            shares[name], more[name] = 0.0, given
    return shares, more


def _target_names(listing: Listing, wanted: AskedFit) -> tuple[str, ...]:
    """Say which columns are to be learned."""
    if wanted.targets:
        for name in wanted.targets:
            listing.column(name)
        return tuple(dict.fromkeys(wanted.targets))
    others = [name for name in listing.columns if name != wanted.split]
    if len(others) == 1 or LABEL in others:
        return (LABEL if LABEL in others else others[0],)
    if not others:
        listing.column(LABEL)  # says what to do
    raise DataError(
        f"Cannot choose a target in '{listing.source}': expected one column beside the paths, got {', '.join(others)}. "
        f"Pass --target {others[0]}"
    )


def _check_targets(listing: Listing, wanted: AskedFit, skip_bad: bool) -> None:
    """Refuse targets before anything is computed for them."""
    names = _target_names(listing, wanted)
    if wanted.split is not None:
        given_parts(listing.column(wanted.split), f"column '{wanted.split}'")
    absent = {at for name in names for at in missing_in(listing, name)} if skip_bad else set()
    kept = chosen(listing, [at for at in range(len(listing.paths)) if at not in absent])
    if not kept.paths:
        raise DataError(f"Cannot fit heads on '{listing.source}': expected targets, got none in any line. Fill them in")
    read_heads_of(tuple(read_target(kept, name, wanted.task) for name in names), wanted)


def read_heads_of(targets: tuple[Target, ...], wanted: AskedFit) -> dict[str, dict[str, Any]]:
    """Give the heads of all targets, by name."""
    heads: dict[str, dict[str, Any]] = {}
    for each in targets:
        is_classes = each.classes is not None
        for name, spec in read_heads(wanted.heads, wanted.sweeps, is_classes).items():
            metric = ("accuracy", "cross_entropy") if is_classes else ("mae", "rmse")
            about = {"target": each.name, "metric": metric}
            heads[name if len(targets) == 1 else f"{each.name}: {name}"] = {**spec, **about}
    return heads


def _divided(
    listing: Listing, features: ft.Features, targets: tuple[Target, ...], wanted: AskedFit, shares: Mapping[str, float]
) -> Parts:
    """Say which files train, choose, and are scored at the end."""
    labels = next((each.values.numpy() for each in targets if each.classes is not None), None)
    if wanted.split is not None:
        return hold_out(given_parts(listing.column(wanted.split), "column"), labels, shares, wanted.seed)
    if listing.splits is not None:
        return hold_out(given_parts(listing.splits, "folder"), labels, shares, wanted.seed)
    return dealt_parts(_units(features), labels, shares, wanted.seed)


def _units(features: ft.Features) -> NDArray[np.int64]:
    """Number the files so that those which are the same to the model have one number: they share a row."""
    numbers: NDArray[np.int64] = np.unique(features.drawn[0].places, axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def _twins(features: ft.Features, parts: Parts) -> str:
    """Say how many files that choose or are scored are the same, to the model, as one that trains."""
    units = _units(features)
    rest = np.concatenate([parts["val"], parts["test"]])
    count = int(np.isin(units[rest], units[parts["train"]]).sum())
    return f"; {count:,} of val and test are the same to the model as some that train" if count else ""


def _scale(target: Target, parts: Parts, heads: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """Give mean and deviation that numbers are brought from, where all heads are plain and can be scaled back."""
    own = [spec for spec in heads.values() if spec["target"] == target.name]
    if target.classes is not None or not all(spec["kind"] in PLAIN and "anchors" not in spec for spec in own):
        return 0.0, 1.0
    values = target.values[parts["train"]].double()
    std = float(values.std(correction=0))
    return float(values.mean()), std if std > 0 else 1.0


def _with_targets(
    features: ft.Features, targets: tuple[Target, ...], scales: Mapping[str, tuple[float, float]]
) -> ft.Features:
    """Give the same rows with these targets."""
    named = {each.name: _scaled(each, *scales[each.name]) for each in targets}
    return replace(features, drawn=tuple(View(view.places, named) for view in features.drawn), _rows={}, _sources={})


def _scaled(target: Target, mean: float, std: float) -> Tensor:
    return target.values if target.classes is not None else ((target.values.double() - mean) / std).float()


def _rescaled(head: nn.Module, mean: float, std: float) -> nn.Module:
    """Give a head whose answers are in the target's own units: its last layer takes the scaling."""
    if (mean, std) == (0.0, 1.0):
        return head
    made = copy.deepcopy(head)
    last = [layer for layer in made.modules() if isinstance(layer, nn.Linear)][-1]
    bias = torch.zeros(last.out_features, dtype=torch.float64) if last.bias is None else last.bias.detach().double()
    with torch.no_grad():
        last.weight.copy_(last.weight.double() * std)
    last.bias = nn.Parameter((bias * std + mean).to(last.weight))
    return made


def _batch(rows: int) -> int:
    """Choose how many rows a step takes: an epoch has at least a few steps, where there are so many rows."""
    return int(min(max(2 ** int(np.log2(max(rows / _STEPS, 1))), 16), 4096))


def _checkpoint(asked: Asked, wanted: AskedFit, listing: Listing) -> Path:
    """Name the file from which an interrupted fit goes on: one for each thing that is asked for."""
    told = repr(
        (
            replace(asked, progress=True, workers=None),
            replace(wanted, out="", save=False),
            listing.paths,
            listing.columns,
        )
    )
    return Path(wanted.out) / f"unfinished-{blake3.blake3(told.encode()).hexdigest()[:12]}.safetensors"
