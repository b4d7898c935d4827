"""The command line: one thin function a command."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import forethought as ft
from forethought.doctor import diagnose

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


def main() -> None:
    """Run a command; say an error of ours in one line. FORETHOUGHT_DEBUG=1 shows where it came from."""
    try:
        app()
    except (ft.ForethoughtError, OSError) as err:
        if os.environ.get("FORETHOUGHT_DEBUG"):
            raise
        typer.echo(f"Error: {err}", err=True)
        sys.exit(1)
