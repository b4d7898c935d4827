"""The command line: one thin function a command."""

import json
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import forethought as ft
from forethought.doctor import diagnose
from forethought.energy_cli import energy_commands, report
from forethought.errors import StoreError
from forethought.jobs_cli import extract, fit

app = typer.Typer(
    name="forethought",
    help="Think once, train many: run the frozen part of a model once, train any number of heads from what it said.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Think once, train many."""
    if version:
        typer.echo(f"forethought {ft.__version__}")
        raise typer.Exit


@app.command()
def demo(
    tiny: Annotated[bool, typer.Option("--tiny", help="A few hundred frames: well under a minute.")] = False,
    full: Annotated[bool, typer.Option("--full", help="250,000 + 50,000 frames: many minutes, 2 GB.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin with an empty store.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the store, model, picture and report.")] = Path(
        "forethought-demo"
    ),
) -> None:
    """A real pitch classifier becomes a regressor, end to end.

    Example: forethought demo --tiny
    """
    from forethought.demo.pitch import run

    if tiny and full:
        raise typer.BadParameter("expected --tiny or --full, got both")
    try:
        report = run("tiny" if tiny else "full" if full else "default", out, fresh=fresh, quiet=as_json)
    except KeyboardInterrupt:
        typer.echo("Interrupted. Rows that were stored are kept: run the same command again to go on.", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(report, indent=2))


@app.command()
def doctor(
    store: Annotated[Path | None, typer.Option(help="A store to look at.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Versions, devices, threads, energy counters and the store, to paste into a bug report.

    Example: forethought doctor --store thoughts
    """
    diagnosis = diagnose(store)
    typer.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else diagnosis.to_text())


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise typer.BadParameter(f"expected sizes such as 3x224x224, without the batch, got '{text}'")
    return tuple(map(int, sizes))


def _dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text, None)
    if not isinstance(dtype, torch.dtype):
        raise typer.BadParameter(f"expected a dtype such as float32 or int64, got '{text}'")
    return dtype


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise typer.BadParameter(f"expected a size such as 20GB, 500MB or 1.5GiB, got '{text}'")
    return int(float(match[1]) * _UNITS[match[2]])


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([mhdw])", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"expected an age such as 30d, 12h or 8w, got '{text}'")
    return float(match[1]) * _SECONDS[match[2]]


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(help="torchvision:NAME, timm:NAME, package.module:function, file.py:function")
    ],
    shapes: Annotated[
        list[Any] | None, typer.Option("--input", parser=_shape, help="Shape of one sample, 3x224x224; once an input.")
    ] = None,
    dtype: Annotated[Any, typer.Option(parser=_dtype, help="Of what --input describes.")] = "float32",
    until: Annotated[str | None, typer.Option(help="See it as if all up to this module were frozen.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="Show modules down to this depth.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, and nothing else.")] = False,
) -> None:
    """A model's parts, what is frozen, what each costs, and where it can be cut.

    Example: forethought inspect torchvision:resnet50
    """
    from rich.console import Console

    from forethought.inspection import inspect_model
    from forethought.inspection.screen import show
    from forethought.loading import load_named

    status = Console(stderr=True).status("Building, running and timing the model ...")
    with redirect_stdout(sys.stderr), status:  # whatever the model prints is no part of the answer
        inspection = inspect_model(load_named(model, shapes or (), dtype), until)
    if as_json:
        typer.echo(json.dumps(inspection.to_dict(), indent=2))
    else:
        show(inspection, depth)


app.command()(extract)
app.command()(fit)
app.command()(report)
app.add_typer(energy_commands, name="energy")
store_commands = typer.Typer(help="What a store holds, whether it is sound, and what may go.", no_args_is_help=True)
app.add_typer(store_commands, name="store")
StoreArgument = Annotated[str, typer.Argument(help="The store's folder, or s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON, and nothing else.")]


@store_commands.command("ls")
def list_store(store: StoreArgument, as_json: AsJson = False) -> None:
    """What a store holds, from which model and data, what that cost, and when it was last used.

    Example: forethought store ls thoughts
    """
    from forethought.housekeeping.screen import holdings_text

    holdings = ft.inventory(ft.Store(store, readonly=True))
    if as_json:
        typer.echo(json.dumps([holding.to_dict() for holding in holdings], indent=2))
    else:
        typer.echo(holdings_text(holdings))


@store_commands.command("verify")
def verify_store(
    store: StoreArgument,
    live: Annotated[int | None, typer.Option(min=1, help="Compute so many rows again, and compare.")] = None,
    model: Annotated[str | None, typer.Option(help="For --live: as in forethought inspect.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--data", help="For --live: package.module:function, file.py:function, image folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a store; name each damaged file. Exit status 1 if there is one.

    Example: forethought store verify thoughts --live 64 --model train.py:model --data train.py:dataset
    """
    from forethought.housekeeping.screen import findings_text, progress
    from forethought.loading import load_dataset, load_model

    if len({live is None, model is None, dataset is None}) > 1:
        raise typer.BadParameter("expected --live N with --model MODEL and --data DATA, or none of them")
    opened = ft.Store(store, readonly=True)
    with progress("reading", opened.size_bytes) as advance:
        findings = ft.housekeeping.verify_store(opened, advance)
    compared = None
    if live is not None and model is not None and dataset is not None:
        with redirect_stdout(sys.stderr):  # whatever they print is no part of the answer
            loaded, source = load_model(model), load_dataset(dataset, model)
            compared = ft.housekeeping.verify_live(opened, loaded, source, live)
    if as_json:
        report = findings.to_dict() | {"live": None if compared is None else compared.to_dict()}
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(findings_text(findings))
        if compared is not None:
            typer.echo(f"live: {compared}")
    if not findings.is_sound or (compared is not None and not compared.is_right):
        raise typer.Exit(1)


@store_commands.command("explain")
def explain_store(
    dataset: Annotated[str, typer.Argument(help="package.module:function, file.py:function, or a folder of images.")],
    model: Annotated[str, typer.Argument(help="As in forethought inspect.")],
    store: Annotated[str, typer.Option(help="The store's folder, or s3://bucket/prefix.")] = "thoughts",
    at: Annotated[str | None, typer.Option(help="A module's path, where the cut is an earlier one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which rows of a data set would be computed, and which part of their identity changed, since when.

    Example: forethought store explain train.py:dataset train.py:model --store thoughts
    """
    from forethought.loading import load_dataset, load_model

    opened = ft.Store(store, readonly=True)
    with redirect_stdout(sys.stderr):  # whatever they print is no part of the answer
        explanation = ft.explain(load_model(model), load_dataset(dataset, model), opened, at=at)
    typer.echo(json.dumps(asdict(explanation), indent=2) if as_json else str(explanation))


@store_commands.command("gc")
def clean_store(
    store: StoreArgument,
    max_size: Annotated[
        Any, typer.Option(parser=_size, metavar="SIZE", help="Least recently used tables go until it fits: 20GB.")
    ] = None,
    older_than: Annotated[
        Any, typer.Option(parser=_age, metavar="AGE", help="Tables not used for so long go: 30d, 12h, 8w.")
    ] = None,
    unreachable: Annotated[
        bool, typer.Option("--unreachable", help="What no reader can use goes; so it does with no other option.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free space: by size, by age, or what nobody can use. Says first what would go, and asks.

    Example: forethought store gc thoughts --max-size 20GB --dry-run
    """
    from forethought.housekeeping.screen import garbage_text, progress

    opened = ft.Store(store, readonly=True)
    unreachable = unreachable or (max_size is None and older_than is None)
    with progress("looking", opened.size_bytes if unreachable else 0) as advance:
        garbage = ft.housekeeping.find_garbage(
            opened, max_size_bytes=max_size, unused_s=older_than, unreachable=unreachable, progress=advance
        )
    if not as_json:
        typer.echo(garbage_text(garbage))
    freed = 0
    if garbage.pieces and not dry_run:
        if not yes:
            _ask(f"Remove {garbage.size_bytes:,} bytes from '{store}'?")
        freed = ft.housekeeping.remove_garbage(ft.Store(store), garbage)
    if as_json:
        typer.echo(json.dumps(garbage.to_dict() | {"freed_bytes": freed}, indent=2))
    elif garbage.pieces and not dry_run:
        typer.echo(f"Freed {freed:,} bytes. What went is computed again when it is next asked for.")


def _ask(question: str) -> None:
    """Go on after a yes only."""
    if not sys.stdin.isatty():
        raise StoreError(
            "Cannot ask whether to remove anything: expected --yes or a terminal, got neither. Nothing was removed. "
            "See what would go with --dry-run, then add --yes."
        )
    if not typer.confirm(question, err=True):
        typer.echo("Nothing was removed.", err=True)
        raise typer.Exit(1)


def main() -> None:
    """Run a command; say an error of ours in one line. FORETHOUGHT_DEBUG=1 shows where it came from."""
    try:
        app()
    except (ft.ForethoughtError, OSError) as err:
        if os.environ.get("FORETHOUGHT_DEBUG"):
            raise
        typer.echo(f"Error: {err}", err=True)
        sys.exit(1)
