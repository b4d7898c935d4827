"""Certificates put together: exact checks of stored numbers, and that the code is the one that was proved."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from forethought.heads.certificate import EAGER, FLUSHED, Certificate, Claim, digest_of
from forethought.heads.falsification import Counterexample, Falsification, Hit, Walk, search
from forethought.heads.layers import in_evaluation

_GLANCE = 8_000  # inputs that a certificate tries beside its proof: some hundredths of a second
_IEEE = ("cpu", "cuda")  # devices on which PyTorch's eager arithmetic is known to round as IEEE 754 says


def certificate_of(
    head: nn.Module,
    options: Mapping[str, Any],
    dtype: torch.dtype | None,
    claims: Sequence[Claim],
    walks: Sequence[Walk],
    hits: Sequence[Hit],
) -> Certificate:
    """Put claims into a certificate: those stand that neither the device nor a counterexample speaks against."""
    device = next((tensor.device for tensor in head.state_dict().values()), torch.device("cpu"))
    arithmetic = FLUSHED if _takes_subnormals_for_zero() else EAGER
    if device.type not in _IEEE:
        claims = [claim.refuted(f"how device '{device.type}' rounds is not known: head.cpu()") for claim in claims]
    elif (missing := _unfit_number(head)) is not None:
        claims = [claim.refuted(missing) if claim.holds else claim for claim in claims]
    elif any(claim.holds for claim in claims):
        widest = max((len(walk.signs) for walk in walks), default=0)
        seen = hunt(head, walks, hits, _GLANCE * 16 // (16 + widest)).counterexamples
        claims = [_confronted(claim, seen) for claim in claims]
    version = torch.__version__
    return Certificate(
        kind=str(getattr(head, "kind", type(head).__name__)),
        claims=tuple(claims),
        dtype="" if dtype is None else str(dtype).removeprefix("torch."),
        device=device.type,
        arithmetic=arithmetic,
        weights=digest_of(head, options),
        made_with=f"torch {version}",
    )


def _unfit_number(head: nn.Module) -> str | None:
    """Name the first tensor with a NaN in it, which makes answers NaN, whatever is proved of the curve after it; or
    with an infinite number that is not in a part of which nothing is proved: a cast to float16 makes such of 7e4.
    """
    free = tuple(f"{name}." for name in getattr(head, "free", ()))
    for name, tensor in head.state_dict().items():
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            continue
        if bool(tensor.isnan().any()):
            return f"{name} holds what is not a number"
        if bool(tensor.isinf().any()) and not name.startswith(free):
            return f"{name} holds an infinite number"
    return None


def _takes_subnormals_for_zero() -> bool:
    """Whether torch.set_flush_denormal(True) holds: another arithmetic, in which each step is monotone all the same."""
    return float(torch.tensor(torch.finfo(torch.float32).tiny) / 2) == 0


def _confronted(claim: Claim, seen: Sequence[Counterexample]) -> Claim:
    for case in seen:
        if (case.what, case.variable) == (claim.what, claim.variable):
            return claim.refuted(str(case))
    return claim


@contextmanager
def unaffected() -> Iterator[None]:
    """Work as if the caller had set no inference mode, in which no gradient is taken, and no default device."""
    is_usual = torch.get_default_device().type == "cpu"
    with torch.inference_mode(False), nullcontext() if is_usual else torch.device("cpu"):
        yield


def hunt(
    head: nn.Module, walks: Sequence[Walk], hits: Sequence[Hit], tries: int = 1_000_000, seed: int = 0
) -> Falsification:
    """Search for counterexamples with the head in evaluation mode, and leave its modes as they were."""
    with in_evaluation(head):
        return search(walks, hits, tries, seed)


def altered(head: nn.Module, free: Sequence[str] = ()) -> str | None:
    """Say what makes a head run other code than this library's, or None.

    A subclass, a method put on the instance or the class from elsewhere, a hook on the head or on every module, a
    compiled call, another module in a part's place: each may change what is computed without changing a weight.

    Args:
        head: The head, or a part of it.
        free: Names of parts that the proofs say nothing of.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "a hook on every module may change what the head gives: remove it"
    parts = (part for name, part in head.named_children() if name not in free)
    return _own_alteration(head) or next(filter(None, map(altered, parts)), None)


def _own_alteration(module: nn.Module) -> str | None:
    cls = type(module)
    if cls is nn.ParameterList:
        return None
    if not _is_ours(cls):
        return f"{cls.__qualname__} is a class of '{cls.__module__}', whose code was not proved"
    for name, value in vars(module).items():
        if callable(value) and callable(getattr(cls, name, None)):
            return f"'{name}' was replaced on this {cls.__name__}"
    for parent in filter(_is_ours, cls.__mro__):
        for name, value in vars(parent).items():
            where = getattr(getattr(value, "fget", value), "__module__", parent.__module__)
            if callable(getattr(value, "fget", value)) and where != parent.__module__:
                return f"'{name}' of {parent.__qualname__} was replaced by code of '{where}'"
    if module._forward_hooks or module._forward_pre_hooks:
        return f"a forward hook on {cls.__name__} may change what it gives: remove it"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return f"{cls.__name__} was compiled in place, and the proof is of its eager code"
    return None


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith(f"{__name__.rpartition('.')[0]}.")


def not_rising(name: str, numbers: Tensor) -> str | None:
    """Name the first number that is not finite or not above the one before it, or return None."""
    held = numbers.detach().cpu().double().tolist()
    for i, here in enumerate(held):
        if not math.isfinite(here):
            return f"{name}[{i}] is {here}"
        if i and here <= held[i - 1]:
            return f"{name}[{i}] = {here!r} is not above {name}[{i - 1}] = {held[i - 1]!r}"
    return None


def not_at_least(name: str, numbers: Tensor, least: float) -> str | None:
    """Name the first number that is not finite or is below `least`, or return None."""
    for i, number in enumerate(numbers.detach().cpu().double().flatten().tolist()):
        if not least <= number < math.inf:
            return f"{name}[{i}] is {number!r}"
    return None


def steepness(knots: Tensor, values: Tensor) -> tuple[float, float]:
    """Return the least and the greatest slope of the broken line through rising points, computed exactly."""
    t = [Fraction(x) for x in knots.detach().cpu().double().tolist()]
    v = [Fraction(x) for x in values.detach().cpu().double().tolist()]
    slopes = [(v[i + 1] - v[i]) / (t[i + 1] - t[i]) for i in range(len(t) - 1)]
    return float(min(slopes)), float(max(slopes))
