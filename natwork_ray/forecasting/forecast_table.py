"""The rows that `natwork reproduce forecast` prints, and the sums they are made of (see `forecasting.reproduce`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natwork_ray.domain.telemetry import Metric
from natwork_ray.domain.values import value
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.references import Doubles

NAIVE, SEASONAL, RIDGE = "naive", "seasonal-naive", "ridge-ar"
LSTM_LEVEL, LSTM_CHANGE, LIGHTGBM, AUTOMATIC = "lstm-level", "lstm-change", "lightgbm", "automatic"
MODEL_NAMES = (NAIVE, SEASONAL, RIDGE, LSTM_LEVEL, LSTM_CHANGE, LIGHTGBM, AUTOMATIC)


@value
class PublishedForecast:
    """A figure of D3.3 section 6.3, as printed. The data are not public, nor is the split."""

    model: str = "D3.3 LSTM"
    metric: str
    horizon: int
    horizon_s: float
    mae: float
    rmse: float
    r2: float
    note: str = ""


PUBLISHED = (
    PublishedForecast(metric=str(Metric.CPU), horizon=10, horizon_s=10.0, mae=0.0028, rmse=0.0117, r2=0.9769),
    PublishedForecast(
        metric=str(Metric.MEMORY_RSS),
        horizon=3,
        horizon_s=3.0,
        mae=23815.3061,
        rmse=16443.2474,
        r2=0.9056,
        note="impossible as printed: an RMSE is never below its MAE (ADR 0008)",
    ),
)


@value
class ForecastRow:
    """One model on one series at one horizon, over all held-out runs.

    Attributes:
        data: name of the data set.
        model: one of `MODEL_NAMES`.
        split: always `by run`.
        metric, horizon, horizon_s: what was forecast, and how far ahead in steps and seconds.
        mae, rmse: in the metric's SI unit, over all samples.
        r2, naive_r2: median over cells.
        skill: pooled; skill_mean, skill_min: over cells.
        worst: container of the lowest skill.
        cells: how many.
        coverage: of the adaptive 90 % band, coverage_split: of the split one; None for models without bands.
    """

    data: str
    model: str
    split: str
    metric: str
    horizon: int
    horizon_s: float
    mae: float
    rmse: float
    r2: float
    naive_r2: float
    skill: float
    skill_mean: float
    skill_min: float
    worst: str
    cells: int
    coverage: float | None = None
    coverage_split: float | None = None


@value
class ForecastCell:
    """The automatic choice on one container in one held-out run at one horizon."""

    data: str
    run: str
    container: str
    metric: str
    horizon: int
    model: str
    skill: float
    coverage: float
    coverage_split: float


@value
class ForecastSummary:
    """What issue and docs quote of one data set: the automatic choice over all cells of both metrics.

    `skill_at_10` is the mean over containers, metrics and held-out runs at 10 steps; None without that horizon.
    """

    data: str
    skill_min: float
    skill_mean: float
    skill_at_10: float | None
    coverage: float
    coverage_split: float


@value
class ForecastTable:
    """Everything that `natwork reproduce forecast` prints."""

    rows: tuple[ForecastRow, ...]
    published: tuple[PublishedForecast, ...]
    summary: tuple[ForecastSummary, ...]
    cells: tuple[ForecastCell, ...]


@dataclass(eq=False)
class ErrorSums:
    """Of one model, metric and horizon in one cell. `unit` is the container's spread in training."""

    n: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    naive: float = 0.0
    total: float = 0.0
    total_squared: float = 0.0
    unit: float = 1.0

    def add(self, truth: Doubles, newest: Doubles, forecast: Doubles) -> None:
        """Outcomes, the newest samples when they were forecast, and the forecasts, all (M,)."""
        self.n += len(truth)
        self.absolute += float(np.abs(forecast - truth).sum())
        self.squared += float(((forecast - truth) ** 2).sum())
        self.naive += float(((newest - truth) ** 2).sum())
        # Around a fixed point near the data: sums of squares of bytes would drown the spread in rounding.
        self.total += float((truth / self.unit).sum())
        self.total_squared += float(((truth / self.unit) ** 2).sum())

    @property
    def skill(self) -> float:
        """1 - MSE / MSE of naive. Where naive never errs: 0 for a forecast that never errs either, else -1."""
        if self.naive > 0:
            return 1.0 - self.squared / self.naive
        return 0.0 if self.squared == 0 else -1.0

    def r2(self, squared: float) -> float:
        """R² of a model with this sum of squared errors; 0 where the outcomes do not vary."""
        spread = (self.total_squared - self.total**2 / self.n) * self.unit**2
        return 1.0 - squared / spread if spread > 0 else 0.0


# Model, metric place, horizon place, container, held-out run.
Key = tuple[str, int, int, str, str]


@dataclass(eq=False)
class Measured:
    """What was measured on one data set, to be added to.

    Attributes:
        data: name of the data set.
        step_s: seconds between its samples.
        settings: horizons and metrics.
        sums: errors of every model in every cell.
        split: outcomes inside the split-calibrated band, and outcomes, per cell of the automatic choice.
        adaptive: the same of the adaptive band.
        chosen: the model that was chosen per cell.
    """

    data: str
    step_s: float
    settings: ForecastSettings
    sums: dict[Key, ErrorSums]
    split: dict[Key, list[int]]
    adaptive: dict[Key, list[int]]
    chosen: dict[Key, str]


def _share(counts: Sequence[list[int]]) -> float:
    total = sum(n for _, n in counts)
    return sum(hits for hits, _ in counts) / total if total else 0.0


def rows_of(measured: Measured) -> list[ForecastRow]:
    """One row per metric, horizon and model that was measured."""
    settings = measured.settings
    out = []
    for k, metric in enumerate(settings.metrics):
        for j, h in enumerate(settings.horizons):
            for model in MODEL_NAMES:
                own = {key: s for key, s in measured.sums.items() if key[:3] == (model, k, j) and s.n}
                if not own:
                    continue
                skills = {key: s.skill for key, s in own.items()}
                worst = min(skills, key=lambda key: skills[key])
                n = sum(s.n for s in own.values())
                counted = [measured.split[key] for key in own if key in measured.split]
                adaptive = [measured.adaptive[key] for key in own if key in measured.adaptive]
                relative = sum(s.squared / s.unit**2 for s in own.values())
                out.append(
                    ForecastRow(
                        data=measured.data,
                        model=model,
                        split="by run",
                        metric=metric,
                        horizon=h,
                        horizon_s=h * measured.step_s,
                        mae=sum(s.absolute for s in own.values()) / n,
                        rmse=float(np.sqrt(sum(s.squared for s in own.values()) / n)),
                        r2=float(np.median([s.r2(s.squared) for s in own.values()])),
                        naive_r2=float(np.median([s.r2(s.naive) for s in own.values()])),
                        skill=1.0 - relative / max(sum(s.naive / s.unit**2 for s in own.values()), 1e-300),
                        skill_mean=float(np.mean(list(skills.values()))),
                        skill_min=skills[worst],
                        worst=worst[3],
                        cells=len(own),
                        coverage=_share(adaptive) if counted else None,
                        coverage_split=_share(counted) if counted else None,
                    )
                )
    return out


def cells_of(measured: Measured) -> list[ForecastCell]:
    """The automatic choice, cell by cell."""
    settings = measured.settings
    return [
        ForecastCell(
            data=measured.data,
            run=key[4],
            container=key[3],
            metric=settings.metrics[key[1]],
            horizon=settings.horizons[key[2]],
            model=measured.chosen[key],
            skill=cell.skill,
            coverage=_share([measured.adaptive[key]]),
            coverage_split=_share([measured.split[key]]),
        )
        for key, cell in sorted(measured.sums.items())
        if key[0] == AUTOMATIC and cell.n
    ]


def summary_of(measured: Measured, cells: Sequence[ForecastCell]) -> ForecastSummary:
    """What one data set comes to."""
    at_10 = [c.skill for c in cells if c.horizon == 10]
    return ForecastSummary(
        data=measured.data,
        skill_min=min(c.skill for c in cells),
        skill_mean=float(np.mean([c.skill for c in cells])),
        skill_at_10=float(np.mean(at_10)) if at_10 else None,
        coverage=_share(list(measured.adaptive.values())),
        coverage_split=_share(list(measured.split.values())),
    )
