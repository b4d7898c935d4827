"""What `forethought fit` leaves: a table on the screen, and a folder with heads, a report and all numbers."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forethought as ft
from forethought.fitting.results import finite
from forethought.jobs.asked import AskedFit
from forethought.jobs.fitting import Fitted
from forethought.jobs.saving import save_head, write
from forethought.jobs.scoring import Ranked

_SHOWN = 20  # heads of a table


def facts_of(fitted: Fitted, wanted: AskedFit, saved: Sequence[Path]) -> dict[str, Any]:
    """Say everything as plain values, as JSON holds them."""
    return {
        "extract": fitted.extracted.facts,
        "files": {name: len(rows) for name, rows in fitted.parts.items()},
        "seed": wanted.seed,
        "targets": [
            {
                "name": each.name,
                "task": "numbers" if each.classes is None else "classes",
                "why": each.why,
                "classes": None if each.classes is None else list(each.classes),
                **_told(fitted.ranked[each.name]),
            }
            for each in fitted.targets
        ],
        "notes": list(fitted.results.notes),
        "interrupted": fitted.results.interrupted,
        "fit_time_s": fitted.results.time_s,
        "saved": [str(path) for path in saved],
    }


def _told(ranked: Ranked) -> dict[str, Any]:
    return {
        "metric": ranked.metric,
        "best": None if ranked.best is None else ranked.best.name,
        "val": ranked.heads[0]["score"] if ranked.best is not None else None,
        "test": ranked.test,
        "one_answer": {"answer": ranked.answer, "val": ranked.baseline, "test": ranked.test_baseline},
        "heads": ranked.heads,
    }


def text_of(fitted: Fitted) -> str:
    """Show the heads of each target in the order of rank, and what the best one is worth."""
    lines: list[str] = []
    for each in fitted.targets:
        ranked = fitted.ranked[each.name]
        lines += ["", *_table(ranked), ""]
        lines += [_verdict(each.name, ranked)]
    lines += list(fitted.results.notes)
    if fitted.results.interrupted:
        lines.append("Interrupted: these are the best finished epochs. Run the same command again to go on.")
    return "\n".join(lines)


def _table(ranked: Ranked) -> list[str]:
    scores = [name for name in ranked.heads[0] if name.startswith("val_")]
    has_seeds = any(head["std_over_seeds"] is not None for head in ranked.heads)
    header = ["", "head", *(f"val {name[4:]}" for name in scores), "best epoch", "parameters"]
    header += ["over seeds"] if has_seeds else []
    rows = [header]
    for at, head in enumerate(ranked.heads[:_SHOWN], 1):
        row = [str(at), head["name"] + " (failed)" * bool(head["failed"])]
        row += [_number(head.get(name)) for name in scores]
        row += ["-" if head["best_epoch"] is None else str(head["best_epoch"]), f"{head['parameters']:,}"]
        spread = (
            "-"
            if head["std_over_seeds"] is None
            else f"{_number(head['mean_over_seeds'])} ± {head['std_over_seeds']:.2g}"
        )
        rows.append(row + ([spread] if has_seeds else []))
    rows.append(["", f"one answer for all: {ranked.answer}", _number(ranked.baseline), *[""] * (len(header) - 3)])
    widths = [max(len(row[at]) for row in rows) for at in range(len(header))]
    shown = [
        "  ".join([row[0].rjust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:], widths[2:])]).rstrip()
        for row in rows
    ]
    failed = [f"{head['name']}: {head['failed']}" for head in ranked.heads if head["failed"]]
    more = [f"and {len(ranked.heads) - _SHOWN} more"] if len(ranked.heads) > _SHOWN else []
    return [*shown, *more, *failed]


def _verdict(name: str, ranked: Ranked) -> str:
    if ranked.best is None:
        return f"No head for '{name}' finished an epoch with a finite score."
    val = f"{ranked.metric} {_number(ranked.heads[0]['score'])} on val, which chose it"
    test = "; no test files" if ranked.test is None else (
        f"; {_number(ranked.test)} on test, which chose nothing (one answer for all: {_number(ranked.test_baseline)})"
    )  # fmt: skip
    worth = "" if ranked.is_worth_it else ". No better than one answer for all: nothing was learned"
    return f"best for '{name}': {ranked.best.name}: {val}{test}{worth}"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def save(fitted: Fitted, wanted: AskedFit, said: Sequence[str]) -> list[Path]:
    """Write the best heads, the assembled model if asked, the report and all numbers.

    Args:
        fitted: What came out.
        wanted: What was asked for.
        said: What was told while it was made.

    Raises:
        BundleError: something cannot be written.
    """
    folder, saved = Path(wanted.out), list[Path]()
    facts = fitted.extracted.facts
    for each in fitted.targets:
        if each.name in fitted.best:
            about = {
                "target": each.name,
                "classes": None if each.classes is None else list(each.classes),
                "trunk": fitted.extracted.features.table.fingerprint,
                **{name: facts[name] for name in ("model", "weights", "prepared", "frozen", "at", "features")},
            }
            stem = "head" if len(fitted.targets) == 1 else f"head-{re.sub(r'[^A-Za-z0-9_-]+', '_', each.name)}"
            path = folder / f"{stem}.safetensors"
            if path in saved:
                path = folder / f"{stem}-{len(saved)}.safetensors"
            saved.append(save_head(fitted.best[each.name], path, about))
    if wanted.save and fitted.best:
        named = {f"target {number}": head for number, head in enumerate(fitted.best.values())}
        heads: Any = next(iter(named.values())) if len(named) == 1 else named
        full = ft.assemble(fitted.extracted.features.split, heads)
        saved.append(full.save(folder / "model.safetensors"))
    for name in ("report.md", "results.json"):
        saved.append(folder / name)
    text = "\n".join([*said, text_of(fitted)])
    write(folder / "report.md", f"# forethought fit\n\n```text\n{text}\n```\n\n{_use(saved)}".encode())
    write(folder / "results.json", json.dumps(finite(facts_of(fitted, wanted, saved)), indent=2).encode())
    return saved


def _use(saved: Sequence[Path]) -> str:
    heads = [path for path in saved if path.name.startswith("head")]
    if not heads:
        return ""
    return (
        "The head takes the features of a batch, which `forethought extract` stores:\n\n```python\n"
        "from forethought.jobs.saving import load_head\n\n"
        f"head, about = load_head({str(heads[0])!r})\n"
        "print(about)  # the target, its classes in order, the model and its preparation\n```\n"
    )
