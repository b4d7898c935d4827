"""Trial runs of a model: record it on small variations of an example, and check what the record promises.

Trials run on a shell of the model, with buffers and random state put back afterwards. They are few and small: a model
is recorded on three samples and on two, and both halves run once on the two.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forethought import nesting
from forethought.errors import (
    ForethoughtError,
    InvisibleOperationError,
    NothingFrozenError,
    ReplayDriftError,
    SplitError,
)
from forethought.probing.generators import drawn_in_turns
from forethought.splitting.collecting import uncollected
from forethought.splitting.doubts import DoubtedError
from forethought.splitting.frontier import Recorder
from forethought.splitting.holdings import Holdings
from forethought.splitting.inputs import batch_of, inputs_of
from forethought.splitting.joining import make_plan
from forethought.splitting.moving import drawn_apart
from forethought.splitting.notes import Noted, notes_of
from forethought.splitting.operations import check_alone
from forethought.splitting.plan import Plan
from forethought.splitting.reasons import by_chance, differing, remembering
from forethought.splitting.recording import Label, Operation, Position, Read, Recording, Value
from forethought.splitting.running import eagerly, has_fast_path, run_head, run_trunk
from forethought.splitting.shell import modules_of, shell
from forethought.splitting.untouched import State, all_same, untouched
from forethought.splitting.variations import is_alike, resized, rolled, telling, varied

_DRIFTS = (ReplayDriftError, InvisibleOperationError)
_MOST_SIZES = 8  # times that a model is recorded anew because a size was in doubt
_FEW = 2  # samples that show which axis is the batch, together with one more
_FAR = 5  # samples from which sizes that do not grow evenly stand out; recorded where the example is no smaller


@uncollected()
def record_plan(
    model: nn.Module, at: Sequence[str], args: Any, kwargs: Any, as_given: bool = False, lent: State | None = None
) -> Plan:
    """Record a model on small variations of its inputs, join what was seen, and check it.

    Args:
        model: The model; it is not changed.
        at: Paths of modules at which to cut.
        args, kwargs: Example inputs.
        as_given: Record the path of this very batch, not of its first samples.
        lent: A shell of the model, just made, for the first trials to run on.
    """
    trials = _Trials(model, at, args, kwargs)
    trials.lent = lent
    for _ in range(_MOST_SIZES):
        try:
            plan = _recorded(trials, as_given)
            trials.demand_no_memory()
            plan.told = "" if trials.told is None else str(trials.told)
            return plan
        except DoubtedError as doubted:
            trials.sizes |= doubted.values
            trials.moving += doubted.moving
            trials.drawn |= doubted.drawn
        except SplitError as err:
            if not trials.moving and trials.told is not None and isinstance(err, _DRIFTS):
                raise by_chance(model, str(trials.told)) from err
            if not trials.moving:
                raise
            trials.ignore_moving()
    raise InvisibleOperationError(
        f"Cannot split {type(model).__name__}: expected sizes that do not depend on values, got others that do, "
        "however many tensors cross. Cut after them: ft.split(model, x, at=<a later module>)"
    )


def _recorded(trials: "_Trials", as_given: bool) -> Plan:
    trials.begin()
    if not as_given:
        try:
            return trials.quick()
        except (NothingFrozenError, DoubtedError):
            raise
        except Exception:  # whatever a model says of a batch that it cannot take: the thorough way decides
            pass
    try:
        return trials.thorough()
    except ReplayDriftError:
        trials.is_thrifty = False  # what is cheapest may differ from one batch to another
    try:
        return trials.thorough()
    except ReplayDriftError:
        return trials.of_this_size()


def record_once(model: nn.Module, at: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
    """Record a single run of a model on these inputs: enough to see the sizes of what it makes."""
    trials = _Trials(model, at, args, kwargs)
    trials.begin()
    return trials.record(trials.inputs)


class _Trials:
    """Runs one model on variations of one example."""

    def __init__(self, model: nn.Module, at: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model = model
        self._at = at
        self.inputs = inputs_of(args, kwargs)
        self._batch = batch_of(self.inputs)
        self._arguments = nesting.outline((args, kwargs), Position)
        self.is_thrifty = True
        self.sizes: set[Value] = set()  # that cross because Python asks for them
        self.moving: list[Read] = []  # buffers that the forward changes
        self.drawn: dict[int, Label] = {}  # operations that draw random numbers: for what is frozen, or for the head
        self.told: Operation | None = None  # tells Python such a number, where both halves run
        self.stale: list[str] = []  # their names, where the split would be empty if they counted
        self.lent: State | None = None  # a new shell, to be used first
        self._body: nn.Module | None = None
        self._state: State  # of the body, as no trial has left it
        self._kept: untouched | None = None
        self._holdings: Holdings | None = None  # of the body
        self._draws = self._keeps_state = False
        self._draws_elsewhere = False  # in Python, numpy, or by a generator of a module
        self._ended: Any = None  # what these generators held after the last run
        self._leaves_notes = False  # on plain objects that modules hold
        self._writes: set[str] = set()
        self._next: list[list[Tensor]] = []  # what the example gave when it was recorded, and in the next runs

    def begin(self) -> None:
        """Begin anew, on a body that no failed trial has written on."""
        self.is_thrifty = True
        self._body = None

    def ignore_moving(self) -> None:
        """Split as if no buffer moved, since nothing is frozen otherwise: exact, but its rows do not keep."""
        self.stale = [read.home[1] for read in self.moving if read.home is not None]
        self.moving = []

    def quick(self) -> Plan:
        """Record three samples and two, in varied order, and check on the two.

        Raises:
            ShapeError: a size does not simply grow with the batch: record more.
        """
        few = resized(telling(self.inputs, self._batch), min(self._batch, _FEW), _FEW)
        sizes = [_FEW + 1, _FEW] if self._batch < 2 * _FEW else [_FEW + 1, _FEW, _FAR]
        for vary in (varied, rolled):
            runs = [few if size == _FEW else resized(vary(few, _FEW), _FEW, size) for size in sizes]
            try:
                recordings = [self.record(i, is_example=i is few and self._batch == _FEW) for i in runs]
                plan = self._plan(recordings, sizes)
            except ReplayDriftError:
                # Other rows may take another path, which is no fault as long as each batch is seen to take its own.
                if vary is rolled:
                    raise
                continue
            if not plan.is_even:
                break
            plan.of_few = True
            if not has_fast_path(self._model):
                self._check(plan, few, _FEW, recordings[1].outputs)
            elif vary is varied:
                self._check_unwatched(plan, rolled(few, _FEW), recordings[1].outputs)
            else:
                self._check(plan, few, _FEW)
            return plan
        raise ReplayDriftError("expected sizes that are the same or grow with the batch, got others")

    def thorough(self) -> Plan:
        """Record the whole example, other values of its shapes, one sample more, and about twice as many."""
        batch = max(self._batch, _FEW)
        example = resized(self.inputs, self._batch, batch)
        try:
            return self._thorough(example, batch)
        except (NothingFrozenError, DoubtedError):
            raise
        except Exception:
            if self._batch >= _FEW:
                raise
        return self._thorough(self.inputs, self._batch)  # a model that takes one sample at a time

    def _thorough(self, example: list[Tensor], batch: int) -> Plan:
        turned = rolled(example, batch)
        try:
            return self._compared(example, varied(turned, batch), batch)
        except ReplayDriftError:
            return self._compared(example, turned, batch)

    def of_this_size(self) -> Plan:
        """Record this number of samples only, of a model that does other things for each."""
        return self._compared(self.inputs, rolled(self.inputs, self._batch), self._batch, others=False)

    def _compared(self, example: list[Tensor], other: list[Tensor], batch: int, others: bool = True) -> Plan:
        runs, sizes = [example, other], [batch, batch]
        recordings = [self.record(inputs) for inputs in runs]
        for more in (batch + 1, 2 * batch + 3, 2 * batch, 3 * batch) if batch and others else ():
            if len(runs) == 4:
                break
            try:
                inputs = resized(rolled(example, batch), batch, more)
                recordings.append(self.record(inputs))
            except ForethoughtError:
                raise
            except Exception:
                continue
            runs.append(inputs)
            sizes.append(more)
        plan = self._plan(recordings, sizes)
        at = 2 if len(runs) > 2 else 1
        self._check(plan, runs[at], sizes[at])
        return plan

    def _plan(self, recordings: list[Recording], sizes: list[int]) -> Plan:
        plan = make_plan(recordings, sizes, self._arguments)
        if plan.doubts:
            raise DoubtedError(plan.doubts)
        plan.moving, plan.stale = self.moving, self.stale
        return plan

    def record(self, tensors: list[Tensor], is_example: bool = False) -> Recording:
        """Run the model watched. If these are the example's samples, see whether the next run gives the same."""
        check_alone()
        with self._trial() as (body, _):
            args, kwargs = self._filled(tensors)
            moved = [tensor for tensor in (read.now() for read in self.moving) if tensor is not None]
            if self._holdings is None or not self._holdings.is_current():
                self._holdings = Holdings(body)
            recorder = Recorder(body, self._at, self.is_thrifty, self.sizes, moved, self.drawn, self._holdings)
            recording = recorder.record(args, kwargs)
        if self._state.changed():
            if is_example:
                self._next = [[tensor.clone() for tensor in recording.outputs], *self._afterwards(tensors)]
            self._note_state()
        self._leaves_notes = self._leaves_notes or bool(recording.notes)
        moving = [] if self.stale else recording.moving
        apart, told = drawn_apart(recording.operations[: recording.last + 1])
        self.told = told or self.told
        drawn = dict.fromkeys(apart, Label.TRAINABLE) | dict.fromkeys(recording.drawn, Label.FROZEN)
        if moving or not drawn.items() <= self.drawn.items():
            raise DoubtedError(moving=moving, drawn=drawn)
        return recording

    def _check_unwatched(self, plan: Plan, inputs: list[Tensor], company: list[Tensor]) -> None:
        """Compare both halves with the whole model, run with nobody watching.

        The first sample does where it gives alone what it gave when it was recorded as the second of two: then nothing
        in the model looks at the others, or finds a batch of one special. Else both are compared.
        """
        try:
            if is_alike(self._check(plan, resized(inputs, _FEW, 1), 1), company):
                return
        except Exception:  # whatever a model says of one sample: two decide
            pass
        self._check(plan, inputs, _FEW)

    def _check(
        self, plan: Plan, inputs: list[Tensor], batch: int, recorded: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Compare both halves with the whole model, or with what it gave when it was recorded; give that.

        Raises:
            ReplayDriftError: they differ.
        """
        plan.keeps_state, plan.writes = self._keeps_state, self._writes
        joined = self._drawing_once(plan, inputs, batch)
        if recorded is not None and all_same(recorded, joined):
            return recorded
        whole = self._whole(inputs)
        if all_same(whole, joined):
            return whole
        if self._keeps_state and not plan.keeps_state:
            plan.keeps_state = True  # the trunk, which stops early, leaves something behind that the whole run does not
            if all_same(whole, self._joined(plan, inputs, batch)):
                return whole
        repeats = all_same(whole, self._whole(inputs))
        raise differing(self._model, plan.recording.operations, repeats=repeats, draws=self._draws)

    def _drawing_once(self, plan: Plan, inputs: list[Tensor], batch: int) -> list[Tensor]:
        """Join the halves so that Python draws what it draws in the whole model, and no number twice.

        Raises:
            ReplayDriftError: it does not: some are drawn where both halves run, others where one does.
        """
        joined, fault = None, None
        try:
            joined = self._joined(plan, inputs, batch)
        except ForethoughtError as err:
            if not self._draws_elsewhere:
                raise
            fault = err
        ended = self._ended
        if joined is not None and not self._draws_elsewhere:
            return joined
        self._whole(inputs)
        wanted = self._ended
        if joined is not None and ended == wanted:
            return joined
        plan.redraws = True
        joined = self._joined(plan, inputs, batch)
        if self._ended != wanted:
            raise drawn_in_turns(self._model) from fault
        return joined

    def _whole(self, inputs: list[Tensor]) -> list[Tensor]:
        with self._trial() as (body, kept):
            args, kwargs = self._filled(inputs)
            found = nesting.tensors(body(*args, **kwargs))
            self._ended = kept.elsewhere.told()
            return found

    def _joined(self, plan: Plan, inputs: list[Tensor], batch: int) -> list[Tensor]:
        with self._trial() as (body, kept):
            args, kwargs = self._filled(inputs)
            elsewhere, chance, self._draws_elsewhere = kept.elsewhere, torch.get_rng_state(), False
            began, states = elsewhere.told(), elsewhere.states()
            values = run_trunk(body, plan, args, kwargs)
            self._draws = not torch.equal(chance, torch.get_rng_state())
            self._draws_elsewhere = elsewhere.told() != began
            if plan.redraws:
                elsewhere.put_back(states)
            self._note_state()
            plan.keeps_state = plan.keeps_state or self._keeps_state
            try:
                return nesting.tensors(run_head(self._fresh(), plan, values, batch))
            finally:
                self._note_state()
                self._ended = elsewhere.told()

    def demand_no_memory(self) -> None:
        """Demand that a model that changes its attributes gives the same in its next run.

        Raises:
            SplitError: it does not: what it keeps in Python is another thing in either half.
        """
        is_known = bool(self._next) and all(all_same(self._next[0], other) for other in self._next[1:])
        if not self._leaves_notes and (is_known or not self._keeps_state):
            return
        self._body = None
        noted = Noted(notes_of(modules_of(self._fresh())))
        try:
            runs = [self._outputs(self.inputs, noted.notes), *self._afterwards(self.inputs, noted.notes)]
            names = (self._writes - {"_buffers"}) | noted.changed()
        finally:
            noted.put_back()
            self._body = None
        if not all(all_same(runs[0], other) for other in runs):
            raise remembering(self._model, names)

    def _afterwards(self, inputs: list[Tensor], notes: Sequence[Any] = ()) -> list[list[Tensor]]:
        """Run the body on the same inputs as in the run before, and once more after a run on others."""
        again = self._outputs(inputs, notes)
        batch = batch_of(inputs)
        self._outputs(varied(rolled(inputs, batch), batch), notes)  # a mean of equals is equal: not so of others
        return [again, self._outputs(inputs, notes)]

    def _outputs(self, inputs: list[Tensor], notes: Sequence[Any] = ()) -> list[Tensor]:
        """Run the body as the run before has left it, with nobody watching; leave on plain objects what it leaves."""
        with self._trial() as (body, _):
            args, kwargs = self._filled(inputs)
            found = [tensor.detach().clone() for tensor in nesting.tensors(body(*args, **kwargs))]
            left = Noted(notes)
        left.put_back()
        return found

    @contextmanager
    def _trial(self) -> Iterator[tuple[nn.Module, untouched]]:
        """Give a body to run, and put back what the run may have written into."""
        body = self._fresh()
        with torch.inference_mode(False), eagerly():
            self._kept = self._kept or untouched(body)
            with self._kept:
                yield body, self._kept

    def _fresh(self) -> nn.Module:
        """Give a body as the model is: the last trial's, where that left nothing on it."""
        if self._body is None:
            self._state, self.lent = self.lent or State(shell(self._model)), None
            self._body, self._kept, self._holdings = self._state.body, None, None
        return self._body

    def _note_state(self) -> None:
        changed = self._state.changed()
        if changed:
            self._keeps_state = True
            self._writes |= changed
            if not self._state.put_back(changed):
                self._body = None

    def _filled(self, tensors: list[Tensor]) -> Any:
        return nesting.replace(self._arguments, lambda position: tensors[position.at].clone(), Position)
