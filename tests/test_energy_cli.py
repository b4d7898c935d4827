"""`forethought report` and `forethought energy`, as they are typed."""

import json
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import forethought as ft
from forethought import energy_cli
from forethought.cli import app, main
from forethought.energy import MeterReport, WallMeter, find_meters
from forethought.errors import EnergyError
from forethought.ledger.journal import journal_of, read_journal
from forethought.ledger.rows import Row
from forethought.report.watching import watch
from forethought.store.folder import Folder

run = CliRunner()


@pytest.fixture
def ledger(tmp_path):
    """A run that drew one kilowatt-hour by a counter."""
    row = Row(
        "a", "extract", "m", 1.7e9, 100.0, component="gpu0", energy_j=3.6e6, label="measured:counter", outcome="done"
    )
    journal_of(Folder(tmp_path / "run"), makes_root=True).append([row.to_json()])
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ([], "run, "),
        (["--format", "html"], "<!DOCTYPE html>"),
        (["--json"], "{"),
        (["--format", "markdown"], "## Energy of run"),
        (["--format", "csv"], "timestamp,project_name"),
        (["--format", "boamps"], "{"),
    ],
)
def test_report_has_many_forms(ledger, options, begins):
    """Text for a person, and every other form on request, alone on stdout."""
    result = run.invoke(app, ["report", str(ledger), *options])
    assert (result.exit_code, result.stdout.startswith(begins)) == (0, True)
    if begins == "{":
        json.loads(result.stdout)


@pytest.mark.parametrize(
    ("name", "begins"),
    [("r.html", "<!DOCTYPE"), ("r.json", "{"), ("r.md", "##"), ("r.csv", "timestamp"), ("r.txt", "run")],
)
def test_report_goes_to_a_file_in_the_form_of_its_name(ledger, tmp_path, name, begins):
    """--out report.html is a page."""
    result = run.invoke(app, ["report", str(ledger), "--out", str(tmp_path / name)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / name).read_text().startswith(begins)


@pytest.mark.parametrize(("budget", "status"), [("1", 0), ("0.9", 1)])
def test_report_fails_a_job_that_spends_too_much(ledger, budget, status):
    """The report is printed all the same; the verdict is on stderr and in the exit status."""
    result = run.invoke(app, ["report", str(ledger), "--budget-kwh", budget])
    assert result.exit_code == status
    assert "1.00 kWh" in result.stdout
    assert "Budget" in result.stderr


def test_report_compares_with_a_baseline(ledger, tmp_path):
    """A budget beyond what was spent before; a baseline without a budget says nothing."""
    run.invoke(app, ["report", str(ledger), "--out", str(tmp_path / "old.json")])
    same = run.invoke(app, ["report", str(ledger), "--baseline", str(tmp_path / "old.json"), "--budget-kwh", "0"])
    assert (same.exit_code, "0 kWh spent more than the 1 kWh of the baseline" in same.stderr) == (0, True)
    assert run.invoke(app, ["report", str(ledger), "--baseline", "x"]).exit_code == 2


def test_report_takes_the_users_factors(ledger):
    """Price, carbon and PUE from the command line; what is none is refused."""
    result = run.invoke(
        app, ["report", str(ledger), "--price", "0.5 EUR", "--carbon", "381 Germany 2023, OWID", "--pue", "2"]
    )
    assert "0.50 EUR at 0.5 EUR a kWh" in result.stdout
    assert "0.762 kg at 381 g/kWh (Germany 2023, OWID, PUE 2" in result.stdout
    assert isinstance(run.invoke(app, ["report", str(ledger), "--price", "free"]).exception, EnergyError)


def test_report_of_nothing_is_one_line(tmp_path, monkeypatch, capsys):
    """What cannot be reported on is said in a line on stderr, status 1."""
    monkeypatch.setattr(sys, "argv", ["forethought", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr()
    assert (left.value.code, told.out) == (1, "")
    assert told.err.startswith("Error: Cannot report on")


def plug(monkeypatch, step_kwh=0.00005):
    """A wall meter that gains 180 joules whenever it is asked."""
    total = [100.0]

    def read():
        total[0] += step_kwh
        return total[0]

    meter = WallMeter(read)
    meter.min_window_s = 0.0
    monkeypatch.setattr(energy_cli, "find_meters", lambda **_: MeterReport((meter,), (("nvml", "no driver"),)))
    return meter


def test_energy_doctor_says_what_is_there_and_why_not(monkeypatch):
    """Each instrument with label, scope, error and watts; each that is missing with its reason."""
    plug(monkeypatch)
    text = run.invoke(app, ["energy", "doctor", "--seconds", "0.1"]).stdout
    assert "wall meter: measured:wall, whole machine, at the plug" in text
    assert "error -3% to +3%" in text
    assert "nvml: unavailable: no driver" in text
    assert "not seen: nothing of the machine" in text
    told = json.loads(run.invoke(app, ["energy", "doctor", "--seconds", "0.1", "--json"]).stdout)
    assert told["instruments"][0]["label"] == "measured:wall"
    assert 900.0 < told["instruments"][0]["power_w"]["wall"] <= 1800.0
    assert told["unavailable"] == [["nvml", "no driver"]]


def test_energy_doctor_without_a_counter_makes_nothing_up(monkeypatch):
    """No watts without a meter; the one-line fix stands there."""
    reason = "the counters may not be read by this user. sudo chmod a+r /sys/class/powercap/*/energy_uj"
    monkeypatch.setattr(energy_cli, "find_meters", lambda **_: MeterReport(unavailable=(("powercap", reason),)))
    text = run.invoke(app, ["energy", "doctor"]).stdout
    assert "sudo chmod a+r" in text
    assert " W" not in text
    assert "everything: no energy is measured here" in text


def test_energy_watch_shows_what_is_drawn(monkeypatch):
    """A line an interval: watts now, and what was drawn since the beginning."""
    plug(monkeypatch)
    result = run.invoke(app, ["energy", "watch", "--interval", "0.1", "--count", "2"])
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert "wall " in lines[0]
    assert "| 0.1 Wh in" in lines[1].replace("0.100", "0.1")
    assert "(measured:wall)" in lines[1]


def test_energy_watch_without_a_counter_is_refused(monkeypatch):
    """There is nothing to watch, and the reason says why."""
    with pytest.raises(EnergyError, match="--meter-cmd"):
        next(watch(MeterReport(unavailable=(("nvml", "no driver"),))))


def test_energy_watch_says_when_a_meter_stops(monkeypatch):
    """A plug that does not answer leaves no number for that moment, and the sum says that it is not whole."""
    answers = iter([1.0, 1.5, 1.5, None, 1.5, 2.0])
    meter = WallMeter(lambda: next(answers))
    meter.min_window_s = 0.0
    now = [0.0]
    lines = list(
        islice(
            watch(
                MeterReport((meter,)),
                interval_s=1.0,
                sleep=lambda s: now.__setitem__(0, now[0] + 60),
                clock=lambda: now[0],
            ),
            3,
        )
    )
    assert "wall 3e+04 W" in lines[0]
    assert "wall meter: " in lines[1]
    assert lines[2].endswith("1.00 kWh in 3 min 0 s (measured:wall, at least)")


def test_energy_calibrate_keeps_two_wall_readings(tmp_path):
    """Watts at idle and at work go into the ledger, and reports of this machine use them by name."""
    result = run.invoke(app, ["energy", "calibrate", str(tmp_path), "--wall-idle", "95", "--wall-load", "410"])
    assert result.exit_code == 0, result.output
    (line,) = read_journal(Folder(tmp_path)).others
    assert (line["kind"], line["idle_w"], line["load_w"]) == ("calibration", 95.0, 410.0)
    with ft.Ledger(tmp_path, meter=None).phase("work"):
        pass
    assert "calibrated" in run.invoke(app, ["report", str(tmp_path)]).stdout


def test_energy_calibrate_measures_the_idle_machine(tmp_path, monkeypatch):
    """Where there is a counter the baseline is measured, and called so."""
    monkeypatch.setenv("FORETHOUGHT_METER", "date +%s")  # a plug that gains a kilowatt-hour a second
    monkeypatch.setattr(ft.Ledger, "idle", lambda self, seconds: _idle(self))
    result = run.invoke(app, ["energy", "calibrate", str(tmp_path), "--seconds", "30"])
    assert result.exit_code == 0, result.output
    assert "idle: 10 W (measured:wall)" in result.output


def _idle(ledger):
    from forethought.energy.amounts import Amount

    assert [meter.label for meter in ledger.meters.meters] == ["measured:wall"]
    amount = Amount.of(300.0, "measured:wall")
    return SimpleNamespace(energy_j=300.0, time_s=30.0, amount=amount, is_shared=False, rows=(), facts={})


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({}, "idle: 10 W (measured:wall)\n"),
        ({"is_shared": True}, "this is no baseline"),
        ({"time_s": 5.0, "energy_j": 50.0}, "too short for a baseline"),
        ({"energy_j": None}, "not measured: the plug is gone"),
        (
            {"energy_j": 3600.0, "steps": [3600.0, 1.0]},
            "too few of its steps meanwhile: this is no baseline. Calibrate again: --seconds 600",
        ),
        ({"steps": [1.0, 1.0]}, "idle: 10 W (measured:wall)\n"),
    ],
)
def test_energy_calibrate_says_what_is_no_baseline(about, says, capsys):
    """A machine that was not idle, or not for long enough, is told as such at once, not when a report is made."""
    from forethought.energy.amounts import Amount

    facts = {"energy_j": 300.0, "time_s": 30.0, "is_shared": False} | about
    amount = Amount.of(300.0, "measured:wall") if facts["energy_j"] else Amount.unknown("the plug is gone")
    counted = SimpleNamespace(component="wall", energy_j=facts["energy_j"], time_s=facts["time_s"])
    facts |= {"rows": (counted,), "facts": {"steps": {"wall": facts.pop("steps", None)}}}
    energy_cli._say_idle(SimpleNamespace(amount=amount, **facts), True)
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ([], 1),
        (["--wall-idle", "95"], 2),
        (["--wall-idle", "500", "--wall-load", "410"], 1),
        (["--wall-idle", "1", "--wall-load", "0"], 1),
    ],
)
def test_energy_calibrate_refuses_half_a_calibration(tmp_path, options, status):
    """Nothing to measure with, one reading of two, or an idle machine that draws more: each is said."""
    if find_meters().meters:
        pytest.skip("this machine has a counter")
    assert run.invoke(app, ["energy", "calibrate", str(tmp_path), *options]).exit_code == status
    assert not (tmp_path / "ledger").exists()
