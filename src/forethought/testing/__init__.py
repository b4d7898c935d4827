"""What must hold of every place that a store can lie in: tests to inherit. Needs pytest.

    class TestShelf(StoreContract):
        @pytest.fixture
        def open_place(self, tmp_path):
            return lambda name: Shelf(tmp_path / name)

`FaultyPlace` fails at a call of one's choice, before or after the work is done.
"""

from forethought.testing.contract import StoreContract
from forethought.testing.places import FaultyPlace, copy_tree, make_rows, read_rows, write_rows

__all__ = ["FaultyPlace", "StoreContract", "copy_tree", "make_rows", "read_rows", "write_rows"]
