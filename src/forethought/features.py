"""`Features`: the frontier's values for a data set, one row a sample, fed at memory speed.

What a batch holds is what the head was given live: the same shapes, types and memory order.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.weak import WeakIdKeyDictionary

from forethought import nesting
from forethought.devices import present
from forethought.errors import DataError, StoreError
from forethought.extracting.outcome import ExtractionReport
from forethought.extracting.precision import Coding
from forethought.extracting.verification import Chosen, Verification, compare, elsewhere, spread
from forethought.feed import Brings, Brought, Feed, InputSizes, Request, Rows, Shard, Source, bytes_of
from forethought.ledger import phase_in
from forethought.samples.dataset import Samples
from forethought.samples.targets import padded, take
from forethought.selection import Which, deal, labels_of, rows_of
from forethought.shapes.forms import FrontierTensor
from forethought.shapes.padding import Uneven, Widths
from forethought.splitting.halves import Head, Values
from forethought.splitting.replay import Split
from forethought.store import DamagedSegmentError, Table
from forethought.views import Fetched, View


@dataclass(eq=False)
class Features(Dataset[Any]):
    """The frontier's values for a data set, in its order. A map-style torch data set of (values, targets).

    Attributes:
        table: The rows.
        drawn: The views: one, or K seeded draws of each sample, of which an epoch is fed one.
        frontier: The tensors of a row.
        report: What it took to have them.
        codings: How each tensor is stored, None where exactly; empty if all are.
        weights: How much each sample counts, (N,), or None: they then come with every batch.
        numbers: Which samples of the data set these are, (N,); None for all of them.
        widths: What batches are padded to, where samples differ in size.
    """

    table: Table
    drawn: tuple[View, ...]
    frontier: tuple[FrontierTensor, ...]
    report: ExtractionReport
    make_split: Callable[[], Split] | None = None
    samples: Samples | None = field(default=None, repr=False)
    codings: tuple[Coding | None, ...] = ()
    weights: Tensor | None = field(default=None, repr=False)
    numbers: NDArray[np.int64] | None = field(default=None, repr=False)
    widths: Widths = field(default_factory=lambda: Widths([]), repr=False)
    _split: Split | None = None
    _rows: dict[int, Rows] = field(default_factory=dict, repr=False)
    _sources: dict[Any, Source] = field(default_factory=dict, repr=False)
    _inputs: dict[int, InputSizes] = field(default_factory=dict, repr=False)
    _told: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary, repr=False)
    _epochs: int = 0  # fed without a number
    _shuffled: int = 0  # epochs fed so

    def __len__(self) -> int:
        return len(self.drawn[0].places)

    @property
    def views(self) -> int:
        """How many draws of each sample there are."""
        return len(self.drawn)

    @property
    def targets(self) -> Any:
        """Whatever the data set holds beside the inputs: a tensor (N, ...), a tuple or dictionary of these, or a list.

        None if it holds nothing. Of several views, the first's.
        """
        return self.drawn[0].targets

    def __repr__(self) -> str:
        rows = ", ".join(f"{tensor.name} {tensor.shown}" for tensor in self.frontier)
        return f"Features({len(self):,} rows of {rows}; {str(self.report).partition(chr(10))[0]})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle as paths: the model stays behind, and files are opened again where they are needed."""
        left_behind: dict[str, Any] = {"make_split": None, "samples": None, "_split": None, "_rows": {}, "_sources": {}}
        return self.__dict__ | left_behind | {"_inputs": {}, "_told": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open nothing yet."""
        self.__dict__.update(state, _told=WeakIdKeyDictionary())

    @property
    def split(self) -> Split:
        """The split that the features belong to; made when first asked for after a complete hit."""
        if self._split is None:
            if self.make_split is None:
                raise DataError(
                    "Cannot give the split: expected features from this process, got a pickled copy. "
                    "Use the split of the features that were pickled."
                )
            self._split = self.make_split()
            self._split.sizes_told = self._told
        return self._split

    @property
    def head(self) -> Head:
        """The model's own head: maps a batch's values to the model's output."""
        return self.split.head

    def __getitem__(self, index: int) -> Any:
        """Give one sample: its row (a tensor, or a tuple of several) and its targets; the row alone if it has none."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Cannot give row {index}: expected one of {len(self)}.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Fetched:
        """Give several samples, fetched at once: a DataLoader asks for a batch by this."""
        at = np.array([operator.index(index) % len(self) for index in indices], np.int64)
        rows = tuple(column.brought(at) for column in self._mapped(0, at))
        each = [tensor.apart(row) for tensor, row in zip(self.frontier, rows, strict=True)]
        samples = list(zip(*each, strict=True)) if len(each) > 1 else each[0]
        rest = [part for part in (self.targets, self.weights) if part is not None]
        if rest:
            asides = [[take(part, at[i : i + 1], one=True) for i in range(len(at))] for part in rest]
            samples = list(zip(samples, *asides, strict=True))
        fetched = Fetched(samples)
        fetched.join = partial(self.finished, 0, at, rows, torch.device("cpu"))
        return fetched

    @staticmethod
    def collate(samples: Fetched) -> tuple[Any, ...]:
        """Give a batch as `batches` does. For a DataLoader: collate_fn=features.collate, and no sample is touched."""
        return samples.batch

    def batches(
        self,
        batch_size: int,
        shuffle: bool | str = False,
        seed: int | None = None,
        epoch: int | None = None,
        device: str | torch.device | None = None,
        drop_last: bool = False,
        *,
        tier: str | None = None,
        memory: int | str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> Feed:
        """Feed every sample once.

        Args:
            batch_size: Samples a batch; the last may hold fewer.
            shuffle: In a new order each time, drawn from torch's generator, as DataLoader does. True: exactly, of all
                samples, if memory can hold the rows, else 'block': blocks of neighbouring rows, of which as many are
                mixed as memory can hold; `mixing` of the result says how well. 'exact' insists.
            seed: Pins the order.
            epoch: Gives each epoch an order of its own under one seed, and of several views number `epoch` modulo
                their number. Without it, each call feeds the next view.
            device: Where to put values and targets.
            drop_last: Leave out a last batch that is not full.
            tier: Where rows are kept: 'device', 'ram', 'mapped' or 'streamed'; by default the best that has room.
            memory: How much rows may fill, in bytes or as "2GB"; by default half of what is available.
            rank: Which of several processes this is, fed equally many batches; by default as torch.distributed says.
            world_size: How many processes there are.
            resume: What `state_dict()` of an earlier result gave: go on from there.

        Returns:
            An iterator of (values, targets): what the head is given, one tensor (B, ...) or a tuple of several, and
            the targets of these samples; (values, targets, weights) if there are weights. All are copies: writing
            into them changes nothing stored.

        Raises:
            DataError, DeviceError: arguments that do not fit together, or no such device.
        """
        shard, room = Shard.of(rank, world_size), None if memory is None else bytes_of(memory)
        where = present(device or "cpu")
        return Feed(self, Request(batch_size, shuffle, seed, epoch, where, drop_last, tier, room, shard), resume)

    def select(self, which: Which) -> "Features":
        """Give some of the samples, as features of their own. Nothing is copied or computed.

        Args:
            which: Numbers, a slice, a mask (N,), or a function of the targets that gives one of these.

        Raises:
            DataError: it is none of these, or names samples that there are not.

        Example:
            >>> import tempfile
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
            >>> _ = model[0].requires_grad_(False)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     train = ft.extract(model, (torch.randn(50, 4), torch.arange(50)), folder)
            ...     print(len(train.select(lambda number: number >= 40)))
            10
        """
        at = rows_of(which, self.targets, len(self))
        drawn = tuple(View(view.places[at], take(view.targets, at)) for view in self.drawn)
        weights = None if self.weights is None else self.weights[torch.from_numpy(at)]
        numbers = at if self.numbers is None else self.numbers[at]
        return replace(
            self,
            drawn=drawn,
            weights=weights,
            numbers=numbers,
            _rows={},
            _sources={},
            _inputs={},
            _epochs=0,
            _shuffled=0,
        )

    def folds(
        self, k: int, seed: int = 0, stratify: Any = None, groups: Any = None
    ) -> list[tuple["Features", "Features"]]:
        """Deal the samples into k folds: a list of (all but one fold, that fold).

        Args:
            k: How many folds, at least 2.
            seed: Pins which sample comes where.
            stratify: Spread each label evenly over the folds: True for the targets, a key or position among them,
                or labels (N,).
            groups: Keep samples of one group in one fold: the same kinds of value.

        Raises:
            DataError: too few samples or groups, or not one label for each.
        """
        labels, kin = (labels_of(each, self.targets, len(self)) for each in (stratify, groups))
        folds = deal(len(self), k, seed, labels, kin)
        return [(self.select(folds != fold), self.select(folds == fold)) for fold in range(k)]

    def weighted(self, weights: Any) -> "Features":
        """Give the same features with a weight for each sample, which comes with every batch.

        Args:
            weights: (N,), finite and not negative.

        Raises:
            DataError: they are none.
        """
        each = torch.as_tensor(weights).clone()
        if each.shape != (len(self),) or not bool((each >= 0).all()) or not bool(each.isfinite().all()):
            raise DataError(
                f"Cannot weigh {len(self)} samples: expected one finite number from 0 up for each, got shape "
                f"{tuple(each.shape)}. features.weighted(torch.ones({len(self)}))"
            )
        return replace(self, weights=each, _rows={}, _sources={}, _epochs=0, _shuffled=0)

    def numpy(self, view: int = 0) -> Any:
        """Give the features in the data set's order: one read-only array (N, ...), or a tuple of several.

        Where rows differ in size, a list of N arrays without padding is in the place of an array.

        Args:
            view: Which draw of the samples.
        """
        if not 0 <= view < self.views:
            raise DataError(f"Cannot give view {view}: expected one of {self.views}. features.numpy(view=0)")
        everything = slice(0, len(self))
        arrays = []
        for column, tensor in zip(self._mapped(view), self.frontier, strict=True):
            arrays.append(tensor.arrays(column.rows(everything)))
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def verify(self, n: int = 64, seed: int = 0) -> Verification:
        """Run the model on some samples once more, and compare with the stored rows.

        The samples are read again, spread over the data set. Rows lie within what the model differs from itself when
        the same samples come in other batches; they are equal to the last bit if they come as they came when they
        were computed: all of them (n at least len), with the same batch size, none of them stored before.

        Args:
            n: How many samples, at most.
            seed: Of the choice.

        Returns:
            What differs, beside the model's own noise. `str()` says it, `.is_right` judges it.

        Raises:
            DataError: the data set has changed since, or these features are a pickled copy.
            SplitError: the model has changed since.
            StoreError: the rows are damaged or gone.

        Example:
            >>> import tempfile
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
            >>> _ = model[0].requires_grad_(False)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     print(ft.extract(model, torch.randn(50, 4), folder).verify())
            right: 50 of 50 rows equal the model's to the last bit
        """
        if self.samples is None:
            raise DataError(
                "Cannot verify features: expected features from this process, got a pickled copy, which has no data "
                "set. Verify those that were pickled, or extract again: ft.extract(model, dataset, store).verify()"
            )
        places = spread(len(self), n, seed)
        facts = {"table": self.table.fingerprint, "rows": len(places)}
        with phase_in(self.table.place, "verify", readonly=self.table.readonly, **facts):
            return self._verified(self.samples, places)

    def _verified(self, samples: Samples, places: Sequence[int]) -> Verification:
        chosen = Chosen(
            places if self.numbers is None else self.numbers[places].tolist(),
            self._keys(places),
            lambda positions: self.rows_at([places[at] for at in positions]),
            self.frontier,
        )
        split = self.split
        return compare(
            split, samples, chosen, elsewhere(self.table.provenance, split), self.codings, speed=self.report.speed
        )

    def rows_at(self, places: Sequence[int]) -> list[Tensor | Uneven]:
        """Give the rows of some samples for each tensor of the frontier, without padding where they differ in size."""
        return [column.brought(np.array(places, np.int64)) for column in self._mapped(0)]

    def _keys(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Read which samples the stored rows are said to be of."""
        places = self.drawn[0].places[numbers]
        keys = np.empty((len(numbers), 16), np.uint8)
        for segment in np.unique(places[:, 0]):
            is_in = places[:, 0] == segment
            keys[is_in] = self.table.segment(int(segment)).keys[places[is_in, 1]]
        return keys

    # What `Feed` asks of its host.

    def view_of(self, epoch: int | None) -> int:
        """Choose which view is fed in an epoch; without its number, the next one."""
        if epoch is None:
            self._epochs += 1
        return (self._epochs - 1 if epoch is None else epoch) % self.views

    def opened(self, view: int, request: Request, *, is_exact: bool) -> tuple[Rows, Source]:
        """Give the rows of a view, and where they are fed from."""
        rows = self._of(view)
        shuffled = self._shuffled if self.views == 1 else 0  # several draws would all have to be copied
        self._shuffled += bool(request.shuffle)
        tier = rows.tier(request.tier, request.device, request.memory, shuffled=shuffled, is_exact=is_exact)
        return rows, self._source(view, tier, request.device)

    def _source(self, view: int, tier: str, device: torch.device) -> Source:
        key = (view, tier, device if tier == "device" else None)
        if key not in self._sources:
            with _told():
                self._sources[key] = self._of(view).open(tier, device)
        return self._sources[key]

    def finished(
        self, view: int, at: slice | NDArray[np.int64], rows: Brought, device: torch.device
    ) -> tuple[Any, ...]:
        """Make a batch of rows: as the head was given them, with targets and weights."""
        if view not in self._inputs:
            with _told():
                self._inputs[view] = InputSizes(self.table, self.drawn[view].places, self.widths)
        shape = self._inputs[view].of(at)
        pairs = zip(self.frontier, rows, strict=True)
        each = tuple(tensor.from_rows(tensor.padded(row, shape)) for tensor, row in pairs)
        if shape is not None:
            self._told[each[0]] = shape
        values: Values = each[0] if len(each) == 1 else each
        targets = _moved(padded(take(self.drawn[view].targets, at), self.widths), device)
        return (values, targets) if self.weights is None else (values, targets, _moved(take(self.weights, at), device))

    def _of(self, view: int) -> Rows:
        if view not in self._rows:
            codings = self.codings or (None,) * len(self.frontier)
            self._rows[view] = Rows(self.table, self.drawn[view].places, self.frontier, codings)
        return self._rows[view]

    def _mapped(self, view: int, at: NDArray[np.int64] | None = None) -> Sequence[Brings]:
        """Open a view where it lies, the files of these samples looked at just now."""
        with _told():
            return self._of(view).mapped.columns(at)


@contextmanager
def _told() -> Iterator[None]:
    """Say what to do about rows that are damaged or gone."""
    try:
        yield
    except DamagedSegmentError as err:
        raise StoreError(f"{err} Compute its rows again: ft.extract(model, dataset, store)") from err


def _moved(targets: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return targets
    return nesting.replace(targets, lambda tensor: tensor.to(device, non_blocking=True))
