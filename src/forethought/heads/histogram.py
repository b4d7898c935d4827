"""HistogramHead: weights over the classes, then their expectation."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.errors import FitError
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import EXCEEDANCE, Claim
from forethought.heads.correction import Corrected
from forethought.heads.expectation import (
    expectation_claims,
    expectation_trials,
    from_exceedances,
    local_claims,
    vertex_hit,
    vertices,
    weights_of,
)
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head
from forethought.heads.latents import class_weights, exceedance_walk, exceedances_of, log_weights
from forethought.heads.layers import (
    build_mlp,
    check_features,
    check_targets,
    dtype_name,
    dtype_of,
    first_of,
    mean_cost,
    run_in_full,
)
from forethought.heads.options import check_option
from forethought.heads.soft_targets import blur, hl_gauss, two_hot


class HistogramHead(Head):
    """A classifier read as a regressor: y = sum of p_k * v_k over the anchors v.

    With decode='mean', moving weight to a higher class never lowers y (first-order stochastic dominance, for
    ascending anchors, up to rounding); y is *not* monotone in single logits, and a trained softmax never
    quite reaches the end anchors. With decode='local' only classes within `window` of the most likely one
    count, as CREPE decodes: sharper on pitch, but it jumps when the most likely class changes, and moving
    weight up *can* lower y. y is clamped to the anchors' range. `trim` is between the two: what weighs little
    does not pull, and y never steps back.

    Args:
        in_features: D.
        anchors: One value per class, K >= 2, ascending or descending, evenly spaced or not.
        hidden: Hidden sizes before the K logits; none: one Linear.
        targets: What the logits are trained toward: 'two-hot' (the two neighbours; mean exact), 'hl-gauss'
            (Gaussian mass), 'blur' (Gaussian of height 1, for activation='sigmoid').
        sigma: Width of 'hl-gauss' and 'blur', in classes.
        activation: 'softmax' (cross-entropy) or 'sigmoid' (binary cross-entropy per class).
        decode: 'mean' or 'local'.
        window: Classes on each side of the most likely one, for decode='local'.
        trim: Share of the weight that decode='mean' leaves out at each end, from 0 to below 0.5: a second peak that
            weighs less does not pull, and an anchor is hit where its class has the rest.
        pad: Extra classes beyond each end, at the end's spacing. None: 3 sigma, or 0 for 'two-hot'.
        correction: Classes over which a trained correction of the logits varies, which are frozen then; None: the
            network itself is trained. For labels at a few places only: the correction learns which neighbourhood is
            right, and leaves the fine scale alone.
        dropout: Between hidden layers.
        net: Your own module (B, ...) -> (B, K + 2 * pad), in place of `hidden`; then `config` is refused.
        dtype: Of the parameters; the expectation runs in float32 or wider.

    Raises:
        AnchorError: unusable anchors.
        FitError: an unknown option.
        ShapeError: on call, features that are not (B, D).

    Example:
        >>> head = HistogramHead(in_features=4, anchors=[60.0, 61.0, 62.0])
        >>> _ = head.net[-1].weight.data.zero_(), head.net[-1].bias.data.zero_()
        >>> head(torch.zeros(2, 4))
        tensor([61., 61.], grad_fn=<MulBackward0>)
    """

    kind: ClassVar[str] = "histogram"

    def __init__(
        self,
        in_features: int,
        anchors: Sequence[float] | Tensor,
        *,
        hidden: Sequence[int] = (),
        targets: str = "two-hot",
        sigma: float = 0.75,
        activation: str = "softmax",
        decode: str = "mean",
        window: int = 4,
        trim: float = 0.0,
        pad: int | None = None,
        correction: float | None = None,
        dropout: float = 0.0,
        net: nn.Module | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option("targets", targets, ("two-hot", "hl-gauss", "blur"))
        check_option("activation", activation, ("softmax", "sigmoid"))
        check_option("decode", decode, ("mean", "local"))
        _check_width(sigma, window)
        _check_trim(trim, decode)
        _check_pad(pad)
        self.scale = Anchors(anchors, dtype)
        self.in_features = in_features
        self.hidden = tuple(hidden)
        self.targets = targets
        self.sigma = sigma
        self.activation = activation
        self.decode = decode
        self.window = window
        self.trim = float(trim)
        self.pad = padding(targets, sigma) if pad is None else pad
        self.dropout = dropout
        self.is_custom = net is not None
        width = len(self.scale) + 2 * self.pad
        self.net = net or build_mlp(in_features, hidden, width, dropout=dropout, dtype=dtype)
        self.correction = None if correction is None else _checked_correction(correction)
        if self.correction is not None:
            self.net = Corrected(self.net, in_features, width, self.correction, dtype)

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    @property
    def support(self) -> Tensor:
        """The ascending values (K + 2 * pad,) of all classes, padding included."""
        values = self.scale.values
        steps = torch.arange(1, self.pad + 1, dtype=values.dtype, device=values.device)
        below = values[0] - (values[1] - values[0]) * steps.flip(0)
        above = values[-1] + (values[-1] - values[-2]) * steps
        return torch.cat([below, values, above])

    def logits(self, features: Tensor) -> Tensor:
        """Return one logit per class, padding included: (B, D) -> (B, K + 2 * pad), float32 or wider."""
        if not self.is_custom:
            check_features(features, self.in_features)
        logits = run_in_full(self.net, features)
        width = len(self.scale) + 2 * self.pad
        rows = first_of(features).shape[0]
        if logits.shape != (rows, width):
            raise FitError(
                f"Cannot read logits: expected shape ({rows}, {width}), "
                f"got {tuple(logits.shape)}. End the module with nn.Linear(..., {width})"
            )
        return logits

    def predict_proba(self, features: Tensor) -> Tensor:
        """Return class weights (B, K + 2 * pad) that sum to 1."""
        return class_weights(self.logits(features), self.activation)

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the most likely class; padding counts as the end class."""
        return self.numbered((self.logits(features).argmax(-1) - self.pad).clamp(0, len(self.scale) - 1))

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units from features (B, D)."""
        log_p = log_weights(self.logits(features), self.activation)
        if self.decode == "local":
            return self._around_peak(log_p)
        return self.from_exceedances(exceedances_of(log_p.softmax(-1)))

    def from_exceedances(self, c: Tensor) -> Tensor:
        """Return y (B,) from the weights above each class but the last, P(class > j), (B, K + 2 * pad - 1).

        v_0 + the sum of c_j (v_{j+1} - v_j), which is the sum of p_k v_k; with `trim`, of c_j as it leaves them.
        """
        return from_exceedances(c, self.support, self.scale, self.trim)

    def _around_peak(self, log_p: Tensor) -> Tensor:
        log_p, support = _near_peak(log_p, self.support, self.window)
        support = support.to(torch.promote_types(log_p.dtype, support.dtype))
        # Around the most likely class: its anchor to the last bit, where it has all the weight. Not a matmul, where
        # TF32 would round the anchors to 10 bits.
        peak = support[:, self.window : self.window + 1]
        y = peak.squeeze(1) + (log_p.softmax(-1) * (support - peak)).sum(-1)
        return torch.clamp(y, self.scale.values[0], self.scale.values[-1]) * self.scale.sign

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the cross-entropy against soft targets made of targets (B,) in the anchors' units, a scalar.

        For activation='sigmoid': binary cross-entropy, mean over samples of the sum over classes.
        """
        logits = self.logits(features)
        check_targets(targets, len(logits))
        soft = self.soft_targets(targets.to(logits.dtype))
        if self.activation == "sigmoid":
            return mean_cost(F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(-1), weights)
        return mean_cost(-(soft * logits.log_softmax(-1)).sum(-1), weights)

    def soft_targets(self, targets: Tensor) -> Tensor:
        """Return the weights (B, K + 2 * pad) that the logits are trained toward; they sum to 1 for softmax.

        Targets beyond the end anchors count as the end anchors.
        """
        position = self.scale.position(targets) + self.pad
        width = len(self.scale) + 2 * self.pad
        if self.targets == "two-hot":
            return two_hot(position, width)
        if self.targets == "hl-gauss":
            return hl_gauss(position, width, self.sigma)
        weights = blur(position, width, self.sigma)
        return weights / weights.sum(-1, keepdim=True) if self.activation == "softmax" else weights

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the expectation."""
        return torch.promote_types(dtype_of(self.net), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return what is proved of y as a function of the exceedances."""
        if self.decode == "local":
            return local_claims(self._from_local, self._line(), self.scale, self.pad, self.window)
        return expectation_claims(self.from_exceedances, self._line(), self.scale, self.pad, self.trim)

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: y along the exceedances; also with decode='local', where they step back."""
        support = self._line()
        if self.decode == "local":
            walk = exceedance_walk(self._from_local, self.scale.sign, len(support), support, self.scale.ends)
            at = vertices(len(self.scale), self.pad, support)
            return [walk], [vertex_hit(self._from_local, at, self.scale, EXCEEDANCE, self.claims()[-1])]
        found = self.claims()[-1]
        return expectation_trials(self.from_exceedances, support, self.scale, self.pad, found, self.trim)

    def _line(self) -> Tensor:
        return self.support.to(self.runs_in())

    def _from_local(self, c: Tensor) -> Tensor:
        return self._around_peak(weights_of(c).clamp(min=0).log())

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types.

        Raises:
            FitError: the network is a module of your own, which has no description.
        """
        if self.is_custom:
            raise FitError(
                f"Cannot describe head: expected a plain network, got your own {type(self.net).__name__}. "
                "Save its weights and rebuild it in code: "
                "head.load_state_dict(torch.load(path, weights_only=True))"
            )
        return {
            "kind": self.kind,
            **self.numbering(),
            "in_features": self.in_features,
            "anchors": self.scale.numbers,
            "hidden": list(self.hidden),
            "targets": self.targets,
            "sigma": self.sigma,
            "activation": self.activation,
            "decode": self.decode,
            "window": self.window,
            "pad": self.pad,
            # Only where they are used: certificates made before these were thought of stay true.
            **({"trim": self.trim} if self.trim else {}),
            **({"correction": self.correction} if self.correction else {}),
            "dropout": self.dropout,
            "dtype": dtype_name(self),
        }


def padding(targets: str, sigma: float) -> int:
    """Return the classes to add beyond each end so that a smooth target is not cut off: 3 sigma."""
    return 0 if targets == "two-hot" else math.ceil(3 * sigma)


def _check_width(sigma: float, window: int) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise FitError(f"Cannot build head: expected sigma > 0 classes, got {sigma}. Pass sigma=0.75")
    if window < 0:
        raise FitError(f"Cannot build head: expected window >= 0 classes, got {window}. Pass window=4")


def _check_pad(pad: int | None) -> None:
    if pad is not None and (not isinstance(pad, int) or isinstance(pad, bool) or pad < 0):
        raise FitError(
            f"Cannot build head: expected pad to be None or whole classes from 0 up, got {pad!r}. Pass pad=3"
        )


def _checked_correction(width: float) -> float:
    if not (isinstance(width, int | float) and math.isfinite(width) and width >= 1):
        raise FitError(
            f"Cannot build head: expected correction to be None or at least 1 class, got {width}. Pass correction=10.0"
        )
    return float(width)


def _check_trim(trim: float, decode: str) -> None:
    if not isinstance(trim, int | float) or not 0 <= trim < 0.5:
        raise FitError(f"Cannot build head: expected trim from 0 to below 0.5, got {trim}. Pass trim=0.25")
    if trim and decode != "mean":
        raise FitError(
            f"Cannot build head: expected decode='mean' with trim={trim}, got decode={decode!r}. Leave one of them out"
        )


def _near_peak(log_p: Tensor, support: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return log weights and values (B, 2 * window + 1) around each row's peak; weight 0 beyond the ends."""
    offsets = torch.arange(-window, window + 1, device=log_p.device)
    index = log_p.argmax(-1, keepdim=True) + offsets
    inside = index.clamp(0, log_p.shape[-1] - 1)
    near = log_p.gather(-1, inside).masked_fill(index != inside, -math.inf)
    return near, support[inside]
