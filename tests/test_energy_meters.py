"""Wall meters, zeus, stated watts, who may count, and who else was at work: each says how it knows, or that it does not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_energy import FakeNvml, gpu, measure

from forethought.energy import WallMeter, find_meters
from forethought.energy.load import Load, own_processes
from forethought.energy.meters import BOUNDS, LABELS, DeclaredMeter, MeterReport, widest
from forethought.energy.nvml import find_nvml
from forethought.energy.ownership import Ownership
from forethought.energy.zeus import find_zeus
from forethought.errors import EnergyError

# --------------------------------------------------------------------------------------------- wall meters


def plug(*totals_kwh):
    """A function that gives a plug's totals, one a call."""
    totals = iter(totals_kwh)
    return lambda: next(totals)


def test_wall_meter_counts_kilowatt_hours():
    """A running total in kWh becomes joules at the plug; its label and interval say what it is."""
    reading = measure(WallMeter(plug(100.0, 100.5)), 3600.0)
    assert reading.energy_j == pytest.approx(1.8e6)
    assert (reading.label, reading.scope) == ("measured:wall", "whole machine, at the plug")
    assert reading.interval_j == pytest.approx((1.8e6 * 0.97 - 3600, 1.8e6 * 1.03 + 3600))


def test_wall_meter_by_command():
    """A shell command that prints one number is a wall meter."""
    assert WallMeter("printf '%s\\n' 2.5").read() == {"wall": 9e6}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("echo", "expected one number"),
        ("echo 1 kWh", "expected one number"),
        ("echo nan", "expected a running total"),
        ("echo -- -3", "expected one number"),
        ("printf -- -3", "expected a running total"),
        ("echo broken plug >&2; exit 3", "status 3 .* broken plug"),
        (lambda: None, "NoneType"),
        (lambda: 1 / 0, "division by zero"),
        (plug(), "StopIteration"),
    ],
)
def test_wall_meter_that_does_not_answer_is_a_reason(source, reason):
    """Whatever the user's code does, it ends in no number and a reason, never in an error of the work."""
    meter = WallMeter(source)
    assert meter.read() is None
    assert re.search(reason, meter.reason)
    assert find_meters(wall=source, nvml=FakeNvml()).unavailable[0][0] == "wall meter"


def test_wall_meter_that_hangs_is_left(monkeypatch):
    """A plug that does not answer holds nobody up for long."""
    monkeypatch.setattr("forethought.energy.wall._PATIENCE_S", 0.2)
    meter = WallMeter("sleep 60")
    assert meter.read() is None
    assert "no answer" in meter.reason


@pytest.mark.parametrize("command", ["sleep 61.5 | cat; echo 1", "yes 1", "yes 1 >&2; echo 1", "sleep 61.5 & echo 1"])
def test_wall_meter_that_hangs_or_floods_leaves_nothing_behind(monkeypatch, command):
    """However many processes a command starts and whatever they print, none is left, and little of it is kept."""
    monkeypatch.setattr("forethought.energy.wall._PATIENCE_S", 0.3)
    left = []
    popen = subprocess.Popen

    def noted(*args, **kwargs):
        left.append(popen(*args, **kwargs))
        return left[-1]

    monkeypatch.setattr("forethought.energy.wall.subprocess.Popen", noted)
    meter = WallMeter(command)
    assert meter.read() is None
    assert re.search("no answer|expected one number", meter.reason)
    assert len(meter.reason) < 300
    for _ in range(100):  # what was killed may take a moment to be gone
        if not alive_in(left[0].pid):
            return
        time.sleep(0.01)
    pytest.fail(f"still there: {alive_in(left[0].pid)}")


def alive_in(group):
    """Processes of a group that are not dead, though perhaps nobody has asked how they ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            states.append(path.read_text().rpartition(")")[2].split())
    return [state for state in states if state[2] == str(group) and state[0] not in "ZX"]


def test_wall_meter_that_prints_no_text_is_a_reason():
    """Bytes that are no letters are no number, and no error of the work."""
    meter = WallMeter("printf '\\377\\000'")
    assert meter.read() is None
    assert "expected one number" in meter.reason or "could not convert" in meter.reason


def test_wall_meter_that_was_reset_is_not_believed():
    """A plug that lost its total counts nothing."""
    assert "reset" in measure(WallMeter(plug(100.0, 0.1)), 60.0).reason


@pytest.mark.parametrize("source", ["", "  ", 3.5, None])
def test_wall_meter_refuses_what_is_none(source):
    """Neither a command nor a function is said at once, not at the end of a day's work."""
    with pytest.raises(EnergyError, match="expected a command or a function"):
        WallMeter(source)


def test_wall_meter_from_the_environment(monkeypatch):
    """A command in $FORETHOUGHT_METER is a wall meter for everything that measures by itself."""
    monkeypatch.setenv("FORETHOUGHT_METER", "echo 7")
    assert [meter.label for meter in find_meters(nvml=FakeNvml()).meters] == ["measured:wall"]


def test_wall_meter_holds_what_counters_see():
    """Read as one, wall and counters are not added: the plug has seen both already."""
    report = MeterReport((WallMeter(plug(1.0)), *find_nvml(FakeNvml(gpu(5000))).meters))
    assert report.meter.read() == {"wall": 3.6e6}


# ----------------------------------------------------------------------------------------- labels and bounds


def test_labels_are_those_of_the_documentation():
    """Seven labels, strongest first, each with what it promises; what a user declares has no interval."""
    assert LABELS == (
        "measured:wall", "measured:counter", "sampled", "calibrated", "modelled", "declared", "unavailable",
    )  # fmt: skip
    assert BOUNDS["declared"] is None
    assert BOUNDS["unavailable"] is None


def test_bound_of_a_sum_holds_whatever_its_parts_weigh():
    """The widest bound holds for the sum; one that is not known leaves the sum's unknown."""
    assert widest([(-0.1, 0.2), (-0.3, 0.1)]) == (-0.3, 0.2)
    assert widest([(-0.1, 0.2), None]) is None
    assert widest([]) is None


def test_declared_watts_are_labelled_so():
    """What a user states is never called measured, and has no interval."""
    clock = iter([0.0, 10.0])
    reading = measure(DeclaredMeter(350.0, clock=lambda: next(clock)), 10.0)
    assert (reading.energy_j, reading.label, reading.interval_j) == (3500.0, "declared", None)


@pytest.mark.parametrize("watts", [0, -5, float("nan"), float("inf")])
def test_declared_watts_must_be_watts(watts):
    """Nonsense is refused when it is said."""
    with pytest.raises(EnergyError, match="watts=350"):
        DeclaredMeter(watts)


# ------------------------------------------------------------------------------------------------------ zeus


def a_zeus(monkeypatch, *, amd=None, apple=None):
    """Stand in for the zeus package."""
    off = {
        "gpu.amd": SimpleNamespace(amdsmi_is_available=lambda: False),
        "soc.apple": SimpleNamespace(apple_silicon_is_available=lambda: False),
    }
    modules = off | {name: module for name, module in {"gpu.amd": amd, "soc.apple": apple}.items() if module}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"zeus.device.{name}", module)
    monkeypatch.setattr("forethought.energy.zeus.find_spec", lambda name: object())
    monkeypatch.setattr("forethought.energy.zeus.importlib.import_module", lambda name: sys.modules[name])


class AmdGpus:
    """As zeus 0.16 gives AMD GPUs; a count that is None is not supported."""

    def __init__(self, *counts):
        self.counts = list(counts)

    def __len__(self):
        return len(self.counts)

    def supports_get_total_energy_consumption(self, at):
        return self.counts[at] is not None

    def get_total_energy_consumption(self, at):
        if isinstance(self.counts[at], Exception):
            raise self.counts[at]
        return self.counts[at]

    def get_name(self, at):
        return "MI300X"


def amd(*counts):
    gpus = AmdGpus(*counts)
    return gpus, SimpleNamespace(amdsmi_is_available=lambda: True, AMDGPUs=lambda homogeneous: gpus)


def test_zeus_counts_amd_gpus(monkeypatch):
    """GPUs whose counter zeus trusts are counted; the others are named, not counted as 0."""
    gpus, module = amd(1_000_000, None)
    a_zeus(monkeypatch, amd=module)
    report = find_zeus()
    assert report.meters[0].read() == {"gpu0": 1000.0}
    assert report.unavailable == (("zeus gpu1", "this AMD GPU has no energy counter that is right"),)
    gpus.counts[0] = RuntimeError("device lost")
    assert (report.meters[0].read(), report.meters[0].reason) == (None, "zeus: device lost")


def test_zeus_counts_apple_silicon_once(monkeypatch):
    """Of Apple's numbers those are added that do not contain each other; a missing one is left out, not 0."""
    said = SimpleNamespace(cpu_total_mj=4000, efficiency_cores_mj=[1000], dram_mj=None, gpu_mj=2000)
    device = SimpleNamespace(get_total_energy_consumption=lambda: said)
    a_zeus(monkeypatch, apple=SimpleNamespace(apple_silicon_is_available=lambda: True, AppleSilicon=lambda: device))
    assert find_zeus().meters[0].read() == {"cpu": 4.0, "gpu": 2.0}


def test_zeus_that_fails_is_a_reason(monkeypatch):
    """Whatever zeus or a vendor's library raises ends in a reason; without zeus there is nothing to say."""
    a_zeus(monkeypatch, amd=SimpleNamespace(amdsmi_is_available=lambda: {}["libamd_smi.so"]))
    assert "libamd_smi.so" in find_zeus().unavailable[0][1]
    monkeypatch.setattr("forethought.energy.zeus.find_spec", lambda name: None)
    assert find_zeus() == MeterReport()


def test_zeus_is_not_asked_beside_nvidia_counters(monkeypatch, tmp_path):
    """One instrument counts a GPU."""
    monkeypatch.setattr("forethought.energy.discovery.find_zeus", lambda: pytest.fail("asked"))
    assert find_meters(nvml=FakeNvml(gpu(5)), powercap=tmp_path).meter.read() == {"gpu0": 0.005}


# ------------------------------------------------------------------------------------------------- who counts


def test_one_span_counts_a_component(tmp_path):
    """Whoever comes second is refused, by name, until the first lets go; other components are free."""
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    assert first.take(["gpu0"]) == {"gpu0"}
    assert second.take(["gpu0", "package-0/dram"]) == {"package-0/dram"}
    assert "counted by" in second.refused["gpu0"]
    first.release()
    assert second.take(["gpu0", "package-0/dram"]) == {"gpu0", "package-0/dram"}
    assert second.refused == {}
    second.release()


def test_a_plug_and_a_counter_of_its_machine_are_not_counted_by_two(tmp_path):
    """A plug has seen what any counter saw: either one span counts the machine, or some count its components."""
    plug, counter, other = Ownership(tmp_path), Ownership(tmp_path), Ownership(tmp_path)
    assert plug.take(["gpu0", "wall"], whole={"wall"}) == {"gpu0", "wall"}
    assert counter.take(["gpu1"]) == frozenset()
    assert "counted by" in counter.refused["gpu1"]
    plug.release()
    assert counter.take(["gpu1"]) == {"gpu1"}
    assert other.take(["gpu0"]) == {"gpu0"}
    assert plug.take(["gpu0", "gpu2", "wall"], whole={"wall"}) == {"gpu2"}
    assert plug.refused.keys() == {"gpu0", "wall"}
    other.release()
    counter.release()
    assert plug.take(["gpu0", "gpu2", "wall"], whole={"wall"}) == {"gpu0", "gpu2", "wall"}
    assert plug.has_machine
    assert counter.take(["gpu1"], is_within=True) == {"gpu1"}
    plug.release()
    counter.release()
    assert other.take(["wall"], whole={"wall"}) == {"wall"}  # nobody who counts nothing is in the way
    other.release()


def test_a_lock_is_for_every_user_and_no_trap(tmp_path):
    """Whatever the first user's mask, the second can ask; a pipe put in a lock's place does not hang."""
    before = os.umask(0o077)
    try:
        with Ownership(tmp_path) as owner:
            assert owner.take(["gpu0"]) == {"gpu0"}
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    os.mkfifo(tmp_path / "forethought-meter-gpu1.lock")
    with Ownership(tmp_path) as owner:
        owner.take(["gpu1"])


HOLD = """
import sys, time
from pathlib import Path
from forethought.energy.ownership import Ownership
owner = Ownership(Path(sys.argv[1]))
print(sorted(owner.take(["gpu0"])), flush=True)
time.sleep(60)
"""


def test_the_kernel_lets_go_of_what_a_killed_process_counted(tmp_path):
    """No lock outlives its process: kill -9 leaves nothing to clean up."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "['gpu0']\n"
        with Ownership(tmp_path) as mine:
            assert mine.take(["gpu0"]) == frozenset()
            assert f"process {child.pid}" in mine.refused["gpu0"] or "another process" in mine.refused["gpu0"]
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with Ownership(tmp_path) as mine:
        assert mine.take(["gpu0"]) == {"gpu0"}


def test_without_a_place_for_locks_nothing_is_counted(tmp_path):
    """Where nobody can know who else counts, no joules are claimed; a link is not followed."""
    missing = Ownership(tmp_path / "none")
    assert missing.take(["gpu0"]) == frozenset()
    assert "no lock can be had" in missing.refused["gpu0"]
    (tmp_path / "forethought-meter-gpu0.lock").symlink_to(tmp_path / "elsewhere")
    linked = Ownership(tmp_path)
    assert linked.take(["gpu0"]) == frozenset()
    assert not (tmp_path / "elsewhere").exists()


# -------------------------------------------------------------------------------------- who else was at work


def a_proc(folder, *, busy, own, uptime):
    (folder / str(os.getpid())).mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(f"cpu  {busy} 0 0 999 9 0 0 0 0 0\ncpu0 1 1 1 1\n")
    (folder / "uptime").write_text(f"{uptime} 12.0\n")
    (folder / str(os.getpid()) / "stat").write_text(f"1 (py (x) y) S {'0 ' * 10}{own} 0 0 0 0 0 0\n")
    return Load.read(folder)


def test_load_tells_others_from_ourselves(tmp_path):
    """Cores that others kept busy are all that were busy but ours; too short a time says nothing."""
    tick = os.sysconf("SC_CLK_TCK")
    before = a_proc(tmp_path, busy=100 * tick, own=10 * tick, uptime=1000.0)
    after = a_proc(tmp_path, busy=130 * tick, own=25 * tick, uptime=1010.0)
    assert before.others_cores(after) == pytest.approx(1.5)
    assert before.others_cores(a_proc(tmp_path, busy=101 * tick, own=10 * tick, uptime=1000.5)) is None


def test_load_that_cannot_be_read_is_unknown(tmp_path):
    """Where the system does not tell, nothing is said."""
    assert Load.read(tmp_path) is None
    (tmp_path / "stat").write_text("intr 5\n")
    assert Load.read(tmp_path) is None


def test_load_of_this_machine():
    """On a real system what we do is ours."""
    before, cpu = Load.read(), time.process_time()
    while time.process_time() - cpu < 0.1:
        pass
    after = Load.read()
    if before is not None:
        assert after.own_s - before.own_s >= 0.08
        assert os.getpid() in own_processes()


@pytest.mark.parametrize(
    ("listed", "own", "strangers"),
    [
        ((), {7}, 0),
        ((7,), {7}, 0),
        ((7, 8), {7}, 1),
        ((90001,), {7}, 0),  # in a container the driver gives the host's numbers: this is us
        ((90001, 90002), {7}, 2),
    ],
)
def test_nvml_counts_strangers(listed, own, strangers):
    """Other processes on a GPU draw from its counter too."""
    nvml = FakeNvml(gpu(1))
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda handle: [SimpleNamespace(pid=pid) for pid in listed]
    assert find_nvml(nvml).meters[0].strangers(own) == strangers


def test_nvml_that_does_not_tell_of_strangers():
    """An old driver does not list processes: that is unknown, not none."""
    assert find_nvml(FakeNvml(gpu(1))).meters[0].strangers({7}) is None


def test_energy_starts_only_the_command_of_the_user(tmp_path):
    """With a wall meter by command, that command is the only child, and nobody is called: reports and all."""
    script = """
import json, os, sys
import torch
events = []
sys.addaudithook(lambda event, given: events.append((event, str(given[0]) if given else "")))
os.environ["FORETHOUGHT_METER"] = "echo 5"
from forethought.energy import Window, find_meters
with Window(find_meters().meter) as window: pass
reads = len([1 for event, _ in events if event == "subprocess.Popen"])
del os.environ["FORETHOUGHT_METER"]
import forethought as ft
from forethought.report import gather, summarize, to_csv, to_html, to_text
with ft.Ledger(sys.argv[1]).phase("work"): pass
summary = summarize(gather(sys.argv[1]))
to_text(summary), to_html(summary), to_csv(summary)
bad = [e for e in events if e[0].startswith(("socket.", "os.fork", "os.posix_spawn", "os.system", "subprocess."))]
print(json.dumps(sorted({event for event, _ in bad})), reads, len([1 for event, _ in bad if event == "subprocess.Popen"]))
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    names, reads, all_of_them = run.stdout.rsplit(" ", 2)
    assert (json.loads(names), int(reads), int(all_of_them)) == (["subprocess.Popen"], 3, 3)
