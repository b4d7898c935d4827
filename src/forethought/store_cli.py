"""The command line of housekeeping: `forethought store`."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

import forethought as ft
from forethought.errors import StoreError
from forethought.housekeeping import Garbage
from forethought.jobs.asked import Asked
from forethought.jobs_cli import At, Download, Paths, Seconds, StoredAs, Transform, Weights
from forethought.shell_words import in_shell

P = ParamSpec("P")
T = TypeVar("T")
store_commands = typer.Typer(help="What a store holds, whether it is sound, and what may go.", no_args_is_help=True)
StoreArgument = Annotated[str, typer.Argument(help="The store's folder, or s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON, and nothing else.")]


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


def _stoppable(rest: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a command that is interrupted say what is so then, and end with status 130."""

    def decorate(command: Callable[P, T]) -> Callable[P, T]:
        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return command(*args, **kwargs)
            except KeyboardInterrupt:
                typer.echo(f"Interrupted. {rest}", err=True)
                raise typer.Exit(130) from None

        return run

    return decorate


@store_commands.command("ls")
@_stoppable("Nothing was changed.")
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
@_stoppable("Nothing was changed.")
def verify_store(
    store: StoreArgument,
    live: Annotated[int | None, typer.Option(min=1, help="Compute so many rows again, and compare.")] = None,
    model: Annotated[str | None, typer.Option(help="For --live: as for forethought extract.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--data", help="For --live: a folder or table of files, or file.py:function.")
    ] = None,
    weights: Weights = "default",
    download: Download = False,
    transform: Transform = None,
    at: At = None,
    paths: Paths = None,
    seconds: Seconds = None,
    views: Annotated[int | None, typer.Option(min=1, help="For --live: how many seeded draws were stored.")] = None,
    views_seed: Annotated[int, typer.Option(help="For --views: the seed of the draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a store; name each damaged file. Exit status 1 if there is one.

    With --live, rows are compared with the model's, in each way in which they are stored.

    Example: forethought store verify thoughts --live 64 --model resnet18 --data photos
    """
    from forethought.housekeeping.screen import findings_text, progress

    if len({live is None, model is None, dataset is None}) > 1:
        raise typer.BadParameter("expected --live N with --model MODEL and --data DATA, or none of them")
    if views is not None and live is None:
        raise typer.BadParameter("expected --views with --live N")
    opened = ft.Store(store, readonly=True)
    with progress("reading", opened.size_bytes) as advance:
        findings = ft.housekeeping.verify_store(opened, advance)
    compared = None
    if live is not None and model is not None and dataset is not None:
        asked = Asked(dataset, model, store, weights, transform, download, at, paths_in=paths, seconds=seconds)
        loaded, samples = _asked_for(asked)
        with redirect_stdout(sys.stderr):
            compared = ft.housekeeping.verify_live_each(
                opened, loaded, samples, live, at=at, views=views, views_seed=views_seed
            )
    if as_json:
        told = None if compared is None else {way: found.to_dict() for way, found in compared.items()}
        typer.echo(json.dumps(findings.to_dict() | {"live": told}, indent=2))
    else:
        typer.echo(in_shell(findings_text(findings)))
        for way, found in (compared or {}).items():
            typer.echo(in_shell(f"live{'' if way == 'exact' else f', as {way}'}: {found}"))
    if not findings.is_sound or not all(found.is_right for found in (compared or {}).values()):
        raise typer.Exit(1)


def _asked_for(asked: Asked) -> tuple[Any, Any]:
    """Make the model and the data set; whatever they print is no part of the answer."""
    from forethought.jobs.preparing import model_and_samples

    with redirect_stdout(sys.stderr):
        return model_and_samples(asked)


@store_commands.command("explain")
@_stoppable("Nothing was changed.")
def explain_store(
    dataset: Annotated[
        str, typer.Argument(help="A folder or table of files, as for forethought extract; file.py:function.")
    ],
    model: Annotated[str, typer.Argument(help="As for forethought extract.")],
    store: Annotated[str, typer.Option(help="The store's folder, or s3://bucket/prefix.")] = "thoughts",
    weights: Weights = "default",
    download: Download = False,
    transform: Transform = None,
    at: At = None,
    dtype: StoredAs = "exact",
    paths: Paths = None,
    seconds: Seconds = None,
    as_json: AsJson = False,
) -> None:
    """Which rows of a data set would be computed, and which part of their identity changed, since when.

    Example: forethought store explain photos resnet18 --store thoughts
    """
    opened = ft.Store(store, readonly=True)
    asked = Asked(dataset, model, store, weights, transform, download, at, dtype, paths_in=paths, seconds=seconds)
    loaded, samples = _asked_for(asked)
    with redirect_stdout(sys.stderr):
        explanation = ft.explain(loaded, samples, opened, at=at, dtype=dtype)
    typer.echo(json.dumps(asdict(explanation), indent=2) if as_json else str(explanation))


@store_commands.command("gc")
@_stoppable("Nothing was changed.")
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
        freed = _removed(store, garbage)
    if as_json:
        typer.echo(json.dumps(garbage.to_dict() | {"freed_bytes": freed}, indent=2))
    elif garbage.pieces and not dry_run:
        typer.echo(f"Freed {freed:,} bytes. What went is computed again when it is next asked for.")


@_stoppable("What was removed by then is gone; run it again for the rest.")
def _removed(store: str, garbage: Garbage) -> int:
    return ft.housekeeping.remove_garbage(ft.Store(store), garbage)


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
