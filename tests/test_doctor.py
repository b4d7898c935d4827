"""A diagnosis says what the machine is, outlives what is broken on it, creates nothing and tells no names."""

import json
import subprocess
import sys
import warnings
from collections import namedtuple

import pytest
import torch

from forethought import doctor
from forethought.doctor import diagnose


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch):
    """No test depends on the driver of the machine that runs it."""
    monkeypatch.setattr(doctor, "GPU_FILES", ())
    monkeypatch.delenv("FORETHOUGHT_STORE", raising=False)


def probe(code, limit_s=30.0):
    return doctor._probe((sys.executable, "-c", code), limit_s)


def test_diagnose_is_json_and_text():
    """The same facts as a dict for programs and as a block for people."""
    diagnosis = diagnose()
    facts = json.loads(json.dumps(diagnosis.to_dict()))
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["torch_threads"] == torch.get_num_threads()
    assert facts["numerics"]["default_dtype"] == "torch.float32"
    text = diagnosis.to_text()
    assert all(section in text.splitlines() for section in facts)
    assert "\x1b" not in text
    assert text.isascii()


def test_diagnose_prints_nothing(capfd):
    """Nothing on either stream, and no warning escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnose()
    assert capfd.readouterr() == ("", "")


def test_diagnose_explains_every_meter():
    """Energy is found or explained, never left out."""
    assert {name.split()[0] for name in diagnose().energy} >= {"nvml", "powercap"}


def test_diagnose_hides_the_home_folder(monkeypatch, tmp_path):
    """A pasted block must not carry the user's name."""
    home = tmp_path / "ada"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", f"path:{home}/x,{home}lovelace")
    diagnosis = diagnose("~/thoughts")
    assert diagnosis.store["location"] == "~/thoughts"
    assert f"PYTORCH_CUDA_ALLOC_CONF=path:~/x,{home}lovelace" in diagnosis.machine["variables"]


def test_diagnose_survives_a_question_that_raises(monkeypatch):
    """What cannot be asked is unknown, with the reason."""

    def broken():
        raise RuntimeError("legacy and new settings are mixed\nlong story")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", broken)
    answer = diagnose().numerics["matmul_precision"]
    assert answer == "unknown (RuntimeError: legacy and new settings are mixed)"


# ------------------------------------------------------------------------------------------ accelerators


def test_probe_gives_what_the_child_prints():
    """The child's answer is taken as it is."""
    answer = {"cuda": ["cuda:0 H200, 139.8 GiB"], "driver": "580.1"}
    assert probe(f"print({json.dumps(answer)!r})") == (answer, True)


def test_probe_of_this_machine_is_understood():
    """What the child prints here, with or without a GPU, is what the parent expects."""
    gpus, answers = doctor._probe(doctor.PROBE, 120.0)
    assert answers
    assert {"cuda", "driver", "cudnn"} <= gpus.keys()


@pytest.mark.parametrize("code", ["import os; os.abort()", "print('[1]')", "print('{}')", "raise SystemExit(3)"])
def test_probe_survives_a_child_that_fails(code):
    """A driver that aborts or an answer that is none is a line in the report."""
    gpus, answers = probe(code)
    assert answers
    assert "asking failed with exit status" in gpus["cuda"]


def test_probe_says_why_no_gpu_is_visible():
    """PyTorch's own warning is the reason."""
    code = "import sys; print('{\"cuda\": [], \"driver\": null}'); print('driver too old', file=sys.stderr)"
    assert probe(code)[0]["cuda"] == "driver too old"


def test_diagnose_survives_a_driver_that_hangs(monkeypatch):
    """A child that gives no answer is left behind, and the driver is not asked again in this process."""
    monkeypatch.setattr(doctor, "_devices", lambda: ({"cuda": "no answer in 60 s", "mps": False}, False))
    monkeypatch.setattr(doctor, "find_meters", lambda: pytest.fail("asked a driver that hangs"))
    diagnosis = diagnose()
    assert list(diagnosis.energy) == ["powercap"]
    assert "no answer" in diagnosis.notes[0]
    assert probe("import time; time.sleep(60)", limit_s=0.2) == ({"cuda": "no answer in 0.2 s"}, False)


def test_abandon_does_not_wait_for_a_child_that_cannot_be_killed():
    """A process stuck in the driver outlives its kill; the diagnosis goes on."""

    class Stuck:
        stdout = stderr = None
        killed = False

        def kill(self):
            self.killed = True

        def wait(self, timeout):
            raise subprocess.TimeoutExpired("child", timeout)

    child = Stuck()
    doctor._abandon(child)
    assert child.killed


# ------------------------------------------------------------------------------------------------ extras


def test_diagnose_names_the_command_for_a_missing_extra(monkeypatch):
    """A missing optional package comes with its install command; a complete extra with versions."""
    versions = {"a": "1.0", "c": "3.0"}
    needs = ["torch>=2", "a>=1; extra == 'one'", 'b-x; extra == "one"', "c; extra == 'two'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert diagnose().extras == {
        "one": "a 1.0; missing b-x: pip install 'forethought[one]'",
        "two": "c 3.0",
    }


# ------------------------------------------------------------------------------------------------- store


def test_diagnose_without_store_says_none():
    """No place given, none looked at."""
    assert diagnose().store == {"location": None}


def test_diagnose_takes_the_store_of_the_environment(monkeypatch, tmp_path):
    """$FORETHOUGHT_STORE is looked at unless a place is given."""
    monkeypatch.setenv("FORETHOUGHT_STORE", str(tmp_path))
    assert diagnose().store["location"] == str(tmp_path)
    assert diagnose(tmp_path / "b").store["location"] == str(tmp_path / "b")


def test_diagnose_creates_nothing(tmp_path):
    """A place that does not exist yet is judged by the folder that would hold it."""
    store = diagnose(tmp_path / "a" / "b").store
    assert (store["format"], store["writable"]) == ("folder does not exist yet", True)
    assert store["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('{"format": 1}', "1"),
        ("[]", "unknown (TypeError"),
        ("{", "unknown (JSONDecodeError"),
        ("{}", "unknown"),
    ],
)
def test_diagnose_reads_the_format_of_a_store(tmp_path, header, expected):
    """The version is read from the store's own file; a damaged one is unknown."""
    (tmp_path / "forethought.json").write_text(header)
    assert diagnose(tmp_path).store["format"].startswith(expected)


def test_diagnose_says_when_the_place_is_a_file(tmp_path):
    """A file cannot hold a store."""
    place = tmp_path / "file"
    place.touch()
    diagnosis = diagnose(place)
    assert (diagnosis.store["format"], diagnosis.store["writable"]) == ("not a folder", False)
    assert "cannot be written" in diagnosis.notes[0]


def test_diagnose_points_out_a_network_file_system(monkeypatch, tmp_path):
    """The deepest mount decides; names with spaces are understood."""
    place = tmp_path / "my share" / "thoughts"
    place.mkdir(parents=True)
    shared = str(place.parent).replace(" ", "\\040")
    mounts = f"22 1 8:1 / / rw - ext4 /dev/sda rw\n23 22 0:5 / {shared} rw,relatime shared:1 - nfs4 box:/x rw\n"
    table = tmp_path / "mountinfo"
    table.write_text(mounts)
    monkeypatch.setattr(doctor, "MOUNTS", table)
    diagnosis = diagnose(place)
    assert diagnosis.store["filesystem"] == "nfs4"
    assert "network file system (nfs4)" in diagnosis.notes[0]
    assert diagnose(tmp_path).store["filesystem"] == "ext4"


@pytest.mark.parametrize(
    ("free_gib", "disk_gib", "is_full"),
    [(0.5, 1, True), (2, 100, True), (19, 10_000, True), (21, 10_000, False), (6, 100, False)],
)
def test_diagnose_points_out_a_disk_nearly_full(monkeypatch, tmp_path, free_gib, disk_gib, is_full):
    """Under a twentieth of the disk or 20 GiB, whichever is less, and always under 1 GiB."""
    usage = namedtuple("usage", "total used free")(int(disk_gib * 2**30), 0, int(free_gib * 2**30))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    assert any("nearly full" in note for note in diagnose(tmp_path).notes) == is_full
