"""What the store costs and saves, measured: real uncached steps against real cached ones, in turn, in one run."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import forethought as ft
from forethought.demo.notes import Frames
from forethought.timing import alternate


@dataclass(frozen=True)
class Savings:
    """Seconds an epoch, with and without the store, for one head trained in the same way.

    Attributes:
        head: The head's name.
        uncached_epoch_s: Median over the pairs, from `sampled_rows` rows a measurement, scaled to the epoch.
        cached_epoch_s: Median over the pairs, of whole epochs.
        ratio: How many times longer the uncached epoch took: median, least and most over the pairs.
        build_s: What it took to compute and store the training and validation rows; None if not measured.
        break_even_epochs: Epochs after which the store had paid for itself; None if not known, or never.
        energy_j: Joules of the extraction; None where they were not measured.
        energy_source: What measured them, or why nothing did.
    """

    head: str
    rows: int
    sampled_rows: int
    uncached_epoch_s: float
    cached_epoch_s: float
    ratio: tuple[float, float, float]
    build_s: float | None
    break_even_epochs: float | None
    energy_j: float | None
    energy_source: str


def measure_epochs(
    name: str,
    head: nn.Module,
    lr: float,
    features: ft.Features,
    frames: Frames,
    model: nn.Module,
    *,
    batch: int,
    pairs: int,
) -> Savings:
    """Time uncached steps and cached epochs of the same head, in turn.

    An uncached step is what a careful person would write: the frozen layers under `no_grad`, then the head's forward,
    backward and optimizer step. A cached step reads the stored features instead.
    """
    sampled = min(len(frames), max(2048, 2 * batch))

    def step_of(module: nn.Module) -> Callable[[Tensor, Tensor], None]:
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr)

        def step(values: Tensor, cents: Tensor) -> None:
            optimizer.zero_grad()
            module.loss(values, cents).backward()  # type: ignore[operator]
            optimizer.step()

        return step

    live, stored = step_of(copy.deepcopy(head).train()), step_of(copy.deepcopy(head).train())

    def uncached() -> None:
        for at in torch.randperm(len(frames))[:sampled].split(batch):
            with torch.no_grad():
                values = embedded(model, frames.audio[at])
            live(values, frames.cents[at])

    def cached() -> None:
        for values, cents in features.batches(batch, shuffle=True):
            stored(values, cents)

    comparison = alternate(uncached, cached, repeats=pairs)
    scale = len(frames) / sampled
    ratios = sorted(ratio * scale for ratio in comparison.ratios)
    return Savings(
        head=name,
        rows=len(frames),
        sampled_rows=sampled,
        uncached_epoch_s=comparison.a_median_s * scale,
        cached_epoch_s=comparison.b_median_s,
        ratio=(comparison.ratio * scale, ratios[0], ratios[-1]),
        build_s=None,
        break_even_epochs=None,
        energy_j=None,
        energy_source="",
    )


def embedded(model: nn.Module, audio: Tensor) -> Tensor:
    """CREPE's frozen layers, written out by hand as its users do: (B, 1024) to (B, D)."""
    x = model.embed(audio)  # type: ignore[operator]
    x = model.layer(x, model.conv6, model.conv6_BN)  # type: ignore[operator]
    return x.permute(0, 2, 1, 3).reshape(-1, model.in_features)  # type: ignore[no-any-return]


def frozen_share(model: nn.Module, trunk: nn.Module, audio: Tensor) -> tuple[float, int]:
    """Count floating point operations a frame: the share that is frozen, and all of them."""
    counts = []
    for part in (trunk, model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part(audio)
        counts.append(counter.get_total_flops())
    return counts[0] / counts[1], counts[1] // len(audio)


def build_cost(folder: Path, fingerprint: str, reports: list[ft.ExtractionReport]) -> float | None:
    """Seconds that it took to compute these rows, over all runs that did; None if some run was not measured.

    A run that only reuses rows costs almost nothing, but the store was not free: earlier runs are kept in a note.
    """
    note = folder / "costs.json"
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    spent = known.get(fingerprint)
    computed_all = all(report.rows_computed == report.rows for report in reports)
    if computed_all or not isinstance(spent, dict) or spent.keys() != {"rows", "time_s"}:
        spent = {"rows": 0, "time_s": 0.0}
    spent["rows"] += sum(report.rows_computed for report in reports)
    spent["time_s"] += sum(report.time_s for report in reports if report.rows_computed)
    note.write_text(json.dumps(known | {fingerprint: spent}))
    complete = spent["rows"] >= sum(report.rows for report in reports)
    return float(spent["time_s"]) if complete else None
