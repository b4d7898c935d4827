"""The roll of a data set: key and targets of every sample, from its manifest as far as that holds, else by reading."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.errors import DataError, StoreError
from forethought.extracting import manifest
from forethought.extracting.manifest import Manifest, OpenedFiles
from forethought.identifying.tensors import KEY_BYTES
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.samples.targets import Gathering, is_same, join_targets, put, take
from forethought.samples.watching import Seen
from forethought.shapes.padding import Widths
from forethought.store import Store, warn_not_kept

Read = tuple[NDArray[np.int64], NDArray[np.uint8], Batch]
"""What is read at a time: the indices of samples, their keys, and a batch of them."""

_CHECKED = 8  # samples that are read again before a manifest is believed


class Roll:
    """Key and targets of every sample of a data set.

    Args:
        samples: The data set. Nothing of it may have been read before.
        store: Where manifests are kept.
        repeats: Whether it is known that reading a sample twice gives the same.
    """

    def __init__(self, samples: Samples, store: Store, repeats: bool = False) -> None:
        self._samples = samples
        self._store = store
        self.parts = samples.account()
        self._name = None if self.parts is None else manifest.name_of(self.parts)
        self.is_met = False  # whether there is a manifest of the data set as it stands
        self.changed_files: tuple[str, ...] = ()
        self._known = self._believed()
        rows = len(samples) if samples.is_indexed else 0
        known = self._known
        self.keys = np.zeros((rows, KEY_BYTES), np.uint8) if known is None else known[0].keys
        self.targets: Any = None if known is None else samples.targets() if samples.is_in_memory else known[0].targets
        self._is_known = np.zeros(rows, bool) if known is None else known[1]
        self._opened = OpenedFiles(rows, None if known is None else known[0])
        self._was_read = False
        self._probed: dict[int, bytes] = {}
        if not self.is_complete and not repeats:
            self._probed = samples.check_repeats()

    @property
    def is_complete(self) -> bool:
        """Whether every sample's key and targets are known."""
        return self._samples.is_indexed and bool(self._is_known.all())

    @property
    def unknown(self) -> NDArray[np.bool_] | None:
        """Of each sample, whether it must be read, (N,); None for an iterable that was not read yet."""
        return ~self._is_known if self._samples.is_indexed or len(self._is_known) else None

    @property
    def is_indexed(self) -> bool:
        """Whether samples can be read by index; if not, only all of them."""
        return self._samples.is_indexed

    @property
    def batch_size(self) -> int:
        """Samples a batch, as they are read."""
        return self._samples.batch_size

    @property
    def name(self) -> str:
        """What tells this data set from others, if only to divide work: by its identity where it has one."""
        return self._name or f"{self._samples.name} {len(self.keys)}"

    def to_read(self, wanted: NDArray[np.bool_]) -> NDArray[np.int64] | None:
        """Give the indices of wanted samples; None if all must be read to have some."""
        indices = np.flatnonzero(wanted)
        return indices if self.is_indexed or not len(indices) else None

    def read(self, indices: NDArray[np.int64] | None) -> "Reading":
        """Begin to read samples: these, in any order but each once, or all of an iterable."""
        self._was_read = True
        return Reading(self, self._samples, indices, self._probed)

    def enter(self, indices: NDArray[np.int64] | None, keys: NDArray[np.uint8], targets: Any) -> None:
        """Take in what was read. Content that is not what was believed makes all that was not read unknown."""
        if indices is None or len(indices) == len(self.keys):
            if indices is not None and bool((np.diff(indices) < 0).any()):
                back = np.argsort(indices)
                keys, targets = keys[back], take(targets, back)
            self.keys, self.targets = keys, targets
            self._is_known = np.ones(len(keys), bool)
            return
        was = self._is_known[indices]
        is_as_believed = bool((self.keys[indices][was] == keys[was]).all())
        is_fitting = is_as_believed and put(self.targets, indices, targets)
        if not is_fitting:
            self._is_known = np.zeros(len(self.keys), bool)
        else:
            self.keys = self.keys.copy()
            self.keys[indices] = keys
            self._is_known[indices] = True

    def note(self, indices: Sequence[int] | NDArray[np.int64], seen: list[Seen]) -> None:
        """Take in which files were opened for samples that were read."""
        if self._name is not None and not self._samples.is_in_memory:
            self._opened.note(indices, seen)

    def keep(self) -> None:
        """Write the manifest, where the data set can have one and something of it was read."""
        if self._name is None or not self._was_read or not self._store.is_writable:
            return
        targets = None if self._samples.is_in_memory else self.targets  # those in memory lie beside the inputs
        if self._samples.is_in_memory and self._samples.account() != self.parts:
            return  # they were written into while they were read
        self._opened.share(self._samples.probed)
        self._samples.probed.add(self._opened.unpaired)
        if not self._opened.is_whole:
            return
        facts: dict[str, Any] = {"parts": self.parts, "name": self._samples.name, "when": time.time()}
        if self._samples.unevenness is not None:
            facts |= {"shown": self._samples.shown, "widths": self._samples.widths.to_json()}
        try:
            raw = self._opened.manifest(self.keys, targets, facts).to_bytes()
        except TypeError:  # targets that only Python can keep: the samples are read each time
            return
        try:
            self._store.write_manifest(self._name, raw)
        except StoreError as err:
            warn_not_kept(err)

    def _believed(self) -> tuple[Manifest, NDArray[np.bool_]] | None:
        """Find what is known of this data set, and of which samples it still holds."""
        raw = None if self._name is None else self._store.read_manifest(self._name)
        known = None if raw is None else Manifest.from_bytes(raw)
        if known is None or len(known.keys) != len(self._samples):
            return None
        self.is_met = True
        changed = known.changed_files()
        self.changed_files = tuple(known.files[at][0] for at in changed)
        holds = known.believed(changed)
        some = np.flatnonzero(holds)
        if not len(some):
            return None
        return (known, holds) if self._is_right(known, some) and self._has_sizes(known) else None

    def _has_sizes(self, known: Manifest) -> bool:
        """Take over how samples differ in size; say whether all is known of that."""
        try:
            widths = Widths.from_json(known.facts.get("widths", []))
        except (TypeError, ValueError, OverflowError):
            return False
        self._samples.widths.update(widths)
        return (self._samples.unevenness is None) == ("widths" not in known.facts)

    def _is_right(self, known: Manifest, some: NDArray[np.int64]) -> bool:
        """Read a few samples again, spread and seeded by the data set: what no stamp shows, their content does."""
        seed = int(str(self._name)[:16], 16)
        chosen = np.sort(np.random.default_rng(seed).choice(some, min(_CHECKED, len(some)), replace=False))
        shown = known.facts.get("shown", [])
        if isinstance(shown, list) and all(isinstance(each, int) and 0 <= each < len(known.keys) for each in shown):
            self._samples.show(shown)
        batches = self._samples.fetch_apart(chosen.tolist())
        if not (np.concatenate([batch.row_keys() for batch in batches]) == known.keys[chosen]).all():
            return False
        targets = join_targets([batch.targets for batch in batches], [batch.rows for batch in batches])
        return self._samples.is_in_memory or is_same(take(known.targets, chosen), targets)


class Reading:
    """One reading of some samples of a roll, batch by batch."""

    def __init__(
        self, roll: Roll, samples: Samples, indices: NDArray[np.int64] | None, probed: dict[int, bytes]
    ) -> None:
        self.indices = indices
        self._roll = roll
        self._samples = samples
        self._probed = probed
        self._keys = Gathering(self.rows)
        self._targets = Gathering(self.rows)
        self._rows = 0

    @property
    def rows(self) -> int | None:
        """How many samples are read, if that is known."""
        return None if self.indices is None else len(self.indices)

    def __iter__(self) -> Iterator[Read]:
        """Give (indices among all samples, keys, batch)."""
        for batch, seen in self._samples.read(self.indices):
            keys = batch.row_keys()
            after = self._rows + len(keys)
            where = np.arange(self._rows, after) if self.indices is None else self.indices[self._rows : after]
            self._samples.check_probed(keys, where, self._probed)
            self._roll.note(where, seen)
            self._keys.add(torch.from_numpy(keys), len(keys))
            self._targets.add(batch.targets, len(keys))
            self._rows = after
            yield where, keys, batch
        if not self._rows:
            raise DataError(
                "Cannot extract features: expected an iterable that can be read again, got nothing the second time. "
                "Pass the iterable itself, not an iterator over it."
            )
        self._roll.enter(self.indices, self._keys.result().numpy(), self._targets.result())
