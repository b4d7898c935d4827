"""The command line of energy: `forethought report` and `forethought energy`."""

import json
import math
import shutil
import sys
import time
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer

import forethought as ft
from forethought.energy import find_meters
from forethought.errors import EnergyError
from forethought.ledger import Phase
from forethought.report import Carbon, Factors, Price, Summary, check_budget, gather, summarize
from forethought.report.estimates import KIND, declared
from forethought.report.idling import LEAST_S, longer_s

energy_commands = typer.Typer(help="Which energy counters this machine has, and what it draws.", no_args_is_help=True)
MeterCommand = Annotated[
    str | None, typer.Option("--meter-cmd", metavar="COMMAND", help="Prints a wall meter's running total in kWh.")
]
_IDLE_S = 30.0


class Form(StrEnum):
    """How a report can be written."""

    text = "text"
    html = "html"
    json = "json"
    markdown = "markdown"
    csv = "csv"
    boamps = "boamps"


_SUFFIXES = {".html": Form.html, ".json": Form.json, ".md": Form.markdown, ".csv": Form.csv, ".txt": Form.text}


def report(
    path: Annotated[str, typer.Argument(help="A store, a run, a project's folder, or a file of a ledger.")],
    form: Annotated[Form | None, typer.Option("--format", help="By default what --out ends with, or text.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to a file: report.html.")] = None,
    watts: Annotated[float | None, typer.Option(help="What the machine draws, where nothing measured.")] = None,
    price: Annotated[str | None, typer.Option(help="Of a kWh: '0.30 EUR'.")] = None,
    carbon: Annotated[
        str | None, typer.Option(help="g/kWh and its source: '381 Germany 2023, Our World in Data'.")
    ] = None,
    pue: Annotated[float, typer.Option(help="Of a data centre.")] = 1.0,
    budget_kwh: Annotated[float | None, typer.Option(help="Exit status 1 if more was spent.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="A ledger or JSON report of before: the budget is for what came on top.")
    ] = None,
) -> None:
    """What work cost, what the store saved, when it paid for itself, and how that is known.

    Example: forethought report thoughts --out report.html
    """
    if baseline is not None and budget_kwh is None:
        raise typer.BadParameter("expected --baseline OLD with --budget-kwh X, got it alone")
    factors = Factors(Price.read(price) if price else None, Carbon.read(carbon, pue) if carbon else None)
    summary = summarize(gather(path), watts=watts, factors=factors)
    form = Form.json if as_json else form or (_SUFFIXES.get(out.suffix, Form.text) if out is not None else Form.text)
    # A terminal shows as much as it is wide; a file and another program get tables whole.
    width = shutil.get_terminal_size().columns if out is None and sys.stdout.isatty() else None
    text = _written(summary, form, width)
    if out is not None:
        out.write_text(text, encoding="utf-8")
        typer.echo(f"Wrote {out}", err=True)
    else:
        typer.echo(text, nl=not text.endswith("\n"))
    if budget_kwh is not None:
        verdict = check_budget(summary, budget_kwh, baseline, watts)
        typer.echo(str(verdict), err=True)
        if not verdict.is_kept:
            raise typer.Exit(1)


def _written(summary: Summary, form: Form, width: int | None) -> str:
    from forethought.report import to_boamps, to_csv, to_dict, to_html, to_markdown, to_text

    if form in (Form.json, Form.boamps):
        return json.dumps(to_dict(summary) if form is Form.json else to_boamps(summary), indent=2, allow_nan=False)
    writers = {Form.html: to_html, Form.markdown: to_markdown, Form.csv: to_csv}
    return writers[form](summary) if form in writers else to_text(summary, width)


@energy_commands.command("doctor")
def energy_doctor(
    meter_cmd: MeterCommand = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="To read what is drawn now.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON, and nothing else.")] = False,
) -> None:
    """Which energy counters there are, why not the others, and the one-line fix.

    Example: forethought energy doctor --meter-cmd "curl -s http://plug/total"
    """
    from forethought.report.watching import doctor_dict, doctor_text, instruments

    found = find_meters(wall=meter_cmd)
    told = doctor_dict(found, instruments(found, seconds))
    typer.echo(json.dumps(told, indent=2) if as_json else doctor_text(told))


@energy_commands.command("watch")
def energy_watch(
    meter_cmd: MeterCommand = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two lines.")] = 2.0,
    count: Annotated[int | None, typer.Option(min=1, help="Lines, then stop.")] = None,
) -> None:
    """What the machine draws, as a live line. Ctrl-C ends it.

    Example: forethought energy watch --interval 5
    """
    from forethought.report.watching import watch

    is_live = sys.stdout.isatty()
    try:
        for line in islice(watch(find_meters(wall=meter_cmd), interval_s=interval), count):
            typer.echo(f"\r\x1b[K{line}" if is_live else line, nl=not is_live)
    except KeyboardInterrupt:
        pass
    if is_live:
        typer.echo()


@energy_commands.command("calibrate")
def energy_calibrate(
    place: Annotated[str, typer.Argument(help="The store or the run whose ledger keeps it.")],
    wall_idle: Annotated[float | None, typer.Option(help="Watts that a wall meter shows when nothing runs.")] = None,
    wall_load: Annotated[float | None, typer.Option(help="Watts that it shows under load.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="To measure the idle machine, and to keep it busy.")] = _IDLE_S,
    meter_cmd: MeterCommand = None,
) -> None:
    """Measure the idle machine for net energy; two readings of a wall meter stand in where there is no counter.

    Example: forethought energy calibrate thoughts --wall-idle 95 --wall-load 410
    """
    ledger = ft.Ledger(place, meter=meter_cmd or "auto")
    has_counter = bool(ledger.meters.meters)
    is_asked = sys.stdin.isatty() and wall_idle is None and wall_load is None and not has_counter
    if (wall_idle is None) != (wall_load is None):
        raise typer.BadParameter("expected both --wall-idle and --wall-load, got one of them")
    if not has_counter and wall_load is None and not is_asked:
        raise EnergyError(
            "Cannot calibrate: expected an energy counter, or two readings of a wall meter, got neither. "
            f"forethought energy calibrate {place} --wall-idle 95 --wall-load 410"
        )
    if has_counter or is_asked:
        typer.echo(f"Leave the machine alone for {seconds:g} s ...", err=True)
        _say_idle(ledger.idle(seconds), has_counter)
    if is_asked:
        wall_idle = typer.prompt("Watts on the wall meter meanwhile", type=float, err=True)
        typer.echo(f"Now it works for {seconds:g} s; watch the wall meter ...", err=True)
        _work(seconds)
        wall_load = typer.prompt("Watts on the wall meter meanwhile", type=float, err=True)
    if wall_idle is not None and wall_load is not None:
        _keep(ledger, wall_idle, wall_load)


def _say_idle(phase: Phase, has_counter: bool) -> None:
    """Say what the idle machine drew, and whether that is a baseline."""
    if phase.energy_j is None:
        typer.echo(f"idle: not measured: {'; '.join(phase.amount.reasons)}" if has_counter else "", nl=has_counter)
        return
    typer.echo(f"idle: {phase.energy_j / phase.time_s:.4g} W ({phase.amount.label})")
    if phase.is_shared:
        typer.echo("Other processes were at work meanwhile: this is no baseline. Stop them, and calibrate again.")
    elif needs_s := _needs_s(phase):
        typer.echo(
            "The counter moved by too few of its steps meanwhile: this is no baseline. "
            f"Calibrate again: --seconds {math.ceil(needs_s / 60) * 60}"
        )
    elif phase.time_s < LEAST_S:
        typer.echo(f"{phase.time_s:.3g} s are too short for a baseline. Calibrate again: --seconds 30")


def _needs_s(phase: Phase) -> float:
    """Seconds that the coarsest counter needs; 0 if it had them."""
    counted = [row for row in phase.rows if row.component is not None and row.energy_j is not None]
    needs = [longer_s(phase.facts, str(row.component), row.energy_j or 0.0, row.time_s) for row in counted]
    return max(filter(None, needs), default=0.0)


def _keep(ledger: ft.Ledger, idle_w: float, load_w: float) -> None:
    declared(load_w)
    if not 0 <= idle_w <= load_w:
        raise EnergyError(
            f"Cannot calibrate by {idle_w} W idle and {load_w} W at work: expected the first to be the smaller. "
            "--wall-idle 95 --wall-load 410"
        )
    if not ledger.write({"kind": KIND, "idle_w": idle_w, "load_w": load_w}):
        raise EnergyError(f"Cannot keep the calibration in '{ledger}': expected a place that can be written.")
    typer.echo(f"Kept: {idle_w:g} W idle, {load_w:g} W at work. Reports call what they make of it calibrated.")


def _work(seconds: float) -> None:
    """Keep every core, and the accelerator if there is one, at work for a while."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    matrix = torch.randn(2048, 2048, device=device)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        matrix = torch.nn.functional.normalize(matrix @ matrix)
        matrix[0, 0].item()  # waits for it
