"""The ledger: every phase is written down once, with how its joules are known; and losing it never loses the work."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_energy import FakeNvml, gpu, zone
from torch import nn

import forethought as ft
from forethought.energy import Limit, Load, MeterReport, Ownership, WallMeter, find_meters
from forethought.energy.amounts import Amount
from forethought.energy.meters import LABELS
from forethought.errors import EnergyError
from forethought.ledger import parts, phases
from forethought.ledger.journal import Journal, Journaled, _encoded, journal_of, read_journal
from forethought.ledger.machine import this_machine
from forethought.ledger.prices import Entry, avoided
from forethought.ledger.rows import Row, read_row
from forethought.ledger.sums import amount_of
from forethought.store.folder import Folder


class Counter:
    """A meter whose counters gain what they are told to, each time they are read."""

    step_s = step_j = min_window_s = 0.0
    most_power_w, bound, scope, reason = 1e12, (-0.1, 0.1), "a counter", None

    def __init__(self, gains_j, label="measured:counter", instrument="counter", limits=None):
        self.total = dict.fromkeys(gains_j, 0.0)
        self.gains_j, self.label, self.instrument, self.limits = gains_j, label, instrument, limits or {}
        self.reads = 0

    def read(self):
        if self.gains_j is None:
            self.reason = f"{self.instrument}: gone"
            return None
        self.reads += 1
        self.total = {name: joules + self.gains_j[name] for name, joules in self.total.items()}
        return dict(self.total)


def ledger_with(path, *meters):
    return ft.Ledger(path, meter=MeterReport(tuple(meters)))


def lines(path):
    """Every line of a ledger, oldest file first."""
    files = sorted((path / "ledger").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def rows(path):
    return read_journal(Folder(path)).rows


def sealed(value):
    """A line as it is written."""
    return _encoded([value])


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    return model


# ---------------------------------------------------------------------------------------------------- phases


def test_phase_writes_a_row_for_each_component(tmp_path):
    """One row a phase and component: what it drew, over which seconds, by which instrument, on which machine."""
    ledger = ledger_with(tmp_path, Counter({"gpu0": 50.0, "package-0": 30.0}))
    with ledger.phase("my work", rows=7, size_bytes=99) as phase:
        pass
    first, second = rows(tmp_path)
    assert [(row.component, row.energy_j) for row in (first, second)] == [("gpu0", 50.0), ("package-0", 30.0)]
    assert first.span == second.span == phase.span
    assert (first.phase, first.label, first.instrument) == ("my work", "measured:counter", "counter")
    assert first.facts == {"rows": 7, "size_bytes": 99}
    assert first.machine == this_machine().id
    assert (first.outcome, first.parent, first.part) == ("done", None, 0)
    assert first.interval_j == pytest.approx((45.0, 55.0))
    assert (phase.energy_j, phase.energy_source) == (80.0, "measured:counter, counter")
    assert abs(first.start - time.time()) < 60
    assert phase.time_s == first.time_s > 0


def test_phase_reads_each_meter_twice(tmp_path):
    """Two reads a phase, however long it is and however often it laps, where no counter wraps."""
    counter = Counter({"gpu0": 1.0})
    ledger = ledger_with(tmp_path, counter)
    ledger.meters  # noqa: B018 - looked for before
    counter.reads = 0
    with ledger.phase("work") as phase:
        for _ in range(100):
            phase.lap()
    assert counter.reads == 2


def test_phase_without_a_meter_is_timed_and_says_why(tmp_path):
    """No counter: the joules are null on disk, None in Python, and the reason is there."""
    with ft.Ledger(tmp_path, meter=MeterReport(unavailable=(("nvml", "no driver"),))).phase("work") as phase:
        pass
    (row,) = [line for line in lines(tmp_path) if line["kind"] == "phase"]
    assert (row["energy_j"], row["label"], row["component"]) == (None, "unavailable", None)
    assert (phase.energy_j, phase.energy_source) == (None, "nvml: no driver")
    assert row["time_s"] > 0


def test_a_component_that_stood_still_is_not_measured(tmp_path):
    """0 J is no answer: a counter that did not move did not count, and its part leaves the sum unknown."""
    with ledger_with(tmp_path, Counter({"package-0": 5.0, "package-0/dram": 0.0})).phase("work") as phase:
        pass
    assert [row.energy_j for row in rows(tmp_path)] == [5.0, None]
    assert (phase.energy_j, phase.amount.known_j) == (None, 5.0)
    assert "did not move" in phase.energy_source


def test_one_meter_that_fails_does_not_hide_the_other(tmp_path):
    """What is known is kept; the sum says that a part is missing."""
    gone = Counter({"gpu0": 1.0}, instrument="nvml")
    ledger = ledger_with(tmp_path, Counter({"package-0": 5.0}), gone)
    with ledger.phase("work") as phase:
        gone.gains_j = None
    known, missing = rows(tmp_path)
    assert (known.energy_j, missing.energy_j, missing.component, missing.reason) == (5.0, None, "gpu0", "nvml: gone")
    assert (phase.energy_j, phase.amount.known_j) == (None, 5.0)


def test_a_meter_that_raises_costs_no_work(tmp_path):
    """Whatever a meter does, the block runs and its own result and errors come out."""

    class Broken(Counter):
        def read(self):
            if self.reads > 0:
                raise RuntimeError("driver fell over")
            return super().read()

    with ledger_with(tmp_path, Broken({"gpu0": 1.0})).phase("work") as phase:
        result = 5
    assert (result, phase.energy_j, phase.energy_source) == (5, None, "counter: driver fell over")


def test_a_wall_meter_holds_what_counters_see(tmp_path):
    """Plug and counters side by side: the sum is the plug's, the counters are told as parts of it."""
    wall = Counter({"wall": 100.0}, "measured:wall", "wall meter")
    ledger = ledger_with(tmp_path, wall, Counter({"gpu0": 60.0}))
    with ledger.phase("work") as phase:
        pass
    assert [(row.component, row.inside) for row in rows(tmp_path)] == [("wall", None), ("gpu0", "wall")]
    assert (phase.energy_j, phase.amount.label) == (100.0, "measured:wall")
    wall.gains_j = None
    with ledger.phase("work") as phase:
        pass
    assert phase.energy_j is None  # the counters alone are not all that the plug would have seen
    assert phase.amount.known_j == 60.0


def test_phases_nest(tmp_path):
    """The outer phase holds the inner one, which counts too; two after each other add up to no more."""
    ledger = ledger_with(tmp_path, Counter({"gpu0": 10.0}))
    with ledger.phase("outer") as outer:
        with ledger.phase("first") as first:
            pass
        with ledger.phase("second"):
            pass
    parents = {row.phase: row.parent for row in rows(tmp_path)}
    assert parents == {"first": outer.span, "second": outer.span, "outer": None}
    assert first.energy_j == 10.0
    assert outer.energy_j == 50.0


def test_a_failed_phase_is_written_down(tmp_path):
    """Failed and interrupted work was paid for; its error comes out as it was."""
    ledger = ledger_with(tmp_path, Counter({"gpu0": 10.0}))
    with pytest.raises(KeyError), ledger.phase("work"):
        raise KeyError("x")
    with pytest.raises(KeyboardInterrupt), ledger.phase("work"):
        raise KeyboardInterrupt
    told = [(row.outcome, row.facts["error"], row.energy_j) for row in rows(tmp_path)]
    assert told == [("failed", "KeyError", 10.0), ("interrupted", "KeyboardInterrupt", 10.0)]


def test_a_phase_of_another_thread_does_not_count_the_same_joules(tmp_path):
    """Two phases at once in one process: one of them counts, the other says who did."""
    ledger = ledger_with(tmp_path, Counter({"gpu0": 10.0}))
    found = {}

    def work():
        with ledger.phase("beside") as phase:
            pass
        found["phase"] = phase

    with ledger.phase("first") as first:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert first.energy_j is not None
    assert found["phase"].energy_j is None
    assert "counted by" in found["phase"].energy_source


@pytest.mark.parametrize("plug_first", [True, False])
def test_a_plug_and_a_counter_do_not_count_the_same_joules(tmp_path, plug_first):
    """One run reads a plug, another a counter of the same machine: together they count no more than was drawn."""
    plug = ledger_with(tmp_path, Counter({"wall": 100.0}, "measured:wall", "wall meter"))
    counter = ledger_with(tmp_path, Counter({"gpu0": 60.0}))
    first, second = (plug, counter) if plug_first else (counter, plug)
    with first.phase("first") as whole:
        thread = threading.Thread(target=lambda: second.phase("beside").__enter__().__exit__(None, None, None))
        thread.start()
        thread.join()
    assert whole.energy_j is not None
    known = [row.energy_j for row in rows(tmp_path) if row.energy_j is not None]
    assert known == [whole.energy_j]
    with plug.phase("outer") as outer, counter.phase("inner") as inner:  # held by the plug's: told, and not added
        pass
    assert (outer.energy_j, inner.energy_j) == (100.0, 60.0)


def test_a_phase_begins_once(tmp_path):
    """A phase is one stretch of time."""
    phase = ft.Ledger(tmp_path, meter=None).phase("work")
    with phase:
        pass
    with pytest.raises(EnergyError, match="twice"), phase:
        pass
    with pytest.raises(EnergyError, match="expected a word"):
        ft.Ledger(tmp_path, meter=None).phase("  ")


def test_a_long_phase_is_written_down_in_parts(tmp_path, monkeypatch):
    """A kill costs a minute of the account: parts follow each other, add up, and only the last one has an outcome."""
    monkeypatch.setattr(phases, "PART_S", 0.0)
    with ledger_with(tmp_path, Counter({"gpu0": 10.0})).phase("work") as phase:
        phase.add(rows=1)
        phase.lap()
        phase.add(rows=2)
        phase.lap()
        written = rows(tmp_path)
    assert [(row.part, row.energy_j, row.outcome, row.facts["rows"]) for row in written] == [
        (0, 10.0, None, 1), (1, 10.0, None, 2),
    ]  # fmt: skip
    assert [row.outcome for row in rows(tmp_path)] == [None, None, "done"]
    assert phase.energy_j == 30.0
    assert phase.time_s == pytest.approx(sum(row.time_s for row in rows(tmp_path)))


def test_nothing_falls_between_two_parts(tmp_path, monkeypatch):
    """Parts share their reads: however often a phase is written down, its joules are what the counter gained."""
    monkeypatch.setattr(phases, "PART_S", 0.0)
    counter = Counter({"gpu0": 7.0})
    ledger = ledger_with(tmp_path, counter)
    with ledger.phase("work") as phase:
        begun = counter.total["gpu0"]
        for _ in range(5):
            phase.lap()
    assert len({row.part for row in rows(tmp_path)}) == 6
    assert phase.energy_j == counter.total["gpu0"] - begun


def test_a_coarse_counter_is_not_cut_into_parts_that_saw_nothing(tmp_path, monkeypatch):
    """A plug that counts in watt-hours is written down when it has moved by many steps, not each minute."""
    monkeypatch.setattr(phases, "PART_S", 0.0)
    plug = Counter({"wall": 0.0}, "measured:wall", "wall meter")
    plug.step_j = 3600.0
    with ledger_with(tmp_path, plug).phase("work") as phase:
        for _ in range(3):
            phase.lap()
        plug.gains_j = {"wall": 3600.0 * 25}
        phase.lap()
        assert [row.part for row in rows(tmp_path)] == [0]
    assert phase.energy_j == 2 * 25 * 3600.0


def test_a_component_that_others_counted_is_taken_up_when_they_are_done(tmp_path, monkeypatch):
    """Refused at first, counted from the next part on: the sum says that it is not whole."""
    monkeypatch.setattr(phases, "PART_S", 0.0)
    other = Ownership()
    other.take(["gpu0"])
    with ledger_with(tmp_path, Counter({"gpu0": 5.0})).phase("work") as phase:
        phase.lap()
        other.release()
        phase.lap()
    assert [row.energy_j for row in rows(tmp_path)] == [None, None, 5.0]
    assert (phase.energy_j, phase.amount.known_j) == (None, 5.0)


SIDE_BY_SIDE = """
import sys, time
from pathlib import Path
import forethought as ft
from forethought.energy import find_meters, ownership
from types import SimpleNamespace
ownership.FOLDER = Path(sys.argv[1])
driver = SimpleNamespace(NVMLError=OSError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 0)
report = find_meters(nvml=driver, powercap=Path(sys.argv[1]) / "cap")
with ft.Ledger(Path(sys.argv[1]) / "other", meter=report).phase("work") as phase:
    print("begun", flush=True)
    sys.stdin.readline()
print(phase.energy_j, phase.energy_source)
"""


@pytest.mark.slow
def test_processes_side_by_side_count_a_joule_once(tmp_path, monkeypatch):
    """Two processes, one set of counters: one counts all of it, the other says who did, and the sum is what was drawn."""
    monkeypatch.setattr("forethought.energy.ownership.FOLDER", tmp_path)
    folder = zone(tmp_path / "cap", "intel-rapl:0", "package-0", 100)
    report = find_meters(nvml=FakeNvml(), powercap=tmp_path / "cap")
    with ft.Ledger(tmp_path / "mine", meter=report).phase("work") as phase:
        child = subprocess.Popen(
            [sys.executable, "-c", SIDE_BY_SIDE, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline() == "begun\n"
        (folder / "energy_uj").write_text("142000000")
        said, _ = child.communicate("\n")
    assert said.startswith("None counted by ")
    assert str(os.getpid()) in said or "another process" in said
    total = Amount.total([phase.amount, *(amount_of([row]) for row in rows(tmp_path / "other"))])
    assert (phase.energy_j, total.known_j) == (pytest.approx(42.0), pytest.approx(42.0))


def test_counters_that_wrap_are_followed_by_laps(tmp_path, monkeypatch):
    """A lap reads the counters that wrap, and no others: a wall meter's command is not run for it."""
    monkeypatch.setattr(parts, "_LAP_S", 0.0)
    wrapping = Counter({"package-0": 1.0}, limits={"package-0": Limit(1e6, 10.0)})
    plain = Counter({"gpu0": 1.0})
    ledger = ledger_with(tmp_path, wrapping, plain)
    ledger.meters  # noqa: B018 - looked for before
    before = wrapping.reads, plain.reads
    with ledger.phase("work") as phase:
        phase.lap()
    assert (wrapping.reads - before[0], plain.reads - before[1]) == (3, 2)


KILLED = """
import os, signal, sys, time
import forethought as ft
from forethought.ledger import phases
phases.PART_S = 0.0
with ft.Ledger(sys.argv[1], meter=None).phase("work") as phase:
    for at in range(5):
        phase.add(rows=at)
        phase.lap()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_phase_leaves_what_was_written(tmp_path):
    """kill -9 takes the end of the account, not the account."""
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert [(row.part, row.outcome) for row in rows(tmp_path)] == [(at, None) for at in range(5)]


def test_waiting_is_told_aside(tmp_path):
    """What goes on beside other work has seconds of its own, and no joules of its own."""
    with ledger_with(tmp_path, Counter({"gpu0": 10.0})).phase("work") as phase:
        assert list(phase.timed("read", iter(range(3)))) == [0, 1, 2]
        phase.aside("write", 1.5, rows=3)
    read, write = [row for row in rows(tmp_path) if row.parent == phase.span]
    assert (read.phase, read.energy_j, read.label) == ("read", None, "unavailable")
    assert (write.time_s, write.facts, write.outcome) == (1.5, {"rows": 3}, "done")
    assert phase.energy_j == 10.0


def test_timed_closes_what_it_reads(tmp_path):
    """A reading that is left early is closed, and told."""
    closed = []

    def items():
        try:
            yield from range(10)
        finally:
            closed.append(1)

    with ft.Ledger(tmp_path, meter=None).phase("work") as phase:
        reading = phase.timed("read", items())
        next(reading)
        reading.close()
    assert closed == [1]
    assert [row.phase for row in rows(tmp_path)] == ["work", "read"]


def test_others_at_work_are_told(tmp_path, monkeypatch):
    """Joules that others drew as well are flagged; without a way to know it, nothing is claimed."""
    loads = iter([Load(0.0, 0.0, 0.0), Load(10.0, 12.0, 2.0), Load(0.0, 0.0, 0.0), Load(10.0, 3.0, 2.0), None, None])
    monkeypatch.setattr(parts.Load, "read", lambda: next(loads))
    ledger = ledger_with(tmp_path, Counter({"gpu0": 1.0}))
    told = []
    for _ in range(3):
        with ledger.phase("work") as phase:
            pass
        told.append((phase.is_shared, rows(tmp_path)[-1].others_cores))
    assert told == [(True, 1.0), (False, pytest.approx(0.1)), (None, None)]


def test_strangers_on_the_gpu_are_told(tmp_path):
    """Another process on a GPU draws from its counter."""
    from types import SimpleNamespace

    nvml = FakeNvml(gpu(1000))
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda _: [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)]
    with ft.Ledger(tmp_path, meter=find_meters(nvml=nvml, powercap=tmp_path / "none")).phase("work") as phase:
        pass
    assert phase.is_shared is True


def test_idle_is_a_phase(tmp_path):
    """The baseline is measured like everything else."""
    slept = []
    phase = ledger_with(tmp_path, Counter({"gpu0": 30.0})).idle(30.0, sleep=slept.append)
    assert (slept, phase.energy_j) == ([30.0], 30.0)
    assert rows(tmp_path)[0].phase == "idle"


@pytest.mark.parametrize("meter", [5, object(), [], ["auto"], {}])
def test_what_is_no_meter_is_refused(tmp_path, meter):
    """A wrong meter is said when it is first asked for, with what would do."""
    with pytest.raises(EnergyError, match="meter='auto'"), ft.Ledger(tmp_path, meter=meter).phase("work"):
        pass
    with ft.Ledger(tmp_path, meter=None).phase("after") as phase:
        pass
    assert phase.rows[0].parent is None  # the one that could not begin is around nothing


def test_meters_are_what_the_user_gives(tmp_path):
    """A command and a function are wall meters beside the counters; a meter of one's own is read alone."""
    assert ft.Ledger(tmp_path, meter="echo 3").meters.meters[0].label == "measured:wall"
    assert ft.Ledger(tmp_path, meter=lambda: 3.0).meters.meters[0].read() == {"wall": 1.08e7}
    assert ft.Ledger(tmp_path, meter=WallMeter(lambda: 3.0)).meters.meters[0].label == "measured:wall"
    own = Counter({"x": 1.0})
    assert ft.Ledger(tmp_path, meter=own).meters.meters == (own,)
    assert ft.Ledger(tmp_path, meter=[own]).meters.meters == (own,)


def test_declared_watts_stand_in_where_nothing_measures(tmp_path):
    """Stated watts are used only without a meter, and always called declared."""
    with ft.Ledger(tmp_path, meter=None, watts=100.0).phase("work") as phase:
        time.sleep(0.01)
    assert phase.amount.label == "declared"
    assert phase.energy_j == pytest.approx(100.0 * phase.time_s, rel=0.2)
    assert ft.Ledger(tmp_path, meter=Counter({"x": 1.0}), watts=100.0).meters.meters[0].label == "measured:counter"


def test_meters_that_cannot_be_looked_for_are_a_reason(tmp_path, monkeypatch):
    """A driver that breaks while it is looked for does not break the work."""
    monkeypatch.setattr(parts, "find_meters", lambda **_: 1 / 0)
    with ft.Ledger(tmp_path).phase("work") as phase:
        pass
    assert phase.energy_source == "meters: division by zero"


# ---------------------------------------------------------------------------------------------------- amounts


@given(st.lists(st.tuples(st.sampled_from(LABELS[:-1]), st.floats(0.001, 1e9)), min_size=1, max_size=8))
def test_sums_keep_their_labels(parts):
    """However joules are added up, each label keeps its share, and the sum's label is the weakest that matters."""
    amounts = [Amount.of(joules, label) for label, joules in parts]
    total = Amount.total(amounts)
    nested = Amount.total([Amount.total(amounts[:2]), Amount.total(amounts[2:])]) if len(amounts) > 2 else total
    assert total.energy_j == pytest.approx(sum(joules for _, joules in parts))
    assert nested.by_label == pytest.approx(total.by_label)
    weight = sum(joules for _, joules in parts)
    mattering = [label for label in LABELS if sum(j for name, j in parts if name == label) > 0.05 * weight]
    assert total.label == mattering[-1]
    assert total.measured_share == pytest.approx(sum(j for name, j in parts if name.startswith("measured")) / weight)


def test_a_sum_with_an_unknown_part_is_unknown():
    """Missing is null: what is known is told beside it, never as the sum; and nothing is not 0."""
    total = Amount.total([Amount.of(5.0, "measured:counter", (4.0, 6.0)), Amount.unknown("no counter")])
    assert (total.energy_j, total.known_j, total.interval_j, total.reasons) == (None, 5.0, None, ("no counter",))
    assert Amount.total([]).energy_j is None
    assert total.to_dict()["energy_kwh"] is None
    assert total.to_dict()["at_least_j"] == 5.0


def test_intervals_add_up():
    """One instrument errs one way: intervals add, and a part without one leaves none."""
    parts = [Amount.of(10.0, "measured:counter", (9.0, 11.0)), Amount.of(20.0, "measured:counter", (18.0, 22.0))]
    assert Amount.total(parts).interval_j == (27.0, 33.0)
    assert Amount.total([*parts, Amount.of(1.0, "declared")]).interval_j is None


def test_net_is_gross_less_idle():
    """Net may be less than nothing, and is unknown when either side is."""
    gross, idle = Amount.of(100.0, "measured:counter", (90.0, 110.0)), Amount.of(60.0, "measured:counter", (54.0, 66.0))
    net = gross.less(idle)
    assert (net.energy_j, net.interval_j, net.label) == (40.0, (36.0, 44.0), "measured:counter")
    assert idle.less(gross).energy_j == -40.0
    assert gross.less(Amount.unknown("no baseline")).energy_j is None
    assert gross.less(Amount.of(60.0, "declared")).label == "declared"


# --------------------------------------------------------------------------------------------------- on disk


def test_rows_come_back_as_they_were(tmp_path):
    """Reading undoes writing."""
    row = Row("ab", "work", "m", 1e9, 2.5, "cd", 3, "gpu0", 7.0, "measured:counter", "nvml", "gpu0", (6.0, 8.0),
              None, "wall", 0.5, True, 1e-4, "done", {"rows": 3, "heads": [{"name": "a"}]})  # fmt: skip
    assert read_row(json.loads(json.dumps(row.to_json()))) == row


@pytest.mark.parametrize(
    ("label", "energy_j"),
    [("measured:counter", None), ("unavailable", 5.0), ("guessed", 5.0), (None, 5.0), ("measured:counter", -1.0)],
)
def test_a_label_that_lies_is_not_believed(label, energy_j):
    """A number without a word for how it is known, or a word without a number, is no measurement."""
    value = Row("ab", "work", "m", 1e9, 2.5).to_json() | {"label": label, "energy_j": energy_j}
    row = read_row(value)
    assert row is None or (row.energy_j, row.label) == (None, "unavailable")
    assert row is not None or label is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*Row.__dataclass_fields__, "kind"]), anything))
def test_whatever_a_row_says_it_is_read(value):
    """Ledgers come from anywhere: no line breaks a reader, and none brings an impossible number."""
    found = Journaled()
    found.read(
        json.dumps(
            {"kind": "phase", "span": "a", "phase": "p", "machine": "m", "start": 1, "time_s": 1} | value
        ).encode()
    )
    for row in found.rows:
        json.dumps(row.to_json(), allow_nan=False)
        assert row.energy_j is None or row.energy_j >= 0
        amount_of([row])


def test_torn_and_foreign_lines_are_counted(tmp_path):
    """A line that cannot be read harms no other, and is told."""
    with ft.Ledger(tmp_path, meter=None).phase("work"):
        pass
    (path,) = (tmp_path / "ledger").iterdir()
    with path.open("ab") as file:
        file.write(b'{"kind":"phase","span":"x"\n\xff\xfe\n[1]\n\n')
        file.write(sealed({"kind": "to come"}) + sealed({"kind": "header", "format": 2}) + sealed([1]))
    found = read_journal(Folder(tmp_path))
    assert (len(found.rows), found.unreadable, found.cut_short) == (1, 6, 0)


@given(st.data())
def test_a_flipped_byte_is_no_number(data):
    """Whatever byte of a line changes, what it said is not believed; other lines are."""
    raw = b"".join(sealed(Row("ab", "work", "m", 1e9, at + 0.5).to_json()) for at in range(3))
    at = data.draw(st.integers(0, len(raw) - 1))
    flipped = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    found = Journaled()
    found.read(flipped)
    assert found.unreadable >= 1
    assert len(found.rows) in (1, 2)
    assert {row.time_s for row in found.rows} <= {0.5, 1.5, 2.5}


def test_a_line_that_was_cut_short_harms_no_later_one(tmp_path):
    """After a full disk the next row begins on a line of its own."""
    ledger = ft.Ledger(tmp_path, meter=None)
    with ledger.phase("first"):
        pass
    (path,) = (tmp_path / "ledger").iterdir()
    with path.open("ab") as file:
        file.write(b'{"kind":"ph')
    assert (read_journal(Folder(tmp_path)).unreadable, read_journal(Folder(tmp_path)).cut_short) == (0, 1)
    with ledger.phase("second"):
        pass
    found = read_journal(Folder(tmp_path))
    assert ([row.phase for row in found.rows], found.unreadable) == (["first", "second"], 1)


def test_a_process_writes_one_file(tmp_path):
    """Many ledgers of one place in one process share a file, which begins with what machine it was."""
    for _ in range(3):
        with ft.Ledger(tmp_path, meter=None).phase("work"):
            pass
    assert len(list((tmp_path / "ledger").iterdir())) == 1
    kinds = [line["kind"] for line in lines(tmp_path)]
    assert kinds == ["header", "meters", *["begin", "phase"] * 3]  # one that is killed was there all the same
    assert lines(tmp_path)[0]["machine"]["id"] == this_machine().id


def append_many(path, count):
    for at in range(count):
        with ft.Ledger(path, meter=None).phase("work", rows=at):
            pass


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(tmp_path):
    """Each has a file of its own, and knows the machine by the same sign, which does not tell its name."""
    program = "import sys; from test_ledger import append_many; append_many(sys.argv[1], 40)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    begun = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment) for _ in range(2)]
    assert [process.wait() for process in begun] == [0, 0]
    assert sorted(row.facts["rows"] for row in rows(tmp_path)) == sorted([*range(40)] * 2)
    assert {row.machine for row in rows(tmp_path)} == {this_machine().id}


def test_a_forked_child_writes_a_file_of_its_own(tmp_path):
    """Two processes never append to one file."""
    journal = journal_of(Folder(tmp_path), makes_root=True)
    journal.append([])
    name, process = journal._name, journal._process
    journal._process = process + 1  # as it is after a fork
    journal.append([])
    assert journal._name != name


def test_numbers_that_are_none_are_null_on_disk(tmp_path):
    """Facts of any kind become JSON: no NaN, no object, no error."""
    with ft.Ledger(tmp_path, meter=None).phase("work", loss=float("nan"), t=torch.tensor(3), p=tmp_path, s={1}):
        pass
    assert rows(tmp_path)[0].facts == {"loss": None, "t": 3, "p": str(tmp_path), "s": [1]}


def test_a_ledger_that_cannot_be_written_costs_no_work(tmp_path, caplog):
    """The account is lost, and said to be; the work and its error are what they were."""
    (tmp_path / "file").write_text("")
    with (
        caplog.at_level(logging.WARNING, "forethought"),
        ft.Ledger(tmp_path / "file" / "x", meter=None).phase("work") as phase,
    ):
        result = 5
    assert (result, phase.time_s > 0) == (5, True)
    assert "is not kept" in caplog.text


def test_a_ledger_makes_its_folder_and_a_store_may_move_in(tmp_path):
    """A folder that holds a ledger and nothing else may become a store."""
    with ft.Ledger(tmp_path / "new" / "run", meter=None).phase("work"):
        pass
    assert ft.Store(tmp_path / "new" / "run").tables() == []


def test_a_ledger_in_a_bucket_writes_a_file_a_phase():
    """Where nothing can be appended each writing is a file, and none is lost."""
    store = ft.Store("memory://ledger-test")
    for name in ("first", "second"):
        with ft.Ledger(store, meter=None).phase(name):
            pass
    assert sorted(row.phase for row in read_journal(store.place).rows) == ["first", "second"]


def test_the_machine_is_told_without_its_name():
    """Ledgers travel with stores: what they say of a machine names nobody."""
    assert os.uname().nodename not in json.dumps(this_machine().to_dict())


# ----------------------------------------------------------------------------------------------- the library


def test_extract_writes_what_it_cost(tmp_path):
    """Computing, reading and writing are told beside the store, with what crossed the frontier."""
    ft.extract(make_model(), torch.randn(50, 4), tmp_path / "store")
    found = {row.phase: row for row in rows(tmp_path / "store")}
    assert found.keys() == {"extract", "read", "write"}
    extract, write = found["extract"], found["write"]
    assert (extract.facts["rows"], extract.facts["rows_computed"], extract.facts["rows_reused"]) == (50, 50, 0)
    assert extract.facts["model"] == "Sequential"
    assert [crossing[1:] for crossing in extract.facts["frontier"]] == [[[8], "torch.float32", 32]]
    assert (write.parent, write.facts["rows"]) == (extract.span, 50)
    assert 0 < write.time_s <= extract.time_s


def test_extract_of_stored_rows_knows_what_it_avoided(tmp_path):
    """The price of rows is kept with them: whoever reuses them knows it."""
    first = ft.extract(make_model(), torch.randn(50, 4), tmp_path).report
    torch.manual_seed(1)
    inputs = torch.randn(60, 4)
    second = ft.extract(make_model(), inputs, tmp_path).report
    reused = ft.extract(make_model(), inputs, tmp_path).report
    assert (first.rows_computed, second.rows_computed, reused.rows_reused) == (50, 60, 60)
    assert reused.avoided_s == pytest.approx(60 * (first.time_s + second.time_s) / 110)
    assert reused.avoided_j is None
    assert "on this machine" in reused.avoided_source
    (row,) = [row for row in rows(tmp_path) if row.facts.get("rows_reused") == 60]
    assert row.facts["avoided_s"] == reused.avoided_s


@pytest.mark.parametrize(
    ("entries", "time_s", "energy_j", "remark"),
    [
        ((), None, None, "not recorded"),
        ((Entry(1.0, 10, 5.0, 50.0, machine="here", device="cpu", label="measured:counter"),), 10.0, 100.0, "this machine"),
        ((Entry(1.0, 10, 5.0, None, machine="here", device="cpu"),), 10.0, None, "this machine"),
        ((Entry(1.0, 10, 5.0, 50.0, machine="elsewhere", device="cpu"),), None, None, "measured elsewhere: 10 rows took 5.0 s"),
        ((Entry(1.0, 10, 5.0, 50.0, machine="here", device="cuda"),), None, None, "measured elsewhere"),
        ((Entry(1.0, 10, 5.0),), None, None, "measured elsewhere"),  # a note that does not say where
    ],
)  # fmt: skip
def test_what_was_measured_elsewhere_is_told_and_not_converted(entries, time_s, energy_j, remark):
    """Costs of another machine or device are shown as such, and never taken for ours."""
    found = avoided(entries, 20, "here", "cpu")
    assert (found.time_s, found.energy_j) == (time_s, energy_j)
    assert remark in found.remark


def test_a_failed_extraction_is_written_down(tmp_path):
    """Aborted work was paid for too."""

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 200

        def __getitem__(self, index):
            if index == 150 and self.armed:
                raise OSError("disk")
            return torch.full((4,), float(index))

    data = Broken()
    data.armed = True
    with pytest.raises(OSError, match="disk"):
        ft.extract(make_model(), data, tmp_path, batch_size=10)
    (row,) = [row for row in rows(tmp_path) if row.phase == "extract"]
    assert (row.outcome, row.facts["error"]) == ("failed", "OSError")
    assert row.facts["rows_computed"] >= 100


def test_verifying_is_paid_by_the_store(tmp_path):
    """Rows computed once more to be compared cost time, and that is written down."""
    features = ft.extract(make_model(), torch.randn(50, 4), tmp_path)
    assert features.verify(16).is_right
    (verify,) = [row for row in rows(tmp_path) if row.phase == "verify"]
    assert verify.facts == {"table": features.table.fingerprint, "rows": 16}


def test_a_store_that_cannot_be_written_serves_without_an_account(tmp_path):
    """A complete hit on a read-only store writes nothing at all."""
    inputs = torch.randn(20, 4)
    ft.extract(make_model(), inputs, tmp_path / "s")
    before = lines(tmp_path / "s")
    assert ft.extract(make_model(), inputs, ft.Store(tmp_path / "s", readonly=True)).report.rows_reused == 20
    assert lines(tmp_path / "s") == before


def test_the_ledger_around_the_work_is_told_too(tmp_path):
    """Inside a `with Ledger` block rows go to both, under one span, so that they can be put together."""
    counter = Counter({"gpu0": 5.0})
    with ledger_with(tmp_path / "run", counter) as ledger, ledger.phase("experiment") as outer:
        ft.extract(make_model(), torch.randn(20, 4), tmp_path / "store")
    ours = {row.span: row for row in rows(tmp_path / "run") if row.phase == "extract"}
    stores = {row.span: row for row in rows(tmp_path / "store") if row.phase == "extract"}
    assert ours.keys() == stores.keys()
    assert next(iter(ours.values())).parent == outer.span
    assert next(iter(stores.values())).energy_j == 5.0
    assert phases.active_ledger() is None


def test_find_powercap_in_a_phase(tmp_path):
    """Packages and memory of a real tree of files, each a row, wraps and all."""
    folder = zone(tmp_path / "cap", "intel-rapl:0", "package-0", 100)
    memory = zone(tmp_path / "cap", "intel-rapl:0:0", "dram", 262_143.0)
    report = find_meters(nvml=FakeNvml(), powercap=tmp_path / "cap")
    with ft.Ledger(tmp_path / "run", meter=report).phase("work") as phase:
        time.sleep(0.06)
        (folder / "energy_uj").write_text("101000000")
        (memory / "energy_uj").write_text("5000000")
    found = {row.component: row for row in rows(tmp_path / "run")}
    assert found["package-0"].energy_j == pytest.approx(1.0)
    assert found["package-0/dram"].energy_j is not None
    assert phase.energy_j == pytest.approx(1.0 + found["package-0/dram"].energy_j)


def fit_heads(train, val, names=("a", "b"), **options):
    heads = {name: nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)) for name in names}
    return ft.fit(train, val, heads, progress=False, **{"epochs": 3, "batch_size": 16} | options)


def features_in(path, rows_count, seed):
    torch.manual_seed(seed)
    return ft.extract(make_model(), (torch.randn(rows_count, 4), torch.randn(rows_count)), path)


def test_fit_writes_heads_and_the_rows_they_were_fed(tmp_path):
    """A pass over the data counts once, however many heads shared it; each head is told with its score and cost."""
    train, val = features_in(tmp_path, 50, 1), features_in(tmp_path, 20, 2)
    results = fit_heads(train, val, patience={"a": 1}, epochs={"b": 4})
    (fit,) = [row for row in rows(tmp_path) if row.phase == "fit"]
    epochs = max(len(result.metrics) for result in results)
    assert (fit.facts["epochs"], fit.facts["rows_fed"]) == (epochs, epochs * 70)
    assert fit.facts["fed"] == {train.table.fingerprint: epochs * 70}
    assert {head["name"]: head["score"] for head in fit.facts["heads"]} == {r.name: r.score for r in results}
    (read,) = [row for row in rows(tmp_path) if row.parent == fit.span]
    assert read.phase == "read"
    assert 0 < read.time_s <= fit.time_s


def test_fit_of_tensors_is_told_to_the_ledger_around_it(tmp_path):
    """Without a store there is nothing beside it to write to; a ledger around the work is told all the same."""
    tensors = torch.randn(40, 8), torch.randn(40)
    fit_heads(tensors, tensors)
    with ft.Ledger(tmp_path, meter=None):
        fit_heads(tensors, tensors)
    (fit,) = [row for row in rows(tmp_path) if row.phase == "fit"]
    assert (fit.facts["fed"], fit.facts["rows_fed"]) == ({}, 240)


def test_a_fit_that_fails_was_paid_for(tmp_path):
    """A fit that raises is in the ledger, without rows that were fed."""
    train = features_in(tmp_path, 20, 1)
    with pytest.raises(ft.ForethoughtError):
        ft.fit(train, train, {"bad": nn.Linear(8, 3)}, progress=False)
    (fit,) = [row for row in rows(tmp_path) if row.phase == "fit"]
    assert (fit.outcome, fit.facts.get("fed")) == ("failed", None)


def test_asides_add_up(tmp_path):
    """What goes on again and again is one row: its seconds and counts are sums."""
    with ft.Ledger(tmp_path, meter=None).phase("work") as phase:
        for _ in range(3):
            phase.aside("write", 0.5, rows=2, note="x")
    (write,) = [row for row in rows(tmp_path) if row.phase == "write"]
    assert (write.time_s, write.facts) == (1.5, {"rows": 6, "note": "x"})


def test_a_ledger_that_cannot_be_written_says_so_once(tmp_path, caplog, monkeypatch):
    """Once for each time that it begins to fail, however much is done meanwhile: on a read-only mount, say."""
    ledger, is_full = ft.Ledger(tmp_path, meter=None), [True]
    append = Journal._append

    def refuse(self, lines, meters):
        if is_full[0]:
            raise OSError(30, "Read-only file system")
        append(self, lines, meters)

    monkeypatch.setattr(Journal, "_append", refuse)
    with caplog.at_level(logging.WARNING, "forethought"):
        for is_full[0] in (True, True, True, False, True, True):
            with ledger.phase("work"):
                pass
    assert caplog.text.count("is not kept") == 2


def test_a_store_that_vanished_costs_the_account_and_not_the_fit(tmp_path, caplog):
    """Rows that are in memory train heads; the store is not made again, half, to hold an account."""
    import shutil

    train = features_in(tmp_path / "s", 20, 1)
    for _ in train.batches(8):
        pass
    shutil.rmtree(tmp_path / "s")
    with caplog.at_level(logging.WARNING, "forethought"), suppress(OSError):
        fit_heads(train, train)  # its rows may be gone, which is another matter
    assert not (tmp_path / "s").exists()
    assert "is not kept" in caplog.text
