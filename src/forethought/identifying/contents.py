"""What tensors and scripts hold that their bytes, or their attributes in Python, do not show."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import IdentityError

SCRIPTS = (torch.jit.ScriptModule, torch.jit.ScriptFunction, torch.ScriptObject)
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
_PLACE = re.compile(r"\s*# [^\n]*:\d+:\d+$", re.MULTILINE)  # where in a file a line of a script came from
_CLASS = re.compile(r"__torch__[\w.]*")  # numbered through in each process; what they hold is written apart
_FORM = re.compile(r", (?:requires_grad=\d|device=[\w:]+)")  # of the tensors with which it was traced
_ATTRIBUTE = re.compile(r'prim::GetAttr\[name="([^"]*)"\]')


def parts_of_tensor(tensor: Tensor) -> list[Any] | None:
    """List what a tensor is made of, if it is more than its type, shape and bytes: sparse, quantized, or of a subclass.

    Raises:
        IdentityError: it does not show what it holds.
    """
    if type(tensor) not in _PLAIN:
        return _parts_of_subclass(tensor)
    if tensor.is_quantized:
        with torch.no_grad():
            return ["quantized", str(tensor.dtype), tensor.int_repr(), *_scale(tensor)]
    if tensor.layout is torch.strided:
        return None
    tensor = tensor.detach()
    head = ["sparse", str(tensor.layout), tuple(tensor.shape)]
    if tensor.layout is torch.sparse_coo:
        return [*head, tensor.is_coalesced(), tensor._indices(), tensor._values()]
    if tensor.layout in _COMPRESSED:
        return [*head, *(getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]), tensor.values()]
    raise IdentityError(
        f"Cannot establish the identity of a {tensor.layout} tensor: expected a dense one, or a sparse one in "
        "coordinates or compressed rows or columns. Use tensor.to_dense()."
    )


def _scale(tensor: Tensor) -> list[Any]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [str(tensor.qscheme()), tensor.q_scale(), tensor.q_zero_point()]
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return [str(tensor.qscheme()), scales, zeros, tensor.q_per_channel_axis()]


def _parts_of_subclass(tensor: Tensor) -> list[Any]:
    """A class may compute with its numbers as it likes: its code counts, and whatever else it holds."""
    held = {name: value for name, value in vars(tensor).items() if value is not None}
    parts: list[Any] = ["subclass", type(tensor), held]
    if not hasattr(tensor, "__tensor_flatten__"):
        with torch._C.DisableTorchFunctionSubclass():
            return [*parts, tensor.detach().as_subclass(Tensor)]
    names, context = tensor.__tensor_flatten__()
    return [*parts, context, [(name, getattr(tensor, name)) for name in names], tuple(tensor.shape), str(tensor.dtype)]


def parts_of_script(script: Any) -> list[Any]:
    """List what a scripted or traced module, function or object computes with: its code, and what that reads.

    Raises:
        IdentityError: it does not show what it holds.
    """
    if isinstance(script, torch.jit.ScriptFunction):
        return ["script", *_code(script.graph)]
    if isinstance(script, torch.jit.ScriptModule):
        graphs = [script._c._get_method(name).graph for name in sorted(script._c._method_names())]
        read = {name for graph in graphs for name in _ATTRIBUTE.findall(str(_inlined(graph)))}
        return ["script", *map(_code, graphs), list(_attributes(script._c, sorted(read)))]
    try:
        return ["script object", script._type().name(), script.__getstate__()]
    except (AttributeError, RuntimeError) as err:
        raise IdentityError(
            f"Cannot establish the identity of a {script._type().name()}: expected an object of a script that can be "
            "saved, got one that cannot. Keep it out of the frozen part."
        ) from err


def _attributes(module: Any, names: list[str]) -> Iterator[Any]:
    """Give what a module, and those inside, hold under these names."""
    for name in names:
        if module.hasattr(name) and not isinstance(value := module.getattr(name), torch._C.ScriptModule):
            yield [name, value]
    for name, child in torch._C.ModuleDict(module).items():
        yield [name, list(_attributes(child, names))]


def _inlined(graph: Any) -> Any:
    graph = graph.copy()
    torch._C._jit_pass_inline(graph)
    return graph


def _code(graph: Any) -> list[Any]:
    """Give the code of a script with all that it calls, and the tensors and objects in it, which no text shows."""
    graph = _inlined(graph)
    return [_PLACE.sub("", _FORM.sub("", _CLASS.sub("__torch__", graph.str(False)))), *_constants(graph)]


def _constants(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        if node.kind() == "prim::Constant" and node.hasAttribute("value"):
            kind = node.kindOf("value")
            if kind in ("t", "ts"):
                yield getattr(node, kind)("value")
            elif kind == "ival":
                yield node.output().toIValue()
        for inner in node.blocks():
            yield from _constants(inner)
