"""Latents: networks that place a sample on the line of classes, 0 for the first, K-1 for the last."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError
from forethought.heads.certificate import EXCEEDANCE, Claim
from forethought.heads.falsification import Walk
from forethought.heads.layers import build_mlp, check_features, first_of, run_in_full
from forethought.heads.options import check_option
from forethought.heads.steady import total


class ScaledLatent(nn.Module):
    """A network (B, D) -> (B, 1) whose output -1..1 spans the K classes.

    A bare Linear would have to travel K/2 classes from 0 before its first useful gradient; scaled, one
    learning rate suits 2 classes and 2,000.
    """

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net = net
        self.reach = (classes - 1) / 2

    def forward(self, features: Tensor) -> Tensor:
        """Return latents (B,) in class units, unbounded."""
        return self.reach + self.reach * run_in_full(self.net, features).squeeze(-1)


class ExpectedClass(nn.Module):
    """A classifier's expected class index, sum of k * p_k: never lowered by weight moving up."""

    def __init__(self, net: nn.Module, activation: str) -> None:
        super().__init__()
        self.net = net
        self.activation = activation

    def exceedances(self, features: Tensor) -> Tensor:
        """Return the weight (B, K-1) of the classes above each class but the last."""
        return exceedances_of(class_weights(run_in_full(self.net, features), self.activation))

    def forward(self, features: Tensor) -> Tensor:
        """Return latents (B,) in [0, K-1]."""
        return total(self.exceedances(features))


def build_latent(
    kind: str,
    in_features: int,
    classes: int,
    *,
    hidden: Sequence[int] = (),
    activation: str = "softmax",
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return a network (B, in_features) -> (B,) in class units: 'linear', 'mlp', or a classifier's expected class."""
    check_option("latent", kind, ("linear", "mlp", "classifier"))
    if kind == "classifier":
        net = build_mlp(in_features, hidden, classes, dropout=dropout, dtype=dtype)
        return ExpectedClass(net, activation)
    net = build_mlp(in_features, hidden if kind == "mlp" else (), 1, dropout=dropout, dtype=dtype)
    return ScaledLatent(net, classes)


def hidden_sizes(kind: str | nn.Module, hidden: Sequence[int] | None) -> tuple[int, ...]:
    """Return the hidden sizes asked for; None: (64,) for 'mlp', else none."""
    return tuple(hidden) if hidden is not None else ((64,) if kind == "mlp" else ())


def read_latent(net: nn.Module, features: Tensor, in_features: int | None) -> Tensor:
    """Run a latent and check that it gives one number per row: (B, D) -> (B,), float32 or wider.

    Args:
        net: The latent.
        features: Its input.
        in_features: D, or None for a module of the user's own, which takes what it takes.
    """
    if in_features is not None:
        check_features(features, in_features)
    s: Tensor = net(features)
    s = s.squeeze(-1) if s.ndim == 2 and s.shape[1] == 1 else s
    rows = first_of(features).shape[0]
    if s.shape != (rows,):
        raise FitError(
            f"Cannot read latent: expected one number per sample, shape ({rows},), "
            f"got {tuple(s.shape)}. End the module with nn.Linear(..., 1)"
        )
    return s.to(torch.promote_types(s.dtype, torch.float32))


def cannot_describe(latent: nn.Module) -> FitError:
    """Return the error of a head that holds a module of the user's own, which has no description."""
    return FitError(
        "Cannot describe head: expected a plain network, "
        f"got your own {type(latent).__name__}. Save its weights and rebuild it in code: "
        "head.load_state_dict(torch.load(path, weights_only=True))"
    )


def exceedances_of(weights: Tensor) -> Tensor:
    """Return P(class > j) for each class j but the last, (B, K) -> (B, K-1): what stochastic dominance is told by."""
    return 1 - weights.cumsum(-1)[..., :-1]


def exceedance_claim(claim: Claim, classes: int, sums: str) -> Claim:
    """Turn a claim along a line of sums of exceedances into one about the exceedances themselves."""
    return dataclasses.replace(
        claim,
        variable=EXCEEDANCE,
        says="y never steps back as weight moves to higher classes: as any exceedance, the weight above a class, rises",
        scope=f"every float from 0 to 1, each of the {classes - 1} exceedances",
        why="; ".join(filter(None, [sums, claim.why])) if claim.holds else claim.why,
    )


def exceedance_walk(
    function: Callable[[Tensor], Tensor],
    sign: float,
    classes: int,
    like: Tensor,
    within: tuple[float, float] | None = None,
) -> Walk:
    """Return the walk of a function of exceedances (N, K-1): from one-hot weights, and between them."""
    vertices = torch.ones(classes, classes - 1).tril(-1).to(like)
    even = torch.linspace(1, 0, classes + 1)[1:-1].to(like)
    places = torch.cat([vertices, even[None], (vertices[1:] + vertices[:-1]) / 2])
    return Walk(EXCEEDANCE, function, places, torch.full((classes - 1,), sign), low=0.0, high=1.0, within=within)


def log_weights(logits: Tensor, activation: str) -> Tensor:
    """Return unnormalised log weights (B, K) of the classes: softmax or normalised sigmoids of the logits."""
    return F.logsigmoid(logits) if activation == "sigmoid" else logits


def class_weights(logits: Tensor, activation: str) -> Tensor:
    """Return class weights (B, K) that sum to 1; for sigmoids, sigmoid / sum of sigmoids.

    Softmax of log-sigmoids is that same quotient, and stays finite where every sigmoid underflows to 0.
    """
    return log_weights(logits, activation).softmax(-1)
