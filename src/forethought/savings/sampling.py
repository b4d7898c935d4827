"""Run two kinds of steps in turn, in blocks long enough for the counters, and measure each block."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from forethought.energy.meters import UNAVAILABLE, widest
from forethought.errors import EnergyError
from forethought.ledger import Phase
from forethought.ledger.machine import this_machine
from forethought.ledger.parts import Block
from forethought.savings.comparison import Comparison, Side

Step = Callable[[], int]
LEAST_PAIRS = 3  # of blocks: fewer say next to nothing of how sure they are
_BLOCK_S = 5.0
_RENEWALS = 50  # of a counter, within a block


def sample(
    phase: Phase,
    uncached: Step,
    cached: Step,
    *,
    epoch_rows: int,
    seconds: float = 60.0,
    block_s: float | None = None,
    seed: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Comparison:
    """Measure steps without the store and with it, a block of each in turn, which of them first drawn by lot.

    Args:
        phase: An open phase: what all of this costs is its cost.
        uncached: Does one step and returns how many samples it went through.
        cached: Likewise, from stored rows.
        epoch_rows: Samples an epoch.
        seconds: To measure in all, at least; a step that takes longer makes it longer.
        block_s: Seconds a block; by default 5, or 50 renewals of the slowest counter, but never more than a sixth of
            `seconds`.
        seed: Of the lots; None draws others each time. Touches no other generator.
        facts: What both sides have in common, for the ledger.

    Raises:
        EnergyError: seconds that are none, or a step that went through no sample.
    """
    if not seconds > 0 or (block_s is not None and not block_s > 0):
        raise EnergyError(f"Cannot measure for {seconds} s in blocks of {block_s} s: expected more than 0. seconds=60")
    if block_s is None:
        slowest_s = max([meter.step_s for meter in phase.meters.meters], default=0.0)
        block_s = min(max(_BLOCK_S, _RENEWALS * slowest_s), seconds / (2 * LEAST_PAIRS))
    for step in (uncached, cached):  # caches fill, kernels are chosen, clocks rise
        _block(phase, step, block_s / _RENEWALS)
    measured: list[list[tuple[int, float, Block]]] = [[], []]
    total_s = 0.0
    lots = random.Random(seed)
    while total_s < seconds or len(measured[0]) < LEAST_PAIRS:
        # By lot: any fixed order would make what one stretch of time does to its neighbours look like a difference,
        # or hide it, and the interval would cover too rarely or too often.
        for side in lots.sample((0, 1), 2):
            measured[side].append(_block(phase, (uncached, cached)[side], block_s))
            total_s += measured[side][-1][1]
        phase.lap()
    return _compared(measured, phase, epoch_rows, facts or {})


def _block(phase: Phase, step: Step, block_s: float) -> tuple[int, float, Block]:
    """Run steps for so long; give the samples, the seconds and the part that measured them."""
    rows = 0
    with phase.block() as block:
        while True:
            done = step()
            if done < 1:
                raise EnergyError(f"Cannot measure a step: expected it to go through samples, got {done}.")
            rows += done
            if block.age_s >= block_s:
                break
    return rows, block.time_s, block


def _compared(
    measured: list[list[tuple[int, float, Block]]], phase: Phase, epoch_rows: int, facts: Mapping[str, Any]
) -> Comparison:
    blocks = [block for side in measured for _, _, block in side]
    labels = {block.amount.label for block in blocks}
    # Joules that are known in two ways are not compared.
    known = len(labels) == 1 and all(block.amount.energy_j is not None for block in blocks)
    shared = [block.is_shared for block in blocks if block.is_shared is not None]
    counted = [meter for meter in phase.meters.meters if meter.label in labels]  # all that were added up
    bounds = [meter.bound for meter in counted]
    sides = [
        Side(
            tuple(rows for rows, _, _ in side),
            tuple(seconds for _, seconds, _ in side),
            tuple(block.amount.energy_j if known else None for _, _, block in side),
        )
        for side in measured
    ]
    return Comparison(
        uncached=sides[0],
        cached=sides[1],
        epoch_rows=epoch_rows,
        machine=this_machine().id,
        time=time.time(),
        label=labels.pop() if known else UNAVAILABLE,
        bound=widest(bounds) if known else None,
        is_shared=any(shared) if shared else None,
        facts=facts,
        step_j=sum(meter.step_j for meter in counted),
        step_s=max([meter.step_s for meter in counted], default=0.0),
    )
