"""What the demo shows to a person. It computes nothing."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import forethought as ft
from forethought.demo.contest import Scores
from forethought.demo.costs import Savings


class Screen:
    """Writes the demo's steps; silent when a script reads instead.

    Args:
        quiet: Write nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)

    def step(self, number: int, title: str) -> None:
        """Begin a step."""
        self.console.print(f"\n[bold]{number}. {title}[/bold]")

    def say(self, text: str) -> None:
        """Write a line."""
        self.console.print(f"   {text}")

    def frontier(self, split: ft.Split, share: float, flops: int) -> None:
        """Show what crosses the frontier and what is frozen."""
        table = _table("crosses the frontier", "shape of a row", "type", "bytes a row")
        for tensor in split.frontier:
            table.add_row(
                "",
                tensor.name,
                str(tuple(tensor.shape)),
                str(tensor.dtype).removeprefix("torch."),
                f"{tensor.size_bytes:,}",
            )
        self.console.print(table)
        trains = sum(parameter.numel() for parameter in split.head.parameters())
        everything = sum(parameter.numel() for parameter in split.model.parameters())
        self.say(f"{share:.1%} of {flops / 1e6:,.0f} million operations a frame are frozen.")
        self.say(f"{trains:,} of {everything:,} parameters train.")

    def extraction(self, name: str, report: ft.ExtractionReport) -> None:
        """Show what one extraction did."""
        rate = f", {report.rows_computed / report.time_s:,.0f} rows/s" if report.rows_computed else ""
        self.say(
            f"{name:<11} {report.rows:>8,} rows: {report.rows_computed:,} computed, {report.rows_reused:,} reused, "
            f"{report.size_bytes / 1e6:,.1f} MB in {report.time_s:.2f} s{rate}"
        )

    def scores(self, title: str, rows: Sequence[tuple[str, Scores]]) -> None:
        """Show who scored what, in cents."""
        table = _table(title, "mean", "median", "within 50", "25", "10 cents")
        for who, scores in rows:
            shares = [f"{scores.within[limit]:.1%}" for limit in ("50", "25", "10")]
            table.add_row("", who, f"{scores.mean_cents:.1f}", f"{scores.median_cents:.1f}", *shares)
        self.console.print(table)

    def ranking(self, results: ft.Results, promises: Mapping[str, str]) -> None:
        """Show every head, best first."""
        table = _table("head", "error, cents", "best epoch", "parameters", "promise")
        for place, result in enumerate(results, 1):
            error = f"{result.score:.1f}" if result.score is not None else "failed"
            best = str(result.best_epoch)
            size = f"{result.parameters:,}"
            table.add_row(f"{place:>3}", result.name, error, best, size, promises[result.name])
        self.console.print(table)

    def savings(self, savings: Savings) -> None:
        """Show what the store saved."""
        ratio, least, most = savings.ratio
        self.say(f"head: {savings.head}, the same on both sides, {savings.rows:,} rows an epoch")
        self.say(
            f"an epoch without the store  {savings.uncached_epoch_s:8.2f} s  "
            f"(real steps, timed on {savings.sampled_rows:,} rows)"
        )
        self.say(f"an epoch with the store     {savings.cached_epoch_s:8.3f} s  (whole epochs)")
        self.say(f"[bold]{ratio:,.0f} times faster[/bold] ({least:,.0f} to {most:,.0f} over the pairs)")
        if savings.build_s is None:
            self.say("paid for itself: not known, the rows were computed by a run that was not measured (--fresh)")
        elif savings.break_even_epochs is None:
            self.say("paid for itself: never here, reading takes longer than computing")
        else:
            self.say(
                f"building it took {savings.build_s:.1f} s: it had paid for itself after "
                f"[bold]{savings.break_even_epochs:.1f} epochs[/bold] of one head"
            )
        joules = "not measured on this machine" if savings.energy_j is None else f"{savings.energy_j:,.0f} J to build"
        self.say(f"energy: {joules} ({escape(savings.energy_source)})")


def _table(*titles: str) -> Table:
    """A table whose first column is text and whose other columns are numbers, but for those of words."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, show_edge=False)
    table.add_column("", width=3)
    for at, title in enumerate(titles):
        is_text = at == 0 or title in ("type", "promise", "shape of a row")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    return table
