"""What the demo shows to a person. It computes nothing."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import forethought as ft
from forethought.demo.contest import Scores
from forethought.report.statements import pays_back
from forethought.savings.saving import saved_text


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

    def saving(self, head: str, saving: ft.Saving) -> None:
        """Show what the store saved."""
        comparison, seconds = saving.comparison, saving.seconds
        self.say(f"head: {escape(head)}, the same on both sides, {saving.epoch_rows:,.0f} rows an epoch")
        self.say(
            f"an epoch without the store  {seconds.uncached_epoch.value:8.2f} s  (real steps, in turn with "
            f"those below, {comparison.blocks} blocks of each, {comparison.time_s:.0f} s)"
        )
        self.say(f"an epoch with the store     {seconds.cached_epoch.value:8.3f} s")
        ratio = comparison.seconds.ratio
        if ratio is not None:
            self.say(f"[bold]{ratio.value:,.0f} times faster[/bold] ({ratio.low:,.0f} to {ratio.high:,.0f})")
        self.say(f"all that the store cost, measuring too: {saving.spent_s:.1f} s; {pays_back(seconds.break_even)}")
        if saving.fed_rows:
            self.say(f"in the {saving.epochs:,} epochs that were run: [bold]{saved_text(seconds)}[/bold]")
        self.say(f"energy: {escape(_energy(saving))}")


def _energy(saving: ft.Saving) -> str:
    """Say the joules that were saved and how they are known, or why they are not."""
    balance = saving.net_joules or saving.joules
    if balance is not None:
        return f"{saved_text(balance, 'J')} ({saving.comparison.label})"
    if saving.spent.known_j is None:
        return f"not measured on this machine ({'; '.join(saving.spent.reasons)})"
    return f"not known ({saving.why_no_joules})"


def _table(*titles: str) -> Table:
    """A table whose first column is text and whose other columns are numbers, but for those of words."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, show_edge=False)
    table.add_column("", width=3)
    for at, title in enumerate(titles):
        is_text = at == 0 or title in ("type", "promise", "shape of a row")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    return table
