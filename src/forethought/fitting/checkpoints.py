"""Checkpoints of a fit: one safetensors file, replaced whole, from which it goes on to the same result.

Tensors are what the groups hold; the rest is JSON in the file's metadata. Nothing that is read is executed.
"""

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from forethought.errors import FitError
from forethought.fitting.groups import Group
from forethought.fitting.results import EpochMetrics
from forethought.fitting.trainee import Trainee
from forethought.fitting.weights import tensors_of

FORMAT = "1"


@dataclass(frozen=True)
class Position:
    """Where a fit stands: epochs done, and batches of the present one."""

    epoch: int
    batches: int = 0


@dataclass(frozen=True)
class KeptGroup:
    """A group as it was: which heads (by position), of which kind, its steps and tensors."""

    trainees: tuple[int, ...]
    kind: str
    steps: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """What a checkpoint holds."""

    position: Position
    groups: tuple[KeptGroup, ...]
    notes: tuple[str, ...]


class Checkpoint:
    """The checkpoint of one fit.

    Args:
        path: Of the file.
        identity: What this fit is, in plain values: one that differs is not gone on with.
        every_s: Seconds of an epoch after which it is written within it.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any], every_s: float = 60.0) -> None:
        self._path, self._identity, self._every_s = Path(path), json.loads(json.dumps(identity)), every_s
        self._written = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether so much time has passed that it is worth writing within an epoch."""
        return time.monotonic() > self._written + self._every_s

    def save(
        self, position: Position, trainees: Sequence[Trainee], groups: Sequence[Group], notes: Sequence[str]
    ) -> None:
        """Write it, whole or not at all.

        Raises:
            FitError: it cannot be written.
        """
        numbers = {id(trainee): at for at, trainee in enumerate(trainees)}
        tensors: dict[str, Tensor] = {}
        told: list[dict[str, Any]] = []
        for at, group in enumerate(groups):
            tensors |= {f"group.{at}.{name}": tensor for name, tensor in group.state().items()}
            members = [numbers[id(trainee)] for trainee in group.trainees]
            told.append({"trainees": members, "kind": type(group).__name__, "steps": group.steps})
        busy = {member for group in told for member in group["trainees"]}
        for at, trainee in enumerate(trainees):
            if at not in busy:
                tensors |= {f"head.{at}.{name}": tensor for name, tensor in tensors_of(trainee.head).items()}
        record = {
            "format": FORMAT,
            "identity": self._identity,
            "position": asdict(position),
            "groups": told,
            "notes": list(notes),
            "heads": [_told(trainee) for trainee in trainees],
        }
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            _replace(self._path, save(plain, {"fit": json.dumps(record)}))
        except OSError as err:
            raise FitError(
                f"Cannot write checkpoint '{self._path}': expected a folder that can be written, got "
                f"{err.strerror or err}. Choose another: checkpoint='fit.safetensors'"
            ) from err
        self._written = time.monotonic()

    def load(self, trainees: Sequence[Trainee]) -> Kept | None:
        """Go on where a fit stood: put into heads that are done what they became. None if there is no checkpoint.

        Raises:
            FitError: it is of another fit, or damaged.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, "pt") as file:
                record = json.loads(file.metadata()["fit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r}")
            self._check(record["identity"])
            return self._put_back(record, tensors, trainees)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as err:
            if isinstance(err, FitError):
                raise
            raise FitError(
                f"Cannot go on with checkpoint '{self._path}': expected one that fit wrote, got {err!r:.120}. "
                f"Begin anew: rm '{self._path}'"
            ) from err

    def _check(self, identity: Any) -> None:
        """Raise unless a checkpoint is of this very fit."""
        other = [name for name, value in self._identity.items() if identity.get(name) != value]
        if other:
            before, now = _differing(identity.get(other[0]), self._identity[other[0]])
            raise FitError(
                f"Cannot go on with checkpoint '{self._path}': expected {other[0]} as before, {_short(before)}, got "
                f"{_short(now)}. Pass the same arguments, another checkpoint=, or begin anew: rm '{self._path}'"
            )

    def _put_back(self, record: Any, tensors: Mapping[str, Tensor], trainees: Sequence[Trainee]) -> Kept:
        for at, (trainee, told) in enumerate(zip(trainees, record["heads"], strict=True)):
            _recall(trainee, told)
            own = {n.removeprefix(f"head.{at}."): t for n, t in tensors.items() if n.startswith(f"head.{at}.")}
            with torch.no_grad():
                for name, tensor in tensors_of(trainee.head).items() if own else ():
                    tensor.copy_(own[name])
        groups = []
        for at, told in enumerate(record["groups"]):
            prefix = f"group.{at}."
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            groups.append(KeptGroup(tuple(map(int, told["trainees"])), str(told["kind"]), int(told["steps"]), own))
        position = Position(int(record["position"]["epoch"]), int(record["position"]["batches"]))
        return Kept(position, tuple(groups), tuple(map(str, record["notes"])))


def _differing(before: Any, now: Any) -> tuple[Any, Any]:
    """Give the first part of two records that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name, value in now.items():
            if before.get(name) != value:
                return {name: before.get(name)}, {name: value}
    return before, now


def _short(value: Any) -> str:
    return f"{value!r:.80}"


def _told(trainee: Trainee) -> dict[str, Any]:
    """Say how a head has done so far, in plain values: numbers as text that gives them back exactly."""
    return {
        "metrics": [
            [m.epoch, repr(m.train_loss), repr(m.val_score), [repr(o) for o in m.others]] for m in trainee.metrics
        ],
        "best": None if trainee.best is None else trainee.best.epoch,
        "failed": trainee.failed,
        "is_done": trainee.is_done,
        "time_s": trainee.time_s,
    }


def _recall(trainee: Trainee, told: Mapping[str, Any]) -> None:
    trainee.metrics = [
        EpochMetrics(int(epoch), float(loss), float(score), tuple(map(float, others)))
        for epoch, loss, score, others in told["metrics"]
    ]
    trainee.best = next((m for m in trainee.metrics if m.epoch == told["best"]), None)
    trainee.failed, trainee.is_done, trainee.time_s = told["failed"], bool(told["is_done"]), float(told["time_s"])


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
