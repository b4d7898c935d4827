"""AnchorCalibrator: any frozen score becomes a value, without training."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forethought.errors import FitError, ShapeError
from forethought.heads.anchors import Anchors
from forethought.heads.certificate import LATENT, Claim
from forethought.heads.falsification import Hit, Walk
from forethought.heads.interface import Head, places_of
from forethought.heads.latents import cannot_describe, read_latent
from forethought.heads.layers import dtype_of, robust_loss
from forethought.heads.line import AnchorCurve
from forethought.heads.options import check_option

_APART = 0.02  # of the classes' mean distance: how far apart classes are put whose scores are in the wrong order


class AnchorCalibrator(Head):
    """The monotone curve through (middle score of class k, anchor k): y = A(score), fitted in one pass.

    Often all that is needed: a score that rises with the class, such as a classifier's expected class, is read off
    against the anchors. `calibrate` finds where each class lies on the score; a class without samples is placed between
    its neighbours, and classes whose middles are out of order are pooled (as isotonic regression does) and put side by
    side: `missing` and `pooled` name them. `certify` proves y monotone in the score.

    Args:
        anchors: One value per class, K >= 2, ascending or descending.
        score: A frozen module (B, ...) -> (B,) or (B, 1); None: the features are the scores, (B, 1).
        between: 'linear' or 'rational' pieces.
        extrapolate: Beyond the end classes' middles: 'clamp' or 'linear'.
        dtype: Of the numbers, float32 or wider.

    Raises:
        AnchorError: unusable anchors.
        FitError: on `calibrate`, scores that fall as the class rises, or fewer than two classes with samples.

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.2, 0.9, 1.1, 3.9, 4.0]), torch.tensor([0, 0, 1, 1, 2, 2])
        >>> head = AnchorCalibrator(anchors=[60.0, 62.0, 67.0]).calibrate(scores[:, None], labels)
        >>> head(torch.tensor([[0.15], [1.0], [3.95]])).tolist()
        [60.0, 62.0, 67.0]
    """

    kind: ClassVar[str] = "calibrator"
    free: ClassVar[tuple[str, ...]] = ("score",)

    def __init__(
        self,
        anchors: Sequence[float] | Tensor,
        score: nn.Module | None = None,
        *,
        between: str = "linear",
        extrapolate: str = "clamp",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.line = AnchorCurve(anchors, knots="placed", between=between, extrapolate=extrapolate, dtype=dtype)
        self.score = nn.Flatten(0) if score is None else score
        self.is_custom = score is not None
        self.missing: tuple[int, ...] = ()
        self.pooled: tuple[tuple[int, ...], ...] = ()

    @property
    def scale(self) -> Anchors:
        """The anchors, ascending."""
        return self.line.scale

    @property
    def extrapolate(self) -> str:
        """What y does beyond the end anchors: 'clamp' or 'linear'."""
        return self.line.extrapolate

    @property
    def anchors(self) -> Tensor:
        """The anchors (K,) in the order of the classes."""
        return self.scale.given

    @property
    def knots(self) -> Tensor:
        """The scores (K,), strictly ascending, that stand for the classes."""
        return self.line.knots

    def calibrate(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        middle: str = "median",
    ) -> "AnchorCalibrator":
        """Place the classes on the score, and return self.

        Args:
            features: (N, ...), as the score takes them.
            labels: (N,) class indices from 0 to K - 1: class k is placed at the middle of its scores.
            targets: In their stead, (N,) values in the anchors' units: class k is placed where isotonic regression of
                the targets on the scores takes the value of its anchor.
            middle: 'median' or 'mean' of a class's scores.
        """
        check_option("middle", middle, ("median", "mean"))
        if (labels is None) == (targets is None):
            raise FitError("Cannot calibrate: expected labels or targets, one of them. head.calibrate(scores, labels)")
        with torch.no_grad():
            scores = self.latent(features).double().cpu()
        given = targets if labels is None else labels
        if given is None or given.shape != scores.shape or not scores.isfinite().all():
            got = "scores that are not finite" if given is None or given.shape == scores.shape else tuple(given.shape)
            raise FitError(
                f"Cannot calibrate: expected finite scores and as many labels or targets, ({len(scores)},), got {got}. "
                "Pass one a row"
            )
        if labels is not None:
            labels = labels if self.classes is None else places_of(labels, self.classes, len(self.scale))
            self._place_classes(scores, _checked_labels(labels, len(self.scale)), middle)
        else:
            self._place_values(scores, given.detach().double().cpu() * self.scale.sign)
        return self

    def _place_classes(self, scores: Tensor, labels: Tensor, middle: str) -> None:
        of_class = [scores[labels == k] for k in range(len(self.scale))]
        present = [k for k, held in enumerate(of_class) if len(held)]
        middles = [float(of_class[k].mean() if middle == "mean" else of_class[k].quantile(0.5)) for k in present]
        blocks = pool(middles, [len(of_class[k]) for k in present])
        _check_rising(blocks)
        number = range(len(self.scale)) if self.classes is None else self.classes
        self.pooled = tuple(tuple(number[present[i]] for i in block) for block, _ in blocks if len(block) > 1)
        self.missing = tuple(number[k] for k, held in enumerate(of_class) if not len(held))
        anchors = self.scale.values.double().cpu()
        places = torch.tensor(_spread(blocks), dtype=torch.float64)
        self.line.place(
            _straight_through(anchors[present], places, anchors).index_copy(0, torch.tensor(present), places)
        )

    def _place_values(self, scores: Tensor, targets: Tensor) -> None:
        unique, group = scores.unique(return_inverse=True)
        sizes = torch.zeros_like(unique).index_add_(0, group, torch.ones_like(scores))
        means = torch.zeros_like(unique).index_add_(0, group, targets) / sizes
        blocks = pool(means.tolist(), sizes.tolist())
        _check_rising(blocks)
        total = torch.stack([(unique[block] * sizes[block]).sum() / sizes[block].sum() for block, _ in blocks])
        values = torch.tensor([value for _, value in blocks], dtype=torch.float64)
        self.pooled, self.missing = (), ()
        self.line.place(_straight_through(values, total, self.scale.values.double().cpu()))

    def latent(self, features: Tensor) -> Tensor:
        """Return the scores (B,), float32 or wider."""
        if not self.is_custom and features.shape[1:].numel() != 1:
            raise ShapeError(
                f"Cannot read scores: expected one a sample, (B, 1), got {tuple(features.shape)}. "
                "Pass features[:, :1], or the module that makes the score: AnchorCalibrator(anchors, score=module)"
            )
        s = read_latent(self.score, features, None)
        return s.to(torch.promote_types(s.dtype, self.scale.values.dtype))

    def curve(self, s: Tensor) -> Tensor:
        """Return y = A(s), the same shape as s, in the anchors' units. Undone by `inverse`."""
        y: Tensor = self.line(s)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        """Return the score (same shape as y) at which the curve takes the value y."""
        return self.line.inverse(y)

    def forward(self, features: Tensor) -> Tensor:
        """Predict y (B,) in the anchors' units."""
        return self.curve(self.latent(features))

    def predict_class(self, features: Tensor) -> Tensor:
        """Return the index (B,) of the class whose knot is nearest to the score."""
        return self.numbered(self.line.nearest(self.latent(features)))

    def loss(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the Huber loss against targets (B,), a scalar: a measure, as nothing here trains but the score."""
        y = self.line.continued(self.latent(features))
        return robust_loss(y, targets * self.scale.sign, self.scale, weights)

    def runs_in(self) -> torch.dtype:
        """Return the floating type of the curve."""
        return torch.promote_types(dtype_of(self.score), self.scale.values.dtype)

    def claims(self) -> list[Claim]:
        """Return what is proved of y as a function of the score."""
        return self.line.claims(LATENT, self.runs_in())

    def trials(self) -> tuple[list[Walk], list[Hit]]:
        """Return what `falsify` runs: the curve along the score, and at its knots."""
        dtype = self.runs_in()
        return [self.line.walk(LATENT, dtype, self.curve)], [self.line.hit(LATENT, dtype, self.curve)]

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs, as JSON types.

        Raises:
            FitError: the score is a module of your own, which has no description.
        """
        if self.is_custom:
            raise cannot_describe(self.score)
        return {
            "kind": self.kind,
            **self.numbering(),
            "anchors": self.scale.numbers,
            "between": self.line.between,
            "extrapolate": self.line.extrapolate,
            "dtype": str(self.scale.values.dtype).removeprefix("torch."),
        }


def _checked_labels(labels: Tensor, classes: int) -> Tensor:
    is_whole = not labels.is_floating_point() and labels.dtype != torch.bool and not labels.is_complex()
    labels = labels.detach().cpu()
    if not is_whole or not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise FitError(
            f"Cannot calibrate: expected class indices from 0 to {classes - 1}, got {labels.dtype} "
            f"{tuple(labels.shape)}. Pass labels.long(), or values as targets="
        )
    return labels


def pool(values: Sequence[float], weights: Sequence[float]) -> list[tuple[list[int], float]]:
    """Pool neighbours that are out of order, or equal, into blocks with their weighted mean: isotonic regression."""
    blocks: list[tuple[list[int], float, float]] = []
    for i, (value, weight) in enumerate(zip(values, weights, strict=True)):
        block = [i]
        while blocks and value <= blocks[-1][1]:
            before, mean, held = blocks.pop()
            value = (mean * held + value * weight) / (held + weight)
            weight += held
            block = before + block
        blocks.append((block, value, weight))
    return [(block, value) for block, value, _ in blocks]


def _check_rising(blocks: Sequence[object]) -> None:
    if len(blocks) < 2:
        raise FitError(
            "Cannot calibrate: expected scores of at least 2 classes that rise with the class, got scores that fall or "
            "stay, or of one class. Pass more samples, or a score that rises: its negative"
        )


def _spread(blocks: Sequence[tuple[Sequence[int], float]]) -> list[float]:
    """Return a place for each class: those of one block side by side, close around its mean."""
    means = [mean for _, mean in blocks]
    nearest = min(b - a for a, b in pairwise(means))
    total = sum(len(block) for block, _ in blocks)
    apart = min(_APART * (means[-1] - means[0]) / total, nearest / (2 * total))
    return [mean + apart * (i - (len(block) - 1) / 2) for block, mean in blocks for i in range(len(block))]


def _straight_through(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Return the broken line through rising points (x, y), its ends continued."""
    slopes = y.diff() / x.diff()
    piece = (torch.searchsorted(x, at, right=True) - 1).clamp(0, len(slopes) - 1)
    return y[piece] + slopes[piece] * (at - x[piece])
