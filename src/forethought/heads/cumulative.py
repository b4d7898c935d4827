"""CumulativeLink: one latent and a threshold between neighbouring classes, trained on the order of the classes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import EXCEEDANCE, LATENT, MONOTONE, RANGE, Claim
from forethought.heads.expectation import at_vertices, from_exceedances, vertex_hit, vertices, weights_of
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.latents import build_latent, cannot_describe, hidden_sizes, read_latent
from forethought.heads.layers import check_targets, dtype_name, dtype_of, mean_cost
from forethought.heads.line import AnchorCurve
from forethought.heads.options import check_option
from forethought.heads.proofs import not_at_least, not_rising
from forethought.heads.steady import sigmoid

_MIN_SHARPNESS = 1e-3


class CumulativeLink(Head):
    """An ordinal model read as a regressor: P(class > j) = sigmoid(a (s - theta_j)), s = latent(features).

    Trained on class labels (as anchors) it learns where the classes end, not what lies between: a sample anywhere in
    its class costs little. With decode='remap' y is the curve through the anchors at the classes' centres, half way
    between thresholds: anchors are hit and the interpolation is even. With decode='expectation' y is the sum of
    v_k P(class k), as CORAL's users compute it: a staircase where the link is sharp, and it never reaches the end
    anchors. Either is certified monotone in the latent.

    Proportional odds (McCullagh 1980); the loss of CORAL (Cao, Mirjalili and Raschka 2020, arXiv:1901.07884).

    Args:
        in_features: D.
        anchors: One value per class, K >= 2, ascending or descending, evenly spaced or not.
        latent: 'linear', 'mlp', or your own module (B, ...) -> (B,) or (B, 1) in class units.
        hidden: Hidden sizes of the 'mlp' latent; None: (64,).
        decode: 'remap' or 'expectation'.
        objective: 'coral' (a cross-entropy for each threshold) or 'likelihood' (of the class).
        value_weight: What a target between the anchors counts in training, beside a class label.
        between: Pieces of the 'remap' curve: 'linear' or 'rational'.
        extrapolate: Of the 'remap' curve, beyond the end classes' centres: 'clamp' or 'linear'.
        dropout: Between hidden layers.
        dtype: Of the parameters; y is computed in float32 or wider.

    Raises:
        AnchorError: unusable anchors.
        FitError: an unknown option.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> head = CumulativeLink(in_features=4, anchors=[60.0, 62.0, 67.0])
        >>> head.curve(torch.tensor([0.0, 0.5, 1.0, 2.0])).tolist()
        [60.0, 61.0, 62.0, 67.0]
        >>> head.predict_proba(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    kind: ClassVar[str] = "cumulative"
    held_sharpness: Tensor | None

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        latent: str | nn.Module = "linear",
        *,
        hidden: Sequence[int] | None = None,
        decode: str = "remap",
        objective: str = "coral",
        value_weight: float = 1.0,
        between: str = "linear",
        extrapolate: str = "clamp",
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option("decode", decode, ("remap", "expectation"))
        check_option("objective", objective, ("coral", "likelihood"))
        self.line = AnchorCurve(anchors, knots="centres", between=between, extrapolate=extrapolate, dtype=dtype)
        self.in_features, self.decode, self.objective, self.dropout = in_features, decode, objective, dropout
        if not (math.isfinite(value_weight) and value_weight >= 0):
            raise FitError(f"Cannot build head: expected value_weight from 0 up, got {value_weight}. value_weight=1.0")
        self.value_weight = value_weight
        self.hidden = hidden_sizes(latent, hidden)
        self.latent_kind = latent if isinstance(latent, str) else "custom"
        if isinstance(latent, str):
            check_option("latent", latent, ("linear", "mlp"))
            latent = build_latent(
                latent, in_features, len(self.scale), hidden=self.hidden, dropout=dropout, dtype=dtype
            )
        self.latent_net: nn.Module = latent
        self.register_buffer("held_sharpness", None, persistent=False)
        self.sharpness_raw = nn.Parameter(torch.full((), 2.0, dtype=dtype))

    @property
    def scale(self) -> Anchors:
        """The anchors, ascending."""
        return self.line.scale

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    @property
    def extrapolate(self) -> str:
        """What y does beyond the end anchors: 'clamp' or 'linear'."""
        return self.line.extrapolate if self.decode == "remap" else "clamp"

    @property
    def thresholds(self) -> Tensor:
        """The latents (K-1,) at which a class gives way to the next, strictly ascending."""
        return self.line.thresholds

    @property
    def sharpness(self) -> Tensor:
        """The slope a > 0 of every link, per class unit: a scalar."""
        if self.held_sharpness is not None:
            return self.held_sharpness
        return F.softplus(self.sharpness_raw.to(self.scale.values.dtype)) + _MIN_SHARPNESS

    def bake(self, dtype: torch.dtype) -> None:
        """Hold what is computed from parameters as numbers: another runtime would compute it with other last bits."""
        self.register_buffer("held_sharpness", self.sharpness.detach(), persistent=False)

    def latent(self, features: Tensor) -> Tensor:
        """Return where each sample lies on the line of classes: (B, D) -> (B,), in class units."""
        s = read_latent(self.latent_net, features, None if self.latent_kind == "custom" else self.in_features)
        return s.to(torch.promote_types(s.dtype, self.scale.values.dtype))

    def rank_logits(self, s: Tensor) -> Tensor:
        """Return the logits (*, K-1) of P(class > j) at latents (*)."""
        return self.sharpness.to(s.dtype) * (s.unsqueeze(-1) - self.thresholds.to(s.dtype))

    def curve(self, s: Tensor) -> Tensor:
        """Return y at latents s, the same shape, in the anchors' units."""
        if self.decode == "remap":
            y: Tensor = self.line(s)
            return y
        return self._expected(sigmoid(self.rank_logits(s)))

    def inverse(self, y: Tensor) -> Tensor:
        """Return the latent (same shape as y) at which the 'remap' curve takes the value y. Undoes `curve`."""
        return self.line.inverse(y)

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        return self.curve(self.latent(features))

    def predict_proba(self, features: Tensor) -> Tensor:
        """Return class weights (B, K) that sum to 1."""
        return weights_of(self.rank_logits(self.latent(features)).sigmoid())

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the class: the number of thresholds at or below the latent."""
        return self.numbered((self.latent(features).unsqueeze(-1) >= self.thresholds).sum(-1))

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss against targets (B,) in the anchors' units, a scalar: class labels, values, or both.

        A target on an anchor is a class label, and costs by the ordinal objective. One between two anchors is a value:
        its cost is the Huber loss of the 'remap' curve, in mean gaps, times `value_weight`; with decode='expectation'
        it counts as a label of both anchors, in proportion.
        """
        s = self.latent(features)
        logits = self.rank_logits(s)
        check_targets(targets, len(logits))
        position = self.scale.position(targets).to(logits.dtype)
        costs = self._label_costs(logits, (position[:, None] - _index(logits)).clamp(0, 1))
        if self.decode == "remap":
            errors = (self.line.continued(s) - targets * self.scale.sign) / self.scale.gap
            off = F.huber_loss(errors, torch.zeros_like(errors), reduction="none")
            costs = torch.where(position == position.round(), costs, self.value_weight * off)
        return mean_cost(costs, weights)

    def _label_costs(self, logits: Tensor, above: Tensor) -> Tensor:
        """Return what each sample (B,) costs for the weights (B, K-1) that it should have above each class."""
        if self.objective == "coral":
            return F.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(-1)
        return -(weights_of(above) * self._log_weights(logits)).sum(-1)

    def _log_weights(self, logits: Tensor) -> Tensor:
        """Return log P(class k) (B, K): sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - e^(l - u)), u > l.

        u - l is a class's width, taken from the thresholds: of two large logits it would be lost.
        """
        up, down = F.logsigmoid(logits), F.logsigmoid(-logits)
        widths = (self.sharpness * self.thresholds.diff()).to(logits.dtype)
        inner = up[:, :-1] + down[:, 1:] + torch.log(-torch.expm1(-widths))
        return torch.cat([down[:, :1], inner, up[:, -1:]], -1)

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the curve."""
        return torch.promote_types(dtype_of(self.latent_net), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return what is proved of y as a function of the latent."""
        if self.decode == "remap":
            return self.line.claims(LATENT, self.runs_in())
        values, dtype = self.scale.values.to(self.runs_in()), str(self.runs_in()).removeprefix("torch.")
        against = (
            not_rising("anchors", values)
            or not_at_least("sharpness", self.sharpness, torch.finfo(torch.float32).tiny)
            or not_at_least("thresholds", self.thresholds, -3e38)
        )
        scope = f"every {dtype} latent, infinities included"
        way = "rises" if self.scale.sign > 0 else "falls"
        low, high = self.scale.ends
        why = against or "a difference, a product with a > 0, a sigmoid and a sum, each monotone under rounding"
        is_proved = against is None
        return [
            Claim(MONOTONE, LATENT, f"y never steps back as the latent rises: it {way}", scope, is_proved, why),
            Claim(RANGE, LATENT, f"y stays between {low!r} and {high!r}", scope, is_proved, against or "clamped"),
            at_vertices(self._expected, vertices(len(values), 0, values), self.scale, EXCEEDANCE, against),
        ]

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: y along the latent, and at the anchors."""
        walk = self.line.walk(LATENT, self.runs_in(), self.curve)
        if self.decode == "remap":
            return [walk], [self.line.hit(LATENT, self.runs_in(), self.curve)]
        values = self.scale.values.to(self.runs_in())
        at = vertices(len(values), 0, values)
        hit = vertex_hit(self._expected, at, self.scale, EXCEEDANCE, self.claims()[-1])
        return [dataclasses.replace(walk, within=self.scale.ends)], [hit]

    def _expected(self, c: Tensor) -> Tensor:
        return from_exceedances(c, self.scale.values, self.scale)

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types.

        Raises:
            FitError: the latent is a module of your own, which has no description.
        """
        if self.latent_kind == "custom":
            raise cannot_describe(self.latent_net)
        return {
            "kind": self.kind,
            **self.numbering(),
            "in_features": self.in_features,
            "anchors": self.scale.numbers,
            "latent": self.latent_kind,
            "hidden": list(self.hidden),
            "decode": self.decode,
            "objective": self.objective,
            "value_weight": self.value_weight,
            "between": self.line.between,
            "extrapolate": self.line.extrapolate,
            "dropout": self.dropout,
            "dtype": dtype_name(self),
        }


def _index(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
