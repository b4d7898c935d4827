"""The demo: CREPE, a pitch classifier, becomes a regressor by training only what comes after its frozen layers."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import forethought as ft
from forethought.demo import plots
from forethought.demo.contest import PROMISES, Entry, Scores, answers, entries, score
from forethought.demo.costs import Savings, build_cost, frozen_share, measure_epochs
from forethought.demo.crepe import CENTS, argmax_cents, load_crepe, weighted_cents
from forethought.demo.notes import SIZES, Splits, glissando, make_splits
from forethought.demo.screen import Screen
from forethought.errors import StorePathError

EPOCHS = {"tiny": 6, "default": 40, "full": 12}
BATCH = {"tiny": 64, "default": 512, "full": 4096}
PAIRS = {"tiny": 2, "default": 3, "full": 3}
SIDES = ("train", "validation", "test", "unseen")


def run(
    size: str = "default", out: Path = Path("forethought-demo"), fresh: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Run the demo.

    Args:
        size: "tiny", "default" or "full".
        out: Folder for the store, the model, the picture and the report.
        fresh: Begin with an empty store.
        quiet: Write nothing to the screen.

    Returns:
        The report, as it is written to report.json.
    """
    screen = Screen(quiet)
    torch.manual_seed(0)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorePathError(
            f"Cannot write to '{out}': expected a folder, got {err}. Choose another: --out FOLDER"
        ) from err
    if fresh:
        shutil.rmtree(out / "store", ignore_errors=True)
        (out / "costs.json").unlink(missing_ok=True)
    screen.step(1, "A trained classifier and notes of known pitch")
    model = load_crepe("tiny")
    splits = _notes(size, screen)
    screen.step(2, "Where the frozen part ends")
    split = ft.split(model, splits.train.audio[:4])
    share, flops = frozen_share(model, split.trunk, splits.train.audio[:16])
    screen.frontier(split, share, flops)
    screen.step(3, "Think once")
    features, reports = _extract(split, splits, out, screen)
    screen.step(4, "Train many")
    contest = entries(features["train"])
    results = _train(contest, features, size, screen)
    screen.step(5, "The winner, scored once on notes it has not seen")
    scores = _score(results.best, features, size, screen)
    screen.step(6, "What it saved")
    savings = _measure(results.best, contest, features, reports, splits, model, split, size, out)
    screen.savings(savings)
    screen.step(7, "One model again")
    best_monotone = next((r for r in results if contest[r.name].promise == "monotone"), results.best)
    files = _write(out, split, results.best, best_monotone, features, scores, screen)
    report = _report(size, split, share, flops, reports, results, contest, scores, savings, files)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    screen.say("")
    for name, path in files.items():
        screen.say(f"{name:<8} {escape(path)}")
    return report


def _bar(title: str, screen: Screen) -> Progress:
    from rich.console import Console

    watched = Console(stderr=True)
    bar = Progress(
        TextColumn("   {task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=watched,
        transient=True,
        disable=screen.console.quiet or not watched.is_terminal,
    )
    bar.add_task(title, total=None)
    return bar


def _notes(size: str, screen: Screen) -> Splits:
    with _bar("playing notes", screen) as bar:
        splits = make_splits(
            size, progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total)
        )
    screen.say("CREPE tiny: 360 classes, 20 cents apart; its convolutions are frozen, its last layer trains.")
    for side in SIDES:
        frames = getattr(splits, side)
        screen.say(
            f"{side:<11} {len(frames):>8,} frames of 64 ms from {len(frames.note.unique()):>5,} notes of "
            f"{len(frames.instrument.unique())} instruments"
        )
    screen.say("No recording is on two sides; the unseen instruments are on no other side.")
    if size == "full":
        rows = sum(SIZES[size])
        screen.say(f"[dim]{rows:,} frames: the frozen part alone takes minutes; interrupt at will, it resumes.[/dim]")
    return splits


def _extract(
    split: ft.Split, splits: Splits, out: Path, screen: Screen
) -> tuple[dict[str, ft.Features], list[ft.ExtractionReport]]:
    features, reports = {}, []
    for side in SIDES:
        frames = getattr(splits, side)
        data = (frames.audio, frames.cents)
        features[side] = ft.extract(split, data, out / "store", batch_size=256, progress=not screen.console.quiet)
        reports.append(features[side].report)
        screen.extraction(side, features[side].report)
    screen.say("and the same again:")
    data = (splits.train.audio, splits.train.cents)
    again = ft.extract(split, data, out / "store", batch_size=256).report
    screen.extraction("train", again)
    reports.append(again)
    return features, reports


def _train(contest: dict[str, Entry], features: dict[str, ft.Features], size: str, screen: Screen) -> ft.Results:
    results = ft.fit(
        features["train"],
        features["validation"],
        {name: entry.head for name, entry in contest.items()},
        lr={name: entry.lr for name, entry in contest.items()},
        epochs=EPOCHS[size],
        batch_size=BATCH[size],
        schedule="cosine",
        progress=not screen.console.quiet,
    )
    rows = f"{EPOCHS[size]} epochs of {len(features['train']):,} rows"
    screen.say(
        f"{len(contest)} heads, {rows}, in {results.time_s:.1f} s, one pass for all; ranked on validation notes:"
    )
    screen.ranking(results, {name: entry.promise for name, entry in contest.items()})
    for promise, meaning in PROMISES.items():
        screen.say(f"[dim]{promise}: {meaning}[/dim]")
    return results


def _score(
    winner: ft.HeadResult, features: dict[str, ft.Features], size: str, screen: Screen
) -> dict[str, dict[str, Scores]]:
    """Score the winner and CREPE's own two readings, from stored features."""
    scores: dict[str, dict[str, Scores]] = {}
    for side, where in (("test", "other notes, same instruments"), ("unseen", "instruments never heard")):
        own = answers(features[side].head, features[side])
        truth = features[side].targets
        scores[side] = {
            "argmax": score(argmax_cents(own), truth),
            "weighted average": score(weighted_cents(own), truth),
            "winner": score(answers(winner.head, features[side]), truth),
        }
        names = {"argmax": "CREPE, argmax", "weighted average": "CREPE, weighted average", "winner": winner.name}
        screen.scores(where, [(names[who], scored) for who, scored in scores[side].items()])
    verdicts = _verdicts(scores)
    screen.say(f"[red]{verdicts[1]}[/red]" if verdicts[1] else f"[green]{verdicts[0]}[/green]")
    if verdicts[1] and size == "tiny":
        screen.say("[dim]A few hundred frames are too few to judge by: make demo[/dim]")
    screen.say("[dim]Octave slips, 1,200 cents each, dominate the means; the median shows the rest.[/dim]")
    return scores


def _verdicts(scores: dict[str, dict[str, Scores]]) -> tuple[str, str]:
    """Say whether the winner beats both baselines on mean error and on the share within 10 cents, everywhere."""
    failures = []
    for side, by_who in scores.items():
        for baseline in ("argmax", "weighted average"):
            if by_who["winner"].mean_cents >= by_who[baseline].mean_cents:
                failures.append(f"mean error on {side} against {baseline}")
            if by_who["winner"].within["10"] <= by_who[baseline].within["10"]:
                failures.append(f"share within 10 cents on {side} against {baseline}")
    return (
        "It beats both of CREPE's own readings, on mean error and within 10 cents, on both sides.",
        f"It does not beat: {'; '.join(failures)}." if failures else "",
    )


def _measure(
    winner: ft.HeadResult,
    contest: dict[str, Entry],
    features: dict[str, ft.Features],
    reports: list[ft.ExtractionReport],
    splits: Splits,
    model: nn.Module,
    split: ft.Split,
    size: str,
    out: Path,
) -> Savings:
    lr = contest[winner.name].lr
    savings = measure_epochs(
        winner.name, winner.head, lr, features["train"], splits.train, model, batch=BATCH[size], pairs=PAIRS[size]
    )
    built = build_cost(out, split.trunk.fingerprint, reports[:4])
    train_share = len(features["train"]) / sum(report.rows for report in reports[:4])
    build_s = None if built is None else built * train_share
    saved_s = savings.uncached_epoch_s - savings.cached_epoch_s
    return dataclasses.replace(
        savings,
        build_s=build_s,
        break_even_epochs=build_s / saved_s if build_s is not None and saved_s > 0 else None,
        energy_j=reports[0].energy_j if reports[0].rows_computed == reports[0].rows else None,
        energy_source=reports[0].energy_source,
    )


def _write(
    out: Path,
    split: ft.Split,
    winner: ft.HeadResult,
    monotone: ft.HeadResult,
    features: dict[str, ft.Features],
    scores: dict[str, dict[str, Scores]],
    screen: Screen,
) -> dict[str, str]:
    """Assemble, save, load again in a fresh model, and check; draw the picture."""
    full = ft.assemble(split, {"pitch": winner.head, "monotone": monotone.head})
    path = full.save(out / "model.safetensors")
    loaded = ft.load(path, load_crepe("tiny"))
    sweep = glissando()
    with torch.no_grad():
        live, again = full(sweep.audio), loaded(sweep.audio)
        own = split.model(sweep.audio)
    same = all(torch.equal(live[name], again[name]) for name in live)
    screen.say(
        f"{path.name}: trunk and two heads, {path.stat().st_size / 1e6:.1f} MB; loaded into a fresh CREPE it gives "
        + ("the same answers, bit for bit." if same else "[red]other answers.[/red]")
    )
    picture = out / "pitch.png"
    swept = {
        "CREPE, argmax": argmax_cents(own),
        f"winner: {winner.name}": live["pitch"],
        f"monotone: {monotone.name}": live["monotone"],
    }
    plots.draw(
        picture,
        _array(features["test"].targets),
        _array(answers(winner.head, features["test"])),
        winner.name,
        _array(sweep.cents),
        {name: _array(values) for name, values in swept.items()},
    )
    files = {"model": path, "picture": picture, "store": out / "store", "report": out / "report.json"}
    return {name: str(file) for name, file in files.items()}


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().numpy()


def _report(
    size: str,
    split: ft.Split,
    share: float,
    flops: int,
    reports: list[ft.ExtractionReport],
    results: ft.Results,
    contest: dict[str, Entry],
    scores: dict[str, dict[str, Scores]],
    savings: Savings,
    files: dict[str, str],
) -> dict[str, Any]:
    return {
        "forethought": ft.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "size": size,
        "classes": len(CENTS),
        "frontier": [
            {"name": t.name, "shape": list(t.shape), "dtype": str(t.dtype), "size_bytes": t.size_bytes}
            for t in split.frontier
        ],
        "fingerprint": split.trunk.fingerprint,
        "frozen_share_of_flops": share,
        "flops_per_frame": flops,
        "extraction": {
            name: dataclasses.asdict(report) for name, report in zip((*SIDES, "train again"), reports, strict=True)
        },
        "heads": [
            {
                "name": result.name,
                "validation_mean_cents": result.score,
                "best_epoch": result.best_epoch,
                "parameters": result.parameters,
                "time_s": result.time_s,
                "promise": contest[result.name].promise,
            }
            for result in results
        ],
        "training_time_s": results.time_s,
        "scores": {
            side: {who: dataclasses.asdict(scored) for who, scored in by.items()} for side, by in scores.items()
        },
        "beats_baselines": not _verdicts(scores)[1],
        "savings": dataclasses.asdict(savings),
        "files": files,
    }
