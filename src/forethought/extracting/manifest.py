"""The manifest of a data set: the key and targets of each sample, with what cheaply proves that they still hold.

It only ever saves reading samples. It is found by the identity of the data set as it stands (account.py), and believed
for a sample only while every file that reading it opened has the stamp that it had before it was opened.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.identifying.identity import Digest
from forethought.identifying.tensors import KEY_BYTES
from forethought.samples.watching import UNPROVEN, Seen, Stamp, mapped_here, stamp

VERSION = 2
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, eq=False)
class Manifest:
    """What is known of a data set's N samples.

    Attributes:
        keys: (N, 16) uint8: the identity of what the model is given for each.
        targets: Whatever the data set holds beside the inputs, as `Features.targets`.
        files: Path and stamp of every file that was opened.
        file_of: (N,) the one file that each sample was read from; None where samples and files are not paired so, and
            a change of any file makes all samples unknown.
        shared: Files, by number, that all samples may depend on.
        facts: Where it comes from: "parts" of the data set, "when", "name".
    """

    keys: NDArray[np.uint8]
    targets: Any
    files: tuple[tuple[str, Stamp], ...]
    file_of: NDArray[np.int64] | None
    shared: tuple[int, ...]
    facts: Mapping[str, Any]

    def changed_files(self) -> list[int]:
        """Number the files whose stamps are not what they were, or prove nothing."""
        return [at for at, (path, was) in enumerate(self.files) if was == UNPROVEN or stamp(path) != was]

    def believed(self, changed: Sequence[int]) -> NDArray[np.bool_]:
        """Say of each sample whether what is known of it still holds if these files changed, (N,)."""
        if not changed:
            return np.ones(len(self.keys), bool)
        if self.file_of is None or set(changed) & set(self.shared):
            return np.zeros(len(self.keys), bool)
        return ~np.isin(self.file_of, list(changed))

    def to_bytes(self) -> bytes:
        """Write as a safetensors file. Undone by `from_bytes`.

        Raises:
            TypeError: the targets hold something that is neither a tensor nor a plain value.
        """
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        targets = _written(self.targets, tensors)
        tensors["keys"] = torch.from_numpy(self.keys)
        tensors["stamps"] = torch.tensor([was for _, was in self.files], dtype=torch.int64).reshape(-1, 4)
        if self.file_of is not None:
            tensors["file_of"] = torch.from_numpy(self.file_of)
        paths = json.dumps([path for path, _ in self.files])  # ASCII, whatever bytes a name holds
        tensors["paths"] = torch.frombuffer(bytearray(paths.encode("ascii")), dtype=torch.uint8)
        facts = {"version": VERSION, "targets": targets, "shared": self.shared, "facts": dict(self.facts)}
        return save({name: t.contiguous() for name, t in tensors.items()}, {"manifest": json.dumps(facts)})

    @staticmethod
    def from_bytes(raw: bytes) -> "Manifest | None":
        """Read what `to_bytes` wrote; None for anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            size = int.from_bytes(raw[:8], "little")
            facts = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["manifest"])
            tensors = load(raw)
            if facts["version"] != VERSION:
                return None
            paths = json.loads(tensors["paths"].numpy().tobytes())
            stamps = [tuple(row) for row in tensors["stamps"].tolist()]
            file_of = tensors["file_of"].numpy() if "file_of" in tensors else None
            files = tuple(zip(paths, stamps, strict=True))
            targets = _read(facts["targets"], tensors)
            made = Manifest(tensors["keys"].numpy(), targets, files, file_of, tuple(facts["shared"]), facts["facts"])
        except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None
        return made if made._is_whole() else None

    def _is_whole(self) -> bool:
        rows = self.keys.shape == (len(self.keys), KEY_BYTES) and self.keys.dtype == np.uint8
        paired = self.file_of is None or (
            self.file_of.shape == (len(self.keys),)
            and bool(((self.file_of >= 0) & (self.file_of < len(self.files))).all())
        )
        shared = all(type(at) is int and 0 <= at < len(self.files) for at in self.shared)
        told = isinstance(self.facts, dict) and all(
            isinstance(path, str) and "\0" not in path for path, _ in self.files
        )
        return rows and paired and shared and told


def name_of(parts: Mapping[str, str]) -> str:
    """Name the manifest of a data set with these parts: 32 hexadecimal digits."""
    return Digest().add("forethought manifest", VERSION, dict(sorted(parts.items()))).hex()


class OpenedFiles:
    """Collects which files samples are read from.

    Args:
        known: What an earlier manifest says; what is noted here takes its place.
        rows: Samples in the data set.
    """

    def __init__(self, rows: int, known: Manifest | None) -> None:
        self._mapped = mapped_here()
        self.is_whole = True  # False: something was read that is no file that Python opens by name
        self._stamps: dict[str, Stamp] = dict(known.files) if known is not None else {}
        self._numbers = {path: at for at, path in enumerate(self._stamps)}
        self._noted: set[str] = set()
        of = known.file_of if known is not None else None
        self._file_of = np.full(rows, -1, np.int64) if of is None else of.copy()
        self._is_paired = known is None or of is not None
        self._shared = {known.files[at][0] for at in known.shared} if known is not None else set()

    def note(self, indices: Sequence[int] | NDArray[np.int64], seen: Sequence[Seen]) -> None:
        """Take in what was opened for these samples; nothing is known of samples without an entry in `seen`."""
        if not seen:
            self.is_whole = False
            return
        for index, each in zip(indices, seen, strict=True):
            self.is_whole &= not each.outside
            for path, was in each.files.items():
                self._note(path, was)
            if len(each.files) == 1:
                self._file_of[index] = self._numbers[next(iter(each.files))]
            else:
                self._is_paired = False

    def share(self, probed: Seen) -> None:
        """Take in what was opened for samples that were read before: all may depend on what none opened again."""
        self.is_whole &= not probed.outside
        for path in probed.files.keys() - self._noted:
            if self._stamps.get(path) != probed.files[path]:
                self._note(path, probed.files[path])
            if not self._is_paired or self._numbers[path] not in self._file_of:
                self._shared.add(path)

    @property
    def unpaired(self) -> Seen:
        """What no sample has for itself."""
        return Seen({} if self._is_paired else dict(self._stamps), not self.is_whole)

    def _note(self, path: str, was: Stamp) -> None:
        is_changed = path in self._noted and self._stamps[path] != was
        self._noted.add(path)
        self._numbers.setdefault(path, len(self._numbers))
        self._stamps[path] = UNPROVEN if is_changed else was

    def manifest(self, keys: NDArray[np.uint8], targets: Any, facts: Mapping[str, Any]) -> Manifest:
        """Join what was noted with what was read."""
        file_of = self._file_of if self._is_paired and bool((self._file_of >= 0).all()) else None
        shared = tuple(sorted(self._numbers[path] for path in self._shared))
        mapped = self._mapped | mapped_here()
        files = tuple((path, UNPROVEN if was[0] in mapped else was) for path, was in self._stamps.items())
        return Manifest(keys, targets, files, file_of, shared, facts)


def _written(targets: Any, tensors: dict[str, Tensor]) -> Any:
    """Write targets as JSON, their tensors apart."""
    if targets is None:
        return None
    if type(targets) is Tensor and targets.layout is torch.strided and targets.is_cpu and not targets.requires_grad:
        tensors[f"target.{len(tensors)}"] = targets.clone()
        return {"tensor": f"target.{len(tensors) - 1}"}
    if type(targets) is tuple:
        return {"tuple": [_written(part, tensors) for part in targets]}
    if type(targets) is dict and all(type(key) is str for key in targets):
        return {"dict": [[key, _written(part, tensors)] for key, part in targets.items()]}
    if type(targets) is list:
        return {"list": [_plain(item) for item in targets]}
    raise TypeError(f"expected tensors, tuples, dicts or lists of plain values, got {type(targets).__name__}")


def _plain(item: Any) -> Any:
    """Write an entry of a list: a plain value as it is, a list or tuple with its kind."""
    if type(item) in _PLAIN:
        return item
    if type(item) in (list, tuple):
        return {type(item).__name__: [_plain(part) for part in item]}
    if type(item) is dict and all(type(key) is str for key in item):
        return {"dict": [[key, _plain(part)] for key, part in item.items()]}
    raise TypeError(f"expected plain values in a list of targets, got {type(item).__name__}")


def _read(written: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(written, dict):
        return written
    ((kind, content), *_) = written.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _read(part, tensors) for key, part in content}
    parts = [_read(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts
