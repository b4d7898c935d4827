"""Random models and data sets, changed at random: no wrong row, ever. `python tests/mutations.py` runs more rounds."""

import mutations
import pytest
from mutated_data import KINDS

from forethought.extracting import roll
from forethought.extracting.manifest import Manifest
from forethought.samples import watching


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """What a run of the suite sets is put back."""
    monkeypatch.setattr(watching, "_TICK_NS", watching._TICK_NS)
    monkeypatch.setattr(roll, "_CHECKED", roll._CHECKED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_change_leaves_a_stale_row(kind):
    """Every row and every target that is served is the live one, whatever was changed, and however."""
    mutations.run(2, seed=0, kinds=[kind])


@pytest.mark.slow
def test_the_suite_sees_stale_rows(monkeypatch):
    """If the stamps of files were not looked at, it would say so."""
    monkeypatch.setattr(Manifest, "changed_files", lambda self: [])
    with pytest.raises(mutations.WrongRowsError):
        mutations.run(30, seed=50_000, kinds=["zipped", "files", "images"])
