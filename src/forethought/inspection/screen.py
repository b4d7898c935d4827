"""What `forethought inspect` shows to a person, in 80 columns. It computes nothing."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forethought.inspection.report import Inspection, ModulePart
from forethought.shapes.forms import FrontierTensor
from forethought.splitting.candidates import Candidate, distinct


def show(inspection: Inspection, depth: int) -> None:
    """Write an inspection.

    Args:
        inspection: What was found.
        depth: Show modules, and cuts at modules, that lie at most this deep.
    """
    console = Console(highlight=False)
    whole = inspection.modules[0]
    inputs = ", ".join(f"{_shape(shape)} {dtype}" for shape, dtype in inspection.inputs[:4])
    console.print(f"[bold]{escape(inspection.name)}[/bold]: {whole.type}, {inspection.weights}")
    console.print(f"run on {inputs}{' ...' if len(inspection.inputs) > 4 else ''}")
    if inspection.assumption:
        console.print(f"[yellow]{escape(inspection.assumption)}[/yellow]")
    if inspection.refusal:
        console.print(f"[yellow]It cannot be split where its frozen part ends. {escape(inspection.refusal)}[/yellow]")
    console.print()
    console.print(_tree(inspection, depth))
    console.print(
        f"\n{whole.trainable_parameters:,} of {whole.parameters:,} parameters train; "
        f"{inspection.frozen_share:.1%} of the forward's time is frozen."
    )
    console.print(f"[dim]{escape(_measured(inspection))}[/dim]\n")
    cuts = _cuts(inspection, depth)
    if cuts.row_count:
        console.print(cuts)
    if inspection.candidates:
        console.print("\n[dim]Cut earlier: ft.split(model, x, at=...). --depth shows more, --json everything.[/dim]")


def _measured(inspection: Inspection) -> str:
    times = inspection.times
    scale, unit = (1e3, "ms") if times.forward_s >= 1e-3 else (1e6, "microseconds")
    return (
        f"Time: each operation of the forward, median of {times.runs} runs on {times.device}, {times.threads} "
        f"thread(s): {sum(times.operations_s) * scale:,.1f} {unit} of the {times.forward_s * scale:,.1f} {unit} that "
        "a run takes."
    )


def _tree(inspection: Inspection, depth: int) -> Table:
    table = _table("module", "side", "parameters", "train", "time", "output")
    for part in inspection.modules:
        if part.depth <= depth:
            trains = {"frozen": "no", "trainable": "all", "mixed": f"{part.trainable_parameters:,}"}
            table.add_row(
                f"{'  ' * max(part.depth - 1, 0)}{_titled(part)}",
                part.side or ("" if part.calls else "not run"),
                f"{part.parameters:,}" if part.state else "",
                trains.get(part.state or "", ""),
                _percent(part.share),
                _shapes(part.outputs),
            )
    return table


def _titled(part: ModulePart) -> str:
    name = part.path.rsplit(".", 1)[-1]
    return f"{escape(name)} [dim]{escape(part.type)}[/dim]" if name else f"[bold]{escape(part.type)}[/bold]"


def _cuts(inspection: Inspection, depth: int) -> Table:
    table = _table("cut at", "crosses", "bytes a sample", "time before it")
    for one in distinct(one for one in inspection.candidates if one.path.count(".") < depth):
        if one.tensors != inspection.frontier:
            share = None if one.share is None else one.share * inspection.frozen_share
            table.add_row(escape(one.path), _crossing(one.tensors), _bytes(one), _percent(share))
    if inspection.frontier is not None:
        size = _bytes(Candidate("", inspection.frontier, 0))
        name = "[bold]the frontier[/bold]"
        table.add_row(name, _crossing(inspection.frontier), size, _percent(inspection.frozen_share))
    return table


def _bytes(one: Candidate) -> str:
    return "no rows" if one.size_bytes is None else f"{one.size_bytes:,}"


def _crossing(tensors: Sequence[FrontierTensor]) -> str:
    return _shapes([tensor.shape for tensor in tensors])


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Write the first shape, and how many more there are."""
    if not shapes:
        return ""
    return _shape(shapes[0]) + (f" +{len(shapes) - 1}" if len(shapes) > 1 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "number"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _table(*titles: str) -> Table:
    """A table whose columns are numbers, but for those of words."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, show_edge=False)
    for at, title in enumerate(titles):
        is_text = at == 0 or title in ("side", "output", "crosses")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=at > 0, overflow="fold")
    return table
