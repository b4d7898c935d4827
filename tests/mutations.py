"""Random models on random data sets, changed at random; after each change every served row is compared with a live one.

    python tests/mutations.py --rounds 1000 --seed 0 [--kinds files,columns]

A round has one store, one model and one data set; a step changes one of them in one way, or something that does not
matter, and extracts. A row that is not bit for bit what the model's head is given live is a wrong row; so is a target.
A row is needless if the same input had given the same output before. A failure names its seed: `--seed S --rounds 1`.

Sums are of whole numbers and halves, so that no row depends on the batch that it was computed in.
"""

import argparse
import collections
import gc
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mutated_data import KINDS
from mutated_models import Model
from torch.utils.data import default_collate

import forethought as ft
from forethought.extracting import roll
from forethought.samples import watching

STEPS = 6
TICK_NS = 20_000_000  # local file systems have ticks of 4 ms; caution about recent stamps is tested elsewhere


class WrongRowsError(AssertionError):
    """A row or a target that is not the live one."""


@dataclass
class Tally:
    """What rounds found."""

    steps: int = 0
    rows: int = 0
    computed: int = 0
    needless: collections.Counter = field(default_factory=collections.Counter)

    def __str__(self) -> str:
        needless = ", ".join(f"{what} {rows}" for what, rows in self.needless.most_common()) or "none"
        return f"{self.steps} steps, {self.rows} rows served, {self.computed} computed, 0 wrong; needless: {needless}"


def live(model, data):
    """What the model's head is given now, the inputs as bytes, and the targets, sample by sample."""
    given, rows = [], []
    handle = model.head.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().clone()))
    samples = [default_collate([sample]) for sample in data.samples()]
    parted = [data.parted(sample) for sample in samples]
    inputs, targets = [(args, kwargs) for args, kwargs, _ in parted], [target for _, _, target in parted]
    try:
        with torch.no_grad():
            for args, kwargs in inputs:
                model(*args, **kwargs)
    finally:
        handle.remove()
    for args, kwargs in inputs:
        rows.append(repr([(t.dtype, t.shape, t.numpy().tobytes()) for t in (*args, *kwargs.values())]))
    return torch.cat(given), rows, targets


def extracted(model, data, store, rng):
    """Extract in one of the ways that must not matter."""
    options = {"batch_size": rng.choice([1, 3, 7, 64]), "progress": False}
    if rng.random() < 0.02 and data.kind != "columns":
        options["num_workers"] = 1
    if rng.random() < 0.3:
        store = ft.Store(store)
    return ft.extract(model, data.dataset, store, **options)


class Round:
    """One store, one model, one data set."""

    def __init__(self, seed, kinds, tally):
        self.rng = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="mutations"))
        kind = self.rng.choice(kinds)
        self.model = Model(
            self.rng, ["images", "convolved", "tokens"] if kind == "columns" else ["images", "convolved"]
        )
        self.data = KINDS[kind](self.rng, self.folder / "data", self.model.form)
        self.tally = tally
        self.known = set()
        self.history = []

    def run(self):
        """Take the steps; leave nothing behind."""
        try:
            self.check("begun")
            for _ in range(STEPS):
                steps = [self.change() for _ in range(self.rng.choice([1, 1, 1, 2]))]
                self.history += steps
                time.sleep(self.rng.choice([0, 0.03, 0.03]))
                self.check(" and ".join(steps))
        finally:
            shutil.rmtree(self.folder)
            self.data.close()

    def change(self):
        """Change the model or the data set; say what."""
        return self.rng.choice([self.model, self.data, self.data]).change()

    def check(self, what):
        """Extract and compare."""
        rows, inputs, targets = live(self.model.net, self.data)
        pairs = [hash((one, row.numpy().tobytes())) for one, row in zip(inputs, rows, strict=True)]
        features = extracted(self.model.net, self.data, self.folder / "store", self.rng)
        served = torch.cat([values for values, _ in features.batches(16)])
        wrong = [at for at in range(len(rows)) if len(served) != len(rows) or not torch.equal(served[at], rows[at])]
        fed = [features[at][1] if isinstance(features[at], tuple) else None for at in range(len(features))]
        wrong_targets = [at for at in range(len(rows)) if plain(fed[at]) != plain(targets[at])]
        if wrong or wrong_targets:
            raise WrongRowsError(f"wrong rows {wrong}, wrong targets {wrong_targets} after {self.history}, {self.data}")
        new = len(set(pairs) - self.known)
        self.known |= set(pairs)
        self.tally.steps += 1
        self.tally.rows += len(rows)
        self.tally.computed += features.report.rows_computed
        if features.report.rows_computed > new:
            self.tally.needless[what] += features.report.rows_computed - new


def plain(target):
    """A target as Python values."""
    if isinstance(target, torch.Tensor):
        return target.squeeze(0).tolist() if target.ndim and len(target) == 1 else target.tolist()
    if isinstance(target, list | tuple):
        return plain(target[0]) if len(target) == 1 else [plain(part) for part in target]
    if isinstance(target, dict):
        return {key: plain(part) for key, part in target.items()}
    return target


def run(rounds, seed=0, kinds=tuple(KINDS), report=lambda text: None):
    """Run rounds; raise at the first wrong row."""
    tally = Tally()
    watching._TICK_NS, roll._CHECKED = TICK_NS, 1  # no luck: let one sample only be read again
    for at in range(rounds):
        try:
            Round(seed + at, list(kinds), tally).run()
        except Exception as err:
            raise WrongRowsError(f"seed {seed + at}: {type(err).__name__}: {err}") from err
        finally:
            gc.collect()
        if (at + 1) % 25 == 0:
            report(f"{at + 1} rounds: {tally}")
    return tally


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    print(run(options.rounds, options.seed, options.kinds.split(","), lambda text: print(text, flush=True)))


if __name__ == "__main__":
    sys.exit(main())
