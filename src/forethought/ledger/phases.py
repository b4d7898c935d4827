"""`Ledger` and its phases: what a stretch of work cost, measured at its two ends and written down when it is over."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar, Token
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from forethought.energy import DeclaredMeter, MeterReport, Ownership
from forethought.energy.amounts import Amount
from forethought.errors import EnergyError, ForethoughtError
from forethought.ledger.devices import synchronize
from forethought.ledger.journal import Journal, journal_of
from forethought.ledger.machine import this_machine
from forethought.ledger.parts import AnyMeter, Block, Names, Part, components_of, find, steps_of, whole_of
from forethought.ledger.rows import Row
from forethought.ledger.sums import amount_of
from forethought.store import Store
from forethought.store.folder import Folder
from forethought.store.place import Place

T = TypeVar("T")
_END: Any = object()
BEGIN = "begin"
BESIDE = "it went on within"
PART_S = 60.0  # what a kill may cost of the account, for work that calls `lap`
_log = logging.getLogger("forethought")
_active: ContextVar["Ledger | None"] = ContextVar("forethought_ledger", default=None)
_current: ContextVar["Phase | None"] = ContextVar("forethought_phase", default=None)


class Ledger:
    """Writes down what work costs: seconds always, joules where something measures them.

    Within a `with Ledger(...)` block `extract` and `fit` write their rows here too, beside those in their store.

    Args:
        place: A folder, which need not exist, or a Store. Rows go to JSON lines in its folder `ledger`. None keeps
            nothing.
        meter: "auto" reads the counters of this machine, and the wall meter that $FORETHOUGHT_METER names; a shell
            command, or a function, that gives a wall meter's total in kWh adds that; meters of your own are read
            instead; None reads nothing.
        watts: What the machine draws, as you state it: used where nothing measures, and labelled "declared".
        clock: Seconds, monotonic.

    Raises:
        EnergyError: a meter or watts that cannot be used.

    Example:
        >>> import tempfile
        >>> ledger = Ledger(tempfile.mkdtemp(), meter=None)
        >>> with ledger.phase("my work", rows=3) as phase:
        ...     total = sum(range(1000))
        >>> phase.energy_j is None, phase.energy_source, phase.time_s > 0
        (True, 'not asked for: meter=None', True)
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | Store | None,
        *,
        meter: AnyMeter = "auto",
        watts: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if isinstance(place, str | os.PathLike):
            path = os.fspath(place)
            place = Store(path) if "://" in path else Path(os.path.abspath(path))
        found: Place | None
        if isinstance(place, Store):
            is_kept, makes_root, found = not place.readonly, False, place.place
        else:
            is_kept, makes_root, found = place is not None, True, Folder(place) if place is not None else None
        self._settle(found, [journal_of(found, makes_root=makes_root)] if is_kept and found is not None else [])
        self._meter = meter
        self._declared = None if watts is None else DeclaredMeter(watts, clock)
        self._clock = clock
        self._found: tuple[MeterReport, Names] | None = None
        self._tokens: list[Token[Ledger | None]] = []

    def _settle(self, place: Place | None, journals: list[Journal]) -> None:
        self.place, self._journals = place, journals

    def __repr__(self) -> str:
        return f"Ledger({None if self.place is None else self.place.url!r})"

    def __enter__(self) -> Self:
        self._tokens.append(_active.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _reset(_active, self._tokens.pop())

    @property
    def meters(self) -> MeterReport:
        """What there is to measure with, and why not more."""
        return self._resolve()[0]

    def phase(self, name: str, **facts: Any) -> "Phase":
        """Measure the block of a `with` statement and write it down. Phases may nest: the outer one holds the inner.

        Args:
            name: What is done: "my work".
            **facts: Whatever else is known of it: `rows=`, `size_bytes=`, `epochs=`.
        """
        return Phase(self, name, facts)

    def idle(self, seconds: float = 30.0, sleep: Callable[[float], object] = time.sleep) -> "Phase":
        """Do nothing for a while, and write down what the machine draws then: what every work is compared with.

        Args:
            seconds: How long; 30 or more give a baseline that reports use, and enough for the counter to move by
                20 steps.
            sleep: Stands in for `time.sleep`.

        Returns:
            The phase: its joules, and whether others were at work, which makes it no baseline.
        """
        with self.phase("idle", steps=steps_of(*self._resolve())) as phase:
            sleep(seconds)
        return phase

    def write(self, line: dict[str, Any]) -> bool:
        """Write a line of another kind. Says whether it could be: an account that is lost must not lose the work."""
        machine = this_machine().id
        return self._write(self._journals, [{"machine": machine, "time": time.time()} | line])

    def _resolve(self) -> tuple[MeterReport, Names]:
        if self._found is None:
            report = _find(self._meter)
            if not report.meters and self._declared is not None:
                report = MeterReport((self._declared,), report.unavailable)
            self._found = report, components_of(report)
        return self._found

    def _write(self, journals: Sequence[Journal], lines: Sequence[dict[str, Any]]) -> bool:
        report = self.meters
        meters = {
            "meters": [
                {"instrument": m.instrument, "label": m.label, "scope": m.scope, "bound": m.bound}
                for m in report.meters
            ],
            "unavailable": [list(pair) for pair in report.unavailable],
        }
        written = True
        for journal in journals:
            try:
                journal.append(lines, meters)
            except (OSError, ForethoughtError) as err:
                if not journal.is_refused:
                    _log.warning("The account of this work is not kept in '%s': %s", journal.place.url, err)
                journal.is_refused, written = True, False
            else:
                journal.is_refused = False
        return written


class Phase:
    """One stretch of work. Made by `Ledger.phase`; what it cost is known after its `with` block.

    A long one calls `lap()` now and then, as often as it likes: then counters that wrap are followed, and a kill costs
    a minute of the account at most.

    Attributes:
        span: Its name in the ledger, unguessable.
        time_s: Seconds, so far or in all.
        facts: Whatever else is known of it; `add` to it while it lasts.
    """

    def __init__(self, ledger: Ledger, name: str, facts: dict[str, Any], also: Sequence[Journal] = ()) -> None:
        if not isinstance(name, str) or not name.strip():
            raise EnergyError(f"Cannot name a phase {name!r}: expected a word. ledger.phase('my work')")
        self.span = secrets.token_hex(8)
        self.facts = dict(facts)
        self.time_s = 0.0
        self._name = name.strip()[:200]
        self._ledger = ledger
        self._journals = [*ledger._journals, *also]
        self._rows: list[Row] = []
        self._asides: dict[str, tuple[float, dict[str, Any]]] = {}
        self._part: Part | None = None
        self._mine: frozenset[str] = frozenset()
        self._next_roll = 0.0

    def __enter__(self) -> Self:
        if self._part is not None or self._rows:
            raise EnergyError("Cannot begin a phase twice: expected a new one. with ledger.phase('my work') as phase:")
        self._report, self._names = self._ledger._resolve()
        self._parent = _current.get()
        self._owner = Ownership()
        if self._parent is None and self._journals:
            # A run that is killed before its first row was there all the same.
            self.write({"kind": BEGIN, "span": self.span, "phase": self._name, "machine": this_machine().id,
                        "time": time.time()})  # fmt: skip
        synchronize()
        self._open()
        self._token = _current.set(self)  # last: a phase that could not begin is around nothing
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = _outcome(kind)
        if kind is not None:
            self.facts.setdefault("error", kind.__name__)
        try:
            if kind is None:
                synchronize()
        except BaseException as failure:
            outcome = _outcome(type(failure))
            self.facts.setdefault("error", type(failure).__name__)
            raise
        finally:
            self._close(outcome)
            self._owner.release()
            _reset(_current, self._token)

    def add(self, **facts: Any) -> None:
        """Say more of what is done: `rows=`, `size_bytes=`."""
        self.facts |= facts

    def block(self) -> Block:
        """Measure a piece of this phase, in a `with` block, without writing it down."""
        return Block(self._begin)

    def write(self, line: dict[str, Any]) -> None:
        """Write a line of another kind wherever the phase is written down."""
        self._ledger._write(self._journals, [line])

    @property
    def meters(self) -> MeterReport:
        """What there is to measure with, and why not more."""
        return self._ledger.meters

    def aside(self, name: str, time_s: float, **facts: Any) -> None:
        """Tell of something that went on within this phase, beside its other work: its seconds are known alone.

        Told again, seconds and counts add up.
        """
        known_s, known = self._asides.get(name, (0.0, {}))
        added = {key: known.get(key, 0) + value if isinstance(value, int) else value for key, value in facts.items()}
        self._asides[name] = known_s + time_s, known | added

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Give items as they come, tell how long was waited for them in all, and lap."""
        waited_s, iterator = 0.0, iter(items)
        try:
            while True:
                began = time.perf_counter()
                item = next(iterator, _END)
                waited_s += time.perf_counter() - began
                if item is _END:
                    return
                self.lap()
                handed = [item]
                del item  # it is the receiver's alone: a batch is let go before the next is made
                yield cast("T", handed.pop())
        finally:
            self.aside(name, waited_s)
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def lap(self) -> None:
        """Read the counters that wrap; once a minute write down what there is. Nothing is waited for."""
        part = self._part
        if part is None:
            return
        if part.age_s < PART_S or self._ledger._clock() < self._next_roll:
            part.lap()
        elif part.is_whole:
            self._next_roll = self._ledger._clock() + PART_S
            rows = part.roll()
            if rows is not None:
                self._tell(rows, part.time_s, None)
        else:  # whoever counted the rest may be done
            self._close(None)
            self._open()

    @property
    def amount(self) -> Amount:
        """The joules, with how they are known."""
        return amount_of(self._rows)

    @property
    def energy_j(self) -> float | None:
        """Joules; None where they were not measured."""
        return self.amount.energy_j

    @property
    def is_shared(self) -> bool | None:
        """Whether other processes were at work meanwhile, so that these joules are theirs too; None if not known."""
        told = [row.is_shared for row in self._rows if row.is_shared is not None]
        return any(told) if told else None

    @property
    def energy_source(self) -> str:
        """What measured, or why nothing did."""
        amount = self.amount
        if amount.energy_j is None:
            return "; ".join(amount.reasons) or "not measured"
        instruments = dict.fromkeys(row.instrument for row in self._rows if row.inside is None and row.instrument)
        return f"{amount.label}, {' + '.join(instruments)}"

    @property
    def rows(self) -> tuple[Row, ...]:
        """What was written down."""
        return tuple(self._rows)

    def _counted(self) -> frozenset[str]:
        """Components that this phase or one around it counts."""
        held, is_within, phase = frozenset[str](), False, self._parent
        while phase is not None:
            held, is_within, phase = held | phase._mine, is_within or phase._owner.has_machine, phase._parent
        wanted = [name for names in self._names.values() for name in names if name not in held]
        self._mine = self._owner.take(wanted, whole=whole_of(self._report, self._names), is_within=is_within)
        return held | self._mine

    def _open(self) -> None:
        counted = self._counted()
        self._refused = {name: reason for name, reason in self._owner.refused.items() if name not in counted}
        self._part = self._begin()

    def _begin(self) -> Part:
        return Part(self._report, self._names, self._refused, self._ledger._clock)

    def _close(self, outcome: str | None) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._tell(part.close(), part.time_s, outcome)

    def _tell(self, drafts: Sequence[Row], time_s: float, outcome: str | None) -> None:
        """Name the rows of a part, and write them down."""
        self.time_s += time_s
        number = self._rows[-1].part + 1 if self._rows else 0
        parent = self._parent.span if self._parent is not None else None
        named = {"span": self.span, "phase": self._name, "parent": parent, "part": number, "outcome": outcome}
        rows = [replace(draft, **named, facts=dict(self.facts)) for draft in drafts]  # type: ignore[arg-type]
        self._rows += rows
        asides = self._aside_rows(rows[0]) if outcome is not None else []
        self._ledger._write(self._journals, [row.to_json() for row in (*rows, *asides)])

    def _aside_rows(self, within: Row) -> list[Row]:
        reason = f"{BESIDE} '{self._name}': no instrument tells them apart"
        return [
            Row(secrets.token_hex(8), name, within.machine, within.start, time_s, self.span,
                reason=reason, outcome="done", facts=facts)
            for name, (time_s, facts) in self._asides.items()
        ]  # fmt: skip


def active_ledger() -> Ledger | None:
    """Give the ledger of the innermost `with Ledger(...)` block."""
    return _active.get()


def phase_in(place: Place | None, name: str, *, readonly: bool = False, **facts: Any) -> Phase:
    """Measure a stretch of the library's own work, for the ledger around it and that of a store.

    Neither need be there. The store is not opened, and not made: one that is gone costs the account, not the work.
    """
    journals = [] if place is None or readonly else [journal_of(place)]
    active = active_ledger()
    if active is not None:
        is_same = active.place is not None and place is not None and active.place.url == place.url
        return Phase(active, name, facts, [] if is_same else journals)
    ledger = Ledger(None, meter="auto" if journals else None)
    ledger._settle(place, journals)
    return Phase(ledger, name, facts)


def _find(meter: AnyMeter) -> MeterReport:
    """Find meters; what fails while looking for them by itself is a reason, not an error of the work."""
    try:
        return find(meter)
    except Exception as err:
        if meter != "auto":
            raise
        return MeterReport(unavailable=(("meters", str(err) or type(err).__name__),))


def _outcome(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "done"
    return "failed" if issubclass(kind, Exception) else "interrupted"


def _reset(variable: ContextVar[Any], token: Token[Any]) -> None:
    try:
        variable.reset(token)
    except ValueError:  # left in another context than it was entered in, by a generator that was closed elsewhere
        variable.set(None if token.old_value is Token.MISSING else token.old_value)
