"""Diamonds: a certified monotone network against monotone trees, by error, and by steps the wrong way that were found.

Ten draws of 4,000 training and 10,000 test rows of the 53,940 that plotnine ships; every method predicts log(price),
scored in it and in dollars; one fixed setting each. Price rises with carat, clarity and colour. Steps: in all test
rows, one named column a time is raised, to the next float or by a random step, and an answer that falls is counted.
"""

import time
import warnings
from collections import defaultdict

import numpy as np
from scores import paired, table
from trees import estimators

from forethought.sklearn import AnchorRegressor

SEEDS, TRAIN, TEST = 10, 4_000, 10_000
COLUMNS = ("carat", "cut", "color", "clarity", "depth", "table", "x", "y", "z")
SIGNS = (1, 0, 1, 1, 0, 0, 0, 0, 0)


def measure() -> list[str]:
    """Measure every method on every draw."""
    x, price = _rows()
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        order = random.permutation(len(price))
        rows, held = order[:TRAIN], order[TRAIN : TRAIN + TEST]
        ours = AnchorRegressor(
            "partial",
            np.log([price.min(), price.max()]).tolist(),
            hidden=(32, 32),
            monotonic_cst=SIGNS,
            keypoints=32,
            alpha=4e-7,
            random_state=seed,
            max_iter=600,
        )
        methods = {f"peer: {name}": estimator for name, estimator in estimators(SIGNS, seed).items()}
        for name, method in {**methods, "PartialMonotone 32, 32": ours}.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = time.process_time()
                method.fit(x[rows], np.log(price[rows]))
                found[name]["s to fit"].append(time.process_time() - start)
                answers = method.predict(x[held])
                falls, steps = _falls(method, x[held], np.random.default_rng(seed))
            found[name]["RMSE of log"].append(float(np.sqrt(np.square(answers - np.log(price[held])).mean())))
            found[name]["mean error, $"].append(float(np.abs(np.exp(answers) - price[held]).mean()))
            found[name]["falls, % of steps"].append(100 * falls / steps)
        assert ours.certificate_.holds
    proofs = [f"{name}: {sum(s['falls, % of steps']):.3g}" for name, s in found.items()]
    mine, theirs = (found[name] for name in ("PartialMonotone 32, 32", "peer: HistGradientBoosting, monotonic_cst"))
    return [
        *table(found, {"RMSE of log": 4, "mean error, $": 0, "falls, % of steps": 3, "s to fit": 2}),
        "RMSE of log, PartialMonotone against HistGradientBoosting with monotonic_cst: "
        + paired(mine["RMSE of log"], theirs["RMSE of log"], 4),
        f"{steps * SEEDS:,} steps a method",
        "summed falls: " + "; ".join(proofs),
    ]


def _rows() -> tuple[np.ndarray, np.ndarray]:
    """Return columns, ordered grades as numbers from worst to best, and prices in dollars."""
    from plotnine.data import diamonds

    frame = diamonds.copy()
    frame["color"] = -frame["color"].cat.codes  # D, the first, is the best
    for grade in ("cut", "clarity"):
        frame[grade] = frame[grade].cat.codes
    return frame[list(COLUMNS)].to_numpy(float), frame["price"].to_numpy(float)


def _falls(method: object, x: np.ndarray, random: np.random.Generator) -> tuple[int, int]:
    """Raise one named column of each row, and count answers that fall."""
    column = random.choice(np.flatnonzero(SIGNS), len(x))
    falls = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = method.predict(x)
        for is_next in (True, False):
            raised, at = x.copy(), np.arange(len(x))
            here = x[at, column]
            raised[at, column] = np.nextafter(here, np.inf) if is_next else here + random.exponential(0.3, len(x))
            falls += int((method.predict(raised) < before).sum())
    return falls, 2 * len(x)
