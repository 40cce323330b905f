"""What is decided per service, from forecasts of data not trained on: the choice of model, and score tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.choice import Chosen
from natwork_ray.forecasting.conformal import LEVELS, score_tables, scores
from natwork_ray.forecasting.frames import framed, sliding
from natwork_ray.forecasting.references import Doubles, References
from natwork_ray.forecasting.rows import Rows
from natwork_ray.forecasting.seasonal import period, seasonal_change


@dataclass(frozen=True, eq=False)
class Calibration:
    """What is decided per service; in each table the last row is for services not seen.

    Attributes:
        model: int (S + 1, K, H), index into `choice.MODELS`.
        factor: float64 (S + 1, K, H), what the model's change is multiplied by.
        periods: int (S + 1, K), seasonal period in steps; 0 for none.
        tables: float64 (S + 1, K, H, L), score quantiles of all rows: they make the bands.
        surprise: float64 (S + 1, K, L), score quantiles of normal rows at the shortest horizon: they make likelihoods.
    """

    model: NDArray[np.intp]
    factor: Doubles
    periods: NDArray[np.intp]
    tables: Doubles
    surprise: Doubles


def calibrated(
    rows: Rows,
    chosen: Mapping[tuple[int, int], tuple[Chosen, ...]],
    low: Doubles,
    high: Doubles,
    periods: NDArray[np.intp],
) -> Calibration:
    """Put together choices per target and horizon, and the scores of bands (M, K, H), in units of reach."""
    count, shape = len(rows.services), low.shape[1:]
    model = np.zeros((count + 1, *shape), dtype=np.intp)
    factor = np.zeros((count + 1, *shape))
    tables = np.zeros((count + 1, *shape, len(LEVELS)))
    surprise = np.zeros((count + 1, shape[0], len(LEVELS)))
    for k in range(shape[0]):
        for j in range(shape[1]):
            found = scores(rows.relative(k, j), low[:, k, j], high[:, k, j])
            tables[:, k, j] = score_tables(found, rows.service, count)
            if j == 0:
                usual = np.where(rows.normal, found, np.nan)
                surprise[:, k] = score_tables(usual if not np.isnan(usual).all() else found, rows.service, count)
            model[:, k, j] = [c.model for c in chosen[k, j]]
            factor[:, k, j] = [c.factor for c in chosen[k, j]]
    return Calibration(model, factor, periods, tables, surprise)


def periods_of(series: Sequence[LabelledRun], services: Sequence[str], settings: ForecastSettings) -> NDArray[np.intp]:
    """(S, K) seasonal periods of services in recordings, in steps; 0 for none."""
    out = np.zeros((len(services), len(settings.targets)), dtype=np.intp)
    for s, service in enumerate(services):
        own = [run.values.astype(np.float64) for run in series if run.service == service]
        for k, metric in enumerate(settings.targets):
            out[s, k] = period([v[:, metric] for v in own], settings.window)
    return out


def seasonal_changes(
    series: Sequence[LabelledRun],
    references: References,
    rows: Rows,
    periods: NDArray[np.intp],
    settings: ForecastSettings,
) -> Doubles:
    """(M, K, H) changes that repeat the last period, in units of reach."""
    parts = []
    place = references.rows([run.service for run in series])
    for number, run in enumerate(series):
        if not len(run.kinds):
            continue
        filled = framed(sliding(run.values, settings.window)).filled
        parts.append(
            np.stack(
                [
                    np.stack(
                        [
                            seasonal_change(filled[:, :, metric], np.full(len(filled), periods[place[number], k]), h)
                            for h in settings.horizons
                        ],
                        axis=-1,
                    )
                    for k, metric in enumerate(settings.targets)
                ],
                axis=1,
            )
        )
    return np.asarray(np.concatenate(parts) / rows.reach)
