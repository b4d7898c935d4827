"""A report as data: JSON, Markdown for a README or a model card, CSV with CodeCarbon's columns, BoAmps JSON."""

import csv
import io
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from forethought.energy.amounts import KWH_J, Amount
from forethought.errors import EnergyError
from forethought.ledger.spans import Span
from forethought.report.grid import Grid
from forethought.report.idling import PHASE as IDLE
from forethought.report.sections import elsewhere, grids, method_lines, total_lines
from forethought.report.statements import headline, next_step, saving_grid, saving_lines, subline
from forethought.report.summary import SavingLine, Summary
from forethought.report.units import amount_text, label_text

FORMAT = 1
# Of CodeCarbon 3.3; what is not known stays empty. Those after `wue` are ours.
CODECARBON = (
    "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
    "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed",
    "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os", "python_version",
    "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude", "latitude",
    "ram_total_size", "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent",
    "ram_utilization_percent", "ram_used_gb", "on_cloud", "pue", "wue",
)  # fmt: skip
OURS = ("phase", "label", "energy_low", "energy_high", "shared", "not_measured", "elsewhere")
_QUALITY = (("measured:", "high"), ("sampled", "medium"), ("calibrated", "medium"))  # BoAmps: 10, 25, 50 %


def to_dict(summary: Summary) -> dict[str, Any]:
    """Everything that a report says, as values that JSON knows; what is not known is null."""
    report: dict[str, Any] = _plain({
        "format": FORMAT,
        "name": summary.name,
        "places": summary.places,
        "time": summary.time,
        "first": summary.first,
        "last": summary.last,
        "headline": headline(summary),
        "here": summary.here,
        "machines": summary.machines,
        "meters": summary.meters,
        "total": {"time_s": summary.time_s, "gross": summary.gross.to_dict(), "net": summary.net.to_dict()}
        | summary.factors.to_dict(summary.gross.energy_j),
        "phases": [
            {**{name: value for name, value in vars(line).items() if not isinstance(value, Amount)},
             "gross": line.gross.to_dict(), "net": line.net.to_dict()}
            for line in summary.phases
        ],
        "baselines": {machine: asdict(found) for machine, found in summary.baselines.items()},
        "savings": [_saving(line) for line in summary.savings],
        "tables": [asdict(line) | {"cost": line.cost.to_dict()} for line in summary.tables],
        "heads": [asdict(line) | {"energy": line.energy.to_dict()} for line in summary.heads],
        "reuses": [asdict(each) for each in summary.reuses],
        "remarks": summary.remarks,
    })  # fmt: skip
    return report


def _saving(line: SavingLine) -> dict[str, Any]:
    saving = line.saving
    return {
        "table": line.table,
        "machine": line.machine,
        "model": line.model,
        "elsewhere": line.elsewhere or None,
        "comparisons": line.comparisons,
        "comparison": saving.comparison.to_json(),
        "epochs": saving.epochs,
        "fed_rows": saving.fed_rows,
        "spent_s": saving.spent_s,
        "spent": saving.spent.to_dict(),
        "idle_w": saving.idle_w,
        "seconds": saving.seconds.to_dict(),
        "joules_gross": None if saving.joules is None else saving.joules.to_dict(),
        "joules_net": None if saving.net_joules is None else saving.net_joules.to_dict(),
        "why_no_joules": saving.why_no_joules,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(summary: Summary) -> str:
    """A report for a README; with a carbon factor, the `co2_eq_emissions` of a model card on top."""
    lines = _card(summary)
    lines += [f"## Energy of {_cell(summary.name)}", "", headline(summary), subline(summary)]
    lines += [""] if lines[-1] else []
    lines += [f"> {_cell(remark)}" for remark in summary.remarks] + ([""] if summary.remarks else [])
    made = grids(summary)
    for grid in made[:1]:
        lines += _grid(grid)
    lines += [f"- {_cell(line)}" for line in total_lines(summary)] + ["", "### What it saved", ""]
    for saving in summary.savings:
        lines += _grid(saving_grid(saving, summary.here), "####")
        lines += [f"- {_cell(line)}" for line in saving_lines(saving, summary.factors)] + [""]
    if not summary.savings:
        lines += [_cell(next_step(summary)), ""]
    for grid in made[1:]:
        lines += _grid(grid)
    lines += ["### How it was measured", ""]
    lines += [f"- {_cell(what)}: {_cell(how)}" for what, how in method_lines(summary)]
    return "\n".join(lines) + "\n"


def _card(summary: Summary) -> list[str]:
    """The block that model cards have for this. Grams, as they want; only with a factor and all energy known."""
    carbon, energy_j = summary.factors.carbon, summary.gross.energy_j
    if carbon is None or energy_j is None:
        return []
    source = f"forethought, {label_text(summary.gross)}, {amount_text(summary.gross)} gross, {carbon}"
    return [
        "---",
        "co2_eq_emissions:",
        f"  emissions: {carbon.grams(energy_j):.6g}",
        f'  source: "{_quoted(source)}"',
        '  training_type: "fine-tuning"',
        f'  hardware_used: "{_quoted("; ".join(summary.machines.values()))}"',
        "---",
        "",
    ]


def _grid(grid: Grid, mark: str = "###") -> list[str]:
    marks = ["---:" if at in grid.numbers else "---" for at in range(len(grid.columns))]
    rows = [[_cell(cell) for cell in row] for row in grid.rows]
    lines = [f"{mark} {_cell(grid.title)}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in (list(grid.columns), marks, *rows)]
    return [*lines, "", *([_cell(grid.note), ""] if grid.note else [])]


def _cell(text: str) -> str:
    indent = "&nbsp;&nbsp;" if text.startswith("  ") else ""
    escaped = "".join(f"\\{letter}" if letter in "\\|`*_<>[]#" else letter for letter in text.strip())
    return indent + escaped


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def to_csv(summary: Summary) -> str:
    """One row an outermost run, with CodeCarbon's columns and units (kWh, W, kg); empty is not measured."""
    out = io.StringIO()
    writer = csv.DictWriter(out, (*CODECARBON, *OURS), restval="", lineterminator="\n")
    writer.writeheader()
    for span in summary.spans:
        writer.writerow({name: "" if value is None else value for name, value in _csv_row(summary, span).items()})
    return out.getvalue()


def _csv_row(summary: Summary, span: Span) -> dict[str, Any]:
    parts = {"cpu": ("package", "cpu"), "gpu": ("gpu", "ane"), "ram": ("dram",)}
    energy = {name: _component_kwh(span, name, starts) for name, starts in parts.items()}
    kwh = None if span.amount.energy_j is None else span.amount.energy_j / KWH_J
    carbon = summary.factors.carbon
    kg = None if carbon is None or span.amount.energy_j is None else carbon.grams(span.amount.energy_j) / 1000
    hours, interval = span.time_s / 3600, span.amount.interval_j
    return {
        "timestamp": _moment(span.start).isoformat(timespec="seconds"),
        "project_name": summary.name,
        "run_id": span.id,
        "duration": span.time_s,
        "emissions": kg,
        "emissions_rate": None if kg is None or not span.time_s else kg / span.time_s,
        **{
            f"{name}_power": None if each is None or not hours else each * 1000 / hours for name, each in energy.items()
        },
        **{f"{name}_energy": each for name, each in energy.items()},
        "energy_consumed": kwh,
        "cpu_model": summary.machines.get(span.machine),
        "tracking_mode": "machine",
        "pue": None if carbon is None else carbon.pue,
        "phase": span.phase,
        "label": span.amount.label,
        "energy_low": None if interval is None else interval[0] / KWH_J,
        "energy_high": None if interval is None else interval[1] / KWH_J,
        "shared": span.is_shared,
        "not_measured": "; ".join(span.amount.reasons) or None,
        "elsewhere": bool(elsewhere(summary, span.machine)),
    }


def _component_kwh(span: Span, name: str, starts: tuple[str, ...]) -> float | None:
    """Kilowatt-hours of the processors, of the graphics or of the memory; None unless each of them is known."""
    found = [
        amount
        for component, amount in span.components.items()
        if component.rpartition("/")[2].startswith(starts) and (name == "ram" or not component.endswith("dram"))
    ]
    total = Amount.total(found)
    return None if total.energy_j is None else total.energy_j / KWH_J


def to_boamps(summary: Summary) -> dict[str, Any]:
    """A report by the schema of Boavizta's BoAmps. It has no word for "not measured", so all energy must be known.

    Raises:
        EnergyError: some of it is not.
    """
    # What the idle machine drew has members of its own.
    spans = [span for span in summary.spans if span.phase != IDLE]
    gross = Amount.total(span.amount for span in spans)
    if gross.energy_j is None or summary.first is None:
        raise EnergyError(
            "Cannot write a BoAmps report: its powerConsumption must be a number, and not all of the energy is known: "
            f"{'; '.join(gross.reasons) or 'nothing was recorded'}. State it (--watts 350), or --format json."
        )
    idle = next((found for found in summary.baselines.values() if found.time_s), None)
    measure: dict[str, Any] = {
        "measurementMethod": f"forethought: {label_text(gross)}",
        "powerConsumption": gross.energy_j / KWH_J,
        "measurementDuration": sum(span.time_s for span in spans),
        "measurementDateTime": _moment(summary.first).strftime("%Y-%m-%d %H:%M:%S"),
    }
    if idle is not None and idle.time_s is not None:
        measure["powerCalibrationMeasurement"] = idle.total_w * idle.time_s / KWH_J
        measure["durationCalibrationMeasurement"] = idle.time_s
    models = sorted({table.model for table in summary.tables if table.model}) or ["unknown"]
    rows = max((table.rows for table in summary.tables), default=0)
    quantity = {"dataQuantity": rows} if rows else {}
    machines = [{"componentName": words, "componentType": "computer"} for words in summary.machines.values()]
    return {
        "header": {"reportDatetime": _moment(summary.time).strftime("%Y-%m-%d %H:%M:%S"), "reportStatus": "draft"},
        "task": {
            "taskStage": "training",
            "taskFamily": "transfer learning on stored features",
            "algorithms": [{"trainingType": "transferLearning", "algorithmName": name} for name in models],
            "dataset": [{"dataUsage": "input", "dataType": "other", **quantity}],
        },
        "measures": [measure],
        **(_system() if set(summary.machines) <= {summary.here} else {}),
        "infrastructure": {
            "infraType": "other",
            "components": [{**machine, "nbComponent": 1} for machine in machines],
        },
        "quality": next((word for start, word in _QUALITY if gross.label.startswith(start)), "low"),
    }


def _system() -> dict[str, dict[str, str]]:
    """What this machine runs on; of another one a report cannot say it."""
    return {
        "system": {"os": platform.system()},
        "software": {"language": "python", "version": platform.python_version()},
    }


def _moment(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # a date that no calendar has
        return datetime.fromtimestamp(0, UTC)
