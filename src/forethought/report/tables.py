"""Tables, heads and reuse: what stored rows are of, what they cost, who trained on them, and when they served again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from forethought.energy.amounts import Amount
from forethought.housekeeping import Holding
from forethought.ledger.rows import number_of, text_of
from forethought.ledger.spans import Span
from forethought.savings.spending import CHARGED, FED, by_table, fed_rows

DAY_S = 24 * 3600.0
UNUSED_S = 30 * DAY_S
_MOST_CROSSING = 64


@dataclass(frozen=True)
class Crossing:
    """One tensor of a frontier: name, shape without the batch, type, bytes a row."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


@dataclass(frozen=True)
class TableLine:
    """One table: what it holds, what it cost, what it gave.

    Attributes:
        fingerprint: Its name.
        model: The model whose frozen part its rows are of.
        data: Data sets.
        frontier: What crossed.
        rows: Rows held; 0 if the table is gone.
        size_bytes: Bytes on disk.
        cost_s: Seconds that computing took, on all machines.
        cost: Joules, likewise.
        avoided_s: Seconds that reuse avoided, at what the rows took on the machine that reused them; None if not known.
        avoided_j: Joules, likewise.
        reused_rows: Rows that were served instead of computed.
        fed_rows: Rows fed to heads.
        last_used: Seconds since 1970; None if not recorded.
        remark: "never used since it was made", "not used for 45 days"; "" otherwise.
    """

    fingerprint: str
    model: str
    data: str
    frontier: tuple[Crossing, ...]
    rows: int
    size_bytes: int
    cost_s: float
    cost: Amount
    avoided_s: float | None
    avoided_j: float | None
    reused_rows: int
    fed_rows: int
    last_used: float | None
    remark: str


@dataclass(frozen=True)
class HeadLine:
    """One head that was trained.

    Attributes:
        name: Its name.
        score: On validation rows; None if it has none.
        metric: What the score is.
        is_higher_better: Which way is up; None if not known.
        epochs: How many it was trained.
        parameters: How many train.
        time_s: Seconds of its own steps; None if they were not told apart.
        energy: Joules of the run that trained it, with all heads that shared it.
        company: How many heads shared that run.
        failed: Why it was stopped, "" if it was not.
        start: When, in seconds since 1970.
    """

    name: str
    score: float | None
    metric: str
    is_higher_better: bool | None
    epochs: int
    parameters: int | None
    time_s: float | None
    energy: Amount
    company: int
    failed: str
    start: float


@dataclass(frozen=True)
class Reuse:
    """One time that stored rows served instead of being computed."""

    time: float
    table: str
    data: str
    rows: int
    avoided_s: float | None
    avoided_j: float | None


def tables_of(holdings: Sequence[Holding], spans: Sequence[Span], now: float) -> tuple[TableLine, ...]:
    """Describe every table that is there, and every one that was, largest cost first."""
    here: dict[str, list[Holding]] = {}
    for holding in holdings:
        here.setdefault(holding.fingerprint, []).append(holding)
    names = dict.fromkeys([*here, *filter(None, (text_of(span.facts.get("table")) for span in spans))])
    work = by_table(spans)
    lines = [_table(name, here.get(name, []), work.get(name, []), now) for name in names]
    return tuple(sorted(lines, key=lambda line: (-line.cost_s, line.fingerprint)))


def _table(name: str, held: Sequence[Holding], spans: Sequence[Span], now: float) -> TableLine:
    charged = [span for span in spans if span.phase in CHARGED and span.facts.get("table") == name]
    computed = [span for span in charged if span.number("rows_computed")]
    reused = [span for span in charged if span.number("rows_reused")]
    used = [each.last_used.timestamp() for each in held if each.last_used is not None]
    used += [span.end for span in spans]
    fed = fed_rows(name, spans)
    told = [span for span in reversed(charged) if span.facts.get("frontier")]
    return TableLine(
        fingerprint=name,
        model=_listed([model for each in held for model in each.models] + _texts(charged, "model")),
        data=_listed([data for each in held for data in each.datasets] or _texts(charged, "data")),
        frontier=_crossings(told[0].facts["frontier"]) if told else (),
        rows=sum(each.rows for each in held),
        size_bytes=sum(each.size_bytes for each in held),
        cost_s=sum(span.time_s for span in computed),
        cost=Amount.total(span.amount for span in computed) if computed else Amount.unknown("not recorded"),
        avoided_s=_known(span.facts.get("avoided_s") for span in reused),
        avoided_j=_known(span.facts.get("avoided_j") for span in reused),
        reused_rows=sum(span.number("rows_reused") for span in reused),
        fed_rows=fed,
        last_used=max(used, default=None),
        remark=_remark(held, bool(fed or reused), max(used, default=now), now),
    )


def _remark(held: Sequence[Holding], was_used: bool, used: float, now: float) -> str:
    age_s = now - used
    if not held:
        return "no longer there"
    if not was_used and age_s > DAY_S:
        return "never used since it was made"
    return f"not used for {age_s / DAY_S:.0f} days" if age_s > UNUSED_S else ""


def heads_of(spans: Sequence[Span]) -> tuple[HeadLine, ...]:
    """Every head of every fit: those of one metric together, best first; what has no score last."""
    lines = [line for span in spans if span.phase == FED for line in _heads(span)]

    def place(line: HeadLine) -> tuple[str, bool, float]:
        score = line.score if line.score is not None else 0.0
        return line.metric, line.score is None, -score if line.is_higher_better else score

    return tuple(sorted(lines, key=place))


def _heads(span: Span) -> list[HeadLine]:
    told = span.facts.get("heads")
    heads = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
    return [
        HeadLine(
            name=text_of(head.get("name")) or "a head",
            score=_signed(head.get("score")),
            metric=text_of(head.get("metric")) or "score",
            is_higher_better=higher if isinstance(higher := head.get("is_higher_better"), bool) else None,
            epochs=int(number_of(head.get("epochs")) or 0),
            parameters=None if (size := number_of(head.get("parameters"))) is None else int(size),
            time_s=number_of(head.get("time_s")),
            energy=span.amount,
            company=len(heads),
            failed=text_of(head.get("failed")) or "",
            start=span.start,
        )
        for head in heads
    ]


def reuses_of(spans: Sequence[Span]) -> tuple[Reuse, ...]:
    """Every extraction that found rows, oldest first."""
    return tuple(
        Reuse(
            span.start,
            text_of(span.facts.get("table")) or "",
            text_of(span.facts.get("data")) or "",
            span.number("rows_reused"),
            number_of(span.facts.get("avoided_s")),
            number_of(span.facts.get("avoided_j")),
        )
        for span in spans
        if span.number("rows_reused")
    )


def _crossings(told: Any) -> tuple[Crossing, ...]:
    found = []
    for item in told[:_MOST_CROSSING] if isinstance(told, list) else []:
        if not isinstance(item, list) or len(item) != 4 or not isinstance(item[1], list):
            continue
        name, shape, dtype, size = (
            text_of(item[0]),
            [number_of(n) for n in item[1]],
            text_of(item[2]),
            number_of(item[3]),
        )
        if name and dtype and size is not None and None not in shape:
            found.append(Crossing(name, tuple(int(n or 0) for n in shape), dtype.removeprefix("torch."), int(size)))
    return tuple(found)


def _known(values: Iterable[Any]) -> float | None:
    """Add up what is known; None if nothing is."""
    known = [number for number in map(number_of, values) if number is not None]
    return sum(known) if known else None


def _signed(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 2**63 else None


def _texts(spans: Sequence[Span], name: str) -> list[str]:
    return [text for text in (text_of(span.facts.get(name)) for span in spans) if text]


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
