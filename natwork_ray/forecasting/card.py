"""What a trained forecaster says of itself: settings, what it was trained on, and what it reached there."""

from __future__ import annotations

from typing import Literal

from natwork_ray.domain.telemetry import METRICS
from natwork_ray.domain.values import Backend, value
from natwork_ray.errors import InputError
from natwork_ray.forecasting.bounds import MAX_HORIZON, MAX_HORIZONS, MAX_WINDOW, MIN_WINDOW, TARGETS

FORMAT: Literal["natwork-forecaster/1"] = "natwork-forecaster/1"


@value
class ForecastSettings:
    """Everything that decides a training run besides the data.

    The defaults were chosen once, by hand, on runs 1, 2 and 4 of iAnomaly and on Sock Shop (docs/forecasting.md).

    Attributes:
        seed: of row and column sampling, and of the LSTM's initial weights.
        window: W, samples per window.
        horizons: steps ahead, ascending.
        metrics: what is forecast, by the names of `domain.telemetry.Metric`.
        trees, leaves, learning_rate, min_rows: of the boosters of expected values; `min_rows` per leaf at least.
        band_trees: of the boosters of the band's edges.
        rows: training rows per booster at most; of longer data every n-th row is taken.
        fold_rows: the same for the out-of-fold boosters, from which only choice and calibration are made.
        folds: groups for out-of-fold forecasts, from which the choice and the calibration are made.
        margin: skill below this, out of fold, is not worth leaving naive for.
        lstm_epochs: of Annex A's network; 0 leaves it out of the choice (it needs torch to be served).
    """

    seed: int = 7
    window: int = 48
    horizons: tuple[int, ...] = (1, 3, 10)
    metrics: tuple[str, ...] = tuple(str(m) for m in TARGETS)
    trees: int = 120
    leaves: int = 31
    learning_rate: float = 0.05
    min_rows: int = 50
    band_trees: int = 40
    rows: int = 120_000
    fold_rows: int = 30_000
    folds: int = 4
    margin: float = 0.02
    lstm_epochs: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "seed": (0, 2**31 - 1),
            "window": (MIN_WINDOW, MAX_WINDOW),
            "trees": (1, 512),
            "leaves": (2, 64),
            "learning_rate": (1e-4, 1.0),
            "min_rows": (1, 1_000_000),
            "band_trees": (1, 512),
            "rows": (100, 10_000_000),
            "fold_rows": (100, 10_000_000),
            "folds": (2, 20),
            "margin": (0.0, 1.0),
            "lstm_epochs": (0, 1000),
        }
        for name, (low, high) in ranges.items():
            given = getattr(self, name)
            if not low <= given <= high:
                raise InputError(f"forecast setting {name} = {given}", hint=f"use {low} to {high}")
        if (
            not 1 <= len(self.horizons) <= MAX_HORIZONS
            or list(self.horizons) != sorted(set(self.horizons))
            or self.horizons[0] < 1
            or self.horizons[-1] > MAX_HORIZON
        ):
            raise InputError(
                f"forecast horizons {self.horizons}",
                hint=f"1 to {MAX_HORIZONS} of them, ascending, between 1 and {MAX_HORIZON} steps",
            )
        odd = [m for m in self.metrics if m not in set(METRICS)]
        if odd or not self.metrics or len(set(self.metrics)) != len(self.metrics):
            raise InputError(
                f"forecast metrics {', '.join(self.metrics)[:200]}", hint=f"each once, of {', '.join(METRICS)}"
            )

    @property
    def targets(self) -> tuple[int, ...]:
        """Places of the forecast metrics in `METRICS`."""
        return tuple([str(m) for m in METRICS].index(name) for name in self.metrics)


@value
class ForecasterCard:
    """Metadata of a forecaster.

    `services` are those with a reference, a choice and a calibration of their own. `skill` is the out-of-fold skill of
    the choice against naive, mean over services, at the longest horizon and per metric: slightly optimistic, since the
    choice was made on the same forecasts.
    """

    format: Literal["natwork-forecaster/1"] = FORMAT
    settings: ForecastSettings
    trained_on: Backend
    step_s: float
    services: tuple[str, ...]
    runs: int
    samples: int
    data_sha256: str
    lightgbm_version: str
    skill: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.step_s < 1e6 or self.runs < 1 or self.samples < 1:
            raise InputError("forecaster's card holds values that no training gives", hint="train it anew")
        if len(set(self.services)) != len(self.services) or len(self.skill) != len(self.settings.metrics):
            raise InputError("forecaster's card does not fit together", hint="train it anew")
