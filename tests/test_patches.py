"""What somebody put into a library is seen, although its version tells the rest: rows and samples of before are not served."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import forethought as ft
from forethought.identifying.account import parts_of
from forethought.identifying.fingerprint import state_of
from forethought.identifying.identity import Digest
from forethought.identifying.patches import patches, patches_in_data

torchvision = pytest.importorskip("torchvision")
DATA = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


def mixed(x, groups):
    return x.flip(1) * 2


def small(kind=nn.ELU):
    torch.manual_seed(0)
    return ft.freeze(nn.Sequential(nn.Linear(4, 4), kind(), nn.Linear(4, 2)), until="1")


def check_served(model, data, folder, features, rows):
    """So many rows are computed, and all are what the model gives now."""
    found = ft.extract(model, data, folder, progress=False)
    assert found.report.rows_computed == rows
    torch.testing.assert_close(torch.tensor(found.numpy()), features(data).detach(), rtol=1e-5, atol=1e-8)


def test_a_function_of_a_library_that_was_replaced_changes_rows(tmp_path, monkeypatch):
    """One that the library's own code calls by a global of its module."""
    home = torchvision.models.shufflenetv2
    torch.manual_seed(0)
    model = ft.freeze(home.shufflenet_v2_x0_5(weights=None).eval(), until="stage2")
    data = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def features(x):
        return model.stage2(model.maxpool(model.conv1(x)))

    check_served(model, data, tmp_path, features, 6)
    check_served(model, data, tmp_path, features, 0)
    monkeypatch.setattr(home, "channel_shuffle", mixed)
    check_served(model, data, tmp_path, features, 6)


def test_a_method_of_a_library_that_was_replaced_by_another_changes_rows(tmp_path, monkeypatch):
    """Both are the library's."""
    model = small()

    def features(x):
        return model[1](model[0](x))

    check_served(model, DATA, tmp_path, features, 10)
    monkeypatch.setattr(nn.ELU, "forward", nn.Tanh.forward)
    check_served(model, DATA, tmp_path, features, 10)
    check_served(model, DATA, tmp_path, features, 0)


def test_a_torch_function_under_the_name_of_another_is_seen(monkeypatch):
    """What a name stands for counts, not only whose it is."""
    before = state_of(small(), "cpu")
    monkeypatch.setattr(torch.nn.functional, "elu", torch.nn.functional.celu)
    assert state_of(small(), "cpu") != before


@pytest.mark.slow
def test_an_attention_of_the_user_s_in_transformers_changes_rows(tmp_path):
    """What lies in a library's table is code of the model: its own, and the globals that it reads."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as TABLE

    scale = {"of": 1.0}

    def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
        weights = torch.softmax(query @ key.transpose(2, 3) * scaling, -1) * scale["of"]
        return (weights @ value).transpose(1, 2).contiguous(), weights

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            config = transformers.LlamaConfig(**sizes, vocab_size=20, attn_implementation="mine")
            self.body, self.head = transformers.LlamaModel(config).eval().requires_grad_(False), nn.Linear(16, 2)

        def features(self, ids):
            return self.body(ids, use_cache=False).last_hidden_state[:, -1]

        def forward(self, ids):
            return self.head(self.features(ids))

    TABLE.register("mine", attend)
    try:
        model = Classifier()
        ids = torch.randint(0, 20, (8, 5), generator=torch.Generator().manual_seed(0))
        distinct = len(ids.unique(dim=0))
        check_served(model, ids, tmp_path, model.features, distinct)
        check_served(model, ids, tmp_path, model.features, 0)
        scale["of"] = 0.5
        check_served(model, ids, tmp_path, model.features, distinct)
        TABLE.register("mine", lambda *args, **more: (2 * attend(*args, **more)[0], None))
        check_served(model, ids, tmp_path, model.features, distinct)
    finally:
        TABLE._global_mapping.pop("mine", None)


def test_a_patch_of_what_prepares_samples_makes_another_data_set(monkeypatch):
    """torchvision's own transforms call their functions by name."""
    data = torchvision.datasets.FakeData(4, transform=torchvision.transforms.ToTensor())
    collate = torch.utils.data.default_collate
    before = parts_of(data, collate, 1)
    assert parts_of(data, collate, 1) == before
    monkeypatch.setattr(torchvision.transforms.functional, "to_tensor", mixed)
    assert parts_of(data, collate, 1) != before


@pytest.mark.slow
def test_no_patch_is_found_where_there_is_none():
    """Libraries as they come hold nothing of the user's, whichever of their modules are imported, in any process."""
    script = (
        "import torch, torchvision, torchvision.transforms.v2, torchvision.models.detection\n"
        "from forethought.identifying.fingerprint import state_of\n"
        "from forethought.identifying.patches import patches_in_data\n"
        "from forethought.identifying.identity import Digest\n"
        "torch.manual_seed(0)\n"
        "model = torchvision.models.resnet18().eval()\n"
        "before = state_of(model, 'cpu')\n"
        "model(torch.zeros(1, 3, 32, 32))\n"
        "assert state_of(model, 'cpu') == before\n"
        "print(before, Digest().add(patches_in_data()).hex())\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    assert said == [state_of(model, "cpu"), Digest().add(patches_in_data()).hex()]
    assert not [each for each in [*patches(model), *patches_in_data()] if callable(each[-1])]
    assert patches(small()) == patches(small(nn.Tanh))
