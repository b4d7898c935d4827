"""The command line of the work itself: `forethought extract` and `forethought fit`."""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any, TypeVar

import torch
import typer

from forethought.jobs.asked import Asked

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
