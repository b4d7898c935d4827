"""The tables of one model: rows of samples of one size lie in one, rows of samples that differ in size in another.

Which table samples have follows from how those among them that are looked at differ in size. A row's key does not: it
is that of what the model is given, without padding. So where a table lacks rows, the others of the same model are asked
for them, and samples that seem to be of one size are taken for some that differ if that is where their rows are.

A note says which tables there may be. It is no evidence: a table is the model's only if the store knows the model as it
stands, on inputs of that form, and how samples differ is tried on them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought import nesting
from forethought.errors import PaddingError, StoreError, UnequalShapesError
from forethought.extracting.calibration import stored_alike
from forethought.extracting.precision import Stored
from forethought.extracting.rowbytes import bytes_of, columns_of
from forethought.extracting.soundness import find_sound
from forethought.feed import Rows as Placed
from forethought.identifying.identity import Digest
from forethought.samples.batch import Batch
from forethought.samples.precedents import Looked, Precedent, follow
from forethought.samples.unevenness import Unevenness, UnforeseenSizesError
from forethought.shapes.forms import FrontierTensor, Rows
from forethought.shapes.padding import Leaf
from forethought.store import DamagedSegmentError, Ragged, Store, Table

KeyOf = Callable[[Any, Any], str | None]
"""Identifies the model as it stands on inputs of some forms and outline; None where it has no such identity."""
Pattern = tuple[tuple[int | None, ...], ...]
"""The shape of one sample's inputs: None for a size that differs."""
Lent = tuple[NDArray[np.int64], list[NDArray[np.uint8] | Ragged]]
"""Which rows of those that were asked for, and what each column of the table holds of them."""

_MOST_KINDS = 1000  # of forms, in one note


@dataclass(frozen=True)
class Kind:
    """One form of a model's inputs that there are rows of.

    Attributes:
        pattern: Their shapes.
        precedent: How they differ in size; None if they do not.
    """

    pattern: Pattern
    precedent: Precedent | None

    @staticmethod
    def of(batch: Batch, precedent: Precedent | None) -> "Kind":
        """Take down the form of a batch."""
        leaves = [Leaf()] * len(batch.tensors) if precedent is None else precedent.leaves
        return Kind(_pattern_of(batch, leaves), precedent)

    @staticmethod
    def from_json(written: Any) -> "Kind":
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it is nothing of the kind.
        """
        shapes = tuple(tuple(None if size is None else int(size) for size in shape) for shape in written["pattern"])
        precedent = None if written["precedent"] is None else Precedent.from_json(written["precedent"])
        kind = Kind(shapes, precedent)
        if any(size is not None and size < 0 for shape in shapes for size in shape) or not kind._is_sound():
            raise ValueError("expected shapes that differ where the precedent says")
        return kind

    def to_json(self) -> dict[str, Any]:
        """Write as plain values. Undone by `from_json`."""
        precedent = None if self.precedent is None else self.precedent.to_json()
        return {"pattern": [list(shape) for shape in self.pattern], "precedent": precedent}

    def _is_sound(self) -> bool:
        open_axes = {
            (at, axis) for at, shape in enumerate(self.pattern) for axis, n in enumerate(shape, 1) if n is None
        }
        leaves = () if self.precedent is None else self.precedent.leaves
        named = {(at, axis) for at, leaf in enumerate(leaves) for axis, _ in leaf.axes}
        return open_axes == named and (self.precedent is None or len(leaves) == len(self.pattern))

    def forms(self, dtypes: Sequence[str]) -> Any:
        """Give what the identity of a model on such inputs is made of."""
        leaves = [Leaf()] * len(self.pattern) if self.precedent is None else self.precedent.leaves
        parts = zip(leaves, self.pattern, dtypes, strict=True)
        return [(leaf.without_sizes(shape), dtype) for leaf, shape, dtype in parts]

    def may_hold(self, pattern: Pattern) -> bool:
        """Say whether a sample may be of both forms."""
        return len(pattern) == len(self.pattern) and all(
            len(one) == len(other) and all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))
            for one, other in zip(self.pattern, pattern, strict=True)
        )


@dataclass(frozen=True)
class Relative:
    """One table of the model's.

    Attributes:
        table: The table.
        stored: How its rows are stored.
    """

    table: Table
    stored: Stored

    def find(self, keys: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], list[Tensor]] | None:
        """Say of which samples, all of one size, there are rows, and give these (B, *shape), without padding."""
        try:
            places = find_sound(self.table, keys)
            there = places[:, 0] >= 0
            if not there.any():
                return None
            placed = Placed(self.table, places[there], self.stored.frontier, self.stored.codings)
            brought = [column.brought(slice(0, int(there.sum()))) for column in placed.mapped.columns()]
            return there, [tensor.padded(rows) for tensor, rows in zip(self.stored.frontier, brought, strict=True)]
        except (StoreError, DamagedSegmentError, PaddingError):  # whatever is there, it is no row of these samples
            return None


@dataclass
class Kin:
    """The tables of a model.

    Args:
        store: Where they are.
        about: What the model is, and where it is cut.
        key_of: Identifies it as it stands.
        dtype: How rows are stored: "float16" or "bfloat16", or None for exactly.
    """

    store: Store
    about: Sequence[Any]
    key_of: KeyOf
    dtype: str | None
    _found: dict[str, Relative | None] = field(default_factory=dict)
    _read: dict[str, tuple[list[Kind], list[str]]] = field(default_factory=dict)
    _tables: dict[str, Table] = field(default_factory=dict)

    def choose(self, seen: Looked, found: Unevenness | None) -> Unevenness | None:
        """Take samples to differ in size as those do among which most of them are."""
        one = seen.part(seen.joined if seen.joined is not None else seen.collate(list(seen.items[:1])))
        own = None if found is None else Precedent.of(found)
        best, most = found, -1
        for precedent in _others([kind.precedent for kind in self._kinds(one)], own):
            taken = follow(precedent, seen, None if found is None else found.telling)
            if taken is None:
                continue
            most = self._rows(seen, found) if most < 0 else most
            if (rows := self._rows(seen, taken)) > most:
                best, most = taken, rows
        return best

    def choose_even(self, batch: Batch) -> Precedent | None:
        """Take samples of one size, in memory, to differ as those do among which most of them are."""
        best, most = None, -1
        for kind in self._kinds(batch):
            if kind.precedent is None or not kind.precedent.fits(batch.tensors):
                continue
            most = self._rows_of(batch, None) if most < 0 else most
            if kind.precedent.padding.sizes_in(batch.tensors) is None:
                continue
            if (rows := self._rows_of(kind.precedent.sized(batch), kind.precedent)) > most:
                best, most = kind.precedent, rows
        return best

    def note(self, batch: Batch, precedent: Precedent | None, table: str) -> None:
        """Note that a table may have rows of samples of this form, which differ in size as a precedent says.

        Raises:
            StoreError: the note cannot be written.
        """
        kind, (kinds, tables) = Kind.of(batch, precedent), self._noted(batch)
        if (kind in kinds and table in tables) or not self.store.is_writable:
            return
        kinds += [kind] if kind not in kinds else []
        tables += [table] if table not in tables else []
        written = [each.to_json() for each in kinds[-_MOST_KINDS:]]
        self.store.write_note(self._name(batch), {"kinds": written, "tables": tables[-_MOST_KINDS:]})

    def table(self, fingerprint: str) -> Table | None:
        """Give a table that was opened here."""
        return self._tables.get(fingerprint)

    def knows_others(self, batch: Batch) -> bool:
        """Say whether there may be rows of samples of other forms than a batch's."""
        return len(self._kinds(batch)) > 1

    def lend(self, keys: NDArray[np.uint8], batch: Batch, stored: Stored, table: str) -> Iterator[Lent]:
        """Find rows that a table lacks in the others.

        Args:
            keys: (B, 16): of the samples.
            batch: The samples.
            stored: How the table holds rows.
            table: The table.
        """
        left = np.ones(len(keys), bool)
        for sizes, same in batch.by_size():
            rows = np.array(same)
            for relative in self._relatives(batch, _pattern_of(batch, batch.leaves, sizes), table):
                wanted = rows[left[rows]]
                found = relative.find(keys[wanted]) if len(wanted) else None
                if found is None:
                    continue
                at = wanted[found[0]]
                own = None if batch.sizes is None else batch.sizes[torch.from_numpy(at)]
                laid = _fitted(stored.frontier, relative.stored.frontier, found[1], own)
                if laid is not None:
                    left[at] = False
                    yield at, bytes_of(stored.encode(laid), own)

    def holds(self, keys: NDArray[np.uint8], batch: Batch, table: str) -> NDArray[np.bool_]:
        """Say of which samples, of the form of a batch, tables other than one have rows."""
        held = np.zeros(len(keys), bool)
        for relative in self._relatives(batch, _pattern_of(batch, batch.leaves), table):
            held |= relative.table.locate(keys)[:, 0] >= 0
        return held

    def _rows(self, seen: Looked, uneven: Unevenness | None) -> int:
        """Count how many of some samples there are rows of, where they are taken to differ so."""
        try:
            batches = seen.batches(uneven)
        except (UnforeseenSizesError, UnequalShapesError):
            return 0
        precedent = None if uneven is None else Precedent.of(uneven)
        return sum(self._rows_of(batch, precedent) for batch in batches)

    def _rows_of(self, batch: Batch, precedent: Precedent | None) -> int:
        relative = self._relative(batch, Kind.of(batch, precedent))
        return 0 if relative is None else int((relative.table.locate(batch.row_keys())[:, 0] >= 0).sum())

    def _relatives(self, batch: Batch, pattern: Pattern, table: str) -> Iterator[Relative]:
        """Give the tables but one that may have rows of samples of some shapes."""
        for kind in self._kinds(batch):
            relative = self._relative(batch, kind) if kind.may_hold(pattern) else None
            if relative is not None and relative.table.fingerprint != table:
                yield relative

    def _relative(self, batch: Batch, kind: Kind) -> Relative | None:
        """Find the table of a form of inputs, if the store knows the model as it stands."""
        forms, outline = kind.forms([str(tensor.dtype) for tensor in batch.tensors]), _outline(batch)
        name = repr((forms, outline))
        if name not in self._found:
            key = self.key_of(forms, outline)
            self._found[name] = None if key is None else self._opened(self.store.note(key), kind)
        return self._found[name]

    def _opened(self, note: dict[str, Any] | None, kind: Kind) -> Relative | None:
        frontier = frontier_in(note or {})
        if note is None or frontier is None:
            return None
        stored = stored_alike(self.dtype, frontier)
        try:
            name = stored.table_id(str(note["trunk"]))
            table = self._tables.setdefault(name, self.store.table(name))
        except (KeyError, StoreError):
            return None
        measures = 0 if kind.precedent is None else kind.precedent.padding.count
        return Relative(table, stored) if tuple(columns_of(stored, measures)) == table.columns else None

    def _kinds(self, batch: Batch) -> list[Kind]:
        """Read which forms of inputs there may be rows of; what is no form is left out."""
        return self._noted(batch)[0]

    def _noted(self, batch: Batch) -> tuple[list[Kind], list[str]]:
        """Read which forms there may be rows of, and in which tables; what is none is left out."""
        name = self._name(batch)
        if name not in self._read:
            note = self.store.note(name) or {}
            kinds, tables = (each if isinstance(each, list) else [] for each in (note.get("kinds"), note.get("tables")))
            self._read[name] = list(_kinds_in(kinds)), [each for each in tables if isinstance(each, str)]
        return self._read[name]

    def _name(self, batch: Batch) -> str:
        forms = [(tensor.ndim, str(tensor.dtype)) for tensor in batch.tensors]
        return Digest().add("forethought kinds of inputs", *self.about, repr((forms, _outline(batch)))).hex()


def _kinds_in(written: Sequence[Any]) -> Iterator[Kind]:
    for each in written[-_MOST_KINDS:]:
        try:
            yield Kind.from_json(each)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError):
            continue


def _outline(batch: Batch) -> Any:
    return nesting.outline((batch.args, batch.kwargs))


def _others(known: Sequence[Precedent | None], own: Precedent | None) -> list[Precedent]:
    """List precedents, each once, but for one's own."""
    found: dict[Any, Precedent] = {}
    for each in known:
        if each is not None and (own is None or each.leaves != own.leaves):
            found.setdefault(each.leaves, each)
    return list(found.values())


def _pattern_of(batch: Batch, leaves: Sequence[Leaf], sizes: Sequence[int] | None = None) -> Pattern:
    """Give the shapes of samples that differ so, of some sizes or of any."""
    axes = [dict(leaf.axes) for leaf in leaves]
    return tuple(
        tuple(
            size if axis not in own else None if sizes is None else sizes[own[axis]]
            for axis, size in enumerate(tensor.shape[1:], 1)
        )
        for own, tensor in zip(axes, batch.tensors, strict=True)
    )


def _fitted(
    wanted: Sequence[FrontierTensor], given: Sequence[FrontierTensor], rows: Sequence[Tensor], own: Tensor | None
) -> list[Rows] | None:
    """Lay rows (B, *shape) of another table out as a table holds them; None if they are others than it holds."""
    if [(tensor.name, tensor.dtype) for tensor in wanted] != [(tensor.name, tensor.dtype) for tensor in given]:
        return None
    laid = []
    for tensor, each in zip(wanted, rows, strict=True):
        shape = list(tensor.shape)
        if tensor.layout is not None:
            stairs = tensor.layout.stairs
            sizes = None if stairs is None or own is None else tensor.layout.sizes(own)[0].tolist()
            for at, axis in enumerate(tensor.layout.axes):
                if axis >= each.ndim:
                    return None
                shape[axis - 1] = each.shape[axis] if sizes is None else sizes[at]
        if list(each.shape[1:]) != shape:
            return None
        laid.append(tensor.cut(each, own))
    return laid


def frontier_in(note: dict[str, Any]) -> tuple[FrontierTensor, ...] | None:
    """Read what the store knows of a trunk; anything unexpected means that it knows nothing."""
    try:
        return tuple(FrontierTensor.from_json(tensor) for tensor in note["frontier"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
