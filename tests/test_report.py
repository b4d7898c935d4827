"""Reports: every sum is right, every label survives, what was not measured is said to be so, on every page."""

import base64
import csv
import io
import json
import math
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import forethought as ft
from forethought.energy import WallMeter
from forethought.energy.meters import BOUNDS, LABELS
from forethought.errors import EnergyError
from forethought.ledger.journal import Journaled, _encoded, journal_of
from forethought.ledger.machine import this_machine
from forethought.ledger.rows import Row
from forethought.ledger.spans import Span
from forethought.report import (
    Carbon,
    Factors,
    Price,
    check_budget,
    gather,
    summarize,
    to_boamps,
    to_csv,
    to_dict,
    to_html,
    to_markdown,
    to_text,
)
from forethought.report.charts import ticks
from forethought.report.exports import CODECARBON, OURS
from forethought.report.gathering import Gathered
from forethought.report.page import bins_of
from forethought.report.sections import grids
from forethought.report.statements import best_of, saving_grid, subline
from forethought.report.units import amount_text, energy_text, time_text
from forethought.savings import Comparison, Side
from forethought.store.folder import Folder

COUNTER, T = "measured:counter", 1.7e9
NUMBER_OF_ENERGY = re.compile(r"\d[\d.,]*\s*(?:[kM]?Wh|J|W|joules?|watts?)\b")


def row(span, phase="extract", energy_j=3.6e6, *, start=T, time_s=100.0, component="gpu0", label=COUNTER, **about):
    """A row of a ledger; joules that are None were not measured."""
    label = "unavailable" if energy_j is None else label
    bound = BOUNDS[label]
    interval_j = None if bound is None or energy_j is None else (energy_j * (1 + bound[0]), energy_j * (1 + bound[1]))
    known = {"machine": "m" * 16, "outcome": "done", "reason": "no counter" if energy_j is None else None}
    return Row(span, phase, start=start, time_s=time_s, component=component, energy_j=energy_j, label=label,
               interval_j=interval_j, **known | about)  # fmt: skip


def journal(*rows, others=()):
    """What these rows tell, as if they had been read."""
    found = Gathered("test")
    found.places.append("test")
    found.journal = Journaled()
    found.journal.read(_encoded([each.to_json() for each in rows]) + _encoded(others))
    assert len(found.journal.rows) == len(rows)
    return found


def comparison(
    uncached_s=(10.0, 10.2, 9.8),
    cached_s=(1.0, 1.1, 0.9),
    watts=300.0,
    *,
    table="t",
    machine="m" * 16,
    label=COUNTER,
    rows=100,
):
    def side(seconds):
        return Side(
            (rows,) * len(seconds), tuple(seconds), tuple(None if watts is None else watts * s for s in seconds)
        )

    return Comparison(
        side(uncached_s), side(cached_s), rows, machine, T, label=label if watts else "unavailable",
        bound=(-0.1, 0.1), is_shared=False, facts={"table": table},
    )  # fmt: skip


def pages(summary):
    """The report in every form that is text."""
    return {
        "text": to_text(summary),
        "html": to_html(summary),
        "markdown": to_markdown(summary),
        "json": json.dumps(to_dict(summary), allow_nan=False),
        "csv": to_csv(summary),
    }


# ------------------------------------------------------------------------------------------------------ sums


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["extract", "fit", "my work"]),
            st.lists(st.none() | st.floats(1.0, 1e9), min_size=1, max_size=3),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_sum_is_right_and_loses_nothing(spans):
    """The total is that of all parts; a part that is unknown leaves the total unknown, and is told with its reason."""
    rows = [
        row(
            f"s{number}",
            phase,
            joules,
            component=f"c{at}",
            start=T + 1000 * number,
            reason=f"why {number} {at}" if joules is None else None,
        )
        for number, (phase, parts, _) in enumerate(spans)
        for at, joules in enumerate(parts)
    ]
    summary = summarize(journal(*rows))
    known = [each.energy_j for each in rows if each.energy_j is not None]
    missing = [each.reason for each in rows if each.energy_j is None]
    assert summary.time_s == pytest.approx(100.0 * len(spans))
    assert (summary.gross.energy_j is None) == bool(missing)
    assert summary.gross.known_j == (pytest.approx(sum(known)) if known else None)
    assert set(summary.gross.reasons) == set(missing)
    assert sum(line.gross.known_j or 0.0 for line in summary.phases) == pytest.approx(sum(known))
    assert sum(line.time_s for line in summary.phases) == pytest.approx(summary.time_s)
    told = to_dict(summary)
    assert sum(
        line["gross"]["energy_j"] or line["gross"]["at_least_j"] or 0.0 for line in told["phases"]
    ) == pytest.approx(sum(known))
    kwh = [
        float(line["energy_consumed"])
        for line in csv.DictReader(io.StringIO(to_csv(summary)))
        if line["energy_consumed"]
    ]
    whole = [sum(parts) for _, parts, _ in spans if None not in parts]
    assert sum(kwh) * 3.6e6 == pytest.approx(sum(whole))


def test_inner_spans_and_walls_are_not_added_again():
    """What lies within another span, or within what the plug has seen, is told beside it and not added."""
    summary = summarize(journal(
        row("outer", "experiment", 100.0, component="wall", label="measured:wall", time_s=500.0),
        row("outer", "experiment", 60.0, component="gpu0", inside="wall", time_s=500.0),
        row("inner", "extract", 40.0, component="wall", label="measured:wall", parent="outer", start=T + 10),
    ))  # fmt: skip
    assert (summary.gross.energy_j, summary.gross.label, summary.time_s) == (100.0, "measured:wall", 500.0)
    assert [(line.name, line.within, line.gross.energy_j) for line in summary.phases] == [
        ("experiment", None, 100.0), ("extract", "experiment", 40.0),
    ]  # fmt: skip
    assert "The wall meter sees the whole machine" in " ".join(to_text(summary).split())


def test_a_part_that_is_missing_is_at_least_on_every_page():
    """A total that lost a part never stands there as if it were whole."""
    summary = summarize(journal(row("a", energy_j=7200.0), row("b", energy_j=None, start=T + 200)))
    told = pages(summary)
    for form in ("text", "html", "markdown"):
        assert "at least 2.00 Wh" in told[form]
    total = json.loads(told["json"])["total"]["gross"]
    assert (total["energy_j"], total["at_least_j"], total["not_measured"]) == (None, 7200.0, ["no counter"])


# --------------------------------------------------------------------------------------------------- no counter


def test_a_machine_without_counters_gets_no_number_that_was_not_measured(tmp_path):
    """A real store, here or with every meter taken away: seconds, and not one number of joules, watts or kWh."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    model[0].requires_grad_(False)
    with ft.Ledger(tmp_path / "run", meter=None):
        train = ft.extract(model, (torch.randn(64, 8), torch.randn(64, 1)), tmp_path / "store")
        ft.extract(model, (torch.randn(64, 8), torch.randn(64, 1)), tmp_path / "store")
        ft.measure_saving(train, nn.Linear(32, 1), batch_size=32, seconds=0.05)
    for place in (tmp_path / "store", tmp_path):
        told = pages(summarize(gather(place)))
        style = files("forethought.report").joinpath("page.css").read_text()
        told["html"] = told["html"].replace(style, "")
        for form, text in told.items():
            assert NUMBER_OF_ENERGY.findall(text) == [], form
        assert "not measured" in told["text"]
        assert "not measured" in told["html"]
        assert "not measured" in told["markdown"]
        assert all(line["gross"]["energy_j"] is None for line in json.loads(told["json"])["phases"])
        lines = list(csv.DictReader(io.StringIO(told["csv"])))
        assert {line[name] for line in lines for name in CODECARBON if "energy" in name or "power" in name} == {""}
    with pytest.raises(EnergyError, match="powerConsumption must be a number"):
        to_boamps(summarize(gather(tmp_path)))


def test_a_report_of_nothing_is_none(tmp_path):
    """A store nobody worked on has a report without numbers."""
    ft.Store(tmp_path / "s")
    summary = summarize(gather(tmp_path / "s"))
    assert summary.gross.energy_j is None
    for text in pages(summary).values():
        assert (
            NUMBER_OF_ENERGY.findall(text.replace(files("forethought.report").joinpath("page.css").read_text(), ""))
            == []
        )
    text = to_text(summary)
    assert "Nothing was recorded yet." in text
    assert "ft.extract(" in text  # what to do
    assert "unknown" not in text  # money and CO2e of nothing
    assert ">0 s<" not in to_html(summary)


# ------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("label", LABELS[:-1])
def test_labels_survive_to_every_page(label):
    """Rule 2: however a number is known, every page says so beside it."""
    summary = summarize(journal(row("a", label=label), row("b", "fit", label=label, start=T + 200)))
    for form, text in pages(summary).items():
        assert label in text, form
    quality = {"measured:wall": "high", COUNTER: "high", "sampled": "medium", "calibrated": "medium"}
    assert to_boamps(summary)["quality"] == quality.get(label, "low")


def test_the_weakest_label_names_the_sum_and_shares_are_told():
    """Rule 3: more than a twentieth of a weaker kind names the sum; the shares stand beside it."""
    summary = summarize(journal(row("a", energy_j=90.0), row("b", energy_j=10.0, label="declared", start=T + 200)))
    assert summary.gross.label == "declared"
    assert "declared (90% measured:counter, 10% declared)" in to_text(summary)
    assert "declared (90% measured:counter, 10% declared)" in to_html(summary)
    little = summarize(journal(row("a", energy_j=97.0), row("b", energy_j=3.0, label="declared", start=T + 200)))
    assert little.gross.label == COUNTER
    assert "97% measured:counter, 3% declared" in to_text(little)


def test_a_label_that_lies_reaches_no_page():
    """A row that claims to be measured and has no number, or has one and claims nothing, is shown as not measured."""
    lies = row("a").to_json() | {"label": "unavailable", "reason": "x"}
    silent = row("b", start=T + 200).to_json() | {"energy_j": None}
    found = Gathered("test", ["test"])
    found.journal.read(_encoded([lies, silent]))
    summary = summarize(found)
    assert [span.amount.energy_j for span in summary.spans] == [None, None]
    assert NUMBER_OF_ENERGY.findall(to_text(summary)) == []


# --------------------------------------------------------------------------------------------------- estimates


def test_watts_are_declared_and_fill_only_what_nothing_measured():
    """--watts stands in for what is missing, by its own name; a measured row stays as it is."""
    found = journal(
        row("a", energy_j=None),
        row("b", energy_j=500.0, start=T + 200),
        row("c", energy_j=None, component=None, start=T + 400),
    )
    summary = summarize(found, watts=200.0)
    assert {span.id: (span.amount.energy_j, span.amount.label) for span in summary.spans} == {
        "a": (20_000.0, "declared"), "b": (500.0, COUNTER), "c": (20_000.0, "declared"),
    }  # fmt: skip
    assert summarize(found).gross.energy_j is None
    with pytest.raises(EnergyError, match="--watts 350"):
        summarize(found, watts=-1.0)


def test_watts_count_a_second_of_a_machine_once():
    """Two processes at once draw what one machine draws; what another span counted is not estimated again."""
    summary = summarize(journal(
        row("a", energy_j=None), row("b", energy_j=None, start=T + 50), row("n", energy_j=None, start=T + 50, machine="n" * 16),
        row("c", energy_j=None, start=T + 500, reason="counted by process 7 of this machine"),
    ), watts=100.0)  # fmt: skip
    amounts = {span.id: span.amount.energy_j for span in summary.spans}
    assert amounts == {"a": 10_000.0, "b": 5_000.0, "n": 10_000.0, "c": None}


def test_watts_reach_inner_spans_without_adding_to_the_sum():
    """An inner span has its own joules, told and not added; what went on beside other work has none."""
    summary = summarize(journal(
        row("outer", "experiment", None, time_s=100.0), row("in", parent="outer", energy_j=None, start=T + 10, time_s=20.0),
        row("aside", "read", None, parent="in", start=T + 10, time_s=5.0, reason="it went on within 'extract': no instrument tells them apart"),
    ), watts=100.0)  # fmt: skip
    assert summary.gross.energy_j == 10_000.0
    assert {line.name: line.gross.energy_j for line in summary.phases} == {
        "experiment": 10_000.0,
        "extract": 2_000.0,
        "read": None,
    }


def test_a_calibration_is_called_calibrated_and_holds_for_its_machine():
    """Two wall readings make joules and a baseline for that machine, with the interval of what they are."""
    line = {"kind": "calibration", "machine": "m" * 16, "time": T, "idle_w": 50.0, "load_w": 200.0}
    older = line | {"time": T - 1, "load_w": 999.0}
    found = journal(
        row("a", energy_j=None), row("b", energy_j=None, machine="n" * 16, start=T + 200), others=[line, older]
    )
    summary = summarize(found)
    ours, theirs = summary.spans
    assert (ours.amount.energy_j, ours.amount.label, ours.amount.interval_j) == (
        20_000.0,
        "calibrated",
        (15_000.0, 25_000.0),
    )
    assert theirs.amount.energy_j is None
    assert {line.machine: line.net.energy_j for line in summary.phases} == {"m" * 16: 15_000.0, "n" * 16: None}
    assert "50 W when idle (calibrated" in to_text(summary)


# -------------------------------------------------------------------------------------------------- idle, net


def idle(energy_j=3000.0, time_s=30.0, **about):
    return row("idle", "idle", energy_j, time_s=time_s, start=T - 100, **about)


def test_net_takes_off_the_idle_machine():
    """Rule 7: gross and net side by side."""
    summary = summarize(journal(idle(), row("a", energy_j=30_000.0)))
    extract = next(line for line in summary.phases if line.name == "extract")
    assert (extract.gross.energy_j, extract.net.energy_j) == (30_000.0, 20_000.0)
    assert "100 W when idle" in to_text(summary)
    fine = idle(60_000.0, 600.0, facts={"steps": {"gpu0": [2000.0, 1.0]}})
    assert summarize(journal(fine, row("a", energy_j=30_000.0))).net.energy_j is not None


@pytest.mark.parametrize(
    "baseline",
    [
        idle(time_s=5.0),
        idle(is_shared=True),
        idle(None),
        idle(component="package-0"),
        idle(label="declared"),
        idle(machine="n" * 16),
        idle(3600.0, facts={"steps": {"gpu0": [3600.0, 1.0]}}),
        idle(facts={"steps": {"gpu0": [1.0, 10.0]}}),
    ],
    ids=[
        "too short",
        "others at work",
        "not measured",
        "another component",
        "declared",
        "another machine",
        "one step of the counter",
        "three renewals",
    ],
)
def test_what_is_no_baseline_takes_nothing_off(baseline):
    """A baseline that is none leaves net unknown, and never equal to gross."""
    summary = summarize(journal(baseline, row("a", energy_j=30_000.0)))
    extract = next(line for line in summary.phases if line.name == "extract")
    assert (extract.gross.energy_j, extract.net.energy_j) == (30_000.0, None)
    assert "no baseline" in to_text(summary)


# ------------------------------------------------------------------------------------------------- savings


def a_saving(*rows, compared=None, **options):
    facts = {"table": "t", "model": "ResNet"}
    built = row("a", energy_j=15_000.0, time_s=50.0, facts=facts)
    fed = row("f", "fit", 600.0, start=T + 200, facts={"fed": {"t": 1000}, "rows_fed": 1000})
    lines = [(compared or comparison()).to_json()]
    return summarize(journal(built, fed, *rows, others=lines), **options)


def test_a_saving_is_on_every_page():
    """Epochs, cost, break-even and what was saved: the same numbers everywhere, energy first where it is known."""
    summary = a_saving(idle())
    (line,) = summary.savings
    assert (line.saving.spent_s, line.saving.spent.energy_j, line.saving.epochs, line.saving.idle_w) == (
        50.0,
        15_000.0,
        10.0,
        100.0,
    )
    assert line.saving.seconds.saved.value == pytest.approx(40.0)
    assert line.saving.joules.saved.value == pytest.approx(12_000.0)
    assert line.saving.net_joules.saved.value == pytest.approx(8_000.0)
    told = pages(summary)
    for form in ("text", "html", "markdown"):
        assert "2.2 Wh" in told[form], form
        assert "5.6" in told[form], form  # epochs
    assert json.loads(told["json"])["savings"][0]["seconds"]["break_even_epochs"]["value"] == pytest.approx(50.0 / 9.0)


def test_many_epochs_are_written_whole():
    """A million epochs are 1,000,000 on every page, not 1e+06."""
    fed = row("f", "fit", start=T + 200, facts={"fed": {"t": 10**8}})
    summary = summarize(journal(row("a", facts={"table": "t"}), fed, others=[comparison().to_json()]))
    told = pages(summary)
    for form in ("text", "html", "markdown"):
        assert "1,000,000" in told[form], form
        assert "e+0" not in told[form], form


def test_seconds_always_pay_back():
    """Break-even in seconds needs no counter."""
    summary = a_saving(compared=comparison(watts=None))
    (line,) = summary.savings
    assert line.saving.joules is None
    assert line.saving.seconds.break_even.value == pytest.approx(50.0 / 9.0)
    assert "energy not measured on both sides" in to_text(summary)
    assert to_text(summary).splitlines()[1].startswith("40 s saved")


def test_a_loss_is_printed_as_plainly():
    """Rule 10: a store that costs more says so in the first line, and no page calls it a saving."""
    summary = a_saving(compared=comparison((1.0, 1.1, 0.9), (10.0, 10.2, 9.8), watts=None))
    for form in ("text", "html", "markdown"):
        assert "140 s more spent than saved (138 to 142)" in pages(summary)[form]
        assert "never pays back here" in pages(summary)[form]


def test_what_cannot_be_told_is_no_saving():
    """Rule 4: an interval that holds zero is no saving, in the first line."""
    summary = a_saving(compared=comparison((10.0, 30.0, 5.0), (5.0, 36.0, 8.0), watts=None))
    assert to_text(summary).splitlines()[1].startswith("No measurable saving: between ")
    assert "no measurable saving" in to_markdown(summary).lower()


def test_never_is_said_only_when_it_is_sure():
    """Where an epoch with the store and one without cost the same, as far as measured, nobody knows when it pays back."""
    unclear = summarize(
        journal(row("a", facts={"table": "t"}), others=[comparison((1.0, 1.5, 0.5), (0.9, 1.2, 1.1)).to_json()])
    )
    assert unclear.savings[0].saving.seconds.break_even is None
    for form, text in pages(unclear).items():
        assert "never pays back" not in text, form
        assert "reading costs more" not in text, form
    assert "cannot be told" in to_text(unclear)
    assert "cannot be told" in to_html(unclear)
    sure = summarize(
        journal(row("a", facts={"table": "t"}), others=[comparison((1.0, 1.1, 0.9), (2.0, 2.1, 2.2)).to_json()])
    )
    assert "never pays back" in to_text(sure)


@pytest.mark.parametrize("tables", [3, 300])
def test_tables_are_looked_up_once(tables, monkeypatch):
    """The work of a report grows with its rows, not with rows times tables."""
    looks = []
    monkeypatch.setattr(Span, "facts", property(lambda span: looks.append(1) or span.rows[-1].facts))
    rows = [row(f"s{at}", start=T + 200 * at, facts={"table": f"t{at % tables}"}) for at in range(600)]
    summarize(journal(*rows))
    assert len(looks) < 60 * len(rows)


def test_no_epoch_was_run_so_nothing_was_saved():
    """Rule 6: without a recorded epoch a report foretells and claims nothing."""
    summary = summarize(journal(row("a", facts={"table": "t"}), others=[comparison().to_json()]))
    assert to_text(summary).splitlines()[1].startswith("No epoch was recorded yet: it pays back after ")
    assert "no epoch recorded" in to_html(summary)


def test_the_last_comparison_counts_and_each_machine_has_its_own():
    """Comparisons are of a machine and a table; two ledgers that tell one tell it once."""
    old, new = comparison(watts=None).to_json(), comparison((5.0, 5.1, 4.9), watts=None).to_json() | {"time": T + 9}
    other = comparison(machine="n" * 16, watts=None).to_json()
    summary = summarize(journal(row("a", facts={"table": "t"}), others=[new, old, new, other]))
    found = {line.machine[0]: line for line in summary.savings}
    assert found.keys() == {"m", "n"}
    assert found["m"].saving.seconds.uncached_epoch.value == pytest.approx(5.0)
    assert found["m"].comparisons == 2
    assert found["n"].saving.spent_s == 0.0
    assert "measured elsewhere, not added" in found["n"].elsewhere


def test_saved_money_and_carbon_come_from_the_users_factor():
    """Rule 9: kWh first; money and CO2e only from a factor, which stands beside them."""
    factors = Factors(Price.read("0.30 EUR"), Carbon.read("381 Germany 2023, Our World in Data", 1.5))
    summary = a_saving(factors=factors)
    text = to_text(summary)
    assert "0.3 EUR a kWh, as you set it" in text
    assert "381 g/kWh (Germany 2023, Our World in Data, PUE 1.5), as you set it" in text
    grams = to_dict(summary)["total"]["co2e_g"]
    assert grams == pytest.approx(15_600.0 / 3.6e6 * 381 * 1.5)
    bare = to_dict(a_saving())["total"]
    assert (bare["co2e_g"], bare["money"], bare["currency"]) == (None, None, None)
    assert "Money and CO2e: unknown, no factor given" in to_text(a_saving())


@pytest.mark.parametrize("text", ["381", "381 Germany", "Germany 2023", "-5 x 2023", "381 2", ""])
def test_a_carbon_factor_needs_a_source_and_a_year(text):
    """A number that nobody can check is none."""
    with pytest.raises(EnergyError, match="Our World in Data"):
        Carbon.read(text)


@pytest.mark.parametrize("text", ["0.30", "EUR", "-1 EUR", "", "1 EUR a kWh"])
def test_a_price_needs_a_currency(text):
    """An amount without a currency is no price."""
    with pytest.raises(EnergyError, match=r"'0\.30 EUR'"):
        Price.read(text)


def test_a_pue_below_one_is_none():
    """No data centre draws less than its machines."""
    with pytest.raises(EnergyError, match="PUE"):
        Carbon.read("381 Germany 2023", 0.5)


# ------------------------------------------------------------------------------------------ heads, tables, reuse


def head(name, score, metric="mae", **about):
    return {
        "name": name,
        "score": score,
        "metric": metric,
        "epochs": 3,
        "parameters": 10,
        "is_higher_better": False,
    } | about


def test_heads_are_ranked_with_their_cost():
    """Best first within a metric, whichever way is up; failed ones last; joules are those of the run that they shared."""
    heads = [
        head("b", 2.0),
        head("a", 1.0),
        head("none", None, failed="loss is nan"),
        head("x", 0.5, "accuracy", is_higher_better=True),
        head("y", 0.9, "accuracy", is_higher_better=True),
    ]
    summary = summarize(journal(row("f", "fit", 7200.0, facts={"heads": heads, "fed": {}})))
    assert [line.name for line in summary.heads] == ["y", "x", "a", "b", "none"]
    assert "2.00 Wh with 4 others" in to_text(summary)
    assert "failed" in to_text(summary)


def test_reuse_is_told_with_what_it_avoided():
    """When rows served, how many, and what they would have cost here; what was measured elsewhere stays unknown."""
    facts = {"table": "t", "data": "Folder of 9", "rows_reused": 500, "avoided_s": 60.0, "avoided_j": 7200.0}
    summary = summarize(
        journal(row("a", facts=facts), row("b", start=T + 200, facts=facts | {"avoided_s": None, "avoided_j": None}))
    )
    text = to_text(summary)
    assert "not known here" in text
    assert "2.00 Wh" in text
    (table,) = summary.tables
    assert (table.reused_rows, table.avoided_s, table.avoided_j) == (1000, 60.0, 7200.0)


def test_tables_tell_what_is_never_used(tmp_path):
    """Disk against what it gave: a table that nobody came back to is named, once a day has passed."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    ft.extract(model, torch.randn(40, 4), tmp_path)
    gathered = gather(tmp_path)
    (fresh,) = summarize(gathered).tables
    assert (fresh.rows, fresh.remark) == (40, "")
    (later,) = summarize(gathered, now=time.time() + 3 * 86400).tables
    assert later.remark == "never used since it was made"
    ft.extract(model, torch.randn(40, 4), tmp_path)
    (gone,) = summarize(journal(row("a", facts={"table": "t"}))).tables
    assert gone.remark == "no longer there"
    assert "forethought store gc" in to_text(summarize(gathered, now=time.time() + 3 * 86400))


def test_copies_of_a_store_tell_of_one_run_once(tmp_path):
    """A ledger's word goes before a note's: a copy without a ledger adds nothing, measured or not."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    plug = iter(range(10**6))
    with ft.Ledger(tmp_path / "run", meter=WallMeter(lambda: next(plug) * 1e-6, step_s=1e-6)):
        ft.extract(model, torch.randn(40, 4), tmp_path / "a")
    alone = summarize(gather(tmp_path / "a"))
    assert alone.gross.energy_j is not None
    for name in ("b", "c"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        shutil.rmtree(tmp_path / name / "ledger")
    both = summarize(gather(tmp_path))
    assert (both.gross.energy_j, both.time_s) == (alone.gross.energy_j, alone.time_s)
    (tmp_path / "only").mkdir()
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "run")
    noted = summarize(gather(tmp_path))
    assert noted.gross.energy_j == pytest.approx(alone.gross.energy_j)
    assert "No ledger tells of 1 run" in " ".join(noted.remarks)
    assert "No ledger tells" not in " ".join(both.remarks)


def test_the_price_by_the_table_is_known_without_a_ledger(tmp_path):
    """Segments and notes that were copied without their ledger still tell what they cost."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    report = ft.extract(model, torch.randn(40, 4), tmp_path).report
    for file in (tmp_path / "ledger").iterdir():
        file.unlink()
    summary = summarize(gather(tmp_path))
    assert summary.time_s == pytest.approx(report.time_s)
    (table,) = summary.tables
    assert (table.cost_s, table.cost.energy_j) == (pytest.approx(report.time_s), None)


def test_what_crossed_the_frontier_is_shown():
    """Modules and tensors, their shape, type and bytes."""
    facts = {
        "table": "t",
        "model": "ResNet",
        "frontier": [["avgpool", [2048], "torch.float16", 4096], ["x", "y", "z", 3], 5],
    }
    summary = summarize(journal(row("a", facts=facts)))
    assert [(c.name, c.shape, c.dtype, c.size_bytes) for c in summary.tables[0].frontier] == [
        ("avgpool", (2048,), "float16", 4096)
    ]
    assert "avgpool" in to_text(summary)


# -------------------------------------------------------------------------------------------------- remarks


def test_what_a_reader_must_know_stands_first():
    """Killed runs, torn lines, shared machines and joules that may be counted twice are told before any number."""
    begun = [{"kind": "begin", "span": name, "phase": "extract", "machine": "m", "time": T} for name in ("a", "killed")]
    found = journal(row("a"), row("b", start=T + 50, is_shared=True), others=begun)
    found.journal.unreadable, found.journal.cut_short = 2, 1
    remarks = " ".join(summarize(found, now=T + 10_000).remarks)
    assert "1 run never came to an end" in remarks
    assert "2 lines" in remarks
    assert "Cut short while it was written, by a kill or a full disk, and left out of the ledger: 1 line." in remarks
    assert "began after this report was made" not in remarks
    assert "2 runs began after this report was made: a clock was wrong" in " ".join(
        summarize(found, now=T - 1e4).remarks
    )
    assert "1 pair of runs counted one component at the same time" in remarks
    assert "During 1 of 2 runs other processes were at work" in remarks
    assert "perhaps still at work" in " ".join(summarize(found, now=T + 60).remarks)
    text = to_text(summarize(found, now=T + 10_000))
    assert text.index("never came to an end") < text.index("What it cost")


# --------------------------------------------------------------------------------------------------- gathering


def run_in(path, name="work", **facts):
    with ft.Ledger(path, meter=None).phase(name, **facts):
        pass


def test_a_project_is_every_ledger_below_it(tmp_path):
    """Stores and runs, each once, nested or not; hidden folders and links are left alone."""
    run_in(tmp_path / "runs" / "a", "one")
    run_in(tmp_path / "runs" / "a" / "deeper", "two")
    ft.Store(tmp_path / "store")
    run_in(tmp_path / "store", "three")
    run_in(tmp_path / ".hidden", "four")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    summary = summarize(gather(tmp_path))
    assert sorted(line.name for line in summary.phases) == ["one", "three", "two"]
    assert len(summary.places) == 3
    (file,) = (tmp_path / "runs" / "a" / "ledger").iterdir()
    assert [line.name for line in summarize(gather(file)).phases] == ["one"]


def test_one_span_in_two_ledgers_counts_once(tmp_path):
    """A store's and a run's ledger both tell of an extraction: a project's report adds it once."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    with ft.Ledger(tmp_path / "run", meter=None):
        ft.extract(model, torch.randn(40, 4), tmp_path / "store")
    summary = summarize(gather(tmp_path))
    (extract,) = [line for line in summary.phases if line.name == "extract"]
    assert (extract.runs, extract.rows) == (1, 40)
    alone = summarize(gather(tmp_path / "store"))
    assert summary.time_s == pytest.approx(alone.time_s)


def test_nothing_to_report_on_is_said(tmp_path):
    """A path without a ledger is an error that says how to make one."""
    (tmp_path / "file.jsonl").write_text("{}\n")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file.jsonl"):
        with pytest.raises(EnergyError, match=r"with ft\.Ledger"):
            gather(path)


def test_a_store_that_cannot_be_read_is_left_out_and_told(tmp_path):
    """One damaged store does not hide a project."""
    run_in(tmp_path / "run")
    ft.Store(tmp_path / "bad")
    (tmp_path / "bad" / "forethought.json").write_text('{"format": 99}')
    summary = summarize(gather(tmp_path))
    assert [line.name for line in summary.phases] == ["work"]
    assert "bad was left out" in summary.remarks[0]


@given(st.lists(st.dictionaries(st.sampled_from(["kind", "machine", "time", "uncached", "cached", "idle_w", "load_w", "span", "facts", "epoch_rows"]),
                                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
                                | st.sampled_from(["comparison", "calibration", "begin", "m" * 16])), max_size=4),
       st.dictionaries(st.sampled_from(["table", "heads", "fed", "frontier", "rows_reused", "avoided_s", "model", "rows"]),
                       st.none() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.none() | st.integers() | st.dictionaries(st.text(max_size=3), st.floats(), max_size=2), max_size=3)))  # fmt: skip
def test_whatever_ledgers_say_a_report_is_made(lines, facts):
    """Lines come from anywhere and any version: no report breaks, and none writes what is no JSON."""
    found = journal(
        row("a", facts=facts), row("b", "fit", start=T + 200, facts=facts), others=[line for line in lines if line]
    )
    for text in pages(summarize(found)).values():
        assert text


# ----------------------------------------------------------------------------------------------------- budget


def test_a_budget_is_kept_or_not(tmp_path):
    """Spent against allowed; with a baseline, what came on top of it; what is not known is not kept."""
    found = journal(row("a", energy_j=3.6e6))
    summary = summarize(found)
    assert check_budget(summary, 1.0).is_kept
    assert not check_budget(summary, 0.99).is_kept
    old = tmp_path / "old.json"
    old.write_text(json.dumps(to_dict(summarize(journal(row("b", energy_j=1.8e6))))))
    assert check_budget(summary, 0.5, str(old)).is_kept
    assert not check_budget(summary, 0.4, str(old)).is_kept
    unknown = summarize(journal(row("a", energy_j=None)))
    verdict = check_budget(unknown, 1e6)
    assert not verdict.is_kept
    assert "not all of the energy of this report is known" in str(verdict)
    old.write_text(json.dumps(to_dict(unknown)))
    assert "of the baseline is known" in str(check_budget(summary, 1.0, str(old)))


def test_a_budget_compares_ledgers_too(tmp_path):
    """A baseline may be the ledger of before itself, with the same stated watts."""
    for name, seconds in (("old", 100.0), ("new", 150.0)):
        journal_of(Folder(tmp_path / name), makes_root=True).append([row("a", energy_j=None, time_s=seconds).to_json()])
    summary = summarize(gather(tmp_path / "new"), watts=36_000.0)
    assert check_budget(summary, 0.51, str(tmp_path / "old"), watts=36_000.0).is_kept
    assert not check_budget(summary, 0.49, str(tmp_path / "old"), watts=36_000.0).is_kept


@pytest.mark.parametrize("budget", [-1.0, math.nan, math.inf])
def test_a_budget_is_a_number(budget):
    """Nonsense is refused."""
    with pytest.raises(EnergyError, match="--budget-kwh"):
        check_budget(summarize(journal(row("a"))), budget)


def test_a_baseline_that_is_none_is_refused(tmp_path):
    """A file that is no report is an error, not a baseline of nothing."""
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(EnergyError, match="expected a report in JSON"):
        check_budget(summarize(journal(row("a"))), 1.0, str(tmp_path / "x.json"))


# ---------------------------------------------------------------------------------------------------- exports


def test_csv_has_the_columns_of_codecarbon():
    """Their names, their units (kWh, W, kg), empty where nothing is known; ours come after."""
    rows = [
        row("a", energy_j=7.2e6, component="gpu0", time_s=3600.0), row("a", energy_j=3.6e6, component="package-0", time_s=3600.0),
        row("a", energy_j=1.8e6, component="package-0/dram", time_s=3600.0), row("b", energy_j=None, start=T + 5000),
    ]  # fmt: skip
    factors = Factors(carbon=Carbon.read("500 Somewhere 2024, a source"))
    whole, none = csv.DictReader(io.StringIO(to_csv(summarize(journal(*rows), factors=factors))))
    assert tuple(whole) == (*CODECARBON, *OURS)
    numbers = {
        name: float(whole[name])
        for name in ("gpu_energy", "cpu_energy", "ram_energy", "energy_consumed", "gpu_power", "emissions", "duration")
    }
    assert numbers == pytest.approx(
        {
            "gpu_energy": 2.0,
            "cpu_energy": 1.0,
            "ram_energy": 0.5,
            "energy_consumed": 3.5,
            "gpu_power": 2000.0,
            "emissions": 1.75,
            "duration": 3600.0,
        }
    )
    assert (whole["label"], whole["phase"], whole["not_measured"]) == (COUNTER, "extract", "")
    assert (none["energy_consumed"], none["emissions"], none["label"], none["not_measured"]) == (
        "",
        "",
        "unavailable",
        "no counter",
    )


def test_boamps_has_what_its_schema_requires():
    """Required members and words of the schema (Boavizta/BoAmps, model/*.json, April 2026)."""
    report = to_boamps(summarize(journal(idle(), row("a", facts={"table": "t", "model": "ResNet"}))))
    assert report.keys() >= {"task", "measures", "infrastructure"}
    assert report["task"].keys() >= {"taskStage", "taskFamily", "algorithms", "dataset"}
    assert report["task"]["algorithms"] == [{"trainingType": "transferLearning", "algorithmName": "ResNet"}]
    (measure,) = report["measures"]
    # "Of the computing task": what the idle machine drew has members of its own.
    assert (measure["powerConsumption"], measure["measurementDuration"]) == (pytest.approx(1.0), 100.0)
    assert measure["powerCalibrationMeasurement"] == pytest.approx(3000.0 / 3.6e6)
    assert COUNTER in measure["measurementMethod"]
    assert measure["durationCalibrationMeasurement"] == 30.0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", measure["measurementDateTime"])
    assert report["quality"] in ("high", "medium", "low")
    assert report["infrastructure"]["infraType"] in ("publicCloud", "privateCloud", "onPremise", "other")
    assert all(part.keys() >= {"componentType", "nbComponent"} for part in report["infrastructure"]["components"])


def test_a_model_card_has_grams_and_their_source():
    """`co2_eq_emissions` in grams with source and method; without a factor, or with a part missing, there is none."""
    factors = Factors(carbon=Carbon.read('381 Germany 2023, "Our World"'))
    text = to_markdown(summarize(journal(row("a")), factors=factors))
    assert text.startswith(
        '---\nco2_eq_emissions:\n  emissions: 381\n  source: "forethought, measured:counter, 1.00 kWh gross'
    )
    assert '\\"Our World\\"' in text
    assert "co2_eq_emissions" not in to_markdown(summarize(journal(row("a"))))
    assert "co2_eq_emissions" not in to_markdown(
        summarize(journal(row("a"), row("b", energy_j=None, start=T + 200)), factors=factors)
    )


def test_factors_say_what_the_user_said():
    """Nothing is claimed of a number that the user gave but what they said of it; less than a cent is not nothing."""
    text = to_text(summarize(journal(row("a")), factors=Factors(carbon=Carbon.read("381 Germany 2023, market-based"))))
    assert "CO2e: 381 g at 381 g/kWh (Germany 2023, market-based), as you set it" in text.replace("0.381 kg", "381 g")
    assert "location" not in text
    cheap = Factors(Price.read("0.30 EUR"))
    assert [cheap.money_text(joules) for joules in (0.0, 1200.0, -1200.0, 3.6e6)] == [
        "0.00 EUR",
        "0.0001 EUR",
        "-0.0001 EUR",
        "0.30 EUR",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59.99, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (86399, "1 d 0 h"),
        (0.0, "0 s"),
        (-5.0, "-5 s"),
        (1e9, "11,574 d 2 h"),
    ],
)
def test_times_are_written_whole(seconds, text):
    """No 60 seconds to the minute, no 24 hours to the day."""
    assert time_text(seconds) == text


@given(st.floats(-1e12, 1e12))
def test_energy_is_written_to_three_digits(joules):
    """What is written is what it was, to its digits."""
    text = energy_text(joules).replace(",", "")
    number, unit = text.split()
    back = float(number) * {"J": 1.0, "Wh": 3600.0, "kWh": 3.6e6}[unit]
    assert back == pytest.approx(joules, rel=0.006, abs=1e-12)


def test_amounts_that_are_not_known_have_words():
    """Nothing is never 0."""
    assert amount_text(summarize(journal(row("a", energy_j=None))).gross) == "not measured"


@given(st.floats(1e-9, 1e12))
def test_ticks_are_round_and_few(most):
    """Axes have a handful of round numbers, within what is drawn."""
    found = ticks(most)
    assert 2 <= len(found) <= 7
    assert found[0] == 0.0
    assert found[-1] <= most * 1.001


def test_bars_are_days_then_months():
    """Many days become months, and no row is lost."""
    few = bins_of([(T + day * 86400, 5) for day in range(10)])
    many = bins_of([(T + day * 86400, 5) for day in range(300)])
    assert len(few) == 10
    assert 9 <= len(many) <= 12
    assert sum(count for _, count in many) == 1500


# ------------------------------------------------------------------------------------------------------ the page


class Page(HTMLParser):
    """What a browser would see."""

    VOID = frozenset({"meta", "link", "br", "line", "circle", "polygon", "rect"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.ids = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def full_journal(name="resnet"):
    reuse = {"table": "t", "rows_reused": 5, "avoided_s": 3.0, "data": name}
    heads = [head(name, 1.0), head("b", 2.0)]
    built = {"table": "t", "model": name, "frontier": [[name, [3], "torch.float32", 12]]}
    found = journal(
        idle(), row("a", energy_j=15_000.0, time_s=50.0, facts=built), row("r", energy_j=10.0, time_s=1.0, start=T + 100, facts=reuse), row("q", energy_j=10.0, time_s=1.0, start=T + 90_000, facts=reuse),
        row("f", "fit", 600.0, start=T + 200, facts={"fed": {"t": 9000}, "rows_fed": 9000, "heads": heads}),
        row("n", name, None, start=T + 300, reason=name), others=[comparison().to_json()],
    )  # fmt: skip
    found.name = name
    return found


def a_full_page(name="resnet"):
    return to_html(summarize(full_journal(name), factors=Factors(Price.read("0.3 EUR"))))


def test_the_page_fetches_nothing_and_runs_nothing():
    """One file: no script, no handler, no address, and a policy that would forbid them."""
    text = a_full_page()
    page = Page(text)
    assert page.open == []
    assert page.all("script") == page.all("iframe") == page.all("img") == page.all("form") == []
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
    assert not re.search(r"@import|url\(|https?:|//", text.partition("<style>")[2].partition("</style>")[0])
    (policy,) = [attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_the_page_can_be_read_by_anybody():
    """Language, title, one first heading, no level left out, named regions, tables with headers, pictures with words."""
    page = Page(a_full_page())
    assert page.all("html")[0]["lang"] == "en"
    assert any(attrs.get("name") == "viewport" for attrs in page.all("meta"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.ids) == len(set(page.ids))
    for tag, attrs in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attrs.get(name) or "").split()) <= set(page.ids), (tag, attrs)
    assert all(attrs.get("scope") for attrs in page.all("th"))
    for attrs in page.all("svg"):
        assert attrs["role"] == "img"
        assert len(attrs["aria-labelledby"].split()) == 2
    assert len(page.all("svg")) == len(page.all("title")) - 1 == len(page.all("desc"))
    for attrs in page.all("div"):
        if "scroll" in (attrs.get("class") or ""):  # what scrolls can be reached by keyboard and has a name
            assert attrs["tabindex"] == "0"
            assert attrs["role"] == "region"
            assert "aria-label" in attrs or "aria-labelledby" in attrs
    assert ("a", {"class": "skip", "href": "#main"}) in page.tags
    assert {tag for tag, _ in page.tags} >= {"header", "main", "footer"}


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_can_be_told_apart(mode):
    """WCAG AA: text on what it stands on 4.5 to 1 at least, lines of a chart 3 to 1, light and dark."""
    style = files("forethought.report").joinpath("page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if mode == "light" else light + dark))

    def contrast(one, other):
        high, low = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "soft", "good", "bad"):
        for ground in ("page", "card"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    assert contrast("ink", "warm") >= 4.5
    for line in ("with", "without", "focus"):
        assert contrast(line, "card") >= 3.0, line


NASTY = '<script>alert("x")</script>&\x1b[31m\u202e</title>'


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<!DOCTYPE html><title>wait</title><iframe id="f" style="border:0"></iframe><script>
const frame = document.getElementById("f"), widths = %s, found = [];
frame.srcdoc = %s;
frame.onload = () => {
  const page = frame.contentDocument;
  for (const width of widths) {
    frame.style.width = width + "px";
    const wide = [...page.querySelectorAll("h1, h2, h3, p, li, dd, dt, figcaption, svg, td, th")].filter(each => {
      const box = each.getBoundingClientRect(), around = each.closest(".scroll");
      const scrolls = around && page.defaultView.getComputedStyle(around).overflowX == "auto";
      return box.width && !scrolls && (box.right > width + 0.5 || box.left < -0.5);
    });
    found.push([width, page.documentElement.scrollWidth, wide.map(each => each.outerHTML.slice(0, 80))]);
  }
  document.title = "RESULT" + btoa(unescape(encodeURIComponent(JSON.stringify(found)))) + "END";
};</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_all_of_the_page(tmp_path):
    """In a real browser, from a small phone to a desk, nothing is cut off or runs out of the window."""
    widths = [320, 390, 700, 768, 1280]
    loss = [comparison((1.0, 1.1, 0.9), (2.0, 2.1, 2.2)).to_json()]
    tables = [full_journal("a model with a long name, " * 4), journal(row("a", facts={"table": "t"}), others=loss)]
    for at, found in enumerate(tables):
        page = json.dumps(to_html(summarize(found, factors=Factors(Price.read("0.3 EUR"))))).replace("</", "<\\/")
        (tmp_path / f"{at}.html").write_text(MEASURE % (json.dumps(widths), page))
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--virtual-time-budget=3000", "--dump-dom", (tmp_path / f"{at}.html").as_uri()]  # fmt: skip
        browser = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if browser.returncode:
            pytest.skip(f"the browser does not start here: {browser.stderr[-200:]}")
        shown = browser.stdout
        told = re.search(r"<title>RESULT(.*?)END</title>", shown)
        assert told, shown[:300]
        for width, whole, wide in json.loads(base64.b64decode(told[1])):
            assert (whole <= width, wide) == (True, []), width


def test_names_are_text_on_every_page():
    """Whatever a model, head or reason is called, it is shown and never run; nothing moves a terminal's cursor."""
    page = Page(a_full_page(NASTY))
    assert page.open == []
    assert page.all("script") == []
    assert any('<script>alert("x")</script>&' in words for words in page.words)
    summary = summarize(journal(row("a", NASTY, None, reason=NASTY, facts={"model": NASTY, "table": "t"})))
    for form, text in pages(summary).items():
        assert "\x1b" not in text.replace(" ", ""), form
    assert "\\<script\\>" in to_markdown(summary)


def test_the_chart_says_what_it_shows():
    """The crossing is in the words of the chart and in the table below it."""
    text = a_full_page()
    words = " ".join(Page(text).words)
    assert "They cross after" in words
    assert "The same as a table" in words
    assert "The first epochs, until it pays back" in words


def test_what_another_machine_measured_is_told_so():
    """Costs and savings of another machine are never shown as this one's, not even when there are no others."""
    here = this_machine().id
    big = comparison((100.0, 101.0, 99.0)).to_json()
    rows = [row("a", facts={"table": "t"}), row("f", "fit", start=T + 200, facts={"fed": {"t": 9000}})]
    away = summarize(journal(*rows, others=[big]))
    assert to_csv(away).count(",True\n") == 2
    for form, text in pages(away).items():
        assert "elsewhere" in text, form
    assert "measured elsewhere, on machine mmmmmmmm" in subline(away).lower()
    assert "2 runs of 2 were measured on another machine" in " ".join(away.remarks)
    mine = [row("b", machine=here, start=T + 500, facts={"table": "t"}),
            row("g", "fit", machine=here, start=T + 700, facts={"fed": {"t": 9000}})]  # fmt: skip
    both = summarize(journal(*rows, *mine, others=[big, comparison(machine=here).to_json()]))
    assert best_of(both).machine == here  # though the other's saving is larger
    assert "elsewhere" not in subline(both)
    assert "elsewhere" not in to_text(summarize(journal(*mine, others=[comparison(machine=here).to_json()])))
    assert "system" not in to_boamps(away)


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_a_narrow_terminal_gets_lists(width):
    """Nothing is wider than the terminal where words can be broken, and no cell is lost."""
    wide = summarize(full_journal())
    text = to_text(wide, width)
    assert max(map(len, text.splitlines())) <= width
    flat = "".join(text.split())
    cells = [cell for grid in (*grids(wide), saving_grid(wide.savings[0])) for row in grid.rows for cell in row]
    assert [cell for cell in cells if "".join(cell.split()) not in flat] == []


def test_words_of_a_loss_are_whole():
    """'More spent than saved' is said in full, in every cell."""
    loss = to_text(summarize(journal(
        row("a", facts={"table": "t"}), row("f", "fit", start=T + 200, facts={"fed": {"t": 300}}),
        others=[comparison((1.0, 1.1, 0.9), (2.0, 2.1, 2.2)).to_json()]
    )))  # fmt: skip
    assert "more spent than saved" in loss
    assert re.findall(r"more spent than (?!saved)", loss) == []


def test_this_machine_comes_first():
    """A report that tells of many machines begins with the one that it is read on."""
    here = this_machine().id
    summary = summarize(journal(row("a"), row("b", machine=here, start=T + 200)))
    assert next(iter(summary.machines)) == here
