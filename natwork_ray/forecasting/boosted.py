"""LightGBM on lags: one booster of the expected change, and one of each edge of the band, per metric and horizon.

The target is the change from the newest sample, in units of what is usual for that service and horizon (`reach`), so
that a booster that knows nothing says "no change" and is as good as naive. Boosters of the expected value have linear
leaves, which follow a ramp further than any sample has gone. Changes beyond `CLIP` units are cut in training and never
forecast: one container that grew by a gigabyte once must not set the scale of all leaves.

    >>> boosters = fit_boosters(columns, change, metric, settings, most=settings.rows)
    >>> boosters.change(columns), boosters.edges(columns)     # (N,) each, in units of reach
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.features import feature_names
from natwork_ray.forecasting.frames import Floats
from natwork_ray.forecasting.references import Doubles
from natwork_ray.trees.boosters import Trees, train_text, trees_of

LOW, HIGH = 0.05, 0.95
CLIP = 10.0


@dataclass(frozen=True, eq=False)
class Boosters:
    """The boosters of one metric at one horizon, as text and ready to run."""

    texts: tuple[str, str, str]
    expected: Trees
    low: Trees
    high: Trees

    @classmethod
    def of(cls, texts: tuple[str, str, str], names: tuple[str, ...]) -> Boosters:
        """Boosters from their texts, which are checked.

        Raises:
            InputError: a text is not one of ours.
            PreconditionError: LightGBM cannot be loaded.
        """
        expected, low, high = (trees_of(text, feature_names=names) for text in texts)
        return cls(texts, expected, low, high)

    def change(self, columns: Floats) -> Doubles:
        """Expected change (N,) in units of reach."""
        return np.asarray(np.clip(self.expected(columns), -CLIP, CLIP))

    def edges(self, columns: Floats) -> tuple[Doubles, Doubles]:
        """The band's lower and upper edge (N,), as changes in units of reach, before calibration; in order."""
        low, high = self.low(columns), self.high(columns)
        return np.minimum(low, high), np.maximum(low, high)


def fit_boosters(
    columns: Floats,
    change: Doubles,
    metric: int,
    settings: ForecastSettings,
    *,
    most: int,
) -> Boosters:
    """Train on columns (M, F) and changes (M,) in units of reach; rows beyond `most` are thinned out evenly."""
    names = feature_names(metric, settings.window)
    stride = -(-len(change) // most)
    columns, change = columns[::stride], np.clip(change[::stride], -CLIP, CLIP)
    shared = {
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.min_rows,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
    }
    expected = train_text(
        columns,
        change,
        {
            **shared,
            "objective": "regression",
            "learning_rate": settings.learning_rate,
            "linear_tree": True,
            "linear_lambda": 1.0,
        },
        feature_names=names,
        trees=settings.trees,
        seed=settings.seed,
    )
    edges = [
        train_text(
            columns,
            change,
            {**shared, "objective": "quantile", "alpha": alpha, "learning_rate": 0.1},
            feature_names=names,
            trees=settings.band_trees,
            seed=settings.seed,
        )
        for alpha in (LOW, HIGH)
    ]
    return Boosters.of((expected, edges[0], edges[1]), names)
