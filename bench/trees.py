"""Estimators that other libraries have for values that rise or fall with named columns, with their own defaults."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def estimators(signs: Sequence[int], seed: int) -> Mapping[str, Any]:
    """Make a linear model, a free network, free trees, and three libraries' monotone trees, one thread each."""
    from lightgbm import LGBMRegressor
    from xgboost import XGBRegressor

    trees = {"random_state": seed, "n_jobs": 1, "monotone_constraints": tuple(signs)}
    network = MLPRegressor(hidden_layer_sizes=(64, 64), random_state=seed, early_stopping=True, max_iter=500)
    return {
        "ridge": make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-3, 3, 7))),
        "MLP 64, 64": make_pipeline(
            StandardScaler(), TransformedTargetRegressor(network, transformer=StandardScaler())
        ),
        "HistGradientBoosting, free": HistGradientBoostingRegressor(random_state=seed),
        "HistGradientBoosting, monotonic_cst": HistGradientBoostingRegressor(
            random_state=seed, monotonic_cst=list(signs)
        ),
        "XGBoost, monotone_constraints": XGBRegressor(**trees),
        "LightGBM, monotone_constraints": LGBMRegressor(**trees, verbose=-1),
    }
