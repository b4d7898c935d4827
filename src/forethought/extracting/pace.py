"""How a frozen part is run for its rows: exactly, or in the fastest way that a tolerance allows, chosen once."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forethought.errors import SpeedError
from forethought.extracting.speedups import choose
from forethought.extracting.ways import SpeedReport, Way
from forethought.feed import available_bytes
from forethought.identifying.identity import Digest
from forethought.samples.batch import Batch
from forethought.samples.dataset import Samples
from forethought.splitting.replay import Split
from forethought.store import Store

if TYPE_CHECKING:
    from forethought.extracting.capturing import Runner


class Pace:
    """The way in which one frozen part is run.

    Args:
        tolerance: How far a row may be off; None for exact ones.
        batch_size: Samples a batch, where that is settled; None where another may be chosen.
    """

    def __init__(self, tolerance: float | None, batch_size: int | None) -> None:
        self.report: SpeedReport | None = None  # of the way that was chosen
        self._tolerance, self._batch_size = tolerance, batch_size
        self._chosen_for = ""  # which trunk
        self._run_rows = 0  # how many samples are run at a time
        self._runner: Runner | None = None

    @property
    def is_exact(self) -> bool:
        """Whether no other way is asked for than the exact one."""
        return self._tolerance is None and self.report is None

    def forget(self) -> None:
        """Look for the choice again."""
        self._chosen_for = ""

    def is_settled(self, store: Store, samples: Samples, fingerprint: str, device: torch.device) -> bool:
        """Whether it is known how this trunk is run: exactly, as was chosen here, or as the store remembers."""
        if self._tolerance is None or self._chosen_for == fingerprint:
            return True
        known = SpeedReport.from_json(store.note(self._key(fingerprint, device)) or {})
        if known is not None:
            self._take(known, samples, fingerprint)
        return known is not None

    def choose(
        self, split: Split, samples: Samples, fingerprint: str, device: torch.device
    ) -> tuple[str, dict[str, Any]]:
        """Measure ways and choose one; give the note to remember it by, and its name."""
        assert self._tolerance is not None
        found = choose(split, samples, device, self._tolerance, self._batch_size, available_bytes())
        self._take(found, samples, fingerprint)
        return self._key(fingerprint, device), found.to_json() | {"trunk": fingerprint}

    def table_id(self, fingerprint: str) -> str:
        """Identify what this trunk gives when it is run like this."""
        return fingerprint if self.report is None else self.report.way.table_id(fingerprint)

    def rows(self, split: Split, batch: Batch) -> list[Tensor]:
        """Run the trunk; give the rows (B, *shape) of each tensor of the frontier.

        Raises:
            SpeedError: it cannot be run here in the way that was chosen.
        """
        if self.report is None or self.report.way == Way():
            return [rows.detach() for rows in split.rows(batch.args, batch.kwargs)]
        from forethought.extracting.capturing import Runner  # torch's tracer takes a second to import

        if self._runner is None:
            try:
                self._runner = Runner(split, self.report.way, batch.with_tensors(torch.clone), self._run_rows)
            except SpeedError as err:
                raise SpeedError(
                    f"Cannot run the frozen part as it was chosen, '{self.report.way.name}': expected that it can be "
                    f"run so here, got {err}. Leave speed out, or have another way chosen: "
                    f"ft.extract(..., speed='fast', tolerance={0.9 * self.report.tolerance:g})"
                ) from err
        return self._runner(batch)

    def _take(self, report: SpeedReport, samples: Samples, fingerprint: str) -> None:
        self.report, self._chosen_for, self._runner = report, fingerprint, None
        self._run_rows = report.way.batch_size or samples.batch_size

    def _key(self, fingerprint: str, device: torch.device) -> str:
        facts = (fingerprint, device.type, self._tolerance, self._batch_size)
        return Digest().add("forethought speed", *facts).hex()
