"""The command line of the work itself: `forethought extract` and `forethought fit`."""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer

from forethought.jobs.asked import Asked, AskedFit

T = TypeVar("T")
Data = Annotated[str, typer.Argument(help="A folder of one folder a class, or a .csv, .tsv or .parquet of paths.")]
Model = Annotated[
    str,
    typer.Option(
        help="resnet18, torchvision:NAME, timm:NAME, transformers:NAME, package.module:function, file.py:function"
    ),
]
Place = Annotated[str, typer.Option(help="Where features are kept: a folder, or s3://bucket/prefix.")]
Weights = Annotated[
    str, typer.Option(help="default: the trained ones, if they are on this machine; random; or a file of a state dict.")
]
Transform = Annotated[
    str | None, typer.Option(help="Preparation of pictures, if not the model's own: resnet18, or file.py:function.")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch trained weights that are not on this machine.")]
At = Annotated[str | None, typer.Option(help="Cut at this module, where more is frozen after it: layer4.")]
Paths = Annotated[str | None, typer.Option("--paths", help="The column of a table that holds the paths.")]
Seconds = Annotated[float | None, typer.Option(min=0.001, help="Of each sound; shorter ones end in silence.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read, and say how many.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples a batch of the frozen part; 64 by default.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that read files; up to 4 by default.")]
Device = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON, and nothing else.")]


def _stored_as(text: str) -> Any:
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": "int8", "exact": None}
    if text not in known:
        raise typer.BadParameter(f"expected {', '.join(known)}, got '{text}'")
    return known[text]


StoredAs = Annotated[
    Any, typer.Option(parser=_stored_as, metavar="DTYPE", help="Store features as float16, bfloat16, int8; or exact.")
]


def extract(
    data: Data,
    model: Model,
    store: Place = "thoughts",
    weights: Weights = "default",
    download: Download = False,
    transform: Transform = None,
    at: At = None,
    dtype: StoredAs = "exact",
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = None,
    paths: Paths = None,
    seconds: Seconds = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Run the frozen part of a model once on every file, and keep what it said. Run it again: nothing is computed.

    Example: forethought extract photos --model resnet18 --store thoughts
    """
    from forethought.jobs.extracting import extract_files
    from forethought.jobs.screen import stored

    asked = Asked(
        data, model, store, weights, transform, download, at, dtype, batch_size, workers, device, paths, seconds,
        skip_bad, progress=not as_json,
    )  # fmt: skip
    extracted = _done(lambda say: extract_files(asked, say), as_json)
    typer.echo(json.dumps(extracted.facts, indent=2) if as_json else stored(extracted))


def _done(work: Callable[[Callable[[str], None]], T], as_json: bool) -> T:
    """Do work that tells what it does; whatever the model prints is no part of the answer."""
    out = sys.stdout

    def say(line: str) -> None:
        if not as_json:
            print(line, file=out, flush=True)

    try:
        with redirect_stdout(sys.stderr):
            return work(say)
    except KeyboardInterrupt:
        typer.echo("Interrupted. Rows that were stored are kept: run the same command again to go on.", err=True)
        raise typer.Exit(130) from None


Task = StrEnum("Task", ["classes", "numbers"])


def fit(
    data: Data,
    model: Model,
    store: Place = "thoughts",
    heads: Annotated[
        list[str] | None,
        typer.Option("--head", help="linear, mlp:width=64, ridge, logistic; again for each further one."),
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="OPTION=A,B", help="Try these values: lr=1e-3,1e-2, or seed=0,1,2.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Column to learn; again for each further one. label: a folder's classes.")
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What the targets are, where nothing tells.")] = None,
    val: Annotated[str, typer.Option(help="To choose by: a share of the files, or a folder or table.")] = "0.2",
    test: Annotated[str, typer.Option(help="Scored once, at the end: likewise; 0 for none.")] = "0.1",
    split: Annotated[str | None, typer.Option(help="Column that says train, val or test.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the division and the heads.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training files at most.")] = 50,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a better score that end a head.")] = 10,
    head_batch: Annotated[int | None, typer.Option(min=1, help="Rows a step of the heads.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for heads, report and numbers.")] = Path("forethought-fit"),
    save: Annotated[bool, typer.Option("--save", help="Save the model with its best heads, too.")] = False,
    weights: Weights = "default",
    download: Download = False,
    transform: Transform = None,
    at: At = None,
    dtype: StoredAs = "exact",
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = None,
    paths: Paths = None,
    seconds: Seconds = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Train heads on the features of files, rank them, and save the best with a report. Extracts what is missing.

    Example: forethought fit photos --model resnet18 --head linear --head mlp --sweep lr=1e-3,1e-2
    """
    from forethought.jobs import results
    from forethought.jobs.fitting import fit_files

    asked = Asked(
        data, model, store, weights, transform, download, at, dtype, batch_size, workers, device, paths, seconds,
        skip_bad, progress=not as_json,
    )  # fmt: skip
    wanted = AskedFit(
        tuple(heads or ()), tuple(sweep or ()), tuple(target or ()), None if task is None else task.value, val, test,
        split, seed, epochs, patience, head_batch, str(out), save,
    )  # fmt: skip
    said: list[str] = []

    def work(say: Callable[[str], None]) -> tuple[Any, list[Path]]:
        def told(line: str) -> None:
            said.append(line)
            say(line)

        fitted = fit_files(asked, wanted, told)
        return fitted, results.save(fitted, wanted, said)

    fitted, saved = _done(work, as_json)
    if as_json:
        typer.echo((out / "results.json").read_text())
    else:
        typer.echo(results.text_of(fitted))
        typer.echo("saved: " + ", ".join(map(str, saved)))
    if fitted.results.interrupted:
        raise typer.Exit(130)
