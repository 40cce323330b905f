"""Services that a forecaster was not trained on: what one normal hour teaches, without retraining.

The hour was not trained on, so it is also a test. From it come what is usual for the service (`references`), the choice
between naive and the boosters (`choice`), and the scores that calibrate its bands (`conformal`; the fleet's, where the
hour is too short for scores of its own).

The choice wants several recordings and there is one: the hour is cut into eighths that stand for recordings, and
quarters that stand for runs, so that the boosters are chosen only if no quarter of the hour speaks against them. Even
so a normal hour says nothing of how a service behaves when it is not normal: factors are capped at `MOST`, and the
floor holds on average, not in every container (docs/forecasting.md). An hour is too short to trust a season.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError
from natwork_ray.forecasting.boosted import Boosters
from natwork_ray.forecasting.bounds import MAX_SERVICES
from natwork_ray.forecasting.calibration import Calibration, calibrated
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.choice import BOOSTED, choose
from natwork_ray.forecasting.conformal import MIN_SCORES
from natwork_ray.forecasting.references import References, learn
from natwork_ray.forecasting.rows import rows_of

_RECORDINGS = 8
_RUNS = 4
# What a factor may be at most after one normal hour.
MOST = 0.5


def commission(
    window: TelemetryWindow,
    references: References,
    boosters: Mapping[tuple[int, int], Boosters],
    calibration: Calibration,
    settings: ForecastSettings,
) -> tuple[References, Calibration]:
    """References and calibration with the services of a normal hour (at least one container) added or replaced.

    Raises:
        InputError: too many services, or infinite or negative samples.
    """
    runs = [
        LabelledRun(
            service=service,
            run="commissioning",
            backend=Backend.REPLAYED,
            step_s=window.step_s,
            values=values,
            kinds=np.zeros(window.length, dtype=np.int8),
            commissioning=window.length,
        )
        for service, values in zip(window.services, window.values, strict=True)
    ]
    new = learn(runs, settings.targets, settings.horizons)
    joined = references.joined(new)
    if len(joined.services) > MAX_SERVICES:
        raise InputError(f"{len(joined.services)} services", hint=f"at most {MAX_SERVICES} per forecaster")
    rows = rows_of(runs, new, settings)
    shape = (len(rows), len(settings.targets), len(settings.horizons))
    change, low, high = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for (k, j), booster in boosters.items():
        change[:, k, j] = booster.change(rows.columns[k])
        low[:, k, j], high[:, k, j] = booster.edges(rows.columns[k])
    part = np.arange(window.length) * _RECORDINGS // window.length
    block = rows.recording * _RECORDINGS + np.tile(part, len(runs))
    # Containers of one service share their quarters.
    run_of = np.tile(np.arange(_RECORDINGS) * _RUNS // _RECORDINGS, len(runs))
    chosen = {
        (k, j): choose(
            rows.relative(k, j),
            [(BOOSTED, change[:, k, j])],
            rows.service,
            block,
            run_of,
            len(rows.services),
            margin=settings.margin,
        )
        for k, j in boosters
    }
    periods = np.zeros((len(rows.services) + 1, len(settings.targets)), dtype=np.intp)
    own = calibrated(rows, chosen, low, high, periods)
    np.minimum(own.factor, MOST, out=own.factor)
    for s in range(len(rows.services)):
        measured = ~np.isnan(rows.change[rows.service == s])
        few = measured.sum(axis=0) < MIN_SCORES
        own.tables[s][few] = calibration.tables[-1][few]
        own.surprise[s][few[:, 0]] = calibration.surprise[-1][few[:, 0]]
    # The fleet's row, which is what these services were judged by so far, stays the last.
    kept = [i for i, name in enumerate(references.services) if name not in set(new.services)]
    last = [len(references.services)]

    def merged(old: NDArray[Any], found: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([old[kept], found[:-1], old[last]])

    return joined, Calibration(
        model=merged(calibration.model, own.model),
        factor=merged(calibration.factor, own.factor),
        periods=merged(calibration.periods, own.periods),
        tables=merged(calibration.tables, own.tables),
        surprise=merged(calibration.surprise, own.surprise),
    )
