"""What a report says, in words and columns, the same in the terminal, in Markdown and on a page."""

from forethought.energy.amounts import Amount
from forethought.ledger.phases import BESIDE
from forethought.report.factors import derived
from forethought.report.gathering import UNKNOWN
from forethought.report.grid import Grid
from forethought.report.idling import NO_BASELINE
from forethought.report.idling import PHASE as IDLE
from forethought.report.summary import PhaseLine, Summary
from forethought.report.units import (
    NOT_MEASURED,
    amount_text,
    count_text,
    day_text,
    energy_text,
    label_text,
    size_text,
    time_text,
)

MOST_LINES = 20
SHORT = 12  # digits of a fingerprint


def grids(summary: Summary) -> list[Grid]:
    """Every table of a report that has rows."""
    made = [phases(summary), heads(summary), frontiers(summary), reuse(summary), disk(summary)]
    return [grid for grid in made if grid.rows]


def phases(summary: Summary) -> Grid:
    """What each phase cost."""
    several = len(summary.machines) > 1
    lines = [_phase(line, several, elsewhere(summary, line.machine)) for line in summary.phases]
    total = (
        "in all",
        "",
        "",
        time_text(summary.time_s),
        amount_text(summary.gross),
        _net(summary.net),
        label_text(summary.gross),
    )
    overhead_s = sum(line.overhead_s for line in summary.phases if line.within is None)
    share = overhead_s / summary.time_s if summary.time_s else 0.0
    part = f", {share:.3%} of it" if share >= 1e-5 else ", less than 0.001% of it" if summary.time_s else ""
    return Grid(
        "What it cost",
        ("phase", "runs", "rows", "time", "energy, gross", "net of idle", "how it is known"),
        frozenset({1, 2, 3, 4, 5}),
        (*lines, total) if lines else (),
        f"Reading the meters took {time_text(overhead_s)} besides{part}. {seen_text(summary)}" if lines else "",
        last_is_sum=True,
    )


def elsewhere(summary: Summary, machine: str) -> str:
    """Say of what another machine measured that it was another one."""
    return "" if machine in (summary.here, UNKNOWN) else ", elsewhere"


def _phase(line: PhaseLine, several: bool, where: str) -> tuple[str, ...]:
    name = f"  {line.name}" if line.within else line.name
    name += f" on {line.machine[:8]}" if several and not line.within else ""
    runs = f"{line.runs:,}" + (f" ({line.failed} failed)" if line.failed else "")
    rows = f"{line.rows:,}" if line.rows else ""
    is_beside = any(reason.startswith(BESIDE) for reason in line.gross.reasons)
    if line.within and is_beside:
        return name, runs, rows, time_text(line.time_s), f"in {line.within}", "", ""
    how = label_text(line.gross) + (", shared" if line.shared_runs else "") + where
    net = "" if line.name == IDLE else _net(line.net)  # it is the baseline
    return name, runs, rows, time_text(line.time_s), amount_text(line.gross), net, how


def _net(net: Amount) -> str:
    if net.energy_j is None and net.reasons and set(net.reasons) == {NO_BASELINE}:
        return "no baseline"
    return amount_text(net)


def seen_text(summary: Summary) -> str:
    """Say what the instruments did not see."""
    labels = {label for line in summary.phases for label in line.gross.by_label}
    if not labels:
        return "No energy was measured."
    if any(label == "measured:wall" for label in labels):
        return "The wall meter sees the whole machine."
    if labels <= {"calibrated", "declared", "modelled"}:
        return "These joules are seconds times watts, not measured."
    return "Counters do not see power supply, board, fans and disks: a wall meter does."


def heads(summary: Summary) -> Grid:
    """Heads, best first, with what they cost."""
    lines = []
    for line in summary.heads[:MOST_LINES]:
        score = "failed" if line.failed else "" if line.score is None else f"{line.score:.6g} {line.metric}"
        company = "" if line.company < 2 else f" with {count_text(line.company - 1, 'other')}"
        own = "" if line.time_s is None else time_text(line.time_s)
        energy = amount_text(line.energy)
        energy = energy if energy == NOT_MEASURED else energy + company
        size = "" if line.parameters is None else f"{line.parameters:,}"
        lines.append((line.name, score, f"{line.epochs:,}", size, own, energy, day_text(line.start)))
    more = len(summary.heads) - len(lines)
    return Grid(
        "Heads, best first",
        ("head", "validation score", "epochs", "parameters", "own time", "energy of its run", "trained"),
        frozenset({1, 2, 3, 4, 5}),
        tuple(lines),
        f"and {more:,} more (--format json lists all)" if more > 0 else "",
    )


def frontiers(summary: Summary) -> Grid:
    """Which frozen parts, and what crossed."""
    lines = []
    for table in summary.tables[:MOST_LINES]:
        for at, crossing in enumerate(table.frontier):
            first = (table.model or "not recorded", table.fingerprint[:SHORT]) if at == 0 else ("", "")
            shape = " x ".join(map(str, crossing.shape)) or "1"
            lines.append((*first, crossing.name, shape, crossing.dtype, f"{crossing.size_bytes:,}"))
    return Grid(
        "What crossed the frontier",
        ("model", "table", "value", "shape", "type", "bytes a row"),
        frozenset({5}),
        tuple(lines),
    )


def reuse(summary: Summary) -> Grid:
    """When stored rows served instead of being computed."""
    recent = summary.reuses[-MOST_LINES:]
    lines = [
        (
            day_text(each.time),
            each.data or each.table[:SHORT],
            f"{each.rows:,}",
            "not known here" if each.avoided_s is None else time_text(each.avoided_s),
            NOT_MEASURED if each.avoided_j is None else energy_text(each.avoided_j),
        )
        for each in reversed(recent)
    ]
    more = len(summary.reuses) - len(recent)
    return Grid(
        "Reuse, newest first",
        ("when", "data", "rows", "computing time avoided", "energy avoided"),
        frozenset({2, 3, 4}),
        tuple(lines),
        (
            "At what such rows took on the machine that reused them; what was only measured elsewhere is not converted."
            + (f" And {more:,} earlier ones." if more > 0 else "")
        )
        if lines
        else "",
    )


def disk(summary: Summary) -> Grid:
    """Disk used against what it cost and gave; what is never used."""
    lines = []
    for table in summary.tables[:MOST_LINES]:
        avoided = (
            time_text(table.avoided_s)
            if table.avoided_s is not None
            else "not known here"
            if table.reused_rows
            else "nothing"
        )
        if table.avoided_j is not None:
            avoided += f", {energy_text(table.avoided_j)}"
        cost = time_text(table.cost_s) if table.cost_s else "not recorded"
        if table.cost.known_j is not None:
            cost += f", {amount_text(table.cost)}"
        used = table.remark or ("" if table.last_used is None else f"used {day_text(table.last_used)}")
        size = size_text(table.size_bytes) if table.rows else "gone"
        lines.append(
            (table.model or "not recorded", table.fingerprint[:SHORT], f"{table.rows:,}", size, cost, avoided, used)
        )
    held = [table for table in summary.tables if table.rows]
    idle = sum(table.size_bytes for table in held if table.remark)
    size = size_text(sum(table.size_bytes for table in held))
    note = f"{size} in {count_text(len(held), 'table')}." if held else "None of these tables is here."
    if idle:
        note += f" {size_text(idle)} of it is stale or was never used: forethought store gc frees it."
    return Grid(
        "Disk used against computing avoided",
        ("model", "table", "rows", "on disk", "cost", "reuse avoided", "last use"),
        frozenset({2, 3}),
        tuple(lines),
        note if lines else "",
    )


def total_lines(summary: Summary) -> list[str]:
    """Money and CO2e of all that was spent; unknown without a factor."""
    if not summary.spans:
        return []
    known = derived(summary.factors, summary.gross.energy_j) if summary.gross.energy_j is not None else []
    lines = [f"{word}: {text}" for word, text in known]
    missing = [
        word for word, factor in (("money", summary.factors.price), ("CO2e", summary.factors.carbon)) if factor is None
    ]
    if missing or not known:
        words = " and ".join(missing) if missing else "money and CO2e"
        why = "no factor given (--price, --carbon)" if missing else "the energy is not known"
        lines.append(f"{words[0].upper()}{words[1:]}: unknown, {why}")
    return lines


def method_lines(summary: Summary) -> list[tuple[str, str]]:
    """How things were measured, machine by machine: (what, how)."""
    lines = []
    for machine, words in summary.machines.items():
        lines.append((f"Machine {machine[:8]}{elsewhere(summary, machine)}", words))
        told = summary.meters.get(machine, {})
        lines += [
            (f"{meter.get('instrument')}", f"{meter.get('label')}: {meter.get('scope')}")
            for meter in told.get("meters") or []
            if isinstance(meter, dict)
        ]
        lines += [
            (f"{pair[0]}", f"unavailable: {pair[1]}")
            for pair in told.get("unavailable") or []
            if isinstance(pair, list) and len(pair) == 2
        ]
        baseline = summary.baselines.get(machine)
        idle = "not measured (forethought energy calibrate)"
        if baseline is not None:
            how = baseline.label if baseline.time_s is None else f"{baseline.label}, {time_text(baseline.time_s)}"
            idle = f"{baseline.total_w:.3g} W when idle ({how}, {day_text(baseline.time)})"
        lines.append(("Idle baseline", idle))
    return [(_plain(what), _plain(how)) for what, how in lines]


def _plain(text: str) -> str:
    """Leave out what moves a terminal's cursor: ledgers come from anywhere."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:2000]
