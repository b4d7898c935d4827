"""The ledger on disk: JSON lines in the folder `ledger` of a store or of a run, appended and never changed.

Each process writes a file of its own, so nobody waits, a torn line harms one row, and ledgers merge as stores do: by
copying. Where nothing can be appended (a bucket), each writing is a file. A line ends with a digest of the rest of it.
"""

import json
import math
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import torch
from blake3 import blake3

from forethought.errors import EnergyError
from forethought.ledger.machine import this_machine
from forethought.ledger.rows import KIND, Row, number_of, read_row
from forethought.store.place import Place

FOLDER = "ledger"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}\.jsonl\Z")
_SEALED = re.compile(rb'(\{.*),"seal":"([0-9a-f]{16})"\}')
MOST_BYTES = 2**28


class Journal:
    """Where one process writes the ledger of one place.

    Args:
        place: A store's place, or a run's folder.
        makes_root: Make the folder itself if it is not there. A store that vanished must not come back half.

    Attributes:
        is_refused: Whether the last lines could not be written, so that this is said once.
    """

    def __init__(self, place: Place, *, makes_root: bool = False) -> None:
        self.place = place
        self.is_refused = False
        self._makes_root = makes_root
        self._name = ""
        self._process = 0
        self._last_meters: Mapping[str, Any] | None = None

    def append(self, lines: Sequence[Mapping[str, Any]], meters: Mapping[str, Any] | None = None) -> None:
        """Write lines, after one that says what was there to measure with, where that is news.

        Raises:
            OSError: they cannot be written.
        """
        if self._process != os.getpid():  # a forked child has a file of its own
            self._process, self._last_meters = os.getpid(), None
            self._name = _new_name()
        if self.place.folder is None:
            self.place.make_folder(FOLDER)
            self.place.put(f"{FOLDER}/{_new_name()}", _encoded([*_heads(meters), *lines]))
        else:
            self._append(lines, meters)

    def _append(self, lines: Sequence[Mapping[str, Any]], meters: Mapping[str, Any] | None) -> None:
        folder = self.place.local(FOLDER)
        if not folder.is_dir():
            if self._makes_root:
                self.place.make_folder("")
            folder.mkdir(exist_ok=True)
        file = os.open(folder / self._name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            size = os.fstat(file).st_size
            heads = _heads(meters)[0 if size == 0 else 1 :]
            raw = _encoded([*(heads if size == 0 or meters != self._last_meters else []), *lines])
            if size and os.pread(file, 1, size - 1) != b"\n":
                raw = b"\n" + raw  # an earlier line was cut short, by a full disk perhaps
            _write_all(file, raw)
            self._last_meters = meters
        finally:
            os.close(file)


_journals: dict[str, Journal] = {}


def journal_of(place: Place, *, makes_root: bool = False) -> Journal:
    """Give the journal of a place: one in a process, so that it writes one file."""
    return _journals.setdefault(place.url, Journal(place, makes_root=makes_root))


def _write_all(file: int, raw: bytes) -> None:
    while raw:
        raw = raw[os.write(file, raw) :]


def _new_name() -> str:
    """A name that no other process draws, and that says when and where in order."""
    now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{now}-{this_machine().id[:8]}-{secrets.token_hex(8)}.jsonl"


@cache
def _versions() -> dict[str, str | None]:
    try:
        own: str | None = metadata.version("forethought")
    except metadata.PackageNotFoundError:
        own = None
    return {"forethought": own, "torch": str(torch.__version__), "python": platform.python_version()}


def _heads(meters: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What is said before the first row: where, and what there was to measure with."""
    machine, now = this_machine(), time.time()
    header = {
        "kind": "header",
        "format": FORMAT,
        "time": now,
        "machine": machine.to_dict(),
        "versions": _versions(),
    }
    return [header, *([{"kind": "meters", "machine": machine.id, "time": now, **meters}] if meters is not None else [])]


def _encoded(lines: Sequence[Mapping[str, Any]]) -> bytes:
    bodies = (json.dumps(plain(line), separators=(",", ":"), allow_nan=False).encode("ascii")[:-1] for line in lines)
    return b"".join(b'%s,"seal":"%s"}\n' % (body, _seal(body)) for body in bodies)


def _seal(body: bytes) -> bytes:
    return blake3(body).hexdigest()[:16].encode("ascii")


def plain(value: Any) -> Any:
    """Give a value as JSON knows it: a number that is none is null, what is no JSON is its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    item = getattr(value, "item", None)  # a number of numpy or torch
    if callable(item) and getattr(value, "ndim", 1) == 0:
        return plain(item())
    return str(value)


def _opened(line: bytes) -> dict[str, Any] | None:
    """Read a line, if it is what was written."""
    match = _SEALED.fullmatch(line)
    if match is None or _seal(match[1]) != match[2]:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass
class Journaled:
    """What lies in a ledger.

    Attributes:
        rows: Of all spans, in no order.
        others: Lines of other kinds ("comparison", "calibration"), as they are.
        machines: What is known of each machine, by its id.
        meters: The last that was said of each machine's meters, by its id.
        unreadable: Lines that are not what was written, or of a version to come.
        cut_short: Last lines whose writer was stopped in the middle of them.
    """

    rows: list[Row] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)
    meters: dict[str, dict[str, Any]] = field(default_factory=dict)
    unreadable: int = 0
    cut_short: int = 0

    def add(self, other: "Journaled") -> None:
        """Take in what lies elsewhere."""
        self.rows += other.rows
        self.others += other.others
        self.machines |= other.machines
        for machine, said in other.meters.items():
            self._keep_meters(machine, said)
        self.unreadable += other.unreadable
        self.cut_short += other.cut_short

    def read(self, raw: bytes) -> None:
        """Take in the lines of a file."""
        *lines, last = raw.split(b"\n")
        for line in lines:
            if line:
                value = _opened(line)
                self.unreadable += value is None or not self._take(value)
        if last:
            is_whole = _SEALED.match(last) is not None
            self.unreadable, self.cut_short = self.unreadable + is_whole, self.cut_short + (not is_whole)

    def _take(self, value: dict[str, Any]) -> bool:
        kind = value.get("kind")
        if kind == KIND:
            row = read_row(value)
            if row is not None:
                self.rows.append(row)
            return row is not None
        if kind == "header":
            machine = value.get("machine")
            if value.get("format") != FORMAT or not isinstance(machine, dict) or not isinstance(machine.get("id"), str):
                return False
            self.machines[machine["id"]] = machine | {"versions": value.get("versions")}
            return True
        if kind == "meters" and isinstance(value.get("machine"), str):
            self._keep_meters(value["machine"], value)
            return True
        if isinstance(kind, str) and isinstance(value.get("machine"), str) and number_of(value.get("time")) is not None:
            self.others.append(value)
            return True
        return False

    def _keep_meters(self, machine: str, said: dict[str, Any]) -> None:
        known = self.meters.get(machine, {})
        if (number_of(said.get("time")) or 0.0) >= (number_of(known.get("time")) or 0.0):
            self.meters[machine] = said


def read_journal(place: Place) -> Journaled:
    """Read the ledger of a store or a run; one that has none has nothing in it.

    Raises:
        EnergyError: it cannot be read.
    """
    found = Journaled()
    for path in journal_paths(place):
        try:
            raw = place.get(path, MOST_BYTES)
        except OSError as err:
            raise EnergyError(
                f"Cannot read the ledger '{place.url}/{path}': expected a file, got {err.strerror or err}. "
                "Give this user the right to read it, or move it away."
            ) from err
        found.read(raw or b"")
    return found


def journal_paths(place: Place) -> Iterator[str]:
    """Name the files of a ledger, oldest first."""
    try:
        names = place.names(FOLDER)
    except OSError as err:
        raise EnergyError(
            f"Cannot list the ledger of '{place.url}': expected a folder, got {err.strerror or err}."
        ) from err
    yield from (f"{FOLDER}/{name}" for name in sorted(names) if _NAME.match(name))
