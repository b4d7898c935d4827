"""Heads on CREPE's features against CREPE's own readings, ridge and a free network, by distance in cents.

Ten deals of recorded instruments (src/forethought/demo/notes.py): seen instruments by other takes, unseen ones whole.
Two protocols: `any pitch` trains on continuous targets; `semitones` trains, and chooses its epoch, on notes that are
exact semitones, and is tested between them and along a glissando. The epoch is the best on validation notes; settings
were fixed before the first run, those of `trim` and `correction` on deals of other seeds (100 to 103), and nothing is
chosen on test notes of these deals. FORETHOUGHT_BENCH_CREPE=full takes the large model,
FORETHOUGHT_BENCH_SEEDS another number of deals, FORETHOUGHT_BENCH_HEADS ("trim,correction") only heads that have one of
these in their name, beside the peers that train nothing. Features are extracted once into FORETHOUGHT_BENCH_STORE.
"""

import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass

import torch
from scores import table
from torch import Tensor, nn

import forethought as ft
from forethought.demo.crepe import CENTS, argmax_cents, load_crepe, weighted_cents
from forethought.demo.notes import A4_CENTS, glissando, make_splits
from forethought.heads import Head, HistogramHead, as_regressor

SEEDS = int(os.environ.get("FORETHOUGHT_BENCH_SEEDS", "10"))
CAPACITY = os.environ.get("FORETHOUGHT_BENCH_CREPE", "tiny")
TRAIN, VALIDATION, TEST, GLIDE = 2000, 400, 500, 151
SEMITONES = (A4_CENTS + 100 * torch.arange(-45, 26, dtype=torch.float64)).tolist()  # 32.7 to 1865 Hz
PROVED = {f"{name}, CREPE's layer" for name in ("AnchorSpline", "HistogramHead mean", "HistogramHead trim")}
Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Deal:
    """Features and cents of one deal, by side."""

    train: dict[str, Rows]
    validation: dict[str, Rows]
    test: dict[str, Rows]


def measure() -> list[str]:
    """Measure both protocols."""
    store = os.environ.get("FORETHOUGHT_BENCH_STORE") or tempfile.mkdtemp()
    model = load_crepe(CAPACITY)
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for seed in range(SEEDS):
        deal = _deal(model, seed, store)
        for protocol in ("any pitch", "semitones"):
            for name, answer in _answers(model.get_submodule("classifier"), deal, protocol, seed).items():
                for side, (x, cents) in deal.test.items():
                    _add(found[f"{protocol}, {side}"][name], answer(x).double(), cents.double())
    digits = {"mean, cents": 1, "median": 2, "within 50, %": 1, "25": 1, "10": 1, "5": 1, "falls": 1}
    return [line for title, rows in found.items() for line in (f"{title}:", *table(rows, digits))]


def _add(scores: dict[str, list[float]], answers: Tensor, cents: Tensor) -> None:
    off = (answers - cents).abs()
    scores["mean, cents"].append(off.mean().item())
    scores["median"].append(off.median().item())
    for limit, column in ((50, "within 50, %"), (25, "25"), (10, "10"), (5, "5")):
        scores[column].append((off <= limit).double().mean().item() * 100)
    if len(cents) == GLIDE:
        scores["falls"].append(float((answers.diff() < 0).sum()))


def _deal(model: nn.Module, seed: int, store: str) -> Deal:
    sizes = (TRAIN, VALIDATION, TEST, TEST)
    free, exact = make_splits(sizes, seed), make_splits((TRAIN, VALIDATION, 0, 0), seed, semitones=True)
    glide = glissando(seed, rows=GLIDE)
    split = ft.split(model, free.train.audio[:2])

    def rows(frames) -> Rows:  # noqa: ANN001
        kept = ft.extract(split, (frames.audio, frames.cents), store, batch_size=256, progress=False)
        values, cents = zip(*kept.batches(4096), strict=True)
        return torch.cat(values), torch.cat(cents)

    return Deal(
        {"any pitch": rows(free.train), "semitones": rows(exact.train)},
        {"any pitch": rows(free.validation), "semitones": rows(exact.validation)},
        {"seen": rows(free.test), "unseen": rows(free.unseen), "glissando": rows(glide)},
    )


def _heads(classifier: nn.Module, protocol: str) -> dict[str, dict[str, object]]:
    """Make what is trained, with its step size; the names of peers begin with 'peer'."""
    width = classifier.in_features
    classes = CENTS.tolist() if protocol == "any pitch" else SEMITONES
    blur = {"targets": "blur", "sigma": 1.25, "activation": "sigmoid", "decode": "local"}

    def warm(kind: str, lr: float, **options: object) -> dict[str, object]:
        return {"module": as_regressor(classifier, CENTS, kind, **options), "lr": lr}

    made = {
        "peer: DEX, softmax expectation": {"module": _Dex(width, classes), "lr": 3e-3},
        "peer: MLP 256": {"module": ft.heads.MLPHead(width, CENTS, hidden=(256,)), "lr": 3e-3},
        "HistogramHead local, CREPE's layer": warm("histogram", 1e-3, **blur),
        "HistogramHead local, correction": warm("histogram", 1e-3, **blur, correction=10.0),
        "HistogramHead trim, CREPE's layer": warm("histogram", 1e-3, targets="hl-gauss", trim=0.25),
        "HistogramHead mean, CREPE's layer": warm("histogram", 1e-3, targets="hl-gauss", sigma=1.25),
        "HistogramHead local, new": {
            "module": HistogramHead(width, CENTS, targets="hl-gauss", sigma=1.25, decode="local"),
            "lr": 3e-3,
        },
        "AnchorSpline, CREPE's layer": warm("pwl", 1e-3, activation="sigmoid"),
        "AnchorSpline mlp, new": {"module": ft.heads.AnchorSpline(width, CENTS, "mlp", hidden=(256,)), "lr": 3e-3},
    }
    wanted = os.environ.get("FORETHOUGHT_BENCH_HEADS", "")
    return {name: head for name, head in made.items() if any(part in name for part in wanted.split(","))}


class _Dex(nn.Module):
    """Rothe, Timofte and Van Gool 2015: classes by cross-entropy on the nearest one, then the expectation."""

    def __init__(self, width: int, classes: list[float]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(classes))
        self.register_buffer("classes", torch.tensor(classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).softmax(-1) @ self.classes

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        nearest = (targets[:, None] - self.classes).abs().argmin(-1)
        return nn.functional.cross_entropy(self.linear(x), nearest)


def _answers(classifier: nn.Module, deal: Deal, protocol: str, seed: int) -> dict[str, object]:
    train, validation = deal.train[protocol], deal.validation[protocol]
    torch.manual_seed(seed)
    options = {"epochs": 60, "batch_size": 256, "schedule": "cosine", "seed": seed, "progress": False}
    trained = ft.fit(train, validation, _heads(classifier, protocol), **options)
    heads = {result.name: result.head for result in trained}
    for name in PROVED & heads.keys():
        head = heads[name]
        assert isinstance(head, Head)
        assert head.certify().holds
    frozen = {
        "peer: CREPE, argmax": lambda x: argmax_cents(classifier(x).sigmoid()),
        "peer: CREPE, weighted average": lambda x: weighted_cents(classifier(x).sigmoid()),
        "peer: ridge": _ridge(*train),
    }
    with_names = sorted(heads.items(), key=lambda item: (not item[0].startswith("peer"), item[0]))
    return {name: torch.no_grad()(answer) for name, answer in (*frozen.items(), *with_names)}


def _ridge(x: Tensor, cents: Tensor) -> object:
    from sklearn.linear_model import RidgeCV  # its penalty is chosen by leaving out one training row at a time

    fitted = RidgeCV(alphas=[10.0**k for k in range(-3, 4)]).fit(x.double().numpy(), cents.double().numpy())
    return lambda rows: torch.from_numpy(fitted.predict(rows.double().numpy()))
