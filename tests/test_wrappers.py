"""Wrappers of torch's, around a model or around its weights: split is as exact as without them."""

import copy
import functools
import warnings

import pytest
import torch
from odd_models import Base, Case, check, frozen, rows
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import forethought as ft
from forethought.errors import ForethoughtError, SplitError

every_mode = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def demand_exact(make, train=False):
    """Demand the laws of the split: outputs and gradients to the bit, nothing left behind."""
    check(Case("", make, rows, train=train), ft.split)


def quietly(make):
    """Leave torch's advice to use something newer unsaid: people's models have the old."""

    @functools.wraps(make)
    def made(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(*args, **kwargs)

    return made


# Around a model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A group of one process."""
    path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return model


def compiled_parts(model, backend):
    model.body = torch.compile(model.body, backend=backend)
    model.head.compile(backend=backend)
    return model


def parallel_part(model, _):
    model.body = nn.DataParallel(model.body)
    return model


WRAPPERS = {
    "parallel": lambda model, _: nn.DataParallel(model),
    "parallel part": parallel_part,
    "distributed": lambda model, _: DistributedDataParallel(model),
    "compiled": lambda model, backend: torch.compile(model, backend=backend),
    "compiled in place": compiled_in_place,
    "compiled parts": compiled_parts,
    "compiled, parallel": lambda model, backend: nn.DataParallel(torch.compile(model, backend=backend)),
}


@every_mode
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_splits_exactly(name, train, group):
    demand_exact(lambda: WRAPPERS[name](Base(), "eager"), train)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_looked_through(name, group, monkeypatch):
    """They change where or how fast a model runs, not what it computes: neither half, nor a fingerprint, has them."""

    def refuse(*args, **kwargs):
        pytest.fail("a wrapper ran")

    model, x = Base(), torch.randn(4, 6)
    wanted, fingerprint = model(x), ft.split(model, x).trunk.fingerprint
    for kind in (nn.DataParallel, DistributedDataParallel):
        monkeypatch.setattr(kind, "forward", refuse)
    parts = ft.split(WRAPPERS[name](model, refuse), x)
    assert torch.equal(parts.head(parts.trunk(x)), wanted)
    assert parts.trunk.fingerprint == fingerprint


@pytest.mark.filterwarnings("ignore")
def test_a_model_sharded_over_processes_is_refused_by_name(group):
    """What holds parts of weights is refused before anything looks at their memory, which would end the process."""
    model, x = Base(), torch.randn(4, 6)
    parts = ft.split(model, x)
    fully_shard(model.head, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(SplitError, match=r"'head\.weight' sharded over processes"):
        ft.split(model, x)
    with pytest.raises(SplitError, match="Split it"):
        parts.trunk.fingerprint  # noqa: B018


def test_a_head_can_be_wrapped_to_average_gradients(group):
    """What `DistributedDataParallel` makes of the head gives the gradients that it gives of the whole model."""
    model, x = Base(), torch.randn(4, 6)
    parts = ft.split(model, x)
    values = parts.trunk(x)
    DistributedDataParallel(parts.head)(values).sum().backward()
    found = [parameter.grad.clone() for parameter in model.head.parameters()]
    model.zero_grad()
    DistributedDataParallel(model)(x).sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(found, model.head.parameters(), strict=True))


# Around weights -------------------------------------------------------------------------------------------------------

NORMS = {
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, old": quietly(nn.utils.spectral_norm),
    "weight norm": parametrizations.weight_norm,
    "weight norm, old": quietly(nn.utils.weight_norm),
}


def normed(norm):
    """Frozen and trainable layers, each under the norm."""
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU(), norm(nn.Linear(8, 8)), norm(nn.Linear(8, 3)))


@every_mode
@pytest.mark.parametrize("freeze", [lambda m: frozen(m[0]), lambda m: ft.freeze(m, until="0")], ids=["flags", "freeze"])
@pytest.mark.parametrize("name", NORMS)
def test_normed_weights_split_exactly(name, freeze, train):
    """What a norm keeps from run to run moves once, as in the model."""

    def make():
        model = normed(NORMS[name])
        freeze(model)
        return model

    demand_exact(make, train)


@pytest.mark.parametrize("name", ["weight norm", "weight norm, old"])
def test_a_weight_of_which_one_part_trains_splits_exactly(name):
    """The length of the weights trains, their direction is frozen."""

    def make():
        model = frozen(normed(NORMS[name]))
        next(p for _, p in model[2].named_parameters() if p.shape == (8, 1)).requires_grad_(True)
        return model

    demand_exact(make)


@pytest.fixture(params=[torch.qint8, torch.float16], ids=str)
def quantised(request):
    """Makes a model whose frozen layers are quantised as they run."""
    return lambda: _quantised(request.param)


@quietly
def _quantised(dtype):
    model = Base()
    model.body = pytest.importorskip("torch.ao.quantization").quantize_dynamic(model.body, {nn.Linear}, dtype)
    return model


def test_quantised_layers_split_exactly(quantised):
    demand_exact(quantised)


def test_rows_that_the_batch_rounds_are_not_stored(tmp_path):
    """The largest input of a batch rounds the others, when activations are quantised as they come."""
    with pytest.raises(ForethoughtError):
        ft.extract(_quantised(torch.qint8), torch.randn(20, 6), tmp_path / "store")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_packed_weights_count(tmp_path):
    """What is rounded sample by sample is stored, under weights that no parameter shows."""
    x = torch.randn(20, 6)
    model = _quantised(torch.float16)
    stored = ft.extract(model, x, tmp_path)
    assert torch.equal(next(stored.batches(20))[0], model.body(x))
    again = ft.extract(copy.deepcopy(model), x, tmp_path)
    assert again.report.rows_computed == 0
    other = ft.extract(_quantised(torch.float16), x, tmp_path)
    assert other.report.rows_computed == 20


class Parted(nn.Module):
    """Frozen on one device, trained on another; `moves` brings the value over."""

    def __init__(self, moves):
        super().__init__()
        self.trunk = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2, device="meta")
        self.moves = moves

    def forward(self, x):
        x = self.trunk(x)
        return self.head(x.to("meta") if self.moves else x)


@pytest.mark.parametrize("moves", [False, True])
def test_weights_without_values_are_named(moves):
    """A model that was not loaded is no model yet; the message says which weights, and how to load them."""
    with pytest.raises(SplitError, match=r"'head.weight', 'head.bias' on meta. Load them"):
        ft.split(Parted(moves), torch.randn(3, 4))


def test_inputs_without_values_are_named():
    with pytest.raises(SplitError, match=r"'input 0' on meta"):
        ft.split(nn.Linear(4, 2).requires_grad_(False), torch.randn(3, 4, device="meta"))


class Apart(nn.Module):
    """Says what torch says of tensors on two devices, as no second one is here."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")


def test_modules_on_several_devices_are_named(monkeypatch):
    """What lies where, and the fix; an error of another kind stays the model's own."""
    from forethought.splitting import placement

    with pytest.raises(RuntimeError, match="Expected all tensors"):
        ft.split(Apart(), torch.randn(3, 4))
    two = {torch.device("cuda", 0): ["trunk.weight"], torch.device("cpu"): ["head.weight", "input 0"]}
    monkeypatch.setattr(placement, "_devices", lambda *_: two)
    with pytest.raises(
        SplitError, match=r"'trunk.weight' on cuda:0; 'head.weight', 'input 0' on cpu.*model.to\('cuda:0'\)"
    ):
        ft.split(Apart(), torch.randn(3, 4))
