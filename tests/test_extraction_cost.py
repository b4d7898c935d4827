"""What extraction takes beside the trunk: no compiler, one probe, and memory that a row hardly adds to."""

import subprocess
import sys

import pytest
import torch
from odd_models import Net
from torch import nn

import forethought as ft
from forethought.extracting import extraction, frozen
from forethought.identifying.tensors import TensorHash

LARGE = """
import sys, torch, forethought as ft

def private_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

class Rows(torch.utils.data.Dataset):
    seen = {}

    def __len__(self):
        return 24_000

    def __getitem__(self, index):
        self.seen[index] = private_kb() if index in (8_000, 23_999) else None
        return torch.randn(256, generator=torch.Generator().manual_seed(index)), index

model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 2))
model[0].requires_grad_(False)
rows = Rows()
ft.extract(model, rows, sys.argv[1], batch_size=256, segment_rows=2048)
assert "torch._dynamo" not in sys.modules
print(rows.seen[23_999] - rows.seen[8_000])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_hardly_grows_with_the_data_set_and_no_compiler_is_loaded(tmp_path):
    """16,000 more rows of 1 KB in and 4 KB out: what is kept of each is its key, its place, its target."""
    done = subprocess.run([sys.executable, "-c", LARGE, tmp_path / "store"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000  # it was 18,000 where pieces of batches kept the memory of others apart


@pytest.mark.parametrize("segment_rows", [8, 20, 64])
def test_keys_of_stored_rows_are_let_go_of(segment_rows, tmp_path, monkeypatch):
    """Beside the table's own index, only the keys of rows that are under way are kept."""
    kept = []
    missing = extraction._Extraction._missing
    monkeypatch.setattr(
        extraction._Extraction,
        "_missing",
        lambda self, keys, fresh: kept.append(len(fresh)) or missing(self, keys, fresh),
    )
    x = torch.randn(400, 4)
    features = ft.extract(Net(), torch.cat([x, x]), tmp_path, batch_size=4, segment_rows=segment_rows)
    assert features.report.rows_computed == 400
    assert max(kept) <= 2 * segment_rows


def test_a_trunk_is_probed_once_in_a_process(tmp_path, monkeypatch):
    """However many stores it fills; another trunk is probed for itself, and so is one that is given more samples."""
    probed = []
    probe = frozen.probe
    monkeypatch.setattr(frozen, "probe", lambda *args: probed.append(1) or probe(*args))
    net = Net()
    for store in "abc":
        ft.extract(net, torch.randn(20, 4), tmp_path / store)
    assert len(probed) == 1
    ft.extract(net, torch.randn(2, 4), tmp_path / "d")
    assert len(probed) == 1
    with torch.no_grad():
        next(iter(net.parameters())).add_(1)
    ft.extract(net, torch.randn(2, 4), tmp_path / "a")
    ft.extract(net, torch.randn(2, 4), tmp_path / "e")
    assert len(probed) == 2
    ft.extract(net, torch.randn(20, 4), tmp_path / "f")
    assert len(probed) == 3


def test_an_extraction_hashes_each_weight_thrice(tmp_path, monkeypatch):
    """Before the model runs, to see whether the store knows it; after that, as a run may write into it, counted or not;
    and when the work is done, as what a run leaves may lie where no module shows it."""
    hashed = []
    whole = TensorHash.__call__
    monkeypatch.setattr(
        TensorHash, "__call__", lambda self, head, tensor: hashed.append(id(tensor)) or whole(self, head, tensor)
    )
    net = Net()
    split = ft.split(net, torch.randn(2, 4))
    ft.extract(split, torch.randn(40, 4), tmp_path, batch_size=8)
    frozen_weights = {id(each) for each in net.parameters() if not each.requires_grad}
    assert sorted(each for each in hashed if each in frozen_weights) == sorted([*frozen_weights] * 3)


class Prepared(nn.Module):
    """Prepares its frozen weight when it is first run, in a way that torch may not count."""

    def __init__(self, way, is_ready=False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4, bias=False).requires_grad_(False), nn.Linear(4, 2)
        self.way, self.is_ready = way, is_ready

    def features(self, x):
        if not self.is_ready:
            weight = self.body.weight.detach().clamp(-0.1, 0.1)  # twice is as once
            if self.way == "numpy":
                self.body.weight.detach().numpy()[:] = weight.numpy()
            elif self.way == "data":
                self.body.weight.data.copy_(weight)
            else:
                with torch.no_grad():
                    self.body.weight.copy_(weight)
            self.is_ready = True
        return torch.tanh(self.body(x))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize("way", ["numpy", "data", "counted"])
def test_a_weight_that_the_first_run_writes_is_hashed_as_it_is_used(way, tmp_path):
    """A model with the weight of before has rows of its own."""
    x = torch.randn(12, 4)
    for is_ready in (False, True):
        found = ft.extract(Prepared(way, is_ready), x, tmp_path, progress=False)
        assert found.report.rows_computed == 12
        torch.testing.assert_close(torch.tensor(found.numpy()), Prepared(way, is_ready).features(x))


@pytest.mark.parametrize("write", ["plain", "past the counter"])
def test_a_weight_written_between_two_extractions_is_seen(write, tmp_path):
    """No hash outlives an extraction, whatever torch counts."""
    net, x = Net(), torch.randn(12, 4)
    split = ft.split(net, x[:2])
    ft.extract(split, x, tmp_path)
    weight = next(each for each in net.parameters() if not each.requires_grad)
    if write == "plain":
        with torch.no_grad():
            weight.mul_(1 + 2**-20)
    else:
        weight.data.numpy()[...] *= 1 + 2**-20
    again = ft.extract(split, x, tmp_path)
    assert again.report.rows_computed == 12
    assert torch.equal(torch.from_numpy(again.numpy().copy()), split.trunk(x).detach())
