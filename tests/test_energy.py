"""Energy is measured or said to be unknown; every way a counter can mislead ends in None with a reason."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.energy import AllMeters, Limit, MeterReport, NoMeter, Window, find_meters
from forethought.energy.nvml import find_nvml
from forethought.energy.powercap import find_powercap
from forethought.errors import ForethoughtError

RANGE_UJ = 262_143_328_850


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class ScriptedMeter:
    """Gives the reads that it was told to give."""

    label, instrument, scope, reason = "measured:counter", "scripted", "everything", None
    step_s, step_j, most_power_w, bound = 0.0, 0.0, 1e9, (-0.1, 0.1)

    def __init__(self, *reads, limits=None, min_window_s=0.0, **about):
        self.reads, self.limits, self.min_window_s = list(reads), limits or {}, min_window_s
        vars(self).update(about)

    def read(self):
        joules = self.reads.pop(0)
        self.reason = "scripted: gone" if joules is None else None
        return joules


def measure(meter, *steps_s):
    """A window over `steps_s`, read between them."""
    clock = FakeClock()
    with Window(meter, clock=clock) as window:
        for step_s in steps_s[:-1]:
            clock.now += step_s
            window.lap()
        clock.now += steps_s[-1]
    return window.reading


# ---------------------------------------------------------------------------------------------- windows


def test_window_gives_the_difference():
    """Energy is what the counters gained, component by component."""
    reading = measure(ScriptedMeter({"cpu": 10.0, "gpu": 5.0}, {"cpu": 40.0, "gpu": 105.0}), 2.0)
    assert reading.energy_j == 130.0
    assert reading.components == {"cpu": 30.0, "gpu": 100.0}
    assert (reading.time_s, reading.label, reading.reason) == (2.0, "measured:counter", None)


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20))
def test_window_laps_add_up(steps_j):
    """Laps change nothing in the sum."""
    totals = [sum(steps_j[:n]) for n in range(len(steps_j) + 1)]
    reading = measure(ScriptedMeter(*({"cpu": total} for total in totals)), *([1.0] * len(steps_j)))
    assert reading.energy_j == pytest.approx(sum(steps_j))


@given(start=st.floats(0, 999.0), drawn=st.floats(0.001, 999.0))
def test_window_puts_one_wrap_right(start, drawn):
    """A counter that starts again at zero once gives the same energy as one that does not."""
    meter = ScriptedMeter({"cpu": start}, {"cpu": (start + drawn) % 1000.0}, limits={"cpu": Limit(1000.0, 1000.0)})
    assert measure(meter, 1.0).energy_j == pytest.approx(drawn, abs=1e-9)


def test_window_refuses_what_may_have_wrapped_twice():
    """Past the time in which a counter can wrap twice, its difference means nothing, even when positive."""
    limits = {"cpu": Limit(1000.0, 10.0)}
    reading = measure(ScriptedMeter({"cpu": 0.0}, {"cpu": 500.0}, limits=limits), 101.0)
    assert reading.energy_j is None
    assert "window.lap()" in reading.reason
    followed = measure(ScriptedMeter({"cpu": 0.0}, {"cpu": 900.0}, {"cpu": 300.0}, limits=limits), 90.0, 90.0)
    assert followed.energy_j == 900.0 + 400.0


@pytest.mark.parametrize("limits", [{}, {"cpu": Limit(1e6, 100.0)}])
def test_window_refuses_a_reset_counter(limits):
    """A counter that went back without a plausible wrap was reset."""
    reading = measure(ScriptedMeter({"cpu": 500.0}, {"cpu": 20.0}, limits=limits), 3.0)
    assert (reading.energy_j, reading.label, reading.components) == (None, "unavailable", {})
    assert "reset" in reading.reason


def test_window_remembers_a_reset_between_laps():
    """A counter that was reset and then passed its old value is still not believed."""
    reading = measure(ScriptedMeter({"cpu": 500.0}, {"cpu": 20.0}, {"cpu": 900.0}), 1.0, 1.0)
    assert reading.energy_j is None


@pytest.mark.parametrize("reads", [(None, {"cpu": 1.0}), ({"cpu": 1.0}, None), (None, None)])
def test_window_without_a_read_is_not_measured(reads):
    """One missing read is enough to know nothing."""
    reading = measure(ScriptedMeter(*reads), 1.0)
    assert (reading.energy_j, reading.reason) == (None, "scripted: gone")


def test_window_never_gives_zero():
    """A counter that did not move did not measure."""
    assert "did not move" in measure(ScriptedMeter({"cpu": 1.0}, {"cpu": 1.0}), 1.0).reason
    assert measure(ScriptedMeter({}, {}), 1.0).energy_j is None


def test_window_refuses_less_than_the_counter_resolves():
    """Below the meter's shortest window the number is mostly the counter's step."""
    reading = measure(ScriptedMeter({"gpu": 1.0}, {"gpu": 9.0}, min_window_s=1.0), 0.5)
    assert (reading.energy_j, reading.time_s) == (None, 0.5)
    assert "needs 1 s" in reading.reason


@pytest.mark.parametrize("limits", [{}, {"cpu": Limit(1e9, 1e6)}])
def test_window_refuses_what_no_device_draws(limits):
    """A counter that gains more than its device can draw lies, and is not believed."""
    reads = {"cpu": 0.0}, {"cpu": 5001.0}
    assert measure(ScriptedMeter(*reads, limits=limits, most_power_w=500.0), 10.0).energy_j is None
    assert measure(ScriptedMeter(*reads, limits=limits, most_power_w=501.0), 10.0).energy_j == 5001.0
    # Right after a renewal a counter has gained a whole step: that is no lie.
    assert measure(ScriptedMeter(*reads, limits=limits, most_power_w=500.0, step_s=0.1), 9.9).energy_j == 5001.0


@pytest.mark.parametrize(
    ("about", "interval_j"),
    [
        ({"bound": (-0.1, 0.1)}, (90.0, 110.0)),
        ({"bound": (-0.1, 0.1), "step_s": 0.1}, (89.0, 111.0)),  # a tenth of a second of ten
        ({"bound": (-0.5, 1.0), "step_j": 60.0}, (0.0, 260.0)),  # never below nothing
        ({"bound": None}, None),
    ],
)
def test_window_gives_an_interval(about, interval_j):
    """A reading says between which numbers the truth lies: by the instrument, and by the counter's steps."""
    reading = measure(ScriptedMeter({"cpu": 0.0}, {"cpu": 100.0}, **about), 10.0)
    assert reading.interval_j == (interval_j and pytest.approx(interval_j))


def test_window_keeps_its_own_time_apart():
    """Reading the meter is not part of the time that was measured, and is told."""
    clock = FakeClock()

    class Slow(ScriptedMeter):
        def read(self):
            clock.now += 0.25
            return super().read()

    with Window(Slow({"cpu": 0.0}, {"cpu": 1.0}), clock=clock) as window:
        clock.now += 2.0
    assert (window.reading.time_s, window.reading.overhead_s) == (2.0, 0.5)


def test_window_refuses_components_that_change():
    """A GPU that appears in the middle has no beginning."""
    assert measure(ScriptedMeter({"a": 1.0}, {"a": 2.0, "b": 9.0}), 1.0).energy_j is None


def test_window_synchronizes_before_it_reads():
    """Work still queued on the device belongs to the window that asked for it."""
    events = []
    meter = ScriptedMeter({"gpu": 1.0}, {"gpu": 2.0})
    read = meter.read
    meter.read = lambda: events.append("read") or read()
    with Window(meter, synchronize=lambda: events.append("wait"), clock=FakeClock()):
        events.append("work")
    assert events == ["wait", "read", "work", "wait", "read"]


def test_window_closes_after_an_error():
    """What a failed run drew was drawn; the device that failed is not waited for."""
    waits, clock = [], FakeClock()
    window = Window(ScriptedMeter({"cpu": 1.0}, {"cpu": 3.0}), synchronize=lambda: waits.append(1), clock=clock)

    def fail():
        clock.now += 1
        raise KeyError("work")

    with pytest.raises(KeyError), window:
        fail()
    assert (window.reading.energy_j, len(waits)) == (2.0, 1)


def test_window_that_is_open_has_no_reading():
    """A reading exists once the window is closed."""
    with Window(NoMeter()) as window, pytest.raises(ForethoughtError, match="after the `with` block"):
        _ = window.reading


# ----------------------------------------------------------------------------------------------- meters


def test_no_meter_says_why():
    """Without counters the report still gives a meter; its windows are timed, not measured."""
    report = MeterReport(unavailable=(("nvml", "no driver"), ("powercap", "no folder")))
    reading = measure(report.meter, 5.0)
    assert (reading.energy_j, reading.time_s, reading.label) == (None, 5.0, "unavailable")
    assert reading.reason == "nvml: no driver; powercap: no folder"


def test_all_meters_read_as_one():
    """Components are joined, the weakest label and the longest window win."""
    sampled = ScriptedMeter({"gpu": 1.0}, min_window_s=2.0)
    sampled.label, sampled.bound = "sampled", (-0.25, 0.3)
    both = AllMeters([ScriptedMeter({"cpu": 2.0}, limits={"cpu": Limit(1.0, 1.0)}), sampled])
    assert both.read() == {"cpu": 2.0, "gpu": 1.0}
    assert (both.label, both.min_window_s, list(both.limits)) == ("sampled", 2.0, ["cpu"])
    assert both.bound == (-0.25, 0.3)


def test_all_meters_give_nothing_when_one_fails():
    """The sum of some is not the sum of all."""
    both = AllMeters([ScriptedMeter({"cpu": 2.0}), ScriptedMeter(None)])
    assert (both.read(), both.reason) == (None, "scripted: gone")


# ------------------------------------------------------------------------------------------------- nvml


class FakeNvml:
    """The part of pynvml that is used, with GPUs given as dicts; a value that is an error is raised."""

    class NVMLError(Exception):
        """As in pynvml."""

    def __init__(self, *gpus, init=None):
        self.gpus, self.init = list(gpus), init

    def nvmlInit(self):
        if self.init:
            raise self.NVMLError(self.init)

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu):
        return gpu["name"]

    def nvmlDeviceGetUUID(self, gpu):
        return gpu["uuid"]

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        if isinstance(gpu["mj"], str):
            raise self.NVMLError(gpu["mj"])
        return gpu["mj"]


def gpu(mj, uuid="GPU-a", name="H200"):
    return {"mj": mj, "uuid": uuid, "name": name}


def test_nvml_counts_every_gpu_in_joules():
    """Millijoules become joules, one component a GPU."""
    (meter,) = find_nvml(FakeNvml(gpu(1500), gpu(2_000_000))).meters
    assert meter.read() == {"gpu0": 1.5, "gpu1": 2000.0}
    assert "gpu0 H200" in meter.scope


@pytest.mark.parametrize("asked", ["b", "GPU-b"])
def test_nvml_counts_only_the_gpus_asked_for(asked):
    """On a shared machine the other GPUs are other people's."""
    (meter,) = find_nvml(FakeNvml(gpu(1, "GPU-a"), gpu(2000, "GPU-b")), gpus=[asked]).meters
    assert meter.read() == {"gpu1": 2.0}
    assert find_nvml(FakeNvml(gpu(1)), gpus=["GPU-z"]).meters == ()


def test_nvml_names_a_gpu_without_counter():
    """A GPU older than Volta is left out by name, the other is counted."""
    report = find_nvml(FakeNvml(gpu("Not Supported"), gpu(1000)))
    assert report.meters[0].read() == {"gpu1": 1.0}
    assert report.unavailable[0][0] == "nvml gpu0"
    assert "Volta" in report.unavailable[0][1]


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [(FakeNvml(init="Driver Not Loaded"), "Driver Not Loaded"), (FakeNvml(), "no NVIDIA GPU here")],
)
def test_nvml_unavailable_says_why(nvml, reason):
    """No driver and no GPU are reasons, not errors."""
    assert find_nvml(nvml).unavailable == (("nvml", reason),)


def test_nvml_that_stops_answering_is_not_measured():
    """A driver that fails during the window leaves no number."""
    nvml = FakeNvml(gpu(1000))
    clock = FakeClock()
    with Window(find_nvml(nvml).meter, clock=clock) as window:
        clock.now += 5
        nvml.gpus[0]["mj"] = "GPU is lost"
    assert (window.reading.energy_j, window.reading.reason) == (None, "nvml: GPU is lost")


def test_nvml_missing_says_how_to_install(monkeypatch):
    """Without the binding the reason is a command."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in find_nvml().unavailable[0][1]


# --------------------------------------------------------------------------------------------- powercap


def zone(root, folder, name, joules, **files):
    """Write one zone as the kernel shows it."""
    path = root / folder
    path.mkdir(parents=True)
    contents = {"name": name, "energy_uj": int(joules * 1e6), "max_energy_range_uj": RANGE_UJ} | files
    for file, text in contents.items():
        (path / file).write_text(f"{text}\n")
    return path


def components(root):
    (meter,) = find_powercap(root).meters
    return meter.read()


def test_powercap_counts_packages_and_their_memory(tmp_path):
    """Inner zones are inside the package and psys is around it: neither is added."""
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 60)
    zone(tmp_path, "intel-rapl:0:1", "uncore", 5)
    zone(tmp_path, "intel-rapl:0:2", "dram", 20)
    zone(tmp_path, "intel-rapl:1", "package-1", 90)
    zone(tmp_path, "intel-rapl:2", "psys", 150)
    (tmp_path / "intel-rapl").mkdir()
    (tmp_path / "dtpm").mkdir()
    assert components(tmp_path) == {"package-0": 100.0, "package-0/dram": 20.0, "package-1": 90.0}


def test_powercap_counts_a_package_once_per_name(tmp_path):
    """MSR and MMIO show the same package; the first of them is read."""
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 97)
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "dram", 7)
    zone(tmp_path, "intel-rapl-mmio:0:0", "dram", 7)
    assert components(tmp_path) == {"package-0": 100.0, "package-0/dram": 7.0}


@pytest.mark.parametrize(
    ("names", "joules", "counted"),
    [
        (("package-0-die-0", "package-0-die-1"), (5000.0, 5000.2), 1),  # one counter shown twice
        (("package-0-die-0", "package-0-die-1"), (5000.0, 5600.0), 2),  # dies that count for themselves
        (("package-0-die-0", "package-1-die-0"), (5000.0, 5000.0), 2),  # two sockets, equal by chance
        (("package-0-die-0", "package-0-die-1"), (0.0, 0.0), 2),  # zero is no evidence
    ],
)
def test_powercap_drops_mirrored_dies_only(tmp_path, names, joules, counted):
    """A die is dropped when it shows the counter of another die of its own package."""
    for index, (name, value) in enumerate(zip(names, joules, strict=True)):
        zone(tmp_path, f"intel-rapl:{index}", name, value)
    assert len(components(tmp_path)) == counted


def test_powercap_window_follows_a_wrap(tmp_path):
    """The kernel's range puts a wrap right."""
    path = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ * 1e-6 - 10)
    clock = FakeClock()
    with Window(find_powercap(tmp_path).meter, clock=clock) as window:
        clock.now += 2
        (path / "energy_uj").write_text("5000000\n")
    assert window.reading.energy_j == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("limits_uw", "power_w"),
    [
        ({}, 1000.0),
        ({"constraint_0_power_limit_uw": 125_000_000, "constraint_1_power_limit_uw": 250_000_000}, 500.0),
        ({"constraint_0_power_limit_uw": 4_095_000_000}, 1000.0),  # a board that lifted the limit
        ({"constraint_0_power_limit_uw": 0, "constraint_1_power_limit_uw": "?"}, 1000.0),
    ],
)
def test_powercap_limit_follows_the_power_limit(tmp_path, limits_uw, power_w):
    """The stricter the package is limited, the longer its counter can be left alone."""
    zone(tmp_path, "intel-rapl:0", "package-0", 1, **limits_uw)
    (meter,) = find_powercap(tmp_path).meters
    assert meter.limits["package-0"].power_w == pytest.approx(power_w)
    assert meter.limits["package-0"].gap_s == pytest.approx(RANGE_UJ * 1e-6 / power_w)


def test_powercap_without_permission_says_the_fix(tmp_path, monkeypatch):
    """Counters of a fresh Linux belong to root; forethought names the command and does not run it."""
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def deny(path):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", deny)
    ((instrument, reason),) = find_powercap(tmp_path).unavailable
    assert instrument == "powercap"
    assert f"sudo chmod a+r {tmp_path}/*/energy_uj" in reason


@pytest.mark.parametrize("garbage", ["", "12.5", "-1", "not a number"])
def test_powercap_garbage_is_unavailable(tmp_path, garbage):
    """A counter that is no number is a reason, not a crash and not a zero."""
    zone(tmp_path, "intel-rapl:0", "package-0", 1, energy_uj=garbage)
    report = find_powercap(tmp_path)
    assert report.meters == ()
    assert "energy_uj" in report.unavailable[0][1]


def test_powercap_without_folder_or_package_is_unavailable(tmp_path):
    """A virtual machine has no folder; a tree without packages has nothing to count."""
    assert "no folder" in find_powercap(tmp_path / "none").unavailable[0][1]
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    (tmp_path / "intel-rapl:1").mkdir()
    assert "no CPU package" in find_powercap(tmp_path).unavailable[0][1]


def test_powercap_that_disappears_is_not_measured(tmp_path):
    """A zone that goes away during the window leaves no number."""
    path = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    clock = FakeClock()
    with Window(find_powercap(tmp_path).meter, clock=clock) as window:
        clock.now += 2
        (path / "energy_uj").unlink()
    assert window.reading.energy_j is None
    assert "energy_uj" in window.reading.reason


# ----------------------------------------------------------------------------------------- no surprises


def test_find_meters_joins_both(tmp_path):
    """CPU and GPU are read as one."""
    zone(tmp_path, "intel-rapl:0", "package-0", 3)
    report = find_meters(nvml=FakeNvml(gpu(4000)), powercap=tmp_path)
    assert report.meter.read() == {"gpu0": 4.0, "package-0": 3.0}
    assert report.meter.instrument == "nvml + powercap"


def test_find_meters_reports_this_machine():
    """Whatever this machine is, everything looked for is either found or explained."""
    report = find_meters()
    found = {meter.instrument for meter in report.meters}
    assert {"nvml", "powercap"} <= found | {instrument.split()[0] for instrument, _ in report.unavailable}
    assert all(reason for _, reason in report.unavailable)


def test_energy_starts_nothing_and_calls_nobody():
    """No thread, no process, no network."""
    script = """
import json, sys, threading
import torch  # what torch does as it is imported is its own affair
events = []
sys.addaudithook(lambda event, _: events.append(event))
from forethought.energy import Window, find_meters
with Window(find_meters().meter) as window: pass
forbidden = ("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.system")
bad = [event for event in events if event.startswith(forbidden)]
print(json.dumps([bad, threading.active_count()]))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[], 1]
