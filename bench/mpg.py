"""AutoMPG: squared error of a certified monotone network against ridge, a free network and monotone trees.

Ten random splits of the 392 cars into 314 and 78, every method on the same ones, nothing chosen on test rows: one
fixed setting, or, where it says `by CV`, the penalty and size with the least error in 4-fold cross-validation of the
training rows. mpg falls with displacement, horsepower and weight. mlxtend ships the data.
"""

import warnings
from collections import defaultdict

import numpy as np
from scores import paired, table
from sklearn.model_selection import GridSearchCV, train_test_split
from trees import estimators

from forethought.sklearn import AnchorRegressor

SEEDS = 10
COLUMNS = ("cylinders", "displacement", "horsepower", "weight", "acceleration", "year", "origin")
SIGNS = (0, -1, -1, -1, 0, 0, 0)
GRID = {"hidden": [(), (8,)], "alpha": [1e-5, 1e-4, 1e-3]}


def measure() -> list[str]:
    """Measure every method on every split."""
    from mlxtend.data import autompg_data

    x, y = autompg_data()
    x, y = np.asarray(x, float)[:, : len(COLUMNS)], np.asarray(y, float)
    kept = np.isfinite(x).all(1)
    x, y = x[kept], y[kept]
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(SEEDS):
        rows, held, values, truth = train_test_split(x, y, test_size=78, random_state=seed)
        ours = AnchorRegressor(
            "partial", [float(y.min()), float(y.max())], monotonic_cst=SIGNS, random_state=seed, max_iter=150
        )
        chosen = GridSearchCV(ours, GRID, cv=4, scoring="neg_mean_squared_error")
        methods = {
            **{f"peer: {name}": estimator for name, estimator in estimators(SIGNS, seed).items()},
            "PartialMonotone, additive": ours.__class__(**{**ours.get_params(), "alpha": 1e-3}),
            "PartialMonotone, by CV": chosen,
        }
        for name, method in methods.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                method.fit(rows, values)
                off = method.predict(held) - truth
            found[name]["MSE"].append(float(np.square(off).mean()))
            found[name]["mean error, mpg"].append(float(np.abs(off).mean()))
        assert chosen.best_estimator_.certificate_.holds
    peers = [name for name in found if name.startswith("peer") and "free" not in name]
    best = min(peers, key=lambda name: np.mean(found[name]["MSE"]))
    return [
        f"{len(y)} cars",
        *table(found, {"MSE": 2, "mean error, mpg": 2}),
        f"MSE, PartialMonotone by CV against {best}: "
        + paired(found["PartialMonotone, by CV"]["MSE"], found[best]["MSE"], 2),
    ]
