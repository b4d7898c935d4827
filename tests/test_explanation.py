"""`explain` names the part of the identity that changed, and says what would be computed."""

import json
import time

import PIL.Image
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import forethought as ft
from forethought.cli import app

pytest.importorskip("torchvision")
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

TO_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
COLOUR, GREY = v2.Compose([v2.Resize(8), *TO_TENSOR]), v2.Compose([v2.Resize(8), v2.Grayscale(3), *TO_TENSOR])


def make_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    return ft.freeze(net, until="3")


@pytest.fixture
def folder(tmp_path):
    for at in range(10):
        path = tmp_path / "images" / "ab"[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (at, 9 * at, 200 - at)).save(path)
    time.sleep(0.15)
    return tmp_path / "images"


@pytest.fixture
def store(folder, tmp_path):
    made = ft.Store(tmp_path / "store")
    ft.extract(make_net(), data_of(folder), made, progress=False)
    return made


def data_of(folder, transform=COLOUR):
    return ImageFolder(str(folder), transform=transform)


def one_ulp(net):
    with torch.no_grad():
        net[0].weight.view(-1)[0] = torch.nextafter(net[0].weight.view(-1)[0], torch.tensor(9.0))


def statistic(net):
    net[1].running_mean[0] += 1


def epsilon(net):
    net[1].eps = 0.1


CHANGES = {"one ulp": (one_ulp, ("0.weight",)), "statistic": (statistic, ("1.running_mean",)), "eps": (epsilon, ("operations",))}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_named(change, folder, store):
    """To the tensor, or the operations; the data set is as it was."""
    edit, expected = CHANGES[change]
    net = make_net()
    edit(net)
    told = ft.explain(net, data_of(folder), store)
    assert (told.rows, told.stored) == (10, 0)
    assert told.trunk.changed == expected
    assert told.data.is_known
    assert time.time() - 60 < told.trunk.since < time.time()
    assert "changed since" in str(told)


def test_nothing_changed_is_said(folder, store):
    told = ft.explain(make_net(), data_of(folder), store)
    assert (told.stored, told.trunk.is_known, told.data.is_known, told.files) == (10, True, True, ())
    assert "10 of 10 rows are stored; 0 would be computed" in str(told)


def test_a_change_of_the_transform_is_named(folder, store):
    """The attribute of the data set, not a guess at it."""
    told = ft.explain(make_net(), data_of(folder, GREY), store)
    assert told.trunk.is_known
    assert set(told.data.changed) == {"transform", "transforms"}
    assert told.stored == 0


def test_an_edited_file_is_named(folder, store):
    """And it is the only row that would be computed."""
    PIL.Image.new("RGB", (8, 8), (255, 0, 255)).save(folder / "a" / "4.png")
    told = ft.explain(make_net(), data_of(folder), store)
    assert told.files == (str(folder / "a" / "4.png"),)
    assert told.stored == 9


def test_more_samples_are_counted(folder, store):
    """The list of samples is what changed."""
    PIL.Image.new("RGB", (8, 8), (255, 0, 255)).save(folder / "a" / "99.png")
    told = ft.explain(make_net(), data_of(folder), store)
    assert (told.rows, told.stored) == (11, 10)
    assert "samples" in told.data.changed


def test_data_that_does_not_show_itself_is_said_to(folder, store):
    """Samples are read, and counted right."""
    samples = [data_of(folder)[at] for at in range(10)]
    told = ft.explain(make_net(), samples, store)
    assert told.data is None
    assert told.stored == 10
    assert "does not show its content" in str(told)


def test_an_empty_store_knows_nothing(folder, tmp_path):
    told = ft.explain(make_net(), data_of(folder), ft.Store(tmp_path / "empty"))
    assert (told.stored, told.trunk.of, told.data.of) == (0, None, None)
    assert "new to this store" in str(told)


def test_explaining_writes_nothing(folder, store):
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    net = make_net()
    one_ulp(net)
    ft.explain(net, data_of(folder, GREY), store)
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_the_command_says_the_same(folder, store, tmp_path):
    """As text and as JSON."""
    program = tmp_path / "job.py"
    program.write_text(
        "import torch\nfrom torch import nn\nimport forethought as ft\n"
        "def model():\n    torch.manual_seed(0)\n    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), "
        "nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))\n    return ft.freeze(net, until='3')\n"
        f"def data():\n    from torchvision.datasets import ImageFolder\n    from torchvision.transforms import v2\n"
        f"    return ImageFolder({str(folder)!r}, transform=v2.Compose([v2.Resize(8), v2.ToImage(), "
        "v2.ToDtype(torch.float32, scale=True)]))\n"
    )
    names = ["store", "explain", f"{program}:data", f"{program}:model", "--store", str(store.path)]
    told = CliRunner().invoke(app, names)
    assert "10 of 10 rows are stored" in told.stdout
    as_json = json.loads(CliRunner().invoke(app, [*names, "--json"]).stdout)
    assert (as_json["stored"], as_json["trunk"]["is_known"]) == (10, True)
