"""The names of torch's functions: each exists in this torch, and does what its set says of it."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode, get_testing_overrides

import forethought as ft
from forethought.splitting import operations
from forethought.splitting.operations import is_about, name_of, packed, shape_only, stand_in

torch.set_num_threads(1)

# Named tensors were taken out of torch 2.14; older ones still have them.
GONE = {"names", "has_names"}
SETS = {
    name: sorted(getattr(operations, name)) for name in ("_ABOUT", "_LIKE", "_SHAPED_BY_OTHER", "_TENSOR_ATTRIBUTES")
}


class Seen(TorchFunctionMode):
    """Keeps every call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def seen(run):
    """The last call that a mode sees of `run`."""
    with Seen() as mode:
        run()
    return mode.calls[-1]


def seen_in(run):
    """The call of attention that a mode sees in `run`."""
    with Seen() as mode:
        run()
    return next(call for call in mode.calls if call[0] is nn.functional.multi_head_attention_forward)


@pytest.mark.parametrize(("of", "name"), [(of, name) for of, names in SETS.items() for name in names])
def test_every_name_exists(of, name):
    """A typo, or a rename in another torch, is seen here and not as a model that fails to split."""
    if name in GONE:
        return
    assert hasattr(torch.Tensor, name) or hasattr(torch, name), f"{of}: {name}"


def test_sets_do_not_overlap():
    """One function has one reading."""
    sets = [set(names) for names in SETS.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))


ASKED_WITH = {
    "size": (0,), "stride": (0,), "is_same_size": (torch.ones(2, 3),), "result_type": (torch.ones(1),),
    "can_cast": None, "register_hook": None, "retain_grad": None, "is_storage": None, "is_coalesced": None,
    "sparse_dim": None, "dense_dim": None, "names": None, "has_names": None,
}  # fmt: skip


@pytest.mark.parametrize("name", SETS["_ABOUT"])
def test_about_gives_no_tensor_and_reads_no_value(name):
    """A function that only asks gives the same answer for other values, and no tensor."""
    given = ASKED_WITH.get(name, ())
    if given is None:
        return
    ask = getattr(torch.Tensor, name, None) or getattr(torch, name)
    tensors = torch.zeros(2, 3), torch.full((2, 3), float("nan"))
    answers = [ask(tensor, *given) for tensor in tensors]
    if name == "requires_grad_":  # the tensor itself, for chaining
        assert answers[0] is tensors[0]
        assert answers[1] is tensors[1]
        return
    assert not any(isinstance(answer, torch.Tensor) for answer in answers)
    if name not in {"__hash__"}:
        assert answers[0] == answers[1]


@pytest.mark.parametrize("name", SETS["_LIKE"])
def test_like_reads_only_the_shape(name):
    """x.new_zeros(...) and zeros_like(x) do not read x."""
    more = {
        "full_like": (3.0,), "randint_like": (9,), "new_zeros": ((2,),), "new_ones": ((2,),), "new_empty": ((2,),),
        "new_full": ((2,), 3.0), "new_tensor": ([1.0],), "new_empty_strided": ((2,), (1,)),
    }.get(name, ())  # fmt: skip
    made = []
    for value in (0.0, float("nan")):
        torch.manual_seed(0)
        owner = torch.Tensor if name.startswith("new_") else torch
        func, args, _ = seen(lambda v=value, o=owner: made.append(getattr(o, name)(torch.full((2, 3), v), *more)))
        assert shape_only(func) == 0
        assert not is_about(func, args)
    assert made[0].shape == made[1].shape
    if "empty" not in name:
        assert torch.equal(*made)


@pytest.mark.parametrize("name", SETS["_SHAPED_BY_OTHER"])
def test_shaped_by_other_reads_only_the_shape_of_the_second(name):
    """a.expand_as(b) does not read b."""
    results = [getattr(torch.ones(3), name)(torch.full((3,), value)) for value in (0.0, float("nan"))]
    assert torch.equal(*results)
    func, _, _ = seen(lambda: getattr(torch.ones(3), name)(torch.zeros(3)))
    assert shape_only(func) == 1


@pytest.mark.parametrize("name", SETS["_TENSOR_ATTRIBUTES"])
def test_tensor_attributes_are_operations(name):
    """x.T gives a tensor, so it is an operation; x.shape is not."""
    x = torch.ones(2, 3, dtype=torch.complex64)
    func, args, _ = seen(lambda: getattr(x, name))
    assert isinstance(func(*args), torch.Tensor)
    assert not is_about(func, args)


@pytest.mark.parametrize("name", ["shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "itemsize"])
def test_other_attributes_only_ask(name):
    """Attribute reads that give no tensor are not counted."""
    func, args, _ = seen(lambda: getattr(torch.ones(2), name))
    assert is_about(func, args)


# Everything that a mode may see, but for Python properties (x.grad), which only ask.
OPERATIONS = [f for f in get_testing_overrides() if not isinstance(getattr(f, "__self__", None), property)]
READS_VALUES = ["item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "is_nonzero"]


@pytest.mark.parametrize("name", READS_VALUES)
def test_reading_a_value_is_not_asking(name):
    """.item() is no question about the shape."""
    x = torch.tensor([1]).squeeze()
    func = getattr(torch.Tensor, name)
    assert not is_about(func, (x,))
    assert shape_only(func) is None


def test_type_asks_or_converts():
    """x.type() asks; x.type(torch.float64) converts."""
    func, args, _ = seen(lambda: torch.ones(2).type())
    assert is_about(func, args)
    func, args, _ = seen(lambda: torch.ones(2).type(torch.float64))
    assert not is_about(func, args)


def test_type_by_keyword_converts_inside_a_trunk():
    """x.type(dtype=...) converts as x.type(...) does, and splits as it does."""
    import forethought as ft

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(4, 4).requires_grad_(False)
            self.b = torch.nn.Linear(4, 2).double()

        def forward(self, x):
            return self.b(self.a(x).type(dtype=torch.float64))

    model, x = Model(), torch.randn(3, 4)
    split = ft.split(model, x)
    assert torch.equal(split.head(split.trunk(x)), model(x))


def test_name_of_is_readable_and_tells_functions_apart():
    """Names go into fingerprints: no address in them, one name a function."""
    functions = [torch.add, torch.Tensor.add, torch.Tensor.add_, torch.nn.functional.linear, torch.nn.functional.relu]
    names = [name_of(func) for func in functions]
    assert len(set(names)) == len(names)
    assert name_of(torch.Tensor.T.__get__) == "Tensor.T"
    assert name_of(torch.Tensor.real.__get__) == "Tensor.real"
    assert not any("0x" in name_of(func) for func in OPERATIONS)


def test_name_of_is_the_same_for_no_two_functions_of_torch():
    """Two functions of torch with one name would be one operation to a fingerprint."""
    by_name = {}
    for func in OPERATIONS:
        by_name.setdefault(name_of(func), []).append(func)
    twice = {name: funcs for name, funcs in by_name.items() if len(funcs) > 1}
    assert not twice


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (4, 1, 2)])
def test_stand_in_has_the_same_form(shape):
    """Shape, strides and dtype are those of the placeholder."""
    like = torch.empty(shape, dtype=torch.bfloat16).mT if len(shape) > 1 else torch.empty(shape, dtype=torch.bfloat16)
    made = stand_in(like)
    assert (made.shape, made.stride(), made.dtype, made.device) == (like.shape, like.stride(), like.dtype, like.device)


@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_on_packed_inputs_gives_the_same(batch_first, crosses):
    """Only rounding may differ: a recording notes shapes and strides."""
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    x, other = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    func, args, kwargs = seen_in(lambda: attention(x, *([other, other] if crosses else [x, x])))
    given = packed(func, args)
    assert all(tensor.is_contiguous() for tensor in given[:3])
    assert (given[0] is given[1]) is not crosses
    assert given[1] is given[2]
    for wanted, got in zip(func(*args, **kwargs), func(*given, **kwargs), strict=True):
        assert (got.shape, got.stride()) == (wanted.shape, wanted.stride())
        assert torch.allclose(got, wanted, atol=1e-6)


def test_nothing_else_is_packed():
    """Whatever else is called gets what it was given."""
    args = (torch.randn(3, 5).T, torch.randn(3))
    assert packed(torch.matmul, args) is args


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5).requires_grad_(False), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layer(x).relu())


def test_a_method_of_tensors_that_was_replaced_is_refused(monkeypatch):
    """torch hands the replacement to whoever watches, so that its effect would come twice; the tensor's own is fine."""
    old = torch.Tensor.relu
    monkeypatch.setattr(torch.Tensor, "relu", lambda tensor: old(tensor) * 2)
    with pytest.raises(ft.errors.SplitError, match=r"torch\.Tensor\.relu = torch\._C\.TensorBase\.relu"):
        ft.split(Small(), torch.randn(3, 4))
    monkeypatch.undo()
    assert ft.split(Small(), torch.randn(3, 4)).trunk(torch.randn(3, 4)).shape == (3, 5)


def test_a_function_mode_beside_ours_is_refused():
    """Each of two modes changes what the other sees; torch's own, that choose a device, are no harm."""
    with Seen(), pytest.raises(ft.errors.SplitError, match="got Seen"):
        ft.split(Small(), torch.randn(3, 4))
    with torch.device("cpu"):
        ft.split(Small(), torch.randn(3, 4))
