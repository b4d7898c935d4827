"""`summarize`: everything that a report says, computed once; how it looks is for text, html and the others."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from forethought.energy.amounts import Amount
from forethought.housekeeping import Holding
from forethought.ledger.machine import this_machine
from forethought.ledger.rows import number_of, text_of
from forethought.ledger.spans import Span, outermost, overlapping, spans_of
from forethought.report.estimates import calibrations_of, estimated
from forethought.report.factors import Factors
from forethought.report.gathering import UNKNOWN, Gathered
from forethought.report.idling import Baseline, baselines_of, net_of
from forethought.report.tables import HeadLine, Reuse, TableLine, heads_of, reuses_of, tables_of
from forethought.report.units import count_text
from forethought.savings import Comparison, Saving, read_comparison
from forethought.savings.spending import FED, by_table, spent_on

_ORDER = ("extract", "fit", "verify", "measure", "idle")
_RECENT_S = 600.0
_CLOCKS_S = 3600.0  # what clocks of two machines may well differ


@dataclass(frozen=True)
class PhaseLine:
    """All runs of one phase on one machine.

    Attributes:
        name: The phase.
        within: The phase that it lies within, whose seconds and joules hold these; None of an outermost one.
        machine: Whose.
        runs: How many.
        failed: How many of them failed or were interrupted.
        rows: Rows that they computed, or were fed.
        size_bytes: Bytes that they wrote.
        time_s: Seconds.
        gross: Joules as drawn.
        net: Joules above an idle machine.
        shared_runs: How many had others at work beside them.
        overhead_s: Seconds that reading the meters took.
    """

    name: str
    within: str | None
    machine: str
    runs: int
    failed: int
    rows: int
    size_bytes: int
    time_s: float
    gross: Amount
    net: Amount
    shared_runs: int
    overhead_s: float


@dataclass(frozen=True)
class SavingLine:
    """What one table saved on one machine.

    Attributes:
        table: Its fingerprint.
        machine: Whose.
        model: What its rows are of, "" if that is not known.
        saving: The balance.
        elsewhere: What other machines spent on it, in words; "" if nothing.
        comparisons: How many were measured; the last one counts.
    """

    table: str
    machine: str
    model: str
    saving: Saving
    elsewhere: str
    comparisons: int


@dataclass(frozen=True)
class Summary:
    """What a report says.

    Attributes:
        name: What it is about.
        places: Where it was read from.
        time: When it was made, in seconds since 1970.
        first: When the first work in it began; None if there was none.
        last: When the last ended.
        machines: What each machine is, in words, by id.
        meters: What was there to measure with, by machine.
        phases: What was done, in the order of the flow.
        time_s: Seconds of all outermost work.
        gross: Its joules.
        net: The same above idle machines.
        spans: All outermost spans, oldest first.
        baselines: What machines draw when idle, by machine.
        savings: By table and machine.
        tables: What stores hold and what it cost.
        heads: Best first within each task.
        reuses: When stored rows were used instead of computed, oldest first.
        factors: Money and carbon.
        remarks: What a reader must know: what was lost, shared, or may be counted twice.
        here: The machine that made the report. What another one measured is shown as measured elsewhere.
    """

    name: str
    places: tuple[str, ...]
    time: float
    first: float | None
    last: float | None
    machines: dict[str, str]
    meters: dict[str, dict[str, Any]]
    phases: tuple[PhaseLine, ...]
    time_s: float
    gross: Amount
    net: Amount
    spans: tuple[Span, ...]
    baselines: dict[str, Baseline]
    savings: tuple[SavingLine, ...]
    tables: tuple[TableLine, ...]
    heads: tuple[HeadLine, ...]
    reuses: tuple[Reuse, ...]
    factors: Factors = field(default_factory=Factors)
    remarks: tuple[str, ...] = ()
    here: str = field(default_factory=lambda: this_machine().id)
    holdings: tuple[Holding, ...] = ()


def summarize(
    gathered: Gathered, *, watts: float | None = None, factors: Factors | None = None, now: float | None = None
) -> Summary:
    """Compute what a report says.

    Args:
        gathered: What was read.
        watts: What the user states the machine draws: used where nothing measured, and called declared.
        factors: Price and carbon, from the user.
        now: Seconds since 1970.

    Raises:
        EnergyError: watts that are none.
    """
    journal, now = gathered.journal, time.time() if now is None else now
    calibrations = calibrations_of(journal.others)
    rows = estimated(journal.rows, calibrations, watts)
    spans = spans_of(rows)
    outer = outermost(spans)
    baselines = baselines_of(spans, calibrations)
    known = {this_machine().id: this_machine().to_dict()} | journal.machines
    machines = {machine: _machine_text(known.get(machine)) for machine in _machines(spans)}
    return Summary(
        name=gathered.name,
        places=tuple(gathered.places),
        time=now,
        first=min((span.start for span in spans), default=None),
        last=max((span.end for span in spans), default=None),
        machines=machines,
        meters={machine: journal.meters.get(machine, {}) for machine in machines},
        phases=_phases(spans, outer, baselines),
        time_s=sum(span.time_s for span in outer),
        gross=Amount.total(span.amount for span in outer),
        net=Amount.total(net_of(span, baselines) for span in outer),
        spans=tuple(outer),
        baselines=baselines,
        savings=_savings(gathered, spans, baselines),
        tables=tables_of(gathered.holdings, spans, now),
        heads=heads_of(spans),
        reuses=reuses_of(spans),
        factors=factors or Factors(),
        remarks=tuple(_remarks(gathered, spans, outer, now)),
        holdings=tuple(gathered.holdings),
    )


def _machines(spans: Sequence[Span]) -> list[str]:
    """This machine first, then the others as they come."""
    found = dict.fromkeys(span.machine for span in spans)
    return sorted(found, key=lambda machine: machine != this_machine().id)


def _machine_text(known: dict[str, Any] | None) -> str:
    if known is None:
        return "a machine that was not recorded"
    cpu, cores, memory, system = (known.get(name) for name in ("cpu", "cores", "memory_bytes", "system"))
    words = [text_of(cpu) or "unknown processor"]
    words += [f"{cores:.0f} cores"] if number_of(cores) else []
    words += [f"{memory / 2**30:.0f} GiB"] if isinstance(memory, int | float) and number_of(memory) else []
    words += [text] if (text := text_of(system)) else []
    return ", ".join(words)


def _phases(spans: Sequence[Span], outer: Sequence[Span], baselines: dict[str, Baseline]) -> tuple[PhaseLine, ...]:
    """Group spans by phase, machine and the phase that they lie within; inner ones follow theirs."""
    phase_of = {span.id: span.phase for span in spans}
    is_outer = {span.id for span in outer}
    groups: dict[tuple[str, str, str | None], list[Span]] = {}
    for span in spans:
        within = None if span.id in is_outer else phase_of.get(span.parent or "")
        groups.setdefault((span.machine, span.phase, within), []).append(span)
    lines = [_phase(phase, within, machine, group, baselines) for (machine, phase, within), group in groups.items()]

    def place(line: PhaseLine) -> tuple[str, int, str, bool, str]:
        first = line.within or line.name
        rank = _ORDER.index(first) if first in _ORDER else -1
        return line.machine, rank, first, line.within is not None, line.name

    return tuple(sorted(lines, key=place))


def _phase(
    phase: str, within: str | None, machine: str, group: Sequence[Span], baselines: dict[str, Baseline]
) -> PhaseLine:
    return PhaseLine(
        name=phase,
        within=within,
        machine=machine,
        runs=len(group),
        failed=sum(span.outcome in ("failed", "interrupted") for span in group),
        rows=sum(_rows_of(span) for span in group),
        size_bytes=sum(span.number("size_bytes") for span in group),
        time_s=sum(span.time_s for span in group),
        gross=Amount.total(span.amount for span in group),
        net=Amount.total(net_of(span, baselines) for span in group),
        shared_runs=sum(span.is_shared is True for span in group),
        overhead_s=sum(span.overhead_s for span in group),
    )


def _rows_of(span: Span) -> int:
    if span.phase == "extract":
        return span.number("rows_computed")
    return span.number("rows_fed") if span.phase == FED else span.number("rows")


def _savings(gathered: Gathered, spans: Sequence[Span], baselines: dict[str, Baseline]) -> tuple[SavingLine, ...]:
    found: dict[tuple[str, str], dict[float, Comparison]] = {}
    for line in gathered.journal.others:
        comparison = read_comparison(line) if line["kind"] == "comparison" else None
        if comparison is not None and comparison.table:
            found.setdefault((comparison.table, comparison.machine), {})[comparison.time] = comparison
    lines, work = [], by_table(spans)
    for (table, machine), by_time in found.items():
        comparison = by_time[max(by_time)]
        spending = spent_on(table, machine, work.get(table, []))
        baseline = baselines.get(machine)
        saving = Saving(
            comparison,
            spending.time_s,
            spending.amount,
            spending.fed_rows,
            baseline.power_of(spending.spans) if baseline is not None else None,
        )
        told = {text_of(span.facts.get("model")) for span in spending.spans} - {None}
        lines.append(
            SavingLine(
                table,
                machine,
                ", ".join(sorted(filter(None, told))),
                saving,
                _elsewhere(spending.elsewhere),
                len(by_time),
            )
        )
    return tuple(sorted(lines, key=lambda line: -line.saving.spent_s))


def _elsewhere(spans: Sequence[Span]) -> str:
    if not spans:
        return ""
    seconds, machines = sum(span.time_s for span in spans), {span.machine[:8] for span in spans}
    return (
        f"{seconds:,.1f} s more were spent on machine {' and '.join(sorted(machines))}: measured elsewhere, not added"
    )


def _remarks(gathered: Gathered, spans: Sequence[Span], outer: Sequence[Span], now: float) -> list[str]:
    remarks = list(gathered.notes)
    elsewhere = [span for span in outer if span.machine not in (this_machine().id, UNKNOWN)]
    if elsewhere:
        remarks.append(
            f"{count_text(len(elsewhere), 'run')} of {len(outer):,} were measured on another machine than this report "
            "was made on: what they cost there is told as measured elsewhere, and not converted."
        )
    ahead = sum(span.start > now + _CLOCKS_S for span in spans)
    if ahead:
        remarks.append(f"{count_text(ahead, 'run')} began after this report was made: a clock was wrong.")
    ended = {span.id for span in spans if span.outcome is not None}
    lost = [line for span, line in gathered.begun.items() if span not in ended]
    killed = [line for line in lost if now - (number_of(line.get("time")) or 0.0) > _RECENT_S]
    if killed:
        remarks.append(
            f"{count_text(len(killed), 'run')} never came to an end: what was spent after the last line is not known, "
            "and not in these sums."
        )
    if len(lost) > len(killed):
        remarks.append(
            f"{count_text(len(lost) - len(killed), 'run')} began in the last minutes, perhaps still at work."
        )
    if gathered.journal.unreadable:
        lines = count_text(gathered.journal.unreadable, "line")
        remarks.append(f"Left out of the ledger, as not what was written: {lines}.")
    if gathered.journal.cut_short:
        lines = count_text(gathered.journal.cut_short, "line")
        remarks.append(
            f"Cut short while it was written, by a kill or a full disk, and left out of the ledger: {lines}."
        )
    if gathered.noted:
        runs = count_text(len(gathered.noted), "run")
        remarks.append(
            f"No ledger tells of {runs}, only notes beside the rows do: other work on them, such as training, may be "
            "missing here. Copy the folder 'ledger' with a store."
        )
    twice = overlapping(outer)
    if twice:
        pairs = count_text(len(twice), "pair")
        remarks.append(f"{pairs} of runs counted one component at the same time: joules may be in sums twice.")
    shared = sum(span.is_shared is True for span in outer)
    if shared:
        remarks.append(
            f"During {shared} of {count_text(len(outer), 'run')} other processes were at work on the machine: its "
            "counters saw their joules, too, and clocks their delay."
        )
    return remarks
