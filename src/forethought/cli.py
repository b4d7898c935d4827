"""The command line: one thin function a command."""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import forethought as ft
from forethought.doctor import diagnose
from forethought.energy_cli import energy_commands, report
from forethought.jobs_cli import extract, fit
from forethought.shell_words import in_shell
from forethought.store_cli import store_commands

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
app.add_typer(store_commands, name="store")


def main() -> None:
    """Run a command; say an error of ours in one line. FORETHOUGHT_DEBUG=1 shows where it came from."""
    try:
        app()
    except (ft.ForethoughtError, OSError) as err:
        if os.environ.get("FORETHOUGHT_DEBUG"):
            raise
        typer.echo(f"Error: {in_shell(str(err))}", err=True)
        sys.exit(1)
