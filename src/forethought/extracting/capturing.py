"""The frozen part as a graph of plain operations for batches of one size: folded, laid out otherwise, compiled.

Which operations run may not depend on values: what is decided while the graph is captured would hold for all samples.
"""

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from forethought import nesting
from forethought.errors import SpeedError
from forethought.extracting.ways import Way
from forethought.identifying.identity import Digest
from forethought.probing.dispatch import DispatchMode
from forethought.samples.batch import Batch
from forethought.splitting.replay import Split

_ATEN = torch.ops.aten
_NORMS = {
    _ATEN.native_batch_norm.default,
    _ATEN.cudnn_batch_norm.default,
    _ATEN._native_batch_norm_legit_no_training.default,
}


class Runner:
    """Runs the frozen part in some way.

    Args:
        split: Whose trunk it is.
        way: How.
        example: A batch, on the device where it is run.
        rows: How many samples are run at a time.

    Raises:
        SpeedError: this frozen part cannot be run in this way here.
    """

    def __init__(self, split: Split, way: Way, example: Batch, rows: int) -> None:
        self.way, self._split, self._rows = way, split, rows
        self._graph: Callable[..., Sequence[Tensor]] | None = None
        self._form = _form_of(example)
        if not way.is_exact:
            self._dtypes = [tensor.dtype for tensor in split.frontier]
            with threads(way.threads), _reasons(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer's and the compiler's own
                at = torch.arange(rows).clamp(max=example.rows - 1).to(example.tensors[0].device)
                self._graph = _captured(split, way, example.with_tensors(lambda tensor: tensor[at]))
                self(example)

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Give the rows (B, *shape) of each tensor of the frontier. What a batch holds may be written into."""
        with threads(self.way.threads):
            if self._graph is None:
                return [rows.detach() for rows in self._split.rows(batch.args, batch.kwargs)]
            if _form_of(batch) != self._form:
                raise SpeedError(
                    f"Cannot run the frozen part as '{self.way.name}': expected inputs in the form of the first ones, "
                    "got others: another size, type or plain value. Leave speed out: ft.extract(model, dataset, store)"
                )
            parts = [self._part(batch, at) for at in range(0, batch.rows, self._rows)]
            return [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*parts, strict=True)]

    def _part(self, batch: Batch, start: int) -> list[Tensor]:
        """Run so many samples as the graph is for; where there are fewer, the last one again and again."""
        assert self._graph is not None
        count = min(self._rows, batch.rows - start)
        tensors = batch.tensors
        if count != batch.rows or count < self._rows:
            at = torch.arange(start, start + self._rows).clamp(max=batch.rows - 1)
            tensors = [tensor[at.to(tensor.device)] for tensor in tensors]
        with torch.no_grad():
            rows = self._graph(*(_laid_out(tensor, self.way) for tensor in tensors))
        return [each[:count].to(dtype).contiguous() for each, dtype in zip(rows, self._dtypes, strict=True)]


def _form_of(batch: Batch) -> Any:
    """Tell all that a graph holds for any batch like this one."""
    forms = [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in batch.tensors]
    return forms, Digest().add(nesting.outline((batch.args, batch.kwargs))).hex()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _reasons() -> Iterator[None]:
    """Say in a line why a way cannot be run, whatever failed: that is torch's, a compiler's or the model's."""
    try:
        yield
    except Exception as err:
        said = str(err).strip().splitlines() or [""]
        reason = said[0] if isinstance(err, SpeedError) else f"{type(err).__name__}: {said[0]:.100}"
        raise SpeedError(reason) from err


class _Watching(DispatchMode):
    """Sees whether values decide what is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            raise SpeedError(f"values decide what is computed, by {func}")
        return func(*args, **(kwargs or {}))


def _captured(split: Split, way: Way, example: Batch) -> Callable[..., Sequence[Tensor]]:
    last = split.plan.recording.last
    told = next((op for op in split.plan.recording.operations[: last + 1] if op.reads_values), None)
    if told is not None:
        raise SpeedError(f"Python is told values, by {told}")
    device = example.tensors[0].device.type

    def run(*tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        batch = example.with_tensors(lambda _: next(given))
        return split.rows(batch.args, batch.kwargs)

    def fresh() -> list[Tensor]:
        return [tensor.clone() for tensor in example.tensors]

    with torch.autocast(device, torch.bfloat16) if way.bfloat16 else nullcontext():
        run(*fresh())  # records what is new about it
        with _Watching():
            run(*fresh())
        graph: GraphModule = make_fx(run)(*fresh())
        if way.folded:
            _fold(graph)
        _settle(graph, way)
        if not way.compiled:
            return graph
        return torch.compile(graph, dynamic=False)


def _laid_out(tensor: Tensor, way: Way) -> Tensor:
    is_image = way.channels_last and tensor.ndim == 4
    return tensor.contiguous(memory_format=torch.channels_last) if is_image else tensor


def _settle(graph: GraphModule, way: Way) -> None:
    """Do once what would be done with weights in each batch; let images lie as they like."""
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.view.default:
            node.target = _ATEN.reshape.default
        if node.target is _ATEN._to_copy.default and _weight(graph, node.args[0]) is not None:
            value = node.target(_weight(graph, node.args[0]), *node.args[1:], **node.kwargs)
            _put(graph, node, value)
    if way.channels_last:
        for node in list(graph.graph.nodes):
            weight = _weight(graph, node.args[1]) if node.target is _ATEN.convolution.default else None
            if weight is not None and weight.ndim == 4:
                laid_out = weight.detach().contiguous(memory_format=torch.channels_last)
                node.update_arg(1, _constant(graph, node, laid_out))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _fold(graph: GraphModule) -> None:
    """Fold batch norms into the convolutions before them: w' = w g / s, b' = (b - m) g / s + beta, s^2 = v + eps."""
    for norm in list(graph.graph.nodes):
        if norm.target not in _NORMS or not isinstance(norm.args[0], Node):
            continue
        conv = norm.args[0]
        parts = _foldable(graph, norm, conv)
        if parts is None:
            continue
        weight, bias, (gain, shift, mean, var) = parts
        eps = norm.args[6] if norm.target is _ATEN._native_batch_norm_legit_no_training.default else norm.args[7]
        scale = (var.double() + eps).rsqrt() * (1.0 if gain is None else gain.double())
        folded = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
        moved = ((0.0 if bias is None else bias.double()) - mean.double()) * scale + (
            0.0 if shift is None else shift.double()
        )
        dtype = _dtype_of(conv.args[1], weight)
        conv.update_arg(1, _constant(graph, conv, folded.to(weight.dtype).to(dtype)))
        conv.update_arg(2, _constant(graph, conv, moved.to(weight.dtype).to(dtype)))
        for user in list(norm.users):
            user.replace_all_uses_with(conv)
            graph.graph.erase_node(user)
        graph.graph.erase_node(norm)


def _foldable(graph: GraphModule, norm: Node, conv: Node) -> tuple[Tensor, Tensor | None, list[Any]] | None:
    """Give weight and bias of a convolution, and what the norm after it holds, where both can be one."""
    if conv.target is not _ATEN.convolution.default or len(conv.users) > 1 or conv.args[6]:
        return None
    is_first = all(user.target is operator.getitem and user.args[1] == 0 for user in norm.users if user.users)
    is_still = norm.target is _ATEN._native_batch_norm_legit_no_training.default or norm.args[5] is False
    weight = _weight(graph, conv.args[1])
    held = [None if arg is None else _weight(graph, arg) for arg in norm.args[1:5]]
    bias = None if conv.args[2] is None else _weight(graph, conv.args[2])
    is_known = weight is not None and held[2] is not None and held[3] is not None
    is_known &= all(found is not None or arg is None for found, arg in zip(held, norm.args[1:5], strict=True))
    is_known &= bias is not None or conv.args[2] is None
    return (weight, bias, held) if is_first and is_still and is_known else None  # type: ignore[return-value]


def _weight(graph: GraphModule, node: Any) -> Tensor | None:
    """Give the tensor of the model that a node stands for, if only in another type; None if it is no such tensor."""
    while isinstance(node, Node) and node.target is _ATEN._to_copy.default:
        node = node.args[0]
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    found = getattr(graph, str(node.target), None)
    return found.detach() if isinstance(found, Tensor) else None


def _dtype_of(node: Any, weight: Tensor) -> torch.dtype:
    is_cast = isinstance(node, Node) and node.target is _ATEN._to_copy.default
    return node.kwargs.get("dtype") or weight.dtype if is_cast else weight.dtype


def _constant(graph: GraphModule, before: Node, value: Tensor) -> Node:
    name = f"_settled_{len(dict(graph.named_buffers()))}"
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)


def _put(graph: GraphModule, node: Node, value: Tensor) -> None:
    node.replace_all_uses_with(_constant(graph, node, value))
    graph.graph.erase_node(node)
