"""What this machine is and can measure, as one block to paste into a bug report."""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from forethought.energy import MeterReport, find_meters
from forethought.energy.powercap import find_powercap

Value = str | int | bool | None | list[str]
Section = Mapping[str, Value]

PACKAGES = ("forethought", "torch", "numpy", "safetensors", "blake3", "rich", "typer", "nvidia-ml-py")
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK",
)
STORE_VARIABLE = "FORETHOUGHT_STORE"
# Files that exist where a driver for CUDA (also inside WSL) or ROCm is loaded.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
MOUNTS = Path("/proc/self/mountinfo")
PROBE = (sys.executable, "-P", "-c", "from forethought.doctor import print_gpus; print_gpus()")
PROBE_S = 60.0
NETWORK_FILESYSTEMS = re.compile(r"nfs|cifs|smb|afs|9p|ceph|lustre|gpfs|beegfs|gluster|sshfs|s3fs|gcsfuse|davfs")
GIB = 2**30


@dataclass(frozen=True)
class Diagnosis:
    """Facts about this machine, section by section; None is unknown.

    Args:
        versions: Of Python and of the packages that forethought stands on.
        machine: Platform, processor, memory, threads, the variables that steer them.
        numerics: What decides the last bits of a result.
        devices: Accelerators, or why there are none.
        energy: Meters found, and why not the others.
        extras: Optional packages, with the command that installs what is missing.
        store: Where results would be kept, and whether that place is fit for it.
        notes: What deserves attention, each with its fix.
    """

    versions: Section
    machine: Section
    numerics: Section
    devices: Section
    energy: Section
    extras: Section
    store: Section
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON knows."""
        return asdict(self) | {"notes": list(self.notes)}

    def to_text(self) -> str:
        """A block of plain text, 100 columns wide where words allow it."""
        lines = []
        for field in fields(self):
            section = getattr(self, field.name)
            rows = section.items() if isinstance(section, Mapping) else (("-", note) for note in section)
            lines += [field.name, *([_row(name, value) for name, value in rows] or ["  none"])]
        return "\n".join(lines)


def diagnose(store: str | Path | None = None) -> Diagnosis:
    """Look at this machine. Nothing is created or printed; the home folder is shown as `~`.

    Args:
        store: Folder of features to look at; $FORETHOUGHT_STORE when None.

    Example:
        >>> diagnose().versions["torch"] == torch.__version__
        True
    """
    place = store if store is not None else os.environ.get(STORE_VARIABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        devices, answers = _devices()
        facts: dict[str, Section] = {
            "versions": _versions(),
            "machine": _machine(),
            "numerics": _numerics(),
            "devices": devices,
            # A driver that hung in the probe would hang this process too.
            "energy": _energy(find_meters() if answers else find_powercap()),
            "extras": _extras(),
            "store": _store(Path(place)) if place else {"location": None},
        }
    notes = tuple(_hide_home(note) for note in (*_driver_notes(devices, answers), *_store_notes(facts["store"])))
    return Diagnosis(**{name: _hide_homes(section) for name, section in facts.items()}, notes=notes)


def print_gpus() -> None:
    """Print the GPUs of this process as JSON: the answer of the child that `diagnose` asks."""
    names = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            names.append(f"cuda:{index} {device.name}, {device.total_memory / GIB:.1f} GiB")
    cudnn = _ask(torch.backends.cudnn.version) if names else None
    print(json.dumps({"cuda": names, "driver": _ask(_driver_version), "cudnn": cudnn}))


def _driver_version() -> str:
    import pynvml

    pynvml.nvmlInit()
    return str(pynvml.nvmlSystemGetDriverVersion())


def _devices() -> tuple[Section, bool]:
    """Accelerators, and whether the driver answers."""
    # A broken driver can abort or hang whoever starts CUDA, so a child process starts it.
    mps = torch.backends.mps.is_available()
    if torch.version.cuda is None and torch.version.hip is None:
        return {"cuda": "this torch is built without it", "mps": mps}, True
    if sys.platform == "linux" and not any(Path(file).exists() for file in GPU_FILES):
        return {"cuda": "no driver loaded on this machine", "mps": mps}, True
    gpus, answers = _probe(PROBE, PROBE_S)
    return gpus | {"mps": mps}, answers


def _probe(command: tuple[str, ...], limit_s: float) -> tuple[dict[str, Value], bool]:
    """What the child says of its GPUs, and whether it answered in time."""
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        return {"cuda": f"could not be asked: {error}"}, True
    try:
        output, errors = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _abandon(child)
        return {"cuda": f"no answer in {limit_s:g} s"}, False
    complaint = errors.strip().splitlines()[-1:] or ["no GPU is visible"]
    try:
        answer: dict[str, Value] = json.loads(output)
        gpus = answer["cuda"]
    except (ValueError, TypeError, KeyError):
        return {"cuda": f"asking failed with exit status {child.returncode}: {complaint[0]}"}, True
    return answer | {"cuda": gpus or complaint[0]}, True


def _abandon(child: subprocess.Popen[str]) -> None:
    """End a child that may be stuck in the driver, where it cannot be killed and must not be waited for."""
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=1)
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def _machine() -> Section:
    memory, available = _memory()
    variables = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": memory,
        "memory_available_bytes": available,
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "variables": variables,
    }


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or None
    match = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _memory() -> tuple[int | None, int | None]:
    """Bytes in all and bytes available."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        text = ""
    kib = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    return (total * 1024 if total else None, available * 1024 if available else None)


def _numerics() -> Section:
    questions: dict[str, Callable[[], Any]] = {
        "default_dtype": torch.get_default_dtype,
        "matmul_precision": torch.get_float32_matmul_precision,
        "tf32_matmul": lambda: torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "blas": lambda: re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show())[0],
        "cpu_capability": torch.backends.cpu.get_cpu_capability,
        "mkl": torch.backends.mkl.is_available,
        "mkldnn": torch.backends.mkldnn.is_available,
        "cuda_built": lambda: torch.version.cuda,
    }
    return {name: _ask(question) for name, question in questions.items()}


def _ask(question: Callable[[], Any]) -> Value:
    """The answer, or the error in words: a diagnosis outlives what it diagnoses."""
    try:
        answer = question()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
    return answer if answer is None or isinstance(answer, bool | int) else str(answer)


def _energy(report: MeterReport) -> Section:
    found: dict[str, Value] = {meter.instrument: f"{meter.label}: {meter.scope}" for meter in report.meters}
    return found | {instrument: f"unavailable: {reason}" for instrument, reason in report.unavailable}


def _extras() -> Section:
    """The extras as the installed package declares them."""
    try:
        requirements = metadata.requires("forethought") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w.-]+)['\"]", requirement)
        if match:
            extras.setdefault(match[2], []).append(match[1])
    return {extra: _extra(extra, names) for extra, names in extras.items()}


def _extra(extra: str, names: list[str]) -> str:
    versions = {name: _version(name) for name in names}
    present = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(name for name, version in versions.items() if not version)
    if not missing:
        return present
    return f"{present + '; ' if present else ''}missing {missing}: pip install 'forethought[{extra}]'"


def _versions() -> Section:
    # The module, unlike its metadata, names the build: 2.6.0+cu124.
    versions = {name: _version(name) for name in PACKAGES} | {"torch": str(torch.__version__)}
    return {"python": platform.python_version()} | versions


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _store(folder: Path) -> Section:
    """The place of a store, looked at from outside."""
    folder = folder.expanduser().absolute()
    place = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    disk = shutil.disk_usage(place)
    return {
        "location": str(folder),
        "format": _ask(lambda: _format(folder)),
        "writable": place.is_dir() and os.access(place, os.W_OK),
        "free_bytes": disk.free,
        "disk_bytes": disk.total,
        "filesystem": _filesystem(place.resolve()),
    }


def _format(folder: Path) -> str:
    header = folder / "forethought.json"
    if header.exists():
        return str(json.loads(header.read_text())["format"])
    if folder.is_dir():
        return "no store in this folder yet"
    return "not a folder" if folder.exists() else "folder does not exist yet"


def _filesystem(place: Path) -> str | None:
    """Type of the file system that holds `place`; None where the platform has no cheap answer."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    mounts = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        mounts[Path(point)] = after.split()[0]
    return next((mounts[path] for path in (place, *place.parents) if path in mounts), None)


def _driver_notes(devices: Section, answers: bool) -> list[str]:
    if answers:
        return []
    return [f"The GPU driver gives {devices['cuda']}. Restart the machine, or try nvidia-smi."]


def _store_notes(store: Section) -> list[str]:
    """What makes a place unfit for a store."""
    notes: list[str] = []
    location = store["location"]
    if location is None:
        return notes
    filesystem, free, disk = store["filesystem"], store["free_bytes"], store["disk_bytes"]
    if isinstance(filesystem, str) and NETWORK_FILESYSTEMS.search(filesystem):
        notes.append(
            f"{location} is on a network file system ({filesystem}): rows are fed at its speed."
            " Use a folder on a local disk for training."
        )
    if isinstance(free, int) and isinstance(disk, int) and free < max(GIB, min(disk // 20, 20 * GIB)):
        notes.append(
            f"The disk of {location} is nearly full: {free / GIB:.1f} GiB left. Free some, or use another folder."
        )
    if not store["writable"]:
        notes.append(
            f"{location} cannot be written: stored rows are served, new ones are not kept."
            f" chmod u+w {location}, or use another folder."
        )
    return notes


def _row(name: str, value: Value) -> str:
    """One name and its value, aligned, wrapped under itself."""
    if name.endswith("_bytes") and isinstance(value, int):
        name, value = name.removesuffix("_bytes"), f"{value / GIB:.1f} GiB"
    text = "unknown" if value is None else "; ".join(value) if isinstance(value, list) else str(value)
    start = f"  {name:<22} " if name != "-" else "  - "
    return textwrap.fill(
        text or "none",
        width=100,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _hide_homes(section: Section) -> Section:
    hidden: dict[str, Value] = {}
    for name, value in section.items():
        if isinstance(value, list):
            hidden[name] = [_hide_home(item) for item in value]
        else:
            hidden[name] = _hide_home(value) if isinstance(value, str) else value
    return hidden


def _hide_home(text: str) -> str:
    """`~` for the home folder, whose path usually is the user's name."""
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if len(home) > 1 else text
